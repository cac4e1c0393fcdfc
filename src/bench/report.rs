//! What was measured, as figures for programs and as a table for people.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::error::Error;

use super::clock::Offset;
use super::{Clocks, DrainPlan, LatencyPlan, Plan, drain, latency};

/// Of the two numbers that a row has beside its text.
const NUMBERS_BYTES: u64 = 16;
/// Where buckets begin, in every decade.
const BUCKET_STARTS: [u64; 6] = [100, 150, 200, 300, 500, 700];
const BAR_CELLS: usize = 40;

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    row_bytes: u64,
    clocks: ClockReport,
    latency: Option<LatencyReport>,
    drain: Option<DrainReport>,
}

/// How far clocks are ahead of that of the host that measures.
#[derive(Clone, Debug, Serialize)]
struct ClockReport {
    primary: OffsetReport,
    target: OffsetReport,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct OffsetReport {
    ahead_ms: f64,
    uncertainty_ms: f64,
}

#[derive(Clone, Debug, Serialize)]
struct LatencyReport {
    rate_per_s: u64,
    seconds: u64,
    /// Rows that were measured.
    rows: u64,
    committed: Percentiles,
    applied: Percentiles,
    visible: Percentiles,
    /// Of `visible`.
    histogram: Vec<Bucket>,
}

/// Milliseconds since a row was due.
#[derive(Clone, Copy, Debug, Serialize)]
struct Percentiles {
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Bucket {
    from_ms: f64,
    to_ms: f64,
    rows: u64,
}

#[derive(Clone, Debug, Serialize)]
struct DrainReport {
    rows: u64,
    chunk_rows: u64,
    writers: usize,
    rows_on_target: u64,
    written: Rate,
    visible: Rate,
    /// From the last commit on A until its row was visible on C.
    after_last_commit_s: f64,
}

/// From the first row on.
#[derive(Clone, Copy, Debug, Serialize)]
struct Rate {
    seconds: f64,
    rows_per_s: f64,
    /// Of values, 10⁶ bytes.
    mb_per_s: f64,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        clocks: Clocks,
        latency: Option<latency::Measured>,
        drain: Option<drain::Measured>,
    ) -> Result<Report, Error> {
        let latency = match (plan.latency, latency) {
            (Some(plan), Some(measured)) => Some(LatencyReport::new(plan, &measured, clocks.target)?),
            (None, _) | (_, None) => None,
        };
        let row_bytes = plan.row_bytes as u64;
        let drain = plan.drain.zip(drain).map(|(plan, measured)| DrainReport::new(plan, measured, row_bytes));
        let of = |offset: Offset| OffsetReport {
            ahead_ms: offset.us as f64 / 1e3,
            uncertainty_ms: offset.uncertainty_us as f64 / 1e3,
        };
        let clocks = ClockReport { primary: of(clocks.primary), target: of(clocks.target) };
        Ok(Report { row_bytes, clocks, latency, drain })
    }

    /// Lines for people, the last without its end.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Some(latency) = &self.latency {
            latency.write(&mut text, self.row_bytes);
        }
        if let Some(drain) = &self.drain {
            drain.write(&mut text, self.row_bytes);
        }
        let ClockReport { primary, target } = &self.clocks;
        let of = |clock: &OffsetReport| format!("{:+.3} ms ± {:.3}", clock.ahead_ms, clock.uncertainty_ms);
        line(&mut text, format_args!("clocks  ahead of this host's: A {}, C {}", of(primary), of(target)));
        text.truncate(text.trim_end().len());
        text
    }
}

impl LatencyReport {
    fn new(plan: LatencyPlan, measured: &latency::Measured, target: Offset) -> Result<LatencyReport, Error> {
        let latency::Measured { committed, applied, visible } = measured;
        Ok(LatencyReport {
            rate_per_s: plan.rate_per_s,
            seconds: plan.length.as_secs(),
            rows: visible.len(),
            committed: Percentiles::of(committed),
            applied: Percentiles::of(&applied.corrected(target.us)?),
            visible: Percentiles::of(visible),
            histogram: buckets(visible),
        })
    }

