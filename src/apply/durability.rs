//! Which commits of the target are on its disk.
//!
//! With `synchronous_commit = off` a COMMIT returns before its record is flushed, and a crash of the target can lose it.
//! The source must not forget a transaction before that is over. So from time to time the target is asked where its WAL
//! ends and how far it is flushed; a commit counts once the flushed position has passed where WAL ended after it.
//!
//! Where the target has synchronous standbys, and its commits wait for them, a commit counts once they have it too: a failover must not
//! lose what the source has forgotten. Which of them have what, only a role with further rights may see. So from time to time one commit
//! is made that waits as the target's commits do (a seal): all WAL before it is with the standbys then.
//!
//! ```text
//!  COMMIT ──► unasked ──asked──► waiting: (end of the target's WAL, end_lsn) ──flushed LSN passes──► durable end_lsn
//! ```
//!
//! With synchronous commits each of them is a seal, unless its wait was cancelled, of which the target only warns.
//!
//! **Always holds:** what is durable here survives a crash of the target, and its failover to a synchronous standby.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pgsluice_proto::Lsn;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Statement};

use super::failed;
use crate::error::Error;
use crate::postgres::{Warnings, quote_literal};

/// Where WAL ends, how far it is flushed ("WAL Functions"), and whether standbys have to confirm it.
const POSITIONS_SQL: &str = "SELECT pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn(), \
                             COALESCE(current_setting('synchronous_standby_names', true), '') <> ''";
/// What a session's commits wait for, before it is changed here.
const LEVEL_SQL: &str = "SELECT current_setting('synchronous_commit')";
/// Commits of this level do not wait for standbys.
const LOCAL: &str = "local";

/// Between two questions, as long as commits follow each other. The WAL writer flushes less often.
const ASK_INTERVAL: Duration = Duration::from_millis(10);
/// Between two seals, as long as commits follow each other. A seal takes a round trip to the standbys.
const SEAL_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Durability {
    /// `None` where every commit is flushed before it returns.
    positions: Option<Statement>,
    /// The `synchronous_commit` of a seal: that of the server, or of the role.
    level: String,
    warnings: Warnings,
    /// As many had come before the commit that is judged.
    heard: u64,
    sealed_at: Option<Instant>,
    asked_at: Option<Instant>,
    /// The end of what is committed since.
    unasked: Option<Lsn>,
    waiting: VecDeque<Waiting>,
    durable: Option<Lsn>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    target_lsn: Lsn,
    end_lsn: Lsn,
}

/// What the target's answer has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// Nothing waits for it.
    NotAsked,
    /// What is flushed is durable.
    Told,
    /// Only a seal can tell.
    NeedsSeal,
}

impl Durability {
    /// Switches `client` to asynchronous commits if `asynchronous` asks for it and the target can say what is flushed.
    pub async fn new(client: &Client, warnings: Warnings, asynchronous: bool) -> Result<Durability, Error> {
        let level = client.query_one(LEVEL_SQL, &[]).await.and_then(|row| row.try_get(0)).map_err(failed)?;
        let mut positions = None;
        if asynchronous {
            match client.prepare(POSITIONS_SQL).await {
                Ok(statement) => {
                    client.batch_execute("SET synchronous_commit = off").await.map_err(failed)?;
                    positions = Some(statement);
                }
                // A target that is no plain PostgreSQL: commits stay as they are.
                Err(error) if error.as_db_error().is_some() => {
                    tracing::info!("the target does not say what is flushed; it commits synchronously");
                }
                Err(error) => return Err(failed(error)),
            }
        }
        let heard = warnings.count();
        Ok(Durability {
            positions,
            level,
            warnings,
            heard,
            sealed_at: None,
            asked_at: None,
            unasked: None,
            waiting: VecDeque::new(),
            durable: None,
        })
    }

    /// All before this is committed and flushed; `None` before the first such commit.
    pub fn durable(&self) -> Option<Lsn> {
        self.durable
    }

    /// Something is committed and not known to be flushed.
    pub fn is_waiting(&self) -> bool {
        self.waiting_for().is_some()
    }

    /// Progress has been committed up to `end_lsn`. True if it is time to look whether that is durable.
    pub fn committed(&mut self, end_lsn: Lsn, now: Instant) -> bool {
        self.unasked = Some(end_lsn);
        if self.positions.is_none() {
            // Each commit is a seal.
            self.sealed();
            return self.is_waiting();
        }
        self.asked_at.is_none_or(|asked_at| now - asked_at >= ASK_INTERVAL)
    }

    /// Progress is at `end_lsn` by a commit of another session, whose warnings nobody has heard here.
    pub fn committed_elsewhere(&mut self, end_lsn: Lsn) {
        self.unasked = Some(end_lsn);
    }

    /// Asks what is flushed, unless nothing waits for it.
    pub async fn look(&mut self, client: &Client, now: Instant) -> Result<Looked, Error> {
        if !self.is_waiting() {
            return Ok(Looked::NotAsked);
        }
        let Some(statement) = &self.positions else { return Ok(Looked::NeedsSeal) };
        let Positions { target_lsn, flushed, has_standbys } = Positions::ask(client, statement).await?;
        self.asked_at = Some(now);
        if has_standbys && self.level != LOCAL {
            return Ok(Looked::NeedsSeal);
        }
        self.waiting.extend(self.unasked.take().map(|end_lsn| Waiting { target_lsn, end_lsn }));
        self.flushed(flushed);
        Ok(Looked::Told)
    }

    /// It is time for a seal.
    pub fn is_seal_due(&self, now: Instant) -> bool {
        self.sealed_at.is_none_or(|sealed_at| now - sealed_at >= SEAL_INTERVAL)
    }

    /// How the transaction of a seal begins.
    pub fn begin_seal(&mut self, now: Instant) -> String {
        self.sealed_at = Some(now);
        self.heard = self.warnings.count();
        format!("BEGIN READ WRITE; SET LOCAL synchronous_commit = {}", quote_literal(&self.level))
    }

    /// A commit of the target's own level has returned: what was committed before it is durable, unless its wait was cancelled.
    pub fn sealed(&mut self) {
        let heard = std::mem::replace(&mut self.heard, self.warnings.count());
        if heard == self.heard {
            self.durable = self.waiting_for().max(self.durable);
            self.waiting.clear();
            self.unasked = None;
        }
    }

    /// The last of what waits to be flushed.
    pub fn waiting_for(&self) -> Option<Lsn> {
        self.unasked.or_else(|| self.waiting.back().map(|last| last.end_lsn))
    }

    fn flushed(&mut self, flushed: Lsn) {
        while let Some(first) = self.waiting.front().filter(|first| first.target_lsn <= flushed) {
            self.durable = self.durable.max(Some(first.end_lsn));
            self.waiting.pop_front();
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Positions {
    target_lsn: Lsn,
    flushed: Lsn,
    has_standbys: bool,
}

impl Positions {
    async fn ask(client: &Client, statement: &Statement) -> Result<Positions, Error> {
        let row = client.query_one(statement, &[]).await.map_err(failed)?;
        let lsn = |column| row.try_get::<_, PgLsn>(column).map(|lsn| Lsn::new(lsn.into())).map_err(failed);
        let has_standbys = row.try_get(2).map_err(failed)?;
        Ok(Positions { target_lsn: lsn(0)?, flushed: lsn(1)?, has_standbys })
    }
}
