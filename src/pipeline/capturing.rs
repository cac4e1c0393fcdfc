//! Captures: sessions with the source that write the trail, one after the other, until a stop or an error that needs a person.
//!
//! ```text
//!  source: server, slot, publication ─► lock is ours ─► end of the trail ─► identity, timeline ─► gap ─► START
//! ```
//!
//! **Always holds:** a session begins from nothing but the trail and the slot. What a session before has not synced it never promised.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use pgsluice_proto::command::ProtoVersion;
use pgsluice_proto::{Lsn, TimelineId};
use tokio_postgres::Client;

use super::asked::{Streaming, Terms, check_spool, read_publication, read_slot, stream_options};
use super::capture::{self, Told};
use super::feed::{check_origin, history};
use super::history::{Whose, check_gap, check_identity, check_position, check_timeline};
use super::intake::Intake;
use super::promotion::Watched;
use super::retry::Retry;
use super::workers::no_resources;
use crate::checkpoint::Progress;
use crate::config::{Config, Role, TrailConfig};
use crate::error::{Error, Kind, Stage};
use crate::postgres;
use crate::source::Connection;
use crate::source::server::Server;
use crate::source::slot::SlotState;
use crate::spool::Spool;
use crate::trail::{self, Lock, Origin, Writer};

const STAGE: Stage = Stage::Source;
/// How often is looked whether the source was promoted.
const TIMELINE_INTERVAL: Duration = Duration::from_secs(1);
/// After a stop was asked for, what a session is doing is given up after this.
const STOP_LIMIT: Duration = Duration::from_secs(5);
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// What a capture has come to.
#[derive(Clone, Copy, Debug)]
pub struct Captured {
    /// All before this is in the trail.
    pub end_lsn: Lsn,
    pub transactions: u64,
    pub sessions: u64,
}

/// A capture on threads of its own.
#[derive(Debug)]
pub struct Capture {
    told: Arc<Told>,
    ended: Receiver<Result<Captured, Error>>,
    _thread: JoinHandle<()>,
}

impl Capture {
    /// Begins to write the trail whose lock this is, and waits until there is one. As [`Capture::begin`].
    ///
    /// # Errors
    /// Whatever keeps the first session from beginning.
    pub fn start(
        config: &Config,
        trail: &TrailConfig,
        (lock, serves): (Lock, bool),
        stop: &Receiver<()>,
    ) -> Result<Option<Capture>, Error> {
        let (capture, is_open) = Capture::begin(config, trail, (lock, serves))?;
        crossbeam_channel::select! {
            recv(is_open) -> opened => match opened {
                Ok(()) => Ok(Some(capture)),
                Err(_) => capture.ended.recv().unwrap_or_else(|_| Err(panicked())).map(|_| None),
            },
            recv(stop) -> _ => Ok(None),
        }
    }

    /// Begins to write a trail that is there already. The other end hears when the first session begins. One that `serves` has no end of
    /// its own.
    pub fn begin(
        config: &Config,
        trail: &TrailConfig,
        (lock, serves): (Lock, bool),
    ) -> Result<(Capture, Receiver<()>), Error> {
        let told = Arc::new(Told::new().map_err(no_resources)?);
        let (report, ended) = crossbeam_channel::bounded(1);
        let (opened, is_open) = crossbeam_channel::bounded(1);
        let (config, trail, own) = (config.clone(), trail.clone(), told.clone());
        let work = move || {
            let run = std::panic::AssertUnwindSafe(|| run(&config, &trail, (lock, serves), (&own, &opened)));
            let result = std::panic::catch_unwind(run).unwrap_or_else(|_| Err(panicked()));
            // Nobody listens to what ends after a stop.
            drop(report.send(result));
        };
        let thread = thread::Builder::new().name("pgsluice-capture".to_owned()).spawn(work).map_err(no_resources)?;
        Ok((Capture { told, ended, _thread: thread }, is_open))
    }

    /// Hears how it has ended by itself.
    pub fn ended(&self) -> &Receiver<Result<Captured, Error>> {
        &self.ended
    }

