//! The folder of a trail is not what it was: a disk that is not mounted, another trail, an old copy. Nothing is confirmed to the slot then
//! that lies nowhere, no trail begins by itself, and what is there still comes to C.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine, SmallDisk, wait_for};

use super::{DDL, EXIT_REFUSED, TABLES, Trailed};
use crate::load::{expect_end, settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, ENGINE};

impl Trailed {
    /// Moves the trail out of its folder, as a disk that is unmounted; an empty folder is left, as below one.
    fn unmount(&self) -> Result<PathBuf> {
        let away = self.folder.path().join("disk");
        fs::rename(self.dir(), &away)?;
        fs::create_dir(self.dir())?;
        Ok(away)
    }

    fn mount(&self, disk: &Path) -> Result<()> {
        fs::remove_dir_all(self.dir())?;
        Ok(fs::rename(disk, self.dir())?)
    }

    async fn confirmed(&self) -> Result<String> {
        self.replication.chain.b.scalar(DATABASE, "SELECT max(confirmed_flush_lsn) FROM pg_replication_slots").await
    }

    /// Has changes in the trail that C has not.
    async fn run_ahead(&self, changes: &str) -> Result<()> {
        let capture = self.capture()?;
        wait_log(&capture, "capturing starts", 1).await?;
        self.replication.run_each(changes).await?;
        self.wait_captured().await?;
        stop(&capture).await
    }

    async fn expect_refused(&self, arguments: &[&str], said: &[&str]) -> Result<String> {
        let output = self.replication.command(arguments).await?;
        let is_said = said.iter().all(|said| output.stderr.contains(said));
        ensure!(output.code == Some(EXIT_REFUSED) && is_said, "{arguments:?}, not {said:?}: {output:?}");
        Ok(output.stderr)
    }

    async fn rows_on_c(&self, table: &str) -> Result<u64> {
        Ok(self.replication.chain.c.scalar(DATABASE, &format!("SELECT count(*) FROM {table}")).await?.parse()?)
    }
}

fn is_empty(dir: &Path) -> Result<bool> {
    Ok(fs::read_dir(dir)?.next().is_none())
}

#[tokio::test]
async fn a_disk_that_is_not_mounted_begins_no_trail() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "").await?;
    let replication = &trailed.replication;
    replication.replicate("INSERT INTO t VALUES (1, 'one')", &["public.t"]).await?;
    trailed.run_ahead("INSERT INTO t VALUES (2, 'in the trail alone')").await?;
    let confirmed = trailed.confirmed().await?;
    let disk = trailed.unmount()?;
    let dir = trailed.dir().display().to_string();
    for is_folder_there in [true, false] {
        if !is_folder_there {
            fs::remove_dir(trailed.dir())?;
        }
        for arguments in [&["run"][..], &["run", "--stop-at", "current"], &["capture"]] {
            trailed.expect_refused(arguments, &["there is no trail in", &dir, "is its disk mounted?"]).await?;
        }
        // The target knows that it has one.
        trailed.expect_refused(&["setup"], &["there is no trail in", &dir, "is its disk mounted?"]).await?;
        ensure!(trailed.dir().exists() == is_folder_there, "the folder was made");
    }
    fs::create_dir(trailed.dir())?;
    ensure!(is_empty(&trailed.dir())? && trailed.confirmed().await? == confirmed, "something was begun");
    replication.run_each("INSERT INTO t VALUES (3, 'written meanwhile')").await?;
    trailed.mount(&disk)?;
    replication.setup().await?;
    replication.catch_up().await?;
    replication.assert_same(&TABLES).await
}

#[tokio::test]
async fn a_disk_that_is_unmounted_under_an_engine_is_waited_for() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "segment_bytes = \"256KiB\"\n").await?;
    let replication = &trailed.replication;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    replication.run_each("INSERT INTO t VALUES (1, 'one')").await?;
    settle(replication, &engine, &TABLES).await?;
    let disk = trailed.unmount()?;
    // Enough for several segments.
    let rows = "INSERT INTO whole SELECT n, repeat('x', 1000) FROM generate_series(1, 1000) n";
    replication.run_each(rows).await?;
    wait_log(&engine, "is the disk of the trail still mounted?", 1).await?;
    wait_log(&engine, "waiting for this to be mended", 1).await?;
    ensure!(is_empty(&trailed.dir())?, "something was begun in the folder below the disk");
    trailed.mount(&disk)?;
    replication.run_each("INSERT INTO t VALUES (2, 'two')").await?;
    settle(replication, &engine, &TABLES).await?;
    stop(&engine).await?;
    replication.succeed(&["trail", "verify"]).await.map(drop)
}

