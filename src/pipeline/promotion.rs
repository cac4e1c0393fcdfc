//! Sees that the source is promoted under our stream, and has progress say so.
//!
//! Progress holds the timeline that it is of. After a promotion a server that has what the target has, and one that lacks
//! it, look alike; that the very walsender of our stream has lived through it tells them apart.

use pgsluice_proto::TimelineId;
use tokio_postgres::Client;

use crate::checkpoint;
use crate::config::{Config, Role};
use crate::error::{Error, Stage};

/// The walsender of our slot, the server that it belongs to, and the timeline that this server writes, if it does.
const LOOK_SQL: &str = "\
SELECT s.active_pid, pg_postmaster_start_time()::text,
    CASE WHEN NOT pg_is_in_recovery() THEN ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END
FROM pg_replication_slots s WHERE s.slot_name = $1 AND s.active_pid IS NOT NULL";

#[derive(Debug)]
pub(super) struct Promotion {
    name: String,
    slot: String,
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
    /// `timeline` is the one on which the stream began.
    pub fn new(config: &Config, epoch: i64, timeline: TimelineId) -> Promotion {
        Promotion { name: config.name.to_string(), slot: config.name.slot(), epoch, timeline, walsender: None }
    }

    pub async fn look(&mut self, source: &Client, target: &Client) -> Result<(), Error> {
        let failed = |error| Error::from_postgres(Stage::Source, Role::Source, error);
        let Some(row) = source.query_opt(LOOK_SQL, &[&self.slot]).await.map_err(failed)? else { return Ok(()) };
        let (pid, server_started) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        let found = Walsender { pid, server_started };
        let written: Option<i32> = row.try_get(2).map_err(failed)?;
        let written = written.map(|timeline| TimelineId(timeline.cast_unsigned()));
        let is_new = |timeline: &TimelineId| *timeline != self.timeline;
        match (&self.walsender, written.filter(is_new)) {
            (None, None) => self.walsender = Some(found),
            (Some(known), Some(timeline)) if *known == found => {
                if checkpoint::follow_timeline(target, &self.name, self.epoch, timeline).await? {
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
