//! What is in a trail: at a glance, with every byte looked at, or change by change.

use clap::{Args, Subcommand};
use pgsluice_proto::Lsn;
use serde::Serialize;

use super::change::Changes;
use super::{ConfigArgument, Format, output};
use crate::config::TrailConfig;
use crate::decode::{Arrival, Decoded, Decoder};
use crate::error::{Error, Kind, Stage};
use crate::trail::{self, Listed, Tail, Tailed, Trail};
use crate::transform::{Mapping, Transform};

#[derive(Debug, Args)]
pub struct TrailArguments {
    #[command(subcommand)]
    command: TrailCommand,
}

#[derive(Debug, Subcommand)]
enum TrailCommand {
    /// Show segments, readers and who writes
    Ls(Place),
    /// Print the changes that are there as JSON lines, as the source has sent them
    Dump(DumpArguments),
    /// Read every byte and say what is wrong with it
    Verify(Place),
    /// Keep nothing for a reader any more
    Forget(ForgetArguments),
}

#[derive(Debug, Args)]
struct Place {
    #[command(flatten)]
    config: ConfigArgument,
}

#[derive(Debug, Args)]
struct DumpArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Only transactions that end behind this
    #[arg(long, value_name = "LSN")]
    from: Option<Lsn>,
    /// Stop after this many changes
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

#[derive(Debug, Args)]
struct ForgetArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// The reader, as `pgsluice trail ls` shows it: the `name` of its configuration
    reader: String,
}

#[derive(Serialize)]
struct Shown<'a> {
    ends_at: Option<String>,
    bytes: u64,
    writer: Option<&'a trail::WriterState>,
    readers: Vec<ShownReader<'a>>,
    segments: &'a [Listed],
}

#[derive(Serialize)]
struct ShownReader<'a> {
    name: &'a str,
    position: String,
    at: &'a str,
}

pub fn run(arguments: &TrailArguments, format: Format) -> Result<(), Error> {
    match &arguments.command {
        TrailCommand::Ls(place) => show(&trail::list(&place.trail()?)?, format),
        TrailCommand::Verify(place) => {
            let trail = trail::verify(&place.trail()?)?;
            show(&trail, format)?;
            match trail.segments.iter().find_map(|segment| segment.fault.as_ref()) {
                None => Ok(()),
                Some(fault) => Err(Error::new(Stage::Trail, Kind::Incomplete(fault.clone()))),
            }
        }
        TrailCommand::Dump(arguments) => dump(arguments),
        TrailCommand::Forget(arguments) => {
            let trail = trail_of(&arguments.config)?;
            trail::forget_reader(&trail, &arguments.reader)?;
            output::text_line(&format!("nothing is kept for \"{}\" any more", arguments.reader))
        }
    }
}

impl Place {
    fn trail(&self) -> Result<TrailConfig, Error> {
        trail_of(&self.config)
    }
}

fn trail_of(config: &ConfigArgument) -> Result<TrailConfig, Error> {
    config.load()?.trail.ok_or_else(|| {
        Error::refused(
            Stage::Trail,
            "the configuration has no [trail]",
            "add [trail] with `dir`, the folder it lies in",
        )
    })
}

fn show(trail: &Trail, format: Format) -> Result<(), Error> {
    if format == Format::Json {
        let readers = trail.readers.iter();
        return output::json(&Shown {
            ends_at: trail.ends_at.map(|lsn| lsn.to_string()),
            bytes: trail.bytes,
            writer: trail.writer.as_ref(),
            readers: readers
                .map(|reader| ShownReader { name: &reader.name, position: reader.position.to_string(), at: &reader.at })
                .collect(),
            segments: &trail.segments,
        });
    }
    let mut rows: Vec<_> =
        trail.segments.iter().map(|segment| (format!("{:016}", segment.number), segment_text(segment))).collect();
    for reader in &trail.readers {
        rows.push((format!("reader {}", reader.name), format!("{}, at {}", reader.position, reader.at)));
    }
    rows.push(("writer".to_owned(), trail.writer.as_ref().map_or("none".to_owned(), writer_text)));
    let transactions: u64 = trail.segments.iter().map(|segment| segment.transactions).sum();
    let end = trail.ends_at.map_or("nowhere".to_owned(), |lsn| lsn.to_string());
    rows.push(("in all".to_owned(), format!("{transactions} transactions, {} bytes, up to {end}", trail.bytes)));
    output::pairs(&rows)
}

fn segment_text(segment: &Listed) -> String {
    let lsn = |lsn: Option<Lsn>| lsn.map_or("?".to_owned(), |lsn| lsn.to_string());
    let key = segment.key_id.as_ref().map_or(String::new(), |key| format!(", key {key}"));
    let fault = segment.fault.as_ref().map_or(String::new(), |fault| format!("; {fault}"));
    format!(
        "{} to {}, {} transactions, {} bytes{key}{fault}",
        lsn(segment.starts_at),
        lsn(segment.ends_at),
        segment.transactions,
        segment.bytes
    )
}

pub fn writer_text(writer: &trail::WriterState) -> String {
    let paused = writer.paused.as_ref().map_or(String::new(), |why| format!("; nothing is read: {why}"));
    let command = match writer.command {
        Some(trail::Command::Setup) => " (setup)",
        Some(trail::Command::Run) => " (run)",
        Some(trail::Command::Capture) => " (capture)",
        Some(trail::Command::Teardown) => " (teardown)",
        None => "",
    };
    format!("process {}{command} since {}{paused}", writer.pid, writer.since)
}

/// What is there now, and nothing that comes meanwhile.
fn dump(arguments: &DumpArguments) -> Result<(), Error> {
    let trail = trail_of(&arguments.config)?;
    let known = trail::expect(&trail)?;
    let from = arguments.from.unwrap_or(known.begins_at);
    let mut tail = Tail::open(&trail, from)?;
    let mut decoder = Decoder::new(from);
    let transform = Transform::new(std::sync::Arc::new(Mapping::default()), false);
    let left = std::sync::atomic::AtomicU64::new(arguments.limit.unwrap_or(u64::MAX));
    let mut changes = Changes::new(transform, &left, std::io::BufWriter::new(std::io::stdout()));
    while !changes.is_done() {
        let record = match tail.read()? {
            Tailed::Drained => break,
            Tailed::Position(_) => continue,
            Tailed::Message(record) => record,
        };
        let arrival = record.arrival.unwrap_or(Arrival::after_segments(0));
        match decoder.decode_arrived(arrival, record.lsn, record.payload)? {
            Decoded::Begin(begin) => changes.begin(begin),
            Decoded::Change(change) => changes.change(&change)?,
            Decoded::Truncate(truncate) => changes.truncate(truncate)?,
            Decoded::Commit(_) | Decoded::Nothing => {}
        }
    }
    changes.flush()
}
