//! From frames to changes: keeps what the source has said of its relations, and where the stream is in a transaction.
//!
//! In: the payloads of XLogData frames, in order. Out: one [`Decoded`] each, borrowing from the payload.
//!
//! ```text
//!              Begin, commit_lsn ≥ progress            Commit
//!   Outside ───────────────────────────────► Inside ───────────► Outside      Decoded::Change, Decoded::Commit
//!      │       Begin, commit_lsn < progress             Commit
//!      └───────────────────────────────────► Skipping ──────────► Outside     nothing: the target has it already
//! ```
//!
//! **Always holds:** a transaction is passed on whole or not at all. It is skipped exactly if its `end_lsn` is at or
//! before the progress of the target. Commit records do not overlap, so that is so exactly if its `commit_lsn` is
//! before it, which is known at Begin; Commit asserts that the two agree.
//!
//! Two-phase transactions are not asked for, and streamed ones come here when they have committed, as ordinary ones: so
//! messages of either are out of sequence here.

mod relation;

use std::sync::Arc;

use pgsluice_proto::pgoutput::{self, Begin, Commit, Message, OldTuple, Tuple};
use pgsluice_proto::{DecodeError, DecodeErrorKind, Lsn, Oid, Xid};

use self::relation::RelationMap;
pub use self::relation::{Arrival, Column, Keys, Relation};
use crate::error::{Error, Kind, Stage};

/// One row change, as the source sent it.
#[derive(Debug)]
pub struct Change<'a> {
    pub relation: &'a Arc<Relation>,
    pub operation: Operation<'a>,
}

#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    Insert { new: Tuple<'a> },
    Update { old: Option<OldTuple<'a>>, new: Tuple<'a> },
    Delete { old: OldTuple<'a> },
}

/// One statement that emptied these relations.
#[derive(Debug)]
pub struct Truncate {
    pub relations: Vec<Arc<Relation>>,
    pub restart_identity: bool,
    /// The statement emptied others too, which are left out here.
    pub is_partial: bool,
    /// Relations whose tables on the target are not emptied, as rules have it.
    pub in_part: Vec<PartialTruncate>,
}

/// What a TRUNCATE of a relation comes to in a table that keeps rows all the same.
#[derive(Debug)]
pub struct PartialTruncate {
    /// As the target has it.
    pub relation: Arc<Relation>,
    /// Only rows with these values, in text, are meant.
    pub own: Vec<(String, String)>,
    /// They stay, and get these values, in text or NULL; `None` where they go.
    pub mark: Option<Vec<(String, Option<String>)>>,
}

#[derive(Debug)]
pub enum Decoded<'a> {
    Begin(Begin),
    Change(Change<'a>),
    Truncate(Truncate),
    Commit(Commit),
    /// What has no effect on the target: part of a skipped transaction, a relation, a type, an origin, a logical message.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Outside,
    Inside { xid: Xid, commit_lsn: Lsn },
    Skipping { commit_lsn: Lsn },
}

#[derive(Debug)]
pub struct Decoder {
    messages: pgoutput::Decoder,
    relations: RelationMap,
    /// Of the message that is decoded.
    arrival: Arrival,
    state: State,
    progress: Lsn,
}

impl Decoder {
    /// A stream that has just started, towards a target that has all transactions whose `end_lsn` is ≤ `progress`.
    pub fn new(progress: Lsn) -> Decoder {
        Decoder {
            messages: pgoutput::Decoder::new(),
            relations: RelationMap::default(),
            arrival: Arrival::after_segments(0),
            state: State::Outside,
            progress,
        }
    }

    /// In a transaction in progress, whose commit is not known: only its changes are to come, with what they are of.
    pub fn amid(xid: Xid) -> Decoder {
        Decoder { state: State::Inside { xid, commit_lsn: Lsn::MAX }, ..Decoder::new(Lsn::INVALID) }
    }

    /// The target has a transaction with this commit record.
    pub fn is_behind(&self, commit_lsn: Lsn) -> bool {
        commit_lsn < self.progress
    }

    /// Whether the next message belongs to a transaction that has begun, skipped or not.
    pub fn in_transaction(&self) -> bool {
        self.state != State::Outside
    }

