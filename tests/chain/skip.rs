//! Transactions that a person has passed over: just those, recorded, and none without its LSN.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_proto::Lsn;
use pgsluice_testkit::wait_for;
use serde_json::Value;

use crate::bad_input::ensure_said;
use crate::load::{Random, expect_end, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, Replication};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE other (id int)";
const BOTH: [&str; 2] = ["public.t", "public.other"];

/// The LSN that a stop names.
fn lsn_of(said: &str) -> Result<String> {
    let lsn = said.split("(at LSN ").nth(1).and_then(|rest| rest.split(')').next());
    let lsn = lsn.with_context(|| format!("no LSN in {said}"))?;
    ensure!(said.contains(&format!("`pgsluice skip --lsn {lsn}`")), "{said}");
    Ok(lsn.to_owned())
}

async fn skips(replication: &Replication) -> Result<Value> {
    Ok(serde_json::from_str(&replication.succeed(&["skip", "--list", "--format", "json"]).await?)?)
}

/// On A: what the slot `look` would send, as the LSNs of commit records.
async fn commits(replication: &Replication) -> Result<Vec<Lsn>> {
    // Begin has it behind its tag ("Logical Replication Message Formats").
    let sql = "SELECT encode(substring(data FROM 2 FOR 8), 'hex') FROM pg_logical_slot_peek_binary_changes('look', NULL, NULL, \
               'proto_version', '1', 'publication_names', 'pgsluice_test') WHERE substring(data FROM 1 FOR 1) = 'B'";
    let rows = replication.chain.a.query_text(DATABASE, sql).await?;
    let lsn = |row: Vec<Option<String>>| {
        let digits = row.into_iter().next().flatten().context("an LSN")?;
        Ok(Lsn::new(u64::from_str_radix(&digits, 16)?))
    };
    rows.into_iter().map(lsn).collect()
}

async fn look_from_here(replication: &Replication) -> Result<()> {
    replication.chain.a.sql(DATABASE, "SELECT pg_create_logical_replication_slot('look', 'pgoutput')").await
}

#[tokio::test]
async fn a_transaction_amid_others_is_passed_over_and_recorded() -> Result<()> {
    let replication = Replication::start(TABLES).await?;
    replication.setup().await?;
    let c = &replication.chain.c;
    c.sql(DATABASE, "INSERT INTO t VALUES (2, 'theirs')").await?;
    let changes =
        "INSERT INTO t VALUES (1, 'one'); BEGIN; INSERT INTO other VALUES (1); INSERT INTO t VALUES (2, 'two');
                   TRUNCATE other; COMMIT; INSERT INTO t VALUES (3, 'three')";
    replication.run_each(changes).await?;
    let lsn = lsn_of(&replication.halt().await?)?;

    let unanswered = replication.command(&["skip", "--lsn", &lsn]).await?;
    ensure_said(&unanswered, 2, &["give --yes"])?;
    let asked = replication.succeed(&["skip", "--lsn", &lsn, "--yes"]).await?;
    ensure!(asked.contains("is skipped by `pgsluice run`"), "{asked}");
    let again = replication.succeed(&["skip", "--lsn", &lsn, "--yes"]).await?;
    ensure!(again.contains("is pending already"), "{again}");
    let status: Value = serde_json::from_str(&replication.succeed(&["status", "--format", "json"]).await?)?;
    ensure!(status["skips"][0]["commit_lsn"] == lsn.as_str() && status["skips"][0]["done_at"].is_null(), "{status}");
    // One skip is of one transaction, and it can be taken back.
    replication.succeed(&["skip", "--cancel", "--lsn", &lsn]).await?;
    ensure!(lsn_of(&replication.halt().await?)? == lsn);
    let nothing = replication.command(&["skip", "--cancel", "--lsn", &lsn]).await?;
    ensure_said(&nothing, 3, &[&format!("no skip of {lsn} is pending")])?;
    replication.succeed(&["skip", "--lsn", &lsn, "--yes"]).await?;

    replication.catch_up().await?;
    let rows = "SELECT string_agg(id || note, ' ' ORDER BY id) FROM t";
    assert_eq!(c.scalar(DATABASE, rows).await?, "1one 2theirs 3three");
    let [done] = skips(&replication).await?.as_array().context("a list")?.clone().try_into().unwrap_or_default();
    ensure!(done["changes"] == 3 && done["commit_lsn"] == lsn.as_str() && !done["done_at"].is_null(), "{done}");
    let status = replication.succeed(&["status"]).await?;
    ensure!(status.contains("1 done"), "{status}");
    let late = replication.command(&["skip", "--lsn", &lsn, "--yes"]).await?;
    ensure_said(&late, 3, &["was skipped already"])
}

