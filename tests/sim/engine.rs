//! An engine: its session on the target, its stream, and the two halves of the pipeline, each moved a step at a time.
//!
//! In: a connection to the target's model, and the source's model. All that decides is the engine's own: the fence, the
//! gap, reader, decoder, batches, writer, applier, checkpoint. Here is only what `session` and `workers` do around them,
//! without threads and without waits.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use pgsluice_proto::{Lsn, TimelineId};
use tokio::io::DuplexStream;
use tokio_postgres::{Client, NoTls};

use super::source::Source;
use crate::apply::{Applier, Begins, Crew, Options, Policies};
use crate::batch::{Batch, Limits, pool_batches};
use crate::checkpoint::{self, Moves, Position, Tenure};
use crate::config::{Config, Role, SpoolConfig};
use crate::error::{Error, Kind, ServerError, Stage};
use crate::pipeline::early::{self, LOOK_INTERVAL, Reads};
use crate::pipeline::history::{Whose, check_gap};
use crate::pipeline::input::Input;
use crate::pipeline::reader::{Reader, Start, Step};
use crate::pipeline::selection::{Beside, Known, Selection};
use crate::pipeline::shared::{Phase, Shared, empty_batches};
use crate::pipeline::skips::Skips;
use crate::pipeline::workers::STOP_GRACE;
use crate::pipeline::writer::{Continues, FLUSH_LOOK_INTERVAL, Further, TargetSide, WAY_LOOK_INTERVAL};
use crate::postgres::{self, Warnings};
use crate::snapshot::Copied;
use crate::source::{ReplicationStream, StreamOptions};
use crate::spool::Spool;
use crate::transform::{Mapping, Transform};

/// Few messages fill it.
const SPOOL_BLOCK_BYTES: usize = 256;

pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

type Connections = Rc<RefCell<Vec<LocalFuture<()>>>>;

/// What all engines of a simulation share.
pub struct Surroundings {
    pub source: RefCell<Source>,
    pub now: Cell<Instant>,
    pub config: Config,
    pub options: Options,
    /// Sessions on the target.
    pub workers: usize,
    pub limits: Limits,
    pub status_interval: Duration,
    pub spool: SpoolConfig,
}

pub struct Engine {
    pub number: usize,
    around: Rc<Surroundings>,
    /// The epoch that it holds, as `pipeline::Opening` does.
    epoch: Rc<Cell<Option<i64>>>,
    /// Large transactions may be applied before they commit.
    is_early: bool,
    /// Of the client library, which moves bytes when it is polled.
    connections: Connections,
    session: Session,
}

enum Session {
    None,
    Opening(LocalFuture<Result<Opened, Error>>),
    Running(Box<Running>),
}

struct Opened {
    crew: Crew,
    /// The session that applies large transactions early.
    early: Option<LocalFuture<Result<Applier, Error>>>,
    input: Input,
    start: Start,
    confirmed: Lsn,
}

struct Running {
    reader: Option<Reader>,
    writer: Option<LocalFuture<Result<(), Error>>>,
    early: Option<LocalFuture<()>>,
    shared: Arc<Shared>,
    outcome: Result<(), Error>,
    /// It was told to end.
    ending_since: Option<Instant>,
}

impl Engine {
    pub fn new(number: usize, around: Rc<Surroundings>) -> Engine {
        Engine {
            number,
            around,
            epoch: Rc::default(),
            is_early: true,
            connections: Rc::default(),
            session: Session::None,
        }
    }

    pub fn has_session(&self) -> bool {
        !matches!(self.session, Session::None)
    }

    /// What it takes for safe on the target, and will tell the source.
    pub fn confirmed(&self) -> Option<u64> {
        match &self.session {
            Session::Running(running) => Some(running.shared.confirmed().as_u64()),
            Session::None | Session::Opening(_) => None,
        }
    }

