//! Who drains: how each is prepared before the load, started, stopped, and taken away.
//!
//! ```text
//!  prepare ──► (load on A) ──► start ──► (rows on C) ──► stop ──► remove
//! ```
//!
//! Every contender has a slot on B and, but for the ceiling, a database of its own on C.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_proto::Lsn;
use pgsluice_testkit::{Chain, Engine, run_within};
use tempfile::TempDir;

use super::ceiling::{self, Target, Transport};
use super::slot;

/// On A and B.
pub const DATABASE: &str = "app";
/// That of the native subscriptions and of the ceiling; the engine makes its own, of the same tables.
pub const PUBLICATION: &str = "bench";

const ENGINE: &str = env!("CARGO_BIN_EXE_pgsluice");
const SETUP_DEADLINE: Duration = Duration::from_secs(120);
const STOP_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    NativeText,
    NativeBinary,
    /// As it comes.
    Engine,
    /// With one session on C.
    Alone,
    /// As two shards, each with one session on C.
    Shards,
    /// Through a trail.
    Trail,
    /// The stream read and thrown away.
    Ceiling,
}

pub const CONTENDERS: [Contender; 7] = [
    Contender::NativeText,
    Contender::NativeBinary,
    Contender::Engine,
    Contender::Alone,
    Contender::Shards,
    Contender::Trail,
    Contender::Ceiling,
];

/// One that runs, or has run.
#[derive(Debug)]
pub enum Running {
    Native,
    Engine(Engine),
    Ceiling(tokio::task::JoinHandle<Result<Option<u64>>>),
}

impl Contender {
    pub fn name(self) -> &'static str {
        match self {
            Contender::NativeText => "native, text",
            Contender::NativeBinary => "native, binary",
            Contender::Engine => "pgsluice",
            Contender::Alone => "pgsluice, 1",
            Contender::Shards => "pgsluice, 2 × 1",
            Contender::Trail => "pgsluice, trail",
            Contender::Ceiling => "ceiling",
        }
    }

    pub fn is_native(self) -> bool {
        matches!(self, Contender::NativeText | Contender::NativeBinary)
    }

    pub fn is_engine(self) -> bool {
        matches!(self, Contender::Engine | Contender::Alone | Contender::Shards | Contender::Trail)
    }

    /// Its slot on B, and its subscription.
    fn slot(self) -> &'static str {
        match self {
            Contender::NativeText => "native_text",
            Contender::NativeBinary => "native_binary",
            Contender::Engine => "pgsluice_bench",
            Contender::Alone => "pgsluice_alone",
            Contender::Shards => "pgsluice_shards",
            Contender::Trail => "pgsluice_trail",
            Contender::Ceiling => "ceiling",
        }
    }

    /// On C.
    pub fn database(self) -> Option<&'static str> {
        (self != Contender::Ceiling).then_some(self.slot())
    }

    pub async fn prepare(self, chain: &Chain, config: &Config) -> Result<()> {
        if self.is_engine() {
            // The history of pgbench has no key, and gets nothing but INSERTs.
            config.command(self, &["setup", "--allow-unwritable", "*.*"]).await?;
            return config.keep_trail(self);
        }
        slot::create(chain, DATABASE, self.slot()).await?;
        let Some(database) = self.database() else { return Ok(()) };
        let (slot, binary) = (self.slot(), self == Contender::NativeBinary);
        let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname={DATABASE}", chain.b.port());
        let create = format!(
            "CREATE SUBSCRIPTION {slot} CONNECTION '{conninfo}' PUBLICATION {PUBLICATION} WITH (create_slot = false, \
             slot_name = '{slot}', enabled = false, copy_data = false, binary = {binary})"
        );
        chain.c.sql(database, &create).await
    }

    /// `stop_at` is where the ceiling ends; the others run until they are stopped.
    pub async fn start(self, chain: &Chain, config: &Config, stop_at: Lsn) -> Result<Running> {
        Ok(match self {
            Contender::NativeText | Contender::NativeBinary => {
                self.alter(chain, "ENABLE").await?;
                Running::Native
            }
            Contender::Engine | Contender::Alone | Contender::Shards | Contender::Trail => {
                Running::Engine(Engine::spawn(Path::new(ENGINE), &config.path(self), &["run"])?)
            }
            Contender::Ceiling => {
                let target = Target {
                    transport: Transport::Tcp,
                    port: chain.b.port(),
                    socket_dir: chain.b.socket_dir().to_owned(),
                    database: DATABASE.to_owned(),
                    slot: self.slot().to_owned(),
                    publication: PUBLICATION.to_owned(),
                    stop_at,
                };
                Running::Ceiling(tokio::task::spawn_blocking(move || ceiling::adaptive(&target)))
            }
        })
    }

    pub async fn stop(self, chain: &Chain, running: &Running) -> Result<()> {
        match running {
            Running::Native => self.alter(chain, "DISABLE").await?,
            Running::Engine(engine) => {
                engine.sigterm()?;
                let status = engine.wait(STOP_DEADLINE).await?;
                ensure!(status.success(), "{status}: {}", engine.stderr());
            }
            Running::Ceiling(_) => {}
        }
        let slots: &[&str] = match self {
            Contender::Shards => &["pgsluice_shards_1", "pgsluice_shards_2"],
            _ => &[self.slot()],
        };
        for slot in slots {
            slot::wait_free(&chain.b, slot).await?;
        }
        Ok(())
    }

    pub async fn remove(self, chain: &Chain, config: &Config) -> Result<()> {
        match (self, self.database()) {
            (Contender::Engine | Contender::Alone | Contender::Shards | Contender::Trail, _) => {
                config.let_go_of_trail(self)?;
                return config.command(self, &["teardown", "--yes"]).await;
            }
            (_, Some(database)) => {
                self.alter(chain, "SET (slot_name = NONE)").await?;
                chain.c.sql(database, &format!("DROP SUBSCRIPTION {}", self.slot())).await?;
            }
            (_, None) => {}
        }
        chain.b.sql(DATABASE, &format!("SELECT pg_drop_replication_slot('{}')", self.slot())).await
    }

    async fn alter(self, chain: &Chain, change: &str) -> Result<()> {
        let database = self.database().context("the ceiling has no subscription")?;
        chain.c.sql(database, &format!("ALTER SUBSCRIPTION {} {change}", self.slot())).await
    }
}

