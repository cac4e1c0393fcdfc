//! Columns that the stream brings and a table of the target lacks: what makes them there.
//!
//! In: the catalogs of both. Out: statements, and whether the rows that the target has are then as they are on the source.
//!
//! A column that comes with a constant is in no row of the source's table: its catalog has the value, and those rows are not
//! in the stream ("ALTER TABLE", ADD COLUMN; `attmissingval` in "pg_attribute"). Any other default has the table written
//! anew, which is not in the stream either, and leaves it with another file than the one that it was made with.

use pgsluice_proto::Oid;
use tokio_postgres::{Client, Row};

use super::STAGE;
use crate::config::Role;
use crate::error::{Error, Lacks};
use crate::postgres::{quote_ident, quote_literal, quote_qualified};
use crate::source::publication::TableName;
use crate::transform::Mapping;

/// What makes one column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addition {
    pub statements: Vec<String>,
    /// What is to be known before they are run.
    pub note: Option<String>,
    /// The rows that are there have what they have on the source.
    pub keeps_rows: bool,
}

/// A column as the source has it now.
#[derive(Clone, Debug, Default)]
struct Found {
    type_name: String,
    collation: Option<String>,
    not_null: bool,
    default: Option<String>,
    /// The source computes it, or numbers it.
    is_made: bool,
    /// What rows have that were there before the column was, where it is known.
    missing_value: Option<String>,
    /// They may have something else: their table was written anew, or it is something that cannot be told.
    may_be_filled: bool,
}

/// What makes the columns, in their order.
pub async fn additions(
    source: &Client,
    target: &Client,
    mapping: &Mapping,
    lacks: &Lacks,
) -> Result<Vec<Addition>, Error> {
    let place = TableName { schema: lacks.schema.clone(), name: lacks.table.clone() };
    let table = quote_qualified(&place.schema, &place.name);
    let strange = strange(source, target, &place, mapping).await?;
    let mut additions = Vec::new();
    for (name, type_oid) in &lacks.columns {
        let mut found = None;
        for (of, column) in mapping.origins(&place, name) {
            found = find(source, of, &column).await?;
            if found.is_some() {
                break;
            }
        }
        let type_name = match &found {
            Some(found) => found.type_name.clone(),
            None => type_name(source, *type_oid).await?,
        };
        let mut addition = addition(&table, name, &type_name, found.as_ref());
        let before: Vec<_> = strange.iter().filter(|(_, other)| *other == type_name).collect();
        if found.is_some() && !before.is_empty() {
            let renames = before.iter().map(|(before, _)| {
                format!("ALTER TABLE {table} RENAME COLUMN {} TO {};", quote_ident(before), quote_ident(name))
            });
            addition.note = Some(format!("or, if it was renamed: {}", renames.collect::<Vec<_>>().join(" or ")));
            addition.keeps_rows = false;
        }
        additions.push(addition);
    }
    Ok(additions)
}

fn addition(table: &str, name: &str, type_name: &str, found: Option<&Found>) -> Addition {
    let column = quote_ident(name);
    let add = |more: &str| format!("ALTER TABLE {table} ADD COLUMN {column} {type_name}{more}");
    let Some(found) = found else {
        let note = "the source's table has no such column any more, and its values there are not known; it can be dropped \
                    again once the stream has passed";
        return Addition { statements: vec![add("")], note: Some(note.to_owned()), keeps_rows: true };
    };
    let collation = found.collation.as_ref().map_or_else(String::new, |collation| format!(" COLLATE {collation}"));
    if let Some(value) = &found.missing_value {
        let not_null = if found.not_null { " NOT NULL" } else { "" };
        let first = format!("{collation} DEFAULT {}::{type_name}{not_null}", quote_literal(value));
        let then = match &found.default {
            Some(default) => format!("ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT {default}"),
            None => format!("ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT"),
        };
        return Addition { statements: vec![add(&first), then], note: None, keeps_rows: true };
    }
    if found.default.is_none() && !found.is_made && !found.not_null && !found.may_be_filled {
        return Addition { statements: vec![add(&collation)], note: None, keeps_rows: true };
    }
    let note = "rows that were there before may have values in it that are not in the stream: if so, `pgsluice resync` for the \
                table copies them anew";
    Addition { statements: vec![add(&collation)], note: Some(note.to_owned()), keeps_rows: false }
}

/// A missing value is an array of one; of a column that is an array itself it cannot be taken apart in SQL.
const FIND_SQL: &str = "\
SELECT format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
    a.attidentity <> '' OR a.attgenerated <> '',
    CASE WHEN a.atthasmissing AND t.typcategory <> 'A' THEN (a.attmissingval::text::text[])[1] END,
    CASE WHEN a.attcollation <> t.typcollation THEN format('%I.%I', n.nspname, l.collname) END,
    EXISTS (
        SELECT FROM pg_class r JOIN pg_attribute m ON m.attrelid = r.oid AND m.attname = a.attname
        WHERE (r.relkind = 'r' AND pg_relation_filenode(r.oid) <> r.oid OR m.atthasmissing)
        AND r.oid IN (SELECT a.attrelid UNION SELECT relid FROM pg_partition_tree(a.attrelid)))
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_collation l ON l.oid = a.attcollation LEFT JOIN pg_namespace n ON n.oid = l.collnamespace
WHERE a.attrelid = to_regclass($1) AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped";

async fn find(source: &Client, table: &TableName, column: &str) -> Result<Option<Found>, Error> {
    let row = source.query_opt(FIND_SQL, &[&table.to_string(), &column]).await.map_err(source_failed)?;
    let found = |row: Row| {
        Ok(Found {
            type_name: row.try_get(0)?,
            not_null: row.try_get(1)?,
            default: row.try_get(2)?,
            is_made: row.try_get(3)?,
            missing_value: row.try_get(4)?,
            collation: row.try_get(5)?,
            may_be_filled: row.try_get(6)?,
        })
    };
    row.map(found).transpose().map_err(source_failed)
}

async fn type_name(source: &Client, type_oid: Oid) -> Result<String, Error> {
    let row = source.query_one("SELECT format_type($1, NULL)", &[&type_oid.0]).await.map_err(source_failed)?;
    row.try_get(0).map_err(source_failed)
}

/// Columns of the target that nothing of the source goes to, with their types. Any of them may be one that was renamed there.
async fn strange(
    source: &Client,
    target: &Client,
    place: &TableName,
    mapping: &Mapping,
) -> Result<Vec<(String, String)>, Error> {
    let sql = "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute \
               WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped";
    let column = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?));
    let columns = async |client: &Client, table: &TableName| {
        let rows = client.query(sql, &[&table.to_string()]).await?;
        rows.iter().map(column).collect::<Result<Vec<(String, String)>, _>>()
    };
    let mut strange = columns(target, place).await.map_err(|error| Error::from_postgres(STAGE, Role::Target, error))?;
    for table in mapping.sources(place) {
        let known: Vec<String> = match mapping.plan(table) {
            Some(plan) => plan.columns().map(|(column, _)| column.name.clone()).collect(),
            None => columns(source, table).await.map_err(source_failed)?.into_iter().map(|(name, _)| name).collect(),
        };
        strange.retain(|(name, _)| !known.contains(name));
    }
    Ok(strange)
}

fn source_failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(STAGE, Role::Source, error)
}
