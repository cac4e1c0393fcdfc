use clap::Args;

use super::{ConfigArgument, Format, confirm, setup::print_steps};
use crate::error::{Error, Stage};
use crate::postgres;
use crate::setup::{self, TornDown};

#[derive(Debug, Args)]
pub struct TeardownArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Removes what may be removed, and ends with an error where something is left.
pub fn run(arguments: &TeardownArguments, format: Format) -> Result<(), Error> {
    let config = arguments.config.load()?;
    let runtime = postgres::new_runtime(Stage::Setup)?;
    let removal = runtime.block_on(setup::plan_teardown(&config))?;
    if !arguments.yes {
        confirm::confirm(Stage::Setup, removal.text(), config.name.as_str())?;
    }
    let TornDown { steps, outcome } = runtime.block_on(removal.carry_out());
    print_steps(&steps, format)?;
    outcome
}
