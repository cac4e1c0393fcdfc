//! Whether two servers hold the same rows: tables in, nothing or a readable difference out.
//!
//! Rows are compared as text, under session settings that make equal values equal text on every server and version, and
//! as multisets: a row that is there twice has to be there twice. Both sides are sorted by the server in byte order and
//! merged here as they stream in, so memory does not grow with the table. Large tables are compared by count and hash
//! first. The columns are B's, by name; C may have more, and in another order.

use std::pin::Pin;

use anyhow::{Context, Result, bail};
use futures_util::future::poll_fn;
use futures_util::stream::Stream;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, RowStream};

use crate::server::Server;

/// From here on a hash is worth its extra pass.
const LARGE_ROWS_MIN: i64 = 100_000;
const SHOWN_ROWS_MAX: usize = 10;
const SHOWN_ROW_CHARS_MAX: usize = 300;

const SESSION: &str = "SET DateStyle = 'ISO, YMD'; SET TimeZone = 'UTC'; SET extra_float_digits = 3; \
     SET IntervalStyle = 'postgres'; SET bytea_output = 'hex'; SET client_encoding = 'UTF8'; SET statement_timeout = 0";

/// Columns in the table's order, quoted.
const COLUMNS: &str = "SELECT quote_ident(attname) FROM pg_attribute \
     WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum";

const TABLES: &str = "SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n \
     ON n.oid = relnamespace WHERE nspname = $1 AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1";

/// What is compared with what. Names are written as in SQL: quoted where they need it.
#[derive(Clone, Debug)]
pub struct TablePair {
    /// On B.
    pub source: String,
    /// On C.
    pub target: String,
    /// Expressions over B's row and over C's row, in pairs; empty means all columns of B's table by name.
    pub columns: Vec<(String, String)>,
    /// The rows of B that are expected on C, as an SQL condition.
    pub source_filter: Option<String>,
}

impl TablePair {
    /// The same table on both sides.
    pub fn same(table: &str) -> Self {
        Self { source: table.to_owned(), target: table.to_owned(), columns: Vec::new(), source_filter: None }
    }
}

/// The tables and partitioned tables of a schema, as `schema.table`, quoted where needed. Partitions are left out:
/// their rows are the parent's.
pub async fn tables(server: &Server, db: &str, schema: &str) -> Result<Vec<String>> {
    let client = session(server, db).await?;
    strings(&client, TABLES, &[&schema]).await
}

/// Row count and hash of a table's rows, whatever their order.
pub async fn checksum(server: &Server, db: &str, table: &str) -> Result<String> {
    let client = session(server, db).await?;
    let columns = columns_of(&client, table).await?;
    hash(&client, &Selection::new(table, columns.iter(), None)).await
}

/// Panics with the difference unless every table has the same rows on `b` and on `c`.
#[track_caller]
pub fn assert_same<'a>(
    b: &'a Server,
    c: &'a Server,
    db: &'a str,
    tables: &'a [&'a str],
) -> impl Future<Output = ()> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        if let Err(difference) = check_same(b, c, db, tables).await {
            panic!("at {caller}: {difference:#}");
        }
    }
}

/// An error that lists the differences of all tables, unless there are none.
pub async fn check_same(b: &Server, c: &Server, db: &str, tables: &[&str]) -> Result<()> {
    let pairs: Vec<_> = tables.iter().map(|table| TablePair::same(table)).collect();
    check_pairs(b, c, db, &pairs).await
}

/// The same for tables that differ in name, columns or rows by intent.
pub async fn check_pairs(b: &Server, c: &Server, db: &str, pairs: &[TablePair]) -> Result<()> {
    let (on_b, on_c) = tokio::try_join!(session(b, db), session(c, db))?;
    let mut report = String::new();
    for pair in pairs {
        let difference = compare(&on_b, &on_c, pair).await.with_context(|| format!("compare {}", pair.source))?;
        if let Some(difference) = difference {
            report += &difference.describe(pair, b.name(), c.name());
        }
    }
    if !report.is_empty() {
        bail!("{} and {} differ:\n{report}", b.name(), c.name());
    }
    Ok(())
}

/// Rows of one table as SQL: where they are read from, and how a row becomes text.
#[derive(Debug)]
struct Selection {
    row: String,
    from: String,
}

impl Selection {
    fn new<'a>(table: &str, columns: impl Iterator<Item = &'a String>, filter: Option<&str>) -> Self {
        let columns: Vec<_> = columns.map(String::as_str).collect();
        let from = match filter {
            Some(filter) => format!("{table} WHERE {filter}"),
            None => table.to_owned(),
        };
        Self { row: format!("ROW({})::text", columns.join(", ")), from }
    }
}

#[derive(Debug, Default)]
struct Difference {
    rows_b: u64,
    rows_c: u64,
    only_b: Side,
    only_c: Side,
}

