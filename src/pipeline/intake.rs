//! What is read of the source: the messages of ordinary transactions, and of streamed ones once they have committed. One of those may
//! be followed before.
//!
//! In: the frames of the socket. Out: messages in the order in which they are to be decoded, and keepalives.
//!
//! ```text
//!                 Stream Start                    Stream Commit
//!   InSegment ◄────────────────── Between ──────────────────────► Replaying
//!   parts go to the   ──────────►    ▲      ◄──────────────────   messages come from the spool,
//!   spool            Stream Stop     │        after its Commit    and the socket is left alone
//!                                    └── ordinary messages pass; Stream Abort cuts or drops
//!   Followed: one that is followed has committed, and its rest is read; the socket is left alone here too
//! ```
//!
//! **Always holds:** the messages of a transaction come together, between its Begin and its Commit, and transactions come
//! in the order of their commits: at the Stream Commit nothing else is open. Nothing is read while the spool has no room.

use std::time::{Duration, Instant};

use pgsluice_proto::frame::{Frame, PrimaryKeepalive};
use pgsluice_proto::pgoutput::{Segments, StreamAbort, StreamCommit, StreamStart, Streamed};
use pgsluice_proto::{Lsn, Xid};

use crate::decode::{self, Arrival, decode_error};
use crate::error::Error;
use crate::source::{Filled, ReplicationStream};
use crate::spool::{Followed, Replay, Replayed, Room, Spool};

/// A full disk is looked at again this often.
pub(super) const ROOM_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// And said again this often.
const REMINDER_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Intake {
    stream: ReplicationStream,
    /// `None` where the source was not asked for transactions in progress.
    in_progress: Option<Box<InProgress>>,
}

/// What has come.
#[derive(Debug)]
pub(super) enum Next<'a> {
    /// Nothing more, of what was read.
    Drained,
    Keepalive(PrimaryKeepalive),
    Message(Message<'a>),
    /// A message that has its effect later, if at all.
    Kept,
    /// The transaction that is followed has committed, and nothing can be read before that is dealt with.
    Followed,
    /// The spool's disk is full, and nothing can be read.
    NoRoom,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub arrival: Arrival,
    pub lsn: Lsn,
    pub payload: &'a [u8],
}

#[derive(Debug)]
struct InProgress {
    segments: Segments,
    spool: Spool,
    state: State,
    /// That have begun.
    segment_count: u64,
    /// A transaction that is read before its commit.
    followed: Option<Xid>,
    /// When it was said last that the disk is full; `None` while it is not.
    full_said_at: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Between,
    InSegment { xid: Xid },
    Replaying(Replay),
    Followed(StreamCommit),
}

impl Intake {
    /// With a spool for a stream that has transactions in progress.
    pub fn new(stream: ReplicationStream, spool: Option<Spool>) -> Intake {
        let in_progress = spool.map(|spool| {
            let state = State::Between;
            let segments = Segments::new();
            Box::new(InProgress { segments, spool, state, segment_count: 0, followed: None, full_said_at: None })
        });
        Intake { stream, in_progress }
    }

    pub fn stream(&mut self) -> &mut ReplicationStream {
        &mut self.stream
    }

    /// Tells the walsender what is durable, if it is time to.
    pub fn serve(&mut self, flushed: Lsn, now: Instant) -> Result<(), Error> {
        self.stream.feedback().set_flushed(flushed);
        self.stream.transmit(now)
    }

    /// Tells it so at last.
    pub fn confirm(&mut self, flushed: Lsn, now: Instant) -> Result<(), Error> {
        self.stream.feedback().set_flushed(flushed);
        self.stream.send_last_update(now)
    }

    pub fn into_stream(self) -> ReplicationStream {
        self.stream
    }

    pub fn has_spool(&self) -> bool {
        self.in_progress.is_some()
    }

