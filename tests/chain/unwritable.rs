//! What a publication does to the users of A: which statements A refuses once a table is in it, and that `setup` and `run` say so.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Server};

use crate::load::{expect_end, wait_log};
use crate::replication::{DATABASE, Replication, SETUP};

/// Shapes of tables that every version knows. Each has a column `v` that is none of its identity.
const SHAPES: &str = "
    CREATE TABLE key (id int PRIMARY KEY, v text);
    CREATE TABLE nokey (id int, v text);
    CREATE TABLE late (id int PRIMARY KEY DEFERRABLE, v text);
    CREATE TABLE later (id int NOT NULL, v text, PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED, UNIQUE (id));
    CREATE TABLE nothing (id int PRIMARY KEY, v text); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
    CREATE TABLE fully (id int, v text); ALTER TABLE fully REPLICA IDENTITY FULL;
    CREATE TABLE full_key (id int PRIMARY KEY, v text); ALTER TABLE full_key REPLICA IDENTITY FULL;
    CREATE TABLE by_index (id int NOT NULL, v text); CREATE UNIQUE INDEX by_index_id ON by_index (id);
    ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_id;
    CREATE TABLE gone (id int NOT NULL, v text); CREATE UNIQUE INDEX gone_id ON gone (id);
    ALTER TABLE gone REPLICA IDENTITY USING INDEX gone_id; DROP INDEX gone_id;
    CREATE TABLE gone_key (id int PRIMARY KEY, n int NOT NULL, v text); CREATE UNIQUE INDEX gone_key_n ON gone_key (n);
    ALTER TABLE gone_key REPLICA IDENTITY USING INDEX gone_key_n; DROP INDEX gone_key_n;
    CREATE TABLE including (id int NOT NULL, v text, PRIMARY KEY (id) INCLUDE (v));
    CREATE TABLE dropped (x int, id int PRIMARY KEY, v text); ALTER TABLE dropped DROP COLUMN x;
    CREATE TABLE unique_null (id int UNIQUE, v text);
    CREATE TABLE unique_part (id int NOT NULL, v text); CREATE UNIQUE INDEX ON unique_part (id) WHERE id > 0;
    CREATE TABLE full_made (id int NOT NULL, g int GENERATED ALWAYS AS (id * 2) STORED, v text);
    ALTER TABLE full_made REPLICA IDENTITY FULL;
    CREATE TABLE full_made_key (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) STORED, v text);
    ALTER TABLE full_made_key REPLICA IDENTITY FULL;
    CREATE TABLE index_made (id int, g int GENERATED ALWAYS AS (id * 2) STORED NOT NULL, v text);
    CREATE UNIQUE INDEX index_made_g ON index_made (g); ALTER TABLE index_made REPLICA IDENTITY USING INDEX index_made_g;
    CREATE TABLE key_made (id int, g int GENERATED ALWAYS AS (id * 2) STORED, v text, PRIMARY KEY (id, g));
    CREATE TABLE beside_made (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) STORED, v text);
    CREATE TABLE nokey_made (id int, g int GENERATED ALWAYS AS (id * 2) STORED, v text);
    CREATE TABLE part (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
    CREATE TABLE part_plain PARTITION OF part FOR VALUES IN (1);
    CREATE TABLE part_nothing PARTITION OF part FOR VALUES IN (2); ALTER TABLE part_nothing REPLICA IDENTITY NOTHING;
    CREATE TABLE part_full PARTITION OF part FOR VALUES IN (3); ALTER TABLE part_full REPLICA IDENTITY FULL;
    CREATE TABLE part_other (v text, k int NOT NULL, id int NOT NULL, PRIMARY KEY (id, k)); ALTER TABLE part ATTACH PARTITION part_other FOR VALUES IN (4);
    CREATE UNLOGGED TABLE part_unlogged PARTITION OF part FOR VALUES IN (5);
    CREATE TABLE part_sub PARTITION OF part FOR VALUES IN (6, 7) PARTITION BY LIST (k);
    CREATE TABLE part_sub_plain PARTITION OF part_sub FOR VALUES IN (6);
    CREATE TABLE part_sub_nothing PARTITION OF part_sub FOR VALUES IN (7); ALTER TABLE part_sub_nothing REPLICA IDENTITY NOTHING;
    CREATE TABLE bare (id int, k int, v text) PARTITION BY LIST (k); ALTER TABLE bare REPLICA IDENTITY FULL;
    CREATE TABLE bare_plain PARTITION OF bare FOR VALUES IN (1);
    CREATE TABLE bare_full PARTITION OF bare FOR VALUES IN (2); ALTER TABLE bare_full REPLICA IDENTITY FULL;
    CREATE TABLE bare_late PARTITION OF bare FOR VALUES IN (3); ALTER TABLE bare_late ADD PRIMARY KEY (id) DEFERRABLE;";

/// Those of 18.
const NEW_SHAPES: &str = "
    CREATE TABLE full_virtual (id int NOT NULL, g int GENERATED ALWAYS AS (id * 2) VIRTUAL, v text);
    ALTER TABLE full_virtual REPLICA IDENTITY FULL;
    CREATE TABLE beside_virtual (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2), v text);
    CREATE TABLE overlapping (id int4range, during daterange, v text, PRIMARY KEY (id, during WITHOUT OVERLAPS));
    CREATE TABLE part_virtual (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2), v text) PARTITION BY RANGE (id);
    CREATE TABLE part_virtual_full PARTITION OF part_virtual DEFAULT; ALTER TABLE part_virtual_full REPLICA IDENTITY FULL;";

