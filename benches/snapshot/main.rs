//! How fast tables come from the standby into C: the initial copy beside as many pipes of `psql`, one COPY into another.
//!
//! ```text
//!  B ──COPY──► psql │ psql ──COPY──► C      a pipe a table, so many at once
//!  B ──COPY──►  pgsluice run  ──COPY──► C   so many jobs
//! ```
//!
//! Every contender copies the same tables, which are empty on C and in the buffers of B; they alternate, and only ratios
//! within a round mean anything. The engine's time is from its start until all tables are `finishedcopy`: the making of the
//! slot and all checks are in it.
//! `cargo bench --bench snapshot [-- --rows N --rounds N --json FILE | --quick]`

#[allow(dead_code, reason = "each benchmark uses its part")]
#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pgsluice_testkit::{Chain, ChainOptions, Engine, Server, compare, run_within};
use tempfile::TempDir;

use crate::common::figures::{least, median, most};
use crate::common::process;

const DATABASE: &str = "app";
const ENGINE: &str = env!("CARGO_BIN_EXE_pgsluice");
const POLL_INTERVAL: Duration = Duration::from_millis(3);
const DEADLINE: Duration = Duration::from_secs(600);
const MIB: f64 = 1_048_576.0;

/// What is copied, and by how many at once.
#[derive(Clone, Copy, Debug)]
struct Load {
    name: &'static str,
    tables: u64,
    jobs: &'static [usize],
}

const LOADS: [Load; 2] =
    [Load { name: "8 tables", tables: 8, jobs: &[1, 4] }, Load { name: "1 table", tables: 1, jobs: &[1, 4] }];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Psql { pipes: usize },
    Engine { jobs: usize },
}

#[derive(Clone, Debug)]
struct Measured {
    contender: Contender,
    seconds: f64,
    cpu_s: Option<f64>,
    peak_rss_bytes: Option<u64>,
}

#[derive(Debug)]
struct Arguments {
    rows: u64,
    rounds: usize,
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = parse(std::env::args().skip(1))?;
    let mut options = ChainOptions::default().fsync(true).autovacuum(false);
    for (name, value) in [("shared_buffers", "1GB"), ("max_wal_size", "16GB"), ("checkpoint_timeout", "1h")] {
        options = options.a_conf(name, value).b_conf(name, value).c_conf(name, value);
    }
    let chain = Chain::start(options).await?;
    let mut documents = Vec::new();
    for load in LOADS {
        let rows = arguments.rows / load.tables;
        fill(&chain, load, rows).await?;
        let mut rounds = Vec::new();
        for round in 0..arguments.rounds {
            let mut contenders = contenders(load);
            let shift = round % contenders.len();
            contenders.rotate_left(shift);
            let mut measured = Vec::new();
            for contender in contenders {
                let one = copy(&chain, load, contender).await.with_context(|| format!("{contender:?}"))?;
                eprintln!("{}, round {round}, {}: {:.2} s", load.name, name(contender), one.seconds);
                measured.push(one);
            }
            rounds.push(measured);
        }
        println!("{}", table(load, rows * load.tables, &rounds));
        documents.push(json(load, &rounds));
        empty(&chain, load, "DROP TABLE").await?;
    }
    if let Some(path) = arguments.json {
        let text = serde_json::to_string_pretty(&serde_json::json!({ "loads": documents }))?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut parsed = Arguments { rows: 4_000_000, rounds: 5, json: None };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rows" => parsed.rows = value()?.parse()?,
            "--rounds" => parsed.rounds = value()?.parse()?,
            "--json" => parsed.json = Some(value()?.into()),
            "--quick" => (parsed.rows, parsed.rounds) = (80_000, 1),
            // Given by cargo.
            "--bench" => {}
            other => bail!("unknown argument {other}"),
        }
    }
    Ok(parsed)
}

/// Of one table there can only be one pipe.
fn contenders(load: Load) -> Vec<Contender> {
    let pipes = load.jobs.iter().filter(|jobs| **jobs as u64 <= load.tables);
    let psql = pipes.map(|pipes| Contender::Psql { pipes: *pipes });
    psql.chain(load.jobs.iter().map(|jobs| Contender::Engine { jobs: *jobs })).collect()
}

