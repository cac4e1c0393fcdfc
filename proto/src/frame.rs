//! The frames inside CopyData while a replication stream runs ("Streaming Replication Protocol").

use crate::cursor::Cursor;
use crate::wire;
use crate::{DecodeError, DecodeErrorKind, Lsn, PgTimestamp};

/// A frame from the walsender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    XLogData(XLogData<'a>),
    PrimaryKeepalive(PrimaryKeepalive),
}

/// One message of the output plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XLogData<'a> {
    /// The WAL position of the change; `0/0` for messages that have none of their own, such as Relation.
    pub start_lsn: Lsn,
    /// As `start_lsn` for logical decoding: it says nothing about the end of WAL.
    pub end_lsn: Lsn,
    /// The sender's clock when it sent the frame.
    pub sent_at: PgTimestamp,
    /// The `pgoutput` message.
    pub data: &'a [u8],
}

/// The walsender has nothing to send up to `wal_end`, or wants to know whether we live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrimaryKeepalive {
    /// All WAL before this has been decoded and what was to be sent of it has been sent on this connection.
    pub wal_end: Lsn,
    pub sent_at: PgTimestamp,
    /// The walsender will end the connection unless it soon gets a status update.
    pub reply_requested: bool,
}

impl<'a> Frame<'a> {
    /// Decodes the body of one CopyData message.
    #[inline]
    pub fn decode(body: &'a [u8]) -> Result<Frame<'a>, DecodeError> {
        let mut cursor = Cursor::new(Lsn::INVALID, body);
        match cursor.u8("frame tag")? {
            b'w' => Ok(Frame::XLogData(XLogData {
                start_lsn: cursor.lsn("XLogData start")?,
                end_lsn: cursor.lsn("XLogData end")?,
                sent_at: cursor.timestamp("XLogData time")?,
                data: cursor.rest(),
            })),
            b'k' => {
                let keepalive = PrimaryKeepalive {
                    wal_end: cursor.lsn("keepalive WAL end")?,
                    sent_at: cursor.timestamp("keepalive time")?,
                    reply_requested: cursor.flag("keepalive reply flag")?,
                };
                cursor.finish()?;
                Ok(Frame::PrimaryKeepalive(keepalive))
            }
            tag => Err(cursor.error_back(1, DecodeErrorKind::UnknownTag { field: "frame", tag })),
        }
    }
}

/// What a client tells the walsender of its own positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyStatusUpdate {
    /// Received: all before it has arrived in this process.
    pub write_lsn: Lsn,
    /// Durable: the slot's `confirmed_flush_lsn` follows it, and the source may forget what lies before it.
    pub flush_lsn: Lsn,
    /// Visible on the target.
    pub apply_lsn: Lsn,
    pub sent_at: PgTimestamp,
    pub reply_requested: bool,
}

impl StandbyStatusUpdate {
    /// Appends the update as a whole CopyData message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        wire::put_copy_data(out, |body| {
            body.push(b'r');
            body.extend_from_slice(&self.write_lsn.as_u64().to_be_bytes());
            body.extend_from_slice(&self.flush_lsn.as_u64().to_be_bytes());
            body.extend_from_slice(&self.apply_lsn.as_u64().to_be_bytes());
            body.extend_from_slice(&self.sent_at.as_micros().to_be_bytes());
            body.push(self.reply_requested.into());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keepalive_bytes(reply: u8) -> Vec<u8> {
        let mut body = vec![b'k'];
        body.extend(0x1_0000_0002_u64.to_be_bytes());
        body.extend((-5_i64).to_be_bytes());
        body.push(reply);
        body
    }

    #[test]
    fn keepalive() {
        let expected = PrimaryKeepalive {
            wal_end: Lsn::new(0x1_0000_0002),
            sent_at: PgTimestamp::from_micros(-5),
            reply_requested: true,
        };
        assert_eq!(Frame::decode(&keepalive_bytes(1)), Ok(Frame::PrimaryKeepalive(expected)));
    }

    #[test]
    fn a_keepalive_that_is_cut_too_long_or_unclear_is_refused() {
        let body = keepalive_bytes(0);
        for cut in 0..body.len() {
            let error = Frame::decode(&body[..cut]).unwrap_err();
            assert!(matches!(error.kind, DecodeErrorKind::ShortInput { .. }), "{error}");
        }
        let mut long = body.clone();
        long.push(0);
        let error = Frame::decode(&long).unwrap_err();
        assert_eq!((error.offset, error.kind), (18, DecodeErrorKind::TrailingBytes { remaining: 1 }));
        let error = Frame::decode(&keepalive_bytes(2)).unwrap_err();
        assert_eq!(error.offset, 17);
    }

    #[test]
    fn status_update_is_laid_out_as_documented() {
        let mut out = Vec::new();
        StandbyStatusUpdate {
            write_lsn: Lsn::new(3),
            flush_lsn: Lsn::new(2),
            apply_lsn: Lsn::new(1),
            sent_at: PgTimestamp::from_micros(9),
            reply_requested: false,
        }
        .encode(&mut out);
        let mut expected = vec![b'd', 0, 0, 0, 38, b'r'];
        for number in [3_u64, 2, 1, 9] {
            expected.extend(number.to_be_bytes());
        }
        expected.push(0);
        assert_eq!(out, expected);
    }
}
