//! Decides how long to wait after an error, and when it is enough.
//!
//! ```text
//!  Halt ──► ends the run                       Retry ──► a pause, for as long as `retry_limit`
//!  Wait ──► a pause, however often, in a run that has no end of its own; in another it ends the run
//! ```
//!
//! Before the first session a run with an end of its own ends at its first error, since somebody waits for it and has perhaps named the
//! wrong server. A run without an end is one that a supervisor starts, also after an outage in which servers come up one after the other:
//! it tries again from its start, so that the supervisor's limit of starts is not used up within seconds.

use std::time::{Duration, Instant};

use crate::error::{Disposition, Error, Kind};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long a slot may be in use by another walsender before that is an error: longer than the default
/// `wal_sender_timeout`, after which the walsender of a client that is gone ends.
const SLOT_WAIT_MAX: Duration = Duration::from_secs(90);
/// What is waited for is said again this often.
const REMINDER_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Retry {
    limit: Duration,
    /// Nobody waits for the end of the run.
    serves: bool,
    /// A session was opened once: the configuration is right, and what fails now may pass.
    opened: bool,
    failing_since: Option<Instant>,
    backoff: Duration,
    /// What somebody has to mend, and when that was said.
    said: Option<(String, Instant)>,
}

impl Retry {
    pub fn new(limit: Duration, serves: bool) -> Retry {
        Retry { limit, serves, opened: false, failing_since: None, backoff: BACKOFF_MIN, said: None }
    }

    pub fn session_opened(&mut self) {
        self.opened = true;
    }

    pub fn succeeded(&mut self) {
        self.failing_since = None;
        self.backoff = BACKOFF_MIN;
    }

    /// The pause before the next try, or the error where there is to be none.
    pub fn after(&mut self, error: Error) -> Result<Duration, Error> {
        let limit = match (error.disposition(), self.opened) {
            (Disposition::Halt, _) => return Err(error),
            (Disposition::Wait, true) if self.serves => return Ok(self.wait(&error)),
            // A full disk of a server, and not what the configuration names on this machine.
            (Disposition::Wait, false) if self.serves && error.is_of_a_server() => return Ok(self.wait(&error)),
            (Disposition::Wait, _) => return Err(error),
            (Disposition::Retry, true) => self.limit,
            (Disposition::Retry, false) if self.serves => self.limit,
            (Disposition::Retry, false) if error.is_passing() => SLOT_WAIT_MAX.min(self.limit),
            (Disposition::Retry, false) => return Err(error),
        };
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if since.elapsed() > limit {
            let after = humantime::format_duration(Duration::from_secs(since.elapsed().as_secs())).to_string();
            return Err(Error::new(error.stage(), Kind::GaveUp { after, last: error }));
        }
        let pause = self.next_pause();
        if self.opened {
            tracing::warn!(%error, retry_in = ?pause, "session ended; it will be built anew");
        } else {
            tracing::warn!(%error, retry_in = ?pause, "no session can be opened yet; trying again");
        }
        Ok(pause)
    }

    fn wait(&mut self, error: &Error) -> Duration {
        self.failing_since = None;
        let text = error.to_string();
        if self.said.as_ref().is_none_or(|(said, at)| *said != text || at.elapsed() >= REMINDER_INTERVAL) {
            tracing::error!(%error, "waiting for this to be mended; then the stream goes on by itself");
            self.said = Some((text, Instant::now()));
        }
        self.next_pause()
    }

    fn next_pause(&mut self) -> Duration {
        let pause = self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        pause
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::config::Role;
    use crate::error::Stage;

    fn unreachable() -> Error {
        let source = io::ErrorKind::ConnectionRefused.into();
        Error::new(Stage::Apply, Kind::Unreachable { role: Role::Target, address: "c:5432".to_owned(), source })
    }

    #[test]
    fn a_run_that_serves_tries_again_from_its_start_and_another_ends() {
        let mut serves = Retry::new(Duration::from_secs(60), true);
        assert_eq!(serves.after(unreachable()).unwrap(), BACKOFF_MIN);
        assert_eq!(serves.after(unreachable()).unwrap(), BACKOFF_MIN * 2);
        assert!(Retry::new(Duration::from_secs(60), false).after(unreachable()).is_err());
        let refused = Error::refused(Stage::Apply, "no progress row", "run `pgsluice setup`");
        assert!(serves.after(refused).is_err());
        let mut impatient = Retry::new(Duration::ZERO, true);
        impatient.failing_since = Instant::now().checked_sub(Duration::from_secs(1));
        assert!(matches!(impatient.after(unreachable()).unwrap_err().kind(), Kind::GaveUp { .. }));
    }
}
