//! A disk that can be filled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use tempfile::TempDir;

const DISK_MIB: u64 = 16;

/// A file system with little room, which is unmounted with this.
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// # Errors
    /// Without the right to mount.
    pub fn mount() -> Result<SmallDisk> {
        let folder = tempfile::tempdir()?;
        let options = format!("size={DISK_MIB}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).output()?;
        ensure!(mounted.status.success(), "mount: {}", String::from_utf8_lossy(&mounted.stderr));
        Ok(SmallDisk(folder))
    }

    /// Leaves no room at all.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = fs::File::create(self.ballast())?;
        // It ends where there is no room any more, which is what is wanted.
        let written = std::io::copy(&mut std::io::repeat(0), &mut ballast);
        ensure!(written.is_err(), "the disk has no end");
        Ok(())
    }

    pub fn clear(&self) -> Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Nothing takes room on it.
    pub fn has_room(&self) -> Result<()> {
        Ok(fs::write(self.ballast(), vec![0; (DISK_MIB << 20) as usize - (1 << 20)])?)
    }

    fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still has it open keeps it until then.
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} could not be unmounted", self.0.path().display());
        }
    }
}
