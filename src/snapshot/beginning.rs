//! Where a copy begins: from nothing, or from what an interrupted one has left.
//!
//! What is left is of another snapshot. Of its rows, those stay that are still what they were: versions that both snapshots
//! see, told by their keys. The others go, and so do those of a table without key. What stays is a part of what the new
//! snapshot sees, so what is missing can be added by COPY, and no value of a unique key is in the way.

use pgsluice_proto::Lsn;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::identity;
use super::parts::{self, Done, Part, Xids, column_list};
use super::pump::pump_rows;
use super::state::{State, failed_on};
use super::{CopyOptions, OnExisting, STAGE, Selected, Wanted, deferred, emptying, source_failed, target_failed};
use crate::checkpoint;
use crate::error::{Error, Kind};
use crate::postgres::{quote_ident, quote_literal};
use crate::source::publication::TableName;

/// What is on the target of a table that is to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Nothing of ours.
    Nothing,
    /// Chunks that can be gone on from.
    Chunks,
    /// Rows that are of no use.
    Rows,
}

/// What a copy begins with.
#[derive(Debug)]
pub(super) struct Beginning<'a> {
    pub name: &'a str,
    pub epoch: i64,
    pub tables: &'a [Wanted],
    pub parts: &'a [Part],
    pub options: &'a CopyOptions,
    pub snapshot_lsn: Lsn,
    pub xids: Xids,
    /// The target's triggers and foreign keys fire.
    pub constraints_fire: bool,
}