    /// Ends it on what is whole.
    pub fn stop(self) -> Result<Captured, Error> {
        self.told.stop();
        match self.ended.recv_timeout(STOP_LIMIT) {
            Ok(ended) => ended,
            // What was being opened then ends with the process.
            Err(_) => Ok(captured(&self.told, 0)),
        }
    }

    fn report(&self, before: &mut u64) {
        let transactions = self.told.transactions();
        tracing::info!(end_lsn = %self.told.end(), transactions = transactions - *before, "capturing");
        *before = transactions;
    }
}

/// Writes the trail until `stop` says so, or an error needs a person.
///
/// # Errors
/// A refusal if another process writes it; the error that ended it, after the retries that its disposition allows.
pub fn capture(config: &Config, stop: &Receiver<()>) -> Result<Captured, Error> {
    let trail = config.trail.as_ref().ok_or_else(|| {
        let mend = "add [trail] with `dir`, the folder that changes are to lie in";
        Error::refused(Stage::Trail, "the configuration has no [trail] to write", mend)
    })?;
    if let Some(of) = &trail.of {
        let what = format!("the trail is that of \"{of}\", and only its own configuration says what is to be in it");
        return Err(Error::refused(Stage::Trail, what, "give `pgsluice capture` that configuration"));
    }
    let Some(lock) = trail::lock(trail, trail::Command::Capture)? else { return Err(is_written(trail)?) };
    let Some(capture) = Capture::start(config, trail, (lock, true), stop)? else { return Ok(nothing()) };
    let mut transactions = 0;
    loop {
        crossbeam_channel::select! {
            recv(capture.ended()) -> ended => return ended.unwrap_or_else(|_| Err(panicked())),
            recv(stop) -> _ => {
                tracing::info!("stopping");
                return capture.stop();
            }
            default(REPORT_INTERVAL) => capture.report(&mut transactions),
        }
    }
}

fn is_written(trail: &TrailConfig) -> Result<Error, Error> {
    let who = trail::writer(trail)?.map_or("another process".to_owned(), |writer| format!("process {}", writer.pid));
    let what = format!("the trail in {} is written by {who}", trail.dir.display());
    Ok(Error::refused(Stage::Trail, what, "there is one that writes; stop it first, or leave it be"))
}

fn nothing() -> Captured {
    Captured { end_lsn: Lsn::INVALID, transactions: 0, sessions: 0 }
}

fn captured(told: &Told, sessions: u64) -> Captured {
    Captured { end_lsn: told.end(), transactions: told.transactions(), sessions }
}

/// Session after session. `opened` hears of the first.
fn run(
    config: &Config,
    trail: &TrailConfig,
    (mut lock, serves): (Lock, bool),
    (told, opened): (&Arc<Told>, &Sender<()>),
) -> Result<Captured, Error> {
    let mut config = config.clone();
    let mut retry = Retry::new(config.stream.retry_limit, serves);
    let mut sessions = 0;
    while !told.is_stopped() {
        let error = match open(&config, trail, &mut lock) {
            // While we are at work its disk may be mounted again.
            Err(error) if sessions > 0 && !trail::is_there(trail)? => error.to_be_waited_for(),
            Err(error) => error,
            Ok((intake, writer)) => {
                sessions += 1;
                retry.session_opened();
                // It is heard of once.
                let (Ok(()) | Err(_)) = opened.try_send(());
                let before = writer.end();
                tracing::info!(start_lsn = %before, "capturing starts");
                let ended = session(&config, (intake, writer), &mut lock, told);
                if told.end() > before {
                    retry.succeeded();
                }
                match ended {
                    Ok(()) => break,
                    Err(error) => error,
                }
            }
        };
        if matches!(error.kind(), Kind::SpoolOutgrown { .. }) {
            config.stream.streaming = false;
        }
        let pause = retry.after(error.shown(&config.log))?;
        told.waker.wait(None, pause).map_err(no_resources)?;
    }
    Ok(captured(told, sessions))
}