fn name(contender: Contender) -> String {
    match contender {
        Contender::Psql { pipes } => format!("psql | psql, {pipes} at once"),
        Contender::Engine { jobs } => format!("pgsluice, jobs = {jobs}"),
    }
}

fn tables(load: Load) -> Vec<String> {
    (0..load.tables).map(|number| format!("narrow_{number}")).collect()
}

/// Filled on A, empty on C.
async fn fill(chain: &Chain, load: Load, rows: u64) -> Result<()> {
    for table in tables(load) {
        let create = format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, n int, note text, amount numeric, at timestamptz, tag uuid)"
        );
        let insert = format!(
            "INSERT INTO {table} SELECT g, (g % 1000)::int, repeat(md5(g::text), 2), g * 1.01, \
             timestamptz '2026-01-01 00:00:00Z' + g * interval '1 ms', md5('tag' || g)::uuid \
             FROM generate_series(1, {rows}) g"
        );
        chain.a.sql(DATABASE, &format!("{create}; {insert}")).await?;
        chain.a.sql(DATABASE, &format!("VACUUM ANALYZE {table}")).await?;
        chain.c.sql(DATABASE, &create).await?;
    }
    chain.a.sql(DATABASE, "CHECKPOINT").await?;
    chain.wait_b_caught_up().await?;
    // The first reader of a page is not to pay for it.
    for table in tables(load) {
        chain.b.sql(DATABASE, &format!("SELECT count(note) FROM {table}")).await?;
    }
    Ok(())
}

async fn empty(chain: &Chain, load: Load, how: &str) -> Result<()> {
    let servers: &[&Server] = if how == "DROP TABLE" { &[&chain.a, &chain.c] } else { &[&chain.c] };
    for server in servers {
        server.sql(DATABASE, &format!("{how} {}", tables(load).join(", "))).await?;
    }
    chain.wait_b_caught_up().await
}

async fn copy(chain: &Chain, load: Load, contender: Contender) -> Result<Measured> {
    empty(chain, load, "TRUNCATE").await?;
    chain.c.sql("postgres", "CHECKPOINT").await?;
    let measured = match contender {
        Contender::Psql { pipes } => by_psql(chain, load, pipes).await?,
        Contender::Engine { jobs } => by_engine(chain, load, jobs).await?,
    };
    for table in tables(load) {
        let [b, c] = [&chain.b, &chain.c].map(|server| compare::checksum(server, DATABASE, &table));
        ensure!(b.await? == c.await?, "{table} differs after {}", name(contender));
    }
    Ok(measured)
}

