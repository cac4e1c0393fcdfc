//! Progress: the row on the target that says how much of the source is there.
//!
//! In: the target's SQL session. Out: the position to go on from, and a fence around it.
//!
//! **Always holds:**
//! - The target owns progress; the slot's `confirmed_flush_lsn` is only a hint, and may even go back when the standby
//!   crashes.
//! - `end_lsn` moves in the transaction that holds the data it speaks of, never back, and only from where the engine that
//!   moves it has left it: what is there already is never applied again, nor is anything left out before it.
//! - Whoever starts raises `epoch`; whoever applies, or comes back after a failure, does so only under its own epoch. A transaction whose outcome is in
//!   doubt still holds the lock on its progress row, so the fence of the next start waits until the outcome is known.

mod position;
mod schema;
mod trails;

use std::time::SystemTime;

use futures_util::future::try_join3;
use pgsluice_proto::{Lsn, PgTimestamp, TimelineId};
use tokio_postgres::types::{PgLsn, ToSql};
use tokio_postgres::{Client, Row, Statement};

pub use self::position::Position;
use self::schema::missing;
pub use self::schema::{SCHEMA_SQL, TABLES, complete, create_schema};
pub use self::trails::{forget_trail, known_trail, record_trail};
use crate::batch::Skipped;
use crate::config::Role;
use crate::error::{Error, Kind, Stage};

/// Where a replication stands, as its row on the target says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub system_identifier: String,
    pub timeline: TimelineId,
    pub slot: String,
    /// Where the slot was made; its `confirmed_flush_lsn` was never lower.
    pub consistent_point: Lsn,
    /// Every source transaction whose commit record ends at or before this is on the target, no other is.
    pub end_lsn: Lsn,
    /// Of the last transaction applied; `None` before the first.
    pub commit_time: Option<SystemTime>,
    pub epoch: i64,
    /// Batches that were applied in order because they did not pass as sets.
    pub fallbacks: i64,
}

const COLUMNS: &str = "system_identifier, timeline, slot, consistent_point, end_lsn, commit_time, epoch, fallbacks";

impl Progress {
    fn from_row(row: &Row) -> Result<Progress, tokio_postgres::Error> {
        let lsn = |column| row.try_get::<_, PgLsn>(column).map(|lsn| Lsn::new(lsn.into()));
        Ok(Progress {
            system_identifier: row.try_get(0)?,
            // Timelines are below 2³¹ for as long as anybody has seen.
            timeline: TimelineId(row.try_get::<_, i32>(1)?.cast_unsigned()),
            slot: row.try_get(2)?,
            consistent_point: lsn(3)?,
            end_lsn: lsn(4)?,
            commit_time: row.try_get(5)?,
            epoch: row.try_get(6)?,
            fallbacks: row.try_get(7)?,
        })
    }
}

/// Reads the row; `None` where there is none, or no table to hold it.
pub async fn read(client: &Client, name: &str) -> Result<Option<Progress>, Error> {
    let exists = client.query_one("SELECT to_regclass('pgsluice.progress') IS NOT NULL", &[]).await.map_err(failed)?;
    if !exists.try_get::<_, bool>(0).map_err(failed)? {
        return Ok(None);
    }
    let sql = format!("SELECT {COLUMNS} FROM pgsluice.progress WHERE name = $1");
    let row = client.query_opt(&sql, &[&name]).await.map_err(failed)?;
    row.map(|row| Progress::from_row(&row).map_err(failed)).transpose()
}

/// Makes the row of a new slot, from whose consistent point on everything is in the stream.
pub async fn create(client: &Client, name: &str, progress: &Progress) -> Result<(), Error> {
    let sql = "INSERT INTO pgsluice.progress (name, system_identifier, timeline, slot, consistent_point, end_lsn) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    let timeline = progress.timeline.0.cast_signed();
    let consistent_point = PgLsn::from(progress.consistent_point.as_u64());
    let end_lsn = PgLsn::from(progress.end_lsn.as_u64());
    let inserted = client
        .execute(sql, &[&name, &progress.system_identifier, &timeline, &progress.slot, &consistent_point, &end_lsn])
        .await
        .map_err(failed)?;
    debug_assert_eq!(inserted, 1);
    Ok(())
}

