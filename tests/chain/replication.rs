//! A chain with an engine on it, as the tests use it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Chain, ChainOptions, Engine, Output, Server, assert_same, run, wait_for};
use tempfile::TempDir;

/// The engine's executable.
pub const ENGINE: &str = env!("CARGO_BIN_EXE_pgsluice");
pub const DATABASE: &str = "app";
/// How long a condition may take on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// `setup` where tables without a key are meant to get nothing but INSERTs.
pub const SETUP: [&str; 3] = ["setup", "--allow-unwritable", "*.*"];

/// What the documentation asks for on C, and no more.
const UNPRIVILEGED_TARGET_SQL: &str = "\
    CREATE ROLE writer LOGIN; CREATE SCHEMA pgsluice AUTHORIZATION writer; GRANT USAGE ON SCHEMA public TO writer;
    GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO writer";

/// A → B → C with the same tables on A and C, and a configuration for an engine between B and C.
pub struct Replication {
    pub chain: Chain,
    folder: TempDir,
}

impl Replication {
    /// Starts the servers and runs `ddl` on A and C.
    pub async fn start(ddl: &str) -> Result<Replication> {
        Replication::start_with(ChainOptions::default(), ddl).await
    }

    pub async fn start_with(options: ChainOptions, ddl: &str) -> Result<Replication> {
        Replication::start_differing(options, ddl, ddl).await
    }

    /// The same with other tables on C than on A.
    pub async fn start_differing(options: ChainOptions, on_a: &str, on_c: &str) -> Result<Replication> {
        let chain = Chain::start(options).await?;
        chain.a.sql(DATABASE, on_a).await?;
        chain.c.sql(DATABASE, on_c).await?;
        chain.wait_b_caught_up().await?;
        let replication = Replication { chain, folder: TempDir::new()? };
        replication.configure("")?;
        Ok(replication)
    }

    /// Writes the configuration: the three servers, all tables of `public`, and `more`.
    pub fn configure(&self, more: &str) -> Result<()> {
        let Chain { a, b, c, .. } = &self.chain;
        self.configure_servers(&b.dsn(DATABASE), Some(&a.dsn(DATABASE)), &c.dsn(DATABASE), more)
    }

    pub fn configure_servers(&self, source: &str, primary: Option<&str>, target: &str, more: &str) -> Result<()> {
        let primary = primary.map(|dsn| format!("[primary]\ndsn = \"{dsn}\"\n")).unwrap_or_default();
        let tables = if more.contains("[tables]") { "" } else { "[tables]\ninclude = [\"public.*\"]\n" };
        // Most tests begin with the same rows on both ends.
        let snapshot = if more.contains("[snapshot]") { "" } else { "[snapshot]\ncopy_data = false\n" };
        let text = format!(
            "name = \"test\"\n[source]\ndsn = \"{source}\"\n{primary}[target]\ndsn = \"{target}\"\n\
             {tables}{snapshot}{more}"
        );
        std::fs::write(self.config(), text).context("writing the configuration")
    }

    /// The same with a role on C that has the rights of its tables and no others.
    pub async fn configure_unprivileged_target(&self, more: &str) -> Result<()> {
        self.chain.c.sql(DATABASE, UNPRIVILEGED_TARGET_SQL).await?;
        self.configure_target_role("writer", more)
    }

    /// The same with a role on C that is there already.
    pub fn configure_target_role(&self, role: &str, more: &str) -> Result<()> {
        let Chain { a, b, c, .. } = &self.chain;
        let target = c.dsn(DATABASE).replace("user=postgres", &format!("user={role}"));
        self.configure_servers(&b.dsn(DATABASE), Some(&a.dsn(DATABASE)), &target, more)
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("pgsluice.toml")
    }

    /// Runs a command of the engine to its end.
    pub async fn command(&self, arguments: &[&str]) -> Result<Output> {
        let config = self.config();
        let config = config.to_str().context("a path in UTF-8")?;
        run(Path::new(ENGINE), &[arguments, &["-c", config]].concat()).await
    }

    /// Runs a command that must succeed, and returns what it printed.
    pub async fn succeed(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).await?;
        ensure!(output.code == Some(0), "{arguments:?} ended with {:?}: {}", output.code, output.stderr);
        Ok(output.stdout)
    }

    /// Runs the engine into an error that needs a person, and returns what it said.
    pub async fn halt(&self) -> Result<String> {
        let output = self.command(&["run", "--stop-at", "current"]).await?;
        ensure!(output.code == Some(1), "the engine ended with {:?}: {}", output.code, output.stderr);
        Ok(output.stderr)
    }

    pub async fn setup(&self) -> Result<()> {
        self.succeed(&SETUP).await.map(drop)
    }

    /// Starts an engine that runs until it is stopped.
    pub fn spawn(&self) -> Result<Engine> {
        Engine::spawn(Path::new(ENGINE), &self.config(), &["run"])
    }

    /// Replicates what A has now, and returns what the engine printed.
    pub async fn catch_up(&self) -> Result<String> {
        self.succeed(&["run", "--stop-at", "current"]).await
    }

    /// Waits until an engine that runs has brought C to where A is now, all its shards included. That may take as long as it goes on:
    /// minutes of load, or of an outage, may have left more than a minute can bring.
    pub async fn wait_caught_up(&self) -> Result<()> {
        let position = self.chain.a.scalar(DATABASE, "SELECT pg_current_wal_lsn()").await?;
        let sql = format!(
            "SELECT coalesce(bool_and(end_lsn >= '{position}'), false) FROM pgsluice.progress \
             WHERE name = 'test' OR name LIKE 'test\\_%'"
        );
        let reached = || async { Ok((self.chain.c.scalar(DATABASE, &sql).await? == "t").then_some(())) };
        loop {
            let before = self.progress().await?;
            match wait_for("C at A's position", DEADLINE, reached).await {
                Err(_) if self.progress().await? != before => {}
                result => return result,
            }
        }
    }

    /// Of all shards.
    async fn progress(&self) -> Result<String> {
        self.chain
            .c
            .scalar(
                DATABASE,
                "SELECT coalesce(string_agg(end_lsn::text, ' ' ORDER BY name), '') FROM pgsluice.progress",
            )
            .await
    }

    /// C holds what B holds, row for row.
    pub async fn assert_same(&self, tables: &[&str]) -> Result<()> {
        self.chain.wait_b_caught_up().await?;
        assert_same(&self.chain.b, &self.chain.c, DATABASE, tables).await;
        Ok(())
    }

    /// Runs `sql` on A, replicates it, and compares the tables on B and C.
    pub async fn replicate(&self, sql: &str, tables: &[&str]) -> Result<()> {
        self.chain.a.sql(DATABASE, sql).await?;
        self.catch_up().await?;
        self.assert_same(tables).await
    }

    /// Runs each statement on A by itself: those between BEGIN and COMMIT are a transaction, any other is one of its own.
    pub async fn run_each(&self, statements: &str) -> Result<()> {
        let client = self.chain.a.connect(DATABASE).await?;
        for statement in statements.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
            client.batch_execute(statement).await.with_context(|| format!("on A: {statement}"))?;
        }
        Ok(())
    }

    pub async fn end_lsn(&self) -> Result<String> {
        self.chain.c.scalar(DATABASE, "SELECT end_lsn FROM pgsluice.progress WHERE name = 'test'").await
    }

    pub fn servers(&self) -> [&Server; 3] {
        [&self.chain.a, &self.chain.b, &self.chain.c]
    }
}
