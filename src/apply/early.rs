//! A large transaction that is applied before it has committed on the source, in a transaction and a session of its own.
//!
//! ```text
//!  parts, as they come ──► BEGIN, hold the epoch, changes, changes, …  ──its turn──► progress, COMMIT
//!                                  └── an error, or somebody waits for us ──► ROLLBACK: given up
//! ```
//!
//! **Always holds:**
//! - It commits in its turn, with progress, when all that commits before it on the source is on the target.
//! - Until then nothing depends on it: whatever goes wrong, it is rolled back, and applied in its turn like any other. An update
//!   of a row that is not there yet is such a case, and a value of a unique key that is there still.
//! - Nobody waits for its locks for long: not those who commit before it, nor the fence of another engine, nor users of the target. It is
//!   asked whether anybody does, and while it waits for a lock itself, and cannot be asked, it waits no longer than [`LOCK_TIMEOUT_MS`].
//! - What of it is made out of its order is right all the same. A row that both it and one before it have changed was changed by it
//!   last, so that one finds its lock, and has it given up.

use std::time::Instant;

use futures_util::future::try_join;
use pgsluice_proto::{Lsn, PgTimestamp};
use tokio::sync::{mpsc, oneshot};

use super::plan::Plans;
use super::{Applied, Applier, BEGIN, behind, failed, in_order, sets};
use crate::batch::Batch;
use crate::error::{Error, Kind, Stage};

/// How long a transaction that is applied early waits for a lock. Whoever waits for one of its own cannot be seen meanwhile.
const LOCK_TIMEOUT_MS: u32 = 100;

/// So many orders are never on their way at once: parts, of which there are two, each with what gives it up behind it, what gives up the
/// transaction before them, and a commit.
pub const ORDERS_MAX: usize = 8;

/// What the session that applies early is to do. Transactions are counted.
#[derive(Debug)]
pub enum Order {
    /// Applies a part of one, of which the first begins it, and gives up what is open before it.
    Part { number: u64, batch: Box<Batch> },
    /// It does not commit here.
    GiveUp,
    /// Its turn has come, and all its parts have been ordered. The answer is how many changes it had.
    Commit { number: u64, end: End, answer: oneshot::Sender<Result<usize, Error>> },
}

/// Where its orders go.
pub type Orders = mpsc::Sender<Order>;

/// How a transaction has ended on the source.
#[derive(Clone, Copy, Debug)]
pub struct End {
    end_lsn: Lsn,
    commit_time: Option<PgTimestamp>,
}

impl Applier {
    /// Makes this the session that applies early.
    ///
    /// # Errors
    /// Whatever the target says.
    pub async fn apply_early_only(self) -> Result<Applier, Error> {
        self.execute(&format!("SET lock_timeout = {LOCK_TIMEOUT_MS}")).await?;
        Ok(self)
    }

    /// Applies a part of a transaction, whose first begins one of the target. A part that fails leaves it to be rolled back.
    ///
    /// # Errors
    /// Whatever the target says.
    pub async fn apply_early(&mut self, batch: &Batch) -> Result<(), Error> {
        let begins = !self.open;
        if begins {
            // Relations are numbered by whoever decodes, and each of these transactions has a decoder.
            self.plans = Plans::new(self.options.source_generates);
            self.open = true;
        }
        let Applier { client, checkpoint, plans, options, .. } = self;
        let begin = async {
            if !begins {
                return Ok(());
            }
            let begin = async { client.batch_execute(BEGIN).await.map_err(failed) };
            try_join(begin, checkpoint.hold_beside(client)).await.map(drop)
        };
        if options.netting {
            behind(begin, sets::apply(client, plans, batch, options.constraints_fire)).await
        } else {
            behind(begin, in_order::apply(client, plans, batch.changes())).await
        }
    }

    /// # Errors
    /// Whatever the target says; where it is [`Kind::Lost`], the commit may have happened.
    pub async fn commit_early(&mut self, End { end_lsn, commit_time }: End) -> Result<(), Error> {
        // In its turn it waits as any other.
        let unlimited = self.execute("SET LOCAL lock_timeout = 0");
        try_join(unlimited, self.checkpoint.advance(&self.client, end_lsn, commit_time, 0)).await?;
        self.commit(end_lsn).await?;
        self.open = false;
        Ok(())
    }

    /// Rolls back what is open.
    pub async fn give_up(&mut self) -> Result<(), Error> {
        self.roll_back().await
    }

    /// Whether anybody waits for a lock that this session holds.
    pub async fn is_waited_for(&self) -> Result<bool, Error> {
        let sql = "SELECT EXISTS (SELECT FROM pg_locks l \
                   WHERE NOT l.granted AND pg_backend_pid() = ANY (pg_blocking_pids(l.pid)))";
        self.client.query_one(sql, &[]).await.and_then(|row| row.try_get(0)).map_err(failed)
    }

    /// The session's process on the target.
    pub async fn pid(&self) -> Result<i32, Error> {
        self.client.query_one("SELECT pg_backend_pid()", &[]).await.and_then(|row| row.try_get(0)).map_err(failed)
    }

    pub fn is_lost(&self) -> bool {
        self.client.is_closed()
    }

    /// Has the other session commit the transaction that ends in this batch, which holds nothing else.
    pub(super) async fn have_committed(
        &mut self,
        batch: &Batch,
        now: Instant,
        (orders, number): (Option<&Orders>, u64),
    ) -> Result<Applied, Error> {
        let lost = || Error::new(Stage::Apply, Kind::EarlyGivenUp);
        let (part, (answer, answered)) = (batch.whole(), oneshot::channel());
        let end = End { end_lsn: part.end_lsn.ok_or_else(lost)?, commit_time: part.commit_time };
        orders.ok_or_else(lost)?.send(Order::Commit { number, end, answer }).await.map_err(|_| lost())?;
        let changes = answered.await.map_err(|_| lost())??;
        self.durability.committed_elsewhere(end.end_lsn);
        self.look_for_flush(now).await?;
        Ok(Applied { end_lsn: Some(end.end_lsn), changes, transactions: batch.transaction_count() })
    }
}
