//! How a segment is written: bytes in, what they say out, and the other way round. Without files, and without a clock.
//!
//! ```text
//!  segment:  magic │ length │ header in MessagePack │ CRC │ block │ block │ …
//!  block:    CRC │ length │ kind │ number │ transactions │ LSN range │ records, perhaps encrypted, and then a tag
//!  end:      magic │ segment │ offset │ LSN │ CRC
//! ```
//!
//! Numbers are little-endian. A CRC is over all else of its header, of its block, or of the end mark.
//!
//! **Always holds:** what decodes encodes to the same bytes, and no byte of it is without a CRC.

use pgsluice_proto::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};

use crate::config::DiskKey;
use crate::storage::{Key, TAG_BYTES};

const SEGMENT_MAGIC: &[u8; 8] = b"PGSLTRL\x01";
const END_MAGIC: &[u8; 4] = b"PGSE";
pub const FORMAT_VERSION: u32 = 1;

const PREFIX_BYTES: usize = 12;
const CRC_BYTES: usize = 4;
/// A header holds names and the history of timelines.
const HEADER_BYTES_MAX: usize = 1 << 20;
pub const BLOCK_HEADER_BYTES: usize = 40;
pub const END_BYTES: usize = 32;

/// What is wrong with bytes, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// In the file.
    pub offset: u64,
    pub what: &'static str,
}

fn fault<T>(offset: u64, what: &'static str) -> Result<T, Fault> {
    Err(Fault { offset, what })
}

/// What a segment says of itself at its beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub version: u32,
    pub number: u64,
    pub origin: Origin,
    /// Timelines that the source was on before, and where it left them.
    pub history: Vec<(u32, u64)>,
    pub timeline: u32,
    /// All that has committed before is in segments before this one.
    pub starts_at: u64,
    /// Above whatever counts arrivals in segments before.
    pub arrivals: u64,
    pub encryption: Option<Encryption>,
}

/// Whose changes a trail has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    pub system_identifier: String,
    pub slot: String,
    /// Of the slot, where whoever has made the trail knew it.
    pub consistent_point: Option<u64>,
}

/// Under which key the blocks of a segment are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encryption {
    pub key_id: String,
    pub salt: [u8; 32],
}

impl Header {
    pub fn starts_at(&self) -> Lsn {
        Lsn::new(self.starts_at)
    }

    pub fn timeline(&self) -> TimelineId {
        TimelineId(self.timeline)
    }

    pub fn encode(&self) -> Vec<u8> {
        let body = rmp_serde::to_vec_named(self).expect("numbers and strings can be written");
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + body.len() + CRC_BYTES);
        bytes.extend(SEGMENT_MAGIC);
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// How many bytes to have read, of which these are the first.
    pub fn bytes_needed(prefix: &[u8]) -> Result<usize, Fault> {
        let Some((magic, rest)) = prefix.split_first_chunk::<8>() else { return Ok(PREFIX_BYTES) };
        if magic != SEGMENT_MAGIC {
            return fault(0, "it does not begin as a segment does");
        }
        let Some(length) = rest.first_chunk() else { return Ok(PREFIX_BYTES) };
        match u32::from_le_bytes(*length) as usize {
            length if length <= HEADER_BYTES_MAX => Ok(PREFIX_BYTES + length + CRC_BYTES),
            _ => fault(8, "the header has an impossible length"),
        }
    }

    /// Of exactly as many bytes as are needed.
    pub fn decode(bytes: &[u8]) -> Result<Header, Fault> {
        let (body, crc) = match bytes.split_last_chunk::<CRC_BYTES>() {
            Some(split) if bytes.len() == Header::bytes_needed(bytes)? => split,
            Some(_) | None => return fault(0, "the header is not whole"),
        };
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return fault(0, "the CRC of the header is wrong");
        }
        let header: Header = rmp_serde::from_slice(&body[PREFIX_BYTES..])
            .or_else(|_| fault(0, "the header is not one of this version"))?;
        if header.version != FORMAT_VERSION || header.encode() != bytes {
            return fault(0, "the header is not one of this version");
        }
        Ok(header)
    }
}

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Descriptions of relations and types, as of where the segment starts.
    Descriptions = 1,
    /// Part of one transaction, and not its end.
    Part = 2,
    /// The rest of a transaction, and others that are whole.
    Whole = 3,
    /// Nothing: the source is here, with no transaction open.
    Position = 4,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Descriptions, Kind::Part, Kind::Whole, Kind::Position].into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Behind it no transaction is open.
    pub fn is_boundary(self) -> bool {
        self != Kind::Part
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// As it lies there, with its tag.
    pub payload_bytes: u32,
    pub kind: Kind,
    /// In the segment, from 0.
    pub number: u64,
    /// That end in it.
    pub transactions: u32,
    /// All before this is in blocks before.
    pub start: Lsn,
    /// And all before this in those and this one.
    pub end: Lsn,
}

