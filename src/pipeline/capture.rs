//! The thread that writes the trail: from the slot to the disk, and nothing in between.
//!
//! ```text
//!  socket ──► intake ──► what the trail has not ──► writer ──synced──► end of the trail ──► confirmed to the slot
//!                                                     │
//!                                 no room: nothing is read, and the walsender hears of us all the same
//! ```
//!
//! It syncs when the input is idle, and when much is unsynced: under load the commits of many transactions share one sync.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgsluice_proto::pgoutput::{self, Begin, Commit};
use pgsluice_proto::{Lsn, TimelineId};

use super::intake::{Intake, Message, Next, ROOM_LOOK_INTERVAL};
use crate::decode::{Arrival, decode_error, out_of_sequence};
use crate::error::Error;
use crate::source::{Filled, Waker};
use crate::trail::{Lock, Record, Room, Writer};

/// Syncs are at least so far apart, unless much is unsynced: longer than the reader's pauses, so that they are seldom cut short, and
/// many commits share one. What comes alone is synced at once.
const SYNC_INTERVAL: Duration = Duration::from_millis(20);
/// With nothing to be written, the end follows the source's WAL this often, so that an idle slot does not hold WAL back.
const IDLE_ADVANCE_INTERVAL: Duration = Duration::from_secs(1);
/// How often is looked what readers have passed.
const PRUNE_INTERVAL: Duration = Duration::from_secs(1);
/// Why nothing is read is said again this often.
const REMINDER_INTERVAL: Duration = Duration::from_secs(60);

/// What whoever has started it tells it, and hears from it.
#[derive(Debug)]
pub(super) struct Told {
    stop: AtomicBool,
    pub waker: Waker,
    /// Of the source, if it was promoted under our stream; 0 if not.
    timeline: AtomicU32,
    end: AtomicU64,
    transactions: AtomicU64,
}

impl Told {
    pub fn new() -> std::io::Result<Told> {
        Ok(Told {
            stop: AtomicBool::new(false),
            waker: Waker::new()?,
            timeline: AtomicU32::new(0),
            end: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
        })
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub fn follow_timeline(&self, timeline: TimelineId) {
        self.timeline.store(timeline.0, Ordering::Release);
        self.waker.wake();
    }

    /// Up to where the trail goes.
    pub fn end(&self) -> Lsn {
        Lsn::new(self.end.load(Ordering::Acquire))
    }

    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Acquire)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Between,
    /// Taken into the trail.
    Taking {
        commit_lsn: Lsn,
    },
    /// The trail has it already.
    Skipping {
        commit_lsn: Lsn,
    },
}

#[derive(Debug)]
pub(super) struct Capture<'a> {
    intake: Intake,
    writer: Writer,
    lock: &'a mut Lock,
    told: Arc<Told>,
    messages: pgoutput::Decoder,
    state: State,
    synced_at: Instant,
    pruned_at: Instant,
    /// Why nothing is read, and when that was said last.
    paused: Option<(Room, Instant)>,
    prune_failed_at: Option<Instant>,
    /// Transactions that were told of.
    counted: u64,
}

/// What taking messages has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    All,
    /// There is no room in the trail.
    NoRoom(Room),
    /// There is none in the spool.
    NoSpool,
}

