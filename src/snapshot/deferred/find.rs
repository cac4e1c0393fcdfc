//! Which indexes and foreign keys of the target can go while tables are copied, and how they are made again.

use tokio_postgres::{Client, Row};

use super::{DeferredKind, STAGE, target_failed};
use crate::error::Error;
use crate::snapshot::{OnExisting, Wanted};
use crate::source::publication::TableName;

const FIND_SQL: &str = include_str!("find.sql");

/// An index or constraint that is there and can go.
#[derive(Debug)]
struct Found {
    table: TableName,
    kind: DeferredKind,
    relation: String,
    object_name: String,
    definition: String,
    attributes: String,
    drop: String,
    referenced: Option<TableName>,
    is_checked_later: bool,
    /// Tables that are another's.
    foreign: Vec<String>,
    /// Schemas and tablespaces in which nothing may be made.
    closed: Vec<String>,
}

/// The tables that are copied at once.
#[derive(Debug)]
pub struct Selected<'a> {
    pub name: &'a str,
    pub tables: Vec<&'a Wanted>,
    pub on_existing: OnExisting,
}

/// # Errors
/// A refusal that names the tables which the role would have to own, and the schemas in which it may make no index.
pub async fn check_rights(target: &Client, selected: &Selected<'_>) -> Result<(), Error> {
    let found = find(target, selected).await?;
    let list = |of: fn(&Found) -> &Vec<String>| {
        let mut names: Vec<_> = found.iter().flat_map(of).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    };
    let (foreign, closed) = (list(|one| &one.foreign), list(|one| &one.closed));
    let (mut what, mut mend) = (Vec::new(), Vec::new());
    if !foreign.is_empty() {
        what.push(format!("the role on the target does not own {foreign}"));
        mend.push("ALTER TABLE … OWNER TO the role, or GRANT the owner's role TO it".to_owned());
    }
    if !closed.is_empty() {
        what.push(format!("it may make no index in {closed}"));
        mend.push(format!("GRANT CREATE ON {closed} TO the role"));
    }
    if what.is_empty() {
        return Ok(());
    }
    Err(Error::refused(
        STAGE,
        format!("--defer-indexes drops indexes and makes them again, and {}", what.join("; ")),
        format!("on the target: {}; or run without --defer-indexes", mend.join("; ")),
    ))
}

/// Drops what can go and records it, in the transaction that is open on `target`.
pub(in crate::snapshot) async fn drop_and_record(target: &Client, selected: &Selected<'_>) -> Result<(), Error> {
    let mut found = find(target, selected).await?;
    // They rest on indexes.
    found.sort_by_key(|one| one.kind != DeferredKind::ForeignKey);
    let sql = "INSERT INTO pgsluice.deferred (name, schema_name, table_name, kind, relation, object_name, definition, \
                   attributes, referenced_schema, referenced_table, checked_later) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
               ON CONFLICT (name, relation, kind, object_name) DO UPDATE \
               SET definition = EXCLUDED.definition, attributes = EXCLUDED.attributes, \
                   checked_later = EXCLUDED.checked_later, deferred_at = now()";
    let record = target.prepare(sql).await.map_err(target_failed)?;
    for one in &found {
        let Found { table, kind, relation, object_name, definition, attributes, drop, referenced, .. } = one;
        let (referenced_schema, referenced_table) =
            referenced.as_ref().map(|table| (table.schema.as_str(), table.name.as_str())).unzip();
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 11] = [
            &selected.name,
            &table.schema,
            &table.name,
            &kind.as_str(),
            relation,
            object_name,
            definition,
            attributes,
            &referenced_schema,
            &referenced_table,
            &one.is_checked_later,
        ];
        target.execute(&record, &parameters).await.map_err(target_failed)?;
        target.batch_execute(drop).await.map_err(|error| target_failed(error).on(relation.clone()))?;
        tracing::debug!(relation, object = object_name, kind = kind.as_str(), "dropped until the tables are copied");
    }
    if !found.is_empty() {
        tracing::info!(objects = found.len(), "indexes and foreign keys are dropped until the tables are copied");
    }
    Ok(())
}

async fn find(target: &Client, selected: &Selected<'_>) -> Result<Vec<Found>, Error> {
    let names: Vec<_> = selected.tables.iter().map(|wanted| wanted.target.table.to_string()).collect();
    let droppable = droppable(target, selected).await?;
    let rows = target.query(FIND_SQL, &[&names, &droppable]).await.map_err(target_failed)?;
    rows.iter().map(|row| Found::from_row(row, &selected.tables)).collect()
}

impl Found {
    fn from_row(row: &Row, tables: &[&Wanted]) -> Result<Found, Error> {
        let text = |column| row.try_get::<_, String>(column).map_err(target_failed);
        let list = |column| row.try_get::<_, Vec<String>>(column).map_err(target_failed);
        let table = |place: i64| tables[place as usize - 1].table.clone();
        Ok(Found {
            table: table(row.try_get(0).map_err(target_failed)?),
            kind: DeferredKind::parse(&text(1)?)?,
            relation: text(2)?,
            object_name: text(3)?,
            definition: text(4)?,
            attributes: text(5)?,
            drop: text(6)?,
            referenced: row.try_get::<_, Option<i64>>(7).map_err(target_failed)?.map(table),
            is_checked_later: row.try_get(8).map_err(target_failed)?,
            foreign: list(9)?,
            closed: list(10)?,
        })
    }
}

/// Of each table, whether its copy begins from nothing, so that a build at its end costs less than keeping indexes up. One
/// that goes on, with its indexes or without, keeps to that; and so does one that has rows that are not the source's.
async fn droppable(target: &Client, selected: &Selected<'_>) -> Result<Vec<bool>, Error> {
    let (schemas, names): (Vec<_>, Vec<_>) =
        selected.tables.iter().map(|wanted| (wanted.table.schema.as_str(), wanted.table.name.as_str())).unzip();
    let sql = "\
        SELECT NOT EXISTS (SELECT FROM pgsluice.chunk_state c \
                           WHERE c.name = $1 AND (c.schema_name, c.table_name) = (w.schema_name, w.table_name)) \
            OR EXISTS (SELECT FROM pgsluice.deferred d WHERE d.name = $1 AND d.kind <> 'foreign key' \
                           AND (d.schema_name, d.table_name) = (w.schema_name, w.table_name)) \
        FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS w (schema_name, table_name, place) ORDER BY w.place";
    let rows = target.query(sql, &[&selected.name, &schemas, &names]).await.map_err(target_failed)?;
    let mut droppable =
        rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<bool>, _>>().map_err(target_failed)?;
    if selected.on_existing == OnExisting::Append {
        for (wanted, droppable) in selected.tables.iter().zip(&mut droppable) {
            let sql = format!("SELECT FROM {} LIMIT 1", wanted.target.rows);
            *droppable &= target.query_opt(&sql, &[]).await.map_err(target_failed)?.is_none();
        }
    }
    Ok(droppable)
}
