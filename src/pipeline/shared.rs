//! What the threads of a session know of each other.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use pgsluice_proto::Lsn;
use tokio::sync::Notify;

use crate::batch::Batch;
use crate::error::{Error, Kind, Stage};
use crate::source::Waker;

/// How the session is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Phase {
    Running = 0,
    /// End on the commit of the batch that is being applied.
    Draining = 1,
    /// End now; what is not committed is rolled back.
    Aborting = 2,
}

#[derive(Debug)]
pub(super) struct Shared {
    phase: AtomicU8,
    flushed: AtomicU64,
    confirmed: AtomicU64,
    succeeded: AtomicBool,
    stopped: AtomicBool,
    changes: AtomicU64,
    transactions: AtomicU64,
    writer_ended: AtomicBool,
    pub waker: Waker,
    abort: Notify,
    handed_over: Notify,
    /// Of the batches that are handed over and not given back yet.
    bytes_handed_over: AtomicUsize,
    /// The reader has something to read, and no batch for it.
    reader_held_up: AtomicBool,
    /// Since when the writer waits for the target to answer.
    unanswered_since: Mutex<Option<Instant>>,
}

impl Shared {
    /// Of a session that begins at `progress`, all before `confirmed` confirmed.
    pub fn new(progress: Lsn, confirmed: Lsn) -> io::Result<Shared> {
        Ok(Shared {
            phase: AtomicU8::new(Phase::Running as u8),
            flushed: AtomicU64::new(progress.as_u64()),
            confirmed: AtomicU64::new(confirmed.as_u64()),
            succeeded: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            writer_ended: AtomicBool::new(false),
            waker: Waker::new()?,
            abort: Notify::new(),
            handed_over: Notify::new(),
            bytes_handed_over: AtomicUsize::new(0),
            reader_held_up: AtomicBool::new(false),
            unanswered_since: Mutex::new(None),
        })
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Draining,
            _ => Phase::Aborting,
        }
    }

    /// A phase is never left for an earlier one.
    fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Somebody has asked for the end of the run.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.drain();
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub fn drain(&self) {
        self.enter(Phase::Draining);
    }

    /// Ends the wait for the target, whatever it is doing for us.
    pub fn abort(&self) {
        self.enter(Phase::Aborting);
        self.abort.notify_one();
    }

    /// Ends when the session is to be aborted.
    pub async fn aborted(&self) {
        self.abort.notified().await;
    }

    /// A batch of so many bytes is about to be in the channel.
    pub fn hand_over(&self, bytes: usize) {
        self.bytes_handed_over.fetch_add(bytes, Ordering::AcqRel);
    }

    /// It is there.
    pub fn tell_handed_over(&self) {
        self.handed_over.notify_one();
    }

    /// A batch of so many bytes is applied.
    pub fn give_back(&self, bytes: usize) {
        self.bytes_handed_over.fetch_sub(bytes, Ordering::AcqRel);
    }

    pub fn bytes_handed_over(&self) -> usize {
        self.bytes_handed_over.load(Ordering::Acquire)
    }

    /// The reader waits for the target to give back a batch, or does not any more.
    pub fn hold_up_reader(&self, is_held_up: bool) {
        if self.reader_held_up.swap(is_held_up, Ordering::AcqRel) != is_held_up && is_held_up {
            self.handed_over.notify_one();
        }
    }

    /// Whether the reader waits for the target to give back a batch.
    pub fn is_reader_held_up(&self) -> bool {
        self.reader_held_up.load(Ordering::Acquire)
    }

    /// Ends when a batch has been handed over since this was last asked, or the reader was held up.
    pub async fn handed_over(&self) {
        self.handed_over.notified().await;
    }

    /// The target has been asked for something, or has answered and owes more.
    pub fn await_answer(&self) {
        *self.unanswered_since() = Some(Instant::now());
    }

    /// The target owes no answer.
    pub fn all_answered(&self) {
        *self.unanswered_since() = None;
    }

    /// How long the target has owed an answer, if it owes one.
    pub fn unanswered_for(&self) -> Option<Duration> {
        self.unanswered_since().map(|since| since.elapsed())
    }

    fn unanswered_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.unanswered_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn committed(&self, end_lsn: Option<Lsn>, changes: usize, transactions: usize) {
        if let Some(end_lsn) = end_lsn {
            self.flushed.fetch_max(end_lsn.as_u64(), Ordering::AcqRel);
        }
        self.changes.fetch_add(changes as u64, Ordering::Relaxed);
        self.transactions.fetch_add(transactions as u64, Ordering::Relaxed);
        self.waker.wake();
    }

    /// All before this is committed on the target.
    pub fn flushed(&self) -> Lsn {
        Lsn::new(self.flushed.load(Ordering::Acquire))
    }

    /// The source may hear of all before this.
    pub fn confirm(&self, end_lsn: Option<Lsn>) {
        let end_lsn = end_lsn.map_or(0, Lsn::as_u64);
        if self.confirmed.fetch_max(end_lsn, Ordering::AcqRel) < end_lsn {
            self.waker.wake();
        }
    }

    /// What the source may hear of.
    pub fn confirmed(&self) -> Lsn {
        Lsn::new(self.confirmed.load(Ordering::Acquire))
    }

    /// The target has done all it was asked for, if only to say that the session is still the one.
    pub fn succeed(&self) {
        self.succeeded.store(true, Ordering::Release);
    }

    pub fn has_succeeded(&self) -> bool {
        self.succeeded.load(Ordering::Acquire)
    }

    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    pub fn writer_ended(&self) {
        self.writer_ended.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub fn has_writer_ended(&self) -> bool {
        self.writer_ended.load(Ordering::Acquire)
    }
}

/// Both ends of a channel of batches.
type BatchChannel = (Sender<Box<Batch>>, Receiver<Box<Batch>>);

/// All batches there are, in the channel that gives them back.
pub(super) fn empty_batches(count: usize) -> Result<BatchChannel, Error> {
    let (give_back, empty) = crossbeam_channel::bounded(count);
    for _ in 0..count {
        // The channel holds as many as there are.
        give_back.try_send(Box::default()).map_err(|_| Error::new(Stage::Apply, Kind::Panicked))?;
    }
    Ok((give_back, empty))
}
