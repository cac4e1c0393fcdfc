//! What happens to a standby: restart, shutdown, promotion; and a standby of a standby.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Chain, ChainOptions, Engine, Pgbench, assert_same, wait_for};

use crate::load::{
    Changes, PGBENCH_TABLES, expect_end, pgbench_replication, settle, start_load, stop, wait_log, wait_progress,
    wait_streaming,
};
use crate::replication::{DATABASE, DEADLINE, Replication};

const LOG_TABLE: &str = "CREATE TABLE log (n int)";

#[tokio::test]
async fn a_standby_that_is_restarted_is_gone_on_with() -> Result<()> {
    let replication = pgbench_replication(ChainOptions::default()).await?;
    let load = start_load(&replication)?;
    let engine = replication.spawn()?;
    for _ in 0..2 {
        wait_progress(&replication).await?;
        replication.chain.b.restart().await?;
    }
    load.kill().await?;
    settle(&replication, &engine, &PGBENCH_TABLES).await?;
    wait_log(&engine, "session ended; it will be built anew", 2).await?;
    stop(&engine).await
}

/// It shows an older state while it replays what it had replayed before, here for as long as it is told to.
#[tokio::test]
async fn a_standby_that_replays_again_is_waited_for() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    replication.setup().await?;
    let b = &replication.chain.b;
    let engine = replication.spawn()?;
    replication.chain.a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    settle(&replication, &engine, &["public.log"]).await?;
    let before = replication.end_lsn().await?;
    b.stop_immediate().await?;
    b.configure(&[("recovery_min_apply_delay", "1h")])?;
    b.start().await?;
    wait_log(&engine, "the source has replayed WAL up to", 2).await?;
    ensure!(engine.stderr().contains(" only, and the target's progress is"), "{}", engine.stderr());
    ensure!(replication.end_lsn().await? == before, "progress has moved");
    b.reload(&[("recovery_min_apply_delay", "0")]).await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO log VALUES (2)").await?;
    settle(&replication, &engine, &["public.log"]).await?;
    stop(&engine).await
}

/// The server's walsenders wait until all WAL is confirmed.
#[tokio::test]
async fn a_fast_shutdown_of_the_standby_is_not_held_up() -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(10);
    let replication = Replication::start(LOG_TABLE).await?;
    replication.chain.a.sql(DATABASE, "CREATE SCHEMA other; CREATE TABLE other.t (n int)").await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    let writes = ["SELECT", "INSERT INTO other.t VALUES (1)", "INSERT INTO log VALUES (1)"];
    for (round, write) in writes.into_iter().enumerate() {
        wait_streaming(&engine, round + 1).await?;
        replication.chain.a.sql(DATABASE, write).await?;
        replication.chain.wait_b_caught_up().await?;
        let start = Instant::now();
        replication.chain.b.stop_fast().await?;
        ensure!(start.elapsed() < LIMIT, "after {write} the shutdown took {:?}", start.elapsed());
        replication.chain.b.start().await?;
    }
    settle(&replication, &engine, &["public.log"]).await?;
    stop(&engine).await
}

/// Inserts on B, which is a primary now, and waits until C has it.
async fn replicate_from_b(replication: &Replication, engine: &Engine) -> Result<()> {
    let (b, c) = (&replication.chain.b, &replication.chain.c);
    b.sql(DATABASE, "INSERT INTO log SELECT generate_series(1, 10)").await?;
    let count = "SELECT count(*) FROM log";
    let expected = b.scalar(DATABASE, count).await?;
    wait_for("the rows on C", DEADLINE, || async {
        ensure!(engine.is_running(), "the engine has ended:\n{}", engine.stderr());
        Ok((c.scalar(DATABASE, count).await? == expected).then_some(()))
    })
    .await?;
    assert_same(b, c, DATABASE, &["public.log"]).await;
    Ok(())
}

