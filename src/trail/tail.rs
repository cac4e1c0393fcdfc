//! A reader's end of a trail: the messages of whole transactions, and positions, as they become durable.
//!
//! ```text
//!  end mark ──► block ──checked──► messages ──► decode
//!     ▲           │ the last of a segment that another follows
//!     └─ inotify  └──► next segment
//! ```
//!
//! **Always holds:** nothing beyond the end mark is read, so that whatever is wrong before it is damage. Segments follow each other
//! without a gap in numbers and LSNs, and are of one origin.

use std::fs::File;

use pgsluice_proto::Lsn;
use rustix::fd::OwnedFd;
use rustix::fs::inotify;

use super::dir::{self, Dir, STAGE, damaged, failed, no_trail, passed_over};
use super::format::{BLOCK_HEADER_BYTES, EndMark, Fault, Header};
use super::keys::Keys;
use super::segment::{Found, Record, Segment, split_record};
use crate::config::TrailConfig;
use crate::error::{Error, Kind};

/// The buffer is given back above this, so that one large row does not stay allocated.
const KEEP_BYTES: usize = 4 << 20;

#[derive(Debug)]
pub struct Tail {
    dir: Dir,
    keys: Keys,
    segment: Segment,
    end_file: File,
    mark: EndMark,
    changed: OwnedFd,
    /// A block, and how much of it was returned.
    block: Vec<u8>,
    at: usize,
    /// Behind the block.
    end: Lsn,
    /// That was returned.
    position: Lsn,
    is_open: bool,
}

/// What comes next.
#[derive(Debug)]
pub enum Tailed<'a> {
    /// Nothing more, for now.
    Drained,
    /// All before this has come.
    Position(Lsn),
    Message(Record<'a>),
}

impl Tail {
    /// Begins in the segment that has what follows `progress`, at its beginning: descriptions of relations are anywhere in it.
    ///
    /// # Errors
    /// A refusal if there is no trail, or none that has what follows; [`Kind::TrailBehind`] if it ends before.
    pub fn open(config: &TrailConfig, progress: Lsn) -> Result<Tail, Error> {
        let dir = Dir::open(&config.dir)?.ok_or_else(|| no_trail(&config.dir))?;
        let keys = Keys::new(config);
        let (mark, segment) = dir.with_segments(|numbers| find(&dir, &keys, numbers, progress))?;
        let path = dir.end();
        let end_file = File::open(&path).map_err(|error| failed(&path, "open", error))?;
        let changed = watch(&dir)?;
        let (block, end) = (Vec::new(), segment.walk.end);
        Ok(Tail { dir, keys, segment, end_file, mark, changed, block, at: 0, end, position: end, is_open: false })
    }

    pub fn header(&self) -> &Header {
        &self.segment.header
    }

    /// How far it went at the last look.
    pub fn mark(&self) -> EndMark {
        self.mark
    }

    /// It becomes readable when there may be more; [`Tail::look`] makes it unreadable again.
    pub fn changed(&self) -> &OwnedFd {
        &self.changed
    }

    /// Looks how far the trail goes now.
    pub fn look(&mut self) -> Result<(), Error> {
        let mut events = [0; 512];
        // None is what is expected most of the time, and what they say is of no interest.
        while matches!(rustix::io::read(&self.changed, &mut events), Ok(1..)) {}
        let mark = dir::read_end(&self.end_file).map_err(|error| failed(&self.dir.end(), "read", error))?;
        let mark = mark.map_err(|fault| damaged(&self.dir.end(), fault))?;
        if mark.lsn < self.mark.lsn || mark.segment < self.mark.segment {
            return Err(damaged(&self.dir.end(), Fault { offset: 0, what: "the end mark has gone back" }));
        }
        self.mark = mark;
        Ok(())
    }

