//! Makes again what is on record.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::{Deferred, DeferredKind, Due};
use crate::checkpoint;
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::postgres;
use crate::snapshot::state::failed_on;
use crate::snapshot::{STAGE, run_jobs, target_failed};
use crate::source::publication::TableName;

const OVER_LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// What all that is built has in common.
#[derive(Clone, Copy, Debug)]
pub(in crate::snapshot) struct Building<'a> {
    pub config: &'a Config,
    pub epoch: i64,
    /// Counts what is there again.
    pub done: &'a AtomicUsize,
    /// Once true, nothing else is begun.
    pub over: &'a AtomicBool,
}

/// Makes again all that can be by now, and counts in `done`.
///
/// # Errors
/// [`Kind::Deferred`] for what the target's rows do not allow: it stays on record.
pub fn restore(config: &Config, epoch: i64, done: &AtomicUsize) -> Result<(), Error> {
    let runtime = postgres::new_runtime(STAGE)?;
    let building = Building { config, epoch, done, over: &AtomicBool::new(false) };
    let tables = building.rebuild_indexes(|one| one.due == Due::Now)?;
    runtime.block_on(analyze(config, &tables))?;
    let foreign_keys = runtime.block_on(async {
        let session = Session::open(config, epoch).await?;
        let is_due = |one: &Deferred| one.kind == DeferredKind::ForeignKey && one.due == Due::Now;
        let due = read(&session.target, config, is_due).await?;
        // One after the other: those of a cycle lock each other's tables.
        for one in &due {
            session.add(one).await.map_err(|error| not_restored(one, error))?;
        }
        Ok(due)
    })?;
    building.run(foreign_keys, async |session, one| session.validate(one).await)
}

async fn read(target: &Client, config: &Config, is_due: impl Fn(&Deferred) -> bool) -> Result<Vec<Deferred>, Error> {
    let mut due = super::read(target, config.name.as_str()).await?;
    due.retain(is_due);
    Ok(due)
}

/// Expressions of indexes have statistics of their own.
async fn analyze(config: &Config, tables: &[TableName]) -> Result<(), Error> {
    let target = postgres::connect(&config.target, STAGE).await?;
    for table in tables {
        target.batch_execute(&format!("ANALYZE {table}")).await.map_err(|error| failed_on(error, table))?;
    }
    Ok(())
}

impl Building<'_> {
    /// Makes those indexes and constraints again that are due, and returns their tables.
    ///
    /// # Errors
    /// As [`restore`].
    pub fn rebuild_indexes(self, is_due: impl Fn(&Deferred) -> bool) -> Result<Vec<TableName>, Error> {
        let due = postgres::new_runtime(STAGE)?.block_on(async {
            let target = postgres::connect(&self.config.target, STAGE).await?;
            read(&target, self.config, |one| one.kind != DeferredKind::ForeignKey && is_due(one)).await
        })?;
        let mut tables: Vec<_> = due.iter().map(|one| one.table.clone()).collect();
        tables.dedup();
        if !due.is_empty() {
            tracing::info!(indexes = due.len(), "indexes are made again");
        }
        self.run(due, async |session, one| session.build(one).await)?;
        Ok(tables)
    }

    /// Has so many sessions as are configured make one after the other, until none is left or it is over.
    fn run(
        self,
        objects: Vec<Deferred>,
        make: impl AsyncFn(&Session, &Deferred) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let jobs = self.config.snapshot.jobs.min(objects.len());
        let waiting = Mutex::new(VecDeque::from(objects));
        let take = || waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop_front();
        run_jobs(jobs, self.over, async || {
            let session = Session::open(self.config, self.epoch).await?;
            while let (false, Some(one)) = (self.over.load(Ordering::Acquire), take()) {
                let started_at = Instant::now();
                tokio::select! {
                    made = make(&session, &one) => made.map_err(|error| not_restored(&one, error))?,
                    // The target gives it up when the session is gone.
                    () = until_over(self.over) => return Ok(()),
                }
                self.done.fetch_add(1, Ordering::Relaxed);
                let (kind, seconds) = (one.kind.as_str(), started_at.elapsed().as_secs());
                tracing::info!(table = %one.table, object = one.object_name, seconds, "the {kind} is there again");
            }
            Ok(())
        })
    }
}

