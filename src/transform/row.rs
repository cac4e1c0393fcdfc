//! What a plan makes of one change.
//!
//! ```text
//!                    new row passes the filter        new row does not
//!  Insert            Insert                           –
//!  Update, old did   Update                           Delete
//!  Update, old not   Insert, of a row that is whole   –
//!  Delete            Delete, if the old row passed
//! ```
//!
//! A row that could not be made leaves nothing behind, and its error holds nothing of it.

use pgsluice_proto::pgoutput::{Cell, OldTuple, ReplicaIdentity, Tuple};

use super::expression::{EvaluationError, Expression, Fault, Value};
use super::mask::Masking;
use super::metadata::{Metadata, Op};
use super::plan::{How, MaskedType, Output, Plan};
use crate::batch::{Batch, OldSpan, RowBuilder, RowOperation, Rows, Span};
use crate::decode::Operation;

/// Why a rule cannot be applied to a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowError {
    /// Of the target, or `where`.
    pub at: String,
    pub why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// It is of a column of the source that an update has left alone.
    #[error("the value of column \"{0}\" is needed, and an update that leaves it alone comes without it")]
    Unchanged(String),
    #[error("the value of column \"{0}\" is not what its type's output looks like")]
    Cell(String),
    /// It could have met the filter before, or not.
    #[error("an update came without its old row, though the replica identity is FULL")]
    NoOldRow,
    #[error("{0} (SQLSTATE {state})", state = .0.sqlstate())]
    Fault(Fault),
}

type Outcome<T> = Result<T, RowError>;

/// What rows are transformed with, apart from the plan.
#[derive(Debug)]
pub struct Workshop {
    pub metadata: Metadata,
    /// Values are made in binary, as those that come.
    pub binary: bool,
    /// Memory that is used again.
    new: Vec<Cell<'static>>,
    old: Vec<Cell<'static>>,
    text: String,
}

impl Workshop {
    pub fn new(metadata: Metadata, binary: bool) -> Workshop {
        Workshop { metadata, binary, new: Vec::new(), old: Vec::new(), text: String::new() }
    }
}

/// The same memory for cells of another row.
fn recycle<'b>(mut cells: Vec<Cell<'_>>) -> Vec<Cell<'b>> {
    cells.clear();
    cells.into_iter().map(|_| Cell::Null).collect()
}

impl Plan {
    /// Adds to the batch what the change comes to.
    pub(super) fn push(&self, operation: Operation<'_>, workshop: &mut Workshop, batch: &mut Batch) -> Outcome<()> {
        match operation {
            Operation::Insert { new } => self.push_insert(new, workshop, batch),
            Operation::Update { old, new } => self.push_update(old, new, workshop, batch),
            Operation::Delete { old } => self.push_delete(old, workshop, batch),
        }
    }

    fn push_insert(&self, new: Tuple<'_>, workshop: &mut Workshop, batch: &mut Batch) -> Outcome<()> {
        let mut cells = recycle(std::mem::take(&mut workshop.new));
        let mut rest = new.cells();
        let passes = match &self.filter {
            None => true,
            Some(filter) => {
                // What the filter does not read of a row that does not pass is not looked at.
                let needed = filter.columns().last().map_or(0, |last| last + 1);
                cells.extend(rest.by_ref().take(needed));
                self.passes(&cells, None)?
            }
        };
        let result = if passes {
            cells.extend(rest);
            let row = View::new(self, &cells, None, Op::Insert);
            let new = row.build(Kind::New, workshop.parts(), batch.rows());
            new.map(|new| batch.push_built(&self.target, RowOperation::Insert { new }))
        } else {
            Ok(())
        };
        workshop.new = recycle(cells);
        result
    }

    fn push_update(
        &self,
        old: Option<OldTuple<'_>>,
        new: Tuple<'_>,
        workshop: &mut Workshop,
        batch: &mut Batch,
    ) -> Outcome<()> {
        let mut new_cells = recycle(std::mem::take(&mut workshop.new));
        let mut old_cells = recycle(std::mem::take(&mut workshop.old));
        new_cells.extend(new.cells());
        let old = old.map(|old| match old {
            OldTuple::Key(tuple) => (false, tuple),
            OldTuple::Full(tuple) => (true, tuple),
        });
        old_cells.extend(old.iter().flat_map(|(_, tuple)| tuple.cells()));
        let rows = Update { new: &new_cells, old: old.map(|(is_full, _)| (is_full, old_cells.as_slice())) };
        let result = self.update(rows, workshop, batch);
        workshop.new = recycle(new_cells);
        workshop.old = recycle(old_cells);
        result
    }

