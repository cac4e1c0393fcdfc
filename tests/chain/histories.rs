//! Random histories, applied in as few batches as possible: C comes to hold what A and B hold, whatever netting did.
//!
//! In: a seed. Out: transactions on A, which depend on nothing else, and the same rows on B and on C, or a failure that
//! names the seed.
//!
//! ```text
//!  reset ─► first transactions ─► (the engine, for most seeds) ─► the rest ─► the engine ─► compare
//! ```
//!
//! As many as begin within some seconds are run. `PGSLUICE_SEEDS=1000` runs so many, `PGSLUICE_SEED=7` that one alone.

mod schema;
mod statements;
mod transactions;

use std::ops::Range;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use pgsluice_testkit::ChainOptions;
use pgsluice_testkit::compare::check_same;

use self::schema::TABLES;
use self::transactions::{History, Outcomes};
use crate::replication::{DATABASE, Replication};

/// At about half a second a seed.
const TIME_DEFAULT: Duration = Duration::from_secs(15);

#[tokio::test]
async fn histories_come_to_the_same_on_the_target() -> Result<()> {
    let replication = Replication::start_differing(ChainOptions::default(), &schema::on_a(), &schema::on_c()).await?;
    // Makes the role that some histories are applied as.
    replication.configure_unprivileged_target("").await?;
    replication.setup().await?;
    let mut outcomes = Outcomes::default();
    let (seeds, time) = seeds()?;
    let start = Instant::now();
    for seed in seeds {
        if start.elapsed() > time {
            break;
        }
        replay(&replication, seed, &mut outcomes).await.with_context(|| format!("PGSLUICE_SEED={seed}"))?;
    }
    println!("{outcomes}");
    Ok(())
}

/// The one that is asked for, or as many as are asked for or there is time for, from a place that differs from run to
/// run.
fn seeds() -> Result<(Range<u64>, Duration)> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>()).transpose();
    if let Some(seed) = number("PGSLUICE_SEED")? {
        return Ok((seed..seed + 1, Duration::MAX));
    }
    let first = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    Ok(match number("PGSLUICE_SEEDS")? {
        Some(seeds) => (first..first + seeds, Duration::MAX),
        None => (first..u64::MAX, TIME_DEFAULT),
    })
}

async fn replay(replication: &Replication, seed: u64, outcomes: &mut Outcomes) -> Result<()> {
    let history = History::new(seed);
    let role = if history.unprivileged { "writer" } else { "postgres" };
    replication.configure_target_role(role, &history.configuration())?;
    let client = replication.chain.a.connect(DATABASE).await?;
    client.batch_execute("CALL reset()").await?;
    for (index, transaction) in history.transactions.iter().enumerate() {
        if history.stops_at == Some(index) {
            outcomes.add_run(&run(replication).await.with_context(|| history.text())?);
        }
        transaction.run(&client, outcomes).await.with_context(|| history.text())?;
    }
    outcomes.add_run(&run(replication).await.with_context(|| history.text())?);
    let same = check_same(&replication.chain.b, &replication.chain.c, DATABASE, &TABLES).await;
    outcomes.histories += 1;
    same.with_context(|| history.text())
}

/// Replicates what A has now, and returns what the engine logged.
async fn run(replication: &Replication) -> Result<String> {
    let output = replication.command(&["-v", "run", "--stop-at", "current"]).await?;
    anyhow::ensure!(output.code == Some(0), "the engine ended with {:?}: {}", output.code, output.stderr);
    Ok(output.stderr)
}
