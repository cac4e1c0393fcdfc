//! Rows as the bytes that COPY and array parameters take.
//!
//! A value travels as it came. Binary COPY and the elements of a binary array are each a length and the type's send
//! format, which is what the source sent; text COPY needs five bytes escaped; a text array is a binary array of the texts.

use bytes::{BufMut, BytesMut};
use memchr::{memchr, memchr3};
use pgsluice_proto::pgoutput::Cell;

pub(super) const BINARY_SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// No flags, no extension.
const BINARY_HEADER_REST: [u8; 8] = [0; 8];
const BINARY_TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// `text` as a type, for array parameters that are cast in SQL.
pub const TEXT_OID: u32 = 25;

pub fn start_binary_copy(out: &mut BytesMut) {
    out.put_slice(BINARY_SIGNATURE);
    out.put_slice(&BINARY_HEADER_REST);
}

pub fn end_binary_copy(out: &mut BytesMut) {
    out.put_slice(&BINARY_TRAILER);
}

/// A value that the source has left out, as unchanged, is to be written, and nothing may stand for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a value is to be written that the source has left out as unchanged")]
pub struct LeftOut;

/// One row of a binary COPY. None of the cells is text.
///
/// # Errors
/// [`LeftOut`], with part of the row written.
#[inline]
pub fn binary_row<'a>(cells: impl ExactSizeIterator<Item = Cell<'a>>, out: &mut BytesMut) -> Result<(), LeftOut> {
    out.put_u16(cells.len() as u16);
    for cell in cells {
        element(cell, out)?;
    }
    Ok(())
}

/// One row of a text COPY. None of the cells is binary.
///
/// # Errors
/// [`LeftOut`], with part of the row written.
#[inline]
pub fn text_row<'a>(cells: impl Iterator<Item = Cell<'a>>, out: &mut BytesMut) -> Result<(), LeftOut> {
    let mut first = true;
    for cell in cells {
        if !first {
            out.put_u8(b'\t');
        }
        first = false;
        match cell {
            Cell::Null => out.put_slice(b"\\N"),
            Cell::Unchanged => return Err(LeftOut),
            Cell::Text(value) | Cell::Binary(value) => escape(value, out),
        }
    }
    out.put_u8(b'\n');
    Ok(())
}

/// Values rarely hold what must be escaped, so the scan is by whole vectors and the copy by whole runs.
fn escape(value: &[u8], out: &mut BytesMut) {
    let mut rest = value;
    while let Some(at) = next_special(rest) {
        out.put_slice(&rest[..at]);
        out.put_slice(match rest[at] {
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            _ => b"\\t",
        });
        rest = &rest[at + 1..];
    }
    out.put_slice(rest);
}

#[inline]
fn next_special(value: &[u8]) -> Option<usize> {
    let first = memchr3(b'\\', b'\n', b'\t', value);
    let before = &value[..first.unwrap_or(value.len())];
    memchr(b'\r', before).or(first)
}

/// A one-dimensional array in the send format of `array_send`.
///
/// # Errors
/// [`LeftOut`], with part of the array written.
pub fn array<'a>(
    element_oid: u32,
    cells: impl ExactSizeIterator<Item = Cell<'a>>,
    out: &mut BytesMut,
) -> Result<(), LeftOut> {
    let length = cells.len();
    out.put_i32(if length == 0 { 0 } else { 1 });
    let has_null_at = out.len();
    out.put_i32(0);
    out.put_u32(element_oid);
    if length > 0 {
        out.put_i32(length as i32);
        // The lower bound.
        out.put_i32(1);
        let mut has_null = false;
        for cell in cells {
            has_null |= cell == Cell::Null;
            element(cell, out)?;
        }
        out[has_null_at..has_null_at + 4].copy_from_slice(&i32::from(has_null).to_be_bytes());
    }
    Ok(())
}

#[inline]
fn element(cell: Cell<'_>, out: &mut BytesMut) -> Result<(), LeftOut> {
    match cell {
        Cell::Null => out.put_i32(-1),
        Cell::Unchanged => return Err(LeftOut),
        Cell::Text(value) | Cell::Binary(value) => {
            out.put_i32(value.len() as i32);
            out.put_slice(value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(cells: &[Cell<'_>]) -> Vec<u8> {
        let mut out = BytesMut::new();
        text_row(cells.iter().copied(), &mut out).unwrap();
        out.to_vec()
    }

    #[test]
    fn text_copy_escapes_what_would_end_a_field_or_row() {
        assert_eq!(text(&[Cell::Text(b"a"), Cell::Null, Cell::Text(b"")]), b"a\t\\N\t\n");
        assert_eq!(text(&[Cell::Text(b"\\N")]), b"\\\\N\n");
        assert_eq!(text(&[Cell::Text(b"x\ty\nz\r\\.")]), b"x\\ty\\nz\\r\\\\.\n");
    }

    #[test]
    fn binary_copy_is_length_and_value() {
        let mut out = BytesMut::new();
        binary_row([Cell::Binary(b"ab"), Cell::Null].into_iter(), &mut out).unwrap();
        assert_eq!(out.to_vec(), [0, 2, 0, 0, 0, 2, b'a', b'b', 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn arrays_have_one_dimension_from_one() {
        let mut out = BytesMut::new();
        array(23, [Cell::Binary(&[0, 0, 0, 7]), Cell::Null].into_iter(), &mut out).unwrap();
        let words: Vec<_> = out.as_chunks::<4>().0.iter().map(|word| i32::from_be_bytes(*word)).collect();
        assert_eq!(words, [1, 1, 23, 2, 1, 4, 7, -1]);
        let mut out = BytesMut::new();
        array(23, std::iter::empty(), &mut out).unwrap();
        assert_eq!(out.to_vec(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 23]);
    }

    /// It is not NULL on the source, and nobody knows what it is.
    #[test]
    fn a_value_that_was_left_out_is_never_null() {
        let cells = [Cell::Text(b"a"), Cell::Unchanged];
        assert_eq!(text_row(cells.into_iter(), &mut BytesMut::new()), Err(LeftOut));
        assert_eq!(binary_row(cells.into_iter(), &mut BytesMut::new()), Err(LeftOut));
        assert_eq!(array(TEXT_OID, cells.into_iter(), &mut BytesMut::new()), Err(LeftOut));
    }
}
