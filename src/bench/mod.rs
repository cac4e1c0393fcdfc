//! Measures a running replication with rows of its own: how long one takes to the target, and how many pass in a second.
//!
//! In: the configuration, a [`Plan`], a way to be interrupted. Out: a [`Report`], and what became of the removal.
//!
//! ```text
//!  an engine is at work? ─► lock ─► leftovers away ─► table on C and A, published ─► joined ─► latency ─► drain ─► away
//!                                                      └───────────────── whatever happens ──────────────────────┘
//! ```
//!
//! The engine is the user's own `pgsluice run`, and stays so: the table joins and leaves like any other, and only its name is
//! known to the engine, which selects it and leaves rules off it.
//!
//! **Always holds:**
//! - Nothing is made before an engine was seen to bring progress to where A is.
//! - The table of C outlives every change of it in the stream: it goes once progress has passed the LSN at which A's has left the
//!   publication, and the engine has forgotten it (`table.rs`). An engine that meets a change of a table that C lacks would wait.
//! - One bench of a name at a time: a lock on A, which ends with its session, tells a leftover from a bench at work.
//!
//! Times are by the clock of this host, which nothing sets back while it measures; the target's are put right by how far its
//! clock is from that (`clock.rs`).

mod clock;
mod drain;
mod engine;
mod gauge;
mod latency;
mod report;
mod table;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use crossbeam_channel::Receiver;
use tokio::runtime::Runtime;
use tokio_postgres::Client;

use self::clock::{Clock, Offset};
use self::engine::Servers;
use self::gauge::Gauge;
pub use self::report::Report;
use self::table::OwnTable;
pub use self::table::{drop_empty_schema, remove_leftovers};
use crate::config::{Config, Endpoint};
use crate::error::{Error, Kind, Stage};
use crate::postgres::{self, NOTICE_LOST_CLIENT};
use crate::screen::Screen;

const STAGE: Stage = Stage::Bench;
/// Whoever waits hears of the end this soon.
const NAP_MAX: Duration = Duration::from_millis(100);
/// Rows are found by their keys. What the planner knows of the table is from when it was copied, with a single row.
const WATCHER_SETTINGS: &str =
    "SET enable_seqscan = off; SET enable_bitmapscan = off; SET plan_cache_mode = 'force_generic_plan'";

/// What is to be measured. All numbers are within the bounds of the command line.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub latency: Option<LatencyPlan>,
    pub drain: Option<DrainPlan>,
    /// Of text in each row, beside two numbers.
    pub row_bytes: usize,
    /// How long the engine may take for anything without a sign of it.
    pub limit: Duration,
}

/// Transactions of one row at fixed times.
#[derive(Clone, Copy, Debug)]
pub struct LatencyPlan {
    pub rate_per_s: u64,
    pub length: Duration,
}

/// Rows as fast as A takes them.
#[derive(Clone, Copy, Debug)]
pub struct DrainPlan {
    pub rows: u64,
    /// In a transaction.
    pub chunk_rows: u64,
    /// Sessions that write.
    pub writers: usize,
}

/// What a bench came to, and whether everything is as it was.
#[derive(Debug)]
pub struct Outcome {
    pub report: Result<Report, Error>,
    pub removed: Result<(), Error>,
}

