//! Runs a replication: its apply side, and where it has a trail that nobody writes, the capture beside it.
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
    match trail::lock(trail)? {
        Some(lock) => with_capture(config, (trail, lock), (stop_at, options), stop),
        None => {
            tracing::info!(dir = %trail.dir.display(), "another process writes the trail, and this one only applies");
            apply(config, stop_at, options, stop)
        }
    }
}

fn with_capture(
    config: &Config,
    (trail, lock): (&TrailConfig, Lock),
    (stop_at, options): (StopAt, CopyOptions),
    stop: &Receiver<()>,
) -> Result<Summary, Error> {
    let Some(capture) = Capture::start(config, trail, lock, stop)? else {
        return Ok(Summary { end_lsn: pgsluice_proto::Lsn::INVALID, transactions: 0, changes: 0, sessions: 0 });
    };
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
    let never = crossbeam_channel::never();
    let mut stop = stop;
    loop {
        crossbeam_channel::select! {
            recv(applied) -> result => {
                let applied = result.unwrap_or_else(|_| Err(panicked()));
                let captured = capture.stop();
                return applied.and_then(|summary| captured.map(|_| summary));
            }
            recv(capture.ended()) -> result => {
                end();
                let captured = result.unwrap_or_else(|_| Err(panicked()));
                let applied = applied.recv().unwrap_or_else(|_| Err(panicked()));
                return captured.and(applied);
            }
            recv(stop) -> _ => {
                end();
                stop = &never;
            }
        }
    }
}

fn panicked() -> Error {
    Error::new(Stage::Trail, Kind::Panicked)
}