    /// Amid a segment, where the source's position says nothing about what is whole.
    pub fn in_segment(&self) -> bool {
        self.in_progress.as_ref().is_some_and(|in_progress| matches!(in_progress.state, State::InSegment { .. }))
    }

    /// Begins to read the largest transaction in progress, if it has so many bytes, of those that have not been given up.
    pub fn follow_largest(&mut self, bytes_min: u64) -> Option<Xid> {
        let in_progress = self.in_progress.as_mut().filter(|it| !matches!(it.state, State::Replaying(_)))?;
        let xid = in_progress.spool.largest(bytes_min)?;
        in_progress.spool.follow(xid);
        in_progress.followed = Some(xid);
        Some(xid)
    }

    /// The next message of the transaction that is followed.
    pub fn followed(&mut self, xid: Xid) -> Result<Followed<'_>, Error> {
        match &mut self.in_progress {
            Some(in_progress) => in_progress.spool.followed(xid),
            None => Ok(Followed::Undone),
        }
    }

    /// The one that is followed has committed: nothing else is read until that is dealt with.
    pub fn followed_commit(&self) -> Option<StreamCommit> {
        match &self.in_progress.as_ref()?.state {
            State::Followed(commit) => Some(*commit),
            State::Between | State::InSegment { .. } | State::Replaying(_) => None,
        }
    }

    /// The transaction is not followed any more: it comes with its commit.
    pub fn wait_for_commit(&mut self, xid: Xid) {
        let Some(in_progress) = &mut self.in_progress else { return };
        in_progress.spool.unfollow(xid);
        in_progress.followed = None;
        if let State::Followed(commit) = in_progress.state {
            let replay = in_progress.spool.commit(commit);
            in_progress.state = replay.map_or(State::Between, State::Replaying);
        }
    }

    /// What was followed to its commit is taken, and not kept any longer.
    pub fn forget_followed(&mut self, xid: Xid) {
        let Some(in_progress) = &mut self.in_progress else { return };
        in_progress.spool.forget(xid);
        in_progress.followed = None;
        in_progress.state = State::Between;
    }

    /// Reads what the socket has, unless there is enough to do without it.
    pub fn fill(&mut self) -> Result<Filled, Error> {
        if self.is_replaying() { Ok(Filled::More) } else { self.stream.fill() }
    }

    /// What comes next. Amid an ordinary transaction, all is of it.
    pub fn next(&mut self, in_transaction: bool, now: Instant) -> Result<Next<'_>, Error> {
        if self.is_replaying() {
            return self.replay();
        }
        if let Some(in_progress) = &mut self.in_progress
            && in_progress.make_room(now)? == Room::DiskFull
        {
            return Ok(Next::NoRoom);
        }
        if self.followed_commit().is_some() {
            return Ok(Next::Followed);
        }
        let frame = match self.stream.next_frame()? {
            None => return Ok(Next::Drained),
            Some(Frame::PrimaryKeepalive(keepalive)) => return Ok(Next::Keepalive(keepalive)),
            Some(Frame::XLogData(frame)) => frame,
        };
        let (lsn, payload) = (frame.start_lsn, frame.data);
        let Some(in_progress) = &mut self.in_progress else {
            return Ok(Next::Message(Message { arrival: Arrival::after_segments(0), lsn, payload }));
        };
        let arrival = Arrival::after_segments(in_progress.segment_count);
        if in_transaction || in_progress.take(lsn, payload)? == Passes::ToDecoder {
            return Ok(Next::Message(Message { arrival, lsn, payload }));
        }
        Ok(if matches!(in_progress.state, State::Followed(_)) { Next::Followed } else { Next::Kept })
    }

    /// Whether messages come from a replay. One that has ended is forgotten.
    #[inline]
    fn is_replaying(&mut self) -> bool {
        let Some(in_progress) = &mut self.in_progress else { return false };
        match &in_progress.state {
            State::Replaying(replay) if replay.has_ended() => {
                in_progress.state = State::Between;
                false
            }
            State::Replaying(_) => true,
            State::Between | State::InSegment { .. } | State::Followed(_) => false,
        }
    }

    fn replay(&mut self) -> Result<Next<'_>, Error> {
        let Some(InProgress { spool, state: State::Replaying(replay), segment_count, .. }) =
            self.in_progress.as_deref_mut()
        else {
            return Ok(Next::Kept);
        };
        let Replayed { lsn, arrival, payload } = replay.read().map_err(|error| spool.replay_failed(error))?;
        let arrival = arrival.unwrap_or(Arrival::after_segments(*segment_count));
        Ok(Next::Message(Message { arrival, lsn, payload }))
    }
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passes {
    ToDecoder,
    NoFurther,
}

