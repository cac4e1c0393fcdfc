//! The outcomes as bars: one group a load, one bar a contender, a line over the range of the rounds.

use std::fmt::{self, Write};

use crate::common::contender::{CONTENDERS, Contender};
use crate::common::figures::{least, median, most};
use crate::report::Outcome;

const LABELS_PX: f64 = 340.0;
const BARS_PX: f64 = 560.0;
const FIGURES_PX: f64 = 190.0;
const BAR_PX: f64 = 14.0;
const GAP_PX: f64 = 18.0;
const TOP_PX: f64 = 50.0;

pub fn svg(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    write(&mut text, outcomes).expect("a string takes all");
    text
}

fn write(out: &mut String, outcomes: &[Outcome]) -> fmt::Result {
    let rates = outcomes.iter().flat_map(|outcome| CONTENDERS.map(|contender| most(&outcome.rates(contender))));
    let top_rate = rates.filter(|rate| rate.is_finite()).fold(1.0, f64::max);
    let group = BAR_PX * CONTENDERS.len() as f64 + GAP_PX;
    let (width, height) = (LABELS_PX + BARS_PX + FIGURES_PX, TOP_PX + group * outcomes.len() as f64);
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\">rows/s from a backlog on the standby to visible on the target; median \
         and range of the rounds</text>"
    )?;
    let mut x = 10.0;
    for contender in CONTENDERS {
        writeln!(
            out,
            "<rect x=\"{x}\" y=\"29\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{}\" y=\"38\">{}</text>",
            color(contender),
            x + 14.0,
            contender.name()
        )?;
        x += 110.0;
    }
    for (index, outcome) in outcomes.iter().enumerate() {
        write_group(out, outcome, TOP_PX + group * index as f64, BARS_PX / top_rate)?;
    }
    writeln!(out, "</svg>")
}

fn write_group(out: &mut String, outcome: &Outcome, top: f64, px_per_rate: f64) -> fmt::Result {
    let against = median(&outcome.ratios(Contender::Engine, Contender::is_native));
    writeln!(
        out,
        "<text x=\"10\" y=\"{}\" font-weight=\"bold\">{}</text><text x=\"10\" y=\"{}\">{}</text>\
         <text x=\"10\" y=\"{}\">pgsluice × {against:.2} of the better native (goal {})</text>",
        top + 12.0,
        outcome.load.name,
        top + 27.0,
        outcome.load.description,
        top + 42.0,
        outcome.load.goal
    )?;
    for (index, contender) in CONTENDERS.into_iter().enumerate() {
        let rates = outcome.rates(contender);
        if rates.is_empty() {
            continue;
        }
        let (rate, y) = (median(&rates), top + BAR_PX * index as f64);
        let (from, to) = (LABELS_PX + least(&rates) * px_per_rate, LABELS_PX + most(&rates) * px_per_rate);
        let middle = y + BAR_PX / 2.0 - 1.0;
        writeln!(
            out,
            "<rect x=\"{LABELS_PX}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>\
             <line x1=\"{from:.1}\" y1=\"{middle}\" x2=\"{to:.1}\" y2=\"{middle}\" stroke=\"black\"/>\
             <text x=\"{:.1}\" y=\"{}\">{:.0} k</text>",
            rate * px_per_rate,
            BAR_PX - 2.0,
            color(contender),
            to + 5.0,
            y + 10.0,
            rate / 1e3
        )?;
    }
    Ok(())
}

fn color(contender: Contender) -> &'static str {
    match contender {
        Contender::NativeText => "#9ab",
        Contender::NativeBinary => "#689",
        Contender::Engine => "#d62",
        Contender::Alone => "#e96",
        Contender::Shards => "#fb9",
        Contender::Trail => "#b6c",
        Contender::Ceiling => "#ddd",
    }
}
