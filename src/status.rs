//! How a replication stands: read from all three servers at one moment, with whatever cannot be read left unknown.
//!
//! Nothing here needs a running engine, and nothing that is unknown is shown as 0.
//!
//! ```text
//!  A ──receive──► B ──replay──► B's decoder ──decode──► engine ──apply──► C
//! ```

use std::time::{Duration, SystemTime};

use pgsluice_proto::Lsn;
use serde::{Serialize, Serializer};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use crate::checkpoint;
use crate::config::{Config, Endpoint, Role, TrailConfig};
use crate::error::{Error, Stage};
use crate::postgres;
use crate::records::{self, TableConflicts};
use crate::skips::{self, Skip};
use crate::snapshot::{self, Deferred, DeferredKind};
use crate::source::publication::Publication;
use crate::source::slot::SlotState;
use crate::trail::{self, WriterState};

const STAGE: Stage = Stage::Status;

#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub name: String,
    pub state: State,
    pub slot: Option<SlotStatus>,
    /// The physical slot on the primary that the source receives from.
    pub primary_slot: Option<SlotStatus>,
    pub progress: Option<ProgressStatus>,
    pub lag: Lags,
    /// How far the initial copy of each table is.
    pub tables: Vec<TableStatus>,
    /// Tables whose changes were not all applied as they came.
    pub conflicts: Vec<TableConflicts>,
    /// Transactions that were passed over, and those that are to be.
    pub skips: Vec<Skip>,
    /// What lies between source and target, where the replication has a trail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trail: Option<TrailStatus>,
    /// Servers that could not be asked, and why.
    pub errors: Vec<String>,
    /// Each by itself, where the replication has shards.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<ShardStatus>,
}

impl Status {
    /// Of which nothing is known.
    pub fn unknown(name: String) -> Status {
        Status {
            name,
            state: State::Unknown,
            slot: None,
            primary_slot: None,
            progress: None,
            lag: Lags::default(),
            tables: Vec::new(),
            conflicts: Vec::new(),
            skips: Vec::new(),
            trail: None,
            errors: Vec::new(),
            shards: Vec::new(),
        }
    }
}

/// One of the replications that are one together.
#[derive(Clone, Debug, Serialize)]
pub struct ShardStatus {
    pub number: usize,
    pub name: String,
    pub state: State,
    pub slot: Option<SlotStatus>,
    pub progress: Option<ProgressStatus>,
    pub lag: Lags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// An engine reads from the slot.
    Streaming,
    /// Tables are not on the target yet. Whether an engine is at work on them shows in their figures.
    Copying,
    /// Set up, and nobody reads.
    Stopped,
    /// The slot can never be used again.
    SlotInvalidated,
    /// The target has progress, and the slot for it is gone.
    SlotMissing,
    /// Neither slot nor progress, or only one of the two that setup makes.
    NotSetUp,
    /// The source or the target cannot be asked.
    Unknown,
}