/// What is left of the schema once a replication is removed from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remains {
    /// The schema is removed as well.
    Nothing,
    /// There is none, or others have something in it.
    InUse,
    /// Nobody needs it any more, and the role may not drop it. With the statements for whoever may.
    Foreign(String),
}

/// Removes the row and all that belongs to it, and the schema where no other row is left and the role owns it. Returns whether there
/// was such a row.
///
/// # Errors
/// A refusal if indexes or foreign keys were dropped for a copy and are not there again.
pub async fn remove(client: &Client, name: &str) -> Result<(bool, Remains), Error> {
    let exists = client.query_one("SELECT to_regclass('pgsluice.progress') IS NOT NULL", &[]).await.map_err(failed)?;
    if !exists.try_get::<_, bool>(0).map_err(failed)? {
        return Ok((false, Remains::InUse));
    }
    // Whoever still writes under an epoch ends first, and nobody begins.
    client.batch_execute("BEGIN; LOCK TABLE pgsluice.progress IN ACCESS EXCLUSIVE MODE").await.map_err(failed)?;
    if client
        .query_opt("SELECT FROM pgsluice.deferred WHERE name = $1 LIMIT 1", &[&name])
        .await
        .map_err(failed)?
        .is_some()
    {
        client.batch_execute("ROLLBACK").await.map_err(failed)?;
        let what = "the target lacks indexes or foreign keys that a copy has just dropped";
        return Err(Error::refused(Stage::Checkpoint, what, "run `pgsluice teardown` again, which names them"));
    }
    let mut removed = false;
    let missing = missing(client).await?;
    let present: Vec<_> = TABLES.into_iter().filter(|table| !missing.contains(table)).map(|(table, _)| table).collect();
    for table in &present {
        let sql = format!("DELETE FROM pgsluice.{table} WHERE name = $1");
        let rows = client.execute(&sql, &[&name]).await.map_err(failed)?;
        removed |= *table == "progress" && rows > 0;
    }
    let remains = drop_unused(client, &present).await?;
    client.batch_execute("COMMIT").await.map_err(failed)?;
    Ok((removed, remains))
}

