//! The engine under a supervisor, as people run it: started again whenever it has ended.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pgsluice_testkit::{Chain, Engine, FarHost, Proxy, run, wait_for};
use tempfile::TempDir;

use crate::DATABASE;

const ENGINE: &str = env!("CARGO_BIN_EXE_pgsluice");
const DEADLINE: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const EXIT_DONE: i32 = 0;
const EXIT_FAILED: i32 = 1;
const EXIT_REFUSED: i32 = 3;
/// What is said once for each session.
const STREAMS: &str = "streaming starts";
/// Why an engine refuses a target that has lost what was confirmed.
const LOST: &str = "past the target's progress";

pub struct Engines {
    folder: TempDir,
    running: Engine,
    starts: u32,
    /// Tables were to be copied again, and have not been found equal since.
    copying: bool,
    copies: u32,
}

impl Engines {
    /// Makes slot, publication and progress, and starts the first engine.
    pub async fn set_up(chain: &Chain, to_source: &Proxy, to_target: &Proxy) -> Result<Engines> {
        let folder = tempfile::tempdir()?;
        let dsn = [to_source.dsn(DATABASE), chain.a.dsn(DATABASE), to_target.dsn(DATABASE)];
        std::fs::write(config(&folder), configuration(&dsn))?;
        succeed(&folder, &["setup"]).await?;
        let running = spawn(&folder, &["run"])?;
        Ok(Engines { folder, running, starts: 1, copying: false, copies: 0 })
    }

    pub fn running(&self) -> &Engine {
        &self.running
    }

    pub fn starts(&self) -> u32 {
        self.starts
    }

    pub fn copies(&self) -> u32 {
        self.copies
    }

    /// What C shows is no state of A's until that is over.
    pub fn is_copying(&self) -> bool {
        self.copying
    }

    pub fn found_equal(&mut self) {
        self.copying = false;
    }

    /// Starts another beside the one that runs, which is given back.
    pub fn start_another(&mut self) -> Result<Engine> {
        self.starts += 1;
        // An interrupted copy goes on with the tables that it had not come to.
        let arguments: &[_] = if self.copying { &["run", "--on-existing", "truncate", "--yes"] } else { &["run"] };
        Ok(std::mem::replace(&mut self.running, spawn(&self.folder, arguments)?))
    }

    /// The same on another host, from where it reaches the servers over a link of its own.
    pub fn start_far(&mut self, chain: &Chain, host: &FarHost) -> Result<Engine> {
        self.starts += 1;
        let dsn = [&chain.b, &chain.a, &chain.c].map(|server| host.link(0).dsn(&server.dsn(DATABASE)));
        let config = self.folder.path().join("far.toml");
        std::fs::write(&config, configuration(&dsn))?;
        let mut command = host.command(Path::new(ENGINE));
        command.args(["run", "-c"]).arg(config);
        if self.copying {
            command.args(["--on-existing", "truncate", "--yes"]);
        }
        Ok(std::mem::replace(&mut self.running, Engine::spawn_command(command)?))
    }

    /// How many sessions the engine that runs has had.
    pub fn streams(&self) -> usize {
        self.running.stderr().matches(STREAMS).count()
    }

    /// Waits until it has had more than these, or another engine any. One that has had none yet, since a server was away, would take over
    /// from whoever is started meanwhile, and not the other way round.
    pub async fn wait_streaming_again(&mut self, streams: usize) -> Result<()> {
        let (start, starts) = (Instant::now(), self.starts);
        loop {
            self.look_after().await?;
            if self.streams() > if self.starts == starts { streams } else { 0 } {
                return Ok(());
            }
            ensure!(start.elapsed() < DEADLINE, "no stream:\n{}", self.running.stderr());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// C may have lost what was confirmed. The engine goes on if not; else it refuses, and what the documents advise is done.
    pub async fn meet_loss(&mut self, streams: usize) -> Result<()> {
        let (start, starts) = (Instant::now(), self.starts);
        loop {
            if !self.running.is_running() {
                let status = self.running.wait(DEADLINE).await?;
                let said = self.running.stderr();
                match status.code() {
                    Some(EXIT_REFUSED) if said.contains(LOST) => return self.copy_again().await,
                    // The epoch that it had raised is lost too: nobody else has taken over, and it may be started again.
                    Some(EXIT_REFUSED) if said.contains("fenced") => drop(self.start_another()?),
                    _ => self.look_after().await?,
                }
            }
            if self.streams() > if self.starts == starts { streams } else { 0 } {
                return Ok(());
            }
            ensure!(start.elapsed() < DEADLINE, "neither a stream nor a refusal:\n{}", self.running.stderr());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn copy_again(&mut self) -> Result<()> {
        succeed(&self.folder, &["teardown", "--yes"]).await?;
        succeed(&self.folder, &["setup"]).await?;
        (self.copying, self.copies) = (true, self.copies + 1);
        drop(self.start_another()?);
        Ok(())
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
            Ok((!self.running.is_running() || self.running.stderr().contains(STREAMS)).then_some(()))
        })
        .await
    }
}

fn config(folder: &TempDir) -> PathBuf {
    folder.path().join("pgsluice.toml")
}

/// For a source, a primary and a target.
fn configuration([source, primary, target]: &[String; 3]) -> String {
    format!(
        "name = \"chaos\"\n[source]\ndsn = \"{source}\"\n[primary]\ndsn = \"{primary}\"\n[target]\ndsn = \"{target}\"\n\
         [tables]\ninclude = [\"public.*\"]\n[apply]\nbatch_rows = 500\n"
    )
}

fn spawn(folder: &TempDir, arguments: &[&str]) -> Result<Engine> {
    Engine::spawn(Path::new(ENGINE), &config(folder), arguments)
}

async fn succeed(folder: &TempDir, arguments: &[&str]) -> Result<()> {
    let config = config(folder);
    let config = config.to_str().context("a path in UTF-8")?;
    let output = run(Path::new(ENGINE), &[arguments, &["-c", config]].concat()).await?;
    ensure!(output.code == Some(EXIT_DONE), "{arguments:?} ended with {:?}: {}", output.code, output.stderr);
    Ok(())
}
