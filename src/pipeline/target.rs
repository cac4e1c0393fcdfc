//! What a session has to know of the target before it writes there: whose triggers fire, what it could not find again, in
//! which format values fit.

use pgsluice_proto::Oid;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::conflicts::{self, KeyUse, WithoutKey};
use super::said::warn_sparsely;
use crate::apply::{self, TargetTable, is_stable_in_binary};
use crate::config::{Config, Role, ValueFormat};
use crate::error::{Error, Stage};
use crate::postgres::{self, quote_ident};
use crate::source::publication::PublishedTable;
use crate::transform::Mapping;

const STAGE: Stage = Stage::Source;

/// # Errors
/// A refusal where deleted rows stay on the target and nothing there could find one by its key when it comes again.
pub async fn check_kept(target: &Client, mapping: &Mapping) -> Result<(), Error> {
    let kept: Vec<_> = mapping.kept().collect();
    if kept.is_empty() {
        return Ok(());
    }
    let asked = kept.iter().map(|(table, key)| (table, key.clone())).collect();
    let without = conflicts::without_unique_index(target, asked, KeyUse::Arbiter).await?;
    let Some(WithoutKey { place, deferrable }) = without.first() else { return Ok(()) };
    let (table, key) = &kept[*place];
    let columns: Vec<_> = key.iter().map(|column| quote_ident(column)).collect();
    let columns = columns.join(", ");
    let what = format!(
        "soft_delete: {table} on the target has no unique index of {columns} to find a deleted row by, one that is not deferrable and \
         not of a constraint WITHOUT OVERLAPS"
    );
    let drop = |name: &String| format!("ALTER TABLE {table} DROP CONSTRAINT {}; ", quote_ident(name));
    let dropped: String = deferrable.iter().map(drop).collect();
    let mend = format!("on the target: {dropped}CREATE UNIQUE INDEX ON {table} ({columns})");
    Err(Error::refused(Stage::Apply, what, mend))
}

/// What of the target happens by itself when rows come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fires {
    /// Foreign keys are checked, and ordinary triggers fire.
    pub constraints: bool,
    /// Triggers that somebody made.
    pub triggers: bool,
}

/// Settings of the session that applies, beyond those of every session.
pub(super) async fn set_up_target_session(
    target: &Client,
    tables: &[PublishedTable],
    mapping: &Mapping,
) -> Result<Fires, Error> {
    let names: Vec<_> = tables.iter().map(|published| mapping.target(&published.table).to_string()).collect();
    let constraints_fire = postgres::prepare_target(target, Stage::Apply).await?;
    if constraints_fire {
        warn_sparsely(
            "foreign keys of the target are checked while changes are applied, and its triggers fire: the role may not \
             set session_replication_role (GRANT SET ON PARAMETER session_replication_role TO the role, PostgreSQL 15 \
             and later)"
                .to_owned(),
        );
    }
    let triggers = firing_triggers(target, &names, constraints_fire).await?;
    for trigger in &triggers {
        warn_sparsely(format!("{trigger} fires on the target for every row that is applied"));
    }
    if !constraints_fire {
        for constraint in unchecked_constraints(target, &names).await? {
            warn_sparsely(format!(
                "{constraint} on the target is DEFERRABLE, and PostgreSQL does not check it for rows that are applied: \
                 a row that only the target has could come to stand beside its equal"
            ));
        }
    }
    Ok(Fires { constraints: constraints_fire, triggers: !triggers.is_empty() })
}

/// Unique and exclusion constraints that work through a trigger, which replicas do not fire.
async fn unchecked_constraints(target: &Client, names: &[String]) -> Result<Vec<String>, Error> {
    let sql = "SELECT format('constraint %I of %s', c.conname, c.conrelid::regclass) FROM pg_constraint c \
               WHERE c.condeferrable AND c.contype IN ('p', 'u', 'x') \
               AND c.conrelid = ANY (SELECT to_regclass(n) FROM unnest($1::text[]) n) ORDER BY 1";
    query_names(target, sql, &[&names]).await
}

async fn query_names(target: &Client, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<String>, Error> {
    let failed = |error| Error::from_postgres(Stage::Apply, Role::Target, error);
    let rows = target.query(sql, parameters).await.map_err(failed)?;
    rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
}

/// Triggers that users made and that fire in a session of this replication role ("ALTER TABLE", ENABLE TRIGGER).
async fn firing_triggers(target: &Client, names: &[String], constraints_fire: bool) -> Result<Vec<String>, Error> {
    let sql = "SELECT format('trigger %I of %s', t.tgname, t.tgrelid::regclass) FROM pg_trigger t \
               WHERE NOT t.tgisinternal AND t.tgrelid = ANY (SELECT to_regclass(n) FROM unnest($1::text[]) n) \
               AND t.tgenabled = ANY (CASE WHEN $2 THEN '{O,A}' ELSE '{R,A}' END::\"char\"[]) ORDER BY 1";
    query_names(target, sql, &[&names, &constraints_fire]).await
}

/// Binary where every column that the target gets has a type that means the same bytes on both ends.
pub(super) async fn use_binary(
    config: &Config,
    (source_major, tables): (u32, &[PublishedTable]),
    mapping: &Mapping,
    target: &Client,
) -> Result<bool, Error> {
    if config.stream.format == ValueFormat::Text {
        return Ok(false);
    }
    let names: Vec<_> = tables.iter().map(|published| mapping.target(&published.table)).collect();
    let found = apply::load_tables(target, names.iter().map(|table| (table.schema.as_str(), table.name.as_str())));
    for (published, table) in tables.iter().zip(found.await?) {
        // A table that is missing is named when its first row comes; it may be made until then.
        let Some(table) = table else { continue };
        let Some(name) = text_column((source_major, published), mapping, &table) else { continue };
        if config.stream.format == ValueFormat::Auto {
            tracing::info!(table = %published.table, column = name, "values travel as text because of this column");
            return Ok(false);
        }
        return Err(Error::refused(
            STAGE,
            format!(
                "column \"{name}\" of {} cannot travel in binary: its values need not mean the same on both ends",
                published.table
            ),
            "set format = \"auto\" or \"text\" in [stream]",
        ));
    }
    Ok(true)
}

/// The first column whose values have to be text: on their way to the target, or for the rules to read them.
fn text_column(
    (source_major, published): (u32, &PublishedTable),
    mapping: &Mapping,
    table: &TargetTable,
) -> Option<String> {
    let fits = |name: &str, type_oid: Oid| {
        let on_target = table.columns.iter().find(|column| column.name == name);
        on_target.map_or(is_stable_in_binary(type_oid), |column| column.fits_binary_of(type_oid, source_major))
    };
    let relation = published.relation();
    let columns = mapping.plan(&published.table).map_or(&relation.columns, |plan| &plan.target().columns);
    let unfit = columns.iter().find(|column| !fits(&column.name, column.type_oid));
    unfit
        .or_else(|| relation.columns.iter().find(|column| !is_stable_in_binary(column.type_oid)))
        .map(|column| column.name.clone())
}
