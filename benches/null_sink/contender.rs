//! One drain, measured: time on the wall, CPU of the walsender, CPU of the reader.

use std::fmt;
use std::time::Instant;

use anyhow::{Context, Result};
use pgsluice_testkit::Server;

use crate::common::ceiling::Target;
use crate::common::{process, slot};

/// Drains the slot and returns the rows it saw, where it looks.
pub type Drain = fn(&Target) -> Result<Option<u64>>;

#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub seconds: f64,
    pub server_cpu_s: f64,
    pub own_cpu_s: f64,
    pub rows: Option<u64>,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} s, B {:.2} CPU-s, own {:.2} CPU-s", self.seconds, self.server_cpu_s, self.own_cpu_s)
    }
}

pub fn measure(runtime: &tokio::runtime::Runtime, b: &Server, target: &Target, drain: Drain) -> Result<Measured> {
    // The walsender is gone when the drain is over, so what B's children that have ended used counts: B does nothing else.
    let (postmaster, own) = (b.pid().context("B runs")?, std::process::id());
    let server_before = process::reaped_cpu_s(postmaster)?;
    let own_before = process::cpu_s(own)?;
    let start = Instant::now();
    let rows = drain(target)?;
    let seconds = start.elapsed().as_secs_f64();
    let own_cpu_s = process::cpu_s(own)? - own_before;
    runtime.block_on(slot::wait_free(b, &target.slot))?;
    let server_cpu_s = process::reaped_cpu_s(postmaster)? - server_before;
    Ok(Measured { seconds, server_cpu_s, own_cpu_s, rows })
}
