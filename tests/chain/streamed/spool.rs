//! Where transactions in progress lie: files that nobody else sees or reads, and a disk that may be full.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Engine, SmallDisk, wait_for};

use super::{DDL, TABLES, options};
use crate::load::{settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, Replication};

const DISK_MIB: u64 = 16;
/// So small that most of a transaction is on disk.
const SMALL_MEMORY: &str = "memory_bytes = \"256KiB\"\n";
const CLEAR_TEXT: &str = "clear text of a row";

fn spool(folder: &Path, more: &str) -> String {
    format!("[spool]\ndir = \"{}\"\n{SMALL_MEMORY}{more}", folder.display())
}

#[tokio::test]
async fn a_full_disk_of_the_spool_is_said_and_waited_for() -> Result<()> {
    let disk = match SmallDisk::mount(DISK_MIB) {
        Ok(disk) => disk,
        Err(error) => {
            println!("nothing is tested, for want of a disk that can be filled: {error:#}");
            return Ok(());
        }
    };
    let replication = Replication::start_with(options().b_conf("wal_sender_timeout", "2s"), DDL).await?;
    replication.configure(&spool(disk.path(), ""))?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    disk.fill()?;
    let a = &replication.chain.a;
    let large = a.connect(DATABASE).await?;
    large.batch_execute("BEGIN; INSERT INTO t SELECT n, repeat('x', 400) FROM generate_series(1, 10000) n").await?;
    a.sql(DATABASE, "INSERT INTO whole VALUES (1, 'behind it')").await?;
    wait_log(&engine, "the disk of the spool is full", 1).await?;
    ensure!(engine.stderr().contains(&disk.path().display().to_string()), "no directory:\n{}", engine.stderr());
    // What had come before is still applied.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let end_lsn = replication.end_lsn().await?;
    // Longer than B's patience.
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(engine.is_running() && !engine.stderr().contains("session ended"), "it gave up:\n{}", engine.stderr());
    ensure!(replication.end_lsn().await? == end_lsn, "progress has moved");
    ensure!(replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM whole").await? == "0", "something was left out");
    disk.clear()?;
    wait_log(&engine, "the disk of the spool has room again", 1).await?;
    large.batch_execute("COMMIT").await?;
    settle(&replication, &engine, &TABLES).await?;
    // Once it is applied it takes no room.
    disk.has_room().context("the room that is there again")?;
    stop(&engine).await
}

/// What the engine has open and deleted in this folder.
fn spooled(engine: &Engine, folder: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", engine.pid()))? {
        let path = entry?.path();
        // It may be closed meanwhile.
        let Ok(target) = fs::read_link(&path) else { continue };
        if target.starts_with(folder) {
            ensure!(target.to_string_lossy().ends_with("(deleted)"), "it has a name: {}", target.display());
            bytes.extend(fs::read(&path)?);
        }
    }
    Ok(bytes)
}

#[tokio::test]
async fn files_of_the_spool_have_no_names_and_with_a_key_no_clear_text() -> Result<()> {
    let replication = Replication::start_with(options(), DDL).await?;
    replication.setup().await?;
    let folder = tempfile::tempdir()?;
    let keys = tempfile::tempdir()?;
    let key_file = keys.path().join("key");
    fs::write(&key_file, format!("{}\n", "0123456789abcdef".repeat(4)))?;
    let key_file = format!("key_file = \"{}\"\n", key_file.display());
    for (n, (more, is_clear)) in [("", true), (key_file.as_str(), false)].into_iter().enumerate() {
        replication.configure(&spool(folder.path(), more))?;
        let engine = replication.spawn()?;
        wait_streaming(&engine, 1).await?;
        let a = &replication.chain.a;
        let large = a.connect(DATABASE).await?;
        let rows = format!(
            "BEGIN; INSERT INTO t SELECT {n} * 100000 + n, '{CLEAR_TEXT} ' || n FROM generate_series(1, 20000) n; SAVEPOINT a;
             DELETE FROM t; ROLLBACK TO a"
        );
        large.batch_execute(&rows).await?;
        a.sql(DATABASE, "INSERT INTO whole VALUES (1, 'so that B hears of it')").await?;
        let kept = wait_for("much of it on disk", DEADLINE, || async {
            let bytes = spooled(&engine, folder.path())?;
            Ok((bytes.len() > 500_000).then_some(bytes))
        })
        .await?;
        let holds_clear = kept.windows(CLEAR_TEXT.len()).any(|window| window == CLEAR_TEXT.as_bytes());
        ensure!(holds_clear == is_clear, "with {more:?} clear text is there: {holds_clear}");
        ensure!(fs::read_dir(folder.path())?.next().is_none(), "a file has a name");
        large.batch_execute("COMMIT").await?;
        settle(&replication, &engine, &TABLES).await?;
        ensure!(spooled(&engine, folder.path())?.is_empty(), "a file is still open");
        ensure!(!engine.stderr().contains(CLEAR_TEXT), "a row is in the log");
        stop(&engine).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_spool_that_cannot_be_used_is_named() -> Result<()> {
    let replication = Replication::start(DDL).await?;
    replication.setup().await?;
    let folder = tempfile::tempdir()?;
    replication.configure(&spool(&folder.path().join("none"), ""))?;
    let stderr = replication.halt().await?;
    ensure!(stderr.contains("the spool in ") && stderr.contains("cannot make a file"), "{stderr}");
    fs::write(folder.path().join("key"), "0123")?;
    let key_file = format!("key_file = \"{}\"\n", folder.path().join("key").display());
    replication.configure(&spool(folder.path(), &key_file))?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(2) && output.stderr.contains("holds no key"), "{output:?}");
    // Without streaming there is none.
    replication.configure(&format!("[stream]\nstreaming = false\n{}", spool(&folder.path().join("none"), "")))?;
    replication.replicate("INSERT INTO t VALUES (1, 'x')", &TABLES).await
}
