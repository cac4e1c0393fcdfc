//! Removes rows of the target before a copy, and looks first at what else would go with them.
//!
//! In: tables that are to lose rows. Out: nothing, with those rows gone; or a refusal with nothing removed.
//!
//! **Always holds:** what is removed is rows of the table itself. Those of tables that inherit from it stay, and so do those that refer
//! to it: where a foreign key of the target would delete or change them, nothing is removed.

use tokio_postgres::{Client, Row};

use super::state::failed_on;
use super::{OnExisting, STAGE, Wanted, target_failed};
use crate::error::Error;
use crate::postgres::{OwnRows, quote_ident, quote_qualified};
use crate::source::publication::TableName;

const FOREIGN_KEYS_SQL: &str = include_str!("emptying.sql");

/// A foreign key to a table that is to lose rows.
#[derive(Debug)]
struct ForeignKey {
    /// Of that table, in the list.
    place: usize,
    /// It refers to that table itself, not to one whose rows go with its rows.
    is_direct: bool,
    /// It is of that table itself, or of a partition of it.
    is_own: bool,
    /// Rows that refer to one that is deleted are deleted too, or changed. Else it is not deleted.
    acts: bool,
    /// That refers, quoted, with its schema.
    table: String,
    name: String,
    on_delete: String,
    definition: String,
    /// Finds a row that refers to any; `None` where the role may not look.
    probe: Option<String>,
}

impl ForeignKey {
    fn from_row(row: &Row) -> Result<ForeignKey, tokio_postgres::Error> {
        Ok(ForeignKey {
            place: (row.try_get::<_, i64>(0)? - 1) as usize,
            is_direct: row.try_get(1)?,
            is_own: row.try_get(2)?,
            acts: row.try_get(3)?,
            table: quote_qualified(row.try_get(4)?, row.try_get(5)?),
            name: row.try_get(6)?,
            on_delete: row.try_get(7)?,
            definition: row.try_get(8)?,
            probe: row.try_get(9)?,
        })
    }

    /// Whether deleting rows does harm elsewhere, or fails. Where the role may not look, PostgreSQL refuses by itself.
    async fn is_in_the_way(&self, target: &Client) -> Result<bool, Error> {
        match &self.probe {
            _ if self.is_own => Ok(false),
            _ if self.acts => Ok(true),
            Some(probe) if self.is_direct => Ok(target.query_opt(probe, &[]).await.map_err(target_failed)?.is_some()),
            Some(_) | None => Ok(false),
        }
    }
}

async fn foreign_keys(
    target: &Client,
    tables: &[&TableName],
    constraints_fire: bool,
) -> Result<Vec<ForeignKey>, Error> {
    let names: Vec<_> = tables.iter().map(|table| table.to_string()).collect();
    let rows = target.query(FOREIGN_KEYS_SQL, &[&names, &constraints_fire]).await.map_err(target_failed)?;
    rows.iter().map(ForeignKey::from_row).collect::<Result<_, _>>().map_err(target_failed)
}

/// Whether a table's own foreign keys act on its rows when others of them are deleted.
pub(super) async fn acts_on_itself(target: &Client, wanted: &Wanted, constraints_fire: bool) -> Result<bool, Error> {
    let keys = foreign_keys(target, &[&wanted.target.table], constraints_fire).await?;
    Ok(keys.iter().any(|key| key.is_own))
}

/// Rows of a table of the target.
#[derive(Clone, Debug)]
pub struct Removal {
    pub table: TableName,
    pub rows: OwnRows,
    /// A condition that they fulfil.
    pub condition: String,
}

impl Wanted {
    /// The rows that may go when a copy of it begins.
    pub(super) fn removal(&self) -> Removal {
        let to = &self.target;
        Removal { table: to.table.clone(), rows: to.rows.clone(), condition: to.is_own() }
    }
}

/// Before anything is changed, the same as when the copy begins.
///
/// # Errors
/// As [`check_removal`].
pub async fn check_before(
    target: &Client,
    tables: &[Wanted],
    on_existing: OnExisting,
    constraints_fire: bool,
    gone: impl Fn(&str) -> bool,
) -> Result<(), Error> {
    let losing: Vec<_> = tables
        .iter()
        .filter(|wanted| wanted.is_begun || on_existing == OnExisting::Truncate)
        .map(Wanted::removal)
        .collect();
    check_removal(target, &losing, constraints_fire, gone).await
}

/// Foreign keys of tables that are `gone` by the time the rows are count for nothing.
///
/// # Errors
/// A refusal that names the tables whose rows would be deleted or changed along with these, or keep these from being deleted, each
/// with its foreign key; or tables that are replicated by themselves, and lie in one of these as partitions.
pub async fn check_removal(
    target: &Client,
    tables: &[Removal],
    constraints_fire: bool,
    gone: impl Fn(&str) -> bool,
) -> Result<(), Error> {
    let mut filled = Vec::new();
    for Removal { table, rows, condition } in tables {
        if has_rows(target, table, rows, condition).await? {
            filled.push(table);
        }
    }
    if filled.is_empty() {
        return Ok(());
    }
    check_partitions(target, &filled).await?;
    let mut in_the_way = Vec::new();
    for key in foreign_keys(target, &filled, constraints_fire).await? {
        if !gone(&key.table) && key.is_in_the_way(target).await? {
            in_the_way.push(key);
        }
    }
    if in_the_way.is_empty() {
        return Ok(());
    }
    let role: String = target
        .query_one("SELECT quote_ident(current_user)", &[])
        .await
        .map_err(target_failed)?
        .try_get(0)
        .map_err(target_failed)?;
    Err(refusal(&filled, &in_the_way, constraints_fire.then_some(&role)))
}