#[tokio::test]
async fn a_standby_that_is_promoted_is_gone_on_with() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    replication.setup().await?;
    let chain = &replication.chain;
    let engine = replication.spawn()?;
    chain.a.sql(DATABASE, "INSERT INTO log VALUES (0)").await?;
    settle(&replication, &engine, &["public.log"]).await?;
    chain.a.stop_immediate().await?;
    chain.b.sql(DATABASE, "SELECT pg_promote()").await?;
    replicate_from_b(&replication, &engine).await?;
    wait_log(&engine, "the source was promoted, and the stream goes on", 1).await?;
    ensure!(!engine.stderr().contains("session ended"), "the stream was broken:\n{}", engine.stderr());
    stop(&engine).await?;

    replication.configure_servers(&chain.b.dsn(DATABASE), None, &chain.c.dsn(DATABASE), "")?;
    let engine = replication.spawn()?;
    replicate_from_b(&replication, &engine).await?;
    chain.b.restart().await?;
    replicate_from_b(&replication, &engine).await?;
    engine.sigkill().await?;
    let engine = replication.spawn()?;
    replicate_from_b(&replication, &engine).await?;
    stop(&engine).await
}

/// A dies amid its load, B takes over amid the stream, and load goes on there: what had not come to B is on neither.
#[tokio::test]
async fn a_promotion_under_load_loses_and_doubles_nothing() -> Result<()> {
    let replication = pgbench_replication(ChainOptions::default()).await?;
    let Chain { a, b, c } = &replication.chain;
    let load = start_load(&replication)?;
    let engine = replication.spawn()?;
    wait_progress(&replication).await?;
    wait_progress(&replication).await?;
    a.stop_immediate().await?;
    b.sql(DATABASE, "SELECT pg_promote()").await?;
    drop(load);
    let load = Pgbench::start(b, DATABASE, 4, 3_600, &["--rate=300"])?;
    wait_log(&engine, "the source was promoted, and the stream goes on", 1).await?;
    wait_progress(&replication).await?;
    load.kill().await?;
    let position = b.scalar(DATABASE, "SELECT pg_current_wal_lsn()").await?;
    let reached = format!("SELECT end_lsn >= '{position}' FROM pgsluice.progress");
    wait_for("C at B's position", DEADLINE, || async {
        ensure!(engine.is_running(), "the engine has ended:\n{}", engine.stderr());
        Ok((c.scalar(DATABASE, &reached).await? == "t").then_some(()))
    })
    .await?;
    assert_same(b, c, DATABASE, &PGBENCH_TABLES).await;
    ensure!(!engine.stderr().contains("session ended"), "the stream was broken:\n{}", engine.stderr());
    stop(&engine).await
}

/// A → B → B2, where the slot is. A keeps for it what it needs, as long as each of the standbys is connected: a B that comes
/// back knows nothing of B2 until that is back too (`docs/limits.md`).
#[tokio::test]
async fn a_standby_of_a_standby_is_a_source_too() -> Result<()> {
    let options = ChainOptions::default().autovacuum(false);
    let replication = Replication::start_with(options.clone(), LOG_TABLE).await?;
    let chain = &replication.chain;
    let b2 = chain.start_cascaded(&options).await?;
    let (primary, target) = (chain.a.dsn(DATABASE), chain.c.dsn(DATABASE));
    replication.configure_servers(&b2.dsn(DATABASE), Some(&primary), &target, "")?;
    replication.setup().await?;
    let kept = "SELECT catalog_xmin IS NOT NULL FROM pg_replication_slots WHERE slot_name = 'b_slot'";
    let wait_kept = async || {
        let kept = || async { Ok((chain.a.scalar(DATABASE, kept).await? == "t").then_some(())) };
        wait_for("feedback of B2 to come through to A", DEADLINE, kept).await
    };
    let engine = replication.spawn()?;
    let changes = Changes::start(&replication, "INSERT INTO log SELECT generate_series(1, 3)");
    wait_streaming(&engine, 1).await?;
    for restarted in [&chain.b, &b2, &chain.b] {
        wait_kept().await?;
        restarted.restart().await?;
        replication.wait_caught_up().await.with_context(|| engine.stderr())?;
    }
    // What the catalog says of tables that are gone stays until the slot has passed it.
    wait_kept().await?;
    for statement in ["CREATE TABLE gone (n int)", "DROP TABLE gone", "VACUUM pg_class, pg_attribute"] {
        chain.a.sql(DATABASE, statement).await?;
    }
    changes.end().await?;
    settle(&replication, &engine, &["public.log"]).await?;
    assert_same(&b2, &chain.c, DATABASE, &["public.log"]).await;
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'";
    ensure!(chain.b.scalar(DATABASE, slots).await? == "0" && b2.scalar(DATABASE, slots).await? == "1");
    stop(&engine).await
}

