//! Columns and tables that the stream brings and C lacks.

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine};

use crate::load::{settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, Replication};
use crate::rules::rows;

const TABLES: &[&str] = &["public.t", "public.other"];
const ON_BOTH: &str = "CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE other (id int PRIMARY KEY)";
const WAITS: &str = "waiting for this to be mended";

async fn start(on_a: &str, on_c: &str, more: &str) -> Result<(Replication, Engine)> {
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication.configure(more)?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    Ok((replication, engine))
}

/// Nothing is lost, nothing is left out, and nobody has to start anything.
#[tokio::test]
async fn a_column_that_the_target_lacks_is_waited_for() -> Result<()> {
    let (replication, engine) = start(ON_BOTH, ON_BOTH, "").await?;
    let alter = "ALTER TABLE \"public\".\"t\" ADD COLUMN \"more\" numeric(10,2);";
    let changes = "\
        INSERT INTO t SELECT g, 'before' FROM generate_series(1, 50) g; INSERT INTO other VALUES (1);
        ALTER TABLE t ADD COLUMN more numeric(10, 2);
        BEGIN; INSERT INTO other VALUES (2); INSERT INTO t VALUES (101, 'after', 1.5); COMMIT;
        UPDATE t SET more = id WHERE id < 10; INSERT INTO other VALUES (3)";
    replication.run_each(changes).await?;
    wait_log(&engine, alter, 1).await?;
    let said = engine.stderr();
    ensure!(said.contains(WAITS) && said.contains("has no column \"more\""), "{said}");
    // What came before is there, and nothing of the transaction that has to wait.
    let c = &replication.chain.c;
    ensure!(c.scalar(DATABASE, "SELECT count(*) || ' ' || max(id) FROM t").await? == "50 50");
    ensure!(rows(c, "other").await? == ["(1)"]);
    c.sql(DATABASE, alter).await?;
    settle(&replication, &engine, TABLES).await?;
    ensure!(engine.stderr().matches(WAITS).count() == 1, "{}", engine.stderr());
    stop(&engine).await
}

#[tokio::test]
async fn a_run_with_an_end_does_not_wait_for_a_column() -> Result<()> {
    let replication = Replication::start(ON_BOTH).await?;
    replication.setup().await?;
    let change = "ALTER TABLE t ADD COLUMN more int, ADD COLUMN \"Most\" text[] NOT NULL DEFAULT '{}'; INSERT INTO t VALUES (1, 'x', 2)";
    replication.chain.a.sql(DATABASE, change).await?;
    let said = replication.halt().await?;
    for text in [
        "has no column \"more\", \"Most\"",
        "ALTER TABLE \"public\".\"t\" ADD COLUMN \"more\" integer;",
        "ALTER TABLE \"public\".\"t\" ADD COLUMN \"Most\" text[];",
        "pgsluice resync",
    ] {
        ensure!(said.contains(text), "does not say {text}: {said}");
    }
    let mend = "ALTER TABLE t ADD COLUMN more int, ADD COLUMN \"Most\" text[] NOT NULL DEFAULT '{}'";
    replication.chain.c.sql(DATABASE, mend).await?;
    replication.replicate("INSERT INTO t VALUES (2, 'y', 3)", TABLES).await
}

/// The defaults of a table's columns, as its catalog has them.
const SHAPE: &str = "\
    (SELECT attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid), attcollation FROM pg_attribute \
     LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped)";

#[tokio::test]
async fn columns_are_added_where_that_is_all_there_is_to_it() -> Result<()> {
    let with_rows = format!("{ON_BOTH}; INSERT INTO t SELECT g, 'before' FROM generate_series(1, 20) g");
    let (replication, engine) = start(&with_rows, &with_rows, "[apply]\nddl = \"additive\"\n").await?;
    for change in [
        "ALTER TABLE t ADD COLUMN a int",
        "ALTER TABLE t ADD COLUMN b text NOT NULL DEFAULT 'it''s \\ this'",
        "ALTER TABLE t ADD COLUMN c varchar(10) COLLATE \"C\" DEFAULT 'c', ADD COLUMN \"D d\" numeric(8,3) DEFAULT 1.5",
        "ALTER TABLE t ADD COLUMN e timestamptz DEFAULT now(); ALTER TABLE t ALTER COLUMN e DROP DEFAULT",
        "ALTER TABLE t ADD COLUMN f int DEFAULT 1; ALTER TABLE t ALTER COLUMN f SET DEFAULT 2 * 3",
        "ALTER TABLE t ADD COLUMN g jsonb DEFAULT '{\"a\": [1, null]}', ADD COLUMN h int[]",
        // What comes and goes before anybody has seen it.
        "ALTER TABLE t ADD COLUMN i bigint; UPDATE t SET i = 7 WHERE id = 1; ALTER TABLE t DROP COLUMN i",
    ] {
        let sql = format!(
            "{change}; INSERT INTO t SELECT max(id) + 1, 'after' FROM t; UPDATE t SET note = 'new' WHERE id = 3"
        );
        replication.run_each(&sql).await?;
        settle(&replication, &engine, TABLES).await.with_context(|| change.to_owned())?;
    }
    let [_, b, c] = replication.servers();
    c.sql(DATABASE, "ALTER TABLE t DROP COLUMN IF EXISTS i").await?;
    ensure!(rows(b, SHAPE).await? == rows(c, SHAPE).await?, "{:?}", rows(c, SHAPE).await?);
    ensure!(!engine.stderr().contains(WAITS), "{}", engine.stderr());
    stop(&engine).await
}

