//! What rules cost: the same backlog of plain inserts, drained by engines with different rules.
//!
//! ```text
//!  load ──► A ──► B ──► no rules ────────► a database on C
//!                  ├──► a rule elsewhere ─► another
//!                  ├──► a filter ─────────► another
//!                  ├──► a mask … ─────────► another
//!                  └──► another build ────► another      with --baseline FILE
//! ```
//!
//! Every contender has a slot from before the load and drains alone, in an order that alternates from round to round. The
//! clock runs from its start until the load's last row is visible on C. Only ratios within a round mean anything.
//! `cargo bench --bench rules [-- --rows N --rounds N --indexes N --baseline FILE | --quick]`; with `--indexes` C's table has so
//! many more, up to 3.

#[allow(dead_code, reason = "each benchmark uses its part")]
#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pgsluice_testkit::{Chain, ChainOptions, Engine, run_within};
use tempfile::TempDir;

use crate::common::contender::DATABASE;
use crate::common::figures::{least, median, most};
use crate::common::{process, slot};

const ENGINE: &str = env!("CARGO_BIN_EXE_pgsluice");
const POLL_INTERVAL: Duration = Duration::from_millis(3);
const DEADLINE: Duration = Duration::from_secs(600);
const STEP: u64 = 1_000;

const SCHEMA: &str = "\
    CREATE TABLE narrow (id bigint PRIMARY KEY, n int, note text, amount numeric, at timestamptz, tag uuid);
    CREATE TABLE elsewhere (id int PRIMARY KEY, note text); CREATE TABLE marker (id int PRIMARY KEY)";

/// That a table may have on C besides its primary key.
const INDEXES: [&str; 3] =
    ["CREATE INDEX ON narrow (note)", "CREATE INDEX ON narrow (tag)", "CREATE INDEX ON narrow (n, at)"];

/// An engine with its rules.
#[derive(Clone, Debug)]
struct Contender {
    name: &'static str,
    /// Of the replication, and the database on C.
    word: &'static str,
    rules: &'static str,
    /// Of so many rows one reaches C.
    passes: u64,
    engine: PathBuf,
}

#[derive(Clone, Copy, Debug)]
struct Drained {
    seconds: f64,
    cpu_engine_s: f64,
    cpu_b_s: f64,
    cpu_c_s: f64,
}

fn contenders(baseline: Option<PathBuf>) -> Vec<Contender> {
    let one = |name, word, passes, rules| Contender { name, word, rules, passes, engine: ENGINE.into() };
    let other = baseline.map(|engine| Contender { engine, ..one("another build", "baseline", 1, "") });
    [
        one("no rules", "plain", 1, ""),
        one("a rule elsewhere", "other", 1, "[[rule]]\ntable = \"public.elsewhere\"\nmask = { note = \"null\" }\n"),
        one("filter, 90 % dropped", "filter", 10, "[[rule]]\ntable = \"public.narrow\"\nwhere = \"id % 10 = 0\"\n"),
        one("mask, hmac_sha256", "mask", 1, "[[rule]]\ntable = \"public.narrow\"\nmask = { note = \"hmac_sha256\" }\n"),
        one(
            "mask, partial",
            "partial",
            1,
            "[[rule]]\ntable = \"public.narrow\"\nmask = { note = { type = \"partial\", last = 4 } }\n",
        ),
        one("set, of a text", "computed", 1, "[[rule]]\ntable = \"public.narrow\"\nset = { note = \"upper(note)\" }\n"),
    ]
    .into_iter()
    .chain(other)
    .collect()
}

