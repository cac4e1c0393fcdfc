//! Read-only preconditions on A, B and C that several commands share.
//!
//! In: the configuration and sessions. Out: a refusal with its remedy, or what a command has to say before it acts.
//!
//! **Always holds:** nothing here writes, on any server. Advisory locks are the only traces, and they end with their transaction.

mod circle;
mod replay;
mod same_database;
mod written_tables;

pub use self::circle::check as check_circle;
pub use self::replay::{position, wait_for_replay, wait_for_sight};
pub use self::same_database::{check_target, check_target_alone};
pub use self::written_tables::check as check_written_tables;
