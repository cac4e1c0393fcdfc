//! Statements on their way to the target: many at once, in their order, and no more than memory allows.

use std::future::{Future, poll_fn};
use std::task::{Context, Poll};

use futures_util::stream::{FuturesOrdered, StreamExt};

use crate::error::Error;

/// Enough to hide the round trip, few enough that the answers stay small.
const STATEMENTS_MAX: usize = 256;
/// Bytes of rows, one statement more than this at most.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// Each statement is a future that resolves to the bytes that are no longer on their way.
#[derive(Debug)]
pub(super) struct Flight<F: Future> {
    running: FuturesOrdered<F>,
    bytes: usize,
}

impl<F: Future<Output = Result<usize, Error>>> Flight<F> {
    pub fn new() -> Flight<F> {
        Flight { running: FuturesOrdered::new(), bytes: 0 }
    }

    /// Adds a statement of about `bytes`, once there is room for it.
    ///
    /// # Errors
    /// That of an earlier statement.
    pub async fn push(&mut self, statement: F, bytes: usize) -> Result<(), Error> {
        while self.running.len() >= STATEMENTS_MAX || (self.bytes > BYTES_MAX && !self.running.is_empty()) {
            if let Some(landed) = self.running.next().await {
                self.bytes -= landed?;
            }
        }
        self.bytes += bytes;
        self.running.push_back(statement);
        Ok(())
    }

    /// Sends what was added, so that the target works on it while more is made ready.
    ///
    /// # Errors
    /// That of an earlier statement.
    pub async fn depart(&mut self) -> Result<(), Error> {
        // The first poll of a statement encodes it and hands it to the connection, which writes when it has its turn.
        let running = &mut self.running;
        let mut send = |context: &mut Context<'_>| Poll::Ready(running.poll_next_unpin(context));
        while let Poll::Ready(Some(landed)) = poll_fn(&mut send).await {
            self.bytes -= landed?;
        }
        tokio::task::yield_now().await;
        Ok(())
    }

    /// Waits for all.
    ///
    /// # Errors
    /// That of the earliest statement: it is the cause of later ones failing.
    pub async fn land(&mut self) -> Result<(), Error> {
        while let Some(landed) = self.running.next().await {
            self.bytes -= landed?;
        }
        Ok(())
    }
}
