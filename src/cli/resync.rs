use clap::Args;
use serde::Serialize;

use super::{ConfigArgument, Format, output};
use crate::config::Pattern;
use crate::error::{Error, Stage};
use crate::postgres;
use crate::snapshot;

#[derive(Debug, Args)]
pub struct ResyncArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Tables, as `schema.table`, patterns as in [tables] allowed
    #[arg(value_name = "TABLE", required = true)]
    tables: Vec<Pattern>,
}

#[derive(Serialize)]
struct Marked {
    table: String,
}

/// Marks tables to be copied again, which a `run` that is at work notices, or the next one does.
pub fn run(arguments: &ResyncArguments, format: Format) -> Result<(), Error> {
    let config = arguments.config.load()?;
    let tables = postgres::new_runtime(Stage::Snapshot)?.block_on(snapshot::resync(&config, &arguments.tables))?;
    let marked: Vec<_> = tables.iter().map(|table| Marked { table: table.to_string() }).collect();
    match format {
        Format::Json => output::json(&marked),
        Format::Table => {
            let row = |one: Marked| (one.table, "is emptied and copied again by `pgsluice run`".to_owned());
            output::pairs(&marked.into_iter().map(row).collect::<Vec<_>>())
        }
    }
}
