//! The lag, live: what `pgsluice status` and the writers' counts say, twice a second, onto the screen.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pgsluice_testkit::Engine;

use crate::counts::Counts;
use crate::replication::{Lag, Replication};
use crate::screen::{Screen, bytes, count};

const INTERVAL: Duration = Duration::from_millis(500);

pub const HEADER: &str = "    time  rows/s on A      A→B   replay  B→engine  engine→C   total lag";

/// The largest lag seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    pub bytes: u64,
    pub seconds: f64,
}

pub struct Monitor<'a> {
    screen: &'a Screen,
    replication: &'a Replication<'a>,
    engine: &'a Engine,
    counts: Arc<Counts>,
    started_at: Instant,
    peak: Peak,
}

impl<'a> Monitor<'a> {
    pub fn new(
        screen: &'a Screen,
        replication: &'a Replication<'a>,
        engine: &'a Engine,
        counts: Arc<Counts>,
    ) -> Monitor<'a> {
        Monitor { screen, replication, engine, counts, started_at: Instant::now(), peak: Peak::default() }
    }

    pub fn peak(&self) -> Peak {
        self.peak
    }

    /// Does `work`, watching meanwhile.
    pub async fn during<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            result = work => result,
            error = self.watch() => error.map(|never| match never {}),
        }
    }

    /// # Errors
    /// The engine has ended, or its status cannot be read.
    async fn watch(&mut self) -> Result<Infallible> {
        let mut ticks = tokio::time::interval_at((Instant::now() + INTERVAL).into(), INTERVAL);
        let (mut seen_at, mut seen_rows) = (Instant::now(), self.counts.rows());
        loop {
            ticks.tick().await;
            ensure!(self.engine.is_running(), "the engine has ended by itself");
            let lag = self.replication.lag().await?;
            self.peak.bytes = self.peak.bytes.max(lag.total_bytes.unwrap_or(0));
            self.peak.seconds = self.peak.seconds.max(lag.total_seconds.unwrap_or(0.0));
            let rows = self.counts.rows();
            let rate = (rows - seen_rows) as f64 / seen_at.elapsed().as_secs_f64();
            (seen_at, seen_rows) = (Instant::now(), rows);
            self.screen.live(&line(self.started_at.elapsed(), rate, &lag));
        }
    }
}

fn line(elapsed: Duration, rows_per_second: f64, lag: &Lag) -> String {
    let known = |amount: Option<u64>| amount.map_or("?".to_owned(), bytes);
    let [receive, replay, decode, apply] = lag.hops.map(known);
    let seconds = lag.total_seconds.map_or("?".to_owned(), |seconds| format!("{seconds:.1} s"));
    format!(
        "{:>6.1} s {:>12} {receive:>8} {replay:>8} {decode:>9} {apply:>9}   {}, {seconds}",
        elapsed.as_secs_f64(),
        count(rows_per_second as u64),
        known(lag.total_bytes),
    )
}
