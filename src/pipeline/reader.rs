//! The thread that reads: from the input to full batches, and the walsender's feedback beside it.
//!
//! ```text
//!             ┌──────────── no empty batch ───► wait for one, serving the walsender
//!   loop: take a batch ──► read the input ───► changes into the batch ──full──► hand over
//!             ▲                                        │
//!             └── wait for input, or pause ◄── idle? hand over ◄── socket drained
//! ```
//!
//! A batch is handed over when it is full, or when the input is idle and so is the target. No timer closes a batch.

mod early;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use pgsluice_proto::Lsn;
use pgsluice_proto::frame::PrimaryKeepalive;

use super::early::Early;
use super::handover::Next as Agreed;
use super::input::Input;
use super::intake::{Next, ROOM_LOOK_INTERVAL};
use super::selection::{Beside, Selection};
use super::shared::{Phase, Shared};
use super::skips::Skips;
use crate::batch::{Batch, Limits, Transaction};
use crate::decode::{Decoded, Decoder};
use crate::error::Error;
use crate::source::Filled;
use crate::transform::Transform;

/// With nothing to apply, progress on the target follows the source's WAL this often, so that an idle slot does not
/// hold WAL back.
const IDLE_ADVANCE_INTERVAL: Duration = Duration::from_secs(1);
/// With nothing at all to do, this often is looked whether another engine has taken over.
const FENCE_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// No further batch is filled while those that are handed over hold this multiple of what fills one: with large rows a batch holds
/// more than its share.
const HANDED_OVER_FACTOR: usize = 2;

#[derive(Debug)]
pub(super) struct Reader {
    input: Input,
    decoder: Decoder,
    /// The batch that is being filled.
    batch: Option<Box<Batch>>,
    /// The transaction that the last batch handed over was cut in.
    resumes: Option<Transaction>,
    /// `None` once no more is read, and the writer only has to end.
    full: Option<Sender<Box<Batch>>>,
    empty: Receiver<Box<Batch>>,
    /// That there are, in all hands.
    batches: usize,
    limits: Limits,
    shared: Arc<Shared>,
    stop_at: Option<Lsn>,
    selection: Selection,
    transform: Transform,
    skips: Skips,
    /// Applies a large transaction before it commits.
    early: Option<Early>,
    /// It has more to do at once.
    has_more_early: bool,
    /// All before this was received, with no transaction open.
    received: Lsn,
    handed_over_at: Instant,
    /// The walsender waits for an answer, perhaps for its end: progress must not wait for the timer.
    reply_requested: bool,
}

/// From where to where is read.
#[derive(Debug)]
pub(super) struct Start {
    pub progress: Lsn,
    pub selection: Selection,
    pub transform: Transform,
    pub skips: Skips,
    pub stop_at: Option<Lsn>,
    /// Where a large transaction in progress may be applied before it commits.
    pub early: Option<Early>,
}

/// What a step came to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// There is more to do at once.
    Again,
    Wait(Wait),
    /// No more is read, and the writer has ended.
    Ended,
}

/// What ends a wait, besides the next status update.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    /// Whoever wakes us; the input is left where it is.
    ForWaker,
    /// Whoever wakes us, or that the spool's disk may have room.
    ForRoom,
    /// Input, whoever wakes us, or work that is due without input.
    AfterDrain { at_most: Duration },
}

/// What taking frames came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// All that was read.
    All,
    /// There is no batch to take more, or none may be taken for now.
    NoBatch,
    /// Nothing can be read, for want of room in the spool.
    NoRoom,
    /// What was to be replicated is in batches.
    Finished,
}

