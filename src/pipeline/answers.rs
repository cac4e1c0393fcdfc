//! Asks a target that has not answered for long what it is at, and says so.
//!
//! In: since when the writer waits for an answer, and the processes that owe it. Out: a line in the log, ever more rarely; or an error where
//! those processes are gone. By a session of its own, since those at work cannot be asked.
//!
//! That the host of the target is gone is found below this, by whoever holds the connection (`postgres::connect`). Here it is alive:
//! usually somebody holds a lock, and who that is should not have to be found out at night.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio_postgres::Row;

use super::shared::Shared;
use crate::config::{Config, Role};
use crate::error::{Error, Kind, Stage};
use crate::postgres;

const STAGE: Stage = Stage::Apply;
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// The longest time between two lines about the same wait.
const NOTICE_INTERVAL_MAX: Duration = Duration::from_secs(600);

/// What each of our processes waits for, and this session as the proof that such processes are shown.
const WAITS_SQL: &str = "\
    SELECT a.pid, a.pid = pg_backend_pid(), coalesce(a.wait_event_type || '/' || a.wait_event, ''), \
           coalesce(l.relation::regclass::text, ''), \
           ARRAY(SELECT format('%s (user %I, application %I)', b.pid, b.usename, b.application_name) \
                 FROM pg_stat_activity b WHERE b.pid = ANY (pg_blocking_pids(a.pid)) ORDER BY b.pid) \
    FROM pg_stat_activity a LEFT JOIN pg_locks l ON l.pid = a.pid AND NOT l.granted \
    WHERE a.pid = ANY ($1) OR a.pid = pg_backend_pid()";

/// The processes on the target that apply.
#[derive(Clone, Debug, Default)]
pub(super) struct Processes {
    pub pids: Vec<i32>,
    /// Of the session that applies large transactions before they commit; 0 while there is none.
    pub early: Option<Arc<AtomicI32>>,
}

struct Wait {
    pid: i32,
    event: String,
    relation: String,
    held_by: Vec<String>,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ", self.pid)?;
        match self.event.as_str() {
            "" => write!(f, "is at work")?,
            event => write!(f, "waits for {event}")?,
        }
        if !self.relation.is_empty() {
            write!(f, " on {}", self.relation.escape_debug())?;
        }
        if !self.held_by.is_empty() {
            write!(f, ", held by process {}", self.held_by.join(" and ").escape_debug())?;
        }
        Ok(())
    }
}

/// Watches until the session ends.
///
/// # Errors
/// [`Kind::Lost`] where a process that owes an answer is not there any more.
pub(super) fn watch(
    config: &Config,
    processes: &Processes,
    shared: &Shared,
    session: &Receiver<()>,
) -> Result<(), Error> {
    let first = config.target.tcp_user_timeout * 2;
    let mut due = first;
    while session.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let Some(waited) = shared.unanswered_for() else {
            due = first;
            continue;
        };
        if waited < due {
            continue;
        }
        due = waited + waited.min(NOTICE_INTERVAL_MAX);
        let waited = humantime::format_duration(Duration::from_secs(waited.as_secs()));
        match ask(config, processes)? {
            Ok(waits) => {
                let waits: Vec<_> = waits.iter().map(Wait::to_string).collect();
                tracing::warn!("a batch has had no answer from the target for {waited}: {}", waits.join("; "));
            }
            Err(error) => {
                tracing::warn!(%error, "a batch has had no answer from the target for {waited}, which cannot be asked why");
            }
        }
    }
    Ok(())
}

/// The inner error is that of asking.
fn ask(config: &Config, processes: &Processes) -> Result<Result<Vec<Wait>, Error>, Error> {
    let early = processes.early.as_ref().map(|pid| pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0);
    let pids: Vec<_> = processes.pids.iter().copied().chain(early).collect();
    let runtime = postgres::new_runtime(STAGE)?;
    let rows = runtime.block_on(async {
        let client = postgres::connect(&config.target, STAGE).await?;
        client.query(WAITS_SQL, &[&pids]).await.map_err(|error| Error::from_postgres(STAGE, Role::Target, error))
    });
    let rows = match rows {
        Ok(rows) => rows,
        Err(error) => return Ok(Err(error)),
    };
    let read = |row: &Row| -> Result<(bool, Wait), tokio_postgres::Error> {
        let wait =
            Wait { pid: row.try_get(0)?, event: row.try_get(2)?, relation: row.try_get(3)?, held_by: row.try_get(4)? };
        Ok((row.try_get(1)?, wait))
    };
    let waits: Result<Vec<_>, _> = rows.iter().map(read).collect();
    let waits = waits.map_err(|error| Error::from_postgres(STAGE, Role::Target, error))?;
    let shows_processes = waits.iter().any(|(is_own, _)| *is_own);
    let waits: Vec<_> = waits.into_iter().filter(|(is_own, _)| !is_own).map(|(_, wait)| wait).collect();
    match processes.pids.iter().find(|pid| !waits.iter().any(|wait| wait.pid == **pid)) {
        Some(gone) if shows_processes => {
            let what = format!("process {gone} is not on the target any more, and nobody has said so");
            let source = std::io::Error::new(std::io::ErrorKind::ConnectionReset, what);
            Err(Error::new(STAGE, Kind::Lost { role: Role::Target, source }))
        }
        Some(_) | None => Ok(Ok(waits)),
    }
}
