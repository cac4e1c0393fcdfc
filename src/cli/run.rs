use std::str::FromStr;
use std::thread;

use clap::Args;
use crossbeam_channel::{Receiver, TrySendError};
use pgsluice_proto::Lsn;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{ConfigArgument, Format, confirm, output};
use crate::config::Config;
use crate::error::{Error, Stage};
use crate::pipeline::StopAt;
use crate::postgres;
use crate::screen::Screen;
use crate::setup;
use crate::shards;
use crate::snapshot::{CopyOptions, OnExisting};

#[derive(Debug, Args)]
pub struct RunArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Stop by itself: `current` for where the source is now, or an LSN, before which all commits are applied and
    /// none after
    #[arg(long, value_name = "current|LSN", value_parser = parse_stop_at, default_value = "never", hide_default_value = true)]
    stop_at: StopAt,
    /// What to do with rows that a table of the target has before it is copied
    #[arg(long, value_enum, default_value_t)]
    on_existing: OnExisting,
    /// Do not ask before --on-existing truncate removes rows
    #[arg(long)]
    yes: bool,
    /// Drop secondary indexes and foreign keys of the target's tables before they are copied, and make them again
    /// afterwards
    #[arg(long)]
    defer_indexes: bool,
    /// Show values of rows in messages, and record them with exceptions, as row_values = true in [log] does
    #[arg(long)]
    show_values: bool,
}

fn parse_stop_at(text: &str) -> Result<StopAt, String> {
    match text {
        "never" => Ok(StopAt::Never),
        "current" => Ok(StopAt::Current),
        lsn => Lsn::from_str(lsn).map(StopAt::Lsn).map_err(|error| format!("{error}, or \"current\"")),
    }
}

#[derive(Serialize)]
struct RunResult {
    /// `None` where no session was opened.
    end_lsn: Option<String>,
    transactions: u64,
    changes: u64,
    sessions: u64,
}

pub fn run(arguments: &RunArguments, format: Format, screen: &Screen) -> Result<(), Error> {
    let mut config = arguments.config.load()?;
    config.log.row_values |= arguments.show_values;
    if arguments.on_existing == OnExisting::Truncate && !arguments.yes {
        ask_to_truncate(&config)?;
    }
    let stop = stop_signals()?;
    let RunArguments { stop_at, on_existing, defer_indexes, .. } = *arguments;
    let options = CopyOptions { on_existing, defer_indexes, screen: screen.clone() };
    let outcome = shards::run(&config, stop_at, options, &stop);
    // A copy that was left alone by a stop draws until the process ends.
    screen.close().map_err(output::failed)?;
    let summary = outcome?;
    let result = RunResult {
        end_lsn: summary.end_lsn.map(|lsn| lsn.to_string()),
        transactions: summary.transactions,
        changes: summary.changes,
        sessions: summary.sessions,
    };
    match format {
        Format::Json => output::json(&result),
        Format::Table => output::pairs(&[
            ("end_lsn".to_owned(), result.end_lsn.unwrap_or_else(|| "-".to_owned())),
            ("transactions".to_owned(), result.transactions.to_string()),
            ("changes".to_owned(), result.changes.to_string()),
            ("sessions".to_owned(), result.sessions.to_string()),
        ]),
    }
}

/// # Errors
/// [`Kind::Usage`](crate::error::Kind::Usage) unless a person agrees to what is lost.
fn ask_to_truncate(config: &Config) -> Result<(), Error> {
    let losses = postgres::new_runtime(Stage::Snapshot)?.block_on(setup::losses_on_existing(config))?;
    if losses.is_empty() {
        return Ok(());
    }
    let would = format!(
        "{}\nThey are not the source's. Tables that join later are emptied as well before they are copied.",
        confirm::losses(&config.target, &losses)
    );
    confirm::confirm(Stage::Snapshot, &would, config.name.as_str())
}

/// A message for each SIGTERM, SIGINT or SIGHUP. The last means that the terminal is gone, unless whoever started us has it ignored,
/// as `nohup` does.
pub fn stop_signals() -> Result<Receiver<()>, Error> {
    let hangs_up = if is_ignored(SIGHUP) { None } else { Some(SIGHUP) };
    let mut signals = Signals::new([SIGTERM, SIGINT].into_iter().chain(hangs_up)).map_err(output::failed)?;
    let (asked, stop) = crossbeam_channel::bounded(1);
    let forward = move || {
        for _ in signals.forever() {
            match asked.try_send(()) {
                // One request is enough.
                Ok(()) | Err(TrySendError::Full(())) => {}
                Err(TrySendError::Disconnected(())) => return,
            }
        }
    };
    thread::Builder::new().name("pgsluice-signals".to_owned()).spawn(forward).map_err(output::failed)?;
    Ok(stop)
}

/// By the mask of ignored signals, in which the first bit is that of signal 1 ("proc_pid_status").
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}
