//! Tables in parts, parts in chunks: what is copied at once, and in which order.
//!
//! A part is a table, or a partition of one. A chunk is a range of its blocks, which a scan by `ctid` reads without
//! looking at the others; a table of another access method than heap is one chunk.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_postgres::Client;

use super::{STAGE, Target, Wanted, source_failed};
use crate::error::Error;
use crate::postgres::{quote_ident, quote_qualified};
use crate::source::publication::TableName;

/// A table that holds rows itself.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Of the table that it belongs to, among those that are wanted.
    pub table: usize,
    /// Quoted, with its schema.
    pub name: String,
    /// Another one after every rewrite.
    pub filenode: u32,
    blocks: u64,
    block_bytes: u64,
    /// On disk, with what is stored outside of its blocks.
    pub source_bytes: u64,
    is_heap: bool,
    /// It has no file of its own.
    pub is_foreign: bool,
    is_readable: bool,
    /// Its file is still the one that the transaction's snapshot knows.
    pub is_unchanged: bool,
}

const PARTS_SQL: &str = "\
SELECT w.place, n.nspname::text, c.relname::text, pg_relation_size(c.oid), current_setting('block_size')::bigint,
    COALESCE(am.amname = 'heap', false), has_table_privilege(c.oid, 'SELECT') AND NOT row_security_active(c.oid),
    c.relfilenode IS NOT DISTINCT FROM pg_relation_filenode(c.oid) OR c.relkind = 'f', c.relfilenode, pg_table_size(c.oid),
    c.relkind = 'f'
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
            is_foreign: row.try_get(10)?,
            filenode: row.try_get(8)?,
            source_bytes: row.try_get::<_, i64>(9)?.unsigned_abs(),
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

/// The columns of each table's primary key, where all of them are copied as they are.
pub(super) async fn keys(source: &Client, tables: &[Wanted]) -> Result<Vec<Option<Vec<String>>>, Error> {
    let sql = "SELECT w.place, array_agg(a.attname::text) \
               FROM unnest($1::text[]) WITH ORDINALITY AS w (name, place) \
               JOIN pg_index i ON i.indrelid = to_regclass(w.name) AND i.indisprimary \
               JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) GROUP BY w.place";
    let names: Vec<_> = tables.iter().map(|wanted| wanted.table.to_string()).collect();
    let mut keys = vec![None; tables.len()];
    for row in source.query(sql, &[&names]).await.map_err(source_failed)? {
        let place = row.try_get::<_, i64>(0).map_err(source_failed)? as usize - 1;
        let key: Vec<String> = row.try_get(1).map_err(source_failed)?;
        keys[place] = key.iter().all(|column| tables[place].target.same.contains_key(column)).then_some(key);
    }
    Ok(keys)
}

/// What transaction IDs mean in the transaction that has adopted the snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Xids {
    /// All below it had ended when the snapshot was taken.
    pub horizon: i64,
    /// None from here on is seen.
    next: i64,
}

impl Xids {
    pub async fn read(source: &Client) -> Result<Xids, Error> {
        let sql = "SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint \
                   FROM pg_current_snapshot() s";
        let row = source.query_one(sql, &[]).await.map_err(source_failed)?;
        let xid = |column| row.try_get(column).map_err(source_failed);
        Ok(Xids::new(xid(0)?, xid(1)?))
    }

    /// What a snapshot of logical decoding has as `xmax` only follows the transactions that it has seen commit, and may be
    /// below `xmin` (`SnapBuildProcessRunningXacts`): it sees what committed in between all the same.
    fn new(xmin: i64, xmax: i64) -> Xids {
        Xids { horizon: xmin, next: xmax.max(xmin) }
    }

    /// A condition that a row version is older than `horizon`, which is of this snapshot or of an earlier one. Its `xmin` is
    /// the lower half of the ID; the upper half is that of the last such ID before `next`. A version that is older than all of
    /// those may be taken for a younger one, and only costs a second copy.
    fn is_older(self, horizon: i64) -> String {
        let low = self.next & 0xffff_ffff;
        let epoch = self.next - low;
        format!(
            "xmin::text::bigint + CASE WHEN xmin::text::bigint <= {low} THEN {epoch} ELSE {} END < {horizon}",
            epoch - (1 << 32)
        )
    }
}

/// Blocks that are on the target already, as far as versions below the horizon go.
#[derive(Clone, Debug)]
pub(super) struct Done {
    /// Quoted, with its schema.
    pub part: String,
    pub first_block: u64,
    pub end_block: Option<u64>,
    pub horizon: i64,
}