/// The same by a file system that is one.
#[tokio::test]
async fn a_file_system_that_is_detached_under_an_engine_gets_nothing_below_it() -> Result<()> {
    let trailed = Trailed::unconfigured(ChainOptions::default(), DDL).await?;
    let replication = &trailed.replication;
    let disk = match SmallDisk::mount(64) {
        Ok(disk) => disk,
        Err(error) => {
            println!("nothing is tested, for want of a file system that can be mounted: {error:#}");
            return Ok(());
        }
    };
    let below = disk.path().to_owned();
    replication.configure(&format!("[trail]\ndir = \"{}\"\nsegment_bytes = \"256KiB\"\n", below.display()))?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let unmounted = std::process::Command::new("umount").arg("--lazy").arg(&below).status()?;
    ensure!(unmounted.success(), "umount");
    replication.run_each("INSERT INTO whole SELECT n, repeat('x', 1000) FROM generate_series(1, 1000) n").await?;
    wait_log(&engine, "is the disk of the trail still mounted?", 1).await?;
    ensure!(is_empty(&below)?, "something was begun in the folder below the file system");
    stop(&engine).await?;
    trailed.expect_refused(&["run"], &["there is no trail in", "is its disk mounted?"]).await?;
    ensure!(is_empty(&below)?, "something was begun in the folder below the file system");
    // There is nothing to unmount any more.
    std::mem::forget(disk);
    fs::remove_dir(&below)?;
    Ok(())
}

#[tokio::test]
async fn an_old_copy_of_a_trail_is_refused_and_drained() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "").await?;
    let replication = &trailed.replication;
    trailed.run_ahead("INSERT INTO t SELECT n, 'in both' FROM generate_series(1, 100) n").await?;
    let copy = trailed.folder.path().join("copy");
    copy_folder(&trailed.dir(), &copy)?;
    trailed.run_ahead("INSERT INTO t SELECT n, 'in one' FROM generate_series(101, 150) n").await?;
    let confirmed = trailed.confirmed().await?;
    let disk = trailed.unmount()?;
    fs::remove_dir(trailed.dir())?;
    fs::rename(&copy, trailed.dir())?;
    // What is in it is right as far as it goes.
    trailed
        .expect_refused(&["run"], &["past the trail's end", "the trail was restored", "is the right disk mounted"])
        .await?;
    ensure!(trailed.rows_on_c("t").await? == 100, "{} rows on C", trailed.rows_on_c("t").await?);
    // Once C has that, nothing is left to be done.
    trailed.expect_refused(&["run"], &["past the trail's end"]).await?;
    trailed.expect_refused(&["capture"], &["past the trail's end"]).await?;
    ensure!(trailed.confirmed().await? == confirmed, "something was confirmed");
    trailed.mount(&disk)?;
    replication.catch_up().await?;
    replication.assert_same(&TABLES).await
}

#[tokio::test]
async fn a_trail_whose_slot_is_gone_is_drained() -> Result<()> {
    for is_running in [false, true] {
        let trailed = Trailed::start(ChainOptions::default(), DDL, "segment_bytes = \"256KiB\"\n").await?;
        let replication = &trailed.replication;
        let drop_slot = "SELECT pg_drop_replication_slot('pgsluice_test')";
        let locked = replication.chain.c.connect(DATABASE).await?;
        let engine = match is_running {
            false => {
                trailed.run_ahead("INSERT INTO t SELECT n, repeat('x', 3000) FROM generate_series(1, 500) n").await?;
                replication.chain.b.sql(DATABASE, drop_slot).await?;
                replication.spawn()?
            }
            true => {
                let engine = replication.spawn()?;
                wait_streaming(&engine, 1).await?;
                locked.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await?;
                replication
                    .run_each("INSERT INTO t SELECT n, repeat('x', 3000) FROM generate_series(1, 500) n")
                    .await?;
                trailed.wait_captured().await?;
                let end =
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL";
                replication.chain.b.sql(DATABASE, end).await?;
                wait_for("the slot to go", DEADLINE, || async {
                    Ok(replication.chain.b.sql(DATABASE, drop_slot).await.ok())
                })
                .await?;
                wait_log(&engine, "nothing is captured any more", 1).await?;
                locked.batch_execute("ROLLBACK").await?;
                engine
            }
        };
        expect_end(&engine, EXIT_REFUSED, &["nothing is captured any more", "slot \"pgsluice_test\""]).await?;
        replication.assert_same(&TABLES).await?;
    }
    Ok(())
}

