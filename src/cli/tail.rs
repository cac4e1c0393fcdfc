//! Looks at what waits in the slot. Nothing is applied and nothing is confirmed, so the engine finds all of it again.

use std::io::{self, BufWriter, Write};
use std::time::Duration;

use clap::Args;
use crossbeam_channel::Receiver;
use pgsluice_proto::Lsn;
use pgsluice_proto::command::{ProtoVersion, StartLogical};
use pgsluice_proto::frame::Frame;
use pgsluice_proto::pgoutput::{Begin, Cell, OldTuple, Tuple};
use serde_json::{Map, Value, json};

use super::{ConfigArgument, output, run::stop_signals};
use crate::config::{Config, Role};
use crate::decode::{Change, Column, Decoded, Decoder, Operation, Relation, Truncate};
use crate::error::{Error, Stage};
use crate::pipeline::stream_options;
use crate::postgres;
use crate::source::server::Server;
use crate::source::slot::SlotState;
use crate::source::{Connection, Filled, ReplicationStream, Waker};

/// How soon a stop that was asked for is noticed while nothing comes.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub struct TailArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Stop after this many changes
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Stop where the source is now, instead of waiting for more
    #[arg(long)]
    no_follow: bool,
}

pub fn run(arguments: &TailArguments) -> Result<(), Error> {
    let config = arguments.config.load()?;
    let stop = stop_signals()?;
    let (stream, position) = open(&config)?;
    let mut tail = Tail {
        decoder: Decoder::new(Lsn::INVALID),
        begin: None,
        left: arguments.limit.unwrap_or(u64::MAX),
        stop_at: arguments.no_follow.then_some(position),
        out: BufWriter::new(io::stdout().lock()),
    };
    tail.follow(stream, &stop)
}

/// The stream from where the slot stands, and where the source is now.
fn open(config: &Config) -> Result<(ReplicationStream, Lsn), Error> {
    let server = postgres::new_runtime(Stage::Source)?.block_on(async {
        let client = postgres::connect(&config.source, Stage::Source).await?;
        let server = Server::inspect(&client, Role::Source, Stage::Source).await?;
        let slot = SlotState::read(&client, Role::Source, &config.name.slot(), Stage::Source).await?;
        match slot {
            Some(slot) => slot.check(&server.database, Stage::Source)?,
            None => {
                let what = format!("slot \"{}\" does not exist on the source", config.name.slot());
                return Err(Error::refused(Stage::Source, what, "run `pgsluice setup` first"));
            }
        }
        Ok(server)
    })?;
    let publication = config.name.publication();
    let start = StartLogical {
        slot: &config.name.slot(),
        // From wherever the slot stands; and as 0/0 is no position, no status update confirms anything.
        start_lsn: Lsn::INVALID,
        proto_version: ProtoVersion::newest_of(server.major()),
        publications: &[&publication],
        binary: false,
    };
    let stream = Connection::connect(&config.source)?.start(start, stream_options(config, &server))?;
    Ok((stream, server.position))
}

struct Tail<W: Write> {
    decoder: Decoder,
    begin: Option<Begin>,
    left: u64,
    stop_at: Option<Lsn>,
    out: W,
}

impl<W: Write> Tail<W> {
    fn follow(&mut self, mut stream: ReplicationStream, stop: &Receiver<()>) -> Result<(), Error> {
        let waker = Waker::new().map_err(output::failed)?;
        while stop.is_empty() {
            stream.transmit()?;
            let filled = stream.fill()?;
            if self.take_frames(&mut stream)? {
                break;
            }
            self.out.flush().map_err(output::failed)?;
            if filled == Filled::Drained {
                stream.wait_after_drain(&waker, STOP_CHECK_INTERVAL)?;
            }
        }
        self.out.flush().map_err(output::failed)
    }

