//! Rows in an arena: their bytes one after the other as they came, their cells as offsets.

use pgsluice_proto::pgoutput::{Cell, Tuple};

/// Where a row lies in its [`Rows`]: a run of cells.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    first_cell: u32,
    cells: u16,
    kinds: Kinds,
}

/// Where a cell's value lies in the arena. A value is below 1 GiB, so its length leaves two bits for the kind.
#[derive(Clone, Copy, Debug)]
struct StoredCell {
    start: u32,
    kind_and_length: u32,
}

const KIND_SHIFT: u32 = 30;
const LENGTH_MASK: u32 = (1 << KIND_SHIFT) - 1;
const NULL: u32 = 0;
const UNCHANGED: u32 = 1;
const TEXT: u32 = 2;
const BINARY: u32 = 3;

/// Which kinds of cells a row has, found while it is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u8);

impl Kinds {
    fn add(&mut self, kind: u32) {
        self.0 |= 1 << kind;
    }

    pub fn union(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }

    pub fn has_unchanged(self) -> bool {
        self.0 & 1 << UNCHANGED != 0
    }

    pub fn has_text(self) -> bool {
        self.0 & 1 << TEXT != 0
    }

    pub fn has_binary(self) -> bool {
        self.0 & 1 << BINARY != 0
    }
}

/// Rows in memory that is used again.
#[derive(Debug, Default)]
pub struct Rows {
    arena: Vec<u8>,
    cells: Vec<StoredCell>,
}

impl Rows {
    pub fn clear(&mut self, keep_bytes: usize) {
        self.arena.clear();
        self.arena.shrink_to(keep_bytes);
        self.cells.clear();
        self.cells.shrink_to(keep_bytes / size_of::<StoredCell>());
    }

    /// Bytes that the rows take.
    pub fn bytes(&self) -> usize {
        self.arena.len() + self.cells.len() * size_of::<StoredCell>()
    }

    #[inline]
    pub fn push(&mut self, tuple: &Tuple<'_>) -> Span {
        let encoded = tuple.encoded();
        let base = self.arena.len();
        self.arena.extend_from_slice(encoded);
        // Batches are bounded by 256 MiB and one message of at most 1 GiB, so offsets fit.
        assert!(self.arena.len() <= u32::MAX as usize, "an arena is addressed by 32 bits");
        let first_cell = self.cells.len() as u32;
        let mut cells = tuple.cells();
        self.cells.reserve(cells.len());
        let mut kinds = Kinds::default();
        while let Some(cell) = cells.next() {
            let end = base + encoded.len() - cells.remaining_bytes();
            let (kind, length) = match cell {
                Cell::Null => (NULL, 0),
                Cell::Unchanged => (UNCHANGED, 0),
                Cell::Text(value) => (TEXT, value.len()),
                Cell::Binary(value) => (BINARY, value.len()),
            };
            kinds.add(kind);
            let kind_and_length = kind << KIND_SHIFT | length as u32;
            self.cells.push(StoredCell { start: (end - length) as u32, kind_and_length });
        }
        Span { first_cell, cells: tuple.len() as u16, kinds }
    }

    /// Makes a row cell by cell. After an error nothing of it is left.
    pub fn build<E>(&mut self, write: impl FnOnce(&mut RowBuilder<'_>) -> Result<(), E>) -> Result<Span, E> {
        let (first_byte, first_cell) = (self.arena.len(), self.cells.len());
        let mut builder = RowBuilder { rows: self, kinds: Kinds::default() };
        let written = write(&mut builder);
        let kinds = builder.kinds;
        if let Err(error) = written {
            self.arena.truncate(first_byte);
            self.cells.truncate(first_cell);
            return Err(error);
        }
        Ok(Span { first_cell: first_cell as u32, cells: (self.cells.len() - first_cell) as u16, kinds })
    }

    #[inline]
    pub fn row(&self, span: Span) -> Row<'_> {
        let first = span.first_cell as usize;
        let cells = &self.cells[first..first + usize::from(span.cells)];
        Row { arena: &self.arena, cells, kinds: span.kinds }
    }
}

/// A row that is being made.
#[derive(Debug)]
pub struct RowBuilder<'r> {
    rows: &'r mut Rows,
    kinds: Kinds,
}

impl RowBuilder<'_> {
    /// Adds a cell as it came.
    #[inline]
    pub fn push(&mut self, cell: Cell<'_>) {
        let start = self.rows.arena.len();
        let kind = match cell {
            Cell::Null => NULL,
            Cell::Unchanged => UNCHANGED,
            Cell::Text(value) => {
                self.rows.arena.extend_from_slice(value);
                TEXT
            }
            Cell::Binary(value) => {
                self.rows.arena.extend_from_slice(value);
                BINARY
            }
        };
        self.add(kind, start);
    }

    /// Adds a cell whose value is written in place, in binary or in text; NULL where `write` says false.
    pub fn push_with(&mut self, is_binary: bool, write: impl FnOnce(&mut Vec<u8>) -> bool) {
        let start = self.rows.arena.len();
        let kind = match write(&mut self.rows.arena) {
            false => NULL,
            true if is_binary => BINARY,
            true => TEXT,
        };
        self.add(kind, start);
    }

    #[inline]
    fn add(&mut self, kind: u32, start: usize) {
        let end = self.rows.arena.len();
        assert!(end <= u32::MAX as usize, "an arena is addressed by 32 bits");
        assert!(end - start <= LENGTH_MASK as usize, "a value is below 1 GiB");
        self.kinds.add(kind);
        let kind_and_length = kind << KIND_SHIFT | (end - start) as u32;
        self.rows.cells.push(StoredCell { start: start as u32, kind_and_length });
    }
}

/// One row in a batch.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    arena: &'a [u8],
    cells: &'a [StoredCell],
    kinds: Kinds,
}

/// What is known of a row as it was.
#[derive(Clone, Copy, Debug)]
pub enum OldRow<'a> {
    /// The replica identity; the other cells mean nothing.
    Key(Row<'a>),
    Full(Row<'a>),
}

impl<'a> Row<'a> {
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The value of the column with this position in the relation.
    #[inline]
    pub fn cell(&self, column: usize) -> Cell<'a> {
        let StoredCell { start, kind_and_length } = self.cells[column];
        let start = start as usize;
        let value = start..start + (kind_and_length & LENGTH_MASK) as usize;
        match kind_and_length >> KIND_SHIFT {
            NULL => Cell::Null,
            UNCHANGED => Cell::Unchanged,
            TEXT => Cell::Text(&self.arena[value]),
            BINARY.. => Cell::Binary(&self.arena[value]),
        }
    }

    pub fn kinds(&self) -> Kinds {
        self.kinds
    }

    pub fn cells(&self) -> impl ExactSizeIterator<Item = Cell<'a>> + use<'a> {
        let row = *self;
        (0..row.len()).map(move |column| row.cell(column))
    }

    /// Bytes of all values.
    pub fn value_bytes(&self) -> usize {
        self.cells.iter().map(|cell| (cell.kind_and_length & LENGTH_MASK) as usize).sum()
    }
}

impl<'a> OldRow<'a> {
    pub fn row(&self) -> Row<'a> {
        match *self {
            OldRow::Key(row) | OldRow::Full(row) => row,
        }
    }
}

impl std::fmt::Debug for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.cells()).finish()
    }
}
