//! A run that is asked to end before it has come to where it was to stop.

use std::path::Path;

use anyhow::{Result, ensure};
use pgsluice_testkit::{Engine, wait_for};

use crate::load::{expect_end, stop, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication};

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY);";
const TABLES: [&str; 2] = ["public.t", "public.u"];
const BEFORE: &str = "stopped by a signal before";

async fn start(more: &str) -> Result<Replication> {
    let replication = Replication::start(DDL).await?;
    replication
        .chain
        .a
        .sql(DATABASE, "INSERT INTO t SELECT generate_series(1, 1000); INSERT INTO u VALUES (1)")
        .await?;
    replication.configure(&format!("[snapshot]\njobs = 1\n{more}"))?;
    replication.setup().await?;
    Ok(replication)
}

/// Runs an engine until a lock on C holds it, and asks it to end.
async fn stop_amid(replication: &Replication, arguments: &[&str]) -> Result<Engine> {
    let c = &replication.chain.c;
    let locker = c.connect(DATABASE).await?;
    locker.batch_execute("BEGIN; LOCK TABLE t IN SHARE MODE").await?;
    let engine = Engine::spawn(Path::new(ENGINE), &replication.config(), arguments)?;
    wait_for("the engine to wait", DEADLINE, || async {
        ensure!(engine.is_running(), "the engine has ended:\n{}", engine.stderr());
        let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 't'::regclass AND NOT granted)";
        Ok((c.scalar(DATABASE, waits).await? == "t").then_some(()))
    })
    .await?;
    engine.sigterm()?;
    engine.wait(DEADLINE).await?;
    locker.batch_execute("ROLLBACK").await?;
    Ok(engine)
}

#[tokio::test]
async fn a_run_that_is_stopped_before_its_end_has_failed() -> Result<()> {
    let replication = start("").await?;
    let run = ["run", "--stop-at", "current"];
    // Amid the copy.
    let engine = stop_amid(&replication, &run).await?;
    expect_end(&engine, 1, &["stopped by a signal before", "run again"]).await?;
    replication.catch_up().await?;
    replication.assert_same(&TABLES).await?;
    // Amid the stream, up to where A is, and up to an LSN.
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (-1)").await?;
    let lsn = replication.chain.a.scalar(DATABASE, "SELECT pg_current_wal_insert_lsn()").await?;
    for run in [run, ["run", "--stop-at", &lsn]] {
        let engine = stop_amid(&replication, &run).await?;
        expect_end(&engine, 1, &[BEFORE, &replication.end_lsn().await?]).await?;
    }
    replication.succeed(&["run", "--stop-at", &lsn]).await?;
    replication.assert_same(&TABLES).await
}

/// A supervisor that ends a service expects it to end well, wherever it is.
#[tokio::test]
async fn a_service_that_is_stopped_amid_its_copy_ends_well() -> Result<()> {
    let replication = start("").await?;
    let engine = stop_amid(&replication, &["run", "--format", "json"]).await?;
    expect_end(&engine, 0, &["a stop was asked for"]).await?;
    let result: serde_json::Value = serde_json::from_str(&engine.stdout())?;
    ensure!(result["end_lsn"].is_null() && result["sessions"] == 0, "{result}");
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    stop(&engine).await?;
    replication.assert_same(&TABLES).await
}

#[tokio::test]
async fn shards_that_are_stopped_before_their_end_have_failed() -> Result<()> {
    let replication = start("").await?;
    replication.succeed(&["teardown", "--yes"]).await?;
    let text = std::fs::read_to_string(replication.config())?;
    std::fs::write(replication.config(), format!("shards = 2\n{text}"))?;
    replication.setup().await?;
    let engine = stop_amid(&replication, &["run", "--stop-at", "current"]).await?;
    expect_end(&engine, 1, &[BEFORE]).await?;
    replication.catch_up().await?;
    replication.assert_same(&TABLES).await
}
