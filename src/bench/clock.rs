//! Clocks: that of this host, by which everything is timed, and how far those of servers are from it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::config::Endpoint;
use crate::error::{Error, Kind};
use crate::postgres;

use super::STAGE;

/// Of these questions, the one that was answered soonest tells a clock best.
const TRIES: usize = 30;

/// This host's clock as of a moment, and from there on by one that never jumps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    at: Instant,
    at_us: i64,
}

impl Clock {
    pub fn start() -> Result<Clock, Error> {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let at_us = since_epoch.ok().and_then(|since| i64::try_from(since.as_micros()).ok());
        let at_us =
            at_us.ok_or_else(|| Error::new(STAGE, Kind::Usage("the clock of this host is wrong".to_owned())))?;
        Ok(Clock { at: Instant::now(), at_us })
    }

    /// Microseconds since 1970.
    pub fn us(&self, moment: Instant) -> i64 {
        let since = moment.saturating_duration_since(self.at).as_micros();
        self.at_us.saturating_add(i64::try_from(since).unwrap_or(i64::MAX))
    }

    /// Asks a server for its time.
    pub fn offset_of(&self, endpoint: &Endpoint) -> Result<Offset, Error> {
        let failed = |error| Error::from_postgres(STAGE, endpoint.role, error);
        postgres::new_runtime(STAGE)?.block_on(async {
            let client = postgres::connect(endpoint, STAGE).await?;
            let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
            let ask = client.prepare(sql).await.map_err(failed)?;
            let mut best = None;
            for _ in 0..TRIES {
                let asked = Instant::now();
                let row = client.query_one(&ask, &[]).await.map_err(failed)?;
                let round_trip = asked.elapsed();
                let theirs: i64 = row.try_get(0).map_err(failed)?;
                let offset = Offset::of_answer(theirs, self.us(asked), round_trip);
                best = Some(best.map_or(offset, |best: Offset| best.better(offset)));
            }
            best.ok_or_else(|| Error::new(STAGE, Kind::Panicked))
        })
    }
}

/// How far a clock is ahead of this host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offset {
    pub us: i64,
    /// The truth is no further away than this.
    pub uncertainty_us: u64,
}

impl Offset {
    /// The answer was made at some moment of the round trip.
    fn of_answer(theirs_us: i64, asked_us: i64, round_trip: Duration) -> Offset {
        let half_us = u64::try_from(round_trip.as_micros().div_ceil(2)).unwrap_or(u64::MAX);
        Offset { us: theirs_us - asked_us.saturating_add_unsigned(half_us), uncertainty_us: half_us }
    }

    fn better(self, other: Offset) -> Offset {
        if other.uncertainty_us < self.uncertainty_us { other } else { self }
    }

    /// Over the time between two looks, in which it may have drifted.
    pub fn and(self, later: Offset) -> Offset {
        let drift_us = self.us.abs_diff(later.us);
        Offset {
            us: self.us.midpoint(later.us),
            uncertainty_us: self.uncertainty_us.max(later.uncertainty_us) + drift_us.div_ceil(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_truth_is_within_the_uncertainty_however_the_round_trip_is_divided() {
        // A clock that is 500 µs ahead, with an answer made at the beginning and at the end of a round trip of 80 µs.
        for made_after_us in [0, 40, 80] {
            let offset = Offset::of_answer(1_000 + made_after_us + 500, 1_000, Duration::from_micros(80));
            assert!(offset.us.abs_diff(500) <= offset.uncertainty_us, "{offset:?}");
        }
    }

    #[test]
    fn drift_is_uncertain() {
        let (before, after) = (Offset { us: 100, uncertainty_us: 5 }, Offset { us: 110, uncertainty_us: 3 });
        assert_eq!(before.and(after), Offset { us: 105, uncertainty_us: 10 });
        assert_eq!(before.better(after), after);
        assert_eq!(after.better(before), after);
    }
}