fn refusal(tables: &[&TableName], keys: &[ForeignKey], role: Option<&String>) -> Error {
    let mut losing: Vec<_> = keys.iter().map(|key| tables[key.place].to_string()).collect();
    losing.dedup();
    let said = |key: &ForeignKey| {
        let does = if key.acts { "would delete or change rows of" } else { "does not let them go, for rows of" };
        format!("{} {does} {} (ON DELETE {})", quote_ident(&key.name), key.table, key.on_delete)
    };
    let mut list: Vec<_> = keys.iter().map(said).collect();
    list.dedup();
    let what = format!(
        "rows of {} on the target would be removed, and foreign keys refer to them: {}",
        losing.join(", "),
        list.join("; ")
    );
    let drop = |key: &ForeignKey| format!("ALTER TABLE {} DROP CONSTRAINT {}", key.table, quote_ident(&key.name));
    let add = |key: &ForeignKey| {
        format!("ALTER TABLE {} ADD CONSTRAINT {} {}", key.table, quote_ident(&key.name), key.definition)
    };
    let each = |statement: &dyn Fn(&ForeignKey) -> String| {
        // One that is reached only by another is out of reach without that.
        let mut list: Vec<_> = keys.iter().filter(|key| key.is_direct).map(statement).collect();
        list.dedup();
        list.join("; ")
    };
    let grant = role.map_or_else(String::new, |role| {
        format!(
            "GRANT SET ON PARAMETER session_replication_role TO {role} (PostgreSQL 15 and later), so that they do nothing of the kind; or "
        )
    });
    let mend = format!(
        "on the target: {grant}drop them until the tables are copied: {}; and add them again when they are: {}",
        each(&drop),
        each(&add)
    );
    Error::refused(STAGE, what, mend)
}

/// # Errors
/// A refusal if rows of another replicated table would go, as those of a partition.
async fn check_partitions(target: &Client, tables: &[&TableName]) -> Result<(), Error> {
    let sql = "SELECT w.place, n.nspname::text, c.relname::text FROM unnest($1::text[]) WITH ORDINALITY AS w (name, place) \
               CROSS JOIN LATERAL pg_partition_tree(to_regclass(w.name)) t \
               JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.level > 0 ORDER BY 1, 2, 3";
    let names: Vec<_> = tables.iter().map(|table| table.to_string()).collect();
    let partitions = target.query(sql, &[&names]).await.map_err(target_failed)?;
    if partitions.is_empty() {
        return Ok(());
    }
    let known = "SELECT DISTINCT COALESCE(place, format('\"%s\".\"%s\"', replace(schema_name, '\"', '\"\"'), \
                     replace(table_name, '\"', '\"\"'))) FROM pgsluice.table_state";
    let known = target.query(known, &[]).await.map_err(target_failed)?;
    let known: Vec<String> = known.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(target_failed)?;
    for row in &partitions {
        let place: i64 = row.try_get(0).map_err(target_failed)?;
        let (schema, name) = (row.try_get(1).map_err(target_failed)?, row.try_get(2).map_err(target_failed)?);
        let partition = quote_qualified(schema, name);
        let is_here = |other: &String| {
            other.strip_prefix(&partition).is_some_and(|rest| rest.is_empty() || rest.starts_with(" where "))
        };
        if known.iter().any(is_here) {
            let table = tables[place as usize - 1];
            return Err(Error::refused(
                STAGE,
                format!(
                    "rows of {table} on the target would be removed, and with them those of its partition {partition}, which is replicated by itself"
                ),
                format!(
                    "make {table} on the target as it is on the source, where {partition} is no partition of it; or give one of the two another name by a rule"
                ),
            ));
        }
    }
    Ok(())
}

async fn has_rows(target: &Client, table: &TableName, rows: &OwnRows, condition: &str) -> Result<bool, Error> {
    let sql = format!("SELECT FROM {rows} WHERE {condition} LIMIT 1");
    Ok(target.query_opt(&sql, &[]).await.map_err(|error| failed_on(error, table))?.is_some())
}

/// By TRUNCATE, or row by row where other tables refer to it, or others have rows in it.
///
/// # Errors
/// A refusal if rows are left, which something on the target has kept.
pub(super) async fn empty(target: &Client, wanted: &Wanted) -> Result<(), Error> {
    const FEATURE_NOT_SUPPORTED: &str = "0A000";
    let Removal { table, rows, condition } = wanted.removal();
    let failed = |error| failed_on(error, &table);
    let delete = format!("DELETE FROM {rows} WHERE {condition}");
    if wanted.target.own.is_empty() {
        target.batch_execute("SAVEPOINT truncating").await.map_err(target_failed)?;
        match target.batch_execute(&format!("TRUNCATE TABLE {rows}")).await {
            Ok(()) => {}
            Err(error) if error.code().is_some_and(|code| code.code() == FEATURE_NOT_SUPPORTED) => {
                target.batch_execute(&format!("ROLLBACK TO SAVEPOINT truncating; {delete}")).await.map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        target.batch_execute("RELEASE SAVEPOINT truncating").await.map_err(target_failed)?;
    } else {
        target.batch_execute(&delete).await.map_err(failed)?;
    }
    if !has_rows(target, &table, &rows, &condition).await? {
        return Ok(());
    }
    Err(Error::refused(
        STAGE,
        format!("{table} on the target was to be emptied for its copy, and rows are left"),
        "see which trigger or rule of it keeps rows from being deleted, and disable that until the table is copied",
    ))
}
