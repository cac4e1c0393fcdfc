//! Copies the definitions of the selected tables, and what they need, from the source to the target.
//!
//! ```text
//!  B ──pg_dump──► archive ──pg_restore --list──► toc ──► needs ──┐
//!  B ──catalog──► facts, identities ─────────────────────┘       ├──► plan ──► apply ──SQL──► C
//!  B, C ──catalog──► compare (what differs), presence (what is there) ──┘
//! ```
//!
//! PostgreSQL's own `pg_dump` writes the definitions, for it alone knows all of them in every version. It is told nothing of
//! tables, because then it would leave out types and functions; which of its entries are needed is decided here. They are
//! made over a session of our own rather than with `psql` or `pg_restore`, so that an older target gets neither the settings
//! nor the commands of a newer client, and each error names its object.
//!
//! **Always holds:**
//! - Nothing is made before tables that are on both ends have been compared.
//! - What comes before rows is made as a whole or not at all.
//! - What is on the target already is never changed.

mod apply;
mod catalog;
pub mod compare;
mod decide;
mod definitions;
mod dump;
pub mod missing;
mod needs;
pub mod past;
mod plan;
mod programs;
mod script;
mod sequences;
mod toc;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio_postgres::Client;

use self::catalog::Presence;
use self::compare::{Difference, Sent, Weight};
use self::decide::Target;
use self::definitions::Definitions;
use self::plan::Wave;
use self::programs::Programs;
use crate::config::{Config, Role};
use crate::error::{Error, Kind, Stage};
use crate::postgres::{self, quote_ident, quote_qualified};
use crate::preflight;
use crate::source::publication::{self, Publication, PublishedTable, TableName};
use crate::source::server::Server;
use crate::transform::Mapping;

const STAGE: Stage = Stage::Schema;
/// The first whose clients know `PGREQUIREAUTH`.
const SCRAM_ONLY_MAJOR: u32 = 16;

/// Which definitions; the words are those of `pg_dump --section`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Section {
    /// What is needed before rows come: tables, and what they need
    PreData,
    /// Indexes, constraints, statistics, foreign keys
    PostData,
    /// The values of sequences
    Sequences,
    /// pre-data and post-data
    #[default]
    All,
}

