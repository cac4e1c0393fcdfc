//! Changes on disk between source and target: an outage of the target is not one of the source's.
//!
//! ```text
//!  source ──► intake ──► Writer ──► segments ──► Tail ──► decode ──► … ──► target       as many as there are configurations
//!     ▲                    │ synced                │
//!     └──── confirmed ◄────┘                       └─► readers/NAME: so much is on the target ──► what all have passed goes
//! ```
//!
//! In: messages of whole transactions in the order of their commits, and positions. Out: the same, to any number of readers, each from
//! where its target stands.
//!
//! **Always holds:**
//! - What is confirmed to the source is synced here, or was passed by every reader.
//! - A reader sees what is whole and durable, and nothing else; where bytes are not what was written, it stops.
//! - There is one writer, and it is the one that has the lock.
//! - Only setup begins a trail. An empty folder is a trail that is missing, to whoever else comes.
//! - Progress on a target decides what is applied there. Nothing here does.
//!
//! Why not files of the source's WAL: those say nothing without the source's catalogs, and of these only the source knows how they
//! were.

mod access;
mod current;
mod dir;
mod format;
mod identity;
mod keys;
mod known;
mod lock;
mod readers;
mod recover;
mod segment;
mod tail;
#[cfg(test)]
mod tests;
mod verify;
mod walk;
mod writer;

use pgsluice_proto::{Lsn, TimelineId};

use self::dir::Dir;
pub use self::dir::passed_over;
pub use self::format::{EndMark, Header, Origin};
pub use self::lock::{Command, Lock, WriterState};
pub use self::readers::{Reader, ReaderOf};
pub use self::segment::Record;
use self::segment::Segment;
pub use self::tail::{Tail, Tailed};
pub use self::verify::{Listed, Trail, list, verify};
pub use self::writer::{Room, Writer};
use crate::config::TrailConfig;
use crate::error::Error;

/// Takes the lock of whoever writes; `None` where another process has it.
///
/// # Errors
/// A refusal where there is no trail: the disk may not be mounted, and nothing is made in the folder below it.
pub fn lock(config: &TrailConfig, command: Command) -> Result<Option<Lock>, Error> {
    Lock::take(&expect_dir(config)?, command)
}

/// Takes the lock of a trail that is to begin. The folder is made where it is missing.
pub fn lock_new(config: &TrailConfig) -> Result<Option<Lock>, Error> {
    Lock::take(&Dir::create(&config.dir)?, Command::Setup)
}

/// Whether there is anything of a trail.
pub fn is_there(config: &TrailConfig) -> Result<bool, Error> {
    Dir::open(&config.dir)?.map_or(Ok(false), |dir| dir.has_trail())
}

/// # Errors
/// A refusal where there is no trail.
fn expect_dir(config: &TrailConfig) -> Result<Dir, Error> {
    match Dir::open(&config.dir)? {
        Some(dir) if dir.has_trail()? => Ok(dir),
        Some(_) | None => Err(dir::no_trail(&config.dir)),
    }
}

/// Goes on holding it where the folder is another one than it was, as one that is mounted again. False where somebody else has it.
pub fn hold(config: &TrailConfig, lock: &mut Lock) -> Result<bool, Error> {
    lock.hold(&expect_dir(config)?)
}

/// Who writes now; `None` where nobody does.
pub fn writer(config: &TrailConfig) -> Result<Option<WriterState>, Error> {
    Dir::open(&config.dir)?.map_or(Ok(None), |dir| lock::writer(&dir))
}

/// What a trail says of itself.
#[derive(Clone, Debug)]
pub struct Known {
    /// Which trail it is; `None` for one of an earlier version that nobody has written to since.
    pub id: Option<String>,
    pub origin: Origin,
    /// Timelines that the source has left, and where.
    pub history: Vec<(TimelineId, Lsn)>,
    pub timeline: TimelineId,
    pub begins_at: Lsn,
    pub ends_at: Lsn,
}

/// `None` where there is none.
pub fn read(config: &TrailConfig) -> Result<Option<Known>, Error> {
    let Some(dir) = Dir::open(&config.dir)? else { return Ok(None) };
    dir.with_segments(|numbers| {
        let (Some(mark), Some(first), Some(last)) = (tail::read_mark(&dir)?, numbers.first(), numbers.last()) else {
            return Ok(None);
        };
        let begins_at = Segment::peek(&dir, *first)?.starts_at();
        let Header { origin, history, timeline, .. } = Segment::peek(&dir, mark.segment.min(*last))?;
        let history = history.into_iter().map(|(timeline, lsn)| (TimelineId(timeline), Lsn::new(lsn))).collect();
        let id = identity::read(&dir)?;
        Ok(Some(Known { id, origin, history, timeline: TimelineId(timeline), begins_at, ends_at: mark.lsn }))
    })
}

/// The trail, or a refusal where there is none.
pub fn expect(config: &TrailConfig) -> Result<Known, Error> {
    read(config)?.ok_or_else(|| dir::no_trail(&config.dir))
}

/// Writes down how far the target of a reader has come. From then on what follows is kept for it.
///
/// # Errors
/// A refusal where there is no trail, or the name is that of another target.
pub fn record_reader(config: &TrailConfig, reader: ReaderOf<'_>, position: Lsn) -> Result<(), Error> {
    readers::record(&expect_dir(config)?, reader, position)
}

/// Has what follows `progress` kept for a reader, and nothing let go that was kept for it. Returns from where on.
///
/// # Errors
/// As [`record_reader`].
pub fn claim_reader(config: &TrailConfig, reader: ReaderOf<'_>, progress: Lsn) -> Result<Lsn, Error> {
    let known = expect(config)?;
    readers::claim(&expect_dir(config)?, reader, progress, known.begins_at)
}

/// # Errors
/// A refusal if the reader of this name is another target.
pub fn check_reader(config: &TrailConfig, reader: ReaderOf<'_>) -> Result<(), Error> {
    Dir::open(&config.dir)?.map_or(Ok(()), |dir| readers::check(&dir, reader).map(drop))
}

pub fn readers(config: &TrailConfig) -> Result<Vec<Reader>, Error> {
    Dir::open(&config.dir)?.map_or(Ok(Vec::new()), |dir| readers::list(&dir))
}

/// Keeps nothing for this reader any more.
///
/// # Errors
/// A refusal if there is none of this name.
pub fn forget_reader(config: &TrailConfig, name: &str) -> Result<(), Error> {
    readers::forget(&expect_dir(config)?, name)
}

/// Removes all files of a trail that nobody writes. False where there is none.
pub fn remove(config: &TrailConfig, _lock: &Lock) -> Result<bool, Error> {
    let Some(dir) = Dir::open(&config.dir)? else { return Ok(false) };
    let numbers = dir.segments()?;
    for reader in readers::list(&dir)? {
        readers::forget(&dir, &reader.name)?;
    }
    // The last goes first: what is left by a crash has no end, and so is no trail that lacks its beginning.
    dir::remove(&dir.end())?;
    for number in numbers.iter().rev() {
        dir::remove(&dir.segment(*number))?;
    }
    dir::remove(&dir.identity())?;
    dir.sync()?;
    Ok(!numbers.is_empty())
}

/// For tests and fuzzing: what bytes as those of a segment come to, and that they are read as they would be written.
#[doc(hidden)]
pub mod check;
