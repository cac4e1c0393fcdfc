//! Whether the primary still accepts UPDATE and DELETE of tables that are published, and whether the target can follow them.
//!
//! In: a publication as it is, or the tables of one that is to be made. Out: the tables whose users would see an error, and
//! those whose changes name no row, each with its reason and the statement that fixes it.
//!
//! PostgreSQL asks this question about each table that a row lies in, so about each leaf of a partitioned table, and it asks it
//! when the statement runs on the primary: `CheckCmdReplicaIdentity` in `src/backend/executor/execReplication.c`, with
//! `RelationBuildPublicationDesc` and `pub_contains_invalid_column`. `Leaf::objection` gives the same answer beforehand; a test
//! compares the two over many shapes of tables.
//!
//! The stream describes a partitioned table by its root, and old rows come as the leaf has them. So the leaf's replica identity
//! has to hold the columns of the root's, or an old row does not say which row it was.

use std::fmt;

use pgsluice_proto::pgoutput::ReplicaIdentity;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::publication::{PublishedTable, TableName, replica_identity};
use crate::config::{Pattern, Role};
use crate::error::{Error, Stage};
use crate::postgres::quote_ident;

/// Generated columns count from this release on: an old row may not lack any column of the replica identity.
const GENERATED_MAJOR_MIN: u32 = 18;

/// A table of the publication whose UPDATE and DELETE do not reach the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwritable {
    /// As it is published.
    pub root: TableName,
    /// Where the rows lie: the same, or one of its partitions.
    pub leaf: TableName,
    pub harm: Harm,
    why: String,
    mend: String,
}

/// Who suffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// The primary refuses the statement of whoever writes there.
    Refused,
    /// The primary accepts it, and the target cannot find its row.
    NotFound,
}

impl fmt::Display for Unwritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unwritable { root, leaf, harm, why, .. } = self;
        write!(f, "{leaf}")?;
        if leaf != root {
            write!(f, ", a partition of {root}")?;
        }
        match harm {
            Harm::Refused => {
                write!(f, ": {why}, so the primary refuses every UPDATE and DELETE of it while it is published")
            }
            Harm::NotFound => write!(f, ": {why}, so the target cannot find the rows of its UPDATEs and DELETEs"),
        }
    }
}

impl Unwritable {
    /// The statement for the primary, or what else is to be done there.
    pub fn mend(&self) -> &str {
        &self.mend
    }

    /// Somebody has said that this table, or the one it is a part of, only gets INSERTs.
    pub fn is_allowed(&self, allowed: &[Pattern]) -> bool {
        let is = |table: &TableName| allowed.iter().any(|pattern| pattern.matches(&table.schema, &table.name));
        is(&self.leaf) || is(&self.root)
    }
}

/// A table whose own rows are published, with what decides.
#[derive(Debug)]
struct Leaf {
    root: TableName,
    leaf: TableName,
    major: u32,
    replica_identity: ReplicaIdentity,
    /// Columns of the index that is its replica identity.
    identity: Option<Vec<String>>,
    has_primary_key: bool,
    /// The primary key, if it could be the replica identity.
    usable_primary_key: bool,
    /// Another index that could be.
    usable_index: Option<String>,
    stored: Vec<String>,
    r#virtual: Vec<String>,
    root_identity: Identity,
    publication: Published,
}

/// By which columns old rows are told.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    All,
    /// None where there is no replica identity.
    Columns(Vec<String>),
}

/// How the publication has the root.
#[derive(Debug)]
struct Published {
    /// UPDATE or DELETE is among its operations.
    has_changes: bool,
    generated: bool,
    /// A column list.
    list: Option<Vec<String>>,
    /// Columns of the row filter; one is empty where it uses the whole row.
    filter: Vec<String>,
}

/// The roots, of a publication that is to be made.
const PLANNED_SQL: &str = "\
    SELECT to_regclass(w.name)::oid AS oid, true AS changes, false AS generated, NULL::jsonb AS listed, NULL::text AS filter \
    FROM unnest($1::text[]) AS w (name)";

