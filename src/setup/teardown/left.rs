//! What a role may not remove: found by asking who owns it, and by what the server refuses; printed as SQL for its owner.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{STAGE, Step, StepState, removed};
use crate::bench;
use crate::checkpoint::{self, Remains};
use crate::config::{Config, Endpoint, Role};
use crate::error::{Error, Kind};
use crate::postgres::{quote_ident, quote_literal};

/// What has become of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Removed,
    Absent,
    /// With who removes it, and how: where, and the statements.
    Left(String),
}

impl Fate {
    pub fn step(self, object: String) -> Step {
        match self {
            Fate::Removed => removed(object, true),
            Fate::Absent => removed(object, false),
            Fate::Left(sql) => Step { object, state: StepState::Left, sql: Some(sql) },
        }
    }

    fn left(endpoint: &Endpoint, sql: &str) -> Fate {
        Fate::Left(format!("on the {} ({}): {sql};", endpoint.role, endpoint.place()))
    }
}

/// Runs statements as far as the role may.
async fn take_or_leave(client: &Client, endpoint: &Endpoint, sql: String) -> Result<Fate, Error> {
    match client.batch_execute(&sql).await {
        Ok(()) => Ok(Fate::Removed),
        Err(error) => by_owner(Error::from_postgres(STAGE, endpoint.role, error), endpoint, sql),
    }
}

/// What the role has not the right to do is left.
pub(super) fn by_owner(error: Error, endpoint: &Endpoint, sql: String) -> Result<Fate, Error> {
    match error.kind() {
        Kind::Server { error: said, .. } if said.code == SqlState::INSUFFICIENT_PRIVILEGE.code() => {
            Ok(Fate::left(endpoint, &sql))
        }
        _ => Err(error),
    }
}

/// # Errors
/// A refusal that names all that is left, with the SQL for its owners.
pub(super) fn refusal(steps: &[Step]) -> Result<(), Error> {
    let left: Vec<_> = steps.iter().filter(|step| step.state == StepState::Left).collect();
    if left.is_empty() {
        return Ok(());
    }
    let objects: Vec<_> = left.iter().map(|step| step.object.as_str()).collect();
    let statements: String = left.iter().flat_map(|step| &step.sql).map(|sql| format!("\n    {sql}")).collect();
    Err(Error::refused(
        STAGE,
        format!("all else is removed, and this is left, which the role may not remove: {}", objects.join(", ")),
        format!("as the owners:{statements}\n  none of it is in the way of another setup under this name"),
    ))
}

/// False, or the SQL for whoever may: a standby takes no DDL, and a publication goes by the word of its owner.
pub(super) async fn drop_publication(config: &Config, publisher: &Client) -> Result<Fate, Error> {
    let (name, endpoint) = (config.publication(), config.publisher());
    let failed = |error| Error::from_postgres(STAGE, endpoint.role, error);
    let sql = "SELECT pg_is_in_recovery(), pg_has_role(pubowner, 'USAGE') FROM pg_publication WHERE pubname = $1";
    let Some(row) = publisher.query_opt(sql, &[&name]).await.map_err(failed)? else { return Ok(Fate::Absent) };
    let drop = format!("DROP PUBLICATION {}", quote_ident(&name));
    if row.try_get(0).map_err(failed)? {
        let database = &endpoint.dbname;
        return Ok(Fate::Left(format!("on the primary, database \"{database}\": {drop};")));
    }
    if row.try_get(1).map_err(failed)? {
        take_or_leave(publisher, endpoint, drop).await
    } else {
        Ok(Fate::left(endpoint, &drop))
    }
}

/// The row, and the table and schema too where nobody else has something in them.
pub(super) async fn remove_heartbeat(config: &Config, publisher: &Client) -> Result<Fate, Error> {
    let endpoint = config.publisher();
    let failed = |error| Error::from_postgres(STAGE, endpoint.role, error);
    let sql = "SELECT pg_is_in_recovery(), pg_has_role(c.relowner, 'USAGE'), has_table_privilege(c.oid, 'DELETE') \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = 'pgsluice' AND c.relname = 'heartbeat'";
    let Some(row) = publisher.query_opt(sql, &[]).await.map_err(failed)? else { return Ok(Fate::Absent) };
    let [in_recovery, is_ours, may_delete]: [bool; 3] =
        [row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?, row.try_get(2).map_err(failed)?];
    let delete = format!("DELETE FROM pgsluice.heartbeat WHERE name = {}", quote_literal(config.name.as_str()));
    if in_recovery || !(is_ours || may_delete) {
        return Ok(Fate::left(endpoint, &delete));
    }
    let rows = publisher.execute(&delete, &[]).await.map_err(failed)?;
    let is_used = "SELECT EXISTS (SELECT FROM pgsluice.heartbeat) \
                   OR EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = 'pgsluice.heartbeat'::regclass)";
    let is_used: bool = publisher.query_one(is_used, &[]).await.and_then(|row| row.try_get(0)).map_err(failed)?;
    if is_ours && !is_used {
        publisher.batch_execute("DROP TABLE pgsluice.heartbeat").await.map_err(failed)?;
        bench::drop_empty_schema(publisher).await.map_err(failed)?;
    }
    Ok(if rows > 0 { Fate::Removed } else { Fate::Absent })
}

pub(super) async fn remove_progress(config: &Config, target: &Client, steps: &mut Vec<Step>) -> Result<(), Error> {
    let (row, remains) = checkpoint::remove(target, config.name.as_str()).await?;
    steps.push(removed(format!("progress row {} on the target", config.name), row));
    let fate = match remains {
        Remains::Nothing => Fate::Removed,
        // Whether it is absent or used by others, it is not ours any more.
        Remains::InUse => Fate::Absent,
        Remains::Foreign(sql) => Fate::left(&config.target, &sql),
    };
    steps.push(fate.step("schema pgsluice on the target".to_owned()));
    Ok(())
}

/// Changes that were set aside, which go with the progress.
pub(super) async fn count_exceptions(target: &Client, name: &str) -> Result<u64, Error> {
    let failed = |error| Error::from_postgres(STAGE, Role::Target, error);
    let exists = "SELECT to_regclass('pgsluice.exceptions') IS NOT NULL";
    if !target.query_one(exists, &[]).await.and_then(|row| row.try_get::<_, bool>(0)).map_err(failed)? {
        return Ok(0);
    }
    let sql = "SELECT count(*) FROM pgsluice.exceptions WHERE name = $1";
    let rows: i64 = target.query_one(sql, &[&name]).await.and_then(|row| row.try_get(0)).map_err(failed)?;
    Ok(rows.unsigned_abs())
}