/// Publications that somebody may have made, and from which version on they can be.
const PUBLICATIONS: [(u32, &str); 14] = [
    (16, "FOR ALL TABLES WITH (publish_via_partition_root = true)"),
    (16, "FOR TABLES IN SCHEMA public WITH (publish_via_partition_root = true)"),
    (16, "FOR ALL TABLES"),
    (16, "FOR ALL TABLES WITH (publish = 'insert, truncate')"),
    (16, "FOR ALL TABLES WITH (publish = 'insert, delete', publish_via_partition_root = true)"),
    (
        16,
        "FOR TABLE key (id), full_key (id, v), by_index (v), including (id), part (id, k), bare (id, k), beside_made (id, v) \
         WITH (publish_via_partition_root = true)",
    ),
    (
        16,
        "FOR TABLE key (v), by_index (id), full_made_key (id), key_made (id), part (id), nokey (id) \
         WITH (publish_via_partition_root = true)",
    ),
    (16, "FOR TABLE part_plain (id), part_full (id, k), part_other (id, k), part_sub_nothing (id)"),
    (
        16,
        "FOR TABLE key WHERE (id > 1), by_index WHERE (v = 'x'), full_key WHERE (v = 'x'), part WHERE (k = 1), \
         nokey WHERE (id = 1), including WHERE (v = 'x' AND id = 1) WITH (publish_via_partition_root = true)",
    ),
    (
        16,
        "FOR TABLE part WHERE (v = 'x'), bare WHERE (v = 'x'), by_index WHERE (id > 1) WITH (publish_via_partition_root = true)",
    ),
    (16, "FOR TABLE key (id) WHERE (v = 'x'), by_index (id, v) WHERE (id > 1)"),
    (18, "FOR ALL TABLES WITH (publish_via_partition_root = true, publish_generated_columns = stored)"),
    (18, "FOR TABLE key_made (id, g), beside_made (id, g), index_made (id, g), full_made_key (id, g, v)"),
    (18, "FOR TABLE key_made (id), index_made (id), overlapping (id, during), beside_virtual (id)"),
];

/// The tables, without those that are partitioned, whose UPDATE or DELETE A refuses now.
async fn refused_by(a: &Server) -> Result<BTreeSet<String>> {
    let client = a.connect(DATABASE).await?;
    let tables = "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
    let mut refused = BTreeSet::new();
    for row in client.query(tables, &[]).await? {
        let table: String = row.get(0);
        for sql in [format!("UPDATE {table} SET v = v"), format!("DELETE FROM {table}")] {
            if let Err(error) = client.batch_execute(&sql).await {
                let error = error.as_db_error().context("not the server's refusal")?;
                ensure!(
                    ["55000", "42P10"].contains(&error.code().code()),
                    "{sql} fails for another reason: {}: {}",
                    error.code().code(),
                    error.message()
                );
                refused.insert(table.clone());
            }
        }
    }
    Ok(refused)
}