impl Reader {
    pub fn new(
        input: Input,
        start: Start,
        limits: Limits,
        full: Sender<Box<Batch>>,
        empty: Receiver<Box<Batch>>,
        shared: Arc<Shared>,
        now: Instant,
    ) -> Reader {
        let Start { progress, selection, transform, skips, stop_at, early } = start;
        // All are there, until the first is taken.
        let batches = empty.len();
        Reader {
            input,
            decoder: Decoder::new(progress),
            batch: None,
            resumes: None,
            full: Some(full),
            empty,
            batches,
            limits,
            shared,
            stop_at,
            selection,
            transform,
            skips,
            early,
            has_more_early: false,
            received: progress,
            handed_over_at: now,
            reply_requested: false,
        }
    }

    /// Reads until the stream ends, the session ends, or `stop_at` is reached. Then confirms the target's last commit.
    pub fn run(mut self) -> Result<(), Error> {
        loop {
            match self.step(Instant::now())? {
                Step::Again => {}
                Step::Wait(wait) => self.wait(wait, Duration::MAX, Instant::now())?,
                Step::Ended => break,
            }
        }
        self.confirm(Instant::now())?;
        self.input.close(&self.shared.waker)
    }

    /// Does what there is to do at `now` without waiting for it.
    pub fn step(&mut self, now: Instant) -> Result<Step, Error> {
        if self.full.is_none() && self.shared.has_writer_ended() {
            return Ok(Step::Ended);
        }
        self.serve_walsender(now)?;
        if self.full.is_none() {
            return Ok(Step::Wait(Wait::ForWaker));
        }
        if self.shared.phase() != Phase::Running {
            self.full = None;
            return Ok(Step::Again);
        }
        match self.stands() {
            Some(Taken::Finished) => return Ok(self.finish(now)),
            Some(Taken::NoBatch | Taken::NoRoom | Taken::All) => {
                self.hand_over_if_idle(now);
                return Ok(Step::Wait(Wait::ForWaker));
            }
            None => {}
        }
        if let Some(step) = self.serve_early(now)? {
            return Ok(step);
        }
        if self.batch.is_none() && !self.take_batch() {
            return Ok(Step::Wait(Wait::ForWaker));
        }
        let filled = self.input.fill()?;
        Ok(match (self.take_frames(now)?, filled) {
            (Taken::Finished, _) => self.finish(now),
            (Taken::NoBatch, _) | (Taken::All, Filled::More) => Step::Again,
            (Taken::NoRoom, _) => {
                self.hand_over_if_idle(now);
                Step::Wait(Wait::ForRoom)
            }
            (Taken::All, Filled::Drained) => {
                self.hand_over_if_idle(now);
                if self.has_more_early {
                    return Ok(Step::Again);
                }
                Step::Wait(Wait::AfterDrain { at_most: self.until_idle_work(now) })
            }
        })
    }

    /// After the last step: tells the walsender what the target has.
    pub fn confirm(&mut self, now: Instant) -> Result<(), Error> {
        self.input.confirm(self.shared.confirmed(), now)
    }

    /// Waits as a step has asked, at most so long, and never longer than until the next status update.
    pub fn wait(&mut self, wait: Wait, at_most: Duration, now: Instant) -> Result<(), Error> {
        let (input, waker) = (&mut self.input, &self.shared.waker);
        match wait {
            Wait::ForWaker => input.wait_for_waker(waker, at_most, now),
            Wait::ForRoom => input.wait_for_waker(waker, ROOM_LOOK_INTERVAL.min(at_most), now),
            Wait::AfterDrain { at_most: until_work } => input.wait_after_drain(waker, until_work.min(at_most), now),
        }
    }

    /// Hands over what is there, and reads no more.
    fn finish(&mut self, now: Instant) -> Step {
        if self.batch.as_ref().is_some_and(|batch| !batch.is_empty()) {
            self.hand_over(now);
        }
        self.full = None;
        Step::Again
    }

    fn serve_walsender(&mut self, now: Instant) -> Result<(), Error> {
        self.input.serve(self.shared.confirmed(), now)
    }

    fn take_batch(&mut self) -> bool {
        let taken = self.try_take_batch();
        self.shared.hold_up_reader(!taken);
        taken
    }

