//! What the rounds came to: medians with their range, as a table and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::common::contender::{CONTENDERS, Contender};
use crate::common::figures::{least, median, most};
use crate::load::Load;
use crate::round::Drained;

const MIB: f64 = 1_048_576.0;

/// One load, over all rounds.
#[derive(Debug)]
pub struct Outcome {
    pub load: &'static Load,
    pub rows: u64,
    pub rounds: Vec<Vec<Drained>>,
}

impl Outcome {
    pub fn new(load: &'static Load, rows: u64) -> Outcome {
        Outcome { load, rows, rounds: Vec::new() }
    }

    /// A figure of every round of a contender that counts.
    fn of<'a>(&'a self, contender: Contender, figure: impl Fn(&Drained) -> Option<f64> + 'a) -> Vec<f64> {
        let valid = self.rounds.iter().flatten().filter(|one| one.contender == contender && one.void.is_none());
        valid.filter_map(figure).collect()
    }

    pub fn rates(&self, contender: Contender) -> Vec<f64> {
        self.of(contender, |one| Some(self.rows as f64 / one.seconds))
    }

    fn per_million(&self, contender: Contender, figure: impl Fn(&Drained) -> Option<f64>) -> f64 {
        let millions = self.rows as f64 / 1e6;
        median(&self.of(contender, |one| figure(one).map(|seconds| seconds / millions)))
    }

    /// Per round, how many times faster a contender was than the fastest of those that `against` names.
    pub fn ratios(&self, contender: Contender, against: impl Fn(Contender) -> bool) -> Vec<f64> {
        let of_round = |round: &Vec<Drained>| {
            let valid = || round.iter().filter(|one| one.void.is_none());
            let own = valid().find(|one| one.contender == contender)?;
            let best = valid().filter(|one| against(one.contender)).map(|one| one.seconds).reduce(f64::min)?;
            Some(best / own.seconds)
        };
        self.rounds.iter().filter_map(of_round).collect()
    }

    /// Per round, how fast the drain through a trail was against that without.
    fn trail_ratios(&self) -> Vec<f64> {
        let of_round = |round: &Vec<Drained>| {
            let of = |contender| round.iter().find(|one| one.contender == contender && one.void.is_none());
            Some(of(Contender::Engine)?.seconds / of(Contender::Trail)?.seconds)
        };
        self.rounds.iter().filter_map(of_round).collect()
    }

    /// Per round, CPU of C for the engine as a share of what the cheaper native took.
    fn cpu_c_ratios(&self) -> Vec<f64> {
        let of_round = |round: &Vec<Drained>| {
            let valid = || round.iter().filter(|one| one.void.is_none());
            let own = valid().find(|one| one.contender == Contender::Engine)?.cpu_c_s?;
            let native = valid().filter(|one| one.contender.is_native()).filter_map(|one| one.cpu_c_s);
            Some(own / native.reduce(f64::min)?)
        };
        self.rounds.iter().filter_map(of_round).collect()
    }

    pub fn table(&self) -> String {
        let mut text = format!(
            "\n{}: {}; {} rows, {} rounds\n{:15} {:>9}  {:>20}  {:>20}  {:>8} {:>8} {:>8} {:>8}  {}\n",
            self.load.name,
            self.load.description,
            self.rows,
            self.rounds.len(),
            "",
            "rows/s",
            "× better native",
            "× ceiling",
            "engine",
            "B",
            "C",
            "RSS MiB",
            "(CPU-s per million rows)"
        );
        for contender in CONTENDERS.into_iter().filter(|contender| !self.rates(*contender).is_empty()) {
            self.write_row(&mut text, contender);
        }
        let cpu = self.cpu_c_ratios();
        writeln!(text, "goal × {:.2}; CPU on C against the cheaper native {}", self.load.goal, range(&cpu))
            .expect("a string takes all");
        writeln!(
            text,
            "with a trail × {} of without; {:.0} bytes written a row",
            range(&self.trail_ratios()),
            median(&self.of(Contender::Trail, |one| one.trail_bytes.map(|bytes| bytes as f64 / self.rows as f64)))
        )
        .expect("a string takes all");
        for (round, one) in
            self.rounds.iter().enumerate().flat_map(|(round, all)| all.iter().map(move |one| (round, one)))
        {
            if let Some(void) = &one.void {
                writeln!(text, "VOID round {round}, {}: {void}", one.contender.name()).expect("a string takes all");
            }
        }
        text
    }

    fn write_row(&self, text: &mut String, contender: Contender) {
        writeln!(
            text,
            "{:15} {:>9.0}  {:>20}  {:>20}  {:>8} {:>8} {:>8} {:>8}",
            contender.name(),
            median(&self.rates(contender)),
            range(&self.ratios(contender, Contender::is_native)),
            range(&self.ratios(contender, |other| other == Contender::Ceiling)),
            known(self.per_million(contender, |one| one.cpu_engine_s)),
            known(self.per_million(contender, |one| Some(one.cpu_b_s))),
            known(self.per_million(contender, |one| one.cpu_c_s)),
            known(median(&self.of(contender, |one| one.peak_rss_bytes.map(|bytes| bytes as f64 / MIB)))),
        )
        .expect("a string takes all");
    }
}

