//! Which commits of the target are on its disk.
//!
//! With `synchronous_commit = off` a COMMIT returns before its record is flushed, and a crash of the target can lose it.
//! The source must not forget a transaction before that is over. So from time to time the target is asked where its WAL
//! ends and how far it is flushed; a commit counts once the flushed position has passed where WAL ended after it.
//!
//! ```text
//!  COMMIT ──► unasked ──asked──► waiting: (end of the target's WAL, end_lsn) ──flushed LSN passes──► durable end_lsn
//! ```
//!
//! **Always holds:** what is durable here survives a crash of the target. With synchronous commits that is every commit.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pgsluice_proto::Lsn;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Statement};

use super::failed;
use crate::error::Error;

/// Where WAL ends, and how far it is flushed ("WAL Functions").
const POSITIONS_SQL: &str = "SELECT pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()";

/// Between two questions, as long as commits follow each other. The WAL writer flushes less often.
const ASK_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Durability {
    /// `None` where every commit is flushed before it returns.
    positions: Option<Statement>,
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

impl Durability {
    /// Switches `client` to asynchronous commits if `asynchronous` asks for it and the target can say what is flushed.
    pub async fn new(client: &Client, asynchronous: bool) -> Result<Durability, Error> {
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
        Ok(Durability { positions, asked_at: None, unasked: None, waiting: VecDeque::new(), durable: None })
    }

    /// All before this is committed and flushed; `None` before the first such commit.
    pub fn durable(&self) -> Option<Lsn> {
        self.durable
    }

    /// Something is committed and not known to be flushed.
    pub fn is_waiting(&self) -> bool {
        self.waiting_for().is_some()
    }

    /// Progress has been committed up to `end_lsn`, in a transaction that was begun about `now`.
    pub async fn committed(&mut self, client: &Client, end_lsn: Lsn, now: Instant) -> Result<(), Error> {
        if self.positions.is_none() {
            self.durable = Some(end_lsn);
            return Ok(());
        }
        self.unasked = Some(end_lsn);
        if self.asked_at.is_none_or(|asked_at| now - asked_at >= ASK_INTERVAL) {
            self.look(client, now).await?;
        }
        Ok(())
    }

    /// Asks what is flushed, unless nothing waits for it.
    pub async fn look(&mut self, client: &Client, now: Instant) -> Result<(), Error> {
        let (Some(statement), true) = (&self.positions, self.is_waiting()) else { return Ok(()) };
        let (target_lsn, flushed) = positions(client, statement).await?;
        self.asked_at = Some(now);
        self.waiting.extend(self.unasked.take().map(|end_lsn| Waiting { target_lsn, end_lsn }));
        self.flushed(flushed);
        Ok(())
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

async fn positions(client: &Client, statement: &Statement) -> Result<(Lsn, Lsn), Error> {
    let row = client.query_one(statement, &[]).await.map_err(failed)?;
    let lsn = |column| row.try_get::<_, PgLsn>(column).map(|lsn| Lsn::new(lsn.into())).map_err(failed);
    Ok((lsn(0)?, lsn(1)?))
}
