//! Finds a pooler that gives each transaction another session of the server.
//!
//! What we set, prepare and lock belongs to a session. A pooler in transaction or statement mode hands the server's sessions round
//! between its clients, so that a setting is lost, a statement is not there, and a lock is somebody else's: all of that only once
//! there is more than one client, in the middle of the work.
//!
//! Two of our sessions that are open at once are two sessions of the server. If both are the same one, or one of them is another one
//! than before, they are lent. Nothing else looks like that: no network address is compared, so that a proxy, a NAT, or a pooler in
//! session mode passes.

use tokio_postgres::{Client, SimpleQueryMessage};

use super::connect;
use crate::config::Endpoint;
use crate::error::{Error, Stage};

/// An idle pooler shows itself in the first. Where others use it too, what a session gets is a matter of chance.
const ROUNDS: usize = 4;
/// A process may get the number of one that has ended, but not at the same microsecond.
const SESSION_SQL: &str =
    "SELECT pid::text || ' ' || backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()";

/// # Errors
/// A refusal if the endpoint is such a pooler.
pub async fn check_unpooled(endpoint: &Endpoint, client: &Client, stage: Stage) -> Result<(), Error> {
    let failed = |error| Error::from_postgres(stage, endpoint.role, error);
    let other = connect(endpoint, stage).await?;
    let mut seen: [Option<String>; 2] = [None, None];
    for _ in 0..ROUNDS {
        for (place, session) in [client, &other].into_iter().enumerate() {
            let server_session = ask(session).await.map_err(failed)?;
            let is_lent = server_session.is_some() && seen[1 - place] == server_session;
            let is_another = seen[place].is_some() && seen[place] != server_session;
            if is_lent || is_another {
                return Err(pooled(endpoint, stage));
            }
            seen[place] = server_session;
        }
    }
    Ok(())
}

/// In one message, which no pooler divides.
async fn ask(session: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    let messages = session.simple_query(SESSION_SQL).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    row.map(|row| row.try_get(0).map(|text| text.unwrap_or_default().to_owned())).transpose()
}

fn pooled(endpoint: &Endpoint, stage: Stage) -> Error {
    let (role, address) = (endpoint.role, endpoint.address());
    Error::refused(
        stage,
        format!("[{role}] at {address} is a pooler that lends a session of the server for one transaction at a time"),
        "name the server itself, or a pool in session mode (pgbouncer: pool_mode = session for this database or user)",
    )
}
