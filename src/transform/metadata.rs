//! What is known of a change beside its row, for expressions to read.

use pgsluice_proto::pgoutput::{Begin, Cell};
use pgsluice_proto::{Lsn, Oid};

use super::expression::types::Type;

/// The names by which expressions know it, in the order of [`Metadata::cell`].
const FIELDS: [(&str, Type); 6] = [
    ("$lsn", Type::Text),
    ("$commit_time", Type::Timestamptz),
    ("$op", Type::Text),
    ("$xid", Type::Int8),
    ("$source_schema", Type::Text),
    ("$source_table", Type::Text),
];
/// The first of those that are the same for every change of a table.
const FIRST_OF_TABLE: usize = 4;

/// Names and types, as further columns of a relation.
pub(super) fn columns() -> impl Iterator<Item = (String, Oid)> {
    FIELDS.iter().map(|(name, of)| ((*name).to_owned(), of.oid()))
}

/// Whether the field is another one for other changes of the table.
pub(super) fn is_volatile(field: usize) -> bool {
    field < FIRST_OF_TABLE
}

/// Whether nobody knows the field before the transaction has committed.
pub(super) fn is_of_commit(field: usize) -> bool {
    matches!(FIELDS[field].0, "$lsn" | "$commit_time" | "$xid")
}

/// The transaction that a change belongs to, or the snapshot that a copied row is of.
#[derive(Clone, Debug)]
pub struct Metadata {
    lsn: String,
    /// In binary.
    commit_time: Option<[u8; 8]>,
    xid: Option<[u8; 8]>,
}

/// What became of the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Insert,
    Update,
    Delete,
}

impl Metadata {
    /// Of rows that are copied: nobody knows who wrote them, and when.
    pub fn of_copy(snapshot_lsn: Lsn) -> Metadata {
        Metadata { lsn: snapshot_lsn.to_string(), commit_time: None, xid: None }
    }

    pub(super) fn begin(&mut self, begin: &Begin) {
        use std::fmt::Write;
        self.lsn.clear();
        // Writing to a String cannot fail.
        write!(self.lsn, "{}", begin.commit_lsn).unwrap_or_default();
        self.commit_time = Some(begin.commit_time.as_micros().to_be_bytes());
        self.xid = Some(i64::from(begin.xid.0).to_be_bytes());
    }

    /// The value of a field, for a change of this kind to this table.
    pub(super) fn cell<'a>(&'a self, field: usize, op: Op, (schema, table): (&'a str, &'a str)) -> Cell<'a> {
        let binary = |bytes: &'a Option<[u8; 8]>| bytes.as_ref().map_or(Cell::Null, |bytes| Cell::Binary(bytes));
        match field {
            0 => Cell::Text(self.lsn.as_bytes()),
            1 => binary(&self.commit_time),
            2 => Cell::Text(match op {
                Op::Insert => b"I",
                Op::Update => b"U",
                Op::Delete => b"D",
            }),
            3 => binary(&self.xid),
            4 => Cell::Text(schema.as_bytes()),
            5.. => Cell::Text(table.as_bytes()),
        }
    }
}
