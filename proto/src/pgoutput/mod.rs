//! The messages of the output plugin `pgoutput`, protocol versions 1 to 4 ("Logical Replication Message Formats").
//!
//! In: the payload of one XLogData frame. Out: a [`Message`] that borrows from it.
//!
//! A payload alone does not say what it is: between Stream Start and Stream Stop most messages carry the xid of the
//! transaction that they belong to in front. [`Decoder`] keeps that one bit:
//!
//! ```text
//!              Stream Start
//!   Between ─────────────────► InSegment     row, Relation, Type, Truncate, Message: with xid
//!      ▲                           │
//!      └───────────────────────────┘
//!              Stream Stop
//! ```

mod message;
mod relation;
mod segments;
mod tuple;

pub use message::{
    Abort, Begin, Commit, CommitPrepared, Delete, Insert, LogicalMessage, Message, OldTuple, Origin, Prepared,
    RollbackPrepared, StreamAbort, StreamCommit, StreamStart, Truncate, Update,
};
pub use relation::{Column, RelationMessage, ReplicaIdentity, TypeMessage};
pub use segments::{Segments, Streamed, StreamedPart};
pub use tuple::{Cell, Cells, Tuple};

use crate::cursor::Cursor;
use crate::{DecodeError, DecodeErrorKind, Lsn};

/// Where the stream is with respect to segments of streamed transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Position {
    #[default]
    Between,
    InSegment,
}

/// Turns the payloads of one stream, in their order, into messages.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    position: Position,
}

impl Decoder {
    /// A stream that has just started.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Decodes one payload; `lsn` is the frame's `start_lsn`, for errors.
    ///
    /// # Errors
    /// [`DecodeError`] for everything that the protocol does not say, messages out of sequence included. The stream
    /// cannot be read further then.
    // Inlined whatever the compiler thinks of its size: else every row passes through memory twice.
    #[inline(always)]
    pub fn decode<'a>(&mut self, lsn: Lsn, payload: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let mut cursor = Cursor::new(lsn, payload);
        let message = Message::decode(&mut cursor, self.position == Position::InSegment)?;
        cursor.finish()?;
        self.advance(&message).map_err(|(message, state)| DecodeError {
            lsn,
            offset: 0,
            kind: DecodeErrorKind::OutOfSequence { message, state },
        })?;
        Ok(message)
    }

    #[inline]
    fn advance(&mut self, message: &Message<'_>) -> Result<(), (&'static str, &'static str)> {
        const IN_SEGMENT: &str = "between Stream Start and Stream Stop";
        match (message, self.position) {
            (
                Message::Insert(_)
                | Message::Update(_)
                | Message::Delete(_)
                | Message::Relation(_)
                | Message::Type(_)
                | Message::Truncate(_)
                | Message::Logical(_),
                Position::Between | Position::InSegment,
            )
            // A streamed transaction with an origin names it inside of its first segment.
            | (Message::Origin(_), Position::Between | Position::InSegment) => Ok(()),
            (Message::StreamStart(_), Position::Between) => {
                self.position = Position::InSegment;
                Ok(())
            }
            (Message::StreamStop, Position::InSegment) => {
                self.position = Position::Between;
                Ok(())
            }
            (Message::StreamStop, Position::Between) => Err((message.name(), "without a Stream Start")),
            (
                Message::Begin(_)
                | Message::Commit(_)
                | Message::StreamCommit(_)
                | Message::StreamAbort(_)
                | Message::BeginPrepare(_)
                | Message::Prepare(_)
                | Message::CommitPrepared(_)
                | Message::RollbackPrepared(_)
                | Message::StreamPrepare(_),
                Position::Between,
            ) => Ok(()),
            (
                Message::Begin(_)
                | Message::Commit(_)
                | Message::StreamStart(_)
                | Message::StreamCommit(_)
                | Message::StreamAbort(_)
                | Message::BeginPrepare(_)
                | Message::Prepare(_)
                | Message::CommitPrepared(_)
                | Message::RollbackPrepared(_)
                | Message::StreamPrepare(_),
                Position::InSegment,
            ) => Err((message.name(), IN_SEGMENT)),
        }
    }
}

#[cfg(test)]
mod tests;
