//! What decoding a row costs: frames of a real server, replayed from memory, pgsluice beside other decoders.
//!
//! Contenders alternate, and what counts is the ratio within a round. Times are CPU of this thread, which other processes
//! disturb less than they do the clock on the wall. The bench fails if a contender sees other values than the first one, or
//! if pgsluice allocates per row once its buffers have grown. Run with
//! `cargo bench --bench decode [-- --rows N --rounds N --only NAME --json FILE --svg FILE]`; `--only` takes the contenders
//! with these letters in their name, for a profile.

mod allocations;
mod capture;
mod contender;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};

use crate::allocations::Allocations;
use crate::capture::{Load, TRANSACTION_ROWS};
use crate::contender::{Contender, Tally};
use crate::report::{Measured, Results};

const DEFAULT_ROWS: u64 = 100_000;
const DEFAULT_ROUNDS: usize = 15;

/// Fewer would not hide the few allocations of a replay's start, which are not per row.
const ROWS_MIN: u64 = 10_000;

/// What a whole replay may allocate, the description of its one relation included, spread over its rows.
const OURS_ALLOCATIONS_PER_ROW_MAX: f64 = 0.01;

struct Arguments {
    rows: u64,
    rounds: usize,
    only: String,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = arguments()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let loads = runtime.block_on(capture::capture(arguments.rows))?;
    drop(runtime);
    let mut results = Vec::new();
    for load in &loads {
        results.push(measure(load, &arguments).with_context(|| load.to_string())?);
    }
    report::print(&results);
    if let Some(path) = &arguments.json {
        std::fs::write(path, report::json(&results)).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &arguments.svg {
        std::fs::write(path, report::svg(&results)).with_context(|| path.display().to_string())?;
    }
    let mut exit = ExitCode::SUCCESS;
    for (load, measured) in results.iter().flat_map(|load| load.contenders.iter().map(move |one| (load, one))) {
        if measured.is_ours && measured.allocations_per_row > OURS_ALLOCATIONS_PER_ROW_MAX {
            eprintln!("{}: {} allocates {} times a row", load.load, measured.name, measured.allocations_per_row);
            exit = ExitCode::FAILURE;
        }
    }
    Ok(exit)
}

/// All contenders on one load: once to compare what they see and to let their buffers grow, then round by round.
fn measure(load: &Load, arguments: &Arguments) -> Result<Results> {
    let mut contenders = Contender::all();
    contenders.retain(|contender| contender.name().contains(&arguments.only));
    let mut seen: Option<Tally> = None;
    for contender in &mut contenders {
        let tally = contender.tally(&load.frames).context(contender.name())?;
        let expected = *seen.get_or_insert(tally);
        ensure!(tally == expected, "{} saw {tally:?}, the first contender {expected:?}", contender.name());
    }
    let seen = seen.context("no contender has the letters of --only in its name")?;
    ensure!(seen.rows == arguments.rows, "{} rows of {}", seen.rows, arguments.rows);
    let mut measured: Vec<_> = contenders.iter().map(|one| Measured::new(one.name(), one.is_ours())).collect();
    for round in 0..arguments.rounds {
        for turn in 0..contenders.len() {
            // Every contender comes first, last and between the others equally often.
            let index = (round + turn) % contenders.len();
            let before = Allocations::now();
            let start = cpu_time();
            contenders[index].replay(&load.frames)?;
            let elapsed = cpu_time() - start;
            let allocations = Allocations::now() - before;
            measured[index].add(seen.rows, elapsed, allocations);
        }
    }
    Ok(Results { load: load.to_string(), rows: seen.rows, value_bytes: seen.value_bytes, contenders: measured })
}

/// Of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn arguments() -> Result<Arguments> {
    let mut parsed =
        Arguments { rows: DEFAULT_ROWS, rounds: DEFAULT_ROUNDS, only: String::new(), json: None, svg: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rows" => parsed.rows = value()?.parse()?,
            "--rounds" => parsed.rounds = value()?.parse()?,
            "--only" => parsed.only = value()?,
            "--json" => parsed.json = Some(value()?.into()),
            "--svg" => parsed.svg = Some(value()?.into()),
            // Given by cargo.
            "--bench" => {}
            other => anyhow::bail!("unknown argument {other}"),
        }
    }
    ensure!(parsed.rows >= ROWS_MIN, "--rows is at least {ROWS_MIN}");
    ensure!(parsed.rows.is_multiple_of(TRANSACTION_ROWS), "--rows is a multiple of {TRANSACTION_ROWS}");
    ensure!(parsed.rounds >= 7, "--rounds is at least 7");
    Ok(parsed)
}
