//! A table is its OID and its membership in the publication, a column its attnum: what has a known name, and is something else,
//! is copied again or refused.

mod column_names;
mod made_again;
mod partitions;
mod publications;

use anyhow::{Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine};

use crate::load::{wait_c, wait_log, wait_streaming};
use crate::replication::Replication;

/// Said before a table is copied because it is not the one it was.
const AGAIN: &str = "is emptied on the target and copied again";

/// The same empty tables on A and C, `rows` in those of A, all of it copied.
async fn copied(ddl: &str, rows: &str) -> Result<Replication> {
    copied_with(ddl, rows, "[snapshot]\n").await
}

async fn copied_with(ddl: &str, rows: &str, more: &str) -> Result<Replication> {
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{ddl};{rows}"), ddl).await?;
    replication.configure(more)?;
    replication.setup().await?;
    replication.catch_up().await?;
    Ok(replication)
}

async fn running(replication: &Replication) -> Result<Engine> {
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    Ok(engine)
}

/// Waits until a table is copied again by an engine that runs.
async fn copied_again(replication: &Replication, engine: &Engine, times: usize) -> Result<()> {
    wait_log(engine, AGAIN, times).await?;
    let is_done = "SELECT bool_and(state IN ('finishedcopy', 'ready')) FROM pgsluice.table_state";
    wait_c(replication, "the copies", is_done).await
}

/// Runs the engine into a refusal, and returns what it said.
async fn refused(replication: &Replication, said: &[&str]) -> Result<String> {
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(3), "the engine ended with {:?}: {}", output.code, output.stderr);
    for text in said {
        ensure!(output.stderr.contains(text), "does not say \"{text}\":\n{}", output.stderr);
    }
    Ok(output.stderr)
}

/// What stands between two words of a message, to be typed as it is.
fn between<'t>(text: &'t str, from: &str, to: &str) -> &'t str {
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("no \"{from}\" in {text}"));
    rest.split_once(to).map_or(rest, |(found, _)| found).trim()
}
