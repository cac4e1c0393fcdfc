//! How far the copy of each table has come, as the target has it. The words are those of `pg_subscription_rel`.
//!
//! ```text
//!  init ──snapshot──► datasync ──last chunk──► finishedcopy ──progress passes the snapshot──► ready
//!                         └──last chunk──► catchup ──up with the others──► finishedcopy
//! ```

use pgsluice_proto::Lsn;
use serde::Serialize;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use super::identity;
use super::parts::Chunk;
use super::rows::Rows;
use super::{OnExisting, STAGE, Wanted, target_failed};
use crate::checkpoint;
use crate::config::{Config, Endpoint, Name, Pattern, Role};
use crate::error::{Error, Kind};
use crate::postgres;
use crate::source::identity::TableIdentity;
use crate::source::publication::TableName;
use crate::transform::are_same_rules;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing is copied.
    Init,
    /// Chunks are being copied.
    DataSync,
    /// All rows of the snapshot are there; progress is past it, and what followed meanwhile comes by a stream of its own.
    CatchUp,
    /// All rows of the snapshot are there; changes that committed before it are still to be left out.
    FinishedCopy,
    /// Every change is applied.
    Ready,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Init => "init",
            State::DataSync => "datasync",
            State::CatchUp => "catchup",
            State::FinishedCopy => "finishedcopy",
            State::Ready => "ready",
        }
    }

    fn parse(text: &str) -> Option<State> {
        let all = [State::Init, State::DataSync, State::CatchUp, State::FinishedCopy, State::Ready];
        all.into_iter().find(|one| one.as_str() == text)
    }
}

/// One table's state.
#[derive(Clone, Debug)]
pub struct TableCopy {
    pub table: TableName,
    pub state: State,
    /// What committed before it is in the copy.
    pub snapshot_lsn: Option<Lsn>,
    pub rows: u64,
    /// As they were sent.
    pub bytes: u64,
    /// What the table took on the source's disk when its copy began.
    pub source_bytes: u64,
    /// Of chunks that are done.
    pub source_bytes_copied: u64,
    /// Under which its rows came; `None` where there were none.
    pub rules: Option<String>,
    /// Rows that are not the source's were there before, and stay.
    pub appends: bool,
    /// Which table of the source its rows are of; `None` where an earlier version has brought them.
    pub identity: Option<TableIdentity>,
}

impl TableCopy {
    /// How much of the table is copied, of what it takes on the source's disk; `None` where nobody has copied it.
    pub fn percent(&self) -> Option<u64> {
        match (self.state, self.snapshot_lsn) {
            (State::Ready, None) => None,
            (State::CatchUp | State::FinishedCopy | State::Ready, _) => Some(100),
            (State::Init, _) => Some(0),
            // It is done when its state says so.
            (State::DataSync, _) => Some((self.source_bytes_copied * 100 / self.source_bytes.max(1)).min(99)),
        }
    }

    fn new(table: TableName, state: State) -> TableCopy {
        TableCopy {
            table,
            state,
            snapshot_lsn: None,
            rows: 0,
            bytes: 0,
            source_bytes: 0,
            source_bytes_copied: 0,
            rules: None,
            appends: false,
            identity: None,
        }
    }

    /// The target has its rows, and its changes are to follow: it is not known to have left the publication.
    pub fn is_followed(&self) -> bool {
        !self.is_missing() && !self.identity.as_ref().is_some_and(|identity| identity.members.is_empty())
    }

    /// The stream of all tables must not bring the table's changes.
    pub fn is_missing(&self) -> bool {
        matches!(self.state, State::Init | State::DataSync | State::CatchUp)
    }

