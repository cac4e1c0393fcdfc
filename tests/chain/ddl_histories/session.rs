//! One history, from a database of its own to the verdict.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pgsluice_testkit::{Chain, Engine, Install, Output, run_within, wait_for};
use tempfile::TempDir;

use super::catalog::{self, Table, quoted};
use super::operations::{Generator, Step};
use super::outcome::Outcomes;
use crate::replication::{DEADLINE, ENGINE};

const RUN_DEADLINE: Duration = Duration::from_secs(90);

/// Whether an engine runs all the while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Running,
    Stopped,
}

/// One history on the servers.
#[derive(Debug)]
pub struct Session<'a> {
    chain: &'a Chain,
    database: String,
    generator: Generator,
    /// What an operator has yet to do on C.
    late: Vec<String>,
    mode: Mode,
    is_additive: bool,
    folder: TempDir,
    log: String,
    /// By all engines.
    said: String,
}

/// A published table whose rows on C are not those of A.
#[derive(Debug)]
struct Difference {
    table: String,
    what: String,
}

impl<'a> Session<'a> {
    /// Plays the history of a seed.
    ///
    /// # Errors
    /// A silent difference, a remedy that does not help, or a bug; with what was executed.
    pub async fn play(chain: &'a Chain, seed: u64, outcomes: &mut Outcomes) -> Result<()> {
        let database = format!("ddl_{seed}");
        let mut generator = Generator::new(seed, format!("pgsluice_{database}"));
        let mode = generator.random.pick(&[Mode::Running, Mode::Stopped]);
        let is_additive = generator.random.below(2) == 0;
        let (late, folder) = (Vec::new(), TempDir::new()?);
        let mut session = Session {
            chain,
            database,
            generator,
            late,
            mode,
            is_additive,
            folder,
            log: String::new(),
            said: String::new(),
        };
        let played = session.steps(outcomes).await;
        let cleaned = session.remove().await;
        played.with_context(|| format!("{mode:?}, additive {is_additive}\n{}", session.log))?;
        cleaned
    }

    async fn steps(&mut self, outcomes: &mut Outcomes) -> Result<()> {
        self.begin().await?;
        let mut engine: Option<Engine> = match self.mode {
            Mode::Running => Some(self.spawn()?),
            Mode::Stopped => None,
        };
        for _ in 0..12 + self.generator.random.below(25) {
            self.step(outcomes).await?;
            match self.generator.random.below(12) {
                0 if self.mode == Mode::Stopped => {
                    let output = self.run().await?;
                    self.note(&format!("-- run: {:?}", output.code));
                }
                // What an operator had put off is done.
                1 => self.catch_up_on_c().await,
                2 | 3 if self.mode == Mode::Running => self.wait_a_moment().await?,
                // An engine that has stopped is started again, as a supervisor does it.
                4 => engine = self.supervise(engine)?,
                _ => {}
            }
        }
        if let Some(engine) = engine {
            if engine.is_running() {
                engine.sigterm()?;
            }
            engine.wait(DEADLINE).await?;
            self.note(&format!("-- engine: {}", engine.stderr()));
            self.said += &engine.stderr();
        }
        if self.generator.random.below(4) > 0 {
            self.catch_up_on_c().await;
        }
        // A column that C lacks is met with the next row.
        for table in catalog::tables(&self.chain.a, &self.database).await? {
            let row = self.generator.insert(&table);
            if table.is_published && (!table.is_partitioned || !table.partitions.is_empty()) {
                let taken = self.on_a(&row).await.is_ok();
                self.note(if taken { "-- taken" } else { "-- refused" });
            }
        }
        self.judge(outcomes).await
    }

    fn supervise(&mut self, engine: Option<Engine>) -> Result<Option<Engine>> {
        match engine {
            Some(ended) if !ended.is_running() => {
                self.said += &ended.stderr();
                self.note(&format!("-- engine ended: {}", ended.stderr()));
                self.spawn().map(Some)
            }
            other => Ok(other),
        }
    }

    /// The last run: equal, or stopped with a reason and equal after the remedy.
    async fn judge(&mut self, outcomes: &mut Outcomes) -> Result<()> {
        let output = self.run().await?;
        let reason = if output.code == Some(0) {
            let differing = self.differences().await?;
            if differing.is_empty() {
                outcomes.add_end("equal");
                return Ok(());
            }
            let is_silent = |difference: &&Difference| !self.is_warned_of(&difference.table);
            let silent: Vec<_> =
                differing.iter().filter(is_silent).map(|difference| difference.what.as_str()).collect();
            ensure!(silent.is_empty(), "a silent difference:\n{}\n{}", silent.join("\n"), output.stderr);
            let tables: Vec<_> = differing.into_iter().map(|difference| difference.table).collect();
            format!("exit 0, and a warning of {}", tables.join(", "))
        } else {
            reason(&output)?
        };
        self.note(&format!("-- stopped: {reason}"));
        outcomes.add_stop(reason.clone());
        self.remedy().await.context("the remedy")?;
        let output = self.run().await?;
        ensure!(output.code == Some(0), "the remedy does not help against {reason}:\n{}", output.stderr);
        let differing = self.differences().await?;
        let list: Vec<_> = differing.iter().map(|difference| difference.what.as_str()).collect();
        ensure!(list.is_empty(), "a difference after the remedy of {reason}:\n{}\n{}", list.join("\n"), output.stderr);
        outcomes.add_end("stopped, and equal after the remedy");
        Ok(())
    }

