//! A run of source transactions on its way to the target, and the pool that such runs circulate in.
//!
//! In: decoded changes. Out: the same changes in the same order, in memory of their own.
//!
//! **Always holds:**
//! - A batch ends where a source transaction ends, unless that transaction alone is larger than a batch: then
//!   [`Batch::is_open`] says that the next batch goes on with it, and nothing of it may be committed before.
//! - The bytes of all rows lie in one arena, the cells are offsets into it: no row allocates.
//! - There are so many batches as [`pool_batches`] says, and no more. Waiting for an empty one is the back-pressure of the pipeline.

mod row;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use pgsluice_proto::pgoutput::{Begin, Commit, OldTuple};
use pgsluice_proto::{Lsn, PgTimestamp, Xid};

pub use self::row::{Kinds, OldRow, Row, RowBuilder, Rows, Span};
use crate::decode::{Change, Operation, Relation, Truncate};

/// One being filled, one waiting, and one being applied by each of the target's sessions.
pub const fn pool_batches(workers: usize) -> usize {
    2 + workers
}

/// A transaction is only handed over in parts when it is this many times larger than a batch may be: most that pass
/// the limit end soon after.
const OPEN_TRANSACTION_FACTOR: usize = 2;

/// An empty batch keeps at most this multiple of the byte limit, so that one large row does not stay allocated.
const KEEP_CAPACITY_FACTOR: usize = 2;

/// When a batch is full. Both count before any netting.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub rows: usize,
    pub bytes: usize,
}

/// A source transaction, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction {
    pub xid: Xid,
    pub commit_lsn: Lsn,
    /// `None` until its Commit has come.
    pub end_lsn: Option<Lsn>,
    pub commit_time: PgTimestamp,
}

#[derive(Debug)]
struct Entry {
    relation: u32,
    transaction: u32,
    operation: StoredOperation,
}

#[derive(Clone, Copy, Debug)]
enum StoredOperation {
    Row(RowOperation),
    Truncate { index: u32 },
}

/// A change of one row, by where the rows lie in the batch.
#[derive(Clone, Copy, Debug)]
pub enum RowOperation {
    Insert { new: Span },
    Update { old: Option<OldSpan>, new: Span },
    Delete { old: OldSpan },
}

/// An [`OldRow`], by where it lies.
#[derive(Clone, Copy, Debug)]
pub enum OldSpan {
    Key(Span),
    Full(Span),
}

impl OldSpan {
    pub fn span(self) -> Span {
        let (OldSpan::Key(span) | OldSpan::Full(span)) = self;
        span
    }
}

/// A change, as it lies in a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchedChange<'a> {
    pub transaction: &'a Transaction,
    /// The same for all changes of this batch under one description of a relation; of no meaning for a truncate.
    pub relation_index: usize,
    pub operation: BatchedOperation<'a>,
}

#[derive(Clone, Copy, Debug)]
pub enum BatchedOperation<'a> {
    Insert { relation: &'a Arc<Relation>, new: Row<'a> },
    Update { relation: &'a Arc<Relation>, old: Option<OldRow<'a>>, new: Row<'a> },
    Delete { relation: &'a Arc<Relation>, old: OldRow<'a> },
    Truncate(&'a Truncate),
}

/// A transaction of which nothing is applied, because somebody has asked for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub transaction: Transaction,
    /// That were left out.
    pub changes: u64,
}

/// A run of changes that can be committed together, or the beginning of a transaction that cannot be yet.
#[derive(Clone, Debug)]
pub struct Part {
    /// Of its changes in the batch.
    pub places: Range<usize>,
    /// Of the last transaction in it.
    pub commit_lsn: Option<Lsn>,
    /// Where progress stands once the part is committed; `None` where its last transaction goes on in the next batch.
    pub end_lsn: Option<Lsn>,
    /// Of the last transaction that ends in it.
    pub commit_time: Option<PgTimestamp>,
    pub skipped: Vec<Skipped>,
}

#[derive(Debug, Default)]
pub struct Batch {
    rows: Rows,
    entries: Vec<Entry>,
    relations: Vec<Arc<Relation>>,
    /// In `relations`, by version.
    relation_places: HashMap<u64, u32, foldhash::fast::RandomState>,
    truncates: Vec<Truncate>,
    transactions: Vec<Transaction>,
    skipped: Vec<Skipped>,
    /// The first transaction has begun in another batch.
    resumed: bool,
    /// A transaction has begun and not committed.
    open: bool,
    end_lsn: Option<Lsn>,
    /// The number of the transaction in it, whose changes another session has made already.
    early: Option<u64>,
}

impl Batch {
    /// Empties the batch for its next use.
    pub fn clear(&mut self, limits: Limits) {
        self.rows.clear(limits.bytes * KEEP_CAPACITY_FACTOR);
        self.entries.clear();
        self.relations.clear();
        self.relation_places.clear();
        self.truncates.clear();
        self.transactions.clear();
        self.skipped.clear();
        self.resumed = false;
        self.open = false;
        self.end_lsn = None;
        self.early = None;
    }

