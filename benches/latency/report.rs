//! Percentiles of all slices together, and the range of the slices' own.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::common::contender::Contender;
use crate::common::figures::{least, most};
use crate::slice::Measured;

/// With fewer samples, a thousandth of them is a handful.
const P999_SAMPLES_MIN: u64 = 100_000;

/// One contender, over all slices.
#[derive(Debug)]
pub struct Outcome {
    pub contender: Contender,
    pub slices: Vec<Measured>,
}

type Figure = fn(&Measured) -> &Histogram<u64>;

const FIGURES: [(&str, Figure); 2] = [("applied", |one| &one.applied), ("visible", |one| &one.visible)];

impl Outcome {
    pub fn new(contender: Contender) -> Outcome {
        Outcome { contender, slices: Vec::new() }
    }

    fn all(&self, figure: Figure) -> Option<Histogram<u64>> {
        let mut slices = self.slices.iter().map(figure);
        let mut all = slices.next()?.clone();
        // Of equal bounds, so each fits.
        slices.for_each(|slice| all += slice);
        Some(all)
    }

    fn range_ms(&self, figure: Figure, quantile: f64) -> (f64, f64) {
        let values: Vec<_> = self.slices.iter().map(|slice| ms(figure(slice), quantile)).collect();
        (least(&values), most(&values))
    }
}

fn ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1e3
}

pub fn line(measured: &Measured) -> String {
    let text = FIGURES.map(|(name, figure)| {
        let histogram = figure(measured);
        format!("{name} p50 {:.2} ms, p99 {:.2} ms", ms(histogram, 0.5), ms(histogram, 0.99))
    });
    text.join("; ")
}

pub fn table(outcomes: &[Outcome], rate_per_s: u64) -> String {
    let mut text = format!(
        "{rate_per_s} transactions of one row a second; ms since a row was due, with the range over slices\n\
         {:8} {:15} {:>8} {:>22} {:>22} {:>8} {:>8}\n",
        "", "", "samples", "p50", "p99", "p99.9", "most"
    );
    for (name, figure) in FIGURES {
        for outcome in outcomes {
            let Some(all) = outcome.all(figure) else { continue };
            let [p50, p99] = [0.5, 0.99].map(|quantile| {
                let (least, most) = outcome.range_ms(figure, quantile);
                format!("{:.2} ({least:.2}–{most:.2})", ms(&all, quantile))
            });
            let p999 = p999_ms(&all).map_or("-".to_owned(), |ms| format!("{ms:.2}"));
            writeln!(
                text,
                "{name:8} {:15} {:>8} {p50:>22} {p99:>22} {p999:>8} {:>8.1}",
                outcome.contender.name(),
                all.len(),
                all.max() as f64 / 1e3
            )
            .expect("a string takes all");
        }
    }
    text
}

fn p999_ms(histogram: &Histogram<u64>) -> Option<f64> {
    (histogram.len() >= P999_SAMPLES_MIN).then(|| ms(histogram, 0.999))
}

pub fn json(outcomes: &[Outcome], rate_per_s: u64) -> Value {
    let contenders: Vec<_> = outcomes.iter().map(outcome_json).collect();
    json!({ "rate_per_s": rate_per_s, "contenders": contenders })
}

fn outcome_json(outcome: &Outcome) -> Value {
    let mut value = json!({ "name": outcome.contender.name() });
    for (name, figure) in FIGURES {
        let Some(all) = outcome.all(figure) else { continue };
        let (p50_range, p99_range) = (outcome.range_ms(figure, 0.5), outcome.range_ms(figure, 0.99));
        value[name] = json!({
            "samples": all.len(),
            "p50_ms": ms(&all, 0.5),
            "p50_ms_of_slices": [p50_range.0, p50_range.1],
            "p99_ms": ms(&all, 0.99),
            "p99_ms_of_slices": [p99_range.0, p99_range.1],
            "p999_ms": p999_ms(&all),
            "most_ms": all.max() as f64 / 1e3,
        });
    }
    value
}