    fn try_take_batch(&mut self) -> bool {
        if self.shared.bytes_handed_over() >= self.limits.bytes.saturating_mul(HANDED_OVER_FACTOR) {
            return false;
        }
        match self.empty.try_recv() {
            Ok(mut batch) => {
                batch.clear(self.limits);
                if let Some(transaction) = self.resumes.take() {
                    batch.resume(transaction);
                }
                self.batch = Some(batch);
                true
            }
            // A writer that has ended has changed the phase, which ends the loop.
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => false,
        }
    }

    fn take_frames(&mut self, now: Instant) -> Result<Taken, Error> {
        loop {
            if self.batch.is_none() && !self.take_batch() {
                return Ok(Taken::NoBatch);
            }
            let Some(batch) = &mut self.batch else { return Ok(Taken::NoBatch) };
            let message = match self.input.next(self.decoder.in_transaction(), now)? {
                Next::Drained => return Ok(Taken::All),
                Next::NoRoom => return Ok(Taken::NoRoom),
                // Looked after first in the next step.
                Next::Followed => return Ok(Taken::NoBatch),
                Next::Kept => continue,
                Next::Keepalive(keepalive) => {
                    self.keepalive(&keepalive)?;
                    if let Some(taken) = self.stands() {
                        return Ok(taken);
                    }
                    continue;
                }
                Next::Message(message) => message,
            };
            match self.decoder.decode_arrived(message.arrival, message.lsn, message.payload)? {
                Decoded::Change(_) | Decoded::Truncate(_) if self.skips.leaves_out() => {}
                Decoded::Change(change) => {
                    if self.selection.takes(change.relation)? {
                        self.transform.push(&change, batch)?;
                    }
                }
                Decoded::Begin(begin) if self.stop_at.is_some_and(|stop| begin.commit_lsn >= stop) => {
                    // Nothing is left that would commit before.
                    if let Some(stop) = self.stop_at {
                        self.skips.pass(stop)?;
                        batch.advance(stop);
                    }
                    return Ok(Taken::Finished);
                }
                Decoded::Begin(begin) => {
                    self.skips.begin(begin.commit_lsn)?;
                    self.transform.begin(&begin);
                    if !self.selection.begin(begin.commit_lsn) {
                        if !self.wait_for_tables(begin.commit_lsn)? {
                            return Ok(Taken::NoBatch);
                        }
                        let Some(batch) = &mut self.batch else { return Ok(Taken::NoBatch) };
                        batch.begin(begin);
                        continue;
                    }
                    batch.begin(begin);
                }
                Decoded::Commit(commit) => {
                    if let Some(changes) = self.skips.commit(commit.end_lsn)? {
                        batch.skip(changes);
                    }
                    batch.commit(commit);
                    self.received = commit.end_lsn;
                }
                Decoded::Truncate(mut truncate) => {
                    let mut taken = Vec::with_capacity(truncate.relations.len());
                    for relation in &truncate.relations {
                        if self.selection.takes(relation)? {
                            taken.push(Arc::clone(relation));
                        }
                    }
                    truncate.is_partial = taken.len() < truncate.relations.len();
                    truncate.relations = taken;
                    if !truncate.relations.is_empty() {
                        batch.push_truncate(self.transform.truncate(truncate)?);
                    }
                }
                Decoded::Nothing => {}
            }
            if batch.is_full(self.limits) {
                self.hand_over(now);
            }
            if let Some(taken) = self.stands() {
                return Ok(taken);
            }
        }
    }

