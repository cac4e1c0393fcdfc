//! What rules make of the rows of one relation, as it was compiled: a [`Plan`] touches of a row only what it must.

use std::sync::Arc;

use pgsluice_proto::Lsn;
use pgsluice_proto::pgoutput::{Cell, ReplicaIdentity};

use super::expression::Expression;
use super::mask::Masking;
use super::metadata::{Metadata, Op};
use crate::decode::{Column, Relation};

/// How rows of a relation become rows of its table on the target.
#[derive(Debug)]
pub struct Plan {
    pub(super) source: Arc<Relation>,
    /// The same relation as the target has it.
    pub(super) target: Arc<Relation>,
    pub(super) filter: Option<Expression>,
    /// As the columns of `target`.
    pub(super) outputs: Vec<Output>,
    /// Rows pass as they came.
    pub(super) keeps_rows: bool,
    pub(super) soft_delete: bool,
    /// Something is computed of what only the commit tells.
    pub(super) reads_commit: bool,
    /// In the words of the rules.
    pub(super) filter_text: Option<String>,
}

/// Where the value of a column of the target comes from.
#[derive(Debug)]
pub(super) struct Output {
    pub how: How,
    /// Of the source, that it stands for; `None` where it is set beside those.
    pub column: Option<usize>,
    /// Part of what an old row is found by.
    pub is_identity: bool,
    /// The same row always has the same value, so that it can be computed of an old row too.
    pub is_stable: bool,
    /// Cells of the source that it is made of.
    pub reads: Vec<usize>,
    /// In words.
    pub said: String,
}

#[derive(Debug)]
pub(super) enum How {
    Cell(usize),
    Mask {
        column: usize,
        mask: Masking,
        of: MaskedType,
    },
    Compute(Expression),
    /// The same value for all that is not NULL, in text and in binary.
    Fixed {
        column: usize,
        value: [Vec<u8>; 2],
    },
}

/// What a mask is given.
#[derive(Debug)]
pub(super) enum MaskedType {
    Text,
    /// Without the blanks at its end.
    Padded,
    /// The text of what the expression reads.
    Other(Expression),
    /// The mask looks at no value.
    Any,
}

impl Plan {
    pub fn source(&self) -> &Arc<Relation> {
        &self.source
    }

    /// As the target has it: its name, and the columns that it gets.
    pub fn target(&self) -> &Arc<Relation> {
        &self.target
    }

    /// The condition that rows have to meet.
    pub fn filter_text(&self) -> Option<&str> {
        self.filter_text.as_deref()
    }

    /// Something in its rows is only known when their transaction has committed.
    pub fn reads_commit(&self) -> bool {
        self.reads_commit
    }

    /// Rows are deleted by an update that says so.
    pub fn is_soft_deleting(&self) -> bool {
        self.soft_delete
    }

    /// What each column of the target is made of, in words.
    pub fn columns(&self) -> impl Iterator<Item = (&Column, &str)> {
        self.target.columns.iter().zip(self.outputs.iter().map(|output| output.said.as_str()))
    }

    /// The columns of the source, by their positions, that rows are made of or chosen by.
    pub fn needed(&self) -> Vec<usize> {
        let filter = self.filter.iter().flat_map(|filter| filter.columns().iter().copied());
        let mut needed: Vec<_> =
            self.outputs.iter().flat_map(|output| output.reads.iter().copied()).chain(filter).collect();
        needed.sort_unstable();
        needed.dedup();
        if needed.is_empty() && !self.source.columns.is_empty() {
            // A row without columns is no row to COPY.
            needed.push(0);
        }
        needed
    }

    /// Columns of the source that nothing on the target is made of.
    pub fn left_out(&self) -> impl Iterator<Item = &str> {
        let is_read = |column: usize| self.outputs.iter().any(|output| output.reads.contains(&column));
        let columns = self.source.columns.iter().enumerate();
        columns.filter(move |(position, _)| !is_read(*position)).map(|(_, column)| column.name.as_str())
    }

    /// The column of the target that has the values of this column of the source, unchanged.
    pub fn unchanged(&self, name: &str) -> Option<&str> {
        let position = self.source.columns.iter().position(|column| column.name == name)?;
        let is_it = |output: &Output| matches!(output.how, How::Cell(column) if column == position);
        let place = self.outputs.iter().position(is_it)?;
        Some(&self.target.columns[place].name)
    }

    /// The column of the source whose values a column of the target has, unchanged.
    pub fn origin(&self, name: &str) -> Option<&str> {
        let place = self.target.columns.iter().position(|column| column.name == name)?;
        match self.outputs[place].how {
            How::Cell(column) => Some(&self.source.columns[column].name),
            How::Mask { .. } | How::Compute(_) | How::Fixed { .. } => None,
        }
    }

    /// The table on the target can be one as on the source: of the same name, with columns of the same names and types.
    pub fn keeps_shape(&self) -> bool {
        let of = |relation: &Relation| {
            let mut columns: Vec<_> =
                relation.columns.iter().map(|column| (column.name.clone(), column.type_oid)).collect();
            columns.sort();
            (relation.namespace.clone(), relation.name.clone(), columns)
        };
        of(&self.source) == of(&self.target)
    }

    /// Rows pass as they came, though under other names.
    pub fn keeps_rows(&self) -> bool {
        self.keeps_rows
    }

    /// Every row has its columns as they came, or not at all.
    pub fn only_picks(&self) -> bool {
        self.filter.is_none() && self.outputs.iter().all(|output| matches!(output.how, How::Cell(_)))
    }

    /// Columns of the key that have one value in all rows of this source, with that value. Under FULL without a key that is
    /// named, no column is one.
    pub fn constants(&self) -> Vec<(String, String)> {
        if self.target.replica_identity == ReplicaIdentity::Full {
            return Vec::new();
        }
        let table = (self.source.namespace.as_str(), self.source.name.as_str());
        let metadata = Metadata::of_copy(Lsn::INVALID);
        let constant = |(column, output): (&Column, &Output)| {
            let How::Compute(expression) = &output.how else { return None };
            let is_constant = output.is_identity && output.is_stable && output.reads.is_empty();
            let first = self.source.columns.len();
            let cell = |index: usize| match index.checked_sub(first) {
                Some(field) => metadata.cell(field, Op::Insert, table),
                None => Cell::Null,
            };
            let value = expression.evaluate(cell).ok().filter(|_| is_constant)?;
            let mut text = String::new();
            value.to_text(&mut text).then(|| (column.name.clone(), text))
        };
        self.target.columns.iter().zip(&self.outputs).filter_map(constant).collect()
    }
}
