//! Changes applied one by one, in the order of the source, many on their way at once.
//!
//! This is what every batch can fall back to: whatever passed on the source row by row passes here, and what does not
//! is named with its row's transaction.

use std::sync::Arc;

use pgsluice_proto::Lsn;
use pgsluice_proto::pgoutput::Cell;
use tokio_postgres::Client;

use super::failed;
use super::flight::Flight;
use super::key::row_key;
use super::parameter::Parameter;
use super::plan::{Plans, Prepared, TablePlan};
use super::sql;
use crate::batch::{BatchedChange, BatchedOperation, Row};
use crate::decode::{Relation, Truncate};
use crate::error::{Error, Kind, Stage, Written, WrittenValue};

/// Applies the changes in the transaction that is open on `client`.
pub(super) async fn apply<'a>(
    client: &Client,
    plans: &mut Plans,
    changes: impl Iterator<Item = BatchedChange<'a>>,
) -> Result<(), Error> {
    let mut flight = Flight::new();
    for change in changes {
        let at = change.transaction.commit_lsn;
        match work(client, plans, &change).await {
            Ok(Work::Statement(statement)) => {
                let bytes = statement.bytes;
                flight.push(statement.execute(client, at), bytes).await?;
            }
            Ok(Work::Barrier(sql, relations)) => {
                flight.land().await?;
                client.batch_execute(&sql).await.map_err(|error| failed(error).at(at).on(relations))?;
            }
            Err(error) => {
                // A statement that was sent before is the cause, and one that was sent after it only a consequence.
                return Err(match flight.land().await {
                    Err(earlier) if !earlier.is_consequence() => earlier,
                    Err(_) | Ok(()) => error.at(at),
                });
            }
        }
    }
    flight.land().await
}

enum Work<'a> {
    Statement(RowStatement<'a>),
    /// Text that runs alone, and the tables that it concerns.
    Barrier(String, String),
}

/// One row's statement, ready to run.
pub(super) struct RowStatement<'a> {
    pub prepared: Prepared,
    pub parameters: Vec<Parameter<'a>>,
    pub relation: &'a Arc<Relation>,
    pub operation: &'static str,
    pub bytes: usize,
    /// For errors: the row that is looked for, or is new, and its key.
    pub row: Row<'a>,
    pub key: Arc<[usize]>,
}

impl RowStatement<'_> {
    /// Runs it, and returns the bytes that are no longer on their way.
    pub async fn execute(self, client: &Client, at: Lsn) -> Result<usize, Error> {
        let RowStatement { relation, operation, row, ref key, .. } = self;
        let parameters = self.parameters.iter().copied();
        let error = match client.execute_raw(&self.prepared.statement, parameters).await {
            Ok(1) => return Ok(self.bytes),
            Ok(rows) => Error::new(Stage::Apply, Kind::RowCount { operation, rows }),
            Err(error) => self.name_column(failed(error)),
        };
        let error = error.at(at).on(relation.to_string());
        Err(if error.is_of_the_data() { error.of(row_key(relation, key, row)) } else { error })
    }
}

impl RowStatement<'_> {
    /// Of a value that the target does not take: its column, or else all values, for the target to be asked.
    fn name_column(&self, mut error: Error) -> Error {
        let position = |parameter: usize| self.prepared.positions().nth(parameter);
        let name = |position: usize| self.relation.columns[position].name.clone();
        let Some(of_target) = error.of_target() else { return error };
        if let Some(parameter) = of_target.parameter() {
            of_target.of_column = position(parameter).map(name);
            return error;
        }
        if of_target.class() != "22" || of_target.is_in_function() {
            return error;
        }
        let value = |(parameter, at): (&Parameter<'_>, usize)| match parameter.0 {
            Cell::Text(bytes) => Some(WrittenValue { column: name(at), bytes: bytes.to_vec(), is_binary: false }),
            Cell::Binary(bytes) => Some(WrittenValue { column: name(at), bytes: bytes.to_vec(), is_binary: true }),
            Cell::Null | Cell::Unchanged => None,
        };
        let values = self.parameters.iter().zip(self.prepared.positions()).filter_map(value);
        match Written::of(values) {
            Some(written) => error.having_written(written),
            None => error,
        }
    }
}

