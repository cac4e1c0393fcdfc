//! Behaviour on real servers: A, its standby B, the engine, and C. Each test has servers of its own, and asserts what C
//! holds, row for row against B.

mod crash;
mod feedback;
mod fencing;
mod load;
mod replication;
mod rows;
mod tables;
mod toast;
mod types;
