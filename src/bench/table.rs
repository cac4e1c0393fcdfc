//! The table of the bench: made on both ends, joined to the stream, and taken away.
//!
//! ```text
//!  made ──first row──► joins: the engine copies it, and hands it to its stream ──► rows come
//!  leaves the publication ──progress passes that──► the engine forgets it ──progress passes again──► dropped on C, then on A
//! ```
//!
//! The engine's sessions know the tables that were published when they began. One that knows this table would take a later one of the
//! same name for it. So it is not enough that no change of it is on its way: a session has begun that has not seen it published, and has
//! removed its row from `table_state`.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::config::{Config, OWN_SCHEMA, Role};
use crate::error::{Error, Kind, Stage};
use crate::postgres::{quote_ident, quote_literal};
use crate::snapshot;
use crate::source::publication::TableName;

use super::engine::{POLL_INTERVAL, Servers, timed_out};
use super::{Over, STAGE};

/// The comment by which a table is known as one of ours.
const MARK: &str = "made by pgsluice bench, which removes it";
/// Columns of both ends.
const COLUMNS: &str = "id bigint PRIMARY KEY, due_us bigint NOT NULL, payload text NOT NULL";
/// It is the target's alone: the engine leaves it to its default.
const APPLIED_AT: &str = "applied_at timestamptz DEFAULT clock_timestamp()";
/// The row by whose arrival is seen that the table has joined.
const PROBE_ID: i64 = 0;
/// Of the rows that are measured.
pub(super) const FIRST_ID: i64 = 1;
const INSUFFICIENT_PRIVILEGE: &str = "42501";

#[derive(Clone, Debug)]
pub(super) struct OwnTable {
    pub name: TableName,
    config: Config,
}

/// What is on a server under the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Ours,
    Other,
}

impl OwnTable {
    pub fn of(config: &Config) -> OwnTable {
        let name = TableName { schema: OWN_SCHEMA.to_owned(), name: config.name.bench_table() };
        OwnTable { name, config: config.clone() }
    }

    /// # Errors
    /// A refusal if something of somebody else has the name.
    pub async fn check_origin(&self, servers: &Servers) -> Result<(), Error> {
        let publisher = self.config.publisher().role;
        for (client, role) in [(&servers.primary, publisher), (&servers.target, Role::Target)] {
            if self.find(client).await.map_err(|error| Error::from_postgres(STAGE, role, error))? == Found::Other {
                let what = format!("the {role} has a {} that is not of bench", self.name);
                let mend =
                    "rename it, or drop it if nobody needs it; a table that bench has made has a comment that says so";
                return Err(Error::refused(STAGE, what, mend));
            }
        }
        Ok(())
    }

    async fn find(&self, client: &Client) -> Result<Found, tokio_postgres::Error> {
        let sql = "SELECT obj_description(c.oid, 'pg_class') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                   WHERE (n.nspname, c.relname) = ($1, $2)";
        let row = client.query_opt(sql, &[&self.name.schema, &self.name.name]).await?;
        let Some(row) = row else { return Ok(Found::Nothing) };
        let comment: Option<String> = row.try_get(0)?;
        Ok(if comment.as_deref() == Some(MARK) { Found::Ours } else { Found::Other })
    }

    /// First on C, so that nothing comes that has no place.
    pub async fn make(&self, servers: &Servers) -> Result<(), Error> {
        let (name, mark) = (&self.name, quote_literal(MARK));
        let of_both = format!("COMMENT ON TABLE {name} IS {mark}");
        let on_target = format!("CREATE TABLE {name} ({COLUMNS}, {APPLIED_AT}); {of_both}");
        servers.target.batch_execute(&on_target).await.map_err(|error| self.not_made(Role::Target, error))?;
        let failed = |error| self.not_made(self.config.publisher().role, error);
        let is_missing = format!("SELECT to_regnamespace('{OWN_SCHEMA}') IS NULL");
        let row = servers.primary.query_one(&is_missing, &[]).await.map_err(failed)?;
        let schema = match row.try_get(0).map_err(failed)? {
            true => format!("CREATE SCHEMA {OWN_SCHEMA};"),
            false => String::new(),
        };
        let publication = quote_ident(&self.config.publication());
        let on_primary = format!(
            "{schema} CREATE TABLE {name} ({COLUMNS}); {of_both}; {grant} ALTER PUBLICATION {publication} ADD TABLE ONLY {name}",
            grant = self.grant_sql(),
        );
        servers.primary.batch_execute(&on_primary).await.map_err(failed)
    }

    /// Lets the role on the source copy it, where that is another one.
    fn grant_sql(&self) -> String {
        let reader = &self.config.source.user;
        if *reader == self.config.publisher().user {
            return String::new();
        }
        let (name, reader) = (&self.name, quote_ident(reader));
        format!("GRANT USAGE ON SCHEMA {OWN_SCHEMA} TO {reader}; GRANT SELECT ON {name} TO {reader};")
    }

    /// What a role may not do is a refusal that says so.
    fn not_made(&self, role: Role, error: tokio_postgres::Error) -> Error {
        let error = Error::from_postgres(STAGE, role, error);
        match error.kind() {
            Kind::Server { error, .. } if error.code == INSUFFICIENT_PRIVILEGE => {
                let mend = "bench makes a table in schema pgsluice on the primary and on the target, and adds it to the publication: run it \
                            with a configuration whose roles own these";
                Error::refused(STAGE, format!("the role on the {role} may not do that: {error}"), mend)
            }
            _ => error,
        }
    }

