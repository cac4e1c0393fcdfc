//! The initial copy: the rows that were there before the changes, from the source to the target.
//!
//! In: tables that the target does not have yet. Out: their rows on the target, and for each table the LSN of the snapshot
//! that they are of.
//!
//! ```text
//!  temporary slot on B ──► snapshot at a known LSN ──► parts and chunks, largest table first
//!                                                          │
//!        jobs, a thread and two sessions each:  COPY out of B ══► COPY into C, chunk_state, COMMIT
//!                                                          └─ after the last chunk of a table: finishedcopy
//!        then indexes that were dropped before, and at last ANALYZE
//! ```
//!
//! **Always holds:**
//! - The rows of a table are all of one snapshot, and its LSN stands in `table_state` before the first of them is there.
//!   A transaction whose commit record lies before that LSN is in the copy, and only then.
//! - A copy that was interrupted goes on under a new snapshot. What it finds on the target is first made a part of what that
//!   snapshot sees, so that again all rows of the table are of one snapshot in the end.
//! - A chunk's rows and the record of it are one transaction of the target, which holds the engine's epoch.
//! - Rows pass unread, and no more of them are in memory than a chunk of bytes and one row for each job.

mod bars;
mod beginning;
mod deferred;
mod job;
mod parts;
mod progress;
mod pump;
mod state;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pgsluice_proto::Lsn;
use pgsluice_proto::command::SlotSnapshot;
use tokio_postgres::Client;

use self::beginning::Beginning;
use self::deferred::rebuild_indexes;
pub use self::deferred::{Deferred, DeferredKind, Due, Selected, check_rights, read as read_deferred, restore};
use self::job::Job;
use self::parts::{Queue, Xids};
use self::progress::{Progress, View};
pub use self::state::{State, TableCopy, learn, read, resync};
use crate::config::{Config, Role};
use crate::error::{Error, Kind, Stage};
use crate::postgres;
use crate::screen::Screen;
use crate::source::new_slot::{self, Helpers, NewSlot};
use crate::source::publication::TableName;
use crate::source::server::Server;
use crate::source::{Connection, CreatedSlot};

const STAGE: Stage = Stage::Snapshot;
/// How long a slot may wait for transactions that are open on the primary.
const SLOT_LIMIT: Duration = Duration::from_secs(300);

/// What to do with rows that a table of the target has before it is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnExisting {
    /// Copy nothing, and name the tables.
    #[default]
    Refuse,
    /// Remove them.
    Truncate,
    /// Leave them, and add those of the source.
    Append,
}

/// How tables are copied.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    pub on_existing: OnExisting,
    /// Indexes and foreign keys of the target are dropped before, and made again afterwards.
    pub defer_indexes: bool,
    /// Where progress is shown.
    pub screen: Screen,
}

/// A table to be copied.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub table: TableName,
    /// Those that are published and that the target has, by their names.
    pub columns: Vec<String>,
    /// Their values mean the same bytes on both ends.
    pub binary: bool,
}

/// What all jobs share.
#[derive(Debug)]
struct Copying {
    config: Config,
    epoch: i64,
    snapshot: String,
    xids: Xids,
    queue: Queue,
    progress: Progress,
    failed: AtomicBool,
}

/// Copies the tables under `epoch`, and counts chunks that are done in `done`.
///
/// # Errors
/// A refusal, before anything is written, if a table cannot be copied; whatever either server says. What is done stays.
pub fn copy(
    config: &Config,
    epoch: i64,
    tables: Vec<Wanted>,
    options: &CopyOptions,
    done: &Arc<AtomicUsize>,
) -> Result<(), Error> {
    let runtime = postgres::new_runtime(STAGE)?;
    let (copying, held) = runtime.block_on(prepare(config, epoch, tables, options, done))?;
    tracing::info!(
        tables = copying.queue.tables(),
        chunks = copying.queue.chunks(),
        jobs = config.snapshot.jobs,
        snapshot_lsn = %held.snapshot_lsn,
        "copying starts"
    );
    let jobs = |most: usize| config.snapshot.jobs.min(most);
    copying.progress.during(&options.screen, || {
        run_jobs(jobs(copying.queue.chunks()), &copying.failed, async || Job::run(&copying).await)
    })?;
    // Builds take their time, and what the source keeps for the snapshot must not wait for them.
    drop((held, runtime));
    rebuild_indexes(config, epoch, done)?;
    run_jobs(jobs(copying.queue.tables()), &copying.failed, async || job::analyze(&copying).await)?;
    let View { rows, bytes, .. } = copying.progress.view();
    tracing::info!(rows, bytes, "all tables are copied");
    Ok(())
}

