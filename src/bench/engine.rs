//! The servers of the replication, and the engine as they see it: whether one is at work, and how far it is.

use std::time::{Duration, Instant};

use pgsluice_proto::Lsn;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::checkpoint;
use crate::config::{Config, Role};
use crate::error::{Error, Kind};
use crate::postgres;
use crate::preflight;
use crate::source::slot::SlotState;

use super::{Over, STAGE};

/// How often a condition on a server is looked at.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A session of the engine that is built anew has no slot for a moment.
const SLOT_WAIT_MAX: Duration = Duration::from_secs(3);
/// The session of a bench that was killed ends once A has noticed.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);

/// What the primary's log and statistics show of a pass.
const PASS_SQL: &str = "SELECT pg_logical_emit_message(true, 'pgsluice', 'bench')";

/// A session on each.
#[derive(Debug)]
pub(super) struct Servers {
    config: Config,
    pub primary: Client,
    pub source: Client,
    pub target: Client,
}

impl Servers {
    /// # Errors
    /// A refusal where there is no server to write on.
    pub async fn connect(config: &Config) -> Result<Servers, Error> {
        let primary = postgres::connect(config.publisher(), STAGE).await?;
        let source = postgres::connect(&config.source, STAGE).await?;
        let target = postgres::connect(&config.target, STAGE).await?;
        let progress = checkpoint::read(&target, config.name.as_str()).await?;
        preflight::check_target(config, (&source, &target), progress.as_ref(), STAGE).await?;
        let servers = Servers { config: config.clone(), primary, source, target };
        let is_standby = servers.primary.query_one("SELECT pg_is_in_recovery()", &[]).await;
        let is_standby = is_standby.and_then(|row| row.try_get::<_, bool>(0));
        if is_standby.map_err(|error| servers.primary_failed(error))? {
            let (what, mend) = match config.primary {
                None => {
                    ("bench writes rows on the primary, and there is no [primary]", "name the primary in [primary]")
                }
                Some(_) => ("[primary] names a server that is a standby itself", "name the server that takes writes"),
            };
            return Err(Error::refused(STAGE, what, mend));
        }
        // What is waited for is on A's disk then, whatever the role's default is.
        let settings = "SET synchronous_commit = 'local'";
        servers.primary.batch_execute(settings).await.map_err(|error| servers.primary_failed(error))?;
        Ok(servers)
    }

    pub fn primary_failed(&self, error: tokio_postgres::Error) -> Error {
        Error::from_postgres(STAGE, self.config.publisher().role, error)
    }

    /// # Errors
    /// A refusal where no engine reads from the slot.
    pub async fn check_at_work(&self, over: &Over) -> Result<(), Error> {
        let name = self.config.name.as_str();
        if checkpoint::read(&self.target, name).await?.is_none() {
            let what = format!("the target has no progress \"{name}\"");
            return Err(Error::refused(
                STAGE,
                what,
                "`pgsluice setup`, then `pgsluice run`, and bench once that streams",
            ));
        }
        let deadline = Instant::now() + SLOT_WAIT_MAX;
        loop {
            let slot = SlotState::read(&self.source, Role::Source, &self.config.slot(), STAGE).await?;
            if slot.is_some_and(|slot| slot.active) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let what = format!("no engine reads from slot \"{}\" on the source", self.config.slot());
                let mend = "bench measures an engine at work: start `pgsluice run` with this configuration, wait until \
                            `pgsluice status` says that it streams, and bench again beside it";
                return Err(Error::refused(STAGE, what, mend));
            }
            over.check()?;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Commits something on A, and waits until progress has passed it: all that was committed before is on the target.
    ///
    /// # Errors
    /// [`Kind::TimedOut`] after `limit`.
    pub async fn wait_passed(&self, limit: Duration, over: &Over) -> Result<(), Error> {
        self.primary.batch_execute(PASS_SQL).await.map_err(|error| self.primary_failed(error))?;
        let row = self.primary.query_one("SELECT pg_current_wal_lsn()", &[]).await;
        let position = row.and_then(|row| row.try_get::<_, PgLsn>(0)).map_err(|error| self.primary_failed(error))?;
        let position = Lsn::new(position.into());
        let (name, deadline) = (self.config.name.as_str(), Instant::now() + limit);
        let mut first = None;
        loop {
            let progress =
                checkpoint::read(&self.target, name).await?.map_or(Lsn::INVALID, |progress| progress.end_lsn);
            if progress >= position {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let moved = if *first.get_or_insert(progress) == progress { "stands still" } else { "moves, and is" };
                let what = format!(
                    "progress on the target {moved} at {progress}, and that it reaches {position} of the primary"
                );
                return Err(timed_out(what, limit));
            }
            first.get_or_insert(progress);
            over.check()?;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// What is due from the engine did not come.
pub(super) fn timed_out(what: String, limit: Duration) -> Error {
    let limit = humantime::format_duration(limit).to_string();
    let mend = "look at the log of `pgsluice run` and at `pgsluice status`; where it only has to catch up, wait for that, or give \
                a longer --timeout";
    Error::new(STAGE, Kind::TimedOut { what, limit, mend: mend.to_owned() })
}

/// An engine that does not get there is a refusal as long as nothing was made.
pub(super) fn not_at_work(error: Error) -> Error {
    match error.kind() {
        Kind::TimedOut { what, limit, mend } => {
            Error::refused(STAGE, format!("{what} did not happen within {limit}"), mend.clone())
        }
        _ => error,
    }
}

/// Held as long as the session lives.
///
/// # Errors
/// A refusal if another bench of this name is at work.
pub(super) async fn lock(config: &Config, over: &Over) -> Result<Client, Error> {
    let endpoint = config.publisher();
    let failed = |error| Error::from_postgres(STAGE, endpoint.role, error);
    let client = postgres::connect(endpoint, STAGE).await?;
    let deadline = Instant::now() + LOCK_WAIT_MAX;
    let sql = "SELECT pg_try_advisory_lock(hashtext('pgsluice bench'), hashtext($1))";
    while !client.query_one(sql, &[&config.name.as_str()]).await.and_then(|row| row.try_get(0)).map_err(failed)? {
        if Instant::now() >= deadline {
            let what = format!("another bench of \"{}\" is at work", config.name);
            return Err(Error::refused(STAGE, what, "wait for its end"));
        }
        over.check()?;
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(client)
}
