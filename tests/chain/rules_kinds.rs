//! What rules can do beside filters and masks: rows that stay when they are deleted, metadata, casts, and
//! values that would be needed and do not come.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::ChainOptions;

use crate::bad_input::ensure_said;
use crate::load::{Changes, Random, stop, wait_streaming};
use crate::replication::{DATABASE, Replication};
use crate::rules::assert_as_views;
use crate::rules_shared::kill_after_chunks;

const COPY: &str = "[snapshot]\ncopy_data = true\n";

/// Every row that has ever been, as it was last.
const KEPT_ON_A: &str = "\
    CREATE TABLE people (id int PRIMARY KEY, name text, n int);
    CREATE SCHEMA hidden; CREATE TABLE hidden.ever (id int PRIMARY KEY, name text, n int);
    CREATE FUNCTION hidden.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO hidden.ever VALUES (NEW.*) ON CONFLICT (id) DO UPDATE SET name = NEW.name, n = NEW.n; RETURN NULL; END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE ON people FOR EACH ROW EXECUTE FUNCTION hidden.note();
    CREATE VIEW hidden.kept AS SELECT ever.*, people.id IS NULL AS is_gone, true AS is_known FROM hidden.ever LEFT JOIN people USING (id);
    INSERT INTO people SELECT g, 'name ' || g, g FROM generate_series(1, 450) g;";
const KEPT_ON_C: &str = "\
    CREATE TABLE people (id int PRIMARY KEY, name text, n int, op text, at timestamptz, xid bigint, more text DEFAULT 'of the target');
    CREATE VIEW kept AS SELECT id, name, n, op = 'D' AS is_gone, (at IS NULL) = (xid IS NULL) AND (xid IS NOT NULL OR op = 'I') AS is_known FROM people;";
const KEPT: [(&str, &str); 1] = [("hidden.kept", "public.kept")];
const KEEP: &str = "\
    [[rule]]\ntable = \"public.people\"\nsoft_delete = true\nset = { op = \"$op\", at = \"$commit_time\", xid = \"$xid\" }\n";

async fn start_keeping() -> Result<Replication> {
    let replication = Replication::start_differing(ChainOptions::default(), KEPT_ON_A, KEPT_ON_C).await?;
    replication.configure(&format!("{COPY}{KEEP}"))?;
    replication.setup().await?;
    replication.catch_up().await?;
    assert_as_views(&replication, &KEPT).await.context("after the copy")?;
    Ok(replication)
}

/// What C has of some rows, as `id name n op`.
async fn people(replication: &Replication, which: &str) -> Result<String> {
    let sql = format!("SELECT string_agg(concat_ws(' ', id, name, n, op), '; ' ORDER BY id) FROM people WHERE {which}");
    replication.chain.c.scalar(DATABASE, &sql).await
}

