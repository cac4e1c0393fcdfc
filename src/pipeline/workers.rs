//! The threads of a session, from their start to the end of the last one.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};
use tokio::runtime::Runtime;

use super::answers::{self, Processes};
use super::input::Input;
use super::reader::{Reader, Start};
use super::shared::{Shared, empty_batches};
use super::writer::{TargetSide, Writer};
use crate::apply::Crew;
use crate::batch::{Limits, pool_batches};
use crate::config::{Config, Role};
use crate::error::{Error, Kind, Stage};

/// After a stop is asked for, what the target is doing may take this long to end on a commit; then it is cancelled.
pub(super) const STOP_GRACE: Duration = Duration::from_millis(600);
/// A thread that was told to end, and whose connections are closed, is given up for dead after this.
const JOIN_LIMIT: Duration = Duration::from_secs(10);
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worker {
    Source,
    Apply,
    /// Works for the session, which ends without it.
    Helper,
}

type Ended = (Worker, Result<(), Error>);

/// A stream on its way to the target.
#[derive(Debug)]
pub(super) struct Workers {
    shared: Arc<Shared>,
    endings: Sender<Ended>,
    ended: Receiver<Ended>,
    /// Whoever only watches hears of the end by it.
    _session: Sender<()>,
}

/// What goes in at one end, and what drives the other.
#[derive(Debug)]
pub(super) struct Ends {
    pub input: Input,
    pub start: Start,
    pub crew: Crew,
    pub runtime: Runtime,
}

impl Workers {
    /// # Errors
    /// If there are no resources for threads.
    pub fn start(config: &Config, ends: Ends, shared: Arc<Shared>) -> Result<Workers, Error> {
        let Ends { input, start, crew, runtime } = ends;
        let batches = pool_batches(crew.size());
        let (pids, early) = crew.pids();
        let (full, filled) = crossbeam_channel::bounded(batches);
        let (give_back, empty) = empty_batches(batches)?;
        let limits = Limits { rows: config.apply.batch_rows, bytes: config.apply.batch_bytes };
        let (endings, ended) = crossbeam_channel::unbounded();
        let writer = Writer::new(runtime, TargetSide::new(crew, give_back, shared.clone()), filled);
        let reader = Reader::new(input, start, limits, full, empty, shared.clone(), Instant::now());
        let (session, is_over) = crossbeam_channel::bounded(0);
        let workers = Workers { shared: shared.clone(), endings, ended, _session: session };
        let (config, processes) = (config.clone(), Processes { pids, early });
        workers.help("pgsluice-answers", move || answers::watch(&config, &processes, &shared, &is_over))?;
        workers.spawn(Worker::Apply, "pgsluice-apply", move || writer.run())?;
        workers.spawn(Worker::Source, "pgsluice-source", move || reader.run())?;
        Ok(workers)
    }

    /// Has a thread work for the session, whose error ends the session, and whose end does not.
    pub fn help(&self, name: &str, work: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
        self.spawn(Worker::Helper, name, work)
    }

    /// Runs a stage on a thread of its own that reports its end, whichever way it ends.
    fn spawn(
        &self,
        worker: Worker,
        name: &str,
        work: impl FnOnce() -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (endings, shared) = (self.endings.clone(), self.shared.clone());
        let run = move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
                .unwrap_or_else(|_| Err(Error::new(Stage::Apply, Kind::Panicked)));
            let failed = result.is_err();
            // First of all, so that an error is known before what it leads to. The supervisor has given up waiting if nobody
            // listens.
            drop(endings.send((worker, result)));
            if failed {
                shared.drain();
            }
            if worker == Worker::Apply {
                shared.writer_ended();
            }
        };
        let span = tracing::Span::current();
        let run = move || span.in_scope(run);
        thread::Builder::new().name(name.to_owned()).spawn(run).map(drop).map_err(no_resources)
    }

    /// Waits for the reader and the writer; the first error is the session's. A stop, or the error of a thread, gives them
    /// a short time to end on a commit. `what` they do is for the log.
    pub fn wait(self, what: &str, stop: &Receiver<()>) -> Result<(), Error> {
        let shared = &self.shared;
        let mut running = 2;
        let mut outcome = Ok(());
        let mut ending = Ending::NotAsked;
        let mut report = Report::new();
        let never = crossbeam_channel::never();
        while running > 0 {
            let (tick, stop) = match ending {
                Ending::NotAsked => (REPORT_INTERVAL, stop),
                Ending::Draining { since } => (STOP_GRACE.saturating_sub(since.elapsed()), &never),
                Ending::Aborting { since } => (JOIN_LIMIT.saturating_sub(since.elapsed()), &never),
            };
            select! {
                recv(self.ended) -> ended => {
                    let panicked = || (Worker::Apply, Err(Error::new(Stage::Apply, Kind::Panicked)));
                    let (worker, result) = ended.unwrap_or_else(|_| panicked());
                    running -= usize::from(worker != Worker::Helper);
                    match ending {
                        Ending::NotAsked if result.is_err() => ending = Ending::Draining { since: Instant::now() },
                        // What it was about to do is no matter any more.
                        Ending::Draining { .. } | Ending::Aborting { .. } if worker == Worker::Helper => continue,
                        Ending::NotAsked | Ending::Draining { .. } | Ending::Aborting { .. } => {}
                    }
                    outcome = outcome.and(result);
                }
                recv(stop) -> _ => {
                    tracing::info!("stopping");
                    ending = Ending::Draining { since: Instant::now() };
                    shared.stop();
                }
                default(tick) => match ending {
                    Ending::NotAsked => report.log(what, shared),
                    Ending::Draining { .. } => {
                        ending = Ending::Aborting { since: Instant::now() };
                        shared.abort();
                    }
                    Ending::Aborting { .. } => return outcome.and(Err(Error::new(Stage::Apply, Kind::Panicked))),
                },
            }
        }
        outcome
    }
}

pub(super) fn no_resources(source: std::io::Error) -> Error {
    Error::new(Stage::Source, Kind::Lost { role: Role::Source, source })
}

/// How far the end of a session has come.
#[derive(Clone, Copy, Debug)]
enum Ending {
    NotAsked,
    /// The batch at work may still commit.
    Draining {
        since: Instant,
    },
    /// Connections are closed; the threads only have to notice.
    Aborting {
        since: Instant,
    },
}

/// A line in the log at intervals, of what was done since the last.
struct Report {
    at: Instant,
    changes: u64,
    transactions: u64,
}

impl Report {
    fn new() -> Report {
        Report { at: Instant::now(), changes: 0, transactions: 0 }
    }

    fn log(&mut self, what: &str, shared: &Shared) {
        let (changes, transactions) = (shared.changes(), shared.transactions());
        let seconds = self.at.elapsed().as_secs_f64();
        let changes_per_s = (changes - self.changes) as f64 / seconds;
        tracing::info!(
            end_lsn = %shared.flushed(),
            transactions = transactions - self.transactions,
            changes = changes - self.changes,
            changes_per_s = changes_per_s.round(),
            "{what}"
        );
        *self = Report { at: Instant::now(), changes, transactions };
    }
}
