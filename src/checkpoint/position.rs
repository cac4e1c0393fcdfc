//! Where progress stands, as one engine has read and moved it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pgsluice_proto::Lsn;

/// Where the next transaction that moves progress has to find it on the target. All sessions of an engine share it; they move
/// it one after the other, in the order of the source's commits, each when its COMMIT has been answered.
///
/// What the target says is compared with it in the statement that moves progress, so that nothing is applied on top of
/// anything but what comes right before it.
#[derive(Clone, Debug)]
pub struct Position(Arc<AtomicU64>);

impl Position {
    /// Of an engine that has read progress at `end_lsn`.
    pub fn new(end_lsn: Lsn) -> Position {
        Position(Arc::new(AtomicU64::new(end_lsn.as_u64())))
    }

    pub fn end_lsn(&self) -> Lsn {
        Lsn::new(self.0.load(Ordering::Acquire))
    }

    /// A transaction that moves progress to `end_lsn` has committed.
    pub(super) fn moved_to(&self, end_lsn: Lsn) {
        self.0.store(end_lsn.as_u64(), Ordering::Release);
    }
}
