//! What kind of server the source is, and whether it can be decoded from.

use pgsluice_proto::Lsn;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::config::Role;
use crate::error::{Error, Stage};

/// Decoding on a standby begins with this release.
const STANDBY_MAJOR_MIN: u32 = 16;
/// The output plugin speaks binary and streaming from this release on.
const PRIMARY_MAJOR_MIN: u32 = 14;

/// Of each major release, the least minor one without known faults of this kind, as of August 2026.
const MINORS_MIN: [(u32, u32); 3] = [(16, 15), (17, 11), (18, 6)];

/// Facts about a server that do not change while a session lasts, but for its position and a promotion.
#[derive(Clone, Debug)]
pub struct Server {
    pub role: Role,
    /// As `server_version_num`: major × 10000 + minor.
    pub version: u32,
    pub in_recovery: bool,
    pub wal_level: String,
    pub hot_standby_feedback: bool,
    /// The physical slot through which a standby receives; empty for none.
    pub primary_slot_name: String,
    /// In milliseconds; 0 for never.
    pub wal_sender_timeout_ms: u64,
    pub system_identifier: String,
    pub database: String,
    /// Replayed on a standby, written on a primary.
    pub position: Lsn,
}

impl Server {
    pub async fn inspect(client: &Client, role: Role, stage: Stage) -> Result<Server, Error> {
        let sql = "SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), \
                   current_setting('wal_level'), current_setting('hot_standby_feedback')::bool, \
                   current_setting('primary_slot_name'), \
                   (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_sender_timeout'), \
                   (SELECT system_identifier::text FROM pg_control_system()), current_database()::text, \
                   CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END";
        let failed = |error| Error::from_postgres(stage, role, error);
        let row = client.query_one(sql, &[]).await.map_err(failed)?;
        Ok(Server {
            role,
            version: row.try_get::<_, i32>(0).map_err(failed)?.unsigned_abs(),
            in_recovery: row.try_get(1).map_err(failed)?,
            wal_level: row.try_get(2).map_err(failed)?,
            hot_standby_feedback: row.try_get(3).map_err(failed)?,
            primary_slot_name: row.try_get(4).map_err(failed)?,
            wal_sender_timeout_ms: row.try_get::<_, i64>(5).map_err(failed)?.unsigned_abs(),
            system_identifier: row.try_get(6).map_err(failed)?,
            database: row.try_get(7).map_err(failed)?,
            position: Lsn::new(row.try_get::<_, Option<PgLsn>>(8).map_err(failed)?.map_or(0, u64::from)),
        })
    }

    pub fn major(&self) -> u32 {
        self.version / 10_000
    }

    /// # Errors
    /// A refusal that names the setting or version that keeps this server from being decoded.
    pub fn check_decodable(&self, stage: Stage) -> Result<(), Error> {
        let major = self.major();
        if self.in_recovery && major < STANDBY_MAJOR_MIN {
            return Err(Error::refused(
                stage,
                format!(
                    "the source is a standby of PostgreSQL {major}, and decoding on a standby needs {STANDBY_MAJOR_MIN}"
                ),
                format!("upgrade to {STANDBY_MAJOR_MIN} or later, or name the primary as [source]"),
            ));
        }
        if major < PRIMARY_MAJOR_MIN {
            return Err(Error::refused(
                stage,
                format!("the source is PostgreSQL {major}, and the oldest that is supported is {PRIMARY_MAJOR_MIN}"),
                format!("upgrade to {PRIMARY_MAJOR_MIN} or later"),
            ));
        }
        self.check_wal_level(stage)?;
        if self.in_recovery && !self.hot_standby_feedback {
            return Err(Error::refused(
                stage,
                "hot_standby_feedback is off on the source, so the primary removes rows that decoding needs, and the \
                 slot becomes invalid",
                "on the standby: ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf();",
            ));
        }
        Ok(())
    }

    /// # Errors
    /// A refusal if the server writes or accepts no logical WAL.
    pub fn check_wal_level(&self, stage: Stage) -> Result<(), Error> {
        if self.wal_level == "logical" {
            return Ok(());
        }
        let (role, level) = (self.role, &self.wal_level);
        Err(Error::refused(
            stage,
            format!("wal_level is {level} on the {role}, and logical decoding needs logical"),
            format!("on the {role}: ALTER SYSTEM SET wal_level = 'logical'; then restart it (primary first)"),
        ))
    }

    /// What works but should not be left so.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.in_recovery && self.primary_slot_name.is_empty() {
            warnings.push(
                "the standby has no primary_slot_name: while it is disconnected the primary can remove rows and WAL \
                 that decoding needs; make a physical slot on the primary and set primary_slot_name"
                    .to_owned(),
            );
        }
        warnings.extend(outdated(self.role, self.version));
        warnings
    }
}

/// What to say of a server whose minor release has known faults that lose rows, or break decoding on a standby ("Release Notes").
/// `version` is its `server_version_num`.
pub fn outdated(role: Role, version: u32) -> Option<String> {
    let (major, minor) = (version / 10_000, version % 10_000);
    let (_, least) = MINORS_MIN.into_iter().find(|(of, _)| *of == major)?;
    (minor < least).then(|| {
        format!(
            "the {role} is PostgreSQL {major}.{minor}, which has known faults that can lose rows or invalidate slots: update it to \
             {major}.{least} or later"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minor_releases_below_the_least_are_named() {
        for (major, minor) in MINORS_MIN {
            assert_eq!(outdated(Role::Target, major * 10_000 + minor), None);
            let said = outdated(Role::Target, major * 10_000 + minor - 1).unwrap();
            assert!(
                said.contains(&format!("{major}.{}", minor - 1)) && said.contains(&format!("{major}.{minor} or later"))
            );
        }
        assert_eq!(outdated(Role::Source, 150_000), None);
        assert_eq!(outdated(Role::Source, 190_000), None);
    }
}