    fn update(&self, Update { new, old }: Update<'_>, workshop: &mut Workshop, batch: &mut Batch) -> Outcome<()> {
        let known = old.map(|(_, cells)| cells);
        let (was_in, is_in) = match &self.filter {
            None => (true, true),
            Some(_) if old.is_none() && self.source.replica_identity == ReplicaIdentity::Full => {
                return Err(RowError { at: "where".to_owned(), why: Why::NoOldRow });
            }
            Some(_) => {
                let is_in = self.passes(new, known)?;
                // Without an old row the key is as it was, and the filter reads nothing else.
                (old.map_or(Ok(is_in), |(_, cells)| self.passes(cells, None))?, is_in)
            }
        };
        match (was_in, is_in) {
            (false, false) => Ok(()),
            (false, true) => {
                let row = View::new(self, new, known, Op::Insert);
                let new = row.build(Kind::Whole, workshop.parts(), batch.rows())?;
                batch.push_built(&self.target, RowOperation::Insert { new });
                Ok(())
            }
            (true, false) => match old {
                Some((is_full, cells)) => self.delete(cells, is_full, workshop, batch),
                // It has passed before by the very values that do not pass now.
                None => unreachable!("without an old row both answers are one"),
            },
            (true, true) => {
                let row = View::new(self, new, known, Op::Update);
                let old_row = match old {
                    Some((is_full, cells)) => Some(self.old_row(cells, is_full, workshop, batch)?),
                    None => None,
                };
                let new_row = row.build(Kind::New, workshop.parts(), batch.rows())?;
                if self.soft_delete && old_row.is_some_and(|old| self.moves(old.span(), new_row, batch.rows())) {
                    return self.move_key(Update { new, old }, workshop, batch);
                }
                batch.push_built(&self.target, RowOperation::Update { old: old_row, new: new_row });
                Ok(())
            }
        }
    }

    /// A row that is kept under its old key, as deleted, and comes again under its new one.
    fn move_key(&self, Update { new, old }: Update<'_>, workshop: &mut Workshop, batch: &mut Batch) -> Outcome<()> {
        let known = old.map(|(_, cells)| cells);
        // Made before anything is in the batch, since it may fail.
        let new = View::new(self, new, known, Op::Update).build(Kind::Whole, workshop.parts(), batch.rows())?;
        if let Some((is_full, cells)) = old {
            self.delete(cells, is_full, workshop, batch)?;
        }
        batch.push_built(&self.target, RowOperation::Insert { new });
        Ok(())
    }

    fn moves(&self, old: Span, new: Span, rows: &Rows) -> bool {
        let (old, new) = (rows.row(old), rows.row(new));
        let differ = |column: usize| ![old.cell(column), Cell::Unchanged].contains(&new.cell(column));
        (0..self.outputs.len()).any(|column| self.outputs[column].is_identity && differ(column))
    }

