//! Everything that is said to the source: the replication connection, its stream, the slot and the publication.
//!
//! ```text
//!  transport ──► connection (startup, SCRAM, commands) ──START_REPLICATION──► stream (paced reads, feedback)
//!  server: what kind of server this is    slot: state, creation    publication: contents, replay
//!  identity: which table a published one is
//! ```
//!
//! The replication connection is blocking while it negotiates and non-blocking once it streams. It does not run on
//! tokio: the pauses that keep a walsender fast are fractions of a millisecond, below the resolution of tokio's timer.

mod connection;
pub mod identity;
pub mod new_slot;
mod pacing;
pub mod publication;
pub mod server;
pub mod slot;
mod stream;
mod transport;
pub mod writable;

pub use connection::{Connection, CreatedSlot, Identity};
pub use stream::{Filled, ReplicationStream, StreamOptions, Waker};
