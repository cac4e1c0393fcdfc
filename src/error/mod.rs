//! What can go wrong, and what is to be done about it: one type, one decision.
//!
//! Stages return errors and say nothing more about them. The supervisor asks [`Error::disposition`], logs once, and
//! `main` asks [`Error::exit_code`].
//!
//! **Always holds:** the text of an error shows no value of a row, unless [`Error::shown`] was told to show them.

mod client;
mod context;
mod next_step;
mod row_key;
mod server;
mod sqlstate;
mod template;
mod verdict;
mod written;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::PathBuf;

use pgsluice_proto::{DecodeError, Lsn, Oid};

pub use self::row_key::RowKey;
use self::server::Carries;
pub use self::server::{Named, ServerError};
pub use self::template::NameKind;
use self::verdict::Cause;
pub use self::verdict::Disposition;
pub use self::written::{Written, WrittenValue};
use crate::config::{ConfigError, LogConfig, Role};
use crate::source::publication::TableName;

/// Where it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Config,
    Setup,
    Schema,
    Snapshot,
    Source,
    Decode,
    Transform,
    Apply,
    Checkpoint,
    Status,
    Bench,
    Trail,
}

/// Done; failed while working; usage or configuration; refused by a check or a guardrail.
pub const EXIT_DONE: u8 = 0;
pub const EXIT_FAILED: u8 = 1;
pub const EXIT_USAGE: u8 = 2;
pub const EXIT_REFUSED: u8 = 3;

pub struct Error(Box<Inner>);

struct Inner {
    stage: Stage,
    lsn: Option<Lsn>,
    relation: Option<String>,
    row: Option<RowKey>,
    /// What to do about it, where more is known than its kind tells.
    hint: Option<String>,
    /// What a statement that failed was to write.
    written: Option<Box<Written>>,
    kind: Kind,
}

