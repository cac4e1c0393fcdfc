//! Slots and publications that are not what setup made: each is refused with its reason, and C stays as it is.

use std::time::Duration;

use anyhow::{Result, ensure};
use pgsluice_testkit::{Chain, ChainOptions, Engine, compare, wait_for};

use crate::load::{expect_end, settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication};

const LOG_TABLE: &str = "CREATE TABLE log (n int)";
const DROP_SLOT: &str = "SELECT pg_drop_replication_slot('pgsluice_test')";
const EXIT_REFUSED: i32 = 3;

async fn start() -> Result<Replication> {
    let replication = Replication::start(LOG_TABLE).await?;
    set_up_with_a_row(&replication).await?;
    Ok(replication)
}

/// The row makes that progress is not where setup left it.
async fn set_up_with_a_row(replication: &Replication) -> Result<()> {
    replication.setup().await?;
    replication.replicate("INSERT INTO log VALUES (0)", &["public.log"]).await
}

/// Starts from nothing again, on the same servers.
async fn set_up_again(replication: &Replication) -> Result<()> {
    replication.succeed(&["teardown", "--yes"]).await?;
    replication.chain.a.sql(DATABASE, "TRUNCATE log").await?;
    replication.chain.c.sql(DATABASE, "TRUNCATE log").await?;
    set_up_with_a_row(replication).await
}

async fn insert(replication: &Replication) -> Result<()> {
    replication.chain.a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    replication.chain.wait_b_caught_up().await
}

