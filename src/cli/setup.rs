use std::time::Duration;

use clap::Args;

use super::{ConfigArgument, Format, output};
use crate::config::Pattern;
use crate::error::{Error, Stage};
use crate::postgres;
use crate::setup::{self, Step, StepState};

#[derive(Debug, Args)]
pub struct SetupArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Print what a DBA would run on each server, and change nothing
    #[arg(long)]
    print_sql: bool,
    /// How long to wait for the standby to replay and for open transactions to end
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Publish tables that match, though the primary then refuses every UPDATE and DELETE of them: for tables that only get
    /// INSERTs. May be given more than once
    #[arg(long, value_name = "SCHEMA.TABLE")]
    allow_unwritable: Vec<Pattern>,
}

pub fn run(arguments: &SetupArguments, format: Format) -> Result<(), Error> {
    let config = arguments.config.load()?;
    let runtime = postgres::new_runtime(Stage::Setup)?;
    if arguments.print_sql {
        return output::text_line(runtime.block_on(setup::sql(&config, &arguments.allow_unwritable))?.trim_end());
    }
    print_steps(&runtime.block_on(setup::set_up(&config, arguments.timeout, &arguments.allow_unwritable))?, format)
}

pub fn print_steps(steps: &[Step], format: Format) -> Result<(), Error> {
    match format {
        Format::Json => output::json(&steps),
        Format::Table => {
            let state = |step: &Step| match step.state {
                StepState::Created => "created",
                StepState::Present => "present",
                StepState::Removed => "removed",
                StepState::Absent => "absent",
                StepState::Left => "left, for its owner",
            };
            let rows: Vec<_> = steps.iter().map(|step| (step.object.clone(), state(step).to_owned())).collect();
            output::pairs(&rows)
        }
    }
}
