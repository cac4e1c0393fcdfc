//! What lies in the trail is not what was written there: it is found, named, and nothing of it comes to C.

use std::fs;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::ChainOptions;

use super::{DDL, TABLES, Trailed, segments};
use crate::load::{expect_end, settle, stop, wait_log, wait_streaming};
use crate::replication::DATABASE;

const CHANGES: &str = "INSERT INTO t SELECT coalesce(max(id), 0) + 1, repeat('x', 200000) FROM t";

/// Of several segments that C has not.
async fn filled() -> Result<Trailed> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "segment_bytes = \"256KiB\"\n").await?;
    let capture = trailed.capture()?;
    wait_log(&capture, "capturing starts", 1).await?;
    for _ in 0..6 {
        trailed.replication.run_each(CHANGES).await?;
        trailed.wait_captured().await?;
    }
    stop(&capture).await?;
    ensure!(segments(&trailed.dir())?.len() > 2, "several segments");
    Ok(trailed)
}

#[tokio::test]
async fn a_flipped_bit_stops_the_reader_where_it_is() -> Result<()> {
    let trailed = filled().await?;
    let replication = &trailed.replication;
    let damaged = segments(&trailed.dir())?[1].clone();
    let whole = fs::read(&damaged)?;
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&damaged, &bytes)?;
    let name = damaged.display().to_string();
    let engine = replication.spawn()?;
    expect_end(&engine, 1, &["the trail is damaged", &name, "offset ", "the CRC of a block is wrong"]).await?;
    let rows: u64 = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM t").await?.parse()?;
    ensure!(rows < 6, "{rows} rows came");
    let verified = replication.command(&["trail", "verify"]).await?;
    ensure!(verified.code == Some(1) && verified.stdout.contains("the CRC of a block is wrong"), "{verified:?}");
    let listed = trailed.ls().await?;
    ensure!(listed["segments"].as_array().context("segments")?.len() == segments(&trailed.dir())?.len(), "{listed}");
    // With the file as it was, all goes on.
    fs::write(&damaged, &whole)?;
    let engine = replication.spawn()?;
    settle(replication, &engine, &TABLES).await?;
    stop(&engine).await
}

#[tokio::test]
async fn a_bit_that_flips_before_a_running_reader_stops_it() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "").await?;
    let replication = &trailed.replication;
    let capture = trailed.capture()?;
    wait_log(&capture, "capturing starts", 1).await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    settle(replication, &engine, &TABLES).await?;
    // It waits for a row of C, and so what follows lies unread.
    let lock = replication.chain.c.connect(DATABASE).await?;
    lock.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await?;
    for _ in 0..40 {
        replication.run_each("INSERT INTO t SELECT coalesce(max(id), 0) + 1, repeat('x', 2000000) FROM t").await?;
    }
    trailed.wait_captured().await?;
    // The last one may have just begun.
    let is_large = |path: &std::path::PathBuf| fs::metadata(path).is_ok_and(|file| file.len() > 100_000);
    let last = segments(&trailed.dir())?.into_iter().rfind(is_large).context("a segment")?;
    let mut bytes = fs::read(&last)?;
    let place = bytes.len() - 1000;
    bytes[place] ^= 1;
    fs::write(&last, &bytes)?;
    lock.batch_execute("ROLLBACK").await?;
    expect_end(&engine, 1, &["the trail is damaged", &last.display().to_string()]).await?;
    stop(&capture).await
}

#[tokio::test]
async fn a_missing_segment_is_a_gap_and_refused() -> Result<()> {
    let trailed = filled().await?;
    let replication = &trailed.replication;
    let missing = segments(&trailed.dir())?[1].clone();
    let away = trailed.folder.path().join("away");
    fs::rename(&missing, &away)?;
    let engine = replication.spawn()?;
    expect_end(&engine, 3, &["the trail has a gap", &missing.display().to_string()]).await?;
    fs::rename(&away, &missing)?;
    // The first one too, since C has nothing of it.
    let first = segments(&trailed.dir())?[0].clone();
    fs::rename(&first, &away)?;
    let engine = replication.spawn()?;
    expect_end(&engine, 3, &["the trail begins at", "past the target's progress"]).await?;
    fs::rename(&away, &first)?;
    let engine = replication.spawn()?;
    settle(replication, &engine, &TABLES).await?;
    stop(&engine).await
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_comes_again() -> Result<()> {
    let trailed = filled().await?;
    let replication = &trailed.replication;
    let last = segments(&trailed.dir())?.pop().context("a segment")?;
    let whole = fs::read(&last)?;
    // What was written and not synced, of which B knows nothing.
    fs::write(&last, [&whole[..], &vec![7; 5000]].concat())?;
    let engine = replication.spawn()?;
    settle(replication, &engine, &TABLES).await?;
    ensure!(engine.stderr().contains("what follows the last whole transaction is cut off"), "{}", engine.stderr());
    stop(&engine).await?;
    replication.succeed(&["trail", "verify"]).await?;
    // But what was synced, and confirmed to B, may not be gone.
    replication.replicate("INSERT INTO t VALUES (-1, 'in the segment that was begun then')", &TABLES).await?;
    let last = segments(&trailed.dir())?.pop().context("a segment")?;
    let length = fs::metadata(&last)?.len();
    fs::File::options().write(true).open(&last)?.set_len(length - 1)?;
    let engine = replication.spawn()?;
    expect_end(&engine, 1, &["the trail is damaged", "shorter than what was synced"]).await
}
