//! What `pgsluice bench` says of the same chain, whose figures are to be those of this benchmark.

use std::time::Duration;

use anyhow::{Context, Result};
use pgsluice_proto::Lsn;
use pgsluice_testkit::Chain;
use serde_json::Value;

use crate::common::contender::{Config, Contender};
use crate::common::figures::median;
use crate::report::Outcome;
use crate::slice::Plan;

/// Its table is copied, joins the stream and leaves it again.
const AROUND: Duration = Duration::from_secs(120);
const PERCENTILES: [(&str, f64); 3] = [("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99)];

/// Has the command measure the engine for as long as a slice.
pub async fn run(chain: &Chain, config: &Config, plan: Plan) -> Result<Value> {
    let engine = Contender::Engine;
    let running = engine.start(chain, config, Lsn::INVALID).await?;
    let (rate, seconds) = (plan.rate_per_s.to_string(), plan.length.as_secs().to_string());
    let arguments = ["bench", "--measure", "latency", "--rate", &rate, "--seconds", &seconds, "--format", "json"];
    let measured = config.output(engine, &arguments, plan.length + AROUND).await?;
    engine.stop(chain, &running).await?;
    serde_json::from_str(&measured).with_context(|| measured.clone())
}

/// Percentiles of the command over those of the benchmark, each the median of its runs.
pub fn table(measured: &[Value], outcome: &Outcome) -> String {
    let mut text = String::from("`pgsluice bench` and this benchmark, ms until visible, medians of their runs\n");
    for (name, quantile) in PERCENTILES {
        let of_command = measured.iter().filter_map(|one| one["latency"]["visible"][name].as_f64());
        let of_command = median(&of_command.collect::<Vec<_>>());
        let own = outcome.slices.iter().map(|slice| slice.visible.value_at_quantile(quantile) as f64 / 1e3);
        let own = median(&own.collect::<Vec<_>>());
        text += &format!("{name:8} {of_command:8.2} {own:8.2}  × {:.2}\n", of_command / own);
    }
    text
}
