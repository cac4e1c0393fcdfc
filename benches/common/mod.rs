//! What the benchmarks share: readers that set the ceiling, contenders, the cost of processes, slots on a standby, figures.

pub mod ceiling;
pub mod contender;
pub mod figures;
pub mod process;
pub mod slot;
