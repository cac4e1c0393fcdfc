//! The thread that applies: takes full batches, gives empty ones back, tells what is committed.
//!
//! It owns the target's connection and the tokio runtime that drives it, which has no other task.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::runtime::Runtime;

use super::shared::{Phase, Shared};
use crate::apply::{Applied, Applier};
use crate::batch::Batch;
use crate::error::Error;

/// How often the target is asked what it has flushed, while nothing else is to be done. Its WAL writer flushes within a
/// few times `wal_writer_delay`, which is 200 ms.
const FLUSH_LOOK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Writer {
    // Before the runtime, so that the connection is closed while there is still one.
    applier: Applier,
    runtime: Runtime,
    full: Receiver<Box<Batch>>,
    empty: Sender<Box<Batch>>,
    shared: Arc<Shared>,
}

impl Writer {
    pub fn new(
        runtime: Runtime,
        applier: Applier,
        full: Receiver<Box<Batch>>,
        empty: Sender<Box<Batch>>,
        shared: Arc<Shared>,
    ) -> Writer {
        Writer { applier, runtime, full, empty, shared }
    }

    /// Applies until the source thread has no more, or the session ends.
    pub fn run(mut self) -> Result<(), Error> {
        while let Some(batch) = self.next_batch()? {
            if self.shared.phase() != Phase::Running {
                // What was not begun comes again with the next session.
                break;
            }
            let Some(applied) = self.apply(&batch)? else { return Ok(()) };
            if applied.end_lsn.is_some() || batch.is_empty() {
                self.shared.succeed();
            }
            // Given back first, so that whoever is woken finds it. There is room for all batches there are, and a
            // source thread that has ended needs none.
            drop(self.empty.send(batch));
            self.shared.committed(self.applier.durable(), applied.changes, applied.transactions);
        }
        self.until_aborted(async |applier| applier.flush().await)?;
        self.shared.committed(self.applier.durable(), 0, 0);
        Ok(())
    }

    /// The next batch; `None` after the last. Meanwhile, what the target flushes is told.
    fn next_batch(&mut self) -> Result<Option<Box<Batch>>, Error> {
        while self.applier.is_waiting_for_flush() {
            match self.full.recv_timeout(FLUSH_LOOK_INTERVAL) {
                Ok(batch) => return Ok(Some(batch)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    if self.until_aborted(async |applier| applier.look_for_flush().await)?.is_none() {
                        return Ok(None);
                    }
                    self.shared.committed(self.applier.durable(), 0, 0);
                }
            }
        }
        Ok(self.full.recv().ok())
    }

    /// `None` where the session was aborted meanwhile: then nothing of the open transaction is on the target.
    fn apply(&mut self, batch: &Batch) -> Result<Option<Applied>, Error> {
        self.until_aborted(async |applier| {
            if batch.is_empty() {
                applier.check_fence().await.map(|()| Applied::default())
            } else {
                applier.apply(batch).await
            }
        })
    }

    /// Has the target do something, unless the session is aborted first.
    fn until_aborted<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Applier) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let Writer { applier, runtime, shared, .. } = self;
        runtime.block_on(async {
            tokio::select! {
                biased;
                done = work(applier) => done.map(Some),
                () = shared.aborted() => Ok(None),
            }
        })
    }
}
