//! When the source may hear of what the target has: at once, or after a delay in which asynchronous replicas of the target get it too.
//!
//! ```text
//!  flushed, as the target has answered ──seen at t──► waiting ──an answer to what was asked at t + delay or later──► confirmed
//! ```
//!
//! **Always holds:** after a position was seen to be flushed, the target has lived for a whole delay before that position is confirmed.
//! Time alone proves nothing: a target that is gone sends nothing to its replicas, and nobody hears of that at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pgsluice_proto::Lsn;

/// So many positions of one delay are kept; those between wait a little longer.
const STEPS: u32 = 32;

#[derive(Debug)]
pub(super) struct Confirmation {
    delay: Duration,
    /// When each was seen.
    waiting: VecDeque<(Instant, Lsn)>,
    confirmed: Option<Lsn>,
}

impl Confirmation {
    pub fn new(delay: Duration) -> Confirmation {
        Confirmation { delay, waiting: VecDeque::new(), confirmed: None }
    }

    /// At `now` the target has answered what it was asked at `asked_at`, and all before `durable` is flushed there.
    pub fn answered(&mut self, durable: Option<Lsn>, asked_at: Instant, now: Instant) {
        if self.delay.is_zero() {
            self.confirmed = durable;
            return;
        }
        while self.waiting.front().is_some_and(|(seen_at, _)| *seen_at + self.delay <= asked_at) {
            self.confirmed = self.waiting.pop_front().map(|(_, lsn)| lsn);
        }
        let is_apart = |(seen_at, lsn): &(Instant, Lsn)| durable > Some(*lsn) && now - *seen_at >= self.delay / STEPS;
        if let Some(durable) = durable.filter(|durable| self.confirmed < Some(*durable))
            && self.waiting.back().is_none_or(is_apart)
        {
            self.waiting.push_back((now, durable));
        }
    }

    /// What the source may hear of; `None` before there is anything.
    pub fn confirmed(&self) -> Option<Lsn> {
        self.confirmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_secs(32);

    fn at(confirmation: &mut Confirmation, start: Instant, durable: u64, asked_s: u64, now_s: u64) -> u64 {
        let time = |seconds| start + Duration::from_secs(seconds);
        confirmation.answered(Some(Lsn::new(durable)), time(asked_s), time(now_s));
        confirmation.confirmed().map_or(0, Lsn::as_u64)
    }

    #[test]
    fn a_position_waits_for_an_answer_to_what_was_asked_a_delay_later() {
        let (mut confirmation, start) = (Confirmation::new(DELAY), Instant::now());
        assert_eq!(at(&mut confirmation, start, 10, 0, 5), 0);
        // Answered long after, and asked too early.
        assert_eq!(at(&mut confirmation, start, 10, 36, 500), 0);
        assert_eq!(at(&mut confirmation, start, 10, 37, 37), 10);
    }

    #[test]
    fn few_positions_are_kept_and_the_last_is_confirmed_in_the_end() {
        let (mut confirmation, start) = (Confirmation::new(DELAY), Instant::now());
        for second in 0..200 {
            for lsn in 1..=9 {
                let confirmed = at(&mut confirmation, start, second * 10 + lsn, second, second);
                assert!(confirmed <= second.saturating_sub(DELAY.as_secs()) * 10 + 9, "{confirmed} at {second}");
            }
            assert!(confirmation.waiting.len() <= STEPS as usize + 1);
        }
        assert_eq!(at(&mut confirmation, start, 1_999, 210, 210), 1_781);
        assert_eq!(at(&mut confirmation, start, 1_999, 300, 300), 1_999);
    }

    #[test]
    fn without_a_delay_nothing_waits() {
        let (mut confirmation, start) = (Confirmation::new(Duration::ZERO), Instant::now());
        assert_eq!(at(&mut confirmation, start, 10, 0, 5), 10);
    }
}
