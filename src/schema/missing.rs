//! Columns that the stream brings and a table of the target lacks: what makes them there.
//!
//! In: the catalogs of both. Out: statements, and whether the rows that the target has are then as they are on the source.
//!
//! A column that comes with a constant is in no row of the source's table: its catalog has the value, and those rows are not
//! in the stream ("ALTER TABLE", ADD COLUMN; `attmissingval` in "pg_attribute"). Any other default has the table written
//! anew, which is not in the stream either, and leaves it with another file than the one that it was made with.

use pgsluice_proto::{Lsn, Oid};
use tokio_postgres::{Client, Row};

use super::STAGE;
use super::past::{Past, Today};
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
    /// Columns that came after it are on the target.
    is_older: bool,
}

/// A column that is there, and the category of its type.
struct Present {
    name: String,
    category: String,
}

const RESYNC: &str = "rows that were there before may have values in it, which are not in the stream: if so, `pgsluice resync` for \
                      the table copies them anew";

/// What makes the columns, in their order. `past` is of the table of the source that they are of, unless there are several; the source
/// is at `position`.
pub async fn additions(
    source: &Client,
    target: &Client,
    mapping: &Mapping,
    lacks: &Lacks,
    past: Option<Past<'_>>,
    position: Lsn,
) -> Result<Vec<Addition>, Error> {
    let place = TableName { schema: lacks.schema.clone(), name: lacks.table.clone() };
    let table = quote_qualified(&place.schema, &place.name);
    let on_target = columns(target, &place).await.map_err(|error| Error::from_postgres(STAGE, Role::Target, error))?;
    let names: Vec<_> = on_target.iter().map(|column| column.name.as_str()).collect();
    let strange = strange(source, &place, mapping, &on_target).await?;
    let is_shared =
        mapping.sources(&place).count() > 1 || mapping.sources(&place).any(|of| !mapping.own(of).is_empty());
    let mut additions = Vec::new();
    for (name, type_oid) in &lacks.columns {
        let (sent_type, category) = sent_type(source, *type_oid).await?;
        let addition = if mapping.sources(&place).any(|of| mapping.is_made(of, name)) {
            made(&table, name, &sent_type)
        } else {
            let mut found = None;
            for (of, column) in mapping.origins(&place, name) {
                found = find(source, of, &column, &mapping.origins_of(of, &names)).await?;
                if found.is_some() {
                    break;
                }
            }
            let type_name = found.as_ref().map_or(sent_type, |found| found.type_name.clone());
            addition(&table, name, &type_name, found.as_ref(), is_shared)
        };
        let before: Vec<_> = strange.iter().copied().filter(|other| other.category == category).collect();
        let is_plain = mapping.sources(&place).all(|of| mapping.plan(of).is_none());
        additions.push(match past {
            Some(past) if is_plain => {
                let is_there = |name: &str| names.contains(&name);
                match addition.of_the_past(&table, (name, *type_oid), past, is_there, position) {
                    Ok(renamed) => renamed,
                    Err(addition) => addition.perhaps_renamed(&table, name, &before),
                }
            }
            Some(past) if past.has_unknown() => addition.in_doubt().perhaps_renamed(&table, name, &before),
            Some(_) | None => addition.perhaps_renamed(&table, name, &before),
        });
    }
    Ok(additions)
}

impl Addition {
    /// With what is known of the column that the stream brings under this name. `Err` is what is left to be said of it.
    fn of_the_past(
        self,
        table: &str,
        (name, type_oid): (&str, Oid),
        past: Past<'_>,
        is_there: impl Fn(&str) -> bool,
        position: Lsn,
    ) -> Result<Addition, Addition> {
        let rename = |from: &str, to: &str| {
            format!("ALTER TABLE {table} RENAME COLUMN {} TO {}", quote_ident(from), quote_ident(to))
        };
        match past.today(name, type_oid) {
            Today::Same => match past.former_names(name).into_iter().find(|former| is_there(former)) {
                // The target has it under the name that it had before.
                Some(former) => Ok(Addition { statements: vec![rename(former, name)], note: None, keeps_rows: false }),
                None => Err(self),
            },
            Today::Renamed(now) if is_there(&now) => {
                let note = format!(
                    "column {} was renamed to {} on the source, and what the stream brings is of the time before: rename it back \
                     on the target until LSN {position} has passed, then: {}",
                    quote_ident(name),
                    quote_ident(&now),
                    rename(name, &now)
                );
                Ok(Addition { statements: vec![rename(&now, name)], note: Some(note), keeps_rows: false })
            }
            Today::Renamed(now) => {
                let note = format!(
                    "the column is {} on the source by now, and is to be renamed here too once the stream brings it under that name; \
                     or make the table as it is on the source, and have `pgsluice resync` copy it anew",
                    quote_ident(&now)
                );
                Ok(Addition { note: Some(note), keeps_rows: false, ..self })
            }
            // As the catalog has it: nobody asks for its values any more.
            Today::Dropped => Err(self),
            Today::Unknown => Err(self.in_doubt()),
        }
    }

    /// Whose values the stream brings cannot be told.
    fn in_doubt(self) -> Addition {
        let note = "columns of that name, or of others, were dropped, renamed or given another type on the source since, so that the \
                    values may be of another column than the one that has the name now: make the table as it is on the source, and \
                    have `pgsluice resync` copy it anew";
        Addition { note: Some(note.to_owned()), keeps_rows: false, ..self }
    }