/// Drops the tables where no replication has a row in them, and then the schema where nothing else is in it.
async fn drop_unused(client: &Client, present: &[&str]) -> Result<Remains, Error> {
    if client.query_opt("SELECT FROM pgsluice.progress LIMIT 1", &[]).await.map_err(failed)?.is_some() {
        return Ok(Remains::InUse);
    }
    let tables: Vec<_> = present.iter().map(|table| format!("pgsluice.{table}")).collect();
    let drop_tables = format!("DROP TABLE {}", tables.join(", "));
    // A primary of another replication has its heartbeats there, and a bench its table.
    let sql = "SELECT (SELECT bool_and(pg_has_role(c.relowner, 'USAGE')) FROM pg_class c \
                       WHERE c.relnamespace = n.oid AND c.relname = ANY ($1)), \
                   pg_has_role(n.nspowner, 'USAGE'), \
                   NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c') \
                               AND c.relname <> ALL ($1)) \
               FROM pg_namespace n WHERE n.nspname = 'pgsluice'";
    let row = client.query_one(sql, &[&present]).await.map_err(failed)?;
    let (tables_are_ours, schema_is_ours): (Option<bool>, bool) =
        (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
    let has_nothing_else: bool = row.try_get(2).map_err(failed)?;
    // The owner of a schema may drop whatever is in it.
    if !schema_is_ours && tables_are_ours != Some(true) {
        let drop_schema = if has_nothing_else { "; DROP SCHEMA pgsluice" } else { "" };
        return Ok(Remains::Foreign(format!("{drop_tables}{drop_schema}")));
    }
    client.batch_execute(&drop_tables).await.map_err(failed)?;
    match (has_nothing_else, schema_is_ours) {
        (false, _) => Ok(Remains::InUse),
        (true, false) => Ok(Remains::Foreign("DROP SCHEMA pgsluice".to_owned())),
        (true, true) => {
            client.batch_execute("DROP SCHEMA pgsluice").await.map_err(failed)?;
            Ok(Remains::Nothing)
        }
    }
}

/// Takes over: raises the epoch, so that no other engine commits from here on, and returns where to go on.
///
/// `held` is the epoch of the session before, of an engine that builds its session anew: it goes on only if nobody has
/// taken over meanwhile. An epoch below it is that of a target which has failed over to a replica that had less, and has lost
/// our fence: nobody else can have taken over there. Waits for a transaction of another engine that holds the row, whichever way it ends.
///
/// # Errors
/// [`Kind::Fenced`] if the epoch is no longer the one that was held.
pub async fn fence(
    client: &Client,
    name: &str,
    timeline: TimelineId,
    held: Option<i64>,
) -> Result<Option<Progress>, Error> {
    let sql = format!(
        "UPDATE pgsluice.progress SET epoch = GREATEST(epoch, $3) + 1, timeline = $2, updated_at = now() \
         WHERE name = $1 AND epoch <= COALESCE($3, epoch) RETURNING {COLUMNS}"
    );
    let row = client.query_opt(&sql, &[&name, &timeline.0.cast_signed(), &held]).await.map_err(failed)?;
    if let Some(row) = row {
        let raised = Progress::from_row(&row).map_err(failed)?;
        // Jobs of a copy, and batches beside others, hold the row beside the update. From here on none begins, and those at work
        // end before we do. Meanwhile somebody else may have taken over in turn, and moved progress.
        let wait = format!("SELECT {COLUMNS} FROM pgsluice.progress WHERE name = $1 AND epoch = $2 FOR UPDATE");
        return match client.query_opt(&wait, &[&name, &raised.epoch]).await.map_err(failed)? {
            Some(row) => Progress::from_row(&row).map(Some).map_err(failed),
            None => Err(fenced(client, name, raised.epoch).await),
        };
    }
    match (held, read(client, name).await?) {
        (Some(mine), Some(Progress { epoch: theirs, .. })) => Err(other_epoch(mine, theirs)),
        (None, _) | (_, None) => Ok(None),
    }
}

/// Progress goes on along another timeline of the same server. False where the row is held for long, or by another engine.
pub async fn follow_timeline(client: &Client, name: &str, epoch: i64, timeline: TimelineId) -> Result<bool, Error> {
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    client.batch_execute("BEGIN; SET LOCAL lock_timeout = '1s'").await.map_err(failed)?;
    let sql = "UPDATE pgsluice.progress SET timeline = $3 WHERE name = $1 AND epoch = $2";
    let followed = match client.execute(sql, &[&name, &epoch, &timeline.0.cast_signed()]).await {
        Ok(rows) => rows == 1,
        Err(error) if error.code().is_some_and(|code| code.code() == LOCK_NOT_AVAILABLE) => false,
        Err(error) => return Err(failed(error)),
    };
    client.batch_execute(if followed { "COMMIT" } else { "ROLLBACK" }).await.map_err(failed)?;
    Ok(followed)
}

/// Holds the epoch, beside other transactions of the same engine, until the end of the one that is open on `client`. Progress
/// can move meanwhile.
///
/// # Errors
/// [`Kind::Fenced`] if another engine has taken over; the transaction must not commit then.
pub async fn check_epoch(client: &Client, name: &str, epoch: i64) -> Result<(), Error> {
    let sql = "SELECT FROM pgsluice.progress WHERE name = $1 AND epoch = $2 FOR KEY SHARE";
    let held = client.execute(sql, &[&name, &epoch]).await.map_err(failed)?;
    if held == 1 { Ok(()) } else { Err(fenced(client, name, epoch).await) }
}

/// Why the row under our epoch is not there.
async fn fenced(client: &Client, name: &str, epoch: i64) -> Error {
    match read_after_miss(client, name).await {
        Ok(Some(progress)) if progress.epoch == epoch => Error::new(Stage::Checkpoint, Kind::SkipsChanged),
        Ok(Some(progress)) => other_epoch(epoch, progress.epoch),
        Ok(None) => Error::refused(
            Stage::Checkpoint,
            format!("the progress row \"{name}\" on the target is gone"),
            "find out who removed it; `pgsluice teardown` and `pgsluice setup` start from nothing",
        ),
        Err(error) => error,
    }
}

/// Reads the row where a transaction has not found it as it must be, and so will not commit. What was sent behind it may have failed
/// meanwhile, on rows that another engine has applied already, and then the transaction answers nothing any more.
async fn read_after_miss(client: &Client, name: &str) -> Result<Option<Progress>, Error> {
    match read(client, name).await {
        Err(error) if error.is_consequence() => {
            client.batch_execute("ROLLBACK").await.map_err(failed)?;
            read(client, name).await
        }
        result => result,
    }
}

/// The row is under an epoch that is not the one we hold: a higher one is another engine's, and a lower one can only be that of
/// a target which has lost our fence.
fn other_epoch(mine: i64, theirs: i64) -> Error {
    let kind = if theirs > mine { Kind::Fenced { mine, theirs } } else { Kind::TargetWentBack };
    Error::new(Stage::Checkpoint, kind)
}

/// Progress to `$3` passes no transaction that is still to be passed over.
const NOTHING_TO_SKIP: &str = "NOT EXISTS (SELECT FROM pgsluice.skips s \
                               WHERE s.name = $1 AND s.done_at IS NULL AND s.commit_lsn < $3)";

/// Under our epoch, and from where we have left it.
const ADVANCE_PROGRESS: &str = "UPDATE pgsluice.progress SET end_lsn = $3, commit_time = COALESCE($4, commit_time), \
                                fallbacks = fallbacks + $5, updated_at = now() \
                                WHERE name = $1 AND epoch = $2 AND end_lsn = $6";

/// The same of tables. One that is to be copied again meanwhile is nowhere.
const ADVANCE_TABLES: &str = "\
    WITH held AS (SELECT FROM pgsluice.progress WHERE name = $1 AND epoch = $2 FOR KEY SHARE), \
         moved AS (UPDATE pgsluice.table_state SET snapshot_lsn = $3, updated_at = now() \
                   WHERE name = $1 AND EXISTS (SELECT FROM held) AND snapshot_lsn = $6 \
                   AND (schema_name, table_name) IN (SELECT * FROM unnest($4::text[], $5::text[]))) \
    SELECT FROM held WHERE NOT EXISTS (SELECT FROM pgsluice.table_state \
                                       WHERE name = $1 AND snapshot_lsn <> $6 \
                                       AND (schema_name, table_name) IN (SELECT * FROM unnest($4::text[], $5::text[])))";

/// What a commit moves.
#[derive(Clone, Copy, Debug)]
pub enum Moves<'a> {
    /// Progress: the stream of all tables.
    Progress,
    /// Up to where these tables, by schema and name, are on the target, while progress is somewhere else.
    Tables(&'a [(String, String)]),
}

/// What a session of an engine writes under: whose progress, by which right, what it moves, and from where.
#[derive(Clone, Debug)]
pub struct Tenure<'a> {
    pub name: &'a str,
    pub epoch: i64,
    pub moves: Moves<'a>,
    pub position: Position,
}

