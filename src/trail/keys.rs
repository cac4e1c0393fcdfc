//! The keys of a trail, by their names.
//!
//! A segment says under which key it is. A new key is for segments from then on; those that are there stay under theirs until they
//! are removed.

use std::fmt::Write;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::dir::STAGE;
use super::format::{Encryption, Header, Seal};
use crate::config::{DiskKey, TrailConfig};
use crate::error::Error;
use crate::storage::Key;

/// Of the name of a key, in bytes.
const ID_BYTES: usize = 8;

#[derive(Clone, Debug, Default)]
pub struct Keys {
    current: Option<DiskKey>,
    old: Vec<DiskKey>,
}

impl Keys {
    pub fn new(config: &TrailConfig) -> Keys {
        Keys { current: config.key.clone(), old: config.old_keys.clone() }
    }

    /// For a new segment.
    pub fn encryption(&self) -> Option<Encryption> {
        self.current.as_ref().map(|key| Encryption { key_id: id(key), salt: Key::salt() })
    }

    /// Whether a new segment would be under the same key.
    pub fn is_current(&self, header: &Header) -> bool {
        header.encryption.as_ref().map(|encryption| &encryption.key_id) == self.current.as_ref().map(id).as_ref()
    }

    /// What opens the blocks of a segment; `header_bytes` are its header as it lies there.
    ///
    /// # Errors
    /// A refusal if its key is not known.
    pub fn seal(&self, path: &Path, header: &Header, header_bytes: &[u8]) -> Result<Option<Seal>, Error> {
        let Some(encryption) = &header.encryption else { return Ok(None) };
        let known = self.current.iter().chain(&self.old).find(|key| id(key) == encryption.key_id);
        let key = known.ok_or_else(|| {
            Error::refused(
                STAGE,
                format!("{} is encrypted under the key {}, which is not known", path.display(), encryption.key_id),
                "name the file with that key as `key_file` in [trail], or among `old_key_files` if there is a newer one",
            )
        })?;
        Ok(Some(Seal::new(key, encryption, header_bytes)))
    }
}

/// It says nothing about the key but which one it is.
fn id(key: &DiskKey) -> String {
    let mut derive = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes keys of any length");
    derive.update(b"pgsluice trail key id");
    let mut id = String::new();
    for byte in derive.finalize().into_bytes().iter().take(ID_BYTES) {
        write!(id, "{byte:02x}").expect("a string takes all that is written");
    }
    id
}
