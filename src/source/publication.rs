//! The publication: which tables are in the stream.
//!
//! It is made on the primary and reaches a standby through WAL. A slot made before the standby has it would start with
//! a stream in which the tables' rows are missing, so its contents are always read on the server that decodes.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use pgsluice_proto::Oid;
use pgsluice_proto::pgoutput::ReplicaIdentity;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::identity::{self, TableIdentity};
use crate::config::{Pattern, Role, TableSelection};
use crate::decode::{Column, Keys, Relation};
use crate::error::{Error, Stage};
use crate::postgres::{quote_ident, quote_qualified};

/// A table by its exact name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quote_qualified(&self.schema, &self.name))
    }
}

/// Where heartbeats are written on the primary: a table that is in the stream, and on no target.
pub const HEARTBEAT: (&str, &str) = ("pgsluice", "heartbeat");

const HEARTBEAT_SCHEMA_SQL: &str = "CREATE SCHEMA IF NOT EXISTS pgsluice";
/// One row a replication.
const HEARTBEAT_TABLE_SQL: &str =
    "CREATE TABLE IF NOT EXISTS pgsluice.heartbeat (name text PRIMARY KEY, beat_at timestamptz NOT NULL)";

/// Makes [`HEARTBEAT`] where it is missing, and returns whether it was. `IF NOT EXISTS` is not enough: PostgreSQL asks for the right
/// to make a schema before it looks whether there is one.
pub async fn create_heartbeat(client: &Client) -> Result<bool, tokio_postgres::Error> {
    let sql = "SELECT to_regnamespace('pgsluice') IS NULL, to_regclass('pgsluice.heartbeat') IS NULL";
    let row = client.query_one(sql, &[]).await?;
    for (column, create) in [HEARTBEAT_SCHEMA_SQL, HEARTBEAT_TABLE_SQL].into_iter().enumerate() {
        if row.try_get(column)? {
            client.batch_execute(create).await?;
        }
    }
    row.try_get(1)
}

/// A published table, with what of it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedTable {
    pub table: TableName,
    /// Name and type of each column that rows carry.
    pub columns: Vec<(String, u32)>,
    /// Their numbers, which they keep under other names.
    pub attnums: Vec<i16>,
    pub replica_identity: ReplicaIdentity,
    /// Columns by which updates and deletes find their row; under FULL all of them.
    pub identity: Vec<String>,
    pub is_partitioned: bool,
    /// A partition has another replica identity, and old rows of its changes come as that has them.
    pub partitions_differ: bool,
    /// One of the columns is generated.
    pub has_generated: bool,
    /// Rows that do not pass it are not published.
    pub row_filter: Option<String>,
    /// `None` for a table that is not read as one of a publication.
    pub table_identity: Option<Arc<TableIdentity>>,
}

impl PublishedTable {
    /// Updates and deletes are published with an old row or key: there is a replica identity that can be used.
    pub fn has_identity(&self) -> bool {
        self.replica_identity == ReplicaIdentity::Full || !self.identity.is_empty()
    }

    /// As a stream would describe it.
    pub fn relation(&self) -> Relation {
        let is_full = self.replica_identity == ReplicaIdentity::Full;
        let column = |(name, type_oid): &(String, u32)| Column {
            name: name.clone(),
            type_oid: Oid(*type_oid),
            type_modifier: None,
            is_identity: is_full || self.identity.contains(name),
        };
        Relation {
            id: Oid(0),
            version: 0,
            namespace: self.table.schema.clone(),
            name: self.table.name.clone(),
            renamed_from: None,
            replica_identity: self.replica_identity,
            columns: self.columns.iter().map(column).collect(),
            keys: Keys::Apart,
        }
    }
}

