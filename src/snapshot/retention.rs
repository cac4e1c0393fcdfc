//! How much WAL is kept for us while tables are copied, and what would end that.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio_postgres::Client;

use super::{STAGE, source_failed};
use crate::config::{Config, Role};
use crate::error::Error;
use crate::postgres;
use crate::source::server::Server;
use crate::source::slot::SlotState;

const INTERVAL: Duration = Duration::from_secs(10);
/// Less than this part of what a slot may keep is left when it is time to warn.
const SCARCE: u64 = 4;

/// Which settings of the source could end the replication's own slot, as long as it is idle.
pub(super) async fn warn_of_limits(source: &Client) -> Result<(), Error> {
    let sql = "SELECT name, current_setting(name) FROM pg_settings WHERE setting NOT IN ('-1', '0') \
               AND name IN ('max_slot_wal_keep_size', 'idle_replication_slot_timeout')";
    for row in source.query(sql, &[]).await.map_err(source_failed)? {
        let [name, setting]: [String; 2] =
            [row.try_get(0).map_err(source_failed)?, row.try_get(1).map_err(source_failed)?];
        if name == "max_slot_wal_keep_size" {
            tracing::warn!(
                "the source keeps {setting} of WAL at most: if more is written while tables are copied, the \
                 slot is lost; `pgsluice status` shows what is left, and {name} = -1 keeps all"
            );
        } else {
            tracing::warn!(
                "the source gives up slots that are idle for {setting}, as ours is while tables are copied: \
                 set {name} = 0 there if the copy takes longer"
            );
        }
    }
    Ok(())
}

/// Says at intervals what is kept, until `copying` is disconnected.
///
/// # Errors
/// Whatever a server says. The copy does not depend on it.
pub(super) fn watch(config: &Config, snapshot_slot: &str, copying: &Receiver<()>) -> Result<(), Error> {
    let mut servers = None;
    let runtime = postgres::new_runtime(STAGE)?;
    while copying.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let servers = match &mut servers {
            Some(servers) => servers,
            // A short copy never asks.
            none => none.insert(runtime.block_on(Servers::connect(config))?),
        };
        runtime.block_on(servers.look(&config.slot(), snapshot_slot))?;
    }
    Ok(())
}

struct Servers {
    source: Client,
    primary: Option<Client>,
}

/// A slot, and the WAL that it keeps.
struct Kept {
    slot: SlotState,
    bytes: u64,
}

impl Servers {
    async fn connect(config: &Config) -> Result<Servers, Error> {
        let source = postgres::connect(&config.source, STAGE).await?;
        let primary = match &config.primary {
            Some(endpoint) => Some(postgres::connect(endpoint, STAGE).await?),
            None => None,
        };
        Ok(Servers { source, primary })
    }

    async fn look(&self, own: &str, snapshot_slot: &str) -> Result<(), Error> {
        let mut all = Vec::new();
        for slot in [own, snapshot_slot] {
            all.extend(kept(&self.source, Role::Source, slot).await?);
        }
        if let (Some(primary), Some(slot)) = (&self.primary, self.receiver_slot().await?) {
            all.extend(kept(primary, Role::Primary, &slot).await?);
        }
        for Kept { slot, bytes } in &all {
            let Some(left) = slot.safe_wal_size.map(|left| left.max(0).unsigned_abs()) else { continue };
            if left < (left + bytes) / SCARCE {
                tracing::warn!(
                    slot = slot.slot_name,
                    retained_bytes = bytes,
                    "the slot is lost after {left} more bytes of WAL: max_slot_wal_keep_size = -1 on its server keeps all"
                );
            }
        }
        let list: Vec<_> = all.iter().map(|kept| format!("{}: {} bytes", kept.slot.slot_name, kept.bytes)).collect();
        tracing::info!(slots = list.join(", "), "WAL is retained while tables are copied");
        Ok(())
    }

    /// The slot on the primary that the source receives from, where our role may see it.
    async fn receiver_slot(&self) -> Result<Option<String>, Error> {
        let sql = "SELECT slot_name::text FROM pg_stat_wal_receiver";
        let row = self.source.query_opt(sql, &[]).await.map_err(source_failed)?;
        row.map_or(Ok(None), |row| row.try_get(0).map_err(source_failed))
    }
}

async fn kept(client: &Client, role: Role, slot: &str) -> Result<Option<Kept>, Error> {
    let position = Server::inspect(client, role, STAGE).await?.position;
    let slot = SlotState::read(client, role, slot, STAGE).await?;
    Ok(slot.and_then(|slot| slot.restart_lsn.map(|lsn| Kept { bytes: position.bytes_since(lsn), slot })))
}
