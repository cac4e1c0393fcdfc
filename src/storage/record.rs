//! How a message lies in a log: its LSN, its length, for a Relation when it came, and its payload.

use std::ops::Range;

use pgsluice_proto::Lsn;

use crate::decode::Arrival;

/// Of a length: the arrival follows. No message is as long as this, since the protocol counts with a sign.
const HAS_ARRIVAL: u32 = 1 << 31;
const FIXED_BYTES: usize = 12;
const ARRIVAL_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub lsn: Lsn,
    pub arrival: Option<Arrival>,
    pub payload_bytes: usize,
}

/// A message in a buffer.
#[derive(Clone, Debug)]
pub struct Record {
    pub header: Header,
    pub payload: Range<usize>,
}

impl Header {
    /// Its bytes, and how many of them count.
    #[inline]
    pub fn encode(self) -> ([u8; FIXED_BYTES + ARRIVAL_BYTES], usize) {
        let Header { lsn, arrival, payload_bytes } = self;
        let mut bytes = [0; FIXED_BYTES + ARRIVAL_BYTES];
        debug_assert!(payload_bytes < HAS_ARRIVAL as usize, "a frame's length has a sign");
        let flag = if arrival.is_some() { HAS_ARRIVAL } else { 0 };
        bytes[..8].copy_from_slice(&lsn.as_u64().to_le_bytes());
        bytes[8..FIXED_BYTES].copy_from_slice(&(payload_bytes as u32 | flag).to_le_bytes());
        match arrival {
            None => (bytes, FIXED_BYTES),
            Some(arrival) => {
                bytes[FIXED_BYTES..].copy_from_slice(&arrival.as_u64().to_le_bytes());
                (bytes, FIXED_BYTES + ARRIVAL_BYTES)
            }
        }
    }

    /// With how many bytes it takes; `None` where it is not whole.
    #[inline]
    pub fn read(bytes: &[u8]) -> Option<(Header, usize)> {
        let (lsn, bytes) = bytes.split_first_chunk()?;
        let (length, bytes) = bytes.split_first_chunk()?;
        let (lsn, length) = (Lsn::new(u64::from_le_bytes(*lsn)), u32::from_le_bytes(*length));
        let payload_bytes = (length & !HAS_ARRIVAL) as usize;
        if length & HAS_ARRIVAL == 0 {
            return Some((Header { lsn, arrival: None, payload_bytes }, FIXED_BYTES));
        }
        let arrival = Arrival::from_u64(u64::from_le_bytes(*bytes.first_chunk()?));
        Some((Header { lsn, arrival: Some(arrival), payload_bytes }, FIXED_BYTES + ARRIVAL_BYTES))
    }
}
