//! How fast rows come to C that A takes as fast as it can.
//!
//! Writers share the chunks, each a transaction. C has all of them once it has the last row of each writer: what one session commits is
//! applied in its order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio_postgres::types::ToSql;

use crate::config::Role;
use crate::error::{Error, Kind};

use super::engine::timed_out;
use super::gauge::Gauge;
use super::table::OwnTable;
use super::{DrainPlan, Payload, Run, STAGE, cause, first_cause, joined};

/// Between two looks at C.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The engine may take this many times as long as the writers did before nothing new is a stall: a single transaction is seen whole.
const PATIENCE: u32 = 3;

/// From the first row on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub rows: u64,
    /// Until A had committed the last.
    pub written: Duration,
    /// Until C showed the last.
    pub visible: Duration,
    /// That C has in the end.
    pub rows_on_target: u64,
}

#[derive(Clone, Copy, Debug)]
struct Load<'a> {
    run: &'a Run,
    table: &'a OwnTable,
    plan: DrainPlan,
    payload: &'a Payload,
    first_id: i64,
    /// The next chunk that nobody writes yet.
    next_chunk: &'a AtomicU64,
}

/// The first and the last key of a chunk; `None` beyond the last chunk.
fn keys(plan: DrainPlan, first_id: i64, chunk: u64) -> Option<(i64, i64)> {
    let DrainPlan { rows, chunk_rows, .. } = plan;
    let first = chunk.checked_mul(chunk_rows).filter(|first| *first < rows)?;
    let last = first.saturating_add(chunk_rows).min(rows) - 1;
    Some((first_id + first.cast_signed(), first_id + last.cast_signed()))
}

/// What the watcher has to see, and when the writers were done.
type Written = (Vec<i64>, Instant);

pub(super) fn run(
    run: &Run,
    table: &OwnTable,
    plan: DrainPlan,
    first_id: i64,
    payload: &Payload,
    gauge: &Gauge,
) -> Result<Measured, Error> {
    let next_chunk = AtomicU64::new(0);
    let load = Load { run, table, plan, payload, first_id, next_chunk: &next_chunk };
    let start = Instant::now();
    let (tell, told) = crossbeam_channel::bounded(1);
    let (written, seen) = thread::scope(|scope| {
        let writing: Vec<_> =
            (0..plan.writers).map(|_| scope.spawn(move || load.run.over.noting(write(load)))).collect();
        let watching = scope.spawn(move || load.run.over.noting(watch(load, start, &told, gauge)));
        let written: Vec<_> = writing.into_iter().map(joined).collect();
        let written = first_cause(written).map(|last| (last.into_iter().flatten().collect(), Instant::now()));
        let written = written.map(|written: Written| {
            // Nobody listens where the watcher has failed.
            drop(tell.send(written.clone()));
            written.1
        });
        drop(tell);
        (written, joined(watching))
    });
    let ((visible_at, rows_on_target), written_at) = match (seen, written) {
        (Ok(seen), Ok(written)) => (seen, written),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => return Err(error),
        (Err(one), Err(other)) => return Err(cause(one, other)),
    };
    let (written, visible) = (written_at - start, visible_at - start);
    Ok(Measured { rows: plan.rows, written, visible, rows_on_target })
}

/// Writes chunks until there are no more; returns the key of its last row.
fn write(load: Load<'_>) -> Result<Option<i64>, Error> {
    let role = load.run.config.publisher().role;
    let failed = |error| Error::from_postgres(STAGE, role, error);
    let (runtime, client) = load.run.writer()?;
    // Made on A, so that the way there is no part of it.
    let sql = format!(
        "INSERT INTO {} (id, due_us, payload) \
         SELECT g, 0, substr($3::text, 1 + (g % $4::bigint)::int, $5::int) FROM generate_series($1::bigint, $2::bigint) g",
        load.table.name
    );
    let insert = runtime.block_on(client.prepare(&sql)).map_err(failed)?;
    let places = Payload::PLACES as i64;
    let row_bytes = load.payload.row_bytes as i32;
    let mut last_id = None;
    while let Some((first, last)) = keys(load.plan, load.first_id, load.next_chunk.fetch_add(1, Ordering::Relaxed)) {
        load.run.over.check()?;
        let parameters: [&(dyn ToSql + Sync); 5] = [&first, &last, &load.payload.pool, &places, &row_bytes];
        let writing = async { client.execute(&insert, &parameters).await.map_err(failed) };
        runtime.block_on(load.run.over.or(writing))?;
        last_id = Some(last);
    }
    Ok(last_id)
}

/// Looks at C until the last row of each writer is there. Returns when that was, and how many rows there are.
fn watch(load: Load<'_>, start: Instant, told: &Receiver<Written>, gauge: &Gauge) -> Result<(Instant, u64), Error> {
    let failed = |error| Error::from_postgres(STAGE, Role::Target, error);
    let (runtime, client) = load.run.watcher()?;
    let table = &load.table.name;
    let sql = format!("SELECT (SELECT max(id) FROM {table}), (SELECT count(*) FROM {table} WHERE id = ANY ($1))");
    let look = runtime.block_on(client.prepare(&sql)).map_err(failed)?;
    let mut written: Option<Written> = None;
    let (mut last_new, mut newest) = (start, 0);
    loop {
        load.run.over.check()?;
        let last_ids = written.as_ref().map_or(&[][..], |(last_ids, _)| last_ids);
        let row = runtime.block_on(client.query_one(&look, &[&last_ids])).map_err(failed)?;
        let now = Instant::now();
        let (max, there): (Option<i64>, i64) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        if max.is_some_and(|max| max > newest) {
            (last_new, newest) = (now, max.unwrap_or(newest));
            gauge.set((newest - load.first_id + 1).max(0).unsigned_abs());
        }
        match &written {
            Some((last_ids, _)) if there.unsigned_abs() as usize == last_ids.len() => {
                let sql = format!("SELECT count(*) FROM {table} WHERE id >= $1");
                let row = runtime.block_on(client.query_one(&sql, &[&load.first_id])).map_err(failed)?;
                return Ok((now, row.try_get::<_, i64>(0).map_err(failed)?.unsigned_abs()));
            }
            Some((_, written_at)) => {
                let limit = load.run.plan.limit.max(PATIENCE * (*written_at - start));
                if now - last_new.max(*written_at) > limit {
                    return Err(timed_out(format!("that the rows of {table} come to the target"), limit));
                }
                thread::sleep(POLL_INTERVAL);
            }
            None => match told.recv_timeout(POLL_INTERVAL) {
                Ok(told) => written = Some(told),
                Err(RecvTimeoutError::Timeout) => {}
                // A writer has failed, and says why.
                Err(RecvTimeoutError::Disconnected) => return Err(Error::new(STAGE, Kind::Interrupted)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_have_every_row_once() {
        let keys = |rows: u64, chunk_rows: u64| -> Vec<(i64, i64)> {
            let plan = DrainPlan { rows, chunk_rows, writers: 1 };
            (0..).map_while(|chunk| super::keys(plan, 10, chunk)).collect()
        };
        assert_eq!(keys(5, 2), [(10, 11), (12, 13), (14, 14)]);
        assert_eq!(keys(4, 2), [(10, 11), (12, 13)]);
        assert_eq!(keys(1, 1_000), [(10, 10)]);
    }
}
