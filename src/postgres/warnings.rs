//! The warnings that a server sends beside its answers.
//!
//! A COMMIT that waits for a synchronous standby and is cancelled succeeds all the same, with a warning: it is committed, and perhaps
//! not with the standby (`SyncRepWaitForLSN`). Whoever takes a COMMIT for proof of that has to know whether one has come.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::error::Severity;
use tokio_postgres::{AsyncMessage, Connection};

/// How many a session has been sent. One that comes before an answer is counted before the answer is there.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<AtomicU64>);

impl Warnings {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Moves the bytes of a connection until it ends, and counts its warnings.
    ///
    /// # Errors
    /// How it has ended.
    pub async fn drive<S, T>(self, mut connection: Connection<S, T>) -> Result<(), tokio_postgres::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
        T: AsyncRead + AsyncWrite + Unpin,
    {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notice(notice) = message?
                && notice.parsed_severity() == Some(Severity::Warning)
            {
                self.0.fetch_add(1, Ordering::AcqRel);
            }
        }
        Ok(())
    }
}
