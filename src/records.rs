//! How many changes of each table were not applied as they came, as the target has it recorded.

use serde::Serialize;
use tokio_postgres::{Client, Row};

use crate::config::Role;
use crate::error::{Error, Stage};
use crate::postgres::quote_qualified;

/// By the table's name on the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableConflicts {
    pub table: String,
    pub overwritten: i64,
    pub kept: i64,
    pub inserted: i64,
    pub skipped: i64,
    pub set_aside: i64,
    /// Rows that are in `pgsluice.exceptions` now.
    pub exceptions: i64,
}

/// The tables that had conflicts, by their names; none where nothing is recorded.
pub async fn read_conflicts(client: &Client, name: &str) -> Result<Vec<TableConflicts>, Error> {
    let failed = |error| Error::from_postgres(Stage::Status, Role::Target, error);
    let exist =
        "SELECT to_regclass('pgsluice.conflicts') IS NOT NULL AND to_regclass('pgsluice.exceptions') IS NOT NULL";
    if !client.query_one(exist, &[]).await.map_err(failed)?.try_get::<_, bool>(0).map_err(failed)? {
        return Ok(Vec::new());
    }
    let sql = "WITH e AS (SELECT schema_name, table_name, count(*) AS exceptions FROM pgsluice.exceptions \
                          WHERE name = $1 GROUP BY 1, 2), \
                    c AS (SELECT * FROM pgsluice.conflicts WHERE name = $1) \
               SELECT schema_name, table_name, COALESCE(overwritten, 0), COALESCE(kept, 0), COALESCE(inserted, 0), \
                   COALESCE(skipped, 0), COALESCE(set_aside, 0), COALESCE(exceptions, 0) \
               FROM c FULL JOIN e USING (schema_name, table_name) ORDER BY 1, 2";
    let rows = client.query(sql, &[&name]).await.map_err(failed)?;
    rows.iter().map(|row| of_table(row).map_err(failed)).collect()
}

fn of_table(row: &Row) -> Result<TableConflicts, tokio_postgres::Error> {
    Ok(TableConflicts {
        table: quote_qualified(row.try_get(0)?, row.try_get(1)?),
        overwritten: row.try_get(2)?,
        kept: row.try_get(3)?,
        inserted: row.try_get(4)?,
        skipped: row.try_get(5)?,
        set_aside: row.try_get(6)?,
        exceptions: row.try_get(7)?,
    })
}
