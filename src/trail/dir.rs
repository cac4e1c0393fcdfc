//! The folder of a trail: which files are in it, and how they change so that a crash leaves the old or the new.
//!
//! ```text
//!  dir ─┬─ 0000000000000001.trail …   segments, by their numbers
//!       ├─ end                        up to where they are whole and on disk
//!       ├─ writer.lock                who writes
//!       └─ readers/NAME               who reads, and how far each has come
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pgsluice_proto::Lsn;

use super::format::{END_BYTES, EndMark, Fault};
use crate::error::{Error, Kind, Stage};

pub const STAGE: Stage = Stage::Trail;
const SUFFIX: &str = ".trail";
/// Of a file that is being made.
const NEW_SUFFIX: &str = ".new";
const READERS: &str = "readers";

#[derive(Clone, Debug)]
pub struct Dir(PathBuf);

impl Dir {
    pub fn new(path: &Path) -> Dir {
        Dir(path.to_owned())
    }

    /// Makes the folder where it is missing.
    pub fn create(path: &Path) -> Result<Dir, Error> {
        let readers = path.join(READERS);
        fs::create_dir_all(&readers).map_err(|error| failed(&readers, "make the folder", error))?;
        Ok(Dir(path.to_owned()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn segment(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number:016}{SUFFIX}"))
    }

    pub fn end(&self) -> PathBuf {
        self.0.join("end")
    }

    pub fn lock(&self) -> PathBuf {
        self.0.join("writer.lock")
    }

    pub fn readers(&self) -> PathBuf {
        self.0.join(READERS)
    }

    /// Does something with the numbers of the segments that are there, ascending; none where there is no folder. Those that every
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
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| failed(&self.0, "list the folder", error))?,
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let name = entry.map_err(|error| failed(&self.0, "list the folder", error))?.file_name();
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

    /// Removes what a crash has left half-made.
    pub fn sweep(&self) -> Result<(), Error> {
        for folder in [self.0.clone(), self.readers()] {
            for entry in fs::read_dir(&folder).map_err(|error| failed(&folder, "list the folder", error))? {
                let path = entry.map_err(|error| failed(&folder, "list the folder", error))?.path();
                if path.to_str().is_some_and(|path| path.ends_with(NEW_SUFFIX)) {
                    remove(&path)?;
                }
            }
        }
        Ok(())
    }

    pub fn sync(&self) -> Result<(), Error> {
        sync_folder(&self.0).map_err(|error| failed(&self.0, "sync the folder", error))
    }
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

/// Makes a file with these contents, whole and on disk, or leaves what was there.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let new = PathBuf::from(format!("{}{NEW_SUFFIX}", path.display()));
    let mut file = File::create(&new)?;
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
