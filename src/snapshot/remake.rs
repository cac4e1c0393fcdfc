//! Rows of a COPY as rules have them: those of the source come in, those of the target go out.

use bytes::{Buf, BytesMut};
use pgsluice_proto::Lsn;
use pgsluice_proto::pgoutput::Cell;

use super::{STAGE, Wanted};
use crate::batch::{Rows, Span};
use crate::config::Role;
use crate::copy_format::read::{Malformed, Read, TextFields, binary_row};
use crate::copy_format::write::{self, LeftOut};
use crate::error::{Error, Kind};
use crate::transform::{self, Metadata, Plan, Workshop};

/// An arena keeps at most this much between rows.
const KEEP_BYTES: usize = 1024 * 1024;

/// One chunk's rows on their way.
#[derive(Debug)]
pub(super) struct Remake<'a> {
    plan: &'a Plan,
    binary: bool,
    /// The column of the relation that each field of a row is of.
    positions: Vec<usize>,
    columns: usize,
    workshop: Workshop,
    fields: TextFields,
    rows: Rows,
    is_first: bool,
    rows_read: u64,
    rows_written: u64,
}

impl<'a> Remake<'a> {
    pub fn new(plan: &'a Plan, wanted: &Wanted, snapshot_lsn: Lsn) -> Remake<'a> {
        Remake {
            plan,
            binary: wanted.binary,
            positions: plan.needed(),
            columns: plan.source().columns.len(),
            workshop: Workshop::new(Metadata::of_copy(snapshot_lsn), wanted.binary),
            fields: TextFields::default(),
            rows: Rows::default(),
            is_first: true,
            rows_read: 0,
            rows_written: 0,
        }
    }

    /// Of those that were read, the rows that the rules keep.
    pub fn rows_written(&self) -> u64 {
        self.rows_written
    }

    /// # Errors
    /// If the source has sent another number of rows than were read.
    pub fn check_rows(&self, sent: u64) -> Result<(), Error> {
        if self.rows_read == sent { Ok(()) } else { Err(malformed()) }
    }

    /// Takes the rows that are whole from `read`, and adds to `written` what they become.
    pub fn rows(&mut self, read: &mut BytesMut, is_end: bool, written: &mut BytesMut) -> Result<(), Error> {
        let mut taken = 0;
        while taken < read.len() {
            match self.row(&read[taken..], written)? {
                0 => break,
                length => taken += length,
            }
        }
        read.advance(taken);
        if is_end && !read.is_empty() { Err(malformed()) } else { Ok(()) }
    }

    /// Returns the bytes that were taken; 0 where they are not whole.
    fn row(&mut self, bytes: &[u8], written: &mut BytesMut) -> Result<usize, Error> {
        let fields = self.positions.len();
        if !self.binary {
            return match self.fields.read(bytes, fields).map_err(|Malformed| malformed())? {
                Read::NeedsMore => Ok(0),
                Read::Other(length) => Ok(length),
                Read::Row(length) => {
                    let cells = whole(&self.positions, self.columns, self.fields.cells());
                    self.rows_read += 1;
                    if let Some(row) = made(self.plan, &cells, &mut self.workshop, &mut self.rows)? {
                        self.rows_written += 1;
                        write::text_row(self.rows.row(row).cells(), written).map_err(left_out)?;
                    }
                    Ok(length)
                }
            };
        }
        let mut cells = Vec::with_capacity(fields);
        match binary_row(bytes, self.is_first, fields, &mut cells).map_err(|Malformed| malformed())? {
            Read::NeedsMore => Ok(0),
            Read::Other(length) => {
                if self.is_first {
                    write::start_binary_copy(written)
                } else {
                    write::end_binary_copy(written)
                }
                self.is_first = false;
                Ok(length)
            }
            Read::Row(length) => {
                let cells = whole(&self.positions, self.columns, cells.into_iter());
                self.rows_read += 1;
                if let Some(row) = made(self.plan, &cells, &mut self.workshop, &mut self.rows)? {
                    self.rows_written += 1;
                    write::binary_row(self.rows.row(row).cells(), written).map_err(left_out)?;
                }
                Ok(length)
            }
        }
    }
}

/// The cells of the relation. Those that were not read nobody looks at.
fn whole<'c>(positions: &[usize], columns: usize, cells: impl Iterator<Item = Cell<'c>>) -> Vec<Cell<'c>> {
    let mut all = vec![Cell::Null; columns];
    positions.iter().zip(cells).for_each(|(&position, cell)| all[position] = cell);
    all
}

fn made(plan: &Plan, cells: &[Cell<'_>], workshop: &mut Workshop, rows: &mut Rows) -> Result<Option<Span>, Error> {
    rows.clear(KEEP_BYTES);
    plan.copied(cells, workshop, rows).map_err(|error| transform::row_failed(plan, error))
}

fn left_out(error: LeftOut) -> Error {
    Error::new(STAGE, Kind::Protocol { role: Role::Source, what: error.to_string() })
}

fn malformed() -> Error {
    let what = "a COPY whose rows are not those that were asked for".to_owned();
    Error::new(STAGE, Kind::Protocol { role: Role::Source, what })
}