    /// What an old row is found by, or all that can be known of it.
    fn old_row(
        &self,
        cells: &[Cell<'_>],
        is_full: bool,
        workshop: &mut Workshop,
        batch: &mut Batch,
    ) -> Outcome<OldSpan> {
        let view = View::new(self, cells, None, Op::Delete);
        let mut build = |kind| view.build(kind, workshop.parts(), batch.rows());
        Ok(if is_full { OldSpan::Full(build(Kind::Full)?) } else { OldSpan::Key(build(Kind::Key)?) })
    }

    fn push_delete(&self, old: OldTuple<'_>, workshop: &mut Workshop, batch: &mut Batch) -> Outcome<()> {
        let (is_full, tuple) = match old {
            OldTuple::Key(tuple) => (false, tuple),
            OldTuple::Full(tuple) => (true, tuple),
        };
        let mut cells = recycle(std::mem::take(&mut workshop.old));
        cells.extend(tuple.cells());
        let result = match self.passes(&cells, None) {
            Ok(true) => self.delete(&cells, is_full, workshop, batch),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        workshop.old = recycle(cells);
        result
    }

    fn delete(&self, cells: &[Cell<'_>], is_full: bool, workshop: &mut Workshop, batch: &mut Batch) -> Outcome<()> {
        if self.soft_delete {
            let row = View::new(self, cells, None, Op::Delete);
            let new = row.build(Kind::Deleted, workshop.parts(), batch.rows())?;
            batch.push_built(&self.target, RowOperation::Update { old: None, new });
        } else {
            let old = self.old_row(cells, is_full, workshop, batch)?;
            batch.push_built(&self.target, RowOperation::Delete { old });
        }
        Ok(())
    }

    /// Makes the row that a copied one becomes; `None` where it does not pass. Of columns that are not needed any cells do.
    pub fn copied(&self, cells: &[Cell<'_>], workshop: &mut Workshop, rows: &mut Rows) -> Outcome<Option<Span>> {
        if !self.passes(cells, None)? {
            return Ok(None);
        }
        View::new(self, cells, None, Op::Insert).build(Kind::Whole, workshop.parts(), rows).map(Some)
    }

    fn passes(&self, cells: &[Cell<'_>], old: Option<&[Cell<'_>]>) -> Outcome<bool> {
        let Some(filter) = &self.filter else { return Ok(true) };
        let cell = |column: usize| completed(cells, old, column);
        filter.is_true(cell).map_err(|error| self.failed("where", error))
    }

    fn failed(&self, at: &str, error: EvaluationError) -> RowError {
        let name = |column: usize| {
            self.source.columns.get(column).map_or_else(|| "$…".to_owned(), |column| column.name.clone())
        };
        let why = match error {
            EvaluationError::Unchanged(column) => Why::Unchanged(name(column)),
            EvaluationError::Cell(column) => Why::Cell(name(column)),
            EvaluationError::Fault(fault) => Why::Fault(fault),
        };
        RowError { at: at.to_owned(), why }
    }

    /// Values, in text, by which rows are marked that a TRUNCATE has deleted.
    pub(super) fn marks(&self, metadata: &Metadata) -> Outcome<Vec<(String, Option<String>)>> {
        let nothing = vec![Cell::Unchanged; self.source.columns.len()];
        let row = View::new(self, &nothing, None, Op::Delete);
        let mut marks = Vec::new();
        for (column, output) in self.target.columns.iter().zip(&self.outputs) {
            if let How::Compute(expression) = &output.how
                && output.reads.is_empty()
                && !output.is_identity
            {
                let value = row.value(expression, metadata).map_err(|error| self.failed(&column.name, error))?;
                let mut text = String::new();
                marks.push((column.name.clone(), value.to_text(&mut text).then_some(text)));
            }
        }
        Ok(marks)
    }
}

/// Both rows of an update; of the old one whether all of it is known.
#[derive(Clone, Copy)]
struct Update<'a> {
    new: &'a [Cell<'a>],
    old: Option<(bool, &'a [Cell<'a>])>,
}

/// What a row is made for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// What it becomes; what an update has left alone stays so.
    New,
    /// The same, and every value has to be there.
    Whole,
    /// The columns by which it is found; the others are NULL, as in an old key of the source.
    Key,
    /// What it was, all that is the same whenever it is made; the others are unchanged.
    Full,
    /// What becomes of a row that is kept as deleted: its key, and what says so.
    Deleted,
}

/// What is needed of a workshop to write a row.
struct Parts<'w> {
    metadata: &'w Metadata,
    binary: bool,
    text: &'w mut String,
}

impl Workshop {
    fn parts(&mut self) -> Parts<'_> {
        Parts { metadata: &self.metadata, binary: self.binary, text: &mut self.text }
    }
}

/// A row of the source, as a plan looks at it.
struct View<'a> {
    plan: &'a Plan,
    cells: &'a [Cell<'a>],
    /// The row as it was, where that is told.
    old: Option<&'a [Cell<'a>]>,
    op: Op,
}