    /// As [`Decoder::decode`], for a stream with transactions in progress: also says when the message came.
    #[inline]
    pub fn decode_arrived<'a>(
        &'a mut self,
        arrival: Arrival,
        lsn: Lsn,
        payload: &'a [u8],
    ) -> Result<Decoded<'a>, Error> {
        self.arrival = arrival;
        self.decode(lsn, payload)
    }

    /// # Errors
    /// [`Kind::Decode`] for what does not parse, or cannot come where it came.
    #[inline]
    pub fn decode<'a>(&'a mut self, lsn: Lsn, payload: &'a [u8]) -> Result<Decoded<'a>, Error> {
        let message = self.messages.decode(lsn, payload).map_err(decode_error)?;
        let (relation, operation) = match message {
            Message::Insert(insert) => (insert.relation, Operation::Insert { new: insert.new }),
            Message::Update(update) => (update.relation, Operation::Update { old: update.old, new: update.new }),
            Message::Delete(delete) => (delete.relation, Operation::Delete { old: delete.old }),
            Message::Begin(begin) => return self.begin(lsn, begin),
            Message::Commit(commit) => return self.commit(lsn, commit),
            Message::Truncate(truncate) => return self.truncate(lsn, truncate),
            Message::Relation(relation) => {
                self.relations.replace(&relation, self.arrival);
                return Ok(Decoded::Nothing);
            }
            // Types are looked up on the target, where values of them go; origins and logical messages carry no row.
            Message::Type(_) | Message::Origin(_) | Message::Logical(_) => return Ok(Decoded::Nothing),
            Message::StreamStart(_)
            | Message::StreamStop
            | Message::StreamCommit(_)
            | Message::StreamAbort(_)
            | Message::BeginPrepare(_)
            | Message::Prepare(_)
            | Message::CommitPrepared(_)
            | Message::RollbackPrepared(_)
            | Message::StreamPrepare(_) => {
                return Err(out_of_sequence(lsn, message.name(), "where only ordinary transactions come"));
            }
        };
        self.change(lsn, relation, operation)
    }

    #[inline(never)]
    fn truncate<'a>(&self, lsn: Lsn, truncate: pgoutput::Truncate<'_>) -> Result<Decoded<'a>, Error> {
        match self.state {
            State::Skipping { .. } => Ok(Decoded::Nothing),
            State::Outside => Err(out_of_sequence(lsn, "Truncate", OUTSIDE)),
            State::Inside { .. } => {
                let relations = truncate.relations().map(|id| self.relations.get(lsn, id).cloned());
                Ok(Decoded::Truncate(Truncate {
                    relations: relations.collect::<Result<_, _>>().map_err(decode_error)?,
                    restart_identity: truncate.restart_identity,
                    is_partial: false,
                    in_part: Vec::new(),
                }))
            }
        }
    }

    #[inline(never)]
    fn begin<'a>(&mut self, lsn: Lsn, begin: Begin) -> Result<Decoded<'a>, Error> {
        if self.state != State::Outside {
            return Err(out_of_sequence(lsn, "Begin", "inside of a transaction"));
        }
        if begin.commit_lsn < self.progress {
            self.state = State::Skipping { commit_lsn: begin.commit_lsn };
            return Ok(Decoded::Nothing);
        }
        self.state = State::Inside { xid: begin.xid, commit_lsn: begin.commit_lsn };
        Ok(Decoded::Begin(begin))
    }

    #[inline(never)]
    fn commit<'a>(&mut self, lsn: Lsn, commit: Commit) -> Result<Decoded<'a>, Error> {
        let (begun, skipping) = match self.state {
            State::Inside { commit_lsn, .. } => (Some(commit_lsn), false),
            State::Skipping { commit_lsn } => (Some(commit_lsn), true),
            State::Outside => (None, false),
        };
        let known = commit.end_lsn <= self.progress;
        if begun != Some(commit.commit_lsn) || commit.end_lsn <= commit.commit_lsn || known != skipping {
            return Err(out_of_sequence(lsn, "Commit", "with these LSNs"));
        }
        self.state = State::Outside;
        self.relations.end_transaction();
        self.progress = self.progress.max(commit.end_lsn);
        Ok(if skipping { Decoded::Nothing } else { Decoded::Commit(commit) })
    }

    #[inline]
    fn change<'a>(&'a self, lsn: Lsn, id: Oid, operation: Operation<'a>) -> Result<Decoded<'a>, Error> {
        match self.state {
            State::Inside { .. } => {}
            State::Skipping { .. } => return Ok(Decoded::Nothing),
            State::Outside => return Err(out_of_sequence(lsn, "row", OUTSIDE)),
        }
        let relation = self.relations.get(lsn, id).map_err(decode_error)?;
        let columns = relation.columns.len();
        let fits = |tuple: &Tuple<'_>| tuple.len() == columns;
        let old_fits = |old: &OldTuple<'_>| match old {
            OldTuple::Key(tuple) | OldTuple::Full(tuple) => fits(tuple),
        };
        let whole = match &operation {
            Operation::Insert { new } => fits(new),
            Operation::Update { old, new } => fits(new) && old.as_ref().is_none_or(old_fits),
            Operation::Delete { old } => old_fits(old),
        };
        if !whole {
            let kind = DecodeErrorKind::InvalidValue { field: "tuple column count", value: columns as u64 };
            return Err(decode_error(DecodeError { lsn, offset: 0, kind }).on(relation.to_string()));
        }
        Ok(Decoded::Change(Change { relation, operation }))
    }
}

const OUTSIDE: &str = "outside of a transaction";

#[cold]
pub(crate) fn out_of_sequence(lsn: Lsn, message: &'static str, state: &'static str) -> Error {
    decode_error(DecodeError { lsn, offset: 0, kind: DecodeErrorKind::OutOfSequence { message, state } })
}

#[cold]
pub(crate) fn decode_error(error: DecodeError) -> Error {
    Error::new(Stage::Decode, Kind::Decode(error))
}
