//! Warnings that every session would repeat: each is said once, and again only after a long time.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An engine that waits opens a session every few seconds, and each finds the same.
const REMINDER_INTERVAL: Duration = Duration::from_secs(3600);
/// Beyond it what was said is forgotten, and said again.
const TEXTS_MAX: usize = 10_000;

static SAID: LazyLock<Mutex<HashMap<String, Instant>>> = LazyLock::new(Mutex::default);

pub(super) fn warn_sparsely(text: String) {
    if is_due(&text, Instant::now()) {
        tracing::warn!("{text}");
    }
}

fn is_due(text: &str, now: Instant) -> bool {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.get(text).is_some_and(|at| now.duration_since(*at) < REMINDER_INTERVAL) {
        return false;
    }
    if said.len() >= TEXTS_MAX {
        said.clear();
    }
    said.insert(text.to_owned(), now);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_again_after_long() {
        let now = Instant::now();
        assert!(is_due("a test of what is said", now) && !is_due("a test of what is said", now));
        assert!(is_due("a test of what is said", now + REMINDER_INTERVAL));
    }
}
