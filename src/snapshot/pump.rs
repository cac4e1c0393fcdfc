//! What a COPY gives, into another COPY: unread, or remade row by row.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio_postgres::{CopyInSink, CopyOutStream};

use super::job::Passed;
use super::remake::Remake;
use super::{source_failed, target_failed};
use crate::error::Error;
use crate::source::Connection;

/// Bytes that are handed on at once. A larger row is cut: the target puts it together.
const PIECE_BYTES: usize = 64 * 1024;

/// Hands on what comes until the end, tells `sent` of the bytes of each piece, and returns what has passed.
pub(super) async fn pump_pieces(
    from: &mut Connection,
    into: CopyInSink<Bytes>,
    sent: impl Fn(u64),
) -> Result<Passed, Error> {
    let mut into = pin!(into);
    let mut bytes = 0;
    let mut more = true;
    let mut outcome = Ok(());
    while more && outcome.is_ok() {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        more = from.read_copy(&mut piece, PIECE_BYTES)?;
        let length = piece.len() as u64;
        bytes += length;
        outcome = into.send(piece.freeze()).await;
        sent(length);
    }
    // The target's error comes with its end.
    let taken = into.finish().await.map_err(target_failed)?;
    outcome.map_err(target_failed)?;
    Ok(Passed { sent: from.copied_rows()?, taken, bytes })
}

/// The same for rows that rules remake.
pub(super) async fn pump_remade(
    from: &mut Connection,
    into: CopyInSink<Bytes>,
    remake: &mut Remake<'_>,
    sent: impl Fn(u64),
) -> Result<Passed, Error> {
    let mut into = pin!(into);
    let (mut read, mut written) = (BytesMut::with_capacity(PIECE_BYTES), BytesMut::with_capacity(PIECE_BYTES));
    let mut bytes = 0;
    let mut more = true;
    let mut outcome = Ok(());
    while more && outcome.is_ok() {
        // What is left is the beginning of a row.
        let enough = read.len() + PIECE_BYTES;
        more = from.read_copy(&mut read, enough)?;
        remake.rows(&mut read, !more, &mut written)?;
        let length = written.len() as u64;
        bytes += length;
        if length > 0 {
            outcome = into.send(written.split().freeze()).await;
        }
        sent(length);
    }
    // The target's error comes with its end.
    let taken = into.finish().await.map_err(target_failed)?;
    outcome.map_err(target_failed)?;
    remake.check_rows(from.copied_rows()?)?;
    Ok(Passed { sent: remake.rows_written(), taken, bytes })
}

/// The same for what is small, row by row; returns the rows.
pub(super) async fn pump_rows(from: CopyOutStream, into: CopyInSink<Bytes>) -> Result<u64, Error> {
    let (mut from, mut into) = (pin!(from), pin!(into));
    while let Some(row) = from.next().await {
        if into.feed(row.map_err(source_failed)?).await.is_err() {
            break;
        }
    }
    into.finish().await.map_err(target_failed)
}