/// Blocks of one part.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub table: usize,
    /// Quoted, with its schema.
    pub part: String,
    pub filenode: u32,
    pub first_block: u64,
    /// `None` for whatever follows.
    pub end_block: Option<u64>,
    /// Its share of what the part takes on disk.
    pub source_bytes: u64,
    pub is_heap: bool,
    /// Only versions from this horizon on: the others are on the target.
    pub since: Option<i64>,
}

/// The chunks that nobody has taken yet, and how many of each table are not done.
#[derive(Debug)]
pub(super) struct Queue {
    tables: Vec<Wanted>,
    waiting: Mutex<VecDeque<Chunk>>,
    chunks: usize,
    /// On the source's disk.
    source_bytes: Vec<u64>,
    left: Vec<AtomicUsize>,
    analyzed: AtomicUsize,
}

impl Queue {
    /// The largest table comes first, so that none is left for the end that one job alone is long at.
    pub fn new(tables: Vec<Wanted>, parts: Vec<Part>, done: &[Done], chunk_bytes: u64) -> Queue {
        let mut source_bytes = vec![0; tables.len()];
        let left: Vec<_> = tables.iter().map(|_| AtomicUsize::new(0)).collect();
        let mut chunks = Vec::new();
        for part in parts {
            source_bytes[part.table] += part.source_bytes;
            for chunk in part.chunks(done, chunk_bytes) {
                left[part.table].fetch_add(1, Ordering::Relaxed);
                chunks.push(chunk);
            }
        }
        chunks.sort_by_key(|chunk| (std::cmp::Reverse(source_bytes[chunk.table]), chunk.table));
        Queue {
            tables,
            chunks: chunks.len(),
            waiting: Mutex::new(chunks.into()),
            source_bytes,
            left,
            analyzed: AtomicUsize::new(0),
        }
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

    pub fn holds(&self, table: &TableName) -> bool {
        self.tables.iter().any(|wanted| wanted.table == *table)
    }

    /// Of each table its name, what it takes on the source's disk, and whether it is without chunks.
    pub fn sizes(&self) -> impl Iterator<Item = (String, u64, bool)> {
        let tables = self.tables.iter().zip(&self.source_bytes).zip(&self.left);
        tables.map(|((wanted, bytes), left)| (wanted.table.to_string(), *bytes, left.load(Ordering::Acquire) == 0))
    }

    /// The tables that nobody has analyzed yet.
    pub fn take_copied(&self) -> Option<&Wanted> {
        self.tables.get(self.analyzed.fetch_add(1, Ordering::AcqRel))
    }

    /// Those without a chunk.
    pub fn empty_tables(&self) -> impl Iterator<Item = &TableName> + Clone {
        let pairs = self.tables.iter().zip(&self.left);
        pairs.filter(|(_, left)| left.load(Ordering::Acquire) == 0).map(|(wanted, _)| &wanted.table)
    }
}

impl Part {
    /// What so many of its blocks take of what it takes on disk.
    fn share(&self, first_block: u64, end_block: Option<u64>) -> u64 {
        let blocks = end_block.unwrap_or(self.blocks).min(self.blocks).saturating_sub(first_block);
        match u128::from(self.source_bytes) * u128::from(blocks) {
            _ if self.blocks == 0 => self.source_bytes,
            product => (product / u128::from(self.blocks)) as u64,
        }
    }

    /// How many chunks it is in, where nothing of it is done.
    pub fn chunk_count(&self, chunk_bytes: u64) -> usize {
        self.chunks(&[], chunk_bytes).len()
    }

