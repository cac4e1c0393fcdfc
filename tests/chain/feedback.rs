//! What the walsender is told, and when: never more than C has, soon enough for B, whatever C is doing. And how a run
//! ends.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_proto::Lsn;
use pgsluice_testkit::{ChainOptions, Proxy, Signal, wait_for};
use serde_json::Value;

use crate::load::{
    PGBENCH_TABLES, pgbench_replication, settle, start_load, stop, stop_by, wait_progress, wait_streaming,
};
use crate::replication::{DATABASE, DEADLINE, Replication};

const LOG_TABLE: &str = "CREATE TABLE log (n int, filler text)";
const TIMED_OUT: &str = "terminating walsender process due to replication timeout";

/// Waits until this is true on B.
async fn wait_b(replication: &Replication, what: &str, sql: &str) -> Result<()> {
    wait_b_within(DEADLINE, replication, what, sql).await
}

async fn wait_b_within(deadline: Duration, replication: &Replication, what: &str, sql: &str) -> Result<()> {
    wait_for(what, deadline, || async { Ok((replication.chain.b.scalar(DATABASE, sql).await? == "t").then_some(())) })
        .await
}

/// Waits until a backend of the engine on C waits for a lock.
async fn wait_blocked(replication: &Replication) -> Result<()> {
    let sql = "SELECT count(*) > 0 FROM pg_stat_activity \
               WHERE wait_event_type = 'Lock' AND application_name LIKE 'pgsluice%'";
    wait_for("the engine to wait for a lock", DEADLINE, || async {
        Ok((replication.chain.c.scalar(DATABASE, sql).await? == "t").then_some(()))
    })
    .await
}

/// Resident memory of a process, now and at its highest.
fn memory_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

#[tokio::test]
async fn a_locked_table_costs_neither_the_stream_nor_memory() -> Result<()> {
    // Three times the walsender's patience; PGSLUICE_LOCK_SECONDS makes it longer.
    let locked_s: u64 = std::env::var("PGSLUICE_LOCK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(6);
    let options = ChainOptions::default().b_conf("wal_sender_timeout", "2s");
    let replication = Replication::start_with(options, LOG_TABLE).await?;
    replication.configure("[apply]\nbatch_bytes = \"1MiB\"\n")?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let locker = replication.chain.c.connect(DATABASE).await?;
    locker.batch_execute("BEGIN; LOCK TABLE log IN ACCESS EXCLUSIVE MODE").await?;
    // Many times what the engine may hold.
    let load = "DO $$ BEGIN FOR i IN 1..100 LOOP \
                INSERT INTO log SELECT i, repeat('x', 10000) FROM generate_series(1, 100); COMMIT; END LOOP; END $$";
    replication.chain.a.sql(DATABASE, load).await?;
    wait_blocked(&replication).await?;
    let now = replication.chain.b.scalar(DATABASE, "SELECT clock_timestamp()").await?;
    let answered =
        format!("SELECT reply_time > timestamptz '{now}' + interval '{locked_s} s' FROM pg_stat_replication");
    let deadline = DEADLINE + Duration::from_secs(locked_s);
    wait_b_within(deadline, &replication, "answers all the while", &answered).await?;
    locker.batch_execute("ROLLBACK").await?;
    settle(&replication, &engine, &["public.log"]).await?;
    ensure!(!replication.chain.b.log().contains(TIMED_OUT), "B gave the engine up");
    ensure!(!engine.stderr().contains("session ended"), "the engine lost its session:\n{}", engine.stderr());
    let memory = memory_kib(engine.pid())?;
    ensure!(memory < 64 * 1024, "the engine used {memory} KiB");
    stop(&engine).await
}

#[tokio::test]
async fn an_idle_slot_follows_the_writes_of_other_tables() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    replication.chain.a.sql(DATABASE, "CREATE SCHEMA other; CREATE TABLE other.t (n int)").await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    for _ in 0..3 {
        let written = "INSERT INTO other.t SELECT generate_series(1, 1000) RETURNING pg_current_wal_lsn()";
        let position = replication.chain.a.scalar(DATABASE, written).await?;
        let advanced = format!("SELECT confirmed_flush_lsn >= '{position}' FROM pg_replication_slots");
        wait_b(&replication, "the slot to advance", &advanced).await?;
        let end_lsn = replication.end_lsn().await?;
        ensure!(end_lsn.parse::<Lsn>()? >= position.parse()?, "progress {end_lsn} is behind {position}");
    }
    stop(&engine).await
}

