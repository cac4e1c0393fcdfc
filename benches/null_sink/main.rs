//! How fast a stream can be taken from a standby: the engine's source, decode and batch stages with the batches thrown
//! away, against readers that do nothing but read.
//!
//! One standby, one backlog, one slot that is never confirmed, so every contender drains the very same WAL. Contenders
//! alternate; what counts is the ratio within a round. Run with `cargo bench --bench null_sink [-- --rows N --rounds N]`.

#[allow(dead_code, reason = "each benchmark uses its part")]
#[path = "../common/mod.rs"]
mod common;
mod contender;
mod engine;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Chain, ChainOptions};

use crate::common::ceiling::{self, Target, Transport};
use crate::common::figures::{least, median, most};
use crate::common::slot;
use crate::contender::{Drain, Measured};

const DATABASE: &str = "app";
const SLOT: &str = "bench";
const PUBLICATION: &str = "bench";
const DEFAULT_ROWS: u64 = 1_000_000;
const DEFAULT_ROUNDS: usize = 5;

fn main() -> Result<()> {
    let (rows, rounds) = arguments()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let chain = runtime.block_on(prepare(rows))?;
    let stop_at = runtime.block_on(slot::position(&chain.b))?;
    let mut results: BTreeMap<(Transport, &'static str), Vec<Measured>> = BTreeMap::new();
    for round in 0..rounds {
        for transport in [Transport::Tcp, Transport::Unix] {
            let mut contenders = contenders(transport);
            // Every contender comes first, last and between the others equally often.
            let shift = round % contenders.len();
            contenders.rotate_left(shift);
            for (name, drain) in contenders {
                let target = Target {
                    transport,
                    port: chain.b.port(),
                    socket_dir: chain.b.socket_dir().to_owned(),
                    database: DATABASE.to_owned(),
                    slot: SLOT.to_owned(),
                    publication: PUBLICATION.to_owned(),
                    stop_at,
                };
                let measured = contender::measure(&runtime, &chain.b, &target, drain)
                    .with_context(|| format!("{name} over {transport}"))?;
                ensure!(measured.rows.is_none_or(|seen| seen == rows), "{name} saw {:?} rows of {rows}", measured.rows);
                eprintln!("round {round}, {transport}, {name}: {measured}");
                results.entry((transport, name)).or_default().push(measured);
            }
        }
    }
    report(rows, &results);
    Ok(())
}

/// The engine, and the readers that come near the limit on this kind of socket.
fn contenders(transport: Transport) -> Vec<(&'static str, Drain)> {
    let engine = ("pgsluice", engine::drain as Drain);
    let eager = ("raw, eager", ceiling::eager as Drain);
    match transport {
        Transport::Tcp => vec![engine, eager, ("raw, adaptive pause", ceiling::adaptive)],
        Transport::Unix => vec![engine, eager, ("raw, short pause", ceiling::short_pause)],
    }
}

fn arguments() -> Result<(u64, usize)> {
    let (mut rows, mut rounds) = (DEFAULT_ROWS, DEFAULT_ROUNDS);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rows" => rows = arguments.next().context("--rows needs a number")?.parse()?,
            "--rounds" => rounds = arguments.next().context("--rounds needs a number")?.parse()?,
            // Given by cargo.
            "--bench" => {}
            other => anyhow::bail!("unknown argument {other}"),
        }
    }
    Ok((rows, rounds))
}

/// The chain with its backlog: rows of six columns, 1,000 a transaction, replayed by B.
async fn prepare(rows: u64) -> Result<Chain> {
    let chain =
        Chain::start(ChainOptions::default().fsync(true).autovacuum(false).a_conf("max_wal_size", "8GB")).await?;
    chain
        .a
        .sql(
            DATABASE,
            "CREATE TABLE load (id bigint PRIMARY KEY, n int, note text, amount numeric, at timestamptz, tag uuid); \
             CREATE PUBLICATION bench FOR TABLE load",
        )
        .await?;
    chain.wait_b_caught_up().await?;
    slot::create(&chain, DATABASE, SLOT).await?;
    let load = format!(
        "DO $$ BEGIN FOR i IN 0..{} LOOP \
           INSERT INTO load SELECT i * 1000 + n, n, repeat(md5(n::text), 2), n * 1.01, now(), gen_random_uuid() \
           FROM generate_series(1, 1000) n; COMMIT; END LOOP; END $$",
        rows / 1000 - 1
    );
    chain.a.sql(DATABASE, &load).await?;
    chain.wait_b_caught_up().await?;
    chain.a.sql(DATABASE, "CHECKPOINT").await?;
    chain.wait_b_caught_up().await?;
    chain.b.sql(DATABASE, "CHECKPOINT").await?;
    Ok(chain)
}

fn report(rows: u64, results: &BTreeMap<(Transport, &'static str), Vec<Measured>>) {
    println!("{rows} rows; medians, with the range over rounds; ratio to the best other reader of the same round");
    println!(
        "{:4}  {:20}  {:>22}  {:>19}  {:>9}  {:>9}",
        "", "reader", "ratio to ceiling", "rows/s", "CPU-s B", "CPU-s own"
    );
    for ((transport, name), measured) in results {
        let ratios: Vec<_> = (0..measured.len()).map(|round| ratio(results, *transport, name, round)).collect();
        let rates: Vec<_> = measured.iter().map(|one| rows as f64 / one.seconds).collect();
        let server: Vec<_> = measured.iter().map(|one| one.server_cpu_s).collect();
        let own: Vec<_> = measured.iter().map(|one| one.own_cpu_s).collect();
        println!(
            "{transport:4}  {name:20}  {:>6.2} ({:.2} to {:.2})  {:>19.0}  {:>9.2}  {:>9.2}",
            median(&ratios),
            least(&ratios),
            most(&ratios),
            median(&rates),
            median(&server),
            median(&own)
        );
    }
}

/// How much faster than the fastest of the others in the same round.
fn ratio(
    results: &BTreeMap<(Transport, &'static str), Vec<Measured>>,
    transport: Transport,
    name: &str,
    round: usize,
) -> f64 {
    let others = results.iter().filter(|((other_transport, other), _)| *other_transport == transport && *other != name);
    let best = others.map(|(_, measured)| measured[round].seconds).fold(f64::INFINITY, f64::min);
    results
        .iter()
        .find(|((at, of), _)| *at == transport && *of == name)
        .map_or(f64::NAN, |(_, measured)| best / measured[round].seconds)
}