    /// What comes next, of what was there at the last look.
    #[inline]
    pub fn read(&mut self) -> Result<Tailed<'_>, Error> {
        if self.at == self.block.len()
            && let Some(position) = self.advance()?
        {
            return Ok(position);
        }
        let Some((_, bytes)) = split_record(&self.block[self.at..]) else {
            // Each block was looked through when it was read.
            return Err(damaged(
                self.segment.path(),
                Fault { offset: self.segment.walk.offset, what: "a message is not whole" },
            ));
        };
        let record = split_record(&self.block[self.at..]).map(|(record, _)| record);
        self.at += bytes;
        Ok(record.map_or(Tailed::Drained, Tailed::Message))
    }

    /// Reads the next block with messages. Something else where there is none, or a position comes first.
    fn advance(&mut self) -> Result<Option<Tailed<'static>>, Error> {
        if self.end > self.position && !self.is_open {
            self.position = self.end;
            return Ok(Some(Tailed::Position(self.end)));
        }
        if self.block.capacity() > KEEP_BYTES {
            self.block = Vec::new();
        }
        loop {
            (self.at, self.is_open) = (0, self.segment.walk.is_open);
            let is_last = self.segment.header.number == self.mark.segment;
            let limit = if is_last { self.mark.offset } else { self.segment.length()? };
            match self.segment.next(limit, &mut self.block)? {
                Found::Torn(fault) => return Err(damaged(self.segment.path(), fault)),
                Found::End if is_last => {
                    self.block.clear();
                    self.check_end()?;
                    return Ok(Some(Tailed::Drained));
                }
                Found::End => {
                    self.block.clear();
                    self.next_segment()?;
                }
                Found::Block(header) => {
                    (self.end, self.is_open) = (header.end, !header.kind.is_boundary());
                    if !self.block.is_empty() {
                        return Ok(None);
                    }
                    if self.end > self.position {
                        self.position = self.end;
                        return Ok(Some(Tailed::Position(self.end)));
                    }
                }
            }
        }
    }

    fn next_segment(&mut self) -> Result<(), Error> {
        let next = Segment::open(&self.dir, self.segment.header.number + 1, &self.keys)?;
        if let Some(what) = breaks(&self.segment, &next) {
            return Err(damaged(next.path(), Fault { offset: 0, what }));
        }
        self.segment = next;
        Ok(())
    }

    /// The trail goes no further, and it ends as it should.
    fn check_end(&self) -> Result<(), Error> {
        let walk = self.segment.walk;
        if self.mark.offset == walk.offset && self.mark.lsn == walk.end && !walk.is_open {
            return Ok(());
        }
        Err(damaged(&self.dir.end(), Fault { offset: 0, what: "the end mark is not where a block ends" }))
    }
}

/// The segment that has what follows `progress`, and how far the trail goes.
fn find(dir: &Dir, keys: &Keys, numbers: &[u64], progress: Lsn) -> Result<(EndMark, Segment), Error> {
    let mark = read_mark(dir)?;
    let (Some(mark), Some(first)) = (mark, numbers.first()) else { return Err(no_trail(dir.path())) };
    let begins_at = Segment::peek(dir, *first)?.starts_at();
    if begins_at > progress {
        return Err(passed_over(begins_at, progress));
    }
    if mark.lsn < progress {
        return Err(Error::new(STAGE, Kind::TrailBehind { end: mark.lsn, progress }));
    }
    let mut number = *first;
    for later in numbers.iter().copied().filter(|later| (first + 1..=mark.segment).contains(later)) {
        if Segment::peek(dir, later)?.starts_at() > progress {
            break;
        }
        number = later;
    }
    Ok((mark, Segment::open(dir, number, keys)?))
}

/// Why this segment is not the one that follows, if so.
pub(super) fn breaks(before: &Segment, next: &Segment) -> Option<&'static str> {
    if before.walk.is_open {
        Some("the segment before it ends amid a transaction")
    } else if next.header.starts_at() != before.walk.end {
        Some("it does not start where the segment before it ends")
    } else if next.header.origin != before.header.origin {
        Some("it is of another source or slot than the segment before it")
    } else {
        None
    }
}

/// `None` where nothing was written yet.
pub(super) fn read_mark(dir: &Dir) -> Result<Option<EndMark>, Error> {
    match dir.read_end()? {
        None => Ok(None),
        Some(Err(fault)) => Err(damaged(&dir.end(), fault)),
        Some(Ok(mark)) => Ok(Some(mark).filter(|mark| mark.offset >= BLOCK_HEADER_BYTES as u64)),
    }
}

fn watch(dir: &Dir) -> Result<OwnedFd, Error> {
    let path = dir.end();
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let watch = inotify::init(flags).and_then(|watch| {
        inotify::add_watch(&watch, &path, inotify::WatchFlags::MODIFY)?;
        Ok(watch)
    });
    watch.map_err(|error| failed(&path, "watch", error.into()))
}
