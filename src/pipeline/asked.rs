//! What is asked of the source before a stream of it begins, and on what terms it begins.
//!
//! In: the configuration, and a session. Out: what the source says of slot, publication and itself, where that will do; or a refusal
//! with its mend.

use std::time::Duration;

use pgsluice_proto::Lsn;
use pgsluice_proto::command::{ProtoVersion, StartLogical};
use tokio_postgres::Client;

use super::history::Whose;
use crate::config::{Config, Role};
use crate::error::{Error, Stage};
use crate::postgres;
use crate::shards;
use crate::source::publication::Publication;
use crate::source::server::Server;
use crate::source::slot::SlotState;
use crate::source::{Connection, ReplicationStream, StreamOptions};
use crate::spool::Spool;
use crate::transform::Mapping;

const STAGE: Stage = Stage::Source;
/// At least this many status updates fit into a `wal_sender_timeout`.
const UPDATES_PER_TIMEOUT: u32 = 4;

/// Whether transactions come before they have committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streaming {
    On,
    Off,
}

/// On what terms the source streams to us.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    /// Generated columns of the source are in the stream.
    pub source_generates: bool,
    pub proto_version: ProtoVersion,
    pub publication: String,
    pub binary: bool,
    pub options: StreamOptions,
}

impl Terms {
    /// Begins a stream of these terms.
    pub fn start(
        &self,
        connection: Connection,
        slot: &str,
        start_lsn: Lsn,
        streaming: Streaming,
    ) -> Result<ReplicationStream, Error> {
        let publications = &[self.publication.as_str()];
        let Terms { proto_version, binary, .. } = *self;
        let streaming = streaming == Streaming::On;
        connection.start(StartLogical { slot, start_lsn, proto_version, publications, binary, streaming }, self.options)
    }
}

/// Where the source of all changes is now: the primary if it is configured, else the server that decodes.
pub fn read_position(config: &Config) -> Result<Lsn, Error> {
    let endpoint = config.publisher();
    postgres::new_runtime(STAGE)?.block_on(async {
        let client = postgres::connect(endpoint, STAGE).await?;
        Ok(Server::inspect(&client, endpoint.role, STAGE).await?.position)
    })
}

/// How often the walsender hears of us: as configured, and well within its patience.
pub fn stream_options(config: &Config, server: &Server) -> StreamOptions {
    let patience = match server.wal_sender_timeout_ms {
        0 => Duration::MAX,
        milliseconds => Duration::from_millis(milliseconds),
    };
    StreamOptions { status_interval: config.stream.status_interval.min(patience / UPDATES_PER_TIMEOUT) }
}

/// # Errors
/// A refusal if there is no slot to go on from.
pub(super) async fn read_slot(
    config: &Config,
    whose: Whose,
    source: &Client,
    server: &Server,
) -> Result<SlotState, Error> {
    let name = config.slot();
    let Some(slot) = SlotState::read(source, Role::Source, &name, STAGE).await? else {
        return Err(Error::refused(
            STAGE,
            format!("slot \"{name}\" does not exist on the source, but {} has progress for it", whose.it()),
            "changes since then may be lost to a new slot; `pgsluice teardown`, `pgsluice setup`, and copy the tables \
             again",
        ));
    };
    slot.check(&server.database, STAGE)?;
    // It says the same for ever of a standby that was promoted since, and means nothing there.
    if server.in_recovery && slot.synced == Some(true) {
        return Err(Error::refused(
            STAGE,
            format!("slot \"{name}\" on the source is synchronized from its primary, and nobody can use it there"),
            "name the primary as [source]; or change `name`, and have `pgsluice setup` make a slot on the standby",
        ));
    }
    Ok(slot)
}

pub(super) async fn read_publication(config: &Config, source: &Client) -> Result<Publication, Error> {
    let name = config.publication();
    let publication = Publication::read(source, Role::Source, &name, STAGE).await?.ok_or_else(|| {
        Error::refused(
            STAGE,
            format!("publication \"{name}\" does not exist on the source"),
            "it was dropped after setup: `pgsluice teardown`, `pgsluice setup`, and copy the tables again",
        )
    })?;
    publication.check_operations(STAGE)?;
    // Other targets of a trail may want other tables.
    if !config.only_applies() {
        publication.check_selection(&config.tables, STAGE)?;
    }
    if config.stream.heartbeat.is_some() && !publication.has_heartbeat {
        tracing::warn!("heartbeats are not published, and do not come: run `pgsluice setup`, which adds them");
    }
    Ok(publication.without_identity_of_bench(&config.tables))
}

/// What of a publication is for this target, where others take from it too.
///
/// # Errors
/// A refusal if that is nothing.
pub(super) fn of_ours(config: &Config, mut publication: Publication) -> Result<Publication, Error> {
    if config.only_applies() {
        publication.tables.retain(|one| config.tables.selects(&one.table.schema, &one.table.name));
        if publication.tables.is_empty() {
            let what =
                format!("[tables] selects nothing of publication \"{}\", which the trail is of", publication.name);
            return Err(Error::refused(STAGE, what, "select some of its tables, or add tables to it on the primary"));
        }
    }
    Ok(publication)
}

/// # Errors
/// Where transactions in progress cannot be kept as the configuration says.
pub(super) fn check_spool(config: &Config) -> Result<(), Error> {
    if config.stream.streaming { Spool::check(&config.spool) } else { Ok(()) }
}

/// # Errors
/// A refusal if there is no server to write heartbeats on.
pub fn check_heartbeat(config: &Config, source: &Server, stage: Stage) -> Result<(), Error> {
    if config.stream.heartbeat.is_none() || config.primary.is_some() || !source.in_recovery {
        return Ok(());
    }
    let what = "heartbeat is set in [stream], and there is no [primary] to write it on";
    Err(Error::refused(stage, what, "name the primary in [primary], or leave heartbeat out"))
}

/// What the rules make of the tables as they are now.
pub(super) async fn mapping(config: &Config, source: &Client, publication: &Publication) -> Result<Mapping, Error> {
    let tables = shards::with_others(source, config, &publication.tables, STAGE).await?;
    shards::mapping(config, &tables, STAGE)
}