async fn work<'a>(client: &Client, plans: &mut Plans, change: &BatchedChange<'a>) -> Result<Work<'a>, Error> {
    match change.operation {
        BatchedOperation::Insert { relation, new } => {
            let plan = plans.get(client, relation).await?;
            let prepared = plan.insert(client, relation).await?;
            row_work(plan, prepared, relation, "INSERT", Rows { looked_for: new, new: Some(new), old: None })
        }
        BatchedOperation::Update { relation, old, new } => {
            let plan = plans.get(client, relation).await?;
            let prepared = plan.update(client, relation, new.cells()).await?;
            let looked_for = old.map_or(new, |old| old.row());
            row_work(
                plan,
                prepared,
                relation,
                "UPDATE",
                Rows { looked_for, new: Some(new), old: old.map(|old| old.row()) },
            )
        }
        BatchedOperation::Delete { relation, old } => {
            let plan = plans.get(client, relation).await?;
            let prepared = plan.delete(client, relation).await?;
            row_work(
                plan,
                prepared,
                relation,
                "DELETE",
                Rows { looked_for: old.row(), new: None, old: Some(old.row()) },
            )
        }
        BatchedOperation::Truncate(truncate) => truncate_work(client, plans, truncate).await,
    }
}

/// The rows of one change. What is looked for is the old one, or the new where the source left the old out because its key
/// is the same.
struct Rows<'a> {
    looked_for: Row<'a>,
    new: Option<Row<'a>>,
    old: Option<Row<'a>>,
}

fn row_work<'a>(
    plan: &TablePlan,
    prepared: Prepared,
    relation: &'a Arc<Relation>,
    operation: &'static str,
    Rows { looked_for, new, old }: Rows<'a>,
) -> Result<Work<'a>, Error> {
    for row in [new, old].into_iter().flatten() {
        plan.check_format(relation, row)?;
    }
    if let (Some(new), Some(old)) = (new, old) {
        plan.check_identity_columns(relation, new, old)?;
    }
    let cell = |position| new.map_or(Cell::Unchanged, |row| row.cell(position));
    let parameters = prepared.parameters(cell, |position| looked_for.cell(position));
    let bytes = [new, old].iter().flatten().map(Row::value_bytes).sum();
    let key = Arc::clone(plan.shown_key());
    Ok(Work::Statement(RowStatement { prepared, parameters, relation, operation, bytes, row: looked_for, key }))
}

async fn truncate_work<'a>(client: &Client, plans: &mut Plans, truncate: &Truncate) -> Result<Work<'a>, Error> {
    let in_part = truncate.in_part.iter().map(|part| &part.relation);
    for relation in truncate.relations.iter().chain(in_part.clone()) {
        plans.get(client, relation).await?;
    }
    let tables: Vec<_> =
        truncate.relations.iter().filter_map(|relation| plans.known(relation)).map(TablePlan::table).collect();
    let names: Vec<_> = truncate.relations.iter().chain(in_part).map(|relation| relation.to_string()).collect();
    // To restart a sequence takes its owner, and where it stands on the target is of no matter to the rows.
    let kept: Vec<_> = tables.iter().filter(|table| !table.may_restart).map(|table| table.name.as_str()).collect();
    let restart_identity = truncate.restart_identity && kept.is_empty();
    if truncate.restart_identity && !restart_identity {
        tracing::warn!(
            "TRUNCATE … RESTART IDENTITY is applied with CONTINUE IDENTITY: the role does not own the sequences of {}, which go on \
             where they are",
            kept.join(", ")
        );
    }
    let tables = tables.into_iter();
    // PostgreSQL empties no table that has checks to come. The source has emptied it, so its own were over by then.
    let mut statements = match (truncate.relations.is_empty(), truncate.is_partial) {
        (true, _) => Vec::new(),
        (false, true) => vec![sql::delete_all(tables)],
        (false, false) => vec![sql::truncate(tables, restart_identity)],
    };
    for part in &truncate.in_part {
        statements.extend(plans.known(&part.relation).map(|plan| sql::truncate_part(plan.table(), part)));
    }
    let sql = format!("SET CONSTRAINTS ALL IMMEDIATE; {}; SET CONSTRAINTS ALL DEFERRED", statements.join("; "));
    Ok(Work::Barrier(sql, names.join(", ")))
}
