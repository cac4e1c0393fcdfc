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
//!        what follows comes by the stream, or first by one of the same slot
//! ```
//!
//! **Always holds:**
//! - The rows of a table are all of one snapshot, and its LSN stands in `table_state` before the first of them is there.
//!   A transaction whose commit record lies before that LSN is in the copy, and only then.
//! - A copy that was interrupted goes on under a new snapshot. What it finds on the target is first made a part of what that
//!   snapshot sees, so that again all rows of the table are of one snapshot in the end.
//! - A chunk's rows and the record of it are one transaction of the target, which holds the engine's epoch.
//! - Rows that no rule remakes pass unread, and no more of them are in memory than a chunk of bytes and one row for each job.

mod bars;
mod beginning;
mod deferred;
mod emptying;
mod identity;
mod job;
mod locks;
mod partitions;
mod parts;
mod progress;
mod pump;
mod remake;
mod retention;
mod rows;
mod state;
mod view;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pgsluice_proto::Lsn;
use pgsluice_proto::command::SlotSnapshot;
use tokio_postgres::Client;

use self::beginning::Beginning;
use self::deferred::Building;
pub use self::deferred::{Deferred, DeferredKind, Due, Selected, check_rights, read as read_deferred, restore};
pub use self::emptying::{Removal, check_before, check_removal};
pub use self::identity::{Judged, compare, judge, leave, replace, settle};
use self::job::Job;
use self::parts::{Part, Queue, Xids};
use self::progress::Progress;
pub use self::rows::Rows;
pub use self::state::{Ruled, State, TableCopy, foresee, forget, learn, mark_absent, matching, read, resync};
use self::view::View;
use crate::config::{Config, Role};
use crate::error::{Error, Kind, Stage};
use crate::postgres::{self, OwnRows, quote_ident, quote_literal};
use crate::screen::Screen;
use crate::source::Connection;
use crate::source::identity::TableIdentity;
use crate::source::new_slot::{self, Helpers, NewSlot};
use crate::source::publication::{Publication, TableName};
use crate::source::server::Server;
use crate::transform::Plan;

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
    /// Columns of the source that are read, by their names.
    pub columns: Vec<String>,
    /// One of them is generated, which COPY gives of a query only.
    pub has_generated: bool,
    pub target: Target,
    /// The values mean the same bytes on both ends.
    pub binary: bool,
    /// Where rules make other rows of those that are read.
    pub plan: Option<Arc<Plan>>,
    /// What decides what becomes of rows; `None` where no rule is about the table.
    pub rules: Option<String>,
    /// A copy of it was begun before, and the target may have rows of that.
    pub is_begun: bool,
    /// Which table of the source it is.
    pub identity: Option<Arc<TableIdentity>>,
}

/// Where a table's rows go.
#[derive(Clone, Debug)]
pub struct Target {
    pub table: TableName,
    /// The same, as statements have to name it that read or remove rows.
    pub rows: OwnRows,
    /// In the order in which rows bring them.
    pub columns: Vec<String>,
    /// Columns and values that mark the rows of this source; without any, all are.
    pub own: Vec<(String, String)>,
    /// Both in words.
    pub place: String,
    /// For columns of the source those of the target that have the same values, under their names there.
    pub same: HashMap<String, String>,
    /// By columns of the target, the operator that compares values where it is not one of `pg_catalog`.
    pub equality: HashMap<String, String>,
}

impl Target {
    /// A condition that a row is of this source.
    fn is_own(&self) -> String {
        let is = |(column, value): &(String, String)| {
            format!("{} {} {}", quote_ident(column), self.equality(column), quote_literal(value))
        };
        match self.own.as_slice() {
            [] => "true".to_owned(),
            marks => marks.iter().map(is).collect::<Vec<_>>().join(" AND "),
        }
    }

    /// What compares values of this column. A session of ours finds no operator by a search path.
    fn equality(&self, column: &str) -> &str {
        self.equality.get(column).map_or("=", String::as_str)
    }
}

/// What brings the changes that come after the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// The stream of all tables: it waits until they are copied.
    Stream,
    /// A stream of these tables alone, from the slot that the snapshot is of, until it is up with the other.
    CatchUp,
}

impl Follows {
    /// Of a table whose chunks are all there.
    fn state(self) -> State {
        match self {
            Follows::Stream => State::FinishedCopy,
            Follows::CatchUp => State::CatchUp,
        }
    }
}

/// What is to be copied, and how.
#[derive(Clone, Debug)]
pub struct Order {
    pub epoch: i64,
    pub tables: Vec<Wanted>,
    pub options: CopyOptions,
    pub follows: Follows,
    /// Counts the chunks that are done.
    pub done: Arc<AtomicUsize>,
    /// Once true, no other chunk is begun.
    pub over: Arc<AtomicBool>,
}

/// The temporary slot that the copied snapshot is of: what it streams is what followed. It lasts as long as its connection.
#[derive(Debug)]
pub struct SnapshotSlot {
    pub connection: Connection,
    pub name: String,
    pub consistent_point: Lsn,
}

