use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use clap::Args;

use super::trail::writer_text;
use super::{ConfigArgument, Format, output};
use crate::config::Config;
use crate::error::{Error, Kind, Stage};
use crate::postgres;
use crate::records::TableConflicts;
use crate::shards;
use crate::skips::Skip;
use crate::snapshot;
use crate::status::{Lag, ShardStatus, SlotStatus, State, Status, TableStatus, TrailStatus};

#[derive(Debug, Args)]
pub struct StatusArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Again and again, until interrupted
    #[arg(long)]
    watch: bool,
    /// Between two looks of --watch
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
}

pub fn run(arguments: &StatusArguments, format: Format) -> Result<(), Error> {
    let config = arguments.config.load()?;
    loop {
        let status = print_one(&config, format)?;
        if !arguments.watch {
            return match status.state {
                State::Unknown => {
                    let what = status.errors.join("; ");
                    Err(Error::new(Stage::Status, Kind::Incomplete(what)))
                }
                _ => Ok(()),
            };
        }
        thread::sleep(arguments.interval);
    }
}

fn print_one(config: &Config, format: Format) -> Result<Status, Error> {
    let status = postgres::new_runtime(Stage::Status)?.block_on(shards::status(config));
    match format {
        Format::Json => output::json(&status)?,
        Format::Table => output::pairs(&table(&status))?,
    }
    Ok(status)
}

fn table(status: &Status) -> Vec<(String, String)> {
    let mut rows = vec![row("name", &status.name), row("state", state_text(status.state))];
    rows.extend(status.slot.as_ref().map(|slot| slot_rows("slot", slot)).into_iter().flatten());
    rows.extend(status.primary_slot.as_ref().map(|slot| slot_rows("slot on A", slot)).into_iter().flatten());
    if let Some(progress) = &status.progress {
        rows.push(row("progress", known(progress.end_lsn)));
        rows.push(row("  commit_time", progress.commit_time.as_deref().unwrap_or(UNKNOWN)));
        rows.push(row("  epoch", progress.epoch.to_string()));
        rows.push(row("  fallbacks", progress.fallbacks.to_string()));
    }
    let lag = &status.lag;
    let hops = [
        ("lag: A to B", lag.receive),
        ("lag: replay on B", lag.replay),
        ("lag: B to engine", lag.decode),
        ("lag: engine to C", lag.apply),
        ("lag: total", lag.total),
    ];
    rows.extend(hops.map(|(label, lag)| row(label, lag_text(lag))));
    rows.extend(status.shards.iter().map(|shard| row(&format!("shard {}", shard.number), shard_text(shard))));
    rows.extend(status.tables.iter().map(|table| row(&table.table, copy_text(table))));
    rows.extend(status.conflicts.iter().map(|conflicts| row("conflicts", conflicts_text(conflicts))));
    if !status.skips.is_empty() {
        rows.push(row("skips", skips_text(&status.skips)));
    }
    rows.extend(status.trail.as_ref().map(trail_rows).into_iter().flatten());
    rows.extend(status.errors.iter().map(|error| row("error", error)));
    rows
}

fn slot_rows(label: &str, slot: &SlotStatus) -> Vec<(String, String)> {
    let wal = slot.wal_status.as_deref().unwrap_or(UNKNOWN);
    let active = if slot.active { "active" } else { "inactive" };
    let mut rows = vec![row(label, format!("{} ({active}, WAL {wal})", slot.name))];
    if let Some(reason) = &slot.invalidation_reason {
        rows.push(row("  invalidated", reason));
    }
    // A physical slot has none.
    if let Some(confirmed) = slot.confirmed_flush_lsn {
        rows.push(row("  confirmed_flush_lsn", confirmed.to_string()));
    }
    rows.push(row("  retained WAL", slot.retained_bytes.map_or(UNKNOWN.to_owned(), bytes_text)));
    if let Some(safe) = slot.safe_wal_bytes {
        rows.push(row("  lost after", bytes_text(safe.max(0).unsigned_abs())));
    }
    rows
}

