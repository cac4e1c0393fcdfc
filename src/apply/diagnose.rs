//! Why a change hit no row on the target, where that is not because the row is missing.
//!
//! A count of 0 has several causes, and only one of them is a conflict that a policy may settle. The others would lose the change
//! without a word: a trigger or rule of the target suppresses it, the source did not tell which row it is about, or the row is
//! there and has a column that no UPDATE can set.

use std::sync::Arc;

use pgsluice_proto::pgoutput::Cell;
use tokio_postgres::Client;

use super::failed;
use super::plan::{Plans, TablePlan};
use crate::batch::{BatchedChange, BatchedOperation, OldRow, Row};
use crate::decode::Relation;
use crate::error::{Error, Kind};

/// A change of one row, taken apart.
struct OneRow<'a> {
    relation: &'a Arc<Relation>,
    operation: &'static str,
    looked_for: Row<'a>,
    old: Option<OldRow<'a>>,
    new: Option<Row<'a>>,
}

/// The error that says why the change hit no row; `error` itself where it is about something else, or the row is missing.
///
/// # Errors
/// Whatever keeps the target from being asked.
pub(super) async fn true_reason(
    (client, plans): (&Client, &mut Plans),
    change: &BatchedChange<'_>,
    error: Error,
) -> Result<Error, Error> {
    if !error.hit_no_row() {
        return Ok(error);
    }
    let Some(OneRow { relation, operation, looked_for, old, new }) = one_row(change.operation) else {
        return Ok(error);
    };
    let plan = plans.get(client, relation).await?;
    if let Some(column) = old.and_then(|old| untold(plan, relation, old)) {
        return Ok(error.with_kind(Kind::KeyNotSent { operation, column }));
    }
    let is_insert = operation == "INSERT";
    if !is_insert && count(client, plan, relation, (looked_for, None)).await? == 0 {
        return Ok(error);
    }
    let guard = plan.guard().filter(|_| !is_insert || plan.is_upserting());
    if let (Some(position), Some(new)) = (guard, new)
        && (is_insert || count(client, plan, relation, (looked_for, Some(new))).await? == 0)
    {
        return Ok(error.with_kind(plan.identity_changed(position)));
    }
    let by = suppressors(client, &plan.table().name).await?;
    Ok(error.with_kind(Kind::Suppressed { operation, by }))
}

fn one_row(operation: BatchedOperation<'_>) -> Option<OneRow<'_>> {
    match operation {
        BatchedOperation::Insert { relation, new } => {
            Some(OneRow { relation, operation: "INSERT", looked_for: new, old: None, new: Some(new) })
        }
        BatchedOperation::Update { relation, old, new } => {
            let looked_for = old.map_or(new, |old| old.row());
            Some(OneRow { relation, operation: "UPDATE", looked_for, old, new: Some(new) })
        }
        BatchedOperation::Delete { relation, old } => {
            Some(OneRow { relation, operation: "DELETE", looked_for: old.row(), old: Some(old), new: None })
        }
        BatchedOperation::Truncate(_) => None,
    }
}

/// A column of the key without a value, though the source sent the key. No column of a replica identity is NULL; but of a partition
/// with a replica identity of its own, other columns are sent than those that the stream says are the key.
fn untold(plan: &TablePlan, relation: &Relation, old: OldRow<'_>) -> Option<String> {
    let OldRow::Key(row) = old else { return None };
    let untold = plan.key()?.iter().find(|&&position| row.cell(position) == Cell::Null)?;
    Some(relation.columns[*untold].name.clone())
}

/// How many rows there are to be found, and with `new` how many whose columns that no UPDATE can set are as they are to become.
async fn count(
    client: &Client,
    plan: &mut TablePlan,
    relation: &Relation,
    (looked_for, new): (Row<'_>, Option<Row<'_>>),
) -> Result<u64, Error> {
    let guards: Vec<_> = (0..relation.columns.len()).map(|position| plan.is_guard(position)).collect();
    let cell = |position: usize| match new {
        Some(new) if guards[position] => new.cell(position),
        Some(_) | None => Cell::Unchanged,
    };
    // An update that sets nothing.
    let find = plan.update(client, relation, (0..relation.columns.len()).map(cell)).await?;
    let parameters = find.parameters(cell, |position| looked_for.cell(position));
    client.execute_raw(&find.statement, parameters).await.map_err(|error| failed(error).on(relation.to_string()))
}

/// Triggers and rules of the table that can suppress what is done to a row, of those that fire in this session.
async fn suppressors(client: &Client, table: &str) -> Result<Vec<String>, Error> {
    let sql = "\
        WITH own AS (SELECT to_regclass($1)::oid AS oid UNION SELECT relid FROM pg_partition_tree(to_regclass($1))), \
        fires (letters) AS (SELECT CASE current_setting('session_replication_role') \
            WHEN 'replica' THEN '{R,A}' ELSE '{O,A}' END::\"char\"[]) \
        SELECT format('trigger %I of %s', t.tgname, t.tgrelid::regclass) FROM pg_trigger t JOIN own ON own.oid = t.tgrelid, fires \
        WHERE NOT t.tgisinternal AND t.tgtype & 3 = 3 AND t.tgenabled = ANY (letters) \
        UNION ALL SELECT format('rule %I of %s', r.rulename, r.ev_class::regclass) \
        FROM pg_rewrite r JOIN own ON own.oid = r.ev_class, fires \
        WHERE r.is_instead AND r.ev_enabled = ANY (letters) ORDER BY 1";
    let rows = client.query(sql, &[&table]).await.map_err(failed)?;
    rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
}