    /// The column may be one that the target has under another name.
    fn perhaps_renamed(mut self, table: &str, name: &str, before: &[&Present]) -> Addition {
        if before.is_empty() {
            return self;
        }
        let rename = |before: &&Present| {
            format!("ALTER TABLE {table} RENAME COLUMN {} TO {};", quote_ident(&before.name), quote_ident(name))
        };
        let renames: Vec<_> = before.iter().map(rename).collect();
        let renamed = format!("or, if it was renamed: {}", renames.join(" or "));
        self.note = Some(self.note.map_or(renamed.clone(), |note| format!("{renamed}\n  {note}")));
        self.keeps_rows = false;
        self
    }
}

/// Of a column that rules make, which the source has under no name, or with other values.
fn made(table: &str, name: &str, type_name: &str) -> Addition {
    let note = "rules make it, and rows that were there before do not have it: `pgsluice resync` for the table copies them anew";
    let statement = format!("ALTER TABLE {table} ADD COLUMN {} {type_name}", quote_ident(name));
    Addition { statements: vec![statement], note: Some(note.to_owned()), keeps_rows: false }
}

/// `is_shared` where rows of the table are not all of this source.
fn addition(table: &str, name: &str, type_name: &str, found: Option<&Found>, is_shared: bool) -> Addition {
    let column = quote_ident(name);
    let add = |more: &str| format!("ALTER TABLE {table} ADD COLUMN {column} {type_name}{more}");
    let Some(found) = found else {
        let note = "the source's table has no such column any more, and its values there are not known; it can be dropped \
                    again once the stream has passed";
        return Addition { statements: vec![add("")], note: Some(note.to_owned()), keeps_rows: true };
    };
    let collation = found.collation.as_ref().map_or_else(String::new, |collation| format!(" COLLATE {collation}"));
    let manual = || Addition { statements: vec![add(&collation)], note: Some(RESYNC.to_owned()), keeps_rows: false };
    match &found.missing_value {
        _ if found.is_older => manual(),
        // Of others' rows it would not be true.
        Some(_) if is_shared => manual(),
        Some(value) => {
            let not_null = if found.not_null { " NOT NULL" } else { "" };
            let first = format!("{collation} DEFAULT {}::{type_name}{not_null}", quote_literal(value));
            let then = match &found.default {
                Some(default) => format!("ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT {default}"),
                None => format!("ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT"),
            };
            Addition { statements: vec![add(&first), then], note: None, keeps_rows: true }
        }
        None if found.default.is_none() && !found.is_made && !found.not_null && !found.may_be_filled => {
            Addition { statements: vec![add(&collation)], note: None, keeps_rows: true }
        }
        None => manual(),
    }
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
        AND r.oid IN (SELECT a.attrelid UNION SELECT relid FROM pg_partition_tree(a.attrelid))),
    EXISTS (
        SELECT FROM pg_attribute o WHERE o.attrelid = a.attrelid AND o.attnum > a.attnum AND NOT o.attisdropped
        AND o.attname = ANY ($3))
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_collation l ON l.oid = a.attcollation LEFT JOIN pg_namespace n ON n.oid = l.collnamespace
WHERE a.attrelid = to_regclass($1) AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped";

/// `others` are on the target.
async fn find(source: &Client, table: &TableName, column: &str, others: &[String]) -> Result<Option<Found>, Error> {
    let row = source.query_opt(FIND_SQL, &[&table.to_string(), &column, &others]).await.map_err(source_failed)?;
    let found = |row: Row| {
        Ok(Found {
            type_name: row.try_get(0)?,
            not_null: row.try_get(1)?,
            default: row.try_get(2)?,
            is_made: row.try_get(3)?,
            missing_value: row.try_get(4)?,
            collation: row.try_get(5)?,
            may_be_filled: row.try_get(6)?,
            is_older: row.try_get(7)?,
        })
    };
    row.map(found).transpose().map_err(source_failed)
}

/// The name and the category of the type that the stream says; of one that the source does not have any more, text's.
async fn sent_type(source: &Client, type_oid: Oid) -> Result<(String, String), Error> {
    let sql = "SELECT format_type($1, NULL), COALESCE((SELECT typcategory::text FROM pg_type WHERE oid = $1), 'S')";
    let row = source.query_one(sql, &[&type_oid.0]).await.map_err(source_failed)?;
    Ok((row.try_get(0).map_err(source_failed)?, row.try_get(1).map_err(source_failed)?))
}

async fn columns(client: &Client, table: &TableName) -> Result<Vec<Present>, tokio_postgres::Error> {
    let sql = "SELECT a.attname::text, t.typcategory::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
               WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";
    let rows = client.query(sql, &[&table.to_string()]).await?;
    rows.iter().map(|row| Ok(Present { name: row.try_get(0)?, category: row.try_get(1)? })).collect()
}

/// Columns of the target that nothing of the source goes to. Any of them may be one that was renamed there.
async fn strange<'t>(
    source: &Client,
    place: &TableName,
    mapping: &Mapping,
    on_target: &'t [Present],
) -> Result<Vec<&'t Present>, Error> {
    let mut strange: Vec<_> = on_target.iter().collect();
    for table in mapping.sources(place) {
        let known: Vec<String> = match mapping.plan(table) {
            Some(plan) => plan.columns().map(|(column, _)| column.name.clone()).collect(),
            None => columns(source, table).await.map_err(source_failed)?.into_iter().map(|one| one.name).collect(),
        };
        strange.retain(|one| !known.contains(&one.name));
    }
    Ok(strange)
}

fn source_failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(STAGE, Role::Source, error)
}
