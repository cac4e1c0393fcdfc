//! Partitions that come and go on the source: whether rows came or went with them, which no stream brings.
//!
//! In: the partitions that a table had, and has. Out: how the target's rows differ from the source's, and what may be so.
//!
//! A partition that is made as one is empty, and all that comes into it later is in the stream. One that is attached has what it
//! had: rows whose `xmin` is not later than that of the row of `pg_inherits`. Only the beginning of it is read, since one that was
//! filled has such rows there.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::source_failed;
use crate::error::Error;
use crate::source::identity::Leaf;
use crate::source::publication::TableName;

/// Blocks of a partition that are read.
const BLOCKS_READ: u32 = 256;

/// A table whose partitions are not those that they were.
#[derive(Debug)]
pub(super) struct Repartitioned {
    pub table: TableName,
    pub before: Vec<Leaf>,
    pub now: Vec<Leaf>,
}

#[derive(Debug, Default)]
pub(super) struct Found {
    /// What is so until the table is copied again.
    pub notes: Vec<String>,
    /// What may be.
    pub doubts: Vec<String>,
}

/// Rows that a partition has had since before it was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Brought {
    None,
    Some,
    /// Of the transaction that has made and attached it, which may have filled it in between.
    Perhaps,
    /// They may not be read.
    Unknown,
}

impl Repartitioned {
    pub async fn look_into(&self, source: &Client) -> Result<Found, Error> {
        let mut found = Found::default();
        let table = &self.table;
        let resync = format!("`pgsluice resync \"{}.{}\"` copies the table again", table.schema, table.name);
        for leaf in &self.now {
            let name = &leaf.name;
            match self.before.iter().find(|before| before.oid == leaf.oid) {
                Some(before) if before.attached_xmin != leaf.attached_xmin => found.notes.push(format!(
                    "partition {name} of {table} was detached and attached again on the source, and what was written to it meanwhile \
                     is not in the stream: {resync}"
                )),
                Some(before) => found.doubts.extend(self.rewritten(before, leaf, &resync)),
                None => match brought(source, leaf).await? {
                    Brought::None => {}
                    Brought::Some => found.notes.push(format!(
                        "partition {name} was attached to {table} on the source with rows that are not in the stream: {resync}"
                    )),
                    Brought::Perhaps => found.doubts.push(format!(
                        "partition {name} of {table} was made and filled on the source in one transaction: rows that it had \
                         before it was attached are not in the stream; if it had any, {resync}"
                    )),
                    Brought::Unknown => found.doubts.push(format!(
                        "partition {name} was attached to {table} on the source, and whether with rows is not known, since the role \
                         may not read it: if it had any, they are not in the stream, and {resync}"
                    )),
                },
            }
        }
        for leaf in self.before.iter().filter(|before| !self.now.iter().any(|leaf| leaf.oid == before.oid)) {
            if !is_empty_table(source, leaf).await? {
                found.notes.push(format!(
                    "partition {} of {table} was detached or dropped on the source, and the target keeps the rows that it had: \
                     remove them there, or {resync}",
                    leaf.name
                ));
            }
        }
        Ok(found)
    }

    /// A TRUNCATE of the whole gives every partition another file, and is in the stream.
    fn rewritten(&self, before: &Leaf, leaf: &Leaf, resync: &str) -> Option<String> {
        let has_same_file = |leaf: &&Leaf| self.before.iter().any(|one| one.oid == leaf.oid && one.file == leaf.file);
        if before.file == leaf.file || !self.now.iter().any(|leaf| has_same_file(&leaf)) {
            return None;
        }
        Some(format!(
            "partition {} of {} alone was truncated or written anew on the source: neither TRUNCATE of a partition nor what is written \
             to one that is UNLOGGED is in the stream; if it was one of these, {resync}",
            leaf.name, self.table
        ))
    }
}

async fn brought(source: &Client, leaf: &Leaf) -> Result<Brought, Error> {
    if leaf.kind != "r" {
        return Ok(Brought::Unknown);
    }
    // The youngest of the steps between the partition and the table counts. Indexes of a partition that is made as one come before
    // its TOAST table, those of a table that is attached later.
    let sql = "SELECT attached.xmin::text, attached.xmin = made.xmin, \
                   c.reltoastrelid <> 0 AND COALESCE((SELECT min(x.indexrelid) < c.reltoastrelid FROM pg_index x WHERE x.indrelid = c.oid), false) \
               FROM pg_class c \
               JOIN pg_depend made ON made.classid = 'pg_class'::regclass AND made.objid = c.oid AND made.objsubid = 0 \
                   AND made.refclassid = 'pg_namespace'::regclass \
               CROSS JOIN LATERAL (SELECT h.xmin FROM pg_inherits h WHERE h.inhrelid IN \
                   (SELECT relid FROM pg_partition_ancestors(c.oid)) ORDER BY age(h.xmin) LIMIT 1) attached \
               WHERE c.oid = $1";
    let Some(row) = source.query_opt(sql, &[&leaf.oid]).await.map_err(source_failed)? else {
        return Ok(Brought::None);
    };
    let attached: String = row.try_get(0).map_err(source_failed)?;
    let (at_once, is_made_as_one): (bool, bool) =
        (row.try_get(1).map_err(source_failed)?, row.try_get(2).map_err(source_failed)?);
    let rows = format!(
        "SELECT FROM ONLY {} WHERE ctid < '({BLOCKS_READ},0)' AND age(xmin) >= age('{attached}'::xid) LIMIT 1",
        leaf.name
    );
    let has_older = match source.query_opt(&rows, &[]).await {
        Ok(row) => row.is_some(),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => return Ok(Brought::Unknown),
        // It has gone again.
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => return Ok(Brought::None),
        Err(error) => return Err(source_failed(error)),
    };
    Ok(match (has_older, at_once) {
        (false, _) => Brought::None,
        (true, true) if is_made_as_one => Brought::None,
        (true, true) => Brought::Perhaps,
        (true, false) => Brought::Some,
    })
}

/// It is a table of its own now, has the file that it had, and no row.
async fn is_empty_table(source: &Client, leaf: &Leaf) -> Result<bool, Error> {
    let sql = "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.oid = $1 AND c.relfilenode = $2 AND c.relkind = 'r'";
    let Some(row) = source.query_opt(sql, &[&leaf.oid, &leaf.file.filenode]).await.map_err(source_failed)? else {
        return Ok(false);
    };
    let name: String = row.try_get(0).map_err(source_failed)?;
    match source.query_opt(&format!("SELECT FROM ONLY {name} LIMIT 1"), &[]).await {
        Ok(row) => Ok(row.is_none()),
        Err(error)
            if [&SqlState::INSUFFICIENT_PRIVILEGE, &SqlState::UNDEFINED_TABLE].map(Some).contains(&error.code()) =>
        {
            Ok(false)
        }
        Err(error) => Err(source_failed(error)),
    }
}