#[tokio::test]
async fn rows_that_are_deleted_stay() -> Result<()> {
    let replication = start_keeping().await?;
    for (change, which, expected) in [
        ("UPDATE people SET n = -1 WHERE id = 1", "id = 1", "1 name 1 -1 U"),
        ("DELETE FROM people WHERE id = 2", "id = 2", "2 name 2 2 D"),
        ("INSERT INTO people VALUES (2, NULL, 7)", "id = 2", "2 7 I"),
        ("DELETE FROM people WHERE id = 2; INSERT INTO people VALUES (2, 'third')", "id = 2", "2 third I"),
        ("UPDATE people SET id = 1003 WHERE id = 3", "id IN (3, 1003)", "3 name 3 3 D; 1003 name 3 3 U"),
        // To a key that is kept.
        ("UPDATE people SET id = 3, name = 'x' WHERE id = 4", "id IN (3, 4)", "3 x 4 U; 4 name 4 4 D"),
        ("UPDATE people SET n = 50, name = 'y' WHERE id = 5; DELETE FROM people WHERE id = 5", "id = 5", "5 y 50 D"),
        ("INSERT INTO people VALUES (2001, 'a'); DELETE FROM people WHERE id = 2001", "id = 2001", "2001 a D"),
        (
            "INSERT INTO people VALUES (2001, 'b'); UPDATE people SET n = 1 WHERE id = 2001",
            "id = 2001 AND op <> 'D'",
            "",
        ),
        ("BEGIN; DELETE FROM people; ROLLBACK", "id = 6", "6 name 6 6 I"),
        ("DELETE FROM people WHERE id > 400", "id = 401", "401 name 401 401 D"),
        ("TRUNCATE people; INSERT INTO people VALUES (7, 'after')", "id IN (6, 7)", "6 name 6 6 D; 7 after I"),
        (
            "BEGIN; INSERT INTO people VALUES (8, 'gone'); TRUNCATE people; COMMIT",
            "id IN (7, 8)",
            "7 after D; 8 gone D",
        ),
    ] {
        replication.run_each(change).await?;
        replication.catch_up().await.with_context(|| change.to_owned())?;
        assert_as_views(&replication, &KEPT).await.with_context(|| change.to_owned())?;
        let found = people(&replication, which).await?;
        ensure!(expected.is_empty() || found == expected, "{change}: {found}");
    }
    let own = "SELECT count(*) FROM people WHERE more IS DISTINCT FROM 'of the target'";
    ensure!(replication.chain.c.scalar(DATABASE, own).await? == "0", "a column of C's own has changed");
    Ok(())
}

#[tokio::test]
async fn deleted_rows_that_nothing_could_find_again_are_refused() -> Result<()> {
    let on_c = "CREATE TABLE people (id int, name text, n int, op text); CREATE UNIQUE INDEX ON people (id) WHERE n > 0; \
                CREATE UNIQUE INDEX ON people (id, name); CREATE UNIQUE INDEX ON people (n) INCLUDE (id)";
    let replication = Replication::start_differing(
        ChainOptions::default(),
        "CREATE TABLE people (id int PRIMARY KEY, name text, n int)",
        on_c,
    )
    .await?;
    let rule = "[[rule]]\ntable = 'public.people'\nsoft_delete = true\nset = { op = '$op' }\n";
    replication.configure(rule)?;
    let mend = "CREATE UNIQUE INDEX ON \"public\".\"people\" (\"id\")";
    ensure_said(&replication.command(&["setup"]).await?, 3, &["no unique index of \"id\"", mend])?;
    replication.chain.c.sql(DATABASE, mend).await?;
    replication.setup().await?;
    // Gone since: `run` refuses the same.
    replication.chain.c.sql(DATABASE, "DROP INDEX people_id_idx1").await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure_said(&output, 3, &["no unique index of \"id\"", mend])?;
    replication.chain.c.sql(DATABASE, mend).await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO people VALUES (1, 'a', 1)").await?;
    replication.catch_up().await?;
    ensure!(people(&replication, "true").await? == "1 a 1 I");
    Ok(())
}

