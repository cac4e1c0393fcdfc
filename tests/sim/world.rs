//! Whose turn it is, what breaks, and what has to hold.
//!
//! ```text
//!  turns at random, with faults ──► turns for everybody, without ──► all has arrived, and is confirmed
//!        └── after each turn: what has to hold ──┘
//! ```

mod faults;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::backend::{Backend, Did, INJECTED};
use super::engine::{Engine, Surroundings};
use super::history::{Form, History};
use super::random::Random;
use super::source::Source;
use super::store::{Replicas, Seen, Store};
use super::tables::differences;
use super::trace::Trace;
use crate::apply::Options;
use crate::batch::Limits;
use crate::config::{Config, SpoolConfig};
use crate::error::{Disposition, Error, Kind};

const CONFIG: &str = r#"
name = "sim"
[source]
dsn = "host=/nowhere dbname=sim user=sim"
[target]
dsn = "host=/nowhere dbname=sim user=sim"
[tables]
include = ["sim.*"]
"#;

/// More than an asynchronous replica of the target is behind.
const CONFIRM_DELAY: &str = "confirm_delay = \"3s\"\n";

/// More than any answer is.
const CONNECTION_BYTES: usize = 1 << 20;
/// As `pipeline` waits before it tries again.
const BACKOFF: Duration = Duration::from_millis(100);

/// Turns of everybody after which all has to have arrived.
const ROUNDS_MAX: usize = 20_000;
/// Those one after the other in which nothing happens, and time passes.
const IDLE_ROUNDS_MAX: usize = 200;
const IDLE_TIME: Duration = Duration::from_millis(200);

struct Place {
    engine: Engine,
    /// Its sessions on the target.
    backends: Vec<usize>,
    retry_at: Instant,
    /// An error that needs a person was made for it.
    is_excused: bool,
}

pub struct World {
    random: Random,
    trace: Trace,
    around: Rc<Surroundings>,
    history: Rc<History>,
    store: Store,
    backends: Vec<Backend>,
    places: Vec<Place>,
    /// Of engines and of sessions on the target, for their numbers.
    engines: usize,
    sessions: usize,
    /// Faults of a thousand turns, and of a thousand commits.
    faults: usize,
    commit_faults: usize,
    /// The target gets few turns, so that batches come to wait for it.
    is_target_slow: bool,
    /// What has been moved, to see whether anything was.
    moved: u64,
    commits_checked: usize,
}

impl World {
    pub fn new(seed: u64, trace: Trace) -> World {
        let mut random = Random::new(seed);
        let form = random.pick(&[Form::Text, Form::Binary]);
        let history = Rc::new(History::new(&mut random, form));
        let mut source = Source::new(history.clone(), form);
        source.is_eager = random.happens(500);
        source.is_generous = random.happens(300);
        source.streams = random.happens(600);
        let options = Options {
            source_generates: false,
            netting: random.happens(700),
            constraints_fire: random.happens(300),
            asynchronous_commit: random.happens(400),
        };
        let workers = random.pick(&[1, 2, 2, 4]);
        let limits = Limits { rows: random.pick(&[1, 3, 3, 8, 20, 1000]), bytes: random.pick(&[500, 100_000]) };
        // A policy for what never happens: a batch that fails goes one step further down.
        let policy = if random.happens(300) { "on_missing_row = \"skip\"\n" } else { "" };
        let replicas = random.pick(&[Replicas::None, Replicas::None, Replicas::Synchronous, Replicas::Asynchronous]);
        let delay = if replicas == Replicas::Asynchronous { CONFIRM_DELAY } else { "" };
        let text = format!("{CONFIG}[apply]\n{policy}{delay}");
        let config = Config::parse(&text, "sim.toml".as_ref(), &|_| None).expect("a configuration");
        let spool = SpoolConfig { memory_bytes: random.pick(&[0, 1_000, 1_000_000]), ..config.spool.clone() };
        let around = Rc::new(Surroundings {
            source: RefCell::new(source),
            now: Cell::new(Instant::now()),
            config,
            spool,
            options,
            workers,
            limits,
            status_interval: Duration::from_millis(random.pick(&[50, 1_000, 10_000])),
        });
        let (faults, commit_faults) = (random.pick(&[0, 1, 3, 8]), random.pick(&[0, 50, 200]));
        trace.note(|| {
            format!(
                "seed {seed}: {options:?}, {workers} sessions, {limits:?}, {form:?}, faults {faults}, {commit_faults}"
            )
        });
        let is_target_slow = random.happens(400);
        let mut store = Store::new(around.now.get(), replicas);
        store.tells_all_keys = random.happens(500);
        World {
            random,
            trace,
            around,
            history,
            store,
            backends: Vec::new(),
            places: Vec::new(),
            engines: 0,
            sessions: 0,
            faults,
            commit_faults,
            is_target_slow,
            moved: 0,
            commits_checked: 0,
        }
    }

