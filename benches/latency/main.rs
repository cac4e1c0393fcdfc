//! How long a commit on A takes to be seen on C by way of the standby: the engine beside a native subscription.
//!
//! ```text
//!  senders ──1 row a transaction, at fixed times──► A ──► B ──► contender ──► C ◄──asks for new rows── watcher
//! ```
//!
//! Open loop: a row carries the time at which it was due, and is measured from there, however late it could be sent. So a
//! stall counts for every row that it holds up. Contenders take turns in slices; while one runs, the other is stopped.
//!
//! Two figures. *Applied* is the target's clock when it wrote the row, inside of the transaction that brings it: what
//! follows until the commit is not in it. *Visible* is the watcher's clock when it first saw the row, so it has half of the
//! watcher's interval in it, of both contenders alike.
//! With `--command`, `pgsluice bench` and a slice measure the same engine at the same time in each round, each with half of the rate: what
//! stalls the one stalls the other.
//! `cargo bench --bench latency [-- --command --rate N --slices N --slice-seconds N --poll-us N --json FILE | --quick]`

mod command;
#[allow(dead_code, reason = "each benchmark uses its part")]
#[path = "../common/mod.rs"]
mod common;
mod report;
mod slice;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pgsluice_testkit::{Chain, ChainOptions};

use crate::common::contender::{Config, Contender, DATABASE, PUBLICATION};
use crate::report::Outcome;

/// Those that take turns.
const CONTENDERS: [Contender; 3] = [Contender::NativeText, Contender::Engine, Contender::Alone];

const TABLE: &str = "CREATE TABLE ping (id bigint PRIMARY KEY, due_us bigint NOT NULL)";
const COLUMN_OF_C: &str = "ALTER TABLE ping ADD COLUMN applied_at timestamptz DEFAULT clock_timestamp()";

#[derive(Debug)]
struct Arguments {
    rate_per_s: u64,
    slices: usize,
    slice: Duration,
    poll: Duration,
    json: Option<PathBuf>,
    command: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = parse(std::env::args().skip(1))?;
    let chain = Chain::start(ChainOptions::default().fsync(true).autovacuum(false)).await?;
    let config = Config::write(&chain)?;
    prepare(&chain, &config).await?;
    let plan = slice::Plan { rate_per_s: arguments.rate_per_s, length: arguments.slice, poll: arguments.poll };
    let mut outcomes = CONTENDERS.map(Outcome::new);
    let mut next_id = 1;
    let mut commanded = Vec::new();
    for round in 0..arguments.slices {
        for turn in 0..outcomes.len() {
            // Each goes first in every second round.
            let outcome = &mut outcomes[(turn + round) % CONTENDERS.len()];
            let measured = slice::run(&chain, &config, outcome.contender, plan, &mut next_id).await?;
            eprintln!("slice {round}, {}: {}", outcome.contender.name(), report::line(&measured));
            outcome.slices.push(measured);
        }
        if arguments.command {
            let both = command::run(&chain, &config, plan, &mut next_id).await.context("pgsluice bench")?;
            eprintln!("slice {round}: {}", both.line());
            commanded.push(both);
        }
    }
    println!("{}", report::table(&outcomes, arguments.rate_per_s));
    if arguments.command {
        println!("{}", command::table(&commanded));
    }
    if let Some(path) = arguments.json {
        let text = serde_json::to_string_pretty(&report::json(&outcomes, arguments.rate_per_s))?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut parsed = Arguments {
        rate_per_s: 1_000,
        slices: 10,
        slice: Duration::from_secs(10),
        poll: Duration::from_micros(500),
        json: None,
        command: false,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rate" => parsed.rate_per_s = value()?.parse()?,
            "--slices" => parsed.slices = value()?.parse()?,
            "--slice-seconds" => parsed.slice = Duration::from_secs(value()?.parse()?),
            "--poll-us" => parsed.poll = Duration::from_micros(value()?.parse()?),
            "--command" => parsed.command = true,
            "--json" => parsed.json = Some(value()?.into()),
            "--quick" => (parsed.slices, parsed.slice) = (2, Duration::from_secs(2)),
            // Given by cargo.
            "--bench" => {}
            other => bail!("unknown argument {other}"),
        }
    }
    Ok(parsed)
}

async fn prepare(chain: &Chain, config: &Config) -> Result<()> {
    chain.a.sql(DATABASE, &format!("{TABLE}; CREATE PUBLICATION {PUBLICATION} FOR TABLE ping")).await?;
    for database in CONTENDERS.into_iter().filter_map(Contender::database) {
        chain.c.sql("postgres", &format!("CREATE DATABASE {database}")).await?;
        chain.c.sql(database, &format!("{TABLE}; {COLUMN_OF_C}")).await?;
    }
    chain.wait_b_caught_up().await?;
    for contender in CONTENDERS {
        contender.prepare(chain, config).await.with_context(|| format!("prepare {}", contender.name()))?;
    }
    Ok(())
}
