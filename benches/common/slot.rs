//! Slots on B, and where B is.

use std::time::Duration;

use anyhow::Result;
use pgsluice_proto::Lsn;
use pgsluice_testkit::{Chain, Server, wait_for};

const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(200);
const FREE_DEADLINE: Duration = Duration::from_secs(10);

/// A slot on a standby starts once the primary has said which transactions run.
pub async fn create(chain: &Chain, database: &str, slot: &str) -> Result<()> {
    let create = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    let creating = chain.b.sql(database, &create);
    tokio::pin!(creating);
    loop {
        tokio::select! {
            created = &mut creating => return created,
            () = tokio::time::sleep(SNAPSHOT_INTERVAL) => chain.log_standby_snapshot().await?,
        }
    }
}

/// Waits until no walsender uses the slot.
pub async fn wait_free(b: &Server, slot: &str) -> Result<()> {
    let sql = format!("SELECT FROM pg_replication_slots WHERE slot_name = '{slot}' AND active");
    let free = || async { Ok(b.query_text("postgres", &sql).await?.is_empty().then_some(())) };
    wait_for(&format!("slot {slot} to be free"), FREE_DEADLINE, free).await
}

/// What B has replayed.
pub async fn position(b: &Server) -> Result<Lsn> {
    Ok(b.scalar("postgres", "SELECT pg_last_wal_replay_lsn()").await?.parse()?)
}