impl Section {
    fn has(self, wave: Wave) -> bool {
        match self {
            Section::PreData => wave == Wave::PreData,
            Section::PostData => wave != Wave::PreData,
            Section::Sequences => false,
            Section::All => true,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    pub section: Section,
    /// Sessions that build indexes and constraints.
    pub jobs: usize,
    /// The directory of `pg_dump` and `pg_restore`.
    pub pg_bin: Option<PathBuf>,
    /// How long the source may take to show what the primary has now.
    pub limit: Duration,
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    pub object: String,
    pub state: State,
    /// Why it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Created,
    /// It was there, or for a sequence: it was there or further already.
    Present,
    LeftOut,
    /// A sequence has the source's value.
    Set,
}

/// Makes what is missing on the target.
///
/// # Errors
/// A refusal before anything is made where programs, rights or columns are missing; [`Kind::Statement`] with the object
/// that the target refuses, and nothing that comes before rows is left of it.
pub async fn copy(config: &Config, options: &Options) -> Result<Vec<Item>, Error> {
    copy_section(config, options).await.map_err(|error| error.shown(&config.log))
}

async fn copy_section(config: &Config, options: &Options) -> Result<Vec<Item>, Error> {
    preflight::check_target_alone(config, STAGE).await?;
    let (source, tables) = select(config, options).await?;
    if options.section == Section::Sequences {
        let sequences = sequences::read(&source, &catalog::table_oids(&source, &tables).await?).await?;
        return sequences::set(&apply::connect(&config.target).await?, &sequences).await;
    }
    let definitions = read(config, options, &source, &tables).await?;
    let target = postgres::connect(&config.target, STAGE).await?;
    let sent = sent(config, &source).await?;
    let target = inspect(&source, &target, &definitions, (&tables, &sent), options.section).await?;
    let plan = plan::plan(&definitions, &target, options.section);
    apply::make(&config.target, &plan.units, options.jobs).await?;
    Ok(plan.items)
}

/// The SQL that makes everything on a target which has nothing. Only the source is asked.
///
/// # Errors
/// As [`copy`], but for what concerns the target.
pub async fn sql(config: &Config, options: &Options) -> Result<String, Error> {
    let (source, tables) = select(config, options).await?;
    if options.section == Section::Sequences {
        let oids = catalog::table_oids(&source, &tables).await?;
        return Ok(sequences::sql(&sequences::read(&source, &oids).await?));
    }
    let definitions = read(config, options, &source, &tables).await?;
    let plan = plan::plan(&definitions, &Target::default(), options.section);
    let mut sql = "SET client_encoding = 'UTF8';\nSET search_path = '';\nSET check_function_bodies = off;\n".to_owned();
    for unit in &plan.units {
        sql.push_str(&format!("\n-- {}\n{}\n", on_a_line(&unit.object), unit.sql));
    }
    for item in plan.items.iter().filter(|item| item.state == State::LeftOut) {
        let reason = item.reason.as_deref().unwrap_or_default();
        sql.push_str(&format!("\n-- left out: {}: {}\n", on_a_line(&item.object), on_a_line(reason)));
    }
    Ok(sql)
}

/// A name that would end a comment cannot.
fn on_a_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// A session to the source, and the tables that the configuration selects there. Those that rules give another shape are
/// not ours to make: what type, key or index a column is to have there, only their owner knows.
async fn select(config: &Config, options: &Options) -> Result<(Client, Vec<TableName>), Error> {
    let source = postgres::connect(&config.source, STAGE).await?;
    preflight::wait_for_sight(config, &source, options.limit, STAGE).await?;
    let tables = publication::select_tables(&source, Role::Source, &config.tables, STAGE).await?;
    let mapping = Mapping::of(&config.rules, &tables, STAGE)?;
    let mut selected = Vec::with_capacity(tables.len());
    for PublishedTable { table, .. } in tables {
        match mapping.plan(&table).filter(|plan| !plan.keeps_shape()) {
            None => selected.push(table),
            Some(plan) => {
                let columns: Vec<_> = plan.target().columns.iter().map(|column| quote_ident(&column.name)).collect();
                tracing::warn!(
                    "rules give {table} another shape: make {} on the target by hand, with the columns {}",
                    plan.target(),
                    columns.join(", ")
                );
            }
        }
    }
    Ok((source, selected))
}

/// What of the tables is sent, where there are publications already.
async fn sent(config: &Config, source: &Client) -> Result<Sent, Error> {
    let mut published = Vec::new();
    for shard in config.split() {
        let found = Publication::read(source, Role::Source, &shard.publication(), STAGE).await?;
        published.extend(found.into_iter().flat_map(|publication| publication.tables));
    }
    Ok(Sent::of(published.iter()))
}

async fn read(config: &Config, options: &Options, source: &Client, tables: &[TableName]) -> Result<Definitions, Error> {
    let server = Server::inspect(source, Role::Source, STAGE).await?;
    // Older ones cannot be told to give a password to nobody but by SCRAM.
    let least = if config.source.password.is_some() { SCRAM_ONLY_MAJOR } else { 0 };
    let programs = Programs::find(options.pg_bin.as_deref(), server.major().max(least))?;
    tracing::debug!(directory = %programs.directory.display(), major = programs.major, "pg_dump is found");
    Definitions::read(source, &config.source, programs, tables).await
}

/// Looks what the target has of the definitions.
///
/// # Errors
/// A refusal that names all differences which keep rows from being copied.
async fn inspect(
    source: &Client,
    target: &Client,
    definitions: &Definitions,
    (selected, sent): (&[TableName], &Sent),
    section: Section,
) -> Result<Target, Error> {
    check(source, target, (selected, sent), section).await?;
    let objects: Vec<_> = plan::tables(definitions).collect();
    let name = |object| {
        definitions.address_of(object).and_then(|address| match address.names.as_slice() {
            [schema, name] => Some(quote_qualified(schema, name)),
            _ => None,
        })
    };
    // What has no name has gone meanwhile, and is found by none.
    let names: Vec<_> =
        objects.iter().map(|object| name(*object).unwrap_or_default()).filter(|name| !name.is_empty()).collect();
    let on_source = compare::shapes(source, Role::Source, STAGE, &names).await?;
    let on_target = compare::shapes(target, Role::Target, STAGE, &names).await?;
    let oids = objects.iter().filter(|object| name(**object).is_some()).map(|object| object.oid);
    let tables: HashMap<_, _> = oids.zip(on_source.into_iter().zip(on_target)).collect();
    let presence = Presence::read(target, &plan::classes(definitions)).await?;
    Ok(Target { presence, tables })
}

async fn check(
    source: &Client,
    target: &Client,
    (selected, sent): (&[TableName], &Sent),
    section: Section,
) -> Result<(), Error> {
    let (mut grave, mut lacks) = (Vec::new(), Vec::new());
    for (table, differences) in compare::tables(source, target, selected, (&Mapping::default(), sent), STAGE).await? {
        match differences {
            None => lacks.push(table.to_string()),
            Some(differences) => {
                let (harmless, others): (Vec<_>, Vec<_>) =
                    differences.into_iter().partition(|one| one.weight == Weight::Harmless);
                harmless.iter().for_each(|difference| tracing::warn!("{difference}"));
                grave.extend(others.iter().map(Difference::to_string));
            }
        }
    }
    if !grave.is_empty() {
        let mend = "change the tables on the target, or drop them there to have them made, or exclude them in [tables]";
        return Err(Error::refused(STAGE, grave.join("; "), mend));
    }
    if section == Section::PostData && !lacks.is_empty() {
        let what = format!("the target has no table {}", lacks.join(", "));
        return Err(Error::refused(STAGE, what, "`pgsluice schema --section pre-data` makes them"));
    }
    Ok(())
}

/// Does what blocks on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Error::new(STAGE, Kind::Panicked)))
}
