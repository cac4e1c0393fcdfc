//! Encryption of blocks on their way to disk: AES-256-GCM under a key that no other file has.
//!
//! **Always holds:** no nonce is used twice under one key. Each file has a key of its own, made of the configured one and
//! 256 random bits that are nowhere but in memory; within a file the nonce counts what was ever written, so a block that
//! is written over what was cut off has another one. Where a block belongs is authenticated with it, so blocks cannot
//! change places.

use std::fmt;

use aes_gcm::aead::{AeadInOut, KeyInit, Tag};
use aes_gcm::{Aes256Gcm, Nonce};
use hmac::{Hmac, Mac};
use rand::RngExt;
use sha2::Sha256;

use crate::config::SpoolKey;

/// The number of the nonce, which stands before the block.
const COUNTER_BYTES: usize = 8;
const TAG_BYTES: usize = 16;
/// What encryption adds to a block.
pub(super) const OVERHEAD_BYTES: usize = COUNTER_BYTES + TAG_BYTES;

/// A block on the disk is not what was written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Altered;

/// Of one file.
pub(super) struct Cipher {
    under: Box<Aes256Gcm>,
    /// Blocks that were encrypted so far.
    written: u64,
}

impl Cipher {
    pub fn new(key: &SpoolKey) -> Cipher {
        let salt: [u8; 32] = rand::rng().random();
        let mut derive = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes keys of any length");
        derive.update(b"pgsluice spool file");
        derive.update(&salt);
        let under = Aes256Gcm::new_from_slice(&derive.finalize().into_bytes()).expect("SHA-256 has 256 bits");
        Cipher { under: Box::new(under), written: 0 }
    }

    /// Appends to `out` what is to be written of the block at this place of the file.
    pub fn seal(&mut self, place: u64, block: &[u8], out: &mut Vec<u8>) {
        let counter = self.written;
        self.written += 1;
        out.extend(counter.to_be_bytes());
        let start = out.len();
        out.extend(block);
        let sealed =
            self.under.encrypt_inout_detached(&nonce(counter), &place.to_be_bytes(), (&mut out[start..]).into());
        out.extend(sealed.expect("a block is far smaller than what GCM can take"));
    }

    /// The block, in place, of what was written at this place of the file.
    pub fn open<'a>(&self, place: u64, sealed: &'a mut [u8]) -> Result<&'a [u8], Altered> {
        let (counter, rest) = sealed.split_first_chunk_mut::<COUNTER_BYTES>().ok_or(Altered)?;
        let (block, tag) = rest.split_last_chunk_mut::<TAG_BYTES>().ok_or(Altered)?;
        let (nonce, tag) = (nonce(u64::from_be_bytes(*counter)), Tag::<Aes256Gcm>::from(*tag));
        self.under
            .decrypt_inout_detached(&nonce, &place.to_be_bytes(), (&mut *block).into(), &tag)
            .map_err(|_| Altered)?;
        Ok(block)
    }
}

fn nonce(counter: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce.into()
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cipher").field("written", &self.written).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_opens_only_as_what_it_was_and_where_it_was() {
        let key = SpoolKey::new([7; 32]);
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
