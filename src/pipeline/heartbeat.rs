//! Writes a row on the primary now and then, so that a transaction of a known moment is always on its way.
//!
//! Without it, the time of the last transaction on the target says nothing of lag where nothing is written. The stream
//! does not depend on it: what keeps it from beating is said, and it is tried again.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio_postgres::Client;

use crate::config::Config;
use crate::error::{Error, Kind, Stage};
use crate::postgres;

const STAGE: Stage = Stage::Source;
const BEAT_SQL: &str = "INSERT INTO pgsluice.heartbeat (name, beat_at) VALUES ($1, clock_timestamp()) \
                        ON CONFLICT (name) DO UPDATE SET beat_at = EXCLUDED.beat_at";
const UNDEFINED_TABLE: &str = "42P01";

/// Beats until the session ends.
pub(super) fn run(config: &Config, interval: Duration, session: &Receiver<()>) -> Result<(), Error> {
    let runtime = postgres::new_runtime(STAGE)?;
    let (mut client, mut is_failing) = (None, false);
    loop {
        match runtime.block_on(beat(config, &mut client)) {
            Ok(()) => is_failing = false,
            Err(error) => {
                client = None;
                if !is_failing {
                    tracing::warn!(%error, "no heartbeat can be written; the stream goes on without");
                }
                is_failing = true;
            }
        }
        if session.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
    }
}

async fn beat(config: &Config, client: &mut Option<Client>) -> Result<(), Error> {
    let endpoint = config.publisher();
    let connected = match client.take() {
        Some(connected) => connected,
        None => postgres::connect(endpoint, STAGE).await?,
    };
    let beaten = connected.execute(BEAT_SQL, &[&config.name.as_str()]).await;
    beaten.map_err(|error| match Kind::from_postgres(endpoint.role, error) {
        Kind::Server { error, .. } if error.code == UNDEFINED_TABLE => {
            let what = format!("the {} has no table pgsluice.heartbeat", endpoint.role);
            Error::refused(STAGE, what, "`pgsluice setup` makes it, and publishes it")
        }
        kind => Error::new(STAGE, kind),
    })?;
    *client = Some(connected);
    Ok(())
}
