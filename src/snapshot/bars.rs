//! Progress of a copy on a terminal: a bar for each table that is being copied, and one for all of them.

use std::time::Duration;

use indicatif::{BinaryBytes, HumanCount, MultiProgress, ProgressBar, ProgressStyle};

use super::view::{TableView, View, time_left};

/// More than this do not fit a screen together with what the log says.
const TABLES_MAX: usize = 10;
/// Bytes are those of the source's files.
const TEMPLATE: &str = "{prefix:<28!} {bar:20} {percent:>3} % of {binary_total_bytes:<11} {msg}";

#[derive(Debug)]
pub(super) struct Bars {
    screen: MultiProgress,
    /// By the table's place; the largest first.
    tables: Vec<(usize, ProgressBar)>,
    all: ProgressBar,
}

impl Bars {
    pub fn new(screen: MultiProgress) -> Bars {
        let all = screen.add(bar("all tables"));
        Bars { screen, tables: Vec::new(), all }
    }

    /// Shows the figures of this moment.
    pub fn draw(&mut self, view: &View, chunks: usize) {
        self.tables.retain(|(table, bar)| {
            let stays = view.tables[*table].is_under_way;
            if !stays {
                bar.finish_and_clear();
                self.screen.remove(bar);
            }
            stays
        });
        for table in self.to_add(view) {
            let place = self.tables.partition_point(|(other, _)| size(view, *other) >= size(view, table));
            let bar = self.screen.insert(place, bar(&view.tables[table].name));
            self.tables.insert(place, (table, bar));
        }
        for (table, bar) in &self.tables {
            let TableView { rows, position, source_bytes, elapsed, .. } = view.tables[*table];
            set(bar, position, source_bytes, elapsed, &format!("{} rows", HumanCount(rows)));
        }
        let (tables, tables_done, chunks_done) = (view.tables.len(), view.tables_done, view.chunks_done);
        let rows = HumanCount(view.rows);
        let done = format!("{rows} rows, {tables_done}/{tables} tables, {chunks_done}/{chunks} chunks");
        set(&self.all, view.position, view.source_bytes, view.elapsed, &done);
    }

    /// The largest tables that are under way and have no bar, as many as there is room for.
    fn to_add(&self, view: &View) -> Vec<usize> {
        let is_shown = |table: &usize| self.tables.iter().any(|(shown, _)| shown == table);
        let mut new: Vec<_> =
            (0..view.tables.len()).filter(|table| view.tables[*table].is_under_way && !is_shown(table)).collect();
        new.sort_by_key(|table| std::cmp::Reverse(size(view, *table)));
        new.truncate(TABLES_MAX.saturating_sub(self.tables.len()));
        new
    }

    pub fn clear(self) {
        for bar in self.tables.iter().map(|(_, bar)| bar).chain([&self.all]) {
            bar.finish_and_clear();
            self.screen.remove(bar);
        }
    }
}

fn size(view: &View, table: usize) -> u64 {
    view.tables[table].source_bytes
}

fn bar(name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style.progress_chars("█▌░")).with_prefix(name.to_owned())
}

fn set(bar: &ProgressBar, position: u64, source_bytes: u64, elapsed: Duration, done: &str) {
    let bytes_per_s = BinaryBytes((position as f64 / elapsed.as_secs_f64().max(1.0)) as u64);
    let left = time_left(position, source_bytes, elapsed);
    bar.set_length(source_bytes);
    bar.set_position(position);
    bar.set_message(format!("{bytes_per_s}/s, {left} left, {done}"));
}

#[cfg(test)]
mod tests {
    use indicatif::{InMemoryTerm, ProgressDrawTarget, TermLike};

    use super::*;

    fn view(tables: &[(&str, bool, u64, u64)]) -> View {
        let table = |&(name, is_under_way, position, source_bytes): &(&str, bool, u64, u64)| TableView {
            name: name.to_owned(),
            is_under_way,
            rows: position,
            position,
            source_bytes,
            elapsed: Duration::from_secs(2),
        };
        let tables: Vec<_> = tables.iter().map(table).collect();
        let sum = |of: fn(&TableView) -> u64| tables.iter().map(of).sum();
        let (position, source_bytes) = (sum(|one| one.position), sum(|one| one.source_bytes));
        View {
            position,
            source_bytes,
            rows: 1_234,
            chunks_done: 2,
            tables_done: 1,
            bytes: 0,
            elapsed: Duration::ZERO,
            tables,
        }
    }

    #[test]
    fn tables_under_way_are_shown_the_largest_first_and_vanish() {
        let terminal = InMemoryTerm::new(20, 140);
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::term_like(Box::new(terminal.clone())));
        let mut bars = Bars::new(screen.clone());
        bars.draw(&view(&[("small", true, 512, 1_024), ("large", true, 1_024, 4_096), ("waits", false, 0, 9)]), 7);
        let shown = terminal.contents();
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines.len() == 3 && lines[0].starts_with("large ") && lines[1].starts_with("small "), "{shown}");
        assert!(lines[0].contains("█████▌░") && lines[0].contains(" 25 % of 4.00 KiB"), "{shown}");
        assert!(lines[0].ends_with(" 512 B/s, 6s left, 1,024 rows"), "{shown}");
        assert!(
            lines[2].starts_with("all tables") && lines[2].ends_with("1,234 rows, 1/3 tables, 2/7 chunks"),
            "{shown}"
        );
        // A line of the log comes above them.
        screen.suspend(|| terminal.write_line("a line of the log")).expect("a terminal in memory takes it");
        bars.draw(&view(&[("small", true, 600, 1_024), ("large", false, 4_096, 4_096), ("waits", false, 0, 9)]), 7);
        let shown = terminal.contents();
        let starts: Vec<_> = shown.lines().map(|line| line.split("  ").next().unwrap_or_default()).collect();
        assert_eq!(starts, ["a line of the log", "small", "all tables"], "{shown}");
        bars.clear();
        assert_eq!(terminal.contents(), "a line of the log");
    }

    #[test]
    fn no_more_than_fit_are_shown() {
        let terminal = InMemoryTerm::new(40, 140);
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::term_like(Box::new(terminal.clone())));
        let names: Vec<_> = (0..15).map(|table| format!("t{table}")).collect();
        let tables: Vec<_> = (1..).zip(&names).map(|(size, name)| (name.as_str(), true, 0, size)).collect();
        let mut bars = Bars::new(screen);
        bars.draw(&view(&tables), 15);
        let shown = terminal.contents();
        assert_eq!(shown.lines().count(), TABLES_MAX + 1, "{shown}");
        assert!(shown.starts_with("t14 ") && !shown.contains("t4 "), "{shown}");
    }
}