/// What could leave rows otherwise than they are on A is for a person to do.
#[tokio::test]
async fn columns_are_not_added_where_rows_would_differ() -> Result<()> {
    let with_rows = format!("{ON_BOTH}; INSERT INTO t SELECT g, 'before' FROM generate_series(1, 20) g");
    let (replication, engine) = start(&with_rows, &with_rows, "[apply]\nddl = \"additive\"\n").await?;
    let c = &replication.chain.c;
    let cases = [
        (
            "ALTER TABLE t ADD COLUMN u uuid DEFAULT gen_random_uuid(); ALTER TABLE t ALTER u DROP DEFAULT",
            "ADD COLUMN \"u\" uuid;",
            "rows that were there before may have values in it",
            "ALTER TABLE t ADD COLUMN u uuid",
        ),
        (
            "ALTER TABLE t ADD COLUMN a float8 DEFAULT random()",
            "ADD COLUMN \"a\" double precision;",
            "pgsluice resync",
            "ALTER TABLE t ADD COLUMN a float8",
        ),
        (
            "ALTER TABLE t RENAME note TO remark",
            "on the target: ALTER TABLE \"public\".\"t\" RENAME COLUMN \"note\" TO \"remark\";",
            "has no column \"remark\"",
            "ALTER TABLE t RENAME note TO remark",
        ),
        (
            "CREATE TYPE mood AS ENUM ('good'); ALTER TABLE t ADD COLUMN m mood",
            "ADD COLUMN \"m\" public.mood;",
            "has no column \"m\"",
            "CREATE TYPE mood AS ENUM ('good'); ALTER TABLE t ADD COLUMN m mood",
        ),
    ];
    for (round, (change, said, said_too, mend)) in (1..).zip(cases) {
        let sql = format!("{change}; INSERT INTO t SELECT max(id) + 1 FROM t");
        replication.run_each(&sql).await?;
        wait_log(&engine, WAITS, round).await.with_context(|| change.to_owned())?;
        let log = engine.stderr();
        ensure!(log.contains(said) && log.contains(said_too), "{change}: {log}");
        c.sql(DATABASE, mend).await?;
        wait_streaming(&engine, 1).await?;
        replication.wait_caught_up().await.with_context(|| change.to_owned())?;
    }
    stop(&engine).await?;
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    replication.catch_up().await?;
    replication.assert_same(TABLES).await
}

