//! Random histories of DDL on A, against an engine that runs and against one that is stopped: at the end C
//! equals A, or the engine has stopped and says why. A difference that nobody was told of is the failure.
//!
//! In: a seed. Out: DDL and changes on A, some of the DDL on C too, at once or later or never, as an operator
//! does it; then the verdict of a last run.
//!
//! ```text
//!  database of its own ─► setup ─► steps (engine running, or run now and then) ─► late DDL on C ─► last run
//!      ├─ exit 0 ─► every published table of A has its rows on C
//!      └─ exit 1 or 3, and the message says why ─► the documented remedy ─► run again ─► rows of A on C
//! ```
//!
//! A few are run. `PGSLUICE_SEEDS=200` runs that many others, `PGSLUICE_SEED=7` that one alone.

mod catalog;
mod operations;
mod outcome;
mod session;

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use pgsluice_testkit::{Chain, ChainOptions};

use self::outcome::Outcomes;
use self::session::Session;

/// A history takes seconds.
const SEEDS_DEFAULT: std::ops::Range<u64> = 1..6;

#[tokio::test]
async fn no_history_of_ddl_ends_in_a_silent_difference() -> Result<()> {
    let chain = Chain::start(ChainOptions::default()).await?;
    let mut outcomes = Outcomes::default();
    let mut failures = Vec::new();
    for seed in seeds()? {
        let played = Session::play(&chain, seed, &mut outcomes).await.with_context(|| format!("PGSLUICE_SEED={seed}"));
        if let Err(failure) = played {
            println!("FAILED {failure:#}");
            failures.push(failure);
        }
    }
    println!("{outcomes}");
    match failures.into_iter().next() {
        Some(first) => Err(first),
        None => outcomes.check(),
    }
}

/// The one that is asked for, or as many as are asked for from a place that differs from run to run, or the same few.
fn seeds() -> Result<std::ops::Range<u64>> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>()).transpose();
    if let Some(seed) = number("PGSLUICE_SEED")? {
        return Ok(seed..seed + 1);
    }
    let Some(count) = number("PGSLUICE_SEEDS")? else { return Ok(SEEDS_DEFAULT) };
    let first = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    Ok(first..first + count)
}