/// What all jobs share.
#[derive(Debug)]
struct Copying {
    config: Config,
    epoch: i64,
    follows: Follows,
    /// Sessions on the source that no job has taken yet.
    readers: Mutex<Vec<Connection>>,
    /// The target's triggers and foreign keys fire.
    constraints_fire: bool,
    xids: Xids,
    /// Of the snapshot.
    lsn: Lsn,
    queue: Queue,
    progress: Progress,
    /// A job has failed, or nobody waits for them any more.
    over: Arc<AtomicBool>,
}

impl Copying {
    fn readers(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.readers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes again the indexes that were dropped of these tables, and of those that an earlier copy has finished.
    fn rebuild_indexes(&self) -> Result<(), Error> {
        let building =
            Building { config: &self.config, epoch: self.epoch, done: self.progress.done(), over: &self.over };
        building.rebuild_indexes(|one| one.due == Due::Now || self.queue.holds(&one.table)).map(drop)
    }
}

/// Copies the tables, and returns the slot that holds what follows, if it is to be asked for that; `None` also where it was
/// over before the end.
///
/// # Errors
/// A refusal, before anything is written, if a table cannot be copied; whatever either server says. What is done stays.
pub fn copy(config: &Config, order: Order) -> Result<Option<SnapshotSlot>, Error> {
    let runtime = postgres::new_runtime(STAGE)?;
    let (screen, follows) = (order.options.screen.clone(), order.follows);
    let (copying, Held { slot, locks }) = runtime.block_on(prepare(config, order))?;
    tracing::info!(
        tables = copying.queue.tables(),
        chunks = copying.queue.chunks(),
        jobs = config.snapshot.jobs,
        snapshot_lsn = %slot.consistent_point,
        "copying starts"
    );
    let name = slot.name.clone();
    thread::scope(|scope| {
        let (_working, is_working) = crossbeam_channel::bounded(0);
        let span = tracing::Span::current();
        scope.spawn(move || {
            let _span = span.entered();
            // It says more in the log, and nothing else depends on it.
            if let Err(error) = retention::watch(config, &name, &is_working) {
                tracing::warn!(%error, "how much WAL is retained is not known");
            }
        });
        // Each job takes one, so that nobody may hold them while the jobs run.
        let jobs = copying.readers().len();
        copying.progress.during(&screen, || run_jobs(jobs, &copying.over, async || Job::run(&copying).await))?;
        if copying.over.load(Ordering::Acquire) {
            return Ok(None);
        }
        // Builds take their time. What the source keeps for the snapshot must not wait for them, but for the slot whose
        // stream follows.
        drop((locks, runtime));
        let mut slot = Some(slot).filter(|_| follows == Follows::CatchUp);
        if let Some(slot) = &mut slot {
            // Any command has it let go of the snapshot, and with that of the rows that only the snapshot sees.
            slot.connection.identify_system()?;
        }
        copying.rebuild_indexes()?;
        let jobs = config.snapshot.jobs.min(copying.queue.tables());
        run_jobs(jobs, &copying.over, async || job::analyze(&copying).await)?;
        if copying.over.load(Ordering::Acquire) {
            return Ok(None);
        }
        let View { rows, bytes, .. } = copying.progress.view();
        tracing::info!(rows, bytes, "all tables are copied");
        Ok(slot)
    })
}

/// Records that all that committed before `lsn` is in these tables, and that the stream of all tables brings what follows.
pub async fn hand_over(
    target: &Client,
    name: &str,
    epoch: i64,
    tables: impl Iterator<Item = &TableName> + Clone,
    lsn: Lsn,
) -> Result<(), Error> {
    state::finish(target, name, epoch, tables, State::FinishedCopy, Some(lsn)).await
}

/// What has to last as long as the copy.
struct Held {
    /// Holds the snapshot.
    slot: SnapshotSlot,
    /// Holds the tables as they are.
    locks: Client,
}

async fn prepare(config: &Config, order: Order) -> Result<(Copying, Held), Error> {
    let Order { epoch, tables, options, follows, done, over } = order;
    let source = postgres::connect(&config.source, STAGE).await?;
    let target = postgres::connect(&config.target, STAGE).await?;
    let constraints_fire = postgres::prepare_target(&target, STAGE).await?;
    parts::check_rights(&source, &tables).await?;
    state::check_existing((&target, &config.target), config.name.as_str(), &tables, options.on_existing).await?;
    retention::warn_of_limits(&source).await?;
    let (slot, snapshot) = export_snapshot(config, &source).await?;
    source.batch_execute(&adoption(&snapshot)).await.map_err(source_failed)?;
    let parts = parts::read(&source, &tables).await?;
    let mut readers = readers(config, &parts, &snapshot)?;
    let parts = locks::lock(&source, &mut readers, (&tables, parts), &over).await?;
    check_identities(&source, config, &tables).await?;
    let xids = Xids::read(&source).await?;
    let name = config.name.as_str();
    let snapshot_lsn = slot.consistent_point;
    let beginning = Beginning {
        name,
        epoch,
        tables: &tables,
        parts: &parts,
        options: &options,
        snapshot_lsn,
        xids,
        constraints_fire,
    };
    let kept = beginning.write(&source, &target).await?;
    let queue = Queue::new(tables, parts, &kept, config.snapshot.chunk_bytes);
    // A session without a chunk to read would only hold locks.
    readers.truncate(queue.chunks());
    state::finish(&target, name, epoch, queue.empty_tables(), follows.state(), None).await?;
    let progress = Progress::new(&queue, done);
    let config = config.clone();
    let (lsn, readers) = (snapshot_lsn, Mutex::new(readers));
    let copying = Copying { config, epoch, follows, readers, constraints_fire, xids, lsn, queue, progress, over };
    Ok((copying, Held { slot, locks: source }))
}

/// The sessions that read, one for each job, in transactions that see what the snapshot sees.
fn readers(config: &Config, parts: &[Part], snapshot: &str) -> Result<Vec<Connection>, Error> {
    let chunks: usize = parts.iter().map(|part| part.chunk_count(config.snapshot.chunk_bytes)).sum();
    let connect = |_| {
        let mut reader = Connection::connect_for_sql(&config.source)?;
        reader.query(&adoption(snapshot))?;
        Ok(reader)
    };
    (0..config.snapshot.jobs.min(chunks)).map(connect).collect()
}

/// The snapshot sees the tables that were to be copied, and not others that have come under their names, or with other columns.
///
/// # Errors
/// [`Kind::TablesToCopy`] if they have changed since: the next session finds out how.
async fn check_identities(source: &Client, config: &Config, tables: &[Wanted]) -> Result<(), Error> {
    let publication = Publication::read(source, Role::Source, &config.publication(), STAGE).await?;
    let published = publication.map(|publication| publication.tables).unwrap_or_default();
    let is_same = |wanted: &&Wanted| {
        let Some(known) = &wanted.identity else { return true };
        let now = published.iter().find(|one| one.table == wanted.table).and_then(|one| one.table_identity.as_ref());
        now.is_some_and(|now| known.is_like(now))
    };
    let changed: Vec<_> = tables.iter().filter(|wanted| !is_same(wanted)).map(|one| one.table.to_string()).collect();
    if changed.is_empty() { Ok(()) } else { Err(Error::new(STAGE, Kind::TablesToCopy(changed))) }
}

/// A snapshot of the source whose LSN is known: that of a new slot.
async fn export_snapshot(config: &Config, source: &Client) -> Result<(SnapshotSlot, String), Error> {
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
    let snapshot = slot.snapshot.ok_or_else(panicked)?;
    Ok((SnapshotSlot { connection, name, consistent_point: slot.consistent_point }, snapshot))
}

/// Opens a transaction which sees what the snapshot sees.
fn adoption(snapshot: &str) -> String {
    let snapshot = postgres::quote_literal(snapshot);
    format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {snapshot}")
}

/// Runs so many jobs, each on a thread of its own, until all have ended.
fn run_jobs(jobs: usize, over: &AtomicBool, job: impl AsyncFn() -> Result<(), Error> + Sync) -> Result<(), Error> {
    let span = tracing::Span::current();
    let run = || {
        let _span = span.enter();
        let result = postgres::new_runtime(STAGE).and_then(|runtime| runtime.block_on(job()));
        if result.is_err() {
            over.store(true, Ordering::Release);
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

    /// The table's rows hold what transactions whose commit record is before this have changed.
    pub fn snapshot_lsn(&self, schema: &str, table: &str) -> Option<Lsn> {
        self.tables.get(schema).and_then(|tables| tables.get(table)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_snapshots_ahead_of_progress_matter() {
        let state = |name: &str, lsn| TableCopy {
            table: TableName { schema: "s".to_owned(), name: name.to_owned() },
            rules: None,
            state: State::FinishedCopy,
            snapshot_lsn: Some(Lsn::new(lsn)),
            rows: 0,
            bytes: 0,
            source_bytes: 0,
            source_bytes_copied: 0,
            appends: false,
            identity: None,
        };
        let copied = Copied::new(&[state("old", 50), state("new", 100), state("newer", 200)], Lsn::new(60));
        assert_eq!(copied.ends_at(), Some(Lsn::new(200)));
        let lsn = |schema, table| copied.snapshot_lsn(schema, table).map(Lsn::as_u64);
        assert_eq!((lsn("s", "new"), lsn("s", "newer")), (Some(100), Some(200)));
        assert_eq!((lsn("s", "old"), lsn("s", "other"), lsn("t", "new")), (None, None, None));
        assert_eq!(Copied::new(&[state("old", 50)], Lsn::new(50)).ends_at(), None);
    }
}