/// A column that nobody can set is what it was, or the row is not that row.
#[tokio::test]
async fn rows_that_come_again_with_columns_that_cannot_be_set() -> Result<()> {
    let on_a = "CREATE TABLE people (id int PRIMARY KEY, name text, n int); CREATE TABLE numbered (id int PRIMARY KEY, name text)";
    let on_c = "CREATE TABLE people (id int PRIMARY KEY, name text, n int GENERATED ALWAYS AS IDENTITY, op text); \
                CREATE TABLE numbered (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, name text, op text)";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    let rule = "[[rule]]\ntable = 'public.*'\nsoft_delete = true\nset = { op = '$op' }\n";
    replication.configure(rule)?;
    replication.setup().await?;
    let changes = "\
        INSERT INTO people VALUES (1, 'a', 1), (2, 'b', 2); INSERT INTO numbered VALUES (1, 'a'), (2, 'b');
        DELETE FROM people; DELETE FROM numbered; INSERT INTO people VALUES (1, 'again', 1); INSERT INTO numbered VALUES (1, 'again')";
    replication.run_each(changes).await?;
    replication.catch_up().await?;
    ensure!(people(&replication, "true").await? == "1 again 1 I; 2 b 2 D");
    let numbered = "SELECT string_agg(concat_ws(' ', id, name, op), '; ' ORDER BY id) FROM numbered";
    ensure!(replication.chain.c.scalar(DATABASE, numbered).await? == "1 again I; 2 b D");
    replication.chain.a.sql(DATABASE, "INSERT INTO people VALUES (2, 'again', 7)").await?;
    let said = replication.halt().await?;
    ensure!(said.contains("\"people\": column \"n\" is GENERATED ALWAYS AS IDENTITY"), "{said}");
    ensure!(people(&replication, "true").await? == "1 again 1 I; 2 b 2 D");
    Ok(())
}

const KEEPING_LOAD: &str = "\
    INSERT INTO people SELECT g, 'again', 0 FROM generate_series(1, 300) g WHERE random() < 0.1 ON CONFLICT DO NOTHING;
    UPDATE people SET n = n + 1, name = name || '.' WHERE random() < 0.02;
    DELETE FROM people WHERE random() < 0.05;
    UPDATE people SET id = id + 100000 WHERE id < 100000 AND id % 100 = (random() * 99)::int
        AND NOT EXISTS (SELECT FROM people other WHERE other.id = people.id + 100000);
    UPDATE people SET name = left(name, 20) WHERE length(name) > 20;
    BEGIN; DELETE FROM people WHERE id % 3 = 0; SAVEPOINT s; TRUNCATE people; ROLLBACK TO s;
    INSERT INTO people VALUES (3, 'in one', 1), (6, 'in one', 1); DELETE FROM people WHERE id = 6; COMMIT;
    INSERT INTO people SELECT max(id) + 1, 'new', 1 FROM people;
    BEGIN; INSERT INTO people SELECT max(id) + 1, 'never', 1 FROM people; ROLLBACK;
    BEGIN; TRUNCATE people; INSERT INTO people VALUES (1, 'first', 1); COMMIT";

#[tokio::test]
async fn rows_that_are_deleted_stay_whenever_the_engine_is_killed() -> Result<()> {
    let replication = start_keeping().await?;
    let changes = Changes::start(&replication, KEEPING_LOAD);
    let mut random = Random::new();
    for _ in 0..6 {
        let engine = replication.spawn()?;
        random.pause(Duration::from_millis(800)).await;
        engine.sigkill().await?;
    }
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    random.pause(Duration::from_millis(500)).await;
    changes.end().await?;
    replication.wait_caught_up().await.with_context(|| engine.stderr())?;
    assert_as_views(&replication, &KEPT).await?;
    stop(&engine).await
}

/// The transaction that has written a row, as A knows it; row 70 is written below a savepoint. Updates count n up.
const METADATA_ON_A: &str = "\
    CREATE TABLE things (id int PRIMARY KEY, n int);
    CREATE SCHEMA hidden;
    CREATE VIEW hidden.things AS SELECT id, n, pg_xact_commit_timestamp(xmin) AS at, CASE n WHEN 0 THEN 'I' ELSE 'U' END AS op,
        coalesce((SELECT top.xmin FROM things top WHERE top.id = 1000 AND things.id = 70), xmin)::text::bigint AS xid,
        'public/things' AS source FROM things;
    INSERT INTO things SELECT g, 0 FROM generate_series(1, 50) g;";
const METADATA_ON_C: &str = "\
    CREATE TABLE things (id int PRIMARY KEY, n int, lsn text, at timestamptz, op text, xid bigint, source text);
    CREATE VIEW found AS SELECT id, n, at, op, xid, source FROM things;";
