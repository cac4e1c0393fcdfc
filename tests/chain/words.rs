//! What the command line says where somebody has made a mistake that is easily made, and how it ends.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine, Signal};

use crate::bad_input::{ensure_refused, ensure_said};
use crate::load::{stop, stop_by, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication};

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, note text)";

#[tokio::test]
async fn mistakes_in_the_configuration_are_told_apart() -> Result<()> {
    let replication = Replication::start(DDL).await?;
    let tables = |list: &str| format!("[tables]\n{list}\n");
    for (more, code, said) in [
        (
            tables("include = ['public.*']\nexclude = ['public.t']"),
            3,
            ["`exclude` in [tables] takes away every table", "narrow a pattern"],
        ),
        (tables("include = ['public.%']"), 3, ["matches \"public.%\"", "`%` is no wildcard here"]),
        (tables("include = ['public.%t']"), 3, ["matches \"public.%t\"", "write `*`"]),
        ("[apply]\nsynchronous_commit = true\n".to_owned(), 2, ["synchronous_commit", "`off` or `on`"]),
        ("[apply]\nddl = 1\n".to_owned(), 2, ["ddl", "`none` or `additive`"]),
        ("[stream]\nformat = false\n".to_owned(), 2, ["format", "`auto`, `text`, `binary`"]),
    ] {
        replication.configure(&more)?;
        ensure_refused(&replication, &["setup"], code, &said).await.with_context(|| more.clone())?;
    }
    let [a, b, c] = replication.servers();
    replication.configure_servers(&a.dsn(DATABASE), Some(&b.dsn(DATABASE)), &c.dsn(DATABASE), "")?;
    ensure_refused(&replication, &["setup"], 3, &["[source] and [primary] are swapped", "exchange the two"]).await
}

#[tokio::test]
async fn a_transaction_that_is_still_to_come_cannot_be_skipped() -> Result<()> {
    let replication = Replication::start(DDL).await?;
    replication.setup().await?;
    let far = replication.command(&["skip", "--lsn", "FF/0", "--yes"]).await?;
    ensure_said(&far, 3, &["FF/0 cannot be skipped", "the primary has WAL up to"])?;
    let [a, b, c] = replication.servers();
    ensure!(c.scalar(DATABASE, "SELECT count(*) FROM pgsluice.skips").await? == "0");
    // A primary that is away is no obstacle to what helps.
    let lsn = b.scalar(DATABASE, "SELECT pg_last_wal_replay_lsn() + 1").await?;
    a.stop_immediate().await?;
    let output = replication.command(&["skip", "--lsn", &lsn, "--yes"]).await?;
    ensure!(output.code == Some(0) && output.stderr.contains("is not known"), "{}", output.stderr);
    Ok(())
}

#[tokio::test]
async fn tail_says_who_is_in_its_way_and_ends_with_its_reader() -> Result<()> {
    let replication = Replication::start(DDL).await?;
    replication.setup().await?;
    replication
        .chain
        .a
        .sql(DATABASE, "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 5000) i")
        .await?;
    replication.chain.wait_b_caught_up().await?;
    let config = replication.config();
    let mut piped = Command::new("bash");
    let script = format!("set -o pipefail; {ENGINE} tail --no-follow -c {} | head -n 1", config.display());
    piped.args(["-c", &script]);
    let piped = Engine::spawn_command(piped)?;
    let status = piped.wait(DEADLINE).await?;
    ensure!(status.code() == Some(0) && !piped.stderr().contains("ERROR"), "{status:?}: {}", piped.stderr());
    ensure!(piped.stdout().lines().count() == 1, "{}", piped.stdout());
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    replication.wait_caught_up().await?;
    let output = replication.command(&["tail", "--no-follow"]).await?;
    ensure_said(&output, 3, &["is being read", "an engine is at work", "stop the engine first"])?;
    stop(&engine).await
}

/// A terminal that goes away ends the engine on a commit; under `nohup` it stays.
#[tokio::test]
async fn a_hangup_ends_on_a_commit_unless_it_is_ignored() -> Result<()> {
    let replication = Replication::start(DDL).await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    stop_by(&engine, Signal::HUP).await?;
    let mut ignoring = Command::new("sh");
    let script = format!("trap '' HUP; exec {ENGINE} run -c {}", replication.config().display());
    ignoring.args(["-c", &script]);
    let engine = Engine::spawn_command(ignoring)?;
    wait_streaming(&engine, 1).await?;
    engine.signal(Signal::HUP)?;
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (1, 'x')").await?;
    replication.wait_caught_up().await?;
    ensure!(engine.is_running());
    stop(&engine).await
}

/// Each session of a waiting engine finds the same.
#[tokio::test]
async fn a_waiting_engine_says_its_warnings_once() -> Result<()> {
    let on_c = format!(
        "{DDL}; CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
         CREATE TRIGGER audit BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION pass(); ALTER TABLE t ENABLE ALWAYS TRIGGER audit"
    );
    let replication = Replication::start_differing(ChainOptions::default(), DDL, &on_c).await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let [a, _, c] = replication.servers();
    a.sql(DATABASE, "ALTER TABLE t ADD more int; INSERT INTO t VALUES (1, 'x', 2)").await?;
    wait_log(&engine, "waiting for this to be mended", 1).await?;
    wait_streaming(&engine, 4).await?;
    let warned = || engine.stderr().matches("trigger audit of public.t fires").count();
    ensure!(warned() == 1 && engine.stderr().matches("waiting for this").count() == 1, "{}", engine.stderr());
    c.sql(DATABASE, "ALTER TABLE t ADD more int").await?;
    replication.wait_caught_up().await?;
    ensure!(warned() == 1, "{}", engine.stderr());
    stop(&engine).await
}
