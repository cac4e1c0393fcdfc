//! What everything that keeps messages on disk has in common: how a message lies there, and how it is encrypted.

mod cipher;
mod record;

pub use self::cipher::{Altered, Key, TAG_BYTES};
pub use self::record::{Header, Record};
