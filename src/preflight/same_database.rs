//! Whether the target is the very database that is replicated.
//!
//! ```text
//!  system identifiers differ ───────────────────────────────► another cluster
//!      │ are equal
//!  a lock on the target is seen by source or primary ───────► the same database: refused
//!      │ is not
//!  the target is in recovery ───────────────────────────────► a standby of the same primary: refused
//!      │ is not
//!  another OID of the database ─────────────────────────────► another database of the cluster
//!      │ the same
//!  the server that publishes was asked ─────────────────────► a copy of the cluster that has become a server of its own
//!      └ cannot be asked ───────────────────────────────────► nobody can tell: refused, unless setup could
//! ```
//!
//! **Why not the system identifier alone.** It is made by `initdb` and copied with the data directory, so it is the same on a
//! promoted standby, a restored base backup and a snapshot of the disk: all of them are legal targets (blue-green). Addresses prove
//! nothing either: proxies, aliases and sockets lead to one server by many names. What is proof is something that lives in
//! the memory of the running server: an advisory lock under a random key, taken through one session and looked for in `pg_locks`
//! through the other. Such locks belong to a database, are visible to every role, are neither written to disk nor sent to
//! standbys, and work in recovery ("Hot Standby", users' overview; "Advisory Locks").
//!
//! **What it cannot tell.** Where the source is a standby and there is no `[primary]`, nobody but the target can be asked
//! whether the target is that primary. Timelines do not tell: a standby may be one behind its own primary. So that is refused
//! until `[primary]` names the server to compare with.

use rand::RngExt;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::checkpoint::{self, Progress};
use crate::config::{Config, Endpoint, Role};
use crate::error::{Error, Stage};
use crate::postgres::{self, quote_ident};

/// What tells a database from others, short of proof.
#[derive(Debug)]
struct Database {
    /// `None` where the server has no such thing: it is not PostgreSQL's own.
    system_identifier: Option<String>,
    oid: u32,
    in_recovery: bool,
}

/// `progress` is what the target has of this replication, which `setup` has made after this same check.
///
/// # Errors
/// A refusal if the target is the database that is replicated, on the source or on its primary, or a standby of it.
pub async fn check_target(
    config: &Config,
    (source, target): (&Client, &Client),
    progress: Option<&Progress>,
    stage: Stage,
) -> Result<(), Error> {
    let on_source = Database::read(source, &config.source, stage).await?;
    let on_target = Database::read(target, &config.target, stage).await?;
    let Some(identifier) = on_target.system_identifier.filter(|one| Some(one) == on_source.system_identifier.as_ref())
    else {
        return Ok(());
    };
    let was_set_up = progress.is_some_and(|progress| progress.system_identifier == identifier);
    let same = |role: Role| {
        Error::refused(
            stage,
            format!(
                "the target ({}) is the database that is replicated: it is that of the {role}, system identifier {identifier}",
                config.target.place()
            ),
            "correct the dsn in [target]; nothing was written",
        )
    };
    if is_seen((target, &config.target), (source, &config.source), stage).await? {
        return Err(same(Role::Source));
    }
    if on_target.in_recovery && !was_set_up {
        return Err(Error::refused(
            stage,
            format!(
                "the target ({}) is a standby of the cluster that is replicated, system identifier {identifier}, and takes no writes",
                config.target.place()
            ),
            "correct the dsn in [target]",
        ));
    }
    if on_target.oid != on_source.oid || !on_source.in_recovery {
        return Ok(());
    }
    match &config.primary {
        Some(endpoint) => match postgres::connect(endpoint, stage).await {
            Ok(primary) if is_seen((target, &config.target), (&primary, endpoint), stage).await? => {
                Err(same(Role::Primary))
            }
            Ok(_) => Ok(()),
            // A target that has outlived the primary is to have what the source still holds.
            Err(_) if was_set_up => Ok(()),
            Err(error) => Err(error),
        },
        None if was_set_up => Ok(()),
        None => Err(Error::refused(
            stage,
            format!(
                "the target ({}) cannot be told from the primary of the source: both have system identifier {identifier}, and the \
                 database has OID {} in both",
                config.target.place(),
                on_target.oid
            ),
            "if it is the primary, correct the dsn in [target]; if it is a copy of it, such as a promoted standby or a restored \
             base backup, name the primary in [primary], by which the two are told apart",
        )),
    }
}

/// As [`check_target`], for a command that has no sessions of its own yet.
///
/// # Errors
/// As [`check_target`].
pub async fn check_target_alone(config: &Config, stage: Stage) -> Result<(), Error> {
    let target = postgres::connect(&config.target, stage).await?;
    let source = postgres::connect(&config.source, stage).await?;
    let progress = checkpoint::read(&target, config.name.as_str()).await?;
    check_target(config, (&source, &target), progress.as_ref(), stage).await
}

impl Database {
    async fn read(client: &Client, endpoint: &Endpoint, stage: Stage) -> Result<Database, Error> {
        let failed = |error| Error::from_postgres(stage, endpoint.role, error);
        let sql = "SELECT oid, pg_is_in_recovery() FROM pg_database WHERE datname = current_database()";
        let row = client.query_one(sql, &[]).await.map_err(failed)?;
        let identifier = "SELECT system_identifier::text FROM pg_control_system()";
        let system_identifier = match client.query_one(identifier, &[]).await {
            Ok(row) => Some(row.try_get(0).map_err(failed)?),
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_FUNCTION) => None,
            // Everybody may call it, unless somebody has said otherwise.
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                let role = endpoint.role;
                let user = quote_ident(&endpoint.user);
                return Err(Error::refused(
                    stage,
                    format!(
                        "the role on the {role} may not see which cluster that is, and it could be the one that is replicated"
                    ),
                    format!("on the {role}: GRANT EXECUTE ON FUNCTION pg_control_system() TO {user}"),
                ));
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Database {
            system_identifier,
            oid: row.try_get(0).map_err(failed)?,
            in_recovery: row.try_get(1).map_err(failed)?,
        })
    }
}

/// A lock that the first session takes in its database is one of the database of the second.
async fn is_seen(
    (client, endpoint): (&Client, &Endpoint),
    (other, of_other): (&Client, &Endpoint),
    stage: Stage,
) -> Result<bool, Error> {
    let failed = |error| Error::from_postgres(stage, endpoint.role, error);
    let [high, low] = [(); 2].map(|()| rand::rng().random::<u32>());
    let key = (u64::from(high) << 32 | u64::from(low)).cast_signed();
    // In a transaction, so that a pooler leaves the session to us meanwhile.
    client.batch_execute(&format!("BEGIN; SELECT pg_advisory_xact_lock({key})")).await.map_err(failed)?;
    // As PostgreSQL takes a key of 64 bits apart ("pg_locks").
    let sql = "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
               WHERE d.datname = current_database() AND l.locktype = 'advisory' \
               AND (l.classid, l.objid, l.objsubid) = ($1::oid, $2::oid, 1))";
    let seen = other.query_one(sql, &[&high, &low]).await.and_then(|row| row.try_get(0));
    client.batch_execute("ROLLBACK").await.map_err(failed)?;
    seen.map_err(|error| Error::from_postgres(stage, of_other.role, error))
}