/// What has to last as long as the copy, unused.
struct Held {
    snapshot_lsn: Lsn,
    /// Holds the snapshot.
    _connection: Connection,
    /// Holds the tables as they are.
    _locks: Client,
}

async fn prepare(
    config: &Config,
    epoch: i64,
    tables: Vec<Wanted>,
    options: &CopyOptions,
    done: &Arc<AtomicUsize>,
) -> Result<(Copying, Held), Error> {
    let source = postgres::connect(&config.source, STAGE).await?;
    let target = postgres::connect(&config.target, STAGE).await?;
    postgres::prepare_target(&target, STAGE).await?;
    parts::check_rights(&source, &tables).await?;
    state::check_existing(&target, config.name.as_str(), &tables, options.on_existing).await?;
    warn_of_limits(&source).await?;
    let (connection, slot) = export_snapshot(config, &source).await?;
    let snapshot_lsn = slot.consistent_point;
    let snapshot = slot.snapshot.ok_or_else(panicked)?;
    for sql in adoption(&snapshot) {
        source.batch_execute(&sql).await.map_err(source_failed)?;
    }
    let parts = parts::lock(&source, &tables).await?;
    let xids = Xids::read(&source).await?;
    let name = config.name.as_str();
    let beginning = Beginning { name, epoch, tables: &tables, parts: &parts, options, snapshot_lsn, xids };
    let kept = beginning.write(&source, &target).await?;
    let queue = Queue::new(tables, parts, &kept, config.snapshot.chunk_bytes);
    for table in queue.empty_tables() {
        state::finish(&target, config.name.as_str(), epoch, table).await?;
    }
    let progress = Progress::new(&queue, Arc::clone(done));
    let config = config.clone();
    let copying = Copying { config, epoch, snapshot, xids, queue, progress, failed: AtomicBool::new(false) };
    Ok((copying, Held { snapshot_lsn, _connection: connection, _locks: source }))
}

/// The replication's own slot is idle while tables are copied, and holds WAL. Says which settings would end it.
async fn warn_of_limits(source: &Client) -> Result<(), Error> {
    let sql = "SELECT name, current_setting(name) FROM pg_settings WHERE setting NOT IN ('-1', '0') \
               AND name IN ('max_slot_wal_keep_size', 'idle_replication_slot_timeout')";
    for row in source.query(sql, &[]).await.map_err(source_failed)? {
        let [name, setting]: [String; 2] =
            [row.try_get(0).map_err(source_failed)?, row.try_get(1).map_err(source_failed)?];
        if name == "max_slot_wal_keep_size" {
            tracing::warn!(
                "the source keeps {setting} of WAL at most: if more is written while tables are copied, the \
                 slot is lost; `pgsluice status` shows what is left, and {name} = -1 keeps all"
            );
        } else {
            tracing::warn!(
                "the source gives up slots that are idle for {setting}, as ours is while tables are copied: \
                 set {name} = 0 there if the copy takes longer"
            );
        }
    }
    Ok(())
}

/// A snapshot of the source whose LSN is known: that of a slot which lasts as long as the copy.
async fn export_snapshot(config: &Config, source: &Client) -> Result<(Connection, CreatedSlot), Error> {
    let server = Server::inspect(source, Role::Source, STAGE).await?;
    let primary = match &config.primary {
        Some(endpoint) if server.in_recovery => Some((postgres::connect(endpoint, STAGE).await?, endpoint.role)),
        Some(_) | None => None,
    };
    // Unlike any other: a slot of an engine that is gone may still be about to go, and process IDs repeat.
    let moment = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let name = format!("pgsluice_copy_{}_{moment:x}", std::process::id());
    let new = NewSlot {
        endpoint: &config.source,
        name: &name,
        temporary: true,
        snapshot: SlotSnapshot::Export,
        stage: STAGE,
    };
    let publisher = primary.as_ref().map(|(client, role)| (client, *role));
    let helpers = Helpers { source, server: &server, publisher };
    let (connection, slot, _) = new_slot::create(new, helpers, Instant::now() + SLOT_LIMIT, SLOT_LIMIT).await?;
    Ok((connection, slot))
}

