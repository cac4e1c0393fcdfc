//! Everything that can die does so under load, and C has every row once.
//!
//! Each test has a [`Mode`] of its own, so that together they see every value of every setting. With `PGSLUICE_MATRIX=1`
//! each runs in all modes: `PGSLUICE_MATRIX=1 cargo nextest run --profile matrix -E 'test(crash::)'`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, CutPoint, Pgbench, Proxy, wait_for};

use crate::load::{
    PGBENCH_TABLES, ProgressWatch, Random, pgbench_replication, settle, start_load, stop, wait_c, wait_progress,
    wait_streaming,
};
use crate::mode::Mode;
use crate::replication::{DATABASE, DEADLINE, Replication};

const LOG_TABLE: &str = "CREATE TABLE log (n int)";
/// The whole statement: BEGIN speaks of READ COMMITTED.
const COMMIT: &[u8] = b"COMMIT\0";

#[tokio::test]
async fn an_engine_killed_at_any_moment_loses_and_doubles_nothing() -> Result<()> {
    let own = Mode { netting: true, synchronous_commit: false, binary: true, streaming: true, workers: 2 };
    own.run(async |mode| {
        let kills: u32 = std::env::var("PGSLUICE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(10);
        let mut random = Random::new();
        let replication = pgbench_replication(mode.options()).await?;
        replication.configure(&mode.configuration())?;
        let watch = ProgressWatch::start(&replication.chain.c);
        let load = start_load(&replication)?;
        for round in 0..kills {
            let engine = replication.spawn()?;
            // Half of the moments lie in the start of the engine, half in its stream.
            if round % 2 == 0 {
                wait_progress(&replication).await?;
            }
            random.pause(Duration::from_millis(300)).await;
            engine.sigkill().await?;
        }
        let engine = replication.spawn()?;
        load.kill().await?;
        settle(&replication, &engine, &PGBENCH_TABLES).await?;
        watch.finish().await?;
        stop(&engine).await
    })
    .await
}

/// As fast as A can: a few seconds of it, or PGSLUICE_LOAD_SECONDS.
#[tokio::test]
async fn tpc_b_at_full_speed_comes_out_equal() -> Result<()> {
    let seconds: u32 = std::env::var("PGSLUICE_LOAD_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(5);
    let replication = pgbench_replication(ChainOptions::default()).await?;
    let engine = replication.spawn()?;
    let load = Pgbench::start(&replication.chain.a, DATABASE, 4, seconds, &[])?;
    load.wait(DEADLINE + Duration::from_secs(seconds.into())).await?;
    settle(&replication, &engine, &PGBENCH_TABLES).await?;
    stop(&engine).await
}

#[tokio::test]
async fn a_standby_that_crashes_under_load_loses_and_doubles_nothing() -> Result<()> {
    let own = Mode { netting: false, synchronous_commit: false, binary: false, streaming: false, workers: 4 };
    own.run(async |mode| {
        let replication = pgbench_replication(mode.options()).await?;
        replication.configure(&mode.configuration())?;
        let watch = ProgressWatch::start(&replication.chain.c);
        let load = start_load(&replication)?;
        let engine = replication.spawn()?;
        for _ in 0..3 {
            wait_progress(&replication).await?;
            replication.chain.b.stop_immediate().await?;
            replication.chain.b.start().await?;
        }
        load.kill().await?;
        settle(&replication, &engine, &PGBENCH_TABLES).await?;
        ensure!(engine.stderr().contains("session ended; it will be built anew"), "{}", engine.stderr());
        watch.finish().await?;
        stop(&engine).await
    })
    .await
}

#[tokio::test]
async fn a_primary_that_crashes_under_load_loses_and_doubles_nothing() -> Result<()> {
    let own = Mode { netting: true, synchronous_commit: true, binary: false, streaming: true, workers: 1 };
    own.run(async |mode| {
        let replication = pgbench_replication(mode.options()).await?;
        replication.configure(&mode.configuration())?;
        let engine = replication.spawn()?;
        for _ in 0..2 {
            let _load = start_load(&replication)?;
            wait_progress(&replication).await?;
            replication.chain.a.stop_immediate().await?;
            replication.chain.a.start().await?;
            replication.chain.wait_b_streaming().await?;
        }
        settle(&replication, &engine, &PGBENCH_TABLES).await?;
        stop(&engine).await
    })
    .await
}

#[tokio::test]
async fn a_target_that_crashes_under_load_loses_and_doubles_nothing() -> Result<()> {
    let own = Mode { netting: true, synchronous_commit: false, binary: false, streaming: false, workers: 2 };
    own.run(async |mode| {
        let replication = pgbench_replication(mode.options()).await?;
        replication.configure(&mode.configuration())?;
        // Otherwise what is seen on C need not be there after its crash.
        let watch = mode.synchronous_commit.then(|| ProgressWatch::start(&replication.chain.c));
        let load = start_load(&replication)?;
        let engine = replication.spawn()?;
        for _ in 0..3 {
            wait_progress(&replication).await?;
            replication.chain.c.stop_immediate().await?;
            replication.chain.c.start().await?;
        }
        load.kill().await?;
        settle(&replication, &engine, &PGBENCH_TABLES).await?;
        ensure!(engine.stderr().contains("session ended; it will be built anew"), "{}", engine.stderr());
        if let Some(watch) = watch {
            watch.finish().await?;
        }
        stop(&engine).await
    })
    .await
}

#[tokio::test]
async fn what_is_confirmed_survives_a_crash_of_a_target_that_commits_asynchronously() -> Result<()> {
    let own = Mode { netting: true, synchronous_commit: false, binary: true, streaming: true, workers: 4 };
    own.run(async |mode| {
        let replication = Replication::start_with(mode.options(), LOG_TABLE).await?;
        // Without our doing, the last commits would be in memory for about this long.
        let slow = [("synchronous_commit", "off"), ("wal_writer_delay", "10s"), ("wal_writer_flush_after", "1GB")];
        replication.chain.c.reload(&slow).await?;
        replication.configure(&format!("{}status_interval = \"100ms\"\n", mode.configuration()))?;
        replication.setup().await?;
        replication.chain.c.sql(DATABASE, "CHECKPOINT").await?;
        let engine = replication.spawn()?;
        replication.chain.a.sql(DATABASE, "INSERT INTO log SELECT generate_series(1, 100)").await?;
        replication.wait_caught_up().await?;
        let end_lsn = replication.end_lsn().await?;
        let sql = format!("SELECT confirmed_flush_lsn >= '{end_lsn}' FROM pg_replication_slots");
        wait_for("the slot to be told", DEADLINE, || async {
            Ok((replication.chain.b.scalar(DATABASE, &sql).await? == "t").then_some(()))
        })
        .await?;
        replication.chain.c.stop_immediate().await?;
        replication.chain.c.start().await?;
        replication.chain.a.sql(DATABASE, "INSERT INTO log VALUES (101)").await?;
        settle(&replication, &engine, &["public.log"]).await?;
        ensure!(engine.stderr().contains("session ended; it will be built anew"), "{}", engine.stderr());
        stop(&engine).await
    })
    .await
}

#[tokio::test]
async fn backends_of_the_target_that_are_terminated_under_load_lose_and_double_nothing() -> Result<()> {
    let own = Mode { netting: false, synchronous_commit: true, binary: true, streaming: true, workers: 1 };
    own.run(async |mode| {
        let mut random = Random::new();
        let replication = pgbench_replication(mode.options()).await?;
        replication.configure(&mode.configuration())?;
        let watch = ProgressWatch::start(&replication.chain.c);
        let load = start_load(&replication)?;
        let engine = replication.spawn()?;
        let terminate =
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgsluice%'";
        for round in 0..20 {
            if round % 2 == 0 {
                wait_progress(&replication).await?;
            }
            random.pause(Duration::from_millis(20)).await;
            replication.chain.c.sql(DATABASE, terminate).await?;
        }
        load.kill().await?;
        settle(&replication, &engine, &PGBENCH_TABLES).await?;
        ensure!(engine.stderr().contains("session ended; it will be built anew"), "{}", engine.stderr());
        watch.finish().await?;
        stop(&engine).await
    })
    .await
}

#[tokio::test]
async fn a_commit_whose_outcome_is_unknown_is_neither_lost_nor_doubled() -> Result<()> {
    let own = Mode { netting: true, synchronous_commit: false, binary: true, streaming: false, workers: 2 };
    own.run(async |mode| {
        let replication = Replication::start_with(mode.options(), LOG_TABLE).await?;
        let proxy = through_proxy_to_target(&replication, mode).await?;
        replication.setup().await?;
        let engine = replication.spawn()?;
        wait_streaming(&engine, 1).await?;
        for round in 0..4 {
            for cut_point in [CutPoint::BeforeForward, CutPoint::AfterForward, CutPoint::AfterAnswer] {
                proxy.arm(COMMIT, cut_point);
                replication.chain.a.sql(DATABASE, &format!("INSERT INTO log VALUES ({round}), ({round})")).await?;
                wait_for("the cut", DEADLINE, || async { Ok(proxy.fired().then_some(())) }).await?;
                settle(&replication, &engine, &["public.log"]).await?;
            }
        }
        ensure!(engine.stderr().contains("session ended; it will be built anew"), "{}", engine.stderr());
        stop(&engine).await
    })
    .await
}

#[tokio::test]
async fn a_commit_that_is_still_at_work_when_the_engine_is_back_counts_once() -> Result<()> {
    let own = Mode { netting: true, synchronous_commit: true, binary: false, streaming: true, workers: 4 };
    own.run(async |mode| {
        let replication = Replication::start_with(mode.options(), LOG_TABLE).await?;
        let proxy = through_proxy_to_target(&replication, mode).await?;
        replication.setup().await?;
        // On C a commit waits for whoever holds the advisory lock.
        let trigger = "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_catalog.pg_advisory_xact_lock(7); RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON log DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION wait(); ALTER TABLE log ENABLE ALWAYS TRIGGER wait";
        replication.chain.c.sql(DATABASE, trigger).await?;
        let holder = replication.chain.c.connect(DATABASE).await?;
        let engine = replication.spawn()?;
        wait_streaming(&engine, 1).await?;
        let insert = "INSERT INTO log VALUES (1), (2)";
        for was_sent in [true, true, false] {
            holder.batch_execute("SELECT pg_advisory_lock(7)").await?;
            if was_sent {
                replication.chain.a.sql(DATABASE, insert).await?;
                let waits = "SELECT count(*) = 1 FROM pg_stat_activity WHERE";
                // Cut by what it looks like, another commit could be it: progress moves on an idle source too.
                let commit = format!("{waits} wait_event = 'advisory'");
                wait_c(&replication, "the commit to be at work", &commit).await?;
                proxy.cut();
                let fence = format!("{waits} wait_event_type = 'Lock' AND query LIKE '%SET epoch%'");
                wait_c(&replication, "the next session to wait for the outcome", &fence)
                    .await
                    .with_context(|| engine.stderr())?;
            } else {
                proxy.arm(COMMIT, CutPoint::BeforeForward);
                replication.chain.a.sql(DATABASE, insert).await?;
                wait_for("the cut", DEADLINE, || async { Ok(proxy.fired().then_some(())) }).await?;
            }
            holder.batch_execute("SELECT pg_advisory_unlock(7)").await?;
            settle(&replication, &engine, &["public.log"]).await?;
            ensure!(engine.stderr().contains("session ended; it will be built anew"), "{}", engine.stderr());
        }
        stop(&engine).await
    })
    .await
}

async fn through_proxy_to_target(replication: &Replication, mode: Mode) -> Result<Proxy> {
    let chain = &replication.chain;
    let proxy = Proxy::start(chain.c.port()).await?;
    let (source, primary) = (chain.b.dsn(DATABASE), chain.a.dsn(DATABASE));
    replication.configure_servers(&source, Some(&primary), &proxy.dsn(DATABASE), &mode.configuration())?;
    Ok(proxy)
}

#[tokio::test]
async fn a_stream_that_is_cut_or_stalls_under_load_loses_and_doubles_nothing() -> Result<()> {
    let own = Mode { netting: false, synchronous_commit: false, binary: true, streaming: true, workers: 2 };
    own.run(async |mode| {
        let mut random = Random::new();
        let replication = pgbench_replication(mode.options().b_conf("wal_sender_timeout", "2s")).await?;
        let chain = &replication.chain;
        let proxy = Proxy::start(chain.b.port()).await?;
        let (primary, target) = (chain.a.dsn(DATABASE), chain.c.dsn(DATABASE));
        replication.configure_servers(&proxy.dsn(DATABASE), Some(&primary), &target, &mode.configuration())?;
        let watch = ProgressWatch::start(&chain.c);
        let load = start_load(&replication)?;
        let engine = replication.spawn()?;
        for session in 1..=5 {
            wait_streaming(&engine, session).await?;
            random.pause(Duration::from_millis(50)).await;
            proxy.cut();
        }
        // Until B gives the engine up.
        wait_streaming(&engine, 6).await?;
        proxy.stall();
        wait_for("B to notice the silence", DEADLINE, || async {
            Ok(chain.b.log().contains("terminating walsender process due to replication timeout").then_some(()))
        })
        .await?;
        proxy.resume();
        wait_progress(&replication).await?;
        // And while nobody lets it in.
        let seen = proxy.accepted();
        proxy.refuse();
        wait_for("some tries", DEADLINE, || async { Ok((proxy.accepted() > seen + 2).then_some(())) }).await?;
        proxy.accept();
        load.kill().await?;
        settle(&replication, &engine, &PGBENCH_TABLES).await?;
        ensure!(engine.stderr().contains("session ended; it will be built anew"), "{}", engine.stderr());
        watch.finish().await?;
        stop(&engine).await
    })
    .await
}
