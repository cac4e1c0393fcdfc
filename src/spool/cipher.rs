//! How a block is written with encryption: the number of its nonce, the block, and what authenticates both.
//!
//! **Always holds:** no nonce is used twice in a file. It counts what was ever written, so a block that is written over what was
//! cut off has another one. The random bits of a file's key are nowhere but in memory. Where a block belongs is authenticated
//! with it, so blocks cannot change places.

use crate::config::DiskKey;
use crate::storage::{Altered, Key, TAG_BYTES};

/// The number of the nonce, which stands before the block.
const COUNTER_BYTES: usize = 8;
/// What encryption adds to a block.
pub(super) const OVERHEAD_BYTES: usize = COUNTER_BYTES + TAG_BYTES;

/// Of one file.
#[derive(Debug)]
pub(super) struct Cipher {
    key: Key,
    /// Blocks that were encrypted so far.
    written: u64,
}

impl Cipher {
    pub fn new(key: &DiskKey) -> Cipher {
        Cipher { key: Key::derive(key, b"pgsluice spool file", &Key::salt()), written: 0 }
    }

    /// Appends to `out` what is to be written of the block at this place of the file.
    pub fn seal(&mut self, place: u64, block: &[u8], out: &mut Vec<u8>) {
        let counter = self.written;
        self.written += 1;
        out.extend(counter.to_be_bytes());
        let start = out.len();
        out.extend(block);
        let tag = self.key.seal(counter, &place.to_be_bytes(), &mut out[start..]);
        out.extend(tag);
    }

    /// The block, in place, of what was written at this place of the file.
    pub fn open<'a>(&self, place: u64, sealed: &'a mut [u8]) -> Result<&'a [u8], Altered> {
        let (counter, rest) = sealed.split_first_chunk_mut::<COUNTER_BYTES>().ok_or(Altered)?;
        let (block, tag) = rest.split_last_chunk_mut::<TAG_BYTES>().ok_or(Altered)?;
        self.key.open(u64::from_be_bytes(*counter), &place.to_be_bytes(), block, tag)?;
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_opens_only_as_what_it_was_and_where_it_was() {
        let key = DiskKey::new([7; 32]);
        let (mut cipher, other) = (Cipher::new(&key), Cipher::new(&key));
        let block = b"the same clear text ".repeat(10);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        cipher.seal(3, &block, &mut first);
        cipher.seal(3, &block, &mut second);
        assert_eq!(first.len(), block.len() + OVERHEAD_BYTES);
        assert_ne!(first, second, "each has a nonce of its own");
        assert!(!first.windows(8).any(|bytes| block.windows(8).any(|clear| clear == bytes)));
        assert_eq!(cipher.open(3, &mut first.clone()), Ok(&block[..]));
        assert_eq!(cipher.open(4, &mut first.clone()), Err(Altered), "at another place");
        assert_eq!(other.open(3, &mut first.clone()), Err(Altered), "in another file");
        for byte in 0..first.len() {
            let mut flipped = first.clone();
            flipped[byte] ^= 1;
            assert_eq!(cipher.open(3, &mut flipped), Err(Altered), "byte {byte}");
        }
    }
}
