//! What the catalogs say: of the source's objects, by their OIDs; of the target's, by their names.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Client, Row};

use super::STAGE;
use super::needs::{Anchor, Facts, Reference};
use super::toc::ObjectId;
use crate::config::Role;
use crate::error::Error;
use crate::source::publication::TableName;

/// From here on OIDs are of objects that somebody has made (`FirstNormalObjectId`).
const OID_FIRST_NORMAL: u32 = 16_384;

/// An object's name as `pg_identify_object_as_address` takes it apart, with its catalog: the same on every server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    pub class: u32,
    pub names: Vec<String>,
    pub arguments: Vec<String>,
}

/// An object of the source.
#[derive(Clone, Debug)]
pub struct Identity {
    pub address: Address,
    /// For people: its type and its quoted name.
    pub text: String,
}

/// Class, object, its table and that table's root, whether it is a primary key, and the same of the table that it
/// refers to. Objects that PostgreSQL itself is made of have none of these.
const ANCHORS_SQL: &str = "\
WITH anchors (class, oid, relid, is_primary_key, referenced) AS (
    SELECT 'pg_constraint'::regclass, oid, conrelid, contype = 'p', NULLIF(confrelid, 0) FROM pg_constraint WHERE conrelid <> 0
    UNION ALL SELECT 'pg_class'::regclass, indexrelid, indrelid, false, NULL FROM pg_index
    UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, stxrelid, false, NULL FROM pg_statistic_ext
    UNION ALL SELECT 'pg_trigger'::regclass, oid, tgrelid, false, NULL FROM pg_trigger
    UNION ALL SELECT 'pg_rewrite'::regclass, oid, ev_class, false, NULL FROM pg_rewrite
    UNION ALL SELECT 'pg_policy'::regclass, oid, polrelid, false, NULL FROM pg_policy
)
SELECT class::oid, oid, relid, COALESCE(pg_partition_root(relid)::oid, relid), is_primary_key,
    referenced, COALESCE(pg_partition_root(referenced)::oid, referenced), referenced::regclass::text
FROM anchors WHERE relid >= 16384";

/// Tables that somebody else may read, but for those that the selected ones are made of: their partitions and what they
/// inherit from. The second column tells which of the two a table is.
const UNREADABLE_SQL: &str = "\
WITH RECURSIVE family AS (
    SELECT relid::oid FROM unnest($1::oid[]) w (oid), LATERAL (SELECT w.oid UNION SELECT relid::oid FROM pg_partition_tree(w.oid)) t (relid)
  UNION
    SELECT i.inhparent FROM family f JOIN pg_inherits i ON i.inhrelid = f.relid
)
SELECT format('%I.%I', n.nspname, c.relname), c.oid IN (SELECT relid FROM family)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND c.oid >= 16384
    AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))
ORDER BY 1";

fn source_failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(STAGE, Role::Source, error)
}

fn target_failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(STAGE, Role::Target, error)
}

/// The OIDs of tables of the source.
///
/// # Errors
/// A refusal if one has gone since it was selected.
pub async fn table_oids(source: &Client, tables: &[TableName]) -> Result<Vec<u32>, Error> {
    let names: Vec<_> = tables.iter().map(TableName::to_string).collect();
    let sql =
        "SELECT to_regclass(w.name)::oid FROM unnest($1::text[]) WITH ORDINALITY AS w (name, place) ORDER BY place";
    let rows = source.query(sql, &[&names]).await.map_err(source_failed)?;
    let oid = |(row, name): (&Row, &String)| {
        let gone = || Error::refused(STAGE, format!("table {name} is gone from the source"), "run it again");
        row.try_get::<_, Option<u32>>(0).map_err(source_failed)?.ok_or_else(gone)
    };
    rows.iter().zip(&names).map(oid).collect()
}

/// The tables that a dump has to leave out because the role may not read them, and so not lock them either.
///
/// # Errors
/// A refusal if a table that is needed is among them.
pub async fn unreadable(source: &Client, selected: &[u32]) -> Result<Vec<String>, Error> {
    let rows = source.query(UNREADABLE_SQL, &[&selected]).await.map_err(source_failed)?;
    let (mut hidden, mut needed) = (Vec::new(), Vec::new());
    for row in &rows {
        let list = if row.try_get(1).map_err(source_failed)? { &mut needed } else { &mut hidden };
        list.push(row.try_get::<_, String>(0).map_err(source_failed)?);
    }
    if needed.is_empty() {
        return Ok(hidden);
    }
    Err(Error::refused(
        STAGE,
        format!("the role may not read {}", needed.join(", ")),
        "pg_dump locks what it reads: on the primary, GRANT USAGE ON SCHEMA and SELECT ON TABLE to the role",
    ))
}

