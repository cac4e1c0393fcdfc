//! One replication as several: what each of them has to know of the others.
//!
//! ```text
//!                       ┌─ name_1: publication, slot ──► session ──► progress row, states of its tables ─┐
//!  name, shards = n ────┤  …                             (no shard knows another's position)            ├──► C
//!                       └─ name_n: publication, slot ──► session ──► progress row, states of its tables ─┘
//! ```
//!
//! In: the configuration of a shard, or of a replication without. Out: whether it may go on beside what the target has.
//!
//! **Always holds:**
//! - A shard is an ordinary replication, with all that such a one promises. Nothing else does: between shards there is no order,
//!   and a transaction of the source is as many of the target as shards have tables in it.
//! - `pgsluice.shards` has a row for each progress row of a shard, made and removed with it. So another number of shards is seen
//!   before anything is made or applied, as is another replication that has the name of a shard.
//! - The rules of a shard are compiled with the tables of all of them: a rule or a mask that fits no table at all is refused, and
//!   so are tables of several shards that share one of the target.

mod run;
mod status;

use std::collections::BTreeMap;

use tokio_postgres::{Client, Row};

pub use self::run::run;
pub use self::status::status;
use crate::checkpoint;
use crate::config::{Config, Role, Shard, number_of};
use crate::error::{Error, Stage};
use crate::source::publication::{Publication, PublishedTable, TableName};
use crate::transform::Mapping;

const STAGE: Stage = Stage::Checkpoint;
const CHANGE: &str = "to change it, `pgsluice teardown`, then `pgsluice setup`, and copy the tables again; docs/operating.md, \
                      Shards, has how to do without the copy";

/// A row of `pgsluice.shards`.
#[derive(Debug)]
struct Recorded {
    name: String,
    whole: String,
    number: i32,
    count: i32,
}

impl Recorded {
    fn from_row(row: &Row) -> Result<Recorded, tokio_postgres::Error> {
        Ok(Recorded { name: row.try_get(0)?, whole: row.try_get(1)?, number: row.try_get(2)?, count: row.try_get(3)? })
    }
}

/// Those of a replication, and the one that has its name.
async fn recorded(target: &Client, whole: &str, name: &str) -> Result<Vec<Recorded>, Error> {
    let exists = "SELECT to_regclass('pgsluice.shards') IS NOT NULL";
    if !target.query_one(exists, &[]).await.map_err(failed)?.try_get::<_, bool>(0).map_err(failed)? {
        return Ok(Vec::new());
    }
    let sql = "SELECT name, whole, number, count FROM pgsluice.shards WHERE whole = $1 OR name = $2 ORDER BY number";
    let rows = target.query(sql, &[&whole, &name]).await.map_err(failed)?;
    rows.iter().map(|row| Recorded::from_row(row).map_err(failed)).collect()
}

/// # Errors
/// A refusal if the target has progress of another number of shards, or of another replication under this name.
pub async fn check_split(target: &Client, config: &Config, stage: Stage) -> Result<(), Error> {
    let name = config.name.as_str();
    let Some(Shard { whole, count, .. }) = config.shard() else {
        return check_whole(name, &recorded(target, name, name).await?, stage);
    };
    let recorded = recorded(target, whole.as_str(), name).await?;
    let of_whole = || recorded.iter().filter(|one| one.whole == whole.as_str());
    if let Some(other) = of_whole().find(|one| usize::try_from(one.count) != Ok(*count)) {
        return Err(another_number(whole.as_str(), other.count, *count, stage));
    }
    if of_whole().next().is_none() && checkpoint::read(target, whole.as_str()).await?.is_some() {
        return Err(another_number(whole.as_str(), 1, *count, stage));
    }
    let is_ours = of_whole().any(|one| one.name == name);
    if !is_ours && checkpoint::read(target, name).await?.is_some() {
        return Err(Error::refused(
            stage,
            format!("progress \"{name}\" on the target is not of a shard of \"{whole}\", but of another replication"),
            "change `name`",
        ));
    }
    Ok(())
}

/// Of a replication without shards.
fn check_whole(name: &str, recorded: &[Recorded], stage: Stage) -> Result<(), Error> {
    match recorded.first() {
        None => Ok(()),
        Some(one) if one.whole == name => Err(another_number(name, one.count, 1, stage)),
        Some(one) => Err(Error::refused(
            stage,
            format!("progress \"{name}\" on the target is of shard {} of \"{}\"", one.number, one.whole),
            format!("change `name`; or set name = \"{}\" and shards = {}", one.whole, one.count),
        )),
    }
}

