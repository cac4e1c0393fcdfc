//! Faults at random on A → B → engine → C under a bank's load: `scripts/chaos [--minutes N] [--seed N] [--only WORD] [--without WORD]`.
//!
//! ```text
//!  loop: some moments ──► a fault, and what heals it ──► … ──► every minute: load stands, C has all, everything is compared
//!  beside it, all the time: what C shows is a state that A had, or the sums would not come out
//! ```
//!
//! Ends with a table of what was done and how often, or with the first thing that is lost, doubled or torn.

mod bank;
mod engines;
mod faults;
mod target;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pgsluice_testkit::{Chain, ChainOptions, FarHost, Proxy, Random, SmallDisk, wait_for};

use crate::bank::Bank;
use crate::engines::Engines;
use crate::faults::Fault;
use crate::target::Standby;

const DATABASE: &str = "app";
/// Between two faults; some come while the one before is still being healed.
const PAUSE_MAX: Duration = Duration::from_secs(4);
const COMPARE_INTERVAL: Duration = Duration::from_secs(60);
/// Room for the tables of a run, and a little more.
const DISK_MIB: u64 = 512;

/// The servers, what lies between them and the engine, and the engine.
struct Stage {
    chain: Chain,
    to_source: Proxy,
    to_target: Proxy,
    engines: Engines,
    disk: Option<SmallDisk>,
    /// Of C; it is nowhere only while it takes C's place.
    standby: Option<Standby>,
    far_host: Option<FarHost>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let (mut minutes, mut seed, mut only, mut without) = (5_u64, None, String::new(), None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--minutes" => minutes = value()?.parse()?,
            "--seed" => seed = Some(value()?.parse()?),
            "--only" => only = value()?,
            "--without" => without = Some(value()?),
            other => bail!("unknown argument {other}; there are --minutes, --seed, --only and --without"),
        }
    }
    let mut random = seed.map_or_else(Random::new, Random::seeded);
    // By their names, as the table at the end has them.
    let is_left_out = |fault: &Fault| without.as_ref().is_some_and(|without: &String| fault.name().contains(without));
    let mut faults = Fault::ALL.to_vec();
    faults.retain(|fault| fault.name().contains(&only) && !is_left_out(fault));
    ensure!(!faults.is_empty(), "no fault is left");
    let mut stage = set_up().await?;
    let bank = Bank::open(&stage.chain, &stage.to_target).await?;
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let mut done: BTreeMap<Fault, u32> = BTreeMap::new();
    let mut comparisons = 0;
    while Instant::now() < end {
        let next = Instant::now() + COMPARE_INTERVAL;
        while Instant::now() < next.min(end) {
            random.pause(PAUSE_MAX).await;
            let fault = random.pick(&faults);
            if fault.is_possible(&stage) {
                fault.inject(&mut stage, &mut random).await.with_context(|| format!("{fault:?}"))?;
                *done.entry(fault).or_default() += 1;
            }
            stage.engines.look_after().await?;
            if !stage.engines.is_copying() {
                bank.check_beside().await?;
            }
        }
        bank.compare(&mut stage).await.with_context(|| format!("after {done:?}"))?;
        comparisons += 1;
        eprintln!("{comparisons} comparisons: equal; {} faults", done.values().sum::<u32>());
    }
    let figures = bank.close().await?;
    println!("{:32} {:>5}", "fault", "times");
    for (fault, times) in &done {
        println!("{:32} {times:>5}", fault.name());
    }
    println!(
        "\n{minutes} minutes, {} faults, {} starts of the engine, {} copies after a refusal; {figures}; {comparisons} comparisons: nothing \
         lost, nothing doubled",
        done.values().sum::<u32>(),
        stage.engines.starts(),
        stage.engines.copies(),
    );
    Ok(())
}

async fn set_up() -> Result<Stage> {
    let mut options = ChainOptions::default()
        // A host that is lost still holds the slot for so long.
        .b_conf("wal_sender_timeout", "10s")
        // Replay waits for a copy no longer than that, and the load truncates.
        .b_conf("max_standby_streaming_delay", "3s")
        // The standby of C has no slot there.
        .c_conf("wal_keep_size", "1GB");
    for conf in [&mut options.a_conf, &mut options.b_conf, &mut options.c_conf] {
        // A far host comes from another network.
        conf.push(("listen_addresses".to_owned(), "*".to_owned()));
    }
    let chain = Chain::start(options).await?;
    let disk = match SmallDisk::mount_for(&chain.c, DISK_MIB) {
        Ok(disk) => Some(disk),
        Err(error) => {
            eprintln!("a full disk is left out, since no small one can be mounted: {error:#}");
            None
        }
    };
    bank::create(&chain, disk.as_ref()).await?;
    let to_source = Proxy::start(chain.b.port()).await?;
    let to_target = Proxy::start(chain.c.port()).await?;
    let engines = Engines::set_up(&chain, &to_source, &to_target).await?;
    keep_what_the_slot_needs(&chain).await?;
    let standby = Some(Standby::start(&chain.c, disk.as_ref()).await?);
    let far_host = FarHost::start(1)?;
    Ok(Stage { chain, to_source, to_target, engines, disk, standby, far_host })
}

/// Until a checkpoint of A has saved it, A forgets in a crash what B has told it to keep for the slot; and what A then removes
/// before B is back invalidates the slot. Crashes follow each other here faster than checkpoints do.
async fn keep_what_the_slot_needs(chain: &Chain) -> Result<()> {
    let sql = "SELECT catalog_xmin IS NOT NULL FROM pg_replication_slots WHERE slot_name = 'b_slot'";
    let is_told = || async { Ok((chain.a.scalar(DATABASE, sql).await? == "t").then_some(())) };
    wait_for("A to hear what the slot needs", Duration::from_secs(60), is_told).await?;
    chain.a.sql(DATABASE, "CHECKPOINT").await
}
