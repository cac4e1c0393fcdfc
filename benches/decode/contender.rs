//! Who decodes. Each is given its frames in the form that costs it least, and has to look at every cell.
//!
//! What they do is not the same. Both of pgsluice reject everything that the protocol does not say; the second also
//! checks transactions and relations and copies the row, which the others leave to the code behind them.

use std::hint::black_box;

use anyhow::{Result, bail};
use elefant_client::replication::{PgOutputMessage, TupleColumn, TupleData as ElefantTuple, parse_pgoutput_message};
use pg_walstream::{
    EventType, LogicalReplicationMessage, LogicalReplicationParser, PgOutputDecoder, RowData, TupleData,
};
use pgsluice::batch::{Batch, BatchedOperation, Limits, OldRow, Row};
use pgsluice::decode::{Decoded, Decoder};
use pgsluice_proto::Lsn;
use pgsluice_proto::pgoutput::{self, Cell, Message, OldTuple, Tuple};

use crate::capture::Frame;

const LIMITS: Limits = Limits { rows: 10_000, bytes: 16 * 1024 * 1024 };
const PROTO_VERSION: u32 = 4;

#[derive(Debug)]
pub enum Contender {
    /// `pgsluice-proto` alone.
    Messages,
    /// The engine's decode stage, into a batch that is used again and again as in the engine's pool.
    Batches(Box<Batch>),
    /// `pg_walstream`, its parser alone: cells are reference-counted slices of the frame.
    WalstreamMessages,
    /// `pg_walstream`, up to the events that it gives its users: column names with every row.
    WalstreamEvents,
    /// `elefant-client`: cells borrow from the frame, text is checked to be UTF-8.
    Elefant,
}

/// What a contender saw. All have to see the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub rows: u64,
    pub values: u64,
    pub value_bytes: u64,
}

impl Tally {
    fn add(&mut self, value: &[u8]) {
        self.values += 1;
        self.value_bytes += black_box(value).len() as u64;
    }
}

impl Contender {
    pub fn all() -> Vec<Contender> {
        vec![
            Contender::Messages,
            Contender::Batches(Box::default()),
            Contender::WalstreamMessages,
            Contender::WalstreamEvents,
            Contender::Elefant,
        ]
    }

    pub fn name(&self) -> &'static str {
        match self {
            Contender::Messages => "pgsluice-proto",
            Contender::Batches(_) => "pgsluice, into a batch",
            Contender::WalstreamMessages => "pg_walstream, parser",
            Contender::WalstreamEvents => "pg_walstream, events",
            Contender::Elefant => "elefant-client",
        }
    }

    /// It must not allocate for a row.
    pub fn is_ours(&self) -> bool {
        match self {
            Contender::Messages | Contender::Batches(_) => true,
            Contender::WalstreamMessages | Contender::WalstreamEvents | Contender::Elefant => false,
        }
    }

    /// Decodes all frames. A batch is filled and not read, for that is the work of the stage behind it.
    pub fn replay(&mut self, frames: &[Frame]) -> Result<()> {
        match self {
            Contender::Batches(batch) => fill_batches(batch, frames, &mut |batch| {
                black_box(batch);
            }),
            Contender::Messages | Contender::WalstreamMessages | Contender::WalstreamEvents | Contender::Elefant => {
                black_box(self.tally(frames)?);
                Ok(())
            }
        }
    }

    /// Decodes all frames and tells what was in them.
    pub fn tally(&mut self, frames: &[Frame]) -> Result<Tally> {
        match self {
            Contender::Messages => messages(frames),
            Contender::Batches(batch) => {
                let mut tally = Tally::default();
                fill_batches(batch, frames, &mut |batch| add_batch(&mut tally, batch))?;
                Ok(tally)
            }
            Contender::WalstreamMessages => walstream_messages(frames),
            Contender::WalstreamEvents => walstream_events(frames),
            Contender::Elefant => elefant(frames),
        }
    }
}

fn messages(frames: &[Frame]) -> Result<Tally> {
    fn add(tally: &mut Tally, tuple: &Tuple<'_>) {
        for cell in tuple.cells() {
            match cell {
                Cell::Text(value) | Cell::Binary(value) => tally.add(value),
                Cell::Null | Cell::Unchanged => {}
            }
        }
    }
    let mut decoder = pgoutput::Decoder::new();
    let mut tally = Tally::default();
    for frame in frames {
        let (old, new) = match decoder.decode(frame.start_lsn, &frame.payload)? {
            Message::Insert(insert) => (None, Some(insert.new)),
            Message::Update(update) => (update.old, Some(update.new)),
            Message::Delete(delete) => (Some(delete.old), None),
            _ => continue,
        };
        tally.rows += 1;
        if let Some(OldTuple::Key(old) | OldTuple::Full(old)) = old {
            add(&mut tally, &old);
        }
        if let Some(new) = new {
            add(&mut tally, &new);
        }
    }
    Ok(tally)
}