    fn write(&self, text: &mut String, row_bytes: u64) {
        let LatencyReport { rate_per_s, seconds, rows, .. } = self;
        line(
            text,
            format_args!(
                "latency  {rate_per_s} transactions of a row of {row_bytes} bytes a second for {seconds} s, {rows} rows; ms since a row was due"
            ),
        );
        line(text, format_args!("{:16}{:>10}{:>10}{:>10}{:>10}{:>10}", "", "p50", "p90", "p99", "p99.9", "max"));
        let figures =
            [("committed on A", self.committed), ("applied on C", self.applied), ("visible on C", self.visible)];
        for (name, Percentiles { p50_ms, p90_ms, p99_ms, p999_ms, max_ms }) in figures {
            line(
                text,
                format_args!("{name:16}{p50_ms:>10.2}{p90_ms:>10.2}{p99_ms:>10.2}{p999_ms:>10.2}{max_ms:>10.2}"),
            );
        }
        line(text, format_args!("\nvisible on C, ms"));
        let most = self.histogram.iter().map(|bucket| bucket.rows).max().unwrap_or(0).max(1);
        for Bucket { from_ms, to_ms, rows } in &self.histogram {
            line(text, format_args!("{from_ms:>8} – {to_ms:<8} {:BAR_CELLS$} {rows}", bar(*rows, most)));
        }
        text.push('\n');
    }
}

impl Percentiles {
    fn of(histogram: &Histogram<u64>) -> Percentiles {
        let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        let max_ms = histogram.max() as f64 / 1e3;
        Percentiles { p50_ms: ms(0.5), p90_ms: ms(0.9), p99_ms: ms(0.99), p999_ms: ms(0.999), max_ms }
    }
}

impl DrainReport {
    fn new(plan: DrainPlan, measured: drain::Measured, row_bytes: u64) -> DrainReport {
        let drain::Measured { rows, written, visible, rows_on_target } = measured;
        let rate = |seconds: f64| {
            let rows_per_s = rows as f64 / seconds;
            Rate { seconds, rows_per_s, mb_per_s: rows_per_s * (row_bytes + NUMBERS_BYTES) as f64 / 1e6 }
        };
        DrainReport {
            rows,
            chunk_rows: plan.chunk_rows,
            writers: plan.writers,
            rows_on_target,
            written: rate(written.as_secs_f64()),
            visible: rate(visible.as_secs_f64()),
            after_last_commit_s: visible.saturating_sub(written).as_secs_f64(),
        }
    }

