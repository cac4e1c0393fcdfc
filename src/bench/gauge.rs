//! How far a measure is, on stderr: a bar where a person sees it, else lines in the log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressStyle};

use crate::screen::Screen;

const BAR_INTERVAL: Duration = Duration::from_millis(100);
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
const TEMPLATE: &str = "{prefix:<8!} {bar:30} {percent:>3} % of {human_len} rows {msg}";

/// Counts rows that were seen on the target.
#[derive(Debug)]
pub(super) struct Gauge {
    what: &'static str,
    rows: u64,
    seen: AtomicU64,
    started_at: Instant,
}

impl Gauge {
    pub fn new(what: &'static str, rows: u64) -> Gauge {
        Gauge { what, rows, seen: AtomicU64::new(0), started_at: Instant::now() }
    }

    pub fn set(&self, seen: u64) {
        self.seen.store(seen, Ordering::Relaxed);
    }

    fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// On average until now.
    fn rows_per_s(&self) -> u64 {
        (self.seen() as f64 / self.started_at.elapsed().as_secs_f64().max(1.0)) as u64
    }

    /// Shows them while `work` goes on.
    pub fn during<T>(&self, screen: &Screen, work: impl FnOnce() -> T) -> T {
        tracing::info!(rows = self.rows, "measuring {}", self.what);
        thread::scope(|scope| {
            let (end, ended) = crossbeam_channel::bounded::<()>(0);
            scope.spawn(move || self.show(screen, &ended));
            let outcome = work();
            drop(end);
            outcome
        })
    }

    fn show(&self, screen: &Screen, ended: &Receiver<()>) {
        let waits = |interval| ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout);
        if let Some(bars) = screen.bars() {
            let bar = self.bar(bars);
            while waits(BAR_INTERVAL) {
                bar.set_position(self.seen());
                bar.set_message(format!("on the target, {} rows/s", HumanCount(self.rows_per_s())));
            }
            bar.finish_and_clear();
            return bars.remove(&bar);
        }
        while waits(REPORT_INTERVAL) {
            let (seen, rows_per_s) = (self.seen(), self.rows_per_s());
            tracing::info!(rows = format!("{seen}/{}", self.rows), rows_per_s, "measuring {}", self.what);
        }
    }

    fn bar(&self, screen: &MultiProgress) -> ProgressBar {
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(self.rows).with_style(style.progress_chars("█▌░")).with_prefix(self.what);
        screen.add(bar)
    }
}
