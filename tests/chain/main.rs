//! Behaviour on real servers: A, its standby B, the engine, and C. Each test has servers of its own, and asserts what C
//! holds, row for row against B.

mod bad_input;
mod commands;
mod constraints;
mod crash;
mod deferred;
mod expressions;
mod feedback;
mod fencing;
mod gate;
mod histories;
mod import_dms;
mod load;
mod mode;
mod newcomers;
mod progress;
mod replication;
mod rows;
mod rules;
mod rules_cli;
mod rules_kinds;
mod rules_masks;
mod rules_refused;
mod schema;
mod schema_copy;
mod setup;
mod slots;
mod snapshot;
mod sources;
mod standby;
mod status;
mod tables;
mod toast;
mod transactions;
mod types;
