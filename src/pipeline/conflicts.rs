//! Whether the policies for conflicts fit the tables, and the target can keep the records that they need.

use tokio_postgres::Client;

use crate::apply;
use crate::config::{Config, OnDuplicate, Role};
use crate::error::{Error, Stage};
use crate::postgres::quote_ident;
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
    // Those of other shards too: a section may be about them alone.
    let names = mapping.tables().map(|table| (table.schema.as_str(), table.name.as_str()));
    let mut wrong = config.conflicts.check(names);
    let mut mends = Vec::new();
    if !wrong.is_empty() {
        mends.push("correct the sections; `except` takes tables out of one");
    }
    let soft: Vec<_> = tables.iter().filter_map(|published| soft_delete(config, published, mapping)).collect();
    if !soft.is_empty() {
        wrong.extend(soft);
        mends.push("a row of the same key is always taken over there: have on_duplicate = \"stop\" for the table");
    }
    let keyless = overwrite(target, config, tables, mapping).await?;
    if !keyless.is_empty() {
        wrong.extend(keyless);
        mends.push("make the index, or leave the table out of the section");
    }
    if wrong.is_empty() { Ok(()) } else { Err(Error::refused(STAGE, wrong.join("\n"), mends.join("; "))) }
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
    tables: &[PublishedTable],
    mapping: &Mapping,
) -> Result<Vec<String>, Error> {
    let line = |published: &PublishedTable| {
        let mut sections = config.conflicts.sections(&published.table.schema, &published.table.name);
        sections.find(|(_, policy)| policy.on_duplicate == Some(OnDuplicate::Overwrite)).map(|(line, _)| line)
    };
    let overwriting: Vec<_> =
        tables.iter().filter_map(|one| Some((line(one)?, one, mapping.target(&one.table)))).collect();
    if overwriting.is_empty() {
        return Ok(Vec::new());
    }
    let names = overwriting.iter().map(|(_, _, to)| (to.schema.as_str(), to.name.as_str()));
    let found = apply::load_tables(target, names).await?;
    let mut keyed = Vec::new();
    for ((line, published, to), table) in overwriting.into_iter().zip(found) {
        // A table that is missing is named by others.
        let Some(table) = table else { continue };
        let of_source = published.relation();
        let relation = mapping.plan(&published.table).map_or(&of_source, |plan| plan.target());
        keyed.push((line, to, apply::row_key_columns(relation, &table).unwrap_or_default()));
    }
    let asked = keyed.iter().map(|(_, to, key)| (to, key.iter().map(String::as_str).collect())).collect();
    let without = without_unique_index(target, asked, KeyUse::OneRow).await?;
    let said = without.into_iter().map(|WithoutKey { place, .. }| {
        let (line, to, key) = &keyed[place];
        let key = if key.is_empty() { "a key".to_owned() } else { key.join(", ") };
        format!(
            "[[conflict]] of line {line}: on_duplicate = \"overwrite\", and {to} on the target has no unique index of {key} to \
             find a row by"
        )
    });
    Ok(said.collect())
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

/// A table whose rows of these columns nothing keeps apart in the way that is needed.
#[derive(Debug)]
pub(super) struct WithoutKey {
    /// In the list that was asked for.
    pub place: usize,
    /// Deferrable constraints of the same columns, which ON CONFLICT stumbles over.
    pub deferrable: Vec<String>,
}

/// What the unique index of a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyUse {
    /// ON CONFLICT infers every unique index of just these columns, and fails if one of them is deferrable ("INSERT",
    /// conflict_target). One that belongs to an exclusion constraint, as that of a key WITHOUT OVERLAPS, it passes over.
    Arbiter,
    /// There is one row of a key at most.
    OneRow,
}

/// Those tables that have no unique index of just these columns. Tables that are missing are not among them.
pub(super) async fn without_unique_index(
    target: &Client,
    tables: Vec<(&TableName, Vec<&str>)>,
    key_use: KeyUse,
) -> Result<Vec<WithoutKey>, Error> {
    // Arrays of arrays are all of one length; a key is its columns in their order, each quoted.
    let sql = "WITH wanted AS MATERIALIZED ( \
                   SELECT w.place, to_regclass(w.name) AS oid, w.key \
                   FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (name, key, place)), \
               found AS MATERIALIZED ( \
                   SELECT w.place, i.indexrelid, i.indimmediate FROM wanted w JOIN pg_index i ON i.indrelid = w.oid \
                   WHERE i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
                   AND NOT i.indisexclusion AND w.key = ( \
                       SELECT string_agg('\"' || replace(a.attname::text, '\"', '\"\"') || '\"', ',' ORDER BY a.attname::text COLLATE \"C\") \
                       FROM pg_attribute a \
                       WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]))), \
               late AS (SELECT f.place, array_agg(c.conname::text ORDER BY c.conname) AS names FROM found f \
                   JOIN pg_constraint c ON c.conindid = f.indexrelid AND c.contype IN ('p', 'u') WHERE NOT f.indimmediate \
                   GROUP BY f.place) \
               SELECT w.place - 1, CASE WHEN $3 THEN COALESCE(late.names, '{}') ELSE '{}' END \
               FROM wanted w LEFT JOIN late USING (place) \
               WHERE w.oid IS NOT NULL AND (($3 AND late.names IS NOT NULL) \
                   OR NOT EXISTS (SELECT FROM found f WHERE f.place = w.place AND f.indimmediate)) \
               ORDER BY 1";
    let (names, keys): (Vec<_>, Vec<_>) = tables
        .into_iter()
        .map(|(table, mut key)| {
            key.sort_unstable();
            (table.to_string(), key.into_iter().map(quote_ident).collect::<Vec<_>>().join(","))
        })
        .unzip();
    let failed = |error| Error::from_postgres(STAGE, Role::Target, error);
    let rows = target.query(sql, &[&names, &keys, &(key_use == KeyUse::Arbiter)]).await.map_err(failed)?;
    let without = |row: &tokio_postgres::Row| {
        Ok(WithoutKey { place: row.try_get::<_, i64>(0)? as usize, deferrable: row.try_get(1)? })
    };
    rows.iter().map(|row| without(row).map_err(failed)).collect()
}
