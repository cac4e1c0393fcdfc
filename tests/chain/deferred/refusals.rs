//! What of it the target does not allow: it is named, kept, and done once it can be.

use anyhow::{Result, ensure};
use pgsluice_testkit::ChainOptions;

use super::{COPY, definitions, spawn};
use crate::load::expect_end;
use crate::replication::{DATABASE, Replication};

/// C has a constraint that A's rows break: it is named and kept, and the engine goes on once it is mended.
#[tokio::test]
async fn what_cannot_be_made_again_is_named_and_kept() -> Result<()> {
    let on_a = "CREATE TABLE t (id int PRIMARY KEY, u int); INSERT INTO t SELECT g, g / 2 FROM generate_series(2, 5) g;
                CREATE TABLE r (id int PRIMARY KEY, u int); INSERT INTO r VALUES (1, 1);";
    let on_c = "CREATE TABLE t (id int PRIMARY KEY, u int CONSTRAINT t_u UNIQUE);
                CREATE TABLE r (id int PRIMARY KEY, u int CONSTRAINT r_u UNIQUE); INSERT INTO r VALUES (2, 2);";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    let before = definitions(&replication).await?;
    let run = ["run", "--stop-at", "current", "--on-existing", "append", "--defer-indexes"];
    for arguments in [run.as_slice(), &run[..3]] {
        let output = replication.command(arguments).await?;
        for said in ["table public.t: constraint \"t_u\" could not be made again", "23505", "to mend it"] {
            ensure!(output.code == Some(1) && output.stderr.contains(said), "does not say {said}: {}", output.stderr);
        }
        ensure!(!output.stderr.contains("is duplicated"), "a value of a row is shown: {}", output.stderr);
        let records = "SELECT string_agg(object_name, ' ') FROM pgsluice.deferred";
        let records = replication.chain.c.scalar(DATABASE, records).await?;
        ensure!(records == "t_u", "on record: {records}");
    }
    let refused = replication.command(&["teardown", "--yes"]).await?;
    let sql = "ALTER TABLE public.t ADD CONSTRAINT t_u UNIQUE (u);";
    ensure!(refused.code == Some(3) && refused.stderr.contains(sql), "{}", refused.stderr);
    ensure!(replication.end_lsn().await.is_ok(), "teardown has removed what it refused to remove");
    replication.chain.c.sql(DATABASE, "UPDATE t SET u = -id WHERE id % 2 = 0").await?;
    replication.catch_up().await?;
    ensure!(definitions(&replication).await? == before, "{:?}", definitions(&replication).await?);
    replication.succeed(&["teardown", "--yes"]).await.map(drop)
}

/// A role that may not turn off foreign keys, first without the tables, then as their owner.
#[tokio::test]
async fn what_the_role_has_to_own() -> Result<()> {
    let ddl = "CREATE TABLE a (id int PRIMARY KEY, b int, up int REFERENCES a); CREATE INDEX a_b ON a (b);
               CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b;
               CREATE TABLE plain (id int PRIMARY KEY);";
    let rows = "INSERT INTO a SELECT g, NULL, NULLIF(20001 - g, g) FROM generate_series(1, 20000) g;
                INSERT INTO b SELECT g, 20001 - g FROM generate_series(1, 20000) g; UPDATE a SET b = id;
                INSERT INTO plain VALUES (1)";
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{ddl}{rows}"), ddl).await?;
    let before = definitions(&replication).await?;
    replication.configure_unprivileged_target(COPY).await?;
    replication.setup().await?;
    let run = ["run", "--defer-indexes", "--stop-at", "current"];
    let refused = |wanted: &'static [&'static str], arguments: &'static [&'static str]| {
        let replication = &replication;
        let before = &before;
        async move {
            let output = replication.command(arguments).await?;
            for said in wanted {
                ensure!(
                    output.code == Some(3) && output.stderr.contains(said),
                    "does not say {said}: {}",
                    output.stderr
                );
            }
            ensure!(definitions(replication).await? == *before, "something was dropped");
            Ok(())
        }
    };
    refused(
        &["does not own public.a, public.b;", "it may make no index in SCHEMA public", "OWNER TO"],
        &["run", "--defer-indexes"],
    )
    .await?;
    replication.chain.c.sql(DATABASE, "ALTER TABLE a OWNER TO writer; ALTER TABLE b OWNER TO writer").await?;
    refused(&["GRANT CREATE ON SCHEMA public"], &["run", "--defer-indexes"]).await?;
    replication.chain.c.sql(DATABASE, "GRANT CREATE ON SCHEMA public TO writer").await?;
    refused(&["\"public\".\"a\", \"public\".\"b\"", "--defer-indexes"], &["run"]).await?;
    replication.succeed(&run).await?;
    ensure!(definitions(&replication).await? == before, "{:?}", definitions(&replication).await?);
    let tables = ["public.a", "public.b", "public.plain"];
    replication.assert_same(&tables).await?;
    replication.replicate("INSERT INTO a VALUES (20001, 1, 1); INSERT INTO b VALUES (20001, 20001)", &tables).await
}

/// Rows that C alone lacks: the foreign key is named, and the engine does not go on without it.
#[tokio::test]
async fn a_foreign_key_that_does_not_hold_stops_the_engine() -> Result<()> {
    let on_a =
        "CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1); CREATE TABLE b (id int PRIMARY KEY, a int);
                INSERT INTO b VALUES (1, 1), (2, 2);";
    let on_c = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int CONSTRAINT b_to_a REFERENCES a);";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    let before = definitions(&replication).await?;
    let engine = spawn(&replication)?;
    expect_end(&engine, 1, &["table public.b: foreign key \"b_to_a\" could not be made again", "23503"]).await?;
    let said = replication.halt().await?;
    ensure!(said.contains("b_to_a") && !said.contains("streaming starts"), "{said}");
    replication.chain.c.sql(DATABASE, "SET session_replication_role = replica; INSERT INTO a VALUES (2)").await?;
    replication.catch_up().await?;
    ensure!(definitions(&replication).await? == before, "{:?}", definitions(&replication).await?);
    Ok(())
}
