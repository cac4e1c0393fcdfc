//! The demo: a shop's live changes, from its primary A through the standby B into C, and then the proof that C is right.
//!
//! ```text
//!   writers ──► A ──physical──► B ──logical──► pgsluice ──► C
//!               └───────── every row, three queries ────────┘
//! ```
//!
//! In: nothing but the engine's program. Out: a report for people, and exit code 0 only if all is equal. What always
//! holds: however the demo ends, nothing that it has started runs on; the kit ties every child to this process.

mod archive;
mod counts;
mod fake;
mod load;
mod monitor;
mod queries;
mod replication;
mod report;
mod screen;
mod shop;
mod writer;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use pgsluice_testkit::{Chain, ChainOptions, Engine, Server};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::load::{Limits, Load};
use crate::monitor::{HEADER, Monitor};
use crate::replication::Replication;
use crate::report::{Report, Run};
use crate::screen::{Screen, padded};

const DATABASE: &str = "app";
/// 128 and the number of SIGINT, as shells have it.
const EXIT_INTERRUPTED: u8 = 130;

#[derive(Debug, Parser)]
#[command(name = "demo", about = "A live shop, replicated from A through its standby B into C, and compared")]
struct Arguments {
    /// How long the shop is open
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Rows a second to write on A
    #[arg(long, value_name = "N", default_value_t = 8_000, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// Close the shop early, after about this many rows
    #[arg(long, value_name = "N")]
    rows: Option<u64>,
    /// The pgsluice to use instead of the one that was built with this demo
    #[arg(long, value_name = "PROGRAM")]
    engine: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let screen = Screen::new();
    match demo(&arguments, &screen) {
        Ok(code) => code,
        Err(error) => {
            screen.failed(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &Arguments, screen: &Screen) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let interrupted = interruption()?;
        tokio::select! {
            // First, since the same keys that interrupt us end our children.
            biased;
            result = interrupted => {
                result?;
                screen.failed("interrupted; all that was started is stopped");
                Ok(ExitCode::from(EXIT_INTERRUPTED))
            }
            is_equal = show(arguments, screen) => Ok(if is_equal? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        }
    })
}

/// Becomes ready at the first SIGINT or SIGTERM.
fn interruption() -> Result<impl Future<Output = Result<()>>> {
    let (signalled, signal) = UnixStream::pair()?;
    for number in [SIGINT, SIGTERM] {
        signal_hook::low_level::pipe::register(number, signalled.try_clone()?)?;
    }
    signal.set_nonblocking(true)?;
    let signal = tokio::net::UnixStream::from_std(signal)?;
    Ok(async move { signal.readable().await.context("waiting for signals") })
}

/// The whole demo; whether A and C are equal at its end.
async fn show(arguments: &Arguments, screen: &Screen) -> Result<bool> {
    let started_at = Instant::now();
    let program = engine_program(arguments)?;
    screen.heading("pgsluice: A → B → C");
    let chain = timed(screen, "A, its standby B, and C are running", Chain::start(ChainOptions::default())).await?;
    describe(screen, [(&chain.a, "primary"), (&chain.b, "standby of A: decodes"), (&chain.c, "target")]);
    let report = replicate(arguments, screen, &chain, program).await?;
    let stop = async {
        drop(chain);
        Ok(())
    };
    timed(screen, "A, B and C are stopped", stop).await?;
    report.print(screen, started_at.elapsed());
    Ok(report.is_equal())
}

/// From setup to teardown.
async fn replicate(arguments: &Arguments, screen: &Screen, chain: &Chain, program: PathBuf) -> Result<Report> {
    timed(screen, "a shop on A and C: app.customers, app.products, app.orders", shop::make(chain)).await?;
    let filled = "earlier years on A: 60,000 customers, 300,000 orders; C is empty";
    let archive = timed(screen, filled, shop::fill(chain)).await?;
    let replication = Replication::new(chain, program)?;
    timed(screen, "pgsluice setup", replication.setup()).await?;
    let slots = "A has one physical slot, no logical one; B has the logical slot";
    timed(screen, slots, replication.check_slots()).await?;

    let engine = replication.start()?;
    let result = work(arguments, screen, chain, &replication, &engine, &archive).await;
    if result.is_err() {
        screen.log("the engine's log", &engine.stderr());
    }
    let run = result?;

    let report = timed(screen, "every row and three queries compared on A and C", Report::make(chain, run)).await?;
    timed(screen, "pgsluice run ends with exit code 0 on SIGTERM", replication.stop(&engine)).await?;
    timed(screen, "pgsluice teardown; nothing of it remains on A, B and C", replication.teardown()).await?;
    Ok(report)
}

/// Load and engine at work, from the copy until all of the load is on C.
async fn work(
    arguments: &Arguments,
    screen: &Screen,
    chain: &Chain,
    replication: &Replication<'_>,
    engine: &Engine,
    archive: &[(&'static str, u64)],
) -> Result<Run> {
    let limits = Limits { rows_per_second: arguments.rate, rows_max: arguments.rows.unwrap_or(u64::MAX) };
    screen.heading("The shop is open, and its earlier years are copied from the standby");
    let mut load = Load::start(&chain.a, limits).await?;
    let counts = load.counts();
    // The copy runs while the shop is open; what changes meanwhile follows.
    archive::watch_copy(screen, replication, engine, archive).await?;
    screen.line("");
    screen.columns(HEADER);
    let mut monitor = Monitor::new(screen, replication, engine, load.counts());
    monitor.during(load.finish_after(Duration::from_secs(arguments.seconds))).await?;
    let closed_at = Instant::now();
    monitor.during(replication.drain()).await?;
    let drain = closed_at.elapsed();
    screen.line("");
    screen.done("load stopped, then zero lag: C is where A ended", drain);
    Ok(Run { done: counts.read(), peak: monitor.peak(), drain })
}

fn describe(screen: &Screen, servers: [(&Server, &str); 3]) {
    for (server, part) in servers {
        let version = server.install().version.replace("postgres (PostgreSQL)", "PostgreSQL");
        screen.line(&format!("      {}   {} port {}   {part}", server.name(), padded(&version, 18), server.port()));
    }
}

/// Does something and shows that it is done, and in what time.
async fn timed<T>(screen: &Screen, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let started_at = Instant::now();
    let value = work.await.with_context(|| format!("failed: {what}"))?;
    screen.done(what, started_at.elapsed());
    Ok(value)
}

/// Cargo puts examples into a folder beside the package's programs.
fn engine_program(arguments: &Arguments) -> Result<PathBuf> {
    let program = match &arguments.engine {
        Some(program) => program.clone(),
        None => {
            let demo = std::env::current_exe()?;
            let folder = demo.parent().and_then(|examples| examples.parent());
            folder.ok_or(io::Error::from(io::ErrorKind::NotFound))?.join("pgsluice")
        }
    };
    ensure!(program.is_file(), "no engine at {}; scripts/demo builds one", program.display());
    Ok(program)
}