impl<'a> Capture<'a> {
    pub fn new(intake: Intake, writer: Writer, lock: &'a mut Lock, told: Arc<Told>, now: Instant) -> Capture<'a> {
        let (messages, state) = (pgoutput::Decoder::new(), State::Between);
        let (synced_at, pruned_at) = (now, now);
        let (paused, prune_failed_at, counted) = (None, None, 0);
        Capture { intake, writer, lock, told, messages, state, synced_at, pruned_at, paused, prune_failed_at, counted }
    }

    /// Writes until it is told to stop, or the stream ends. Then what is whole is on disk and confirmed.
    pub fn run(mut self) -> Result<(), Error> {
        while !self.told.is_stopped() {
            self.step(Instant::now())?;
        }
        self.sync(Instant::now())?;
        self.intake.confirm(self.writer.end(), Instant::now())?;
        self.intake.into_stream().close(&self.told.waker)
    }

    fn step(&mut self, now: Instant) -> Result<(), Error> {
        self.intake.serve(self.writer.end(), now)?;
        self.follow_timeline();
        self.prune(now)?;
        let filled = self.intake.fill()?;
        let taken = self.take(now)?;
        self.say_whether_paused(taken, now);
        match (taken, filled) {
            (Taken::All, Filled::More) => Ok(()),
            (Taken::All, Filled::Drained) => {
                if self.until_sync(now) == Duration::ZERO {
                    self.sync(now)?;
                }
                // A sync takes no place of a pause: without it rows would come one by one, at B's cost.
                let at_most = self.until_sync(now);
                self.intake.stream().wait_after_drain(&self.told.waker, at_most, now)
            }
            (Taken::NoRoom(_) | Taken::NoSpool, _) => {
                if self.writer.is_unsynced() {
                    self.sync(now)?;
                }
                self.intake.stream().wait_for_waker(&self.told.waker, ROOM_LOOK_INTERVAL, now)
            }
        }
    }

    /// Takes what was read, as long as there is room.
    fn take(&mut self, now: Instant) -> Result<Taken, Error> {
        loop {
            let is_between = self.state == State::Between;
            match self.writer.make_room(is_between)? {
                Room::There => {}
                room => return Ok(Taken::NoRoom(room)),
            }
            if self.writer.is_sync_due() {
                match self.sync(now)? {
                    Room::There => {}
                    room => return Ok(Taken::NoRoom(room)),
                }
            }
            match self.intake.next(!is_between, now)? {
                Next::Drained => return Ok(Taken::All),
                Next::NoRoom => return Ok(Taken::NoSpool),
                // Nobody follows one that is in progress.
                Next::Kept | Next::Followed => continue,
                Next::Keepalive(keepalive) => {
                    self.intake.stream().feedback().handle_keepalive(&keepalive);
                    // In the midst of a transaction its position says nothing about what is whole.
                    if is_between && !self.intake.in_segment() {
                        self.writer.advance(keepalive.wal_end);
                    }
                }
                Next::Message(message) => {
                    take_message(message, &mut self.messages, &mut self.state, &mut self.writer)?;
                }
            }
        }
    }

    /// How long until something is to be synced though nothing comes.
    fn until_sync(&self, now: Instant) -> Duration {
        let interval = if self.writer.is_unsynced() {
            SYNC_INTERVAL
        } else if self.state == State::Between && self.writer.is_behind() {
            IDLE_ADVANCE_INTERVAL
        } else {
            return PRUNE_INTERVAL;
        };
        interval.saturating_sub(now - self.synced_at)
    }

    fn sync(&mut self, now: Instant) -> Result<Room, Error> {
        let room = self.writer.sync()?;
        self.synced_at = now;
        self.told.end.store(self.writer.end().as_u64(), Ordering::Release);
        let transactions = self.writer.transactions();
        self.told.transactions.fetch_add(transactions - self.counted, Ordering::AcqRel);
        self.counted = transactions;
        Ok(room)
    }

    fn follow_timeline(&mut self) {
        let timeline = TimelineId(self.told.timeline.load(Ordering::Acquire));
        if self.state == State::Between && timeline > self.writer.timeline() {
            tracing::info!(%timeline, "the source was promoted, and the stream goes on");
            self.writer.follow_timeline(timeline);
        }
    }

    /// That what could go stays is no reason to end; but that the folder is another one is.
    fn prune(&mut self, now: Instant) -> Result<(), Error> {
        if now - self.pruned_at < PRUNE_INTERVAL {
            return Ok(());
        }
        self.pruned_at = now;
        self.writer.check_place()?;
        match self.writer.prune() {
            Ok(()) => self.prune_failed_at = None,
            Err(error) => {
                if self.prune_failed_at.is_none_or(|at| now - at >= REMINDER_INTERVAL) {
                    tracing::warn!(%error, "segments that every reader has passed are not removed");
                    self.prune_failed_at = Some(now);
                }
            }
        }
        Ok(())
    }

    fn say_whether_paused(&mut self, taken: Taken, now: Instant) {
        let room = match taken {
            Taken::NoRoom(room) => room,
            // The intake speaks for its spool.
            Taken::All | Taken::NoSpool => Room::There,
        };
        let why = match room {
            Room::There => None,
            Room::DiskFull => Some("the disk of the trail is full"),
            Room::TrailFull => Some("the trail has max_bytes"),
        };
        match (why, &self.paused) {
            (None, None) => {}
            (None, Some(_)) => {
                tracing::info!("the trail has room again");
                self.lock.say(None);
                self.paused = None;
            }
            (Some(_), Some((said, at))) if *said == room && now - *at < REMINDER_INTERVAL => {}
            (Some(why), _) => {
                tracing::warn!(
                    bytes = self.writer.bytes(),
                    "{why}: nothing is read from the source until there is room, and the source keeps its WAL; `pgsluice trail ls` \
                     shows who has not read it"
                );
                self.lock.say(Some(why));
                self.paused = Some((room, now));
            }
        }
    }
}

fn take_message(
    message: Message<'_>,
    messages: &mut pgoutput::Decoder,
    state: &mut State,
    writer: &mut Writer,
) -> Result<(), Error> {
    let Message { arrival, lsn, payload } = message;
    let is_description = payload.first() == Some(&b'R');
    let arrival = is_description.then(|| Arrival::from_u64(arrival.as_u64() + writer.arrivals_before()));
    let record = Record { lsn, arrival, payload };
    match (payload.first(), *state) {
        (Some(b'B'), State::Between) => {
            let Begin { commit_lsn, .. } = begin(lsn, messages, payload)?;
            if commit_lsn < writer.taken() {
                *state = State::Skipping { commit_lsn };
            } else {
                *state = State::Taking { commit_lsn };
                writer.append(&record);
            }
        }
        (Some(b'B'), _) => return Err(out_of_sequence(lsn, "Begin", "inside of a transaction")),
        (Some(b'C'), State::Between) => return Err(out_of_sequence(lsn, "Commit", "outside of a transaction")),
        (Some(b'C'), State::Taking { commit_lsn } | State::Skipping { commit_lsn }) => {
            let commit = commit(lsn, messages, payload)?;
            let is_skipped = matches!(state, State::Skipping { .. });
            let is_known = commit.end_lsn <= writer.taken();
            if commit.commit_lsn != commit_lsn || commit.end_lsn <= commit_lsn || is_known != is_skipped {
                return Err(out_of_sequence(lsn, "Commit", "with these LSNs"));
            }
            *state = State::Between;
            if !is_skipped {
                writer.commit(&record, commit.end_lsn);
            }
        }
        // What the trail has it has with its descriptions; but those of this stream come once, and it may lack them.
        (Some(b'R' | b'Y'), State::Skipping { .. } | State::Between) => writer.describe(&record),
        (Some(_), State::Skipping { .. }) => {}
        (Some(_), State::Taking { .. }) => writer.append(&record),
        // A logical message of no transaction, which has no effect on a target.
        (Some(b'M'), State::Between) => {}
        (_, State::Between) => return Err(out_of_sequence(lsn, "row", "outside of a transaction")),
        (None, _) => return Err(out_of_sequence(lsn, "nothing", "where a message comes")),
    }
    Ok(())
}

fn begin(lsn: Lsn, messages: &mut pgoutput::Decoder, payload: &[u8]) -> Result<Begin, Error> {
    match messages.decode(lsn, payload).map_err(decode_error)? {
        pgoutput::Message::Begin(begin) => Ok(begin),
        other => Err(out_of_sequence(lsn, other.name(), "where a Begin comes")),
    }
}

fn commit(lsn: Lsn, messages: &mut pgoutput::Decoder, payload: &[u8]) -> Result<Commit, Error> {
    match messages.decode(lsn, payload).map_err(decode_error)? {
        pgoutput::Message::Commit(commit) => Ok(commit),
        other => Err(out_of_sequence(lsn, other.name(), "where a Commit comes")),
    }
}
