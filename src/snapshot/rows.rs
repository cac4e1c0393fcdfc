//! How many rows of a table of the target would be lost: counted where that takes a moment, else by the statistics.

use std::fmt;

use tokio_postgres::Client;

use crate::postgres::OwnRows;
use crate::source::publication::TableName;

/// Up to here rows are counted, which takes a moment; beyond it the statistics have to do.
const COUNTED_ROWS_MAX: i64 = 100_000;

/// How many rows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    Exactly(u64),
    /// As the statistics of the table have it.
    About(u64),
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rows::Exactly(1) => f.write_str("1 row"),
            Rows::Exactly(rows) => write!(f, "{rows} rows"),
            Rows::About(rows) => write!(f, "about {rows} rows, by its statistics"),
        }
    }
}

impl Rows {
    /// Counts the rows of a table of the target that fulfil a condition, without those of tables that inherit from it. `None` where
    /// there is no such table.
    pub async fn read(
        target: &Client,
        table: &TableName,
        condition: &str,
    ) -> Result<Option<Rows>, tokio_postgres::Error> {
        // The statistics of a partitioned table are those of its partitions, if there are any.
        let sql = "SELECT c.relkind = 'p', COALESCE(GREATEST( \
                       (SELECT sum(GREATEST(l.reltuples, 0))::float8 FROM pg_partition_tree(c.oid) t JOIN pg_class l ON l.oid = t.relid \
                        WHERE t.isleaf), c.reltuples::float8), 0)::bigint \
                   FROM pg_class c WHERE c.oid = to_regclass($1) AND c.relkind IN ('r', 'p')";
        let name = table.to_string();
        let Some(row) = target.query_opt(sql, &[&name]).await? else { return Ok(None) };
        let (is_partitioned, estimate): (bool, i64) = (row.try_get(0)?, row.try_get(1)?);
        let rows = OwnRows::of(table, is_partitioned);
        let sql = format!(
            "SELECT count(*) FROM (SELECT FROM {rows} WHERE {condition} LIMIT {}) counted",
            COUNTED_ROWS_MAX + 1
        );
        let counted: i64 = target.query_one(&sql, &[]).await?.try_get(0)?;
        Ok(Some(if counted <= COUNTED_ROWS_MAX {
            Rows::Exactly(counted.unsigned_abs())
        } else {
            Rows::About(estimate.max(counted).unsigned_abs())
        }))
    }

    pub fn is_none(self) -> bool {
        self == Rows::Exactly(0)
    }
}
