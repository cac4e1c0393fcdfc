//! Real servers for the tests and benchmarks of pgsluice.
//!
//! ```text
//!  A ──physical──► B        Chain: primary A, its standby B, and C, a server with another system identifier
//!                           Pair:  the same without B
//!  test ──► Proxy ──► B|C   faults on the wire
//!           Engine          the pgsluice binary as a child process
//!           FarHost         a namespace for programs, behind links that can be cut without a word
//! ```
//!
//! In: nothing but a PostgreSQL, which `scripts/postgres` finds or fetches. Out: running servers, and answers about what
//! is in them. What always holds:
//!
//! - Everything a test started is gone when its value is dropped, and also when the test process is killed: children
//!   ask the kernel for a signal at their parent's death, and directories of dead owners are swept by the next run.
//! - Tests share nothing but the read-only templates, so they run side by side.
//! - Every wait has a deadline, and its error says what was awaited and what was seen last.
//!
//! The kit does not depend on the engine: it tests the binary through bytes and rows.

mod chain;
pub mod compare;
mod directory;
mod disk;
mod engine;
mod far_host;
mod pgbench;
mod postgres;
mod process;
mod proxy;
mod random;
mod server;
mod settings;
mod template;
mod wait;
mod wire;

pub use chain::{Chain, ChainOptions, Pair};
pub use compare::assert_same;
pub use disk::SmallDisk;
pub use engine::{Engine, Output, TERMINAL_COLUMNS, TERMINAL_ROWS, run, run_within};
pub use far_host::{FarHost, Link};
pub use pgbench::Pgbench;
pub use postgres::Install;
pub use process::Signal;
pub use proxy::{CutPoint, Proxy};
pub use random::Random;
pub use server::Server;
pub use wait::wait_for;