fn another_number(whole: &str, found: i32, wanted: usize, stage: Stage) -> Error {
    let what = format!("\"{whole}\" was set up with shards = {found}, and the configuration has shards = {wanted}");
    Error::refused(stage, what, format!("set shards = {found} again; {CHANGE}"))
}

/// How many shards the target has of this replication; as many as the configuration says where it has none.
pub async fn present(target: &Client, config: &Config) -> Result<usize, Error> {
    let whole = config.name.as_str();
    let recorded = recorded(target, whole, whole).await?;
    match recorded.iter().find(|one| one.whole == whole) {
        Some(one) => Ok(usize::try_from(one.count).unwrap_or(config.shards)),
        None if checkpoint::read(target, whole).await?.is_some() => Ok(1),
        None => Ok(config.shards),
    }
}

/// The statement that records a shard, as whoever makes its progress row has to.
pub fn record_sql(shard: &Shard, name: &str) -> String {
    let quote = crate::postgres::quote_literal;
    let Shard { whole, number, count } = shard;
    let (name, whole) = (quote(name), quote(whole.as_str()));
    format!("INSERT INTO pgsluice.shards (name, whole, number, count) VALUES ({name}, {whole}, {number}, {count})")
}

/// # Errors
/// A refusal where the target's foreign keys and triggers fire: rows of different shards come in no order.
pub fn check_order(config: &Config, constraints_fire: bool, stage: Stage) -> Result<(), Error> {
    if !constraints_fire || config.shard().is_none() {
        return Ok(());
    }
    Err(Error::refused(
        stage,
        "shards is set, and foreign keys of the target are checked while changes are applied: a row may come before the one that \
         it refers to, which another shard brings",
        format!(
            "on the target: GRANT SET ON PARAMETER session_replication_role TO {} (PostgreSQL 15 and later); or leave shards \
             out",
            crate::postgres::quote_ident(&config.target.user)
        ),
    ))
}

/// The tables that rules have to fit: those of this publication, and those of the other shards'.
pub async fn with_others(
    source: &Client,
    config: &Config,
    own: &[PublishedTable],
    stage: Stage,
) -> Result<Vec<PublishedTable>, Error> {
    let mut tables = own.to_vec();
    let Some(shard) = config.shard() else { return Ok(tables) };
    for name in shard.publications().filter(|name| *name != config.publication()) {
        let other = Publication::read(source, Role::Source, &name, stage).await?;
        tables.extend(other.into_iter().flat_map(|other| other.tables));
    }
    tables.sort_by(|one, other| one.table.cmp(&other.table));
    tables.dedup_by(|one, other| one.table == other.table);
    Ok(tables)
}

/// What the rules make of the tables of all shards.
///
/// # Errors
/// As [`Mapping::of`]; a refusal if a table of the target gets rows from several shards.
pub fn mapping(config: &Config, tables: &[PublishedTable], stage: Stage) -> Result<Mapping, Error> {
    let mapping = Mapping::of(&config.rules, tables, stage)?;
    let Some(Shard { count, .. }) = config.shard() else { return Ok(mapping) };
    let mut sources: BTreeMap<TableName, Vec<&TableName>> = BTreeMap::new();
    for table in mapping.tables() {
        sources.entry(mapping.target(table)).or_default().push(table);
    }
    let number = |table: &TableName| number_of(&table.schema, &table.name, *count);
    let is_divided = |tables: &[&TableName]| tables.iter().any(|table| number(table) != number(tables[0]));
    let said = |(target, tables): (TableName, Vec<&TableName>)| {
        let list: Vec<_> = tables.iter().map(|table| format!("{table} (shard {})", number(table))).collect();
        format!("{} all go to {target}, and are in different shards", list.join(", "))
    };
    let divided: Vec<_> = sources.into_iter().filter(|(_, tables)| is_divided(tables)).map(said).collect();
    if divided.is_empty() {
        return Ok(mapping);
    }
    let mend = "rename them apart; or leave shards out, or set another number with which they are in one";
    Err(Error::refused(stage, divided.join("; "), mend))
}

fn failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(STAGE, Role::Target, error)
}