    /// # Errors
    /// What does not hold.
    pub fn run(mut self) -> Result<Seen, String> {
        for _ in 0..self.random.pick(&[500, 2_000, 5_000]) {
            self.turn()?;
            self.check()?;
        }
        self.trace.note(|| "no faults from here on".to_owned());
        self.commit_faults = 0;
        self.settle()?;
        Ok(self.store.seen)
    }

    /// Something happens somewhere.
    fn turn(&mut self) -> Result<(), String> {
        if self.random.happens(self.faults) {
            self.fault();
            return Ok(());
        }
        match self.random.below(100) {
            44..94 if self.is_target_slow && self.random.happens(850) => {}
            0..5 => self.commit_on_source(),
            5..7 => self.around.source.borrow_mut().write_other_wal(&mut self.random),
            7..17 => {
                let messages = self.random.pick(&[1, 5, 30]);
                (0..messages).for_each(|_| self.decode());
            }
            17..24 => {
                let bytes = self.random.pick(&[1, 30, 200, 5_000, 5_000]);
                self.send(bytes);
            }
            24..27 => self.receive(),
            27..34 => return self.with_engine(World::step_reader),
            34..44 => return self.with_engine(World::poll_target),
            44..54 => return self.with_engine(World::poll_connections),
            54..66 => {
                let steps = self.random.pick(&[1, 2, 5, 20]);
                if let Some(place) = self.any_backend() {
                    self.step_backend(place, steps);
                }
            }
            66..73 => {
                let bytes = self.random.pick(&[1, 20, 2_000]);
                if let Some(place) = self.any_backend() {
                    self.moved += u64::from(self.backends[place].write(bytes));
                }
            }
            73..94 => return self.with_engine(World::work),
            94..96 => {
                let pause = Duration::from_millis(self.random.pick(&[1, 5, 20, 150, 1_100, 6_000]));
                self.pass(pause);
            }
            96 => {
                self.flush_target();
                let commits = self.random.below(self.store.unreplicated() + 1);
                self.store.replicate(commits);
            }
            97 => self.around.source.borrow_mut().save(),
            _ => self.start_engine(),
        }
        Ok(())
    }

    fn any_backend(&mut self) -> Option<usize> {
        (!self.backends.is_empty()).then(|| self.random.below(self.backends.len()))
    }

    /// An engine and one of its sessions on the target talk without a pause.
    fn work(&mut self, place: usize) -> Result<(), String> {
        let Place { engine, backends, .. } = &self.places[place];
        if backends.is_empty() {
            return Ok(());
        }
        let number = engine.number;
        let session = backends[self.random.below(backends.len())];
        for _ in 0..self.random.between(1, 8) {
            if !self.is_there(place, number) {
                break;
            }
            self.poll_connections(place)?;
            if let Some(backend) = self.backends.iter().position(|backend| backend.id == session) {
                self.step_backend(backend, 50);
            }
            if let Some(backend) = self.backends.iter_mut().find(|backend| backend.id == session) {
                self.moved += u64::from(backend.write(usize::MAX));
            }
            // A fault may have ended it.
            if self.is_there(place, number) {
                self.poll_connections(place)?;
                self.poll_target(place)?;
            }
        }
        Ok(())
    }

    fn is_there(&self, place: usize, engine: usize) -> bool {
        self.places.get(place).is_some_and(|place| place.engine.number == engine)
    }

