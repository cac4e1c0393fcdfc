//! How tables that were copied beside the stream come into it.
//!
//! The stream leaves their changes out, and another one, from the slot that the copy is of, brings those alone. Once that
//! one is up with the first, the two agree on a position, between transactions of both: what commits before it is the
//! other's, what commits from there on is the stream's.
//!
//! ```text
//!  stream      ──leaves the tables out────────────┬─ at = the later of both ─┬─ waits at the next Begin ─┬─ takes all
//!                                        proposed ▲                          ▼ at                        ▲ done
//!  catch-up    ──brings the tables' changes alone─┴─ waits ──────────────────┴─ goes on to `at`, flushes ┘
//! ```
//!
//! **Always holds:** neither has passed `at` when it is set: the stream sets it where it stands itself or further on, and the
//! other one stands still from its proposal on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pgsluice_proto::Lsn;

use super::table_set::TableSet;
use crate::source::Waker;

#[derive(Debug)]
pub(super) struct Handover {
    tables: TableSet,
    stream: Waker,
    catch_up: Waker,
    /// The stream has received all before this.
    streamed: AtomicU64,
    /// Where the catch-up stands still; 0 before.
    proposed: AtomicU64,
    /// Where the tables change hands; 0 before it is known.
    at: AtomicU64,
    done: AtomicBool,
}

/// What the catch-up does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    Wait,
    /// Ends with the last transaction that commits before this.
    EndAt(Lsn),
}

impl Handover {
    /// Of a stream that begins at `progress`, with the wakers of both threads.
    pub fn new(tables: TableSet, progress: Lsn, stream: Waker, catch_up: Waker) -> Handover {
        Handover {
            tables,
            stream,
            catch_up,
            streamed: AtomicU64::new(progress.as_u64()),
            proposed: AtomicU64::new(0),
            at: AtomicU64::new(0),
            done: AtomicBool::new(false),
        }
    }

    pub fn concerns(&self, schema: &str, name: &str) -> bool {
        self.tables.contains(schema, name)
    }

    /// The stream has received all before `received`, and is between transactions.
    pub fn stream_stands_at(&self, received: Lsn) {
        self.streamed.store(received.as_u64(), Ordering::SeqCst);
        let proposed = self.proposed.load(Ordering::SeqCst);
        if proposed != 0 && self.at().is_none() {
            let at = Lsn::new(proposed.max(received.as_u64()));
            tracing::info!(%at, "tables that were copied beside the stream change hands");
            self.at.store(at.as_u64(), Ordering::SeqCst);
            self.catch_up.wake();
        }
    }

    /// The catch-up has received all before `received`, and is between transactions.
    pub fn catch_up_stands_at(&self, received: Lsn) -> Next {
        if let Some(at) = self.at() {
            return Next::EndAt(at);
        }
        if self.proposed.load(Ordering::SeqCst) == 0 {
            if received.as_u64() < self.streamed.load(Ordering::SeqCst) {
                return Next::GoOn;
            }
            self.proposed.store(received.as_u64(), Ordering::SeqCst);
            self.stream.wake();
        }
        Next::Wait
    }

    /// Where the tables change hands, once that is known.
    pub fn at(&self) -> Option<Lsn> {
        match self.at.load(Ordering::SeqCst) {
            0 => None,
            at => Some(Lsn::new(at)),
        }
    }

    /// All that commits before [`Handover::at`] is in the tables, and flushed.
    pub fn finish(&self) {
        self.done.store(true, Ordering::SeqCst);
        self.stream.wake();
    }

    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handover() -> Handover {
        let waker = || Waker::new().expect("a file descriptor");
        Handover::new(TableSet::default(), Lsn::new(10), waker(), waker())
    }

    #[test]
    fn a_catch_up_that_is_behind_goes_on_and_ends_where_the_stream_is() {
        let handover = handover();
        handover.stream_stands_at(Lsn::new(50));
        assert_eq!(handover.catch_up_stands_at(Lsn::new(20)), Next::GoOn);
        assert_eq!(handover.catch_up_stands_at(Lsn::new(60)), Next::Wait);
        assert_eq!((handover.at(), handover.catch_up_stands_at(Lsn::new(60))), (None, Next::Wait));
        handover.stream_stands_at(Lsn::new(90));
        assert_eq!(handover.catch_up_stands_at(Lsn::new(60)), Next::EndAt(Lsn::new(90)));
        // It stays where it is, however far the stream gets.
        handover.stream_stands_at(Lsn::new(120));
        assert_eq!(handover.at(), Some(Lsn::new(90)));
        assert!(!handover.is_done());
        handover.finish();
        assert!(handover.is_done());
    }

    #[test]
    fn a_stream_that_is_behind_takes_the_tables_where_the_catch_up_stands() {
        let handover = handover();
        assert_eq!(handover.catch_up_stands_at(Lsn::new(500)), Next::Wait);
        handover.stream_stands_at(Lsn::new(20));
        assert_eq!(handover.catch_up_stands_at(Lsn::new(500)), Next::EndAt(Lsn::new(500)));
    }
}