#[tokio::test]
async fn a_transaction_that_is_larger_than_a_batch_is_passed_over() -> Result<()> {
    let replication = Replication::start(TABLES).await?;
    replication.configure("[apply]\nbatch_rows = 5\n")?;
    replication.setup().await?;
    let c = &replication.chain.c;
    c.sql(DATABASE, "INSERT INTO t VALUES (100, 'theirs')").await?;
    replication
        .run_each(
            "INSERT INTO other VALUES (1); INSERT INTO t SELECT generate_series(1, 100); INSERT INTO other VALUES (2);
             INSERT INTO t SELECT generate_series(101, 150)",
        )
        .await?;
    let lsn = lsn_of(&replication.halt().await?)?;
    replication.succeed(&["skip", "--lsn", &lsn, "--yes"]).await?;
    replication.catch_up().await?;
    assert_eq!(c.scalar(DATABASE, "SELECT count(*) || ' ' || min(id) FROM t").await?, "51 100");
    ensure!(skips(&replication).await?[0]["changes"] == 100);
    replication.assert_same(&["public.other"]).await
}

/// Refused, and nothing lost: neither of what is there already, nor where no commit is.
#[tokio::test]
async fn an_lsn_that_is_no_commit_is_refused() -> Result<()> {
    let replication = Replication::start(TABLES).await?;
    let early = replication.command(&["skip", "--lsn", "0/1", "--yes"]).await?;
    ensure_said(&early, 3, &["no progress row", "`pgsluice setup`"])?;
    replication.setup().await?;
    replication.replicate("INSERT INTO t VALUES (1, 'one')", &BOTH).await?;
    let progress = replication.end_lsn().await?;
    let behind = Lsn::new(progress.parse::<Lsn>()?.as_u64() - 1).to_string();
    let output = replication.command(&["skip", "--lsn", &behind, "--yes"]).await?;
    ensure_said(&output, 3, &["cannot be skipped", &progress, "`at LSN`"])?;
    let output = replication.command(&["skip", "--lsn", "12345", "--yes"]).await?;
    ensure!(output.code == Some(2) && output.stderr.contains("is not an LSN"), "{}", output.stderr);

    look_from_here(&replication).await?;
    replication.run_each("INSERT INTO t VALUES (2, 'two'); INSERT INTO t VALUES (3, 'three')").await?;
    let commits = commits(&replication).await?;
    let [second, third] = commits.as_slice() else { anyhow::bail!("{commits:?}") };
    // Between the two, within the commit record of the last, and behind all of them.
    let misses = [Lsn::new(second.as_u64() - 8), Lsn::new(third.as_u64() + 8), Lsn::new(third.as_u64() + 4096)];
    for missed in misses.map(|lsn| lsn.to_string()) {
        if missed == misses[2].to_string() {
            // More WAL than that, none of which is of these tables.
            replication.chain.a.sql(DATABASE, "CREATE TABLE noise AS SELECT generate_series(1, 5000) n").await?;
        }
        replication.succeed(&["skip", "--lsn", &missed, "--yes"]).await?;
        if missed == misses[2].to_string() {
            replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (4, 'four')").await?;
        }
        for _ in 0..2 {
            let output = replication.command(&["run", "--stop-at", "current"]).await?;
            let named =
                format!("{missed} is to be skipped, and no transaction of the replicated tables has its commit record");
            ensure_said(&output, 3, &[&named, "--cancel"])?;
            let highest = if missed == misses[0].to_string() { 1 } else { 3 };
            let beyond = format!("SELECT count(*) FROM t WHERE id > {highest}");
            ensure!(replication.chain.c.scalar(DATABASE, &beyond).await? == "0", "C has what is beyond {missed}");
        }
        replication.succeed(&["skip", "--cancel", "--lsn", &missed]).await?;
    }
    replication.catch_up().await?;
    replication.assert_same(&BOTH).await
}