/// Makes a slot on B as somebody else would.
async fn make_slot(chain: &Chain, database: &str) -> Result<()> {
    let sql = "SELECT pg_create_logical_replication_slot('pgsluice_test', 'pgoutput')";
    let nudge = async {
        loop {
            chain.log_standby_snapshot().await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        made = chain.b.sql(database, sql) => made,
        stopped = nudge => stopped,
    }
}

/// `run` ends with a refusal that says all this, and C is as it was.
async fn ensure_refused(replication: &Replication, said: &[&str]) -> Result<()> {
    let c = &replication.chain.c;
    let before = state_of_c(replication).await?;
    let output = replication.command(&["run"]).await?;
    ensure!(output.code == Some(EXIT_REFUSED), "ended with {:?}:\n{}", output.code, output.stderr);
    for text in said.iter().chain(&["to mend it"]) {
        ensure!(output.stderr.contains(text), "does not say \"{text}\":\n{}", output.stderr);
    }
    ensure!(state_of_c(replication).await? == before, "{} has changed", c.name());
    Ok(())
}

async fn state_of_c(replication: &Replication) -> Result<(String, String)> {
    let c = &replication.chain.c;
    let progress = "SELECT coalesce(max(p::text), '') FROM pgsluice.progress p";
    Ok((compare::checksum(c, DATABASE, "public.log").await?, c.scalar(DATABASE, progress).await?))
}

#[tokio::test]
async fn a_slot_that_was_made_again_is_refused() -> Result<()> {
    let replication = start().await?;
    let chain = &replication.chain;
    // With nothing lost between, but how should anybody know.
    chain.b.sql(DATABASE, DROP_SLOT).await?;
    make_slot(chain, DATABASE).await?;
    ensure_refused(&replication, &["dropped and made again"]).await?;
    set_up_again(&replication).await?;

    chain.b.sql(DATABASE, DROP_SLOT).await?;
    insert(&replication).await?;
    make_slot(chain, DATABASE).await?;
    insert(&replication).await?;
    ensure_refused(&replication, &["dropped and made again"]).await?;
    let setup = replication.command(&["setup"]).await?;
    ensure!(setup.code == Some(EXIT_REFUSED), "setup accepts it: {}", setup.stderr);
    set_up_again(&replication).await?;

    // While an engine runs: B takes the slot away from it, and its next session looks closely.
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let terminate = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active";
    let drop_now = || async {
        chain.b.sql(DATABASE, terminate).await?;
        Ok(chain.b.sql(DATABASE, DROP_SLOT).await.is_ok().then_some(()))
    };
    wait_for("the slot to be dropped", DEADLINE, drop_now).await?;
    insert(&replication).await?;
    expect_end(&engine, EXIT_REFUSED, &["does not exist"]).await
}

#[tokio::test]
async fn a_slot_that_was_advanced_by_hand_is_refused() -> Result<()> {
    let replication = start().await?;
    insert(&replication).await?;
    let advance = "SELECT pg_replication_slot_advance('pgsluice_test', pg_last_wal_replay_lsn())";
    replication.chain.b.sql(DATABASE, advance).await?;
    ensure_refused(&replication, &["has moved to", "advanced by hand"]).await?;
    set_up_again(&replication).await?;

    // The other way about: C was restored from a backup.
    let restored = "UPDATE pgsluice.progress SET end_lsn = consistent_point";
    replication.chain.c.sql(DATABASE, restored).await?;
    ensure_refused(&replication, &["has moved to", "the target was restored"]).await
}

#[tokio::test]
async fn what_is_missing_or_somebody_elses_is_refused() -> Result<()> {
    let replication = start().await?;
    let chain = &replication.chain;
    chain.b.sql(DATABASE, DROP_SLOT).await?;
    ensure_refused(&replication, &["slot \"pgsluice_test\" does not exist"]).await?;
    make_slot(chain, "postgres").await?;
    ensure_refused(&replication, &["is of database \"postgres\", not of \"app\""]).await?;
    chain.b.sql("postgres", DROP_SLOT).await?;
    chain.b.sql(DATABASE, "SELECT pg_create_physical_replication_slot('pgsluice_test')").await?;
    ensure_refused(&replication, &["it is a physical slot"]).await?;
    set_up_again(&replication).await?;

    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    chain.c.sql(DATABASE, "DELETE FROM pgsluice.progress").await?;
    insert(&replication).await?;
    expect_end(&engine, EXIT_REFUSED, &["the progress row \"test\" on the target is gone"]).await?;
    ensure!(chain.c.scalar(DATABASE, "SELECT count(*) FROM log").await? == "1", "the row came without its progress");
    ensure_refused(&replication, &["no progress row \"test\"", "pgsluice setup"]).await
}

#[tokio::test]
async fn another_cluster_as_source_is_refused() -> Result<()> {
    let options = ChainOptions::default().c_conf("wal_level", "logical");
    let replication = Replication::start_with(options, LOG_TABLE).await?;
    set_up_with_a_row(&replication).await?;
    // Another database of C's cluster: its own would be the target itself.
    let [source, target] = ["postgres", DATABASE].map(|database| replication.chain.c.dsn(database));
    replication.configure_servers(&source, None, &target, "")?;
    ensure_refused(&replication, &["another cluster"]).await?;
    // And though it has all by the same names.
    let same = format!("{LOG_TABLE}; CREATE PUBLICATION pgsluice_test FOR TABLE log");
    replication.chain.c.sql("postgres", &same).await?;
    let slot = "SELECT pg_create_logical_replication_slot('pgsluice_test', 'pgoutput')";
    replication.chain.c.sql("postgres", slot).await?;
    ensure_refused(&replication, &["another cluster"]).await
}

#[tokio::test]
async fn a_slot_in_use_is_waited_for() -> Result<()> {
    let replication = start().await?;
    let reader = Engine::spawn(ENGINE.as_ref(), &replication.config(), &["tail"])?;
    wait_for("a reader", DEADLINE, || async {
        let active = replication.chain.b.scalar(DATABASE, "SELECT active FROM pg_replication_slots").await?;
        Ok((active == "t").then_some(()))
    })
    .await?;
    let engine = replication.spawn()?;
    wait_log(&engine, "is active for PID", 2).await?;
    stop(&reader).await?;
    insert(&replication).await?;
    settle(&replication, &engine, &["public.log"]).await?;
    stop(&engine).await
}

/// As long as `retry_limit`, and 90 s at most.
#[tokio::test]
async fn a_slot_that_stays_in_use_ends_the_run() -> Result<()> {
    let replication = start().await?;
    replication.configure("[stream]\nretry_limit = \"1s\"\n")?;
    let reader = Engine::spawn(ENGINE.as_ref(), &replication.config(), &["tail"])?;
    wait_for("a reader", DEADLINE, || async {
        let active = replication.chain.b.scalar(DATABASE, "SELECT active FROM pg_replication_slots").await?;
        Ok((active == "t").then_some(()))
    })
    .await?;
    insert(&replication).await?;
    let before = state_of_c(&replication).await?.0;
    expect_end(&replication.spawn()?, 1, &["gave up after", "of failures in a row", "is active for PID"]).await?;
    ensure!(state_of_c(&replication).await?.0 == before, "C has changed");
    stop(&reader).await?;
    replication.replicate("INSERT INTO log VALUES (2)", &["public.log"]).await
}

/// Writes more WAL than B may keep for a slot, and has B look.
async fn exceed_wal_limit(chain: &Chain) -> Result<()> {
    for _ in 0..4 {
        chain.a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
        chain.a.sql(DATABASE, "SELECT pg_switch_wal()").await?;
    }
    chain.a.sql(DATABASE, "CHECKPOINT").await?;
    chain.wait_b_caught_up().await?;
    chain.b.sql(DATABASE, "CHECKPOINT").await
}

#[tokio::test]
async fn a_slot_whose_wal_is_gone_is_refused() -> Result<()> {
    let options = ChainOptions::default().b_conf("max_slot_wal_keep_size", "16MB").b_conf("min_wal_size", "32MB");
    let replication = Replication::start_with(options, LOG_TABLE).await?;
    set_up_with_a_row(&replication).await?;
    exceed_wal_limit(&replication.chain).await?;
    ensure_refused(&replication, &["invalidated (wal_removed)"]).await?;
    set_up_again(&replication).await?;

    // Under an engine that C keeps waiting.
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let locker = replication.chain.c.connect(DATABASE).await?;
    locker.batch_execute("BEGIN; LOCK TABLE log IN ACCESS EXCLUSIVE MODE").await?;
    exceed_wal_limit(&replication.chain).await?;
    expect_end(&engine, EXIT_REFUSED, &["invalidated (wal_removed)"]).await
}

#[tokio::test]
async fn a_slot_whose_rows_are_gone_is_refused_under_a_running_engine() -> Result<()> {
    let replication = start().await?;
    let chain = &replication.chain;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    chain.b.reload(&[("hot_standby_feedback", "off")]).await?;
    let held = "SELECT catalog_xmin IS NULL AND xmin IS NULL FROM pg_replication_slots WHERE slot_name = 'b_slot'";
    wait_for("A to be free of B's feedback", DEADLINE, || async {
        Ok((chain.a.scalar(DATABASE, held).await? == "t").then_some(()))
    })
    .await?;
    chain.a.sql(DATABASE, "CREATE TABLE gone (n int)").await?;
    chain.a.sql(DATABASE, "DROP TABLE gone").await?;
    chain.a.sql(DATABASE, "VACUUM pg_class").await?;
    // B's walsender may have sent it before B came to the record that takes the rows away; never what commits after that.
    insert(&replication).await?;
    let reason = if chain.b.install().major < 17 { "conflict with recovery" } else { "rows_removed" };
    expect_end(&engine, EXIT_REFUSED, &["is invalidated (", reason]).await?;
    let before = state_of_c(&replication).await?;
    insert(&replication).await?;
    ensure_refused(&replication, &["is invalidated (", reason]).await?;
    ensure!(state_of_c(&replication).await? == before, "C has changed");
    let rows: u32 = chain.c.scalar(DATABASE, "SELECT count(*) FROM log").await?.parse()?;
    ensure!((1..=2).contains(&rows), "C has {rows} rows");
    Ok(())
}

#[tokio::test]
async fn a_primary_that_no_longer_writes_logical_wal_is_named_under_a_running_engine() -> Result<()> {
    let replication = start().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    replication.chain.a.configure(&[("wal_level", "replica")])?;
    replication.chain.a.restart().await?;
    let major = replication.chain.b.install().major;
    let reason = if major < 17 { "conflict with recovery" } else { "wal_level_insufficient" };
    expect_end(&engine, EXIT_REFUSED, &["is invalidated (", reason]).await?;
    ensure_refused(&replication, &["is invalidated (", reason]).await
}

#[tokio::test]
async fn a_publication_that_was_dropped_stops_the_engine_before_it_passes_over_rows() -> Result<()> {
    let replication = start().await?;
    let chain = &replication.chain;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    chain.a.sql(DATABASE, "DROP PUBLICATION pgsluice_test").await?;
    let dropped_at: String = chain.a.scalar(DATABASE, "SELECT pg_current_wal_lsn()").await?;
    insert(&replication).await?;
    expect_end(&engine, EXIT_REFUSED, &["publication \"pgsluice_test\""]).await?;
    let passed = format!("SELECT end_lsn > '{dropped_at}' FROM pgsluice.progress");
    ensure!(chain.c.scalar(DATABASE, &passed).await? == "f", "progress has passed rows that never came");
    ensure_refused(&replication, &["publication \"pgsluice_test\" does not exist"]).await?;

    // Made again it is there for what follows, and not for what was written meanwhile.
    chain.a.sql(DATABASE, "CREATE PUBLICATION pgsluice_test FOR TABLE log").await?;
    insert(&replication).await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(EXIT_REFUSED), "ended with {:?}:\n{}", output.code, output.stderr);
    ensure!(output.stderr.contains("publication"), "{}", output.stderr);
    ensure!(chain.c.scalar(DATABASE, "SELECT count(*) FROM log").await? == "1", "C has a row after a gap");
    Ok(())
}