/// The statements with which one engine moves what it has to move, under its epoch.
#[derive(Debug)]
pub struct Checkpoint {
    name: String,
    epoch: i64,
    position: Position,
    advance: Advance,
    check: Statement,
    hold: Statement,
    hold_beside: Statement,
}

#[derive(Debug)]
enum Advance {
    Progress(Statement),
    Tables { statement: Statement, schemas: Vec<String>, names: Vec<String> },
}

impl Checkpoint {
    pub async fn prepare(client: &Client, tenure: Tenure<'_>) -> Result<Checkpoint, Error> {
        let Tenure { name, epoch, moves, position } = tenure;
        let (advance, lock) = match moves {
            Moves::Progress => {
                let guarded = match missing(client).await?.iter().any(|(table, _)| *table == "skips") {
                    true => ADVANCE_PROGRESS.to_owned(),
                    false => format!("{ADVANCE_PROGRESS} AND {NOTHING_TO_SKIP}"),
                };
                (Advance::Progress(client.prepare(&guarded).await.map_err(failed)?), "NO KEY UPDATE")
            }
            Moves::Tables(moved) => {
                let (schemas, names) = moved.iter().cloned().unzip();
                let statement = client.prepare(ADVANCE_TABLES).await.map_err(failed)?;
                (Advance::Tables { statement, schemas, names }, "KEY SHARE")
            }
        };
        let ours = "SELECT FROM pgsluice.progress WHERE name = $1 AND epoch = $2";
        let (hold, beside) = (format!("{ours} FOR {lock}"), format!("{ours} FOR KEY SHARE"));
        let (check, hold, hold_beside) =
            try_join3(client.prepare(ours), client.prepare(&hold), client.prepare(&beside)).await.map_err(failed)?;
        Ok(Checkpoint { name: name.to_owned(), epoch, position, advance, check, hold, hold_beside })
    }

