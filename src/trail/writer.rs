//! The one that appends: messages of whole transactions become blocks, and what is on disk becomes the end of the trail.
//!
//! ```text
//!  message ──► buffer ──a commit, or full──► block ──write──► segment ──sync──► end mark ──► may be confirmed
//! ```
//!
//! **Always holds:**
//! - [`Writer::end`] is the end of a transaction, or a position, and all before it is synced. It never goes back.
//! - What was cut off, or may have been lost, is never written over under the same key and nonce: a new segment begins then.
//! - A segment begins and ends between transactions, with what a reader has to know.
//! - Where the disk is full nothing changes, and the same bytes are written once there is room.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use pgsluice_proto::{Lsn, TimelineId};

use super::access;
use super::current::{Current, Identity, Kept};
use super::dir::{self, Dir, failed, is_full, no_trail};
use super::format::{BlockHeader, END_BYTES, EndMark, FORMAT_VERSION, Header, Kind, Origin, Seal, encode_block};
use super::identity;
use super::keys::Keys;
use super::known::Known;
use super::lock::Lock;
use super::readers;
use super::recover::{self, Recovered};
use super::segment::Record;
use crate::config::TrailConfig;
use crate::error::Error;

/// Of a block. Large enough that its header and its write cost little, small enough that a reader holds it.
const BLOCK_BYTES: usize = 256 * 1024;
/// At most so much is written before it is synced.
const SYNC_BYTES: u64 = 8 << 20;

/// Whether more can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    There,
    DiskFull,
    /// As much is there as the configuration allows.
    TrailFull,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    segment_bytes: u64,
    max_bytes: u64,
}

#[derive(Debug)]
pub struct Writer {
    dir: Dir,
    keys: Keys,
    limits: Limits,
    identity: Identity,
    known: Known,
    /// Added to what a stream counts arrivals by, since each counts anew.
    arrivals_before: u64,
    /// Those before the current one.
    kept: VecDeque<Kept>,
    kept_bytes: u64,
    next_number: u64,
    end_file: File,
    current: Option<Current>,
    buffer: Buffer,
    /// All of it is synced.
    marked: EndMark,
    /// The source is here, with nothing open.
    position: Lsn,
    /// That were taken since it was opened.
    transactions: u64,
    /// The source has gone over to it, and the segment that is written does not know yet.
    next_timeline: Option<u32>,
}

/// Messages that are in no block yet.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Of them, those of transactions that have ended.
    whole: usize,
    transactions: u32,
    /// Where the last transaction has ended that came, here or in a block.
    end: Lsn,
}

impl Writer {
    /// Goes on with the trail that is there, as whoever has its lock. What is behind its last whole transaction is cut off.
    ///
    /// # Errors
    /// [`crate::error::Kind::TrailDamaged`]; a refusal where there is no trail, for a gap or an unknown key.
    pub fn open(config: &TrailConfig, _lock: &Lock) -> Result<Writer, Error> {
        let no_trail = || no_trail(&config.dir);
        let (dir, keys) = (Dir::open(&config.dir)?.ok_or_else(no_trail)?, Keys::new(config));
        access::warn_of_network(dir.path());
        access::make_folder(&dir.readers()).map_err(|error| failed(&dir.readers(), "make the folder", error))?;
        dir.sweep()?;
        let recovered = recover::recover(&dir, &keys)?.ok_or_else(no_trail)?;
        if identity::read(&dir)?.is_none() {
            let id = identity::make(&dir, &recovered.identity.origin)?;
            tracing::info!(dir = %dir.path().display(), id, "the trail, which an earlier version has begun, gets an identity");
        }
        Writer::with(config, dir, keys, recovered)
    }

