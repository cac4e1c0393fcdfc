//! How far a copy is: in the log, in `status`, and on a terminal.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine, TERMINAL_COLUMNS, TERMINAL_ROWS, wait_for};
use serde_json::Value;

use crate::gate::Gate;
use crate::load::{stop, wait_log};
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication};

/// One table of a few chunks that are copied one after the other, and one that is all in one.
async fn start() -> Result<Replication> {
    let ddl = "CREATE TABLE large (id int PRIMARY KEY, note text); CREATE TABLE small (id int PRIMARY KEY);";
    let rows = "INSERT INTO large SELECT g, repeat('x', 200) FROM generate_series(1, 20000) g;
                INSERT INTO small SELECT generate_series(1, 100)";
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{ddl}{rows}"), ddl).await?;
    replication.configure("[snapshot]\njobs = 1\nchunk_bytes = \"1MiB\"\n")?;
    replication.setup().await?;
    Ok(replication)
}

async fn table(replication: &Replication, name: &str) -> Result<Value> {
    let status: Value = serde_json::from_str(&replication.succeed(&["status", "--format", "json"]).await?)?;
    let tables = status["tables"].as_array().context("status lists the tables")?;
    tables.iter().find(|one| one["table"] == name).cloned().with_context(|| format!("{name} is in {status}"))
}

async fn wait_chunks(replication: &Replication, chunks: &str) -> Result<()> {
    wait_for("the chunks before the gate", DEADLINE, || async {
        let done = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM pgsluice.chunk_state").await?;
        Ok((done == chunks).then_some(()))
    })
    .await
}

#[tokio::test]
async fn lines_and_status_say_how_far_each_table_is() -> Result<()> {
    let replication = start().await?;
    let gate = Gate::close(&replication, 2, "").await?;
    let engine = replication.spawn()?;
    wait_chunks(&replication, "2").await?;
    let large = table(&replication, "\"public\".\"large\"").await?;
    let percent = large["percent"].as_u64().context("a percentage")?;
    ensure!((20..80).contains(&percent) && large["state"] == "datasync", "two of some four chunks are done: {large}");
    ensure!(large["source_bytes"].as_u64() > Some(4_000_000) && large["rows"].as_u64() > Some(1_000), "{large}");
    let shown = replication.succeed(&["status"]).await?;
    ensure!(shown.contains(&format!("datasync: {percent} % of 4.")), "{shown}");
    ensure!(!shown.contains('█'), "a bar is in a file: {shown}");
    // The line that comes at intervals counts the chunk that is under way.
    wait_log(&engine, "copying tables=\"0/2\" chunks=\"2/", 1).await?;
    for field in ["rows=", "bytes=", "bytes_per_s=", "time_left=\""] {
        ensure!(engine.stderr().contains(field), "no {field}:\n{}", engine.stderr());
    }
    gate.open_for_chunks().await?;
    wait_log(&engine, "the table is copied table=\"\\\"public\\\".\\\"large\\\"\" rows=20000 bytes=", 1).await?;
    wait_log(&engine, "streaming starts", 1).await?;
    stop(&engine).await?;
    let (large, small) =
        (table(&replication, "\"public\".\"large\"").await?, table(&replication, "\"public\".\"small\"").await?);
    ensure!(large["percent"] == 100 && large["rows"] == 20_000 && small["percent"] == 100, "{large} {small}");
    Ok(())
}

/// What the terminal shows of all that was drawn on it.
fn shown(engine: &Engine) -> String {
    let mut terminal = vt100::Parser::new(TERMINAL_ROWS, TERMINAL_COLUMNS, 0);
    terminal.process(engine.stderr().as_bytes());
    terminal.screen().contents()
}

#[tokio::test]
async fn on_a_terminal_there_are_bars() -> Result<()> {
    let replication = start().await?;
    let gate = Gate::close(&replication, 2, "").await?;
    let engine = Engine::spawn_on_terminal(Path::new(ENGINE), &replication.config(), &["run"])?;
    wait_for("bars", DEADLINE, || async {
        ensure!(engine.is_running(), "the engine has ended:\n{}", engine.stderr());
        let shown = shown(&engine);
        let has = |text| shown.contains(text);
        Ok((has("\"public\".\"large\"") && has("all tables") && has("0/2 tables, 2/") && has("█")).then_some(()))
    })
    .await
    .with_context(|| engine.stderr())?;
    gate.open_for_chunks().await?;
    wait_log(&engine, "streaming starts", 1).await?;
    stop(&engine).await?;
    // Neither is a line torn, nor is anything left of the bars.
    let shown = shown(&engine);
    ensure!(shown.contains("INFO the table is copied"), "{shown}");
    let is_event = |line: &str| line.contains(" INFO ") || line.contains(" WARN ");
    ensure!(shown.lines().all(|line| line.starts_with("20") && is_event(line)), "{shown}");
    Ok(())
}