/// Compiled once, as in the engine: `handle_full` is not a type parameter.
fn fill_batches(batch: &mut Batch, frames: &[Frame], handle_full: &mut dyn FnMut(&Batch)) -> Result<()> {
    // A decoder skips what it has decoded before, so each replay has one of its own.
    let mut decoder = Decoder::new(Lsn::INVALID);
    for frame in frames {
        match decoder.decode(frame.start_lsn, &frame.payload)? {
            Decoded::Change(change) => batch.push(&change),
            Decoded::Begin(begin) => batch.begin(begin),
            Decoded::Commit(commit) => batch.commit(commit),
            Decoded::Truncate(_) => bail!("no load has a truncate"),
            Decoded::Nothing => {}
        }
        if batch.is_full(LIMITS) {
            handle_full(batch);
            batch.clear(LIMITS);
        }
    }
    handle_full(batch);
    batch.clear(LIMITS);
    Ok(())
}

fn add_batch(tally: &mut Tally, batch: &Batch) {
    let mut add = |row: Row<'_>| {
        for cell in row.cells() {
            if let Cell::Text(value) | Cell::Binary(value) = cell {
                tally.add(value);
            }
        }
    };
    for change in batch.changes() {
        match change.operation {
            BatchedOperation::Insert { new, .. } => add(new),
            BatchedOperation::Update { old, new, .. } => {
                old.as_ref().map(OldRow::row).into_iter().for_each(&mut add);
                add(new);
            }
            BatchedOperation::Delete { old, .. } => add(old.row()),
            BatchedOperation::Truncate(_) => continue,
        }
    }
    tally.rows += batch.len() as u64;
}

fn walstream_messages(frames: &[Frame]) -> Result<Tally> {
    fn add(tally: &mut Tally, tuple: &TupleData) {
        for column in tuple.columns.iter().filter(|column| column.is_text() || column.is_binary()) {
            tally.add(column.as_bytes());
        }
    }
    let mut parser = LogicalReplicationParser::with_protocol_version(PROTO_VERSION);
    let mut tally = Tally::default();
    for frame in frames {
        let (old, new) = match parser.parse_wal_message_bytes(frame.payload.clone())?.message {
            LogicalReplicationMessage::Insert { tuple, .. } => (None, Some(tuple)),
            LogicalReplicationMessage::Update { old_tuple, new_tuple, .. } => (old_tuple, Some(new_tuple)),
            LogicalReplicationMessage::Delete { old_tuple, .. } => (Some(old_tuple), None),
            _ => continue,
        };
        tally.rows += 1;
        for tuple in [old, new].iter().flatten() {
            add(&mut tally, tuple);
        }
    }
    Ok(tally)
}

fn walstream_events(frames: &[Frame]) -> Result<Tally> {
    fn add(tally: &mut Tally, row: &RowData) {
        for (_, value) in row.iter().filter(|(_, value)| !value.is_null()) {
            tally.add(value.as_bytes());
        }
    }
    let mut decoder = PgOutputDecoder::with_protocol_version(PROTO_VERSION);
    let mut tally = Tally::default();
    for frame in frames {
        let lsn = pg_walstream::Lsn::new(frame.start_lsn.as_u64());
        let Some(event) = decoder.decode_message(frame.payload.clone(), lsn)? else { continue };
        let (old, new) = match event.event_type {
            EventType::Insert { data, .. } => (None, Some(data)),
            EventType::Update { old_data, new_data, .. } => (old_data, Some(new_data)),
            EventType::Delete { old_data, .. } => (Some(old_data), None),
            _ => continue,
        };
        tally.rows += 1;
        for row in [old, new].iter().flatten() {
            add(&mut tally, row);
        }
    }
    Ok(tally)
}

fn elefant(frames: &[Frame]) -> Result<Tally> {
    fn add(tally: &mut Tally, tuple: &ElefantTuple<'_>) {
        for column in &tuple.columns {
            match column {
                TupleColumn::Text(value) => tally.add(value.as_bytes()),
                TupleColumn::Binary(value) => tally.add(value),
                TupleColumn::Null | TupleColumn::Unchanged => {}
            }
        }
    }
    let mut tally = Tally::default();
    for frame in frames {
        let (old, new) = match parse_pgoutput_message(&frame.payload) {
            Ok(PgOutputMessage::Insert(insert)) => (None, Some(insert.tuple)),
            Ok(PgOutputMessage::Update(update)) => (update.old_tuple, Some(update.new_tuple)),
            Ok(PgOutputMessage::Delete(delete)) => (Some(delete.old_tuple), None),
            Ok(_) => continue,
            Err(error) => bail!("{error:?}"),
        };
        tally.rows += 1;
        for tuple in [old, new].iter().flatten() {
            add(&mut tally, tuple);
        }
    }
    Ok(tally)
}