/// The roots of a publication that is there. The columns of the later releases may be missing.
const PUBLISHED_SQL: &str = "\
    SELECT c.oid, p.pubupdate OR p.pubdelete AS changes, COALESCE(to_jsonb(p) ->> 'pubgencols', 'n') = 's' AS generated, \
        NULLIF(to_jsonb(r) -> 'prattrs', 'null') AS listed, to_jsonb(r) ->> 'prqual' AS filter \
    FROM pg_publication p JOIN pg_publication_tables v ON v.pubname = p.pubname \
    JOIN pg_namespace n ON n.nspname = v.schemaname \
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = v.tablename \
    LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid \
    WHERE p.pubname = $1";

/// One row a leaf. What a row filter refers to stands in its tree as `:varattno`, with 0 for the whole row.
const LEAVES_SQL: &str = "\
WITH root AS MATERIALIZED ({roots}),
leaf AS (
    SELECT root.oid AS root, t.relid::oid AS oid FROM root CROSS JOIN pg_partition_tree(root.oid) t WHERE t.isleaf
    UNION SELECT root.oid, root.oid FROM root JOIN pg_class c ON c.oid = root.oid AND c.relkind = 'r'
)
SELECT rn.nspname::text, r.relname::text, n.nspname::text, c.relname::text, c.relreplident::text,
    key_of(c), EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND usable(i) AND NOT EXISTS (
        SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND key(a) AND a.attgenerated <> '')),
    (SELECT x.relname::text FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am am ON am.oid = x.relam
     WHERE i.indrelid = c.oid AND NOT i.indisprimary AND usable(i) AND i.indexprs IS NULL AND am.amname = 'btree'
     AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND key(a) AND (NOT a.attnotnull OR a.attgenerated <> ''))
     ORDER BY x.relname LIMIT 1),
    ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 's' AND NOT a.attisdropped),
    ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped),
    r.relreplident::text, key_of(r), root.changes, root.generated,
    CASE WHEN root.listed IS NOT NULL THEN ARRAY(
        SELECT a.attname::text FROM jsonb_array_elements_text(root.listed) l JOIN pg_attribute a
        ON a.attrelid = r.oid AND a.attnum = l::int) END,
    ARRAY(SELECT DISTINCT COALESCE(a.attname::text, '') FROM regexp_matches(root.filter, ':varattno (-?\\d+)', 'g') m
        LEFT JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum = m[1]::int)
FROM leaf JOIN root ON root.oid = leaf.root JOIN pg_class c ON c.oid = leaf.oid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class r ON r.oid = leaf.root JOIN pg_namespace rn ON rn.oid = r.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p'
ORDER BY 1, 2, 3, 4";

/// The columns of the index that is the replica identity of `{c}`; NULL where there is none ("RelationGetIndexList").
const KEY_OF_SQL: &str = "\
    (SELECT ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = {c}.oid AND key(a))
     FROM pg_index i WHERE i.indrelid = {c}.oid AND usable(i)
     AND CASE {c}.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)";
/// Of a partitioned table it is valid only once each partition has it, which does not matter here.
const USABLE_SQL: &str = "(i.indisunique AND i.indimmediate AND i.indislive AND i.indpred IS NULL \
    AND (i.indisvalid OR EXISTS (SELECT FROM pg_class p WHERE p.oid = i.indrelid AND p.relkind = 'p')))";
const KEY_SQL: &str = "a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])";

fn sql(roots: &str) -> String {
    LEAVES_SQL
        .replace("{roots}", roots)
        .replace("key_of(c)", &KEY_OF_SQL.replace("{c}", "c"))
        .replace("key_of(r)", &KEY_OF_SQL.replace("{c}", "r"))
        .replace("usable(i)", USABLE_SQL)
        .replace("key(a)", KEY_SQL)
}

/// Those of the tables that would be unwritable under a publication made by `setup`.
pub async fn foresee(
    client: &Client,
    role: Role,
    tables: &[PublishedTable],
    stage: Stage,
) -> Result<Vec<Unwritable>, Error> {
    let names: Vec<_> = tables.iter().map(|published| published.table.to_string()).collect();
    read(client, role, PLANNED_SQL, &names, stage).await
}

/// Those that are, under a publication that is there.
pub async fn find(client: &Client, role: Role, publication: &str, stage: Stage) -> Result<Vec<Unwritable>, Error> {
    read(client, role, PUBLISHED_SQL, &publication, stage).await
}

