//! Indexes and foreign keys that the target goes without while tables are copied, because one build at the end costs less
//! than keeping them up row by row, and because foreign keys do not hold before all rows are there.
//!
//! ```text
//!  find ──► one transaction: record in pgsluice.deferred, drop ──► chunks ──► indexes, in parallel ──► stream
//!                                                                                                       │
//!            foreign keys, once progress has passed the snapshots of the tables at both ends ◄──────────┘
//! ```
//!
//! **Always holds:**
//! - What was dropped is on record until it is there again: dropping and recording are one transaction of the target, and so
//!   are making again and forgetting. Each holds the engine's epoch.
//! - What could not be made again as it was is not dropped; nor is what rows are found by, the primary key and the replica
//!   identity; nor what anything else of the database rests on.
//! - No change is applied before the indexes are back: it looks for its rows by them.
//! - Whoever starts next makes again what is on record, whatever it was started with.

mod find;
mod restore;
mod unvalidated;

use pgsluice_proto::Lsn;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

pub(super) use self::find::drop_and_record;
pub use self::find::{Selected, check_rights};
pub(super) use self::restore::Building;
pub use self::restore::restore;
pub(super) use self::unvalidated::set_aside;
use super::{STAGE, target_failed};
use crate::error::Error;
use crate::source::publication::TableName;

/// What is made again, in the words of `pgsluice.deferred`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeferredKind {
    Index,
    /// A unique or exclusion constraint, with its index; or one that is NOT VALID, and without.
    Constraint,
    ForeignKey,
}

impl DeferredKind {
    const ALL: [DeferredKind; 3] = [DeferredKind::Index, DeferredKind::Constraint, DeferredKind::ForeignKey];

    pub fn as_str(self) -> &'static str {
        match self {
            DeferredKind::Index => "index",
            DeferredKind::Constraint => "constraint",
            DeferredKind::ForeignKey => "foreign key",
        }
    }

    fn parse(text: &str) -> Result<DeferredKind, Error> {
        DeferredKind::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            let what = format!("pgsluice.deferred on the target has a kind \"{text}\"");
            Error::refused(STAGE, what, "it was written by another version; use that one")
        })
    }
}

/// When it can be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Now,
    /// Once progress is there: until then, tables at its two ends can be of different moments.
    At(Lsn),
    /// By the copy of its tables, or after it.
    AfterCopy,
}

impl Due {
    /// Where progress has to be.
    pub fn lsn(self) -> Option<Lsn> {
        match self {
            Due::At(lsn) => Some(lsn),
            Due::Now | Due::AfterCopy => None,
        }
    }
}

/// An index or constraint that the target is to have again.
#[derive(Clone, Debug)]
pub struct Deferred {
    /// The table that is replicated.
    pub table: TableName,
    pub kind: DeferredKind,
    /// The table or partition that it is of, quoted, with its schema.
    pub relation: String,
    pub object_name: String,
    /// Statements that make it.
    definition: String,
    /// Statements that make it what it was besides: its comment, statistics targets, the mark of CLUSTER.
    attributes: String,
    /// A foreign key that can be made first, and have the rows checked afterwards, which locks less.
    is_checked_later: bool,
    pub due: Due,
}

impl Deferred {
    /// All of it, for a person to run.
    pub fn sql(&self) -> String {
        [&self.definition, &self.attributes]
            .map(|sql| if sql.is_empty() { String::new() } else { format!("{sql};") })
            .join("")
    }

    fn from_row(row: &Row) -> Result<Deferred, Error> {
        let text = |column| row.try_get::<_, String>(column).map_err(target_failed);
        let is_copied: bool = row.try_get(7).map_err(target_failed)?;
        let due_at: Option<PgLsn> = row.try_get(8).map_err(target_failed)?;
        let due = match due_at {
            _ if !is_copied => Due::AfterCopy,
            Some(lsn) => Due::At(Lsn::new(lsn.into())),
            None => Due::Now,
        };
        Ok(Deferred {
            table: TableName { schema: text(0)?, name: text(1)? },
            kind: DeferredKind::parse(&text(2)?)?,
            relation: text(3)?,
            object_name: text(4)?,
            definition: text(5)?,
            attributes: text(6)?,
            is_checked_later: row.try_get(9).map_err(target_failed)?,
            due,
        })
    }
}

/// What is on record, of the largest table first. Constraints come before indexes of the same table: they lock it against
/// the others.
pub async fn read(target: &Client, name: &str) -> Result<Vec<Deferred>, Error> {
    let sql = "\
        SELECT d.schema_name, d.table_name, d.kind, d.relation, d.object_name, d.definition, d.attributes, \
            NOT COALESCE(ends.missing, false), CASE WHEN d.kind = 'foreign key' THEN ends.ready_at END, \
            d.checked_later \
        FROM pgsluice.deferred d JOIN pgsluice.progress p USING (name) \
        CROSS JOIN LATERAL ( \
            SELECT bool_or(s.state IN ('init', 'datasync', 'catchup')) AS missing, \
                max(s.snapshot_lsn) FILTER (WHERE s.state = 'finishedcopy' AND s.snapshot_lsn > p.end_lsn) AS ready_at \
            FROM pgsluice.table_state s WHERE s.name = d.name AND ((s.schema_name, s.table_name) = (d.schema_name, d.table_name) \
                OR (s.schema_name, s.table_name) = (d.referenced_schema, d.referenced_table))) AS ends \
        LEFT JOIN pg_class c ON c.oid = to_regclass(d.relation) \
        WHERE d.name = $1 ORDER BY c.relpages DESC NULLS LAST, d.relation, d.kind = 'index', d.object_name";
    let rows = target.query(sql, &[&name]).await.map_err(target_failed)?;
    rows.iter().map(Deferred::from_row).collect()
}
