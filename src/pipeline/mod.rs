//! Wires the stages together, and holds the only retry loop.
//!
//! ```text
//!  run ──► session::open ──► thread "source": input ──► decode ─► transform ─► batch ══ full ══► thread "apply": target
//!   ▲                                ▲                     ║                                      │
//!   │                                └── flushed LSN ◄─────╫────────── empty batches ═════════════╝
//!   └── on Disposition::Retry or Wait, after a pause: everything anew from the progress on the target
//! ```
//!
//! **Always holds:**
//! - The source thread never waits for the target without serving the walsender: its waits end with the next status
//!   update, and the pool of batches bounds what it reads ahead.
//! - Transactions in progress are kept by the intake, and come to the decoder when they have committed.
//! - What is confirmed to the source is committed on the target.
//! - A session that ends leaves nothing behind that the next one needs: progress is on the target.
//! - A table's changes come by one stream at a time: this one, or while it is copied beside it (`newcomers`) another.

mod answers;
mod asked;
mod both;
mod capture;
mod capturing;
mod cause;
mod conflicts;
mod copy;
mod early;
mod feed;
mod handover;
mod heartbeat;
mod history;
mod identity;
mod input;
mod intake;
mod newcomers;
mod promotion;
mod reader;
mod retry;
mod said;
mod schema_change;
mod selection;
mod session;
mod shared;
#[cfg(test)]
#[path = "../../tests/sim/mod.rs"]
mod sim;
mod skips;
mod table_set;
mod target;
mod unwritable;
mod workers;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, RecvTimeoutError, select};
use pgsluice_proto::Lsn;

pub use self::asked::{check_heartbeat, read_position, stream_options};
pub use self::both::run;
pub use self::capturing::{Captured, capture, check_end};
pub use self::conflicts::check as check_conflicts;
use self::early::Early;
pub use self::feed::{check_origin, check_trail, database};
pub use self::history::{Whose, check_gap, check_identity};
use self::newcomers::Newcomers;
use self::promotion::Promotion;
use self::reader::Start;
use self::retry::Retry;
use self::selection::{Beside, Selection};
use self::session::apply_options;
use self::session::{Attempt, Opened, Session, Stages};
use self::shared::{Phase, Shared};
use self::skips::Skips;
pub use self::target::check_kept;
use self::unwritable::Said;
use self::workers::{Ends, Workers, no_resources};
use crate::apply::Crew;
use crate::config::{Config, ValueFormat};
use crate::error::{Disposition, Error, Kind, Stage};
use crate::postgres;
use crate::snapshot::{self, CopyOptions, Follows, Order};
use crate::trail;
use crate::transform::Transform;

/// Where to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopAt {
    Never,
    /// Where the source is when the run starts.
    Current,
    /// All transactions whose commit lies before this, and no other.
    Lsn(Lsn),
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Progress on the target; `None` where no session has come so far as to know it.
    pub end_lsn: Option<Lsn>,
    pub transactions: u64,
    pub changes: u64,
    pub sessions: u64,
}

