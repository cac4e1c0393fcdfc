//! The logical slot as `pg_replication_slots` shows it.

use pgsluice_proto::Lsn;
use serde::Deserialize;
use tokio_postgres::Client;

use crate::config::Role;
use crate::error::{Error, Kind, Stage};

/// Columns differ between releases, so the row is read as a document, and what a release lacks is unknown.
#[derive(Clone, Debug, Deserialize)]
pub struct SlotState {
    pub slot_name: String,
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub active: bool,
    pub active_pid: Option<i32>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// From 17 on.
    pub invalidation_reason: Option<String>,
    /// 16 and later.
    pub conflicting: Option<bool>,
    /// A standby's copy of a slot of its primary; from 17 on.
    #[serde(default)]
    pub synced: Option<bool>,
    #[serde(deserialize_with = "lsn")]
    pub confirmed_flush_lsn: Option<Lsn>,
    #[serde(deserialize_with = "lsn")]
    pub restart_lsn: Option<Lsn>,
    /// Bytes of WAL that may still be written before the slot is lost; unknown without `max_slot_wal_keep_size`.
    pub safe_wal_size: Option<i64>,
}

/// A standby counts `safe_wal_size` from a position that it does not keep up. So there it is counted as the checkpointer does
/// (`KeepLogSeg` in `xlog.c`): the slot is lost when WAL reaches the segment that follows as many as may be kept.
const STANDBY_SQL: &str = "\
COALESCE((
    SELECT jsonb_build_object('safe_wal_size', (
        div(s.restart_lsn - '0/0', segment) + div(keep_mb * 1024 * 1024, segment) + 1
    ) * segment - (GREATEST(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'))
    FROM (SELECT max(setting::numeric) FILTER (WHERE name <> 'wal_segment_size') AS keep_mb,
                 max(setting::numeric) FILTER (WHERE name = 'wal_segment_size') AS segment
          FROM pg_settings WHERE name IN ('max_slot_wal_keep_size', 'wal_keep_size', 'wal_segment_size')) AS settings
    WHERE pg_is_in_recovery() AND s.safe_wal_size IS NOT NULL AND s.restart_lsn IS NOT NULL
), '{}')";

fn lsn<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Lsn>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}

impl SlotState {
    /// `None` where there is no such slot.
    pub async fn read(client: &Client, role: Role, slot: &str, stage: Stage) -> Result<Option<SlotState>, Error> {
        let failed = |error| Error::from_postgres(stage, role, error);
        let sql =
            format!("SELECT (to_jsonb(s) || {STANDBY_SQL})::text FROM pg_replication_slots s WHERE slot_name = $1");
        let Some(row) = client.query_opt(&sql, &[&slot]).await.map_err(failed)? else { return Ok(None) };
        let document: String = row.try_get(0).map_err(failed)?;
        serde_json::from_str(&document).map(Some).map_err(|error| {
            let what = format!("pg_replication_slots has a row that cannot be read: {error}");
            Error::new(stage, Kind::Protocol { role, what })
        })
    }

    /// Why the slot can never be used again, if so.
    pub fn invalidation(&self) -> Option<&str> {
        match (self.invalidation_reason.as_deref(), self.conflicting, self.wal_status.as_deref()) {
            (Some(reason), ..) => Some(reason),
            // 16 calls every loss a conflict, but only removed WAL leaves the slot without its start.
            (None, Some(true), _) if self.restart_lsn.is_none() => Some("wal_removed"),
            (None, Some(true), _) => Some("conflict with recovery"),
            (None, _, Some("lost")) => Some("wal_removed"),
            (None, ..) => None,
        }
    }

    /// # Errors
    /// A refusal if the slot cannot carry our stream: invalidated, of another database or another plugin.
    pub fn check(&self, database: &str, stage: Stage) -> Result<(), Error> {
        let name = &self.slot_name;
        if let Some(reason) = self.invalidation() {
            return Err(Error::refused(
                stage,
                format!("slot \"{name}\" on the source is invalidated ({reason}): changes since then are lost to it"),
                "the target is whole up to its progress but cannot go on; `pgsluice teardown`, `pgsluice setup`, and \
                 copy the tables again",
            ));
        }
        if self.plugin.as_deref() != Some("pgoutput") {
            let plugin = self.plugin.as_deref().unwrap_or("none: it is a physical slot");
            return Err(Error::refused(
                stage,
                format!("slot \"{name}\" on the source has the output plugin {plugin}, not pgoutput"),
                "another program's slot has our name; change `name` in the configuration",
            ));
        }
        if self.database.as_deref() != Some(database) {
            let other = self.database.as_deref().unwrap_or_default();
            return Err(Error::refused(
                stage,
                format!("slot \"{name}\" on the source is of database \"{other}\", not of \"{database}\""),
                "name that database in the source's dsn, or change `name` in the configuration",
            ));
        }
        Ok(())
    }
}