const METADATA: &str = r#"
    [[rule]]
    table = "public.things"
    set = { lsn = "$lsn", at = "$commit_time", op = "$op", xid = "$xid", source = "$source_schema || '/' || $source_table" }
"#;

#[tokio::test]
async fn metadata_is_what_the_source_knows() -> Result<()> {
    let track = "track_commit_timestamp";
    let options =
        ChainOptions::default().a_conf(track, "on").b_conf(track, "on").b_conf("logical_decoding_work_mem", "64kB");
    let replication = Replication::start_differing(options, METADATA_ON_A, METADATA_ON_C).await?;
    let c = &replication.chain.c;
    replication.configure(&format!("{COPY}{METADATA}"))?;
    replication.setup().await?;
    replication.catch_up().await?;
    let copied = "SELECT count(*) || ' of ' || count(DISTINCT lsn::pg_lsn) FROM things \
                  WHERE op = 'I' AND at IS NULL AND xid IS NULL AND source = 'public/things'";
    ensure!(
        c.scalar(DATABASE, copied).await? == "50 of 1",
        "{:?}",
        c.query_text(DATABASE, "SELECT * FROM things").await?
    );

    let changes = "UPDATE things SET n = 1; INSERT INTO things VALUES (51, 0); \
                   BEGIN; INSERT INTO things VALUES (52, 0), (53, 0); UPDATE things SET n = n + 1 WHERE id < 10; COMMIT; \
                   UPDATE things SET id = -id, n = n + 1 WHERE id = 20; DELETE FROM things WHERE id = 30; \
                   UPDATE things SET n = n + 1 WHERE id = 40";
    replication.run_each(changes).await?;
    replication.chain.wait_b_caught_up().await?;
    let tail = replication.succeed(&["tail", "--no-follow"]).await?;
    replication.catch_up().await?;
    assert_as_views(&replication, &[("hidden.things", "public.found")]).await?;

    // Later transactions have higher LSNs, and they are those of the commits.
    let found = c.query_text(DATABASE, "SELECT DISTINCT lsn, xid, lsn::pg_lsn FROM things ORDER BY xid").await?;
    let order = "SELECT bool_and(sooner.lsn::pg_lsn < later.lsn::pg_lsn AND sooner.at < later.at) \
                 FROM things sooner JOIN things later ON sooner.xid < later.xid";
    ensure!(found.len() == 5 && c.scalar(DATABASE, order).await? == "t", "{found:?}");
    for lsn in found.iter().filter_map(|row| row[0].as_ref()) {
        ensure!(tail.contains(&format!("\"commit_lsn\":\"{lsn}\"")), "{lsn} is no commit in {tail}");
    }
    // One that comes in parts while it goes on, since it is large, with a savepoint and with another beside it.
    let large = "BEGIN; INSERT INTO things SELECT g, 0 FROM generate_series(1000, 6000) g; SAVEPOINT s; \
                 UPDATE things SET n = 1; ROLLBACK TO s; INSERT INTO things VALUES (70, 0)";
    let client = replication.chain.a.connect(DATABASE).await?;
    client.batch_execute(large).await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO things VALUES (60, 0)").await?;
    client.batch_execute("COMMIT").await?;
    replication.catch_up().await?;
    assert_as_views(&replication, &[("hidden.things", "public.found")]).await
}