/// Measures, and removes what that took.
///
/// # Errors
/// A refusal before anything was made; what failed afterwards is in the outcome.
pub fn run(config: &Config, plan: &Plan, screen: &Screen, stop: Receiver<()>) -> Result<Outcome, Error> {
    let run = Run { over: Over::new(stop), screen: screen.clone(), config: config.clone(), plan: *plan };
    let runtime = postgres::new_runtime(STAGE)?;
    let table = OwnTable::of(config);
    let _lock = runtime.block_on(async {
        let servers = Servers::connect(config).await?;
        table.check_origin(&servers).await?;
        servers.check_at_work(&run.over).await?;
        let lock = engine::lock(config, &run.over).await?;
        servers.wait_passed(plan.limit, &run.over).await.map_err(engine::not_at_work)?;
        // Made again from nothing: what a bench that was killed has left may be of another shape.
        table.remove(&servers, plan.limit, &run.over).await?;
        Ok::<_, Error>(lock)
    })?;
    let report = runtime
        .block_on(async {
            let servers = Servers::connect(config).await?;
            table.make(&servers).await?;
            table.wait_joined(&servers, plan.limit, &run.over).await
        })
        .and_then(|()| run.measure(&table));
    tracing::info!("removing {} again, once the engine has done with it", table.name);
    // The sessions from before may be lost, which may be what has failed.
    let removed = runtime.block_on(async {
        run.over.accept();
        table.remove(&Servers::connect(config).await?, plan.limit, &run.over).await
    });
    Ok(Outcome { report, removed })
}

/// One run of `pgsluice bench`.
#[derive(Debug)]
struct Run {
    config: Config,
    plan: Plan,
    over: Over,
    screen: Screen,
}

impl Run {
    fn measure(&self, table: &OwnTable) -> Result<Report, Error> {
        let payload = Payload::new(self.plan.row_bytes);
        let clock = Clock::start()?;
        let before = self.clocks(clock)?;
        let mut first_id = table::FIRST_ID;
        let mut latency = None;
        if let Some(plan) = self.plan.latency {
            let rows = latency::rows(plan);
            let gauge = Gauge::new("latency", rows);
            latency = Some(
                gauge.during(&self.screen, || latency::run(self, table, plan, (clock, first_id), &payload, &gauge))?,
            );
            first_id += rows.cast_signed();
        }
        let after = self.clocks(clock)?;
        let clocks = Clocks { primary: before.primary.and(after.primary), target: before.target.and(after.target) };
        let mut drain = None;
        if let Some(plan) = self.plan.drain {
            let gauge = Gauge::new("drain", plan.rows);
            drain = Some(gauge.during(&self.screen, || drain::run(self, table, plan, first_id, &payload, &gauge))?);
        }
        Report::new(&self.plan, clocks, latency, drain)
    }

    /// A session that writes to A. One that is left amid a statement ends soon, and nothing waits for its locks.
    fn writer(&self) -> Result<(Runtime, Client), Error> {
        session(self.config.publisher(), NOTICE_LOST_CLIENT)
    }

    /// A session that looks at C.
    fn watcher(&self) -> Result<(Runtime, Client), Error> {
        session(&self.config.target, WATCHER_SETTINGS)
    }

    fn clocks(&self, clock: Clock) -> Result<Clocks, Error> {
        let of = |endpoint: &Endpoint| clock.offset_of(endpoint);
        Ok(Clocks { primary: of(self.config.publisher())?, target: of(&self.config.target)? })
    }
}

/// A session, on a runtime that does nothing else.
fn session(endpoint: &Endpoint, settings: &str) -> Result<(Runtime, Client), Error> {
    let runtime = postgres::new_runtime(STAGE)?;
    let client = runtime.block_on(async {
        let client = postgres::connect(endpoint, STAGE).await?;
        let set = client.batch_execute(settings).await;
        set.map(|()| client).map_err(|error| Error::from_postgres(STAGE, endpoint.role, error))
    })?;
    Ok((runtime, client))
}

/// How far the servers' clocks are ahead of this host's.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    primary: Offset,
    target: Offset,
}

/// Whether to go on: somebody asks for the end, or one of the threads has failed.
#[derive(Debug)]
struct Over {
    stop: Receiver<()>,
    asked: AtomicU32,
    failed: AtomicBool,
}

impl Over {
    fn new(stop: Receiver<()>) -> Over {
        Over { stop, asked: AtomicU32::new(0), failed: AtomicBool::new(false) }
    }

