//! The record of what was not applied as it came, written in the transaction that leaves it out.
//!
//! In: changes that were refused, and what became of others. Out: rows of `pgsluice.exceptions`, and the counts of each
//! table in `pgsluice.conflicts`.
//!
//! **Always holds:** without `row_values` nothing of a row is recorded but the names of its key's columns.

use std::collections::BTreeMap;
use std::time::SystemTime;

use pgsluice_proto::pgoutput::Cell;
use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, ToSql};

use super::attempt::attempt;
use super::cause::find_cause_within;
use super::failed;
use super::heal::How;
use super::parameter::Parameter;
use super::plan::{Plans, TablePlan};
use super::policy::Policies;
use crate::batch::{BatchedChange, BatchedOperation, OldRow, Row};
use crate::decode::Relation;
use crate::error::{Error, Kind, ServerError};
use crate::postgres::{quote_literal, quote_qualified};

/// How often the changes of each table conflicted.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<(String, String), Counts>);

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    overwritten: i64,
    kept: i64,
    inserted: i64,
    skipped: i64,
    set_aside: i64,
}

impl Tally {
    pub fn count(&mut self, relation: &Relation, how: How) {
        let counts = self.of(relation);
        match how {
            How::Overwritten => counts.overwritten += 1,
            How::Kept => counts.kept += 1,
            How::Inserted => counts.inserted += 1,
            How::Skipped => counts.skipped += 1,
        }
    }

    pub fn count_set_aside(&mut self, relation: &Relation) {
        self.of(relation).set_aside += 1;
    }

    fn of(&mut self, relation: &Relation) -> &mut Counts {
        let (schema, table) = relation.on_source();
        self.0.entry((schema.to_owned(), table.to_owned())).or_default()
    }