    pub fn begin(&mut self, begin: Begin) {
        debug_assert!(!self.open, "transactions do not overlap");
        self.open = true;
        self.transactions.push(Transaction {
            xid: begin.xid,
            commit_lsn: begin.commit_lsn,
            end_lsn: None,
            commit_time: begin.commit_time,
        });
    }

    /// Goes on with a transaction whose first part another batch has taken.
    pub fn resume(&mut self, transaction: Transaction) {
        debug_assert!(self.transactions.is_empty());
        self.resumed = true;
        self.open = true;
        self.transactions.push(transaction);
    }

    #[inline]
    pub fn push(&mut self, change: &Change<'_>) {
        let operation = match change.operation {
            Operation::Insert { new } => RowOperation::Insert { new: self.rows.push(&new) },
            Operation::Update { old, new } => {
                RowOperation::Update { old: old.map(|old| self.push_old(old)), new: self.rows.push(&new) }
            }
            Operation::Delete { old } => RowOperation::Delete { old: self.push_old(old) },
        };
        self.push_built(change.relation, operation);
    }

    /// Where rows are made for [`Batch::push_built`]. One that is not pushed takes room until the batch is cleared.
    pub fn rows(&mut self) -> &mut Rows {
        &mut self.rows
    }

    /// A change whose rows were made in [`Batch::rows`].
    #[inline]
    pub fn push_built(&mut self, relation: &Arc<Relation>, operation: RowOperation) {
        let relation = self.relation_index(relation);
        self.push_entry(relation, StoredOperation::Row(operation));
    }

    pub fn push_truncate(&mut self, truncate: Truncate) {
        let index = self.truncates.len() as u32;
        self.truncates.push(truncate);
        self.push_entry(0, StoredOperation::Truncate { index });
    }

    /// The transaction that has begun is one to pass over, and had so many changes. None of them has been added.
    pub fn skip(&mut self, changes: u64) {
        debug_assert!(self.open, "only what has begun can be passed over");
        self.skipped.extend(self.transactions.last().map(|&transaction| Skipped { transaction, changes }));
    }

    /// The changes of the transaction that has begun, which is the only one, are made already, under this number.
    pub fn set_early(&mut self, number: u64) {
        debug_assert!(self.transactions.len() == 1 && self.entries.is_empty(), "nothing stands beside it");
        self.early = Some(number);
    }

    /// The number of the transaction that it only has to commit.
    pub fn early(&self) -> Option<u64> {
        self.early
    }

    pub fn commit(&mut self, commit: Commit) {
        debug_assert!(self.open, "a Commit ends a transaction");
        self.open = false;
        self.end_lsn = Some(commit.end_lsn);
        if let Some(transaction) = self.transactions.last_mut() {
            transaction.end_lsn = self.end_lsn;
        }
    }

    /// The source has nothing for us before `lsn`, with no transaction open: progress can move there.
    pub fn advance(&mut self, lsn: Lsn) {
        debug_assert!(!self.open, "progress does not move past an open transaction");
        self.end_lsn = self.end_lsn.max(Some(lsn));
    }

    /// The last transaction goes on in the next batch.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The transaction that goes on in the next batch.
    pub fn open_transaction(&self) -> Option<Transaction> {
        if self.open { self.transactions.last().copied() } else { None }
    }

    /// Where progress stands once this batch is committed; `None` where no transaction ends in it.
    pub fn end_lsn(&self) -> Option<Lsn> {
        self.end_lsn
    }

    /// Of the last transaction that ends here.
    fn commit_time(&self) -> Option<PgTimestamp> {
        self.transactions[..self.transaction_count()].last().map(|transaction| transaction.commit_time)
    }

    pub fn has_changes(&self) -> bool {
        !self.entries.is_empty()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// That its rows take.
    pub fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    /// Nothing at all has happened, not even an empty transaction.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.transactions.is_empty() && self.end_lsn.is_none()
    }

    /// Nothing may be applied beside it: what it changes is more than rows, or more than this batch has of it.
    pub fn is_for_itself(&self) -> bool {
        let is_described_twice = || {
            let mut ids: Vec<_> = self.relations.iter().map(|relation| relation.id).collect();
            ids.sort_unstable();
            ids.windows(2).any(|pair| pair[0] == pair[1])
        };
        self.resumed
            || self.open
            || self.is_empty()
            || self.early.is_some()
            || !self.skipped.is_empty()
            || !self.truncates.is_empty()
            || is_described_twice()
    }

    /// Transactions that end in this batch.
    pub fn transaction_count(&self) -> usize {
        self.transactions.len() - usize::from(self.open)
    }

    /// It is time to hand over: at the end of a transaction, or in the midst of one that is far larger than a batch.
    /// Nothing is added behind such a one, so that it is committed before anything else can fail.
    #[inline]
    pub fn is_full(&self, limits: Limits) -> bool {
        if self.resumed && !self.open {
            return true;
        }
        // Transactions whose changes are left out have no rows, and must not gather for that.
        if !self.open && self.transactions.len() >= limits.rows {
            return true;
        }
        let factor = if self.open { OPEN_TRANSACTION_FACTOR } else { 1 };
        self.entries.len() >= limits.rows * factor || self.rows.bytes() >= limits.bytes * factor
    }