fn trail_rows(trail: &TrailStatus) -> Vec<(String, String)> {
    let TrailStatus { dir, bytes, max_bytes, ends_at, writer, readers } = trail;
    let sizes = format!("{dir}: {} of {}, up to {}", bytes_text(*bytes), bytes_text(*max_bytes), known(*ends_at));
    let mut rows = vec![row("trail", sizes)];
    rows.push(row("  writer", writer.as_ref().map_or("none".to_owned(), writer_text)));
    rows.extend(readers.iter().map(|reader| row(&format!("  reader {}", reader.name), known(reader.position))));
    rows
}

const UNKNOWN: &str = "unknown";

fn row(label: &str, value: impl Into<String>) -> (String, String) {
    (label.to_owned(), value.into())
}

fn known(value: Option<impl ToString>) -> String {
    value.map_or(UNKNOWN.to_owned(), |value| value.to_string())
}

fn state_text(state: State) -> &'static str {
    match state {
        State::Streaming => "streaming",
        State::Copying => "copying: not all tables are on the target yet",
        State::Stopped => "stopped: set up, no engine reads from the slot",
        State::SlotInvalidated => "slot invalidated: it can never be used again",
        State::SlotMissing => "slot missing: the target has progress, the slot for it is gone",
        State::NotSetUp => "not set up",
        State::Unknown => UNKNOWN,
    }
}

/// What of a shard may differ from the others'.
fn shard_text(shard: &ShardStatus) -> String {
    let (state, lag) = (state_text(shard.state), lag_text(shard.lag.total));
    let end_lsn = known(shard.progress.as_ref().and_then(|progress| progress.end_lsn));
    let retained = shard.slot.as_ref().and_then(|slot| slot.retained_bytes).map_or(UNKNOWN.to_owned(), bytes_text);
    format!("{state}; progress {end_lsn}, lag {lag}, retained WAL {retained}")
}

fn copy_text(table: &TableStatus) -> String {
    if table.published == Some(false) {
        return "not replicated any more; copied again if it comes back".to_owned();
    }
    let copy = match (table.state, table.snapshot_lsn) {
        // It was there before the replication.
        (snapshot::State::Ready, None) => "ready".to_owned(),
        (state, _) => {
            let percent = table.percent.unwrap_or(0);
            let bar = if io::stdout().is_terminal() { bar(percent) } else { String::new() };
            let (state, rows, bytes) = (state.as_str(), table.rows, bytes_text(table.bytes));
            format!("{state}: {bar}{percent} % of {}; {rows} rows, {bytes} copied", bytes_text(table.source_bytes))
        }
    };
    match (table.deferred_indexes, table.deferred_foreign_keys) {
        (0, 0) => copy,
        (indexes, foreign_keys) => format!("{copy}; still dropped: {indexes} indexes, {foreign_keys} foreign keys"),
    }
}

fn conflicts_text(conflicts: &TableConflicts) -> String {
    let TableConflicts { table, overwritten, kept, inserted, skipped, set_aside, exceptions } = conflicts;
    let counts = [
        (overwritten, "overwritten"),
        (kept, "kept"),
        (inserted, "inserted"),
        (skipped, "skipped"),
        (set_aside, "set aside"),
        (exceptions, "in pgsluice.exceptions"),
    ];
    let counts: Vec<_> =
        counts.iter().filter(|(count, _)| **count > 0).map(|(n, what)| format!("{n} {what}")).collect();
    format!("{table}: {}", counts.join(", "))
}

fn skips_text(skips: &[Skip]) -> String {
    let pending: Vec<_> =
        skips.iter().filter(|skip| skip.done_at.is_none()).map(|skip| skip.commit_lsn.as_str()).collect();
    let done = format!("{} done", skips.len() - pending.len());
    if pending.is_empty() { done } else { format!("{done}, pending: {}", pending.join(", ")) }
}

fn bar(percent: u64) -> String {
    const CELLS: usize = 20;
    let full = (percent as usize * CELLS / 100).min(CELLS);
    format!("{}{} ", "█".repeat(full), "░".repeat(CELLS - full))
}

fn lag_text(lag: Lag) -> String {
    let bytes = lag.bytes.map_or(UNKNOWN.to_owned(), bytes_text);
    let seconds = lag.seconds.map_or(UNKNOWN.to_owned(), |seconds| format!("{seconds:.1} s"));
    format!("{bytes}, {seconds}")
}

fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = larger;
    }
    format!("{amount:.1} {unit}")
}