    /// Makes a trail that begins at `starts_at`.
    pub fn create(
        config: &TrailConfig,
        _lock: &Lock,
        origin: Origin,
        timeline: TimelineId,
        starts_at: Lsn,
    ) -> Result<Writer, Error> {
        let (dir, keys) = (Dir::create(&config.dir)?, Keys::new(config));
        dir.sweep()?;
        identity::make(&dir, &origin)?;
        let identity = Identity { origin, history: Vec::new(), timeline: timeline.0 };
        let last = EndMark { segment: 0, offset: 0, lsn: starts_at };
        let nothing = Recovered { identity, known: Known::default(), kept: VecDeque::new(), last, goes_on: None };
        let mut writer = Writer::with(config, dir, keys, nothing)?;
        writer.begin_segment()?;
        Ok(writer)
    }

    fn with(config: &TrailConfig, dir: Dir, keys: Keys, recovered: Recovered) -> Result<Writer, Error> {
        let Recovered { identity, known, mut kept, last, goes_on } = recovered;
        let path = dir.end();
        if !path.exists() {
            dir::replace(&path, &last.encode()).map_err(|error| failed(&path, "write", error))?;
        }
        let end_file = OpenOptions::new().read(true).write(true).open(&path);
        let end_file = end_file.map_err(|error| failed(&path, "open", error))?;
        end_file.set_len(END_BYTES as u64).map_err(|error| failed(&path, "write", error))?;
        if goes_on.is_some() {
            kept.pop_back();
        }
        let mut writer = Writer {
            limits: Limits { segment_bytes: config.segment_bytes, max_bytes: config.max_bytes },
            dir,
            keys,
            identity,
            arrivals_before: known.arrivals(),
            // A stream describes everything again that it brings. So what is kept for segments to come does not grow by the tables that
            // were dropped before.
            known: Known::counting_from(known.arrivals()),
            next_number: last.segment + 1,
            kept_bytes: kept.iter().map(|kept| kept.bytes).sum(),
            kept,
            end_file,
            current: goes_on,
            buffer: Buffer { end: last.lsn, ..Buffer::default() },
            marked: last,
            position: last.lsn,
            transactions: 0,
            next_timeline: None,
        };
        writer.mark(last)?;
        Ok(writer)
    }

    /// All before this is on disk.
    pub fn end(&self) -> Lsn {
        self.marked.lsn
    }

    /// All before this has come, though it need not be on disk.
    pub fn taken(&self) -> Lsn {
        self.buffer.end.max(self.position)
    }

    /// That were taken, though they need not be on disk.
    pub fn transactions(&self) -> u64 {
        self.transactions
    }

    pub fn origin(&self) -> &Origin {
        &self.identity.origin
    }

    /// That what comes next is on.
    pub fn timeline(&self) -> TimelineId {
        TimelineId(self.next_timeline.unwrap_or(self.identity.timeline))
    }

    pub fn arrivals_before(&self) -> u64 {
        self.arrivals_before
    }

    /// The source goes on along another timeline. A segment that says so begins between transactions.
    pub fn follow_timeline(&mut self, timeline: TimelineId) {
        if timeline > self.timeline() {
            self.next_timeline = Some(timeline.0);
            self.end_segment_if_due();
        }
    }

    /// Whether a message more can be taken, `is_between` transactions or amid one that has begun: such a one is taken whole, though
    /// the trail becomes larger than it may by that.
    ///
    /// # Errors
    /// What the system reports, other than a full disk.
    #[inline]
    pub fn make_room(&mut self, is_between: bool) -> Result<Room, Error> {
        match &self.current {
            Some(current) if !is_between && current.is_written() => Ok(Room::There),
            Some(_) | None => self.look_for_room(is_between),
        }
    }

    fn look_for_room(&mut self, is_between: bool) -> Result<Room, Error> {
        if self.ensure_segment()? == Room::DiskFull || self.write()? == Room::DiskFull {
            return Ok(Room::DiskFull);
        }
        Ok(if is_between && self.bytes() >= self.limits.max_bytes { Room::TrailFull } else { Room::There })
    }

    /// Of all segments.
    pub fn bytes(&self) -> u64 {
        self.kept_bytes + self.current.as_ref().map_or(0, Current::bytes)
    }

