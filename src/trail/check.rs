//! The check that the fuzz target `trail` shares with the tests: bytes are read as a segment, and only as what was written.

use super::format::{BLOCK_HEADER_BYTES, BlockHeader, END_BYTES, EndMark, Header, encode_block, open_block};
use super::segment::{Record, check_records, split_record};
use super::walk::Walk;

/// Reads `input` as a segment, block by block, each with its CRC made right first, since no fuzzer finds one.
///
/// # Panics
/// If what decodes does not encode to the same bytes, or something is read that no block holds.
pub fn segment(input: &[u8]) {
    if let Some(bytes) = input.first_chunk::<END_BYTES>()
        && let Ok(mark) = EndMark::decode(bytes)
    {
        assert_eq!(mark.encode(), *bytes);
    }
    let mut input = input.to_vec();
    let Some(header_bytes) = Header::bytes_needed(&input).ok().filter(|needed| (16..=input.len()).contains(needed))
    else {
        return;
    };
    mend_crc(&mut input[..header_bytes]);
    let Ok(header) = Header::decode(&input[..header_bytes]) else { return };
    assert_eq!(header.encode(), input[..header_bytes]);
    let mut walk = Walk::begin(&header, header_bytes);
    while let Some(total) = block(&mut input[walk.offset as usize..], &mut walk) {
        assert!(total >= BLOCK_HEADER_BYTES && walk.offset as usize <= input.len());
    }
}

/// The CRC of a header is its end.
fn mend_crc(header: &mut [u8]) {
    if let Some((body, crc)) = header.split_last_chunk_mut::<4>() {
        *crc = crc32fast::hash(body).to_le_bytes();
    }
}

fn block(bytes: &mut [u8], walk: &mut Walk) -> Option<usize> {
    let (header, _) = BlockHeader::decode(bytes.first_chunk()?, walk.offset).ok()?;
    let total = usize::try_from(header.total_bytes()).ok()?;
    let bytes = bytes.get_mut(..total)?;
    let crc = crc32fast::hash(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    let mut clear = bytes.to_vec();
    open_block((&header, crc), &mut clear, None, walk.offset).expect("the CRC was just made right");
    let before = *walk;
    walk.pass(&header).ok()?;
    assert!(walk.offset == before.offset + total as u64 && walk.end >= before.end);
    let mut again = Vec::new();
    encode_block(header, &clear, None, &mut again);
    assert_eq!(again, bytes, "a block encodes to what it was");
    check_records(&clear, walk.offset).ok()?;
    let (mut rest, mut written) = (clear.as_slice(), Vec::new());
    while let Some((record, record_bytes)) = split_record(rest) {
        let Record { payload, .. } = record;
        assert!(!payload.is_empty());
        record.encode(&mut written);
        rest = &rest[record_bytes..];
    }
    assert_eq!(written, clear, "messages encode to what they were");
    Some(total)
}
