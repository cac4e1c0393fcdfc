//! Who may read a trail: the user that the engines run as, and nobody else, since every value of every row lies in it.
//!
//! In: a folder as it is found. Out: the same folder, closed to others, or a refusal.
//!
//! **Always holds:** folders are made 0700 and files 0600, whatever the umask is. A folder that others may write is refused: what lies
//! in it may be theirs. One that others may only read, as an earlier version made it, is closed when its owner opens it.

use std::fs::{self, DirBuilder, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::dir::{STAGE, failed};
use crate::error::Error;

const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Bits of a mode that let anybody but the owner in, and those of them that let them write.
const OTHERS: u32 = 0o077;
const OTHERS_WRITE: u32 = 0o022;
/// The magic numbers of `statfs(2)` for file systems whose locks may hold on one host alone.
const NETWORK_FILE_SYSTEMS: [(i64, &str); 6] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
];

/// Makes a folder where it is missing, and those above it as the umask has them.
pub fn make_folder(path: &Path) -> io::Result<()> {
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        fs::create_dir_all(above)?;
    }
    match DirBuilder::new().mode(FOLDER_MODE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// Options that make a file for its owner alone.
pub fn new_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).write(true).mode(FILE_MODE);
    options
}

/// Closes a folder of ours to others, and what lies in it and in the folder of readers.
///
/// # Errors
/// A refusal if others may write it.
pub fn close(path: &Path, readers: &Path, found: &Metadata) -> Result<(), Error> {
    let mode = found.mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        let what = format!(
            "users other than its owner may write the folder of the trail, {} (mode {mode:04o})",
            path.display()
        );
        let mend = format!(
            "check that everything in it is yours, then: chmod 700 '{}'; or name another folder as `dir` in [trail]",
            path.display()
        );
        return Err(Error::refused(STAGE, what, mend));
    }
    if mode & OTHERS == 0 || found.uid() != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    set_mode(path, FOLDER_MODE)?;
    let mut closed = 0;
    for folder in [path, readers] {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(|error| failed(folder, "list the folder", error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| failed(folder, "list the folder", error))?;
            closed += usize::from(close_entry(&entry.path(), found.uid())?);
        }
    }
    tracing::info!(
        dir = %path.display(),
        files = closed,
        "the folder of the trail was open to other users (mode {mode:04o}), and is not any more: 0700, and 0600 for its files"
    );
    Ok(())
}

/// True where it was open to others. What is of another owner stays as it is, and so does what goes meanwhile.
fn close_entry(path: &Path, owner: u32) -> Result<bool, Error> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(false) };
    if found.uid() != owner || found.mode() & OTHERS == 0 {
        return Ok(false);
    }
    let mode = if found.is_dir() { FOLDER_MODE } else { FILE_MODE };
    if !found.is_dir() && !found.is_file() {
        return Ok(false);
    }
    match set_mode(path, mode) {
        Err(_) if !path.exists() => Ok(false),
        closed => closed.map(|()| true),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    let set = fs::set_permissions(path, Permissions::from_mode(mode));
    set.map_err(|error| failed(path, "close to other users", error))
}

/// Warns where two hosts could both take the lock of whoever writes.
pub fn warn_of_network(path: &Path) {
    let Ok(found) = rustix::fs::statfs(path) else { return };
    #[expect(clippy::unnecessary_cast, reason = "its type differs from one architecture to another")]
    let magic = found.f_type as i64 & 0xffff_ffff;
    if let Some((_, name)) = NETWORK_FILE_SYSTEMS.iter().find(|(known, _)| *known == magic) {
        tracing::warn!(
            dir = %path.display(),
            "the trail lies on a network file system ({name}): where its locks do not hold between hosts, two engines could \
             write it at once; let only one host run them"
        );
    }
}