    /// Every relation that rows of the batch belong to, by their `relation_index`.
    pub fn relations(&self) -> &[Arc<Relation>] {
        &self.relations
    }

    /// The changes, in the order of the source.
    pub fn changes(&self) -> impl Iterator<Item = BatchedChange<'_>> + Clone {
        self.entries.iter().map(|entry| self.change(entry))
    }

    /// Those of the changes at these places.
    pub fn changes_in(&self, places: Range<usize>) -> impl Iterator<Item = BatchedChange<'_>> + Clone {
        self.entries[places].iter().map(|entry| self.change(entry))
    }

    /// One part a transaction, in the order of the source.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        self.transactions.iter().enumerate().map(|(index, transaction)| {
            let start = self.entries.partition_point(|entry| (entry.transaction as usize) < index);
            let end = self.entries.partition_point(|entry| (entry.transaction as usize) <= index);
            let is_last = index + 1 == self.transactions.len();
            // The last one takes along what the source said after it.
            let end_lsn = if is_last && !self.open { self.end_lsn } else { transaction.end_lsn };
            let is_this = |skipped: &&Skipped| skipped.transaction.commit_lsn == transaction.commit_lsn;
            Part {
                places: start..end,
                commit_lsn: Some(transaction.commit_lsn),
                end_lsn,
                commit_time: end_lsn.map(|_| transaction.commit_time),
                skipped: self.skipped.iter().filter(is_this).copied().collect(),
            }
        })
    }

    /// All of it.
    pub fn whole(&self) -> Part {
        Part {
            places: 0..self.entries.len(),
            commit_lsn: self.transactions.last().map(|transaction| transaction.commit_lsn),
            end_lsn: self.end_lsn.filter(|_| !self.open),
            commit_time: self.commit_time(),
            skipped: self.skipped.clone(),
        }
    }

    #[inline]
    fn change(&self, entry: &Entry) -> BatchedChange<'_> {
        let relation = || &self.relations[entry.relation as usize];
        let operation = match entry.operation {
            StoredOperation::Row(RowOperation::Insert { new }) => {
                BatchedOperation::Insert { relation: relation(), new: self.rows.row(new) }
            }
            StoredOperation::Row(RowOperation::Update { old, new }) => BatchedOperation::Update {
                relation: relation(),
                old: old.map(|old| self.old_row(old)),
                new: self.rows.row(new),
            },
            StoredOperation::Row(RowOperation::Delete { old }) => {
                BatchedOperation::Delete { relation: relation(), old: self.old_row(old) }
            }
            StoredOperation::Truncate { index } => BatchedOperation::Truncate(&self.truncates[index as usize]),
        };
        BatchedChange {
            transaction: &self.transactions[entry.transaction as usize],
            relation_index: entry.relation as usize,
            operation,
        }
    }

    #[inline]
    fn push_entry(&mut self, relation: u32, operation: StoredOperation) {
        let transaction = self.transactions.len().checked_sub(1).expect("a change belongs to a transaction") as u32;
        self.entries.push(Entry { relation, transaction, operation });
    }

    fn push_old(&mut self, old: OldTuple<'_>) -> OldSpan {
        match old {
            OldTuple::Key(tuple) => OldSpan::Key(self.rows.push(&tuple)),
            OldTuple::Full(tuple) => OldSpan::Full(self.rows.push(&tuple)),
        }
    }

    fn old_row(&self, old: OldSpan) -> OldRow<'_> {
        match old {
            OldSpan::Key(span) => OldRow::Key(self.rows.row(span)),
            OldSpan::Full(span) => OldRow::Full(self.rows.row(span)),
        }
    }

    /// The place of the relation in this batch. Runs of one relation are the rule, so the newest is looked at first.
    #[inline]
    fn relation_index(&mut self, relation: &Arc<Relation>) -> u32 {
        match self.relations.last() {
            Some(newest) if Arc::ptr_eq(newest, relation) => (self.relations.len() - 1) as u32,
            Some(_) | None => self.other_relation_index(relation),
        }
    }

    fn other_relation_index(&mut self, relation: &Arc<Relation>) -> u32 {
        *self.relation_places.entry(relation.version).or_insert_with(|| {
            self.relations.push(Arc::clone(relation));
            (self.relations.len() - 1) as u32
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_without_rows_fill_a_batch_too() {
        let limits = Limits { rows: 3, bytes: 1_000 };
        let mut batch = Batch::default();
        for place in 1..=3 {
            assert!(!batch.is_full(limits), "after {} transactions", place - 1);
            let (commit_lsn, end_lsn) = (Lsn::new(place * 10), Lsn::new(place * 10 + 5));
            batch.begin(Begin { commit_lsn, commit_time: PgTimestamp::from_micros(0), xid: Xid(7) });
            assert!(!batch.is_full(limits), "a transaction may have rows");
            batch.commit(Commit { commit_lsn, end_lsn, commit_time: PgTimestamp::from_micros(0) });
        }
        assert!(batch.is_full(limits));
    }
}
