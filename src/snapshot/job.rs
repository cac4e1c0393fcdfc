//! One job: a session on each side, and the chunks that it takes from the queue.

use std::iter;
use std::sync::atomic::Ordering;

use tokio_postgres::Client;

use super::parts::Chunk;
use super::pump::{pump_pieces, pump_remade};
use super::remake::Remake;
use super::{Copying, STAGE, Wanted, state, target_failed};
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

/// What has passed of a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passed {
    /// Rows that the target was given.
    pub sent: u64,
    /// Those of them that its table has now.
    pub taken: u64,
    pub bytes: u64,
}

impl Job<'_> {
    /// Copies chunks until none is left, or another job has failed.
    pub async fn run(copying: &Copying) -> Result<(), Error> {
        let config = &copying.config;
        // There are as many as jobs.
        let Some(source) = copying.readers().pop() else { return Ok(()) };
        let target = postgres::connect(&config.target, STAGE).await?;
        postgres::prepare_target(&target, STAGE).await?;
        // A chunk that is lost to a crash of the target is lost with its record; the end of the table is flushed.
        target.batch_execute("SET synchronous_commit = off").await.map_err(target_failed)?;
        let mut job = Job { copying, source, target };
        while let (false, Some(chunk)) = (copying.over.load(Ordering::Acquire), copying.queue.take()) {
            let wanted = copying.queue.table(&chunk);
            // What the target says is about its own table.
            let on = |mut error: Error| match error.of_target() {
                Some(_) => error.on(wanted.target.table.to_string()),
                None => error.on(wanted.table.to_string()),
            };
            job.copy(&chunk, wanted).await.map_err(on)?;
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
        let passed = match &wanted.plan {
            None => pump_pieces(source, into, sent).await?,
            Some(plan) => {
                let mut remake = Remake::new(plan, wanted, copying.lsn);
                pump_remade(source, into, &mut remake, sent).await?
            }
        };
        if passed.taken != passed.sent {
            return Err(lost(target, wanted, passed, copying.constraints_fire).await?);
        }
        check_file(source, chunk)?;
        let Passed { taken: rows, bytes, .. } = passed;
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

/// Why rows of a chunk are not in the target's table. COPY counts those that it has put somewhere: not those that a trigger leaves out.
async fn lost(target: &Client, wanted: &Wanted, passed: Passed, constraints_fire: bool) -> Result<Error, Error> {
    /// ROW, BEFORE and INSERT of `tgtype`.
    const BEFORE_EACH_INSERT: i16 = 1 | 2 | 4;
    let sql = "SELECT format('trigger %I of %I.%I', t.tgname, n.nspname, c.relname), \
                   format('ALTER TABLE %I.%I DISABLE TRIGGER %I', n.nspname, c.relname, t.tgname) \
               FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE t.tgrelid IN (SELECT to_regclass($1) UNION SELECT p.relid FROM pg_partition_tree(to_regclass($1)) p) \
                 AND NOT t.tgisinternal AND t.tgtype & $2 = $2 \
                 AND t.tgenabled = ANY (CASE WHEN $3 THEN '{O,A}' ELSE '{R,A}' END::\"char\"[]) ORDER BY 1";
    let table = wanted.target.table.to_string();
    let rows = target.query(sql, &[&table, &BEFORE_EACH_INSERT, &constraints_fire]).await.map_err(target_failed)?;
    let list = |column: usize, separator: &str| {
        let texts = rows.iter().map(|row| row.try_get::<_, String>(column).map_err(target_failed));
        texts.collect::<Result<Vec<_>, _>>().map(|texts| texts.join(separator))
    };
    let (why, mend) = if rows.is_empty() {
        let why = format!("no trigger of {table} that fires before an insert is there to leave rows out");
        (why, format!("see on the target where rows of {table} go"))
    } else {
        let why = format!("{} fires on the target before a row comes in, and can leave it out", list(0, ", ")?);
        let off = list(1, "; ")?;
        (why, format!("have every row pass there, or on the target: {off}; rows to leave out are the matter of rules"))
    };
    let Passed { sent, taken, .. } = passed;
    Ok(Error::new(STAGE, Kind::CopyCount { sent, taken, why, mend }))
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