    /// Moves progress to `end_lsn`, in the transaction that is open on `client`, from where the transaction before it has left
    /// it. Progress takes along the time of the last commit, and counts `fallbacks` more.
    ///
    /// # Errors
    /// [`Kind::Fenced`] if another engine has taken over, [`Kind::ProgressElsewhere`] if progress is not where it was left,
    /// [`Kind::SkipsChanged`] if a transaction before `end_lsn` is to be passed over; the transaction must not commit then.
    pub async fn advance(
        &self,
        client: &Client,
        end_lsn: Lsn,
        commit_time: Option<PgTimestamp>,
        fallbacks: i64,
    ) -> Result<(), Error> {
        let expected = self.position.end_lsn();
        if end_lsn <= expected {
            // It was applied already.
            return Err(elsewhere(end_lsn, expected));
        }
        self.write(client, end_lsn, commit_time, fallbacks).await
    }

    /// Writes where progress stands, in the transaction that is open on `client`.
    ///
    /// # Errors
    /// As [`Checkpoint::advance`].
    pub async fn touch(&self, client: &Client) -> Result<(), Error> {
        self.write(client, self.position.end_lsn(), None, 0).await
    }

    /// The transaction that has moved progress to `end_lsn` has committed.
    pub fn moved_to(&self, end_lsn: Lsn) {
        self.position.moved_to(end_lsn);
    }

    async fn write(
        &self,
        client: &Client,
        end_lsn: Lsn,
        commit_time: Option<PgTimestamp>,
        fallbacks: i64,
    ) -> Result<(), Error> {
        let (name, epoch, end_lsn) = (&self.name, &self.epoch, PgLsn::from(end_lsn.as_u64()));
        let expected = PgLsn::from(self.position.end_lsn().as_u64());
        let moved = match &self.advance {
            Advance::Progress(statement) => {
                let commit_time = commit_time.and_then(PgTimestamp::to_system_time);
                client.execute(statement, &[name, epoch, &end_lsn, &commit_time, &fallbacks, &expected]).await
            }
            Advance::Tables { statement, schemas, names } => {
                client.execute(statement, &[name, epoch, &end_lsn, schemas, names, &expected]).await
            }
        };
        if moved.map_err(failed)? == 1 { Ok(()) } else { Err(self.missed(client).await) }
    }

