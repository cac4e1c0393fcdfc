//! The pgsluice binary as a child process: paths and arguments in, exit status and output out. It is killed when its
//! value is dropped or the test dies.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::{Process, Signal};

const RUN_DEADLINE: Duration = Duration::from_secs(60);
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A running or exited engine.
#[derive(Debug)]
pub struct Engine {
    process: Process,
    files: TempDir,
}

impl Engine {
    /// Starts `bin ARGS -c CONFIG`; `args` begins with the command, as in `["run"]`.
    pub fn spawn(bin: &Path, config: &Path, args: &[&str]) -> Result<Self> {
        Self::spawn_env(bin, config, args, &[])
    }

    /// The same with additional environment variables.
    pub fn spawn_env(bin: &Path, config: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(bin);
        command.args(args).arg("-c").arg(config).envs(env.iter().copied());
        Self::spawn_command(command)
    }

    /// Starts any command under the same care.
    pub fn spawn_command(mut command: Command) -> Result<Self> {
        let files = tempfile::tempdir()?;
        command.stdin(Stdio::null());
        command.stdout(File::create(files.path().join("stdout"))?);
        command.stderr(File::create(files.path().join("stderr"))?);
        let name = command.get_program().to_string_lossy().into_owned();
        Ok(Self { process: Process::spawn(&name, command, Signal::KILL)?, files })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn stdout(&self) -> String {
        read(&self.files.path().join("stdout"))
    }

    pub fn stderr(&self) -> String {
        read(&self.stderr_path())
    }

    pub fn stderr_path(&self) -> PathBuf {
        self.files.path().join("stderr")
    }

    pub fn is_running(&self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    pub fn sigterm(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Kills the engine and waits until it is gone.
    pub async fn sigkill(&self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.wait(KILL_DEADLINE).await
    }

    /// Waits for the end; an error carries what the engine has written to stderr.
    pub async fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        self.process.wait(deadline).await.with_context(|| format!("stderr:\n{}", self.stderr()))
    }
}

/// What a finished command has left.
#[derive(Clone, Debug)]
pub struct Output {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `bin` to its end, within 60 s.
pub async fn run(bin: &Path, args: &[&str]) -> Result<Output> {
    run_within(RUN_DEADLINE, bin, args).await
}

/// Runs `bin` to its end, or kills it after `deadline`, which is an error.
pub async fn run_within(deadline: Duration, bin: &Path, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(bin);
    command.args(args);
    let engine = Engine::spawn_command(command)?;
    let status = engine.wait(deadline).await?;
    Ok(Output { code: status.code(), stdout: engine.stdout(), stderr: engine.stderr() })
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