/// The tables of which the engine says that A refuses their UPDATE and DELETE.
fn said(stderr: &str) -> BTreeSet<String> {
    let is_said = |line: &&str| line.contains("so the primary refuses every UPDATE and DELETE");
    let table =
        |line: &str| line.split("\"public\".\"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned);
    stderr.lines().filter(is_said).filter_map(table).collect()
}

fn major(a: &str) -> Result<u32> {
    Ok(a.parse::<u32>()? / 10_000)
}

async fn start_with_shapes() -> Result<(Replication, u32)> {
    let replication = Replication::start_differing(ChainOptions::default(), SHAPES, "").await?;
    let a = &replication.chain.a;
    let major = major(&a.scalar(DATABASE, "SHOW server_version_num").await?)?;
    if major >= 18 {
        a.sql(DATABASE, NEW_SHAPES).await?;
    }
    replication.chain.wait_b_caught_up().await?;
    Ok((replication, major))
}

/// The verdict about a publication is A's own, for every shape of table and every publication.
#[tokio::test]
async fn what_setup_refuses_is_what_the_primary_would_refuse() -> Result<()> {
    let (replication, major) = start_with_shapes().await?;
    let a = &replication.chain.a;
    ensure!(refused_by(a).await?.is_empty(), "A refuses something without a publication");

    let output = replication.command(&["setup"]).await?;
    ensure!(output.code == Some(3), "ended with {:?}: {}", output.code, output.stderr);
    let foreseen = said(&output.stderr);
    ensure!(a.scalar(DATABASE, "SELECT count(*) FROM pg_publication").await? == "0", "setup has made a publication");
    let printed = replication.command(&["setup", "--print-sql"]).await?;
    ensure!(printed.code == Some(3) && said(&printed.stderr) == foreseen, "--print-sql: {}", printed.stderr);
    // What is allowed is noted where the publication is made. Rows that cannot be found are nobody's to allow.
    let printed = replication.command(&["setup", "--print-sql", "--allow-unwritable", "public.*"]).await?;
    let (code, noted) = if major >= 18 { (0, &printed.stdout) } else { (3, &printed.stderr) };
    ensure!(printed.code == Some(code), "{:?} {}", printed.code, printed.stderr);
    if major >= 18 {
        assert_eq!(said(noted), foreseen);
    } else {
        ensure!(noted.contains("\"key_made\"") && said(noted).is_empty(), "{noted}");
    }

    let roots = "SELECT string_agg(format('%I', relname), ', ') FROM pg_class WHERE relkind IN ('r', 'p') \
                 AND relnamespace = 'public'::regnamespace AND NOT relispartition";
    let roots = a.scalar(DATABASE, roots).await?;
    let made_by_setup = format!("FOR TABLE {roots} WITH (publish_via_partition_root = true)");
    let by_hand = PUBLICATIONS.into_iter().filter(|(since, _)| *since <= major).map(|(_, publication)| publication);
    for publication in std::iter::once(made_by_setup.as_str()).chain(by_hand) {
        a.sql(DATABASE, &format!("CREATE PUBLICATION pgsluice_test {publication}")).await?;
        replication.chain.wait_b_caught_up().await?;
        let output = replication.command(&["setup"]).await?;
        assert_eq!(said(&output.stderr), refused_by(a).await?, "{publication}: {}", output.stderr);
        if publication == made_by_setup {
            assert_eq!(said(&output.stderr), foreseen, "what was foreseen is not what came");
        }
        a.sql(DATABASE, "DROP PUBLICATION pgsluice_test").await?;
    }
    Ok(())
}

/// The statements that `setup` gives work as they are, and leave nothing to refuse but what needs a key of its owner's choice.
#[tokio::test]
async fn what_setup_advises_makes_tables_writable() -> Result<()> {
    let (replication, major) = start_with_shapes().await?;
    let a = &replication.chain.a;
    for _ in 0..3 {
        let output = replication.command(&["setup"]).await?;
        let Some((_, advice)) = output.stderr.split_once("on the primary: ") else { break };
        let (statements, _) = advice.split_once("; then run setup again").context("no end of the advice")?;
        for statement in statements.split("; ").filter(|statement| !statement.contains('…')) {
            a.sql(DATABASE, statement).await.with_context(|| format!("the advice {statement}"))?;
        }
        replication.chain.wait_b_caught_up().await?;
    }
    let left = said(&replication.command(&["setup"]).await?.stderr);
    let keyless: &[&str] =
        if major >= 18 { &["full_made", "full_virtual", "index_made", "key_made", "nokey_made"] } else { &[] };
    assert_eq!(left, keyless.iter().map(|table| (*table).to_owned()).collect(), "what is left to refuse");
    Ok(())
}

/// A log without a key is published once somebody has said so, and A does to it what was said.
#[tokio::test]
async fn a_table_that_only_gets_inserts_is_published_when_it_is_allowed() -> Result<()> {
    let ddl = "CREATE TABLE log (n int); CREATE TABLE \"Odd.log\" (n int); CREATE TABLE t (id int PRIMARY KEY)";
    let replication = Replication::start(ddl).await?;
    let a = &replication.chain.a;
    let refused = replication.command(&["setup"]).await?;
    ensure!(refused.code == Some(3), "{}", refused.stderr);
    for said in ["\"public\".\"log\"", "REPLICA IDENTITY FULL", "--allow-unwritable public.log", "'public.\"Odd.log\"'"]
    {
        ensure!(refused.stderr.contains(said), "does not say {said}: {}", refused.stderr);
    }
    let one = replication.command(&["setup", "--allow-unwritable", "public.log"]).await?;
    ensure!(one.code == Some(3) && !one.stderr.contains("\"public\".\"log\":"), "{}", one.stderr);
    ensure!(a.scalar(DATABASE, "SELECT count(*) FROM pg_publication").await? == "0", "setup has made a publication");
    let typo = replication.command(&["setup", "--allow-unwritable", "log"]).await?;
    ensure!(typo.code == Some(2), "{:?} {}", typo.code, typo.stderr);
    let both = ["setup", "--allow-unwritable", "public.log", "--allow-unwritable", "public.\"Odd.log\""];
    replication.succeed(&both).await?;
    replication.replicate("INSERT INTO log VALUES (1); INSERT INTO t VALUES (1)", &["public.log", "public.t"]).await?;
    assert_eq!(refused_by_name(a, "DELETE FROM log").await?, "55000");
    let again = replication.command(&["run", "--stop-at", "current"]).await?;
    assert_eq!(said(&again.stderr), BTreeSet::from(["log".to_owned(), "Odd.log".to_owned()]));
    a.sql(DATABASE, "ALTER TABLE log REPLICA IDENTITY FULL").await?;
    replication.replicate("DELETE FROM log", &["public.log", "public.t"]).await
}

async fn refused_by_name(a: &Server, sql: &str) -> Result<String> {
    let error = a.connect(DATABASE).await?.batch_execute(sql).await.err().context("A takes it")?;
    Ok(error.code().context("not of the server")?.code().to_owned())
}

/// A table or a partition may come at any time.
#[tokio::test]
async fn what_becomes_unwritable_later_is_said_with_what_ends_it() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, k int); CREATE TABLE joins (n int);
        CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);";
    let replication = Replication::start(ddl).await?;
    let a = &replication.chain.a;
    replication.configure(
        "[snapshot]\ncopy_data = true\n[tables]\ninclude = [\"public.*\"]\nexclude = [\"public.joins\"]\n",
    )?;
    replication.setup().await?;
    replication.configure("[snapshot]\ncopy_data = true\n")?;
    let engine = replication.spawn()?;
    replication.wait_caught_up().await.with_context(|| engine.stderr())?;
    a.sql(DATABASE, "ALTER PUBLICATION pgsluice_test ADD TABLE joins").await?;
    let p2 = "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)";
    replication.chain.c.sql(DATABASE, p2).await?;
    a.sql(DATABASE, &format!("{p2}; ALTER TABLE p2 REPLICA IDENTITY NOTHING")).await?;
    wait_log(&engine, "ALTER TABLE \"public\".\"joins\" REPLICA IDENTITY FULL", 1).await?;
    wait_log(&engine, "ALTER TABLE \"public\".\"p2\" REPLICA IDENTITY DEFAULT", 1).await?;
    assert_eq!(refused_by_name(a, "UPDATE p2 SET id = 12").await?, "55000");
    a.sql(DATABASE, "ALTER TABLE public.joins REPLICA IDENTITY FULL; ALTER TABLE public.p2 REPLICA IDENTITY DEFAULT")
        .await?;
    a.sql(DATABASE, "INSERT INTO joins VALUES (1), (2); INSERT INTO p VALUES (1), (11)").await?;
    a.sql(DATABASE, "UPDATE p SET id = 12 WHERE id = 11; DELETE FROM joins WHERE n = 1").await?;
    replication.wait_caught_up().await.with_context(|| engine.stderr())?;
    pgsluice_testkit::wait_for("the table that joined to be whole", crate::replication::DEADLINE, || async {
        let rows = replication.chain.c.scalar(DATABASE, "SELECT string_agg(n::text, ' ') FROM joins").await;
        Ok((rows.is_ok_and(|rows| rows == "2")).then_some(()))
    })
    .await?;
    engine.sigterm()?;
    expect_end(&engine, 0, &[]).await?;
    replication.assert_same(&["public.joins", "public.p"]).await
}