#[tokio::test]
async fn another_trail_in_its_place_is_refused() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "").await?;
    let replication = &trailed.replication;
    replication.replicate("INSERT INTO t VALUES (1, 'one')", &["public.t"]).await?;
    let first = trailed.unmount()?;
    // It says that something may stay behind.
    let output = replication.command(&["teardown", "--yes"]).await?;
    ensure!(output.code == Some(0) && output.stderr.contains("if its disk is not mounted"), "{output:?}");
    ensure!(is_empty(&trailed.dir())?, "teardown has made something");
    replication.setup().await?;
    let second = trailed.folder.path().join("second");
    fs::rename(trailed.dir(), &second)?;
    fs::rename(&first, trailed.dir())?;
    trailed.expect_refused(&["run"], &["past the trail's end", "is the right disk mounted"]).await?;
    // Where a link leads is what counts.
    fs::rename(trailed.dir(), &first)?;
    std::os::unix::fs::symlink(&second, trailed.dir())?;
    replication.replicate("INSERT INTO t VALUES (2, 'two')", &["public.t"]).await?;
    let capture = trailed.capture()?;
    wait_log(&capture, "capturing starts", 1).await?;
    fs::remove_file(trailed.dir())?;
    std::os::unix::fs::symlink(&first, trailed.dir())?;
    wait_log(&capture, "is the disk of the trail still mounted?", 1).await?;
    expect_end(&capture, EXIT_REFUSED, &["past the trail's end"]).await?;
    fs::remove_file(trailed.dir())?;
    std::os::unix::fs::symlink(&second, trailed.dir())?;
    // One that fits the slot all the same, as where the file that says which it is was lost.
    fs::remove_file(trailed.dir().join("identity"))?;
    replication.run_each("INSERT INTO t VALUES (3, 'three')").await?;
    let said = trailed
        .expect_refused(
            &["run", "--stop-at", "current"],
            &["is another one", "than the one that the target reads from"],
        )
        .await?;
    ensure!(trailed.rows_on_c("t").await? == 2, "something of another trail was applied");
    let remedy = said
        .split_once("on the target: ")
        .and_then(|(_, rest)| rest.split_once("; if that trail"))
        .context(said.clone())?
        .0;
    replication.chain.c.sql(DATABASE, remedy).await.with_context(|| said.clone())?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await
}

/// A replication that is at work gets a trail by setup, and by nothing else.
#[tokio::test]
async fn a_slot_that_is_there_gets_a_trail_by_setup() -> Result<()> {
    let trailed = Trailed::unconfigured(ChainOptions::default(), DDL).await?;
    let replication = &trailed.replication;
    replication.setup().await?;
    replication.replicate("INSERT INTO t VALUES (1, 'by the slot')", &["public.t"]).await?;
    let without = replication.spawn()?;
    wait_streaming(&without, 1).await?;
    trailed.configure("")?;
    trailed.expect_refused(&["setup"], &["is in use by process", "stop the engine"]).await?;
    stop(&without).await?;
    for arguments in [&["run", "--stop-at", "current"][..], &["capture"]] {
        trailed.expect_refused(arguments, &["there is no trail in", "`pgsluice setup` begins one"]).await?;
    }
    ensure!(!trailed.dir().exists(), "the folder was made");
    let made = replication.succeed(&["setup"]).await?;
    ensure!(made.lines().any(|line| line.contains("trail in") && line.contains("created")), "{made}");
    replication.replicate("INSERT INTO t VALUES (2, 'by the trail')", &["public.t"]).await?;
    replication.setup().await?;
    // And back again, from where both are at one.
    replication.configure("")?;
    replication.replicate("INSERT INTO t VALUES (3, 'by the slot again')", &["public.t"]).await?;
    fs::remove_dir_all(trailed.dir())?;
    trailed.configure("")?;
    replication.setup().await?;
    replication.replicate("INSERT INTO t VALUES (4, 'by another trail')", &["public.t"]).await
}

