//! The thread that applies: takes full batches, gives empty ones back, tells what is committed.
//!
//! It owns the target's connections and the tokio runtime that drives them, which has no other task. While nothing is under way
//! it waits for batches outside of the runtime; all that it does on the target is [`TargetSide`], which needs no thread and no
//! clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::runtime::Runtime;

use super::shared::{Phase, Shared};
use crate::apply::{Applied, Crew, Flight};
use crate::batch::Batch;
use crate::error::Error;

/// How often the target is asked what it has flushed, while nothing else is to be done. Its WAL writer flushes within a
/// few times `wal_writer_delay`, which is 200 ms.
pub(super) const FLUSH_LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How often sessions that wait for their turn see whether they are in the way of others. Short, since the stream stands
/// meanwhile, and longer than nearly all batches take.
pub(super) const WAY_LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// So many batches wait where the target is what limits: one more than the reader may have handed over while the one under way is
/// about to be done.
const WAITING_MIN: usize = 2;

#[derive(Debug)]
pub(super) struct Writer {
    // Before the runtime, so that the connections are closed while there is still one.
    target: TargetSide,
    runtime: Runtime,
    full: Receiver<Box<Batch>>,
}

impl Writer {
    pub fn new(runtime: Runtime, target: TargetSide, full: Receiver<Box<Batch>>) -> Writer {
        Writer { target, runtime, full }
    }

    /// Applies until the source thread has no more, or the session ends.
    pub fn run(mut self) -> Result<(), Error> {
        let mut flight = self.target.new_flight();
        while let Some(batch) = self.next_batch()? {
            let Writer { target, runtime, full } = &mut self;
            let more =
                Further { next: &|| full.try_recv().ok(), waiting: &|| full.len(), now: &Instant::now, tick: &tick };
            if runtime.block_on(target.work(batch, &mut flight, more))? == Continues::No {
                return Ok(());
            }
        }
        self.runtime.block_on(self.target.finish(&Instant::now))
    }

    /// The next batch; `None` after the last. Meanwhile, what the target flushes is told.
    fn next_batch(&mut self) -> Result<Option<Box<Batch>>, Error> {
        let Writer { target, runtime, full } = self;
        while target.is_waiting_for_flush() {
            match full.recv_timeout(FLUSH_LOOK_INTERVAL) {
                Ok(batch) => return Ok(target.wants(batch)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    if runtime.block_on(target.look_for_flush(&Instant::now))? == Continues::No {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(full.recv().ok().and_then(|batch| target.wants(batch)))
    }
}

fn tick() -> impl Future<Output = ()> {
    tokio::time::sleep(WAY_LOOK_INTERVAL)
}

/// Whether there is more to be done on the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Continues {
    Yes,
    /// The session was aborted meanwhile: then nothing of an open transaction is on the target.
    No,
}

/// Where batches come from while others are under way, and what time it is.
#[derive(Clone, Copy)]
pub(super) struct Further<'f, T> {
    pub next: &'f dyn Fn() -> Option<Box<Batch>>,
    /// How many there are to be taken.
    pub waiting: &'f dyn Fn() -> usize,
    pub now: &'f dyn Fn() -> Instant,
    /// Ends after [`WAY_LOOK_INTERVAL`].
    pub tick: &'f dyn Fn() -> T,
}

/// What is done on the target, and who hears of it.
#[derive(Debug)]
pub(super) struct TargetSide {
    crew: Crew,
    empty: Sender<Box<Batch>>,
    shared: Arc<Shared>,
}

impl TargetSide {
    pub fn new(crew: Crew, empty: Sender<Box<Batch>>, shared: Arc<Shared>) -> TargetSide {
        TargetSide { crew, empty, shared }
    }

    pub fn new_flight(&self) -> Flight {
        self.crew.new_flight()
    }

    /// The batch, unless the session ends: what was not begun comes again with the next one.
    pub fn wants(&self, batch: Box<Batch>) -> Option<Box<Batch>> {
        (self.shared.phase() == Phase::Running).then_some(batch)
    }

    pub fn is_waiting_for_flush(&self) -> bool {
        self.crew.is_waiting_for_flush()
    }

    /// Applies a batch, and those that come meanwhile, until none is under way, and gives them back. An empty one asks
    /// whether the session is still the one.
    pub async fn work<T: Future<Output = ()>>(
        &mut self,
        first: Box<Batch>,
        flight: &mut Flight,
        further: Further<'_, T>,
    ) -> Result<Continues, Error> {
        self.crew.take(first, flight, (further.now)());
        self.shared.await_answer();
        while !flight.is_empty() {
            while self.crew.takes(flight)
                && self.is_behind(flight, (further.waiting)())
                && let Some(batch) = (further.next)().and_then(|batch| self.wants(batch))
            {
                self.crew.take(batch, flight, (further.now)());
            }
            let takes = self.crew.takes(flight);
            let (is_shared, TargetSide { crew, shared, .. }) = (flight.is_shared(), &mut *self);
            tokio::select! {
                biased;
                done = crew.next(flight, further.now) => match done? {
                    Some((batch, applied)) => {
                        self.give_back(batch, applied);
                        self.shared.await_answer();
                    }
                    None => return Ok(Continues::Yes),
                },
                () = shared.aborted() => return Ok(Continues::No),
                () = shared.handed_over(), if takes => {}
                () = (further.tick)(), if is_shared => flight.look(),
            }
        }
        self.shared.all_answered();
        Ok(Continues::Yes)
    }

    /// A batch is to be begun beside others. Where the source is what limits, a further session on the target would only take
    /// processor time from it.
    fn is_behind(&self, flight: &Flight, waiting: usize) -> bool {
        flight.is_empty() || waiting >= WAITING_MIN || self.shared.is_reader_held_up()
    }

    fn give_back(&self, batch: Box<Batch>, applied: Applied) {
        if applied.end_lsn.is_some() || batch.is_empty() {
            self.shared.succeed();
        }
        self.shared.give_back(batch.bytes());
        // Given back first, so that whoever is woken finds it. There is room for all batches there are, and a
        // source thread that has ended needs none.
        drop(self.empty.send(batch));
        self.shared.committed(self.crew.durable(), applied.changes, applied.transactions);
        self.shared.confirm(self.crew.confirmed());
    }

    /// Tells what the target has flushed meanwhile.
    pub async fn look_for_flush(&mut self, now: &dyn Fn() -> Instant) -> Result<Continues, Error> {
        let looked = self.until_aborted(async |crew| crew.look_for_flush(now).await).await?;
        if looked.is_none() {
            return Ok(Continues::No);
        }
        self.shared.committed(self.crew.durable(), 0, 0);
        self.shared.confirm(self.crew.confirmed());
        Ok(Continues::Yes)
    }

    /// Ends on the last commit, flushed.
    pub async fn finish(&mut self, now: &dyn Fn() -> Instant) -> Result<(), Error> {
        self.until_aborted(async |crew| crew.flush(now).await).await?;
        self.shared.committed(self.crew.durable(), 0, 0);
        self.shared.confirm(self.crew.confirmed());
        Ok(())
    }

    /// Has the target do something, unless the session is aborted first.
    async fn until_aborted<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Crew) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let TargetSide { crew, shared, .. } = self;
        tokio::select! {
            biased;
            done = work(crew) => done.map(Some),
            () = shared.aborted() => Ok(None),
        }
    }
}
