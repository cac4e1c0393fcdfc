//! One drain, measured: time on the wall, CPU of the walsender, CPU of the reader.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pgsluice_proto::Lsn;
use pgsluice_testkit::{Server, wait_for};

use crate::{DATABASE, SLOT};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Unix,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Transport::Tcp => "TCP",
            Transport::Unix => "Unix",
        })
    }
}

/// What to drain.
#[derive(Clone, Debug)]
pub struct Target {
    pub transport: Transport,
    pub port: u16,
    pub socket_dir: PathBuf,
    /// The drain ends with the first frame at or past this.
    pub stop_at: Lsn,
}

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
    // The walsender is gone when the drain is over, so the CPU of all of B counts: B does nothing else.
    let server_before = children_cpu_s(b)?;
    let own_before = own_cpu_s()?;
    let start = Instant::now();
    let rows = drain(target)?;
    let seconds = start.elapsed().as_secs_f64();
    let own_cpu_s = own_cpu_s()? - own_before;
    runtime.block_on(wait_for("the slot to be free", Duration::from_secs(10), || async {
        let sql = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
        Ok((b.scalar(DATABASE, &sql).await? == "f").then_some(()))
    }))?;
    let server_cpu_s = children_cpu_s(b)? - server_before;
    Ok(Measured { seconds, server_cpu_s, own_cpu_s, rows })
}

/// CPU of B's processes that have ended and were waited for, which the walsender has.
fn children_cpu_s(b: &Server) -> Result<f64> {
    let pid = b.pid().context("B runs")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 16 and 17, counted from 1, after the name in parentheses, which may hold blanks.
    cpu_fields(&stat, 13)
}

/// CPU of this process and of those it has waited for.
fn own_cpu_s() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    Ok(cpu_fields(&stat, 11)? + cpu_fields(&stat, 13)?)
}

fn cpu_fields(stat: &str, first: usize) -> Result<f64> {
    const TICKS_PER_S: f64 = 100.0;
    let fields: Vec<_> = stat.rsplit_once(')').context("a process name")?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).context("a field")?.parse::<f64>().context("a number");
    Ok((ticks(first)? + ticks(first + 1)?) / TICKS_PER_S)
}
