//! A logical-decoding replication engine for PostgreSQL: decodes on a standby, writes to a target exactly once.
//!
//! The modules in the order in which a byte of WAL passes through them:
//!
//! ```text
//!            ┌──────────────────── pipeline (wiring, back-pressure, the only retry loop) ────────────────────┐
//!  B ──TCP──► source ──frames──► decode ──changes──► transform ──► batch ──► apply ──SQL──► C
//!            ▲                                                                       │
//!            └────────── feedback ◄───────────── checkpoint ◄─── progress row in the same commit
//!              transactions in progress: source ──► spool ──on commit──► decode
//!  B ──COPY──► snapshot ──COPY──► C      before the stream, for tables that C does not have
//! ```
//!
//! **Architecture invariants.** A stage knows the type that it is handed and none of its neighbours; only `pipeline`
//! sees all. Bytes of the protocol are read in `pgsluice-proto` alone. What to do about an error is decided in `error`
//! alone.

pub mod apply;
pub mod batch;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod copy_format;
pub mod decode;
pub mod dms;
pub mod error;
pub mod pipeline;
pub mod postgres;
pub mod preflight;
pub mod records;
pub mod schema;
pub mod screen;
pub mod setup;
pub mod shards;
pub mod skips;
pub mod snapshot;
pub mod source;
pub mod spool;
pub mod status;
pub mod storage;
pub mod trail;
pub mod transform;
