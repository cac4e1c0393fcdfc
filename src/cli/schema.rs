use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::RangedU64ValueParser;

use super::{ConfigArgument, Format, output};
use crate::error::{Error, Stage};
use crate::postgres;
use crate::schema::{self, Item, Options, Section, State};

#[derive(Debug, Args)]
pub struct SchemaArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Which definitions
    #[arg(long, value_enum, default_value_t)]
    section: Section,
    /// Sessions that build indexes and constraints at the same time
    #[arg(long, default_value_t = 4, value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    jobs: usize,
    /// Print the SQL for a target that has nothing of it, and change nothing
    #[arg(long)]
    print: bool,
    /// The directory of pg_dump and pg_restore; PGSLUICE_PG_BIN in the environment says the same
    #[arg(long, value_name = "DIRECTORY")]
    pg_bin: Option<PathBuf>,
    /// How long to wait for the standby to replay what the primary has now
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub fn run(arguments: &SchemaArguments, format: Format) -> Result<(), Error> {
    let config = arguments.config.load()?;
    let SchemaArguments { section, jobs, pg_bin, timeout, .. } = arguments;
    let options = Options { section: *section, jobs: *jobs, pg_bin: pg_bin.clone(), limit: *timeout };
    let runtime = postgres::new_runtime(Stage::Schema)?;
    if arguments.print {
        return output::text_line(runtime.block_on(schema::sql(&config, &options))?.trim_end());
    }
    let items = runtime.block_on(schema::copy(&config, &options))?;
    match format {
        Format::Json => output::json(&items),
        Format::Table => output::pairs(&items.into_iter().map(row).collect::<Vec<_>>()),
    }
}

fn row(item: Item) -> (String, String) {
    let state = match item.state {
        State::Created => "created",
        State::Present => "present",
        State::LeftOut => "left out",
        State::Set => "set",
    };
    let state = match item.reason {
        Some(reason) => format!("{state}: {reason}"),
        None => state.to_owned(),
    };
    (item.object, state)
}
