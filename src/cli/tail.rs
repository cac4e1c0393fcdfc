//! Looks at what waits in the slot. Nothing is applied and nothing is confirmed, so the engine finds all of it again.
//!
//! What is shown is what the target would get: a value that a rule masks is not printed.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use crossbeam_channel::Receiver;
use pgsluice_proto::Lsn;
use pgsluice_proto::command::{ProtoVersion, StartLogical};
use pgsluice_proto::frame::Frame;
use pgsluice_proto::pgoutput::Begin;
use serde_json::{Map, Value, json};
use tokio_postgres::Client;

use super::row::{Part, RowObject};
use super::{ConfigArgument, output, run::stop_signals};
use crate::batch::{Batch, BatchedOperation, Limits, OldRow};
use crate::config::{Config, Role};
use crate::decode::{Decoded, Decoder, PartialTruncate, Truncate};
use crate::error::{Error, Kind, Stage};
use crate::pipeline::stream_options;
use crate::postgres;
use crate::shards;
use crate::source::publication::{HEARTBEAT, Publication};
use crate::source::server::Server;
use crate::source::slot::SlotState;
use crate::source::{Connection, Filled, ReplicationStream, Waker};
use crate::transform::{Mapping, Transform};

/// How soon a stop that was asked for is noticed while nothing comes.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Of the batch that takes what one change comes to.
const LIMITS: Limits = Limits { rows: 1, bytes: 64 << 10 };

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
    let left = AtomicU64::new(arguments.limit.unwrap_or(u64::MAX));
    let tail = |config: &Config| {
        let (stream, position, mapping) = open(config)?;
        let mut tail = Tail {
            decoder: Decoder::new(Lsn::INVALID),
            transform: Transform::new(Arc::new(mapping), false),
            batch: Batch::default(),
            begin: None,
            left: &left,
            stop_at: arguments.no_follow.then_some(position),
            out: BufWriter::new(io::stdout()),
        };
        tail.follow(stream, &stop)
    };
    let run = |config: &Config| {
        let outcome = tail(config);
        if outcome.is_err() {
            // The others are not to go on without it.
            left.store(0, Ordering::Relaxed);
        }
        outcome
    };
    let shards = config.split();
    thread::scope(|scope| {
        let running: Vec<_> = shards.iter().map(|config| scope.spawn(|| run(config))).collect();
        let panicked = |_| Err(Error::new(Stage::Source, Kind::Panicked));
        let outcomes = running.into_iter().map(|one| one.join().unwrap_or_else(panicked));
        outcomes.collect::<Vec<_>>().into_iter().collect()
    })
}

/// The stream from where the slot stands, where the source is now, and the rules for what is published.
fn open(config: &Config) -> Result<(ReplicationStream, Lsn, Mapping), Error> {
    let (server, mapping) = postgres::new_runtime(Stage::Source)?.block_on(async {
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
        Ok((server, read_rules(config, &client).await?))
    })?;
    let publication = config.name.publication();
    let start = StartLogical {
        slot: &config.name.slot(),
        // From wherever the slot stands; and as 0/0 is no position, no status update confirms anything.
        start_lsn: Lsn::INVALID,
        proto_version: ProtoVersion::newest_of(server.major()),
        publications: &[&publication],
        binary: false,
        streaming: false,
    };
    let stream = Connection::connect(&config.source)?.start(start, stream_options(config, &server))?;
    Ok((stream, server.position, mapping))
}

/// For the tables of all shards, as in a session.
async fn read_rules(config: &Config, client: &Client) -> Result<Mapping, Error> {
    if config.rules.is_empty() {
        return Ok(Mapping::default());
    }
    let name = config.name.publication();
    let Some(publication) = Publication::read(client, Role::Source, &name, Stage::Source).await? else {
        let what = format!("publication \"{name}\" does not exist on the source");
        return Err(Error::refused(Stage::Source, what, "run `pgsluice setup` first"));
    };
    let tables = shards::with_others(client, config, &publication.tables, Stage::Source).await?;
    Mapping::of(&config.rules, &tables, Stage::Transform)
}

struct Tail<'a, W: Write> {
    decoder: Decoder,
    transform: Transform,
    /// What one change comes to.
    batch: Batch,
    begin: Option<Begin>,
    /// Changes that are still to be printed, by all shards.
    left: &'a AtomicU64,
    stop_at: Option<Lsn>,
    out: W,
}

impl<W: Write> Tail<'_, W> {
    fn follow(&mut self, mut stream: ReplicationStream, stop: &Receiver<()>) -> Result<(), Error> {
        let waker = Waker::new().map_err(output::failed)?;
        while stop.is_empty() {
            stream.transmit(Instant::now())?;
            let filled = stream.fill()?;
            if self.take_frames(&mut stream)? {
                break;
            }
            self.out.flush().map_err(output::failed)?;
            if self.is_done() {
                break;
            }
            if filled == Filled::Drained {
                stream.wait_after_drain(&waker, STOP_CHECK_INTERVAL, Instant::now())?;
            }
        }
        self.out.flush().map_err(output::failed)
    }

    /// Prints what was read; true once that is all that was asked for.
    fn take_frames(&mut self, stream: &mut ReplicationStream) -> Result<bool, Error> {
        loop {
            if self.is_done() {
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
                    if self.take_message(frame.start_lsn, frame.data)? {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Prints what the message comes to; true if it is past all that was asked for.
    fn take_message(&mut self, lsn: Lsn, message: &[u8]) -> Result<bool, Error> {
        match self.decoder.decode(lsn, message)? {
            Decoded::Begin(begin) => {
                if self.stop_at.is_some_and(|stop| begin.commit_lsn >= stop) {
                    return Ok(true);
                }
                self.begin = Some(begin);
                self.transform.begin(&begin);
                self.batch.clear(LIMITS);
                self.batch.begin(begin);
                return Ok(false);
            }
            Decoded::Change(change)
                if (change.relation.namespace.as_str(), change.relation.name.as_str()) == HEARTBEAT => {}
            Decoded::Change(change) => self.transform.push(&change, &mut self.batch)?,
            Decoded::Truncate(truncate) => self.batch.push_truncate(self.transform.truncate(truncate)?),
            Decoded::Commit(_) | Decoded::Nothing => return Ok(false),
        }
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
                return Ok(true);
            }
            self.print(line)?;
        }
        Ok(false)
    }

    fn is_done(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    fn print(&mut self, mut line: Map<String, Value>) -> Result<(), Error> {
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
