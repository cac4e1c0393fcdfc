//! The frames that the contenders replay: what a real server sends for rows of six columns, 1,000 a transaction.
//!
//! Each operation runs once; binary and text are two readings of the same WAL through
//! `pg_logical_slot_peek_binary_changes`, which gives the payloads that a stream would carry in its XLogData frames.

use std::fmt;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use pgsluice_proto::Lsn;
use pgsluice_testkit::{ChainOptions, Pair};
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

pub const TRANSACTION_ROWS: u64 = 1000;

const DATABASE: &str = "app";
const SLOT: &str = "bench";
const PUBLICATION: &str = "bench";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Binary,
    Text,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Format::Binary => "binary",
            Format::Text => "text",
        })
    }
}

#[derive(Debug)]
pub struct Frame {
    pub start_lsn: Lsn,
    /// A slice of one buffer that holds all frames of the load, as those of a stream lie in its read buffer.
    pub payload: Bytes,
}

/// One operation on all rows, in one format.
#[derive(Debug)]
pub struct Load {
    pub operation: &'static str,
    pub format: Format,
    pub frames: Vec<Frame>,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.operation, self.format)
    }
}

/// Starts a server, runs every operation on `rows` rows, and stops the server again: it takes no CPU from the replay.
pub async fn capture(rows: u64) -> Result<Vec<Load>> {
    let pair = Pair::start(ChainOptions::default().autovacuum(false).a_conf("max_wal_size", "8GB")).await?;
    let client = pair.a.connect(DATABASE).await?;
    client
        .batch_execute(
            "CREATE TABLE load (id bigint PRIMARY KEY, n int, note text, amount numeric, at timestamptz, tag uuid); \
             CREATE PUBLICATION bench FOR TABLE load",
        )
        .await?;
    let mut loads = Vec::new();
    for (operation, statement) in [
        (
            "insert",
            "INSERT INTO load SELECT i * 1000 + n, n, repeat(md5(n::text), 2), n * 1.01, now(), gen_random_uuid() \
             FROM generate_series(1, 1000) n",
        ),
        (
            "update",
            "UPDATE load SET n = n + 1, note = reverse(note), amount = amount + 1, at = now(), tag = gen_random_uuid() \
             WHERE id > i * 1000 AND id <= (i + 1) * 1000",
        ),
        ("delete", "DELETE FROM load WHERE id > i * 1000 AND id <= (i + 1) * 1000"),
    ] {
        let transactions = rows / TRANSACTION_ROWS;
        let run = format!("DO $$ BEGIN FOR i IN 0..{} LOOP {statement}; COMMIT; END LOOP; END $$", transactions - 1);
        client.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&SLOT]).await?;
        client.batch_execute(&run).await.with_context(|| format!("the {operation}s"))?;
        for format in [Format::Binary, Format::Text] {
            loads.push(Load { operation, format, frames: read_slot(&client, format).await? });
        }
        client.execute("SELECT pg_drop_replication_slot($1)", &[&SLOT]).await?;
    }
    Ok(loads)
}

async fn read_slot(client: &Client, format: Format) -> Result<Vec<Frame>> {
    let binary = if format == Format::Binary { "true" } else { "false" };
    let sql = format!(
        "SELECT lsn, data FROM pg_logical_slot_peek_binary_changes('{SLOT}', NULL, NULL, \
         'proto_version', '4', 'publication_names', '{PUBLICATION}', 'binary', '{binary}')"
    );
    let rows = client.query(&sql, &[]).await.context("reading the slot")?;
    let mut buffer = BytesMut::new();
    let mut ends = Vec::with_capacity(rows.len());
    for row in &rows {
        buffer.extend_from_slice(row.try_get(1)?);
        ends.push((Lsn::new(row.try_get::<_, PgLsn>(0)?.into()), buffer.len()));
    }
    let buffer = buffer.freeze();
    let mut start = 0;
    let frames = ends.into_iter().map(|(start_lsn, end)| {
        let payload = buffer.slice(start..end);
        start = end;
        Frame { start_lsn, payload }
    });
    Ok(frames.collect())
}
