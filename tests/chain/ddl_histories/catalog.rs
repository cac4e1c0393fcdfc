//! What a server has in schema `h`: the tables that the next statement can be about, and what they hold.

use anyhow::{Context, Result};
use pgsluice_testkit::Server;

/// A column by name and type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_name: String,
}

/// A table that is no partition.
#[derive(Clone, Debug)]
pub struct Table {
    pub name: String,
    pub columns: Vec<Column>,
    /// Columns of the primary key, or of the index that is the replica identity.
    pub key: Vec<String>,
    /// UPDATE and DELETE are possible while it is published.
    pub has_identity: bool,
    pub is_partitioned: bool,
    /// Values of the partitions of a partitioned one.
    pub partitions: Vec<i64>,
    pub is_published: bool,
    /// Of its columns, those that the publication sends: what a list leaves out is not C's.
    pub published_columns: Vec<String>,
    /// Its columns are those of another table.
    pub inherits: bool,
}

impl Table {
    /// Quoted, with the schema.
    pub fn quoted(&self) -> String {
        quoted(&self.name)
    }

    /// As a publication and a query of its own rows name it.
    pub fn only(&self) -> String {
        if self.is_partitioned { self.quoted() } else { format!("ONLY {}", self.quoted()) }
    }
}

/// The table of schema `h` by its unquoted name.
pub fn quoted(name: &str) -> String {
    format!("h.\"{name}\"")
}

const TABLES: &str = "\
    SELECT c.relname, c.relkind = 'p',
        (SELECT string_agg(a.attname || '|' || format_type(a.atttypid, a.atttypmod), chr(10) ORDER BY a.attnum)
         FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
        (SELECT string_agg(a.attname, chr(10) ORDER BY a.attnum) FROM pg_index i JOIN pg_attribute a
         ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey) WHERE i.indrelid = c.oid AND i.indisprimary),
        c.relreplident = 'f' OR c.relreplident = 'd' AND EXISTS (
            SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
        (SELECT string_agg(substring(p.relname FROM '[0-9]+$'), chr(10)) FROM pg_inherits h
         JOIN pg_class p ON p.oid = h.inhrelid WHERE h.inhparent = c.oid AND p.relispartition),
        EXISTS (SELECT FROM pg_publication_tables v WHERE v.schemaname = 'h' AND v.tablename = c.relname),
        EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = c.oid),
        (SELECT array_to_string(v.attnames, chr(10)) FROM pg_publication_tables v
         WHERE v.schemaname = 'h' AND v.tablename = c.relname)
    FROM pg_class c WHERE c.relnamespace = 'h'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    ORDER BY 1";

/// All tables of the schema, in the order of their names.
pub async fn tables(server: &Server, database: &str) -> Result<Vec<Table>> {
    let lines = |text: &Option<String>| -> Vec<String> {
        text.as_deref().unwrap_or_default().lines().map(str::to_owned).collect()
    };
    let mut tables = Vec::new();
    for row in server.query_text(database, TABLES).await? {
        let is = |column: usize| row[column].as_deref() == Some("t");
        let columns = lines(&row[2]).into_iter().map(|line| {
            let (name, type_name) = line.split_once('|').context("a column without a type")?;
            Ok(Column { name: name.to_owned(), type_name: type_name.to_owned() })
        });
        tables.push(Table {
            name: row[0].clone().context("a table without a name")?,
            columns: columns.collect::<Result<_>>()?,
            key: lines(&row[3]),
            has_identity: is(4),
            is_partitioned: is(1),
            partitions: lines(&row[5]).iter().filter_map(|value| value.parse().ok()).collect(),
            is_published: is(6),
            inherits: is(7),
            published_columns: lines(&row[8]),
        });
    }
    Ok(tables)
}

/// Number and hash of a table's own rows in these columns, whatever their order; `Err` where it cannot be read so.
pub async fn digest(server: &Server, database: &str, table: &Table) -> Result<String> {
    let is_published = |column: &&Column| table.published_columns.contains(&column.name);
    let published = table.columns.iter().filter(is_published);
    // C may have a type of its own that holds the same values.
    let columns: Vec<_> = published.map(|column| format!("\"{}\"::{}", column.name, column.type_name)).collect();
    let sql = format!(
        "SELECT count(*) || ' rows, ' || coalesce(md5(string_agg(r, chr(10) ORDER BY r COLLATE \"C\")), '') \
         FROM (SELECT ROW({})::text AS r FROM {}) s",
        columns.join(", "),
        table.only()
    );
    server.scalar(database, &sql).await
}
