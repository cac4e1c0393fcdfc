use clap::Args;
use pgsluice_proto::Lsn;
use serde::Serialize;

use super::{ConfigArgument, Format, confirm, output};
use crate::error::{Error, Stage};
use crate::postgres;
use crate::skips::{self, Asked, Skip};

const STAGE: Stage = Stage::Checkpoint;

#[derive(Debug, Args)]
pub struct SkipArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// The transaction to pass over: the LSN of its commit record, as messages have it behind `at LSN`
    #[arg(long, value_name = "LSN", required_unless_present = "list")]
    lsn: Option<Lsn>,
    /// Take a skip back that the engine has not met yet
    #[arg(long)]
    cancel: bool,
    /// Show what was skipped, and what is to be
    #[arg(long, conflicts_with_all = ["lsn", "cancel"])]
    list: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct SkipResult {
    commit_lsn: String,
    state: State,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Pending,
    PendingAlready,
    Cancelled,
}

impl State {
    fn text(self) -> &'static str {
        match self {
            State::Pending => "is skipped by `pgsluice run`",
            State::PendingAlready => "is pending already",
            State::Cancelled => "is not skipped any more",
        }
    }
}

/// Records what is to be skipped, which a `run` that is at work notices, or the next one does.
pub fn run(arguments: &SkipArguments, format: Format) -> Result<(), Error> {
    let config = arguments.config.load()?;
    let shards = config.split();
    let runtime = postgres::new_runtime(STAGE)?;
    let Some(lsn) = arguments.lsn else {
        return print_list(&runtime.block_on(skips::all(&shards))?, format);
    };
    let state = if arguments.cancel {
        runtime.block_on(skips::take_back(&shards, lsn))?;
        State::Cancelled
    } else {
        if !arguments.yes {
            let would = format!(
                "Nothing that the transaction at {lsn} has changed will be on the target of \"{}\" ({}).",
                config.name,
                config.target.place()
            );
            confirm::confirm(STAGE, &would, &lsn.to_string())?;
        }
        match runtime.block_on(skips::ask(&shards, lsn))? {
            Asked::Now => State::Pending,
            Asked::Before => State::PendingAlready,
        }
    };
    let result = SkipResult { commit_lsn: lsn.to_string(), state };
    match format {
        Format::Json => output::json(&result),
        Format::Table => output::pairs(&[(result.commit_lsn, result.state.text().to_owned())]),
    }
}

fn print_list(skips: &[Skip], format: Format) -> Result<(), Error> {
    let state = |skip: &Skip| {
        let shard = skip.shard.map_or(String::new(), |number| format!("shard {number}: "));
        match (&skip.done_at, skip.xid) {
            (Some(_), None) => format!("{shard}has nothing of it"),
            (Some(done_at), Some(_)) => format!("{shard}skipped at {done_at}, {} changes", skip.changes.unwrap_or(0)),
            (None, _) => format!("{shard}pending, asked for by {} at {}", skip.requested_by, skip.requested_at),
        }
    };
    match format {
        Format::Json => output::json(&skips),
        Format::Table => {
            let rows: Vec<_> = skips.iter().map(|skip| (skip.commit_lsn.clone(), state(skip))).collect();
            output::pairs(&rows)
        }
    }
}
