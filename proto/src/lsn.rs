//! Numbers that have an order or a unit, each as a type of its own, so that none is taken for another.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A position in the write-ahead log: a byte address that only grows along one timeline.
///
/// Written as PostgreSQL writes `pg_lsn`: two hexadecimal halves with a slash. See "pg_lsn Type" in the documentation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// `0/0`, which PostgreSQL calls `InvalidXLogRecPtr`: no WAL record starts there.
    pub const INVALID: Lsn = Lsn(0);
    pub const MAX: Lsn = Lsn(u64::MAX);

    pub const fn new(position: u64) -> Lsn {
        Lsn(position)
    }

    pub const fn as_u64(self) -> u64 {
        self.0
    }

    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// Bytes of WAL from `earlier` up to here; 0 where `earlier` is not earlier.
    pub const fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not two hexadecimal numbers of at most 32 bits with a slash between them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an LSN: expected two hexadecimal numbers with a slash, such as 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Lsn, ParseLsnError> {
        let half = |digits: &str| -> Option<u64> {
            // from_str_radix alone would also take a sign.
            let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

/// An object identifier: the number of a relation or a type in one database's catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Oid(pub u32);

impl Oid {
    /// Types below this number are assigned by hand in PostgreSQL's sources and are the same in every cluster
    /// (`FirstGenbkiObjectId` in `src/include/access/transam.h`).
    pub const FIRST_UNPINNED: Oid = Oid(10_000);
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A transaction identifier of the source, 32 bits without epoch: it identifies, it does not order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Xid(pub u32);

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The timeline of a WAL history: one more after every promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// Of a cluster that was never promoted. Nothing came before it, so it has no history.
    pub const FIRST: TimelineId = TimelineId(1);
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// PostgreSQL's `TimestampTz`: microseconds since 2000-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PgTimestamp(i64);

/// Seconds from the Unix epoch to PostgreSQL's.
const UNIX_TO_PG_EPOCH_S: u64 = 946_684_800;

impl PgTimestamp {
    pub const fn from_micros(micros_since_2000: i64) -> PgTimestamp {
        PgTimestamp(micros_since_2000)
    }

    pub const fn as_micros(self) -> i64 {
        self.0
    }

    pub fn from_system_time(time: SystemTime) -> PgTimestamp {
        let epoch = UNIX_EPOCH + Duration::from_secs(UNIX_TO_PG_EPOCH_S);
        PgTimestamp(match time.duration_since(epoch) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
        })
    }

    /// The same moment as a `SystemTime`, or `None` where that type cannot hold it.
    pub fn to_system_time(self) -> Option<SystemTime> {
        let epoch = UNIX_EPOCH + Duration::from_secs(UNIX_TO_PG_EPOCH_S);
        let distance = Duration::from_micros(self.0.unsigned_abs());
        if self.0 >= 0 { epoch.checked_add(distance) } else { epoch.checked_sub(distance) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_text_round_trips() {
        for (text, value) in [("0/0", 0), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            assert_eq!(text.parse::<Lsn>().unwrap(), Lsn::new(value));
            assert_eq!(Lsn::new(value).to_string(), text);
        }
        assert_eq!("a/f".parse::<Lsn>().unwrap().to_string(), "A/F");
    }

    #[test]
    fn lsn_text_that_postgresql_refuses_is_refused() {
        for text in ["", "/", "1", "1/", "/1", "g/1", "+1/1", "1/-1", "123456789/0", "0/123456789", "0/0/0", " 0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn timestamps_keep_their_moment_on_both_sides_of_the_epoch() {
        for micros in [0, 1, -1, 845_000_000_123_456, -946_684_800_000_000] {
            let time = PgTimestamp::from_micros(micros);
            assert_eq!(PgTimestamp::from_system_time(time.to_system_time().unwrap()), time);
        }
        assert_eq!(PgTimestamp::from_system_time(UNIX_EPOCH).as_micros(), -946_684_800_000_000);
    }
}
