//! A key for what is written to disk: the file that holds it comes in, a [`DiskKey`] goes out, which nothing can print.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use super::file::File;
use super::{ConfigError, Problem};

const KEY_BYTES: usize = 32;

/// A key of 256 bits, as a type that nothing can print.
#[derive(Clone, PartialEq, Eq)]
pub struct DiskKey([u8; KEY_BYTES]);

impl DiskKey {
    #[cfg(test)]
    pub fn new(bytes: [u8; KEY_BYTES]) -> DiskKey {
        DiskKey(bytes)
    }

    /// The key itself, for the cipher alone.
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for DiskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskKey(…)")
    }
}

pub(super) fn read(
    file: &File<'_>,
    table: &str,
    key: &str,
    (path, at): (String, Range<usize>),
) -> Result<DiskKey, ConfigError> {
    let path = file.beside(&path);
    let fail = |problem| file.value(table, key, &at, problem);
    match std::fs::read(&path) {
        Ok(bytes) => parse_key(&bytes).ok_or_else(|| fail(wrong_key(path))),
        Err(error) => Err(fail(Problem::PasswordFile { path, error })),
    }
}

fn wrong_key(path: PathBuf) -> Problem {
    let fault = "holds no key: it must be 64 hexadecimal digits or 32 bytes, such as `openssl rand -hex 32` makes";
    Problem::PasswordFileContent { path, fault }
}

/// 64 hexadecimal digits, on a line, or 32 bytes of whatever value.
fn parse_key(bytes: &[u8]) -> Option<DiskKey> {
    if let Ok(key) = bytes.try_into() {
        return Some(DiskKey(key));
    }
    let (pairs, rest) = bytes.trim_ascii_end().as_chunks::<2>();
    if !rest.is_empty() || pairs.len() != KEY_BYTES {
        return None;
    }
    let mut key = [0; KEY_BYTES];
    for (byte, pair) in key.iter_mut().zip(pairs) {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        *byte = u8::try_from(high? * 16 + low?).ok()?;
    }
    Some(DiskKey(key))
}
