//! Child processes that do not outlive their test.
//!
//! In: a [`Command`] and the signal the child gets when this process dies. Out: a [`Process`] that can be signalled and
//! awaited. The kernel ties that signal to the parent *thread*, and test threads come and go, so one thread that lives
//! as long as the process starts every child.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, OnceLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

const EXIT_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A running or exited child. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    pid: Pid,
    child: Mutex<Child>,
}

impl Process {
    /// Starts `command`; the child gets `at_parent_death` when this process ends in any way.
    pub(crate) fn spawn(name: &str, command: Command, at_parent_death: Signal) -> Result<Self> {
        let child =
            spawn_on_lasting_thread(command, at_parent_death).with_context(|| format!("cannot start {name}"))?;
        let pid = Pid::from_child(&child);
        Ok(Self { name: name.to_owned(), pid, child: Mutex::new(child) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends a signal unless the process has been reaped, when its pid may belong to another one.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = self.child();
        if child.try_wait()?.is_none() {
            kill_process(self.pid, signal).with_context(|| format!("cannot signal {}", self.name))?;
        }
        Ok(())
    }

    pub(crate) fn try_wait(&self) -> Result<Option<ExitStatus>> {
        self.child().try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    pub(crate) async fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() >= deadline {
                bail!("{} (pid {}) is still running after {deadline:?}", self.name, self.pid());
            }
            tokio::time::sleep(EXIT_POLL_INTERVAL).await;
        }
    }

    /// For `Drop`, which cannot await.
    pub(crate) fn wait_blocking(&self, deadline: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            match self.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if start.elapsed() < deadline => std::thread::sleep(EXIT_POLL_INTERVAL),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// The processes whose parent is this one, as pids.
    pub(crate) fn children(&self) -> Vec<u32> {
        processes().filter(|(_, parent, _)| *parent == self.pid()).map(|(pid, _, _)| pid).collect()
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().expect("no panic happens under this lock")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut().expect("no panic happens under this lock");
        // Errors mean that it is gone already.
        child.kill().ok();
        child.wait().ok();
    }
}

/// Sends SIGKILL to a process that is not our child.
pub(crate) fn kill_pid(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        kill_process(pid, Signal::KILL).ok();
    }
}

/// Whether the process still runs. A zombie does not: it holds neither memory nor files.
pub(crate) fn runs(pid: u32) -> bool {
    processes().any(|(other, _, state)| other == pid && state != 'Z' && state != 'X')
}

/// Pid, parent's pid and state of every process, from `/proc/PID/stat`.
fn processes() -> impl Iterator<Item = (u32, u32, char)> {
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // The second field is the program's name in parentheses and may hold spaces and parentheses.
        let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        Some((pid, fields.next()?.parse().ok()?, state))
    })
}

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

fn spawn_on_lasting_thread(mut command: Command, at_parent_death: Signal) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                reply.send(command.spawn()).expect("the one who ordered waits for the reply");
            }
        });
        orders
    });
    die_with_parent(&mut command, at_parent_death);
    let (reply, answer) = mpsc::sync_channel(1);
    spawner.send((command, reply)).expect("the spawner ends with the process");
    answer.recv().expect("the spawner answers every order")
}

fn die_with_parent(command: &mut Command, at_parent_death: Signal) {
    let parent = rustix::process::getpid();
    let hook = move || {
        rustix::process::set_parent_process_death_signal(Some(at_parent_death))?;
        // The parent may have died before the kernel was asked.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from(rustix::io::Errno::SRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec the hook makes two system calls, and neither allocates nor takes a lock. It runs
    // after the change of user, which would clear the death signal.
    unsafe {
        command.pre_exec(hook);
    }
}
