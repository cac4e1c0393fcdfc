//! Which trail this is: a file that setup writes once, with an identifier that the targets know the trail by.
//!
//! A folder says nothing of whether the disk is mounted that belongs there. So nothing but setup begins a trail, and a target that has
//! read from one goes on with no other.

use std::fmt::Write;
use std::fs;
use std::io;
use std::time::SystemTime;

use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::dir::{self, Dir, failed};
use super::format::Origin;
use crate::error::Error;

const ID_BYTES: usize = 16;

#[derive(Serialize, Deserialize)]
struct Recorded {
    id: String,
    slot: String,
    system_identifier: String,
    /// RFC 3339.
    made_at: String,
}

/// `None` where there is no such file, as in a trail that an earlier version has begun.
pub fn read(dir: &Dir) -> Result<Option<String>, Error> {
    let path = dir.identity();
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| failed(&path, "read", error))?,
    };
    let recorded: Recorded = serde_json::from_slice(&text).map_err(|error| failed(&path, "read", error.into()))?;
    Ok(Some(recorded.id))
}

/// Gives the trail an identifier that no other has.
pub fn make(dir: &Dir, origin: &Origin) -> Result<String, Error> {
    let mut id = String::new();
    for byte in rand::rng().random::<[u8; ID_BYTES]>() {
        write!(id, "{byte:02x}").expect("a string takes all that is written");
    }
    let recorded = Recorded {
        id: id.clone(),
        slot: origin.slot.clone(),
        system_identifier: origin.system_identifier.clone(),
        made_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
    };
    let path = dir.identity();
    let text = serde_json::to_vec(&recorded).map_err(io::Error::from);
    text.and_then(|text| dir::replace(&path, &text)).map_err(|error| failed(&path, "write", error))?;
    Ok(id)
}
