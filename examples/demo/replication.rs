//! The engine between B and C, used as its users do: by a configuration file, commands and their exit codes.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Chain, Engine, Output, Server, run, wait_for};
use serde_json::Value;
use tempfile::TempDir;

use crate::DATABASE;

const NAME: &str = "demo";
const DRAIN_DEADLINE: Duration = Duration::from_secs(120);
const EXIT_DEADLINE: Duration = Duration::from_secs(10);

/// The slots of one server, as `name (kind)`.
const SLOTS: &str = "SELECT slot_name || ' (' || slot_type || ')' FROM pg_replication_slots ORDER BY 1";

#[derive(Debug)]
pub struct Replication<'chain> {
    chain: &'chain Chain,
    program: PathBuf,
    folder: TempDir,
}

impl<'chain> Replication<'chain> {
    /// Writes the configuration.
    pub fn new(chain: &'chain Chain, program: PathBuf) -> Result<Replication<'chain>> {
        let replication = Replication { chain, program, folder: TempDir::new()? };
        let [primary, source, target] = [&chain.a, &chain.b, &chain.c].map(|server| server.dsn(DATABASE));
        let text = format!(
            "name = \"{NAME}\"\n\n[source]\ndsn = \"{source}\"\n\n[primary]\ndsn = \"{primary}\"\n\n\
             [target]\ndsn = \"{target}\"\n\n[tables]\ninclude = [\"app.*\"]\n\n\
             [snapshot]\njobs = 2\nchunk_bytes = \"1MiB\"\n"
        );
        fs::write(replication.config(), text)?;
        Ok(replication)
    }

    pub async fn setup(&self) -> Result<()> {
        self.succeed(&["setup"]).await.map(drop)
    }

    /// # Errors
    /// A slot of the chain is not where it has to be: on A only the one that B streams from, on B only ours.
    pub async fn check_slots(&self) -> Result<()> {
        let [on_a, on_b] = [slots(&self.chain.a).await?, slots(&self.chain.b).await?];
        ensure!(on_a == ["b_slot (physical)"], "A must have one physical slot and no logical one; it has {on_a:?}");
        ensure!(on_b == [format!("pgsluice_{NAME} (logical)")], "B must have one logical slot; it has {on_b:?}");
        Ok(())
    }

    /// Starts the engine, which runs until it is stopped.
    pub fn start(&self) -> Result<Engine> {
        Engine::spawn(&self.program, &self.config(), &["run"])
    }

    /// # Errors
    /// The engine does not end, or not with exit code 0.
    pub async fn stop(&self, engine: &Engine) -> Result<()> {
        engine.sigterm()?;
        let status = engine.wait(EXIT_DEADLINE).await?;
        ensure!(status.success(), "the engine ended with {status} on SIGTERM");
        Ok(())
    }

    /// Rows of a table that the initial copy has brought, and whether all tables are there and the engine streams.
    pub async fn copied(&self) -> Result<(Vec<(String, u64)>, bool)> {
        let status = self.status().await?;
        let tables = status["tables"].as_array().context("status lists the tables")?;
        let rows = |table: &Value| (table["table"].as_str().unwrap_or_default().to_owned(), table["rows"].as_u64());
        let rows = tables.iter().map(rows).map(|(table, rows)| (table, rows.unwrap_or(0))).collect();
        Ok((rows, status["state"] == "streaming"))
    }

    /// What `pgsluice status` says now.
    pub async fn lag(&self) -> Result<Lag> {
        let status = self.status().await?;
        let lag = &status["lag"];
        let hops = ["receive", "replay", "decode", "apply"].map(|hop| lag[hop]["bytes"].as_u64());
        Ok(Lag { hops, total_bytes: lag["total"]["bytes"].as_u64(), total_seconds: lag["total"]["seconds"].as_f64() })
    }

    async fn status(&self) -> Result<Value> {
        let text = self.succeed(&["status", "--format", "json"]).await?;
        serde_json::from_str(&text).with_context(|| format!("status printed {text:?}"))
    }

    /// Waits until everything is on C that A has written before this call.
    pub async fn drain(&self) -> Result<()> {
        let position = self.chain.a.scalar(DATABASE, "SELECT pg_current_wal_lsn()").await?;
        let sql = format!("SELECT end_lsn >= '{position}' FROM pgsluice.progress WHERE name = '{NAME}'");
        wait_for(&format!("{position} to be on C"), DRAIN_DEADLINE, || async {
            Ok((self.chain.c.scalar(DATABASE, &sql).await? == "t").then_some(()))
        })
        .await
    }

    /// # Errors
    /// Something that setup has made is still there afterwards.
    pub async fn teardown(&self) -> Result<()> {
        self.succeed(&["teardown", "--yes"]).await?;
        let Chain { a, b, c, .. } = self.chain;
        ensure!(slots(a).await? == ["b_slot (physical)"], "A's slots have changed: {:?}", slots(a).await?);
        ensure!(slots(b).await?.is_empty(), "B still has {:?}", slots(b).await?);
        let publications = a.scalar(DATABASE, "SELECT count(*) FROM pg_publication").await?;
        ensure!(publications == "0", "A still has a publication");
        let schema = c.scalar(DATABASE, "SELECT to_regnamespace('pgsluice') IS NULL").await?;
        ensure!(schema == "t", "C still has the schema pgsluice");
        Ok(())
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("pgsluice.toml")
    }

    async fn succeed(&self, arguments: &[&str]) -> Result<String> {
        let config = self.config();
        let config = config.to_str().context("a path in UTF-8")?;
        let Output { code, stdout, stderr } = run(&self.program, &[arguments, &["-c", config]].concat()).await?;
        ensure!(code == Some(0), "pgsluice {} ended with {code:?}:\n{stderr}", arguments.join(" "));
        Ok(stdout)
    }
}

/// How far C is behind A. Unknown is `None`.
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    /// In bytes: A to B, replay on B, B to the engine, engine to C.
    pub hops: [Option<u64>; 4],
    pub total_bytes: Option<u64>,
    pub total_seconds: Option<f64>,
}

async fn slots(server: &Server) -> Result<Vec<String>> {
    let rows = server.query_text("postgres", SLOTS).await?;
    Ok(rows.into_iter().flatten().flatten().collect())
}