#[derive(Clone, Debug, Serialize)]
pub struct SlotStatus {
    pub name: String,
    pub active: bool,
    pub wal_status: Option<String>,
    pub invalidation_reason: Option<String>,
    #[serde(serialize_with = "lsn_text")]
    pub confirmed_flush_lsn: Option<Lsn>,
    #[serde(serialize_with = "lsn_text")]
    pub restart_lsn: Option<Lsn>,
    /// WAL that the server keeps for this slot.
    pub retained_bytes: Option<u64>,
    /// WAL that may still be written before the slot is lost; unknown without `max_slot_wal_keep_size`.
    pub safe_wal_bytes: Option<i64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ProgressStatus {
    #[serde(serialize_with = "lsn_text")]
    pub end_lsn: Option<Lsn>,
    /// Of the last transaction applied, by the source's clock, in RFC 3339.
    pub commit_time: Option<String>,
    pub epoch: i64,
    /// Batches that were applied in order because they did not pass as sets.
    pub fallbacks: i64,
}

#[derive(Clone, Debug, Serialize)]
pub struct TableStatus {
    pub table: String,
    pub state: snapshot::State,
    /// What committed before it is in the copy.
    #[serde(serialize_with = "lsn_text")]
    pub snapshot_lsn: Option<Lsn>,
    /// That were copied.
    pub rows: u64,
    /// As they were sent.
    pub bytes: u64,
    /// What the table took on the source's disk when its copy began.
    pub source_bytes: u64,
    /// Of `source_bytes`; unknown for a table that was on the target before.
    pub percent: Option<u64>,
    /// It is in the publication; unknown where the source cannot be asked.
    pub published: Option<bool>,
    /// Dropped for the copy, and not made again yet.
    pub deferred_indexes: usize,
    /// Of this table, likewise.
    pub deferred_foreign_keys: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct TrailStatus {
    pub dir: String,
    /// Of all segments.
    pub bytes: u64,
    pub max_bytes: u64,
    /// Up to where it is on disk.
    #[serde(serialize_with = "lsn_text")]
    pub ends_at: Option<Lsn>,
    /// Who writes, and why nothing is read from the source, if so.
    pub writer: Option<WriterState>,
    pub readers: Vec<ReaderStatus>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ReaderStatus {
    pub name: String,
    /// All before this is on its target.
    #[serde(serialize_with = "lsn_text")]
    pub position: Option<Lsn>,
    /// When it said so.
    pub at: String,
}

/// One hop's lag; unknown is null.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Lag {
    pub bytes: Option<u64>,
    pub seconds: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Lags {
    /// Written on the primary and not received by the standby.
    pub receive: Lag,
    /// Received by the standby and not replayed.
    pub replay: Lag,
    /// Replayed and not sent to the engine.
    pub decode: Lag,
    /// Sent to the engine and not committed on the target. Not counted from what the engine says it has received, which
    /// is only as fresh as its last status update.
    pub apply: Lag,
    /// Written on the primary (or the source, without one) and not committed on the target.
    pub total: Lag,
}

fn lsn_text<S: Serializer>(lsn: &Option<Lsn>, serializer: S) -> Result<S::Ok, S::Error> {
    lsn.map(|lsn| lsn.to_string()).serialize(serializer)
}

/// What the source says of itself and of our slot.
#[derive(Debug, Default)]
struct SourceView {
    slot: Option<SlotState>,
    in_recovery: bool,
    /// Replayed, or written on a primary.
    position: Option<Lsn>,
    received: Option<Lsn>,
    replay_delay_s: Option<f64>,
    /// Of our walsender.
    sent: Option<Lsn>,
    now: Option<SystemTime>,
    receiver_slot: Option<String>,
    /// When the last transaction that it has replayed committed.
    replayed_at: Option<SystemTime>,
    /// The engine has said that nothing of what it has received is still to be applied.
    nothing_in_flight: bool,
    /// Tables of the publication, quoted.
    published: Option<Vec<String>>,
}

/// What the primary says of its end of the first hop.
#[derive(Debug, Default)]
struct PrimaryView {
    slot: Option<SlotState>,
    position: Option<Lsn>,
    receive_delay_s: Option<f64>,
    now: Option<SystemTime>,
}

/// What is known of the server that takes writes.
#[derive(Debug)]
enum Primary {
    /// The configuration names none: the source is all that is known.
    None,
    /// It cannot be asked.
    Unknown,
    Known(Box<PrimaryView>),
}

impl Primary {
    fn view(&self) -> Option<&PrimaryView> {
        match self {
            Primary::Known(view) => Some(view),
            Primary::None | Primary::Unknown => None,
        }
    }
}

impl PrimaryView {
    fn slot_status(&self) -> Option<SlotStatus> {
        self.slot.as_ref().map(|slot| slot_status(slot, self.position))
    }
}

/// What the target says.
#[derive(Debug, Default)]
struct TargetView {
    progress: Option<checkpoint::Progress>,
    tables: Vec<snapshot::TableCopy>,
    deferred: Vec<Deferred>,
    conflicts: Vec<TableConflicts>,
    skips: Vec<Skip>,
}

/// Asks all servers; one that cannot be asked becomes a line in `errors`.
pub async fn read(config: &Config) -> Status {
    let mut errors = Vec::new();
    let mut note = |error: Error| errors.push(error.to_string());
    let source = read_source(config).await.map_err(&mut note).ok();
    let receiver_slot = source.as_ref().and_then(|source| source.receiver_slot.clone());
    let primary = match &config.primary {
        Some(endpoint) => read_primary(endpoint, receiver_slot.as_deref()).await.map_err(&mut note).ok(),
        None => None,
    };
    let target = read_target(config).await.map_err(&mut note).ok();
    let trail = config.trail.as_ref().and_then(|trail| trail_status(trail).map_err(&mut note).ok());
    let is_known = target.is_some();
    let TargetView { progress, tables, deferred, conflicts, skips } = target.unwrap_or_default();
    let published = source.as_ref().and_then(|source| source.published.clone());
    let is_published =
        |copy: &snapshot::TableCopy| published.as_ref().map(|names| names.contains(&copy.table.to_string()));
    // One that has left the publication is copied only if it comes again.
    let copying = tables.iter().any(|copy| copy.is_missing() && is_published(copy) != Some(false));
    let state = state(source.as_ref(), is_known.then_some(progress.as_ref()), copying);
    let primary = match (&config.primary, primary) {
        (None, _) => Primary::None,
        (Some(_), None) => Primary::Unknown,
        (Some(_), Some(view)) => Primary::Known(Box::new(view)),
    };
    let lag = lags(source.as_ref(), &primary, progress.as_ref());
    let source = source.unwrap_or_default();
    Status {
        name: config.name.to_string(),
        state,
        slot: source.slot.as_ref().map(|slot| slot_status(slot, source.position)),
        primary_slot: primary.view().and_then(PrimaryView::slot_status),
        progress: progress.map(|progress| ProgressStatus {
            end_lsn: Some(progress.end_lsn),
            commit_time: progress.commit_time.map(|time| humantime::format_rfc3339_micros(time).to_string()),
            epoch: progress.epoch,
            fallbacks: progress.fallbacks,
        }),
        lag,
        tables: tables
            .into_iter()
            .map(|table| {
                let published = is_published(&table);
                table_status(table, published, &deferred)
            })
            .collect(),
        conflicts,
        skips,
        trail,
        errors,
        shards: Vec::new(),
    }
}

fn trail_status(config: &TrailConfig) -> Result<TrailStatus, Error> {
    let trail = trail::list(config)?;
    let reader =
        |reader: trail::Reader| ReaderStatus { name: reader.name, position: Some(reader.position), at: reader.at };
    Ok(TrailStatus {
        dir: config.dir.display().to_string(),
        bytes: trail.bytes,
        max_bytes: config.max_bytes,
        ends_at: trail.ends_at,
        writer: trail.writer,
        readers: trail.readers.into_iter().map(reader).collect(),
    })
}

fn table_status(copy: snapshot::TableCopy, published: Option<bool>, deferred: &[Deferred]) -> TableStatus {
    let percent = copy.percent();
    let snapshot::TableCopy { table, state, snapshot_lsn, rows, bytes, source_bytes, .. } = copy;
    let of_table = deferred.iter().filter(|one| one.table == table);
    let (foreign_keys, indexes): (Vec<_>, Vec<_>) = of_table.partition(|one| one.kind == DeferredKind::ForeignKey);
    let (deferred_indexes, deferred_foreign_keys) = (indexes.len(), foreign_keys.len());
    let table = table.to_string();
    TableStatus {
        table,
        state,
        snapshot_lsn,
        rows,
        bytes,
        source_bytes,
        percent,
        published,
        deferred_indexes,
        deferred_foreign_keys,
    }
}

fn state(source: Option<&SourceView>, progress: Option<Option<&checkpoint::Progress>>, copying: bool) -> State {
    let (Some(source), Some(progress)) = (source, progress) else { return State::Unknown };
    match (&source.slot, progress) {
        (Some(slot), _) if slot.invalidation().is_some() => State::SlotInvalidated,
        (Some(slot), Some(_)) if slot.active => State::Streaming,
        (Some(_), Some(_)) if copying => State::Copying,
        (Some(_), Some(_)) => State::Stopped,
        (None, Some(_)) => State::SlotMissing,
        (Some(_) | None, None) => State::NotSetUp,
    }
}

fn slot_status(slot: &SlotState, position: Option<Lsn>) -> SlotStatus {
    SlotStatus {
        name: slot.slot_name.clone(),
        active: slot.active,
        wal_status: slot.wal_status.clone(),
        invalidation_reason: slot.invalidation().map(str::to_owned),
        confirmed_flush_lsn: slot.confirmed_flush_lsn,
        restart_lsn: slot.restart_lsn,
        retained_bytes: between(position, slot.restart_lsn),
        safe_wal_bytes: slot.safe_wal_size,
    }
}

fn lags(source: Option<&SourceView>, primary: &Primary, progress: Option<&checkpoint::Progress>) -> Lags {
    let end_lsn = progress.map(|progress| progress.end_lsn);
    let is_primary = source.is_some_and(|source| !source.in_recovery);
    let position = source.and_then(|source| source.position);
    // Where writes are: what a server that cannot be asked has written is not known.
    let head = match primary {
        _ if is_primary => position,
        Primary::Known(view) => view.position,
        Primary::Unknown => None,
        Primary::None => position,
    };
    let (mut receive, mut replay, mut decode, mut apply) =
        (Lag::default(), Lag::default(), Lag::default(), Lag::default());
    if let Some(source) = source {
        if source.in_recovery {
            receive.bytes = between(primary.view().and_then(|primary| primary.position), source.received);
            receive.seconds = primary.view().and_then(|primary| primary.receive_delay_s);
            replay.bytes = between(source.received, position);
            // Without new transactions the time of the last one says nothing about lag.
            replay.seconds = if replay.bytes == Some(0) { Some(0.0) } else { source.replay_delay_s };
        }
        decode.bytes = between(position, source.sent);
        apply.bytes = between(source.sent, end_lsn);
    }
    let bytes = between(head, end_lsn);
    let seconds = match source {
        // What is between the standby and its primary is all that is left.
        Some(source) if has_all(source, decode, progress) => match (is_primary, primary) {
            (true, _) | (false, Primary::None) => Some(0.0),
            (false, Primary::Known(_) | Primary::Unknown) => {
                receive.seconds.zip(replay.seconds).map(|(receive, replay)| receive.max(replay))
            }
        },
        Some(_) | None => {
            let now = match primary {
                Primary::Known(view) => view.now,
                Primary::Unknown => None,
                Primary::None => source.and_then(|source| source.now),
            };
            total_seconds(bytes, now, progress)
        }
    };
    Lags { receive, replay, decode, apply, total: Lag { bytes, seconds } }
}

/// All that the source shows is on the target, though WAL that changes nothing goes on: its last transaction is, or the engine has
/// answered for all that it was sent.
fn has_all(source: &SourceView, decode: Lag, progress: Option<&checkpoint::Progress>) -> bool {
    let applied = progress.and_then(|progress| progress.commit_time);
    let is_last = source.replayed_at.zip(applied).is_some_and(|(replayed, applied)| replayed <= applied);
    is_last || source.nothing_in_flight && decode.bytes == Some(0)
}

/// The age of the last transaction that was applied, if anything came after it. The clock by which transactions are dated is that of
/// whoever writes them.
fn total_seconds(bytes: Option<u64>, now: Option<SystemTime>, progress: Option<&checkpoint::Progress>) -> Option<f64> {
    if bytes? == 0 {
        return Some(0.0);
    }
    let age = now?.duration_since(progress?.commit_time?).unwrap_or(Duration::ZERO);
    Some(age.as_secs_f64())
}

fn between(ahead: Option<Lsn>, behind: Option<Lsn>) -> Option<u64> {
    Some(ahead?.bytes_since(behind?))
}

async fn read_target(config: &Config) -> Result<TargetView, Error> {
    let (client, name) = (postgres::connect(&config.target, STAGE).await?, config.name.as_str());
    let progress = checkpoint::read(&client, name).await?;
    if progress.is_none() {
        return Ok(TargetView::default());
    }
    Ok(TargetView {
        progress,
        tables: snapshot::read(&client, name).await?,
        deferred: snapshot::read_deferred(&client, name).await?,
        conflicts: records::read_conflicts(&client, name).await?,
        skips: skips::list(&client, config).await?,
    })
}

async fn read_source(config: &Config) -> Result<SourceView, Error> {
    let client = postgres::connect(&config.source, STAGE).await?;
    let slot = SlotState::read(&client, Role::Source, &config.slot(), STAGE).await?;
    let sql = "SELECT pg_is_in_recovery(), \
               CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, \
               CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() END, \
               CASE WHEN pg_is_in_recovery() \
                    THEN extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 END, \
               r.sent_lsn, clock_timestamp(), (SELECT slot_name::text FROM pg_stat_wal_receiver), \
               CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp() END, \
               COALESCE(r.flush_lsn >= r.write_lsn, false) \
               FROM (SELECT) AS one LEFT JOIN pg_stat_replication r ON r.pid = $1";
    let active_pid = slot.as_ref().and_then(|slot| slot.active_pid);
    let failed = |error| Error::from_postgres(STAGE, Role::Source, error);
    let row = client.query_one(sql, &[&active_pid]).await.map_err(failed)?;
    let publication = Publication::read(&client, Role::Source, &config.publication(), STAGE).await?;
    let published = publication.map(|it| it.tables.iter().map(|one| one.table.to_string()).collect());
    let view = || -> Result<SourceView, tokio_postgres::Error> {
        Ok(SourceView {
            slot,
            in_recovery: row.try_get(0)?,
            position: lsn(&row, 1)?,
            received: lsn(&row, 2)?,
            replay_delay_s: row.try_get(3)?,
            sent: lsn(&row, 4)?,
            now: row.try_get(5)?,
            receiver_slot: row.try_get(6)?,
            replayed_at: row.try_get(7)?,
            nothing_in_flight: row.try_get(8)?,
            published,
        })
    };
    view().map_err(failed)
}

/// The primary's walsender that serves the source is known by the physical slot that it serves.
async fn read_primary(endpoint: &Endpoint, receiver_slot: Option<&str>) -> Result<PrimaryView, Error> {
    let client: Client = postgres::connect(endpoint, STAGE).await?;
    let only = match receiver_slot {
        Some(_) => None,
        None => only_physical_slot(&client).await?,
    };
    let receiver_slot = receiver_slot.or(only.as_deref());
    let sql = "SELECT pg_current_wal_lsn(), extract(epoch FROM r.write_lag)::float8, r.pid IS NOT NULL, \
               r.write_lsn = pg_current_wal_lsn(), clock_timestamp() \
               FROM (SELECT) AS one \
               LEFT JOIN pg_replication_slots s ON s.slot_name = $1 \
               LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid";
    let slot = match receiver_slot {
        Some(slot) => SlotState::read(&client, Role::Primary, slot, STAGE).await?,
        None => None,
    };
    let failed = |error| Error::from_postgres(STAGE, Role::Primary, error);
    let row = client.query_one(sql, &[&receiver_slot]).await.map_err(failed)?;
    let lag: Option<f64> = row.try_get(1).map_err(failed)?;
    let caught_up: Option<bool> = row.try_get(3).map_err(failed)?;
    Ok(PrimaryView {
        slot,
        position: lsn(&row, 0).map_err(failed)?,
        // PostgreSQL clears the figure once a caught-up standby has been idle for a while.
        receive_delay_s: lag.or(if caught_up == Some(true) { Some(0.0) } else { None }),
        now: row.try_get(4).map_err(failed)?,
    })
}

/// While the standby cannot be asked, or receives nothing: where there is one such slot, it is that of the standby.
async fn only_physical_slot(client: &Client) -> Result<Option<String>, Error> {
    let sql = "SELECT slot_name::text FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary LIMIT 2";
    let failed = |error| Error::from_postgres(STAGE, Role::Primary, error);
    let rows = client.query(sql, &[]).await.map_err(failed)?;
    match rows.as_slice() {
        [row] => row.try_get(0).map(Some).map_err(failed),
        _ => Ok(None),
    }
}

fn lsn(row: &Row, column: usize) -> Result<Option<Lsn>, tokio_postgres::Error> {
    Ok(row.try_get::<_, Option<PgLsn>>(column)?.map(|lsn| Lsn::new(lsn.into())))
}
