//! The thread that applies: takes full batches, gives empty ones back, tells what is committed.
//!
//! It owns the target's connection and the tokio runtime that drives it, which has no other task. It waits for batches
//! outside of the runtime; all that it does on the target is [`TargetSide`], which needs no thread and no clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::runtime::Runtime;

use super::shared::{Phase, Shared};
use crate::apply::{Applied, Applier};
use crate::batch::Batch;
use crate::error::Error;

/// How often the target is asked what it has flushed, while nothing else is to be done. Its WAL writer flushes within a
/// few times `wal_writer_delay`, which is 200 ms.
pub(super) const FLUSH_LOOK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Writer {
    // Before the runtime, so that the connection is closed while there is still one.
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
        while let Some(batch) = self.next_batch()? {
            if self.runtime.block_on(self.target.apply(batch, Instant::now()))? == Continues::No {
                return Ok(());
            }
        }
        self.runtime.block_on(self.target.finish(Instant::now()))
    }

    /// The next batch; `None` after the last. Meanwhile, what the target flushes is told.
    fn next_batch(&mut self) -> Result<Option<Box<Batch>>, Error> {
        let Writer { target, runtime, full } = self;
        while target.is_waiting_for_flush() {
            match full.recv_timeout(FLUSH_LOOK_INTERVAL) {
                Ok(batch) => return Ok(target.wants(batch)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    if runtime.block_on(target.look_for_flush(Instant::now()))? == Continues::No {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(full.recv().ok().and_then(|batch| target.wants(batch)))
    }
}

/// Whether there is more to be done on the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Continues {
    Yes,
    /// The session was aborted meanwhile: then nothing of an open transaction is on the target.
    No,
}

/// What is done on the target, and who hears of it.
#[derive(Debug)]
pub(super) struct TargetSide {
    applier: Applier,
    empty: Sender<Box<Batch>>,
    shared: Arc<Shared>,
}

impl TargetSide {
    pub fn new(applier: Applier, empty: Sender<Box<Batch>>, shared: Arc<Shared>) -> TargetSide {
        TargetSide { applier, empty, shared }
    }

    /// The batch, unless the session ends: what was not begun comes again with the next one.
    pub fn wants(&self, batch: Box<Batch>) -> Option<Box<Batch>> {
        (self.shared.phase() == Phase::Running).then_some(batch)
    }

    pub fn is_waiting_for_flush(&self) -> bool {
        self.applier.is_waiting_for_flush()
    }

    /// Applies a batch and gives it back. An empty one asks whether the session is still the one.
    pub async fn apply(&mut self, batch: Box<Batch>, now: Instant) -> Result<Continues, Error> {
        let applied = self.until_aborted(async |applier| {
            if batch.is_empty() {
                applier.check_fence().await.map(|()| Applied::default())
            } else {
                applier.apply(&batch, now).await
            }
        });
        let Some(applied) = applied.await? else { return Ok(Continues::No) };
        if applied.end_lsn.is_some() || batch.is_empty() {
            self.shared.succeed();
        }
        // Given back first, so that whoever is woken finds it. There is room for all batches there are, and a
        // source thread that has ended needs none.
        drop(self.empty.send(batch));
        self.shared.committed(self.applier.durable(), applied.changes, applied.transactions);
        Ok(Continues::Yes)
    }

    /// Tells what the target has flushed meanwhile.
    pub async fn look_for_flush(&mut self, now: Instant) -> Result<Continues, Error> {
        let looked = self.until_aborted(async |applier| applier.look_for_flush(now).await).await?;
        if looked.is_none() {
            return Ok(Continues::No);
        }
        self.shared.committed(self.applier.durable(), 0, 0);
        Ok(Continues::Yes)
    }

    /// Ends on the last commit, flushed.
    pub async fn finish(&mut self, now: Instant) -> Result<(), Error> {
        self.until_aborted(async |applier| applier.flush(now).await).await?;
        self.shared.committed(self.applier.durable(), 0, 0);
        Ok(())
    }

    /// Has the target do something, unless the session is aborted first.
    async fn until_aborted<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Applier) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let TargetSide { applier, shared, .. } = self;
        tokio::select! {
            biased;
            done = work(applier) => done.map(Some),
            () = shared.aborted() => Ok(None),
        }
    }
}
