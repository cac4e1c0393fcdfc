//! The folder of a trail: which files are in it, and how they change so that a crash leaves the old or the new.
//!
//! ```text
//!  dir ─┬─ 0000000000000001.trail …   segments, by their numbers
//!       ├─ end                        up to where they are whole and on disk
//!       ├─ identity                   which trail it is
//!       ├─ writer.lock                who writes
//!       └─ readers/NAME               who reads, and how far each has come
//! ```
//!
//! **Always holds:** a path leads to the folder that was opened, or to an error: where a disk is unmounted, the folder below it is
//! another one, and nothing is written there.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pgsluice_proto::Lsn;

use super::access;
use super::format::{END_BYTES, EndMark, Fault};
use crate::error::{Error, Kind, Stage};

pub const STAGE: Stage = Stage::Trail;
const SUFFIX: &str = ".trail";
/// Of a file that is being made.
const NEW_SUFFIX: &str = ".new";
const READERS: &str = "readers";
/// A reader is done with a file long before that. Until then it may be one that another process is making.
const MADE_WITHIN: Duration = Duration::from_secs(60);

/// The folder of a trail, as it was opened.
#[derive(Clone, Debug)]
pub struct Dir {
    path: PathBuf,
    place: Place,
}

/// Which folder a path leads to, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    device: u64,
    inode: u64,
}

impl Place {
    fn of(found: &Metadata) -> Place {
        Place { device: found.dev(), inode: found.ino() }
    }
}

impl Dir {
    /// The folder, closed to other users; `None` where there is none.
    ///
    /// # Errors
    /// A refusal if it is no folder, or others may write it.
    pub fn open(path: &Path) -> Result<Option<Dir>, Error> {
        let found = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(|error| failed(path, "open the folder", error))?,
        };
        if !found.is_dir() {
            let what = format!("{} is to be the folder of the trail, and is no folder", path.display());
            return Err(Error::refused(STAGE, what, "correct `dir` in [trail]"));
        }
        access::close(path, &path.join(READERS), &found)?;
        Ok(Some(Dir { path: path.to_owned(), place: Place::of(&found) }))
    }

    /// Makes the folder where it is missing. Only who begins a trail may: to anybody else an empty folder is a disk that is not mounted.
    pub fn create(path: &Path) -> Result<Dir, Error> {
        let missing = || failed(path, "make the folder", io::ErrorKind::NotFound.into());
        access::make_folder(path).map_err(|error| failed(path, "make the folder", error))?;
        let dir = Dir::open(path)?.ok_or_else(missing)?;
        access::make_folder(&dir.readers()).map_err(|error| failed(&dir.readers(), "make the folder", error))?;
        Ok(dir)
    }

    /// # Errors
    /// If the path leads to another folder by now.
    pub fn check_place(&self) -> Result<(), Error> {
        let gone = "it is not the folder that was opened: is the disk of the trail still mounted?";
        match fs::metadata(&self.path) {
            Ok(found) if Place::of(&found) == self.place => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed(&self.path, "go on in the folder", error))
            }
            Ok(_) | Err(_) => {
                let source = io::Error::new(io::ErrorKind::NotFound, gone);
                Err(failed(&self.path, "go on in the folder", source))
            }
        }
    }

    /// Whether anything of a trail is in it.
    pub fn has_trail(&self) -> Result<bool, Error> {
        Ok(self.end().exists() || self.identity().exists() || !self.list()?.is_empty())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn segment(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:016}{SUFFIX}"))
    }

    pub fn end(&self) -> PathBuf {
        self.path.join("end")
    }

    pub fn identity(&self) -> PathBuf {
        self.path.join("identity")
    }

    pub fn lock(&self) -> PathBuf {
        self.path.join("writer.lock")
    }

    pub fn readers(&self) -> PathBuf {
        self.path.join(READERS)
    }

    /// Does something with the numbers of the segments that are there, ascending. Those that every
    /// reader has passed may go meanwhile, from the first one on: then it is done again.
    ///
    /// # Errors
    /// A refusal if one is missing between others; those of what is done.
    pub fn with_segments<T>(&self, work: impl Fn(&[u64]) -> Result<T, Error>) -> Result<T, Error> {
        const TRIES: usize = 100;
        let mut tries = 0;
        loop {
            let numbers = self.list()?;
            let error = match self.check_gap(&numbers).and_then(|()| work(&numbers)) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            tries += 1;
            if tries == TRIES || self.list()?.first() == numbers.first() {
                return Err(error);
            }
        }
    }

    pub fn segments(&self) -> Result<Vec<u64>, Error> {
        self.with_segments(|numbers| Ok(numbers.to_owned()))
    }

    fn list(&self) -> Result<Vec<u64>, Error> {
        let failed = |error| failed(&self.path, "list the folder", error);
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(|name| name.parse().ok());
            numbers.extend(number.filter(|number| self.segment(*number).file_name() == Some(&name)));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn check_gap(&self, numbers: &[u64]) -> Result<(), Error> {
        match numbers.windows(2).find(|pair| pair[1] != pair[0] + 1) {
            Some(pair) => Err(self.missing(pair[0] + 1)),
            None => Ok(()),
        }
    }

    /// A segment that has to be there is not.
    pub fn missing(&self, number: u64) -> Error {
        if let Err(error) = self.check_place() {
            return error;
        }
        Error::refused(
            STAGE,
            format!(
                "the trail has a gap: segment {} is missing, and its changes with it",
                self.segment(number).display()
            ),
            "put the file back where it was; else what it held is lost to the targets: `pgsluice teardown`, `pgsluice setup`, and \
             copy the tables again",
        )
    }

    /// `None` where there is none yet.
    pub fn read_end(&self) -> Result<Option<Result<EndMark, Fault>>, Error> {
        match File::open(self.end()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&self.end(), "open", error)),
            Ok(file) => read_end(&file).map(Some).map_err(|error| failed(&self.end(), "read", error)),
        }
    }

    /// Removes what a crash has left half-made. In the folder itself nobody makes files but who has the lock; what readers are making
    /// is left to them.
    pub fn sweep(&self) -> Result<(), Error> {
        for folder in [&self.path, &self.readers()] {
            let failed = |error| failed(folder, "list the folder", error);
            for entry in fs::read_dir(folder).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                let is_half_made = path.to_str().is_some_and(|path| path.ends_with(NEW_SUFFIX));
                if is_half_made && (*folder == self.path || is_left_behind(&path)) {
                    remove(&path)?;
                }
            }
        }
        Ok(())
    }

    pub fn sync(&self) -> Result<(), Error> {
        sync_folder(&self.path).map_err(|error| failed(&self.path, "sync the folder", error))
    }
}

