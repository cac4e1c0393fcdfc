//! Who reads a trail, and how far the target of each has come: so much of it nobody needs any more.
//!
//! **Always holds:** a position that is written down is durable on its target. One that cannot be read keeps everything.

use std::fs;
use std::io;
use std::time::SystemTime;

use pgsluice_proto::Lsn;
use serde::{Deserialize, Serialize};

use super::dir::{self, Dir, STAGE, failed};
use crate::error::Error;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    pub name: String,
    pub position: Lsn,
    /// When it was written down, in RFC 3339.
    pub at: String,
    /// Which database it is, as [`ReaderOf::target`]; `None` until its target has said so.
    pub target: Option<String>,
}

/// Who reads: a replication, and the database that it fills.
#[derive(Clone, Copy, Debug)]
pub struct ReaderOf<'a> {
    /// Of the replication.
    pub name: &'a str,
    /// Tells one database from all others, where that is known.
    pub target: Option<&'a str>,
}

#[derive(Serialize, Deserialize)]
struct Recorded {
    position: String,
    at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

/// Writes down that the target of this reader has all before `position`.
pub fn record(dir: &Dir, reader: ReaderOf<'_>, position: Lsn) -> Result<(), Error> {
    dir.check_place()?;
    let known = check(dir, reader)?;
    let target = reader.target.map(str::to_owned).or_else(|| known.and_then(|known| known.target));
    let path = dir.readers().join(reader.name);
    let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let text = serde_json::to_vec(&Recorded { position: position.to_string(), at, target });
    let written = text.map_err(io::Error::from).and_then(|text| dir::replace(&path, &text));
    written.map_err(|error| failed(&path, "write", error))
}

/// Makes a reader known whose target has `progress`, which it may still lose in a crash: so what was kept for it stays, and where nothing
/// was, all is kept that is there, from `begins_at` on. Returns the position that is written down.
pub fn claim(dir: &Dir, reader: ReaderOf<'_>, progress: Lsn, begins_at: Lsn) -> Result<Lsn, Error> {
    let known = check(dir, reader)?;
    let position = known.as_ref().map_or(begins_at, |known| known.position).min(progress);
    let is_written_down =
        known.is_some_and(|known| known.position == position && (reader.target.is_none() || known.target.is_some()));
    if !is_written_down {
        record(dir, reader, position)?;
    }
    Ok(position)
}

/// The reader of this name, if it is this one.
///
/// # Errors
/// A refusal if it is of another target: the one that is ahead would have segments removed that the other needs.
pub fn check(dir: &Dir, reader: ReaderOf<'_>) -> Result<Option<Reader>, Error> {
    let ReaderOf { name, target } = reader;
    let known = list(dir)?.into_iter().find(|known| known.name == name);
    let other = known.as_ref().and_then(|known| known.target.as_deref());
    match (other, target) {
        (Some(other), Some(target)) if other != target => Err(Error::refused(
            STAGE,
            format!("reader \"{name}\" of the trail is another target: database {other}, and this one is {target}"),
            format!(
                "give each target of the trail a `name` of its own; if the other one is gone, or was made again from a dump: \
                 `pgsluice trail forget -c FILE {name}`, and run again"
            ),
        )),
        (Some(_) | None, _) => Ok(known),
    }
}

/// # Errors
/// If one cannot be read, since nobody knows what it needs.
pub fn list(dir: &Dir) -> Result<Vec<Reader>, Error> {
    let folder = dir.readers();
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| failed(&folder, "list the folder", error))?,
    };
    let mut readers = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| failed(&folder, "list the folder", error))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // One that is being written.
        if name.contains('.') {
            continue;
        }
        let path = entry.path();
        let text = match fs::read(&path) {
            // Forgotten meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text.map_err(|error| failed(&path, "read", error))?,
        };
        let parsed =
            serde_json::from_slice(&text).map_err(io::Error::from).and_then(|Recorded { position, at, target }| {
                let position = position.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                Ok(Reader { name, position, at, target })
            });
        readers.push(parsed.map_err(|error| failed(&path, "read", error))?);
    }
    readers.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(readers)
}

/// # Errors
/// A refusal if there is none of this name.
pub fn forget(dir: &Dir, name: &str) -> Result<(), Error> {
    let readers = list(dir)?;
    if !readers.iter().any(|reader| reader.name == name) {
        let names: Vec<_> = readers.iter().map(|reader| reader.name.as_str()).collect();
        let known =
            if names.is_empty() { "there is none".to_owned() } else { format!("there are {}", names.join(", ")) };
        return Err(Error::refused(STAGE, format!("the trail has no reader \"{name}\""), known));
    }
    dir::remove(&dir.readers().join(name))
}