#[derive(Debug, thiserror::Error)]
pub enum Kind {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Usage(String),
    /// A precondition does not hold. Nothing was changed.
    #[error("{what}\n  to mend it: {mend}")]
    Refused { what: String, mend: String },
    #[error("cannot reach the {role} at {address}: {source}; is the server running, and is the address right?")]
    Unreachable { role: Role, address: String, source: io::Error },
    #[error("the connection to the {role} was lost: {source}")]
    Lost { role: Role, source: io::Error },
    #[error("the {role} refused our authentication: {why}")]
    Authentication { role: Role, why: String },
    #[error("the {role} reports: {error}")]
    Server { role: Role, error: ServerError },
    /// The target does not take a definition.
    #[error("the target refuses {object}: {error}")]
    Statement { object: String, error: ServerError },
    /// A program of PostgreSQL's has failed.
    #[error("{program} has failed: {what}")]
    Program { program: String, what: String },
    #[error("{0}")]
    Decode(#[from] DecodeError),
    #[error("the {role} broke the protocol: {what}")]
    Protocol { role: Role, what: String },
    /// Another engine has taken over.
    #[error("fenced: the progress row is at epoch {theirs}, ours is {mine}: another pgsluice has taken over")]
    Fenced { mine: i64, theirs: i64 },
    /// The target has lost what it had committed: it has failed over to a replica that had less, or was restored.
    #[error(
        "the target has gone back to before the session began: it has failed over to a replica that had less, or was restored"
    )]
    TargetWentBack,
    /// Somebody else has moved progress, or a commit that was answered is not there.
    #[error("progress on the target is at {found}, and this session has left it at {expected}")]
    ProgressElsewhere { expected: Lsn, found: Lsn },
    /// The target does not hold what the change starts from.
    #[error("{operation} hit {rows} rows where it must hit exactly 1: the target has changed by other hands")]
    RowCount { operation: &'static str, rows: u64 },
    /// The same for many rows at once; applied one by one they will name the row's transaction.
    #[error("{operation} of {asked} rows hit {hit}: the target has changed by other hands")]
    SetCount { operation: &'static str, hit: u64, asked: u64 },
    /// Rows of a chunk were lost between the source and the target's table. Nothing of the chunk is committed.
    #[error(
        "a copy sent {sent} rows, and the target took {taken} of them: {why}\n  to mend it: {mend}; then run again: the copy goes on \
         where it was"
    )]
    CopyCount { sent: u64, taken: u64, why: String, mend: String },
    /// The row is there, or is to be there, and the target does nothing about it.
    #[error("{operation} hit 0 rows, though no row is missing: {} of the target suppresses it", suppressors(by))]
    Suppressed { operation: &'static str, by: Vec<String> },
    /// The source tells an old row by other columns than those that it says are the key.
    #[error(
        "{operation} hit 0 rows: the source sent the old row without column {} of the key, as it does where a partition has another \
         replica identity than the whole table",
        crate::postgres::quote_ident(column)
    )]
    KeyNotSent { operation: &'static str, column: String },
    /// The row of an update is not on the target, and cannot be made there.
    #[error(
        "UPDATE hit 0 rows, and its row cannot be inserted: the value of column {column} is unchanged, and comes with no update \
         that leaves it alone"
    )]
    RowNotWhole { column: String },
    /// The stream and the table on the target do not fit together.
    #[error("{what}\n  to mend it: {mend}")]
    Mismatch { what: String, mend: String },
    /// The target's table lacks columns that the stream brings.
    #[error("{}\n  to mend it: {}", .0.what, .0.mend)]
    LacksColumns(Lacks),
    /// A rule has no answer for a row. Nothing of the row is in it.
    #[error("{what}\n  to mend it: {mend}")]
    Row { what: String, mend: String },
    /// Values come in a format that no longer fits; the next session inspects the types again.
    #[error("column {column} has changed its type to one that must travel as text")]
    FormatOutdated { column: String },
    /// A snapshot no longer sees the rows of a table; the next one does.
    #[error("the table was truncated or rewritten on the primary while it was copied")]
    Rewritten,
    /// These tables, quoted, came into the publication, have left it, or are to be copied again: for the next session.
    #[error("tables that are replicated have changed: {}", .0.join(", "))]
    TablesToCopy(Vec<String>),
    /// The stream describes tables that are not those of which the target has rows, though they have their names.
    #[error("{} on the source are not the tables that the target has rows of: {why}", list(tables))]
    TablesReplaced { tables: Vec<TableName>, why: String },
    /// What was dropped for a copy can be made again, which the next session does.
    #[error("what was dropped for a copy can be made again")]
    DeferredDue,
    /// Somebody has asked for a transaction to be passed over, or has taken that back: the next session knows.
    #[error("the transactions that are to be skipped have changed")]
    SkipsChanged,
    /// The stream has no transaction where one is to be passed over.
    #[error("{what}\n  to mend it: {mend}")]
    SkipMissed { lsn: Lsn, what: String, mend: String },
    /// A standby that crashed replays again what it had replayed before, and shows an older state meanwhile.
    #[error("the source has replayed WAL up to {replayed} only, and the target's progress is {progress}")]
    Behind { replayed: Lsn, progress: Lsn },
    /// Where transactions in progress are kept does not work. A full disk is none of this: it is waited for in the session.
    #[error("the spool in {}: cannot {doing}: {source}", dir.display())]
    Spool { dir: PathBuf, doing: &'static str, source: io::Error },
    /// Where the trail lies does not work. A full disk is waited for by whoever writes.
    #[error("the trail: cannot {doing} {}: {source}", path.display())]
    Trail { path: PathBuf, doing: &'static str, source: io::Error },
    /// What lies in the trail is not what was written there.
    #[error(
        "the trail is damaged: {}, offset {offset}: {what}\n  to mend it: put back the file as it was, if there is a copy; else \
         what follows is lost to the targets that have not passed it: `pgsluice teardown`, `pgsluice setup`, and copy the tables again",
        path.display()
    )]
    TrailDamaged { path: PathBuf, offset: u64, what: &'static str },
    /// The trail has not come as far as the target, or not again.
    #[error("the trail goes up to {end} only, and the target's progress is {progress}")]
    TrailBehind { end: Lsn, progress: Lsn },
    /// Transactions in progress have more subtransactions than can be kept track of; the next session has none streamed.
    #[error(
        "transactions in progress have {subtransactions} subtransactions, too many to be streamed before they commit"
    )]
    SpoolOutgrown { subtransactions: usize },
    /// The next session waits for its commit before it applies anything of it.
    #[error("a large transaction was being applied before its commit, and could not be committed")]
    EarlyGivenUp,
    /// Something that has to happen elsewhere did not happen in time. Nothing half-made was left.
    #[error("{what} did not happen within {limit}\n  to mend it: {mend}")]
    TimedOut { what: String, limit: String, mend: String },
    /// The target is to have an index or constraint again that was dropped for a copy.
    #[error(
        "{object} could not be made again: {last}\n  to mend it: see to the rows, and run again; pgsluice.deferred on the \
         target keeps its definition"
    )]
    Deferred { object: String, last: Error },
    #[error("gave up after {after} of failures in a row; the last one: {last}")]
    GaveUp { after: String, last: Error },
    /// A report in which what matters most is unknown.
    #[error("not all servers could be asked: {0}")]
    Incomplete(String),
    /// A run that was to end at a position was asked to end before.
    #[error("{}\n  to mend it: run again: it goes on from there", stopped(*.stop_lsn, *.reached))]
    Stopped { stop_lsn: Option<Lsn>, reached: Option<Lsn> },
    #[error("interrupted before it was done")]
    Interrupted,
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    #[error("a worker thread panicked; this is a bug in pgsluice")]
    Panicked,
}

