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
use crate::trail;

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

/// Of a walsender that lives.
#[derive(Debug, PartialEq, Eq)]
struct Walsender {
    pid: i32,
    server_started: String,
}

/// The source, asked again and again on what timeline it is.
#[derive(Debug)]
pub(super) struct Watched {
    config: Config,
    walsender: Option<Walsender>,
    source: Option<Client>,
}

impl Watched {
    pub fn new(config: Config) -> Watched {
        Watched { config, walsender: None, source: None }
    }

    /// A timeline beyond `ours`, if the walsender of our stream has come to it.
    pub async fn look(&mut self, ours: TimelineId) -> Result<Option<TimelineId>, Error> {
        let looked = self.ask(ours).await;
        if looked.is_err() {
            self.source = None;
        }
        looked
    }

    async fn ask(&mut self, ours: TimelineId) -> Result<Option<TimelineId>, Error> {
        if self.source.is_none() {
            self.source = Some(postgres::connect(&self.config.source, STAGE).await?);
        }
        let Some(source) = &self.source else { return Ok(None) };
        let failed = |error| Error::from_postgres(STAGE, Role::Source, error);
        let slot = self.config.slot();
        let Some(row) = source.query_opt(LOOK_SQL, &[&slot]).await.map_err(failed)? else { return Ok(None) };
        let (pid, server_started) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        let found = Walsender { pid, server_started };
        let timeline: Option<i32> = row.try_get(2).map_err(failed)?;
        let timeline = timeline.map(|timeline| TimelineId(timeline.cast_unsigned()));
        match (&self.walsender, timeline.filter(|timeline| *timeline > ours)) {
            (None, None) => self.walsender = Some(found),
            (Some(known), Some(timeline)) if *known == found => return Ok(Some(timeline)),
            // Nothing new, or a server of which it is not known whether it is the one that we stream from.
            (Some(_), _) | (None, Some(_)) => {}
        }
        Ok(None)
    }
}

#[derive(Debug)]
pub(super) struct Promotion {
    config: Config,
    epoch: i64,
    timeline: TimelineId,
    source: Watched,
}

impl Promotion {
    /// `progress` is as the stream has begun.
    pub fn new(config: Config, progress: &Progress) -> Promotion {
        let source = Watched::new(config.clone());
        Promotion { config, epoch: progress.epoch, timeline: progress.timeline, source }
    }

    /// Looks until the session ends. A server that cannot be asked is asked again: the stream does not depend on it.
    pub fn watch(mut self, session: &Receiver<()>) -> Result<(), Error> {
        let runtime = postgres::new_runtime(STAGE)?;
        let mut target = None;
        loop {
            if let Err(error) = runtime.block_on(self.look(&mut target)) {
                tracing::debug!(%error, "whether the source was promoted is not known");
                target = None;
            }
            if session.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
                return Ok(());
            }
        }
    }

    async fn look(&mut self, target: &mut Option<Client>) -> Result<(), Error> {
        if target.is_none() {
            *target = Some(postgres::connect(&self.config.target, STAGE).await?);
        }
        let Some(target) = target else { return Ok(()) };
        let found = match &self.config.trail {
            None => self.source.look(self.timeline).await?,
            // Whoever writes it has seen the walsender live through it.
            Some(trail) => trail::read(trail)?.map(|known| known.timeline).filter(|timeline| *timeline > self.timeline),
        };
        let Some(timeline) = found else { return Ok(()) };
        if checkpoint::follow_timeline(target, self.config.name.as_str(), self.epoch, timeline).await? {
            tracing::info!(%timeline, "the source was promoted, and the stream goes on");
            self.timeline = timeline;
        }
        Ok(())
    }
}