#[derive(Debug, Default)]
struct Side {
    rows: u64,
    shown: Vec<String>,
}

impl Side {
    fn add(&mut self, row: &str) {
        self.rows += 1;
        if self.shown.len() < SHOWN_ROWS_MAX {
            self.shown.push(row.chars().take(SHOWN_ROW_CHARS_MAX).collect());
        }
    }

    fn describe(&self, label: &str) -> String {
        let shown: String = self.shown.iter().map(|row| format!("    {row}\n")).collect();
        format!("  only in {label}: {} rows, the first {}:\n{shown}", self.rows, self.shown.len())
    }
}

impl Difference {
    fn describe(&self, pair: &TablePair, b: &str, c: &str) -> String {
        let Self { rows_b, rows_c, only_b, only_c } = self;
        let names = format!("{} has {rows_b} rows, {} on {c} has {rows_c}\n", pair.source, pair.target);
        names + &only_b.describe(b) + &only_c.describe(c)
    }
}

async fn compare(b: &Client, c: &Client, pair: &TablePair) -> Result<Option<Difference>> {
    let columns = match pair.columns.as_slice() {
        [] => columns_of(b, &pair.source).await?.into_iter().map(|column| (column.clone(), column)).collect(),
        columns => columns.to_vec(),
    };
    let on_b = Selection::new(&pair.source, columns.iter().map(|(b, _)| b), pair.source_filter.as_deref());
    let on_c = Selection::new(&pair.target, columns.iter().map(|(_, c)| c), None);
    let (count_b, count_c) = tokio::try_join!(count(b, &on_b), count(c, &on_c))?;
    if count_b == count_c && count_b > LARGE_ROWS_MIN {
        let (hash_b, hash_c) = tokio::try_join!(hash(b, &on_b), hash(c, &on_c))?;
        if hash_b == hash_c {
            return Ok(None);
        }
    }
    let difference = merge(Rows::open(b, &on_b).await?, Rows::open(c, &on_c).await?).await?;
    Ok((difference.only_b.rows + difference.only_c.rows > 0).then_some(difference))
}

/// Walks two sorted streams side by side.
async fn merge(mut rows_b: Rows, mut rows_c: Rows) -> Result<Difference> {
    let mut difference = Difference::default();
    let (mut row_b, mut row_c) = (rows_b.next().await?, rows_c.next().await?);
    loop {
        // `None` is after every row.
        let (take_b, take_c) = match (&row_b, &row_c) {
            (None, None) => break,
            (Some(b), Some(c)) => (b <= c, c <= b),
            (b, c) => (b.is_some(), c.is_some()),
        };
        if take_b && !take_c {
            difference.only_b.add(row_b.as_deref().unwrap_or_default());
        }
        if take_c && !take_b {
            difference.only_c.add(row_c.as_deref().unwrap_or_default());
        }
        if take_b {
            difference.rows_b += 1;
            row_b = rows_b.next().await?;
        }
        if take_c {
            difference.rows_c += 1;
            row_c = rows_c.next().await?;
        }
    }
    Ok(difference)
}

/// A selection's rows as text in byte order.
struct Rows(Pin<Box<RowStream>>);

impl Rows {
    async fn open(client: &Client, selection: &Selection) -> Result<Self> {
        let Selection { row, from } = selection;
        let sql = format!(r#"SELECT r FROM (SELECT {row} COLLATE "C" AS r FROM {from}) AS s ORDER BY r"#);
        let none: [&(dyn ToSql + Sync); 0] = [];
        Ok(Self(Box::pin(client.query_raw(&sql, none).await?)))
    }

    async fn next(&mut self) -> Result<Option<String>> {
        let row = poll_fn(|context| self.0.as_mut().poll_next(context)).await.transpose()?;
        Ok(row.map(|row| row.get(0)))
    }
}

async fn count(client: &Client, selection: &Selection) -> Result<i64> {
    Ok(client.query_one(&format!("SELECT count(*) FROM {}", selection.from), &[]).await?.get(0))
}

async fn hash(client: &Client, selection: &Selection) -> Result<String> {
    let Selection { row, from } = selection;
    let sql = format!(
        "SELECT count(*) || ':' || coalesce(sum(('x' || substr(md5({row}), 1, 15))::bit(60)::bigint), 0) FROM {from}"
    );
    Ok(client.query_one(&sql, &[]).await?.get(0))
}

async fn session(server: &Server, db: &str) -> Result<Client> {
    let client = server.connect(db).await?;
    client.batch_execute(SESSION).await?;
    Ok(client)
}

async fn columns_of(client: &Client, table: &str) -> Result<Vec<String>> {
    strings(client, COLUMNS, &[&table]).await
}

async fn strings(client: &Client, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<String>> {
    Ok(client.query(sql, params).await?.iter().map(|row| row.get(0)).collect())
}
