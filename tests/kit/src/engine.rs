//! The pgsluice binary as a child process: paths and arguments in, exit status and output out. It is killed when its
//! value is dropped or the test dies.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tempfile::TempDir;

use crate::process::{Process, Signal};

const RUN_DEADLINE: Duration = Duration::from_secs(60);
/// Of the terminal that an engine can be given.
pub const TERMINAL_ROWS: u16 = 50;
pub const TERMINAL_COLUMNS: u16 = 200;
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

    /// Starts `bin ARGS -c CONFIG` with stderr on a terminal; what it draws there is what [`Engine::stderr`] gives.
    pub fn spawn_on_terminal(bin: &Path, config: &Path, args: &[&str]) -> Result<Self> {
        let (screen, terminal) = open_terminal().context("cannot open a terminal")?;
        let files = tempfile::tempdir()?;
        let mut command = Command::new(bin);
        command.args(args).arg("-c").arg(config).env("TERM", "xterm").stdin(Stdio::null());
        command.stdout(File::create(files.path().join("stdout"))?).stderr(terminal);
        let mut drawn = File::create(files.path().join("stderr"))?;
        let process = Process::spawn(&bin.to_string_lossy(), command, Signal::KILL)?;
        // It ends with an error once nobody has the terminal open.
        std::thread::spawn(move || std::io::copy(&mut File::from(screen), &mut drawn).ok());
        Ok(Self { process, files })
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

/// Both ends of a terminal: what the first reads was written to the second.
fn open_terminal() -> Result<(OwnedFd, File)> {
    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&screen)?;
    unlockpt(&screen)?;
    let name = ptsname(&screen, Vec::new())?;
    let terminal = File::options().read(true).write(true).open(name.to_str()?)?;
    tcsetwinsize(&terminal, Winsize { ws_row: TERMINAL_ROWS, ws_col: TERMINAL_COLUMNS, ws_xpixel: 0, ws_ypixel: 0 })?;
    Ok((screen, terminal))
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
