//! `pgsluice bench` beside an engine at work: what it says, that it leaves nothing behind, and that the engine goes on.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Engine, Output, run_within, wait_for};
use serde_json::Value;

use crate::bad_input::ensure_said;
use crate::load::{expect_end, settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication};

const TABLE: &str = "CREATE TABLE log (id int PRIMARY KEY, note text)";
const TABLES: &[&str] = &["public.log"];
const COPY: &str = "[snapshot]\njobs = 1\n";
/// Small enough for a test.
const SMALL: [&str; 9] = ["bench", "--rate", "200", "--seconds", "1", "--rows", "2500", "--chunk", "1000"];
/// Long enough to be met amid it.
const LONG: [&str; 7] = ["bench", "--measure", "latency", "--rate", "100", "--seconds", "3600"];

/// A replication of one table under this configuration, with an engine at work.
async fn start(more: &str) -> Result<(Replication, Engine)> {
    let replication = Replication::start(TABLE).await?;
    replication.configure(more)?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    Ok((replication, engine))
}

/// Longer than other commands: the engine takes the table in and forgets it again.
async fn bench(replication: &Replication, arguments: &[&str]) -> Result<Output> {
    let config = replication.config();
    let config = config.to_str().context("a path in UTF-8")?;
    run_within(DEADLINE + DEADLINE, Path::new(ENGINE), &[arguments, &["-c", config]].concat()).await
}

async fn succeed(replication: &Replication, arguments: &[&str]) -> Result<String> {
    let Output { code, stdout, stderr } = bench(replication, arguments).await?;
    ensure!(code == Some(0), "{arguments:?} ended with {code:?}:\n{stderr}");
    Ok(stdout)
}

/// What of the bench is on the servers.
async fn left_over(replication: &Replication) -> Result<Vec<String>> {
    let on_any = "SELECT 'table ' || relname FROM pg_class WHERE relname LIKE 'bench%' AND relkind = 'r' UNION ALL \
                  SELECT 'published ' || tablename FROM pg_publication_tables WHERE tablename LIKE 'bench%'";
    let of_engine = "SELECT 'state of ' || table_name FROM pgsluice.table_state WHERE table_name LIKE 'bench%'";
    let [a, _, c] = replication.servers();
    let mut left = Vec::new();
    for (server, sql) in [(a, on_any), (c, on_any), (c, of_engine)] {
        let rows = server.query_text(DATABASE, sql).await?;
        left.extend(rows.into_iter().flatten().flatten().map(|object| format!("{object} on {}", server.name())));
    }
    Ok(left)
}

/// The engine that was at work still is, and replicates.
async fn ensure_at_work(replication: &Replication, engine: &Engine, id: u32) -> Result<()> {
    assert_eq!(left_over(replication).await?, [""; 0]);
    replication.chain.a.sql(DATABASE, &format!("INSERT INTO log VALUES ({id}, 'after it')")).await?;
    settle(replication, engine, TABLES).await
}

fn number(report: &Value, path: &str) -> Result<f64> {
    report.pointer(path).and_then(Value::as_f64).with_context(|| format!("{path} of {report}"))
}

/// Twice beside one engine, whose sessions have met the table of the first when that of the second comes.
#[tokio::test]
async fn figures_are_whole_and_nothing_is_left() -> Result<()> {
    let (replication, engine) = start(COPY).await?;
    let text = succeed(&replication, &SMALL).await?;
    for part in ["p99.9", "committed on A", "applied on C", "visible on C", "rows/s", "MB/s", "clocks", "200 rows"] {
        ensure!(text.contains(part), "no {part:?} in\n{text}");
    }
    ensure_at_work(&replication, &engine, 1).await?;
    ensure!(replication.chain.a.scalar(DATABASE, "SELECT to_regnamespace('pgsluice') IS NULL").await? == "t");

    let report = succeed(&replication, &[&SMALL[..], &["--row-bytes", "0", "--format", "json"]].concat()).await?;
    let report: Value = serde_json::from_str(&report)?;
    for (path, expected) in
        [("/latency/rows", 200.0), ("/drain/rows", 2_500.0), ("/drain/rows_on_target", 2_500.0), ("/row_bytes", 0.0)]
    {
        ensure!(number(&report, path)? == expected, "{path} is not {expected}: {report}");
    }
    let counted = report["latency"]["histogram"].as_array().context("histogram")?.iter();
    ensure!(counted.filter_map(|bucket| bucket["rows"].as_u64()).sum::<u64>() == 200, "{report}");
    for figure in ["committed", "applied", "visible"] {
        let of = |name: &str| number(&report, &format!("/latency/{figure}/{name}"));
        let ordered = [of("p50_ms")?, of("p90_ms")?, of("p99_ms")?, of("p999_ms")?, of("max_ms")?];
        ensure!(ordered[0] > 0.0 && ordered.is_sorted(), "{figure}: {ordered:?}");
    }
    ensure!(
        number(&report, "/drain/visible/rows_per_s")? > 0.0 && number(&report, "/clocks/target/uncertainty_ms")? >= 0.0
    );
    ensure_at_work(&replication, &engine, 2).await?;
    stop(&engine).await
}