    /// Adds the counts to those of the target, in the transaction that is open on `client`.
    pub async fn record(self, client: &Client, name: &str) -> Result<(), Error> {
        let sql = "INSERT INTO pgsluice.conflicts AS c \
                   (name, schema_name, table_name, overwritten, kept, inserted, skipped, set_aside) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (name, schema_name, table_name) DO UPDATE SET \
                   overwritten = c.overwritten + EXCLUDED.overwritten, kept = c.kept + EXCLUDED.kept, \
                   inserted = c.inserted + EXCLUDED.inserted, skipped = c.skipped + EXCLUDED.skipped, \
                   set_aside = c.set_aside + EXCLUDED.set_aside, updated_at = now()";
        for ((schema, table), Counts { overwritten, kept, inserted, skipped, set_aside }) in self.0 {
            let table_name = quote_qualified(&schema, &table);
            tracing::debug!(table = %table_name, overwritten, kept, inserted, skipped, "conflicts are settled by policy");
            if set_aside > 0 {
                tracing::warn!(table = %table_name, set_aside, "changes are set aside in pgsluice.exceptions");
            }
            let counts: [&(dyn ToSql + Sync); 8] =
                [&name, &schema, &table, &overwritten, &kept, &inserted, &skipped, &set_aside];
            client.execute(sql, &counts).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// Records a change that the target has refused with `error`.
pub(super) async fn set_aside(
    (client, plans): (&Client, &mut Plans),
    policies: &Policies,
    change: &BatchedChange<'_>,
    relation: &Relation,
    error: Error,
) -> Result<(), Error> {
    let error = find_cause_within(client, error).await?.shown(&policies.log);
    let exception = Exception { name: &policies.name, change, relation, error };
    let plan = plans.known(relation).filter(|_| policies.log.row_values);
    if let Some(plan) = plan {
        // Values may be what the target cannot have at all, such as characters that its encoding lacks.
        match attempt(client, exception.record(client, Some(plan))).await? {
            Err(error) if error.is_of_a_row() => {}
            recorded => return recorded,
        }
    }
    exception.record(client, None).await
}

struct Exception<'a> {
    name: &'a str,
    change: &'a BatchedChange<'a>,
    relation: &'a Relation,
    error: Error,
}

impl Exception<'_> {
    /// Values are recorded where there is a plan, which knows their types.
    async fn record(&self, client: &Client, plan: Option<&TablePlan>) -> Result<(), Error> {
        let Exception { name, change, relation, error } = self;
        let transaction = change.transaction;
        let (schema, table) = relation.on_source();
        let (operation, old, new) = match change.operation {
            BatchedOperation::Insert { new, .. } => ("INSERT", None, Some(new)),
            BatchedOperation::Update { old, new, .. } => ("UPDATE", old, Some(new)),
            BatchedOperation::Delete { old, .. } => ("DELETE", Some(old), None),
            BatchedOperation::Truncate(_) => ("TRUNCATE", None, None),
        };
        let commit_lsn = PgLsn::from(transaction.commit_lsn.as_u64());
        let commit_time: Option<SystemTime> = transaction.commit_time.to_system_time();
        let xid = i64::from(transaction.xid.0);
        let key_columns = error.row().map(|row| row.columns.as_slice()).unwrap_or_default();
        let key_values = error.row().and_then(|row| row.values.as_deref());
        let of_server = if let Kind::Server { error, .. } = error.kind() { Some(error) } else { None };
        let sqlstate = of_server.map(|error| error.code.as_str());
        let constraint = of_server.and_then(ServerError::shown_constraint);
        let message = error.kind().to_string();
        let fixed: [&(dyn ToSql + Sync); 12] = [
            name,
            &commit_lsn,
            &commit_time,
            &xid,
            &schema,
            &table,
            &operation,
            &key_columns,
            &key_values,
            &sqlstate,
            &constraint,
            &message,
        ];
        let mut values = Values { parameters: fixed.len(), cells: Vec::new() };
        let is_known = |position: usize| match old {
            Some(OldRow::Key(_)) => relation.columns[position].is_identity,
            Some(OldRow::Full(_)) | None => true,
        };
        let old = values.add(relation, plan, old.map(|old| old.row()), is_known);
        let new = values.add(relation, plan, new, |_| true);
        let sql = format!(
            "INSERT INTO pgsluice.exceptions (name, commit_lsn, commit_time, xid, schema_name, table_name, operation, \
             key_columns, key_values, sqlstate, constraint_name, message, old_row, new_row) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, {old}, {new})"
        );
        let cells = values.cells.iter().map(|cell| cell as &(dyn ToSql + Sync));
        let parameters: Vec<_> = fixed.into_iter().chain(cells).collect();
        client.execute(&sql, &parameters).await.map(drop).map_err(failed)
    }
}

/// Rows as expressions over further parameters.
struct Values<'a> {
    parameters: usize,
    cells: Vec<Parameter<'a>>,
}

impl<'a> Values<'a> {
    /// An object of the columns that are known of the row, in text. The target makes texts of what came in binary.
    fn add(
        &mut self,
        relation: &Relation,
        plan: Option<&TablePlan>,
        row: Option<Row<'a>>,
        is_known: impl Fn(usize) -> bool,
    ) -> String {
        let (Some(plan), Some(row)) = (plan, row) else { return "NULL".to_owned() };
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for (position, cell) in row.cells().enumerate().filter(|(position, _)| is_known(*position)) {
            let type_name = match cell {
                Cell::Unchanged => continue,
                Cell::Null | Cell::Text(_) => "text",
                Cell::Binary(_) => plan.type_name(position),
            };
            self.parameters += 1;
            self.cells.push(Parameter(cell));
            names.push(quote_literal(&relation.columns[position].name));
            values.push(format!("${}::{type_name}::text", self.parameters));
        }
        format!("jsonb_object(ARRAY[{}]::text[], ARRAY[{}]::text[])", names.join(", "), values.join(", "))
    }
}