    /// Waits until tables that a transaction with this commit record may change are handed over. What came before it is on the
    /// target meanwhile. False where the session ends first.
    fn wait_for_tables(&mut self, commit_lsn: Lsn) -> Result<bool, Error> {
        if self.batch.as_ref().is_some_and(|batch| !batch.is_empty()) {
            self.hand_over(Instant::now());
        }
        while !self.selection.begin(commit_lsn) || self.batch.is_none() && !self.take_batch() {
            if self.shared.phase() != Phase::Running {
                return Ok(false);
            }
            self.serve_walsender(Instant::now())?;
            self.wait(Wait::ForWaker, Duration::MAX, Instant::now())?;
        }
        Ok(true)
    }

    /// Between transactions, why not to take the next one.
    fn stands(&mut self) -> Option<Taken> {
        if self.decoder.in_transaction() {
            None
        } else if !self.may_go_on() {
            Some(Taken::NoBatch)
        } else {
            self.has_reached(self.received).then_some(Taken::Finished)
        }
    }

    /// Tells where we stand, between transactions, to whoever hands over tables to us or takes them. False where we have to
    /// stand still until the other has answered.
    fn may_go_on(&mut self) -> bool {
        match self.selection.beside() {
            Beside::None => true,
            Beside::LeftOut(handover) => {
                handover.stream_stands_at(self.received);
                true
            }
            Beside::Only(handover) => match handover.catch_up_stands_at(self.received) {
                Agreed::GoOn => true,
                Agreed::Wait => false,
                Agreed::EndAt(at) => {
                    self.stop_at = Some(at);
                    true
                }
            },
        }
    }

    fn keepalive(&mut self, keepalive: &PrimaryKeepalive) -> Result<(), Error> {
        self.input.handle_keepalive(keepalive);
        self.reply_requested |= keepalive.reply_requested;
        // What ends at a position ends there, however far the source is: several of us are to stand at the same.
        let wal_end = self.stop_at.map_or(keepalive.wal_end, |stop| keepalive.wal_end.min(stop));
        // In the midst of a transaction its position says nothing about what is whole.
        if !self.decoder.in_transaction() && !self.input.in_segment() && wal_end > self.received {
            self.skips.pass(wal_end)?;
            self.received = wal_end;
            if let Some(batch) = &mut self.batch {
                batch.advance(wal_end);
            }
        }
        Ok(())
    }

    fn has_reached(&self, lsn: Lsn) -> bool {
        self.stop_at.is_some_and(|stop| lsn >= stop)
    }

    fn hand_over(&mut self, now: Instant) {
        let (Some(batch), Some(full)) = (self.batch.take(), &self.full) else { return };
        self.resumes = batch.open_transaction();
        self.handed_over_at = now;
        self.reply_requested = false;
        // There is room for all batches there are; a writer that has ended has changed the phase.
        self.shared.hand_over(batch.bytes());
        drop(full.send(batch));
        self.shared.tell_handed_over();
    }

    /// Every batch but ours is back.
    fn is_target_idle(&self) -> bool {
        self.empty.len() + 1 == self.batches
    }

    fn hand_over_if_idle(&mut self, now: Instant) {
        let Some(batch) = &self.batch else { return };
        // Not beside others: small batches side by side cost more than what one of them waits for.
        if self.decoder.in_transaction() || !self.is_target_idle() {
            return;
        }
        let ready = if batch.has_changes() {
            true
        } else if batch.is_empty() {
            now - self.handed_over_at >= FENCE_CHECK_INTERVAL
        } else {
            self.reply_requested || now - self.handed_over_at >= IDLE_ADVANCE_INTERVAL
        };
        if ready {
            self.hand_over(now);
        }
    }

    /// How long to wait for input before there is something to do without it.
    fn until_idle_work(&self, now: Instant) -> Duration {
        if self.decoder.in_transaction() || !self.is_target_idle() {
            // Input, or the target's commit, ends the wait.
            return Duration::MAX;
        }
        let interval = match &self.batch {
            Some(batch) if !batch.is_empty() => IDLE_ADVANCE_INTERVAL,
            Some(_) | None => FENCE_CHECK_INTERVAL,
        };
        interval.saturating_sub(now - self.handed_over_at)
    }
}
