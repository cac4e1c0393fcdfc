//! The segment that is written: blocks are made, written, synced, in this order.
//!
//! ```text
//!  0 ────────── synced ────────── written ────────── made
//!                          boundary: behind the last block that ends with a transaction
//! ```
//!
//! **Always holds:** what could not be written is kept as it is, and written again at the same place. So no block is encrypted twice.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use pgsluice_proto::Lsn;

use super::dir::{Dir, failed};
use super::format::{BlockHeader, EndMark, Header, Kind, Origin, Seal, encode_block};
use crate::error::Error;

/// What all segments say alike.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub origin: Origin,
    pub history: Vec<(u32, u64)>,
    pub timeline: u32,
}

/// A segment that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub number: u64,
    pub starts_at: Lsn,
    pub bytes: u64,
}

#[derive(Debug)]
pub(super) struct Current {
    header: Header,
    file: File,
    seal: Option<Seal>,
    next_block: u64,
    written: u64,
    synced: u64,
    /// Blocks that are made, and not written.
    pending: Vec<u8>,
    /// Behind the last block that is made.
    end: Lsn,
    is_open: bool,
    boundary: EndMark,
}

impl Current {
    /// Goes on behind so many blocks and bytes, which end at this LSN and are synced.
    pub fn open(
        path: &Path,
        header: Header,
        seal: Option<Seal>,
        (next_block, end, bytes): (u64, Lsn, u64),
    ) -> Result<Current, Error> {
        let file = OpenOptions::new().write(true).open(path).map_err(|error| failed(path, "open", error))?;
        let boundary = EndMark { segment: header.number, offset: bytes, lsn: end };
        let (pending, is_open) = (Vec::new(), false);
        Ok(Current { header, file, seal, next_block, written: bytes, synced: bytes, pending, end, is_open, boundary })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    pub fn number(&self) -> u64 {
        self.header.number
    }

    pub fn starts_at(&self) -> Lsn {
        self.header.starts_at()
    }

    pub fn end(&self) -> Lsn {
        self.end
    }

    /// That it has, or will have with what is made.
    pub fn bytes(&self) -> u64 {
        self.written + self.pending.len() as u64
    }

    pub fn unsynced(&self) -> u64 {
        self.bytes() - self.synced
    }

    pub fn is_written(&self) -> bool {
        self.pending.is_empty()
    }

    /// Amid a transaction.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// All of it is whole, and synced.
    pub fn is_at_boundary(&self) -> bool {
        self.boundary.offset == self.bytes() && self.unsynced() == 0
    }

    pub fn kept(&self) -> Kept {
        Kept { number: self.number(), starts_at: self.starts_at(), bytes: self.bytes() }
    }

    pub fn make_block(&mut self, kind: Kind, transactions: u32, end: Lsn, payload: &[u8]) {
        let (number, start) = (self.next_block, self.end);
        let header = BlockHeader { payload_bytes: 0, kind, number, transactions, start, end };
        encode_block(header, payload, self.seal.as_ref(), &mut self.pending);
        self.next_block += 1;
        self.end = end;
        self.is_open = !kind.is_boundary();
        if kind.is_boundary() {
            self.boundary = EndMark { segment: self.number(), offset: self.bytes(), lsn: end };
        }
    }

    pub fn write(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.file.write_all_at(&self.pending, self.written)?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Syncs what is written, which is all that is made. Returns up to where it is whole.
    pub fn sync(&mut self, dir: &Dir) -> Result<EndMark, Error> {
        debug_assert!(self.is_written(), "whoever calls has written");
        if self.synced < self.written {
            if let Err(error) = self.file.sync_data() {
                // Linux takes what it could not write for written from then on, and the next sync would succeed. So it must not be there
                // any more. It was not confirmed, and comes again.
                self.file
                    .set_len(self.synced)
                    .map_err(|error| failed(&dir.segment(self.number()), "truncate", error))?;
                return Err(failed(&dir.segment(self.number()), "sync", error));
            }
            self.synced = self.written;
        }
        Ok(self.boundary)
    }
}