    /// Takes a message. Room for it was made.
    #[inline]
    pub fn append(&mut self, record: &Record<'_>) {
        if Known::concerns(record.payload) {
            self.known.learn(record);
        }
        record.encode(&mut self.buffer.bytes);
        self.make_block_if_full();
    }

    /// Takes the last message of a transaction, likewise.
    pub fn commit(&mut self, record: &Record<'_>, end_lsn: Lsn) {
        record.encode(&mut self.buffer.bytes);
        self.buffer.whole = self.buffer.bytes.len();
        self.buffer.transactions += 1;
        self.transactions += 1;
        self.buffer.end = end_lsn;
        self.make_block_if_full();
    }

    /// Takes the description of a relation or a type out of a transaction that is here already: the stream may not give it again.
    pub fn describe(&mut self, record: &Record<'_>) {
        if self.known.holds(record.payload) {
            return;
        }
        self.known.learn(record);
        record.encode(&mut self.buffer.bytes);
        self.buffer.whole = self.buffer.bytes.len();
    }

    /// With no transaction open, all before this has come.
    pub fn advance(&mut self, position: Lsn) {
        self.position = self.position.max(position);
    }

    /// Whole transactions are not on disk yet.
    pub fn is_unsynced(&self) -> bool {
        self.buffer.end > self.marked.lsn
    }

