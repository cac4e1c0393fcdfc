//! How long to leave the socket alone between two drains.
//!
//! The walsender sends every row by itself. A reader that wakes for each makes the source pay a whole trip through its
//! network stack per row, 2.7 times what the row is worth. Rows coalesce in the source's kernel only while the receive
//! window is closed. So a reader of a fast stream lets the window fill: it drains, pauses, drains, and adapts the pause
//! so that a drain brings a few windows' worth. No fixed pause serves: each is right for one rate only.
//!
//! A slow stream must not pay for that with latency, so pausing starts and ends with the rate:
//!
//! ```text
//!              rate over a probe ≥ PACED_BYTES_PER_S
//!   Immediate ─────────────────────────────────────► Paced { pause }    drain < 4 windows: pause × 1.25
//!       ▲                                               │               drain > 8 windows: pause × 0.8
//!       └───────────────────────────────────────────────┘
//!              rate over a cycle < IMMEDIATE_BYTES_PER_S
//! ```

use std::time::Duration;

/// From this rate on, coalescing is worth a pause: about what 40,000 narrow rows a second make.
const PACED_BYTES_PER_S: f64 = 8e6;
/// Well below the rate above, so that the two states do not alternate.
const IMMEDIATE_BYTES_PER_S: f64 = 2e6;
/// The rate of an unpaced stream is judged over this time at least; single drains say nothing.
const PROBE: Duration = Duration::from_millis(1);
/// Cycles in a row below the lower rate before pausing ends: a checkpoint on the source is not the end of a load.
const SLOW_CYCLES: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_micros(100);

/// What to do until the next drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Until there is input.
    ForInput,
    /// This long, input or not.
    Pause(Duration),
}

#[derive(Clone, Copy, Debug)]
enum State {
    Immediate { bytes: usize, elapsed: Duration },
    Paced { pause: Duration, slow_cycles: u32 },
}

#[derive(Debug)]
pub(super) struct Pacer {
    window_bytes: usize,
    pause_max: Duration,
    state: State,
}

const PROBING: State = State::Immediate { bytes: 0, elapsed: Duration::ZERO };

impl Pacer {
    /// `window_bytes` is the size of the receive buffer, `pause_max` bounds what pausing adds to latency.
    pub fn new(window_bytes: usize, pause_max: Duration) -> Pacer {
        Pacer { window_bytes, pause_max, state: PROBING }
    }

    /// A drain has emptied the socket: it brought `bytes`, and the drain before ended `elapsed` ago.
    pub fn after_drain(&mut self, bytes: usize, elapsed: Duration) -> Wait {
        self.state = match self.state {
            State::Immediate { bytes: before, elapsed: since } => {
                let (bytes, elapsed) = (before + bytes, since + elapsed);
                if elapsed < PROBE {
                    State::Immediate { bytes, elapsed }
                } else if rate(bytes, elapsed) >= PACED_BYTES_PER_S {
                    State::Paced { pause: PAUSE_MIN.min(self.pause_max), slow_cycles: 0 }
                } else {
                    PROBING
                }
            }
            State::Paced { pause, slow_cycles } => {
                let slow = rate(bytes, elapsed) < IMMEDIATE_BYTES_PER_S;
                let slow_cycles = if slow { slow_cycles + 1 } else { 0 };
                if slow_cycles >= SLOW_CYCLES {
                    PROBING
                } else {
                    State::Paced { pause: self.adapt(pause, bytes), slow_cycles }
                }
            }
        };
        match self.state {
            State::Immediate { .. } => Wait::ForInput,
            State::Paced { pause, .. } => Wait::Pause(pause),
        }
    }

    fn adapt(&self, pause: Duration, bytes: usize) -> Duration {
        if bytes < 4 * self.window_bytes {
            pause.mul_f64(1.25).min(self.pause_max)
        } else if bytes > 8 * self.window_bytes {
            pause.mul_f64(0.8).max(PAUSE_MIN)
        } else {
            pause
        }
    }
}

fn rate(bytes: usize, elapsed: Duration) -> f64 {
    bytes as f64 / elapsed.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: usize = 64 * 1024;
    const PAUSE_MAX: Duration = Duration::from_millis(8);

    #[test]
    fn a_slow_stream_never_pauses() {
        let mut pacer = Pacer::new(WINDOW, PAUSE_MAX);
        for _ in 0..1000 {
            assert_eq!(pacer.after_drain(300, Duration::from_millis(1)), Wait::ForInput);
        }
    }

    #[test]
    fn a_fast_stream_that_comes_row_by_row_is_found_out_and_paused_until_drains_are_large() {
        let mut pacer = Pacer::new(WINDOW, PAUSE_MAX);
        // 160,000 rows of 150 bytes a second, each read by itself.
        let first_pause = (0..1000)
            .map(|_| pacer.after_drain(150, Duration::from_micros(6)))
            .find(|wait| matches!(wait, Wait::Pause(_)));
        assert!(first_pause.is_some());
        let mut pause = Duration::ZERO;
        for _ in 0..100 {
            let bytes = (24e6 * pause.as_secs_f64()) as usize + 10_000;
            let Wait::Pause(next) = pacer.after_drain(bytes.min(WINDOW), pause + Duration::from_micros(100)) else {
                panic!("a fast stream stays paused")
            };
            assert!(next <= PAUSE_MAX);
            pause = next;
        }
        assert_eq!(pause, PAUSE_MAX);
    }

    #[test]
    fn large_drains_shorten_the_pause_and_silence_ends_it() {
        let mut pacer = Pacer::new(WINDOW, PAUSE_MAX);
        assert_eq!(pacer.after_drain(WINDOW, PROBE), Wait::Pause(PAUSE_MIN));
        let Wait::Pause(grown) = pacer.after_drain(WINDOW, PROBE) else { panic!("paced") };
        assert!(grown > PAUSE_MIN);
        assert_eq!(pacer.after_drain(5 * WINDOW, PROBE), Wait::Pause(grown));
        let Wait::Pause(shrunk) = pacer.after_drain(9 * WINDOW, PROBE) else { panic!("paced") };
        assert!(shrunk < grown);
        let waits: Vec<_> = (0..SLOW_CYCLES).map(|_| pacer.after_drain(0, PAUSE_MAX)).collect();
        assert_eq!(waits.last(), Some(&Wait::ForInput));
    }
}
