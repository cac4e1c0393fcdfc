//! The slot of the replication: made and dropped.

use std::time::{Duration, Instant};

use pgsluice_proto::TimelineId;
use pgsluice_proto::command::SlotSnapshot;

use super::{STAGE, Servers, on_replication_connection};
use crate::config::Config;
use crate::error::Error;
use crate::source::CreatedSlot;
use crate::source::new_slot::{self, Helpers, NewSlot};

pub(super) async fn create(
    config: &Config,
    servers: &Servers,
    deadline: Instant,
    limit: Duration,
) -> Result<(CreatedSlot, TimelineId), Error> {
    let name = config.slot();
    let new = NewSlot {
        endpoint: &config.source,
        name: &name,
        temporary: false,
        snapshot: SlotSnapshot::Nothing,
        stage: STAGE,
    };
    let publisher = servers.publisher.as_ref().map(|(client, facts)| (client, facts.role));
    let helpers = Helpers { source: &servers.source, server: &servers.source_facts, publisher };
    let (_connection, slot, identity) = new_slot::create(new, helpers, deadline, limit).await?;
    Ok((slot, identity.timeline))
}

pub(super) async fn remove(config: &Config) -> Result<(), Error> {
    let name = config.slot();
    on_replication_connection(config, move |connection| connection.drop_slot(&name)).await
}