/// Replicates until `stop` says so, `stop_at` is reached, or an error needs a person.
///
/// # Errors
/// The error that ended it, after the retries that its disposition allows.
fn apply(config: &Config, stop_at: StopAt, options: CopyOptions, stop: &Receiver<()>) -> Result<Summary, Error> {
    let mut stop_lsn = match stop_at {
        StopAt::Never => None,
        StopAt::Lsn(lsn) => Some(lsn),
        StopAt::Current => Some(read_position(config)?),
    };
    let mut retry = Retry::new(config.stream.retry_limit, stop_at == StopAt::Never);
    let mut summary = Summary { end_lsn: None, transactions: 0, changes: 0, sessions: 0 };
    let mut opening = Opening {
        config: config.clone(),
        stop_at,
        options,
        epoch: None,
        chunks: Arc::default(),
        copied: false,
        early: true,
        unwritable: Said::default(),
    };
    loop {
        let chunks = opening.chunks.load(Ordering::Relaxed);
        let Some(opened) = open_session(&mut opening, stop)? else {
            tracing::info!(
                "a stop was asked for before a stream had begun: what is done of a copy is kept, and gone on from"
            );
            return stopped(summary, stop_at, stop_lsn);
        };
        if opening.copied {
            retry.session_opened();
        }
        if opening.chunks.load(Ordering::Relaxed) > chunks {
            retry.session_opened();
            retry.succeeded();
        }
        let error = match opened {
            Ok(session) => {
                retry.session_opened();
                if opening.copied && stop_at == StopAt::Current {
                    // The copy is of a later moment, and the target is whole only once the stream has reached it.
                    stop_lsn = Some(read_position(config)?);
                    opening.copied = false;
                }
                summary.sessions += 1;
                let restart_at = session.stages.restart_at.filter(|lsn| stop_lsn.is_none_or(|stop| *lsn <= stop));
                let (outcome, shared) = run_session(&opening, session, restart_at.or(stop_lsn), stop)?;
                let outcome = outcome.map_err(|error| wait_for_trail(config, error));
                summary.end_lsn = Some(shared.flushed());
                summary.transactions += shared.transactions();
                summary.changes += shared.changes();
                if shared.has_succeeded() {
                    retry.succeeded();
                }
                match outcome {
                    // By itself, and not because it was to stop.
                    Ok(()) if restart_at.is_some() && shared.phase() == Phase::Running => {
                        tracing::info!("all tables are of one moment now: foreign keys are made again");
                        continue;
                    }
                    Ok(()) if !shared.is_stopped() => return Ok(summary),
                    Ok(()) => return stopped(summary, stop_at, stop_lsn),
                    // What passes by itself is of no matter to a run that is to end.
                    Err(error) if shared.is_stopped() && error.disposition() != Disposition::Halt => {
                        return stopped(summary, stop_at, stop_lsn);
                    }
                    Err(error) => error,
                }
            }
            Err(error) if opening.epoch.is_some() => wait_for_trail(config, error),
            Err(error) => error,
        };
        if matches!(error.kind(), Kind::TablesToCopy(_)) {
            // No failure: the next session knows these tables, and passes what this one has ended at.
            retry.succeeded();
        }
        if matches!(error.kind(), Kind::FormatOutdated { .. }) {
            // The catalogs are of now, and what is still to come may be of then: in text it fits whatever the type is.
            opening.config.stream.format = ValueFormat::Text;
        }
        // One that it met with now is met with again.
        opening.early = !matches!(error.kind(), Kind::EarlyGivenUp) && !error.is_deadlock();
        if matches!(error.kind(), Kind::SpoolOutgrown { .. }) {
            opening.config.stream.streaming = false;
        }
        let error = identity::meet(config, opening.epoch, error);
        let met = schema_change::meet(config, opening.epoch, error).and_then(|error| skips::meet(config, error));
        let Some(error) = met else { continue };
        let pause = retry.after(cause::explain(config, error).shown(&config.log))?;
        if stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            return stopped(summary, stop_at, stop_lsn);
        }
    }
}

/// A trail that is gone while we are at work is on a disk that may be mounted again.
fn wait_for_trail(config: &Config, error: Error) -> Error {
    let is_gone = |trail| trail::is_there(trail).is_ok_and(|is_there| !is_there);
    if config.trail.as_ref().is_some_and(is_gone) { error.to_be_waited_for() } else { error }
}

/// What a run comes to that somebody has ended. One without an end of its own ends well wherever it is.
fn stopped(summary: Summary, stop_at: StopAt, stop_lsn: Option<Lsn>) -> Result<Summary, Error> {
    let is_there = stop_lsn.zip(summary.end_lsn).is_some_and(|(stop, end)| end >= stop);
    if stop_at == StopAt::Never || is_there {
        return Ok(summary);
    }
    Err(Error::new(Stage::Source, Kind::Stopped { stop_lsn, reached: summary.end_lsn }))
}

/// What opening a session takes, and what it leaves behind.
#[derive(Clone, Debug)]
struct Opening {
    config: Config,
    stop_at: StopAt,
    options: CopyOptions,
    epoch: Option<i64>,
    /// That have been copied, and indexes that were made again, in all tries.
    chunks: Arc<AtomicUsize>,
    /// Tables had to be copied first.
    copied: bool,
    /// Large transactions may be applied before they commit.
    early: bool,
    unwritable: Said,
}

impl Opening {
    fn open(&mut self) -> Result<Session, Error> {
        loop {
            let beside = self.stop_at == StopAt::Never;
            let Opening { config, options, epoch, early, unwritable, .. } = self;
            match session::open(Attempt { config, options, epoch, beside, early: *early, unwritable })? {
                Opened::Session(session) => return Ok(*session),
                Opened::Missing(_) if matches!(self.stop_at, StopAt::Lsn(_)) => {
                    let what = "there are tables to copy, and a copy is of the source as it is now, not as it was";
                    let mend = "run without --stop-at, or with --stop-at current, until they are copied";
                    return Err(Error::refused(Stage::Snapshot, what, mend));
                }
                Opened::Missing(tables) => {
                    self.copied = true;
                    let (epoch, options, follows) = (self.epoch()?, self.options.clone(), Follows::Stream);
                    let (done, over) = (self.chunks.clone(), Arc::default());
                    snapshot::copy(&self.config, Order { epoch, tables, options, follows, done, over })?;
                }
                Opened::Deferred => snapshot::restore(&self.config, self.epoch()?, &self.chunks)?,
            }
        }
    }