    /// Everybody has a turn after the other until all has arrived.
    fn settle(&mut self) -> Result<(), String> {
        let mut idle_rounds = 0;
        for round in 0..ROUNDS_MAX {
            let moved = self.moved;
            if round % 4 == 0 {
                self.commit_on_source();
            }
            self.decode();
            self.send(usize::MAX);
            self.receive();
            self.start_engine();
            for place in (0..self.places.len()).rev() {
                self.step_reader(place)?;
                if place < self.places.len() {
                    self.poll_target(place)?;
                }
                if place < self.places.len() {
                    self.poll_connections(place)?;
                }
            }
            for place in (0..self.backends.len()).rev() {
                self.step_backend(place, 50);
            }
            for backend in &mut self.backends {
                self.moved += u64::from(backend.write(usize::MAX));
            }
            self.check()?;
            if self.has_arrived() {
                return Ok(());
            }
            if self.moved > moved {
                idle_rounds = 0;
                continue;
            }
            idle_rounds += 1;
            if idle_rounds > IDLE_ROUNDS_MAX {
                break;
            }
            self.flush_target();
            self.pass(IDLE_TIME);
        }
        let source = self.around.source.borrow();
        let last = self.history.transactions.last().map_or(0, |last| last.end_lsn);
        let (progress, confirmed) = (self.store.committed.progress.end_lsn, source.confirmed);
        Err(format!("not all arrives: the source has {last:X}, progress is {progress:X}, {confirmed:X} is confirmed"))
    }

    fn has_arrived(&self) -> bool {
        let source = self.around.source.borrow();
        let last = self.history.transactions.last().map_or(0, |last| last.end_lsn);
        source.committed == self.history.transactions.len() && source.confirmed >= last
    }

    /// What has to hold at any moment.
    fn check(&mut self) -> Result<(), String> {
        let source = self.around.source.borrow();
        let durable = self.store.survives().progress.end_lsn;
        let to_confirm = self.places.iter().filter_map(|place| place.engine.confirmed()).max();
        let confirmed = to_confirm.unwrap_or(0).max(source.reported);
        if confirmed > durable {
            return Err(format!("{confirmed:X} is confirmed, and only {durable:X} is durable on C"));
        }
        if self.commits_checked == self.store.commits {
            return Ok(());
        }
        self.commits_checked = self.store.commits;
        let progress = self.store.committed.progress.end_lsn;
        let ended = self.history.ended_by(progress);
        self.trace.note(|| format!("  C is at {progress:X}, after {ended} transactions"));
        let expected = self.history.state_after(ended);
        if *expected != self.store.committed.tables {
            let differences = differences(expected, &self.store.committed.tables);
            return Err(format!("C is not the source's prefix at its progress {progress:X}:\n{differences}"));
        }
        let next = self.history.transactions.get(ended);
        if let Some(next) = next.filter(|next| next.commit_lsn < progress) {
            return Err(format!("progress {progress:X} is past the commit record at {:X}", next.commit_lsn));
        }
        if progress > source.wal_end {
            return Err(format!("progress {progress:X} is past all WAL, which ends at {:X}", source.wal_end));
        }
        Ok(())
    }

    fn commit_on_source(&mut self) {
        let mut source = self.around.source.borrow_mut();
        if source.commit() {
            self.moved += 1;
            self.trace.note(|| format!("source: a transaction ends at {:X}", source.wal_end));
        }
    }

    fn decode(&mut self) {
        let mut source = self.around.source.borrow_mut();
        self.moved += u64::from(source.decode(&mut self.random));
        source.seen.drain(..).for_each(|what| self.store.saw(what));
    }

    fn send(&mut self, bytes: usize) {
        self.moved += u64::from(self.around.source.borrow_mut().send(bytes));
    }

    fn receive(&mut self) {
        let mut source = self.around.source.borrow_mut();
        let before = source.reported;
        self.moved += u64::from(source.receive());
        if source.reported > before {
            self.trace.note(|| format!("source: {:X} is confirmed", source.reported));
        }
    }

    fn pass(&mut self, time: Duration) {
        self.store.pass(time);
        self.around.now.set(self.around.now.get() + time);
    }

    /// The target's WAL writer.
    fn flush_target(&mut self) {
        let unflushed = (self.store.insert_lsn - self.store.flush_lsn) as usize;
        let up_to = self.store.flush_lsn + self.random.pick(&[unflushed / 2, unflushed]) as u64;
        self.store.flush(up_to);
    }

    fn with_engine(&mut self, act: impl Fn(&mut World, usize) -> Result<(), String>) -> Result<(), String> {
        if self.places.is_empty() {
            self.start_engine();
        }
        let place = self.random.below(self.places.len());
        act(self, place)
    }

