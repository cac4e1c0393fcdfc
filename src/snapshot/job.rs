//! One job: a session on each side, and the chunks that it takes from the queue.

use std::iter;
use std::sync::atomic::Ordering;

use tokio_postgres::Client;

use super::parts::Chunk;
use super::pump::{pump_pieces, pump_remade};
use super::remake::Remake;
use super::{Copying, STAGE, Wanted, adoption, state, target_failed};
use crate::checkpoint;
use crate::error::{Error, Kind};
use crate::postgres;
use crate::source::Connection;

pub(super) struct Job<'a> {
    copying: &'a Copying,
    /// It blocks. The thread has nothing else to do, and what was sent to the target is under way meanwhile.
    source: Connection,
    target: Client,
}

impl Job<'_> {
    /// Copies chunks until none is left, or another job has failed.
    pub async fn run(copying: &Copying) -> Result<(), Error> {
        let config = &copying.config;
        let mut source = Connection::connect_for_sql(&config.source)?;
        source.query(&adoption(&copying.snapshot))?;
        let target = postgres::connect(&config.target, STAGE).await?;
        postgres::prepare_target(&target, STAGE).await?;
        // A chunk that is lost to a crash of the target is lost with its record; the end of the table is flushed.
        target.batch_execute("SET synchronous_commit = off").await.map_err(target_failed)?;
        let mut job = Job { copying, source, target };
        while let (false, Some(chunk)) = (copying.over.load(Ordering::Acquire), copying.queue.take()) {
            let wanted = copying.queue.table(&chunk);
            job.copy(&chunk, wanted).await.map_err(|error| error.on(wanted.table.to_string()))?;
        }
        Ok(())
    }

    async fn copy(&mut self, chunk: &Chunk, wanted: &Wanted) -> Result<(), Error> {
        let Job { copying, source, target } = self;
        let name = copying.config.name.as_str();
        target.batch_execute("BEGIN").await.map_err(target_failed)?;
        checkpoint::check_epoch(target, name, copying.epoch).await?;
        copying.progress.chunk_begins(chunk);
        source.start_copy(&chunk.copy_out(wanted, copying.xids))?;
        let into = target.copy_in(wanted.copy_in().as_str()).await.map_err(target_failed)?;
        let sent = |bytes| copying.progress.sent(chunk, bytes);
        let (rows, bytes) = match &wanted.plan {
            None => pump_pieces(source, into, sent).await?,
            Some(plan) => {
                let mut remake = Remake::new(plan, wanted, copying.lsn);
                pump_remade(source, into, &mut remake, sent).await?
            }
        };
        check_file(source, chunk)?;
        state::record(target, name, &wanted.table, chunk, copying.xids.horizon, (rows, bytes)).await?;
        target.batch_execute("COMMIT").await.map_err(target_failed)?;
        copying.progress.chunk_done(chunk, rows, bytes);
        if copying.queue.done(chunk) {
            let tables = iter::once(&wanted.table);
            state::finish(target, name, copying.epoch, tables, copying.follows.state(), None).await?;
            copying.progress.table_done(chunk.table);
        }
        Ok(())
    }
}

/// Whoever holds the locks of all tables may have been ended, by B's recovery or by a person, and the table be rewritten since:
/// the snapshot sees nothing in its new file. From the COPY on our own transaction holds it as it is.
fn check_file(source: &mut Connection, chunk: &Chunk) -> Result<(), Error> {
    let part = postgres::quote_literal(&chunk.part);
    let rows = source.query(&format!("SELECT pg_relation_filenode({part}::regclass)"))?;
    // A foreign table has no file.
    let filenode = rows.first().and_then(|row| row.first()?.as_deref()).unwrap_or("0");
    if filenode == chunk.filenode.to_string() { Ok(()) } else { Err(Error::new(STAGE, Kind::Rewritten)) }
}

/// Gathers statistics of tables that are copied, until none is left.
pub(super) async fn analyze(copying: &Copying) -> Result<(), Error> {
    let target = postgres::connect(&copying.config.target, STAGE).await?;
    while let Some(wanted) = copying.queue.take_copied() {
        state::analyze(&target, wanted).await?;
    }
    Ok(())
}