    async fn begin(&mut self) -> Result<()> {
        let Chain { a, c, .. } = self.chain;
        for server in [a, c] {
            server.sql("postgres", &format!("CREATE DATABASE {}", self.database)).await?;
            server.sql(&self.database, "CREATE SCHEMA h; CREATE SEQUENCE h.ids").await?;
        }
        for Step { on_a, on_c, .. } in self.generator.first_tables() {
            self.on_a(&on_a).await?;
            if let Some(on_c) = on_c {
                self.chain.c.sql(&self.database, &on_c).await?;
            }
        }
        for table in catalog::tables(a, &self.database).await? {
            let step = self.generator.next(std::slice::from_ref(&table));
            if step.label == "change" {
                self.on_a(&step.on_a).await?;
            }
        }
        let [a, b, c] = [&self.chain.a, &self.chain.b, &self.chain.c].map(|server| server.dsn(&self.database));
        let ddl = if self.is_additive { "additive" } else { "none" };
        let text = format!(
            "name = \"{}\"\n[source]\ndsn = \"{b}\"\n[primary]\ndsn = \"{a}\"\n[target]\ndsn = \"{c}\"\n\
             [tables]\ninclude = [\"h.*\"]\n[apply]\nddl = \"{ddl}\"\n[stream]\nretry_limit = \"20s\"\n",
            self.database
        );
        std::fs::write(self.config(), text)?;
        self.chain.wait_b_caught_up().await?;
        self.succeed(&["setup"]).await
    }

    async fn step(&mut self, outcomes: &mut Outcomes) -> Result<()> {
        let tables = catalog::tables(&self.chain.a, &self.database).await?;
        let Step { label, on_a, on_c } = self.generator.next(&tables);
        let taken = self.chain.a.sql(&self.database, &transaction(&on_a)).await;
        outcomes.add_step(label, taken.is_ok());
        if let Err(error) = taken {
            self.note(&format!("-- refused: {on_a}: {:#}", error.root_cause()));
            return Ok(());
        }
        self.note(&on_a);
        let Some(on_c) = on_c else { return Ok(()) };
        match self.generator.random.below(10) {
            // In A's order: what was put off comes first.
            0..=4 => {
                self.catch_up_on_c().await;
                self.on_c(&on_c).await;
            }
            5..=8 => self.late.push(on_c),
            _ => self.note("-- never on C"),
        }
        Ok(())
    }

    async fn on_a(&mut self, sql: &str) -> Result<()> {
        self.note(sql);
        self.chain.a.sql(&self.database, &transaction(sql)).await
    }

    /// An operator's statement, which C may refuse: then it is not done.
    async fn on_c(&mut self, sql: &str) {
        let done = self.chain.c.sql(&self.database, &format!("SET lock_timeout = '5s'; {}", transaction(sql))).await;
        self.note(&format!("-- on C, {}: {sql}", if done.is_ok() { "done" } else { "refused" }));
    }

    async fn catch_up_on_c(&mut self) {
        for sql in std::mem::take(&mut self.late) {
            self.on_c(&sql).await;
        }
    }

    /// Lets an engine that runs come up with A, if nothing keeps it from that.
    async fn wait_a_moment(&mut self) -> Result<()> {
        let position = self.chain.a.scalar(&self.database, "SELECT pg_current_wal_lsn()").await?;
        let sql = format!("SELECT end_lsn >= '{position}' FROM pgsluice.progress WHERE name = '{}'", self.database);
        let reached = || async { Ok((self.chain.c.scalar(&self.database, &sql).await? == "t").then_some(())) };
        // Where it waits for something, it does so for longer than this.
        let came = wait_for("C at A's position", Duration::from_secs(2), reached).await;
        self.note(if came.is_ok() { "-- caught up" } else { "-- not caught up" });
        Ok(())
    }

