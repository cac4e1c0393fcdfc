//! The schema `pgsluice` on the target: its tables, and what of them an older version has not made.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::failed;
use crate::error::Error;

/// The schema, for `setup` and for whoever runs the SQL by hand. Safe to run again.
pub const SCHEMA_SQL: &str = "CREATE SCHEMA IF NOT EXISTS pgsluice;";

/// Its tables by their names, likewise.
pub const TABLES: [(&str, &str); 9] = [
    ("progress", PROGRESS_SQL),
    ("table_state", TABLE_STATE_SQL),
    ("chunk_state", CHUNK_STATE_SQL),
    ("deferred", DEFERRED_SQL),
    ("exceptions", EXCEPTIONS_SQL),
    ("conflicts", CONFLICTS_SQL),
    ("skips", SKIPS_SQL),
    ("shards", SHARDS_SQL),
    ("trails", TRAILS_SQL),
];

const PROGRESS_SQL: &str = "\
CREATE TABLE IF NOT EXISTS pgsluice.progress (
    name text PRIMARY KEY,
    system_identifier text NOT NULL,
    timeline integer NOT NULL,
    slot text NOT NULL,
    consistent_point pg_lsn NOT NULL,
    end_lsn pg_lsn NOT NULL,
    commit_time timestamptz,
    epoch bigint NOT NULL DEFAULT 0,
    fallbacks bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
";

/// How far the initial copy of each table has come. `snapshot_lsn`: what committed before it is in the copy. `appends`: rows
/// that are not the source's were there before, and stay. `bytes` are those that were sent, `source_bytes` what the source's files
/// took when the copy began. `rules` tells the rules under which the rows came from others, `place`
/// where they lie; `identity`, which table of the source they are of (`source::identity`).
const TABLE_STATE_SQL: &str = "\
CREATE TABLE IF NOT EXISTS pgsluice.table_state (
    name text NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    state text NOT NULL CHECK (state IN ('init', 'datasync', 'catchup', 'finishedcopy', 'ready')),
    snapshot_lsn pg_lsn,
    columns text[],
    rules text,
    place text,
    appends boolean NOT NULL DEFAULT false,
    rows bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    source_bytes bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, schema_name, table_name)
);
ALTER TABLE pgsluice.table_state ADD COLUMN IF NOT EXISTS identity jsonb;
";

/// Parts of tables that are on the target: blocks of a table, or of a partition, of the source. Of the row versions in
/// them, those are there that a transaction below `xmin_horizon` has written to this `filenode`.
const CHUNK_STATE_SQL: &str = "\
CREATE TABLE IF NOT EXISTS pgsluice.chunk_state (
    name text NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    part text NOT NULL,
    filenode oid NOT NULL,
    first_block bigint NOT NULL,
    end_block bigint,
    xmin_horizon bigint NOT NULL,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    source_bytes bigint NOT NULL,
    copied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, schema_name, table_name, part, first_block)
);
";

/// Indexes and constraints that were dropped before a copy, and are to be made again: `table_name` is replicated, `relation`
/// is that table or a partition of it. `referenced_table` is the other end of a foreign key,
/// which is made without looking at the rows first where they can be `checked_later`.
const DEFERRED_SQL: &str = "\
CREATE TABLE IF NOT EXISTS pgsluice.deferred (
    name text NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('index', 'constraint', 'foreign key')),
    relation text NOT NULL,
    object_name text NOT NULL,
    definition text NOT NULL,
    attributes text NOT NULL,
    referenced_schema text,
    referenced_table text,
    checked_later boolean NOT NULL,
    deferred_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, relation, kind, object_name)
);
";

/// Changes of rows that the target has refused, by the names of their tables on the source. `old_row`, `new_row` and `key_values`
/// are NULL unless values of rows may be shown.
const EXCEPTIONS_SQL: &str = "\
CREATE TABLE IF NOT EXISTS pgsluice.exceptions (
    name text NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    commit_lsn pg_lsn NOT NULL,
    commit_time timestamptz,
    xid bigint NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    operation text NOT NULL,
    key_columns text[] NOT NULL,
    key_values text[],
    sqlstate text,
    constraint_name text,
    message text NOT NULL,
    old_row jsonb,
    new_row jsonb,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, id)
);
";

/// How many changes of each table were not applied as they came.
const CONFLICTS_SQL: &str = "\
CREATE TABLE IF NOT EXISTS pgsluice.conflicts (
    name text NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    overwritten bigint NOT NULL DEFAULT 0,
    kept bigint NOT NULL DEFAULT 0,
    inserted bigint NOT NULL DEFAULT 0,
    skipped bigint NOT NULL DEFAULT 0,
    set_aside bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, schema_name, table_name)
);
";

