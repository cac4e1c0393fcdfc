//! A segment that is read: its header, and its blocks one by one, each checked before anything of it is believed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pgsluice_proto::Lsn;

use super::dir::{Dir, damaged, failed};
use super::format::{BLOCK_HEADER_BYTES, BlockHeader, Fault, Header, Seal, open_block};
use super::keys::Keys;
use super::walk::Walk;
use crate::decode::Arrival;
use crate::error::Error;
use crate::storage;

#[derive(Debug)]
pub struct Segment {
    path: PathBuf,
    file: File,
    pub header: Header,
    seal: Option<Seal>,
    pub walk: Walk,
}

/// What lies at a place of a segment.
#[derive(Debug)]
pub enum Found {
    Block(BlockHeader),
    /// Nothing more.
    End,
    /// Not a whole block.
    Torn(Fault),
}

impl Segment {
    /// # Errors
    /// [`crate::error::Kind::TrailDamaged`]; a refusal if it is not there, or under an unknown key.
    pub fn open(dir: &Dir, number: u64, keys: &Keys) -> Result<Segment, Error> {
        let path = dir.segment(number);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(dir.missing(number)),
            file => file.map_err(|error| failed(&path, "open", error))?,
        };
        let header_bytes = read_header(&file, &path)?;
        let header = Header::decode(&header_bytes).map_err(|fault| damaged(&path, fault))?;
        if header.number != number {
            return Err(damaged(&path, Fault { offset: 0, what: "the header is that of another segment" }));
        }
        let seal = keys.seal(&path, &header, &header_bytes)?;
        let walk = Walk::begin(&header, header_bytes.len());
        Ok(Segment { path, file, header, seal, walk })
    }

    /// The header alone, for which no key is needed.
    pub fn peek(dir: &Dir, number: u64) -> Result<Header, Error> {
        let path = dir.segment(number);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(dir.missing(number)),
            file => file.map_err(|error| failed(&path, "open", error))?,
        };
        Header::decode(&read_header(&file, &path)?).map_err(|fault| damaged(&path, fault))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn length(&self) -> Result<u64, Error> {
        self.file.metadata().map(|file| file.len()).map_err(|error| failed(&self.path, "read", error))
    }

    /// Reads the next block into `clear`, as far as the segment counts: up to `limit`.
    ///
    /// # Errors
    /// Only what the system reports: what is wrong with the bytes is returned.
    pub fn next(&mut self, limit: u64, clear: &mut Vec<u8>) -> Result<Found, Error> {
        let (header, crc) = match self.block_header(limit)? {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Found::End),
            Err(fault) => return Ok(Found::Torn(fault)),
        };
        let offset = self.walk.offset;
        let total = header.total_bytes();
        if total > limit - offset {
            return Ok(Found::Torn(Fault { offset, what: "a block is not whole" }));
        }
        clear.resize(total as usize, 0);
        match self.file.read_exact_at(clear, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Found::Torn(Fault { offset, what: "a block is not whole" }));
            }
            read => read.map_err(|error| failed(&self.path, "read", error))?,
        }
        let mut walk = self.walk;
        let checked = open_block((&header, crc), clear, self.seal.as_ref(), offset)
            .and_then(|()| walk.pass(&header))
            .and_then(|()| check_records(clear, offset));
        if let Err(fault) = checked {
            return Ok(Found::Torn(fault));
        }
        self.walk = walk;
        Ok(Found::Block(header))
    }

    /// Goes past the next block without reading what it holds.
    pub fn skip(&mut self, limit: u64) -> Result<Found, Error> {
        match self.block_header(limit)? {
            Ok(Some((header, _))) => Ok(match self.walk.pass(&header) {
                Ok(()) => Found::Block(header),
                Err(fault) => Found::Torn(fault),
            }),
            Ok(None) => Ok(Found::End),
            Err(fault) => Ok(Found::Torn(fault)),
        }
    }

    fn block_header(&self, limit: u64) -> Result<Result<Option<(BlockHeader, u32)>, Fault>, Error> {
        let offset = self.walk.offset;
        if offset >= limit {
            return Ok(Ok(None));
        }
        let mut bytes = [0; BLOCK_HEADER_BYTES];
        match self.file.read_exact_at(&mut bytes, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(Err(Fault { offset, what: "a block is not whole" }))
            }
            Err(error) => Err(failed(&self.path, "read", error)),
            Ok(()) => Ok(BlockHeader::decode(&bytes, offset).map(Some)),
        }
    }
}

fn read_header(file: &File, path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    loop {
        let needed = Header::bytes_needed(&bytes).map_err(|fault| damaged(path, fault))?;
        if needed == bytes.len() {
            return Ok(bytes);
        }
        let read = bytes.len();
        bytes.resize(needed, 0);
        match file.read_exact_at(&mut bytes[read..], read as u64) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damaged(path, Fault { offset: 0, what: "the header is not whole" }));
            }
            read => read.map_err(|error| failed(path, "read", error))?,
        }
    }
}

/// A message as it lies in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub lsn: Lsn,
    /// Of a description.
    pub arrival: Option<Arrival>,
    pub payload: &'a [u8],
}

impl Record<'_> {
    /// Appends it to a block.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Record { lsn, arrival, payload } = *self;
        let (header, bytes) = storage::Header { lsn, arrival, payload_bytes: payload.len() }.encode();
        out.extend(&header[..bytes]);
        out.extend(payload);
    }
}

/// The first message of these, and how many bytes it takes; `None` where it is not whole.
#[inline]
pub fn split_record(bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let (header, header_bytes) = storage::Header::read(bytes)?;
    let total = header_bytes + header.payload_bytes;
    let payload = bytes.get(header_bytes..total)?;
    // No message is empty: the first byte says what it is.
    (!payload.is_empty()).then_some((Record { lsn: header.lsn, arrival: header.arrival, payload }, total))
}

pub fn check_records(mut bytes: &[u8], offset: u64) -> Result<(), Fault> {
    while !bytes.is_empty() {
        let Some((_, total)) = split_record(bytes) else {
            return Err(Fault { offset, what: "a block ends amid a message" });
        };
        bytes = &bytes[total..];
    }
    Ok(())
}