/// Nobody has written it for so long that whoever made it has ended. One that goes meanwhile is somebody's.
fn is_left_behind(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|file| file.modified());
    modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > MADE_WITHIN))
}

/// The mark, or what is wrong with it. A read amid a write may see half of each, so it is tried again.
pub fn read_end(file: &File) -> io::Result<Result<EndMark, Fault>> {
    const TRIES: usize = 50;
    let mut last = Fault { offset: 0, what: "the end mark is not whole" };
    for _ in 0..TRIES {
        let mut bytes = [0; END_BYTES];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
            Ok(()) => match EndMark::decode(&bytes) {
                Ok(mark) if file.metadata()?.len() == END_BYTES as u64 => return Ok(Ok(mark)),
                Ok(_) => last = Fault { offset: END_BYTES as u64, what: "the end mark is longer than it can be" },
                Err(fault) => last = fault,
            },
        }
        std::thread::yield_now();
    }
    Ok(Err(last))
}

/// Makes a file with these contents, whole and on disk, or leaves what was there. Two processes may do so at once: each makes a file of
/// its own, and the last one to be done counts.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}{NEW_SUFFIX}", std::process::id()));
    let new = PathBuf::from(new);
    let mut file = access::new_file().truncate(true).open(&new)?;
    file.write_all(contents)?;
    file.sync_data()?;
    drop(file);
    fs::rename(&new, path)?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, "remove", error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// There is no room, or none for us.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cold]
pub fn failed(path: &Path, doing: &'static str, source: io::Error) -> Error {
    Error::new(STAGE, Kind::Trail { path: path.to_owned(), doing, source })
}

#[cold]
pub fn damaged(path: &Path, fault: Fault) -> Error {
    let Fault { offset, what } = fault;
    Error::new(STAGE, Kind::TrailDamaged { path: path.to_owned(), offset, what })
}

/// A folder without a trail is as a disk that is not mounted, and nothing tells the two apart.
#[cold]
pub fn no_trail(path: &Path) -> Error {
    Error::refused(
        STAGE,
        format!("there is no trail in {}", path.display()),
        "is its disk mounted? If it is, and `dir` in [trail] is right: for a replication that has had no trail yet, `pgsluice setup` \
         begins one; if the trail is lost, `pgsluice teardown`, `pgsluice setup`, and copy the tables again",
    )
}

/// Progress is before what is left of a trail.
pub fn passed_over(begins_at: Lsn, progress: Lsn) -> Error {
    Error::refused(
        STAGE,
        format!(
            "the trail begins at {begins_at}, past the target's progress {progress}: changes between the two are not in it"
        ),
        "segments were removed before this reader was known, or the target was restored; `pgsluice teardown`, `pgsluice setup`, and \
         copy the tables again",
    )
}