    /// Begins a session over new connections to the target.
    pub fn open(&mut self, targets: Vec<DuplexStream>) {
        self.connections = Rc::default();
        let opening = open(targets, self.connections.clone(), self.around.clone(), (self.epoch.clone(), self.is_early));
        self.session = Session::Opening(Box::pin(opening));
    }

    /// The supervisor has heard of a stop.
    pub fn stop(&self) {
        if let Session::Running(running) = &self.session {
            running.shared.drain();
        }
    }

    /// The supervisor has lost patience.
    pub fn abort(&self) {
        if let Session::Running(running) = &self.session {
            running.shared.abort();
        }
    }

    /// Moves bytes between the client library and the target.
    pub fn poll_connections(&self) {
        self.connections.borrow_mut().retain_mut(|connection| connection.as_mut().poll(&mut context()).is_pending());
    }

    /// Moves what is done on the target. The outcome, if the session has come to its end.
    pub fn poll_target(&mut self) -> Option<Result<(), Error>> {
        match &mut self.session {
            Session::None => {}
            Session::Opening(opening) => match opening.as_mut().poll(&mut context()) {
                Poll::Pending => {}
                Poll::Ready(Ok(opened)) => self.session = Session::Running(Box::new(run(opened, &self.around))),
                Poll::Ready(Err(error)) => return self.end(Err(error)),
            },
            Session::Running(running) => {
                running.supervise(self.around.now.get());
                running.poll_writer();
                running.poll_early();
            }
        }
        self.ended()
    }

    /// Moves the reader. The outcome, if the session has come to its end.
    pub fn step_reader(&mut self) -> Option<Result<(), Error>> {
        if let Session::Running(running) = &mut self.session {
            running.step_reader(&self.around);
        }
        self.ended()
    }

    fn ended(&mut self) -> Option<Result<(), Error>> {
        match &mut self.session {
            Session::Running(running) if running.reader.is_none() && running.writer.is_none() => {
                let outcome = std::mem::replace(&mut running.outcome, Ok(()));
                self.end(outcome)
            }
            Session::None | Session::Opening(_) | Session::Running(_) => None,
        }
    }

    fn end(&mut self, outcome: Result<(), Error>) -> Option<Result<(), Error>> {
        // As the supervisor does.
        self.is_early = outcome
            .as_ref()
            .err()
            .is_none_or(|error| !matches!(error.kind(), Kind::EarlyGivenUp) && !error.is_deadlock());
        self.session = Session::None;
        self.connections.borrow_mut().clear();
        Some(outcome)
    }
}

impl Running {
    /// As `Workers::wait` does: what is told to end has a short time to end on a commit.
    fn supervise(&mut self, now: Instant) {
        if self.shared.phase() == Phase::Running {
            return;
        }
        let since = *self.ending_since.get_or_insert(now);
        if now - since >= STOP_GRACE {
            self.shared.abort();
        }
    }

    fn poll_writer(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        if let Poll::Ready(result) = writer.as_mut().poll(&mut context()) {
            self.writer = None;
            self.note(result);
            self.shared.writer_ended();
        }
    }

    fn poll_early(&mut self) {
        self.early.take_if(|early| early.as_mut().poll(&mut context()).is_ready());
    }

    fn step_reader(&mut self, around: &Surroundings) {
        let Some(reader) = &mut self.reader else { return };
        let now = around.now.get();
        let result = match reader.step(now) {
            Ok(Step::Again) => return,
            Ok(Step::Wait(wait)) => match reader.wait(wait, Duration::ZERO, now) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Ok(Step::Ended) => {
                let confirmed = reader.confirm(now);
                // Whoever closes waits for the walsender to have read it.
                around.source.borrow_mut().receive();
                confirmed
            }
            Err(error) => Err(error),
        };
        self.reader = None;
        self.note(result);
    }

    /// The first error is the session's, and ends it.
    fn note(&mut self, result: Result<(), Error>) {
        if result.is_err() {
            self.shared.drain();
        }
        let outcome = std::mem::replace(&mut self.outcome, Ok(()));
        self.outcome = outcome.and(result);
    }
}

