//! Runs a replication: its apply side, and where it has a trail that nobody captures for, the capture beside it.
//!
//! ```text
//!  stop ──► supervisor ──stop──► thread "apply": sessions with the target ◄── trail
//!               │                                                               ▲
//!               └── once it has ended ──stop──► thread "capture": sessions with the source
//! ```
//!
//! **Always holds:** the two know nothing of each other but the trail. An error that ends one ends both, and is that of the run; and
//! a target that is away is waited for as long as it takes, since the source does not suffer from it.

use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, TrySendError};

use super::capturing::Capture;
use super::workers::no_resources;
use super::{StopAt, Summary, apply};
use crate::config::{Config, TrailConfig};
use crate::error::{Error, Kind, Stage};
use crate::snapshot::CopyOptions;
use crate::trail::{self, Lock};

/// How often is looked whether another engine, whose place this one takes, has let go of the trail.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// As long as there may be a trail between. What has no end at all cannot be added to a time.
const RETRY_LIMIT: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Replicates until `stop` says so, `stop_at` is reached, or an error needs a person.
///
/// # Errors
/// The error that ended it, after the retries that its disposition allows.
pub fn run(config: &Config, stop_at: StopAt, options: CopyOptions, stop: &Receiver<()>) -> Result<Summary, Error> {
    let Some(trail) = config.trail.as_ref().filter(|trail| trail.of.is_none()) else {
        return apply(config, stop_at, options, stop);
    };
    let dir = trail.dir.display();
    match turn(trail)? {
        Turn::Ours(lock) => {
            let Some(capture) = Capture::start(config, trail, (lock, stop_at == StopAt::Never), stop)? else {
                return Ok(Summary { end_lsn: pgsluice_proto::Lsn::INVALID, transactions: 0, changes: 0, sessions: 0 });
            };
            with_capture(config, (trail, Some(capture)), (stop_at, options), stop)
        }
        Turn::Later => {
            tracing::info!(%dir, "another process writes the trail, and this one does once that has ended");
            with_capture(config, (trail, None), (stop_at, options), stop)
        }
        Turn::Others => {
            tracing::info!(%dir, "another process writes the trail, and this one only applies");
            apply(config, stop_at, options, stop)
        }
    }
}

/// Whose the capture is.
enum Turn {
    Ours(Lock),
    /// An engine has it that this one takes the place of; or somebody for a moment.
    Later,
    /// Somebody has it who was asked for nothing else.
    Others,
}

fn turn(trail: &TrailConfig) -> Result<Turn, Error> {
    if let Some(lock) = trail::lock(trail, trail::Command::Run)? {
        return Ok(Turn::Ours(lock));
    }
    let captures = trail::writer(trail)?.is_some_and(|writer| writer.command == Some(trail::Command::Capture));
    Ok(if captures { Turn::Others } else { Turn::Later })
}

fn with_capture(
    config: &Config,
    (trail, mut capture): (&TrailConfig, Option<Capture>),
    (stop_at, options): (StopAt, CopyOptions),
    stop: &Receiver<()>,
) -> Result<Summary, Error> {
    let capturing = config;
    let (asked, is_asked) = crossbeam_channel::bounded(1);
    let (report, applied) = crossbeam_channel::bounded(1);
    let mut config = config.clone();
    if stop_at == StopAt::Never {
        config.stream.retry_limit = RETRY_LIMIT;
    }
    let work = move || {
        let run = std::panic::AssertUnwindSafe(|| apply(&config, stop_at, options, &is_asked));
        let result = std::panic::catch_unwind(run).unwrap_or_else(|_| Err(panicked()));
        // Somebody listens until it has ended.
        drop(report.send(result));
    };
    thread::Builder::new().name("pgsluice-supervisor".to_owned()).spawn(work).map_err(no_resources)?;
    let end = || match asked.try_send(()) {
        // One request is enough, and it may have ended.
        Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
    };
    let (nobody, never) = (crossbeam_channel::never(), crossbeam_channel::never());
    let (mut stop, mut is_stopped) = (stop, false);
    loop {
        let look = match &capture {
            None if !is_stopped => crossbeam_channel::after(LOOK_INTERVAL),
            None | Some(_) => crossbeam_channel::never(),
        };
        let ended = capture.as_ref().map_or(&nobody, Capture::ended);
        crossbeam_channel::select! {
            recv(applied) -> result => {
                let applied = result.unwrap_or_else(|_| Err(panicked()));
                let captured = capture.map_or(Ok(()), |capture| capture.stop().map(drop));
                return applied.and_then(|summary| captured.map(|()| summary));
            }
            recv(ended) -> result => {
                end();
                let captured = result.unwrap_or_else(|_| Err(panicked()));
                let applied = applied.recv().unwrap_or_else(|_| Err(panicked()));
                return captured.and(applied);
            }
            recv(stop) -> _ => {
                end();
                (stop, is_stopped) = (&never, true);
            }
            recv(look) -> _ => match take_over(capturing, trail, stop_at == StopAt::Never) {
                Ok(taken) => capture = taken,
                Err(error) => {
                    end();
                    // What has ended the run is said, and not what it was at.
                    drop(applied.recv());
                    return Err(error);
                }
            },
        }
    }
}

/// The capture, if whoever had it has ended.
fn take_over(config: &Config, trail: &TrailConfig, serves: bool) -> Result<Option<Capture>, Error> {
    let Turn::Ours(lock) = turn(trail)? else { return Ok(None) };
    let (capture, _) = Capture::begin(config, trail, (lock, serves))?;
    Ok(Some(capture))
}

fn panicked() -> Error {
    Error::new(Stage::Trail, Kind::Panicked)
}