    /// What the messages advise, in one go: the publication as `setup` makes it, C's tables as A's, and all of it copied again.
    async fn remedy(&mut self) -> Result<()> {
        self.late.clear();
        let tables = catalog::tables(&self.chain.a, &self.database).await?;
        let list: Vec<_> = tables.iter().filter(|table| table.has_identity).map(Table::only).collect();
        let publication = format!("pgsluice_{}", self.database);
        let mut sql = format!("ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate')");
        if !list.is_empty() {
            sql += &format!("; ALTER PUBLICATION {publication} SET TABLE {}", list.join(", "));
        }
        for table in tables.iter().filter(|table| table.is_partitioned) {
            sql += &format!("; {}", Generator::default_identity(table));
        }
        self.on_a(&sql).await?;
        self.chain.wait_b_caught_up().await?;
        let on_c = catalog::tables(&self.chain.c, &self.database).await?;
        for table in on_c {
            let is_same = tables.iter().any(|other| {
                (other.name == table.name
                    && other.columns == table.columns
                    && other.is_partitioned == table.is_partitioned)
                    && (other.partitions == table.partitions && other.inherits == table.inherits)
            });
            if !is_same {
                self.on_c(&format!("DROP TABLE IF EXISTS {} CASCADE", quoted(&table.name))).await;
            }
        }
        let programs = Install::find(None)?.bin_dir.display().to_string();
        self.succeed(&["schema", "--pg-bin", &programs]).await?;
        let output = self.command(&["resync", "--yes", "h.*"]).await?;
        // Before the first run no table is known, and all are still to be copied.
        let is_unknown = output.code == Some(3) && output.stderr.contains("no table of");
        ensure!(output.code == Some(0) || is_unknown, "resync ended with {:?}:\n{}", output.code, output.stderr);
        Ok(())
    }

    /// Published tables of A whose rows are not those of C.
    async fn differences(&self) -> Result<Vec<Difference>> {
        let mut differing = Vec::new();
        for table in catalog::tables(&self.chain.a, &self.database).await? {
            if !table.is_published {
                continue;
            }
            let on_a = catalog::digest(&self.chain.a, &self.database, &table).await?;
            let on_c = catalog::digest(&self.chain.c, &self.database, &table).await;
            let on_c = on_c.unwrap_or_else(|error| format!("{:#}", error.root_cause()));
            if on_a != on_c {
                let what = format!("{}: A has {on_a}; C has {on_c}", table.name);
                differing.push(Difference { table: table.name, what });
            }
        }
        Ok(differing)
    }

    /// The engine has named the table and what to do about it.
    fn is_warned_of(&self, table: &str) -> bool {
        let name = format!("\"h\".\"{table}\"");
        let is_warning =
            |line: &str| line.contains(" WARN ") && line.contains(&name) && line.contains("pgsluice resync");
        self.said.lines().any(is_warning)
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("pgsluice.toml")
    }

    async fn command(&self, arguments: &[&str]) -> Result<Output> {
        let config = self.config();
        let config = config.to_str().context("a path in UTF-8")?;
        run_within(RUN_DEADLINE, Path::new(ENGINE), &[arguments, &["-c", config]].concat()).await
    }

    async fn run(&mut self) -> Result<Output> {
        let output = self.command(&["run", "--stop-at", "current"]).await?;
        self.said += &output.stderr;
        Ok(output)
    }

    async fn succeed(&mut self, arguments: &[&str]) -> Result<()> {
        let output = self.command(arguments).await?;
        ensure!(output.code == Some(0), "{arguments:?} ended with {:?}:\n{}", output.code, output.stderr);
        Ok(())
    }

    fn spawn(&self) -> Result<Engine> {
        Engine::spawn(Path::new(ENGINE), &self.config(), &["run"])
    }

    fn note(&mut self, text: &str) {
        self.log += text;
        self.log += ";\n";
    }

    /// Leaves nothing on the servers: slots are few.
    async fn remove(&self) -> Result<()> {
        let Chain { a, b, c } = self.chain;
        let slot = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{}' AND NOT active",
            self.database
        );
        let gone = format!("SELECT count(*) FROM pg_replication_slots WHERE database = '{}'", self.database);
        wait_for("the slots of a history to be gone", DEADLINE, || async {
            b.sql("postgres", &slot).await?;
            Ok((b.scalar("postgres", &gone).await? == "0").then_some(()))
        })
        .await?;
        for server in [a, c] {
            server.sql("postgres", &format!("DROP DATABASE {} WITH (FORCE)", self.database)).await?;
        }
        Ok(())
    }
}

fn transaction(sql: &str) -> String {
    format!("BEGIN; {sql}; COMMIT")
}

/// Why the engine has stopped, in its own words.
fn reason(output: &Output) -> Result<String> {
    let stderr = &output.stderr;
    ensure!(matches!(output.code, Some(1 | 3)), "it ended with {:?}:\n{stderr}", output.code);
    ensure!(!stderr.contains("a bug in pgsluice"), "it ended with a bug:\n{stderr}");
    let Some(error) = stderr.rfind(" ERROR ").map(|start| &stderr[start..]) else {
        bail!("it ended without a reason:\n{stderr}");
    };
    Ok(error.split_whitespace().collect::<Vec<_>>().join(" "))
}
