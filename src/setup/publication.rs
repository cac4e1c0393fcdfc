//! The publication on the server that publishes: checked where it is there, made where it is missing, and taken away again where
//! setup cannot go on.
//!
//! **Always holds:** what the role may not make is not begun; its SQL is printed for whoever may.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{STAGE, Servers, Step, step};
use crate::bench;
use crate::config::{Config, Role};
use crate::error::Error;
use crate::postgres::quote_ident;
use crate::preflight;
use crate::source::publication::{self, Heartbeat, Publication, PublishedTable};
use crate::source::server::Server;
use crate::transform::Mapping;

/// What this setup has made on the server that publishes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Made {
    publication: bool,
    /// The table that heartbeats are written to.
    heartbeat: bool,
}

/// Notes in `made` what it makes, as it makes it.
pub(super) async fn ensure(
    config: &Config,
    servers: &Servers,
    tables: &[PublishedTable],
    (deadline, limit): (Instant, Duration),
    made: &mut Made,
) -> Result<Step, Error> {
    let name = config.publication();
    let mut present = true;
    if let Some((client, facts)) = &servers.publisher {
        present = make(config, (client, facts), tables, made).await?;
        let written = preflight::position(client, facts.role, STAGE).await?;
        preflight::wait_for_replay(config, &servers.source, written, (deadline, limit), STAGE).await?;
    }
    match Publication::read(&servers.source, Role::Source, &name, STAGE).await? {
        Some(found) => {
            found.check(&config.tables, tables, STAGE)?;
            check_columns(config, &servers.source, &found).await?;
        }
        None => {
            let what = format!("publication \"{name}\" does not exist, and there is no [primary] to make it on");
            return Err(Error::refused(STAGE, what, by_its_owner(config, tables)));
        }
    }
    Ok(step(format!("publication {name}"), present))
}

/// True where all of it was there.
async fn make(
    config: &Config,
    (client, facts): (&Client, &Server),
    tables: &[PublishedTable],
    made: &mut Made,
) -> Result<bool, Error> {
    let failed = |error| Error::from_postgres(STAGE, facts.role, error);
    let name = config.publication();
    let found = Publication::read(client, facts.role, &name, STAGE).await?;
    match &found {
        Some(found) => found.check(&config.tables, tables, STAGE)?,
        None => check_rights(config, (client, facts), tables).await?,
    }
    let with_heartbeat = config.stream.heartbeat.is_some();
    if with_heartbeat {
        made.heartbeat =
            publication::create_heartbeat(client).await.map_err(|error| refuse_rights(error, config, facts, tables))?;
    }
    match found {
        Some(found) if with_heartbeat && !found.has_heartbeat => {
            let add = publication::add_heartbeat_sql(&name);
            client.batch_execute(&add).await.map_err(|error| refuse_rights(error, config, facts, tables))?;
            Ok(false)
        }
        Some(_) => Ok(true),
        None => {
            let heartbeat = if with_heartbeat { Heartbeat::Present } else { Heartbeat::None };
            client.batch_execute(&publication::create_sql(&name, tables, heartbeat)).await.map_err(failed)?;
            made.publication = true;
            Ok(false)
        }
    }
}

/// # Errors
/// A refusal, with the SQL for whoever may, if the role may not make the publication.
async fn check_rights(
    config: &Config,
    (client, facts): (&Client, &Server),
    tables: &[PublishedTable],
) -> Result<(), Error> {
    let failed = |error| Error::from_postgres(STAGE, facts.role, error);
    let (schemas, names): (Vec<_>, Vec<_>) =
        tables.iter().map(|one| (one.table.schema.as_str(), one.table.name.as_str())).unzip();
    let sql = "SELECT has_database_privilege(current_database(), 'CREATE'), \
                   ARRAY(SELECT format('%I.%I', n.nspname, c.relname) \
                         FROM unnest($1::text[], $2::text[]) w (s, t) JOIN pg_namespace n ON n.nspname = w.s \
                         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t \
                         WHERE NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1)";
    let row = client.query_one(sql, &[&schemas, &names]).await.map_err(failed)?;
    let may_create: bool = row.try_get(0).map_err(failed)?;
    let foreign: Vec<String> = row.try_get(1).map_err(failed)?;
    let mut lacks = Vec::new();
    if !may_create {
        lacks.push("it has no CREATE on the database".to_owned());
    }
    if !foreign.is_empty() {
        lacks.push(format!("it does not own {}", foreign.join(", ")));
    }
    if lacks.is_empty() { Ok(()) } else { Err(not_ours(config, facts, tables, &lacks.join(", and "))) }
}

