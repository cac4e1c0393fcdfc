//! Sample rows through the rules of one table, on the way that rows of a stream take.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use pgsluice_proto::Lsn;
use serde::Serialize;

use super::{Compiled, message, sample};
use crate::batch::{Batch, BatchedOperation, Limits};
use crate::cli::row::{Part, RowObject};
use crate::cli::{ConfigArgument, output};
use crate::config::Pattern;
use crate::decode::{Decoded, Decoder, Relation};
use crate::error::{Error, Kind, Stage};
use crate::postgres;
use crate::transform::{Mapping, Transform};

const SAMPLE_BYTES_MAX: u64 = 64 << 20;
/// Of the batch that takes what one row comes to.
const LIMITS: Limits = Limits { rows: 1, bytes: 64 << 10 };

#[derive(Debug, Args)]
pub struct TestArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// The table of the source that the rows are of, as `schema.table`
    #[arg(long, value_name = "TABLE")]
    table: Pattern,
    /// Rows as JSON, one a line; - reads them from standard input
    #[arg(value_name = "FILE", default_value = "-")]
    rows: PathBuf,
}

pub fn run(arguments: &TestArguments) -> Result<(), Error> {
    let config = arguments.config.load()?;
    let compiled = postgres::new_runtime(Stage::Source)?.block_on(Compiled::read(&config))?;
    let relation = find(&compiled.relations, &arguments.table)?;
    let path = &arguments.rows;
    let text = read(path).map_err(|error| usage(format!("cannot read {}: {error}", path.display())))?;
    let samples =
        sample::parse(&text, relation).map_err(|what| usage(format!("the rows of {}: {what}", path.display())))?;
    let mut stream = Stream::start(relation, compiled.mapping)?;
    let mut failed = 0;
    for sample in &samples {
        if let Some(error) = stream.take(&message::change(relation, sample))? {
            output::json(&ErrorLine { error, line: sample.line })?;
            failed += 1;
        }
    }
    if failed == 0 {
        return Ok(());
    }
    let what = format!("rules cannot be applied to {failed} of {} rows", samples.len());
    let mend = "see what is printed of each of them; `pgsluice run` would stop there".to_owned();
    Err(Error::new(Stage::Transform, Kind::Row { what, mend }).on(relation.to_string()))
}

fn find<'r>(relations: &'r [Relation], pattern: &Pattern) -> Result<&'r Relation, Error> {
    let Some(name) = pattern.exact() else {
        return Err(usage(format!("--table: \"{pattern}\" is no single name; write schema.table")));
    };
    relations
        .iter()
        .find(|relation| (relation.namespace.as_str(), relation.name.as_str()) == name)
        .ok_or_else(|| usage(format!("--table: [tables] selects no table \"{pattern}\"")))
}

fn read(path: &Path) -> io::Result<String> {
    let from: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin().lock()) } else { Box::new(File::open(path)?) };
    let mut text = String::new();
    let bytes = from.take(SAMPLE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if bytes as u64 > SAMPLE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {SAMPLE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// The samples as a stream of one transaction, whose LSN, time and xid are all 0.
struct Stream {
    decoder: Decoder,
    transform: Transform,
    batch: Batch,
}

impl Stream {
    fn start(relation: &Relation, mapping: Arc<Mapping>) -> Result<Stream, Error> {
        let mut stream = Stream {
            decoder: Decoder::new(Lsn::INVALID),
            transform: Transform::new(mapping, false),
            batch: Batch::default(),
        };
        for message in [message::begin(), message::relation(relation)] {
            stream.take(&message)?;
        }
        Ok(stream)
    }

    /// Prints what the message comes to; or says why a rule has no answer for its row.
    fn take(&mut self, message: &[u8]) -> Result<Option<String>, Error> {
        match self.decoder.decode(Lsn::INVALID, message)? {
            Decoded::Begin(begin) => {
                self.transform.begin(&begin);
                self.batch.begin(begin);
            }
            Decoded::Change(change) => {
                if let Err(error) = self.transform.push(&change, &mut self.batch) {
                    let Kind::Row { what, .. } = error.kind() else { return Err(error) };
                    return Ok(Some(what.clone()));
                }
                print(&mut self.batch)?;
            }
            Decoded::Nothing | Decoded::Commit(_) | Decoded::Truncate(_) => {}
        }
        Ok(None)
    }
}

#[derive(Serialize)]
struct Line<'a> {
    op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<RowObject<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<RowObject<'a>>,
}

#[derive(Serialize)]
struct ErrorLine {
    error: String,
    line: usize,
}

/// Prints the changes of the batch, and leaves it empty within the same transaction.
fn print(batch: &mut Batch) -> Result<(), Error> {
    if !batch.has_changes() {
        output::json(&Line { op: "none", table: None, new: None, old: None })?;
    }
    for change in batch.changes() {
        let (op, relation, old, new) = match change.operation {
            BatchedOperation::Insert { relation, new } => ("insert", relation, None, Some(new)),
            BatchedOperation::Update { relation, old, new } => ("update", relation, old, Some(new)),
            BatchedOperation::Delete { relation, old } => ("delete", relation, Some(old), None),
            BatchedOperation::Truncate(_) => continue,
        };
        let new = new.map(|row| RowObject { relation, row, part: Part::Whole });
        let old = old.map(|old| RowObject { relation, row: old.row(), part: Part::Identity });
        output::json(&Line { op, table: Some(relation.to_string()), new, old })?;
    }
    let transaction = batch.open_transaction();
    batch.clear(LIMITS);
    if let Some(transaction) = transaction {
        batch.resume(transaction);
    }
    Ok(())
}

fn usage(what: String) -> Error {
    Error::new(Stage::Config, Kind::Usage(what))
}