/// Where tables are taken to be on C already, under rules and patterns that would keep the table away.
#[tokio::test]
async fn configurations_for_other_tables_do_not_touch_it() -> Result<()> {
    let more = "[tables]\ninclude = [\"*.*\"]\nexclude = [\"pgsluice.*\"]\n[snapshot]\ncopy_data = false\n\
                [[rule]]\ntable = \"*.*\"\nwhere = \"id < 100\"\n";
    let (replication, engine) = start(more).await?;
    succeed(&replication, &SMALL).await?;
    ensure_at_work(&replication, &engine, 1).await?;
    // A session that begins with the table learns of it, and one that begins without forgets it.
    let bench = Engine::spawn(Path::new(ENGINE), &replication.config(), &LONG)?;
    wait_log(&bench, "measuring latency", 1).await?;
    stop(&engine).await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    bench.sigterm()?;
    expect_end(&bench, 1, &["interrupted"]).await?;
    ensure_at_work(&replication, &engine, 2).await?;
    succeed(&replication, &SMALL).await?;
    ensure_at_work(&replication, &engine, 3).await?;
    stop(&engine).await
}

#[tokio::test]
async fn a_bench_that_is_asked_to_end_removes_what_it_made() -> Result<()> {
    let (replication, engine) = start(COPY).await?;
    let bench = Engine::spawn(Path::new(ENGINE), &replication.config(), &LONG)?;
    wait_log(&bench, "measuring latency", 1).await?;
    let c = &replication.chain.c;
    let rows = "SELECT count(*) > 50 FROM pgsluice.bench_test";
    wait_for("rows", DEADLINE, || async { Ok((c.scalar(DATABASE, rows).await? == "t").then_some(())) }).await?;
    let second = self::bench(&replication, &SMALL).await?;
    ensure_said(&second, 3, &["another bench of \"test\" is at work"])?;
    // Setup minds neither.
    replication.setup().await?;
    bench.sigterm()?;
    expect_end(&bench, 1, &["interrupted before it was done"]).await?;
    ensure!(bench.stdout().is_empty(), "{}", bench.stdout());
    ensure_at_work(&replication, &engine, 1).await?;

    // Before the engine has taken the table in.
    let bench = Engine::spawn(Path::new(ENGINE), &replication.config(), &LONG)?;
    wait_log(&bench, "waiting until the engine has taken in", 1).await?;
    bench.sigterm()?;
    expect_end(&bench, 1, &["interrupted before it was done"]).await?;
    ensure_at_work(&replication, &engine, 2).await?;
    stop(&engine).await
}

#[tokio::test]
async fn what_a_killed_bench_has_left_goes_with_the_next_or_with_teardown() -> Result<()> {
    let (replication, engine) = start(COPY).await?;
    let kill = async || {
        let bench = Engine::spawn(Path::new(ENGINE), &replication.config(), &LONG)?;
        wait_log(&bench, "measuring latency", 1).await?;
        bench.sigkill().await?;
        let left = left_over(&replication).await?;
        ensure!(left.len() == 4, "{left:?}");
        Ok(())
    };
    kill().await?;
    succeed(&replication, &SMALL).await?;
    ensure_at_work(&replication, &engine, 1).await?;

    kill().await?;
    stop(&engine).await?;
    let steps = replication.succeed(&["teardown", "--yes"]).await?;
    ensure!(steps.matches("table pgsluice.bench_test on the").count() == 2, "{steps}");
    for server in replication.servers() {
        let schema = "SELECT to_regnamespace('pgsluice') IS NULL";
        ensure!(server.scalar(DATABASE, schema).await? == "t", "something is left on {}", server.name());
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_made_where_there_is_nothing_to_measure() -> Result<()> {
    let replication = Replication::start(TABLE).await?;
    for (option, value) in
        [("--rate", "0"), ("--rows", "0"), ("--chunk", "0"), ("--seconds", "0"), ("--writers", "0"), ("--timeout", "x")]
    {
        let output = bench(&replication, &["bench", option, value]).await?;
        ensure!(output.code == Some(2) && output.stderr.contains(option), "{output:?}");
    }
    let not_set_up = bench(&replication, &SMALL).await?;
    ensure_said(&not_set_up, 3, &["the target has no progress \"test\"", "`pgsluice setup`"])?;
    replication.setup().await?;
    let idle = bench(&replication, &SMALL).await?;
    ensure_said(&idle, 3, &["no engine reads from slot \"pgsluice_test\"", "start `pgsluice run`"])?;

    let [a, b, c] = replication.servers();
    replication.configure_servers(&b.dsn(DATABASE), None, &c.dsn(DATABASE), "")?;
    let no_primary = bench(&replication, &SMALL).await?;
    ensure_said(&no_primary, 3, &["there is no [primary]", "name the primary"])?;
    replication.configure("")?;

    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    for (server, role) in [(a, "primary"), (c, "target")] {
        let foreign = "CREATE SCHEMA IF NOT EXISTS pgsluice; CREATE TABLE pgsluice.bench_test (n int); \
                       INSERT INTO pgsluice.bench_test VALUES (7)";
        server.sql(DATABASE, foreign).await?;
        let said = format!("the {role} has a \"pgsluice\".\"bench_test\" that is not of bench");
        ensure_said(&bench(&replication, &SMALL).await?, 3, &[&said, "rename it"])?;
        ensure!(server.scalar(DATABASE, "SELECT n FROM pgsluice.bench_test").await? == "7");
        server.sql(DATABASE, "DROP TABLE pgsluice.bench_test").await?;
    }
    // An engine that is at work and gets nowhere.
    let blocker = c.connect(DATABASE).await?;
    blocker.batch_execute("BEGIN; SELECT FROM pgsluice.progress FOR UPDATE").await?;
    let stuck = bench(&replication, &[&SMALL[..], &["--timeout", "3s"]].concat()).await?;
    ensure_said(&stuck, 3, &["progress on the target stands still", "within 3s", "the log of `pgsluice run`"])?;
    blocker.batch_execute("ROLLBACK").await?;
    ensure_at_work(&replication, &engine, 1).await?;
    stop(&engine).await?;

    c.stop_immediate().await?;
    ensure_said(&bench(&replication, &SMALL).await?, 1, &["cannot reach the target"])
}