/// As `session::open` does, with what it asks of the source answered by the model.
async fn open(
    targets: Vec<DuplexStream>,
    connections: Connections,
    around: Rc<Surroundings>,
    (epoch, is_early): (Rc<Cell<Option<i64>>>, bool),
) -> Result<Opened, Error> {
    let name = around.config.name.as_str();
    let mut targets = targets.into_iter();
    let (client, warnings) = connect(targets.next().expect("a connection"), &connections).await?;
    let slot = || around.source.borrow().slot();
    let gone = || Error::refused(Stage::Checkpoint, "the progress row is gone", "");
    // Read before progress: another engine at work moves both, progress always first.
    let before = slot();
    let current = checkpoint::read(&client, name).await?.ok_or_else(gone)?;
    check_gap(&around.config, Whose::Target, &current, &before)?;
    let constraints_fire = postgres::prepare_target(&client, Stage::Apply).await?;
    let heard = warnings.count();
    let fenced = checkpoint::fence(&client, name, TimelineId(1), epoch.take()).await?;
    let progress = fenced.ok_or_else(gone)?;
    epoch.set(Some(progress.epoch));
    check_gap(&around.config, Whose::Target, &progress, &slot())?;
    let socket = around.source.borrow_mut().start(progress.end_lsn.as_u64()).map_err(|_| in_use())?;
    let options = StreamOptions { status_interval: around.status_interval };
    let stream = ReplicationStream::begun(socket, progress.end_lsn, options, around.now.get());
    let mut stream = stream.map_err(|source| Error::new(Stage::Source, Kind::Lost { role: Role::Source, source }))?;
    let confirm_delay = around.config.apply.confirm_delay;
    let begins = if warnings.count() == heard { Begins::Durable } else { Begins::Committed };
    let is_confirmed = confirm_delay.is_zero() && begins == Begins::Durable;
    let confirmed = if is_confirmed { progress.end_lsn } else { Lsn::INVALID };
    if !is_confirmed {
        stream.feedback().confirm_nothing_yet();
    }
    let mut targets: Vec<_> = targets.collect();
    let early = targets.split_off(around.workers - 1).pop();
    let options = Options { constraints_fire, ..around.options };
    let policies = Policies::of(&around.config);
    let (epoch, position) = (progress.epoch, Position::new(progress.end_lsn));
    let tenure = Tenure { name, epoch, moves: Moves::Progress, position: position.clone() };
    let mut appliers = vec![Applier::new((client, warnings), tenure, options, policies).await?];
    for target in targets {
        appliers.push(applier(target, &connections, (&around, options), (epoch, position.clone())).await?);
    }
    let crew = Crew::new((position, begins), appliers, confirm_delay).await?;
    let selection = Selection::new(Copied::default(), Beside::None, Known::Same(Arc::default()));
    let transform = Transform::new(Arc::new(Mapping::default()), false);
    let skips = Skips::new(Vec::new());
    let spool = around.source.borrow().streams.then(|| Spool::with_blocks(around.spool.clone(), SPOOL_BLOCK_BYTES));
    let is_early =
        is_early && spool.is_some() && around.workers > 1 && !constraints_fire && around.config.conflicts.only_stop();
    let position = crew.position();
    let early = early.filter(|_| is_early).map(|target| {
        let (connections, around) = (connections.clone(), around.clone());
        let applier = async move { applier(target, &connections, (&around, options), (epoch, position)).await };
        Box::pin(applier) as LocalFuture<_>
    });
    let start = Start { progress: progress.end_lsn, selection, transform, skips, stop_at: None, early: None };
    Ok(Opened { crew, early, input: Input::source(stream, spool), start, confirmed })
}

/// A further session that applies.
async fn applier(
    target: DuplexStream,
    connections: &Connections,
    (around, options): (&Surroundings, Options),
    (epoch, position): (i64, Position),
) -> Result<Applier, Error> {
    let (client, warnings) = connect(target, connections).await?;
    postgres::prepare_target(&client, Stage::Apply).await?;
    let tenure = Tenure { name: around.config.name.as_str(), epoch, moves: Moves::Progress, position };
    Applier::new((client, warnings), tenure, options, Policies::of(&around.config)).await
}

