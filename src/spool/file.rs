//! A file without a name, of blocks that all have one size.
//!
//! It has no name from its beginning, or loses it at once where the file system knows no such files: so nothing remains of
//! it whichever way its process ends, and no other process meets it.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::cipher::{Cipher, OVERHEAD_BYTES};
use crate::config::DiskKey;

#[derive(Debug)]
pub(super) struct BlockFile {
    file: fs::File,
    cipher: Option<Cipher>,
    block_bytes: usize,
}

impl BlockFile {
    pub fn create(dir: &Path, key: Option<&DiskKey>, block_bytes: usize) -> io::Result<BlockFile> {
        Ok(BlockFile { file: tempfile::tempfile_in(dir)?, cipher: key.map(Cipher::new), block_bytes })
    }

    /// Writes a block, or the beginning of one. `scratch` is what it is made ready in.
    pub fn write(&mut self, place: u64, block: &mut Vec<u8>, scratch: &mut Vec<u8>) -> io::Result<()> {
        let bytes = block.len();
        // Whole on disk, so that no length has to be kept; how much of it counts, the log knows.
        block.resize(self.block_bytes, 0);
        let at = self.offset(place);
        let written = match &mut self.cipher {
            None => self.file.write_all_at(block, at),
            Some(cipher) => {
                scratch.clear();
                cipher.seal(place, block, scratch);
                self.file.write_all_at(scratch, at)
            }
        };
        block.truncate(bytes);
        written
    }

    /// Appends a block to `out`.
    pub fn read(&self, place: u64, out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> io::Result<()> {
        let at = self.offset(place);
        match &self.cipher {
            None => {
                let start = out.len();
                out.resize(start + self.block_bytes, 0);
                self.file.read_exact_at(&mut out[start..], at)
            }
            Some(cipher) => {
                scratch.resize(self.slot_bytes(), 0);
                self.file.read_exact_at(scratch, at)?;
                let altered = |_| io::Error::new(io::ErrorKind::InvalidData, "a block was altered on the disk");
                out.extend(cipher.open(place, scratch).map_err(altered)?);
                Ok(())
            }
        }
    }

    /// Gives back the room of all blocks but the first.
    pub fn keep(&self, blocks: u64) -> io::Result<()> {
        self.file.set_len(self.offset(blocks))
    }

    /// What a block takes on the disk.
    pub fn slot_bytes(&self) -> usize {
        self.block_bytes + if self.cipher.is_some() { OVERHEAD_BYTES } else { 0 }
    }

    fn offset(&self, place: u64) -> u64 {
        place * self.slot_bytes() as u64
    }

    #[cfg(test)]
    pub fn raw(&self) -> &fs::File {
        &self.file
    }
}