    fn from_row(row: &Row) -> Result<TableCopy, Error> {
        let text = |column| row.try_get::<_, String>(column).map_err(target_failed);
        let count = |column| row.try_get::<_, i64>(column).map(i64::unsigned_abs).map_err(target_failed);
        let state = text(2)?;
        let state = State::parse(&state).ok_or_else(|| {
            let what = format!("pgsluice.table_state on the target has a state \"{state}\"");
            Error::refused(STAGE, what, "it was written by another version; use that one")
        })?;
        let snapshot_lsn = row.try_get::<_, Option<PgLsn>>(3).map_err(target_failed)?;
        Ok(TableCopy {
            table: TableName { schema: text(0)?, name: text(1)? },
            state,
            snapshot_lsn: snapshot_lsn.map(|lsn| Lsn::new(lsn.into())),
            rows: count(4)?,
            bytes: count(5)?,
            source_bytes: count(6)?,
            source_bytes_copied: count(7)?,
            rules: row.try_get(8).map_err(target_failed)?,
            appends: row.try_get(9).map_err(target_failed)?,
            identity: row.try_get::<_, Option<&str>>(10).map_err(target_failed)?.map(identity::parse).transpose()?,
        })
    }
}

/// The states of all tables of the replication, by name; those whose snapshot progress has passed are ready.
pub async fn read(target: &Client, name: &str) -> Result<Vec<TableCopy>, Error> {
    let sql = "SELECT t.schema_name, t.table_name, \
                   CASE WHEN t.state = 'finishedcopy' AND t.snapshot_lsn <= p.end_lsn THEN 'ready' ELSE t.state END, \
                   t.snapshot_lsn, t.rows, t.bytes, t.source_bytes, \
                   (SELECT COALESCE(sum(c.source_bytes), 0)::bigint FROM pgsluice.chunk_state c \
                    WHERE (c.name, c.schema_name, c.table_name) = (t.name, t.schema_name, t.table_name)), \
                   t.rules, t.appends, to_jsonb(t) ->> 'identity' \
               FROM pgsluice.table_state t JOIN pgsluice.progress p USING (name) WHERE name = $1 ORDER BY 1, 2";
    let rows = target.query(sql, &[&name]).await.map_err(target_failed)?;
    rows.iter().map(TableCopy::from_row).collect()
}

/// A table, with what its rules are and where its rows go.
#[derive(Clone, Debug)]
pub struct Ruled<'a> {
    pub table: &'a TableName,
    pub rules: Option<String>,
    pub place: String,
}