    fn write(&self, text: &mut String, row_bytes: u64) {
        let DrainReport { rows, chunk_rows, writers, after_last_commit_s, .. } = self;
        line(
            text,
            format_args!(
                "drain  {rows} rows of {row_bytes} bytes, {chunk_rows} in a transaction, {writers} sessions that write"
            ),
        );
        line(text, format_args!("{:16}{:>10}{:>12}{:>10}", "", "seconds", "rows/s", "MB/s"));
        for (name, Rate { seconds, rows_per_s, mb_per_s }) in
            [("written on A", self.written), ("visible on C", self.visible)]
        {
            line(text, format_args!("{name:16}{seconds:>10.2}{rows_per_s:>12.0}{mb_per_s:>10.1}"));
        }
        line(text, format_args!("C had all of them {after_last_commit_s:.2} s after the last commit on A\n"));
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // A string takes all.
    writeln!(text, "{line}").unwrap_or_default();
}

/// Each wider than the one before it, without those before the first row and after the last.
fn buckets(histogram: &Histogram<u64>) -> Vec<Bucket> {
    let mut starts_us: Vec<u64> = vec![1];
    let mut decade = 1;
    while *starts_us.last().unwrap_or(&1) <= histogram.max() {
        starts_us.extend(BUCKET_STARTS.map(|start| start * decade));
        decade *= 10;
    }
    let mut buckets: Vec<_> = starts_us
        .windows(2)
        .map(|ends| Bucket { from_ms: ends[0] as f64 / 1e3, to_ms: ends[1] as f64 / 1e3, rows: 0 })
        .collect();
    for value in histogram.iter_recorded() {
        let place = starts_us.partition_point(|start| *start <= value.value_iterated_to()) - 1;
        buckets[place].rows += value.count_at_value();
    }
    if let Some(first) = buckets.first_mut() {
        first.from_ms = 0.0;
    }
    let is_empty = |bucket: &&Bucket| bucket.rows == 0;
    let before = buckets.iter().take_while(is_empty).count();
    let after = buckets.iter().rev().take_while(is_empty).count();
    buckets.truncate(buckets.len() - after);
    buckets.drain(..before.min(buckets.len()));
    buckets
}

/// In eighths of a cell, so that a single row shows beside many.
fn bar(rows: u64, most: u64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (rows as f64 / most as f64 * (BAR_CELLS * 8) as f64).ceil() as usize;
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values_us: &[(u64, u64)]) -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000, 3).unwrap();
        values_us.iter().for_each(|(value, count)| histogram.record_n(*value, *count).unwrap());
        histogram
    }

    #[test]
    fn every_row_is_in_one_bucket() {
        let buckets = buckets(&histogram(&[(1, 1), (99, 2), (100, 3), (149, 4), (7_000, 5), (2_500_000, 6)]));
        assert_eq!(buckets.iter().map(|bucket| bucket.rows).sum::<u64>(), 21);
        let bucket = |from_ms, to_ms, rows| Bucket { from_ms, to_ms, rows };
        assert_eq!(buckets[..3], [bucket(0.0, 0.1, 3), bucket(0.1, 0.15, 7), bucket(0.15, 0.2, 0)]);
        assert_eq!(buckets.last(), Some(&bucket(2_000.0, 3_000.0, 6)));
        assert!(buckets.contains(&bucket(7.0, 10.0, 5)));
        assert!(super::buckets(&histogram(&[])).is_empty());
    }

    #[test]
    fn bars_are_as_long_as_their_share_and_never_nothing() {
        assert_eq!(bar(10, 10).chars().count(), BAR_CELLS);
        assert_eq!(
            (bar(5, 10).chars().count(), bar(1, 1_000_000).as_str(), bar(0, 9).as_str()),
            (BAR_CELLS / 2, "▏", "")
        );
    }

    #[test]
    fn the_table_has_what_people_look_for() {
        let plan = Plan {
            latency: Some(LatencyPlan { rate_per_s: 1_000, length: std::time::Duration::from_secs(2) }),
            drain: Some(DrainPlan { rows: 1_000_000, chunk_rows: 1_000, writers: 4 }),
            row_bytes: 64,
            limit: std::time::Duration::from_secs(60),
        };
        let offset = Offset { us: -120, uncertainty_us: 35 };
        let figures = histogram(&[(1_000, 1_000), (2_200, 990), (40_000, 10)]);
        let latency = latency::Measured {
            committed: figures.clone(),
            applied: latency::Differences::default(),
            visible: figures,
        };
        let (written, visible) = (std::time::Duration::from_secs(4), std::time::Duration::from_secs(5));
        let drain = drain::Measured { rows: 1_000_000, written, visible, rows_on_target: 1_000_000 };
        let report =
            Report::new(&plan, Clocks { primary: offset, target: offset }, Some(latency), Some(drain)).unwrap();
        let text = report.text();
        for part in [
            "visible on C          1.00      2.20      2.20     40.03     40.03",
            "       1 – 1.5      ████████████████████████████████████████ 1000\n",
            "      30 – 50       ▌                                        10\n",
            "written on A          4.00      250000      20.0",
            "visible on C          5.00      200000      16.0",
            "1.00 s after the last commit",
            "A -0.120 ms ± 0.035, C -0.120 ms ± 0.035",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }
}
