//! What a person can do about a change that the target does not take.

use super::{Disposition, Error, Stage};

/// `None` where the message says so itself, or nothing can be said.
pub(super) fn of(error: &Error) -> Option<String> {
    let lsn = error.0.lsn?;
    let is_halted = error.disposition() == Disposition::Halt;
    if error.0.stage != Stage::Apply || !error.is_of_the_data() || !is_halted {
        return None;
    }
    let policy = match policy(error) {
        Some(key) => format!("; or set {key} for the table in the configuration"),
        None => String::new(),
    };
    Some(format!(
        "see to the row on the target and start again: nothing is lost meanwhile{policy}; or leave out the whole transaction: \
         `pgsluice skip --lsn {lsn}`"
    ))
}

/// The key of the configuration that has an answer to this.
fn policy(error: &Error) -> Option<&'static str> {
    if error.is_duplicate() {
        Some("on_duplicate or on_error")
    } else if error.is_missing_row() {
        Some("on_missing_row or on_error")
    } else if error.is_of_a_row() {
        Some("on_error")
    } else {
        None
    }
}