fn stopped(stop_lsn: Option<Lsn>, reached: Option<Lsn>) -> String {
    let before = stop_lsn.map_or_else(|| "its end".to_owned(), |lsn| lsn.to_string());
    let so_far = match reached {
        Some(lsn) => format!("the target has what committed up to {lsn}"),
        None => "nothing was streamed, and of a copy the chunks that were done are kept".to_owned(),
    };
    format!("stopped by a signal before {before} was reached: {so_far}")
}

fn list(tables: &[TableName]) -> String {
    tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Columns that a table of the target lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacks {
    pub schema: String,
    pub table: String,
    /// With their types on the source.
    pub columns: Vec<(String, Oid)>,
    /// All columns that the stream brings, in their order.
    pub described: Vec<String>,
    pub what: String,
    pub mend: String,
}

impl Error {
    pub fn new(stage: Stage, mut kind: Kind) -> Error {
        if let Kind::Server { error, .. } | Kind::Statement { error, .. } = &mut kind {
            error.carries = stage.carries();
        }
        Error(Box::new(Inner { stage, lsn: None, relation: None, row: None, hint: None, written: None, kind }))
    }

    pub fn refused(stage: Stage, what: impl Into<String>, mend: impl Into<String>) -> Error {
        Error::new(stage, Kind::Refused { what: what.into(), mend: mend.into() })
    }

    pub fn from_postgres(stage: Stage, role: Role, error: tokio_postgres::Error) -> Error {
        Error::new(stage, Kind::from_postgres(role, error))
    }

    /// The commit LSN of the transaction, or the LSN of the message.
    pub fn at(mut self, lsn: Lsn) -> Error {
        self.0.lsn = Some(lsn);
        self
    }

    pub fn on(mut self, relation: impl Into<String>) -> Error {
        self.0.relation = Some(relation.into());
        self
    }

    /// A refusal as one of what comes next, and not of what is: somebody mends it while everything else stays as it is.
    pub fn to_be_waited_for(mut self) -> Error {
        self.0.kind = match self.0.kind {
            Kind::Refused { what, mend } => Kind::Mismatch { what, mend },
            kind => kind,
        };
        self
    }

    /// The same of another kind, where more is known of it.
    pub fn with_kind(mut self, kind: Kind) -> Error {
        self.0.kind = kind;
        self
    }

    /// The row that the change is about.
    pub fn of(mut self, row: RowKey) -> Error {
        self.0.row = Some(row);
        self
    }

    /// What somebody can do about it, where more is known than its kind tells.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.0.hint = Some(hint.into());
        self
    }

    /// The table, quoted, if it is about one.
    pub fn relation(&self) -> Option<&str> {
        self.0.relation.as_deref()
    }

    /// What a server has said, if that is the error.
    pub fn server(&self) -> Option<&ServerError> {
        if let Kind::Server { error, .. } | Kind::Statement { error, .. } = &self.0.kind { Some(error) } else { None }
    }

    /// What the target has said, for more to be found out about it.
    pub fn of_target(&mut self) -> Option<&mut ServerError> {
        if let Kind::Server { role: Role::Target, error } = &mut self.0.kind { Some(error) } else { None }
    }

    /// What the statement that failed was to write.
    pub fn having_written(mut self, written: Written) -> Error {
        self.0.written = Some(Box::new(written));
        self
    }

    /// Takes it out, for the target to be asked about it.
    pub fn take_written(&mut self) -> Option<Written> {
        self.0.written.take().map(|written| *written)
    }

    pub fn row(&self) -> Option<&RowKey> {
        self.0.row.as_ref()
    }

    pub fn kind(&self) -> &Kind {
        &self.0.kind
    }

    /// The commit LSN of the transaction, or the LSN of the message.
    pub fn lsn(&self) -> Option<Lsn> {
        self.0.lsn
    }

    pub fn stage(&self) -> Stage {
        self.0.stage
    }

    pub fn disposition(&self) -> Disposition {
        verdict::of(&self.0.kind).disposition
    }

    pub fn exit_code(&self) -> u8 {
        verdict::of(&self.0.kind).exit_code
    }

    /// It speaks of what was to be written, not of the servers or of who writes: in another order, or without another
    /// transaction, it may go through.
    pub fn is_of_the_data(&self) -> bool {
        self.cause() != Cause::Other
    }

    /// The target refuses a row for the row's own sake, and would take the change without it.
    pub fn is_of_a_row(&self) -> bool {
        self.cause() == Cause::Row
    }

    /// The target has a row already that this one may not stand beside.
    pub fn is_duplicate(&self) -> bool {
        matches!(&self.0.kind, Kind::Server { role: Role::Target, error } if error.code == "23505")
    }

    /// The target has found transactions that wait for each other, and has ended this one.
    pub fn is_deadlock(&self) -> bool {
        matches!(&self.0.kind, Kind::Server { role: Role::Target, error } if error.code == "40P01")
    }

    /// What fails for a transaction of the target that runs ahead of its turn may pass once all before it have committed.
    pub fn may_pass_in_its_turn(&self) -> bool {
        let is_rolled_back =
            matches!(&self.0.kind, Kind::Server { role: Role::Target, error } if error.class() == "40");
        is_rolled_back || self.is_of_the_data()
    }

    /// The row that was to be changed is not on the target.
    pub fn is_missing_row(&self) -> bool {
        matches!(self.0.kind, Kind::RowCount { operation: "UPDATE" | "DELETE", rows: 0 })
    }

    /// A change of one row found none, whatever the reason.
    pub fn hit_no_row(&self) -> bool {
        matches!(self.0.kind, Kind::RowCount { rows: 0, .. })
    }

    fn cause(&self) -> Cause {
        verdict::of(&self.0.kind).cause
    }

    /// SQLSTATE, or a word for what the engine itself has found: enough to count by, without any value of a row.
    pub fn code(&self) -> &str {
        let is_count = || matches!(self.0.kind, Kind::RowCount { .. } | Kind::SetCount { .. });
        let is_mismatch = || matches!(self.0.kind, Kind::Mismatch { .. } | Kind::LacksColumns(_));
        match self.server() {
            Some(error) => &error.code,
            None if is_count() => "row count",
            None if is_mismatch() => "mismatch",
            None => "other",
        }
    }

    /// It will soon be over, and is no sign of a wrong configuration: the slot is in use by another walsender, which may
    /// be about to end, or the source has yet to replay.
    pub fn is_passing(&self) -> bool {
        matches!(&self.0.kind, Kind::Server { role: Role::Source, error } if error.code == "55006")
            || matches!(self.0.kind, Kind::Behind { .. } | Kind::TrailBehind { .. })
    }

    /// A server has reported it.
    pub fn is_of_a_server(&self) -> bool {
        matches!(self.0.kind, Kind::Server { .. })
    }

    /// Nobody reads what is printed any more.
    pub fn is_closed_output(&self) -> bool {
        matches!(&self.0.kind, Kind::Output(source) if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// A disk of ours has no room.
    pub fn is_full_disk(&self) -> bool {
        matches!(&self.0.kind, Kind::Trail { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// Another statement of the same transaction has failed before, and its error is the one that says why.
    pub fn is_consequence(&self) -> bool {
        matches!(&self.0.kind, Kind::Server { error, .. } if error.code == "25P02")
    }

    /// As it is to be shown: with values of rows where the configuration wants them.
    pub fn shown(mut self, log: &LogConfig) -> Error {
        if log.row_values {
            self.show_values();
        } else if let Some(row) = &mut self.0.row {
            row.values = None;
        }
        self
    }

    fn show_values(&mut self) {
        if let Some(row) = &mut self.0.row {
            row.shows_values = true;
        }
        match &mut self.0.kind {
            Kind::Server { error, .. } | Kind::Statement { error, .. } => error.shows_values = true,
            Kind::Deferred { last, .. } | Kind::GaveUp { last, .. } => last.show_values(),
            // They hold none.
            Kind::Config(_)
            | Kind::Usage(_)
            | Kind::Refused { .. }
            | Kind::Unreachable { .. }
            | Kind::Lost { .. }
            | Kind::Authentication { .. }
            | Kind::Program { .. }
            | Kind::Decode(_)
            | Kind::Protocol { .. }
            | Kind::Fenced { .. }
            | Kind::RowCount { .. }
            | Kind::SetCount { .. }
            | Kind::RowNotWhole { .. }
            | Kind::Mismatch { .. }
            | Kind::LacksColumns(_)
            | Kind::Row { .. }
            | Kind::FormatOutdated { .. }
            | Kind::Rewritten
            | Kind::TargetWentBack
            | Kind::CopyCount { .. }
            | Kind::Stopped { .. }
            | Kind::ProgressElsewhere { .. }
            | Kind::TablesToCopy(_)
            | Kind::TablesReplaced { .. }
            | Kind::DeferredDue
            | Kind::SkipsChanged
            | Kind::SkipMissed { .. }
            | Kind::Behind { .. }
            | Kind::Spool { .. }
            | Kind::Trail { .. }
            | Kind::TrailDamaged { .. }
            | Kind::TrailBehind { .. }
            | Kind::SpoolOutgrown { .. }
            | Kind::EarlyGivenUp
            | Kind::TimedOut { .. }
            | Kind::Incomplete(_)
            | Kind::Interrupted
            | Kind::Output(_)
            | Kind::Suppressed { .. }
            | Kind::KeyNotSent { .. }
            | Kind::Panicked => {}
        }
    }
}

impl Stage {
    /// What statements of this stage work on.
    fn carries(self) -> Carries {
        match self {
            Stage::Snapshot | Stage::Transform | Stage::Apply | Stage::Checkpoint => Carries::Rows,
            Stage::Schema | Stage::Source | Stage::Decode => Carries::Definitions,
            Stage::Config | Stage::Setup | Stage::Status | Stage::Bench | Stage::Trail => Carries::Nothing,
        }
    }
}

/// Text of others, such as a name, on one line and without what a terminal would obey.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| c.is_control()) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

fn suppressors(by: &[String]) -> String {
    if by.is_empty() { "a trigger or rule".to_owned() } else { by.join(", ") }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(relation) = &self.0.relation {
            write!(f, "table {}: ", printable(relation))?;
        }
        write!(f, "{}", self.0.kind)?;
        if let Some(row) = &self.0.row {
            write!(f, "; {row}")?;
        }
        if let Some(lsn) = self.0.lsn {
            write!(f, " (at LSN {lsn})")?;
        }
        match next_step::of(self) {
            Some(step) => write!(f, "\n  to mend it: {step}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("stage", &self.0.stage)
            .field("lsn", &self.0.lsn)
            .field("relation", &self.0.relation)
            .field("row", &self.0.row)
            .field("kind", &self.0.kind)
            .finish()
    }
}

impl std::error::Error for Error {}