/// It is stopped between transactions by the first that progress would pass, and begins anew.
#[tokio::test]
async fn an_engine_that_runs_notices_a_skip() -> Result<()> {
    let replication = Replication::start(TABLES).await?;
    replication.setup().await?;
    let [_, b, c] = replication.servers();
    look_from_here(&replication).await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    b.sql(DATABASE, "SELECT pg_wal_replay_pause()").await?;
    wait_for("B to pause", DEADLINE, || async {
        Ok((b.scalar(DATABASE, "SELECT pg_get_wal_replay_pause_state()").await? == "paused").then_some(()))
    })
    .await?;
    replication
        .run_each("INSERT INTO t VALUES (1, 'one'); INSERT INTO t VALUES (2, 'two'); INSERT INTO t VALUES (3, 'three')")
        .await?;
    let second = commits(&replication).await?[1].to_string();
    replication.succeed(&["skip", "--lsn", &second, "--yes"]).await?;
    b.sql(DATABASE, "SELECT pg_wal_replay_resume()").await?;
    wait_log(&engine, "the transactions that are to be skipped have changed", 1).await?;
    wait_streaming(&engine, 2).await?;
    replication.wait_caught_up().await?;
    assert_eq!(c.scalar(DATABASE, "SELECT string_agg(note, ' ' ORDER BY id) FROM t").await?, "one three");
    ensure!(skips(&replication).await?[0]["changes"] == 1);

    // Progress cannot be looked at while it is about to move.
    let locker = c.connect(DATABASE).await?;
    locker.batch_execute("BEGIN; LOCK TABLE other").await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO other VALUES (1)").await?;
    let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'public.other'::regclass AND NOT granted";
    wait_for("the engine to wait", DEADLINE, || async {
        Ok((c.scalar(DATABASE, waiting).await? == "1").then_some(()))
    })
    .await?;
    let last = commits(&replication).await?.last().context("a commit")?.to_string();
    let busy = replication.command(&["skip", "--lsn", &last, "--yes"]).await?;
    ensure_said(&busy, 3, &["an engine is amid a transaction", "stop the engine first"])?;
    locker.batch_execute("ROLLBACK").await?;
    replication.wait_caught_up().await?;

    // One that is never met ends it, whether or not anything else comes.
    b.sql(DATABASE, "SELECT pg_wal_replay_pause()").await?;
    let position = replication.chain.a.scalar(DATABASE, "SELECT pg_current_wal_lsn() + 8").await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (4, 'four')").await?;
    replication.succeed(&["skip", "--lsn", &position, "--yes"]).await?;
    b.sql(DATABASE, "SELECT pg_wal_replay_resume()").await?;
    expect_end(&engine, 3, &[&format!("{position} is to be skipped")]).await?;
    replication.succeed(&["skip", "--cancel", "--lsn", &position]).await?;
    replication.catch_up().await?;
    assert_eq!(c.scalar(DATABASE, "SELECT string_agg(note, ' ' ORDER BY id) FROM t").await?, "one three four");
    Ok(())
}

/// What no rule can be applied to never comes to the target, and can be passed over all the same.
#[tokio::test]
async fn a_row_that_a_rule_cannot_be_applied_to_can_be_passed_over() -> Result<()> {
    let on_a = "CREATE TABLE t (id int PRIMARY KEY, n int)";
    let on_c = "CREATE TABLE t (id int PRIMARY KEY, n smallint)";
    let replication = Replication::start_differing(pgsluice_testkit::ChainOptions::default(), on_a, on_c).await?;
    replication.configure("[[rule]]\ntable = 'public.t'\ncast = { n = 'smallint' }\n")?;
    replication.setup().await?;
    look_from_here(&replication).await?;
    replication
        .run_each("INSERT INTO t VALUES (1, 1); INSERT INTO t VALUES (2, 100000); INSERT INTO t VALUES (3, 3)")
        .await?;
    let said = replication.halt().await?;
    let lsn = commits(&replication).await?[1].to_string();
    ensure!(said.contains("a rule cannot be applied to a row") && said.contains(&format!("at LSN {lsn}")), "{said}");
    replication.succeed(&["skip", "--lsn", &lsn, "--yes"]).await?;
    replication.catch_up().await?;
    assert_eq!(
        replication.chain.c.scalar(DATABASE, "SELECT string_agg(id::text, ' ' ORDER BY id) FROM t").await?,
        "1 3"
    );
    Ok(())
}

#[tokio::test]
async fn a_skip_counts_once_however_often_the_engine_is_killed() -> Result<()> {
    let replication = Replication::start(TABLES).await?;
    replication.configure("[apply]\nbatch_rows = 3\n")?;
    replication.setup().await?;
    look_from_here(&replication).await?;
    let changes: Vec<_> = (1..=40)
        .map(|n| format!("BEGIN; INSERT INTO t SELECT i, 'note' FROM generate_series({n}00, {n}07) i; INSERT INTO other VALUES ({n}); COMMIT"))
        .collect();
    replication.run_each(&changes.join(";")).await?;
    let commits = commits(&replication).await?;
    for skipped in [9, 10, 25] {
        let lsn = commits[skipped].to_string();
        replication.succeed(&["skip", "--lsn", &lsn, "--yes"]).await?;
    }
    let mut random = Random::new();
    for _ in 0..5 {
        let engine = replication.spawn()?;
        random.pause(Duration::from_millis(200)).await;
        engine.sigkill().await?;
    }
    replication.catch_up().await?;
    let expected =
        "SELECT string_agg(n::text, ' ' ORDER BY n) FROM generate_series(1, 40) n WHERE n NOT IN (10, 11, 26)";
    let c = &replication.chain.c;
    let expected = c.scalar(DATABASE, expected).await?;
    assert_eq!(c.scalar(DATABASE, "SELECT string_agg(id::text, ' ' ORDER BY id) FROM other").await?, expected);
    assert_eq!(c.scalar(DATABASE, "SELECT count(*) FROM t").await?, (37 * 8).to_string());
    let done = "SELECT string_agg(changes::text, ' ') FROM pgsluice.skips WHERE done_at IS NOT NULL";
    assert_eq!(c.scalar(DATABASE, done).await?, "9 9 9");
    Ok(())
}