#[tokio::test]
async fn the_slot_is_never_ahead_of_progress() -> Result<()> {
    let replication = pgbench_replication(ChainOptions::default()).await?;
    replication.configure("[stream]\nstatus_interval = \"100ms\"\n")?;
    let b = replication.chain.b.connect(DATABASE).await?;
    let c = replication.chain.c.connect(DATABASE).await?;
    let load = start_load(&replication)?;
    let engine = replication.spawn()?;
    let (mut last, mut moves) = (String::new(), 0);
    while moves < 40 {
        let confirmed: String =
            b.query_one("SELECT confirmed_flush_lsn::text FROM pg_replication_slots", &[]).await?.get(0);
        let end_lsn: String = c.query_one("SELECT end_lsn::text FROM pgsluice.progress", &[]).await?.get(0);
        ensure!(confirmed.parse::<Lsn>()? <= end_lsn.parse()?, "{confirmed} is confirmed, progress is {end_lsn}");
        moves += usize::from(confirmed != last);
        last = confirmed;
        ensure!(engine.is_running(), "{}", engine.stderr());
    }
    load.kill().await?;
    settle(&replication, &engine, &PGBENCH_TABLES).await?;
    stop(&engine).await
}

/// TPC-B moves the same amounts in four tables: a transaction that is there in part shows.
async fn ensure_whole_transactions(replication: &Replication) -> Result<()> {
    let sql = "SELECT a = b AND b = t AND t = h FROM (SELECT \
               (SELECT sum(abalance) FROM pgbench_accounts) a, (SELECT sum(bbalance) FROM pgbench_branches) b, \
               (SELECT sum(tbalance) FROM pgbench_tellers) t, (SELECT sum(delta) FROM pgbench_history) h) s";
    ensure!(replication.chain.c.scalar(DATABASE, sql).await? == "t", "C has a part of a transaction");
    Ok(())
}

#[tokio::test]
async fn a_stop_ends_on_a_commit_under_load_and_before_a_lock() -> Result<()> {
    let replication = pgbench_replication(ChainOptions::default()).await?;
    let load = start_load(&replication)?;
    for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
        let engine = replication.spawn()?;
        wait_progress(&replication).await?;
        stop_by(&engine, signal).await?;
        ensure_whole_transactions(&replication).await?;
    }
    let locker = replication.chain.c.connect(DATABASE).await?;
    for signal in [Signal::TERM, Signal::INT] {
        let engine = replication.spawn()?;
        wait_progress(&replication).await?;
        locker.batch_execute("BEGIN; LOCK TABLE pgbench_history IN ACCESS EXCLUSIVE MODE").await?;
        wait_blocked(&replication).await?;
        stop_by(&engine, signal).await?;
        locker.batch_execute("ROLLBACK").await?;
        ensure_whole_transactions(&replication).await?;
    }
    load.kill().await?;
    replication.catch_up().await?;
    replication.assert_same(&PGBENCH_TABLES).await
}

#[tokio::test]
async fn a_stop_ends_an_engine_that_is_idle_or_still_starting() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    replication.setup().await?;
    for signal in [Signal::TERM, Signal::INT] {
        let engine = replication.spawn()?;
        wait_streaming(&engine, 1).await?;
        stop_by(&engine, signal).await?;
    }
    // Another engine's transaction, say, is at work on the progress row.
    let locker = replication.chain.c.connect(DATABASE).await?;
    locker.batch_execute("BEGIN; SELECT FROM pgsluice.progress FOR UPDATE").await?;
    let engine = replication.spawn()?;
    wait_blocked(&replication).await?;
    stop(&engine).await?;
    // Another reader has the slot.
    locker.batch_execute("ROLLBACK").await?;
    let config = replication.config();
    let reader = pgsluice_testkit::Engine::spawn(crate::replication::ENGINE.as_ref(), &config, &["tail"])?;
    wait_b(&replication, "a reader", "SELECT active FROM pg_replication_slots").await?;
    let engine = replication.spawn()?;
    crate::load::wait_log(&engine, "is active for PID", 1).await?;
    stop(&engine).await?;
    stop(&reader).await
}

