//! Constraints that are NOT VALID. On the source there may be rows from before them that do not pass, and a copy brings those as
//! new rows, which every such constraint looks at. So the target goes without them while tables are copied, whatever the copy was
//! started with, and has them again as they were: NOT VALID, which looks at no row that is there. What the stream brings afterwards
//! has passed them on the source.

use tokio_postgres::{Client, Row};

use super::{DeferredKind, target_failed};
use crate::error::Error;
use crate::snapshot::Wanted;

const UNVALIDATED_SQL: &str = include_str!("unvalidated.sql");
/// A constraint that is declared at several levels is gone from all of them after as many rounds as there are levels.
const ROUNDS_MAX: usize = 32;

/// Drops them and records them, in the transaction that is open on `target`.
pub(in crate::snapshot) async fn set_aside(target: &Client, name: &str, tables: &[Wanted]) -> Result<(), Error> {
    let names: Vec<_> = tables.iter().map(|wanted| wanted.target.table.to_string()).collect();
    for _ in 0..ROUNDS_MAX {
        let found = target.query(UNVALIDATED_SQL, &[&names]).await.map_err(target_failed)?;
        let mut dropped = 0;
        for row in &found {
            let one = Unvalidated::from_row(row, tables).map_err(target_failed)?;
            if one.is_ours {
                one.drop_and_record(target, name).await?;
                dropped += 1;
            } else {
                tracing::warn!(
                    "constraint \"{}\" of {} on the target is NOT VALID, and the role does not own the table to go without it \
                     meanwhile: rows of the source from before it end the copy",
                    one.constraint,
                    one.relation
                );
            }
        }
        if dropped == 0 {
            break;
        }
    }
    Ok(())
}

struct Unvalidated<'a> {
    wanted: &'a Wanted,
    relation: String,
    constraint: String,
    definition: String,
    attributes: String,
    drop: String,
    is_ours: bool,
}

impl<'a> Unvalidated<'a> {
    fn from_row(row: &Row, tables: &'a [Wanted]) -> Result<Unvalidated<'a>, tokio_postgres::Error> {
        // Places are counted from 1, and those of the array that was asked about.
        let place: i64 = row.try_get(0)?;
        Ok(Unvalidated {
            wanted: &tables[place as usize - 1],
            relation: row.try_get(1)?,
            constraint: row.try_get(2)?,
            definition: row.try_get(3)?,
            attributes: row.try_get(4)?,
            drop: row.try_get(5)?,
            is_ours: row.try_get(6)?,
        })
    }

    async fn drop_and_record(&self, target: &Client, name: &str) -> Result<(), Error> {
        let sql = "INSERT INTO pgsluice.deferred (name, schema_name, table_name, kind, relation, object_name, definition, \
                       attributes, checked_later) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, false) \
                   ON CONFLICT (name, relation, kind, object_name) DO UPDATE \
                   SET (schema_name, table_name, definition, attributes, deferred_at) = \
                       (EXCLUDED.schema_name, EXCLUDED.table_name, EXCLUDED.definition, EXCLUDED.attributes, now())";
        let Unvalidated { wanted, relation, constraint, definition, attributes, drop, .. } = self;
        let (table, kind) = (&wanted.table, DeferredKind::Constraint.as_str());
        target
            .execute(sql, &[&name, &table.schema, &table.name, &kind, relation, constraint, definition, attributes])
            .await
            .map_err(target_failed)?;
        target.batch_execute(drop).await.map_err(|error| target_failed(error).on(relation.clone()))?;
        tracing::info!(
            relation,
            constraint,
            "is NOT VALID, and set aside until the table is copied: rows from before it may not pass"
        );
        Ok(())
    }
}
