//! The ways in which changes travel and are applied, for tests that hold in each of them.

use std::env;

use anyhow::{Context, Result};
use pgsluice_testkit::ChainOptions;

/// A server setting: `immediate` streams every transaction, however small, in segments of one change.
pub const STREAMING: &str = "debug_logical_replication_streaming";

/// How values travel, and what becomes of them on C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub netting: bool,
    pub synchronous_commit: bool,
    pub binary: bool,
    /// Every transaction comes before it has committed.
    pub streaming: bool,
    /// Sessions on C.
    pub workers: usize,
}

/// In turn through all modes, so that each comes with streaming and without.
const WORKERS: [usize; 3] = [1, 2, 4];

impl Mode {
    /// Runs a test in this mode, or with `PGSLUICE_MATRIX=1` in all of them.
    pub async fn run(self, test: impl AsyncFn(Mode) -> Result<()>) -> Result<()> {
        let modes = if env::var("PGSLUICE_MATRIX").is_ok_and(|all| all == "1") { Mode::all() } else { vec![self] };
        for mode in modes {
            test(mode).await.with_context(|| format!("{mode:?}"))?;
            println!("passed: {mode:?}");
        }
        Ok(())
    }

    fn all() -> Vec<Mode> {
        let bits = 0..16_u8;
        let mode = |bits| Mode {
            netting: bits & 1 != 0,
            synchronous_commit: bits & 2 != 0,
            binary: bits & 4 != 0,
            streaming: bits & 8 != 0,
            workers: WORKERS[usize::from(bits) % WORKERS.len()],
        };
        bits.map(mode).collect()
    }

    /// For the servers.
    pub fn options(self) -> ChainOptions {
        let options = ChainOptions::default();
        if self.streaming { options.b_conf(STREAMING, "immediate") } else { options }
    }

    /// For the end of a configuration.
    pub fn configuration(self) -> String {
        let format = if self.binary { "binary" } else { "text" };
        let synchronous_commit = if self.synchronous_commit { "on" } else { "off" };
        format!(
            "[apply]\nworkers = {}\nnetting = {}\nsynchronous_commit = \"{synchronous_commit}\"\n[stream]\n\
             format = \"{format}\"\nstreaming = {}\n",
            self.workers, self.netting, self.streaming
        )
    }
}
