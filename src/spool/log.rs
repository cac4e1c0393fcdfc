//! The bytes of one transaction, in blocks: the first on disk, the last in memory.
//!
//! ```text
//!   0 ───────── on_disk ─────────────────────── length
//!   │  in the file  │  in memory, the last one not full  │◄── append, truncate
//!                   └── spill: the first of these follows the others
//! ```
//!
//! **Always holds:** every block but the last is full. A byte is in the file or in memory, and not in both.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use super::file::BlockFile;
use crate::config::DiskKey;

#[derive(Debug)]
pub(super) struct Log {
    block_bytes: usize,
    length: u64,
    file: Option<BlockFile>,
    /// Blocks in the file.
    on_disk: u64,
    /// Those that follow them.
    memory: VecDeque<Vec<u8>>,
}

impl Log {
    pub fn new(block_bytes: usize) -> Log {
        Log { block_bytes, length: 0, file: None, on_disk: 0, memory: VecDeque::new() }
    }

    /// Where the next byte goes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// How much memory it holds.
    pub fn blocks_in_memory(&self) -> usize {
        self.memory.len()
    }

    /// How much room it takes on disk.
    pub fn bytes_on_disk(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| self.on_disk * file.slot_bytes() as u64)
    }

    /// # Errors
    /// If a block that was written has to be gone on with, and cannot be read.
    #[inline]
    pub fn append(&mut self, mut bytes: &[u8], scratch: &mut Vec<u8>) -> io::Result<()> {
        while !bytes.is_empty() {
            let block_bytes = self.block_bytes;
            let tail = self.tail(scratch)?;
            let (fitting, rest) = bytes.split_at(bytes.len().min(block_bytes - tail.len()));
            tail.extend_from_slice(fitting);
            self.length += fitting.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// The block that has room.
    #[inline]
    fn tail(&mut self, scratch: &mut Vec<u8>) -> io::Result<&mut Vec<u8>> {
        let within = self.length % self.block_bytes as u64;
        if within == 0 {
            self.memory.push_back(Vec::with_capacity(self.block_bytes));
        } else if self.memory.is_empty() {
            self.recall(within as usize, scratch)?;
        }
        Ok(self.memory.back_mut().expect("a block was just put there if there was none"))
    }

    /// Takes the last block back from the file, of which so many bytes count.
    #[cold]
    fn recall(&mut self, bytes: usize, scratch: &mut Vec<u8>) -> io::Result<()> {
        let Some(file) = &self.file else { return Err(lost()) };
        let place = self.on_disk.checked_sub(1).ok_or_else(lost)?;
        let mut block = Vec::with_capacity(self.block_bytes);
        file.read(place, &mut block, scratch)?;
        block.truncate(bytes);
        self.on_disk = place;
        self.memory.push_back(block);
        Ok(())
    }

    /// Cuts off what lies at `length` and behind it.
    ///
    /// # Errors
    /// If the file system does not take its room back.
    pub fn truncate(&mut self, length: u64) -> io::Result<()> {
        debug_assert!(length <= self.length, "what is cut off is there");
        let block_bytes = self.block_bytes as u64;
        let blocks = length.div_ceil(block_bytes);
        self.length = length;
        if blocks < self.on_disk {
            self.on_disk = blocks;
            if let Some(file) = &self.file {
                file.keep(blocks)?;
            }
        }
        self.memory.truncate((blocks - self.on_disk) as usize);
        if let (Some(last), Some(before)) = (self.memory.back_mut(), blocks.checked_sub(1)) {
            last.truncate((length - before * block_bytes) as usize);
        }
        Ok(())
    }

    /// Moves the first block in memory to the file. Where that fails, nothing has changed.
    pub fn spill(&mut self, dir: &Path, key: Option<&DiskKey>, scratch: &mut Vec<u8>) -> io::Result<()> {
        let Some(block) = self.memory.front_mut() else { return Ok(()) };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(BlockFile::create(dir, key, self.block_bytes)?),
        };
        file.write(self.on_disk, block, scratch)?;
        self.memory.pop_front();
        self.on_disk += 1;
        Ok(())
    }

    /// Appends to `out` what the block at this place holds, and forgets it if it is in memory. Blocks are taken in their
    /// order, and nothing is appended any more.
    pub fn take(&mut self, place: u64, out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> io::Result<()> {
        if place >= self.on_disk {
            out.extend(self.memory.pop_front().ok_or_else(lost)?);
            return Ok(());
        }
        let start = out.len();
        self.file.as_ref().ok_or_else(lost)?.read(place, out, scratch)?;
        let count = (self.length - place * self.block_bytes as u64).min(self.block_bytes as u64);
        out.truncate(start + count as usize);
        Ok(())
    }

    /// Appends to `out` what lies at `position`, and behind it in its block. It stays where it is.
    pub fn copy(&self, position: u64, out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> io::Result<()> {
        let (place, within) = (position / self.block_bytes as u64, (position % self.block_bytes as u64) as usize);
        if let Some(in_memory) = place.checked_sub(self.on_disk) {
            let block = self.memory.get(in_memory as usize).ok_or_else(lost)?;
            out.extend_from_slice(block.get(within..).ok_or_else(lost)?);
            return Ok(());
        }
        let start = out.len();
        self.file.as_ref().ok_or_else(lost)?.read(place, out, scratch)?;
        let count = (self.length - place * self.block_bytes as u64).min(self.block_bytes as u64);
        out.truncate(start + count as usize);
        out.drain(start..start + within);
        Ok(())
    }

    #[cfg(test)]
    pub fn file(&self) -> Option<&BlockFile> {
        self.file.as_ref()
    }
}

#[cold]
fn lost() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a block is missing; this is a bug in pgsluice")
}