/// Makes the states of tables that have none, and returns those of `tables`, which come with what their rules are.
///
/// # Errors
/// A refusal that names the tables whose rows came under other rules.
pub async fn learn(
    target: &Client,
    name: &str,
    tables: &[Ruled<'_>],
    copy_data: bool,
) -> Result<Vec<TableCopy>, Error> {
    let (schemas, names): (Vec<_>, Vec<_>) =
        tables.iter().map(|one| (one.table.schema.as_str(), one.table.name.as_str())).unzip();
    let rules: Vec<_> = tables.iter().map(|one| one.rules.as_deref()).collect();
    let places: Vec<_> = tables.iter().map(|one| one.place.as_str()).collect();
    let state = if copy_data { State::Init } else { State::Ready };
    let sql = "INSERT INTO pgsluice.table_state (name, schema_name, table_name, state, rules, place) \
               SELECT $1, s, t, $4, r, p FROM unnest($2::text[], $3::text[], $5::text[], $6::text[]) AS w (s, t, r, p) \
               ON CONFLICT DO NOTHING";
    target.execute(sql, &[&name, &schemas, &names, &state.as_str(), &rules, &places]).await.map_err(target_failed)?;
    let ready = "UPDATE pgsluice.table_state t SET state = 'ready', updated_at = now() FROM pgsluice.progress p \
                 WHERE t.name = $1 AND p.name = t.name AND t.state = 'finishedcopy' AND t.snapshot_lsn <= p.end_lsn";
    target.execute(ready, &[&name]).await.map_err(target_failed)?;
    let mut states = read(target, name).await?;
    states.retain(|state| tables.iter().any(|one| *one.table == state.table));
    check_rules(&states, tables)?;
    // They say the same of more columns, or fewer, now.
    let same = "UPDATE pgsluice.table_state t SET rules = r FROM unnest($2::text[], $3::text[], $4::text[]) AS w (s, t, r) \
                WHERE name = $1 AND (schema_name, table_name) = (s, w.t) AND state IN ('catchup', 'finishedcopy', 'ready') \
                AND rules IS DISTINCT FROM r";
    target.execute(same, &[&name, &schemas, &names, &rules]).await.map_err(target_failed)?;
    Ok(states)
}

/// What [`learn`] will return, with nothing written; the same refusal.
pub async fn foresee(
    target: &Client,
    name: &str,
    tables: &[Ruled<'_>],
    copy_data: bool,
) -> Result<Vec<TableCopy>, Error> {
    let mut states = read(target, name).await?;
    states.retain(|state| tables.iter().any(|one| *one.table == state.table));
    check_rules(&states, tables)?;
    let is_known = |one: &&Ruled<'_>| states.iter().any(|state| state.table == *one.table);
    let unknown: Vec<_> = tables.iter().filter(|one| !is_known(one)).collect();
    let state = if copy_data { State::Init } else { State::Ready };
    states.extend(unknown.into_iter().map(|one| TableCopy::new(one.table.clone(), state)));
    Ok(states)
}

/// A row that came under other rules may lie in another place, or nowhere, and a change would not find it.
fn check_rules(states: &[TableCopy], tables: &[Ruled<'_>]) -> Result<(), Error> {
    let rules = |table: &TableName| tables.iter().find(|one| one.table == table).and_then(|one| one.rules.as_deref());
    let has_rows = |state: &&TableCopy| !matches!(state.state, State::Init | State::DataSync);
    let other =
        states.iter().filter(has_rows).filter(|state| !are_same_rules(state.rules.as_deref(), rules(&state.table)));
    let changed: Vec<_> = other.map(|state| state.table.to_string()).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let list = changed.join(", ");
    Err(Error::refused(
        STAGE,
        format!("the rules for {list} are not those under which the rows came that are on the target"),
        "take the change of the rules back; or `pgsluice resync` for these tables, which empties them and copies them anew \
         under the rules as they are",
    ))
}

/// The tables of each shard that match a pattern.
///
/// # Errors
/// A refusal if a pattern matches no table that is known.
pub async fn matching(
    target: &Client,
    config: &Config,
    patterns: &[Pattern],
) -> Result<Vec<(Name, Vec<TableName>)>, Error> {
    let mut known = Vec::new();
    for shard in config.split() {
        let states = read(target, shard.name.as_str()).await?;
        known.push((shard.name, states.into_iter().map(|state| state.table).collect::<Vec<_>>()));
    }
    let matches = |pattern: &Pattern, table: &TableName| pattern.matches(&table.schema, &table.name);
    let is_known =
        |pattern: &Pattern| known.iter().any(|(_, tables)| tables.iter().any(|table| matches(pattern, table)));
    let strange: Vec<_> =
        patterns.iter().filter(|pattern| !is_known(pattern)).map(|pattern| format!("\"{pattern}\"")).collect();
    if !strange.is_empty() {
        return Err(Error::refused(
            STAGE,
            format!("no table of \"{}\" matches {}", config.name, strange.join(", ")),
            "`pgsluice status` lists the tables; one that is new is copied by `pgsluice run` once it is published",
        ));
    }
    for (_, tables) in &mut known {
        tables.retain(|table| patterns.iter().any(|pattern| matches(pattern, table)));
    }
    Ok(known)
}

/// Marks the tables that match a pattern as ones whose copy was interrupted before its first chunk, and returns them.
///
/// # Errors
/// As [`matching`], before anything is marked.
pub async fn resync(config: &Config, patterns: &[Pattern]) -> Result<Vec<TableName>, Error> {
    let target = postgres::connect(&config.target, STAGE).await?;
    let mut marked = Vec::new();
    for (name, mut tables) in matching(&target, config, patterns).await? {
        mark(&target, name.as_str(), &tables).await?;
        marked.append(&mut tables);
    }
    Ok(marked)
}

/// Marks tables that are on the target and not among `present`: what happens to them meanwhile is not in the stream. So they are
/// copied again if they come back, or refused where nothing is to be copied. Returns those that were not marked before.
pub async fn mark_absent<'a>(
    target: &Client,
    name: &str,
    present: impl Iterator<Item = &'a TableName> + Clone,
    copy_data: bool,
) -> Result<Vec<TableName>, Error> {
    let mut absent = read(target, name).await?;
    absent.retain(|state| state.is_followed() && !present.clone().any(|table| *table == state.table));
    let (kept, copied): (Vec<_>, Vec<_>) =
        absent.iter().partition(|state| state.identity.is_some() && (!copy_data || state.appends));
    let left = |state: &&TableCopy| {
        let identity = state.identity.clone()?;
        Some((state.table.clone(), TableIdentity { members: Vec::new(), ..identity }))
    };
    let left: Vec<_> = kept.iter().filter_map(left).collect();
    identity::write(target, name, left.iter().map(|(table, identity)| (table, identity))).await?;
    let copied: Vec<_> = copied.into_iter().map(|state| state.table.clone()).collect();
    mark(target, name, &copied).await?;
    Ok(absent.into_iter().map(|state| state.table).collect())
}

/// Knows nothing of a table, by its schema and name, any more: whatever comes under that name is another table.
pub async fn forget(target: &Client, name: &str, (schema, table): (&str, &str)) -> Result<(), Error> {
    for known in ["chunk_state", "table_state"] {
        let sql = format!("DELETE FROM pgsluice.{known} WHERE name = $1 AND schema_name = $2 AND table_name = $3");
        target.execute(&sql, &[&name, &schema, &table]).await.map_err(target_failed)?;
    }
    Ok(())
}

/// As tables whose copy was interrupted before its first chunk.
pub(super) async fn mark(target: &Client, name: &str, tables: &[TableName]) -> Result<(), Error> {
    let (schemas, names): (Vec<_>, Vec<_>) =
        tables.iter().map(|table| (table.schema.as_str(), table.name.as_str())).unzip();
    let sql = "WITH marked (schema_name, table_name) AS (SELECT * FROM unnest($2::text[], $3::text[])), \
                    removed AS (DELETE FROM pgsluice.chunk_state c USING marked WHERE c.name = $1 \
                                AND (c.schema_name, c.table_name) = (marked.schema_name, marked.table_name)) \
               UPDATE pgsluice.table_state t SET state = 'datasync', snapshot_lsn = NULL, appends = false, rows = 0, \
                   bytes = 0, source_bytes = 0, updated_at = now() FROM marked \
               WHERE t.name = $1 AND (t.schema_name, t.table_name) = (marked.schema_name, marked.table_name)";
    target.execute(sql, &[&name, &schemas, &names]).await.map(drop).map_err(target_failed)
}

/// # Errors
/// A refusal that names the tables whose copy has not begun and that have rows, if those are not expected.
pub(super) async fn check_existing(
    (target, endpoint): (&Client, &Endpoint),
    name: &str,
    tables: &[Wanted],
    on_existing: OnExisting,
) -> Result<(), Error> {
    if on_existing != OnExisting::Refuse {
        return Ok(());
    }
    let states = read(target, name).await?;
    let mut filled = Vec::new();
    for Wanted { table, target: to, .. } in tables {
        let begun = states.iter().any(|state| state.table == *table && state.state != State::Init);
        if begun {
            continue;
        }
        let rows = Rows::read(target, &to.table, &to.is_own()).await.map_err(|error| failed_on(error, table))?;
        if let Some(rows) = rows.filter(|rows| !rows.is_none()) {
            filled.push(format!("{} ({rows})", to.table));
        }
    }
    if filled.is_empty() {
        return Ok(());
    }
    Err(Error::refused(
        STAGE,
        format!("the target ({}) has rows already in {}", endpoint.place(), filled.join(", ")),
        "if the rows are the source's, set copy_data = false in [snapshot]; --on-existing append adds the source's rows to them; \
         if that is the right server and nobody needs these rows, --on-existing truncate removes them",
    ))
}

/// Records a chunk, in the transaction that has brought its rows. From then on all versions below `horizon` are there.
pub(super) async fn record(
    target: &Client,
    name: &str,
    table: &TableName,
    chunk: &Chunk,
    horizon: i64,
    (rows, bytes): (u64, u64),
) -> Result<(), Error> {
    let (first, end) = (chunk.first_block.cast_signed(), chunk.end_block.map(u64::cast_signed));
    let [rows, bytes, source_bytes] = [rows, bytes, chunk.source_bytes].map(u64::cast_signed);
    let sql = "WITH chunk AS (INSERT INTO pgsluice.chunk_state AS known \
                   (name, schema_name, table_name, part, filenode, first_block, end_block, xmin_horizon, rows, bytes, \
                       source_bytes) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
                   ON CONFLICT (name, schema_name, table_name, part, first_block) \
                   DO UPDATE SET xmin_horizon = $8, rows = known.rows + $9, bytes = known.bytes + $10, source_bytes = $11, \
                       copied_at = now()) \
               UPDATE pgsluice.table_state SET rows = rows + $9, bytes = bytes + $10, updated_at = now() \
               WHERE name = $1 AND schema_name = $2 AND table_name = $3";
    target
        .execute(
            sql,
            &[
                &name,
                &table.schema,
                &table.name,
                &chunk.part,
                &chunk.filenode,
                &first,
                &end,
                &horizon,
                &rows,
                &bytes,
                &source_bytes,
            ],
        )
        .await
        .map(drop)
        .map_err(target_failed)
}

/// All chunks of these tables are committed, and with `at` all that committed before it.
///
/// # Errors
/// [`Kind::TablesToCopy`] if one of them is to be copied again meanwhile.
pub(super) async fn finish(
    target: &Client,
    name: &str,
    epoch: i64,
    tables: impl Iterator<Item = &TableName> + Clone,
    state: State,
    at: Option<Lsn>,
) -> Result<(), Error> {
    let list: Vec<_> = tables.clone().map(TableName::to_string).collect();
    let (schemas, names): (Vec<_>, Vec<_>) = tables.map(|table| (table.schema.as_str(), table.name.as_str())).unzip();
    let at = at.map(|lsn| PgLsn::from(lsn.as_u64()));
    // What came before it is flushed with it.
    target.batch_execute("BEGIN; SET LOCAL synchronous_commit = local").await.map_err(target_failed)?;
    checkpoint::check_epoch(target, name, epoch).await?;
    let sql = "UPDATE pgsluice.table_state SET state = $2, snapshot_lsn = COALESCE($5, snapshot_lsn), updated_at = now() \
               WHERE name = $1 AND snapshot_lsn IS NOT NULL AND ($5::pg_lsn IS NULL OR state = 'catchup') \
               AND (schema_name, table_name) IN (SELECT * FROM unnest($3::text[], $4::text[]))";
    let finished =
        target.execute(sql, &[&name, &state.as_str(), &schemas, &names, &at]).await.map_err(target_failed)?;
    if finished != names.len() as u64 {
        return Err(Error::new(STAGE, Kind::TablesToCopy(list)));
    }
    target.batch_execute("COMMIT").await.map_err(target_failed)
}

/// Gathers the statistics that the first query afterwards needs. Without the right to it PostgreSQL only warns.
pub(super) async fn analyze(target: &Client, wanted: &Wanted) -> Result<(), Error> {
    let table = &wanted.target.table;
    target.batch_execute(&format!("ANALYZE {table}")).await.map_err(|error| failed_on(error, table))
}

pub(super) fn failed_on(error: tokio_postgres::Error, table: &TableName) -> Error {
    Error::from_postgres(STAGE, Role::Target, error).on(table.to_string())
}