/// The configurations of the engines, as files.
#[derive(Debug)]
pub struct Config(TempDir);

impl Config {
    pub fn write(chain: &Chain) -> Result<Config> {
        let config = Config(tempfile::tempdir()?);
        let alone = "[apply]\nworkers = 1\n";
        let trail = format!("[trail]\ndir = \"{}\"\n", config.trail().display());
        for (contender, name, shards, more) in [
            (Contender::Engine, "bench", 1, ""),
            (Contender::Alone, "alone", 1, alone),
            (Contender::Shards, "shards", 2, alone),
            (Contender::Trail, "trail", 1, trail.as_str()),
        ] {
            let database = contender.database().context("an engine writes")?;
            let text = format!(
                "name = \"{name}\"\nshards = {shards}\n[source]\ndsn = \"{}\"\n[primary]\ndsn = \"{}\"\n[target]\ndsn = \"{}\"\n\
                 [tables]\ninclude = [\"public.*\"]\n[snapshot]\ncopy_data = false\n{more}",
                chain.b.dsn(DATABASE),
                chain.a.dsn(DATABASE),
                chain.c.dsn(database),
            );
            fs::write(config.path(contender), text)?;
        }
        Ok(config)
    }

    fn path(&self, engine: Contender) -> std::path::PathBuf {
        self.0.path().join(format!("{}.toml", engine.slot()))
    }

    /// In a folder on disk.
    fn trail(&self) -> std::path::PathBuf {
        self.0.path().join("trail")
    }

    /// A reader that reads nothing: all that is written stays to be counted.
    fn keep_trail(&self, engine: Contender) -> Result<()> {
        if engine != Contender::Trail {
            return Ok(());
        }
        let nothing = "{\"position\": \"0/0\", \"at\": \"\"}";
        fs::write(self.trail().join("readers/bench_keep"), nothing).context("a reader of the trail")
    }

    fn let_go_of_trail(&self, engine: Contender) -> Result<()> {
        if engine != Contender::Trail {
            return Ok(());
        }
        fs::remove_file(self.trail().join("readers/bench_keep")).context("a reader of the trail")
    }

    /// What lies in the trail.
    pub fn trail_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(self.trail())? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|suffix| suffix == "trail") {
                bytes += entry.metadata()?.len();
            }
        }
        Ok(bytes)
    }

    async fn command(&self, engine: Contender, command: &[&str]) -> Result<()> {
        self.output(engine, command, SETUP_DEADLINE).await.map(drop)
    }

    /// What a command says on stdout.
    pub async fn output(&self, engine: Contender, command: &[&str], limit: Duration) -> Result<String> {
        let path = self.path(engine);
        let arguments = [command, &["-c", path.to_str().context("a path in UTF-8")?]].concat();
        let output = run_within(limit, Path::new(ENGINE), &arguments).await?;
        ensure!(output.code == Some(0), "pgsluice {}: {}", command.join(" "), output.stderr);
        Ok(output.stdout)
    }
}