fn not_ours(config: &Config, facts: &Server, tables: &[PublishedTable], why: &str) -> Error {
    let (name, role) = (config.publication(), facts.role);
    let user = quote_ident(&config.publisher().user);
    let what = format!("role {user} may not make publication \"{name}\" and what it holds on the {role}: {why}");
    Error::refused(STAGE, what, by_its_owner(config, tables))
}

/// What a role may not do is a refusal that says who may.
fn refuse_rights(error: tokio_postgres::Error, config: &Config, facts: &Server, tables: &[PublishedTable]) -> Error {
    match error.as_db_error() {
        Some(said) if *said.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
            not_ours(config, facts, tables, said.message())
        }
        Some(_) | None => Error::from_postgres(STAGE, facts.role, error),
    }
}

fn by_its_owner(config: &Config, tables: &[PublishedTable]) -> String {
    let heartbeat = config.stream.heartbeat.map_or(Heartbeat::None, |_| Heartbeat::By(&config.publisher().user));
    let create = publication::create_sql(&config.publication(), tables, heartbeat);
    let place = match &config.primary {
        Some(primary) => format!("the primary ({})", primary.place()),
        None => format!("the primary, database \"{}\"", config.source.dbname),
    };
    format!("on {place}, as the owner of the tables: {create}; then run setup again")
}

/// Rules that fit the tables must fit what of them is published too.
async fn check_columns(config: &Config, source: &Client, publication: &Publication) -> Result<(), Error> {
    let mut tables = publication.tables.clone();
    if config.shard().is_some() {
        // What other shards publish is theirs to check, and rules may be about nothing else.
        let all = publication::select_tables(source, Role::Source, &config.tables, STAGE).await?;
        tables.extend(all.into_iter().filter(|one| !publication.tables.iter().any(|own| own.table == one.table)));
    }
    let Err(errors) = Mapping::new(&config.rules, &tables) else { return Ok(()) };
    let what: Vec<_> = errors.iter().map(ToString::to_string).collect();
    Err(Error::refused(
        STAGE,
        format!("publication \"{}\" leaves out columns that rules need:\n{}", publication.name, what.join("\n")),
        "on the primary: ALTER PUBLICATION … SET TABLE, with lists that hold these columns, or without lists; what was left \
         out until then has to be copied",
    ))
}

impl Made {
    /// Takes away again what setup has made and cannot use.
    pub async fn undo(self, config: &Config, servers: &Servers) {
        let Some((client, facts)) = &servers.publisher else { return };
        if let Err(error) = self.drop_from(config, client).await {
            let error = Error::from_postgres(STAGE, facts.role, error);
            tracing::warn!("what this setup has made on the {} is still there: {error}", facts.role);
        }
    }

    async fn drop_from(self, config: &Config, client: &Client) -> Result<(), tokio_postgres::Error> {
        if self.publication {
            client.batch_execute(&format!("DROP PUBLICATION {}", quote_ident(&config.publication()))).await?;
        }
        let is_published = "SELECT FROM pg_publication_rel WHERE prrelid = to_regclass('pgsluice.heartbeat')";
        if self.heartbeat && client.query_opt(is_published, &[]).await?.is_none() {
            client.batch_execute("DROP TABLE pgsluice.heartbeat").await?;
            bench::drop_empty_schema(client).await?;
        }
        Ok(())
    }
}
