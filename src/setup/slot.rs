//! The slot: made, which on a standby takes the primary's help, and dropped.

use std::time::{Duration, Instant};

use pgsluice_proto::TimelineId;
use pgsluice_proto::command::SlotSnapshot;
use tokio_postgres::Client;

use super::{STAGE, Servers, on_replication_connection, timed_out};
use crate::config::{Config, Role};
use crate::error::{Error, Kind};
use crate::source::CreatedSlot;

/// How often the primary is asked for the record that a new slot on a standby waits for.
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(500);

/// Makes the slot, and meanwhile has the primary write what a slot on a standby waits for.
pub(super) async fn create(
    config: &Config,
    servers: &Servers,
    deadline: Instant,
    limit: Duration,
) -> Result<(CreatedSlot, TimelineId), Error> {
    let (name, major) = (config.name.slot(), servers.source_facts.major());
    let (report_pid, pid) = tokio::sync::oneshot::channel();
    let creating = on_replication_connection(config, move |connection| {
        if report_pid.send(connection.backend_pid()).is_err() {
            return Err(Error::new(STAGE, Kind::Panicked));
        }
        let identity = connection.identify_system()?;
        Ok((connection.create_slot(&name, SlotSnapshot::Nothing, major)?, identity.timeline))
    });
    tokio::pin!(creating);
    let mut told_operator = false;
    while Instant::now() < deadline {
        if servers.source_facts.in_recovery {
            ask_for_snapshot(servers, &mut told_operator).await?;
        }
        tokio::select! {
            result = &mut creating => return result.map_err(refusal),
            () = tokio::time::sleep(SNAPSHOT_INTERVAL) => {}
        }
    }
    let blockers = match &servers.publisher {
        Some((client, facts)) => open_transactions(client, facts.role).await?,
        None => "unknown without [primary]".to_owned(),
    };
    if let Ok(pid) = pid.await {
        let cancelled = servers.source.execute("SELECT pg_cancel_backend($1)", &[&pid]).await;
        cancelled.map_err(|error| Error::from_postgres(STAGE, Role::Source, error))?;
    }
    match creating.await {
        // It was made in the last moment.
        Ok(created) => Ok(created),
        Err(error) if !is_cancelled(&error) => Err(refusal(error)),
        Err(_) => {
            let what = format!("the start of slot \"{}\"", config.name.slot());
            let mend = format!(
                "a slot starts when every transaction that is open on the primary has ended. Open with a transaction \
                 ID: {blockers}. End them, or give more time with --timeout"
            );
            Err(timed_out(what, limit, mend))
        }
    }
}

/// Our own cancellation, which says no more than that time was up.
fn is_cancelled(error: &Error) -> bool {
    const QUERY_CANCELED: &str = "57014";
    matches!(error.kind(), Kind::Server { error, .. } if error.code == QUERY_CANCELED)
}

/// A standby knows the primary's `wal_level` and has no view that shows it, so only the attempt tells.
fn refusal(error: Error) -> Error {
    const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
    match error.kind() {
        Kind::Server { role, error } if error.code == OBJECT_NOT_IN_PREREQUISITE_STATE => Error::refused(
            STAGE,
            format!("the {role} cannot have a logical slot: {error}"),
            "if it speaks of wal_level, on the primary: ALTER SYSTEM SET wal_level = 'logical'; then restart it",
        ),
        _ => error,
    }
}

/// One more running-xacts record: it takes one after the last transaction that was open has ended.
async fn ask_for_snapshot(servers: &Servers, told_operator: &mut bool) -> Result<(), Error> {
    const STATEMENT: &str = "SELECT pg_log_standby_snapshot()";
    match &servers.publisher {
        Some((client, facts)) => {
            let asked = client.execute(STATEMENT, &[]).await;
            asked.map(drop).map_err(|error| Error::from_postgres(STAGE, facts.role, error))
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
async fn open_transactions(client: &Client, role: Role) -> Result<String, Error> {
    let sql = "SELECT format('pid %s (user %s, application %s, %s, for %s)', pid, usename, application_name, state, \
               date_trunc('second', clock_timestamp() - xact_start)) FROM pg_stat_activity \
               WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start";
    let failed = |error| Error::from_postgres(STAGE, role, error);
    let rows = client.query(sql, &[]).await.map_err(failed)?;
    let list = rows.iter().map(|row| row.try_get::<_, String>(0)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let prepared = "SELECT format('prepared transaction %s (for %s)', gid, \
                    date_trunc('second', clock_timestamp() - prepared)) FROM pg_prepared_xacts ORDER BY prepared";
    let rows = client.query(prepared, &[]).await.map_err(failed)?;
    let more = rows.iter().map(|row| row.try_get::<_, String>(0)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let all = [list, more].concat();
    Ok(if all.is_empty() { "none that can be seen".to_owned() } else { all.join("; ") })
}

pub(super) async fn remove(config: &Config) -> Result<(), Error> {
    let name = config.name.slot();
    on_replication_connection(config, move |connection| connection.drop_slot(&name)).await
}