/// Median, least and most.
fn range(values: &[f64]) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    format!("{:.2} ({:.2}–{:.2})", median(values), least(values), most(values))
}

fn known(value: f64) -> String {
    if value.is_nan() { "-".to_owned() } else { format!("{value:.2}") }
}

/// One drain, to be seen while the rounds run.
pub fn line(one: &Drained, rows: u64) -> String {
    let void = one.void.as_ref().map_or(String::new(), |void| format!(" VOID: {void}"));
    let cpu = |seconds: Option<f64>| seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.2}"));
    format!(
        "{:15} {:.2} s, {:.0} rows/s, CPU-s engine {} B {:.2} C {}{void}",
        one.contender.name(),
        one.seconds,
        rows as f64 / one.seconds,
        cpu(one.cpu_engine_s),
        one.cpu_b_s,
        cpu(one.cpu_c_s)
    )
}

pub fn json(version: &str, outcomes: &[Outcome]) -> Value {
    let loads: Vec<_> = outcomes.iter().map(outcome_json).collect();
    json!({ "postgres": version, "loads": loads })
}

fn outcome_json(outcome: &Outcome) -> Value {
    let engine = Contender::Engine;
    let summary =
        |values: Vec<f64>| json!({ "median": median(&values), "least": least(&values), "most": most(&values) });
    let contenders: Vec<_> = CONTENDERS
        .into_iter()
        .filter(|contender| !outcome.rates(*contender).is_empty())
        .map(|contender| json!({ "name": contender.name(), "rows_per_s": summary(outcome.rates(contender)) }))
        .collect();
    let rounds: Vec<Vec<_>> = outcome.rounds.iter().map(|round| round.iter().map(drained_json).collect()).collect();
    json!({
        "name": outcome.load.name,
        "description": outcome.load.description,
        "rows": outcome.rows,
        "goal_against_native": outcome.load.goal,
        "goal_against_ceiling": outcome.load.goal_of_ceiling,
        "against_better_native": summary(outcome.ratios(engine, Contender::is_native)),
        "against_ceiling": summary(outcome.ratios(engine, |other| other == Contender::Ceiling)),
        "cpu_of_c_against_cheaper_native": summary(outcome.cpu_c_ratios()),
        "contenders": contenders,
        "rounds": rounds,
    })
}

fn drained_json(one: &Drained) -> Value {
    json!({
        "contender": one.contender.name(),
        "seconds": one.seconds,
        "cpu_b_s": one.cpu_b_s,
        "cpu_c_s": one.cpu_c_s,
        "cpu_engine_s": one.cpu_engine_s,
        "peak_rss_bytes": one.peak_rss_bytes,
        "trail_bytes": one.trail_bytes,
        "void": one.void,
    })
}
