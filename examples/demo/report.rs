//! The end: what was done, what came of it, and whether A and C agree.

use std::time::Duration;

use anyhow::Result;
use pgsluice_testkit::Chain;

use crate::counts::Done;
use crate::monitor::Peak;
use crate::queries::{self, Answers};
use crate::screen::{Screen, bytes, count, padded};
use crate::shop::{self, Comparison};

const ANSWER_ROWS_SHOWN: usize = 3;
/// Up to the column of the verdicts.
const VERDICT_COLUMN: usize = 60;

/// What the load did and how the replication followed.
#[derive(Debug)]
pub struct Run {
    pub done: Done,
    pub peak: Peak,
    pub drain: Duration,
}

#[derive(Debug)]
pub struct Report {
    run: Run,
    tables: Vec<Comparison>,
    answers: Vec<Answers>,
}

impl Report {
    /// Compares A and C, where nobody writes any more.
    pub async fn make(chain: &Chain, run: Run) -> Result<Report> {
        Ok(Report { run, tables: shop::compare_tables(chain).await?, answers: queries::ask(chain).await? })
    }

    pub fn is_equal(&self) -> bool {
        self.tables.iter().all(|table| table.difference.is_none()) && self.answers.iter().all(Answers::are_equal)
    }

    pub fn print(&self, screen: &Screen, took: Duration) {
        self.print_run(screen);
        self.print_tables(screen);
        self.print_answers(screen);
        let verdict = screen.verdict(self.is_equal());
        screen.line(&format!("\n  {verdict}: A and C, {:.0} s after the start\n", took.as_secs_f64()));
    }

    fn print_run(&self, screen: &Screen) {
        let Run { done, peak, drain } = &self.run;
        screen.heading("Replicated");
        let rows = [
            ("transactions", format!("{}, and {} savepoints rolled back", count(done.transactions), done.rollbacks)),
            ("inserts", count(done.inserts)),
            ("updates", format!("{}, {} of them of primary keys", count(done.updates), count(done.key_updates))),
            ("deletes", count(done.deletes)),
            ("peak lag", format!("{}, {:.1} s", bytes(peak.bytes), peak.seconds)),
            ("drain", format!("{:.2} s from the end of the load to zero lag", drain.as_secs_f64())),
        ];
        rows.iter().for_each(|(what, value)| screen.line(&format!("  {} {value}", padded(what, 13))));
    }

    fn print_tables(&self, screen: &Screen) {
        screen.heading("Tables, row for row");
        screen.columns(&format!("  {} {:>14} {:>14}", padded("", 24), "rows on A", "rows on C"));
        for Comparison { table, rows_a, rows_c, difference } in &self.tables {
            let row = format!("  {} {:>14} {:>14}", padded(table, 24), count(*rows_a), count(*rows_c));
            screen.line(&format!("{}{}", padded(&row, VERDICT_COLUMN), screen.verdict(difference.is_none())));
            difference.iter().for_each(|difference| screen.line(difference));
        }
    }

    fn print_answers(&self, screen: &Screen) {
        screen.heading("Queries, answer for answer");
        for answers in &self.answers {
            let title = format!("  {} ({} rows)", answers.title, count(answers.on_a.len() as u64));
            screen.line(&format!("{}{}", padded(&title, VERDICT_COLUMN), screen.verdict(answers.are_equal())));
            answers.on_a.iter().take(ANSWER_ROWS_SHOWN).for_each(|row| screen.line(&answer(row)));
        }
    }
}

fn answer(row: &[Option<String>]) -> String {
    let cell = |cell: &Option<String>| format!("{:<20} ", cell.as_deref().unwrap_or("-"));
    format!("      {}", row.iter().map(cell).collect::<String>()).trim_end().to_owned()
}
