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
mod parameter;
mod plan;
mod sql;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use futures_util::future::try_join;
use futures_util::stream::{FuturesOrdered, StreamExt};
use pgsluice_proto::{Lsn, Oid};
use tokio_postgres::Client;

pub use self::catalog::{TargetColumn, TargetTable, load as load_table};
use self::parameter::Parameter;
use self::plan::{Prepared, TablePlan};
pub use self::plan::{check_columns, is_stable_in_binary};
use crate::batch::{Batch, BatchedChange, BatchedOperation, OldRow, Row};
use crate::checkpoint::Checkpoint;
use crate::config::Role;
use crate::decode::{Relation, Truncate};
use crate::error::{Error, Kind, Stage};

/// Statements that are on their way at once. Enough to hide the round trip, few enough that the answers stay small.
const STATEMENTS_IN_FLIGHT_MAX: usize = 256;
/// Bytes of rows that are on their way at once, one row more than this at most.
const BYTES_IN_FLIGHT_MAX: usize = 4 * 1024 * 1024;

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
    plans: HashMap<Oid, TablePlan>,
    /// A source transaction has been applied in part, and the target's transaction waits for the rest.
    open: bool,
}

impl Applier {
    /// `checkpoint` was prepared on `client`.
    pub fn new(client: Client, checkpoint: Checkpoint) -> Applier {
        Applier { client, checkpoint, plans: HashMap::new(), open: false }
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
        self.apply_changes(batch).await?;
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

    async fn apply_changes(&mut self, batch: &Batch) -> Result<(), Error> {
        let Applier { client, plans, .. } = self;
        let mut running = FuturesOrdered::new();
        let mut bytes = 0;
        for change in batch.changes() {
            while running.len() >= STATEMENTS_IN_FLIGHT_MAX || (bytes > BYTES_IN_FLIGHT_MAX && !running.is_empty()) {
                bytes -= running.next().await.transpose()?.unwrap_or(0);
            }
            let at = change.transaction.commit_lsn;
            let work = match work(client, plans, &change).await {
                Ok(work) => work,
                Err(error) => {
                    // An earlier statement that fails is the cause of later ones failing.
                    while let Some(earlier) = running.next().await {
                        earlier?;
                    }
                    return Err(error.at(at));
                }
            };
            match work {
                Work::Statement(statement) => {
                    bytes += statement.bytes;
                    running.push_back(statement.execute(client, at));
                }
                Work::Barrier(sql, relations) => {
                    while let Some(earlier) = running.next().await {
                        bytes -= earlier?;
                    }
                    client.batch_execute(&sql).await.map_err(|error| failed(error).at(at).on(relations))?;
                }
            }
        }
        while let Some(earlier) = running.next().await {
            earlier?;
        }
        Ok(())
    }
}

enum Work<'a> {
    Statement(RowStatement<'a>),
    /// Text that runs alone, and the tables that it concerns.
    Barrier(String, String),
}

/// One row's statement, ready to run.
struct RowStatement<'a> {
    prepared: Prepared,
    parameters: Vec<Parameter<'a>>,
    relation: &'a Arc<Relation>,
    operation: &'static str,
    bytes: usize,
}

impl RowStatement<'_> {
    /// Runs it, and returns the bytes that are no longer on their way.
    async fn execute(self, client: &Client, at: Lsn) -> Result<usize, Error> {
        let rows = client.execute_raw(&self.prepared.statement, self.parameters).await;
        let rows = rows.map_err(|error| failed(error).at(at).on(self.relation.to_string()))?;
        if rows != 1 {
            let kind = Kind::RowCount { operation: self.operation, rows };
            return Err(Error::new(Stage::Apply, kind).at(at).on(self.relation.to_string()));
        }
        Ok(self.bytes)
    }
}

async fn work<'a>(
    client: &Client,
    plans: &mut HashMap<Oid, TablePlan>,
    change: &BatchedChange<'a>,
) -> Result<Work<'a>, Error> {
    let (relation, operation, new, old): (_, _, Option<Row<'a>>, Option<OldRow<'a>>) = match change.operation {
        BatchedOperation::Insert { relation, new } => (relation, "INSERT", Some(new), None),
        BatchedOperation::Update { relation, old, new } => (relation, "UPDATE", Some(new), old),
        BatchedOperation::Delete { relation, old } => (relation, "DELETE", None, Some(old)),
        BatchedOperation::Truncate(truncate) => return truncate_work(client, plans, truncate).await,
    };
    let plan = plan_for(client, plans, relation).await?;
    let prepared = match (new, operation) {
        (Some(_), "INSERT") => plan.insert(client, relation).await?,
        (Some(new), _) => plan.update(client, relation, new).await?,
        (None, _) => plan.delete(client, relation).await?,
    };
    let rows = [new, old.map(|old| old.row())];
    for row in rows.into_iter().flatten() {
        plan.check_format(relation, row)?;
    }
    if let [Some(new), Some(old)] = rows {
        plan.check_identity_columns(relation, new, old)?;
    }
    let parameters = prepared.parameters(new, old);
    let bytes = rows.iter().flatten().map(Row::value_bytes).sum();
    Ok(Work::Statement(RowStatement { prepared, parameters, relation, operation, bytes }))
}

async fn truncate_work<'a>(
    client: &Client,
    plans: &mut HashMap<Oid, TablePlan>,
    truncate: &Truncate,
) -> Result<Work<'a>, Error> {
    for relation in &truncate.relations {
        plan_for(client, plans, relation).await?;
    }
    let tables = truncate.relations.iter().filter_map(|relation| plans.get(&relation.id)).map(TablePlan::table);
    let names: Vec<_> = truncate.relations.iter().map(|relation| relation.to_string()).collect();
    Ok(Work::Barrier(sql::truncate(tables, truncate.restart_identity), names.join(", ")))
}

/// The plan for this description of the relation; one for an older description is dropped with its statements.
async fn plan_for<'p>(
    client: &Client,
    plans: &'p mut HashMap<Oid, TablePlan>,
    relation: &Relation,
) -> Result<&'p mut TablePlan, Error> {
    let entry = match plans.entry(relation.id) {
        Entry::Occupied(known) if known.get().version == relation.version => return Ok(known.into_mut()),
        other => other,
    };
    let table = load_table(client, &relation.namespace, &relation.name).await?.ok_or_else(|| {
        let what = format!("the target has no table {relation}");
        let mend = "make it there as it is on the source, then start again: nothing is lost meanwhile".to_owned();
        Error::new(Stage::Apply, Kind::Mismatch { what, mend })
    })?;
    Ok(entry.insert_entry(TablePlan::new(relation, table)?).into_mut())
}

fn failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(Stage::Apply, Role::Target, error)
}
