//! Two replications that write each other's tables.
//!
//! ```text
//!      ┌── this one: ours ──► theirs ──┐
//!  source                             target
//!      └── another:  ours ◄── theirs ──┘
//! ```
//!
//! What one applies is a change like any other, and the other one brings it back: an INSERT goes round until a key stops it, or for
//! ever. A replication leaves its progress where it writes. So if the source's database has progress of a replication whose source
//! is our target's cluster, tables that both are about are refused. The other direction is free again after its `pgsluice teardown`.
//! A chain of replications that does not come back is no circle.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use crate::config::Role;
use crate::error::{Error, Stage};
use crate::postgres::quote_qualified;
use crate::source::publication::PublishedTable;

/// # Errors
/// A refusal that names the tables that the target's own replication writes on the source.
pub async fn check(source: &Client, target: &Client, tables: &[PublishedTable], stage: Stage) -> Result<(), Error> {
    let failed = |error| Error::from_postgres(stage, Role::Source, error);
    let at_target = |error| Error::from_postgres(stage, Role::Target, error);
    // Not by `to_regclass`, which fails where the role may not use the schema.
    let known = "SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') FROM pg_class c \
                 JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'pgsluice' AND c.relname = 'progress'";
    let Some(row) = source.query_opt(known, &[]).await.map_err(failed)? else { return Ok(()) };
    if !row.try_get::<_, bool>(0).map_err(failed)? {
        tracing::warn!(
            "a replication writes to the source's database, and the role may not see whether it comes from the target: if it does, \
             changes go round in a circle; GRANT USAGE ON SCHEMA pgsluice, and SELECT ON pgsluice.progress, pgsluice.table_state, \
             on the primary"
        );
        return Ok(());
    }
    let identifier: String = target
        .query_one("SELECT system_identifier::text FROM pg_control_system()", &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(at_target)?;
    let sql = "SELECT name, slot FROM pgsluice.progress WHERE system_identifier = $1 ORDER BY 1";
    for row in source.query(sql, &[&identifier]).await.map_err(failed)? {
        let (name, slot): (String, String) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        let elsewhere =
            "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND database <> current_database())";
        if target.query_one(elsewhere, &[&slot]).await.and_then(|row| row.try_get(0)).map_err(at_target)? {
            // Another database of the same cluster.
            continue;
        }
        let theirs = written(source, target, &name, &slot, stage).await?;
        let names = tables.iter().map(|published| published.table.to_string());
        let both: Vec<_> = names.filter(|table| theirs.as_ref().is_none_or(|theirs| theirs.contains(table))).collect();
        if !both.is_empty() {
            return Err(Error::refused(
                stage,
                format!(
                    "{} on the source: replication \"{name}\" writes them with what it takes from the target, and each change would go \
                     round in a circle",
                    both.join(", ")
                ),
                format!(
                    "end the other direction first: `pgsluice teardown` for \"{name}\"; or exclude the tables in [tables]"
                ),
            ));
        }
    }
    Ok(())
}

/// Where the rows of another replication go, quoted; `None` where it is not known. Before it has run, it is about what its publication
/// holds, which bears the name of its slot.
async fn written(
    source: &Client,
    target: &Client,
    name: &str,
    slot: &str,
    stage: Stage,
) -> Result<Option<BTreeSet<String>>, Error> {
    let failed = |error| Error::from_postgres(stage, Role::Source, error);
    let at_target = |error| Error::from_postgres(stage, Role::Target, error);
    let may = "SELECT COALESCE(bool_and(has_table_privilege(c.oid, 'SELECT')), false) FROM pg_class c \
               JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'pgsluice' AND c.relname = 'table_state'";
    let mut written = BTreeSet::new();
    if source.query_one(may, &[]).await.and_then(|row| row.try_get(0)).map_err(failed)? {
        // A place may say more than the table, behind its name.
        let sql =
            "SELECT split_part(place, ' where ', 1), schema_name, table_name FROM pgsluice.table_state WHERE name = $1";
        for row in source.query(sql, &[&name]).await.map_err(failed)? {
            let [schema, table]: [String; 2] = [row.try_get(1).map_err(failed)?, row.try_get(2).map_err(failed)?];
            let place: Option<String> = row.try_get(0).map_err(failed)?;
            written.insert(place.unwrap_or_else(|| quote_qualified(&schema, &table)));
        }
    }
    if written.is_empty() {
        let sql = "SELECT schemaname::text, tablename::text FROM pg_publication_tables WHERE pubname = $1";
        for row in target.query(sql, &[&slot]).await.map_err(at_target)? {
            let [schema, table]: [String; 2] = [row.try_get(0).map_err(at_target)?, row.try_get(1).map_err(at_target)?];
            written.insert(quote_qualified(&schema, &table));
        }
    }
    Ok((!written.is_empty()).then_some(written))
}
