//! Transactions in progress, until they commit or abort: in memory as far as they fit, beyond that on disk.
//!
//! In: the messages of streamed transactions, segment by segment, each without the xid that streaming puts into it. Out: a
//! [`Replay`] of each transaction that commits, as if it had come all at once and only then.
//!
//! ```text
//!                            ┌─ subtransaction aborts: cut off where it began
//!  part ──► log of its transaction ──commit──► Replay: Begin, the messages, Commit ──► decode
//!              │        │    └─ abort: dropped
//!              │        └─ followed: the messages as they come, which stay all the same
//!              └─ too much in memory: the first block of the largest log goes to its file
//! ```
//!
//! **Always holds:**
//! - What a replay returns is what came of the transaction and its subtransactions that were not undone, in its order.
//! - Memory holds at most what the configuration allows, and a message: [`Spool::make_room`] is called before each, and
//!   refuses where the disk is full. Nothing that was taken is lost by that.
//! - Files have no names, so nothing is left of them when the process ends, whichever way.
//!
//! A restart needs nothing of all this: nothing of a transaction in progress is confirmed, and the source streams it again
//! from its beginning. So nothing is ever synced.

mod cipher;
mod file;
mod log;
mod records;
mod replay;
mod subtransactions;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use pgsluice_proto::pgoutput::{StreamCommit, StreamedPart};
use pgsluice_proto::{Lsn, Xid};

use self::log::Log;
use self::records::Records;
pub use self::replay::{Replay, Replayed};
use self::subtransactions::Subtransactions;
use crate::config::SpoolConfig;
use crate::decode::Arrival;
use crate::error::{Error, Kind, Stage};
use crate::storage::Header;

/// Large enough that a write is cheap, small enough that hundreds of transactions in progress fit into memory.
const BLOCK_BYTES: usize = 64 * 1024;

/// Of all transactions in progress together. Where each of them begins has to be in memory, about 40 bytes: what has more
/// is better not streamed.
const SUBTRANSACTIONS_MAX: usize = 1 << 20;

/// Whether more can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    There,
    /// The disk has none. Later there may be some.
    DiskFull,
}

#[derive(Debug)]
pub struct Spool {
    config: SpoolConfig,
    block_bytes: usize,
    /// The keys are numbers that the source counts up, so no one can choose them to collide.
    transactions: HashMap<u32, Transaction, foldhash::fast::RandomState>,
    /// Of all of them.
    blocks_in_memory: usize,
    subtransactions: usize,
    /// What a block is encrypted in.
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Transaction {
    log: Log,
    subtransactions: Subtransactions,
    /// Somebody reads what comes of it before it commits.
    follower: Option<Records>,
    /// Nobody does so again.
    waits_for_commit: bool,
}

/// What whoever follows a transaction reads next.
#[derive(Debug)]
pub enum Followed<'a> {
    Message(Replayed<'a>),
    /// All that has come is read.
    UpToDate,
    /// Something that was read is undone.
    Undone,
}

impl Spool {
    pub fn new(config: SpoolConfig) -> Spool {
        Spool::with_blocks(config, BLOCK_BYTES)
    }

    pub(crate) fn with_blocks(config: SpoolConfig, block_bytes: usize) -> Spool {
        Spool {
            config,
            block_bytes,
            transactions: HashMap::default(),
            blocks_in_memory: 0,
            subtransactions: 0,
            scratch: Vec::new(),
        }
    }

