//! Rows: a count of columns, then one cell a column.

use crate::cursor::Cursor;
use crate::{DecodeError, DecodeErrorKind};

/// One column's value in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    Null,
    /// A TOASTed value that the update did not touch: the source does not send it, and it is not NULL.
    Unchanged,
    /// The output of the type's text output function, in the session's encoding and settings.
    Text(&'a [u8]),
    /// The output of the type's send function.
    Binary(&'a [u8]),
}

/// A row as it came, checked to be whole. Its cells are read in place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    columns: u16,
    cells: &'a [u8],
}

const NULL: u8 = b'n';
const UNCHANGED: u8 = b'u';
const TEXT: u8 = b't';
const BINARY: u8 = b'b';

impl<'a> Tuple<'a> {
    #[inline(always)]
    pub(super) fn decode(cursor: &mut Cursor<'a>) -> Result<Tuple<'a>, DecodeError> {
        let columns = cursor.u16("tuple column count")?;
        match encoded_length(columns, cursor.unread()) {
            Some(length) => Ok(Tuple { columns, cells: cursor.bytes("tuple cells", length)? }),
            None => Tuple::decode_by_field(columns, cursor),
        }
    }

    /// The same cell by cell and field by field, so that an error says which byte is at fault.
    #[cold]
    #[inline(never)]
    fn decode_by_field(columns: u16, cursor: &mut Cursor<'a>) -> Result<Tuple<'a>, DecodeError> {
        let start = cursor.offset();
        for _ in 0..columns {
            match cursor.u8("tuple cell")? {
                NULL | UNCHANGED => {}
                TEXT | BINARY => {
                    let length = cursor.length("tuple cell length")?;
                    cursor.bytes("tuple cell value", length)?;
                }
                tag => return Err(cursor.error_back(1, DecodeErrorKind::UnknownTag { field: "tuple cell", tag })),
            }
        }
        Ok(Tuple { columns, cells: cursor.since(start) })
    }

    /// Number of cells.
    pub fn len(&self) -> usize {
        self.columns.into()
    }

    /// A table may have no columns at all.
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The cells, in the order of the relation's columns.
    pub fn cells(&self) -> Cells<'a> {
        Cells { left: self.columns, rest: self.cells }
    }

    /// The cells as they came, tags and lengths included.
    pub fn encoded(&self) -> &'a [u8] {
        self.cells
    }
}

/// Bytes that this number of cells take at the start of `input`, or `None` if they are not whole. This walk is most of what
/// decoding a row costs, and it is short because it does not know how to report a fault.
#[inline]
fn encoded_length(columns: u16, input: &[u8]) -> Option<usize> {
    let mut rest = input;
    for _ in 0..columns {
        let (&tag, after_tag) = rest.split_first()?;
        rest = match tag {
            NULL | UNCHANGED => after_tag,
            TEXT | BINARY => {
                let (length, after_length) = after_tag.split_first_chunk::<4>()?;
                after_length.get(usize::try_from(i32::from_be_bytes(*length)).ok()?..)?
            }
            _ => return None,
        };
    }
    Some(input.len() - rest.len())
}

impl std::fmt::Debug for Tuple<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.cells()).finish()
    }
}

/// The cells of a [`Tuple`].
#[derive(Clone, Debug)]
pub struct Cells<'a> {
    left: u16,
    rest: &'a [u8],
}

impl Cells<'_> {
    /// Bytes of [`Tuple::encoded`] that are still to be read. Right after a value was returned, it ends here.
    pub fn remaining_bytes(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    #[inline]
    fn next(&mut self) -> Option<Cell<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (&tag, rest) = self.rest.split_first().expect("Tuple::decode has counted the cells");
        if tag == NULL || tag == UNCHANGED {
            self.rest = rest;
            return Some(if tag == NULL { Cell::Null } else { Cell::Unchanged });
        }
        let (length, rest) = rest.split_first_chunk::<4>().expect("Tuple::decode has checked the lengths");
        let (value, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        self.rest = rest;
        Some(if tag == TEXT { Cell::Text(value) } else { Cell::Binary(value) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left.into(), Some(self.left.into()))
    }
}

impl ExactSizeIterator for Cells<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lsn;

    #[test]
    fn both_walks_agree_on_every_cut_and_every_changed_byte() {
        let whole = b"\x00\x05nut\x00\x00\x00\x02hib\x00\x00\x00\x00";
        let agree = |input: &[u8]| {
            let mut cursor = Cursor::new(Lsn::INVALID, input);
            let Ok(columns) = cursor.u16("tuple column count") else { return };
            let short = encoded_length(columns, cursor.unread());
            let by_field = Tuple::decode_by_field(columns, &mut cursor);
            assert_eq!(short, by_field.ok().map(|tuple| tuple.encoded().len()), "{input:?}");
        };
        for cut in 0..=whole.len() {
            agree(&whole[..cut]);
        }
        for index in 0..whole.len() {
            for byte in 0..=u8::MAX {
                let mut changed = whole.to_vec();
                changed[index] = byte;
                agree(&changed);
            }
        }
    }
}