/// The cell, or what it was where it was left alone and the old row has it. What is left alone was large once: NULL stands
/// in an old row for what is not known of it.
#[inline]
fn completed<'a>(cells: &[Cell<'a>], old: Option<&[Cell<'a>]>, column: usize) -> Cell<'a> {
    match (cells[column], old) {
        (Cell::Unchanged, Some(old)) if old[column] != Cell::Null => old[column],
        (cell, _) => cell,
    }
}

impl<'a> View<'a> {
    fn new(plan: &'a Plan, cells: &'a [Cell<'a>], old: Option<&'a [Cell<'a>]>, op: Op) -> View<'a> {
        View { plan, cells, old, op }
    }

    fn build(&self, kind: Kind, mut parts: Parts<'_>, rows: &mut Rows) -> Outcome<Span> {
        rows.build(|row| {
            for (position, output) in self.plan.outputs.iter().enumerate() {
                match self.write(kind, output, &mut parts, row) {
                    Ok(()) => {}
                    // The row is found without it.
                    Err(EvaluationError::Unchanged(_)) if kind == Kind::Full && !output.is_identity => {
                        row.push(Cell::Unchanged);
                    }
                    Err(error) => return Err(self.plan.failed(&self.plan.target.columns[position].name, error)),
                }
            }
            Ok(())
        })
    }

    fn write(
        &self,
        kind: Kind,
        output: &Output,
        parts: &mut Parts<'_>,
        row: &mut RowBuilder<'_>,
    ) -> Result<(), EvaluationError> {
        match kind {
            Kind::New | Kind::Whole => {}
            Kind::Key if output.is_identity => {}
            Kind::Key => {
                row.push(Cell::Null);
                return Ok(());
            }
            Kind::Full if output.is_stable => {}
            Kind::Full => {
                row.push(Cell::Unchanged);
                return Ok(());
            }
            Kind::Deleted if output.is_identity => {}
            Kind::Deleted => match &output.how {
                How::Compute(_) if output.reads.is_empty() => {}
                How::Compute(_) | How::Cell(_) | How::Mask { .. } | How::Fixed { .. } => {
                    row.push(Cell::Unchanged);
                    return Ok(());
                }
            },
        }
        let left_alone = |error: EvaluationError| match error {
            // What is made of nothing but what was left alone was left alone too.
            EvaluationError::Unchanged(_) if kind == Kind::New && self.is_left_alone(output) => Ok(()),
            error => Err(error),
        };
        match &output.how {
            How::Cell(column) => match (kind, self.cell(*column)) {
                (Kind::Whole | Kind::Key | Kind::Full | Kind::Deleted, Cell::Unchanged) => {
                    return Err(EvaluationError::Unchanged(*column));
                }
                (Kind::New, _) => row.push(self.cells[*column]),
                (_, cell) => row.push(cell),
            },
            How::Fixed { column, value: [text, binary] } => row.push(match self.masked_cell(kind, *column) {
                Cell::Null => Cell::Null,
                Cell::Unchanged if kind == Kind::New => Cell::Unchanged,
                Cell::Unchanged => return Err(EvaluationError::Unchanged(*column)),
                Cell::Text(_) | Cell::Binary(_) if parts.binary => Cell::Binary(binary),
                Cell::Text(_) | Cell::Binary(_) => Cell::Text(text),
            }),
            How::Mask { column, mask, of } => match self.masked_text(kind, *column, of, parts)? {
                Masked::Null => row.push(Cell::Null),
                Masked::Unchanged if kind == Kind::New => row.push(Cell::Unchanged),
                Masked::Unchanged => return Err(EvaluationError::Unchanged(*column)),
                Masked::Text(text) => push_masked(mask, text, parts.binary, row),
                Masked::Written => push_masked(mask, parts.text, parts.binary, row),
            },
            How::Compute(expression) => match self.value(expression, parts.metadata) {
                Ok(value) => write_value(&value, parts.binary, parts.text, row),
                Err(error) => {
                    left_alone(error)?;
                    row.push(Cell::Unchanged);
                }
            },
        }
        Ok(())
    }

    fn value<'v>(&'v self, expression: &'v Expression, metadata: &'v Metadata) -> Result<Value<'v>, EvaluationError> {
        let columns = self.cells.len();
        let table = (self.plan.source.namespace.as_str(), self.plan.source.name.as_str());
        expression.evaluate(|index| match index.checked_sub(columns) {
            None => self.cell(index),
            Some(field) => metadata.cell(field, self.op, table),
        })
    }

    #[inline]
    fn cell(&self, column: usize) -> Cell<'a> {
        completed(self.cells, self.old, column)
    }

    /// Every cell that it reads was left alone.
    fn is_left_alone(&self, output: &Output) -> bool {
        output.is_stable && output.reads.iter().all(|&column| self.cells[column] == Cell::Unchanged)
    }

    /// What an update has left alone stays so in its new row.
    fn masked_cell(&self, kind: Kind, column: usize) -> Cell<'a> {
        if kind == Kind::New { self.cells[column] } else { self.cell(column) }
    }

    /// What a mask is given; NULL stays NULL.
    fn masked_text(
        &self,
        kind: Kind,
        column: usize,
        of: &MaskedType,
        parts: &mut Parts<'_>,
    ) -> Result<Masked<'a>, EvaluationError> {
        let bytes = match self.masked_cell(kind, column) {
            Cell::Null => return Ok(Masked::Null),
            Cell::Unchanged => return Ok(Masked::Unchanged),
            Cell::Text(bytes) | Cell::Binary(bytes) => bytes,
        };
        let text = || std::str::from_utf8(bytes).map_err(|_| EvaluationError::Cell(column));
        Ok(match of {
            MaskedType::Any => Masked::Text(""),
            MaskedType::Text => Masked::Text(text()?),
            MaskedType::Padded => Masked::Text(text()?.trim_end_matches(' ')),
            MaskedType::Other(expression) => {
                let value = self.value(expression, parts.metadata)?;
                parts.text.clear();
                match value.to_text(parts.text) {
                    true => Masked::Written,
                    false => Masked::Null,
                }
            }
        })
    }
}

enum Masked<'a> {
    Null,
    Unchanged,
    Text(&'a str),
    /// It is in the workshop's text.
    Written,
}

fn push_masked(mask: &Masking, text: &str, binary: bool, row: &mut RowBuilder<'_>) {
    row.push_with(binary, |out| mask.write(text, out));
}

fn write_value(value: &Value<'_>, binary: bool, text: &mut String, row: &mut RowBuilder<'_>) {
    row.push_with(binary, |out| {
        if binary {
            return value.to_binary(out);
        }
        text.clear();
        let is_value = value.to_text(text);
        out.extend_from_slice(text.as_bytes());
        is_value
    });
}
