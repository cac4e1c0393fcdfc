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
//! **Always holds:**
//! - Progress and data are one transaction of the target, so both are there or neither is.
//! - Every statement's count of rows is compared with what the change asks for before anything commits.
//! - After an error the session is not used again: what it had open is rolled back with it.

mod catalog;
mod in_order;
mod parameter;
mod plan;
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
    /// A source transaction has been applied in part, and the target's transaction waits for the rest.
    open: bool,
}

impl Applier {
    /// `checkpoint` was prepared on `client`.
    pub fn new(client: Client, checkpoint: Checkpoint) -> Applier {
        Applier { client, checkpoint, plans: Plans::default(), open: false }
    }

    /// Applies a batch, and commits unless its last transaction goes on in the next one.
    ///
    /// # Errors
    /// Whatever the target says, [`Kind::Fenced`], [`Kind::RowCount`], [`Kind::Mismatch`]. The applier must be dropped
    /// then. Where the error is [`Kind::Lost`], the commit may have happened: only the progress row tells.
    pub async fn apply(&mut self, batch: &Batch) -> Result<Applied, Error> {
        if !self.open {
            self.begin(batch).await?;
        }
        in_order::apply(&self.client, &mut self.plans, batch.changes()).await?;
        let applied = Applied { end_lsn: None, changes: batch.len(), transactions: batch.transaction_count() };
        if batch.is_open() {
            self.open = true;
            return Ok(applied);
        }
        if self.open {
            self.advance(batch).await?;
            self.open = false;
        }
        self.client.batch_execute("COMMIT").await.map_err(failed)?;
        Ok(Applied { end_lsn: batch.end_lsn(), ..applied })
    }

    /// Looks whether another engine has taken over, and whether the target is still there.
    pub async fn check_fence(&self) -> Result<(), Error> {
        self.checkpoint.hold(&self.client).await
    }

    /// Progress goes first: from here on no other engine can commit before us, nor we after it.
    async fn begin(&self, batch: &Batch) -> Result<(), Error> {
        let begin = async { self.client.batch_execute(BEGIN).await.map_err(failed) };
        if batch.is_open() {
            try_join(begin, self.checkpoint.hold(&self.client)).await?;
        } else {
            try_join(begin, self.advance(batch)).await?;
        }
        Ok(())
    }

    async fn advance(&self, batch: &Batch) -> Result<(), Error> {
        let end_lsn = batch.end_lsn().expect("a batch that is not open ends at an LSN");
        self.checkpoint.advance(&self.client, end_lsn, batch.commit_time()).await
    }
}

fn failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(Stage::Apply, Role::Target, error)
}
