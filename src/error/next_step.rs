//! What a person can do about what the target does not take.

use super::{Disposition, Error, Kind, ServerError, Stage};
use crate::config::Role;

/// `None` where the message says so itself, or nothing can be said.
pub(super) fn of(error: &Error) -> Option<String> {
    let of_target = if let Kind::Server { role: Role::Target, error } = &error.0.kind { Some(error) } else { None };
    if error.0.hint.is_none() && error.disposition() == Disposition::Wait {
        return of_target.and_then(to_wait_for);
    }
    let hint = || error.0.hint.clone().or_else(|| of_target.and_then(of_row));
    match (error.0.stage, error.0.lsn) {
        (Stage::Apply, Some(lsn)) if error.is_of_the_data() && error.disposition() == Disposition::Halt => {
            let first = first_step(error, hint());
            Some(format!("{first}; or leave out the whole transaction: `pgsluice skip --lsn {lsn}`"))
        }
        (Stage::Snapshot, _) if error.is_of_the_data() => {
            hint().map(|hint| format!("{hint}; then start again: what is copied stays"))
        }
        _ => error.0.hint.clone(),
    }
}

/// What to do about a change that the target does not take, before the stream can go on.
fn first_step(error: &Error, hint: Option<String>) -> String {
    match error.kind() {
        Kind::Suppressed { .. } => {
            return "have it let the change pass, or drop it, and start again: nothing is lost meanwhile".to_owned();
        }
        Kind::KeyNotSent { .. } => {
            let table = error.0.relation.as_deref().unwrap_or("…");
            return format!(
                "on the primary, give every partition the replica identity of the table; then `pgsluice resync` for {table} and \
                 start again, which copies the table as it is"
            );
        }
        _ => {}
    }
    let first = match hint {
        Some(hint) => format!("{hint}; then start again: nothing is lost meanwhile"),
        None => "see to the row on the target and start again: nothing is lost meanwhile".to_owned(),
    };
    match policy(error) {
        Some(key) => format!("{first}; or set {key} for the table in the configuration"),
        None => first,
    }
}

/// What has to be done on the target before the stream goes on.
fn to_wait_for(error: &ServerError) -> Option<String> {
    let step = match error.code.as_str() {
        "53100" => "make room on the disk of the target",
        "42501" => {
            "grant the role of [target] SELECT, INSERT, UPDATE, DELETE and TRUNCATE on the table, and USAGE on its schema"
        }
        "42P10" => "give the target's table a unique index on the columns of the key, which ON CONFLICT needs",
        "42703" | "42P01" | "3F000" | "42704" => {
            "on the target: make again, or rename back, what is missing; it has to be as on the source"
        }
        _ => "have the target's table be as on the source",
    };
    Some(format!("{step}; nothing is lost meanwhile, and the stream goes on by itself"))
}

/// About a row that the target does not take.
fn of_row(error: &ServerError) -> Option<String> {
    if error.is_in_function() {
        let function = error.shown_function().map_or(String::new(), |name| format!(" \"{name}\""));
        return Some(format!("see to the function{function} of the target, such as a trigger's, that refuses the row"));
    }
    let step = match (error.class(), error.code.as_str()) {
        (_, "23505" | "23P01") => "see to the row on the target that has these values already",
        (_, "23503") => {
            "see to the row on the target: the one that it refers to is missing there, or is referred to still"
        }
        (_, "23502" | "23514" | "23001") => {
            "see to the row on the target's terms: change the constraint there, or the row on the source"
        }
        (_, "22021" | "22P05") => {
            "the encodings of the databases differ: have the target's database in UTF8, or the value changed on the source"
        }
        ("22", _) => {
            "have the column of the target take what that of the source does: ALTER TABLE … ALTER COLUMN … TYPE …"
        }
        (_, "54000") => "drop the index of the target, or have it over a shorter expression",
        ("42" | "0A", _) => "have the target's table be as on the source",
        _ => return None,
    };
    Some(step.to_owned())
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
