//! Medians and ranges: a table, JSON, and bars.

use std::fmt::Write;
use std::time::Duration;

use serde_json::json;

use crate::allocations::Allocations;

/// The goal for a row of six columns.
const GOAL_NS: f64 = 100.0;

/// All contenders on one load.
#[derive(Debug)]
pub struct Results {
    pub load: String,
    pub rows: u64,
    pub value_bytes: u64,
    pub contenders: Vec<Measured>,
}

#[derive(Debug)]
pub struct Measured {
    pub name: &'static str,
    pub is_ours: bool,
    /// One figure a round.
    pub ns_per_row: Vec<f64>,
    /// The most of any round.
    pub allocations_per_row: f64,
    pub allocated_bytes_per_row: f64,
}

impl Measured {
    pub fn new(name: &'static str, is_ours: bool) -> Measured {
        Measured { name, is_ours, ns_per_row: Vec::new(), allocations_per_row: 0.0, allocated_bytes_per_row: 0.0 }
    }

    /// Another round.
    pub fn add(&mut self, rows: u64, elapsed: Duration, allocations: Allocations) {
        let rows = rows as f64;
        self.ns_per_row.push(elapsed.as_nanos() as f64 / rows);
        self.allocations_per_row = self.allocations_per_row.max(allocations.count as f64 / rows);
        self.allocated_bytes_per_row = self.allocated_bytes_per_row.max(allocations.bytes as f64 / rows);
    }
}

impl Results {
    /// The time of a contender over that of the batch, which does the most of the two that are ours: one figure a round.
    fn ratios(&self, contender: &Measured) -> Vec<f64> {
        let ours =
            self.contenders.iter().rfind(|one| one.is_ours).map_or(&contender.ns_per_row, |ours| &ours.ns_per_row);
        contender.ns_per_row.iter().zip(ours).map(|(theirs, ours)| theirs / ours).collect()
    }
}

pub fn print(results: &[Results]) {
    println!("CPU ns per row, median and range over rounds; times as long as pgsluice into a batch, within the round;");
    println!("allocations, and bytes of them, per row in the worst round");
    for load in results {
        println!();
        let value_bytes = load.value_bytes as f64 / load.rows as f64;
        println!("{}: {} rows, {value_bytes:.0} bytes of values each", load.load, load.rows);
        println!("  {:22}  {:>26}  {:>20}  {:>11}  {:>8}", "", "ns per row", "ratio", "allocations", "bytes");
        for one in &load.contenders {
            let (ns, ratios) = (Summary::of(&one.ns_per_row), Summary::of(&load.ratios(one)));
            let ns_text = format!("{:.1} ({:.1} to {:.1})", ns.median, ns.least, ns.most);
            let ratio_text = format!("{:.2} ({:.2} to {:.2})", ratios.median, ratios.least, ratios.most);
            let missed = if one.is_ours && ns.median > GOAL_NS { "  above the goal of 100 ns" } else { "" };
            println!(
                "  {:22}  {ns_text:>26}  {ratio_text:>20}  {:>11.4}  {:>8.2}{missed}",
                one.name, one.allocations_per_row, one.allocated_bytes_per_row
            );
        }
    }
}

pub fn json(results: &[Results]) -> String {
    let loads: Vec<_> = results
        .iter()
        .map(|load| {
            let contenders: Vec<_> = load
                .contenders
                .iter()
                .map(|one| {
                    json!({
                        "name": one.name,
                        "ns_per_row": Summary::of(&one.ns_per_row).json(),
                        "ns_per_row_by_round": one.ns_per_row,
                        "ratio_to_batch": Summary::of(&load.ratios(one)).json(),
                        "allocations_per_row": one.allocations_per_row,
                        "allocated_bytes_per_row": one.allocated_bytes_per_row,
                    })
                })
                .collect();
            json!({
                "load": load.load,
                "rows": load.rows,
                "value_bytes": load.value_bytes,
                "contenders": contenders,
            })
        })
        .collect();
    format!("{:#}\n", json!({ "bench": "decode", "goal_ns_per_row": GOAL_NS, "loads": loads }))
}

/// One bar a contender, grouped by load; a line from the least to the most; the goal as a dashed line.
pub fn svg(results: &[Results]) -> String {
    const LEFT: f64 = 190.0;
    const WIDTH: f64 = 560.0;
    const RIGHT: f64 = 70.0;
    const BAR: f64 = 16.0;
    const HEAD: f64 = 30.0;
    let all = || results.iter().flat_map(|load| &load.contenders);
    let longest = all().map(|one| Summary::of(&one.ns_per_row).most).fold(GOAL_NS, f64::max);
    let x = |ns: f64| LEFT + ns / longest * WIDTH;
    let height = results.iter().map(|load| HEAD + BAR * load.contenders.len() as f64).sum::<f64>() + 40.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{height:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        LEFT + WIDTH + RIGHT
    );
    let mut y = 0.0;
    for load in results {
        y += HEAD;
        line(&mut svg, format_args!("<text x=\"8\" y=\"{:.1}\" font-weight=\"bold\">{}</text>", y - 6.0, load.load));
        for one in &load.contenders {
            let Summary { median, least, most } = Summary::of(&one.ns_per_row);
            let (text, middle) = (y + BAR - 5.0, y + BAR / 2.0 - 1.0);
            let colour = if one.is_ours { "#2a6f97" } else { "#b0b7bd" };
            line(
                &mut svg,
                format_args!("<text x=\"{}\" y=\"{text:.1}\" text-anchor=\"end\">{}</text>", LEFT - 6.0, one.name),
            );
            line(
                &mut svg,
                format_args!(
                    "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                    x(median) - LEFT,
                    BAR - 3.0
                ),
            );
            line(
                &mut svg,
                format_args!(
                    "<path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"#333\" stroke-width=\"1.5\"/>",
                    x(least),
                    x(most)
                ),
            );
            line(&mut svg, format_args!("<text x=\"{:.1}\" y=\"{text:.1}\">{median:.0}</text>", x(most) + 5.0));
            y += BAR;
        }
    }
    let goal = x(GOAL_NS);
    line(
        &mut svg,
        format_args!("<path d=\"M{goal:.1} 12V{:.1}\" stroke=\"#c1121f\" stroke-dasharray=\"4 3\"/>", y + 6.0),
    );
    line(
        &mut svg,
        format_args!(
            "<text x=\"{goal:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#c1121f\">goal {GOAL_NS:.0} ns</text>",
            y + 20.0
        ),
    );
    line(&mut svg, format_args!("<text x=\"8\" y=\"{:.1}\">CPU ns per row; median, range</text>", y + 20.0));
    svg.push_str("</svg>\n");
    svg
}

fn line(svg: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(svg, "{text}").expect("a string takes everything");
}

#[derive(Clone, Copy, Debug)]
struct Summary {
    median: f64,
    least: f64,
    most: f64,
}

impl Summary {
    fn of(values: &[f64]) -> Summary {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Summary { median, least: values[0], most: values[values.len() - 1] }
    }

    fn json(self) -> serde_json::Value {
        json!({ "median": self.median, "least": self.least, "most": self.most })
    }
}
