//! What a COPY gives, into another COPY, unread.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio_postgres::{CopyInSink, CopyOutStream};

use super::{source_failed, target_failed};
use crate::error::Error;

/// Bytes that are handed on at once. Rows are gathered up to it, and a larger one is cut: the target puts it together.
const PIECE_BYTES: usize = 64 * 1024;

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
