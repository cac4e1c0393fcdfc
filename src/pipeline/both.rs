//! Runs a replication: its apply side, and where it has a trail that nobody captures for, the capture beside it.
//!
//! ```text
//!  stop ──► supervisor ──stop──► thread "apply": sessions with the target ◄── trail
//!               │                                                               ▲
//!               └── once it has ended ──stop──► thread "capture": sessions with the source
//! ```
//!
//! **Always holds:** the two know nothing of each other but the trail. An error that ends one ends both, and is that of the run; but where
//! it is one of the capture that a person has to mend, the target first gets what the trail has. A target that is away is waited for as
//! long as it takes, since the source does not suffer from it.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TrySendError};
use pgsluice_proto::Lsn;

use super::capturing::Capture;
use super::workers::no_resources;
use super::{StopAt, Summary, apply, stopped};
use crate::config::{Config, TrailConfig};
use crate::error::{Disposition, Error, Kind, Stage};
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
        Turn::Ours(lock) => match Capture::start(config, trail, (lock, stop_at == StopAt::Never), stop) {
            Ok(Some(capture)) => with_capture(config, (trail, Capturing::Ours(capture)), (stop_at, options), stop),
            Ok(None) => stopped(Summary { end_lsn: None, transactions: 0, changes: 0, sessions: 0 }, stop_at, None),
            Err(error) => {
                let draining = Draining::begin(config, trail, error)?;
                with_capture(config, (trail, Capturing::Refused(draining)), (stop_at, options), stop)
            }
        },
        Turn::Later => {
            tracing::info!(%dir, "another process writes the trail, and this one does once that has ended");
            with_capture(config, (trail, Capturing::Later), (stop_at, options), stop)
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

/// Who captures.
enum Capturing {
    Ours(Capture),
    /// Another process, until it ends.
    Later,
    /// Nobody: ours has ended with an error, and the target gets what the trail has.
    Refused(Draining),
}

/// A capture that has ended, and what of its trail the target lacks.
struct Draining {
    error: Error,
    position: Option<Lsn>,
    moved_at: Instant,
}

impl Draining {
    /// # Errors
    /// The error itself where there is nothing to be drained, or it passes by itself: then the next run captures again.
    fn begin(config: &Config, trail: &TrailConfig, error: Error) -> Result<Draining, Error> {
        let mut draining = Draining { error, position: None, moved_at: Instant::now() };
        if draining.error.disposition() != Disposition::Halt || draining.is_over(config, trail) {
            return Err(draining.error);
        }
        tracing::error!(error = %draining.error, "nothing is captured any more; the target still gets what the trail has");
        Ok(draining)
    }

    /// The target has all of it, or has come no further for as long as failures are borne.
    fn is_over(&mut self, config: &Config, trail: &TrailConfig) -> bool {
        let (Ok(Some(known)), Ok(readers)) = (trail::read(trail), trail::readers(trail)) else { return true };
        let reader = readers.into_iter().find(|reader| reader.name == config.name.as_str());
        let position = reader.map(|reader| reader.position);
        if position != self.position {
            (self.position, self.moved_at) = (position, Instant::now());
        }
        position.is_some_and(|position| position >= known.ends_at)
            || self.moved_at.elapsed() > config.stream.retry_limit
    }
}

fn with_capture(
    config: &Config,
    (trail, mut capturing): (&TrailConfig, Capturing),
    (stop_at, options): (StopAt, CopyOptions),
    stop: &Receiver<()>,
) -> Result<Summary, Error> {
    let (asked, is_asked) = crossbeam_channel::bounded(1);
    let (report, applied) = crossbeam_channel::bounded(1);
    let mut applying = config.clone();
    if stop_at == StopAt::Never {
        applying.stream.retry_limit = RETRY_LIMIT;
    }
    let work = move || {
        let run = std::panic::AssertUnwindSafe(|| apply(&applying, stop_at, options, &is_asked));
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
        let (ended, look) = match &capturing {
            Capturing::Ours(capture) => (capture.ended(), crossbeam_channel::never()),
            Capturing::Later | Capturing::Refused(_) if is_stopped => (&nobody, crossbeam_channel::never()),
            Capturing::Later | Capturing::Refused(_) => (&nobody, crossbeam_channel::after(LOOK_INTERVAL)),
        };
        crossbeam_channel::select! {
            recv(applied) -> result => {
                let applied = result.unwrap_or_else(|_| Err(panicked()));
                return match capturing {
                    Capturing::Ours(capture) => {
                        let captured = capture.stop();
                        applied.and_then(|summary| captured.map(|_| summary))
                    }
                    Capturing::Later => applied,
                    Capturing::Refused(Draining { error, .. }) => {
                        if let Err(error) = applied {
                            tracing::error!(%error, "the target has not got all that the trail has");
                        }
                        Err(error)
                    }
                };
            }
            recv(ended) -> result => match result.unwrap_or_else(|_| Err(panicked())) {
                Err(error) if !is_stopped => match Draining::begin(config, trail, error) {
                    Ok(draining) => capturing = Capturing::Refused(draining),
                    Err(error) => {
                        end();
                        // What has ended the run is said, and not what it was at.
                        drop(applied.recv());
                        return Err(error);
                    }
                },
                captured => {
                    end();
                    let applied = applied.recv().unwrap_or_else(|_| Err(panicked()));
                    return captured.and(applied);
                }
            },
            recv(stop) -> _ => {
                end();
                (stop, is_stopped) = (&never, true);
            }
            recv(look) -> _ => match &mut capturing {
                Capturing::Ours(_) => {}
                Capturing::Refused(draining) => if draining.is_over(config, trail) {
                    end();
                    is_stopped = true;
                },
                Capturing::Later => match take_over(config, trail, stop_at == StopAt::Never) {
                    Ok(Some(capture)) => capturing = Capturing::Ours(capture),
                    Ok(None) => {}
                    Err(error) => {
                        end();
                        drop(applied.recv());
                        return Err(error);
                    }
                },
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
