//! A new slot, which on a standby takes the primary's help to start.

use std::time::{Duration, Instant};

use pgsluice_proto::command::{CreateLogicalSlot, SlotSnapshot};
use tokio_postgres::Client;

use super::connection::{Connection, CreatedSlot, Identity};
use super::server::Server;
use crate::config::{Endpoint, Role};
use crate::error::{Error, Kind, Stage};

/// How often the primary is asked for the record that a new slot on a standby waits for. It has to be written after the
/// slot has begun to wait, which is soon, or after the last transaction that was open has ended, which may take long.
const ASK_INTERVAL_MIN: Duration = Duration::from_millis(20);
const ASK_INTERVAL_MAX: Duration = Duration::from_millis(500);

/// What slot is to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewSlot<'a> {
    pub endpoint: &'a Endpoint,
    pub name: &'a str,
    pub temporary: bool,
    pub snapshot: SlotSnapshot,
    pub stage: Stage,
}

/// Who can be asked meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Helpers<'a> {
    pub source: &'a Client,
    pub server: &'a Server,
    /// A session to the server that publishes, where there is one: the primary, or a source that is one.
    pub publisher: Option<(&'a Client, Role)>,
}

/// Makes the slot, and meanwhile has the primary write what a slot on a standby waits for. The connection that has made
/// it still holds its snapshot.
///
/// # Errors
/// A refusal if the source cannot have it; [`Kind::TimedOut`], with who keeps it from starting, at the `deadline`, which ends
/// a `limit` that is named then.
pub async fn create(
    new: NewSlot<'_>,
    helpers: Helpers<'_>,
    deadline: Instant,
    limit: Duration,
) -> Result<(Connection, CreatedSlot, Identity), Error> {
    let (report_pid, pid) = tokio::sync::oneshot::channel();
    let (endpoint, name, stage) = (new.endpoint.clone(), new.name.to_owned(), new.stage);
    let (temporary, snapshot, server_major) = (new.temporary, new.snapshot, helpers.server.major());
    let creating = tokio::task::spawn_blocking(move || {
        let mut connection = Connection::connect(&endpoint)?;
        if report_pid.send(connection.backend_pid()).is_err() {
            return Err(Error::new(stage, Kind::Panicked));
        }
        let identity = connection.identify_system()?;
        let create = CreateLogicalSlot { slot: &name, temporary, snapshot, server_major };
        let slot = connection.create_slot(create)?;
        Ok((connection, slot, identity))
    });
    let creating = async { creating.await.unwrap_or_else(|_| Err(Error::new(stage, Kind::Panicked))) };
    tokio::pin!(creating);
    let mut told_operator = false;
    let mut interval = ASK_INTERVAL_MIN;
    while Instant::now() < deadline {
        if helpers.server.in_recovery {
            ask_for_snapshot(helpers, &mut told_operator, stage).await?;
        }
        tokio::select! {
            result = &mut creating => return result.map_err(|error| refusal(error, stage)),
            () = tokio::time::sleep(interval) => interval = (interval * 2).min(ASK_INTERVAL_MAX),
        }
    }
    let blockers = match helpers.publisher {
        Some((client, role)) => open_transactions(client, role, stage).await?,
        None => "unknown without [primary]".to_owned(),
    };
    if let Ok(pid) = pid.await {
        let cancelled = helpers.source.execute("SELECT pg_cancel_backend($1)", &[&pid]).await;
        cancelled.map_err(|error| Error::from_postgres(stage, Role::Source, error))?;
    }
    match creating.await {
        // It was made in the last moment.
        Ok(created) => Ok(created),
        Err(error) if !is_cancelled(&error) => Err(refusal(error, stage)),
        Err(_) => {
            let what = format!("the start of slot \"{}\"", new.name);
            let mend = format!(
                "a slot starts when every transaction that is open on the primary has ended. Open with a transaction \
                 ID: {blockers}. End them, or try again; `pgsluice setup` takes a longer --timeout"
            );
            let limit = humantime::format_duration(limit).to_string();
            Err(Error::new(stage, Kind::TimedOut { what, limit, mend }))
        }
    }
}

/// Our own cancellation, which says no more than that time was up.
fn is_cancelled(error: &Error) -> bool {
    const QUERY_CANCELED: &str = "57014";
    matches!(error.kind(), Kind::Server { error, .. } if error.code == QUERY_CANCELED)
}

/// A standby knows the primary's `wal_level` and has no view that shows it, so only the attempt tells.
fn refusal(error: Error, stage: Stage) -> Error {
    const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
    match error.kind() {
        Kind::Server { role, error } if error.code == OBJECT_NOT_IN_PREREQUISITE_STATE => Error::refused(
            stage,
            format!("the {role} cannot have a logical slot: {error}"),
            "if it speaks of wal_level, on the primary: ALTER SYSTEM SET wal_level = 'logical'; then restart it",
        ),
        _ => error,
    }
}

/// One more running-xacts record: it takes one after the last transaction that was open has ended.
async fn ask_for_snapshot(helpers: Helpers<'_>, told_operator: &mut bool, stage: Stage) -> Result<(), Error> {
    const STATEMENT: &str = "SELECT pg_log_standby_snapshot()";
    match helpers.publisher {
        Some((client, role)) => {
            let asked = client.execute(STATEMENT, &[]).await;
            asked.map(drop).map_err(|error| Error::from_postgres(stage, role, error))
        }
        None => {
            if !*told_operator {
                *told_operator = true;
                tracing::warn!("the new slot waits for the primary; run there until this goes on: {STATEMENT};");
            }
            Ok(())
        }
    }
}

/// Who keeps a slot from starting, without what they are doing: a query holds values.
async fn open_transactions(client: &Client, role: Role, stage: Stage) -> Result<String, Error> {
    let sql = "SELECT format('pid %s (user %s, application %s, %s, for %s)', pid, usename, application_name, state, \
               date_trunc('second', clock_timestamp() - xact_start)) FROM pg_stat_activity \
               WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start";
    let failed = |error| Error::from_postgres(stage, role, error);
    let rows = client.query(sql, &[]).await.map_err(failed)?;
    let list = rows.iter().map(|row| row.try_get::<_, String>(0)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let prepared = "SELECT format('prepared transaction %s (for %s)', gid, \
                    date_trunc('second', clock_timestamp() - prepared)) FROM pg_prepared_xacts ORDER BY prepared";
    let rows = client.query(prepared, &[]).await.map_err(failed)?;
    let more = rows.iter().map(|row| row.try_get::<_, String>(0)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let all = [list, more].concat();
    Ok(if all.is_empty() { "none that can be seen".to_owned() } else { all.join("; ") })
}
