//! Results on stdout: aligned columns for people, one JSON document for programs.

use std::io::{self, Write};

use serde::Serialize;

use crate::error::{Error, Kind, Stage};

/// Prints one JSON document on a line.
pub fn json(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string(value).map_err(|error| failed(error.into()))?;
    text_line(&text)
}

/// Prints two columns, the first as wide as it needs.
pub fn pairs(rows: &[(String, String)]) -> Result<(), Error> {
    let width = rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    rows.iter().try_for_each(|(label, value)| text_line(&format!("{label:width$}  {value}")))
}

pub fn text_line(text: &str) -> Result<(), Error> {
    writeln!(io::stdout(), "{text}").map_err(failed)
}

pub fn failed(error: io::Error) -> Error {
    Error::new(Stage::Config, Kind::Output(error))
}