    /// That a session has left which was not opened.
    fn epoch(&self) -> Result<i64, Error> {
        self.epoch.ok_or_else(|| Error::new(Stage::Snapshot, Kind::Panicked))
    }
}

/// Opens a session on a thread of its own, since servers may take their time: the fence waits for another engine's
/// transaction, and tables may have to be copied first. `None` where a stop came first; what was being opened then ends
/// with the process.
fn open_session(opening: &mut Opening, stop: &Receiver<()>) -> Result<Option<Result<Session, Error>>, Error> {
    let (report, opened) = crossbeam_channel::bounded(1);
    let (mut own, span) = (opening.clone(), tracing::Span::current());
    let open = move || {
        let _span = span.entered();
        let session = own.open();
        // Nobody listens after a stop.
        drop(report.send((session, own)));
    };
    thread::Builder::new().name("pgsluice-open".to_owned()).spawn(open).map_err(no_resources)?;
    select! {
        recv(opened) -> opened => match opened {
            Ok((session, own)) => {
                *opening = own;
                Ok(Some(session))
            }
            Err(_) => Err(Error::new(Stage::Source, Kind::Panicked)),
        },
        recv(stop) -> _ => Ok(None),
    }
}

/// Runs one session to its end. The outer error is a bug or a lack of resources, the inner one the session's.
fn run_session(
    opening: &Opening,
    session: Session,
    stop_lsn: Option<Lsn>,
    stop: &Receiver<()>,
) -> Result<(Result<(), Error>, Arc<Shared>), Error> {
    let Session { runtime, stages } = session;
    let Stages {
        mut crew,
        early,
        input,
        progress,
        confirmed,
        copied,
        missing,
        known,
        identities,
        terms,
        mapping,
        skips,
        restart_at: _,
    } = stages;
    let shared = Arc::new(Shared::new(progress.end_lsn, confirmed).map_err(no_resources)?);
    // It lasts as long as the session, and whoever works for it hears of its end.
    let (_session, ended) = crossbeam_channel::bounded(0);
    let (config, is_over) = (opening.config.clone(), ended.clone());
    let (promotion, is_over_too) = (Promotion::new(config.clone(), &progress), ended.clone());
    let transform = Transform::new(mapping.clone(), terms.binary);
    let tables = (missing, skips.clone());
    let source_generates = terms.source_generates;
    let terms = (terms, mapping, identities);
    let newcomers = Newcomers::new(opening, &progress, tables, terms, shared.waker.clone(), ended)?;
    let beside = newcomers.handover().map_or(Beside::None, Beside::LeftOut);
    let selection = Selection::new(copied, beside, known);
    let skips = Skips::new(skips);
    let early = match early {
        Some(reads) => {
            let by = (progress.epoch, source_generates);
            Some(start_early(&config, by, reads, (&mut crew, shared.clone()))?)
        }
        None => None,
    };
    let start = Start { progress: progress.end_lsn, selection, transform, skips, stop_at: stop_lsn, early };
    let workers = Workers::start(&opening.config, Ends { input, start, crew, runtime }, shared.clone())?;
    workers.help("pgsluice-promotion", move || promotion.watch(&is_over_too))?;
    if opening.stop_at == StopAt::Never {
        workers.help("pgsluice-tables", move || newcomers.run())?;
        if let Some(interval) = config.stream.heartbeat {
            workers.help("pgsluice-heartbeat", move || heartbeat::run(&config, interval, &is_over))?;
        }
    }
    Ok((workers.wait("streaming", stop), shared))
}

/// Has a thread of its own apply large transactions before they commit. It ends with the session, whose reader and crew order.
fn start_early(
    config: &Config,
    (epoch, source_generates): (i64, bool),
    reads: early::Reads,
    (crew, shared): (&mut Crew, Arc<Shared>),
) -> Result<Early, Error> {
    let (early, target, for_crew) = early::early(reads, shared)?;
    crew.set_early(for_crew);
    let (config, position, span) = (config.clone(), crew.position(), tracing::Span::current());
    let run = move || {
        let _span = span.entered();
        let options = apply_options(&config, false, source_generates);
        let connect = async || {
            let tenure = session::tenure(&config, epoch, position);
            let applier = session::connect_applier(&config, tenure, options).await?;
            applier.apply_early_only().await
        };
        let runtime = match postgres::new_runtime(Stage::Apply) {
            Ok(runtime) => runtime,
            // With it goes the target, and whoever orders gives up as with a connection that is lost.
            Err(error) => return tracing::warn!("{}", error.shown(&config.log)),
        };
        runtime.block_on(target.run(connect, || tokio::time::sleep(early::LOOK_INTERVAL)));
    };
    thread::Builder::new().name("pgsluice-early".to_owned()).spawn(run).map_err(no_resources)?;
    Ok(early)
}
