//! Directories and ports that belong to one server at a time, across all test processes of this machine.
//!
//! Ownership is a file lock, which the kernel releases however the owner ends. So a port is never handed out twice, and
//! what a killed test left behind is known to be nobody's: the next test process removes it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::net::TcpListener;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::postgres::server_user;

/// A Unix socket's path has room for 107 bytes, so neither `$TMPDIR` nor a Cargo target folder will do.
const DISK: &str = "/tmp";
/// A data directory is over a thousand files, and making those can take a disk's file system a second.
const MEMORY: &str = "/dev/shm";
/// With less to spare, a test with much data could fill it.
const MEMORY_FREE_BYTES_MIN: u64 = 8 << 30;
/// Names another place for the servers.
const PLACE_VARIABLE: &str = "PGSLUICE_TEST_DIR";
const PREFIX: &str = "pgsl-";
const LOCK: &str = "lock";

/// Below the range from which Linux takes the local ports of outgoing connections: a stopped server finds its port free.
const PORTS: Range<u16> = 20_000..32_000;

/// Where a server keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    Disk,
    /// A file system in memory, where the machine has one of enough room; else the disk.
    Memory,
}

impl Medium {
    fn root(self) -> PathBuf {
        let roomy = |stat: rustix::fs::StatVfs| stat.f_bavail.saturating_mul(stat.f_frsize) >= MEMORY_FREE_BYTES_MIN;
        match (std::env::var_os(PLACE_VARIABLE), self) {
            (Some(place), _) => place.into(),
            (None, Self::Memory) if rustix::fs::statvfs(MEMORY).is_ok_and(roomy) => MEMORY.into(),
            (None, Self::Memory | Self::Disk) => DISK.into(),
        }
    }
}

/// A fresh directory, owned by the servers' user, removed when dropped.
#[derive(Debug)]
pub(crate) struct ServerDir {
    dir: TempDir,
    _lock: File,
}

impl ServerDir {
    pub(crate) fn create(medium: Medium) -> Result<Self> {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(|| {
            [DISK, MEMORY].into_iter().map(PathBuf::from).chain(shared_dir()).for_each(|root| sweep(&root))
        });
        Self::create_in(&medium.root())
    }

    pub(crate) fn create_in(root: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(root)?;
        // Renamed once it is locked: a lock file that is there and free means a dead owner.
        let unnamed = dir.path().join("lock.new");
        let lock = lock_file(&unnamed, FlockOperation::LockExclusive)?;
        fs::rename(unnamed, dir.path().join(LOCK))?;
        give_to_server_user(dir.path())?;
        Ok(Self { dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// A TCP port of 127.0.0.1 that no other test has, until dropped.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    pub(crate) fn reserve() -> Result<Self> {
        // Processes start at different places, so that they seldom meet.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let locks = shared_dir()?.join("ports");
        fs::create_dir_all(&locks)?;
        let spread = (std::process::id().wrapping_mul(97) % u32::from(PORTS.end - PORTS.start)) as u16;
        for _ in PORTS {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = PORTS.start + spread.wrapping_add(step) % (PORTS.end - PORTS.start);
            let lock = lock_file(&locks.join(number.to_string()), FlockOperation::NonBlockingLockExclusive);
            if let (Ok(lock), Ok(_)) = (lock, TcpListener::bind(("127.0.0.1", number))) {
                return Ok(Self { number, _lock: lock });
            }
        }
        bail!("no free port in {PORTS:?}")
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

/// Where the kit keeps what outlives a test: port locks and templates. One folder a user.
pub(crate) fn shared_dir() -> Result<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let dir = PathBuf::from(format!("{DISK}/pgsluice-testkit-{uid}"));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // initdb goes through it as the servers' user.
    fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// Opens or makes a file and locks it for as long as the returned handle lives.
pub(crate) fn lock_file(path: &Path, operation: FlockOperation) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    flock(&file, operation)?;
    Ok(file)
}

pub(crate) fn give_to_server_user(path: &Path) -> Result<()> {
    if let Some((uid, gid)) = server_user()? {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// Removes the directories of owners that were killed before they could.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let lock = entry.path().join(LOCK);
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !lock.exists() {
            continue;
        }
        if let Ok(_abandoned) = lock_file(&lock, FlockOperation::NonBlockingLockExclusive) {
            // Another user's directory stays.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}
