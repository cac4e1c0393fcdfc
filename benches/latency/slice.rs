//! One contender for a while: rows sent at fixed times, and seen on C.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use pgsluice_proto::Lsn;
use pgsluice_testkit::{Chain, Server, wait_for};
use tokio_postgres::{Client, NoTls};

use crate::common::contender::{Config, Contender, DATABASE, Running};

/// A commit on A waits for its disk, so one session could not keep the rate.
const SENDERS: u32 = 8;
/// At the beginning of a slice, rows that are sent and not measured.
const WARM_UP: Duration = Duration::from_secs(1);
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(120);
/// After its last row was due, a slice is given up.
const SEEN_DEADLINE: Duration = Duration::from_secs(60);
const LATENCY_US_MAX: u64 = 120_000_000;

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rate_per_s: u64,
    pub length: Duration,
    pub poll: Duration,
}

/// Microseconds since a row was due.
#[derive(Clone, Debug)]
pub struct Measured {
    pub applied: Histogram<u64>,
    pub visible: Histogram<u64>,
}

impl Measured {
    pub fn new() -> Result<Measured> {
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?;
        Ok(Measured { applied: histogram.clone(), visible: histogram })
    }

    fn record(&mut self, row: Seen, now_us: i64) {
        let since_due = |time_us: i64| u64::try_from(time_us - row.due_us).unwrap_or(0).max(1);
        self.applied.saturating_record(since_due(row.applied_us));
        self.visible.saturating_record(since_due(now_us));
    }
}

/// Rows of a slice: consecutive keys, the first of them to warm up.
#[derive(Clone, Copy, Debug)]
struct Rows {
    first_id: i64,
    warm: i64,
    measured: i64,
}

impl Rows {
    fn last_id(self) -> i64 {
        self.first_id + self.warm + self.measured - 1
    }
}

pub async fn run(
    chain: &Chain,
    config: &Config,
    contender: Contender,
    plan: Plan,
    next_id: &mut i64,
) -> Result<Measured> {
    let running = contender.start(chain, config, Lsn::INVALID).await?;
    catch_up(chain, contender, next_id).await?;
    let measured = measure(chain, contender, plan, next_id).await.with_context(|| stderr(&running))?;
    contender.stop(chain, &running).await?;
    Ok(measured)
}

/// The same while the contender is at work.
pub async fn measure(chain: &Chain, contender: Contender, plan: Plan, next_id: &mut i64) -> Result<Measured> {
    let count = |length: Duration| (plan.rate_per_s as f64 * length.as_secs_f64()) as i64;
    let rows = Rows { first_id: *next_id, warm: count(WARM_UP), measured: count(plan.length) };
    *next_id = rows.last_id() + 1;
    let (dsn_a, dsn_c) = (chain.a.dsn(DATABASE), chain.c.dsn(contender.database().context("it writes")?));
    // Threads of their own, each with a runtime that does nothing else: timers of a shared one are milliseconds coarse.
    let start = Start::soon()?;
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let dsn = dsn_a.clone();
            thread::spawn(move || send(&dsn, rows, plan.rate_per_s, sender, start))
        })
        .collect();
    let watcher = thread::spawn(move || watch(&dsn_c, rows, plan));
    let joined = tokio::task::spawn_blocking(move || {
        (senders.into_iter().map(|sender| sender.join()).collect::<Vec<_>>(), watcher.join())
    });
    let (sent, measured) = joined.await?;
    for one in sent {
        one.map_err(|_| anyhow!("a sender has panicked"))?.context("send")?;
    }
    measured.map_err(|_| anyhow!("the watcher has panicked"))?
}

fn stderr(running: &Running) -> String {
    match running {
        Running::Engine(engine) => engine.stderr(),
        Running::Native | Running::Ceiling(_) => String::new(),
    }
}

/// What was sent while the other had its turn comes first, and is not measured.
pub async fn catch_up(chain: &Chain, contender: Contender, next_id: &mut i64) -> Result<()> {
    let id = *next_id;
    *next_id += 1;
    chain.a.sql(DATABASE, &format!("INSERT INTO ping VALUES ({id}, 0)")).await?;
    let database = contender.database().context("it writes")?;
    wait_for("the backlog to be on C", CATCH_UP_DEADLINE, || is_there(&chain.c, database, id)).await
}

async fn is_there(c: &Server, database: &str, id: i64) -> Result<Option<()>> {
    let rows = c.query_text(database, &format!("SELECT FROM ping WHERE id = {id}")).await?;
    Ok((!rows.is_empty()).then_some(()))
}

/// When the first row is due, by both clocks.
#[derive(Clone, Copy, Debug)]
struct Start {
    at: Instant,
    at_us: i64,
}

impl Start {
    /// Late enough that all sessions are open by then.
    fn soon() -> Result<Start> {
        let ahead = Duration::from_millis(200);
        Ok(Start { at: Instant::now() + ahead, at_us: now_us()? + i64::try_from(ahead.as_micros())? })
    }
}

/// Sends this sender's share of the rows, each when it is due, or as soon after as the one before it is done.
fn send(dsn: &str, rows: Rows, rate_per_s: u64, sender: u32, start: Start) -> Result<()> {
    let (runtime, client) = session(dsn)?;
    let insert = runtime.block_on(client.prepare("INSERT INTO ping VALUES ($1, $2)"))?;
    let all = (0_u64..).zip(rows.first_id..=rows.last_id());
    for (nth, id) in all.skip(sender as usize).step_by(SENDERS as usize) {
        let due = Duration::from_nanos(nth * 1_000_000_000 / rate_per_s);
        thread::sleep((start.at + due).saturating_duration_since(Instant::now()));
        let due_us = start.at_us + i64::try_from(due.as_micros())?;
        runtime.block_on(client.execute(&insert, &[&id, &due_us]))?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    due_us: i64,
    applied_us: i64,
}

/// Asks for rows that are new until all are there.
fn watch(dsn: &str, rows: Rows, plan: Plan) -> Result<Measured> {
    let (runtime, client) = session(dsn)?;
    let look = runtime.block_on(client.prepare(
        "SELECT id, due_us, (extract(epoch FROM applied_at) * 1000000)::bigint FROM ping WHERE id > $1 ORDER BY id",
    ))?;
    let mut measured = Measured::new()?;
    // All keys up to this one were seen, and those ahead of it: neighbours are committed in any order.
    let mut seen_to = rows.first_id - 1;
    let mut ahead = BTreeSet::new();
    let give_up = Instant::now() + WARM_UP + plan.length + SEEN_DEADLINE;
    while seen_to < rows.last_id() {
        ensure!(Instant::now() < give_up, "row {} of {} is not on C", seen_to + 1, rows.last_id());
        let new = runtime.block_on(client.query(&look, &[&seen_to]))?;
        let now_us = now_us()?;
        for row in &new {
            let id: i64 = row.get(0);
            if ahead.insert(id) && id >= rows.first_id + rows.warm {
                measured.record(Seen { due_us: row.get(1), applied_us: row.get(2) }, now_us);
            }
        }
        while ahead.remove(&(seen_to + 1)) {
            seen_to += 1;
        }
        thread::sleep(plan.poll);
    }
    Ok(measured)
}

fn session(dsn: &str) -> Result<(tokio::runtime::Runtime, Client)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (client, connection) = runtime.block_on(tokio_postgres::connect(dsn, NoTls))?;
    runtime.spawn(connection);
    Ok((runtime, client))
}

fn now_us() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?)
}
