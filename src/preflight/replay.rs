//! Waits until the source shows what the primary has now.
//!
//! A standby shows the past. A table that was made on the primary a moment ago is not there yet, and a command that looks at the
//! standby alone would leave it out and be content.

use std::time::{Duration, Instant};

use pgsluice_proto::Lsn;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::config::{Config, Role};
use crate::error::{Error, Kind, Stage};
use crate::postgres;

/// How often the position of replay is read.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Waits until the source has replayed all that the primary has now; without `[primary]` it says what the source shows instead.
///
/// # Errors
/// As [`wait_for_replay`].
pub async fn wait_for_sight(config: &Config, source: &Client, limit: Duration, stage: Stage) -> Result<(), Error> {
    let Some(endpoint) = &config.primary else {
        if let Some((position, committed_at)) = Replay::read(source, stage).await?.shown {
            let committed_at = committed_at.unwrap_or_else(|| "an unknown time".to_owned());
            tracing::info!(
                "the source is a standby and shows what its primary had at {position}, with transactions up to {committed_at}; \
                 there is no [primary] to wait for"
            );
        }
        return Ok(());
    };
    let primary = postgres::connect(endpoint, stage).await?;
    let written = position(&primary, endpoint.role, stage).await?;
    wait_for_replay(config, source, written, (Instant::now() + limit, limit), stage).await
}

/// The end of what a primary has written or is about to write: of a commit that has not waited for its disk too. On a standby
/// the position of replay.
pub async fn position(client: &Client, role: Role, stage: Stage) -> Result<Lsn, Error> {
    // Where the next record begins. At the top of a page that is behind the page's header, of 24 or 40 bytes, which replay does
    // not come to before there is such a record.
    let sql = "SELECT CASE WHEN (at - '0/0'::pg_lsn) % block_size <= 40 THEN at - (at - '0/0'::pg_lsn) % block_size ELSE at END \
               FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END, \
                   current_setting('wal_block_size')::numeric) p (at, block_size)";
    let failed = |error| Error::from_postgres(stage, role, error);
    let row = client.query_one(sql, &[]).await.map_err(failed)?;
    let at: Option<PgLsn> = row.try_get(0).map_err(failed)?;
    Ok(at.map_or(Lsn::INVALID, |at| Lsn::new(at.into())))
}

/// How far a server has replayed.
struct Replay {
    /// With the commit time of the last transaction. `None` on a primary, which replays nothing.
    shown: Option<(Lsn, Option<String>)>,
    is_paused: bool,
}

impl Replay {
    async fn read(source: &Client, stage: Stage) -> Result<Replay, Error> {
        let failed = |error| Error::from_postgres(stage, Role::Source, error);
        let sql = "SELECT r, CASE WHEN r THEN pg_last_wal_replay_lsn() END, pg_last_xact_replay_timestamp()::text, \
                       CASE WHEN r THEN pg_is_wal_replay_paused() ELSE false END FROM pg_is_in_recovery() r";
        let row = source.query_one(sql, &[]).await.map_err(failed)?;
        let in_recovery: bool = row.try_get(0).map_err(failed)?;
        let at: Option<PgLsn> = row.try_get(1).map_err(failed)?;
        let at = at.map_or(Lsn::INVALID, |at| Lsn::new(at.into()));
        let committed_at = row.try_get(2).map_err(failed)?;
        Ok(Replay { shown: in_recovery.then_some((at, committed_at)), is_paused: row.try_get(3).map_err(failed)? })
    }
}

/// Waits until the source has replayed what the primary wrote before `lsn`.
///
/// # Errors
/// [`Kind::TimedOut`] at the deadline, which ends the limit that is named then.
pub async fn wait_for_replay(
    config: &Config,
    source: &Client,
    lsn: Lsn,
    (deadline, limit): (Instant, Duration),
    stage: Stage,
) -> Result<(), Error> {
    loop {
        let Replay { shown, is_paused } = Replay::read(source, stage).await?;
        let position = match shown {
            Some((position, _)) if position < lsn => position,
            Some(_) | None => return Ok(()),
        };
        if Instant::now() >= deadline {
            let what =
                format!("replay of {lsn} by the source ({}), which stands at {position},", config.source.address());
            let mend = if is_paused {
                "replay is paused there; as an administrator of the standby: SELECT pg_wal_replay_resume()"
            } else {
                "look at pg_stat_wal_receiver on the standby: is it connected to the primary that [primary] names? A query or \
                 recovery_min_apply_delay may hold replay up too; a longer --timeout waits for it"
            };
            let limit = humantime::format_duration(limit).to_string();
            return Err(Error::new(stage, Kind::TimedOut { what, limit, mend: mend.to_owned() }));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
