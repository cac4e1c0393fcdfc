//! Sees that the source goes on along another timeline under our stream, and has progress say so.
//!
//! Progress holds the timeline that it is of. After a promotion a server that has what the target has, and one that lacks
//! it, look alike; that the very walsender of our stream has lived through it tells them apart. A standby takes another
//! timeline too, when the server that it follows is promoted: it cannot where that one lacks what it has replayed.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use pgsluice_proto::TimelineId;
use tokio_postgres::Client;

use crate::checkpoint::{self, Progress};
use crate::config::{Config, Role};
use crate::error::{Error, Stage};
use crate::postgres;

const STAGE: Stage = Stage::Source;
const INTERVAL: Duration = Duration::from_secs(1);

/// The walsender of our slot, the server that it belongs to, and the timeline that this server writes or follows, as far as
/// that can be asked: of a standby the control file may be late, and the receiver's word wants `pg_monitor`.
const LOOK_SQL: &str = "\
SELECT s.active_pid, pg_postmaster_start_time()::text,
    CASE WHEN pg_is_in_recovery()
        THEN GREATEST((SELECT received_tli FROM pg_stat_wal_receiver), (SELECT timeline_id FROM pg_control_checkpoint()))
        ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END
FROM pg_replication_slots s WHERE s.slot_name = $1 AND s.active_pid IS NOT NULL";

#[derive(Debug)]
pub(super) struct Promotion {
    config: Config,
    epoch: i64,
    timeline: TimelineId,
    walsender: Option<Walsender>,
}

#[derive(Debug, PartialEq, Eq)]
struct Walsender {
    pid: i32,
    server_started: String,
}

impl Promotion {
    /// `progress` is as the stream has begun.
    pub fn new(config: Config, progress: &Progress) -> Promotion {
        Promotion { config, epoch: progress.epoch, timeline: progress.timeline, walsender: None }
    }

    /// Looks until the session ends. A server that cannot be asked is asked again: the stream does not depend on it.
    pub fn watch(mut self, session: &Receiver<()>) -> Result<(), Error> {
        let runtime = postgres::new_runtime(STAGE)?;
        let mut servers = None;
        loop {
            if let Err(error) = runtime.block_on(self.look(&mut servers)) {
                tracing::debug!(%error, "whether the source was promoted is not known");
                servers = None;
            }
            if session.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
                return Ok(());
            }
        }
    }

    async fn look(&mut self, servers: &mut Option<(Client, Client)>) -> Result<(), Error> {
        if servers.is_none() {
            let source = postgres::connect(&self.config.source, STAGE).await?;
            *servers = Some((source, postgres::connect(&self.config.target, STAGE).await?));
        }
        let Some((source, target)) = servers else { return Ok(()) };
        let failed = |error| Error::from_postgres(STAGE, Role::Source, error);
        let slot = self.config.name.slot();
        let Some(row) = source.query_opt(LOOK_SQL, &[&slot]).await.map_err(failed)? else { return Ok(()) };
        let (pid, server_started) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        let found = Walsender { pid, server_started };
        let timeline: Option<i32> = row.try_get(2).map_err(failed)?;
        let timeline = timeline.map(|timeline| TimelineId(timeline.cast_unsigned()));
        match (&self.walsender, timeline.filter(|timeline| *timeline > self.timeline)) {
            (None, None) => self.walsender = Some(found),
            (Some(known), Some(timeline)) if *known == found => {
                if checkpoint::follow_timeline(target, self.config.name.as_str(), self.epoch, timeline).await? {
                    tracing::info!(%timeline, "the source was promoted, and the stream goes on");
                    self.timeline = timeline;
                }
            }
            // Nothing new, or a server of which it is not known whether it is the one that we stream from.
            (Some(_), _) | (None, Some(_)) => {}
        }
        Ok(())
    }
}
