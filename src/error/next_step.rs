//! What a person can do about a change that the target does not take.

use super::{Disposition, Error, Kind, Stage};

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
    let step = match error.kind() {
        Kind::Suppressed { .. } => {
            "have it let the change pass, or drop it, and start again: nothing is lost meanwhile".to_owned()
        }
        Kind::KeyNotSent { .. } => {
            let table = error.0.relation.as_deref().unwrap_or("…");
            format!(
                "on the primary, give every partition the replica identity of the table; then `pgsluice resync` for {table} and \
                 start again, which copies the table as it is"
            )
        }
        _ => format!("see to the row on the target and start again: nothing is lost meanwhile{policy}"),
    };
    Some(format!(
        "{step}; or leave out the whole transaction: \
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
