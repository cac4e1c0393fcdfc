//! Whether the policies for conflicts fit the tables, and the target can keep the records that they need.

use tokio_postgres::Client;

use crate::apply;
use crate::config::{Config, OnDuplicate, Role};
use crate::error::{Error, Stage};
use crate::source::publication::{PublishedTable, TableName};
use crate::transform::Mapping;

const STAGE: Stage = Stage::Apply;

/// # Errors
/// One refusal with all that contradicts itself: sections among each other, and what they say with what the tables are.
pub async fn check(
    target: &Client,
    config: &Config,
    tables: &[PublishedTable],
    mapping: &Mapping,
) -> Result<(), Error> {
    let names = tables.iter().map(|one| (one.table.schema.as_str(), one.table.name.as_str()));
    let mut wrong = config.conflicts.check(names);
    let mut mends = vec!["correct the sections; `except` takes tables out of one"];
    for published in tables {
        if let Some(what) = soft_delete(config, published, mapping) {
            wrong.push(what);
            mends.push("a row of the same key is always taken over there: have on_duplicate = \"stop\" for the table");
        }
        if let Some(what) = overwrite(target, config, published, mapping).await? {
            wrong.push(what);
            mends.push("make the index, or leave the table out of the section");
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    mends.dedup();
    Err(Error::refused(STAGE, wrong.join("\n"), mends.join("; ")))
}

/// An insert takes the place of a row that is kept as deleted, and nothing tells such a row from others.
fn soft_delete(config: &Config, published: &PublishedTable, mapping: &Mapping) -> Option<String> {
    let TableName { schema, name } = &published.table;
    let keeps = config.conflicts.policy(schema, name).on_duplicate == Some(OnDuplicate::Keep);
    let is_soft_deleting = mapping.plan(&published.table).is_some_and(|plan| plan.is_soft_deleting());
    (keeps && is_soft_deleting)
        .then(|| format!("on_duplicate = \"keep\" and soft_delete exclude each other for {}", published.table))
}

/// A section that says overwrite has to have something to overwrite by; a default is for the tables that have.
async fn overwrite(
    target: &Client,
    config: &Config,
    published: &PublishedTable,
    mapping: &Mapping,
) -> Result<Option<String>, Error> {
    let TableName { schema, name } = &published.table;
    let mut sections = config.conflicts.sections(schema, name);
    let overwriting = sections.find(|(_, policy)| policy.on_duplicate == Some(OnDuplicate::Overwrite));
    let Some((line, _)) = overwriting else { return Ok(None) };
    let to = mapping.target(&published.table);
    let found = apply::load_tables(target, [(to.schema.as_str(), to.name.as_str())].into_iter()).await?;
    // A table that is missing is named by others.
    let Some(table) = found.into_iter().next().flatten() else { return Ok(None) };
    let of_source = published.relation();
    let relation = mapping.plan(&published.table).map_or(&of_source, |plan| plan.target());
    let key = apply::row_key_columns(relation, &table).unwrap_or_default();
    let names: Vec<_> = key.iter().map(String::as_str).collect();
    if !key.is_empty() && has_unique_index(target, &to, &names).await? {
        return Ok(None);
    }
    let key = if key.is_empty() { "a key".to_owned() } else { key.join(", ") };
    Ok(Some(format!(
        "[[conflict]] of line {line}: on_duplicate = \"overwrite\", and {to} on the target has no unique index of {key} to find a \
         row by"
    )))
}

/// # Errors
/// A refusal if what the policies leave out could not be recorded.
pub(super) fn check_records(config: &Config, records: bool) -> Result<(), Error> {
    if records || config.conflicts.only_stop() {
        return Ok(());
    }
    Err(Error::refused(
        STAGE,
        "schema pgsluice on the target lacks tables that policies for conflicts need, and the role may not make them",
        "run `pgsluice setup` as a role that may, or take the SQL of `pgsluice setup --print-sql`",
    ))
}

/// Whether there is a unique index of just these columns, as ON CONFLICT takes for an arbiter ("INSERT", conflict_target); true
/// where the table is missing.
pub(super) async fn has_unique_index(target: &Client, table: &TableName, key: &[&str]) -> Result<bool, Error> {
    let sql = "SELECT to_regclass($1) IS NULL OR EXISTS ( \
                   SELECT FROM pg_index i WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indisvalid AND i.indimmediate \
                   AND i.indpred IS NULL AND i.indexprs IS NULL AND $2::text[] = ( \
                       SELECT array_agg(a.attname::text ORDER BY a.attname::text COLLATE \"C\") FROM pg_attribute a \
                       WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])))";
    let mut key = key.to_vec();
    key.sort_unstable();
    let failed = |error| Error::from_postgres(STAGE, Role::Target, error);
    let found = target.query_one(sql, &[&table.to_string(), &key]).await.map_err(failed)?;
    found.try_get(0).map_err(failed)
}