    /// Waits until rows of the table come by the stream.
    ///
    /// # Errors
    /// [`Kind::TimedOut`] after `limit`.
    pub async fn wait_joined(&self, servers: &Servers, limit: Duration, over: &Over) -> Result<(), Error> {
        let probe = format!("INSERT INTO {} VALUES ({PROBE_ID}, 0, '')", self.name);
        servers.primary.batch_execute(&probe).await.map_err(|error| servers.primary_failed(error))?;
        tracing::info!("waiting until the engine has taken in {}", self.name);
        let deadline = Instant::now() + limit;
        let has_probe = format!("SELECT EXISTS (SELECT FROM {} WHERE id = {PROBE_ID})", self.name);
        loop {
            let row = servers.target.query_one(&has_probe, &[]).await.map_err(target_failed)?;
            let has_come: bool = row.try_get(0).map_err(target_failed)?;
            let is_followed = match self.state(&servers.target).await? {
                Some(is_missing) => !is_missing,
                None => !self.config.snapshot.copy_data,
            };
            if has_come && is_followed {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(timed_out(format!("that the engine takes in {}", self.name), limit));
            }
            over.check()?;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// What the engine knows of the table: whether it has yet to be copied.
    async fn state(&self, target: &Client) -> Result<Option<bool>, Error> {
        let states = snapshot::read(target, self.config.name.as_str()).await?;
        Ok(states.iter().find(|state| state.table == self.name).map(|state| state.is_missing()))
    }

    /// Takes away whatever there is of the table, on both ends.
    ///
    /// # Errors
    /// [`Kind::TimedOut`] if the engine has not done with it after `limit`: then the tables stay for the next time.
    pub async fn remove(&self, servers: &Servers, limit: Duration, over: &Over) -> Result<(), Error> {
        let failed = |error| servers.primary_failed(error);
        let on_primary = self.find(&servers.primary).await.map_err(failed)?;
        let on_target = self.find(&servers.target).await.map_err(target_failed)?;
        let is_known = self.state(&servers.target).await?.is_some();
        if on_primary == Found::Nothing && on_target == Found::Nothing && !is_known {
            return Ok(());
        }
        self.unpublish(&servers.primary).await.map_err(failed)?;
        self.wait_forgotten(servers, limit, over).await.map_err(|error| self.left(error))?;
        self.drop_from(&servers.target).await.map_err(target_failed)?;
        self.drop_from(&servers.primary).await.map_err(failed)?;
        drop_empty_schema(&servers.primary).await.map_err(failed)
    }

    async fn unpublish(&self, primary: &Client) -> Result<(), tokio_postgres::Error> {
        let publication = self.config.publication();
        let sql = "SELECT FROM pg_publication_tables WHERE (pubname, schemaname, tablename) = ($1, $2, $3)";
        if primary.query_opt(sql, &[&publication, &self.name.schema, &self.name.name]).await?.is_none() {
            return Ok(());
        }
        let sql = format!("ALTER PUBLICATION {} DROP TABLE ONLY {}", quote_ident(&publication), self.name);
        primary.batch_execute(&sql).await
    }

    /// Waits until no session of the engine knows the table, and none will.
    async fn wait_forgotten(&self, servers: &Servers, limit: Duration, over: &Over) -> Result<(), Error> {
        // The server that is decoded from has replayed then that the table is not published.
        servers.wait_passed(limit, over).await?;
        let deadline = Instant::now() + limit;
        loop {
            let is_known = self.state(&servers.target).await?.is_some();
            if !is_known {
                // A session that was being opened meanwhile may have learned of it; it has done so before it streams.
                servers.wait_passed(limit, over).await?;
                if self.state(&servers.target).await?.is_none() {
                    return Ok(());
                }
            }
            if Instant::now() >= deadline {
                return Err(timed_out(format!("that the engine forgets {}", self.name), limit));
            }
            over.check()?;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Says what is left, and who removes it.
    fn left(&self, error: Error) -> Error {
        tracing::warn!(
            "{} stays on the primary and on the target, published no more: the next `pgsluice bench` removes it, and so does \
             `pgsluice teardown`",
            self.name
        );
        error
    }

    /// False where there was none of ours.
    async fn drop_from(&self, client: &Client) -> Result<bool, tokio_postgres::Error> {
        let is_there = self.find(client).await? == Found::Ours;
        if is_there {
            client.batch_execute(&format!("DROP TABLE {}", self.name)).await?;
        }
        Ok(is_there)
    }
}

/// Drops what a bench that was killed has left, where no engine can need it any more: the slot is gone. Returns whether there was
/// anything.
pub async fn remove_leftovers(config: &Config, client: &Client, role: Role, stage: Stage) -> Result<bool, Error> {
    let failed = |error| Error::from_postgres(stage, role, error);
    let dropped = OwnTable::of(config).drop_from(client).await.map_err(failed)?;
    if dropped && role != Role::Target {
        drop_empty_schema(client).await.map_err(failed)?;
    }
    Ok(dropped)
}

/// Where it is ours, and nothing is left in it, neither of this replication nor of others.
pub async fn drop_empty_schema(client: &Client) -> Result<(), tokio_postgres::Error> {
    let is_empty = "SELECT FROM pg_namespace n WHERE nspname = 'pgsluice' AND pg_has_role(nspowner, 'USAGE') \
                    AND NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid)";
    if client.query_opt(is_empty, &[]).await?.is_some() {
        client.batch_execute("DROP SCHEMA pgsluice").await?;
    }
    Ok(())
}

fn target_failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(STAGE, Role::Target, error)
}