/// The statements that open a transaction which sees what the snapshot sees.
fn adoption(snapshot: &str) -> [String; 2] {
    let snapshot = postgres::quote_literal(snapshot);
    [
        postgres::NO_TRANSACTION_TIMEOUT.to_owned(),
        format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {snapshot}"),
    ]
}

/// Runs so many jobs, each on a thread of its own, until all have ended.
fn run_jobs(jobs: usize, failed: &AtomicBool, job: impl AsyncFn() -> Result<(), Error> + Sync) -> Result<(), Error> {
    let run = || {
        let result = postgres::new_runtime(STAGE).and_then(|runtime| runtime.block_on(job()));
        if result.is_err() {
            failed.store(true, Ordering::Release);
        }
        result
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..jobs).map(|_| scope.spawn(run)).collect();
        let outcomes = running.into_iter().map(|job| job.join().unwrap_or_else(|_| Err(panicked())));
        // All have ended by then; the first error is as good as any.
        outcomes.collect::<Vec<_>>().into_iter().collect()
    })
}

fn panicked() -> Error {
    Error::new(STAGE, Kind::Panicked)
}

fn source_failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(STAGE, Role::Source, error)
}

fn target_failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(STAGE, Role::Target, error)
}

/// What of the stream is in the copy already.
#[derive(Clone, Debug, Default)]
pub struct Copied {
    /// By schema and name, the tables whose snapshot is ahead of progress, with its LSN.
    tables: HashMap<String, HashMap<String, Lsn>>,
    ends_at: Option<Lsn>,
}

impl Copied {
    /// Of the states of all tables, those that matter from `progress` on.
    pub fn new(states: &[TableCopy], progress: Lsn) -> Copied {
        let mut copied = Copied::default();
        for TableCopy { table, snapshot_lsn, .. } in states {
            if let Some(lsn) = snapshot_lsn.filter(|lsn| *lsn > progress) {
                copied.tables.entry(table.schema.clone()).or_default().insert(table.name.clone(), lsn);
                copied.ends_at = copied.ends_at.max(Some(lsn));
            }
        }
        copied
    }

    /// From here on every change is to be applied.
    pub fn ends_at(&self) -> Option<Lsn> {
        self.ends_at
    }

    /// The table's rows hold what the transaction with this commit record has changed.
    pub fn holds(&self, schema: &str, table: &str, commit_lsn: Lsn) -> bool {
        let snapshot_lsn = self.tables.get(schema).and_then(|tables| tables.get(table));
        snapshot_lsn.is_some_and(|snapshot_lsn| commit_lsn < *snapshot_lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_committed_before_the_snapshot_is_in_the_copy() {
        let state = |name: &str, lsn| TableCopy {
            table: TableName { schema: "s".to_owned(), name: name.to_owned() },
            state: State::FinishedCopy,
            snapshot_lsn: Some(Lsn::new(lsn)),
            rows: 0,
            bytes: 0,
            source_bytes: 0,
            source_bytes_copied: 0,
        };
        let copied = Copied::new(&[state("old", 50), state("new", 100), state("newer", 200)], Lsn::new(60));
        assert_eq!(copied.ends_at(), Some(Lsn::new(200)));
        let holds = |table, lsn| copied.holds("s", table, Lsn::new(lsn));
        assert_eq!((holds("new", 99), holds("new", 100), holds("newer", 100)), (true, false, true));
        assert_eq!((holds("old", 40), holds("other", 1), copied.holds("t", "new", Lsn::new(1))), (false, false, false));
        assert_eq!(Copied::new(&[state("old", 50)], Lsn::new(50)).ends_at(), None);
    }
}
