//! The locks of a copy on the source: each of its sessions has them before any of them reads a row.
//!
//! In: the sessions, each in a transaction of the snapshot. Out: the parts as they are under the locks.
//!
//! A TRUNCATE, or an ALTER TABLE that rewrites the table, leaves nothing that an older snapshot sees ("Caveats" of MVCC). Under our
//! locks both wait, on a standby as part of replay, which stands still meanwhile. Whoever then asks for a lock on such a table waits
//! behind replay. If that is a session of the copy, and replay waits for another one, all of them wait for ever: PostgreSQL sees no
//! circle, because the session that holds the lock waits for nobody on that server.
//!
//! **Always holds:**
//! - No session of a copy that holds locks waits long for another lock. It gives up, and with it everything that the copy holds.
//! - While the locks are being taken, replay passes between two tries.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::parts::{self, Part};
use super::{STAGE, Wanted, source_failed};
use crate::error::{Error, Kind};
use crate::postgres::OwnRows;
use crate::source::Connection;

/// How long one try waits for a lock. Replay may be waiting for those that the try has taken.
const TRY_LIMIT: &str = "500ms";
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// Which tables are locked by others is said this often.
const NOTICE_INTERVAL: Duration = Duration::from_secs(30);
/// For what is locked later: indexes when a query is planned, and tables that were left out for want of room in the lock table. Such
/// a wait ends the copy, and the next try goes on where it was.
const LATER_LIMIT: &str = "30s";
/// So much of the source's lock table may be taken by the sessions that read: one part in this many.
const LOCK_TABLE_SHARE: i64 = 4;

/// Locks the parts of these tables in all sessions until their transactions end.
///
/// # Errors
/// [`Kind::Rewritten`] if a table is no longer what the snapshot has seen; [`Kind::Interrupted`] once `over`.
pub(super) async fn lock(
    source: &Client,
    readers: &mut [Connection],
    (tables, mut parts): (&[Wanted], Vec<Part>),
    over: &AtomicBool,
) -> Result<Vec<Part>, Error> {
    // Nobody can lock a foreign table.
    parts.retain(|part| !part.is_foreign);
    if parts.is_empty() {
        return parts::read(source, tables).await;
    }
    let all = statement(&parts);
    // Each session takes a place of its own for every lock. Where there is no room for all, the largest tables have them: several
    // sessions read those.
    let room = room(source, readers.len()).await?;
    parts.sort_by_key(|part| std::cmp::Reverse(part.source_bytes));
    parts.truncate(room);
    let largest = statement(&parts);
    let mut said_at = None;
    while !try_lock(source, readers, (&all, &largest)).await? {
        if over.load(Ordering::Acquire) {
            return Err(Error::new(STAGE, Kind::Interrupted));
        }
        if said_at.is_none_or(|at: Instant| at.elapsed() >= NOTICE_INTERVAL) {
            said_at = Some(Instant::now());
            let locked = locked_by_others(source, tables).await?;
            tracing::warn!(
                tables = locked.join(", "),
                "the copy waits for a transaction of the primary that alters, truncates or locks tables, and holds no lock meanwhile"
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
    // What came between the snapshot and the lock shows in the file's number: the catalog is read as of the snapshot, the function
    // tells what is.
    let parts = parts::read(source, tables).await?;
    match parts.iter().find(|part| !part.is_unchanged) {
        Some(part) => Err(Error::new(STAGE, Kind::Rewritten).on(part.name.clone())),
        None => Ok(parts),
    }
}

fn statement(parts: &[Part]) -> String {
    let list: Vec<_> = parts.iter().map(|part| OwnRows::of(&part.name, false).to_string()).collect();
    match list.as_slice() {
        [] => String::new(),
        list => format!("LOCK TABLE {} IN ACCESS SHARE MODE;", list.join(", ")),
    }
}

/// How many locks each of so many sessions may take.
async fn room(source: &Client, sessions: usize) -> Result<usize, Error> {
    let sql = "SELECT current_setting('max_locks_per_transaction')::bigint \
               * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint)";
    let locks: i64 = source.query_one(sql, &[]).await.map_err(source_failed)?.try_get(0).map_err(source_failed)?;
    Ok(usize::try_from(locks / LOCK_TABLE_SHARE).unwrap_or(0) / sessions.max(1))
}

/// False where one of them would have had to wait: then none holds anything.
async fn try_lock(source: &Client, readers: &mut [Connection], (all, largest): (&str, &str)) -> Result<bool, Error> {
    let begin = |lock| format!("SAVEPOINT locking; SET LOCAL lock_timeout = '{TRY_LIMIT}'; {lock}");
    let keep = format!("RELEASE SAVEPOINT locking; SET LOCAL lock_timeout = '{LATER_LIMIT}'");
    const LET_GO: &str = "ROLLBACK TO SAVEPOINT locking";
    let mut asked = 0;
    let mut locked = match source.batch_execute(&begin(all)).await {
        Ok(()) => true,
        Err(error) if error.code().is_some_and(|code| is_wait(code.code())) => false,
        Err(error) => return Err(source_failed(error)),
    };
    while locked && asked < readers.len() {
        locked = match readers[asked].query(&begin(largest)) {
            Ok(_) => true,
            Err(error) if is_wait(error.code()) => false,
            Err(error) => return Err(error),
        };
        asked += 1;
    }
    let end = if locked { keep.as_str() } else { LET_GO };
    source.batch_execute(end).await.map_err(source_failed)?;
    for reader in &mut readers[..asked] {
        reader.query(end)?;
    }
    Ok(locked)
}

/// Somebody else has the lock, or waits for it.
fn is_wait(sqlstate: &str) -> bool {
    [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED].iter().any(|code| code.code() == sqlstate)
}

/// Those of the tables that somebody holds a lock of that keeps readers out, replay included.
async fn locked_by_others(source: &Client, tables: &[Wanted]) -> Result<Vec<String>, Error> {
    let sql = "SELECT DISTINCT w.name FROM unnest($1::text[]) AS w (name) \
               CROSS JOIN LATERAL (SELECT to_regclass(w.name)::oid UNION SELECT t.relid::oid FROM pg_partition_tree(to_regclass(w.name)) t) \
                   AS part (oid) \
               JOIN pg_locks l ON l.relation = part.oid AND l.mode = 'AccessExclusiveLock' \
                   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1";
    let names: Vec<_> = tables.iter().map(|wanted| wanted.table.to_string()).collect();
    let rows = source.query(sql, &[&names]).await.map_err(source_failed)?;
    rows.iter().map(|row| row.try_get(0).map_err(source_failed)).collect()
}
