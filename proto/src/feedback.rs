//! When to tell the walsender what, as a state machine without clock or socket.
//!
//! In: what was received, what is durable on the target, keepalives, and the time since some fixed moment. Out: at most
//! one [`StandbyStatusUpdate`] a call, and when to call again.
//!
//! **Always holds:**
//! - `flush_lsn` is only ever what [`Feedback::set_flushed`] was told, so no keepalive moves it past unapplied work.
//! - Neither position ever goes back, and `write_lsn` is never behind `flush_lsn`.
//! - A requested reply is due at once, and silence never lasts longer than the status interval.

use std::time::Duration;

use crate::frame::{PrimaryKeepalive, StandbyStatusUpdate};
use crate::{Lsn, PgTimestamp};

#[derive(Debug)]
pub struct Feedback {
    received: Lsn,
    flushed: Lsn,
    status_interval: Duration,
    last_status_at: Duration,
    next_status_at: Duration,
    /// A keepalive asked.
    due: bool,
}

/// When the durable position moves, the walsender hears of it within this part of the status interval: soon enough that
/// the source can let go of WAL, seldom enough that a busy stream is not full of updates.
const ADVANCE_FRACTION: u32 = 10;

impl Feedback {
    /// A stream that starts at `start_lsn`, all before it durable. `now` counts from any fixed moment.
    pub fn new(start_lsn: Lsn, status_interval: Duration, now: Duration) -> Feedback {
        Feedback {
            received: start_lsn,
            flushed: start_lsn,
            status_interval,
            last_status_at: now,
            next_status_at: now + status_interval,
            due: false,
        }
    }

    /// What lies before the start is not known to be durable: nothing is confirmed until [`Feedback::set_flushed`] says what is. A
    /// walsender takes no notice of such a position (`ProcessStandbyReplyMessage`).
    pub fn confirm_nothing_yet(&mut self) {
        self.flushed = Lsn::INVALID;
    }

    pub fn received(&self) -> Lsn {
        self.received
    }

    pub fn flushed(&self) -> Lsn {
        self.flushed
    }

    pub fn handle_received(&mut self, lsn: Lsn) {
        self.received = self.received.max(lsn);
    }

    pub fn handle_keepalive(&mut self, keepalive: &PrimaryKeepalive) {
        self.handle_received(keepalive.wal_end);
        self.due |= keepalive.reply_requested;
    }

    /// All before `lsn` is durable on the target: committed there, and flushed.
    pub fn set_flushed(&mut self, lsn: Lsn) {
        if lsn > self.flushed {
            let soon = self.last_status_at + self.status_interval / ADVANCE_FRACTION;
            self.next_status_at = self.next_status_at.min(soon);
        }
        self.flushed = self.flushed.max(lsn);
        self.received = self.received.max(lsn);
    }

    /// Sends at the next poll, whatever the timer says.
    pub fn send_now(&mut self) {
        self.due = true;
    }

    /// The latest moment at which to poll again.
    pub fn poll_timeout(&self) -> Duration {
        if self.due { Duration::ZERO } else { self.next_status_at }
    }

    /// The update to send at `now`, if one is due; `clock` is the wall clock, which the server only reports.
    pub fn poll_transmit(&mut self, now: Duration, clock: PgTimestamp) -> Option<StandbyStatusUpdate> {
        if !self.due && now < self.next_status_at {
            return None;
        }
        self.due = false;
        self.last_status_at = now;
        self.next_status_at = now + self.status_interval;
        debug_assert!(self.flushed <= self.received);
        Some(StandbyStatusUpdate {
            write_lsn: self.received,
            flush_lsn: self.flushed,
            apply_lsn: self.flushed,
            sent_at: clock,
            reply_requested: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLOCK: PgTimestamp = PgTimestamp::from_micros(0);

    fn keepalive(wal_end: u64, reply_requested: bool) -> PrimaryKeepalive {
        PrimaryKeepalive { wal_end: Lsn::new(wal_end), sent_at: CLOCK, reply_requested }
    }

    #[test]
    fn a_keepalive_moves_write_and_never_flush() {
        let mut feedback = Feedback::new(Lsn::new(10), Duration::from_secs(10), Duration::ZERO);
        feedback.handle_keepalive(&keepalive(50, true));
        assert_eq!(feedback.poll_timeout(), Duration::ZERO);
        let update = feedback.poll_transmit(Duration::ZERO, CLOCK).unwrap();
        assert_eq!((update.write_lsn, update.flush_lsn, update.apply_lsn), (Lsn::new(50), Lsn::new(10), Lsn::new(10)));
        assert_eq!(feedback.poll_transmit(Duration::ZERO, CLOCK), None);
    }

    #[test]
    fn silence_lasts_one_interval() {
        let mut feedback = Feedback::new(Lsn::new(10), Duration::from_secs(10), Duration::ZERO);
        feedback.handle_keepalive(&keepalive(50, false));
        assert_eq!(feedback.poll_transmit(Duration::from_secs(9), CLOCK), None);
        assert_eq!(feedback.poll_timeout(), Duration::from_secs(10));
        assert!(feedback.poll_transmit(Duration::from_secs(10), CLOCK).is_some());
        assert_eq!(feedback.poll_timeout(), Duration::from_secs(20));
    }

    #[test]
    fn a_durable_position_that_moves_is_told_soon() {
        let mut feedback = Feedback::new(Lsn::new(10), Duration::from_secs(10), Duration::ZERO);
        feedback.set_flushed(Lsn::new(20));
        assert_eq!(feedback.poll_timeout(), Duration::from_secs(1));
        let update = feedback.poll_transmit(Duration::from_secs(1), CLOCK).unwrap();
        assert_eq!(update.flush_lsn, Lsn::new(20));
        feedback.set_flushed(Lsn::new(20));
        assert_eq!(feedback.poll_timeout(), Duration::from_secs(11));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Received(u64),
        Keepalive(u64, bool),
        Flushed(u64),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..1000_u64).prop_map(Step::Received),
            (0..1000_u64, any::<bool>()).prop_map(|(lsn, reply)| Step::Keepalive(lsn, reply)),
            (0..1000_u64).prop_map(Step::Flushed),
            (0..5_000_u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn positions_only_grow_and_flush_is_only_what_was_told(steps in prop::collection::vec(step(), 0..200)) {
            let interval = Duration::from_secs(10);
            let mut feedback = Feedback::new(Lsn::new(1), interval, Duration::ZERO);
            let (mut now, mut told, mut asked) = (Duration::ZERO, Lsn::new(1), false);
            let (mut last, mut last_at) = ((Lsn::new(1), Lsn::new(1)), Duration::ZERO);
            for step in steps {
                match step {
                    Step::Received(lsn) => feedback.handle_received(Lsn::new(lsn)),
                    Step::Keepalive(lsn, reply) => {
                        feedback.handle_keepalive(&keepalive(lsn, reply));
                        asked |= reply;
                    }
                    Step::Flushed(lsn) => {
                        feedback.set_flushed(Lsn::new(lsn));
                        told = told.max(Lsn::new(lsn));
                    }
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                }
                match feedback.poll_transmit(now, CLOCK) {
                    Some(update) => {
                        prop_assert_eq!(update.flush_lsn, told);
                        prop_assert!(update.write_lsn >= last.0 && update.write_lsn >= update.flush_lsn);
                        last = (update.write_lsn, update.flush_lsn);
                        (last_at, asked) = (now, false);
                    }
                    None => prop_assert!(!asked && now < last_at + interval),
                }
            }
        }
    }
}
