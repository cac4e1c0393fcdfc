//! What the jobs have done of each table, and how it is shown: as bars on a terminal, else as a line in the log at intervals.
//!
//! How far a table is, is told in bytes of the source's files: their sum is known beforehand, what is sent for them is not.
//! For a chunk that is under way, what was sent so far is taken to stand for as much of them as it did in the chunks before.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::bars::Bars;
use super::parts::{Chunk, Queue};
use super::view::{TableView, View, time_left};
use crate::screen::Screen;

const REPORT_INTERVAL: Duration = Duration::from_secs(10);
const BARS_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Progress {
    tables: Vec<Table>,
    chunks: usize,
    /// Of all tries, for whoever decides whether it is worth another.
    done: Arc<AtomicUsize>,
    started_at: Instant,
}

#[derive(Debug)]
struct Table {
    name: String,
    source_bytes: u64,
    figures: Mutex<Figures>,
}

#[derive(Debug, Default)]
struct Figures {
    /// Of the first chunk.
    started_at: Option<Instant>,
    is_done: bool,
    chunks_done: usize,
    rows: u64,
    /// As they were sent, of chunks under way too.
    bytes: u64,
    /// Of chunks that are done.
    bytes_done: u64,
    /// Of the source's files: of chunks that are done, and of those that were begun.
    source_done: u64,
    source_begun: u64,
}

impl Figures {
    /// Bytes of the source's files that are copied, as far as can be told.
    fn position(&self) -> u64 {
        let ratio = if self.bytes_done > 0 { self.source_done as f64 / self.bytes_done as f64 } else { 1.0 };
        let under_way = (self.bytes - self.bytes_done) as f64 * ratio;
        (self.source_done + under_way as u64).min(self.source_begun)
    }
}

impl Progress {
    pub fn new(queue: &Queue, done: Arc<AtomicUsize>) -> Progress {
        let table = |(name, source_bytes, is_empty): (String, u64, bool)| {
            let figures = Mutex::new(Figures { is_done: is_empty, ..Figures::default() });
            Table { name, source_bytes, figures }
        };
        let tables = queue.sizes().map(table).collect();
        Progress { tables, chunks: queue.chunks(), done, started_at: Instant::now() }
    }

    /// Counts what is done, in all tries.
    pub fn done(&self) -> &AtomicUsize {
        &self.done
    }

    fn figures(&self, table: usize) -> MutexGuard<'_, Figures> {
        self.tables[table].figures.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn chunk_begins(&self, chunk: &Chunk) {
        let mut figures = self.figures(chunk.table);
        figures.started_at.get_or_insert_with(Instant::now);
        figures.source_begun += chunk.source_bytes;
    }

    /// So many bytes more of the chunk have been handed on.
    pub fn sent(&self, chunk: &Chunk, bytes: u64) {
        self.figures(chunk.table).bytes += bytes;
    }

    /// A chunk is committed; all its bytes were [`sent`](Progress::sent) before.
    pub fn chunk_done(&self, chunk: &Chunk, rows: u64, bytes: u64) {
        let mut figures = self.figures(chunk.table);
        figures.chunks_done += 1;
        figures.rows += rows;
        figures.bytes_done += bytes;
        figures.source_done += chunk.source_bytes;
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// The last chunk of the table is committed.
    pub fn table_done(&self, table: usize) {
        let mut figures = self.figures(table);
        figures.is_done = true;
        let seconds = figures.started_at.map_or(0, |started_at| started_at.elapsed().as_secs());
        let (rows, bytes) = (figures.rows, figures.bytes);
        drop(figures);
        tracing::info!(table = self.tables[table].name, rows, bytes, seconds, "the table is copied");
    }

    pub fn view(&self) -> View {
        let mut view = View { elapsed: self.started_at.elapsed(), ..View::default() };
        for (index, table) in self.tables.iter().enumerate() {
            let figures = self.figures(index);
            let position = if figures.is_done { table.source_bytes } else { figures.position() };
            view.tables_done += usize::from(figures.is_done);
            view.chunks_done += figures.chunks_done;
            view.rows += figures.rows;
            view.bytes += figures.bytes;
            view.position += position;
            view.source_bytes += table.source_bytes;
            view.tables.push(TableView {
                name: table.name.clone(),
                is_under_way: figures.started_at.is_some() && !figures.is_done,
                rows: figures.rows,
                position,
                source_bytes: table.source_bytes,
                elapsed: figures.started_at.map_or(Duration::ZERO, |started_at| started_at.elapsed()),
            });
        }
        view
    }

    /// Shows progress while `work` goes on.
    pub fn during<T>(&self, screen: &Screen, work: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            let (end, ended) = crossbeam_channel::bounded::<()>(0);
            let span = tracing::Span::current();
            scope.spawn(move || span.in_scope(|| self.show(screen, &ended)));
            let outcome = work();
            drop(end);
            outcome
        })
    }

    fn show(&self, screen: &Screen, ended: &Receiver<()>) {
        let waits = |interval| ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout);
        if let Some(bars) = screen.bars() {
            let mut bars = Bars::new(bars.clone());
            while waits(BARS_INTERVAL) {
                bars.draw(&self.view(), self.chunks);
            }
            return bars.clear();
        }
        let mut bytes = 0;
        while waits(REPORT_INTERVAL) {
            let view = self.view();
            self.log(&view, (view.bytes - bytes) / REPORT_INTERVAL.as_secs());
            bytes = view.bytes;
        }
    }

    fn log(&self, view: &View, bytes_per_s: u64) {
        tracing::info!(
            tables = format!("{}/{}", view.tables_done, view.tables.len()),
            chunks = format!("{}/{}", view.chunks_done, self.chunks),
            rows = view.rows,
            bytes = view.bytes,
            bytes_per_s,
            time_left = time_left(view.position, view.source_bytes, view.elapsed),
            "copying"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_under_way_counts_as_those_before_it() {
        let mut figures = Figures { source_begun: 100, bytes: 70, ..Figures::default() };
        assert_eq!(figures.position(), 70);
        figures.bytes = 700;
        assert_eq!(figures.position(), 100, "no more than was begun");
        figures = Figures { source_done: 100, bytes_done: 200, source_begun: 300, bytes: 300, ..Figures::default() };
        assert_eq!(figures.position(), 150);
    }
}