#[tokio::test]
async fn a_stop_ends_an_engine_whose_servers_no_longer_answer() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    let chain = &replication.chain;
    let (to_b, to_c) = (Proxy::start(chain.b.port()).await?, Proxy::start(chain.c.port()).await?);
    let primary = chain.a.dsn(DATABASE);
    replication.configure_servers(&to_b.dsn(DATABASE), Some(&primary), &to_c.dsn(DATABASE), "")?;
    replication.setup().await?;
    for (proxy, row) in [(&to_b, "1"), (&to_c, "2")] {
        let engine = replication.spawn()?;
        wait_streaming(&engine, 1).await?;
        proxy.stall();
        chain.a.sql(DATABASE, &format!("INSERT INTO log VALUES ({row})")).await?;
        chain.wait_b_caught_up().await?;
        stop(&engine).await?;
        // And one that never gets an answer.
        let accepted = proxy.accepted();
        let engine = replication.spawn()?;
        wait_for("a try", DEADLINE, || async { Ok((proxy.accepted() > accepted).then_some(())) }).await?;
        stop(&engine).await?;
        proxy.resume();
    }
    replication.catch_up().await?;
    replication.assert_same(&["public.log"]).await
}

#[tokio::test]
async fn failures_that_are_far_apart_are_not_failures_in_a_row() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    let chain = &replication.chain;
    replication.configure("[stream]\nretry_limit = \"2s\"\n")?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    for session in 1..=2 {
        wait_streaming(&engine, session).await?;
        // With nothing to apply, all that C hears now and then is whether the engine is still the one.
        let checked = "SELECT count(*) FROM pg_stat_activity \
                       WHERE query LIKE 'SELECT FROM pgsluice.progress%' AND query_start > backend_start + '3 s'";
        wait_for("an idle look at the fence", DEADLINE, || async {
            Ok((chain.c.scalar(DATABASE, checked).await? == "1").then_some(()))
        })
        .await?;
        chain.b.restart().await?;
    }
    wait_streaming(&engine, 3).await?;
    ensure!(engine.stderr().matches("session ended; it will be built anew").count() >= 2, "{}", engine.stderr());
    chain.a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    settle(&replication, &engine, &["public.log"]).await?;
    stop(&engine).await
}

#[tokio::test]
async fn a_stop_amid_a_large_transaction_leaves_nothing_of_it() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    replication.configure("[apply]\nbatch_rows = 100\n")?;
    replication.setup().await?;
    let locker = replication.chain.c.connect(DATABASE).await?;
    locker.batch_execute("BEGIN; LOCK TABLE log IN ACCESS EXCLUSIVE MODE").await?;
    let engine = replication.spawn()?;
    replication.chain.a.sql(DATABASE, "INSERT INTO log SELECT generate_series(1, 50000)").await?;
    wait_blocked(&replication).await?;
    locker.batch_execute("ROLLBACK").await?;
    stop(&engine).await?;
    let rows: u32 = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM log").await?.parse()?;
    ensure!(rows == 0 || rows == 50_000, "C has {rows} rows of one transaction");
    replication.catch_up().await?;
    replication.assert_same(&["public.log"]).await
}

#[tokio::test]
async fn stop_at_applies_what_commits_before_it_and_nothing_else() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    replication.setup().await?;
    for n in 1..=4 {
        replication.chain.a.sql(DATABASE, &format!("INSERT INTO log VALUES ({n})")).await?;
    }
    replication.chain.wait_b_caught_up().await?;
    let lines = replication.succeed(&["tail", "--no-follow"]).await?;
    let commits = lines.lines().map(|line| {
        let line: Value = serde_json::from_str(line)?;
        Ok(line["commit_lsn"].as_str().context("no commit_lsn")?.parse::<Lsn>()?)
    });
    let commits = commits.collect::<Result<Vec<_>>>()?;
    ensure!(commits.len() == 4, "{lines}");

    let rows = || replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM log");
    let after = |lsn: Lsn| Lsn::new(lsn.as_u64() + 1);
    for (stop_at, expected) in [(commits[1], "1"), (after(commits[1]), "2"), (commits[0], "2"), (commits[3], "3")] {
        replication.succeed(&["run", "--stop-at", &stop_at.to_string()]).await?;
        ensure!(rows().await? == expected, "{} rows on C at {stop_at}, not {expected}", rows().await?);
    }
    replication.succeed(&["run", "--stop-at", "current"]).await?;
    replication.assert_same(&["public.log"]).await?;
    // Again, with nothing to do.
    replication.succeed(&["run", "--stop-at", "current"]).await?;
    replication.assert_same(&["public.log"]).await
}
