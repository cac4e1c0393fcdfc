//! What the rules of a configuration come to, before anything is replicated: for the tables, and for rows.

mod explain;
mod message;
mod sample;
mod test;

use std::sync::Arc;

use clap::{Args, Subcommand};
use tokio_postgres::Client;

use super::Format;
use crate::config::{Config, Role};
use crate::decode::Relation;
use crate::error::{Error, Stage};
use crate::postgres;
use crate::source::publication;
use crate::transform::Mapping;

#[derive(Debug, Args)]
pub struct RulesArguments {
    #[command(subcommand)]
    command: RulesCommand,
}

#[derive(Debug, Subcommand)]
enum RulesCommand {
    /// Show for each table where its rows go, and what each column there is made of
    Explain(explain::ExplainArguments),
    /// Run sample rows through the rules, and print what would go to the target
    Test(test::TestArguments),
}

pub fn run(arguments: &RulesArguments, format: Format) -> Result<(), Error> {
    match &arguments.command {
        RulesCommand::Explain(arguments) => explain::run(arguments, format),
        RulesCommand::Test(arguments) => test::run(arguments),
    }
}

/// The tables that the configuration selects, as the source has them now, and the rules compiled for all of them.
struct Compiled {
    client: Client,
    relations: Vec<Relation>,
    mapping: Arc<Mapping>,
}

impl Compiled {
    /// # Errors
    /// A refusal that names every rule that does not fit.
    async fn read(config: &Config) -> Result<Compiled, Error> {
        let client = postgres::connect(&config.source, Stage::Source).await?;
        let tables = publication::select_tables(&client, Role::Source, &config.tables, Stage::Source).await?;
        let relations: Vec<_> = tables.iter().map(|table| table.relation()).collect();
        let mapping = Mapping::of(&config.rules, &tables, Stage::Transform)?;
        Ok(Compiled { client, relations, mapping: Arc::new(mapping) })
    }
}