/// One row a table, from a FROM clause that gives each a `pg_class` row `c` with its `pg_namespace` row `n`, and in
/// `listed` the names of the columns that are published, or NULL for all. Generated columns are not sent, but from 18 on where
/// the publication has them (`publish_generated_columns`, or a list that names them).
const TABLES_SQL: &str = "\
SELECT n.nspname::text, c.relname::text, array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attnum > 0),
    array_agg(a.atttypid ORDER BY a.attnum) FILTER (WHERE a.attnum > 0),
    COALESCE(array_agg(a.attnum ORDER BY a.attnum) FILTER (WHERE a.attnum > 0), '{}'),
    c.relreplident::text,
    c.relkind = 'p',
    ARRAY(SELECT k.attname::text FROM pg_index i JOIN pg_attribute k ON k.attrelid = c.oid
        JOIN unnest(i.indkey) WITH ORDINALITY u (attnum, place) ON u.attnum = k.attnum AND u.place <= i.indnkeyatts
        WHERE i.indrelid = c.oid
        AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
        ORDER BY u.place),
    c.relkind = 'p' AND EXISTS (SELECT FROM pg_partition_tree(c.oid) p JOIN pg_class leaf ON leaf.oid = p.relid
        WHERE leaf.relreplident <> c.relreplident),
    COALESCE(bool_or(a.attgenerated <> ''), false),
    row_filter,
    {identity}
{from}
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    AND (listed IS NULL OR listed ? a.attname::text)
    AND (a.attgenerated = '' OR listed IS NOT NULL AND current_setting('server_version_num')::int >= 180000)
{where}
GROUP BY n.nspname, c.relname, c.relreplident, c.relkind, c.oid, c.relnamespace, c.relfilenode, c.reltoastrelid, listed, row_filter
ORDER BY 1, 2";

/// The tables that the configuration selects, of those that can be published, whichever shard they are in. A partitioned table
/// stands for its partitions, so that the target may be partitioned otherwise.
///
/// # Errors
/// A refusal if a pattern selects nothing: it is misspelt, or too early.
pub async fn select_tables(
    client: &Client,
    role: Role,
    selection: &TableSelection,
    stage: Stage,
) -> Result<Vec<PublishedTable>, Error> {
    let from = "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                CROSS JOIN (SELECT NULL::jsonb, NULL::text) l (listed, row_filter)";
    let filter = "WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition \
                  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgsluice') AND n.nspname !~ '^pg_toast'";
    let from = TableSource { from, filter, identity: "NULL::text" };
    let mut tables = query_tables(client, role, from, &[], stage).await?;
    let is_there = |pattern: &Pattern| {
        tables.iter().any(|published| pattern.matches(&published.table.schema, &published.table.name))
    };
    let there: Vec<_> = selection.includes().iter().map(is_there).collect();
    tables.retain(|published| selection.covers(&published.table.schema, &published.table.name));
    let matched = |pattern: &&Pattern| {
        tables.iter().any(|published| pattern.matches(&published.table.schema, &published.table.name))
    };
    let unmatched = selection.includes().iter().zip(there).filter(|(pattern, _)| !matched(pattern));
    let (excluded, unmatched): (Vec<_>, Vec<_>) = unmatched.partition(|(_, is_there)| *is_there);
    let quoted =
        |of: &[(&Pattern, bool)]| of.iter().map(|(pattern, _)| format!("\"{pattern}\"")).collect::<Vec<_>>().join(", ");
    if unmatched.is_empty() && excluded.is_empty() {
        return Ok(tables);
    }
    if unmatched.is_empty() {
        return Err(Error::refused(
            stage,
            format!(
                "`exclude` in [tables] takes away every table on the {role} that {} of `include` matches",
                quoted(&excluded)
            ),
            "narrow a pattern of `exclude`, or leave the pattern of `include` out",
        ));
    }
    if unmatched.iter().any(|(pattern, _)| pattern.to_string().contains('%')) {
        return Err(Error::refused(
            stage,
            format!("no table on the {role} matches {} of `include` in [tables]", quoted(&unmatched)),
            "`%` is no wildcard here: write `*` for any characters, and `?` for one",
        ));
    }
    Err(Error::refused(
        stage,
        format!("no table on the {role} matches {} of `include` in [tables]", quoted(&unmatched)),
        "correct the pattern (names are compared exactly, upper and lower case included), or make the table",
    ))
}

/// A publication as one server has it.
#[derive(Clone, Debug)]
pub struct Publication {
    pub name: String,
    pub tables: Vec<PublishedTable>,
    /// Heartbeats are in it too.
    pub has_heartbeat: bool,
    /// Of INSERT, UPDATE, DELETE and TRUNCATE, those that are not published.
    unpublished: Vec<&'static str>,
    /// Rows of partitioned tables come under the names of their partitions.
    names_partitions: bool,
}

