//! Two engines at once: the newer takes over, the older stops, and C has every row once.

use anyhow::Result;
use pgsluice_testkit::{ChainOptions, Engine, Signal, wait_for};

use crate::load::{
    PGBENCH_TABLES, ProgressWatch, Random, expect_end, pgbench_replication, settle, start_load, stop, wait_log,
    wait_progress, wait_streaming,
};
use crate::replication::{DATABASE, DEADLINE, Replication};

const EXIT_REFUSED: i32 = 3;

async fn expect_fenced(engine: &Engine) -> Result<()> {
    expect_end(engine, EXIT_REFUSED, &["fenced"]).await
}

/// The slot is told of nearly every commit, so that its position and progress are hardly ever the same for long.
const TALKATIVE: &str = "[stream]\nstatus_interval = \"100ms\"\n";

/// B lets go of an engine that does not answer, and with it of the slot.
fn impatient_b() -> ChainOptions {
    ChainOptions::default().b_conf("wal_sender_timeout", "2s")
}

#[tokio::test]
async fn a_second_engine_takes_over_under_load() -> Result<()> {
    let replication = pgbench_replication(ChainOptions::default()).await?;
    replication.configure(TALKATIVE)?;
    let watch = ProgressWatch::start(&replication.chain.c);
    let load = start_load(&replication)?;
    let mut engine = replication.spawn()?;
    for _ in 0..6 {
        wait_progress(&replication).await?;
        let newer = replication.spawn()?;
        expect_fenced(&engine).await?;
        wait_streaming(&newer, 1).await?;
        engine = newer;
    }
    wait_progress(&replication).await?;
    load.kill().await?;
    settle(&replication, &engine, &PGBENCH_TABLES).await?;
    watch.finish().await?;
    stop(&engine).await
}

#[tokio::test]
async fn an_idle_engine_notices_that_another_has_taken_over() -> Result<()> {
    let replication = Replication::start("CREATE TABLE log (n int)").await?;
    replication.setup().await?;
    let older = replication.spawn()?;
    wait_streaming(&older, 1).await?;
    let newer = replication.spawn()?;
    expect_fenced(&older).await?;
    wait_streaming(&newer, 1).await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    settle(&replication, &newer, &["public.log"]).await?;
    stop(&newer).await
}

#[tokio::test]
async fn a_session_that_holds_the_progress_row_is_named_and_waited_for() -> Result<()> {
    let replication = Replication::start("CREATE TABLE log (n int)").await?;
    replication.setup().await?;
    let holder = replication.chain.c.connect(DATABASE).await?;
    holder.batch_execute("BEGIN; SELECT FROM pgsluice.progress FOR UPDATE").await?;
    let engine = replication.spawn()?;
    replication.chain.a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    wait_log(&engine, "another session on the target holds the progress row", 1).await?;
    let rows = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM log").await?;
    anyhow::ensure!(rows == "0", "the engine writes beside it");
    holder.batch_execute("ROLLBACK").await?;
    settle(&replication, &engine, &["public.log"]).await?;
    stop(&engine).await
}

#[tokio::test]
async fn an_engine_that_was_away_does_not_take_over_again() -> Result<()> {
    let replication = Replication::start_with(impatient_b(), "CREATE TABLE log (n int)").await?;
    replication.setup().await?;
    let older = replication.spawn()?;
    wait_streaming(&older, 1).await?;
    older.signal(Signal::STOP)?;
    let newer = replication.spawn()?;
    wait_streaming(&newer, 1).await?;
    // It finds its stream ended, as any engine does that B has been restarted under.
    older.signal(Signal::CONT)?;
    expect_fenced(&older).await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    settle(&replication, &newer, &["public.log"]).await?;
    stop(&newer).await
}

#[tokio::test]
async fn an_engine_that_was_stopped_amid_load_commits_nothing_after_it_was_fenced() -> Result<()> {
    let mut random = Random::new();
    let replication = pgbench_replication(impatient_b()).await?;
    replication.configure(TALKATIVE)?;
    let watch = ProgressWatch::start(&replication.chain.c);
    let load = start_load(&replication)?;
    let mut engine = replication.spawn()?;
    for _ in 0..3 {
        wait_progress(&replication).await?;
        random.pause(std::time::Duration::from_millis(50)).await;
        engine.signal(Signal::STOP)?;
        let newer = replication.spawn()?;
        // Where the older was stopped in the midst of a commit, only its end shows what came of it.
        let held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%SET epoch%'";
        wait_for("the newer engine to take over, or to wait for it", DEADLINE, || async {
            let streams = newer.stderr().contains("streaming starts");
            Ok((streams || replication.chain.c.scalar(DATABASE, held).await? == "1").then_some(()))
        })
        .await?;
        engine.signal(Signal::CONT)?;
        expect_fenced(&engine).await?;
        wait_streaming(&newer, 1).await?;
        engine = newer;
    }
    wait_progress(&replication).await?;
    load.kill().await?;
    settle(&replication, &engine, &PGBENCH_TABLES).await?;
    watch.finish().await?;
    stop(&engine).await
}
