//! A streamed transaction that has committed, message by message, as if it had just arrived: Begin, what was kept, Commit.
//!
//! **Always holds:** those of its blocks that never went to disk are given back as they are read.

use std::io;

use pgsluice_proto::Lsn;
use pgsluice_proto::pgoutput::StreamCommit;

use super::log::Log;
use super::records::Records;
use crate::decode::Arrival;

#[derive(Debug)]
pub struct Replay {
    commit: StreamCommit,
    stage: Stage,
    log: Log,
    block_bytes: u64,
    records: Records,
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
            block_bytes: block_bytes as u64,
            records: Records::new(block_bytes),
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
            Stage::Messages => {
                let Replay { log, block_bytes, records, scratch, .. } = self;
                let end = log.length();
                let take = |position: u64, out: &mut Vec<u8>| log.take(position / *block_bytes, out, scratch);
                let Some(record) = records.next(end, take)? else {
                    self.stage = Stage::Ended;
                    self.scratch.clear();
                    self.commit.commit().encode(&mut self.scratch);
                    return Ok(self.made());
                };
                let (lsn, arrival) = (record.header.lsn, record.header.arrival);
                Ok(Replayed { lsn, arrival, payload: self.records.bytes(record) })
            }
            Stage::Ended => Ok(Replayed { lsn: self.commit.commit_lsn, arrival: None, payload: &[] }),
        }
    }

    fn made(&self) -> Replayed<'_> {
        Replayed { lsn: self.commit.commit_lsn, arrival: None, payload: &self.scratch }
    }
}