impl BlockHeader {
    /// All but the CRC.
    fn encode(&self) -> [u8; BLOCK_HEADER_BYTES - CRC_BYTES] {
        let mut bytes = [0; BLOCK_HEADER_BYTES - CRC_BYTES];
        bytes[..4].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[4] = self.kind as u8;
        // Three bytes are of no use yet.
        bytes[8..12].copy_from_slice(&self.transactions.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.number.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.start.as_u64().to_le_bytes());
        bytes[28..36].copy_from_slice(&self.end.as_u64().to_le_bytes());
        bytes
    }

    /// With the CRC, which is that of the whole block. `offset` is where the block lies.
    pub fn decode(bytes: &[u8; BLOCK_HEADER_BYTES], offset: u64) -> Result<(BlockHeader, u32), Fault> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let Some(kind) = Kind::from_byte(bytes[8]).filter(|_| bytes[9..12] == [0; 3]) else {
            return fault(offset, "a block of no known kind");
        };
        let header = BlockHeader {
            payload_bytes: u32_at(4),
            kind,
            transactions: u32_at(12),
            number: u64_at(16),
            start: Lsn::new(u64_at(24)),
            end: Lsn::new(u64_at(32)),
        };
        Ok((header, u32_at(0)))
    }

    /// How long the block is with its header.
    pub fn total_bytes(&self) -> u64 {
        BLOCK_HEADER_BYTES as u64 + u64::from(self.payload_bytes)
    }
}

/// What encrypts and authenticates the blocks of one segment.
#[derive(Debug)]
pub struct Seal {
    key: Key,
    /// The segment's header is authenticated with each block.
    header: Vec<u8>,
}

impl Seal {
    pub fn new(key: &DiskKey, encryption: &Encryption, header: &[u8]) -> Seal {
        Seal { key: Key::derive(key, b"pgsluice trail segment", &encryption.salt), header: header.to_owned() }
    }

    fn authenticated(&self, header: &BlockHeader) -> Vec<u8> {
        [&self.header[..], &header.encode()].concat()
    }
}

/// Appends a block with this payload to `out`; `header` gets its length.
pub fn encode_block(mut header: BlockHeader, payload: &[u8], seal: Option<&Seal>, out: &mut Vec<u8>) {
    let tag_bytes = if seal.is_some() { TAG_BYTES } else { 0 };
    header.payload_bytes = u32::try_from(payload.len() + tag_bytes).expect("whoever calls has looked");
    let start = out.len();
    out.extend([0; CRC_BYTES]);
    out.extend(header.encode());
    out.extend(payload);
    if let Some(seal) = seal {
        let block = &mut out[start + BLOCK_HEADER_BYTES..];
        let tag = seal.key.seal(header.number, &seal.authenticated(&header), block);
        out.extend(tag);
    }
    let crc = crc32fast::hash(&out[start + CRC_BYTES..]);
    out[start..start + CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
}

/// Checks a block that lies at `offset`, and makes `block`, the whole of it, its payload's clear text.
pub fn open_block(
    (header, crc): (&BlockHeader, u32),
    block: &mut Vec<u8>,
    seal: Option<&Seal>,
    offset: u64,
) -> Result<(), Fault> {
    if crc32fast::hash(&block[CRC_BYTES..]) != crc {
        return fault(offset, "the CRC of a block is wrong");
    }
    block.drain(..BLOCK_HEADER_BYTES);
    let Some(seal) = seal else { return Ok(()) };
    let Some((clear, tag)) = block.split_last_chunk_mut::<TAG_BYTES>() else {
        return fault(offset, "a block is shorter than what encryption adds");
    };
    let opened = seal.key.open(header.number, &seal.authenticated(header), clear, tag);
    let clear_bytes = clear.len();
    match opened {
        Ok(()) => block.truncate(clear_bytes),
        Err(_) => return fault(offset, "a block was altered, or is under another key"),
    }
    Ok(())
}

/// Up to where a trail is whole and on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndMark {
    pub segment: u64,
    pub offset: u64,
    /// All before this has come.
    pub lsn: Lsn,
}

impl EndMark {
    pub fn encode(&self) -> [u8; END_BYTES] {
        let mut bytes = [0; END_BYTES];
        bytes[..4].copy_from_slice(END_MAGIC);
        bytes[4..12].copy_from_slice(&self.segment.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.offset.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.lsn.as_u64().to_le_bytes());
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; END_BYTES]) -> Result<EndMark, Fault> {
        let u64_at = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        };
        let mark = EndMark { segment: u64_at(4), offset: u64_at(12), lsn: Lsn::new(u64_at(20)) };
        if mark.encode() == *bytes { Ok(mark) } else { fault(0, "the CRC of the end mark is wrong") }
    }
}