    /// What is done is looked through for what has come since, the rest is copied whole.
    fn chunks(&self, done: &[Done], chunk_bytes: u64) -> Vec<Chunk> {
        let chunk = |first_block, end_block, since| Chunk {
            table: self.table,
            part: self.name.clone(),
            filenode: self.filenode,
            first_block,
            end_block,
            source_bytes: self.share(first_block, end_block),
            is_heap: self.is_heap,
            since,
        };
        if !self.is_heap {
            return vec![chunk(0, None, None)];
        }
        let mut done: Vec<_> = done.iter().filter(|done| done.part == self.name).collect();
        done.sort_by_key(|done| done.first_block);
        let step = (chunk_bytes / self.block_bytes).max(1);
        let mut chunks = Vec::new();
        let mut next = Some(0);
        for done in done {
            if let Some(first) = next {
                chunks.extend(cut(first, done.first_block, step).map(|(first, end)| chunk(first, Some(end), None)));
            }
            chunks.push(chunk(done.first_block, done.end_block, Some(done.horizon)));
            next = done.end_block;
        }
        // The table grows while it is copied, so its last chunk has no end.
        if let Some(first) = next.filter(|first| *first < self.blocks) {
            let ranges: Vec<_> = cut(first, self.blocks, step).collect();
            let last = ranges.len() - 1;
            let end = |index: usize, end| (index < last).then_some(end);
            chunks.extend(ranges.iter().enumerate().map(|(index, range)| chunk(range.0, end(index, range.1), None)));
        }
        chunks
    }
}

/// From `first` to `end` in equal steps of at least `step`, but for a range that is shorter.
fn cut(first: u64, end: u64, step: u64) -> impl Iterator<Item = (u64, u64)> {
    let blocks = end - first;
    let count = (blocks / step).max(u64::from(blocks > 0));
    (0..count).map(move |index| (first + blocks * index / count, first + blocks * (index + 1) / count))
}

impl Chunk {
    pub fn copy_out(&self, wanted: &Wanted, xids: Xids) -> String {
        let (part, columns, format) = (&self.part, column_list(&wanted.columns), wanted.format());
        let since = self.since.map(|horizon| format!("NOT ({})", xids.is_older(horizon)));
        let conditions: Vec<_> = self.range().into_iter().chain(since).collect();
        if conditions.is_empty() && self.is_heap && !wanted.has_generated {
            // Without a query in between it costs less. A foreign table can only be queried.
            return format!("COPY {part} ({columns}) TO STDOUT (FORMAT {format})");
        }
        let filter = filter(&conditions);
        format!("COPY (SELECT {columns} FROM ONLY {part}{filter}) TO STDOUT (FORMAT {format})")
    }

    fn range(&self) -> Option<String> {
        range(self.first_block, self.end_block)
    }
}

impl Done {
    /// The keys of the versions that are on the target.
    pub fn keys_out(&self, key: &[String], xids: Xids) -> String {
        let conditions: Vec<_> =
            range(self.first_block, self.end_block).into_iter().chain([xids.is_older(self.horizon)]).collect();
        let (part, columns, filter) = (&self.part, column_list(key), filter(&conditions));
        format!("COPY (SELECT {columns} FROM ONLY {part}{filter}) TO STDOUT (FORMAT text)")
    }
}

/// A condition that a row lies in these blocks; `None` where all do.
fn range(first_block: u64, end_block: Option<u64>) -> Option<String> {
    let first = (first_block > 0).then(|| format!("ctid >= '({first_block},0)'::tid"));
    let end = end_block.map(|end| format!("ctid < '({end},0)'::tid"));
    let both: Vec<_> = first.into_iter().chain(end).collect();
    (!both.is_empty()).then(|| both.join(" AND "))
}

fn filter(conditions: &[String]) -> String {
    if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) }
}

impl Wanted {
    pub(super) fn copy_in(&self) -> String {
        let Target { table, columns, .. } = &self.target;
        format!("COPY {table} ({}) FROM STDIN (FORMAT {})", column_list(columns), self.format())
    }

    fn format(&self) -> &'static str {
        if self.binary { "binary" } else { "text" }
    }
}