impl Beginning<'_> {
    /// Notes the snapshot that the tables are copied of, and returns what of it is on the target already.
    pub async fn write(&self, source: &Client, target: &Client) -> Result<Vec<Done>, Error> {
        let name = self.name;
        let lsn = PgLsn::from(self.snapshot_lsn.as_u64());
        let keys = parts::keys(source, self.tables).await?;
        let mut done = Vec::new();
        target
            .batch_execute("BEGIN; SET LOCAL enable_hashjoin = on; SET LOCAL enable_seqscan = on")
            .await
            .map_err(target_failed)?;
        checkpoint::check_epoch(target, name, self.epoch).await?;
        self.wait_for_chunks(target).await?;
        if self.options.defer_indexes {
            let tables = self.tables.iter().collect();
            let selected = Selected { name, tables, on_existing: self.options.on_existing };
            deferred::drop_and_record(target, &selected).await?;
        }
        deferred::set_aside(target, name, self.tables).await?;
        let mut all_left = Vec::new();
        for wanted in self.tables {
            all_left.push(self.left(target, wanted).await?);
        }
        let loses_rows = |left: Left| left != Left::Nothing || self.options.on_existing == OnExisting::Truncate;
        let losing = self.tables.iter().zip(&all_left).filter(|(_, left)| loses_rows(**left));
        let losing: Vec<_> = losing.map(|(wanted, _)| wanted.removal()).collect();
        emptying::check_removal(target, &losing, self.constraints_fire, |_| false).await?;
        for (index, (wanted, key)) in self.tables.iter().zip(keys).enumerate() {
            let table = &wanted.table;
            let left = all_left[index];
            let chunks = match left {
                Left::Chunks => self.done_chunks(target, index, table).await?,
                Left::Nothing | Left::Rows => Vec::new(),
            };
            let mut kept = 0;
            if let (Some(key), false) = (key, chunks.is_empty())
                && !emptying::acts_on_itself(target, wanted, self.constraints_fire).await?
            {
                kept = self.keep(source, target, wanted, &key, &chunks).await?;
            }
            if kept == 0 && loses_rows(left) {
                emptying::empty(target, wanted).await?;
            }
            if kept > 0 {
                tracing::info!(%table, rows = kept, chunks = chunks.len(), "kept of an interrupted copy");
                done.extend(chunks);
            } else if left != Left::Nothing {
                tracing::info!(%table, "an interrupted copy of the table begins again");
            }
            let source_bytes = self.parts.iter().filter(|part| part.table == index).map(|part| part.source_bytes).sum();
            self.note(target, wanted, &done, (kept, source_bytes), lsn).await?;
        }
        target.batch_execute("COMMIT").await.map_err(target_failed)?;
        Ok(done)
    }

    /// A COMMIT of the try before may be under way still, in a session that this engine has lost: its epoch is ours. It holds the
    /// row of its table, and once it has ended, either way, its chunk is seen or is not there.
    async fn wait_for_chunks(&self, target: &Client) -> Result<(), Error> {
        let tables = self.tables.iter().map(|wanted| (wanted.table.schema.as_str(), wanted.table.name.as_str()));
        let (schemas, names): (Vec<_>, Vec<_>) = tables.unzip();
        let sql = "SELECT FROM pgsluice.table_state WHERE name = $1 \
                   AND (schema_name, table_name) IN (SELECT * FROM unnest($2::text[], $3::text[])) \
                   ORDER BY schema_name, table_name FOR UPDATE";
        target.query(sql, &[&self.name, &schemas, &names]).await.map(drop).map_err(target_failed)
    }

    /// What an interrupted copy of the table has left.
    ///
    /// # Errors
    /// A refusal if its rows cannot be told from those that were there before; [`Kind::Behind`] if it had a snapshot of a later
    /// moment than this one is of, which a standby that has crashed and replays again can give.
    async fn left(&self, target: &Client, wanted: &Wanted) -> Result<Left, Error> {
        let table = &wanted.table;
        let sql = "SELECT state, appends, columns IS NOT DISTINCT FROM $4 AND rules IS NOT DISTINCT FROM $5, snapshot_lsn, place, \
                       to_jsonb(t) ->> 'identity' \
                   FROM pgsluice.table_state t \
                   WHERE name = $1 AND schema_name = $2 AND table_name = $3";
        let row = target
            .query_one(sql, &[&self.name, &table.schema, &table.name, &wanted.columns, &wanted.rules])
            .await
            .map_err(target_failed)?;
        let state: String = row.try_get(0).map_err(target_failed)?;
        let [appends, same_columns]: [bool; 2] =
            [row.try_get(1).map_err(target_failed)?, row.try_get(2).map_err(target_failed)?];
        let known: Option<PgLsn> = row.try_get(3).map_err(target_failed)?;
        let known = known.map_or(Lsn::INVALID, |lsn| Lsn::new(lsn.into()));
        if known > self.snapshot_lsn {
            return Err(Error::new(STAGE, Kind::Behind { replayed: self.snapshot_lsn, progress: known }));
        }
        let place: Option<String> = row.try_get(4).map_err(target_failed)?;
        let identity = row.try_get::<_, Option<&str>>(5).map_err(target_failed)?.map(identity::parse).transpose()?;
        let same_table = match (&identity, &wanted.identity) {
            (Some(known), Some(now)) => known.is_like(now),
            (None, _) | (_, None) => true,
        };
        let begun = [State::DataSync, State::CatchUp].iter().any(|begun| state == begun.as_str());
        if let Some(place) = place.filter(|place| begun && *place != wanted.target.place) {
            return Err(self.moved(table, &place, &wanted.target.place));
        }
        match (begun, appends, same_columns && same_table) {
            (false, _, _) => Ok(Left::Nothing),
            (true, true, _) => Err(Error::refused(
                STAGE,
                format!("a copy that appended to {table} was interrupted: whose its rows are cannot be told any more"),
                format!(
                    "remove the source's rows from it, then on the target: UPDATE pgsluice.table_state SET state = 'init' \
                     WHERE name = '{}' AND schema_name = {} AND table_name = {}; and run again",
                    self.name,
                    quote_literal(&table.schema),
                    quote_literal(&table.name)
                ),
            )),
            (true, false, true) => Ok(Left::Chunks),
            // What is there lacks the values of a column that is new, came under other rules, or is of another table.
            (true, false, false) => Ok(Left::Rows),
        }
    }

    /// What lies at another place is not ours to empty, and neither may be what lies at the new one.
    fn moved(&self, table: &TableName, from: &str, to: &str) -> Error {
        Error::refused(
            STAGE,
            format!("rows of {table} lie on the target in {from}, and rules have them go to {to} now"),
            format!(
                "remove them there, see that nothing is in the way at the new place, then on the target: UPDATE \
                 pgsluice.table_state SET state = 'init', place = NULL WHERE name = '{}' AND schema_name = {} AND table_name = \
                 {}; and run again",
                self.name,
                quote_literal(&table.schema),
                quote_literal(&table.name)
            ),
        )
    }

    /// Chunks of a table whose part is the file that it was.
    async fn done_chunks(&self, target: &Client, index: usize, table: &TableName) -> Result<Vec<Done>, Error> {
        let sql = "SELECT part, filenode, first_block, end_block, xmin_horizon FROM pgsluice.chunk_state \
                   WHERE name = $1 AND schema_name = $2 AND table_name = $3";
        let rows = target.query(sql, &[&self.name, &table.schema, &table.name]).await.map_err(target_failed)?;
        let mut chunks = Vec::new();
        for row in &rows {
            let part: String = row.try_get(0).map_err(target_failed)?;
            let filenode: u32 = row.try_get(1).map_err(target_failed)?;
            let same = |known: &&Part| known.table == index && known.name == part && known.filenode == filenode;
            if self.parts.iter().any(|known| same(&known)) {
                chunks.push(Done {
                    part,
                    first_block: row.try_get::<_, i64>(2).map_err(target_failed)?.unsigned_abs(),
                    end_block: row.try_get::<_, Option<i64>>(3).map_err(target_failed)?.map(i64::unsigned_abs),
                    horizon: row.try_get(4).map_err(target_failed)?,
                });
            }
        }
        Ok(chunks)
    }

    /// Removes the rows of the table that are not what they were in these chunks, and returns how many are left; 0 also where those are
    /// not all that these chunks have brought, so that none can be relied on.
    async fn keep(
        &self,
        source: &Client,
        target: &Client,
        wanted: &Wanted,
        key: &[String],
        chunks: &[Done],
    ) -> Result<u64, Error> {
        let to = &wanted.target;
        let on_target: Vec<_> = key.iter().filter_map(|column| to.same.get(column).cloned()).collect();
        let (table, rows, columns) = (&to.table, &to.rows, column_list(&on_target));
        let failed = |error| failed_on(error, table);
        let make = format!("CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT {columns} FROM {rows} WITH NO DATA");
        target.batch_execute(&make).await.map_err(failed)?;
        let mut kept = 0;
        for chunk in chunks {
            let from = source.copy_out(chunk.keys_out(key, self.xids).as_str()).await.map_err(source_failed)?;
            let into = target.copy_in("COPY pg_temp.kept FROM STDIN (FORMAT text)").await.map_err(failed)?;
            kept += pump_rows(from, into).await?;
        }
        let is_same = |column: &String| format!("kept.{0} {1} target.{0}", quote_ident(column), to.equality(column));
        let same = on_target.iter().map(is_same).collect::<Vec<_>>().join(" AND ");
        let remove = format!(
            "ANALYZE pg_temp.kept; \
             DELETE FROM {rows} AS target WHERE {} AND NOT EXISTS (SELECT FROM pg_temp.kept WHERE {same}); \
             DROP TABLE pg_temp.kept",
            to.is_own()
        );
        target.batch_execute(&remove).await.map_err(failed)?;
        if wanted.plan.is_some() {
            // Rules may have left out some of them.
            return Ok(kept);
        }
        let count = format!("SELECT count(*) FROM {rows} WHERE {}", to.is_own());
        let left: i64 = target.query_one(&count, &[]).await.map_err(failed)?.try_get(0).map_err(failed)?;
        if left.cast_unsigned() != kept {
            tracing::warn!(%table, kept, left, "the target does not have all rows that an interrupted copy has brought");
            return Ok(0);
        }
        Ok(kept)
    }

    async fn note(
        &self,
        target: &Client,
        wanted: &Wanted,
        done: &[Done],
        (kept, source_bytes): (u64, u64),
        lsn: PgLsn,
    ) -> Result<(), Error> {
        let Wanted { table, columns, target: to, rules, .. } = wanted;
        let (name, [kept, source_bytes]) = (self.name, [kept, source_bytes].map(u64::cast_signed));
        let sql = format!(
            "UPDATE pgsluice.table_state SET state = 'datasync', snapshot_lsn = $4, columns = $5, rows = $6::bigint, \
                 bytes = CASE WHEN $6::bigint = 0 THEN 0 ELSE bytes END, source_bytes = $7, updated_at = now(), \
                 rules = $8, place = $9, appends = state = 'init' AND EXISTS (SELECT FROM {} WHERE {}) \
             WHERE name = $1 AND schema_name = $2 AND table_name = $3",
            to.rows,
            to.is_own()
        );
        target
            .execute(&sql, &[&name, &table.schema, &table.name, &lsn, columns, &kept, &source_bytes, rules, &to.place])
            .await
            .map_err(target_failed)?;
        identity::write(target, name, wanted.identity.iter().map(|identity| (table, &**identity))).await?;
        let (parts, blocks): (Vec<_>, Vec<_>) =
            done.iter().map(|done| (done.part.as_str(), done.first_block.cast_signed())).unzip();
        let sql = "DELETE FROM pgsluice.chunk_state WHERE name = $1 AND schema_name = $2 AND table_name = $3 \
                   AND (part, first_block) NOT IN (SELECT * FROM unnest($4::text[], $5::bigint[]))";
        target
            .execute(sql, &[&name, &table.schema, &table.name, &parts, &blocks])
            .await
            .map(drop)
            .map_err(target_failed)
    }
}
