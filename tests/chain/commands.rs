//! `status`, `tail` and `teardown`: what they say in every state, and what they leave alone.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Engine, wait_for};
use serde_json::Value;

use crate::load::{stop, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication};

const LOG_TABLE: &str = "CREATE TABLE log (n int PRIMARY KEY, note text)";
const HOPS: [&str; 5] = ["receive", "replay", "decode", "apply", "total"];

/// Runs `status --format json`, which has to end with `code`.
async fn status(replication: &Replication, code: i32) -> Result<Value> {
    let output = replication.command(&["status", "--format", "json"]).await?;
    ensure!(output.code == Some(code), "status ended with {:?}: {}", output.code, output.stderr);
    Ok(serde_json::from_str(&output.stdout)?)
}

async fn ensure_state(replication: &Replication, state: &str) -> Result<Value> {
    let status = status(replication, i32::from(state == "unknown")).await?;
    ensure!(status["state"] == state, "not {state}: {status}");
    let table = replication.command(&["status"]).await?;
    ensure!(table.stdout.contains(state.split('_').next().unwrap_or_default()), "{}", table.stdout);
    Ok(status)
}

/// The value is there, and is no null.
fn ensure_known(status: &Value, paths: &[&str]) -> Result<()> {
    for path in paths {
        ensure!(status.pointer(path).is_some_and(|value| !value.is_null()), "{path} is not known in {status}");
    }
    Ok(())
}

/// The key is there, and its value is null.
fn ensure_unknown(status: &Value, paths: &[&str]) -> Result<()> {
    for path in paths {
        ensure!(status.pointer(path).is_some_and(Value::is_null), "{path} is not null in {status}");
    }
    Ok(())
}

#[tokio::test]
async fn status_knows_every_state() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    let chain = &replication.chain;
    let before = ensure_state(&replication, "not_set_up").await?;
    ensure_unknown(&before, &["/slot", "/progress", "/lag/decode/bytes", "/lag/apply/bytes", "/lag/total/bytes"])?;

    replication.setup().await?;
    let stopped = ensure_state(&replication, "stopped").await?;
    ensure!(stopped["slot"]["active"] == false && stopped["progress"]["epoch"] == 0, "{stopped}");
    let of_slot = ["/slot/name", "/slot/wal_status", "/slot/confirmed_flush_lsn", "/slot/retained_bytes"];
    ensure_known(&stopped, &of_slot)?;
    ensure_known(&stopped, &["/progress/end_lsn", "/lag/receive/bytes", "/lag/replay/bytes", "/lag/total/bytes"])?;
    ensure_unknown(&stopped, &["/progress/commit_time", "/slot/invalidation_reason", "/lag/decode/bytes"])?;

    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    chain.a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    replication.wait_caught_up().await?;
    // Unknown until B has heard of us.
    wait_for("the last hop to be known", DEADLINE, || async {
        Ok(status(&replication, 0).await?["lag"]["apply"]["bytes"].as_u64())
    })
    .await?;
    let streaming = ensure_state(&replication, "streaming").await?;
    ensure!(streaming["slot"]["active"] == true && streaming["progress"]["epoch"] == 1, "{streaming}");
    ensure_known(&streaming, &["/progress/commit_time", "/lag/decode/bytes", "/lag/apply/bytes"])?;
    for hop in HOPS {
        ensure!(streaming["lag"][hop].get("seconds").is_some(), "no seconds of {hop} in {streaming}");
    }
    stop(&engine).await?;

    // Of the primary nothing is known without being told where it is.
    replication.configure_servers(&chain.b.dsn(DATABASE), None, &chain.c.dsn(DATABASE), "")?;
    let alone = ensure_state(&replication, "stopped").await?;
    ensure_unknown(&alone, &["/lag/receive/bytes", "/lag/receive/seconds"])?;
    ensure_known(&alone, &["/lag/replay/bytes", "/lag/total/bytes"])?;
    replication.configure("")?;

    for server in [&chain.a, &chain.b, &chain.c] {
        server.stop_immediate().await?;
        let state = if server.name() == "A" { "stopped" } else { "unknown" };
        let down = ensure_state(&replication, state).await?;
        let errors = down["errors"].as_array().context("errors")?;
        ensure!(errors.len() == 1, "{down}");
        ensure_unknown(&down, if server.name() == "C" { &["/progress"] } else { &["/lag/receive/bytes"] })?;
        server.start().await?;
    }
    chain.wait_b_streaming().await?;

    chain.b.sql(DATABASE, "SELECT pg_drop_replication_slot('pgsluice_test')").await?;
    let missing = ensure_state(&replication, "slot_missing").await?;
    ensure_unknown(&missing, &["/slot"])?;
    ensure_known(&missing, &["/progress/end_lsn"])?;
    replication.succeed(&["teardown", "--yes"]).await?;
    ensure_state(&replication, "not_set_up").await.map(drop)
}

#[tokio::test]
async fn status_shows_why_a_slot_is_invalidated() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    replication.setup().await?;
    replication.chain.a.configure(&[("wal_level", "replica")])?;
    replication.chain.a.restart().await?;
    replication.chain.wait_b_streaming().await?;
    replication.chain.wait_b_caught_up().await?;
    let status = ensure_state(&replication, "slot_invalidated").await?;
    ensure_known(&status, &["/slot/invalidation_reason", "/progress/end_lsn"])
}

