//! How fast a backlog on a standby reaches C: the engine against native subscriptions, text and binary, and against the
//! ceiling, which is the same stream read and thrown away.
//!
//! ```text
//!  load ──► A ──► B ──► native, text   ──► a database on C
//!                  ├──► native, binary ──► another
//!                  ├──► pgsluice       ──► another, with and without a trail
//!                  └──► ceiling
//! ```
//!
//! Every contender has a slot from before the load and drains alone, in an order that alternates from round to round. The
//! clock runs from its start until the load's last row is visible on C. What differs from A afterwards does not count.
//! Only ratios within a round mean anything. `cargo bench --bench end_to_end -- --help` shows the options.

mod arguments;
#[allow(dead_code, reason = "each benchmark uses its part")]
#[path = "../common/mod.rs"]
mod common;
mod load;
mod plot;
mod report;
mod round;

use std::fs;

use anyhow::{Context, Result};
use pgsluice_testkit::{Chain, ChainOptions};

use crate::report::Outcome;

#[tokio::main]
async fn main() -> Result<()> {
    let Some(arguments) = arguments::parse(std::env::args().skip(1))? else { return Ok(()) };
    let chain = Chain::start(options()).await?;
    let mut outcomes = Vec::new();
    for load in arguments.loads {
        let rows = load.rows(arguments.rows);
        let mut outcome = Outcome::new(load, rows);
        for round in 0..arguments.rounds {
            let drained =
                round::run(&chain, load, rows, round).await.with_context(|| format!("{}, round {round}", load.name))?;
            drained.iter().for_each(|one| eprintln!("{}, round {round}: {}", load.name, report::line(one, rows)));
            outcome.rounds.push(drained);
        }
        print!("{}", outcome.table());
        outcomes.push(outcome);
    }
    if let Some(path) = arguments.json {
        let text = serde_json::to_string_pretty(&report::json(&chain.a.install().version, &outcomes))?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = arguments.svg {
        fs::write(&path, plot::svg(&outcomes)).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Data on disk, and enough memory and WAL that neither eviction nor a timed checkpoint falls into one drain alone.
fn options() -> ChainOptions {
    let mut options = ChainOptions::default().fsync(true).autovacuum(false);
    for (name, value) in [("shared_buffers", "512MB"), ("max_wal_size", "16GB"), ("checkpoint_timeout", "1h")] {
        options = options.a_conf(name, value).b_conf(name, value).c_conf(name, value);
    }
    options
}
