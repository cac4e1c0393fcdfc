use crate::Lsn;

/// Input that is not what the protocol says. Nothing of the message that holds it was used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot decode at LSN {lsn}, byte {offset} of the message: {kind}")]
pub struct DecodeError {
    /// Where in the WAL the message comes from; [`Lsn::INVALID`] for bytes outside of an XLogData frame.
    pub lsn: Lsn,
    /// Bytes from the start of the message to the field at fault.
    pub offset: usize,
    pub kind: DecodeErrorKind,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeErrorKind {
    #[error("{field} needs {needed} bytes, {remaining} are left")]
    ShortInput { field: &'static str, needed: usize, remaining: usize },
    #[error("{field} has the unknown tag {tag:#04x}")]
    UnknownTag { field: &'static str, tag: u8 },
    #[error("{remaining} bytes are left after the end of the message")]
    TrailingBytes { remaining: usize },
    #[error("{field} has the impossible length {length}")]
    InvalidLength { field: &'static str, length: i64 },
    #[error("{field} has the impossible value {value}")]
    InvalidValue { field: &'static str, value: u64 },
    #[error("{field} does not end with a zero byte")]
    Unterminated { field: &'static str },
    #[error("{field} is not valid UTF-8")]
    InvalidUtf8 { field: &'static str },
    #[error("{message} cannot come {state}")]
    OutOfSequence { message: &'static str, state: &'static str },
}
