//! C is away under load: the slot on B holds back no WAL with a trail, and without one it does.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pgsluice_testkit::{ChainOptions, Server};

use super::{Trailed, number};
use crate::load::{settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, Replication};

const DDL: &str = "CREATE TABLE log (n int, at timestamptz DEFAULT now(), body text); ALTER TABLE log ALTER body SET STORAGE EXTERNAL";
const RETAINED_MAX: u64 = 64 << 20;
/// At the least, whatever time it takes.
const WRITTEN_MIN: u64 = 160 << 20;

async fn bytes(server: &Server, sql: &str) -> Result<u64> {
    Ok(server.scalar(DATABASE, sql).await?.parse()?)
}

/// Stops C, writes for as long as is asked for, and has C come back. The most that the slot has held back meanwhile.
async fn outage(replication: &Replication) -> Result<u64> {
    let seconds = number("PGSLUICE_OUTAGE_SECONDS", 5);
    let chain = &replication.chain;
    chain.c.stop_immediate().await?;
    let (began, mut retained) = (Instant::now(), 0);
    let begin = chain.a.scalar(DATABASE, "SELECT pg_current_wal_lsn()").await?;
    let written = format!("SELECT (pg_current_wal_lsn() - '{begin}')::bigint");
    let held = "SELECT max(pg_last_wal_replay_lsn() - restart_lsn)::bigint FROM pg_replication_slots";
    // About a thousand times, however long it is: the servers are in memory.
    let pause = Duration::from_millis(30).max(Duration::from_secs(seconds) / 1_000);
    let mut n = 0;
    while began.elapsed() < Duration::from_secs(seconds) || bytes(&chain.a, &written).await? < WRITTEN_MIN {
        n += 1;
        let rows = format!("INSERT INTO log (n, body) SELECT {n}, repeat('x', 2500) FROM generate_series(1, 400)");
        chain.a.sql(DATABASE, &rows).await?;
        // Where a slot could restart, A says every fifteen seconds by itself.
        chain.log_standby_snapshot().await?;
        tokio::time::sleep(pause).await;
        retained = bytes(&chain.b, held).await?.max(retained);
    }
    println!(
        "{} MiB were written in {:.0?}, and at most {} held back",
        bytes(&chain.a, &written).await? >> 20,
        began.elapsed(),
        retained >> 20
    );
    chain.c.start().await?;
    Ok(retained)
}

fn options() -> ChainOptions {
    ChainOptions::default().a_conf("max_wal_size", "1GB")
}

#[tokio::test]
async fn an_outage_of_the_target_holds_back_no_wal_with_a_trail() -> Result<()> {
    // In one process, and in two.
    for is_apart in [false, true] {
        let trailed = Trailed::start(options(), DDL, "[stream]\nstatus_interval = \"200ms\"\n").await?;
        let replication = &trailed.replication;
        let mut capture = None;
        if is_apart {
            let engine = trailed.capture()?;
            wait_log(&engine, "capturing starts", 1).await?;
            capture = Some(engine);
        }
        let engine = replication.spawn()?;
        wait_streaming(&engine, 1).await?;
        let retained = outage(replication).await?;
        ensure!(retained < RETAINED_MAX, "{} MiB were held back", retained >> 20);
        settle(replication, &engine, &["public.log"]).await?;
        ensure!(
            engine.stderr().contains("session ended; it will be built anew"),
            "C was not away:\n{}",
            engine.stderr()
        );
        stop(&engine).await?;
        if let Some(capture) = capture {
            stop(&capture).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_outage_of_the_target_holds_back_wal_without_a_trail() -> Result<()> {
    let replication = Replication::start_with(options(), DDL).await?;
    replication.configure("[stream]\nstatus_interval = \"200ms\"\n")?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let retained = outage(&replication).await?;
    ensure!(retained > RETAINED_MAX, "only {} MiB were held back, and the other test shows nothing", retained >> 20);
    settle(&replication, &engine, &["public.log"]).await?;
    stop(&engine).await
}
