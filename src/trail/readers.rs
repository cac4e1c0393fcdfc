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
}

#[derive(Serialize, Deserialize)]
struct Recorded {
    position: String,
    at: String,
}

/// Writes down that the target of this reader has all before `position`.
pub fn record(dir: &Dir, name: &str, position: Lsn) -> Result<(), Error> {
    let path = dir.readers().join(name);
    let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let text = serde_json::to_vec(&Recorded { position: position.to_string(), at });
    let written = text.map_err(io::Error::from).and_then(|text| dir::replace(&path, &text));
    written.map_err(|error| failed(&path, "write", error))
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
        let parsed = serde_json::from_slice(&text).map_err(io::Error::from).and_then(|Recorded { position, at }| {
            let position = position.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            Ok(Reader { name, position, at })
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
