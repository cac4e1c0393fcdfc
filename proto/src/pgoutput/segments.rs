//! Streamed transactions as whoever sees them that keeps their messages until they commit.
//!
//! In: the payloads of a stream that asked for `streaming`, in their order. Out: what each has to do with a streamed
//! transaction, or that it has nothing to do with any. A message inside of a segment is checked to be whole, and comes
//! out as the payload that an ordinary transaction would have had: without the xid behind its tag.
//!
//! ```text
//!              Stream Start
//!   Between ─────────────────► InSegment     rows, relations and the like, each of a transaction or subtransaction
//!     │  ▲                         │
//!     │  └─────────────────────────┘
//!     │           Stream Stop
//!     └── Stream Commit, Stream Abort, and whatever belongs to ordinary transactions
//! ```

use super::{Begin, Commit, Decoder, Message, StreamAbort, StreamCommit, StreamStart};
use crate::{DecodeError, DecodeErrorKind, Lsn, Xid};

/// What a message is to streamed transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streamed<'a> {
    /// Nothing: it is for whoever decodes ordinary transactions, and was not looked into.
    Ordinary,
    Start(StreamStart),
    Part(StreamedPart<'a>),
    Stop,
    Commit(StreamCommit),
    Abort(StreamAbort),
}

/// A message of a streamed transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamedPart<'a> {
    /// Of the subtransaction that it belongs to, or of the transaction itself; an Origin says none.
    pub xid: Option<Xid>,
    pub is_relation: bool,
    pub tag: u8,
    /// Behind the tag, and behind the xid if there is one.
    pub rest: &'a [u8],
}

/// Turns the payloads of one stream into what they are to streamed transactions.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    messages: Decoder,
    is_open: bool,
}

impl Segments {
    /// A stream that has just started.
    pub fn new() -> Segments {
        Segments::default()
    }

    /// Between Stream Start and Stream Stop.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// # Errors
    /// As [`Decoder::decode`], for what is looked into.
    #[inline]
    pub fn take<'a>(&mut self, lsn: Lsn, payload: &'a [u8]) -> Result<Streamed<'a>, DecodeError> {
        let is_ours = matches!(payload.first(), Some(b'S' | b'E' | b'c' | b'A'));
        if !self.is_open && !is_ours {
            return Ok(Streamed::Ordinary);
        }
        let message = self.messages.decode(lsn, payload)?;
        let (xid, is_relation) = match message {
            Message::Insert(insert) => (insert.xid, false),
            Message::Update(update) => (update.xid, false),
            Message::Delete(delete) => (delete.xid, false),
            Message::Truncate(truncate) => (truncate.xid, false),
            Message::Logical(logical) => (logical.xid, false),
            Message::Type(described) => (described.xid, false),
            Message::Relation(relation) => (relation.xid, true),
            Message::Origin(_) => (None, false),
            Message::StreamStart(start) => {
                self.is_open = true;
                return Ok(Streamed::Start(start));
            }
            Message::StreamStop => {
                self.is_open = false;
                return Ok(Streamed::Stop);
            }
            Message::StreamCommit(commit) => return Ok(Streamed::Commit(commit)),
            Message::StreamAbort(abort) => return Ok(Streamed::Abort(abort)),
            Message::Begin(_)
            | Message::Commit(_)
            | Message::BeginPrepare(_)
            | Message::Prepare(_)
            | Message::CommitPrepared(_)
            | Message::RollbackPrepared(_)
            | Message::StreamPrepare(_) => {
                let kind =
                    DecodeErrorKind::OutOfSequence { message: message.name(), state: "in a streamed transaction" };
                return Err(DecodeError { lsn, offset: 0, kind });
            }
        };
        const TAG_BYTES: usize = 1;
        const XID_BYTES: usize = 4;
        let before = TAG_BYTES + if xid.is_some() { XID_BYTES } else { 0 };
        Ok(Streamed::Part(StreamedPart { xid, is_relation, tag: payload[0], rest: &payload[before..] }))
    }
}

