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
use tokio_postgres::Client;

use super::change::Changes;
use super::{ConfigArgument, output, run::stop_signals};
use crate::config::{Config, Role};
use crate::decode::{Decoded, Decoder};
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
            changes: Changes::new(Transform::new(Arc::new(mapping), false), &left, BufWriter::new(io::stdout())),
            stop_at: arguments.no_follow.then_some(position),
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
        let slot = SlotState::read(&client, Role::Source, &config.slot(), Stage::Source).await?;
        match slot {
            Some(slot) => {
                slot.check(&server.database, Stage::Source)?;
                if slot.active {
                    return Err(in_use(config, &slot));
                }
            }
            None => {
                let what = format!("slot \"{}\" does not exist on the source", config.slot());
                return Err(Error::refused(Stage::Source, what, "run `pgsluice setup` first"));
            }
        }
        Ok((server, read_rules(config, &client).await?))
    })?;
    let publication = config.publication();
    let start = StartLogical {
        slot: &config.slot(),
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

/// A slot serves one reader at a time.
fn in_use(config: &Config, slot: &SlotState) -> Error {
    let pid = slot.active_pid.map_or(String::new(), |pid| format!(", by process {pid} of the source"));
    let what = format!("slot \"{}\" is being read{pid}: an engine is at work", config.slot());
    let mend = match &config.trail {
        Some(_) => "look into the trail instead: `pgsluice trail dump`",
        None => "stop the engine first; it goes on where it was",
    };
    Error::refused(Stage::Source, what, mend)
}

/// For the tables of all shards, as in a session.
async fn read_rules(config: &Config, client: &Client) -> Result<Mapping, Error> {
    if config.rules.is_empty() {
        return Ok(Mapping::default());
    }
    let name = config.publication();
    let Some(publication) = Publication::read(client, Role::Source, &name, Stage::Source).await? else {
        let what = format!("publication \"{name}\" does not exist on the source");
        return Err(Error::refused(Stage::Source, what, "run `pgsluice setup` first"));
    };
    let tables = shards::with_others(client, config, &publication.tables, Stage::Source).await?;
    Mapping::of(&config.rules, &tables, Stage::Transform)
}

struct Tail<'a, W: Write> {
    decoder: Decoder,
    changes: Changes<'a, W>,
    stop_at: Option<Lsn>,
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
            self.changes.flush()?;
            if self.changes.is_done() {
                break;
            }
            if filled == Filled::Drained {
                stream.wait_after_drain(&waker, STOP_CHECK_INTERVAL, Instant::now())?;
            }
        }
        self.changes.flush()
    }

    /// Prints what was read; true once that is all that was asked for.
    fn take_frames(&mut self, stream: &mut ReplicationStream) -> Result<bool, Error> {
        loop {
            if self.changes.is_done() {
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
            Decoded::Begin(begin) if self.stop_at.is_some_and(|stop| begin.commit_lsn >= stop) => return Ok(true),
            Decoded::Begin(begin) => self.changes.begin(begin),
            Decoded::Change(change)
                if (change.relation.namespace.as_str(), change.relation.name.as_str()) == HEARTBEAT => {}
            Decoded::Change(change) => self.changes.change(&change)?,
            Decoded::Truncate(truncate) => self.changes.truncate(truncate)?,
            Decoded::Commit(_) | Decoded::Nothing => {}
        }
        Ok(self.changes.is_done())
    }
}
