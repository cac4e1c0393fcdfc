//! Tables in parts, parts in chunks: what is copied at once, and in which order.
//!
//! A part is a table, or a partition of one. A chunk is a range of its blocks, which a scan by `ctid` reads without
//! looking at the others; a table of another access method than heap is one chunk.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_postgres::Client;

use super::{STAGE, Wanted, source_failed};
use crate::error::{Error, Kind};
use crate::postgres::{quote_ident, quote_qualified};

/// A table that holds rows itself.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Of the table that it belongs to, among those that are wanted.
    table: usize,
    /// Quoted, with its schema.
    name: String,
    blocks: u64,
    block_bytes: u64,
    is_heap: bool,
    is_readable: bool,
    /// Its file is still the one that the transaction's snapshot knows.
    is_unchanged: bool,
}

const PARTS_SQL: &str = "\
SELECT w.place, n.nspname::text, c.relname::text, pg_relation_size(c.oid), current_setting('block_size')::bigint,
    COALESCE(am.amname = 'heap', false), has_table_privilege(c.oid, 'SELECT') AND NOT row_security_active(c.oid),
    c.relfilenode IS NOT DISTINCT FROM pg_relation_filenode(c.oid) OR c.relkind = 'f'
FROM unnest($1::text[]) WITH ORDINALITY AS w (name, place)
JOIN pg_class root ON root.oid = to_regclass(w.name)
CROSS JOIN LATERAL (
    SELECT root.oid WHERE root.relkind <> 'p'
    UNION ALL SELECT tree.relid FROM pg_partition_tree(root.oid) tree WHERE tree.isleaf AND tree.relid <> root.oid
) AS leaf (oid)
JOIN pg_class c ON c.oid = leaf.oid JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am am ON am.oid = c.relam
ORDER BY w.place, 2, 3";

pub(super) async fn read(source: &Client, tables: &[Wanted]) -> Result<Vec<Part>, Error> {
    let names: Vec<_> = tables.iter().map(|wanted| wanted.table.to_string()).collect();
    let rows = source.query(PARTS_SQL, &[&names]).await.map_err(source_failed)?;
    let part = |row: &tokio_postgres::Row| {
        let block_bytes = row.try_get::<_, i64>(4)?.unsigned_abs();
        Ok(Part {
            table: (row.try_get::<_, i64>(0)? - 1) as usize,
            name: quote_qualified(row.try_get(1)?, row.try_get(2)?),
            blocks: row.try_get::<_, i64>(3)?.unsigned_abs().div_ceil(block_bytes),
            block_bytes,
            is_heap: row.try_get(5)?,
            is_readable: row.try_get(6)?,
            is_unchanged: row.try_get(7)?,
        })
    };
    rows.iter().map(part).collect::<Result<_, _>>().map_err(source_failed)
}

/// # Errors
/// A refusal that names the tables and partitions that our role cannot read.
pub(super) async fn check_rights(source: &Client, tables: &[Wanted]) -> Result<(), Error> {
    let parts = read(source, tables).await?;
    let closed: Vec<_> = parts.into_iter().filter(|part| !part.is_readable).map(|part| part.name).collect();
    if closed.is_empty() {
        return Ok(());
    }
    let list = closed.join(", ");
    Err(Error::refused(
        STAGE,
        format!("the role on the source may not read {list}, or row security hides rows of it"),
        format!("on the primary: GRANT SELECT ON {list} TO the role; where row security is on, give it BYPASSRLS"),
    ))
}

/// Keeps the parts as the snapshot of the transaction on `source` knows them, until that transaction ends.
///
/// A TRUNCATE, or an ALTER TABLE that rewrites the table, leaves nothing that an older snapshot sees ("Caveats" of MVCC).
/// From here on both wait for us. What came between the snapshot and the lock shows in the file's number: the catalog is
/// read as of the snapshot, the function tells what is.
///
/// # Errors
/// [`Kind::Rewritten`] if a table is no longer what the snapshot has seen.
pub(super) async fn lock(source: &Client, tables: &[Wanted]) -> Result<Vec<Part>, Error> {
    let parts = read(source, tables).await?;
    let list: Vec<_> = parts.iter().map(|part| format!("ONLY {}", part.name)).collect();
    if list.is_empty() {
        return Ok(parts);
    }
    let sql = format!("LOCK TABLE {} IN ACCESS SHARE MODE", list.join(", "));
    source.batch_execute(&sql).await.map_err(source_failed)?;
    let parts = read(source, tables).await?;
    match parts.iter().find(|part| !part.is_unchanged) {
        Some(part) => Err(Error::new(STAGE, Kind::Rewritten).on(part.name.clone())),
        None => Ok(parts),
    }
}

/// Blocks of one part.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub table: usize,
    /// Quoted, with its schema.
    pub part: String,
    pub first_block: u64,
    /// `None` for whatever follows.
    pub end_block: Option<u64>,
    pub is_heap: bool,
}

/// The chunks that nobody has taken yet, and how many of each table are not done.
#[derive(Debug)]
pub(super) struct Queue {
    tables: Vec<Wanted>,
    waiting: Mutex<VecDeque<Chunk>>,
    chunks: usize,
    left: Vec<AtomicUsize>,
}

impl Queue {
    /// The largest table comes first, so that none is left for the end that one job alone is long at.
    pub fn new(tables: Vec<Wanted>, parts: Vec<Part>, chunk_bytes: u64) -> Queue {
        let mut bytes = vec![0; tables.len()];
        let left: Vec<_> = tables.iter().map(|_| AtomicUsize::new(0)).collect();
        let mut chunks = Vec::new();
        for part in parts {
            bytes[part.table] += part.blocks * part.block_bytes;
            for chunk in part.chunks(chunk_bytes) {
                left[part.table].fetch_add(1, Ordering::Relaxed);
                chunks.push(chunk);
            }
        }
        chunks.sort_by_key(|chunk| (std::cmp::Reverse(bytes[chunk.table]), chunk.table));
        Queue { tables, chunks: chunks.len(), waiting: Mutex::new(chunks.into()), left }
    }

