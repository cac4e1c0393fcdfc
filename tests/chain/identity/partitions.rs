use anyhow::{Result, ensure};

use super::{AGAIN, between, copied, refused, running};
use crate::load::{expect_end, settle, stop, wait_log};
use crate::replication::{DATABASE, Replication};

const TABLE: [&str; 1] = ["public.t"];
const PARTITIONED: &str = "\
    CREATE TABLE t (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
    CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (100); CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (100) TO (200)";
/// C is partitioned otherwise.
const PLAIN: &str = "CREATE TABLE t (id int PRIMARY KEY, note text)";
const ROWS: &str = "INSERT INTO t SELECT g, 'note' FROM generate_series(0, 199, 10) g";
const RESYNC: &str = "`pgsluice resync \"public.t\"`";

async fn start() -> Result<Replication> {
    let options = Default::default();
    let replication = Replication::start_differing(options, &format!("{PARTITIONED};{ROWS}"), PLAIN).await?;
    replication.configure("[snapshot]\n")?;
    replication.setup().await?;
    replication.catch_up().await?;
    Ok(replication)
}

/// Runs what it says, by engines that run and by one that is started, and then what they have to say brings C to where A is.
async fn is_said(ddl: &str, said: &str) -> Result<()> {
    let replication = start().await?;
    let engine = running(&replication).await?;
    replication.run_each(ddl).await?;
    wait_log(&engine, said, 1).await?;
    ensure!(engine.stderr().contains(RESYNC), "{}", engine.stderr());
    stop(&engine).await?;
    // Again at each start, until it is mended.
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(0) && output.stderr.contains(said), "{}", output.stderr);
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    replication.catch_up().await?;
    replication.assert_same(&TABLE).await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(0) && !output.stderr.contains(said), "{}", output.stderr);

    // While nobody looked.
    let replication = start().await?;
    replication.run_each(ddl).await?;
    replication.chain.wait_b_caught_up().await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(
        output.code == Some(0) && output.stderr.contains(said) && output.stderr.contains(RESYNC),
        "{}",
        output.stderr
    );
    Ok(())
}

#[tokio::test]
async fn a_partition_that_is_attached_with_rows_is_named() -> Result<()> {
    let ddl = "CREATE TABLE t_3 (id int PRIMARY KEY, note text); INSERT INTO t_3 SELECT g, 'unpublished' FROM generate_series(200, 290) g; \
               ALTER TABLE t ATTACH PARTITION t_3 FOR VALUES FROM (200) TO (300)";
    is_said(ddl, "t_3 was attached to \"public\".\"t\" on the source with rows").await
}

/// Nobody can tell any more whether the rows came before it was a partition.
#[tokio::test]
async fn a_partition_that_is_made_filled_and_attached_at_once_is_named() -> Result<()> {
    let replication = start().await?;
    let ddl = "BEGIN; CREATE TABLE t_3 (id int PRIMARY KEY, note text); INSERT INTO t_3 SELECT g, 'x' FROM generate_series(200, 290) g; \
               ALTER TABLE t ATTACH PARTITION t_3 FOR VALUES FROM (200) TO (300); COMMIT";
    replication.run_each(ddl).await?;
    replication.chain.wait_b_caught_up().await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.stderr.contains("t_3 of \"public\".\"t\" was made and filled"), "{}", output.stderr);
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    replication.catch_up().await?;
    replication.assert_same(&TABLE).await
}

#[tokio::test]
async fn a_partition_that_is_detached_or_dropped_is_named() -> Result<()> {
    is_said("ALTER TABLE t DETACH PARTITION t_2", "t_2 of \"public\".\"t\" was detached or dropped").await?;
    is_said("DROP TABLE t_2", "t_2 of \"public\".\"t\" was detached or dropped").await
}

#[tokio::test]
async fn a_partition_that_was_away_is_named() -> Result<()> {
    let ddl = "ALTER TABLE t DETACH PARTITION t_2; UPDATE t_2 SET note = 'unpublished'; \
               ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES FROM (100) TO (200)";
    is_said(ddl, "t_2 of \"public\".\"t\" was detached and attached again").await
}