impl Publication {
    /// What the publication holds on this server; `None` where there is no such publication.
    pub async fn read(client: &Client, role: Role, name: &str, stage: Stage) -> Result<Option<Publication>, Error> {
        let failed = |error| Error::from_postgres(stage, role, error);
        let sql = "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, \
                   NOT pubviaroot AND EXISTS (SELECT FROM pg_publication_tables v \
                       JOIN pg_namespace n ON n.nspname = v.schemaname \
                       JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = v.tablename \
                       WHERE v.pubname = p.pubname AND c.relispartition), \
                   current_setting('server_version_num')::int \
                   FROM pg_publication p WHERE pubname = $1";
        let Some(row) = client.query_opt(sql, &[&name]).await.map_err(failed)? else { return Ok(None) };
        let mut unpublished = Vec::new();
        for (column, operation) in ["INSERT", "UPDATE", "DELETE", "TRUNCATE"].into_iter().enumerate() {
            if !row.try_get::<_, bool>(column).map_err(failed)? {
                unpublished.push(operation);
            }
        }
        let names_partitions = row.try_get(4).map_err(failed)?;
        // `attnames` exists from 15 on; before, there were no column lists. OFFSET keeps the view's subquery from being
        // run for each column.
        let from = "FROM (SELECT v.schemaname, v.tablename, to_jsonb(v) -> 'attnames' AS listed, \
                              to_jsonb(v) ->> 'rowfilter' AS row_filter FROM pg_publication_tables v WHERE v.pubname = $1 OFFSET 0) p \
                    JOIN pg_namespace n ON n.nspname = p.schemaname \
                    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename";
        let identity = identity::sql(row.try_get(5).map_err(failed)?);
        let from = TableSource { from, filter: "", identity: &identity };
        let mut tables = query_tables(client, role, from, &[&name], stage).await?;
        let before = tables.len();
        tables.retain(|one| (one.table.schema.as_str(), one.table.name.as_str()) != HEARTBEAT);
        let has_heartbeat = tables.len() < before;
        Ok(Some(Publication { name: name.to_owned(), tables, has_heartbeat, unpublished, names_partitions }))
    }

    /// # Errors
    /// A refusal if some of what happens to a row would never reach the target, or would come under the name of a partition:
    /// tables are selected, copied and mapped by the name of the whole, and which partitions there are is each end's own affair.
    pub fn check_operations(&self, stage: Stage) -> Result<(), Error> {
        self.check_filters(stage)?;
        self.check_partitions(stage)?;
        if self.names_partitions {
            let set = "SET (publish_via_partition_root = true)";
            return Err(Error::refused(
                stage,
                format!("publication \"{}\" publishes partitions by their own names", self.name),
                format!(
                    "on the primary: ALTER PUBLICATION {} {set}; what was written under those names after `pgsluice setup` \
                     is not on the target, so `pgsluice resync` these tables",
                    quote_ident(&self.name)
                ),
            ));
        }
        if self.unpublished.is_empty() {
            return Ok(());
        }
        let (name, operations) = (&self.name, self.unpublished.join(", "));
        Err(Error::refused(
            stage,
            format!("publication \"{name}\" leaves out {operations}, so the target would not become the same"),
            format!(
                "on the primary: ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate'); what was \
                 left out until then has to be copied, which `pgsluice run` does with all tables of the publication",
                quote_ident(name)
            ),
        ))
    }

    /// Bench makes its own table anew each time, under the same name; that is no other table.
    pub fn without_identity_of_bench(mut self, selection: &TableSelection) -> Publication {
        for one in &mut self.tables {
            if selection.is_bench(&one.table.schema, &one.table.name) {
                one.table_identity = None;
            }
        }
        self
    }

    /// Some of INSERT, UPDATE, DELETE and TRUNCATE do not reach the stream.
    pub fn leaves_out_operations(&self) -> bool {
        !self.unpublished.is_empty()
    }

    /// # Errors
    /// A refusal that names the tables of which only some rows are published: the copy would have all of them.
    fn check_filters(&self, stage: Stage) -> Result<(), Error> {
        let filtered: Vec<_> = self.tables.iter().filter(|one| one.row_filter.is_some()).collect();
        if filtered.is_empty() {
            return Ok(());
        }
        let publication = quote_ident(&self.name);
        let shown =
            |one: &&PublishedTable| format!("{} (WHERE {})", one.table, one.row_filter.as_deref().unwrap_or(""));
        let whole = |one: &&PublishedTable| {
            let (table, schema, name) = (&one.table, &one.table.schema, &one.table.name);
            format!(
                "ALTER PUBLICATION {publication} DROP TABLE ONLY {table}; ALTER PUBLICATION {publication} ADD TABLE ONLY {table}; \
                 then `pgsluice resync \"{schema}.{name}\"` if the target has rows of it"
            )
        };
        let what = filtered.iter().map(shown).collect::<Vec<_>>().join(", ");
        let mend = filtered.iter().map(whole).collect::<Vec<_>>().join("; ");
        Err(Error::refused(
            stage,
            format!("publication \"{}\" has a row filter, so the target would not become the same: {what}", self.name),
            format!("on the primary: {mend}. To leave rows out on their way, use `where` in a [[rule]]"),
        ))
    }

