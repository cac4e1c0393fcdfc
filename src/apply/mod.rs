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
use crate::batch::Batch;
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
    /// Whatever the target says, [`Kind::Fenced`](crate::error::Kind::Fenced), [`Kind::RowCount`](crate::error::Kind::RowCount),
    /// [`Kind::Mismatch`](crate::error::Kind::Mismatch). The applier must be dropped
    /// then. Where the error is [`Kind::Lost`](crate::error::Kind::Lost), the commit may have happened: only the progress row tells.
    pub async fn apply(&mut self, batch: &Batch) -> Result<Applied, Error> {
        if self.open || batch.is_open() {
            self.apply_part(batch).await?;
        } else {
            self.apply_whole(batch).await?;
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

    /// One transaction of the target for the batch; if that fails, down the ladder.
    async fn apply_whole(&mut self, batch: &Batch) -> Result<(), Error> {
        let manner = if self.netting { Manner::Sets } else { Manner::InOrder };
        let Err(error) = self.apply_and_commit(batch, manner).await else { return Ok(()) };
        if !error.may_pass_in_order() {
            return Err(error);
        }
        if manner == Manner::Sets {
            self.fall_back(&error).await?;
            match self.apply_and_commit(batch, Manner::InOrder).await {
                Ok(()) => return Ok(()),
                Err(error) if error.may_pass_in_order() => {}
                Err(error) => return Err(error),
            }
        }
        // Whatever comes before the transaction at fault is kept.
        self.rollback().await?;
        self.apply_each_transaction(batch).await
    }

    async fn apply_and_commit(&mut self, batch: &Batch, manner: Manner) -> Result<(), Error> {
        let end_lsn = batch.end_lsn().expect("a batch that is not open ends at an LSN");
        self.begin(self.checkpoint.advance(&self.client, end_lsn, batch.commit_time())).await?;
        self.apply_changes(batch, manner).await?;
        self.commit().await
    }

    async fn apply_each_transaction(&mut self, batch: &Batch) -> Result<(), Error> {
        for (transaction, changes) in batch.by_transaction() {
            let end_lsn = transaction.end_lsn.expect("a transaction of a batch that is not open has ended");
            self.begin(self.checkpoint.advance(&self.client, end_lsn, Some(transaction.commit_time))).await?;
            in_order::apply(&self.client, &mut self.plans, changes).await?;
            self.commit().await?;
        }
        Ok(())
    }

    /// A part of a source transaction that is larger than a batch, in the target's transaction that is open for it.
    async fn apply_part(&mut self, batch: &Batch) -> Result<(), Error> {
        if !self.open {
            self.begin(self.checkpoint.hold(&self.client)).await?;
            self.open = true;
        }
        if self.netting {
            self.execute("SAVEPOINT part").await?;
            if let Err(error) = self.apply_changes(batch, Manner::Sets).await {
                if !error.may_pass_in_order() {
                    return Err(error);
                }
                self.count_fallback(&error);
                self.execute("ROLLBACK TO SAVEPOINT part").await?;
                self.apply_changes(batch, Manner::InOrder).await?;
            }
            self.execute("RELEASE SAVEPOINT part").await?;
        } else {
            self.apply_changes(batch, Manner::InOrder).await?;
        }
        if batch.is_open() {
            return Ok(());
        }
        let end_lsn = batch.end_lsn().expect("a batch that is not open ends at an LSN");
        self.checkpoint.advance(&self.client, end_lsn, batch.commit_time()).await?;
        self.open = false;
        self.commit().await
    }

    async fn apply_changes(&mut self, batch: &Batch, manner: Manner) -> Result<(), Error> {
        let Applier { client, plans, .. } = self;
        match manner {
            Manner::Sets => sets::apply(client, plans, batch).await,
            Manner::InOrder => in_order::apply(client, plans, batch.changes()).await,
        }
    }

    /// Progress goes first: from here on no other engine can commit before us, nor we after it.
    async fn begin(&self, progress: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
        try_join(self.execute(BEGIN), progress).await.map(|_| ())
    }

    async fn commit(&self) -> Result<(), Error> {
        self.execute("COMMIT").await
    }

    async fn fall_back(&mut self, error: &Error) -> Result<(), Error> {
        self.count_fallback(error);
        self.rollback().await
    }

    fn count_fallback(&mut self, error: &Error) {
        self.fallbacks += 1;
        tracing::debug!(%error, "a batch does not pass as sets; it is applied in order");
    }

    async fn rollback(&self) -> Result<(), Error> {
        self.execute("ROLLBACK").await
    }

    async fn execute(&self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await.map_err(failed)
    }
}

fn failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(Stage::Apply, Role::Target, error)
}