impl StreamCommit {
    /// The Begin of the transaction, had it not been streamed.
    pub fn begin(&self) -> Begin {
        Begin { commit_lsn: self.commit_lsn, commit_time: self.commit_time, xid: self.xid }
    }

    /// The Commit of the transaction, had it not been streamed.
    pub fn commit(&self) -> Commit {
        Commit { commit_lsn: self.commit_lsn, end_lsn: self.end_lsn, commit_time: self.commit_time }
    }
}

impl Begin {
    /// The payload that decodes to this.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(b'B');
        out.extend(self.commit_lsn.as_u64().to_be_bytes());
        out.extend(self.commit_time.as_micros().to_be_bytes());
        out.extend(self.xid.0.to_be_bytes());
    }
}

impl Commit {
    /// The payload that decodes to this.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend([b'C', 0]);
        out.extend(self.commit_lsn.as_u64().to_be_bytes());
        out.extend(self.end_lsn.as_u64().to_be_bytes());
        out.extend(self.commit_time.as_micros().to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PgTimestamp;

    const START: [u8; 6] = [b'S', 0, 0, 0, 99, 1];

    #[test]
    fn a_part_comes_out_as_an_ordinary_message() {
        let mut segments = Segments::new();
        let plain = [b'I', 0, 0, 0, 7, b'N', 0, 1, b'n'];
        assert_eq!(segments.take(Lsn::INVALID, &plain), Ok(Streamed::Ordinary));
        assert!(matches!(segments.take(Lsn::INVALID, &START), Ok(Streamed::Start(_))) && segments.is_open());
        let mut streamed = plain.to_vec();
        streamed.splice(1..1, 100_u32.to_be_bytes());
        let part = StreamedPart { xid: Some(Xid(100)), is_relation: false, tag: b'I', rest: &plain[1..] };
        assert_eq!(segments.take(Lsn::INVALID, &streamed), Ok(Streamed::Part(part)));
        let origin = b"O\0\0\0\0\0\0\0\x01here\0";
        let part = StreamedPart { xid: None, is_relation: false, tag: b'O', rest: &origin[1..] };
        assert_eq!(segments.take(Lsn::INVALID, origin), Ok(Streamed::Part(part)));
        // Cut short it is refused, and not kept for later.
        assert!(segments.take(Lsn::INVALID, &streamed[..streamed.len() - 1]).is_err());
        assert_eq!(segments.take(Lsn::INVALID, b"E"), Ok(Streamed::Stop));
        assert!(!segments.is_open() && segments.take(Lsn::INVALID, b"E").is_err());
    }

    #[test]
    fn what_ends_a_transaction_does_not_come_inside_of_a_segment() {
        let mut commit = vec![b'c', 0, 0, 0, 99, 0];
        commit.extend([0; 24]);
        let mut begin = vec![b'B'];
        begin.extend([0; 20]);
        for payload in [&commit[..], &begin[..], &START[..], &[b'A', 0, 0, 0, 99, 0, 0, 0, 99]] {
            let mut segments = Segments::new();
            segments.take(Lsn::INVALID, &START).unwrap();
            assert!(segments.take(Lsn::INVALID, payload).is_err(), "{payload:?}");
        }
    }

    #[test]
    fn the_ends_that_are_made_decode_to_what_they_were_made_of() {
        let commit = StreamCommit {
            xid: Xid(99),
            commit_lsn: Lsn::new(0x1_0000_0010),
            end_lsn: Lsn::new(0x1_0000_0040),
            commit_time: PgTimestamp::from_micros(-5),
        };
        let (mut begin_bytes, mut commit_bytes) = (Vec::new(), Vec::new());
        commit.begin().encode(&mut begin_bytes);
        commit.commit().encode(&mut commit_bytes);
        let mut decoder = Decoder::new();
        assert_eq!(decoder.decode(Lsn::INVALID, &begin_bytes), Ok(Message::Begin(commit.begin())));
        assert_eq!(decoder.decode(Lsn::INVALID, &commit_bytes), Ok(Message::Commit(commit.commit())));
    }
}