/// Nothing of what was copied can be computed again as it was.
#[tokio::test]
async fn a_copy_that_is_killed_goes_on_where_values_differ_each_time() -> Result<()> {
    let on_a = "CREATE TABLE things (id int PRIMARY KEY, phone text, note text); \
                CREATE SCHEMA hidden; CREATE VIEW hidden.things AS SELECT id, length(phone) AS phone, note FROM things WHERE id % 5 > 0; \
                INSERT INTO things SELECT g, '+49 ' || g, repeat(md5(g::text), 7) FROM generate_series(1, 20000) g";
    let on_c = "CREATE TABLE things (id int PRIMARY KEY, phone text, note text, lsn text, op text); \
                CREATE VIEW found AS SELECT id, length(phone) AS phone, note FROM things \
                WHERE op <> 'D' AND lsn::pg_lsn > '0/0' AND NOT (op = 'I' AND phone = '+49 ' || id AND id > 10000)";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication.configure(
        "[snapshot]\nchunk_bytes = \"1MiB\"\njobs = 1\n[[rule]]\ntable = 'public.things'\nwhere = 'id % 5 > 0'\n\
         mask = { phone = 'digits_random' }\nset = { lsn = '$lsn', op = '$op' }\nsoft_delete = true\n",
    )?;
    replication.setup().await?;
    kill_after_chunks(&replication, 3).await?;
    let changes = "DELETE FROM things WHERE id % 7 = 0; UPDATE things SET note = 'new' WHERE id % 11 = 0; \
                   UPDATE things SET id = -id WHERE id % 13 = 0; INSERT INTO things VALUES (20001, '1', 'new')";
    replication.run_each(changes).await?;
    replication.catch_up().await?;
    assert_as_views(&replication, &[("hidden.things", "public.found")]).await?;
    let change = "DELETE FROM things WHERE id > 19000; UPDATE things SET phone = phone || '1' WHERE id % 3 = 0";
    replication.run_each(change).await?;
    replication.catch_up().await?;
    assert_as_views(&replication, &[("hidden.things", "public.found")]).await
}

const CAST_ON_A: &str = "\
    CREATE TABLE things (id int PRIMARY KEY, secret text, i int, num numeric, f float8, t text, at timestamptz, p numeric,
        long text, b boolean, other text);
    CREATE SCHEMA hidden;
    CREATE VIEW hidden.things AS SELECT id, i::text AS i, num::int AS num, f::int AS f, t::int AS t, at::date AS at,
        p::numeric(6,1) AS p, long::varchar(3) AS long, b::int AS b FROM things;";
const CAST_ON_C: &str =
    "CREATE TABLE things (id int PRIMARY KEY, i text, num int, f int, t int, at date, p numeric, long text, b int);";
const CAST: &str = r#"
    [[rule]]
    table = "public.things"
    keep_columns = ["id", "[ifp]", "num", "t", "at", "lo*", "b"]
    [[rule]]
    table = "public.*"
    cast = { i = "text", num = "int", f = "integer", t = "int4", at = "date", p = "numeric(6,1)", long = "varchar(3)", b = "int" }
"#;
const CAST_ROWS: &str = "\
    INSERT INTO things SELECT $ + row_number() OVER (), 'secret', v.*, 'other' FROM (VALUES
        (0, 0.5, 0.5, '12', timestamptz '2020-02-29 23:59:59.9+00', 0.05, 'abcd', true),
        (-1, -0.5, -0.5, ' -7 ', '1999-12-31 23:30:00-01', -0.05, 'äöüß', false),
        (2147483647, 1.5, 1.5, '+3', '2000-01-01 00:30:00+01', 12345.67, 'ab', NULL),
        (-2147483648, 2.5, 2.5, '2147483647', 'infinity', 99999.94, '', true),
        (NULL, -2.5, -2.5, '-2147483648', '0044-03-15 12:00:00+00 BC', 0, NULL, true),
        (7, 2147483647.4, 2147483647.4, '0', '-infinity', 'NaN', 'abc ', true),
        (8, NULL, NULL, NULL, NULL, NULL, '   x', NULL)) v;";

