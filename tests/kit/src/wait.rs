//! Waiting for something to become true: a closure in, its value or an error that names what never came out.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Short enough not to be seen in a test's time.
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(20);
/// Most attempts open a connection, and every one of those starts a process of the server: what takes seconds is polled
/// less often, which leaves the cores to what is waited for.
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(150);

/// Polls `attempt`, as in `|| async { Ok(Some(1)) }`, until it returns `Some`. Errors of an attempt are not final: the last one is part of the error after
/// `deadline`. An attempt that hangs is cut off at the deadline too.
pub async fn wait_for<T, F: Future<Output = Result<Option<T>>>>(
    what: &str,
    deadline: Duration,
    mut attempt: impl FnMut() -> F,
) -> Result<T> {
    let start = Instant::now();
    let mut last_error = None;
    let mut interval = POLL_INTERVAL_MIN;
    loop {
        let left = deadline.saturating_sub(start.elapsed());
        match tokio::time::timeout(left, attempt()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => last_error = None,
            Ok(Err(error)) => last_error = Some(error),
            Err(_) => last_error = last_error.or_else(|| Some(anyhow!("the last attempt was still running"))),
        }
        if start.elapsed() >= deadline {
            let waited = format!("waited {deadline:?} for {what}");
            return Err(match last_error {
                Some(error) => error.context(waited),
                None => anyhow!(waited),
            });
        }
        tokio::time::sleep(interval).await;
        interval = (interval + interval / 4).min(POLL_INTERVAL_MAX);
    }
}