/// Transactions of the source that are to be passed over, and with `done_at` those that were.
const SKIPS_SQL: &str = "\
CREATE TABLE IF NOT EXISTS pgsluice.skips (
    name text NOT NULL,
    commit_lsn pg_lsn NOT NULL,
    requested_by text NOT NULL DEFAULT session_user,
    requested_at timestamptz NOT NULL DEFAULT now(),
    done_at timestamptz,
    xid bigint,
    commit_time timestamptz,
    changes bigint,
    PRIMARY KEY (name, commit_lsn)
);
";

/// Which part of a replication each of those is that are one together.
const SHARDS_SQL: &str = "\
CREATE TABLE IF NOT EXISTS pgsluice.shards (
    name text PRIMARY KEY,
    whole text NOT NULL,
    number integer NOT NULL,
    count integer NOT NULL
);
";

/// Which trail each of those that read from one reads from.
pub(super) const TRAILS_SQL: &str = "\
CREATE TABLE IF NOT EXISTS pgsluice.trails (
    name text PRIMARY KEY,
    id text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
";

/// Columns that a later version has given to a table, each with its type.
const ADDED_COLUMNS: [(&str, &str, &str); 1] = [("table_state", "identity", "jsonb")];

/// Makes the schema and its tables where they are missing. `IF NOT EXISTS` is not enough: PostgreSQL asks for the right
/// to make a schema before it looks whether there is one. True where all of it was there already.
pub async fn create_schema(client: &Client) -> Result<bool, Error> {
    let row = client.query_one("SELECT to_regnamespace('pgsluice') IS NULL", &[]).await.map_err(failed)?;
    let is_schema_missing: bool = row.try_get(0).map_err(failed)?;
    let missing = missing(client).await?;
    let schema = is_schema_missing.then_some(SCHEMA_SQL);
    for create in schema.into_iter().chain(missing.iter().map(|(_, create)| *create)) {
        client.batch_execute(create).await.map_err(failed)?;
    }
    let lacking = missing_columns(client).await?;
    for add in &lacking {
        client.batch_execute(add).await.map_err(failed)?;
    }
    Ok(!is_schema_missing && missing.is_empty() && lacking.is_empty())
}

/// Makes the tables and columns that a setup of an earlier version has not made. False where the role may not make the tables.
pub async fn complete(client: &Client) -> Result<bool, Error> {
    // Without shards their table is not needed, and setup makes it for those that have any; with a trail, whoever records it makes that
    // of trails.
    let is_needed = |table: &str| !["shards", "trails"].contains(&table);
    for (table, create) in missing(client).await?.into_iter().filter(|(table, _)| is_needed(table)) {
        match client.batch_execute(create).await {
            Ok(()) => tracing::info!("table pgsluice.{table} is made on the target"),
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
    }
    for add in missing_columns(client).await? {
        match client.batch_execute(&add).await {
            Ok(()) => tracing::info!(statement = add, "made on the target"),
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => tracing::warn!(
                "the role on the target may not {add}: until its owner does, or runs `pgsluice setup`, a table that is dropped and \
                 made again on the source while no engine looks may be taken for the one that it was"
            ),
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(true)
}

/// Statements that add those of [`ADDED_COLUMNS`] that a table lacks.
async fn missing_columns(client: &Client) -> Result<Vec<String>, Error> {
    let mut lacking = Vec::new();
    for (table, column, type_name) in ADDED_COLUMNS {
        let sql = "SELECT to_regclass('pgsluice.' || $1) IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute \
                   WHERE attrelid = to_regclass('pgsluice.' || $1) AND attname = $2 AND NOT attisdropped)";
        let row = client.query_one(sql, &[&table, &column]).await.map_err(failed)?;
        if row.try_get(0).map_err(failed)? {
            lacking.push(format!("ALTER TABLE pgsluice.{table} ADD COLUMN IF NOT EXISTS {column} {type_name}"));
        }
    }
    Ok(lacking)
}

/// Those of [`TABLES`] that are not there.
pub(super) async fn missing(client: &Client) -> Result<Vec<(&'static str, &'static str)>, Error> {
    let is_missing = TABLES.map(|(table, _)| format!("to_regclass('pgsluice.{table}') IS NULL"));
    let row = client.query_one(&format!("SELECT {}", is_missing.join(", ")), &[]).await.map_err(failed)?;
    let mut missing = Vec::new();
    for (column, table) in TABLES.into_iter().enumerate() {
        if row.try_get(column).map_err(failed)? {
            missing.push(table);
        }
    }
    Ok(missing)
}