    /// Whether files can be made where the configuration says.
    ///
    /// # Errors
    /// [`Kind::Spool`] if not.
    pub fn check(config: &SpoolConfig) -> Result<(), Error> {
        match tempfile::tempfile_in(&config.dir) {
            Err(error) if !is_full(&error) => Err(failed(&config.dir, "make a file", error)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.config.dir
    }

    pub fn holds(&self, xid: Xid) -> bool {
        self.transactions.contains_key(&xid.0)
    }

    /// What all transactions take on disk.
    pub fn bytes_on_disk(&self) -> u64 {
        self.transactions.values().map(|transaction| transaction.log.bytes_on_disk()).sum()
    }

    /// A transaction begins, of which there is nothing yet.
    pub fn begin(&mut self, xid: Xid) {
        let (log, subtransactions) = (Log::new(self.block_bytes), Subtransactions::default());
        let transaction = Transaction { log, subtransactions, follower: None, waits_for_commit: false };
        let before = self.transactions.insert(xid.0, transaction);
        debug_assert!(before.is_none(), "whoever calls has looked");
    }

    /// Takes a message of this transaction, which has begun.
    ///
    /// # Errors
    /// [`Kind::Spool`], or [`Kind::SpoolOutgrown`] for too many subtransactions.
    #[inline]
    pub fn take(&mut self, xid: Xid, lsn: Lsn, arrival: Arrival, part: &StreamedPart<'_>) -> Result<(), Error> {
        let Spool { config, transactions, blocks_in_memory, subtransactions, scratch, .. } = self;
        let Some(Transaction { log, subtransactions: of_it, .. }) = transactions.get_mut(&xid.0) else {
            // Whoever calls has begun it.
            return Err(Error::new(Stage::Source, Kind::Panicked));
        };
        if let Some(subxid) = part.xid.filter(|subxid| *subxid != xid) {
            let before = of_it.len();
            of_it.note(subxid, log.length());
            *subtransactions += of_it.len() - before;
            if *subtransactions > SUBTRANSACTIONS_MAX {
                return Err(Error::new(Stage::Source, Kind::SpoolOutgrown { subtransactions: *subtransactions }));
            }
        }
        let blocks = log.blocks_in_memory();
        let header = Header { lsn, arrival: part.is_relation.then_some(arrival), payload_bytes: 1 + part.rest.len() };
        let (header, header_bytes) = header.encode();
        log.append(&header[..header_bytes], scratch)
            .and_then(|()| log.append(&[part.tag], scratch))
            .and_then(|()| log.append(part.rest, scratch))
            .map_err(|error| failed(&config.dir, "read", error))?;
        *blocks_in_memory += log.blocks_in_memory() - blocks;
        Ok(())
    }

    /// Sees to it that memory has room for a message more.
    ///
    /// # Errors
    /// [`Kind::Spool`], unless the disk is full.
    #[inline]
    pub fn make_room(&mut self) -> Result<Room, Error> {
        if self.blocks_in_memory * self.block_bytes <= self.config.memory_bytes {
            Ok(Room::There)
        } else {
            self.spill()
        }
    }

    #[cold]
    fn spill(&mut self) -> Result<Room, Error> {
        let SpoolConfig { dir, memory_bytes, key } = &self.config;
        while self.blocks_in_memory * self.block_bytes > *memory_bytes {
            let Some(largest) = self.transactions.values_mut().max_by_key(|one| one.log.blocks_in_memory()) else {
                break;
            };
            match largest.log.spill(dir, key.as_ref(), &mut self.scratch) {
                Ok(()) => self.blocks_in_memory -= 1,
                Err(error) if is_full(&error) => return Ok(Room::DiskFull),
                Err(error) => return Err(failed(dir, "write", error)),
            }
        }
        Ok(Room::There)
    }

    /// A subtransaction is undone, of which perhaps nothing has come.
    ///
    /// # Errors
    /// [`Kind::Spool`].
    pub fn undo(&mut self, xid: Xid, subxid: Xid) -> Result<(), Error> {
        let Some(transaction) = self.transactions.get_mut(&xid.0) else { return Ok(()) };
        let (blocks, subtransactions) = (transaction.log.blocks_in_memory(), transaction.subtransactions.len());
        if let Some(place) = transaction.subtransactions.undo(subxid) {
            transaction.log.truncate(place).map_err(|error| failed(&self.config.dir, "truncate", error))?;
            match &mut transaction.follower {
                Some(records) if records.position() <= place => records.forget_behind(place),
                Some(_) | None => transaction.follower = None,
            }
        }
        self.blocks_in_memory -= blocks - transaction.log.blocks_in_memory();
        self.subtransactions -= subtransactions - transaction.subtransactions.len();
        Ok(())
    }

    /// The largest transaction, if its messages take so many bytes. Those that wait for their commit do not count.
    pub fn largest(&self, bytes_min: u64) -> Option<Xid> {
        let others = self.transactions.iter().filter(|(_, transaction)| !transaction.waits_for_commit);
        let (xid, largest) = others.max_by_key(|(_, transaction)| transaction.log.length())?;
        (largest.log.length() >= bytes_min).then_some(Xid(*xid))
    }

    /// Begins to read this transaction from its first message on, while it goes on.
    pub fn follow(&mut self, xid: Xid) {
        if let Some(transaction) = self.transactions.get_mut(&xid.0) {
            transaction.follower = Some(Records::new(self.block_bytes));
        }
    }

    /// The transaction is not followed any more, nor again.
    pub fn unfollow(&mut self, xid: Xid) {
        if let Some(transaction) = self.transactions.get_mut(&xid.0) {
            transaction.follower = None;
            transaction.waits_for_commit = true;
        }
    }

    /// The next message of a transaction that is followed.
    ///
    /// # Errors
    /// [`Kind::Spool`].
    pub fn followed(&mut self, xid: Xid) -> Result<Followed<'_>, Error> {
        let Spool { config, transactions, scratch, .. } = self;
        let Some(Transaction { log, follower: Some(records), .. }) = transactions.get_mut(&xid.0) else {
            return Ok(Followed::Undone);
        };
        let record = records
            .next(log.length(), |position, out| log.copy(position, out, scratch))
            .map_err(|error| failed(&config.dir, "read", error))?;
        Ok(match record {
            None => Followed::UpToDate,
            Some(record) => {
                let (lsn, arrival) = (record.header.lsn, record.header.arrival);
                Followed::Message(Replayed { lsn, arrival, payload: records.bytes(record) })
            }
        })
    }

    /// The transaction is undone.
    pub fn forget(&mut self, xid: Xid) {
        drop(self.remove(xid));
    }

    /// The transaction has committed; `None` if it never began.
    pub fn commit(&mut self, commit: StreamCommit) -> Option<Replay> {
        Some(Replay::new(commit, self.remove(commit.xid)?.log, self.block_bytes))
    }

    /// An error that a replay has met.
    pub fn replay_failed(&self, error: io::Error) -> Error {
        failed(&self.config.dir, "read", error)
    }

    fn remove(&mut self, xid: Xid) -> Option<Transaction> {
        let transaction = self.transactions.remove(&xid.0)?;
        self.blocks_in_memory -= transaction.log.blocks_in_memory();
        self.subtransactions -= transaction.subtransactions.len();
        Some(transaction)
    }
}

/// There is no room, or none for us.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cold]
fn failed(dir: &Path, doing: &'static str, source: io::Error) -> Error {
    Error::new(Stage::Source, Kind::Spool { dir: PathBuf::from(dir), doing, source })
}