async fn by_psql(chain: &Chain, load: Load, pipes: usize) -> Result<Measured> {
    let psql = chain.b.install().bin_dir.join("psql");
    let program = |server: &Server, sql: &str| {
        format!("{} -qX -h 127.0.0.1 -p {} -U postgres -d {DATABASE} -c '{sql}'", psql.display(), server.port())
    };
    let out = program(&chain.b, "COPY {} TO STDOUT (FORMAT binary)");
    let into = program(&chain.c, "COPY {} FROM STDIN (FORMAT binary)");
    let mut command = Command::new("timeout");
    command.arg(DEADLINE.as_secs().to_string()).args(["xargs", "-P", &pipes.to_string(), "-I{}", "sh", "-c"]);
    command.arg(format!("{out} | {into}")).stdin(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn()?;
    child.stdin.take().context("it was piped")?.write_all(tables(load).join("\n").as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "{status}");
    let seconds = start.elapsed().as_secs_f64();
    Ok(Measured { contender: Contender::Psql { pipes }, seconds, cpu_s: None, peak_rss_bytes: None })
}

async fn by_engine(chain: &Chain, load: Load, jobs: usize) -> Result<Measured> {
    let folder = tempfile::tempdir()?;
    let config = configure(chain, &folder, jobs)?;
    command(&config, &["setup"]).await?;
    let session = chain.c.connect(DATABASE).await?;
    let states =
        session.prepare("SELECT count(*) FROM pgsluice.table_state WHERE state IN ('finishedcopy', 'ready')").await?;
    let start = Instant::now();
    let engine = Engine::spawn(Path::new(ENGINE), &config, &["run"])?;
    loop {
        let done: i64 = session.query_one(&states, &[]).await?.get(0);
        if done.unsigned_abs() == load.tables {
            break;
        }
        ensure!(engine.is_running() && start.elapsed() < DEADLINE, "no end of the copy: {}", engine.stderr());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let seconds = start.elapsed().as_secs_f64();
    let measured = Measured {
        contender: Contender::Engine { jobs },
        seconds,
        cpu_s: process::cpu_s(engine.pid()).ok(),
        peak_rss_bytes: process::peak_rss_bytes(engine.pid()).ok(),
    };
    engine.sigterm()?;
    let status = engine.wait(Duration::from_secs(10)).await?;
    ensure!(status.success(), "{status}: {}", engine.stderr());
    command(&config, &["teardown", "--yes"]).await?;
    Ok(measured)
}

fn configure(chain: &Chain, folder: &TempDir, jobs: usize) -> Result<PathBuf> {
    let path = folder.path().join("pgsluice.toml");
    let [source, primary, target] = [&chain.b, &chain.a, &chain.c].map(|server| server.dsn(DATABASE));
    let text = format!(
        "name = \"bench\"\n[source]\ndsn = \"{source}\"\n[primary]\ndsn = \"{primary}\"\n[target]\ndsn = \"{target}\"\n\
         [tables]\ninclude = [\"public.*\"]\n[snapshot]\njobs = {jobs}\n"
    );
    fs::write(&path, text)?;
    Ok(path)
}

async fn command(config: &Path, command: &[&str]) -> Result<()> {
    let arguments = [command, &["-c", config.to_str().context("a path in UTF-8")?]].concat();
    let output = run_within(Duration::from_secs(120), Path::new(ENGINE), &arguments).await?;
    ensure!(output.code == Some(0), "pgsluice {}: {}", command.join(" "), output.stderr);
    Ok(())
}

/// Per round, how many times faster a contender was than the pipes, as many as there can be of them.
fn ratios(rounds: &[Vec<Measured>], contender: Contender) -> Vec<f64> {
    let wanted = match contender {
        Contender::Psql { pipes: at_once } | Contender::Engine { jobs: at_once } => at_once,
    };
    let pipes = |one: &&Measured| matches!(one.contender, Contender::Psql { pipes } if pipes <= wanted);
    let of_round = |round: &Vec<Measured>| {
        let own = round.iter().find(|one| one.contender == contender)?.seconds;
        let psql = round.iter().filter(pipes).map(|one| one.seconds).reduce(f64::min)?;
        Some(psql / own)
    };
    rounds.iter().filter_map(of_round).collect()
}

fn of(rounds: &[Vec<Measured>], contender: Contender, figure: impl Fn(&Measured) -> Option<f64>) -> f64 {
    let all: Vec<_> = rounds.iter().flatten().filter(|one| one.contender == contender).filter_map(figure).collect();
    median(&all)
}

fn table(load: Load, rows: u64, rounds: &[Vec<Measured>]) -> String {
    let mut text = format!(
        "\n{}, {rows} rows of 6 columns, {} rounds\n{:24} {:>9}  {:>20}  {:>8} {:>8}\n",
        load.name,
        rounds.len(),
        "",
        "rows/s",
        "× psql",
        "CPU-s/M",
        "RSS MiB"
    );
    for contender in contenders(load) {
        let ratios = ratios(rounds, contender);
        let known = |value: f64| if value.is_nan() { "-".to_owned() } else { format!("{value:.2}") };
        text += &format!(
            "{:24} {:>9.0}  {:>20}  {:>8} {:>8}\n",
            name(contender),
            rows as f64 / of(rounds, contender, |one| Some(one.seconds)),
            format!("{:.2} ({:.2}–{:.2})", median(&ratios), least(&ratios), most(&ratios)),
            known(of(rounds, contender, |one| one.cpu_s) / (rows as f64 / 1e6)),
            known(of(rounds, contender, |one| one.peak_rss_bytes.map(|bytes| bytes as f64 / MIB))),
        );
    }
    text
}

fn json(load: Load, rounds: &[Vec<Measured>]) -> serde_json::Value {
    let one = |one: &Measured| {
        serde_json::json!({
            "contender": name(one.contender),
            "seconds": one.seconds,
            "cpu_engine_s": one.cpu_s,
            "peak_rss_bytes": one.peak_rss_bytes,
        })
    };
    let rounds: Vec<Vec<_>> = rounds.iter().map(|round| round.iter().map(one).collect()).collect();
    serde_json::json!({ "name": load.name, "rounds": rounds })
}
