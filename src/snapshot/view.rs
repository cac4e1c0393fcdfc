//! How far a copy is, at one moment.

use std::time::Duration;

/// All figures of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    pub tables: Vec<TableView>,
    pub tables_done: usize,
    pub chunks_done: usize,
    pub rows: u64,
    /// As they were sent.
    pub bytes: u64,
    /// Of the source's files.
    pub position: u64,
    pub source_bytes: u64,
    pub elapsed: Duration,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TableView {
    pub name: String,
    pub is_under_way: bool,
    pub rows: u64,
    pub position: u64,
    pub source_bytes: u64,
    /// Since its first chunk.
    pub elapsed: Duration,
}

/// If it goes on as it went so far.
pub(super) fn time_left(position: u64, source_bytes: u64, elapsed: Duration) -> String {
    let left = source_bytes.saturating_sub(position) as f64;
    match elapsed.as_secs_f64() * left / position as f64 {
        seconds if seconds.is_finite() => humantime::format_duration(Duration::from_secs(seconds as u64)).to_string(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_what_the_rest_takes() {
        assert_eq!(time_left(25, 100, Duration::from_secs(30)), "1m 30s");
        assert_eq!(time_left(0, 100, Duration::from_secs(30)), "unknown");
    }
}
