//! The engine dies at each sync, rename, write and removal that a trail is made of, before it, after it and amid it.
//!
//! A library between the engine and the system counts these calls and kills, so that the engine is the one that is shipped. That no
//! commit which was confirmed is missing from the trail, the next engine looks by itself: it refuses a slot that is past the trail.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine};

use super::{DDL, TABLES, Trailed, number};
use crate::load::{Changes, Random, settle, stop};
use crate::replication::{DEADLINE, ENGINE};

/// Within so many calls there is one of every kind.
const CALLS_MAX: u64 = 90;

const ROUNDS_TO_CATCH_UP: u64 = 25;

fn build(folder: &Path) -> Result<String> {
    let (source, library) = (folder.join("killer.c"), folder.join("killer.so"));
    std::fs::write(&source, include_str!("killer.c"))?;
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl").output()?;
    ensure!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
    library.into_os_string().into_string().ok().context("a path in UTF-8")
}

#[tokio::test]
async fn an_engine_killed_at_any_call_loses_and_doubles_nothing() -> Result<()> {
    let kills = number("PGSLUICE_TRAIL_KILLS", 30);
    let mut random = Random::new();
    let trailed = Trailed::start(ChainOptions::default(), DDL, "segment_bytes = \"256KiB\"\n").await?;
    let replication = &trailed.replication;
    let library = build(trailed.folder.path())?;
    let dir = trailed.dir().canonicalize()?.into_os_string().into_string().ok().context("a path in UTF-8")?;
    let rows = "BEGIN; INSERT INTO log SELECT generate_series(1, 20); INSERT INTO whole SELECT n, repeat('x', 1000) FROM generate_series(1, 20) n;
                COMMIT; UPDATE whole SET note = 'y' WHERE id = 3; DELETE FROM whole; SELECT pg_sleep(0.04)";
    let changes = Changes::start(replication, rows);
    for round in 0..kills {
        // Between deaths C is let come up with A now and then, so that it is not for the last engine to do it all.
        if round % ROUNDS_TO_CATCH_UP == ROUNDS_TO_CATCH_UP - 1 {
            let engine = replication.spawn()?;
            replication.wait_caught_up().await.with_context(|| format!("round {round}:\n{}", engine.stderr()))?;
            engine.sigkill().await?;
        }
        let (at, how) = (1 + random.below(CALLS_MAX), ["before", "after", "torn"][round as usize % 3]);
        let at = at.to_string();
        let env = [("LD_PRELOAD", library.as_str()), ("KILL_DIR", &dir), ("KILL_AT", &at), ("KILL_HOW", how)];
        let engine = Engine::spawn_env(ENGINE.as_ref(), &replication.config(), &["run"], &env)?;
        let status = engine.wait(DEADLINE).await?;
        ensure!(status.signal() == Some(9), "{how} call {at} it ended with {status}:\n{}", engine.stderr());
    }
    let engine = replication.spawn()?;
    changes.end().await?;
    settle(replication, &engine, &TABLES).await?;
    stop(&engine).await?;
    let verified = replication.succeed(&["trail", "verify"]).await?;
    ensure!(verified.contains("reader test"), "{verified}");
    Ok(())
}
