//! A batch beside others that are under way: its changes are made meanwhile, and it commits when its turn has come.
//!
//! ```text
//!            its turn                                                  ┌──► Applier::apply, alone
//!  ──────────────────────────────────────────────────────────────────► │
//!   BEGIN, hold the epoch, changes ──► wait ──its turn──► progress, COMMIT
//!                  │                    │ │ it stands in the way of an earlier one
//!                  └──── an error ──────┴─┴──► ROLLBACK, wait ──its turn──► Applier::apply, alone
//! ```
//!
//! **Always holds:**
//! - Batches commit in the order of the source, so what the target shows is a state that the source had.
//! - Progress moves last, in the transaction that holds the changes. Until then the epoch is held by a lock that sessions of one
//!   engine share, and that the fence of another engine waits for.
//! - What a batch did out of its turn is never taken for an answer: whatever goes wrong is rolled back and done again in its turn, and
//!   only what goes wrong then is an error. So the ladder and the policies see the target as the source saw itself.
//! - No two sessions wait for each other for ever. The target ends a circle of locks by itself. Of one that goes through the order of
//!   commits it knows nothing, so whoever waits for its turn asks from time to time whether an earlier session waits for its locks,
//!   and lets go of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

use tokio::sync::Notify;
use tokio_postgres::Client;

use super::{Applied, Applier, BEGIN, Manner, behind, failed, in_order, sets};
use crate::batch::Batch;
use crate::error::Error;

/// The order in which the batches of an engine commit, by numbers without gaps.
#[derive(Debug)]
pub(super) struct CommitOrder {
    /// Whose turn it is.
    next: Cell<u64>,
    /// What is under way, with the process of its session on the target.
    at_work: RefCell<BTreeMap<u64, i32>>,
    /// It is time to look whether somebody is in the way.
    looks: Cell<u64>,
    /// The one whose turn it is has asked all others to let go.
    yields: Cell<u64>,
    changed: Notify,
    /// The process of a session that applies a large transaction before its turn: it waits for nobody's turn but its own.
    early: Option<Arc<AtomicI32>>,
}

/// What came of a batch before its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ahead {
    Committed,
    /// It is to be rolled back, and done again in its turn.
    TooEarly,
}

/// Why a wait for a turn has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    ItsTurn,
    Look,
    /// An earlier one has asked for what we hold.
    Yield,
}

impl CommitOrder {
    pub fn new(early: Option<Arc<AtomicI32>>) -> CommitOrder {
        CommitOrder {
            next: Cell::default(),
            at_work: RefCell::default(),
            looks: Cell::default(),
            yields: Cell::default(),
            changed: Notify::default(),
            early,
        }
    }

    pub fn begun(&self, number: u64, pid: i32) {
        self.at_work.borrow_mut().insert(number, pid);
    }

    /// The one whose turn it was has committed.
    pub fn committed(&self, number: u64) {
        debug_assert_eq!(number, self.next.get(), "batches commit in their order");
        self.at_work.borrow_mut().remove(&number);
        self.next.set(number + 1);
        self.changed.notify_waiters();
    }

    /// Has all who wait see whether they are in the way of others.
    pub fn look(&self) {
        self.looks.set(self.looks.get() + 1);
        self.changed.notify_waiters();
    }

    pub fn is_turn_of(&self, number: u64) -> bool {
        self.next.get() == number
    }

    /// Has all later ones let go of what they hold. False where there is none.
    pub fn ask_to_yield(&self) -> bool {
        let is_alone = self.at_work.borrow().len() <= 1;
        if !is_alone {
            self.yields.set(self.yields.get() + 1);
            self.changed.notify_waiters();
        }
        !is_alone
    }

    fn earlier(&self, number: u64) -> Vec<i32> {
        let early = self.early.as_ref().map(|pid| pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0);
        self.at_work.borrow().range(..number).map(|(_, pid)| *pid).chain(early).collect()
    }

    async fn wait(&self, number: u64, yields: u64) -> Waited {
        let looks = self.looks.get();
        loop {
            let changed = self.changed.notified();
            if self.is_turn_of(number) {
                return Waited::ItsTurn;
            }
            if self.yields.get() != yields {
                return Waited::Yield;
            }
            if self.looks.get() != looks {
                return Waited::Look;
            }
            changed.await;
        }
    }

    async fn wait_for_turn(&self, number: u64) {
        while self.wait(number, self.yields.get()).await != Waited::ItsTurn {}
    }
}

impl Applier {
    /// Applies the batch with this number, beside others.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub(super) async fn apply_beside(
        &mut self,
        batch: &Batch,
        now: Instant,
        (order, number): (&CommitOrder, u64),
    ) -> Result<Applied, Error> {
        if !order.is_turn_of(number) {
            match self.apply_ahead(batch, (order, number)).await? {
                Ahead::Committed => return self.committed(batch, now).await,
                Ahead::TooEarly => {
                    self.roll_back().await?;
                    order.wait_for_turn(number).await;
                }
            }
        }
        self.apply_among(batch, now, Some(order)).await
    }

    /// Makes the changes before the batch's turn has come, and commits in its turn.
    async fn apply_ahead(&mut self, batch: &Batch, at: (&CommitOrder, u64)) -> Result<Ahead, Error> {
        match self.change_and_commit(batch, at).await {
            Err(error) if error.may_pass_in_its_turn() => {
                tracing::debug!(error = %error.code(), "a batch beside others is done again in its turn");
                Ok(Ahead::TooEarly)
            }
            result => result,
        }
    }

    async fn change_and_commit(&mut self, batch: &Batch, (order, number): (&CommitOrder, u64)) -> Result<Ahead, Error> {
        let yields = order.yields.get();
        self.change_ahead(batch).await?;
        loop {
            match order.wait(number, yields).await {
                Waited::ItsTurn => break,
                Waited::Look if !stands_in_the_way(&self.client, &order.earlier(number)).await? => {}
                Waited::Look | Waited::Yield => return Ok(Ahead::TooEarly),
            }
        }
        let part = batch.whole();
        // One that is open is for itself, and does not come here.
        let Some(end_lsn) = part.end_lsn else { return Ok(Ahead::TooEarly) };
        self.checkpoint.advance(&self.client, end_lsn, part.commit_time, 0).await?;
        self.commit(end_lsn).await?;
        Ok(Ahead::Committed)
    }

    async fn change_ahead(&mut self, batch: &Batch) -> Result<(), Error> {
        let Applier { client, checkpoint, plans, options, .. } = self;
        let begin = async {
            let begin = async { client.batch_execute(BEGIN).await.map_err(failed) };
            futures_util::future::try_join(begin, checkpoint.hold_beside(client)).await.map(drop)
        };
        match if options.netting { Manner::Sets } else { Manner::InOrder } {
            Manner::Sets => behind(begin, sets::apply(client, plans, batch, options.constraints_fire)).await,
            Manner::InOrder | Manner::ByPolicy => behind(begin, in_order::apply(client, plans, batch.changes())).await,
        }
    }
}

/// Whether one of these processes waits for a lock that this session holds.
async fn stands_in_the_way(client: &Client, earlier: &[i32]) -> Result<bool, Error> {
    let sql = "SELECT bool_or(pg_backend_pid() = ANY (pg_blocking_pids(pid))) FROM unnest($1::integer[]) pid";
    let row = client.query_one(sql, &[&earlier]).await.map_err(failed)?;
    Ok(row.try_get::<_, Option<bool>>(0).map_err(failed)?.unwrap_or(false))
}