/// One session to its end, and beside it the look at the source's timeline.
fn session(
    config: &Config,
    (intake, writer): (Intake, Writer),
    lock: &mut Lock,
    told: &Arc<Told>,
) -> Result<(), Error> {
    // Whoever works for the session hears of its end.
    let (_session, is_over) = crossbeam_channel::bounded::<()>(0);
    let (mut source, ours, telling) = (Watched::new(config.clone()), writer.timeline(), told.clone());
    let watch = move || {
        if let Ok(runtime) = postgres::new_runtime(STAGE) {
            let mut ours = ours;
            loop {
                match runtime.block_on(source.look(ours)) {
                    Ok(None) => {}
                    Ok(Some(timeline)) => {
                        telling.follow_timeline(timeline);
                        ours = timeline;
                    }
                    Err(error) => tracing::debug!(%error, "whether the source was promoted is not known"),
                }
                if is_over.recv_timeout(TIMELINE_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        }
    };
    thread::Builder::new().name("pgsluice-promotion".to_owned()).spawn(watch).map_err(no_resources)?;
    capture::Capture::new(intake, writer, lock, told.clone(), Instant::now()).run()
}

/// A stream that follows what the trail has, and the trail to append to.
///
/// # Errors
/// A refusal if the slot has not what follows, or the source's history is another; whatever a server or the disk reports.
fn open(config: &Config, trail: &TrailConfig, lock: &mut Lock) -> Result<(Intake, Writer), Error> {
    // First of all: what is missing is no matter of the source's.
    if !trail::hold(trail, lock)? {
        return Err(is_written(trail)?);
    }
    let runtime = postgres::new_runtime(STAGE)?;
    let (server, slot, publication) = runtime.block_on(look(config))?;
    check_spool(config)?;
    let mut connection = Connection::connect(&config.source)?;
    let identity = connection.identify_system()?;
    let mut writer = Writer::open(trail, lock)?;
    check_origin(config, &trail::expect(trail)?)?;
    let held = held(config, writer.origin(), (writer.timeline(), writer.end()));
    check_identity(Whose::Trail, &held, &server.system_identifier)?;
    if server.in_recovery && server.position < held.end_lsn {
        return Err(Error::new(STAGE, Kind::Behind { replayed: server.position, progress: held.end_lsn }));
    }
    check_position(Whose::Trail, &held, &server)?;
    if identity.timeline != held.timeline {
        let history = history(&mut connection, identity.timeline)?;
        check_timeline(config, Whose::Trail, &held, None, &identity, &history)?;
        writer.follow_timeline(identity.timeline);
    }
    check_gap(config, Whose::Trail, &held, &slot)?;
    let options = stream_options(config, &server);
    let terms = Terms {
        source_generates: false,
        proto_version: ProtoVersion::newest_of(server.major()),
        publication,
        binary: false,
        options,
    };
    let streaming = if config.stream.streaming { Streaming::On } else { Streaming::Off };
    let stream = terms.start(connection, &config.slot(), held.end_lsn, streaming)?;
    let spool = config.stream.streaming.then(|| Spool::new(config.spool.clone()));
    Ok((Intake::new(stream, spool), writer))
}

async fn look(config: &Config) -> Result<(Server, SlotState, String), Error> {
    let source: Client = postgres::connect(&config.source, STAGE).await?;
    let server = Server::inspect(&source, Role::Source, STAGE).await?;
    let slot = read_slot(config, Whose::Trail, &source, &server).await?;
    server.check_decodable(STAGE)?;
    let publication = read_publication(config, &source).await?;
    Ok((server, slot, publication.name))
}

/// # Errors
/// A refusal if the slot no longer holds what follows the trail.
pub fn check_end(config: &Config, known: &trail::Known, slot: &SlotState) -> Result<(), Error> {
    check_gap(config, Whose::Trail, &held(config, &known.origin, (known.timeline, known.ends_at)), slot)
}

/// What a trail has, in the words of progress.
fn held(config: &Config, origin: &Origin, (timeline, end_lsn): (TimelineId, Lsn)) -> Progress {
    Progress {
        system_identifier: origin.system_identifier.clone(),
        timeline,
        slot: config.slot(),
        consistent_point: origin.consistent_point.map_or(Lsn::INVALID, Lsn::new),
        end_lsn,
        commit_time: None,
        epoch: 0,
        fallbacks: 0,
    }
}

fn panicked() -> Error {
    Error::new(Stage::Trail, Kind::Panicked)
}