/// What the source's catalog knows of indexes, constraints and so on.
pub async fn facts(source: &Client, selected: &[u32]) -> Result<Facts, Error> {
    let rows = source.query(ANCHORS_SQL, &[]).await.map_err(source_failed)?;
    let anchors = rows.iter().map(anchor).collect::<Result<HashMap<_, _>, _>>().map_err(source_failed)?;
    Ok(Facts { selected: selected.iter().copied().collect(), anchors })
}

fn anchor(row: &Row) -> Result<(ObjectId, Anchor), tokio_postgres::Error> {
    let reference = match row.try_get(5)? {
        Some(table) => Some(Reference { table, root: row.try_get(6)?, name: row.try_get(7)? }),
        None => None,
    };
    let anchor = Anchor {
        table: row.try_get(2)?,
        root: row.try_get(3)?,
        is_primary_key: row.try_get(4)?,
        references: reference,
    };
    Ok((ObjectId { class: row.try_get(0)?, oid: row.try_get(1)? }, anchor))
}

/// The names of objects of the source. One that has gone meanwhile is missing.
pub async fn identities(source: &Client, objects: &[ObjectId]) -> Result<HashMap<ObjectId, Identity>, Error> {
    let sql = "SELECT w.class, w.oid, i.type || ' ' || i.identity, a.object_names, a.object_args \
               FROM unnest($1::oid[], $2::oid[]) AS w (class, oid), pg_identify_object(w.class, w.oid, 0) i, \
                   pg_identify_object_as_address(w.class, w.oid, 0) a WHERE i.identity IS NOT NULL";
    let (classes, oids): (Vec<_>, Vec<_>) = objects.iter().map(|one| (one.class, one.oid)).unzip();
    let rows = source.query(sql, &[&classes, &oids]).await.map_err(source_failed)?;
    let identity = |row: &Row| {
        let object = ObjectId { class: row.try_get(0)?, oid: row.try_get(1)? };
        let address = Address { class: object.class, names: row.try_get(3)?, arguments: row.try_get(4)? };
        Ok((object, Identity { address, text: row.try_get(2)? }))
    };
    rows.iter().map(identity).collect::<Result<_, _>>().map_err(source_failed)
}

/// What the target has.
#[derive(Clone, Debug, Default)]
pub struct Presence {
    objects: HashSet<Address>,
    /// Schema and name of tables with a primary key, however it is called.
    with_primary_key: HashSet<Vec<String>>,
    /// Partitions of indexes, each as the statement that would attach it.
    attached: HashSet<String>,
}

impl Presence {
    /// Looks for objects of these catalogs, whose OIDs are the same on both servers.
    pub async fn read(target: &Client, classes: &HashSet<u32>) -> Result<Presence, Error> {
        let mut presence = Presence::default();
        for class in classes {
            let catalog = format!("SELECT {class}::regclass::text");
            let catalog: String =
                target.query_one(&catalog, &[]).await.map_err(target_failed)?.try_get(0).map_err(target_failed)?;
            // The schema "public" is there from the beginning.
            let first = if catalog == "pg_namespace" { 0 } else { OID_FIRST_NORMAL };
            let sql = format!(
                "SELECT a.object_names, a.object_args FROM pg_catalog.{catalog} o, \
                 pg_identify_object_as_address({class}, o.oid, 0) a WHERE o.oid >= {first} AND a.object_names IS NOT NULL"
            );
            for row in target.query(&sql, &[]).await.map_err(target_failed)? {
                let names = row.try_get(0).map_err(target_failed)?;
                let arguments = row.try_get(1).map_err(target_failed)?;
                presence.objects.insert(Address { class: *class, names, arguments });
            }
        }
        presence.with_primary_key = primary_keys(target).await?;
        presence.attached = attached_indexes(target).await?;
        Ok(presence)
    }

    pub fn has(&self, address: &Address) -> bool {
        self.objects.contains(address)
    }

    /// `constraint` is the address of a primary key: schema, table and name.
    pub fn has_primary_key(&self, constraint: &Address) -> bool {
        constraint.names.split_last().is_some_and(|(_, table)| self.with_primary_key.contains(table))
    }

    /// `sql` attaches an index that is attached.
    pub fn has_attached(&self, sql: &str) -> bool {
        self.attached.contains(sql)
    }
}

async fn primary_keys(target: &Client) -> Result<HashSet<Vec<String>>, Error> {
    let sql = "SELECT ARRAY[n.nspname::text, c.relname::text] FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid \
               JOIN pg_namespace n ON n.oid = c.relnamespace WHERE i.indisprimary";
    let rows = target.query(sql, &[]).await.map_err(target_failed)?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(target_failed)
}

async fn attached_indexes(target: &Client) -> Result<HashSet<String>, Error> {
    let sql = "SELECT format('ALTER INDEX %I.%I ATTACH PARTITION %I.%I;', pn.nspname, p.relname, n.nspname, c.relname) \
               FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
               JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace \
               WHERE c.relkind IN ('i', 'I')";
    let rows = target.query(sql, &[]).await.map_err(target_failed)?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(target_failed)
}