/// Set up by a version that gave trails no identity, and whose files others could read.
#[tokio::test]
async fn a_trail_of_an_earlier_version_is_taken_over() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "").await?;
    let replication = &trailed.replication;
    replication.replicate("INSERT INTO t VALUES (1, 'one')", &["public.t"]).await?;
    fs::remove_file(trailed.dir().join("identity"))?;
    replication.chain.c.sql(DATABASE, "DROP TABLE pgsluice.trails").await?;
    replication.replicate("INSERT INTO t VALUES (2, 'two')", &["public.t"]).await?;
    let known = replication.chain.c.scalar(DATABASE, "SELECT id FROM pgsluice.trails WHERE name = 'test'").await?;
    let identity = fs::read_to_string(trailed.dir().join("identity"))?;
    ensure!(identity.contains(&known), "{identity}: {known}");
    let disk = trailed.unmount()?;
    trailed.expect_refused(&["setup"], &["has read from one", &known]).await?;
    trailed.mount(&disk)?;
    // By a role that may not make tables, nothing else is lost.
    replication.chain.c.sql(DATABASE, "DROP TABLE pgsluice.trails").await?;
    let grants = "CREATE ROLE writer LOGIN; GRANT USAGE ON SCHEMA public, pgsluice TO writer;
        GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public, pgsluice TO writer;
        GRANT SET ON PARAMETER session_replication_role TO writer";
    replication.chain.c.sql(DATABASE, grants).await?;
    replication.configure_target_role("writer", &format!("[trail]\ndir = \"{}\"\n", trailed.dir().display()))?;
    replication.replicate("INSERT INTO t VALUES (3, 'three')", &["public.t"]).await
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status()?;
    ensure!(copied.success(), "cp");
    Ok(())
}

/// Two configurations of one name, with other targets: the one that is ahead would have removed what the other needs.
#[tokio::test]
async fn two_targets_of_one_name_are_refused() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "").await?;
    let replication = &trailed.replication;
    replication.replicate("INSERT INTO t VALUES (1, 'one')", &["public.t"]).await?;
    let chain = &replication.chain;
    chain.c.sql("postgres", "CREATE DATABASE second").await?;
    chain.c.sql("second", DDL).await?;
    let config = trailed.folder.path().join("second.toml");
    let text = |target: &str, name: &str| {
        format!(
            "name = \"{name}\"\n[source]\ndsn = \"{}\"\n[primary]\ndsn = \"{}\"\n[target]\ndsn = \"{}\"\n[tables]\ninclude = [\"public.*\"]\n\
             [trail]\ndir = \"{}\"\nof = \"test\"\n",
            chain.b.dsn(DATABASE),
            chain.a.dsn(DATABASE),
            chain.c.dsn(target),
            trailed.dir().display()
        )
    };
    let command = async |arguments: &[&str]| {
        let config = config.to_str().context("a path in UTF-8")?;
        pgsluice_testkit::run(ENGINE.as_ref(), &[arguments, &["-c", config]].concat()).await
    };
    fs::write(&config, text("second", "reader"))?;
    let output = command(&["setup"]).await?;
    ensure!(output.code == Some(0), "{output:?}");
    let first = Engine::spawn(ENGINE.as_ref(), &config, &["run"])?;
    wait_streaming(&first, 1).await?;
    // The same name, and another database.
    chain.c.sql("postgres", "CREATE DATABASE third").await?;
    chain.c.sql("third", DDL).await?;
    fs::write(&config, text("third", "reader"))?;
    for arguments in [&["setup"][..], &["teardown", "--yes"]] {
        let output = command(arguments).await?;
        let is_said = output.stderr.contains("reader \"reader\" of the trail is another target");
        ensure!(output.code == Some(EXIT_REFUSED) && is_said, "{arguments:?}: {output:?}");
    }
    let reader = trailed.ls().await?["readers"].to_string();
    ensure!(reader.contains("\"reader\""), "{reader}");
    stop(&first).await
}