    /// So much is not on disk yet that it is better there.
    #[inline]
    pub fn is_sync_due(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.unsynced() >= SYNC_BYTES)
    }

    /// The source has been beyond the end, with nothing to be written.
    pub fn is_behind(&self) -> bool {
        self.position > self.marked.lsn
    }

    /// Puts what is whole on disk, and moves the end behind it; between transactions to the position.
    ///
    /// # Errors
    /// What the system reports, other than a full disk.
    pub fn sync(&mut self) -> Result<Room, Error> {
        if self.ensure_segment()? == Room::DiskFull {
            return Ok(Room::DiskFull);
        }
        if self.buffer.whole > 0 {
            self.make_block();
        }
        self.make_position();
        if self.write()? == Room::DiskFull {
            return Ok(Room::DiskFull);
        }
        let Some(current) = &mut self.current else { return Ok(Room::There) };
        let mark = current.sync(&self.dir)?;
        if mark != self.marked {
            self.mark(mark)?;
        }
        self.end_segment_if_due();
        self.ensure_segment()
    }

    /// # Errors
    /// If the folder is another one by now, as below a disk that was unmounted.
    pub fn check_place(&self) -> Result<(), Error> {
        self.dir.check_place()
    }

    /// Removes the segments that no reader needs. Without any reader all are kept.
    pub fn prune(&mut self) -> Result<(), Error> {
        let Some(passed) = readers::list(&self.dir)?.iter().map(|reader| reader.position).min() else { return Ok(()) };
        while let Some(first) = self.kept.front().copied()
            && let Some(next) = self.kept.get(1).map(|kept| kept.starts_at).or(self.current_starts_at())
            && next <= passed
        {
            dir::remove(&self.dir.segment(first.number))?;
            self.kept.pop_front();
            self.kept_bytes -= first.bytes;
            tracing::debug!(segment = first.number, ends_at = %next, "every reader has passed a segment, which is removed");
        }
        Ok(())
    }

    fn current_starts_at(&self) -> Option<Lsn> {
        self.current.as_ref().map(|current| current.starts_at())
    }

    fn make_block_if_full(&mut self) {
        if self.buffer.bytes.len() >= BLOCK_BYTES {
            self.make_block();
        }
    }

    /// Of what is whole, if there is any; else of the transaction that is open.
    fn make_block(&mut self) {
        let Buffer { bytes, whole, transactions, end } = &mut self.buffer;
        let Some(current) = &mut self.current else { return };
        let (kind, length) = if *whole > 0 { (Kind::Whole, *whole) } else { (Kind::Part, bytes.len()) };
        let transactions = std::mem::take(transactions);
        let end = if transactions > 0 { *end } else { current.end() };
        current.make_block(kind, transactions, end, &bytes[..length]);
        bytes.drain(..length);
        *whole = 0;
    }

    fn make_position(&mut self) {
        if let Some(current) = &mut self.current
            && self.buffer.bytes.is_empty()
            && !current.is_open()
            && self.position > current.end()
        {
            current.make_block(Kind::Position, 0, self.position, &[]);
        }
    }

    fn write(&mut self) -> Result<Room, Error> {
        let Some(current) = &mut self.current else { return Ok(Room::There) };
        match current.write() {
            Ok(()) => Ok(Room::There),
            Err(error) if is_full(&error) => Ok(Room::DiskFull),
            Err(error) => Err(failed(&self.dir.segment(current.number()), "write", error)),
        }
    }

    fn mark(&mut self, mark: EndMark) -> Result<(), Error> {
        debug_assert!(mark.lsn >= self.marked.lsn, "the end never goes back");
        self.end_file.write_all_at(&mark.encode(), 0).map_err(|error| failed(&self.dir.end(), "write", error))?;
        self.marked = mark;
        Ok(())
    }

    /// Lets go of a segment that is long enough, or that says what is not so any more.
    fn end_segment_if_due(&mut self) {
        let is_due = |current: &Current| {
            current.bytes() >= self.limits.segment_bytes
                || self.next_timeline.is_some()
                || !self.keys.is_current(current.header())
        };
        let is_between = self.buffer.bytes.is_empty();
        if let Some(current) = self.current.take_if(|current| is_between && current.is_at_boundary() && is_due(current))
        {
            self.kept_bytes += current.bytes();
            self.kept.push_back(current.kept());
        }
    }

    fn ensure_segment(&mut self) -> Result<Room, Error> {
        if self.current.is_some() {
            return Ok(Room::There);
        }
        match self.begin_segment() {
            Ok(()) => Ok(Room::There),
            Err(error) if error.is_full_disk() => Ok(Room::DiskFull),
            Err(error) => Err(error),
        }
    }

    /// Begins a segment where all that came before is synced.
    fn begin_segment(&mut self) -> Result<(), Error> {
        let number = self.next_number;
        if let Some(timeline) = self.next_timeline.take() {
            self.identity.history.push((self.identity.timeline, self.marked.lsn.as_u64()));
            self.identity.timeline = timeline;
        }
        let Identity { origin, history, timeline } = self.identity.clone();
        let header = Header {
            version: FORMAT_VERSION,
            number,
            origin,
            history,
            timeline,
            starts_at: self.marked.lsn.as_u64(),
            arrivals: self.known.arrivals(),
            encryption: self.keys.encryption(),
        };
        let mut bytes = header.encode();
        let path = self.dir.segment(number);
        let seal: Option<Seal> = self.keys.seal(&path, &header, &bytes)?;
        let header_bytes = bytes.len() as u64;
        let mut descriptions = Vec::new();
        self.known.records().for_each(|record| record.encode(&mut descriptions));
        let (start, blocks) = (header.starts_at(), u64::from(!descriptions.is_empty()));
        if blocks > 0 {
            let kind = Kind::Descriptions;
            let block = BlockHeader { payload_bytes: 0, kind, number: 0, transactions: 0, start, end: start };
            encode_block(block, &descriptions, seal.as_ref(), &mut bytes);
        }
        debug_assert!(header_bytes <= bytes.len() as u64);
        self.dir.check_place()?;
        dir::replace(&path, &bytes).map_err(|error| failed(&path, "write", error))?;
        if let Err(error) = self.dir.check_place() {
            // It may be in the folder below the disk, where a trail must not seem to be.
            dir::remove(&path)?;
            return Err(error);
        }
        let current = Current::open(&path, header, seal, (blocks, start, bytes.len() as u64))?;
        self.current = Some(current);
        self.next_number += 1;
        self.mark(EndMark { segment: number, offset: bytes.len() as u64, lsn: start })
    }
}
