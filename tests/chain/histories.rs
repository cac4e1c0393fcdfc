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

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::ChainOptions;
use pgsluice_testkit::compare::check_same;

use self::schema::TABLES;
use self::transactions::{History, Outcomes};
use crate::mode::STREAMING;
use crate::replication::{DATABASE, Replication};
use crate::rules::rows;

/// At about half a second a seed.
const TIME_DEFAULT: Duration = Duration::from_secs(15);

/// Filters of the key, filters that see all of a row, and masks of values that lie outside of the row.
const RULES: &str = r#"
[[rule]]
table = "public.child"
where = "id % 3 <> 0"
[[rule]]
table = "public.member"
where = "place < 3 OR parent % 2 = 0"
[[rule]]
table = "public.bag"
where = "n > 2 OR note IS NULL"
set = { big = "upper(big)" }
[[rule]]
table = ["public.large", "public.large_full", "public.large_index"]
mask = { one = "sha256", two = { type = "partial", first = 3 } }
"#;

/// What C is to hold of a table.
fn ruled(table: &str) -> Option<String> {
    Some(match table {
        "public.child" => "(SELECT * FROM child WHERE id % 3 <> 0)".to_owned(),
        "public.member" => "(SELECT * FROM member WHERE place < 3 OR parent % 2 = 0)".to_owned(),
        "public.bag" => {
            "(SELECT n, note, upper(big) AS big, list FROM bag WHERE n > 2 OR note IS NULL)".to_owned()
        }
        "public.large" | "public.large_full" | "public.large_index" => format!(
            "(SELECT id, k, n, encode(sha256(convert_to(one, 'UTF8')), 'hex') AS one, CASE WHEN length(two) > 3
              THEN left(two, 3) || repeat('*', length(two) - 3) ELSE repeat('*', length(two)) END AS two, list FROM {table})"
        ),
        _ => return None,
    })
}

#[tokio::test]
async fn histories_come_to_the_same_on_the_target() -> Result<()> {
    replay_all("").await
}

#[tokio::test]
async fn histories_come_to_what_rules_make_of_them() -> Result<()> {
    replay_all(RULES).await
}

async fn replay_all(rules: &str) -> Result<()> {
    // With streaming, which the seed decides, each change by itself, and each savepoint that is rolled back.
    let options = ChainOptions::default().b_conf(STREAMING, "immediate");
    let replication = Replication::start_differing(options, &schema::on_a(), &schema::on_c()).await?;
    // Makes the role that some histories are applied as.
    replication.configure_unprivileged_target(rules).await?;
    replication.setup().await?;
    let mut outcomes = Outcomes::default();
    let (seeds, time) = seeds()?;
    let start = Instant::now();
    for seed in seeds {
        if start.elapsed() > time {
            break;
        }
        replay(&replication, seed, rules, &mut outcomes).await.with_context(|| format!("PGSLUICE_SEED={seed}"))?;
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

async fn replay(replication: &Replication, seed: u64, rules: &str, outcomes: &mut Outcomes) -> Result<()> {
    let history = History::new(seed);
    let role = if history.unprivileged { "writer" } else { "postgres" };
    replication.configure_target_role(role, &format!("{}{rules}", history.configuration()))?;
    let client = replication.chain.a.connect(DATABASE).await?;
    client.batch_execute("CALL reset()").await?;
    for (index, transaction) in history.transactions.iter().enumerate() {
        if history.stops_at == Some(index) {
            outcomes.add_run(&run(replication).await.with_context(|| history.text())?);
        }
        transaction.run(&client, outcomes).await.with_context(|| history.text())?;
    }
    outcomes.add_run(&run(replication).await.with_context(|| history.text())?);
    let is_ruled = |table: &&str| !rules.is_empty() && ruled(table).is_some();
    let (ruled, others): (Vec<_>, Vec<_>) = TABLES.into_iter().partition(is_ruled);
    let same = check_same(&replication.chain.b, &replication.chain.c, DATABASE, &others).await;
    outcomes.histories += 1;
    same.and(check_ruled(replication, &ruled).await).with_context(|| history.text())
}

async fn check_ruled(replication: &Replication, tables: &[&str]) -> Result<()> {
    let [_, b, c] = replication.servers();
    for table in tables {
        let view = ruled(table).context("only tables that rules are about")?;
        let (expected, found) = (rows(b, &view).await?, rows(c, table).await?);
        let different = expected.iter().zip(&found).find(|(one, other)| one != other);
        let counts = (expected.len(), found.len());
        ensure!(expected == found, "{table}: {counts:?} rows, first difference {different:?}");
    }
    Ok(())
}

/// Replicates what A has now, and returns what the engine logged.
async fn run(replication: &Replication) -> Result<String> {
    let output = replication.command(&["-v", "run", "--stop-at", "current"]).await?;
    anyhow::ensure!(output.code == Some(0), "the engine ended with {:?}: {}", output.code, output.stderr);
    Ok(output.stderr)
}
