//! Which trail a target reads from: what tells a disk that is not mounted, or another one in its place, from a trail that is to begin.
//!
//! A target that an earlier version has set up has no table for it, and gets one where the role may make it; where it may not, nothing is
//! compared.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::failed;
use super::schema::TRAILS_SQL;
use crate::error::Error;

/// The identifier of the trail that this replication has read from; `None` where it has had none.
pub async fn known_trail(client: &Client, name: &str) -> Result<Option<String>, Error> {
    if !is_there(client).await? {
        return Ok(None);
    }
    let row = client.query_opt("SELECT id FROM pgsluice.trails WHERE name = $1", &[&name]).await.map_err(failed)?;
    row.map(|row| row.try_get(0).map_err(failed)).transpose()
}

/// From now on it is this one.
pub async fn record_trail(client: &Client, name: &str, id: &str) -> Result<(), Error> {
    if !is_there(client).await? {
        match client.batch_execute(TRAILS_SQL).await {
            Ok(()) => tracing::info!("table pgsluice.trails is made on the target"),
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                tracing::debug!(
                    "the role may not make pgsluice.trails on the target, which would tell one trail from another"
                );
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        }
    }
    let sql = "INSERT INTO pgsluice.trails (name, id) VALUES ($1, $2) \
               ON CONFLICT (name) DO UPDATE SET id = EXCLUDED.id, recorded_at = now() WHERE trails.id <> EXCLUDED.id";
    client.execute(sql, &[&name, &id]).await.map(drop).map_err(failed)
}

/// It reads from none any more.
pub async fn forget_trail(client: &Client, name: &str) -> Result<(), Error> {
    if is_there(client).await? {
        client.execute("DELETE FROM pgsluice.trails WHERE name = $1", &[&name]).await.map_err(failed)?;
    }
    Ok(())
}

async fn is_there(client: &Client) -> Result<bool, Error> {
    let row = client.query_one("SELECT to_regclass('pgsluice.trails') IS NOT NULL", &[]).await.map_err(failed)?;
    row.try_get(0).map_err(failed)
}