/// A build takes long, and whoever comes next waits for it.
async fn until_over(over: &AtomicBool) {
    while !over.load(Ordering::Acquire) {
        tokio::time::sleep(OVER_LOOK_INTERVAL).await;
    }
}

/// A session on the target that builds, with the target's own settings.
struct Session<'a> {
    name: &'a str,
    epoch: i64,
    target: Client,
}

impl Session<'_> {
    async fn open(config: &Config, epoch: i64) -> Result<Session<'_>, Error> {
        let target = postgres::connect(&config.target, STAGE).await?;
        target.batch_execute(postgres::NOTICE_LOST_CLIENT).await.map_err(target_failed)?;
        Ok(Session { name: config.name.as_str(), epoch, target })
    }

    /// Makes an index or a constraint, and forgets it.
    async fn build(&self, one: &Deferred) -> Result<(), Error> {
        self.begin().await?;
        if !self.is_there(one).await? {
            self.execute("SET LOCAL default_tablespace = ''").await?;
            self.execute(&one.sql()).await?;
        }
        self.forget_and_commit(one).await
    }

    /// Makes a foreign key, without looking at the rows that are there where that can be done later: it locks the tables
    /// at both ends.
    async fn add(&self, one: &Deferred) -> Result<(), Error> {
        self.begin().await?;
        if !self.is_there(one).await? {
            let unchecked = if one.is_checked_later { " NOT VALID" } else { "" };
            self.execute(&format!("{}{unchecked}", one.definition)).await?;
            self.execute(&one.attributes).await?;
        }
        self.execute("COMMIT").await
    }

    /// Has the rows checked by a foreign key that is there, and forgets it.
    async fn validate(&self, one: &Deferred) -> Result<(), Error> {
        self.begin().await?;
        if one.is_checked_later {
            let constraint = postgres::quote_ident(&one.object_name);
            self.execute(&format!("ALTER TABLE {} VALIDATE CONSTRAINT {constraint}", one.relation)).await?;
        }
        self.forget_and_commit(one).await
    }

    async fn begin(&self) -> Result<(), Error> {
        self.execute("BEGIN").await?;
        checkpoint::check_epoch(&self.target, self.name, self.epoch).await
    }

    /// Somebody has made it meanwhile.
    async fn is_there(&self, one: &Deferred) -> Result<bool, Error> {
        let sql = match one.kind {
            DeferredKind::Index => {
                "SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
                 WHERE i.indrelid = to_regclass($1) AND c.relname = $2 AND i.indisvalid"
            }
            DeferredKind::Constraint | DeferredKind::ForeignKey => {
                "SELECT FROM pg_constraint WHERE conrelid = to_regclass($1) AND conname = $2"
            }
        };
        let found = self.target.query_opt(sql, &[&one.relation, &one.object_name]).await.map_err(target_failed)?;
        Ok(found.is_some())
    }

    async fn forget_and_commit(&self, one: &Deferred) -> Result<(), Error> {
        let sql = "DELETE FROM pgsluice.deferred WHERE name = $1 AND relation = $2 AND kind = $3 AND object_name = $4";
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&self.name, &one.relation, &one.kind.as_str(), &one.object_name];
        self.target.execute(sql, &parameters).await.map_err(target_failed)?;
        self.execute("COMMIT").await
    }

    async fn execute(&self, sql: &str) -> Result<(), Error> {
        self.target.batch_execute(sql).await.map_err(target_failed)
    }
}

fn not_restored(one: &Deferred, error: Error) -> Error {
    let object = format!("{} \"{}\"", one.kind.as_str(), one.object_name);
    Error::new(STAGE, Kind::Deferred { object, last: error }).on(one.relation.clone())
}
