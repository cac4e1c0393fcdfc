//! A small disk for the tables of C, to be filled: a tablespace on a tmpfs of its own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Result, ensure};
use pgsluice_testkit::Server;
use tempfile::TempDir;

/// Room for the tables of a run, and a little more.
const SIZE_MIB: u64 = 512;
pub const TABLESPACE: &str = "small";

#[derive(Debug)]
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// # Errors
    /// Without the right to mount.
    pub async fn mount(c: &Server) -> Result<SmallDisk> {
        let folder = tempfile::Builder::new().prefix("pgsluice-chaos").tempdir_in("/tmp")?;
        let owner = fs::metadata(c.data_dir())?;
        let options = format!("size={SIZE_MIB}m,mode=700,uid={},gid={}", owner.uid(), owner.gid());
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).output()?;
        ensure!(mounted.status.success(), "mount: {}", String::from_utf8_lossy(&mounted.stderr));
        // From here on it is unmounted however this ends.
        let disk = SmallDisk(folder);
        let walkable =
            Command::new("chmod").arg("711").arg(disk.0.path().parent().unwrap_or(disk.0.path())).status()?;
        ensure!(walkable.success() || disk.0.path().parent().is_some(), "the disk cannot be reached");
        c.sql("postgres", &format!("CREATE TABLESPACE {TABLESPACE} LOCATION '{}'", disk.0.path().display())).await?;
        Ok(disk)
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

    fn ballast(&self) -> std::path::PathBuf {
        self.0.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // C may still have it open: it goes with the last who does.
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} could not be unmounted", self.0.path().display());
        }
    }
}