impl InProgress {
    #[inline]
    fn take(&mut self, lsn: Lsn, payload: &[u8]) -> Result<Passes, Error> {
        match self.segments.take(lsn, payload).map_err(decode_error)? {
            Streamed::Ordinary => return Ok(Passes::ToDecoder),
            Streamed::Part(part) => {
                let State::InSegment { xid } = self.state else {
                    return Err(out_of_sequence(lsn, "part of a segment"));
                };
                self.spool.take(xid, lsn, Arrival::in_segment(self.segment_count), &part)?;
            }
            Streamed::Start(start) => self.start(lsn, start)?,
            Streamed::Stop => self.state = State::Between,
            Streamed::Commit(commit) => self.commit(lsn, commit)?,
            Streamed::Abort(abort) => self.abort(abort)?,
        }
        Ok(Passes::NoFurther)
    }

    fn start(&mut self, lsn: Lsn, start: StreamStart) -> Result<(), Error> {
        if start.first_segment == self.spool.holds(start.xid) {
            return Err(out_of_sequence(lsn, "Stream Start"));
        }
        if start.first_segment {
            self.spool.begin(start.xid);
        }
        self.segment_count += 1;
        self.state = State::InSegment { xid: start.xid };
        Ok(())
    }

    /// What the target has already is replayed as well: it is skipped like any other, and what it says of relations is
    /// not said again.
    fn commit(&mut self, lsn: Lsn, commit: StreamCommit) -> Result<(), Error> {
        if self.followed == Some(commit.xid) {
            self.state = State::Followed(commit);
            return Ok(());
        }
        let replay = self.spool.commit(commit).ok_or_else(|| out_of_sequence(lsn, "Stream Commit"))?;
        self.state = State::Replaying(replay);
        Ok(())
    }

    fn abort(&mut self, abort: StreamAbort) -> Result<(), Error> {
        if abort.subxid == abort.xid {
            self.followed.take_if(|followed| *followed == abort.xid);
            self.spool.forget(abort.xid);
            return Ok(());
        }
        self.spool.undo(abort.xid, abort.subxid)
    }

    #[inline]
    fn make_room(&mut self, now: Instant) -> Result<Room, Error> {
        let room = self.spool.make_room()?;
        if room == Room::DiskFull || self.full_said_at.is_some() {
            self.say_whether_full(room, now);
        }
        Ok(room)
    }

    #[cold]
    fn say_whether_full(&mut self, room: Room, now: Instant) {
        match (room, self.full_said_at) {
            (Room::DiskFull, Some(at)) if now - at < REMINDER_INTERVAL => {}
            (Room::DiskFull, _) => {
                tracing::warn!(
                    dir = %self.spool.dir().display(),
                    spooled_bytes = self.spool.bytes_on_disk(),
                    "the disk of the spool is full; nothing is read until it has room"
                );
                self.full_said_at = Some(now);
            }
            (Room::There, _) => {
                tracing::info!("the disk of the spool has room again");
                self.full_said_at = None;
            }
        }
    }
}

#[cold]
fn out_of_sequence(lsn: Lsn, message: &'static str) -> Error {
    let state = "of a transaction in progress, where it cannot come";
    decode::out_of_sequence(lsn, message, state)
}
