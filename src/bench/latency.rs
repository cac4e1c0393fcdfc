//! How long a row takes at a fixed rate, whatever A and the engine make of that rate.
//!
//! ```text
//!  senders ──a row a transaction, when it is due──► A ──► engine ──► C ◄──asks for new rows── watcher
//! ```
//!
//! Open loop: a row carries the time at which it was due, and all figures are measured from there, however late it could be sent. So
//! a stall counts for each row that it holds up, where a loop that waits for an answer would count it once. *Committed* is when A had
//! answered. *Applied* is C's clock, put right, when the row was written, inside of the transaction that brings it. *Visible* is when
//! the watcher first saw it, which half of the watcher's interval is a part of.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio_postgres::Row;

use crate::config::Role;
use crate::error::{Error, Kind};

use super::clock::Clock;
use super::engine::timed_out;
use super::gauge::Gauge;
use super::table::OwnTable;
use super::{LatencyPlan, NAP_MAX, Payload, Run, STAGE, cause, first_cause, joined};

/// A commit on A waits for its disk, and often for a standby: one session cannot keep any rate.
const RATE_OF_SENDER: u64 = 125;
const SENDERS_MAX: u64 = 32;
/// Rows at the beginning that are sent and not measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// All sessions are open by then.
const AHEAD: Duration = Duration::from_millis(200);
/// Between two questions of the watcher.
const POLL_INTERVAL: Duration = Duration::from_micros(500);
/// A sender that is behind by this many of its turns, at one row in ten, does not keep the rate.
const TURNS_BEHIND_MAX: u64 = 10;
/// Longer ones count as this.
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// Figures are exact to a thousandth.
const DIGITS: u8 = 3;

/// In microseconds since rows were due.
#[derive(Debug)]
pub(super) struct Measured {
    pub committed: Histogram<u64>,
    /// By C's own clock.
    pub applied: Differences,
    pub visible: Histogram<u64>,
}

/// Times of C less times of this host, which the difference of the clocks is still in.
#[derive(Debug, Default)]
pub(super) struct Differences(Vec<i64>);

impl Differences {
    /// As they are once C's clock is put right.
    pub fn corrected(&self, target_ahead_us: i64) -> Result<Histogram<u64>, Error> {
        let mut histogram = histogram()?;
        self.0.iter().for_each(|us| record(&mut histogram, us - target_ahead_us));
        Ok(histogram)
    }
}

/// Rows that are sent, those that warm up included.
pub(super) fn rows(plan: LatencyPlan) -> u64 {
    warm_rows(plan) + measured_rows(plan)
}

fn warm_rows(plan: LatencyPlan) -> u64 {
    plan.rate_per_s * WARM_UP.as_secs()
}

fn measured_rows(plan: LatencyPlan) -> u64 {
    plan.rate_per_s * plan.length.as_secs()
}

fn histogram() -> Result<Histogram<u64>, Error> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).map_err(|_| Error::new(STAGE, Kind::Panicked))
}

/// A clock that is not quite right can have a row come before it was due.
fn record(histogram: &mut Histogram<u64>, us: i64) {
    histogram.saturating_record(u64::try_from(us).unwrap_or(0).max(1));
}

/// What all threads of the measure know.
#[derive(Clone, Copy, Debug)]
struct Load<'a> {
    run: &'a Run,
    table: &'a OwnTable,
    plan: LatencyPlan,
    payload: &'a Payload,
    first_id: i64,
    clock: Clock,
    start: Instant,
}

impl Load<'_> {
    fn due(&self, nth: u64) -> Instant {
        self.start + Duration::from_nanos((u128::from(nth) * 1_000_000_000 / u128::from(self.plan.rate_per_s)) as u64)
    }

    fn is_measured(&self, id: i64) -> bool {
        id >= self.first_id + warm_rows(self.plan).cast_signed()
    }

    fn last_id(&self) -> i64 {
        self.first_id + rows(self.plan).cast_signed() - 1
    }

    /// Of the first row that was not seen yet.
    fn due_of_next(&self, keys: &SeenKeys) -> Instant {
        self.due((keys.to + 1 - self.first_id).unsigned_abs())
    }
}

pub(super) fn run(
    run: &Run,
    table: &OwnTable,
    plan: LatencyPlan,
    (clock, first_id): (Clock, i64),
    payload: &Payload,
    gauge: &Gauge,
) -> Result<Measured, Error> {
    let load = Load { run, table, plan, payload, first_id, clock, start: Instant::now() + AHEAD };
    let senders = (plan.rate_per_s / RATE_OF_SENDER).clamp(1, SENDERS_MAX);
    let (sent, seen) = thread::scope(|scope| {
        // Each has a runtime that does nothing else: timers of a shared one are milliseconds coarse.
        let sender = |sender| scope.spawn(move || load.run.over.noting(send(load, sender, senders)));
        let sending: Vec<_> = (0..senders).map(sender).collect();
        let watching = scope.spawn(move || load.run.over.noting(watch(load, gauge)));
        let sent = sending.into_iter().map(joined).collect();
        (sent, joined(watching))
    });
    let (sent, seen) = match (first_cause(sent), seen) {
        (Ok(sent), Ok(seen)) => (sent, seen),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => return Err(error),
        (Err(one), Err(other)) => return Err(cause(one, other)),
    };
    let mut committed = histogram()?;
    // Of equal bounds, so each fits.
    sent.iter().for_each(|one| committed += one);
    let turn_us = senders * 1_000_000 / plan.rate_per_s;
    if committed.value_at_quantile(0.9) > TURNS_BEHIND_MAX * turn_us {
        tracing::warn!(
            "the primary does not take {} transactions a second from {senders} sessions: rows waited for their turn, which all figures have \
             in them",
            plan.rate_per_s
        );
    }
    Ok(Measured { committed, applied: seen.0, visible: seen.1 })
}

