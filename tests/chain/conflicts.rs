//! Conflicts with C by policy: what becomes of each change, row for row, and what is recorded of those that are left out.

mod faults;
mod matrix;
mod stops;

use anyhow::{Context, Result};
use pgsluice_testkit::Server;

use crate::replication::DATABASE;

/// Would be seen in whatever shows a value of a row.
pub const CANARY: &str = "canary-4711";

/// The exceptions on C in their order: operation, key, SQLSTATE, constraint.
pub async fn exceptions(c: &Server, table: &str) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT concat_ws(' ', operation, array_to_string(key_columns, ','), COALESCE(sqlstate, '-'), constraint_name) \
         FROM pgsluice.exceptions WHERE name = 'test' AND table_name = '{table}' ORDER BY id"
    );
    column(c, &sql).await
}

/// Overwritten, kept, inserted, skipped and set aside, as C has them counted.
pub async fn counts(c: &Server, table: &str) -> Result<String> {
    let sql = format!(
        "SELECT COALESCE(max(concat_ws(' ', overwritten, kept, inserted, skipped, set_aside)), 'none') \
         FROM pgsluice.conflicts WHERE name = 'test' AND table_name = '{table}'"
    );
    c.scalar(DATABASE, &sql).await
}

/// The only column of a query.
pub async fn column(server: &Server, sql: &str) -> Result<Vec<String>> {
    let rows = server.query_text(DATABASE, sql).await?;
    rows.into_iter().map(|row| row.into_iter().next().flatten().context("a value")).collect()
}
