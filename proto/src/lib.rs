//! PostgreSQL's streaming replication protocol and the `pgoutput` messages inside it, sans-IO.
//!
//! ```text
//!  socket bytes ──► wire ──CopyData──► frame ──XLogData──► pgoutput ──► Message<'_>
//!                                        │
//!                                        └──PrimaryKeepalive──► feedback ──StandbyStatusUpdate──► socket bytes
//!  command ──► the text of the replication commands that open the stream
//! ```
//!
//! Bytes and time come in as arguments; messages and bytes go out. There is no socket, no clock, no task and no
//! allocation per row: whatever is decoded borrows from the input.
//!
//! **Always holds:** an input is decoded totally or not at all. A short field, an unknown tag, a length that cannot be
//! and bytes left over are each a [`DecodeError`] that names the LSN and the offset; nothing is ever skipped.
//!
//! The formats are those of PostgreSQL's documentation, chapters "Message Formats", "Streaming Replication Protocol"
//! and "Logical Replication Message Formats", and of `src/backend/replication/logical/proto.c`.

pub mod command;
mod cursor;
mod error;
pub mod feedback;
pub mod frame;
mod lsn;
pub mod pgoutput;
pub mod wire;

pub use error::{DecodeError, DecodeErrorKind};
pub use lsn::{Lsn, Oid, ParseLsnError, PgTimestamp, TimelineId, Xid};
