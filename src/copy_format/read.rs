//! The rows of a COPY, out of bytes that come in pieces.

use pgsluice_proto::pgoutput::Cell;

use super::write::BINARY_SIGNATURE;

/// What the beginning of the bytes is.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// A row of so many bytes, whose cells are in the list.
    Row(usize),
    /// A header or trailer of so many bytes.
    Other(usize),
    /// Not all of a row.
    NeedsMore,
}

/// What came is no COPY of rows with this many columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads a row of a binary COPY. `is_first` until something was read.
pub fn binary_row<'a>(
    bytes: &'a [u8],
    is_first: bool,
    columns: usize,
    cells: &mut Vec<Cell<'a>>,
) -> Result<Read, Malformed> {
    /// Behind the signature: flags, and the length of what extends the header.
    const REST: usize = 8;
    if is_first {
        let Some((header, rest)) = bytes.split_at_checked(BINARY_SIGNATURE.len()) else { return Ok(Read::NeedsMore) };
        if header != BINARY_SIGNATURE {
            return Err(Malformed);
        }
        let Some(length) = rest.get(4..REST).and_then(|length| length.try_into().ok()) else {
            return Ok(Read::NeedsMore);
        };
        let extension = usize::try_from(i32::from_be_bytes(length)).map_err(|_| Malformed)?;
        let total = BINARY_SIGNATURE.len() + REST + extension;
        return Ok(if bytes.len() < total { Read::NeedsMore } else { Read::Other(total) });
    }
    cells.clear();
    let Some((count, mut rest)) = bytes.split_first_chunk::<2>() else { return Ok(Read::NeedsMore) };
    match i16::from_be_bytes(*count) {
        -1 => return Ok(Read::Other(2)),
        count if usize::try_from(count) != Ok(columns) => return Err(Malformed),
        _ => {}
    }
    for _ in 0..columns {
        let Some((length, after)) = rest.split_first_chunk::<4>() else { return Ok(Read::NeedsMore) };
        rest = after;
        let length = i32::from_be_bytes(*length);
        if length == -1 {
            cells.push(Cell::Null);
            continue;
        }
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        let Some((value, after)) = rest.split_at_checked(length) else { return Ok(Read::NeedsMore) };
        cells.push(Cell::Binary(value));
        rest = after;
    }
    Ok(Read::Row(bytes.len() - rest.len()))
}

/// The fields of a text row, free of escapes: their bytes one after the other, and where each ends; `None` for NULL.
#[derive(Debug, Default)]
pub struct TextFields {
    bytes: Vec<u8>,
    ends: Vec<(usize, bool)>,
    /// So many bytes of the row that is not all there yet hold no end of it.
    searched: usize,
}

impl TextFields {
    /// Reads a row of a text COPY. After [`Read::NeedsMore`] the same bytes come again, and more.
    pub fn read(&mut self, bytes: &[u8], columns: usize) -> Result<Read, Malformed> {
        let searched = std::mem::take(&mut self.searched);
        let Some(end) = memchr::memchr(b'\n', &bytes[searched..]) else {
            self.searched = bytes.len();
            return Ok(Read::NeedsMore);
        };
        let end = searched + end;
        self.bytes.clear();
        self.ends.clear();
        let line = &bytes[..end];
        for field in line.split(|byte| *byte == b'\t') {
            let is_null = field == b"\\N";
            if !is_null {
                self.unescape(field)?;
            }
            self.ends.push((self.bytes.len(), is_null));
        }
        if self.ends.len() != columns { Err(Malformed) } else { Ok(Read::Row(end + 1)) }
    }

    fn unescape(&mut self, field: &[u8]) -> Result<(), Malformed> {
        let mut rest = field;
        while let Some(at) = memchr::memchr(b'\\', rest) {
            self.bytes.extend_from_slice(&rest[..at]);
            // What `CopyAttributeOutText` writes; it never writes a number.
            self.bytes.push(match rest.get(at + 1).ok_or(Malformed)? {
                b'b' => 0x08,
                b'f' => 0x0c,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'v' => 0x0b,
                b'\\' => b'\\',
                _ => return Err(Malformed),
            });
            rest = &rest[at + 2..];
        }
        self.bytes.extend_from_slice(rest);
        Ok(())
    }

    pub fn cells(&self) -> impl Iterator<Item = Cell<'_>> {
        let mut start = 0;
        self.ends.iter().map(move |(end, is_null)| {
            let value = &self.bytes[start..*end];
            start = *end;
            if *is_null { Cell::Null } else { Cell::Text(value) }
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::super::write;
    use super::*;

    const ROWS: [&[&[u8]]; 2] = [&[b"a\tb\\\n\r", b"", b"\\N"], &[b"\xc3\xa9", b"2", b"."]];

    #[test]
    fn text_comes_back_as_it_was_written_however_it_is_cut() {
        let mut out = BytesMut::new();
        for row in ROWS {
            write::text_row(row.iter().map(|value| Cell::Text(value)).chain([Cell::Null]), &mut out).unwrap();
        }
        let mut fields = TextFields::default();
        let mut rest = &out[..];
        for row in ROWS {
            let length = memchr::memchr(b'\n', rest).unwrap() + 1;
            for cut in 0..length {
                assert_eq!(fields.read(&rest[..cut], 4), Ok(Read::NeedsMore));
            }
            assert_eq!(fields.read(rest, 4), Ok(Read::Row(length)));
            let expected: Vec<_> = row.iter().map(|value| Cell::Text(value)).chain([Cell::Null]).collect();
            assert_eq!(fields.cells().collect::<Vec<_>>(), expected);
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
        assert_eq!(fields.read(b"a\tb\n", 3), Err(Malformed));
        assert_eq!(fields.read(b"\\q\n", 1), Err(Malformed));
        assert_eq!(fields.read(b"\\b\\f\\v\n", 1), Ok(Read::Row(7)));
        assert_eq!(fields.cells().collect::<Vec<_>>(), [Cell::Text(b"\x08\x0c\x0b")]);
    }

    #[test]
    fn binary_comes_back_as_it_was_written_however_it_is_cut() {
        let mut out = BytesMut::new();
        write::start_binary_copy(&mut out);
        for row in ROWS {
            let cells: Vec<_> = row.iter().map(|value| Cell::Binary(value)).chain([Cell::Null]).collect();
            write::binary_row(cells.into_iter(), &mut out).unwrap();
        }
        write::end_binary_copy(&mut out);
        let mut rest = &out[..];
        let mut seen = Vec::new();
        let mut is_first = true;
        while !rest.is_empty() {
            let mut cells = Vec::new();
            let length = match binary_row(rest, is_first, 4, &mut cells).unwrap() {
                Read::Row(length) => {
                    seen.push(cells.clone());
                    length
                }
                Read::Other(length) => length,
                Read::NeedsMore => panic!("all of it is there"),
            };
            for cut in 0..length {
                assert_eq!(binary_row(&rest[..cut], is_first, 4, &mut Vec::new()), Ok(Read::NeedsMore));
            }
            (rest, is_first) = (&rest[length..], false);
        }
        for (cells, row) in seen.iter().zip(ROWS) {
            let expected: Vec<_> = row.iter().map(|value| Cell::Binary(value)).chain([Cell::Null]).collect();
            assert_eq!(*cells, expected);
        }
        assert_eq!(seen.len(), ROWS.len());
        assert_eq!(binary_row(b"\0\x03", false, 4, &mut Vec::new()), Err(Malformed));
        assert_eq!(binary_row(b"no COPY at all", true, 4, &mut Vec::new()), Err(Malformed));
    }
}
