//! A disk that can be filled: a small tmpfs of its own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::Server;

/// A file system with little room, which is unmounted with this.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
    mib: u64,
}

impl SmallDisk {
    /// # Errors
    /// Without the right to mount.
    pub fn mount(mib: u64) -> Result<SmallDisk> {
        SmallDisk::mount_with(mib, "mode=700")
    }

    /// One that this server may write to.
    ///
    /// # Errors
    /// Without the right to mount.
    pub fn mount_for(server: &Server, mib: u64) -> Result<SmallDisk> {
        let owner = fs::metadata(server.data_dir())?;
        SmallDisk::mount_with(mib, &format!("mode=700,uid={},gid={}", owner.uid(), owner.gid()))
    }

    fn mount_with(mib: u64, options: &str) -> Result<SmallDisk> {
        let folder = tempfile::tempdir()?;
        let options = format!("size={mib}m,{options}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).output()?;
        ensure!(mounted.status.success(), "mount: {}", String::from_utf8_lossy(&mounted.stderr));
        Ok(SmallDisk { folder, mib })
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
        self.folder.path()
    }

    /// Nothing takes room on it.
    pub fn has_room(&self) -> Result<()> {
        Ok(fs::write(self.ballast(), vec![0; ((self.mib - 1) << 20) as usize])?)
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still has it open keeps it until then.
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} could not be unmounted", self.path().display());
        }
    }
}