pub(super) fn column_list(columns: &[String]) -> String {
    columns.iter().map(|column| quote_ident(column)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::postgres::OwnRows;
    use crate::source::publication::TableName;

    fn part(table: usize, blocks: u64, is_heap: bool) -> Part {
        Part {
            table,
            name: format!("p{table}"),
            filenode: 7,
            blocks,
            block_bytes: 8_192,
            source_bytes: blocks * 10_000,
            is_heap,
            is_foreign: false,
            is_readable: true,
            is_unchanged: true,
        }
    }

    fn done(first_block: u64, end_block: Option<u64>) -> Done {
        Done { part: "p0".to_owned(), first_block, end_block, horizon: 9 }
    }

    fn wanted(name: &str) -> Wanted {
        let table = TableName { schema: "s".to_owned(), name: name.to_owned() };
        let columns = vec!["id".to_owned(), "no\"te".to_owned()];
        let target = Target {
            table: table.clone(),
            rows: OwnRows::of(&table, false),
            columns: columns.clone(),
            own: Vec::new(),
            place: String::new(),
            same: HashMap::new(),
            equality: HashMap::new(),
        };
        Wanted {
            table,
            columns,
            has_generated: false,
            target,
            binary: true,
            plan: None,
            rules: None,
            is_begun: false,
            identity: None,
        }
    }

    #[test]
    fn chunks_cover_every_block_once_and_the_last_is_open() {
        let ranges = |blocks, is_heap, done: &[Done]| {
            let chunks = part(0, blocks, is_heap).chunks(done, 4 * 8_192).into_iter();
            chunks.map(|chunk| (chunk.first_block, chunk.end_block, chunk.since)).collect::<Vec<_>>()
        };
        assert_eq!(ranges(0, true, &[]), []);
        assert_eq!(ranges(1, true, &[]), [(0, None, None)]);
        assert_eq!(ranges(4, true, &[]), [(0, None, None)]);
        assert_eq!(ranges(7, true, &[]), [(0, None, None)]);
        assert_eq!(ranges(9, true, &[]), [(0, Some(4), None), (4, None, None)]);
        assert_eq!(ranges(14, true, &[]), [(0, Some(4), None), (4, Some(9), None), (9, None, None)]);
        assert_eq!(ranges(9, false, &[]), [(0, None, None)]);
        // What was done is looked through again, and what lies between and behind is copied.
        let rest = [(0, Some(4), None), (4, Some(8), Some(9)), (8, Some(9), None), (9, Some(12), Some(9))];
        let all = [&rest[..], &[(12, None, None)]].concat();
        assert_eq!(ranges(13, true, &[done(9, Some(12)), done(4, Some(8))]), all);
        assert_eq!(ranges(12, true, &[done(4, Some(8)), done(9, Some(12))]), rest);
        assert_eq!(ranges(20, true, &[done(0, None)]), [(0, None, Some(9))]);
    }

    #[test]
    fn the_largest_table_is_first_and_the_last_chunk_ends_it() {
        let tables = ["small", "large", "empty"].map(wanted).to_vec();
        let parts = vec![part(0, 2, true), part(1, 3, true), part(1, 1, true)];
        let queue = Queue::new(tables, parts, &[], 2 * 8_192);
        assert_eq!(queue.empty_tables().map(|table| table.name.as_str()).collect::<Vec<_>>(), ["empty"]);
        let order: Vec<_> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(order.iter().map(|chunk| chunk.table).collect::<Vec<_>>(), [1, 1, 0]);
        assert_eq!(order.iter().map(|chunk| queue.done(chunk)).collect::<Vec<_>>(), [false, true, true]);
    }

    #[test]
    fn a_chunk_is_a_range_of_ctid_and_a_whole_table_is_itself() {
        let xids = Xids::new(0, (3 << 32) + 100);
        let chunks = part(0, 12, true).chunks(&[done(4, Some(8))], 4 * 8_192);
        let sql: Vec<_> = chunks.iter().map(|chunk| chunk.copy_out(&wanted("t"), xids)).collect();
        let select = "COPY (SELECT \"id\", \"no\"\"te\" FROM ONLY p0 WHERE";
        let older = "xmin::text::bigint + CASE WHEN xmin::text::bigint <= 100 THEN 12884901888 ELSE 8589934592 END < 9";
        assert_eq!(
            sql,
            [
                format!("{select} ctid < '(4,0)'::tid) TO STDOUT (FORMAT binary)"),
                format!(
                    "{select} ctid >= '(4,0)'::tid AND ctid < '(8,0)'::tid AND NOT ({older})) TO STDOUT (FORMAT binary)"
                ),
                format!("{select} ctid >= '(8,0)'::tid) TO STDOUT (FORMAT binary)"),
            ]
        );
        let whole = &part(0, 1, true).chunks(&[], 8_192)[0];
        assert_eq!(whole.copy_out(&wanted("t"), xids), "COPY p0 (\"id\", \"no\"\"te\") TO STDOUT (FORMAT binary)");
        assert_eq!(
            done(0, None).keys_out(&["id".to_owned()], xids),
            format!("COPY (SELECT \"id\" FROM ONLY p0 WHERE {older}) TO STDOUT (FORMAT text)")
        );
    }

    /// A version that both snapshots see may have been written between `xmax` and `xmin` of the newer one; taken for one of
    /// the IDs before a wrap-around, it would be left out of the copy.
    #[test]
    fn no_version_that_is_seen_is_taken_for_one_of_the_epoch_before() {
        let epoch = 7 << 32;
        let condition = Xids::new(epoch + 1_000, epoch + 990).is_older(epoch + 950);
        assert!(condition.contains("<= 1000 THEN 30064771072 "), "{condition}");
        assert_eq!(condition, Xids::new(epoch + 990, epoch + 1_000).is_older(epoch + 950));
    }
}