#[tokio::test]
async fn tail_shows_what_waits_and_confirms_nothing() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    replication.setup().await?;
    let chain = &replication.chain;
    let changes = "INSERT INTO log VALUES (1, NULL), (2, 'two'); UPDATE log SET n = 3 WHERE n = 2; \
                   DELETE FROM log WHERE n = 1";
    chain.a.sql(DATABASE, changes).await?;
    chain.wait_b_caught_up().await?;
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots";
    let before = chain.b.scalar(DATABASE, confirmed).await?;
    let end_lsn = replication.end_lsn().await?;
    for _ in 0..2 {
        let lines = replication.succeed(&["tail", "--no-follow"]).await?;
        let lines = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        let operations: Vec<_> = lines.iter().map(|line| line["operation"].as_str().unwrap_or_default()).collect();
        assert_eq!(operations, ["insert", "insert", "update", "delete"]);
        assert_eq!(lines[0]["table"], "\"public\".\"log\"");
        assert_eq!(lines[0]["new"], serde_json::json!({ "n": "1", "note": null }));
        assert_eq!(lines[2]["key"], serde_json::json!({ "n": "2" }));
        assert_eq!(lines[3]["key"], serde_json::json!({ "n": "1" }));
        for line in &lines {
            ensure_known(line, &["/commit_lsn", "/commit_time", "/xid"])?;
        }
    }
    let limited = replication.succeed(&["tail", "--limit", "1"]).await?;
    assert_eq!(limited.lines().count(), 1);

    // And what comes while it looks.
    let tail = Engine::spawn(ENGINE.as_ref(), &replication.config(), &["tail"])?;
    chain.a.sql(DATABASE, "INSERT INTO log VALUES (9, 'new')").await?;
    wait_for("the new row", DEADLINE, || async { Ok(tail.stdout().contains("\"new\"").then_some(())) }).await?;
    stop(&tail).await?;

    assert_eq!(chain.b.scalar(DATABASE, confirmed).await?, before);
    assert_eq!(replication.end_lsn().await?, end_lsn);
    replication.catch_up().await?;
    replication.assert_same(&["public.log"]).await
}

/// What is left of ours on the three servers.
async fn left_over(replication: &Replication) -> Result<Vec<String>> {
    let sql = "SELECT 'publication ' || pubname FROM pg_publication WHERE NOT pg_is_in_recovery() UNION ALL \
               SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE slot_name <> 'b_slot' UNION ALL \
               SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname = 'pgsluice'";
    let mut left = Vec::new();
    for server in replication.servers() {
        let rows = server.query_text(DATABASE, sql).await?;
        left.extend(rows.into_iter().flatten().flatten().map(|object| format!("{object} on {}", server.name())));
    }
    Ok(left)
}

const ALL: [&str; 3] = ["publication pgsluice_test on A", "slot pgsluice_test on B", "schema pgsluice on C"];

#[tokio::test]
async fn teardown_takes_away_all_and_only_what_setup_made() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    assert_eq!(left_over(&replication).await?, [""; 0]);
    replication.setup().await?;
    assert_eq!(left_over(&replication).await?, ALL);

    let unasked = replication.command(&["teardown"]).await?;
    ensure!(unasked.code == Some(2) && unasked.stderr.contains("--yes"), "{unasked:?}");
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let active = replication.command(&["teardown", "--yes"]).await?;
    ensure!(active.code == Some(3) && active.stderr.contains("stop the engine"), "{active:?}");
    assert_eq!(left_over(&replication).await?, ALL);
    replication.chain.a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    replication.wait_caught_up().await?;
    stop(&engine).await?;

    // The schema stays as long as another replication has its progress there.
    let other = "INSERT INTO pgsluice.progress SELECT 'other', system_identifier, timeline, slot, consistent_point, \
                 end_lsn FROM pgsluice.progress";
    replication.chain.c.sql(DATABASE, other).await?;
    replication.succeed(&["teardown", "--yes"]).await?;
    assert_eq!(left_over(&replication).await?, ["schema pgsluice on C"]);
    replication.chain.c.sql(DATABASE, "DROP SCHEMA pgsluice CASCADE").await?;

    let again = replication.succeed(&["teardown", "--yes"]).await?;
    ensure!(again.contains("absent") && !again.contains("removed"), "{again}");
    replication.setup().await?;
    replication.replicate("INSERT INTO log VALUES (2)", &["public.log"]).await?;
    replication.succeed(&["teardown", "--yes"]).await?;
    assert_eq!(left_over(&replication).await?, [""; 0]);
    replication.assert_same(&["public.log"]).await
}

#[tokio::test]
async fn teardown_that_cannot_reach_a_server_removes_nothing() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    replication.setup().await?;
    for server in [&replication.chain.a, &replication.chain.c] {
        server.stop_immediate().await?;
        let output = replication.command(&["teardown", "--yes"]).await?;
        ensure!(output.code == Some(1) && output.stderr.contains("cannot reach"), "{output:?}");
        server.start().await?;
        assert_eq!(left_over(&replication).await?, ALL);
    }
    Ok(())
}

#[test]
fn usage_is_an_error_of_its_own() -> Result<()> {
    for arguments in [&["run"][..], &["walk"], &["run", "-c", "x", "--stop-at", "soon"], &[]] {
        let output = Command::new(ENGINE).args(arguments).stdin(Stdio::null()).output()?;
        ensure!(output.status.code() == Some(2), "{arguments:?}: {output:?}");
    }
    Ok(())
}
