//! A trail that may not become larger, or has no disk to: nothing is read, nothing confirmed, nothing left out, and it is said.

use std::path::Path;

use anyhow::{Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine, SmallDisk};

use super::{DDL, TABLES, Trailed};
use crate::load::{settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, ENGINE};

const DISK_MIB: u64 = 16;
const MEBIBYTE: &str = "INSERT INTO whole SELECT n, repeat('x', 1000) FROM generate_series(1, 1000) n";

async fn confirmed(trailed: &Trailed) -> Result<String> {
    trailed.replication.chain.b.scalar(DATABASE, "SELECT max(confirmed_flush_lsn) FROM pg_replication_slots").await
}

/// It has said why it reads nothing. Then the slot stays where it is, the walsender has patience, and whoever asks hears of it.
async fn assert_paused(trailed: &Trailed, capture: &Engine, why: &str) -> Result<()> {
    wait_log(capture, why, 1).await?;
    // The last status update is due by then.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let before = confirmed(trailed).await?;
    // Longer than B's patience.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    ensure!(capture.is_running() && !capture.stderr().contains("session ended"), "it gave up:\n{}", capture.stderr());
    ensure!(confirmed(trailed).await? == before, "something was confirmed");
    let status = trailed.replication.succeed(&["status"]).await?;
    ensure!(status.contains(&format!("nothing is read: {why}")), "{status}");
    ensure!(trailed.ls().await?["writer"]["paused"] == why, "{}", trailed.ls().await?);
    Ok(())
}

fn options() -> ChainOptions {
    ChainOptions::default().b_conf("wal_sender_timeout", "2s")
}

#[tokio::test]
async fn a_trail_that_is_as_large_as_it_may_be_is_waited_for() -> Result<()> {
    let trailed = Trailed::start(options(), DDL, "max_bytes = \"4MiB\"\nsegment_bytes = \"1MiB\"\n").await?;
    let replication = &trailed.replication;
    let capture = trailed.capture()?;
    wait_log(&capture, "capturing starts", 1).await?;
    for _ in 0..7 {
        replication.run_each(MEBIBYTE).await?;
    }
    replication.run_each("INSERT INTO t VALUES (1, 'behind it')").await?;
    assert_paused(&trailed, &capture, "the trail has max_bytes").await?;
    let bytes = trailed.ls().await?["bytes"].as_u64().unwrap_or_default();
    ensure!((4 << 20..6 << 20).contains(&bytes), "{bytes} bytes");
    // Whoever reads makes room.
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    wait_log(&capture, "the trail has room again", 1).await?;
    settle(replication, &engine, &TABLES).await?;
    // One transaction that is larger is not in the way for ever.
    replication
        .run_each("INSERT INTO whole SELECT n, repeat('y', 1000) FROM generate_series(1, 8000) n; DELETE FROM t")
        .await?;
    settle(replication, &engine, &TABLES).await?;
    stop(&engine).await?;
    stop(&capture).await
}

#[tokio::test]
async fn a_full_disk_of_the_trail_is_said_and_waited_for() -> Result<()> {
    let disk = match SmallDisk::mount(DISK_MIB) {
        Ok(disk) => disk,
        Err(error) => {
            println!("nothing is tested, for want of a disk that can be filled: {error:#}");
            return Ok(());
        }
    };
    let trailed = Trailed::unconfigured(options(), DDL).await?;
    let replication = &trailed.replication;
    let at = |dir: &Path| format!("[trail]\ndir = \"{}\"\nsegment_bytes = \"1MiB\"\n", dir.display());
    replication.configure(&at(&disk.path().join("trail")))?;
    replication.setup().await?;
    let capture = Engine::spawn(ENGINE.as_ref(), &replication.config(), &["capture"])?;
    wait_log(&capture, "capturing starts", 1).await?;
    replication.run_each("INSERT INTO t VALUES (1, 'before')").await?;
    trailed.wait_captured().await?;
    disk.fill()?;
    for _ in 0..3 {
        replication.run_each(MEBIBYTE).await?;
    }
    replication.run_each("INSERT INTO t VALUES (2, 'behind it')").await?;
    assert_paused(&trailed, &capture, "the disk of the trail is full").await?;
    // What is there can be read meanwhile.
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    disk.clear()?;
    wait_log(&capture, "the trail has room again", 1).await?;
    settle(replication, &engine, &TABLES).await?;
    stop(&engine).await?;
    stop(&capture).await?;
    replication.succeed(&["trail", "verify"]).await.map(drop)
}
