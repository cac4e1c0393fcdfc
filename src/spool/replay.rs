//! A streamed transaction that has committed, message by message, as if it had just arrived: Begin, what was kept, Commit.
//!
//! **Always holds:** in memory are a block and a message, whatever the transaction's size; and those of its blocks that never
//! went to disk, which are given back as they are read.

use std::io;

use pgsluice_proto::Lsn;
use pgsluice_proto::pgoutput::StreamCommit;

use super::log::Log;
use crate::decode::Arrival;
use crate::storage::{Header, Record};

/// The buffer is given back above this multiple of a block, so that one large row does not stay allocated.
const KEEP_CAPACITY_FACTOR: usize = 4;

#[derive(Debug)]
pub struct Replay {
    commit: StreamCommit,
    stage: Stage,
    log: Log,
    block_bytes: usize,
    next_block: u64,
    /// `buffer[at..]` has been read and not returned yet.
    buffer: Vec<u8>,
    at: usize,
    scratch: Vec<u8>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    Messages,
    Ended,
}

/// A message as it is to be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed<'a> {
    pub lsn: Lsn,
    /// Of a Relation: when it came.
    pub arrival: Option<Arrival>,
    pub payload: &'a [u8],
}

impl Replay {
    pub(super) fn new(commit: StreamCommit, log: Log, block_bytes: usize) -> Replay {
        Replay {
            commit,
            stage: Stage::Begin,
            log,
            block_bytes,
            next_block: 0,
            buffer: Vec::new(),
            at: 0,
            scratch: Vec::new(),
        }
    }

    /// The Commit has been returned.
    pub fn has_ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// The next message; after the Commit, an empty one.
    ///
    /// # Errors
    /// If the file cannot be read, or does not hold what was written.
    pub fn read(&mut self) -> io::Result<Replayed<'_>> {
        match self.stage {
            Stage::Begin => {
                self.stage = Stage::Messages;
                self.scratch.clear();
                self.commit.begin().encode(&mut self.scratch);
                Ok(self.made())
            }
            Stage::Messages => match self.next_record()? {
                Some(record) => Ok(Replayed {
                    lsn: record.header.lsn,
                    arrival: record.header.arrival,
                    payload: &self.buffer[record.payload],
                }),
                None => {
                    self.stage = Stage::Ended;
                    self.scratch.clear();
                    self.commit.commit().encode(&mut self.scratch);
                    Ok(self.made())
                }
            },
            Stage::Ended => Ok(Replayed { lsn: self.commit.commit_lsn, arrival: None, payload: &[] }),
        }
    }

    fn made(&self) -> Replayed<'_> {
        Replayed { lsn: self.commit.commit_lsn, arrival: None, payload: &self.scratch }
    }

    #[inline]
    fn next_record(&mut self) -> io::Result<Option<Record>> {
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
                None if unread.is_empty() && self.next_block == self.log.blocks() => return Ok(None),
                None => 0,
            };
            self.load(needed)?;
        }
    }

    /// Appends the next block to the buffer, which comes to need so many bytes from where it is read.
    #[cold]
    fn load(&mut self, needed: usize) -> io::Result<()> {
        if self.next_block == self.log.blocks() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a message ends amid it; this is a bug in pgsluice",
            ));
        }
        self.buffer.drain(..self.at);
        self.at = 0;
        if self.buffer.capacity() > KEEP_CAPACITY_FACTOR * self.block_bytes && needed <= self.block_bytes {
            self.buffer.shrink_to(KEEP_CAPACITY_FACTOR * self.block_bytes);
        }
        let wanted = needed.max(self.buffer.len()) + self.block_bytes;
        self.buffer.reserve_exact(wanted - self.buffer.len());
        self.log.take(self.next_block, &mut self.buffer, &mut self.scratch)?;
        self.next_block += 1;
        Ok(())
    }
}
