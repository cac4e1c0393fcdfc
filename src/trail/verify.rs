//! What is in a trail, for people: at a glance, or with every byte of it looked at.

use pgsluice_proto::Lsn;
use serde::Serialize;

use super::dir::Dir;
use super::keys::Keys;
use super::lock::{self, WriterState};
use super::readers::{self, Reader};
use super::segment::{Found, Segment};
use super::tail::{breaks, read_mark};
use crate::config::TrailConfig;
use crate::error::{Error, Kind};

/// A trail as it is now.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    pub segments: Vec<Listed>,
    /// Up to where it is whole and on disk.
    pub ends_at: Option<Lsn>,
    pub bytes: u64,
    pub readers: Vec<Reader>,
    pub writer: Option<WriterState>,
}

/// A segment of it.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    pub number: u64,
    pub file: String,
    #[serde(serialize_with = "lsn_text")]
    pub starts_at: Option<Lsn>,
    #[serde(serialize_with = "lsn_text")]
    pub ends_at: Option<Lsn>,
    pub transactions: u64,
    pub bytes: u64,
    pub timeline: u32,
    /// Of the key that it is encrypted under.
    pub key_id: Option<String>,
    /// What is wrong with it.
    pub fault: Option<String>,
}

fn lsn_text<S: serde::Serializer>(lsn: &Option<Lsn>, serializer: S) -> Result<S::Ok, S::Error> {
    lsn.map(|lsn| lsn.to_string()).serialize(serializer)
}

/// By the headers of its blocks alone.
pub fn list(config: &TrailConfig) -> Result<Trail, Error> {
    look(config, |segment, limit, _| segment.skip(limit))
}

/// By all of its bytes. What is wrong is in [`Listed::fault`].
pub fn verify(config: &TrailConfig) -> Result<Trail, Error> {
    look(config, Segment::next)
}

type Step = fn(&mut Segment, u64, &mut Vec<u8>) -> Result<Found, Error>;

fn look(config: &TrailConfig, step: Step) -> Result<Trail, Error> {
    let Some(dir) = Dir::open(&config.dir)? else { return Ok(Trail::default()) };
    let keys = Keys::new(config);
    let mark = read_mark(&dir)?;
    let numbers = dir.segments()?;
    if let Some(mark) = mark.filter(|mark| numbers.last().is_none_or(|last| *last < mark.segment)) {
        return Err(dir.missing(mark.segment));
    }
    let mut segments = Vec::new();
    let mut before: Option<Segment> = None;
    for number in numbers.into_iter().filter(|number| mark.is_none_or(|mark| *number <= mark.segment)) {
        let mut listed = Listed {
            number,
            file: dir.segment(number).display().to_string(),
            starts_at: None,
            ends_at: None,
            transactions: 0,
            bytes: std::fs::metadata(dir.segment(number)).map_or(0, |file| file.len()),
            timeline: 0,
            key_id: None,
            fault: None,
        };
        let limit = mark.filter(|mark| mark.segment == number).map(|mark| (mark.offset, mark.lsn));
        before = match look_into(&dir, &keys, (number, limit), before.as_ref(), step, &mut listed) {
            Ok(segment) => Some(segment),
            // Pruned meanwhile.
            Err(error) if matches!(error.kind(), Kind::Refused { .. }) && !dir.segment(number).exists() => continue,
            Err(error) => {
                listed.fault = Some(error.to_string());
                None
            }
        };
        segments.push(listed);
    }
    let bytes = segments.iter().map(|segment| segment.bytes).sum();
    let (readers, writer) = (readers::list(&dir)?, lock::writer(&dir)?);
    Ok(Trail { segments, ends_at: mark.map(|mark| mark.lsn), bytes, readers, writer })
}

/// # Errors
/// Whatever is wrong with the segment.
fn look_into(
    dir: &Dir,
    keys: &Keys,
    (number, last): (u64, Option<(u64, Lsn)>),
    before: Option<&Segment>,
    step: Step,
    listed: &mut Listed,
) -> Result<Segment, Error> {
    let mut segment = Segment::open(dir, number, keys)?;
    listed.starts_at = Some(segment.header.starts_at());
    listed.timeline = segment.header.timeline;
    listed.key_id = segment.header.encryption.as_ref().map(|encryption| encryption.key_id.clone());
    if let Some(what) = before.and_then(|before| breaks(before, &segment)) {
        return Err(super::dir::damaged(segment.path(), super::format::Fault { offset: 0, what }));
    }
    let (limit, end) = match last {
        Some((offset, lsn)) => (offset, Some(lsn)),
        None => (segment.length()?, None),
    };
    let mut clear = Vec::new();
    loop {
        match step(&mut segment, limit, &mut clear)? {
            Found::Block(_) => {}
            Found::End => break,
            Found::Torn(fault) => return Err(super::dir::damaged(segment.path(), fault)),
        }
    }
    listed.ends_at = Some(segment.walk.end);
    listed.transactions = segment.walk.transactions;
    let is_whole =
        segment.walk.offset == limit && !segment.walk.is_open && end.is_none_or(|end| end == segment.walk.end);
    if is_whole {
        return Ok(segment);
    }
    let what = "it does not end where the end mark says";
    Err(super::dir::damaged(segment.path(), super::format::Fault { offset: segment.walk.offset, what }))
}