/// Old rows come as the partition has them, and the stream describes the whole table: where the two differ, a DELETE names no
/// row, and would be taken for one of a row that is missing.
#[tokio::test]
async fn partitions_whose_old_rows_name_no_row_are_refused_whatever_the_policy() -> Result<()> {
    let ddl = "CREATE TABLE p (id int PRIMARY KEY, n int NOT NULL) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        CREATE TABLE q (id int, n int) PARTITION BY RANGE (id); CREATE TABLE q1 PARTITION OF q (PRIMARY KEY (id)) DEFAULT";
    let replication = Replication::start(ddl).await?;
    let chain = &replication.chain;
    let tables = ["public.p", "public.q"];
    replication.configure("[[conflict]]\ntable = \"public.*\"\non_missing_row = \"skip\"\n")?;
    let refused = replication.command(&SETUP).await?;
    ensure!(
        refused.code == Some(3) && refused.stderr.contains("\"public\".\"q1\", a partition of"),
        "{}",
        refused.stderr
    );
    chain.a.sql(DATABASE, "ALTER TABLE q REPLICA IDENTITY FULL; ALTER TABLE q1 REPLICA IDENTITY FULL").await?;
    replication.setup().await?;
    replication
        .replicate(
            "INSERT INTO p VALUES (1, 1), (2, 2), (3, 3); INSERT INTO q SELECT * FROM p; DELETE FROM q WHERE id = 1",
            &tables,
        )
        .await?;

    // The identity changes while no engine runs: it is refused, and what comes meanwhile is not passed over.
    let by_n = "CREATE UNIQUE INDEX p1_n ON p1 (n); ALTER TABLE p1 REPLICA IDENTITY USING INDEX p1_n";
    chain.a.sql(DATABASE, by_n).await?;
    chain.a.sql(DATABASE, "DELETE FROM p WHERE id = 2").await?;
    chain.wait_b_caught_up().await?;
    let run = replication.command(&["run", "--stop-at", "current"]).await?;
    let said = "ALTER TABLE \"public\".\"p1\" REPLICA IDENTITY DEFAULT";
    ensure!(run.code == Some(3) && run.stderr.contains(said), "{:?} {}", run.code, run.stderr);
    // Put right for what follows, the DELETE that is in the stream still names no row.
    chain.a.sql(DATABASE, "ALTER TABLE p1 REPLICA IDENTITY DEFAULT").await?;
    chain.wait_b_caught_up().await?;
    let halted = replication.halt().await?;
    ensure!(halted.contains("\"public\".\"p\"") && halted.contains("pgsluice resync"), "{halted}");
    assert_eq!(chain.c.scalar(DATABASE, "SELECT count(*) FROM p").await?, "3");
    replication
        .configure("[snapshot]\ncopy_data = true\n[[conflict]]\ntable = \"public.*\"\non_missing_row = \"skip\"\n")?;
    replication.succeed(&["resync", "public.p", "--yes"]).await?;
    replication.replicate("UPDATE p SET n = 7 WHERE id = 3", &tables).await
}