    /// Starts an engine where there is none, and sessions whose time has come.
    fn start_engine(&mut self) {
        if self.places.is_empty() {
            self.add_engine();
        }
        for place in 0..self.places.len() {
            let now = self.around.now.get();
            if !self.places[place].engine.has_session() && self.places[place].retry_at <= now {
                self.open(place);
            }
        }
    }

    fn add_engine(&mut self) {
        self.engines += 1;
        let engine = Engine::new(self.engines, self.around.clone());
        self.trace.note(|| format!("engine {} starts", engine.number));
        self.places.push(Place { engine, backends: Vec::new(), retry_at: self.around.now.get(), is_excused: false });
    }

    fn open(&mut self, place: usize) {
        self.moved += 1;
        let (mut targets, mut backends) = (Vec::new(), Vec::new());
        for number in 0..=self.around.workers {
            self.sessions += 1;
            let (ours, theirs) = tokio::io::duplex(CONNECTION_BYTES);
            let mut backend = Backend::new(self.sessions, theirs, self.around.options.constraints_fire);
            // One more than apply, for large transactions.
            backend.is_early = number == self.around.workers;
            self.backends.push(backend);
            targets.push(ours);
            backends.push(self.sessions);
        }
        let place = &mut self.places[place];
        self.trace.note(|| format!("engine {} opens sessions {backends:?}", place.engine.number));
        place.backends = backends;
        place.is_excused = false;
        place.engine.open(targets);
    }

    fn step_reader(&mut self, place: usize) -> Result<(), String> {
        let outcome = self.places[place].engine.step_reader();
        outcome.map_or(Ok(()), |outcome| self.session_ended(place, outcome))
    }

    fn poll_target(&mut self, place: usize) -> Result<(), String> {
        let outcome = self.places[place].engine.poll_target();
        outcome.map_or(Ok(()), |outcome| self.session_ended(place, outcome))
    }

    fn poll_connections(&mut self, place: usize) -> Result<(), String> {
        self.places[place].engine.poll_connections();
        Ok(())
    }

    /// As the supervisor decides.
    fn session_ended(&mut self, place: usize, outcome: Result<(), Error>) -> Result<(), String> {
        self.moved += 1;
        let now = self.around.now.get();
        let Place { engine, retry_at, is_excused, .. } = &mut self.places[place];
        let number = engine.number;
        self.trace.note(|| format!("engine {number}: its session ends: {outcome:?}"));
        let is_over = match outcome {
            Ok(()) => {
                self.store.saw("a session that ends in order");
                true
            }
            Err(error) if error.disposition() == Disposition::Retry => {
                self.store.saw(if error.is_passing() { "a slot in use" } else { "a session built anew" });
                false
            }
            Err(error) => {
                let is_fenced = matches!(error.kind(), Kind::Fenced { mine, theirs } if mine < theirs);
                // The model's own error is no excuse: what the source has done fits.
                let is_injected = matches!(error.kind(), Kind::Server { error, .. } if error.message == INJECTED);
                if !(is_fenced || *is_excused && is_injected) {
                    return Err(format!("engine {number} gives up: {error}"));
                }
                self.store.saw(if is_fenced {
                    "an engine that is fenced"
                } else {
                    "an engine that a person starts again"
                });
                true
            }
        };
        *retry_at = now + BACKOFF;
        if is_over {
            self.places.remove(place);
        }
        Ok(())
    }

    fn step_backend(&mut self, place: usize, steps: usize) {
        for _ in 0..steps {
            let backend = &mut self.backends[place];
            let is_commit = backend.is_to_commit();
            let is_faulty = is_commit && self.random.happens(self.commit_faults);
            if is_faulty && self.random.happens(500) {
                self.trace.note(|| format!("session {}: a fault before COMMIT", backend.id));
                self.fault_at_commit(place);
                return;
            }
            let did = backend.step(&mut self.store);
            if did == Did::Message {
                self.moved += 1;
            }
            if is_commit {
                self.trace.note(|| format!("session {}: COMMIT", backend.id));
            }
            if is_faulty {
                self.trace.note(|| format!("session {}: a fault after COMMIT", backend.id));
                self.fault_at_commit(place);
                return;
            }
            if backend.has_ended {
                self.trace.note(|| format!("session {} is over", backend.id));
                self.backends.remove(place);
                return;
            }
            if did != Did::Message {
                return;
            }
        }
    }
}
