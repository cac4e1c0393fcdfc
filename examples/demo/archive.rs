//! The initial copy, live: a bar a table, as `pgsluice status` has it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pgsluice_testkit::Engine;

use crate::replication::Replication;
use crate::screen::{Screen, count};

const INTERVAL: Duration = Duration::from_millis(100);
const DEADLINE: Duration = Duration::from_secs(120);
const BAR_CHARS: u64 = 12;

/// Shows the copy of `tables`, with the rows that each has, until the engine streams.
///
/// # Errors
/// The engine has ended, or does not get there.
pub async fn watch_copy(
    screen: &Screen,
    replication: &Replication<'_>,
    engine: &Engine,
    tables: &[(&'static str, u64)],
) -> Result<()> {
    let started_at = Instant::now();
    loop {
        ensure!(engine.is_running(), "the engine has ended by itself");
        ensure!(started_at.elapsed() < DEADLINE, "the copy has not ended");
        let (copied, streams) = replication.copied().await?;
        let of = |table: &str| {
            let (schema, name) = table.split_once('.').unwrap_or(("", table));
            let quoted = format!("\"{schema}\".\"{name}\"");
            copied.iter().find(|(table, _)| *table == quoted).map_or(0, |(_, rows)| *rows)
        };
        let bars: Vec<_> = tables.iter().map(|(table, rows)| bar(table, of(table), *rows)).collect();
        let line = format!("    {}", bars.join("   "));
        if streams {
            screen.settle(&line);
            return Ok(());
        }
        screen.live(&line);
        tokio::time::sleep(INTERVAL).await;
    }
}

fn bar(table: &str, copied: u64, rows: u64) -> String {
    let filled = (copied * BAR_CHARS / rows.max(1)).min(BAR_CHARS) as usize;
    let empty = BAR_CHARS as usize - filled;
    format!("{table} {}{} {:>7}", "█".repeat(filled), "░".repeat(empty), count(copied))
}
