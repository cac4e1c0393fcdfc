//! What a writer finds that comes to a trail: what is whole is believed, and what is behind that was never promised to anybody.
//!
//! ```text
//!  0 ─────── end mark ─────────── last whole transaction ─────────── length
//!  has to be whole     what was synced before the mark could say so     cut off
//! ```
//!
//! **Always holds:** nothing before the end mark is cut off: if it is not whole, it is damage. What is cut off behind it was not
//! confirmed, or the source's slot shows that it was, and then the gap is refused.

use std::collections::VecDeque;
use std::fs::OpenOptions;

use super::current::{Current, Identity, Kept};
use super::dir::{Dir, damaged, failed};
use super::format::{EndMark, Fault, Header, Kind};
use super::keys::Keys;
use super::known::Known;
use super::segment::{Found, Segment, split_record};
use super::walk::Walk;
use crate::error::Error;

#[derive(Debug)]
pub(super) struct Recovered {
    pub identity: Identity,
    pub known: Known,
    /// All segments.
    pub kept: VecDeque<Kept>,
    /// The end of the last one.
    pub last: EndMark,
    /// The last one, where it can be gone on with.
    pub goes_on: Option<Current>,
}

/// `None` where there is no trail.
pub(super) fn recover(dir: &Dir, keys: &Keys) -> Result<Option<Recovered>, Error> {
    let numbers = dir.segments()?;
    let Some(last) = numbers.last().copied() else { return Ok(None) };
    let mark = match dir.read_end()? {
        Some(Ok(mark)) => Some(mark),
        Some(Err(fault)) => {
            tracing::warn!(file = %dir.end().display(), "{}; it is made anew out of the last segment", fault.what);
            None
        }
        None => None,
    };
    if mark.is_some_and(|mark| mark.segment > last) {
        return Err(dir.missing(last + 1));
    }
    let mut kept = VecDeque::new();
    for number in numbers.iter().copied() {
        let starts_at = Segment::peek(dir, number)?.starts_at();
        let bytes =
            std::fs::metadata(dir.segment(number)).map_err(|error| failed(&dir.segment(number), "read", error))?;
        kept.push_back(Kept { number, starts_at, bytes: bytes.len() });
    }
    let mut segment = Segment::open(dir, last, keys)?;
    let must_have = mark.filter(|mark| mark.segment == last).map_or(segment.walk.offset, |mark| mark.offset);
    let (known, whole) = scan(&mut segment, must_have)?;
    let is_cut = cut(&segment, whole.offset)?;
    if let Some(last) = kept.back_mut() {
        last.bytes = whole.offset;
    }
    let end = EndMark { segment: last, offset: whole.offset, lsn: whole.end };
    let Header { origin, history, timeline, .. } = segment.header.clone();
    // Whether blocks were lost that had been encrypted nobody can tell.
    let mut goes_on = None;
    if !is_cut && segment.header.encryption.is_none() && keys.is_current(&segment.header) {
        let behind = (whole.next_number(), whole.end, whole.offset);
        goes_on = Some(Current::open(segment.path(), segment.header.clone(), None, behind)?);
    }
    Ok(Some(Recovered { identity: Identity { origin, history, timeline }, known, kept, last: end, goes_on }))
}

/// Up to where the segment is whole, and what is described until there.
fn scan(segment: &mut Segment, must_have: u64) -> Result<(Known, Walk), Error> {
    let length = segment.length()?;
    if length < must_have {
        let what = "the file is shorter than what was synced";
        return Err(damaged(segment.path(), Fault { offset: length, what }));
    }
    let mut known = Known::counting_from(segment.header.arrivals);
    let (mut whole, mut clear, mut open) = (segment.walk, Vec::new(), Vec::new());
    loop {
        match segment.next(length, &mut clear)? {
            Found::Block(header) if header.kind == Kind::Part => open.append(&mut clear),
            Found::Block(_) => {
                learn(&mut known, &open);
                learn(&mut known, &clear);
                open.clear();
                whole = segment.walk;
            }
            Found::End => break,
            Found::Torn(fault) if fault.offset < must_have => return Err(damaged(segment.path(), fault)),
            Found::Torn(_) => break,
        }
        // Of a large transaction only what it describes is of interest.
        retain_descriptions(&mut open);
    }
    if whole.offset < must_have {
        let what = "the end mark lies amid a transaction";
        return Err(damaged(segment.path(), Fault { offset: whole.offset, what }));
    }
    Ok((known, whole))
}

fn learn(known: &mut Known, mut records: &[u8]) {
    while let Some((record, bytes)) = split_record(records) {
        known.learn(&record);
        records = &records[bytes..];
    }
}

fn retain_descriptions(open: &mut Vec<u8>) {
    let mut kept = Vec::new();
    let mut rest = open.as_slice();
    while let Some((record, bytes)) = split_record(rest) {
        if Known::concerns(record.payload) {
            kept.extend_from_slice(&rest[..bytes]);
        }
        rest = &rest[bytes..];
    }
    *open = kept;
}

/// Cuts off what is behind `offset`, and syncs what is before it: it may be from before a crash of the machine.
fn cut(segment: &Segment, offset: u64) -> Result<bool, Error> {
    let path = segment.path();
    let file = OpenOptions::new().write(true).open(path).map_err(|error| failed(path, "open", error))?;
    let is_cut = segment.length()? > offset;
    if is_cut {
        tracing::info!(file = %path.display(), at = offset, "what follows the last whole transaction is cut off");
        file.set_len(offset).map_err(|error| failed(path, "truncate", error))?;
    }
    file.sync_all().map_err(|error| failed(path, "sync", error))?;
    Ok(is_cut)
}
