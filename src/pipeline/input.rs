//! Where the reader's messages come from: the source itself, or the trail, where they were put before.
//!
//! ```text
//!  slot ──► intake ──┐
//!                    ├──► messages of whole transactions, and positions
//!  trail ──► tail ───┘
//! ```
//!
//! Both say the same in the same words. What differs is who hears of what the target has: the walsender, or whoever removes what
//! all readers have passed.

use std::time::{Duration, Instant};

use pgsluice_proto::frame::PrimaryKeepalive;
use pgsluice_proto::{Lsn, PgTimestamp};

use super::feed::Kept;
use super::intake::{Intake, Message, Next};
use crate::config::{Config, Role, TrailConfig};
use crate::decode::Arrival;
use crate::error::{Error, Kind, Stage};
use crate::source::{Filled, ReplicationStream, Waker};
use crate::spool::Spool;
use crate::trail::{self, ReaderOf, Tail, Tailed};

/// How often it is written down how far the target is. Until then what it has passed is kept.
const RECORD_INTERVAL: Duration = Duration::from_secs(1);
/// How often is looked for more where the file system does not tell.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) enum Input {
    Source(Box<Intake>),
    Trail(Box<Followed>),
}

/// A trail that is followed.
#[derive(Debug)]
pub(super) struct Followed {
    config: TrailConfig,
    reader: String,
    target: Option<String>,
    tail: Tail,
    recorded: Lsn,
    recorded_at: Instant,
}

impl Input {
    /// With a spool for a stream that has transactions in progress.
    pub fn source(stream: ReplicationStream, spool: Option<Spool>) -> Input {
        Input::Source(Box::new(Intake::new(stream, spool)))
    }

    /// What follows `progress`.
    pub fn trail(
        config: &Config,
        trail: &TrailConfig,
        progress: Lsn,
        kept: Kept,
        now: Instant,
    ) -> Result<Input, Error> {
        let tail = Tail::open(trail, progress)?;
        let (config, reader) = (trail.clone(), config.name.to_string());
        let Kept { target, from } = kept;
        Ok(Input::Trail(Box::new(Followed { config, reader, target, tail, recorded: from, recorded_at: now })))
    }

    /// The source, where it brings transactions in progress.
    pub fn streaming(&mut self) -> Option<&mut Intake> {
        match self {
            Input::Source(intake) if intake.has_spool() => Some(intake),
            Input::Source(_) | Input::Trail(_) => None,
        }
    }

    pub fn has_spool(&self) -> bool {
        match self {
            Input::Source(intake) => intake.has_spool(),
            Input::Trail(_) => false,
        }
    }

    /// Amid a segment, where the source's position says nothing about what is whole.
    pub fn in_segment(&self) -> bool {
        match self {
            Input::Source(intake) => intake.in_segment(),
            Input::Trail(_) => false,
        }
    }

    /// Reads what there is, unless there is enough to do without it.
    pub fn fill(&mut self) -> Result<Filled, Error> {
        match self {
            Input::Source(intake) => intake.fill(),
            Input::Trail(followed) => {
                followed.tail.look()?;
                Ok(Filled::Drained)
            }
        }
    }

    /// What comes next. Amid an ordinary transaction, all is of it.
    #[inline]
    pub fn next(&mut self, in_transaction: bool, now: Instant) -> Result<Next<'_>, Error> {
        match self {
            Input::Source(intake) => intake.next(in_transaction, now),
            Input::Trail(followed) => Ok(match followed.tail.read()? {
                Tailed::Drained => Next::Drained,
                Tailed::Position(wal_end) => {
                    let sent_at = PgTimestamp::from_micros(0);
                    Next::Keepalive(PrimaryKeepalive { wal_end, sent_at, reply_requested: false })
                }
                Tailed::Message(record) => {
                    let arrival = record.arrival.unwrap_or(Arrival::after_segments(0));
                    Next::Message(Message { arrival, lsn: record.lsn, payload: record.payload })
                }
            }),
        }
    }

    /// Hears what the source says of itself, and whether it waits for an answer.
    pub fn handle_keepalive(&mut self, keepalive: &PrimaryKeepalive) {
        match self {
            Input::Source(intake) => intake.stream().feedback().handle_keepalive(keepalive),
            Input::Trail(_) => {}
        }
    }

    /// Tells what the target has, if it is time to.
    pub fn serve(&mut self, flushed: Lsn, now: Instant) -> Result<(), Error> {
        match self {
            Input::Source(intake) => intake.serve(flushed, now),
            Input::Trail(followed) if now - followed.recorded_at >= RECORD_INTERVAL => followed.record(flushed, now),
            Input::Trail(_) => Ok(()),
        }
    }

    /// Tells what the target has at last.
    pub fn confirm(&mut self, flushed: Lsn, now: Instant) -> Result<(), Error> {
        match self {
            Input::Source(intake) => intake.confirm(flushed, now),
            Input::Trail(followed) => followed.record(flushed, now),
        }
    }

    pub fn wait_for_waker(&mut self, waker: &Waker, at_most: Duration, now: Instant) -> Result<(), Error> {
        match self {
            Input::Source(intake) => intake.stream().wait_for_waker(waker, at_most, now),
            Input::Trail(_) => waker.wait(None, at_most.min(LOOK_INTERVAL)).map_err(no_wait),
        }
    }

    pub fn wait_after_drain(&mut self, waker: &Waker, at_most: Duration, now: Instant) -> Result<(), Error> {
        match self {
            Input::Source(intake) => intake.stream().wait_after_drain(waker, at_most, now),
            Input::Trail(followed) => {
                waker.wait(Some(followed.tail.changed()), at_most.min(LOOK_INTERVAL)).map_err(no_wait)
            }
        }
    }

    pub fn close(self, waker: &Waker) -> Result<(), Error> {
        match self {
            Input::Source(intake) => intake.into_stream().close(waker),
            Input::Trail(_) => Ok(()),
        }
    }
}

impl Followed {
    fn record(&mut self, flushed: Lsn, now: Instant) -> Result<(), Error> {
        self.recorded_at = now;
        if flushed > self.recorded {
            let reader = ReaderOf { name: &self.reader, target: self.target.as_deref() };
            match trail::record_reader(&self.config, reader, flushed) {
                // Nothing is lost by it, but that what could go stays.
                Err(error) if error.is_full_disk() => return Ok(()),
                recorded => recorded?,
            }
            self.recorded = flushed;
        }
        Ok(())
    }
}

fn no_wait(source: std::io::Error) -> Error {
    Error::new(Stage::Trail, Kind::Lost { role: Role::Source, source })
}
