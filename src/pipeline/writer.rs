//! The thread that applies: takes full batches, gives empty ones back, tells what is committed.
//!
//! It owns the target's connection and the tokio runtime that drives it, which has no other task.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use tokio::runtime::Runtime;

use super::shared::{Phase, Shared};
use crate::apply::{Applied, Applier};
use crate::batch::Batch;
use crate::error::Error;

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
        while let Ok(batch) = self.full.recv() {
            if self.shared.phase() != Phase::Running {
                // What was not begun comes again with the next session.
                return Ok(());
            }
            let Some(applied) = self.apply(&batch)? else { return Ok(()) };
            if applied.end_lsn.is_some() || batch.is_empty() {
                self.shared.succeed();
            }
            // Given back first, so that whoever is woken finds it. There is room for all batches there are, and a
            // source thread that has ended needs none.
            drop(self.empty.send(batch));
            self.shared.committed(applied.end_lsn, applied.changes, applied.transactions);
        }
        Ok(())
    }

    /// `None` where the session was aborted meanwhile: then nothing of the open transaction is on the target.
    fn apply(&mut self, batch: &Batch) -> Result<Option<Applied>, Error> {
        let Writer { applier, runtime, shared, .. } = self;
        runtime.block_on(async {
            let work = async {
                if batch.is_empty() {
                    applier.check_fence().await.map(|()| Applied::default())
                } else {
                    applier.apply(batch).await
                }
            };
            tokio::select! {
                biased;
                applied = work => applied.map(Some),
                () = shared.aborted() => Ok(None),
            }
        })
    }
}
