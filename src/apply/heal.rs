//! What the policy of a table makes of one change that the target has refused.
//!
//! ```text
//!                       the key is there                        the row is not there
//!  INSERT               overwrite: C's row becomes the new one
//!                       keep: left out
//!  UPDATE, same key                                             insert: the whole new row
//!  UPDATE to a new key  overwrite: C's row of that key goes,    skip: left out
//!                       and the update is done
//!                       keep: left out
//!  DELETE                                                       insert, skip: done
//! ```
//!
//! Every try is undone if the target refuses it as well, as where another unique index than that of the key is in the way:
//! then nothing is healed, and the error is what is left.

use std::sync::Arc;

use pgsluice_proto::Lsn;
use pgsluice_proto::pgoutput::Cell;
use tokio_postgres::Client;

use super::attempt::{Tried, attempt};
use super::in_order::RowStatement;
use super::parameter::Parameter;
use super::plan::{Plans, Prepared, TablePlan};
use crate::batch::{BatchedChange, BatchedOperation, OldRow, Row};
use crate::config::{OnDuplicate, OnMissingRow, Policy};
use crate::decode::Relation;
use crate::error::{Error, Kind, Stage};
use crate::postgres::quote_ident;

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Overwritten,
    Kept,
    Inserted,
    Skipped,
}

/// Heals a change after `error`, as far as the policy goes; what it does not heal is the inner error.
pub(super) async fn heal(
    (client, plans): (&Client, &mut Plans),
    policy: Policy,
    change: &BatchedChange<'_>,
    error: Error,
) -> Tried<How> {
    let mut healer = Healer { client, plans, policy, at: change.transaction.commit_lsn };
    match change.operation {
        BatchedOperation::Insert { relation, new } if error.is_duplicate() => {
            healer.duplicate(Wanted { relation, new, old: None }, Operation::Insert, error).await
        }
        BatchedOperation::Update { relation, old, new } if error.is_duplicate() => {
            healer.duplicate(Wanted { relation, new, old }, Operation::Update, error).await
        }
        BatchedOperation::Update { relation, old, new } if error.is_missing_row() => {
            healer.missing_update(Wanted { relation, new, old }, error).await
        }
        BatchedOperation::Delete { .. } if error.is_missing_row() => match policy.on_missing_row {
            Some(OnMissingRow::Insert | OnMissingRow::Skip) => Ok(Ok(How::Skipped)),
            Some(OnMissingRow::Stop) => Err(error),
            None => Ok(Err(error)),
        },
        BatchedOperation::Insert { .. }
        | BatchedOperation::Update { .. }
        | BatchedOperation::Delete { .. }
        | BatchedOperation::Truncate(_) => Ok(Err(error)),
    }
}

/// The statement that has met its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Insert,
    Update,
}

/// A row as the source has it now, and what is known of it as it was.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    relation: &'a Arc<Relation>,
    new: Row<'a>,
    old: Option<OldRow<'a>>,
}

impl<'a> Wanted<'a> {
    /// The new value, or the old one where it was left alone and is known. What is left alone was large once: NULL stands in
    /// an old row for what is not known of it.
    fn cell(&self, position: usize) -> Cell<'a> {
        let old = self.old.map_or(Cell::Null, |old| old.row().cell(position));
        match (self.new.cell(position), old) {
            (Cell::Unchanged, Cell::Text(_) | Cell::Binary(_)) => old,
            (cell, _) => cell,
        }
    }

    /// The row that an update looks for.
    fn looked_for(&self) -> Row<'a> {
        self.old.map_or(self.new, |old| old.row())
    }

    /// It is not under the key any more under which it was.
    fn moves(&self, key: &[usize]) -> bool {
        self.old.is_some_and(|old| key.iter().any(|&position| self.cell(position) != old.row().cell(position)))
    }
}

struct Healer<'c> {
    client: &'c Client,
    plans: &'c mut Plans,
    policy: Policy,
    at: Lsn,
}

