//! What follows from an error: each [`Kind`] stands here once.

use super::{EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE, Kind, ServerError};
use crate::config::Role;

/// What the supervisor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It can pass by itself: build everything anew from the progress on the target.
    Retry,
    /// It passes once somebody has done something about a server, however long that takes: the same, for as long.
    Wait,
    /// A person has to look.
    Halt,
}

/// What an error is due to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// One row, which the target does not take or does not have.
    Row,
    /// What was to be written, and how.
    Data,
    /// The servers, the configuration, or who writes.
    Other,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Verdict {
    pub disposition: Disposition,
    pub exit_code: u8,
    pub cause: Cause,
}

const HALT: Verdict = Verdict { disposition: Disposition::Halt, exit_code: EXIT_FAILED, cause: Cause::Other };
const RETRY: Verdict = Verdict { disposition: Disposition::Retry, ..HALT };
const WAIT: Verdict = Verdict { disposition: Disposition::Wait, ..HALT };
const USAGE: Verdict = Verdict { exit_code: EXIT_USAGE, ..HALT };
const REFUSED: Verdict = Verdict { exit_code: EXIT_REFUSED, ..HALT };

pub(super) fn of(kind: &Kind) -> Verdict {
    match kind {
        Kind::Config(_) | Kind::Usage(_) => USAGE,
        Kind::Refused { .. } | Kind::SkipMissed { .. } | Kind::Fenced { .. } => REFUSED,
        Kind::Unreachable { .. }
        | Kind::Lost { .. }
        | Kind::FormatOutdated { .. }
        | Kind::Rewritten
        | Kind::TablesToCopy(_)
        | Kind::TablesReplaced { .. }
        | Kind::DeferredDue
        | Kind::SkipsChanged
        | Kind::TargetWentBack
        | Kind::ProgressElsewhere { .. }
        | Kind::SpoolOutgrown { .. }
        | Kind::EarlyGivenUp
        | Kind::TrailBehind { .. }
        | Kind::Behind { .. } => RETRY,
        // The client library is out of step after a COPY that the target refuses to start; a new session is not, and meets the refusal
        // by another statement.
        Kind::Protocol { role: Role::Target, .. } => RETRY,
        Kind::Spool { .. } | Kind::Trail { .. } => WAIT,
        Kind::Mismatch { .. } | Kind::LacksColumns(_) => Verdict { cause: Cause::Data, ..WAIT },
        Kind::RowCount { rows: 0, .. } | Kind::RowNotWhole { .. } => Verdict { cause: Cause::Row, ..HALT },
        Kind::RowCount { .. }
        | Kind::SetCount { .. }
        | Kind::CopyCount { .. }
        | Kind::Suppressed { .. }
        | Kind::KeyNotSent { .. } => Verdict { cause: Cause::Data, ..HALT },
        Kind::Server { role, error } => server(*role, error),
        Kind::Deferred { last, .. } => Verdict { cause: Cause::Other, ..of(last.kind()) },
        Kind::Authentication { .. }
        | Kind::Statement { .. }
        | Kind::Program { .. }
        | Kind::Decode(_)
        | Kind::Protocol { role: Role::Source | Role::Primary, .. }
        | Kind::TrailDamaged { .. }
        | Kind::Row { .. }
        | Kind::TimedOut { .. }
        | Kind::GaveUp { .. }
        | Kind::Incomplete(_)
        | Kind::Interrupted
        | Kind::Stopped { .. }
        | Kind::Output(_)
        | Kind::Panicked => HALT,
    }
}

/// Which server errors pass by themselves, and which are about what was to be written ("PostgreSQL Error Codes").
fn server(role: Role, error: &ServerError) -> Verdict {
    match (error.class(), error.code.as_str()) {
        // A full disk.
        (_, "53100") => WAIT,
        // Connection exceptions; insufficient resources; the server shuts down, has crashed,
        // or starts; somebody cancelled us; errors of its file system.
        ("08" | "53" | "57" | "58", _)
        // Serialization failure, deadlock, lock not available, object in use, and a target that is read-only because
        // it is just failing over.
        | (_, "40001" | "40P01" | "55P03" | "55006" | "25006") => RETRY,
        _ if role != Role::Target => HALT,
        // Somebody has changed the target's tables, or taken rights on them: column, table, schema, type, operator or
        // unique index gone, another kind of relation or column.
        (_, "42703" | "42P01" | "3F000" | "42704" | "42883" | "42P10" | "42804" | "42846" | "42809" | "428C9" | "42501")
            if !error.is_in_function() =>
        {
            Verdict { cause: Cause::Data, ..WAIT }
        }
        // Data exceptions, and violations of constraints.
        ("22" | "23", _) => Verdict { cause: Cause::Row, ..HALT },
        _ => Verdict { cause: Cause::Data, ..HALT },
    }
}
