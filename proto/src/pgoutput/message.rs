//! Every message, one type each, in the order of the documentation.

use super::{RelationMessage, Tuple, TypeMessage};
use crate::cursor::Cursor;
use crate::{DecodeError, DecodeErrorKind, Lsn, Oid, PgTimestamp, Xid};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    Begin(Begin),
    Logical(LogicalMessage<'a>),
    Commit(Commit),
    Origin(Origin<'a>),
    Relation(RelationMessage<'a>),
    Type(TypeMessage<'a>),
    Insert(Insert<'a>),
    Update(Update<'a>),
    Delete(Delete<'a>),
    Truncate(Truncate<'a>),
    StreamStart(StreamStart),
    StreamStop,
    StreamCommit(StreamCommit),
    StreamAbort(StreamAbort),
    BeginPrepare(Prepared<'a>),
    Prepare(Prepared<'a>),
    CommitPrepared(CommitPrepared<'a>),
    RollbackPrepared(RollbackPrepared<'a>),
    StreamPrepare(Prepared<'a>),
}

/// A transaction starts. It is sent when it has committed, so its end is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Start of the commit record, equal to the `commit_lsn` of the Commit that follows.
    pub commit_lsn: Lsn,
    pub commit_time: PgTimestamp,
    pub xid: Xid,
}

/// Written by `pg_logical_emit_message`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    pub xid: Option<Xid>,
    /// Part of a transaction; else it stands for itself, also of transactions that abort.
    pub transactional: bool,
    pub lsn: Lsn,
    pub prefix: &'a str,
    pub content: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Start of the commit record.
    pub commit_lsn: Lsn,
    /// End of the commit record: what to confirm, and where to start again.
    pub end_lsn: Lsn,
    pub commit_time: PgTimestamp,
}

/// The transaction was itself replicated to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The commit on the origin.
    pub commit_lsn: Lsn,
    pub name: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insert<'a> {
    pub xid: Option<Xid>,
    pub relation: Oid,
    pub new: Tuple<'a>,
}

/// What is sent of the row as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// The replica identity; columns outside of it are NULL and mean nothing.
    Key(Tuple<'a>),
    /// The whole row, under replica identity FULL.
    Full(Tuple<'a>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update<'a> {
    pub xid: Option<Xid>,
    pub relation: Oid,
    /// Absent where the identity is an index and the update left its columns as they were.
    pub old: Option<OldTuple<'a>>,
    pub new: Tuple<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delete<'a> {
    pub xid: Option<Xid>,
    pub relation: Oid,
    pub old: OldTuple<'a>,
}

/// One statement that emptied these relations together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate<'a> {
    pub xid: Option<Xid>,
    /// It said CASCADE; the relations that this reached are listed as well.
    pub cascade: bool,
    pub restart_identity: bool,
    relation_ids: &'a [u8],
}

impl<'a> Truncate<'a> {
    pub fn relations(&self) -> impl ExactSizeIterator<Item = Oid> + use<'a> {
        let (ids, _) = self.relation_ids.as_chunks::<4>();
        ids.iter().map(|id| Oid(u32::from_be_bytes(*id)))
    }
}

/// A segment of a transaction in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamStart {
    pub xid: Xid,
    pub first_segment: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamCommit {
    pub xid: Xid,
    pub commit_lsn: Lsn,
    pub end_lsn: Lsn,
    pub commit_time: PgTimestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamAbort {
    pub xid: Xid,
    /// Differs from `xid` where a subtransaction alone is undone.
    pub subxid: Xid,
    /// Sent only where parallel streaming was asked for.
    pub abort: Option<Abort>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    pub lsn: Lsn,
    pub time: PgTimestamp,
}

/// The fields of Begin Prepare, Prepare and Stream Prepare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared<'a> {
    pub prepare_lsn: Lsn,
    pub end_lsn: Lsn,
    pub prepare_time: PgTimestamp,
    pub xid: Xid,
    pub gid: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitPrepared<'a> {
    pub commit_lsn: Lsn,
    pub end_lsn: Lsn,
    pub commit_time: PgTimestamp,
    pub xid: Xid,
    pub gid: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RollbackPrepared<'a> {
    pub prepare_end_lsn: Lsn,
    pub rollback_end_lsn: Lsn,
    pub prepare_time: PgTimestamp,
    pub rollback_time: PgTimestamp,
    pub xid: Xid,
    pub gid: &'a str,
}

impl<'a> Message<'a> {
    #[inline(always)]
    pub(super) fn decode(cursor: &mut Cursor<'a>, in_segment: bool) -> Result<Message<'a>, DecodeError> {
        match cursor.u8("message tag")? {
            b'I' => Insert::decode(cursor, in_segment).map(Message::Insert),
            b'U' => Update::decode(cursor, in_segment).map(Message::Update),
            b'D' => Delete::decode(cursor, in_segment).map(Message::Delete),
            tag => Message::decode_other(cursor, tag, in_segment),
        }
    }

    /// What is not a row. Apart, so that rows are decoded where they are used: returning a message through memory takes as
    /// long as decoding a narrow row.
    #[inline(never)]
    fn decode_other(cursor: &mut Cursor<'a>, tag: u8, in_segment: bool) -> Result<Message<'a>, DecodeError> {
        match tag {
            b'B' => Begin::decode(cursor).map(Message::Begin),
            b'C' => Commit::decode(cursor).map(Message::Commit),
            b'R' => RelationMessage::decode(cursor, in_segment).map(Message::Relation),
            b'Y' => TypeMessage::decode(cursor, in_segment).map(Message::Type),
            b'T' => Truncate::decode(cursor, in_segment).map(Message::Truncate),
            b'M' => LogicalMessage::decode(cursor, in_segment).map(Message::Logical),
            b'O' => Origin::decode(cursor).map(Message::Origin),
            b'S' => StreamStart::decode(cursor).map(Message::StreamStart),
            b'E' => Ok(Message::StreamStop),
            b'c' => StreamCommit::decode(cursor).map(Message::StreamCommit),
            b'A' => StreamAbort::decode(cursor).map(Message::StreamAbort),
            b'b' => Prepared::decode(cursor).map(Message::BeginPrepare),
            b'P' => Prepared::decode_with_flags(cursor).map(Message::Prepare),
            b'K' => CommitPrepared::decode(cursor).map(Message::CommitPrepared),
            b'r' => RollbackPrepared::decode(cursor).map(Message::RollbackPrepared),
            b'p' => Prepared::decode_with_flags(cursor).map(Message::StreamPrepare),
            tag => Err(cursor.error_back(1, DecodeErrorKind::UnknownTag { field: "message", tag })),
        }
    }

    /// The name that the documentation gives it.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Begin(_) => "Begin",
            Message::Logical(_) => "Message",
            Message::Commit(_) => "Commit",
            Message::Origin(_) => "Origin",
            Message::Relation(_) => "Relation",
            Message::Type(_) => "Type",
            Message::Insert(_) => "Insert",
            Message::Update(_) => "Update",
            Message::Delete(_) => "Delete",
            Message::Truncate(_) => "Truncate",
            Message::StreamStart(_) => "Stream Start",
            Message::StreamStop => "Stream Stop",
            Message::StreamCommit(_) => "Stream Commit",
            Message::StreamAbort(_) => "Stream Abort",
            Message::BeginPrepare(_) => "Begin Prepare",
            Message::Prepare(_) => "Prepare",
            Message::CommitPrepared(_) => "Commit Prepared",
            Message::RollbackPrepared(_) => "Rollback Prepared",
            Message::StreamPrepare(_) => "Stream Prepare",
        }
    }
}

/// The xid in front of a message of a streamed transaction.
#[inline]
pub(super) fn segment_xid(cursor: &mut Cursor<'_>, in_segment: bool) -> Result<Option<Xid>, DecodeError> {
    if in_segment { cursor.xid("segment xid").map(Some) } else { Ok(None) }
}

impl Begin {
    fn decode(cursor: &mut Cursor<'_>) -> Result<Begin, DecodeError> {
        Ok(Begin {
            commit_lsn: cursor.lsn("commit LSN")?,
            commit_time: cursor.timestamp("commit time")?,
            xid: cursor.xid("xid")?,
        })
    }
}

impl<'a> LogicalMessage<'a> {
    fn decode(cursor: &mut Cursor<'a>, in_segment: bool) -> Result<LogicalMessage<'a>, DecodeError> {
        let xid = segment_xid(cursor, in_segment)?;
        let transactional = cursor.flag("message flags")?;
        let lsn = cursor.lsn("message LSN")?;
        let prefix = cursor.string("message prefix")?;
        let length = cursor.length("message length")?;
        let content = cursor.bytes("message content", length)?;
        Ok(LogicalMessage { xid, transactional, lsn, prefix, content })
    }
}

impl Commit {
    fn decode(cursor: &mut Cursor<'_>) -> Result<Commit, DecodeError> {
        cursor.unused_flags("commit flags")?;
        Ok(Commit {
            commit_lsn: cursor.lsn("commit LSN")?,
            end_lsn: cursor.lsn("end LSN")?,
            commit_time: cursor.timestamp("commit time")?,
        })
    }
}

impl<'a> Origin<'a> {
    fn decode(cursor: &mut Cursor<'a>) -> Result<Origin<'a>, DecodeError> {
        Ok(Origin { commit_lsn: cursor.lsn("origin commit LSN")?, name: cursor.string("origin name")? })
    }
}

impl<'a> Insert<'a> {
    #[inline(always)]
    fn decode(cursor: &mut Cursor<'a>, in_segment: bool) -> Result<Insert<'a>, DecodeError> {
        let xid = segment_xid(cursor, in_segment)?;
        let relation = cursor.oid("relation id")?;
        match cursor.u8("new tuple tag")? {
            b'N' => Ok(Insert { xid, relation, new: Tuple::decode(cursor)? }),
            tag => Err(cursor.error_back(1, DecodeErrorKind::UnknownTag { field: "new tuple", tag })),
        }
    }
}

impl<'a> Update<'a> {
    #[inline(always)]
    fn decode(cursor: &mut Cursor<'a>, in_segment: bool) -> Result<Update<'a>, DecodeError> {
        let xid = segment_xid(cursor, in_segment)?;
        let relation = cursor.oid("relation id")?;
        let mut tag = cursor.u8("tuple tag")?;
        let mut old = None;
        if let b'K' | b'O' = tag {
            let tuple = Tuple::decode(cursor)?;
            old = Some(if tag == b'K' { OldTuple::Key(tuple) } else { OldTuple::Full(tuple) });
            tag = cursor.u8("new tuple tag")?;
        }
        match tag {
            b'N' => Ok(Update { xid, relation, old, new: Tuple::decode(cursor)? }),
            tag => Err(cursor.error_back(1, DecodeErrorKind::UnknownTag { field: "new tuple", tag })),
        }
    }
}

impl<'a> Delete<'a> {
    #[inline(always)]
    fn decode(cursor: &mut Cursor<'a>, in_segment: bool) -> Result<Delete<'a>, DecodeError> {
        let xid = segment_xid(cursor, in_segment)?;
        let relation = cursor.oid("relation id")?;
        let tag = cursor.u8("old tuple tag")?;
        if !matches!(tag, b'K' | b'O') {
            return Err(cursor.error_back(1, DecodeErrorKind::UnknownTag { field: "old tuple", tag }));
        }
        let tuple = Tuple::decode(cursor)?;
        let old = if tag == b'K' { OldTuple::Key(tuple) } else { OldTuple::Full(tuple) };
        Ok(Delete { xid, relation, old })
    }
}

impl<'a> Truncate<'a> {
    fn decode(cursor: &mut Cursor<'a>, in_segment: bool) -> Result<Truncate<'a>, DecodeError> {
        let xid = segment_xid(cursor, in_segment)?;
        const CASCADE: u8 = 1;
        const RESTART_IDENTITY: u8 = 2;
        let relations = cursor.length("truncate relation count")?;
        let options = cursor.u8("truncate options")?;
        if options & !(CASCADE | RESTART_IDENTITY) != 0 {
            let kind = DecodeErrorKind::InvalidValue { field: "truncate options", value: options.into() };
            return Err(cursor.error_back(1, kind));
        }
        let bytes = relations.checked_mul(4).ok_or_else(|| {
            let kind = DecodeErrorKind::InvalidLength { field: "truncate relation count", length: relations as i64 };
            cursor.error_back(5, kind)
        })?;
        Ok(Truncate {
            xid,
            cascade: options & CASCADE != 0,
            restart_identity: options & RESTART_IDENTITY != 0,
            relation_ids: cursor.bytes("truncate relation ids", bytes)?,
        })
    }
}

impl StreamStart {
    fn decode(cursor: &mut Cursor<'_>) -> Result<StreamStart, DecodeError> {
        Ok(StreamStart { xid: cursor.xid("xid")?, first_segment: cursor.flag("first segment flag")? })
    }
}

impl StreamCommit {
    fn decode(cursor: &mut Cursor<'_>) -> Result<StreamCommit, DecodeError> {
        let xid = cursor.xid("xid")?;
        let Commit { commit_lsn, end_lsn, commit_time } = Commit::decode(cursor)?;
        Ok(StreamCommit { xid, commit_lsn, end_lsn, commit_time })
    }
}

impl StreamAbort {
    fn decode(cursor: &mut Cursor<'_>) -> Result<StreamAbort, DecodeError> {
        let xid = cursor.xid("xid")?;
        let subxid = cursor.xid("subxid")?;
        let abort = match cursor.remaining() {
            0 => None,
            _ => Some(Abort { lsn: cursor.lsn("abort LSN")?, time: cursor.timestamp("abort time")? }),
        };
        Ok(StreamAbort { xid, subxid, abort })
    }
}

impl<'a> Prepared<'a> {
    fn decode(cursor: &mut Cursor<'a>) -> Result<Prepared<'a>, DecodeError> {
        Ok(Prepared {
            prepare_lsn: cursor.lsn("prepare LSN")?,
            end_lsn: cursor.lsn("end LSN")?,
            prepare_time: cursor.timestamp("prepare time")?,
            xid: cursor.xid("xid")?,
            gid: cursor.string("gid")?,
        })
    }

    fn decode_with_flags(cursor: &mut Cursor<'a>) -> Result<Prepared<'a>, DecodeError> {
        cursor.unused_flags("prepare flags")?;
        Prepared::decode(cursor)
    }
}

impl<'a> CommitPrepared<'a> {
    fn decode(cursor: &mut Cursor<'a>) -> Result<CommitPrepared<'a>, DecodeError> {
        cursor.unused_flags("commit prepared flags")?;
        Ok(CommitPrepared {
            commit_lsn: cursor.lsn("commit LSN")?,
            end_lsn: cursor.lsn("end LSN")?,
            commit_time: cursor.timestamp("commit time")?,
            xid: cursor.xid("xid")?,
            gid: cursor.string("gid")?,
        })
    }
}

impl<'a> RollbackPrepared<'a> {
    fn decode(cursor: &mut Cursor<'a>) -> Result<RollbackPrepared<'a>, DecodeError> {
        cursor.unused_flags("rollback prepared flags")?;
        Ok(RollbackPrepared {
            prepare_end_lsn: cursor.lsn("prepare end LSN")?,
            rollback_end_lsn: cursor.lsn("rollback end LSN")?,
            prepare_time: cursor.timestamp("prepare time")?,
            rollback_time: cursor.timestamp("rollback time")?,
            xid: cursor.xid("xid")?,
            gid: cursor.string("gid")?,
        })
    }
}