/// A renamed column of a wider type there, one that a mask hides, and one that only one of two sources has.
#[tokio::test]
async fn columns_of_rules_and_of_shared_tables_are_left_to_a_person() -> Result<()> {
    let on_a = "\
        CREATE TABLE t (id int PRIMARY KEY, note varchar(50), email text); CREATE TABLE other (id int PRIMARY KEY);
        CREATE SCHEMA s1; CREATE SCHEMA s2; CREATE TABLE s1.o (id int PRIMARY KEY, n int); CREATE TABLE s2.o (LIKE s1.o INCLUDING ALL);
        INSERT INTO t SELECT g, 'note', 'clear' FROM generate_series(1, 5) g; INSERT INTO s1.o VALUES (1, 1); INSERT INTO s2.o VALUES (1, 1)";
    let on_c = "\
        CREATE TABLE t (id int PRIMARY KEY, note text, email text); CREATE TABLE other (id int PRIMARY KEY);
        CREATE TABLE o (origin text, id int, n int, PRIMARY KEY (origin, id))";
    let rules = "[tables]\ninclude = [\"public.*\", \"s1.o\", \"s2.o\"]\n[snapshot]\ncopy_data = true\n[apply]\nddl = \"additive\"\n\
                 [[rule]]\ntable = \"public.t\"\nmask = { \"*mail*\" = \"sha256\" }\n\
                 [[rule]]\ntable = \"s?.o\"\nrename_schema = \"public\"\nset = { origin = \"$source_schema\" }\nkey = [\"origin\", \"id\"]\n";
    let (replication, engine) = start(on_a, on_c, rules).await?;
    let c = &replication.chain.c;
    for (round, (change, said, mend)) in (1..).zip([
        (
            "ALTER TABLE t RENAME note TO remark; INSERT INTO t VALUES (11)",
            "RENAME COLUMN \"note\" TO \"remark\"",
            "ALTER TABLE t RENAME note TO remark",
        ),
        (
            "ALTER TABLE t ADD COLUMN mail2 text NOT NULL DEFAULT 'none'; INSERT INTO t VALUES (12)",
            "rules make it, and rows that were there before do not have it",
            "ALTER TABLE t ADD COLUMN mail2 text",
        ),
        (
            "ALTER TABLE s1.o ADD COLUMN x int DEFAULT 5; INSERT INTO s1.o VALUES (2, 2)",
            "ALTER TABLE \"public\".\"o\" ADD COLUMN \"x\" integer;\n",
            "ALTER TABLE o ADD COLUMN x int",
        ),
    ]) {
        replication.run_each(change).await?;
        wait_log(&engine, WAITS, round).await.with_context(|| change.to_owned())?;
        ensure!(engine.stderr().contains(said), "{change}: {}", engine.stderr());
        c.sql(DATABASE, mend).await?;
        replication.wait_caught_up().await.with_context(|| change.to_owned())?;
    }
    // What nobody has to decide about is done: of rows of the other source there is no value either.
    replication.run_each("ALTER TABLE s1.o ADD COLUMN y int; INSERT INTO s1.o VALUES (3, 3, 3, 3)").await?;
    replication.wait_caught_up().await?;
    ensure!(
        rows(c, "o").await? == ["(s1,1,1,,)", "(s1,2,2,5,)", "(s1,3,3,3,3)", "(s2,1,1,,)"],
        "{:?}",
        rows(c, "o").await?
    );
    stop(&engine).await
}

/// The column goes to another name in another table, or to none.
#[tokio::test]
async fn columns_are_added_as_rules_have_them() -> Result<()> {
    let on_a = format!("{ON_BOTH}; INSERT INTO t SELECT g, 'before' FROM generate_series(1, 20) g");
    let on_c = "CREATE TABLE target (id int PRIMARY KEY, text text); CREATE TABLE other (id int PRIMARY KEY)";
    let rule = "[snapshot]\ncopy_data = true\n[apply]\nddl = \"additive\"\n[[rule]]\ntable = \"public.t\"\nrename_to = \"public.target\"\n\
                rename_columns = { note = \"text\", more = \"most\" }\n[[rule]]\ntable = \"public.t\"\ndrop_columns = \"secret*\"\n";
    // Names in rules have to be those of columns.
    let pattern = rule.replace("more = \"most\"", "\"mor?\" = \"most\"");
    let (replication, engine) = start(&on_a, on_c, &pattern).await?;
    let change = "ALTER TABLE t ADD COLUMN more int NOT NULL DEFAULT 7, ADD COLUMN secret text DEFAULT 'x'; \
                  INSERT INTO t VALUES (21, 'after', 8, 'y'); DELETE FROM t WHERE id = 1";
    replication.run_each(change).await?;
    replication.wait_caught_up().await.with_context(|| engine.stderr())?;
    let [_, b, c] = replication.servers();
    ensure!(
        rows(b, "(SELECT id, note, more FROM t)").await? == rows(c, "target").await?,
        "{:?}",
        rows(c, "target").await?
    );
    stop(&engine).await
}

#[tokio::test]
async fn a_table_that_the_target_lacks_is_waited_for() -> Result<()> {
    let (replication, engine) = start(ON_BOTH, ON_BOTH, "").await?;
    let c = &replication.chain.c;
    c.sql(DATABASE, "ALTER TABLE t RENAME TO away").await?;
    replication.run_each("INSERT INTO other VALUES (1); INSERT INTO t VALUES (1, 'x')").await?;
    wait_log(&engine, "the target has no table \"public\".\"t\"", 1).await?;
    ensure!(rows(c, "other").await? == ["(1)"]);
    c.sql(DATABASE, "ALTER TABLE away RENAME TO t").await?;
    settle(&replication, &engine, TABLES).await?;
    stop(&engine).await
}