/// Sends this sender's share of the rows, each when it is due, or as soon after as the one before it is done.
fn send(load: Load<'_>, sender: u64, senders: u64) -> Result<Histogram<u64>, Error> {
    let role = load.run.config.publisher().role;
    let failed = |error| Error::from_postgres(STAGE, role, error);
    let (runtime, client) = load.run.writer()?;
    let sql = format!("INSERT INTO {} (id, due_us, payload) VALUES ($1, $2, $3)", load.table.name);
    let insert = runtime.block_on(client.prepare(&sql)).map_err(failed)?;
    let mut committed = histogram()?;
    for nth in (sender..rows(load.plan)).step_by(senders as usize) {
        let (id, due) = (load.first_id + nth.cast_signed(), load.due(nth));
        sleep_until(due, load.run)?;
        let (due_us, payload) = (load.clock.us(due), load.payload.of(id));
        let sending = async { client.execute(&insert, &[&id, &due_us, &payload]).await.map_err(failed) };
        runtime.block_on(load.run.over.or(sending))?;
        if load.is_measured(id) {
            record(&mut committed, i64::try_from(due.elapsed().as_micros()).unwrap_or(i64::MAX));
        }
    }
    Ok(committed)
}

fn sleep_until(due: Instant, run: &Run) -> Result<(), Error> {
    loop {
        run.over.check()?;
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(NAP_MAX));
    }
}

/// Keys that were seen: all up to one, and some beyond, as neighbours are committed in any order.
#[derive(Debug)]
struct SeenKeys {
    to: i64,
    beyond: BTreeSet<i64>,
}

impl SeenKeys {
    /// False for one that was known.
    fn insert(&mut self, id: i64) -> bool {
        let is_new = id > self.to && self.beyond.insert(id);
        while self.beyond.remove(&(self.to + 1)) {
            self.to += 1;
        }
        is_new
    }
}

/// Asks for rows that are new until all are there.
fn watch(load: Load<'_>, gauge: &Gauge) -> Result<(Differences, Histogram<u64>), Error> {
    let failed = |error| Error::from_postgres(STAGE, Role::Target, error);
    let (runtime, client) = load.run.watcher()?;
    let sql = format!(
        "SELECT id, due_us, (extract(epoch FROM applied_at) * 1000000)::bigint FROM {} WHERE id > $1 ORDER BY id",
        load.table.name
    );
    let look = runtime.block_on(client.prepare(&sql)).map_err(failed)?;
    let (mut applied, mut visible) = (Differences::default(), histogram()?);
    let mut keys = SeenKeys { to: load.first_id - 1, beyond: BTreeSet::new() };
    let (mut last_new, limit) = (load.start, load.run.plan.limit);
    while keys.to < load.last_id() {
        load.run.over.check()?;
        let rows = runtime.block_on(client.query(&look, &[&keys.to])).map_err(failed)?;
        let now = Instant::now();
        let now_us = load.clock.us(now);
        for row in &rows {
            let (id, due_us, applied_us) = columns(row).map_err(failed)?;
            if !keys.insert(id) {
                continue;
            }
            last_new = now;
            if load.is_measured(id) {
                applied.0.push(applied_us - due_us);
                record(&mut visible, now_us - due_us);
            }
        }
        gauge.set((keys.to - load.first_id + 1).unsigned_abs());
        // A row that is not due yet is not late.
        if now.saturating_duration_since(last_new.max(load.due_of_next(&keys))) > limit {
            return Err(timed_out(
                format!("that row {} of {} comes to the target", keys.to + 1, load.table.name),
                limit,
            ));
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok((applied, visible))
}

fn columns(row: &Row) -> Result<(i64, i64, i64), tokio_postgres::Error> {
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_count_once_in_whatever_order_they_come() {
        let mut keys = SeenKeys { to: 0, beyond: BTreeSet::new() };
        let new: Vec<_> = [2, 3, 2, 1, 3, 5, 4, 5].map(|id| keys.insert(id)).to_vec();
        assert_eq!(new, [true, true, false, true, false, true, true, false]);
        assert!(keys.to == 5 && keys.beyond.is_empty());
    }

    #[test]
    fn the_clock_of_the_target_is_put_right() {
        let differences = Differences(vec![5_000_400, 5_001_000, 4_999_000]);
        let histogram = differences.corrected(5_000_000).unwrap();
        assert_eq!((histogram.len(), histogram.min(), histogram.max()), (3, 1, 1_000));
    }
}
