//! Runs all shards in one process.
//!
//! ```text
//!  stop ──► supervisor ──stop──► thread of each shard: pipeline::run
//!               ▲                          │
//!               └───── how it has ended ◄──┘   an error ends the others as a stop would, and is that of the run
//! ```
//!
//! **Always holds:** a run that stops by itself stops all shards at one LSN.

use std::thread;

use crossbeam_channel::{Receiver, Sender, TrySendError, select};

use crate::config::{Config, Role};
use crate::error::{Error, Kind, Stage};
use crate::pipeline::{self, StopAt, Summary};
use crate::snapshot::CopyOptions;

/// As [`pipeline::run`], of each shard on a thread of its own.
pub fn run(config: &Config, stop_at: StopAt, options: CopyOptions, stop: &Receiver<()>) -> Result<Summary, Error> {
    let shards = config.split();
    if let [only] = shards.as_slice() {
        return pipeline::run(only, stop_at, options, stop);
    }
    let ended = Running::start(&shards, stop_at, &options)?.wait(stop)?;
    if stop_at == StopAt::Current && ended.was_asked {
        // Each is where the source was, and not all are at one position.
        let kind = Kind::Stopped { stop_lsn: None, reached: ended.summary.end_lsn };
        return Err(Error::new(Stage::Source, kind));
    }
    if stop_at != StopAt::Current {
        return Ok(ended.summary);
    }
    // Each has read a position of its own, and a shard with tables to copy a later one. Now that all are copied there is one.
    let at = StopAt::Lsn(pipeline::read_position(config)?);
    let Ended { summary, .. } = Running::start(&shards, at, &options)?.wait(stop)?;
    Ok(sum(ended.summary, summary))
}

/// Progress is that of the shard that is least far.
fn join(one: Option<Summary>, other: Summary) -> Summary {
    let least = |one: Summary| one.end_lsn.zip(other.end_lsn).map(|(one, other)| one.min(other));
    let end_lsn = one.map_or(other.end_lsn, least);
    Summary { end_lsn, ..one.map_or(other, |one| sum(one, other)) }
}

/// Of two runs, one after the other.
fn sum(one: Summary, other: Summary) -> Summary {
    Summary {
        end_lsn: other.end_lsn,
        transactions: one.transactions + other.transactions,
        changes: one.changes + other.changes,
        sessions: one.sessions + other.sessions,
    }
}

/// What all shards together came to.
struct Ended {
    summary: Summary,
    /// By a stop from outside.
    was_asked: bool,
}

/// The threads of all shards.
struct Running {
    /// A message ends a shard, and so would the end of its channel.
    stops: Vec<Sender<()>>,
    ended: Receiver<(usize, Result<Summary, Error>)>,
}

impl Running {
    fn start(shards: &[Config], stop_at: StopAt, options: &CopyOptions) -> Result<Running, Error> {
        let (report, ended) = crossbeam_channel::unbounded();
        let mut running = Running { stops: Vec::new(), ended };
        for (place, config) in shards.iter().enumerate() {
            let (config, options, report) = (config.clone(), options.clone(), report.clone());
            let (asked, stop) = crossbeam_channel::bounded(1);
            let work = move || {
                let _shard = tracing::info_span!("shard", number = place + 1).entered();
                let run = std::panic::AssertUnwindSafe(|| pipeline::run(&config, stop_at, options, &stop));
                let result = std::panic::catch_unwind(run).unwrap_or_else(|_| Err(panicked()));
                // Somebody listens until all have ended.
                drop(report.send((place + 1, result)));
            };
            let name = format!("pgsluice-shard-{}", place + 1);
            // Those that have begun end when their channels do.
            thread::Builder::new().name(name).spawn(work).map_err(no_resources)?;
            running.stops.push(asked);
        }
        Ok(running)
    }

    /// Waits until all have ended. The first error is the one that counts.
    fn wait(self, stop: &Receiver<()>) -> Result<Ended, Error> {
        let never = crossbeam_channel::never();
        let (mut was_asked, mut is_ending) = (false, false);
        let (mut summary, mut first): (_, Option<Error>) = (None, None);
        let mut left = self.stops.len();
        while left > 0 {
            select! {
                recv(self.ended) -> ended => {
                    left -= 1;
                    match ended.unwrap_or_else(|_| (0, Err(panicked()))) {
                        (_, Ok(one)) => summary = Some(join(summary, one)),
                        (_, Err(error)) if matches!(error.kind(), Kind::Stopped { .. }) => {
                            first.get_or_insert(error);
                        }
                        (number, Err(error)) => {
                            self.stop(&mut is_ending);
                            // That it was stopped is no more than what follows from another's error.
                            first.take_if(|first| matches!(first.kind(), Kind::Stopped { .. }));
                            match &first {
                                None => tracing::warn!(shard = number, "ended with an error, which ends the other shards too"),
                                // What all of them refuse is said once.
                                Some(first) if first.to_string() == error.to_string() => {}
                                Some(_) => tracing::error!(shard = number, %error, "ended with an error too"),
                            }
                            first.get_or_insert(error);
                        }
                    }
                }
                recv(if is_ending { &never } else { stop }) -> _ => {
                    was_asked = true;
                    self.stop(&mut is_ending);
                }
            }
        }
        match (first, summary) {
            (Some(error), _) => Err(error),
            (None, Some(summary)) => Ok(Ended { summary, was_asked }),
            (None, None) => Err(panicked()),
        }
    }

    fn stop(&self, is_ending: &mut bool) {
        *is_ending = true;
        for stop in &self.stops {
            match stop.try_send(()) {
                // One request is enough, and a shard may have ended.
                Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
            }
        }
    }
}

fn panicked() -> Error {
    Error::new(Stage::Source, Kind::Panicked)
}

fn no_resources(source: std::io::Error) -> Error {
    Error::new(Stage::Source, Kind::Lost { role: Role::Source, source })
}
