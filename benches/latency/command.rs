//! What `pgsluice bench` says of the same engine at the same time, whose figures are to be those of this benchmark.

use std::time::Duration;

use anyhow::{Context, Result};
use pgsluice_proto::Lsn;
use pgsluice_testkit::{Chain, wait_for};
use serde_json::Value;
use tokio::try_join;

use crate::common::contender::{Config, Contender, DATABASE};
use crate::common::figures::{least, median, most};
use crate::slice::{self, Measured, Plan};

/// Its table is copied, joins the stream and leaves it again.
const AROUND: Duration = Duration::from_secs(120);
/// As the command calls it, on A.
const TABLE: &str = "pgsluice.bench_bench";
const PERCENTILES: [(&str, f64); 3] = [("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99)];

/// What both have seen of the same engine.
#[derive(Debug)]
pub struct Both {
    command: Value,
    own: Measured,
}

impl Both {
    /// Milliseconds until rows were visible, of the command and of a slice.
    fn figures(&self, (name, quantile): (&str, f64)) -> Option<(f64, f64)> {
        let of_command = self.command["latency"]["visible"][name].as_f64()?;
        Some((of_command, self.own.visible.value_at_quantile(quantile) as f64 / 1e3))
    }

    pub fn line(&self) -> String {
        let text = |percentile| {
            let (of_command, own) = self.figures(percentile)?;
            Some(format!("{} {of_command:.2} and {own:.2}", percentile.0))
        };
        format!("command and slice: {}", PERCENTILES.into_iter().filter_map(text).collect::<Vec<_>>().join(", "))
    }
}

/// Has the command measure the engine for as long as a slice, and a slice beside it.
pub async fn run(chain: &Chain, config: &Config, plan: Plan, next_id: &mut i64) -> Result<Both> {
    let engine = Contender::Engine;
    let running = engine.start(chain, config, Lsn::INVALID).await?;
    slice::catch_up(chain, engine, next_id).await?;
    let plan = Plan { rate_per_s: plan.rate_per_s / 2, ..plan };
    let (rate, seconds) = (plan.rate_per_s.to_string(), plan.length.as_secs().to_string());
    let arguments = ["bench", "--measure", "latency", "--rate", &rate, "--seconds", &seconds, "--format", "json"];
    let command = config.output(engine, &arguments, plan.length + AROUND);
    let beside = async {
        wait_for("the command to begin", AROUND, || has_begun(chain)).await?;
        slice::measure(chain, engine, plan, next_id).await
    };
    let (text, own) = try_join!(command, beside)?;
    engine.stop(chain, &running).await?;
    Ok(Both { command: serde_json::from_str(&text).context(text)?, own })
}

async fn has_begun(chain: &Chain) -> Result<Option<()>> {
    let is_there = chain.a.scalar(DATABASE, &format!("SELECT to_regclass('{TABLE}') IS NOT NULL")).await? == "t";
    let has_rows = is_there && chain.a.scalar(DATABASE, &format!("SELECT EXISTS (SELECT FROM {TABLE})")).await? == "t";
    Ok(has_rows.then_some(()))
}

/// Percentiles of the command over those of the slice beside it, round by round.
pub fn table(measured: &[Both]) -> String {
    let mut text = String::from(
        "`pgsluice bench` and a slice at the same time, ms until visible: medians, and the ratio within a round\n",
    );
    for percentile in PERCENTILES {
        let (of_command, own): (Vec<_>, Vec<_>) = measured.iter().filter_map(|one| one.figures(percentile)).unzip();
        let ratios: Vec<_> = of_command.iter().zip(&own).map(|(of_command, own)| of_command / own).collect();
        text += &format!(
            "{:8} {:8.2} {:8.2}  × {:.2} ({:.2}–{:.2})\n",
            percentile.0,
            median(&of_command),
            median(&own),
            median(&ratios),
            least(&ratios),
            most(&ratios)
        );
    }
    text
}