    /// # Errors
    /// A refusal that names partitions whose changes are in no WAL.
    fn check_partitions(&self, stage: Stage) -> Result<(), Error> {
        let leaves = self.tables.iter().filter_map(|one| Some((&one.table, &one.table_identity.as_ref()?.leaves)));
        let unlogged: Vec<_> = leaves
            .flat_map(|(table, leaves)| leaves.iter().map(move |leaf| (table, leaf)))
            .filter(|(_, leaf)| leaf.persistence != "p")
            .collect();
        let Some((table, _)) = unlogged.first() else { return Ok(()) };
        let list =
            unlogged.iter().map(|(table, leaf)| format!("{} of {table}", leaf.name)).collect::<Vec<_>>().join(", ");
        let alter =
            unlogged.iter().map(|(_, leaf)| format!("ALTER TABLE {} SET LOGGED", leaf.name)).collect::<Vec<_>>();
        Err(Error::refused(
            stage,
            format!("partition {list} is UNLOGGED: what is written to it is not in the stream"),
            format!(
                "on the primary: {}; then `pgsluice resync \"{}.{}\"`, and the same for each table that is named, if the target \
                 has rows of it",
                alter.join("; "),
                table.schema,
                table.name
            ),
        ))
    }

    /// # Errors
    /// A refusal that names the tables that are published and that the configuration does not select.
    pub fn check_selection(&self, selection: &TableSelection, stage: Stage) -> Result<(), Error> {
        let is_extra = |table: &&TableName| !selection.selects(&table.schema, &table.name);
        let extra: Vec<_> = self.tables.iter().map(|one| &one.table).filter(is_extra).collect();
        let Some(first) = extra.first() else { return Ok(()) };
        let (name, publication) = (&self.name, quote_ident(&self.name));
        let list = extra.iter().map(|table| table.to_string()).collect::<Vec<_>>().join(", ");
        let drop = format!("ALTER PUBLICATION {publication} DROP TABLE {}", only(extra.iter().copied()));
        let TableName { schema, name: table } = first;
        Err(match selection.shard().filter(|_| selection.covers(schema, table)) {
            Some(shard) => {
                let other = shard.publication_of(schema, table);
                let what = format!("publication \"{name}\" holds {list}, and {first} is in the shard of \"{other}\"");
                let add = format!("ALTER PUBLICATION {} ADD TABLE ONLY {first}", quote_ident(&other));
                Error::refused(stage, what, format!("on the primary: {drop}; {add}"))
            }
            None => Error::refused(
                stage,
                format!("publication \"{name}\" holds {list}, which [tables] does not select"),
                format!("select them in [tables], or on the primary: {drop}"),
            ),
        })
    }

    /// # Errors
    /// A refusal that names the tables in which publication and configuration differ, with the statement that makes
    /// them the same; or as [`Publication::check_operations`].
    pub fn check(&self, selection: &TableSelection, wanted: &[PublishedTable], stage: Stage) -> Result<(), Error> {
        self.check_operations(stage)?;
        let names = |tables: &[PublishedTable]| tables.iter().map(|one| one.table.clone()).collect::<BTreeSet<_>>();
        let (mut published, wanted) = (names(&self.tables), names(wanted));
        // It comes and goes by itself.
        published.retain(|table| !selection.is_bench(&table.schema, &table.name));
        if published == wanted {
            return Ok(());
        }
        let list =
            |tables: Vec<&TableName>| tables.iter().map(|table| table.to_string()).collect::<Vec<_>>().join(", ");
        let missing = list(wanted.difference(&published).collect());
        let extra = list(published.difference(&wanted).collect());
        let mut what = format!("publication \"{}\" does not hold the tables that [tables] selects", self.name);
        if !missing.is_empty() {
            what = format!("{what}; it lacks {missing}");
        }
        if !extra.is_empty() {
            what = format!("{what}; it has besides {extra}");
        }
        let mend = format!(
            "change [tables], or on the primary: ALTER PUBLICATION {} SET TABLE {}; rows that a table gained before \
             that are not in the stream and have to be copied",
            quote_ident(&self.name),
            only(wanted.iter())
        );
        Err(Error::refused(stage, what, mend))
    }
}

/// What completes [`TABLES_SQL`].
#[derive(Clone, Copy, Debug)]
struct TableSource<'a> {
    from: &'a str,
    filter: &'a str,
    /// An expression for the JSON of a [`TableIdentity`].
    identity: &'a str,
}