#[tokio::test]
async fn a_partition_that_is_truncated_alone_is_named() -> Result<()> {
    let replication = start().await?;
    let engine = running(&replication).await?;
    replication.run_each("TRUNCATE t_2").await?;
    wait_log(&engine, "t_2 of \"public\".\"t\" alone was truncated", 1).await?;
    ensure!(engine.stderr().contains(RESYNC), "{}", engine.stderr());
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    wait_log(&engine, "all tables are copied", 1).await?;
    settle(&replication, &engine, &TABLE).await?;
    stop(&engine).await
}

/// Partitions that are made ahead, filled through the whole, on demand, truncated with it, and emptied before they go.
#[tokio::test]
async fn partitions_of_every_day_are_not_worth_a_word() -> Result<()> {
    let replication = start().await?;
    let daily = "\
        CREATE TABLE t_3 PARTITION OF t FOR VALUES FROM (200) TO (300); INSERT INTO t SELECT g, 'x' FROM generate_series(200, 290) g;
        BEGIN; CREATE TABLE t_4 PARTITION OF t FOR VALUES FROM (300) TO (400); INSERT INTO t VALUES (300, 'on demand'); COMMIT;
        CREATE TABLE t_5 (id int PRIMARY KEY, note text); ALTER TABLE t ATTACH PARTITION t_5 FOR VALUES FROM (400) TO (500);
        INSERT INTO t VALUES (400, 'later'); UPDATE t SET note = 'again' WHERE id IN (400, 300, 210);
        DELETE FROM t WHERE id >= 400; ALTER TABLE t DETACH PARTITION t_5";
    let quiet = |text: &str| !text.contains("partition ") && !text.contains(AGAIN);
    replication.run_each(daily).await?;
    replication.chain.wait_b_caught_up().await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(0) && quiet(&output.stderr), "{}", output.stderr);
    replication.assert_same(&TABLE).await?;
    let engine = running(&replication).await?;
    replication.run_each("TRUNCATE t; CREATE TABLE t_6 PARTITION OF t FOR VALUES FROM (600) TO (700); INSERT INTO t VALUES (600, 'x')").await?;
    // The watch has been there.
    let kept = "SELECT identity -> 'leaves' @> '[{\"name\": \"public.t_6\"}]' FROM pgsluice.table_state";
    crate::load::wait_c(&replication, "the new partition to be known", kept).await?;
    settle(&replication, &engine, &TABLE).await?;
    ensure!(quiet(&engine.stderr()), "{}", engine.stderr());
    stop(&engine).await
}

/// What is written to it is in no WAL.
#[tokio::test]
async fn an_unlogged_partition_is_refused() -> Result<()> {
    let unlogged = "CREATE UNLOGGED TABLE t_3 PARTITION OF t FOR VALUES FROM (200) TO (300)";
    let replication = start().await?;
    let [a, _, _] = replication.servers();
    let engine = running(&replication).await?;
    a.sql(DATABASE, unlogged).await?;
    a.sql(DATABASE, "INSERT INTO t VALUES (222, 'unlogged')").await?;
    let said = ["partition public.t_3 of \"public\".\"t\" is UNLOGGED", RESYNC];
    expect_end(&engine, 3, &said).await?;
    let said = refused(&replication, &said).await?;
    a.sql(DATABASE, between(&said, "on the primary: ", "; then")).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    replication.catch_up().await?;
    replication.assert_same(&TABLE).await?;

    let replication =
        Replication::start_differing(Default::default(), &format!("{PARTITIONED};{unlogged}"), PLAIN).await?;
    replication.configure("[snapshot]\n")?;
    let output = replication.command(&["setup"]).await?;
    ensure!(output.code == Some(3) && output.stderr.contains("is UNLOGGED"), "{:?}: {}", output.code, output.stderr);
    Ok(())
}

#[tokio::test]
async fn a_partitioned_table_that_is_made_again_is_copied_again() -> Result<()> {
    let replication = copied(PARTITIONED, ROWS).await?;
    replication
        .run_each(&format!(
            "DROP TABLE t; {PARTITIONED}; INSERT INTO t VALUES (7, 'new'); ALTER PUBLICATION pgsluice_test ADD TABLE t"
        ))
        .await?;
    replication.chain.wait_b_caught_up().await?;
    replication.replicate("INSERT INTO t VALUES (8, 'after')", &TABLE).await
}
