//! From batches to transactions on the target.
//!
//! In: a [`Batch`]. Out: its changes and the progress row, committed together.
//!
//! ```text
//!          batch that ends with a transaction                  batch that ends inside of one
//!   Idle ──BEGIN, progress, changes, COMMIT──► Idle     Idle ──BEGIN, hold progress, changes──► Open
//!                                                       Open ──changes──► Open
//!                                                       Open ──changes, progress, COMMIT──► Idle
//! ```
//!
//! Changes are applied as sets. Where that fails there is a ladder, each step after a rollback: as sets, in the source's
//! order, one source transaction at a time. The last step keeps what comes before the transaction that cannot be applied,
//! and its error is the one that is reported.
//!
//! **Always holds:**
//! - Progress and data are one transaction of the target, so both are there or neither is.
//! - Every statement's count of rows is compared with what the change asks for before anything commits.
//! - After an error the session is not used again: what it had open is rolled back with it.

mod catalog;
mod encode;
mod in_order;
mod net;
mod parameter;
mod plan;
mod sets;
mod sql;

use futures_util::future::try_join;
use pgsluice_proto::Lsn;
use tokio_postgres::Client;

pub use self::catalog::{TargetColumn, TargetTable, load as load_table};
use self::plan::Plans;
pub use self::plan::{check_columns, is_stable_in_binary};
use crate::batch::{Batch, Part};
use crate::checkpoint::Checkpoint;
use crate::config::Role;
use crate::error::{Error, Stage};

/// The isolation is stated because defaults of the role or database may differ. What may be checked late is checked
/// late: the source's rows come one by one, and need not hold before its statement or transaction has ended.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE; SET CONSTRAINTS ALL DEFERRED";

/// What a batch came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Progress on the target; `None` while a transaction is open.
    pub end_lsn: Option<Lsn>,
    pub changes: usize,
    pub transactions: usize,
}

#[derive(Debug)]
pub struct Applier {
    client: Client,
    checkpoint: Checkpoint,
    plans: Plans,
    netting: bool,
    /// A source transaction has been applied in part, and the target's transaction waits for the rest.
    open: bool,
    fallbacks: u64,
}

/// How the changes of a batch are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Netted per key, set by set.
    Sets,
    /// One by one as the source made them.
    InOrder,
}

impl Applier {
    /// `checkpoint` was prepared on `client`. `netting` asks for changes to be netted, which takes a target whose foreign
    /// keys and triggers are off.
    pub fn new(client: Client, checkpoint: Checkpoint, netting: bool) -> Applier {
        Applier { client, checkpoint, plans: Plans::default(), netting, open: false, fallbacks: 0 }
    }

    /// Applies a batch, and commits unless its last transaction goes on in the next one.
    ///
    /// # Errors
    /// Whatever the target says, [`Kind::Fenced`](crate::error::Kind::Fenced),
    /// [`Kind::RowCount`](crate::error::Kind::RowCount), [`Kind::Mismatch`](crate::error::Kind::Mismatch). The applier
    /// must be dropped then. Where the error is [`Kind::Lost`](crate::error::Kind::Lost), the commit may have happened:
    /// only the progress row tells.
    pub async fn apply(&mut self, batch: &Batch) -> Result<Applied, Error> {
        let was_open = self.open;
        let manner = if self.netting { Manner::Sets } else { Manner::InOrder };
        match self.apply_part(batch, batch.whole(), manner).await {
            // What was applied of the open transaction before cannot be rolled back and kept.
            Err(error) if !was_open && error.is_of_the_data() => self.go_down(batch, manner, error).await?,
            result => result?,
        }
        let end_lsn = if batch.is_open() { None } else { batch.end_lsn() };
        Ok(Applied { end_lsn, changes: batch.len(), transactions: batch.transaction_count() })
    }

    /// Looks whether another engine has taken over, and whether the target is still there.
    pub async fn check_fence(&self) -> Result<(), Error> {
        self.checkpoint.hold(&self.client).await
    }

    /// Batches that could not be applied as sets, and were applied in order.
    pub fn fallbacks(&self) -> u64 {
        self.fallbacks
    }

    /// The lower steps of the ladder, after `error` on the first.
    async fn go_down(&mut self, batch: &Batch, manner: Manner, error: Error) -> Result<(), Error> {
        self.roll_back().await?;
        if manner == Manner::Sets {
            self.count_fallback(&error);
            match self.apply_part(batch, batch.whole(), Manner::InOrder).await {
                Err(error) if error.is_of_the_data() => self.roll_back().await?,
                result => return result,
            }
        }
        // Whatever comes before the transaction at fault is kept.
        for part in batch.parts() {
            self.apply_part(batch, part, Manner::InOrder).await?;
        }
        Ok(())
    }

    async fn apply_part(&mut self, batch: &Batch, part: Part, manner: Manner) -> Result<(), Error> {
        let was_open = std::mem::replace(&mut self.open, part.end_lsn.is_none());
        if !was_open {
            self.begin(&part).await?;
        }
        match manner {
            Manner::Sets if was_open => self.apply_as_sets_or_in_order(batch).await?,
            Manner::Sets => sets::apply(&self.client, &mut self.plans, batch).await?,
            Manner::InOrder => in_order::apply(&self.client, &mut self.plans, batch.changes_in(part.places)).await?,
        }
        let Some(end_lsn) = part.end_lsn else { return Ok(()) };
        if was_open {
            self.checkpoint.advance(&self.client, end_lsn, part.commit_time).await?;
        }
        // What is checked late is checked here.
        self.execute("COMMIT").await.map_err(|error| match part.commit_lsn {
            Some(commit_lsn) => error.at(commit_lsn),
            None => error,
        })
    }

    /// In a transaction of the target that holds more than this batch, which a rollback of all would lose.
    async fn apply_as_sets_or_in_order(&mut self, batch: &Batch) -> Result<(), Error> {
        self.execute("SAVEPOINT part").await?;
        match sets::apply(&self.client, &mut self.plans, batch).await {
            Err(error) if error.is_of_the_data() => {
                self.count_fallback(&error);
                self.execute("ROLLBACK TO SAVEPOINT part").await?;
                in_order::apply(&self.client, &mut self.plans, batch.changes()).await?;
            }
            result => result?,
        }
        self.execute("RELEASE SAVEPOINT part").await
    }

    /// Progress goes first: from here on no other engine can commit before us, nor we after it.
    async fn begin(&self, part: &Part) -> Result<(), Error> {
        let begin = self.execute(BEGIN);
        match part.end_lsn {
            None => try_join(begin, self.checkpoint.hold(&self.client)).await?,
            Some(end_lsn) => try_join(begin, self.checkpoint.advance(&self.client, end_lsn, part.commit_time)).await?,
        };
        Ok(())
    }

    async fn roll_back(&mut self) -> Result<(), Error> {
        self.open = false;
        self.execute("ROLLBACK").await
    }

    fn count_fallback(&mut self, error: &Error) {
        self.fallbacks += 1;
        tracing::debug!(error = %error.code(), "a batch does not pass as sets; it is applied in order");
    }

    async fn execute(&self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await.map_err(failed)
    }
}

fn failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(Stage::Apply, Role::Target, error)
}