async fn connect(target: DuplexStream, connections: &Connections) -> Result<(Client, Warnings), Error> {
    let mut config = tokio_postgres::Config::new();
    config.user("sim").ssl_mode(tokio_postgres::config::SslMode::Disable);
    let failed = |error| Error::from_postgres(Stage::Apply, Role::Target, error);
    let (client, moving) = config.connect_raw(target, NoTls).await.map_err(failed)?;
    // Whoever uses the client sees how it ended.
    let warnings = Warnings::default();
    let driven = warnings.clone().drive(moving);
    connections.borrow_mut().push(Box::pin(async move { drop(driven.await) }));
    Ok((client, warnings))
}

fn in_use() -> Error {
    let error = ServerError { code: "55006".to_owned(), ..ServerError::default() };
    Error::new(Stage::Source, Kind::Server { role: Role::Source, error })
}

/// As `Workers::start` does.
fn run(opened: Opened, around: &Rc<Surroundings>) -> Running {
    let Opened { mut crew, early, input, mut start, confirmed } = opened;
    let batches = pool_batches(crew.size());
    let shared = Arc::new(Shared::new(start.progress, confirmed).expect("a file descriptor"));
    let early = early.map(|applier| {
        let reads = Reads { mapping: Arc::new(Mapping::default()), binary: false, known: Known::Same(Arc::default()) };
        let (early, target, for_crew) = early::early(reads, shared.clone()).expect("room for all batches");
        crew.set_early(for_crew);
        start.early = Some(early);
        let around = around.clone();
        Box::pin(async move { target.run(async || applier.await, || pass(&around, LOOK_INTERVAL)).await })
            as LocalFuture<_>
    });
    let (full, filled) = crossbeam_channel::bounded(batches);
    let (give_back, empty) = empty_batches(batches).expect("room for all batches");
    let reader = Reader::new(input, start, around.limits, full, empty, shared.clone(), around.now.get());
    let target = TargetSide::new(crew, give_back, shared.clone());
    let writer = Some(Box::pin(write(target, filled, around.clone())) as LocalFuture<_>);
    Running { reader: Some(reader), writer, early, shared, outcome: Ok(()), ending_since: None }
}

/// As `Writer::run` does.
async fn write(mut target: TargetSide, full: Receiver<Box<Batch>>, around: Rc<Surroundings>) -> Result<(), Error> {
    let mut looked_at = around.now.get();
    let mut flight = target.new_flight();
    let now = || around.now.get();
    let tick = || pass(&around, WAY_LOOK_INTERVAL);
    loop {
        let at = now();
        match full.try_recv() {
            Ok(batch) => {
                let Some(batch) = target.wants(batch) else { break };
                let (next, waiting) = (|| full.try_recv().ok(), || full.len());
                let further = Further { next: &next, waiting: &waiting, now: &now, tick: &tick };
                if target.work(batch, &mut flight, further).await? == Continues::No {
                    return Ok(());
                }
                looked_at = around.now.get();
            }
            Err(TryRecvError::Empty) if target.is_waiting_for_flush() && at - looked_at >= FLUSH_LOOK_INTERVAL => {
                looked_at = at;
                if target.look_for_flush(&now).await? == Continues::No {
                    break;
                }
            }
            Err(TryRecvError::Empty) => pause().await,
            Err(TryRecvError::Disconnected) => break,
        }
    }
    target.finish(&now).await
}

/// Ends when so much time has passed.
async fn pass(around: &Surroundings, time: Duration) {
    let end = around.now.get() + time;
    while around.now.get() < end {
        pause().await;
    }
}

/// Lets others have their turn.
async fn pause() {
    let mut paused = false;
    poll_fn(|_| if std::mem::replace(&mut paused, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