#[tokio::test]
async fn casts_are_those_of_postgresql() -> Result<()> {
    for format in ["binary", "text"] {
        let rows = |from: &str| CAST_ROWS.replace('$', from);
        let on_a = format!("{CAST_ON_A}{}", rows("0"));
        let replication = Replication::start_differing(ChainOptions::default(), &on_a, CAST_ON_C).await?;
        let stream = if format == "text" { "[stream]\nformat = \"text\"\n" } else { "" };
        replication.configure(&format!("{COPY}{stream}{CAST}"))?;
        replication.setup().await?;
        for change in [
            "SELECT 1",
            &rows("100"),
            "UPDATE things SET secret = 'x', i = i / 2, num = num / 3, f = f / 3, p = p / 7, at = at + interval '1 day'",
            "UPDATE things SET id = -id WHERE id % 2 = 0; DELETE FROM things WHERE id = 3",
        ] {
            replication.chain.a.sql(DATABASE, change).await?;
            replication.catch_up().await.with_context(|| change.to_owned())?;
            assert_as_views(&replication, &[("hidden.things", "public.things")])
                .await
                .with_context(|| format!("{format}: {change}"))?;
        }
    }
    Ok(())
}

const LARGE_ON_A: &str = "\
    CREATE TABLE things (id int PRIMARY KEY, big text, n int); ALTER TABLE things ALTER big SET STORAGE EXTERNAL;
    CREATE SCHEMA hidden; CREATE VIEW hidden.things AS SELECT id, upper(big) AS big, n, length(big) + n AS size FROM things WHERE id > 100;
    INSERT INTO things SELECT g, repeat('x', 5000), g FROM generate_series(1, 200) g;";
const LARGE_ON_C: &str = "CREATE TABLE things (id int PRIMARY KEY, big text, n int, size int)";

/// A large value that an update leaves alone does not come; where it would have to, somebody has to decide.
#[tokio::test]
async fn a_value_that_does_not_come_and_is_needed_stops_the_stream() -> Result<()> {
    let upper = "set = { big = \"upper(big)\" }\n";
    let size = "set = { big = \"upper(big)\", size = \"length(big) + n\" }\n";
    for (set, change, named) in [
        (upper, "UPDATE things SET id = 1000 WHERE id = 1", "column \"big\""),
        (size, "UPDATE things SET n = 0 WHERE id = 101", "column \"size\""),
    ] {
        let replication = Replication::start_differing(ChainOptions::default(), LARGE_ON_A, LARGE_ON_C).await?;
        replication.configure(&format!("{COPY}[[rule]]\ntable = 'public.things'\nwhere = 'id > 100'\n{set}"))?;
        replication.setup().await?;
        replication.catch_up().await?;
        let view =
            if set == upper { "(SELECT id, big, n, NULL::int AS size FROM hidden.things)" } else { "hidden.things" };
        let as_view = || async { assert_as_views(&replication, &[(view, "public.things")]).await };
        as_view().await?;
        let before = replication.end_lsn().await?;
        replication
            .chain
            .a
            .sql(DATABASE, &format!("BEGIN; DELETE FROM things WHERE id = 150; {change}; COMMIT"))
            .await?;
        let said = replication.halt().await?;
        let mend = "ALTER TABLE \"public\".\"things\" REPLICA IDENTITY FULL";
        for text in
            [named, "the value of column \"big\" is needed", mend, "pgsluice resync \"public.things\"", "at LSN"]
        {
            ensure!(said.contains(text), "does not say {text}: {said}");
        }
        ensure!(replication.end_lsn().await? == before, "progress has moved");
        ensure!(
            replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM things WHERE id = 150").await? == "1",
            "half of it"
        );

        replication.chain.a.sql(DATABASE, mend).await?;
        replication.chain.wait_b_caught_up().await?;
        replication.succeed(&["resync", "--yes", "public.things"]).await?;
        replication.catch_up().await?;
        as_view().await?;
        let again = "UPDATE things SET id = 2000 WHERE id = 2; UPDATE things SET n = 1 WHERE id = 102; \
                     UPDATE things SET id = -103 WHERE id = 103; DELETE FROM things WHERE id = 104";
        replication.chain.a.sql(DATABASE, again).await?;
        replication.catch_up().await?;
        as_view().await?;
    }
    Ok(())
}
