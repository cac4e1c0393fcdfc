//! The engine under a supervisor, as people run it: started again whenever it has ended.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pgsluice_testkit::{Chain, Engine, Proxy, run, wait_for};
use tempfile::TempDir;

use crate::DATABASE;

const ENGINE: &str = env!("CARGO_BIN_EXE_pgsluice");
const DEADLINE: Duration = Duration::from_secs(120);
const EXIT_DONE: i32 = 0;
const EXIT_FAILED: i32 = 1;
const EXIT_REFUSED: i32 = 3;

pub struct Engines {
    folder: TempDir,
    running: Engine,
    starts: u32,
}

impl Engines {
    /// Makes slot, publication and progress, and starts the first engine.
    pub async fn set_up(chain: &Chain, to_source: &Proxy, to_target: &Proxy) -> Result<Engines> {
        let folder = tempfile::tempdir()?;
        let text = format!(
            "name = \"chaos\"\n[source]\ndsn = \"{}\"\n[primary]\ndsn = \"{}\"\n[target]\ndsn = \"{}\"\n\
             [tables]\ninclude = [\"public.*\"]\n[apply]\nbatch_rows = 500\n",
            to_source.dsn(DATABASE),
            chain.a.dsn(DATABASE),
            to_target.dsn(DATABASE)
        );
        let config = config(&folder);
        std::fs::write(&config, text)?;
        let config = config.to_str().context("a path in UTF-8")?;
        let output = run(Path::new(ENGINE), &["setup", "-c", config]).await?;
        ensure!(output.code == Some(0), "setup: {}", output.stderr);
        let running = spawn(&folder)?;
        Ok(Engines { folder, running, starts: 1 })
    }

    pub fn running(&self) -> &Engine {
        &self.running
    }

    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// Starts another beside the one that runs, which is given back.
    pub fn start_another(&mut self) -> Result<Engine> {
        self.starts += 1;
        Ok(std::mem::replace(&mut self.running, spawn(&self.folder)?))
    }

    /// Starts the engine again if it has ended.
    ///
    /// # Errors
    /// It has ended in a way that no fault explains.
    pub async fn look_after(&mut self) -> Result<()> {
        if self.running.is_running() {
            return Ok(());
        }
        let status = self.running.wait(DEADLINE).await?;
        // Killed; stopped; or a server was away when it was started.
        let is_explained = matches!(status.code(), None | Some(EXIT_DONE | EXIT_FAILED));
        ensure!(is_explained, "the engine ended with {status}:\n{}", self.running.stderr());
        drop(self.start_another()?);
        Ok(())
    }

    /// Waits until this engine has learnt that another has taken over.
    pub async fn wait_fenced(&self, older: &Engine) -> Result<()> {
        let status = older.wait(DEADLINE).await.with_context(|| older.stderr())?;
        match status.code() {
            Some(EXIT_REFUSED) if older.stderr().contains("fenced") => Ok(()),
            // A server was away when it was built anew, before it could see who has taken over; or it had been asked to end.
            Some(EXIT_FAILED | EXIT_DONE) => Ok(()),
            _ => bail!("an engine that was fenced ended with {status}:\n{}", older.stderr()),
        }
    }

    pub async fn wait_streaming(&self) -> Result<()> {
        wait_for("a stream", DEADLINE, || async {
            Ok((!self.running.is_running() || self.running.stderr().contains("streaming starts")).then_some(()))
        })
        .await
    }
}

fn config(folder: &TempDir) -> PathBuf {
    folder.path().join("pgsluice.toml")
}

fn spawn(folder: &TempDir) -> Result<Engine> {
    Engine::spawn(Path::new(ENGINE), &config(folder), &["run"])
}
