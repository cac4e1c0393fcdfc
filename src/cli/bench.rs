use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};

use super::{ConfigArgument, Format, output, run::stop_signals};
use crate::bench::{self, DrainPlan, LatencyPlan, Outcome, Plan};
use crate::error::{Error, Stage};
use crate::screen::Screen;

#[derive(Debug, Args)]
pub struct BenchArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// What to measure
    #[arg(long, value_enum, default_value_t = Measure::All)]
    measure: Measure,
    /// latency: transactions a second, each of one row
    #[arg(long, value_name = "TX/S", default_value_t = 1_000, value_parser = RangedU64ValueParser::<u64>::new().range(1..=100_000))]
    rate: u64,
    /// latency: how long, in seconds
    #[arg(long, default_value_t = 30, value_parser = RangedU64ValueParser::<u64>::new().range(1..=86_400))]
    seconds: u64,
    /// drain: rows in all
    #[arg(long, default_value_t = 1_000_000, value_parser = RangedU64ValueParser::<u64>::new().range(1..=10_000_000_000))]
    rows: u64,
    /// drain: rows in a transaction
    #[arg(long, value_name = "ROWS", default_value_t = 1_000, value_parser = RangedU64ValueParser::<u64>::new().range(1..=10_000_000))]
    chunk: u64,
    /// drain: sessions that write
    #[arg(long, default_value_t = 4, value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    writers: usize,
    /// Text in a row, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(0..=1_000_000))]
    row_bytes: usize,
    /// How long the engine may show no progress
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measure {
    All,
    /// How long a row takes to the target at a fixed rate
    Latency,
    /// How many rows a second come to the target
    Drain,
}

pub fn run(arguments: &BenchArguments, format: Format, screen: &Screen) -> Result<(), Error> {
    // Of shards the first is measured: each is a replication of its own.
    let config = arguments.config.load()?.split().swap_remove(0);
    if config.only_applies() {
        let what =
            "the configuration applies from the trail of another, in whose publication its rows would have to be";
        let mend = "run `pgsluice bench` with the configuration that writes the trail";
        return Err(Error::refused(Stage::Bench, what, mend));
    }
    let outcome = bench::run(&config, &plan(arguments), screen, stop_signals()?);
    screen.close().map_err(output::failed)?;
    let Outcome { report, removed } = outcome.map_err(|error| error.shown(&config.log))?;
    let removed = removed.map_err(|error| error.shown(&config.log));
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            // The first error is the one that the command ends with.
            if let Err(second) = removed {
                tracing::warn!("{second}");
            }
            return Err(error.shown(&config.log));
        }
    };
    match format {
        Format::Json => output::json(&report)?,
        Format::Table => output::text_line(&report.text())?,
    }
    removed
}

fn plan(arguments: &BenchArguments) -> Plan {
    let BenchArguments { measure, rate, seconds, rows, chunk, writers, row_bytes, timeout, .. } = *arguments;
    let latency = LatencyPlan { rate_per_s: rate, length: Duration::from_secs(seconds) };
    let drain = DrainPlan { rows, chunk_rows: chunk, writers };
    Plan {
        latency: (measure != Measure::Drain).then_some(latency),
        drain: (measure != Measure::Latency).then_some(drain),
        row_bytes,
        limit: timeout,
    }
}
