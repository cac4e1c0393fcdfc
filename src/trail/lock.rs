//! Who writes a trail: a file that one process holds locked, and that says which one and how it fares.
//!
//! The kernel gives the lock back however its owner ends. What the file says is for people, and is believed only while it is locked.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::access;
use super::dir::{Dir, failed};
use crate::error::Error;

/// Always as long as this, so that a full disk does not keep the file from being written.
const FILE_BYTES: usize = 512;

/// What a writer was started as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    Setup,
    Run,
    Capture,
    Teardown,
}

/// What a writer says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterState {
    pub pid: u32,
    pub command: Option<Command>,
    /// RFC 3339.
    pub since: String,
    /// Why nothing is read from the source, if so.
    pub paused: Option<String>,
}

#[derive(Debug)]
pub struct Lock {
    file: File,
    state: WriterState,
}

impl Lock {
    /// `None` where another process has it.
    pub fn take(dir: &Dir, command: Command) -> Result<Option<Lock>, Error> {
        let path = dir.lock();
        let opened = access::new_file().truncate(false).read(true).open(&path);
        let file = opened.map_err(|error| failed(&path, "open", error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            locked => locked.map_err(|error| failed(&path, "lock", error.into()))?,
        }
        let since = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let mut lock =
            Lock { file, state: WriterState { pid: std::process::id(), command: Some(command), since, paused: None } };
        lock.say(None);
        Ok(Some(lock))
    }

    /// Goes on holding it where the folder is another one than it was, as one that is mounted again. False where somebody else has it.
    pub fn hold(&mut self, dir: &Dir) -> Result<bool, Error> {
        let (path, ours) = (dir.lock(), self.file.metadata());
        let ours = ours.map_err(|error| failed(&path, "look at", error))?;
        if fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(true);
        }
        let Some(taken) = Lock::take(dir, self.state.command.unwrap_or(Command::Run))? else { return Ok(false) };
        *self = taken;
        Ok(true)
    }

    /// Why nothing is read from the source, or that it is again.
    pub fn say(&mut self, paused: Option<&str>) {
        self.state.paused = paused.map(str::to_owned);
        let mut text = serde_json::to_vec(&self.state).unwrap_or_default();
        text.resize(FILE_BYTES, b' ');
        if let Err(error) = self.file.write_all_at(&text, 0) {
            tracing::debug!(%error, "what the writer of the trail does cannot be written down");
        }
    }
}

/// Who writes now, as far as it says; `None` where nobody does.
pub fn writer(dir: &Dir) -> Result<Option<WriterState>, Error> {
    let path = dir.lock();
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| failed(&path, "open", error))?,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => return Ok(None),
        Err(rustix::io::Errno::WOULDBLOCK) => {}
        Err(error) => return Err(failed(&path, "lock", error.into())),
    }
    let mut text = [0; FILE_BYTES];
    let state = match file.read_exact_at(&mut text, 0) {
        Ok(()) => serde_json::from_slice(text.trim_ascii_end()).ok(),
        Err(_) => None,
    };
    Ok(Some(state.unwrap_or(WriterState { pid: 0, command: None, since: "unknown".to_owned(), paused: None })))
}