#[tokio::test]
async fn a_promotion_while_no_engine_runs_is_gone_on_with() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    replication.setup().await?;
    let chain = &replication.chain;
    replication.replicate("INSERT INTO log VALUES (0)", &["public.log"]).await?;
    chain.a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    chain.wait_b_caught_up().await?;
    chain.a.stop_immediate().await?;
    chain.b.sql(DATABASE, "SELECT pg_promote()").await?;
    let engine = replication.spawn()?;
    replicate_from_b(&replication, &engine).await?;
    stop(&engine).await
}

/// Nobody has noted yet that this very server was promoted, so nothing tells whether C's last rows are of its history. A
/// person knows.
#[tokio::test]
async fn an_engine_killed_right_after_a_promotion_asks_whose_rows_c_has() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    replication.setup().await?;
    let chain = &replication.chain;
    let engine = replication.spawn()?;
    chain.a.sql(DATABASE, "INSERT INTO log VALUES (0)").await?;
    settle(&replication, &engine, &["public.log"]).await?;
    chain.a.stop_immediate().await?;
    chain.b.sql(DATABASE, "SELECT pg_promote()").await?;
    chain.b.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    wait_for("the row on C", DEADLINE, || async {
        let rows = chain.c.scalar(DATABASE, "SELECT count(*) FROM log").await?;
        Ok((rows == "2").then_some(()))
    })
    .await?;
    engine.sigkill().await?;
    let engine = replication.spawn()?;
    let mend = "UPDATE pgsluice.progress SET timeline = 2 WHERE name = 'test'";
    let outcome = wait_for("a stream or a refusal", DEADLINE, || async {
        Ok((!engine.is_running() || engine.stderr().contains("streaming starts")).then_some(engine.is_running()))
    });
    if outcome.await? {
        // The promotion was noted in that moment.
        replicate_from_b(&replication, &engine).await?;
        return stop(&engine).await;
    }
    expect_end(&engine, 3, &["has left timeline 1", mend]).await?;
    chain.c.sql(DATABASE, mend).await?;
    let engine = replication.spawn()?;
    replicate_from_b(&replication, &engine).await?;
    stop(&engine).await
}

/// B was behind C when it was promoted, and has a slot of the right name since. What it lost is on C.
#[tokio::test]
async fn a_standby_that_was_promoted_behind_c_is_refused() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    let chain = &replication.chain;
    replication.configure_servers(&chain.a.dsn(DATABASE), None, &chain.c.dsn(DATABASE), "")?;
    replication.setup().await?;
    chain.b.stop_fast().await?;
    chain.a.sql(DATABASE, "INSERT INTO log SELECT generate_series(1, 400)").await?;
    replication.catch_up().await?;
    chain.a.stop_immediate().await?;
    chain.b.start().await?;
    chain.b.sql(DATABASE, "SELECT pg_promote()").await?;
    chain.b.sql(DATABASE, "SELECT pg_create_logical_replication_slot('pgsluice_test', 'pgoutput')").await?;
    replication.configure_servers(&chain.b.dsn(DATABASE), None, &chain.c.dsn(DATABASE), "")?;
    // First while its WAL ends before what C has, and then beyond it.
    let rows = || chain.c.scalar(DATABASE, "SELECT count(*) FROM log");
    for (more, said) in [
        ("SELECT 1", "the source has lost them"),
        ("INSERT INTO log SELECT generate_series(1001, 9000)", "has left timeline 1"),
    ] {
        chain.b.sql(DATABASE, more).await?;
        let output = replication.command(&["run", "--stop-at", "current"]).await?;
        ensure!(output.code == Some(3) && output.stderr.contains(said), "{more}: {}", output.stderr);
        ensure!(rows().await? == "400", "C has taken rows of another history");
    }
    Ok(())
}
