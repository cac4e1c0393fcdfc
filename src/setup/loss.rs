//! What a command would remove from the target, for whoever has to agree to it.
//!
//! In: the configuration, sessions. Out: each table of the target with the rows that would go.

use std::fmt;

use tokio_postgres::Client;

use crate::apply::{self, TargetTable};
use crate::checkpoint;
use crate::config::{Config, OWN_SCHEMA, Pattern, Role};
use crate::error::{Error, Stage};
use crate::postgres::{self, OwnRows, quote_ident, quote_literal};
use crate::preflight::check_target;
use crate::shards;
use crate::snapshot::{self, Removal, Rows};
use crate::source::publication::{Publication, PublishedTable, TableName};
use crate::transform::Mapping;

const STAGE: Stage = Stage::Snapshot;

/// Rows of one table of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// On the target.
    pub table: TableName,
    pub rows: Rows,
    /// Rows that were deleted on the source are kept there by `soft_delete`.
    pub keeps_deleted: bool,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.table, self.rows)?;
        if self.keeps_deleted {
            f.write_str(", and among them the history that soft_delete keeps, which does not come back")?;
        }
        Ok(())
    }
}

/// What `run --on-existing truncate` would remove, of the tables that are published now: rows that were there before any copy.
///
/// # Errors
/// As [`check_target`]; what the run would be refused for is left to the run.
pub async fn on_existing(config: &Config) -> Result<Vec<Loss>, Error> {
    let mut losses = Vec::new();
    for config in config.split() {
        let Some(seen) = Seen::read(&config).await? else { continue };
        let known = snapshot::read(&seen.target, config.name.as_str()).await?;
        let is_new = |table: &TableName| {
            !known.iter().any(|state| state.table == *table && state.state != snapshot::State::Init)
        };
        let new = seen.tables.iter().map(|published| &published.table).filter(|table| is_new(table));
        losses.extend(seen.losses(new).await?);
    }
    losses.retain(|loss: &Loss| !loss.rows.is_none());
    Ok(losses)
}

/// What `resync` of the tables that match would remove.
///
/// # Errors
/// As [`check_target`]; a refusal if a pattern matches no table that is known.
pub async fn resync(config: &Config, patterns: &[Pattern]) -> Result<Vec<Loss>, Error> {
    let mut ends = Vec::new();
    for shard in config.split() {
        let Some(seen) = Seen::read(&shard).await? else {
            let what = format!("the target ({}) has no progress row \"{}\"", shard.target.place(), shard.name);
            let mend = "correct the dsn in [target]; or `pgsluice setup`, and `pgsluice run` copies the tables";
            return Err(Error::refused(STAGE, what, mend));
        };
        ends.push(seen);
    }
    let target = postgres::connect(&config.target, STAGE).await?;
    let marked = snapshot::matching(&target, config, patterns).await?;
    let mut losses = Vec::new();
    for (seen, (_, tables)) in ends.iter().zip(&marked) {
        seen.check_removal(tables).await?;
        losses.extend(seen.losses(tables.iter()).await?);
    }
    Ok(losses)
}

/// Both ends of one replication.
struct Seen {
    target: Client,
    tables: Vec<PublishedTable>,
    mapping: Mapping,
}

impl Seen {
    /// `None` where the target has no progress, so that nothing can be copied to it either.
    async fn read(config: &Config) -> Result<Option<Seen>, Error> {
        let source = postgres::connect(&config.source, STAGE).await?;
        let target = postgres::connect(&config.target, STAGE).await?;
        let progress = checkpoint::read(&target, config.name.as_str()).await?;
        check_target(config, (&source, &target), progress.as_ref(), STAGE).await?;
        if progress.is_none() {
            return Ok(None);
        }
        let published = Publication::read(&source, Role::Source, &config.publication(), STAGE).await?;
        let mut tables = published.map(|publication| publication.tables).unwrap_or_default();
        tables.retain(|one| config.tables.selects(&one.table.schema, &one.table.name));
        let all = shards::with_others(&source, config, &tables, STAGE).await?;
        let mapping = shards::mapping(config, &all, STAGE)?;
        Ok(Some(Seen { target, tables, mapping }))
    }

    /// # Errors
    /// As [`snapshot::check_removal`].
    async fn check_removal(&self, tables: &[TableName]) -> Result<(), Error> {
        let names: Vec<_> = tables.iter().map(|source| (source, self.mapping.target(source))).collect();
        let found = names.iter().map(|(_, table)| (table.schema.as_str(), table.name.as_str()));
        let found = apply::load_tables(&self.target, found).await?;
        let removal = |((source, table), found): (&(&TableName, TableName), &TargetTable)| Removal {
            table: table.clone(),
            rows: OwnRows::of(table, found.is_partitioned),
            condition: self.condition(source),
        };
        let present = names.iter().zip(&found).filter_map(|(names, found)| Some((names, found.as_ref()?)));
        let removals: Vec<_> = present.map(removal).collect();
        let constraints_fire = postgres::prepare_target(&self.target, STAGE).await?;
        // Between tables that are copied together `run --defer-indexes` drops them first, and any other run refuses.
        let is_copied_too = |table: &str| removals.iter().any(|removal| removal.table.to_string() == table);
        snapshot::check_removal(&self.target, &removals, constraints_fire, is_copied_too).await
    }

    /// Of the rows on the target that are of this table.
    fn condition(&self, source: &TableName) -> String {
        let is = |(column, value): &(String, String)| format!("{} = {}", quote_ident(column), quote_literal(value));
        let own: Vec<_> = self.mapping.own(source).iter().map(is).collect();
        if own.is_empty() { "true".to_owned() } else { own.join(" AND ") }
    }

    async fn losses(&self, tables: impl Iterator<Item = &TableName>) -> Result<Vec<Loss>, Error> {
        let kept: Vec<_> = self.mapping.kept().map(|(table, _)| table).collect();
        let mut losses = Vec::new();
        for source in tables {
            let table = self.mapping.target(source);
            if table.schema == OWN_SCHEMA {
                continue;
            }
            let condition = self.condition(source);
            let failed = |error| Error::from_postgres(STAGE, Role::Target, error).on(table.to_string());
            let Some(rows) = Rows::read(&self.target, &table, &condition).await.map_err(failed)? else { continue };
            let keeps_deleted = kept.contains(&table);
            losses.push(Loss { table, rows, keeps_deleted });
        }
        Ok(losses)
    }
}
