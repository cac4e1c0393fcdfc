//! Encryption of blocks on their way to disk: AES-256-GCM under a key that no other file has.
//!
//! **Always holds:** each file has a key of its own, made of the configured one and 256 random bits. Whoever writes the file sees
//! to it that no nonce comes twice in it, and says with what a block is authenticated: where it belongs, at least.

use std::fmt;

use aes_gcm::aead::{AeadInOut, KeyInit, Tag};
use aes_gcm::{Aes256Gcm, Nonce};
use hmac::{Hmac, Mac};
use rand::RngExt;
use sha2::Sha256;

use crate::config::DiskKey;

/// What encryption adds to a block.
pub const TAG_BYTES: usize = 16;

/// A block on the disk is not what was written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Altered;

/// Of one file.
pub struct Key(Box<Aes256Gcm>);

impl Key {
    /// Random bits for a file, of which there is no other.
    pub fn salt() -> [u8; 32] {
        rand::rng().random()
    }

    /// The key of the file with this salt, among those of the same `purpose`.
    pub fn derive(key: &DiskKey, purpose: &[u8], salt: &[u8; 32]) -> Key {
        let mut derive = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes keys of any length");
        derive.update(purpose);
        derive.update(salt);
        let under = Aes256Gcm::new_from_slice(&derive.finalize().into_bytes()).expect("SHA-256 has 256 bits");
        Key(Box::new(under))
    }

    /// Encrypts a block in place.
    pub fn seal(&self, counter: u64, authenticated: &[u8], block: &mut [u8]) -> [u8; TAG_BYTES] {
        let tag = self.0.encrypt_inout_detached(&nonce(counter), authenticated, block.into());
        tag.expect("a block is far smaller than what GCM can take").into()
    }

    /// Decrypts a block in place.
    pub fn open(
        &self,
        counter: u64,
        authenticated: &[u8],
        block: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), Altered> {
        let tag = Tag::<Aes256Gcm>::from(*tag);
        self.0.decrypt_inout_detached(&nonce(counter), authenticated, block.into(), &tag).map_err(|_| Altered)
    }
}

fn nonce(counter: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce.into()
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}
