//! The values that a statement was to write: kept with its error until the target has been asked which of them it does not take.

use std::fmt;

/// More than this is not kept.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// The values of one row. They are never shown.
#[derive(Default)]
pub struct Written {
    pub values: Vec<WrittenValue>,
}

pub struct WrittenValue {
    pub column: String,
    pub bytes: Vec<u8>,
    pub is_binary: bool,
}

impl Written {
    /// Nothing, if they are too large to be kept.
    pub fn of(values: impl Iterator<Item = WrittenValue>) -> Option<Written> {
        let mut bytes = 0;
        let mut written = Written::default();
        for value in values {
            bytes += value.bytes.len();
            if bytes > BYTES_MAX {
                return None;
            }
            written.values.push(value);
        }
        Some(written)
    }
}

impl fmt::Debug for WrittenValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrittenValue").field("column", &self.column).finish_non_exhaustive()
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written").field("values", &self.values.len()).finish()
    }
}
