//! What processes have cost, from `/proc`: pids in, CPU seconds and bytes out.

use std::fs;

use anyhow::{Context, Result};

/// `USER_HZ`, which Linux has kept at 100 on every architecture that PostgreSQL runs on.
const TICKS_PER_S: f64 = 100.0;

// Fields of `/proc/PID/stat`, counted from 0, after the name in parentheses, which may hold blanks.
const PARENT: usize = 1;
const USER_TICKS: usize = 11;
const SYSTEM_TICKS: usize = 12;
const REAPED_USER_TICKS: usize = 13;
const REAPED_SYSTEM_TICKS: usize = 14;

/// CPU of a process, of its children, and of those of them that have ended and were waited for. A server's backends are
/// children of its postmaster, so nothing of a server is left out.
pub fn tree_cpu_s(pid: u32) -> Result<f64> {
    loop {
        let reaped = reaped_cpu_s(pid)?;
        let seconds = cpu_s(pid)? + children_cpu_s(pid)?;
        // A child that was waited for meanwhile is counted twice or not at all.
        if reaped_cpu_s(pid)? == reaped {
            return Ok(seconds);
        }
    }
}

fn children_cpu_s(pid: u32) -> Result<f64> {
    let mut seconds = 0.0;
    for entry in fs::read_dir("/proc")? {
        let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Processes end while they are counted.
        let Ok(stat) = Stat::read(child) else { continue };
        if stat.field(PARENT)? as u32 == pid {
            seconds += stat.cpu_s()?;
        }
    }
    Ok(seconds)
}

/// CPU of one process, and of its children that have ended.
pub fn cpu_s(pid: u32) -> Result<f64> {
    Stat::read(pid)?.cpu_s()
}

/// CPU of the children of a process that have ended.
pub fn reaped_cpu_s(pid: u32) -> Result<f64> {
    let stat = Stat::read(pid)?;
    Ok((stat.field(REAPED_USER_TICKS)? + stat.field(REAPED_SYSTEM_TICKS)?) / TICKS_PER_S)
}

/// The most memory that a process has had resident.
pub fn peak_rss_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

struct Stat(String);

impl Stat {
    fn read(pid: u32) -> Result<Stat> {
        Ok(Stat(fs::read_to_string(format!("/proc/{pid}/stat"))?))
    }

    fn field(&self, index: usize) -> Result<f64> {
        let fields = self.0.rsplit_once(')').context("no process name")?.1;
        fields.split_whitespace().nth(index).context("too few fields")?.parse().context("not a number")
    }

    fn cpu_s(&self) -> Result<f64> {
        let fields = [USER_TICKS, SYSTEM_TICKS, REAPED_USER_TICKS, REAPED_SYSTEM_TICKS];
        let ticks = fields.into_iter().map(|index| self.field(index)).sum::<Result<f64>>()?;
        Ok(ticks / TICKS_PER_S)
    }
}