async fn read(
    client: &Client,
    role: Role,
    roots: &str,
    parameter: &(dyn ToSql + Sync),
    stage: Stage,
) -> Result<Vec<Unwritable>, Error> {
    let failed = |error| Error::from_postgres(stage, role, error);
    let version = "SELECT current_setting('server_version_num')::int / 10000";
    let major = client.query_one(version, &[]).await.map_err(failed)?.try_get::<_, i32>(0).map_err(failed)?;
    let rows = client.query(&sql(roots), &[parameter]).await.map_err(failed)?;
    let leaves = rows.iter().map(|row| Leaf::from_row(row, major.unsigned_abs()));
    let leaves: Vec<_> = leaves.collect::<Result<_, _>>().map_err(failed)?;
    Ok(leaves.iter().filter_map(Leaf::unwritable).collect())
}

impl Leaf {
    fn from_row(row: &Row, major: u32) -> Result<Leaf, tokio_postgres::Error> {
        let root_identity = match (row.try_get(11)?, row.try_get::<_, Option<_>>(12)?) {
            ("f", _) => Identity::All,
            (_, columns) => Identity::Columns(columns.unwrap_or_default()),
        };
        Ok(Leaf {
            root: TableName { schema: row.try_get(0)?, name: row.try_get(1)? },
            leaf: TableName { schema: row.try_get(2)?, name: row.try_get(3)? },
            major,
            replica_identity: replica_identity(row.try_get(4)?),
            identity: row.try_get(5)?,
            has_primary_key: row.try_get(6)?,
            usable_primary_key: row.try_get(7)?,
            usable_index: row.try_get(8)?,
            stored: row.try_get(9)?,
            r#virtual: row.try_get(10)?,
            root_identity,
            publication: Published {
                has_changes: row.try_get(13)?,
                generated: row.try_get(14)?,
                list: row.try_get(15)?,
                filter: row.try_get(16)?,
            },
        })
    }

    fn unwritable(&self) -> Option<Unwritable> {
        if !self.publication.has_changes {
            return None;
        }
        let (harm, why) = match self.objection() {
            Some(why) => (Harm::Refused, why),
            None => (Harm::NotFound, self.obscurity()?),
        };
        let mend = self.mend(harm);
        Some(Unwritable { root: self.root.clone(), leaf: self.leaf.clone(), harm, why, mend })
    }

    /// Why the primary refuses an UPDATE or DELETE of this table, if it does.
    fn objection(&self) -> Option<String> {
        let is_full = self.replica_identity == ReplicaIdentity::Full;
        let identity = self.identity.as_deref().unwrap_or_default();
        let lacking = |columns: &[String], of: &[String]| -> Vec<String> {
            columns.iter().filter(|column| !of.contains(column)).cloned().collect()
        };
        let Published { list, filter, .. } = &self.publication;
        let outside = lacking(filter, identity);
        if !is_full && !outside.is_empty() {
            return Some(format!(
                "the publication's row filter uses {}, outside of its replica identity",
                quoted(&outside)
            ));
        }
        match list {
            Some(_) if is_full => {
                return Some("its replica identity is FULL, and the publication has a column list".to_owned());
            }
            Some(list) if !lacking(identity, list).is_empty() => {
                let outside = quoted(&lacking(identity, list));
                return Some(format!("the publication's column list lacks {outside} of its replica identity"));
            }
            Some(_) | None => {}
        }
        if self.major >= GENERATED_MAJOR_MIN && list.is_none() {
            let unpublished: Vec<_> =
                self.unpublished().filter(|name| is_full || identity.contains(name)).cloned().collect();
            if !unpublished.is_empty() {
                let columns = quoted(&unpublished);
                return Some(if is_full {
                    format!("its replica identity is FULL, and generated columns are not published: {columns}")
                } else {
                    format!("its replica identity has generated columns, which are not published: {columns}")
                });
            }
        }
        if is_full || self.identity.is_some() {
            return None;
        }
        Some(
            match (self.replica_identity, self.has_primary_key) {
                (ReplicaIdentity::Nothing, _) => "its replica identity is NOTHING",
                (ReplicaIdentity::Index, _) => "the index of its replica identity is gone",
                (ReplicaIdentity::Default | ReplicaIdentity::Full, true) => {
                    "its primary key is DEFERRABLE, which is no replica identity"
                }
                (ReplicaIdentity::Default | ReplicaIdentity::Full, false) => {
                    "it has neither a primary key nor a replica identity"
                }
            }
            .to_owned(),
        )
    }

