//! What the jobs have done, and a line in the log at intervals.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const REPORT_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Progress {
    chunks: usize,
    chunks_done: AtomicUsize,
    /// Of all tries, for whoever decides whether it is worth another.
    done: Arc<AtomicUsize>,
    rows: AtomicU64,
    bytes: AtomicU64,
    reported: Mutex<Reported>,
}

#[derive(Debug)]
struct Reported {
    at: Instant,
    rows: u64,
}

impl Progress {
    pub fn new(chunks: usize, done: Arc<AtomicUsize>) -> Progress {
        let reported = Mutex::new(Reported { at: Instant::now(), rows: 0 });
        Progress {
            chunks,
            chunks_done: AtomicUsize::new(0),
            done,
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            reported,
        }
    }

    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// As they were sent.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A chunk is committed.
    pub fn chunk_done(&self, rows: u64, bytes: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.chunks_done.fetch_add(1, Ordering::Relaxed);
        self.done.fetch_add(1, Ordering::Relaxed);
        let mut reported = self.reported.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let elapsed = reported.at.elapsed();
        if elapsed >= REPORT_INTERVAL {
            let rows = self.rows();
            let rows_per_s = ((rows - reported.rows) as f64 / elapsed.as_secs_f64()).round();
            *reported = Reported { at: Instant::now(), rows };
            let (done, chunks) = (self.chunks_done.load(Ordering::Relaxed), self.chunks);
            tracing::info!(chunks = format!("{done}/{chunks}"), rows, bytes = self.bytes(), rows_per_s, "copying");
        }
    }
}