    /// Why nothing was moved.
    async fn missed(&self, client: &Client) -> Error {
        let expected = self.position.end_lsn();
        let found = match (&self.advance, read_after_miss(client, &self.name).await) {
            (_, Err(error)) => return error,
            (Advance::Progress(_), Ok(Some(progress))) if progress.epoch == self.epoch => Ok(Some(progress.end_lsn)),
            (Advance::Tables { schemas, names, .. }, Ok(Some(progress))) if progress.epoch == self.epoch => {
                self.find_tables(client, schemas, names).await
            }
            (_, Ok(_)) => return fenced(client, &self.name, self.epoch).await,
        };
        match found {
            Ok(Some(found)) if found != expected => elsewhere(expected, found),
            Ok(_) => fenced(client, &self.name, self.epoch).await,
            Err(error) => failed(error),
        }
    }

    /// Where one of the tables is that is not where it was left.
    async fn find_tables(
        &self,
        client: &Client,
        schemas: &[String],
        names: &[String],
    ) -> Result<Option<Lsn>, tokio_postgres::Error> {
        let sql = "SELECT max(snapshot_lsn) FROM pgsluice.table_state WHERE name = $1 AND snapshot_lsn <> $2 \
                   AND (schema_name, table_name) IN (SELECT * FROM unnest($3::text[], $4::text[]))";
        let expected = PgLsn::from(self.position.end_lsn().as_u64());
        let row = client.query_one(sql, &[&self.name, &expected, &schemas, &names]).await?;
        Ok(row.try_get::<_, Option<PgLsn>>(0)?.map(|lsn| Lsn::new(lsn.into())))
    }

    /// Records that a transaction is passed over, in the transaction of the target that moves progress past it.
    ///
    /// # Errors
    /// [`Kind::SkipsChanged`] if that is not asked for any more.
    pub async fn finish_skip(&self, client: &Client, skipped: &Skipped) -> Result<(), Error> {
        let sql = "UPDATE pgsluice.skips SET done_at = now(), xid = $3, commit_time = $4, changes = $5 \
                   WHERE name = $1 AND commit_lsn = $2 AND done_at IS NULL";
        let Skipped { transaction, changes } = skipped;
        let commit_lsn = PgLsn::from(transaction.commit_lsn.as_u64());
        let commit_time = transaction.commit_time.to_system_time();
        let (xid, changes) = (i64::from(transaction.xid.0), changes.cast_signed());
        let parameters: [&(dyn ToSql + Sync); 5] = [&self.name, &commit_lsn, &xid, &commit_time, &changes];
        let finished = client.execute(sql, &parameters).await.map_err(failed)?;
        if finished == 1 { Ok(()) } else { Err(Error::new(Stage::Checkpoint, Kind::SkipsChanged)) }
    }

    /// Looks whether another engine has taken over, without a transaction.
    ///
    /// # Errors
    /// [`Kind::Fenced`], as [`Checkpoint::advance`].
    pub async fn check(&self, client: &Client) -> Result<(), Error> {
        self.hold_by(client, &self.check).await
    }

    /// Holds the row against other engines until the end of the transaction that is open on `client`.
    ///
    /// # Errors
    /// [`Kind::Fenced`], as [`Checkpoint::advance`].
    pub async fn hold(&self, client: &Client) -> Result<(), Error> {
        self.hold_by(client, &self.hold).await
    }

    /// The same, beside other transactions of the same engine: progress can move meanwhile.
    ///
    /// # Errors
    /// [`Kind::Fenced`], as [`Checkpoint::advance`].
    pub async fn hold_beside(&self, client: &Client) -> Result<(), Error> {
        self.hold_by(client, &self.hold_beside).await
    }

    async fn hold_by(&self, client: &Client, statement: &Statement) -> Result<(), Error> {
        let held = client.execute(statement, &[&self.name, &self.epoch]).await.map_err(failed)?;
        if held == 1 { Ok(()) } else { Err(fenced(client, &self.name, self.epoch).await) }
    }
}

fn elsewhere(expected: Lsn, found: Lsn) -> Error {
    Error::new(Stage::Checkpoint, Kind::ProgressElsewhere { expected, found })
}

fn failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(Stage::Checkpoint, Role::Target, error)
}