    /// Generated columns that are not published as the others are.
    fn unpublished(&self) -> impl Iterator<Item = &String> {
        let stored = if self.publication.generated { &[] } else { self.stored.as_slice() };
        stored.iter().chain(&self.r#virtual)
    }

    /// Why the target cannot find the row of an UPDATE or DELETE that the primary accepts, if it cannot.
    fn obscurity(&self) -> Option<String> {
        let identity = self.identity.as_deref().unwrap_or_default();
        let is_full = self.replica_identity == ReplicaIdentity::Full;
        if self.root != self.leaf {
            match &self.root_identity {
                Identity::All if is_full => {}
                Identity::All => {
                    return Some("its replica identity is not FULL, as that of the whole table is".to_owned());
                }
                Identity::Columns(columns) if columns.is_empty() => {
                    return Some("it has a replica identity, and the whole table has none".to_owned());
                }
                Identity::Columns(columns) => {
                    let lacks: Vec<_> = columns.iter().filter(|column| !identity.contains(column)).cloned().collect();
                    if !is_full && !lacks.is_empty() {
                        return Some(format!("its replica identity lacks {} of the whole table's", quoted(&lacks)));
                    }
                }
            }
        }
        // Before they counted on the primary.
        let is_sent = |column: &&String| self.publication.list.as_ref().is_some_and(|list| list.contains(column));
        let unsent: Vec<_> =
            self.unpublished().filter(|column| identity.contains(column) && !is_sent(column)).cloned().collect();
        (!unsent.is_empty()).then(|| {
            format!("its replica identity has generated columns, which are not published: {}", quoted(&unsent))
        })
    }

    /// What makes it writable, and keeps its rows to be found.
    fn mend(&self, harm: Harm) -> String {
        let Leaf { leaf, root, .. } = self;
        let alter = |table: &TableName, identity: &str| format!("ALTER TABLE {table} REPLICA IDENTITY {identity}");
        if self.publication.list.is_some() || !self.publication.filter.is_empty() {
            let is_covered = self.objection().is_none();
            if !is_covered && !self.is_without_identity() {
                return format!(
                    "ALTER PUBLICATION … SET TABLE …, with all columns of the replica identity of {leaf} in the list, and only \
                     those in the filter"
                );
            }
        }
        let full_is_possible = self.major < GENERATED_MAJOR_MIN || self.unpublished().next().is_none();
        if harm == Harm::NotFound && root != leaf {
            return match &self.root_identity {
                Identity::Columns(columns) if columns.is_empty() => {
                    format!("{}; {}", alter(root, "FULL"), alter(leaf, "FULL"))
                }
                Identity::Columns(_)
                    if self.usable_primary_key && self.replica_identity != ReplicaIdentity::Default =>
                {
                    alter(leaf, "DEFAULT")
                }
                Identity::All | Identity::Columns(_) => alter(leaf, "FULL"),
            };
        }
        if self.usable_primary_key && self.replica_identity != ReplicaIdentity::Default {
            return alter(leaf, "DEFAULT");
        }
        if let Some(index) = self.usable_index.as_ref().filter(|_| root == leaf) {
            return alter(leaf, &format!("USING INDEX {}", quote_ident(index)));
        }
        if full_is_possible && self.replica_identity != ReplicaIdentity::Full {
            let is_root_full = root == leaf || self.root_identity == Identity::All;
            let of_root = if is_root_full { String::new() } else { format!("{}; ", alter(root, "FULL")) };
            return format!("{of_root}{}", alter(leaf, "FULL"));
        }
        format!(
            "ALTER TABLE {leaf} ADD PRIMARY KEY (…), of columns that are not generated; ALTER TABLE {leaf} REPLICA IDENTITY DEFAULT"
        )
    }

    fn is_without_identity(&self) -> bool {
        self.replica_identity != ReplicaIdentity::Full && self.identity.is_none()
    }
}

fn quoted(columns: &[String]) -> String {
    let quoted: Vec<_> = columns
        .iter()
        .map(|column| if column.is_empty() { "the whole row".to_owned() } else { quote_ident(column) })
        .collect();
    quoted.join(", ")
}
