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
use super::parameter::Parameter;
use super::plan::{Plans, Prepared, TablePlan};
use super::sql;
use crate::batch::{BatchedChange, BatchedOperation, OldRow, Row};
use crate::decode::{Relation, Truncate};
use crate::error::{Error, Kind, Stage};

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
                flight.land().await?;
                return Err(error.at(at));
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

async fn work<'a>(client: &Client, plans: &mut Plans, change: &BatchedChange<'a>) -> Result<Work<'a>, Error> {
    match change.operation {
        BatchedOperation::Insert { relation, new } => {
            let plan = plans.get(client, relation).await?;
            let prepared = plan.insert(client, relation).await?;
            row_work(plan, prepared, relation, "INSERT", Some(new), None)
        }
        BatchedOperation::Update { relation, old, new } => {
            let plan = plans.get(client, relation).await?;
            let prepared = plan.update(client, relation, new.cells()).await?;
            row_work(plan, prepared, relation, "UPDATE", Some(new), old)
        }
        BatchedOperation::Delete { relation, old } => {
            let plan = plans.get(client, relation).await?;
            let prepared = plan.delete(client, relation).await?;
            row_work(plan, prepared, relation, "DELETE", None, Some(old))
        }
        BatchedOperation::Truncate(truncate) => truncate_work(client, plans, truncate).await,
    }
}

fn row_work<'a>(
    plan: &TablePlan,
    prepared: Prepared,
    relation: &'a Arc<Relation>,
    operation: &'static str,
    new: Option<Row<'a>>,
    old: Option<OldRow<'a>>,
) -> Result<Work<'a>, Error> {
    let rows = [new, old.map(|old| old.row())];
    for row in rows.into_iter().flatten() {
        plan.check_format(relation, row)?;
    }
    if let [Some(new), Some(old)] = rows {
        plan.check_identity_columns(relation, new, old)?;
    }
    let parameters = row_parameters(&prepared, new, old);
    let bytes = rows.iter().flatten().map(Row::value_bytes).sum();
    Ok(Work::Statement(RowStatement { prepared, parameters, relation, operation, bytes }))
}

/// The values for one change. The row that is looked for is the old one, or the new where the source left the old out
/// because its key is the same.
fn row_parameters<'a>(prepared: &Prepared, new: Option<Row<'a>>, old: Option<OldRow<'a>>) -> Vec<Parameter<'a>> {
    let looked_for = old.map(|old| old.row()).or(new);
    let cell = |row: Option<Row<'a>>, position| row.map_or(Cell::Unchanged, |row| row.cell(position));
    prepared.parameters(|position| cell(new, position), |position| cell(looked_for, position))
}

async fn truncate_work<'a>(client: &Client, plans: &mut Plans, truncate: &Truncate) -> Result<Work<'a>, Error> {
    let in_part = truncate.in_part.iter().map(|part| &part.relation);
    for relation in truncate.relations.iter().chain(in_part.clone()) {
        plans.get(client, relation).await?;
    }
    let tables: Vec<_> =
        truncate.relations.iter().filter_map(|relation| plans.known(relation)).map(TablePlan::table).collect();
    let names: Vec<_> = truncate.relations.iter().chain(in_part).map(|relation| relation.to_string()).collect();
    let tables = tables.into_iter();
    // PostgreSQL empties no table that has checks to come. The source has emptied it, so its own were over by then.
    let mut statements = match (truncate.relations.is_empty(), truncate.is_partial) {
        (true, _) => Vec::new(),
        (false, true) => vec![sql::delete_all(tables)],
        (false, false) => vec![sql::truncate(tables, truncate.restart_identity)],
    };
    for part in &truncate.in_part {
        statements.extend(plans.known(&part.relation).map(|plan| sql::truncate_part(plan.table(), part)));
    }
    let sql = format!("SET CONSTRAINTS ALL IMMEDIATE; {}; SET CONSTRAINTS ALL DEFERRED", statements.join("; "));
    Ok(Work::Barrier(sql, names.join(", ")))
}
