//! One job: a session on each side, and the chunks that it takes from the queue.

use std::pin::pin;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio_postgres::{Client, CopyInSink, CopyOutStream};

use super::parts::Chunk;
use super::{Copying, STAGE, Wanted, adopt, source_failed, state, target_failed};
use crate::checkpoint;
use crate::error::Error;
use crate::postgres;

/// Bytes that are handed on at once. Rows are gathered up to it, and a larger one is cut: the target puts it together.
const PIECE_BYTES: usize = 64 * 1024;

pub(super) struct Job<'a> {
    copying: &'a Copying,
    source: Client,
    target: Client,
}

impl Job<'_> {
    /// Copies chunks until none is left, or another job has failed.
    pub async fn run(copying: &Copying) -> Result<(), Error> {
        let config = &copying.config;
        let source = postgres::connect(&config.source, STAGE).await?;
        adopt(&source, &copying.snapshot).await?;
        let target = postgres::connect(&config.target, STAGE).await?;
        postgres::prepare_target(&target, STAGE).await?;
        // A chunk that is lost to a crash of the target is lost with its record; the end of the table is flushed.
        target.batch_execute("SET synchronous_commit = off").await.map_err(target_failed)?;
        let job = Job { copying, source, target };
        while let (false, Some(chunk)) = (copying.failed.load(Ordering::Acquire), copying.queue.take()) {
            let wanted = copying.queue.table(&chunk);
            job.copy(&chunk, wanted).await.map_err(|error| error.on(wanted.table.to_string()))?;
        }
        Ok(())
    }

    async fn copy(&self, chunk: &Chunk, wanted: &Wanted) -> Result<(), Error> {
        let Job { copying, source, target } = self;
        let name = copying.config.name.as_str();
        target.batch_execute("BEGIN").await.map_err(target_failed)?;
        checkpoint::check_epoch(target, name, copying.epoch).await?;
        let from = source.copy_out(chunk.copy_out(wanted, copying.xids).as_str()).await.map_err(source_failed)?;
        let into = target.copy_in(wanted.copy_in().as_str()).await.map_err(target_failed)?;
        let (rows, bytes) = pump(from, into).await?;
        state::record(target, name, &wanted.table, chunk, copying.xids.horizon, (rows, bytes)).await?;
        target.batch_execute("COMMIT").await.map_err(target_failed)?;
        copying.progress.chunk_done(rows, bytes);
        if copying.queue.done(chunk) {
            state::finish(target, name, copying.epoch, wanted).await?;
        }
        Ok(())
    }
}

/// Gathers statistics of tables that are copied, until none is left.
pub(super) async fn analyze(copying: &Copying) -> Result<(), Error> {
    let target = postgres::connect(&copying.config.target, STAGE).await?;
    while let Some(wanted) = copying.queue.take_copied() {
        state::analyze(&target, wanted).await?;
    }
    Ok(())
}

/// Hands on what comes until the end, and returns the rows and bytes that were written.
pub(super) async fn pump(from: CopyOutStream, into: CopyInSink<Bytes>) -> Result<(u64, u64), Error> {
    let (mut from, mut into) = (pin!(from), pin!(into));
    let mut gathered = BytesMut::with_capacity(2 * PIECE_BYTES);
    let mut bytes = 0;
    while let Some(row) = from.next().await {
        let mut row = row.map_err(source_failed)?;
        bytes += row.len() as u64;
        if gathered.len() + row.len() <= PIECE_BYTES {
            gathered.extend_from_slice(&row);
            continue;
        }
        // The target's error comes with `finish`.
        let mut sent = into.feed(gathered.split().freeze()).await;
        while sent.is_ok() && row.len() > PIECE_BYTES {
            sent = into.feed(row.split_to(PIECE_BYTES)).await;
        }
        if sent.is_err() {
            break;
        }
        gathered.extend_from_slice(&row);
    }
    let sent = into.send(gathered.freeze()).await;
    let rows = into.finish().await.map_err(target_failed)?;
    sent.map_err(target_failed)?;
    Ok((rows, bytes))
}