    /// # Errors
    /// [`Kind::Interrupted`] if there is no reason to go on.
    fn check(&self) -> Result<(), Error> {
        if self.stop.try_recv().is_ok() {
            self.asked.fetch_add(1, Ordering::AcqRel);
        }
        if self.asked.load(Ordering::Acquire) > 0 || self.failed.load(Ordering::Acquire) {
            return Err(Error::new(STAGE, Kind::Interrupted));
        }
        Ok(())
    }

    /// Does something that may take long, unless there is no reason to go on.
    async fn or<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep(NAP_MAX) => self.check()?,
            }
        }
    }

    /// What was asked for until now is being done; only somebody who asks again ends that too.
    fn accept(&self) {
        self.asked.store(0, Ordering::Release);
        self.failed.store(false, Ordering::Release);
    }

    /// Has the other threads end where this one has failed.
    fn noting<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        result
    }
}

/// What a thread has come to.
fn joined<T>(thread: ScopedJoinHandle<'_, Result<T, Error>>) -> Result<T, Error> {
    thread.join().unwrap_or_else(|_| Err(Error::new(STAGE, Kind::Panicked)))
}

/// The outcome of all threads.
///
/// # Errors
/// That which is no consequence of another.
fn first_cause<T>(results: Vec<Result<T, Error>>) -> Result<Vec<T>, Error> {
    let (mut done, mut failed) = (Vec::with_capacity(results.len()), None);
    for result in results {
        match (result, failed.take()) {
            (Ok(one), known) => {
                done.push(one);
                failed = known;
            }
            (Err(error), None) => failed = Some(error),
            (Err(error), Some(known)) => failed = Some(cause(known, error)),
        }
    }
    failed.map_or(Ok(done), Err)
}

/// Of two errors the first, unless that is only that there was another.
fn cause(first: Error, second: Error) -> Error {
    if matches!(first.kind(), Kind::Interrupted) { second } else { first }
}

/// Text that does not compress, and differs from row to row.
#[derive(Debug)]
struct Payload {
    pool: String,
    row_bytes: usize,
}

impl Payload {
    /// Rows whose text begins at the same place of the pool are so far apart.
    const PLACES: usize = 4_096;

    fn new(row_bytes: usize) -> Payload {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        // xorshift64, G. Marsaglia.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let letter = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(LETTERS[(state >> 58) as usize])
        };
        Payload { pool: (0..row_bytes + Payload::PLACES).map(letter).collect(), row_bytes }
    }

    fn of(&self, id: i64) -> &str {
        let start = id.unsigned_abs() as usize % Payload::PLACES;
        &self.pool[start..start + self.row_bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_led_to_others_is_the_one_that_counts() {
        let interrupted = || Err(Error::new(STAGE, Kind::Interrupted));
        let cause = Err(Error::new(STAGE, Kind::Panicked));
        let error = first_cause::<()>(vec![Ok(()), interrupted(), cause, interrupted()]).unwrap_err();
        assert!(matches!(error.kind(), Kind::Panicked));
        assert!(first_cause(vec![Ok(1), Ok(2)]).is_ok_and(|all| all == [1, 2]));
    }

    #[test]
    fn whoever_has_asked_once_has_to_ask_again_to_end_the_removal() {
        let (asked, stop) = crossbeam_channel::bounded(1);
        let over = Over::new(stop);
        over.check().unwrap();
        asked.send(()).unwrap();
        assert!(over.check().is_err() && over.check().is_err());
        over.accept();
        over.check().unwrap();
        asked.send(()).unwrap();
        assert!(over.check().is_err());
    }

    #[test]
    fn payloads_have_their_length_and_differ() {
        let payload = Payload::new(64);
        assert!((0..10_000).all(|id| payload.of(id).len() == 64));
        assert_ne!(payload.of(1), payload.of(2));
        assert_eq!(Payload::new(0).of(7), "");
    }
}
