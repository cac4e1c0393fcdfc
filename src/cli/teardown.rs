use std::io::{self, IsTerminal};

use clap::Args;

use super::{ConfigArgument, Format, output, setup::print_steps};
use crate::error::{Error, Kind, Stage};
use crate::postgres;
use crate::setup;

#[derive(Debug, Args)]
pub struct TeardownArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub fn run(arguments: &TeardownArguments, format: Format) -> Result<(), Error> {
    let config = arguments.config.load()?;
    if !arguments.yes {
        confirm(config.name.as_str())?;
    }
    print_steps(&postgres::new_runtime(Stage::Setup)?.block_on(setup::tear_down(&config))?, format)
}

/// # Errors
/// [`Kind::Usage`] unless a person answers with the name.
fn confirm(name: &str) -> Result<(), Error> {
    let usage = |what: &str| Error::new(Stage::Setup, Kind::Usage(what.to_owned()));
    if !io::stdin().is_terminal() {
        return Err(usage("teardown asks before it removes anything, and nobody is there to answer; use --yes"));
    }
    output::text_line(&format!(
        "This removes slot, publication and progress of \"{name}\". It cannot go on from there afterwards.\n\
         Type the name to confirm:"
    ))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(output::failed)?;
    if answer.trim() == name { Ok(()) } else { Err(usage("not confirmed; nothing was removed")) }
}