#[tokio::main]
async fn main() -> Result<()> {
    let (mut rows, mut rounds, mut indexes, mut baseline) = (500_000, 5, 0, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rows" => rows = value()?.parse::<u64>()?.div_ceil(STEP) * STEP,
            "--rounds" => rounds = value()?.parse()?,
            "--indexes" => indexes = value()?.parse()?,
            "--baseline" => baseline = Some(PathBuf::from(value()?)),
            "--quick" => (rows, rounds) = (20_000, 1),
            // Given by cargo.
            "--bench" => {}
            other => bail!("unknown argument {other}"),
        }
    }
    let contenders = contenders(baseline);
    let indexes = INDEXES.get(..indexes).context("--indexes is 0 to 3")?;
    let mut options = ChainOptions::default().fsync(true).autovacuum(false);
    for (name, value) in [("shared_buffers", "512MB"), ("max_wal_size", "16GB"), ("checkpoint_timeout", "1h")] {
        options = options.a_conf(name, value).b_conf(name, value).c_conf(name, value);
    }
    let chain = Chain::start(options).await?;
    let mut measured = vec![Vec::new(); contenders.len()];
    for round in 0..rounds {
        for (contender, drained) in run(&chain, &contenders, indexes, (rows, round)).await?.into_iter().enumerate() {
            measured[contender].push(drained);
        }
    }
    println!("{} more indexes on C", indexes.len());
    print!("{}", table(&contenders, &measured, rows));
    Ok(())
}

/// The same load for all of them, beginning with another one each round.
async fn run(
    chain: &Chain,
    contenders: &[Contender],
    indexes: &[&str],
    (rows, round): (u64, usize),
) -> Result<Vec<Drained>> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("secret"), "a secret of this benchmark")?;
    chain.a.sql(DATABASE, SCHEMA).await?;
    for contender in contenders {
        chain.c.sql("postgres", &format!("CREATE DATABASE {}", contender.word)).await?;
        chain.c.sql(contender.word, SCHEMA).await?;
        chain.c.sql(contender.word, &indexes.join("; ")).await?;
    }
    chain.wait_b_caught_up().await?;
    for contender in contenders {
        contender.command(chain, &folder, &["setup"]).await?;
    }
    let session = chain.a.connect(DATABASE).await?;
    session.batch_execute("SET synchronous_commit = off").await?;
    session
        .batch_execute(&format!(
            "DO $$ BEGIN FOR i IN 0..{} LOOP INSERT INTO narrow SELECT g, (g % 1000)::int, repeat(md5(g::text), 2), g * 1.01, \
             timestamptz '2026-01-01 00:00:00Z' + g * interval '1 ms', md5('tag' || g)::uuid \
             FROM generate_series(i * {STEP} + 1, i * {STEP} + {STEP}) g; COMMIT; END LOOP; END $$",
            rows / STEP - 1
        ))
        .await?;
    chain.a.sql(DATABASE, "INSERT INTO marker VALUES (1)").await?;
    chain.wait_b_caught_up().await?;
    chain.a.sql(DATABASE, "CHECKPOINT").await?;
    chain.wait_b_caught_up().await?;

    let mut drained = vec![None; contenders.len()];
    for turn in 0..contenders.len() {
        let place = (turn + round) % contenders.len();
        let contender = &contenders[place];
        let one = contender.drain(chain, &folder).await.with_context(|| contender.name)?;
        let count = chain.c.scalar(contender.word, "SELECT count(*) FROM narrow").await?;
        ensure!(count.parse::<u64>()? == rows / contender.passes, "{}: {count} rows on C", contender.name);
        eprintln!("round {round}, {}: {:.2} s, engine {:.2} CPU-s", contender.name, one.seconds, one.cpu_engine_s);
        drained[place] = Some(one);
    }
    for contender in contenders {
        contender.command(chain, &folder, &["teardown", "--yes"]).await?;
        chain.c.sql("postgres", &format!("DROP DATABASE {} WITH (FORCE)", contender.word)).await?;
    }
    chain.a.sql(DATABASE, "DROP SCHEMA public CASCADE; CREATE SCHEMA public").await?;
    Ok(drained.into_iter().flatten().collect())
}

