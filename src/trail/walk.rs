//! The blocks of one segment in their order, and that they follow each other.
//!
//! ```text
//!  header ──► Descriptions? ──► Part* Whole │ Whole │ Position …
//! ```
//!
//! **Always holds:** blocks are numbered without a gap, and each starts at the LSN at which the one before it ends. A position
//! never lies amid a transaction.

use pgsluice_proto::Lsn;

use super::format::{BlockHeader, Fault, Header, Kind};

/// Where a segment has been followed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Of the next block in the file.
    pub offset: u64,
    next_number: u64,
    /// All before this is in the blocks so far.
    pub end: Lsn,
    /// Amid a transaction.
    pub is_open: bool,
    pub transactions: u64,
}

impl Walk {
    /// Behind a header of so many bytes.
    pub fn begin(header: &Header, header_bytes: usize) -> Walk {
        let end = header.starts_at();
        Walk { offset: header_bytes as u64, next_number: 0, end, is_open: false, transactions: 0 }
    }

    pub fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Goes past a block.
    pub fn pass(&mut self, block: &BlockHeader) -> Result<(), Fault> {
        let fault = |what| Err(Fault { offset: self.offset, what });
        if block.number != self.next_number {
            return fault("a block is missing, or one comes again");
        }
        if block.start != self.end {
            return fault("a block does not start where the one before it ends");
        }
        let fits = match block.kind {
            Kind::Descriptions => block.number == 0 && block.end == block.start && block.transactions == 0,
            Kind::Part => block.end == block.start && block.transactions == 0,
            Kind::Whole => block.end >= block.start && (block.end > block.start) == (block.transactions > 0),
            Kind::Position => !self.is_open && block.end > block.start && block.transactions == 0,
        };
        if !fits {
            return fault("a block says of itself what cannot be");
        }
        *self = Walk {
            offset: self.offset + block.total_bytes(),
            next_number: self.next_number + 1,
            end: block.end,
            is_open: !block.kind.is_boundary(),
            transactions: self.transactions + u64::from(block.transactions),
        };
        Ok(())
    }
}
