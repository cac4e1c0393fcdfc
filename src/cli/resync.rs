use clap::Args;
use serde::Serialize;

use super::{ConfigArgument, Format, confirm, output};
use crate::config::Pattern;
use crate::error::{Error, Stage};
use crate::postgres;
use crate::setup;
use crate::snapshot;

#[derive(Debug, Args)]
pub struct ResyncArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Tables, as `schema.table`, patterns as in [tables] allowed
    #[arg(value_name = "TABLE", required = true)]
    tables: Vec<Pattern>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct Marked {
    table: String,
}

/// Marks tables to be copied again, which a `run` that is at work notices, or the next one does.
pub fn run(arguments: &ResyncArguments, format: Format) -> Result<(), Error> {
    let config = arguments.config.load()?;
    let runtime = postgres::new_runtime(Stage::Snapshot)?;
    let losses = runtime.block_on(setup::losses_of_resync(&config, &arguments.tables))?;
    if !arguments.yes {
        let would = format!(
            "{}\nThe tables are then copied from the source again; until that is done, readers of the target find them empty or in part.",
            confirm::losses(&config.target, &losses)
        );
        confirm::confirm(Stage::Snapshot, &would, config.name.as_str())?;
    }
    let tables = runtime.block_on(snapshot::resync(&config, &arguments.tables))?;
    let marked: Vec<_> = tables.iter().map(|table| Marked { table: table.to_string() }).collect();
    match format {
        Format::Json => output::json(&marked),
        Format::Table => {
            let row = |one: Marked| (one.table, "is emptied and copied again by `pgsluice run`".to_owned());
            output::pairs(&marked.into_iter().map(row).collect::<Vec<_>>())
        }
    }
}
