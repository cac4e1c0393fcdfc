//! Reads the messages of a log one after the other, a block at a time.
//!
//! **Always holds:** in memory are a block and a message, whatever the size of the log.

use std::io;

use crate::storage::{Header, Record};

/// The buffer is given back above this multiple of a block, so that one large row does not stay allocated.
const KEEP_CAPACITY_FACTOR: usize = 4;

#[derive(Debug)]
pub(super) struct Records {
    block_bytes: usize,
    /// Of the log: all before this is read, or in the buffer.
    loaded: u64,
    /// `buffer[at..]` has been loaded and not returned yet.
    buffer: Vec<u8>,
    at: usize,
}

impl Records {
    pub fn new(block_bytes: usize) -> Records {
        Records { block_bytes, loaded: 0, buffer: Vec::new(), at: 0 }
    }

    /// Up to where the log has been returned.
    pub fn position(&self) -> u64 {
        self.loaded - (self.buffer.len() - self.at) as u64
    }

    /// The log has been cut off at this place, which is not before our position.
    pub fn forget_behind(&mut self, place: u64) {
        debug_assert!(place >= self.position(), "what was returned is still there");
        let behind = self.loaded.saturating_sub(place) as usize;
        self.buffer.truncate(self.buffer.len() - behind);
        self.loaded -= behind as u64;
    }

    pub fn bytes(&self, record: Record) -> &[u8] {
        &self.buffer[record.payload]
    }

    /// The next message of a log that ends at `end`; `None` if all have been returned. `load` appends what lies in the block at a
    /// position, from there on.
    #[inline]
    pub fn next(
        &mut self,
        end: u64,
        mut load: impl FnMut(u64, &mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<Option<Record>> {
        loop {
            let unread = &self.buffer[self.at..];
            let needed = match Header::read(unread) {
                Some((header, header_bytes)) => {
                    let start = self.at + header_bytes;
                    let end = start + header.payload_bytes;
                    if end <= self.buffer.len() {
                        self.at = end;
                        return Ok(Some(Record { header, payload: start..end }));
                    }
                    end - self.at
                }
                None if unread.is_empty() && self.loaded == end => return Ok(None),
                None => 0,
            };
            if self.loaded == end {
                return Err(invalid("a message ends amid it; this is a bug in pgsluice"));
            }
            self.make_room(needed);
            let before = self.buffer.len();
            load(self.loaded, &mut self.buffer)?;
            self.loaded += (self.buffer.len() - before) as u64;
        }
    }

    /// For a block more, where so many bytes are needed from where is read.
    #[cold]
    fn make_room(&mut self, needed: usize) {
        self.buffer.drain(..self.at);
        self.at = 0;
        if self.buffer.capacity() > KEEP_CAPACITY_FACTOR * self.block_bytes && needed <= self.block_bytes {
            self.buffer.shrink_to(KEEP_CAPACITY_FACTOR * self.block_bytes);
        }
        let wanted = needed.max(self.buffer.len()) + self.block_bytes;
        self.buffer.reserve_exact(wanted - self.buffer.len());
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
