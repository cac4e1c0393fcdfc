//! Changes as JSON lines: what the rules make of each, with the transaction that it is of.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use pgsluice_proto::pgoutput::Begin;
use serde_json::{Map, Value, json};

use super::output;
use super::row::{Part, RowObject};
use crate::batch::{Batch, BatchedOperation, Limits, OldRow};
use crate::decode::{Change, PartialTruncate, Truncate};
use crate::error::Error;
use crate::transform::Transform;

/// Of the batch that takes what one change comes to.
const LIMITS: Limits = Limits { rows: 1, bytes: 64 << 10 };

pub struct Changes<'a, W: Write> {
    transform: Transform,
    /// What one change comes to.
    batch: Batch,
    begin: Option<Begin>,
    /// Changes that are still to be printed, by all who print.
    left: &'a AtomicU64,
    out: W,
}

impl<'a, W: Write> Changes<'a, W> {
    pub fn new(transform: Transform, left: &'a AtomicU64, out: W) -> Changes<'a, W> {
        Changes { transform, batch: Batch::default(), begin: None, left, out }
    }

    pub fn begin(&mut self, begin: Begin) {
        self.begin = Some(begin);
        self.transform.begin(&begin);
        self.batch.clear(LIMITS);
        self.batch.begin(begin);
    }

    pub fn change(&mut self, change: &Change<'_>) -> Result<(), Error> {
        self.transform.push(change, &mut self.batch)?;
        self.print()
    }

    pub fn truncate(&mut self, truncate: Truncate) -> Result<(), Error> {
        self.batch.push_truncate(self.transform.truncate(truncate)?);
        self.print()
    }

    /// All that was asked for is printed.
    pub fn is_done(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    pub fn flush(&mut self) -> Result<(), Error> {
        self.out.flush().map_err(output::failed)
    }

    fn print(&mut self) -> Result<(), Error> {
        let lines: Vec<_> = self
            .batch
            .changes()
            .map(|change| line(&change.operation))
            .collect::<Result<_, _>>()
            .map_err(output::failed)?;
        let transaction = self.batch.open_transaction();
        self.batch.clear(LIMITS);
        if let Some(transaction) = transaction {
            self.batch.resume(transaction);
        }
        for line in lines {
            let take = |left: u64| left.checked_sub(1);
            if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
                return Ok(());
            }
            self.print_line(line)?;
        }
        Ok(())
    }

    fn print_line(&mut self, mut line: Map<String, Value>) -> Result<(), Error> {
        if let Some(begin) = self.begin {
            let time = begin.commit_time.to_system_time();
            line.insert("commit_lsn".to_owned(), begin.commit_lsn.to_string().into());
            line.insert("commit_time".to_owned(), json!(time.map(|t| humantime::format_rfc3339_micros(t).to_string())));
            line.insert("xid".to_owned(), begin.xid.0.into());
        }
        // In one piece, as the lines of other shards come between.
        let text = format!("{}\n", Value::Object(line));
        self.out.write_all(text.as_bytes()).map_err(output::failed)
    }
}

fn line(operation: &BatchedOperation<'_>) -> io::Result<Map<String, Value>> {
    let (operation, relation, old, new) = match *operation {
        BatchedOperation::Insert { relation, new } => ("insert", relation, None, Some(new)),
        BatchedOperation::Update { relation, old, new } => ("update", relation, old, Some(new)),
        BatchedOperation::Delete { relation, old } => ("delete", relation, Some(old), None),
        BatchedOperation::Truncate(truncate) => return Ok(truncate_line(truncate)),
    };
    let mut line = Map::new();
    line.insert("operation".to_owned(), operation.into());
    line.insert("table".to_owned(), relation.to_string().into());
    if let Some(old) = old {
        let label = match old {
            OldRow::Key(_) => "key",
            OldRow::Full(_) => "old",
        };
        let row = RowObject { relation, row: old.row(), part: Part::Identity };
        line.insert(label.to_owned(), serde_json::to_value(row)?);
    }
    if let Some(row) = new {
        let row = RowObject { relation, row, part: Part::Whole };
        let unchanged: Vec<_> = row.unchanged().collect();
        if !unchanged.is_empty() {
            line.insert("unchanged".to_owned(), unchanged.into());
        }
        line.insert("new".to_owned(), serde_json::to_value(row)?);
    }
    Ok(line)
}

fn truncate_line(truncate: &Truncate) -> Map<String, Value> {
    let tables: Vec<_> = truncate.relations.iter().map(|relation| relation.to_string()).collect();
    let mut line = Map::new();
    line.insert("operation".to_owned(), "truncate".into());
    line.insert("tables".to_owned(), tables.into());
    line.insert("restart_identity".to_owned(), truncate.restart_identity.into());
    if !truncate.in_part.is_empty() {
        line.insert("in_part".to_owned(), truncate.in_part.iter().map(in_part).collect());
    }
    line
}

/// Which rows of a table are meant that others share, and what is set where they stay.
fn in_part(part: &PartialTruncate) -> Value {
    let own: Map<_, _> = part.own.iter().map(|(column, value)| (column.clone(), value.as_str().into())).collect();
    let set = part
        .mark
        .as_ref()
        .map(|mark| mark.iter().map(|(column, value)| (column.clone(), json!(value))).collect::<Map<String, Value>>());
    json!({ "table": part.relation.to_string(), "rows": own, "set": set })
}
