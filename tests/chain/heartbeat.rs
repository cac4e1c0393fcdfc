//! A row that is written on A now and then, so that what C has is never older than that without a reason.

use anyhow::{Result, ensure};
use pgsluice_testkit::{Engine, wait_for};

use crate::bad_input::ensure_said;
use crate::load::{settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, Replication};

const TABLE: &str = "CREATE TABLE log (id int PRIMARY KEY)";
const TABLES: &[&str] = &["public.log"];
const HEARTBEAT: &str = "[stream]\nheartbeat = \"100ms\"\n";

/// Waits until C has a transaction of A from after this moment, though nobody writes.
async fn wait_beaten(replication: &Replication, engine: &Engine) -> Result<()> {
    let now = replication.chain.a.scalar(DATABASE, "SELECT clock_timestamp()").await?;
    let beaten = format!("SELECT coalesce(commit_time > '{now}', false) FROM pgsluice.progress");
    wait_for("a heartbeat", DEADLINE, || async {
        ensure!(engine.is_running(), "the engine has ended:\n{}", engine.stderr());
        Ok((replication.chain.c.scalar(DATABASE, &beaten).await? == "t").then_some(()))
    })
    .await
}

async fn start() -> Result<(Replication, Engine)> {
    let replication = Replication::start(TABLE).await?;
    replication.configure(HEARTBEAT)?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    Ok((replication, engine))
}

#[tokio::test]
async fn progress_follows_the_time_of_an_idle_source() -> Result<()> {
    let (replication, engine) = start().await?;
    wait_beaten(&replication, &engine).await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    settle(&replication, &engine, TABLES).await?;
    wait_beaten(&replication, &engine).await?;
    let status = replication.succeed(&["status", "--format", "json"]).await?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    ensure!(status["lag"]["total"]["seconds"].is_number(), "{status}");
    let [a, _, c] = replication.servers();
    ensure!(c.scalar(DATABASE, "SELECT to_regclass('pgsluice.heartbeat') IS NULL").await? == "t", "it is on C");
    stop(&engine).await?;

    a.sql(DATABASE, "INSERT INTO log VALUES (2); UPDATE pgsluice.heartbeat SET beat_at = now()").await?;
    replication.chain.wait_b_caught_up().await?;
    let tail = replication.succeed(&["tail", "--no-follow"]).await?;
    ensure!(tail.contains("log") && !tail.contains("heartbeat"), "{tail}");
    replication.succeed(&["teardown", "--yes"]).await?;
    ensure!(a.scalar(DATABASE, "SELECT to_regnamespace('pgsluice') IS NULL").await? == "t", "it is still on A");
    Ok(())
}

/// Nothing but the heartbeat suffers.
#[tokio::test]
async fn a_heartbeat_table_that_somebody_dropped_is_named() -> Result<()> {
    let (replication, engine) = start().await?;
    wait_beaten(&replication, &engine).await?;
    let a = &replication.chain.a;
    a.sql(DATABASE, "DROP TABLE pgsluice.heartbeat").await?;
    wait_log(&engine, "has no table pgsluice.heartbeat", 1).await?;
    a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    settle(&replication, &engine, TABLES).await?;
    ensure!(engine.stderr().contains("`pgsluice setup` makes it"), "{}", engine.stderr());
    replication.setup().await?;
    wait_beaten(&replication, &engine).await?;
    ensure!(!engine.stderr().contains("session ended"), "{}", engine.stderr());
    stop(&engine).await
}

#[tokio::test]
async fn a_heartbeat_can_be_added_later_and_wants_a_primary() -> Result<()> {
    let replication = Replication::start(TABLE).await?;
    replication.setup().await?;
    replication.configure(HEARTBEAT)?;
    let engine = replication.spawn()?;
    wait_log(&engine, "heartbeats are not published", 1).await?;
    replication.setup().await?;
    wait_beaten(&replication, &engine).await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    settle(&replication, &engine, TABLES).await?;
    stop(&engine).await?;
    let [_, b, c] = replication.servers();
    replication.configure_servers(&b.dsn(DATABASE), None, &c.dsn(DATABASE), HEARTBEAT)?;
    let said = ["heartbeat is set in [stream], and there is no [primary]", "leave heartbeat out"];
    for command in [["setup"].as_slice(), &["run", "--stop-at", "current"]] {
        ensure_said(&replication.command(command).await?, 3, &said)?;
    }
    replication.assert_same(TABLES).await
}
