//! What lies in a trail is every value of every row: other users of the machine can read none of it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine};

use super::{DDL, EXIT_REFUSED, Trailed};
use crate::load::{expect_end, settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, ENGINE};

const SECRET: &str = "4111111111111111";

/// All files and folders below, and the folder itself.
fn everything(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(everything(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

fn assert_closed(folder: &Path) -> Result<()> {
    for path in everything(folder)? {
        let mode = fs::metadata(&path)?.permissions().mode() & 0o7777;
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        ensure!(mode == expected, "{} has mode {mode:04o}", path.display());
    }
    Ok(())
}

/// What another user comes to that reads all of it; `None` where this one may not become another.
fn read_as_nobody(folder: &Path) -> Result<Option<String>> {
    if !rustix::process::geteuid().is_root() {
        println!("whether another user can read it is not tried: only root can become one");
        return Ok(None);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"]);
    let files: Vec<_> = everything(folder)?.into_iter().filter(|path| path.is_file()).collect();
    let output = command.args(&files).output()?;
    ensure!(!output.status.success(), "another user can read {files:?}");
    let shown = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(Some(shown))
}

#[tokio::test]
async fn another_user_reads_nothing_whatever_the_umask() -> Result<()> {
    for umask in ["000", "022", "077"] {
        let trailed = Trailed::unconfigured(ChainOptions::default(), DDL).await?;
        let replication = &trailed.replication;
        // So that it is not the folder above that keeps them out.
        fs::set_permissions(trailed.folder.path(), Permissions::from_mode(0o755))?;
        trailed.configure("segment_bytes = \"256KiB\"\n")?;
        let with_umask = |command: &str| {
            let mut shell = Command::new("sh");
            shell
                .args(["-c", &format!("umask {umask}; exec \"$0\" {command} -c \"$1\""), ENGINE])
                .arg(replication.config());
            Engine::spawn_command(shell)
        };
        let setup = with_umask("setup")?;
        expect_end(&setup, 0, &[]).await?;
        let engine = with_umask("run")?;
        wait_streaming(&engine, 1).await?;
        for n in 0..3 {
            let rows =
                format!("INSERT INTO whole SELECT n, '{SECRET}' || repeat('x', 1000) FROM generate_series(1, 50{n}) n");
            replication.run_each(&rows).await?;
        }
        settle(replication, &engine, &["public.whole"]).await?;
        assert_closed(&trailed.dir())?;
        stop(&engine).await?;
        assert_closed(&trailed.dir())?;
        let in_clear = everything(&trailed.dir())?.into_iter().filter(|path| path.is_file()).any(|path| {
            fs::read(path).is_ok_and(|bytes| bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()))
        });
        ensure!(in_clear, "there is nothing to be hidden");
        if let Some(shown) = read_as_nobody(&trailed.dir())? {
            ensure!(shown.contains("Permission denied") && !shown.contains(SECRET), "{shown}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_trail_that_others_could_read_is_closed() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "").await?;
    let replication = &trailed.replication;
    replication.replicate("INSERT INTO t VALUES (1, 'one')", &["public.t"]).await?;
    for command in ["capture", "run"] {
        for path in everything(&trailed.dir())? {
            fs::set_permissions(&path, Permissions::from_mode(if path.is_dir() { 0o755 } else { 0o644 }))?;
        }
        let engine = Engine::spawn(ENGINE.as_ref(), &replication.config(), &[command])?;
        wait_log(&engine, "was open to other users (mode 0755)", 1).await?;
        wait_log(&engine, "capturing starts", 1).await?;
        assert_closed(&trailed.dir())?;
        stop(&engine).await?;
        ensure!(engine.stderr().matches("was open to other users").count() == 1, "{}", engine.stderr());
    }
    // What others may write they may have written.
    for mode in [0o770, 0o777, 0o702] {
        fs::set_permissions(trailed.dir(), Permissions::from_mode(mode))?;
        for arguments in [&["run"][..], &["capture"], &["trail", "ls"], &["setup"]] {
            let output = replication.command(arguments).await?;
            let is_said =
                output.stderr.contains("may write the folder of the trail") && output.stderr.contains("chmod 700");
            ensure!(output.code == Some(EXIT_REFUSED) && is_said, "{mode:o}, {arguments:?}: {output:?}");
        }
    }
    fs::set_permissions(trailed.dir(), Permissions::from_mode(0o700))?;
    replication.replicate("INSERT INTO t VALUES (2, 'two')", &["public.t"]).await?;
    let rows = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM t").await?;
    ensure!(rows == "2", "{rows}");
    Ok(())
}

/// A folder that cannot be written is said to be, with its name, before anything is read from B.
#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "").await?;
    let replication = &trailed.replication;
    let disk = match pgsluice_testkit::SmallDisk::mount(16) {
        Ok(disk) => disk,
        Err(error) => {
            println!("nothing is tested, for want of a disk that can be made read-only: {error:#}");
            return Ok(());
        }
    };
    let moved = disk.path().join("trail");
    let copied = Command::new("cp").arg("-a").arg(trailed.dir()).arg(&moved).status()?;
    let read_only = Command::new("mount").args(["-o", "remount,ro"]).arg(disk.path()).status()?;
    ensure!(copied.success() && read_only.success(), "a disk that is read-only");
    replication.configure(&format!("[trail]\ndir = \"{}\"\n", moved.display()))?;
    let confirmed = "SELECT max(confirmed_flush_lsn) FROM pg_replication_slots";
    let before = replication.chain.b.scalar(DATABASE, confirmed).await?;
    replication.run_each("INSERT INTO t VALUES (1, 'one')").await?;
    for arguments in [&["run"][..], &["capture"]] {
        let output = replication.command(arguments).await?;
        let is_said =
            output.stderr.contains(&moved.display().to_string()) && output.stderr.contains("Read-only file system");
        ensure!(output.code == Some(1) && is_said, "{arguments:?}: {output:?}");
    }
    ensure!(replication.chain.b.scalar(DATABASE, confirmed).await? == before, "something was confirmed");
    let writable = Command::new("mount").args(["-o", "remount,rw"]).arg(disk.path()).status()?;
    ensure!(writable.success(), "a disk that is writable again");
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await
}