    pub fn take(&self) -> Option<Chunk> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop_front()
    }

    /// A chunk is done. True for the last one of its table.
    pub fn done(&self, chunk: &Chunk) -> bool {
        self.left[chunk.table].fetch_sub(1, Ordering::AcqRel) == 1
    }

    pub fn table(&self, chunk: &Chunk) -> &Wanted {
        &self.tables[chunk.table]
    }

    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Those without a chunk.
    pub fn empty_tables(&self) -> impl Iterator<Item = &Wanted> {
        let pairs = self.tables.iter().zip(&self.left);
        pairs.filter(|(_, left)| left.load(Ordering::Acquire) == 0).map(|(wanted, _)| wanted)
    }
}

impl Part {
    fn chunks(&self, chunk_bytes: u64) -> Vec<Chunk> {
        let step = (chunk_bytes / self.block_bytes).max(1);
        let count = if self.is_heap { self.blocks.div_ceil(step) } else { 1 };
        let chunk = |index| Chunk {
            table: self.table,
            part: self.name.clone(),
            first_block: index * step,
            end_block: (index + 1 < count).then(|| (index + 1) * step),
            is_heap: self.is_heap,
        };
        (0..count).map(chunk).collect()
    }
}

impl Chunk {
    pub fn copy_out(&self, wanted: &Wanted) -> String {
        let columns = column_list(wanted);
        let format = wanted.format();
        let first = format!("ctid >= '({},0)'::tid", self.first_block);
        let part = &self.part;
        match (self.first_block, self.end_block) {
            // Without a query in between it costs less.
            (0, None) if self.is_heap => format!("COPY {part} ({columns}) TO STDOUT (FORMAT {format})"),
            // A foreign table can only be queried.
            (0, None) => format!("COPY (SELECT {columns} FROM ONLY {part}) TO STDOUT (FORMAT {format})"),
            (_, None) => format!("COPY (SELECT {columns} FROM ONLY {part} WHERE {first}) TO STDOUT (FORMAT {format})"),
            (_, Some(end)) => format!(
                "COPY (SELECT {columns} FROM ONLY {part} WHERE {first} AND ctid < '({end},0)'::tid) \
                 TO STDOUT (FORMAT {format})"
            ),
        }
    }
}

impl Wanted {
    pub(super) fn copy_in(&self) -> String {
        format!("COPY {} ({}) FROM STDIN (FORMAT {})", self.table, column_list(self), self.format())
    }

    fn format(&self) -> &'static str {
        if self.binary { "binary" } else { "text" }
    }
}

fn column_list(wanted: &Wanted) -> String {
    wanted.columns.iter().map(|column| quote_ident(column)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::publication::TableName;

    fn part(table: usize, blocks: u64, is_heap: bool) -> Part {
        Part {
            table,
            name: format!("p{table}"),
            blocks,
            block_bytes: 8_192,
            is_heap,
            is_readable: true,
            is_unchanged: true,
        }
    }

    fn wanted(name: &str) -> Wanted {
        let table = TableName { schema: "s".to_owned(), name: name.to_owned() };
        Wanted { table, columns: vec!["id".to_owned(), "no\"te".to_owned()], binary: true }
    }

    #[test]
    fn chunks_cover_every_block_once_and_the_last_is_open() {
        let ranges = |blocks, is_heap| {
            let chunks = part(0, blocks, is_heap).chunks(4 * 8_192).into_iter();
            chunks.map(|chunk| (chunk.first_block, chunk.end_block)).collect::<Vec<_>>()
        };
        assert_eq!(ranges(0, true), []);
        assert_eq!(ranges(1, true), [(0, None)]);
        assert_eq!(ranges(4, true), [(0, None)]);
        assert_eq!(ranges(9, true), [(0, Some(4)), (4, Some(8)), (8, None)]);
        assert_eq!(ranges(9, false), [(0, None)]);
    }

    #[test]
    fn the_largest_table_is_first_and_the_last_chunk_ends_it() {
        let tables = ["small", "large", "empty"].map(wanted).to_vec();
        let queue = Queue::new(tables, vec![part(0, 2, true), part(1, 3, true), part(1, 1, true)], 2 * 8_192);
        assert_eq!(queue.empty_tables().map(|wanted| wanted.table.name.as_str()).collect::<Vec<_>>(), ["empty"]);
        let order: Vec<_> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(order.iter().map(|chunk| chunk.table).collect::<Vec<_>>(), [1, 1, 1, 0]);
        assert_eq!(order.iter().map(|chunk| queue.done(chunk)).collect::<Vec<_>>(), [false, false, true, true]);
    }

    #[test]
    fn a_chunk_is_a_range_of_ctid_and_a_whole_table_is_itself() {
        let mut chunk = Chunk { table: 0, part: "s.t".to_owned(), first_block: 0, end_block: None, is_heap: true };
        assert_eq!(chunk.copy_out(&wanted("t")), "COPY s.t (\"id\", \"no\"\"te\") TO STDOUT (FORMAT binary)");
        (chunk.first_block, chunk.end_block) = (4, Some(8));
        assert_eq!(
            chunk.copy_out(&wanted("t")),
            "COPY (SELECT \"id\", \"no\"\"te\" FROM ONLY s.t WHERE ctid >= '(4,0)'::tid AND ctid < '(8,0)'::tid) \
             TO STDOUT (FORMAT binary)"
        );
    }
}