    /// Prints what was read; true once that is all that was asked for.
    fn take_frames(&mut self, stream: &mut ReplicationStream) -> Result<bool, Error> {
        loop {
            if self.left == 0 {
                return Ok(true);
            }
            match stream.next_frame()? {
                None => return Ok(false),
                Some(Frame::PrimaryKeepalive(keepalive)) => {
                    let end =
                        !self.decoder.in_transaction() && self.stop_at.is_some_and(|stop| keepalive.wal_end >= stop);
                    stream.feedback().handle_keepalive(&keepalive);
                    if end {
                        return Ok(true);
                    }
                }
                Some(Frame::XLogData(frame)) => {
                    let line = match self.decoder.decode(frame.start_lsn, frame.data)? {
                        Decoded::Begin(begin) => {
                            if self.stop_at.is_some_and(|stop| begin.commit_lsn >= stop) {
                                return Ok(true);
                            }
                            self.begin = Some(begin);
                            None
                        }
                        Decoded::Change(change) => Some(change_line(&change)),
                        Decoded::Truncate(truncate) => Some(truncate_line(&truncate)),
                        Decoded::Commit(_) | Decoded::Nothing => None,
                    };
                    if let Some(line) = line {
                        self.print(line)?;
                    }
                }
            }
        }
    }

    fn print(&mut self, mut line: Map<String, Value>) -> Result<(), Error> {
        if let Some(begin) = self.begin {
            let time = begin.commit_time.to_system_time();
            line.insert("commit_lsn".to_owned(), begin.commit_lsn.to_string().into());
            line.insert("commit_time".to_owned(), json!(time.map(|t| humantime::format_rfc3339_micros(t).to_string())));
            line.insert("xid".to_owned(), begin.xid.0.into());
        }
        self.left -= 1;
        writeln!(self.out, "{}", Value::Object(line)).map_err(output::failed)
    }
}

fn truncate_line(truncate: &Truncate) -> Map<String, Value> {
    let tables: Vec<_> = truncate.relations.iter().map(|relation| relation.to_string()).collect();
    let mut line = Map::new();
    line.insert("operation".to_owned(), "truncate".into());
    line.insert("tables".to_owned(), tables.into());
    line.insert("restart_identity".to_owned(), truncate.restart_identity.into());
    line
}

fn change_line(change: &Change<'_>) -> Map<String, Value> {
    let relation = change.relation;
    let (operation, old, new) = match &change.operation {
        Operation::Insert { new } => ("insert", None, Some(new)),
        Operation::Update { old, new } => ("update", old.as_ref(), Some(new)),
        Operation::Delete { old } => ("delete", Some(old), None),
    };
    let mut line = Map::new();
    line.insert("operation".to_owned(), operation.into());
    line.insert("table".to_owned(), relation.to_string().into());
    match old {
        Some(OldTuple::Key(tuple)) => insert_row(&mut line, "key", relation, tuple, |column| column.is_identity),
        Some(OldTuple::Full(tuple)) => insert_row(&mut line, "old", relation, tuple, |_| true),
        None => {}
    }
    if let Some(tuple) = new {
        insert_row(&mut line, "new", relation, tuple, |_| true);
        let unchanged: Vec<_> = relation
            .columns
            .iter()
            .zip(tuple.cells())
            .filter(|(_, cell)| *cell == Cell::Unchanged)
            .map(|(column, _)| column.name.clone())
            .collect();
        if !unchanged.is_empty() {
            line.insert("unchanged".to_owned(), unchanged.into());
        }
    }
    line
}

/// A row as an object. What the source did not send is left out, so that it is not taken for NULL.
fn insert_row(
    line: &mut Map<String, Value>,
    label: &str,
    relation: &Relation,
    tuple: &Tuple<'_>,
    keep: impl Fn(&Column) -> bool,
) {
    let mut row = Map::new();
    for (column, cell) in relation.columns.iter().zip(tuple.cells()).filter(|(column, _)| keep(column)) {
        let value = match cell {
            Cell::Unchanged => continue,
            Cell::Null => Value::Null,
            Cell::Text(text) | Cell::Binary(text) => String::from_utf8_lossy(text).into_owned().into(),
        };
        row.insert(column.name.clone(), value);
    }
    line.insert(label.to_owned(), row.into());
}
