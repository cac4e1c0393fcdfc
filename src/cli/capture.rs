use clap::Args;
use serde::Serialize;

use super::{ConfigArgument, Format, output, run::stop_signals};
use crate::error::Error;
use crate::pipeline;

#[derive(Debug, Args)]
pub struct CaptureArguments {
    #[command(flatten)]
    config: ConfigArgument,
}

#[derive(Serialize)]
struct CaptureResult {
    end_lsn: String,
    transactions: u64,
    sessions: u64,
}

pub fn run(arguments: &CaptureArguments, format: Format) -> Result<(), Error> {
    let config = arguments.config.load()?;
    let captured = pipeline::capture(&config, &stop_signals()?)?;
    let result = CaptureResult {
        end_lsn: captured.end_lsn.to_string(),
        transactions: captured.transactions,
        sessions: captured.sessions,
    };
    match format {
        Format::Json => output::json(&result),
        Format::Table => output::pairs(&[
            ("end_lsn".to_owned(), result.end_lsn),
            ("transactions".to_owned(), result.transactions.to_string()),
            ("sessions".to_owned(), result.sessions.to_string()),
        ]),
    }
}