impl Contender {
    fn config(&self, chain: &Chain, folder: &TempDir) -> Result<PathBuf> {
        let path = folder.path().join(format!("{}.toml", self.word));
        let masks = if self.rules.is_empty() {
            String::new()
        } else {
            format!("[masks]\nsecret_file = \"{}\"\n{}", folder.path().join("secret").display(), self.rules)
        };
        let text = format!(
            "name = \"{}\"\n[source]\ndsn = \"{}\"\n[primary]\ndsn = \"{}\"\n[target]\ndsn = \"{}\"\n\
             [tables]\ninclude = [\"public.*\"]\n[snapshot]\ncopy_data = false\n{masks}",
            self.word,
            chain.b.dsn(DATABASE),
            chain.a.dsn(DATABASE),
            chain.c.dsn(self.word),
        );
        fs::write(&path, text)?;
        Ok(path)
    }

    async fn command(&self, chain: &Chain, folder: &TempDir, command: &[&str]) -> Result<()> {
        let path = self.config(chain, folder)?;
        let arguments = [command, &["-c", path.to_str().context("a path in UTF-8")?]].concat();
        let output = run_within(Duration::from_secs(120), Path::new(&self.engine), &arguments).await?;
        ensure!(output.code == Some(0), "pgsluice {}: {}", command.join(" "), output.stderr);
        Ok(())
    }

    async fn drain(&self, chain: &Chain, folder: &TempDir) -> Result<Drained> {
        let path = self.config(chain, folder)?;
        chain.b.sql("postgres", "CHECKPOINT").await?;
        chain.c.sql("postgres", "CHECKPOINT").await?;
        let watch = chain.c.connect(self.word).await?;
        let look = watch.prepare("SELECT FROM marker").await?;
        let (pid_b, pid_c) = (chain.b.pid().context("B runs")?, chain.c.pid().context("C runs")?);
        let (cpu_b, cpu_c) = (process::tree_cpu_s(pid_b)?, process::tree_cpu_s(pid_c)?);
        let start = Instant::now();
        let engine = Engine::spawn(&self.engine, &path, &["run"])?;
        while watch.query_opt(&look, &[]).await?.is_none() {
            ensure!(engine.is_running() && start.elapsed() < DEADLINE, "no marker: {}", engine.stderr());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let seconds = start.elapsed().as_secs_f64();
        let drained = Drained {
            seconds,
            cpu_engine_s: process::cpu_s(engine.pid())?,
            cpu_b_s: process::tree_cpu_s(pid_b)? - cpu_b,
            cpu_c_s: process::tree_cpu_s(pid_c)? - cpu_c,
        };
        engine.sigterm()?;
        engine.wait(Duration::from_secs(10)).await?;
        slot::wait_free(&chain.b, &format!("pgsluice_{}", self.word)).await?;
        Ok(drained)
    }
}

/// Medians over the rounds, each round against its own engine without rules.
fn table(contenders: &[Contender], measured: &[Vec<Drained>], rows: u64) -> String {
    let mut text = format!(
        "\n{rows} inserts of 6 columns, {} rounds\n{:22} {:>26}  {:>8} {:>8} {:>8}  (CPU-s per million rows)\n",
        measured[0].len(),
        "",
        "time ÷ no rules",
        "engine",
        "B",
        "C"
    );
    for (contender, drained) in contenders.iter().zip(measured) {
        let ratios: Vec<_> = drained.iter().zip(&measured[0]).map(|(one, plain)| one.seconds / plain.seconds).collect();
        let millions = rows as f64 / 1e6;
        let cpu = |figure: fn(&Drained) -> f64| median(&drained.iter().map(figure).collect::<Vec<_>>()) / millions;
        text += &format!(
            "{:22} {:>12.2} ({:.2}–{:.2})  {:>8.2} {:>8.2} {:>8.2}\n",
            contender.name,
            median(&ratios),
            least(&ratios),
            most(&ratios),
            cpu(|one| one.cpu_engine_s),
            cpu(|one| one.cpu_b_s),
            cpu(|one| one.cpu_c_s),
        );
    }
    text
}