impl Healer<'_> {
    async fn duplicate(&mut self, wanted: Wanted<'_>, operation: Operation, error: Error) -> Tried<How> {
        match self.policy.on_duplicate {
            Some(OnDuplicate::Stop) => return Err(error),
            None => return Ok(Err(error)),
            Some(OnDuplicate::Keep) => return Ok(Ok(How::Kept)),
            Some(OnDuplicate::Overwrite) => {}
        }
        let client = self.client;
        let Some(key) = self.plan(wanted.relation).await?.key().map(<[usize]>::to_vec) else { return Ok(Err(error)) };
        let tried = match operation {
            Operation::Insert => attempt(client, self.become_row(wanted)).await?,
            Operation::Update if wanted.moves(&key) => attempt(client, self.make_room(wanted)).await?,
            // It is another unique index than that of the key.
            Operation::Update => return Ok(Err(error)),
        };
        outcome(tried, How::Overwritten, error)
    }

    async fn missing_update(&mut self, wanted: Wanted<'_>, error: Error) -> Tried<How> {
        match self.policy.on_missing_row {
            Some(OnMissingRow::Stop) => return Err(error),
            None => return Ok(Err(error)),
            Some(OnMissingRow::Skip) => return Ok(Ok(How::Skipped)),
            Some(OnMissingRow::Insert) => {}
        }
        let client = self.client;
        let (plan, relation) = (self.plan(wanted.relation).await?, wanted.relation);
        let insert = plan.insert(client, relation).await?;
        if let Some(position) = insert.positions().find(|&position| wanted.cell(position) == Cell::Unchanged) {
            let column = quote_ident(&relation.columns[position].name);
            let partial = Error::new(Stage::Apply, Kind::RowNotWhole { column }).at(self.at).on(relation.to_string());
            return Ok(Err(match error.row() {
                Some(row) => partial.of(row.clone()),
                None => partial,
            }));
        }
        let parameters = insert.parameters(|position| wanted.cell(position), |position| wanted.cell(position));
        match attempt(client, self.run("INSERT", insert, parameters, wanted, wanted.new)).await? {
            Err(error) if error.is_duplicate() => self.duplicate(wanted, Operation::Insert, error).await,
            tried => outcome(tried, How::Inserted, error),
        }
    }

    /// Has the target's row of the same key become this one.
    async fn become_row(&mut self, wanted: Wanted<'_>) -> Result<(), Error> {
        let client = self.client;
        let cells = (0..wanted.relation.columns.len()).map(|position| wanted.cell(position));
        let update = self.plan(wanted.relation).await?.update(client, wanted.relation, cells).await?;
        let parameters = update.parameters(|position| wanted.cell(position), |position| wanted.cell(position));
        self.run("UPDATE", update, parameters, wanted, wanted.new).await
    }

    /// Removes the target's row of the new key, and updates the one of the old key, which keeps what is not told of it.
    async fn make_room(&mut self, wanted: Wanted<'_>) -> Result<(), Error> {
        let (client, relation) = (self.client, wanted.relation);
        let delete = self.plan(relation).await?.delete(client, relation).await?;
        let parameters = delete.parameters(|position| wanted.cell(position), |position| wanted.cell(position));
        self.run("DELETE", delete, parameters, wanted, wanted.new).await?;
        let update = self.plan(relation).await?.update(client, relation, wanted.new.cells()).await?;
        let looked_for = wanted.looked_for();
        let parameters = update.parameters(|position| wanted.new.cell(position), |position| looked_for.cell(position));
        self.run("UPDATE", update, parameters, wanted, looked_for).await
    }

    async fn plan(&mut self, relation: &Arc<Relation>) -> Result<&mut TablePlan, Error> {
        self.plans.get(self.client, relation).await.map_err(|error| error.at(self.at))
    }

    /// Runs a statement that has to hit one row; `row` is the one to name.
    async fn run(
        &self,
        operation: &'static str,
        prepared: Prepared,
        parameters: Vec<Parameter<'_>>,
        wanted: Wanted<'_>,
        row: Row<'_>,
    ) -> Result<(), Error> {
        let relation = wanted.relation;
        let key = self.plans.known(relation).map(|plan| Arc::clone(plan.shown_key())).unwrap_or_default();
        let statement = RowStatement { prepared, parameters, relation, operation, bytes: 0, row, key };
        statement.execute(self.client, self.at).await.map(drop)
    }
}

/// What a try comes to, after `error`. One that finds no row leaves that; one that hits several ends the stream.
fn outcome(tried: Result<(), Error>, how: How, error: Error) -> Tried<How> {
    let Err(tried) = tried else { return Ok(Ok(how)) };
    if !tried.is_of_a_row() {
        return Err(tried);
    }
    let found_none = matches!(tried.kind(), Kind::RowCount { .. });
    Ok(Err(if found_none { error } else { tried }))
}