async fn query_tables(
    client: &Client,
    role: Role,
    TableSource { from, filter, identity }: TableSource<'_>,
    parameters: &[&(dyn ToSql + Sync)],
    stage: Stage,
) -> Result<Vec<PublishedTable>, Error> {
    let failed = |error| Error::from_postgres(stage, role, error);
    let sql = TABLES_SQL.replace("{from}", from).replace("{where}", filter).replace("{identity}", identity);
    let mut tables = Vec::new();
    for row in client.query(&sql, parameters).await.map_err(failed)? {
        let names: Option<Vec<String>> = row.try_get(2).map_err(failed)?;
        let types: Option<Vec<u32>> = row.try_get(3).map_err(failed)?;
        let identity: Option<&str> = row.try_get(11).map_err(failed)?;
        tables.push(PublishedTable {
            table: TableName { schema: row.try_get(0).map_err(failed)?, name: row.try_get(1).map_err(failed)? },
            columns: names.unwrap_or_default().into_iter().zip(types.unwrap_or_default()).collect(),
            attnums: row.try_get(4).map_err(failed)?,
            replica_identity: replica_identity(row.try_get(5).map_err(failed)?),
            identity: row.try_get(7).map_err(failed)?,
            partitions_differ: row.try_get(8).map_err(failed)?,
            has_generated: row.try_get(9).map_err(failed)?,
            is_partitioned: row.try_get(6).map_err(failed)?,
            row_filter: row.try_get(10).map_err(failed)?,
            table_identity: identity.map(|json| read_identity(json, stage)).transpose()?,
        });
    }
    Ok(tables)
}

fn read_identity(json: &str, stage: Stage) -> Result<Arc<TableIdentity>, Error> {
    serde_json::from_str(json).map(Arc::new).map_err(|error| {
        let what = format!("the catalogs of the source describe a published table in an unknown form ({error})");
        Error::refused(stage, what, "its version of PostgreSQL may be newer than this pgsluice knows: use a later one")
    })
}

/// By the letter that `pg_class` has for it.
pub(super) fn replica_identity(letter: &str) -> ReplicaIdentity {
    match letter {
        "f" => ReplicaIdentity::Full,
        "n" => ReplicaIdentity::Nothing,
        "i" => ReplicaIdentity::Index,
        _ => ReplicaIdentity::Default,
    }
}

/// Whether a publication holds heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heartbeat<'a> {
    None,
    /// Their table is there.
    Present,
    /// Their table is to be made, for this role.
    By(&'a str),
}

/// Tables as statements about publications name them. Without ONLY, tables that inherit from them would be meant as well,
/// selected or not; of a partitioned table it changes nothing ("CREATE PUBLICATION").
pub fn only<'a>(tables: impl Iterator<Item = &'a TableName>) -> String {
    tables.map(|table| format!("ONLY {table}")).collect::<Vec<_>>().join(", ")
}

/// The statements that make the publication, and first what it holds beside the tables.
///
/// Whoever beats is named where it has yet to get the right to.
pub fn create_sql(publication: &str, tables: &[PublishedTable], heartbeat: Heartbeat<'_>) -> String {
    let beats = TableName { schema: HEARTBEAT.0.to_owned(), name: HEARTBEAT.1.to_owned() };
    let beats = (heartbeat != Heartbeat::None).then_some(&beats);
    let list = only(tables.iter().map(|published| &published.table).chain(beats));
    let mut before = String::new();
    if let Heartbeat::By(role) = heartbeat {
        let role = quote_ident(role);
        before = format!(
            "{HEARTBEAT_SCHEMA_SQL};\n{HEARTBEAT_TABLE_SQL};\nGRANT USAGE ON SCHEMA pgsluice TO {role};\n\
             GRANT SELECT, INSERT, UPDATE ON pgsluice.heartbeat TO {role};\n"
        );
    }
    // A shard may have no table yet.
    let list = if list.is_empty() { String::new() } else { format!(" FOR TABLE {list}") };
    format!("{before}CREATE PUBLICATION {}{list} WITH (publish_via_partition_root = true)", quote_ident(publication))
}

/// The statement that has a publication hold heartbeats too.
pub fn add_heartbeat_sql(publication: &str) -> String {
    let heartbeat = quote_qualified(HEARTBEAT.0, HEARTBEAT.1);
    format!("ALTER PUBLICATION {} ADD TABLE ONLY {heartbeat}", quote_ident(publication))
}
