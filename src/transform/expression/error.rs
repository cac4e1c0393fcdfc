//! What can be wrong with an expression, and with a row that it is evaluated over.

use std::fmt;
use std::ops::Range;

use super::types::Type;

/// Why an expression is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpressionError {
    /// Bytes of the text that the message is about, for a caret below them.
    pub range: Range<usize>,
    /// What is wrong with them, and what would be right.
    pub message: String,
}

impl ExpressionError {
    pub(super) fn new(range: Range<usize>, message: impl Into<String>) -> ExpressionError {
        ExpressionError { range, message: message.into() }
    }
}

impl fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ExpressionError {}

/// Why an expression has no value for a row. No variant holds a value of the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    /// The source has not sent the value, and the result depends on it.
    #[error("the value of column {0} is needed, but was not sent: it is an unchanged TOASTed value")]
    Unchanged(usize),
    /// The cell is not a value of the type that the relation says.
    #[error("the value of column {0} is not what its type's output looks like")]
    Cell(usize),
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// An error that PostgreSQL raises for such a value too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("division by zero")]
    DivisionByZero,
    #[error("the value is out of range for type {0}")]
    OutOfRange(Type),
    #[error("the value is out of range for type {0}")]
    DatetimeOutOfRange(Type),
    #[error("the text is no value of type {0}")]
    InvalidText(Type),
    #[error("a part of the {0} is out of range")]
    DatetimeFieldOverflow(Type),
    #[error("the length of a substring is negative")]
    NegativeSubstringLength,
    #[error("a LIKE pattern ends with its escape character")]
    PatternEndsWithEscape,
    #[error("the escape string of LIKE has more than one character")]
    InvalidEscape,
    #[error("an argument is out of its range")]
    InvalidParameter,
    #[error("the value has no such part")]
    Unsupported,
    #[error("the JSON text has an escape that is not allowed in text")]
    UntranslatableCharacter,
    #[error("the text is longer than PostgreSQL takes")]
    TooLong,
}

impl Fault {
    /// The SQLSTATE under which PostgreSQL raises it.
    pub fn sqlstate(self) -> &'static str {
        match self {
            Fault::DivisionByZero => "22012",
            Fault::OutOfRange(_) => "22003",
            Fault::DatetimeOutOfRange(_) | Fault::DatetimeFieldOverflow(_) => "22008",
            Fault::InvalidText(Type::Date | Type::Time | Type::Timestamp | Type::Timestamptz | Type::Interval) => {
                "22007"
            }
            Fault::InvalidText(_) => "22P02",
            Fault::NegativeSubstringLength => "22011",
            Fault::PatternEndsWithEscape | Fault::InvalidEscape => "22025",
            Fault::InvalidParameter => "22023",
            Fault::Unsupported => "0A000",
            Fault::UntranslatableCharacter => "22P05",
            Fault::TooLong => "54000",
        }
    }
}
