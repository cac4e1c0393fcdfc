//! The server's half of the formats: messages and frames back to bytes, written from the documentation's layouts and
//! not from the decoder, so that what both agree on is checked twice.

use pgsluice_proto::frame::Frame;
use pgsluice_proto::pgoutput::{Cell, Message, OldTuple, Prepared, ReplicaIdentity, Tuple};
use pgsluice_proto::{Lsn, PgTimestamp, Xid};

/// Appends the body of the CopyData message that carries `frame`.
pub fn frame(frame: &Frame<'_>, out: &mut Vec<u8>) {
    match frame {
        Frame::XLogData(data) => {
            out.push(b'w');
            lsn(data.start_lsn, out);
            lsn(data.end_lsn, out);
            timestamp(data.sent_at, out);
            out.extend(data.data);
        }
        Frame::PrimaryKeepalive(keepalive) => {
            out.push(b'k');
            lsn(keepalive.wal_end, out);
            timestamp(keepalive.sent_at, out);
            out.push(keepalive.reply_requested.into());
        }
    }
}

/// Appends one `pgoutput` message.
pub fn message(message: &Message<'_>, out: &mut Vec<u8>) {
    match message {
        Message::Begin(begin) => {
            out.push(b'B');
            lsn(begin.commit_lsn, out);
            timestamp(begin.commit_time, out);
            xid(begin.xid, out);
        }
        Message::Logical(logical) => {
            out.push(b'M');
            segment_xid(logical.xid, out);
            out.push(logical.transactional.into());
            lsn(logical.lsn, out);
            string(logical.prefix, out);
            sized(logical.content, out);
        }
        Message::Commit(commit) => {
            out.extend([b'C', 0]);
            lsn(commit.commit_lsn, out);
            lsn(commit.end_lsn, out);
            timestamp(commit.commit_time, out);
        }
        Message::Origin(origin) => {
            out.push(b'O');
            lsn(origin.commit_lsn, out);
            string(origin.name, out);
        }
        Message::Relation(relation) => {
            out.push(b'R');
            segment_xid(relation.xid, out);
            out.extend(relation.id.0.to_be_bytes());
            string(relation.namespace, out);
            string(relation.name, out);
            out.push(match relation.replica_identity {
                ReplicaIdentity::Default => b'd',
                ReplicaIdentity::Nothing => b'n',
                ReplicaIdentity::Full => b'f',
                ReplicaIdentity::Index => b'i',
            });
            count(relation.columns().len(), out);
            for column in relation.columns() {
                out.push(column.is_identity.into());
                string(column.name, out);
                out.extend(column.type_oid.0.to_be_bytes());
                out.extend(column.type_modifier.to_be_bytes());
            }
        }
        Message::Type(named) => {
            out.push(b'Y');
            segment_xid(named.xid, out);
            out.extend(named.oid.0.to_be_bytes());
            string(named.namespace, out);
            string(named.name, out);
        }
        Message::Insert(insert) => {
            out.push(b'I');
            segment_xid(insert.xid, out);
            out.extend(insert.relation.0.to_be_bytes());
            tuple(b'N', &insert.new, out);
        }
        Message::Update(update) => {
            out.push(b'U');
            segment_xid(update.xid, out);
            out.extend(update.relation.0.to_be_bytes());
            if let Some(old) = &update.old {
                old_tuple(old, out);
            }
            tuple(b'N', &update.new, out);
        }
        Message::Delete(delete) => {
            out.push(b'D');
            segment_xid(delete.xid, out);
            out.extend(delete.relation.0.to_be_bytes());
            old_tuple(&delete.old, out);
        }
        Message::Truncate(truncate) => {
            out.push(b'T');
            segment_xid(truncate.xid, out);
            out.extend(length(truncate.relations().len()));
            out.push(u8::from(truncate.cascade) | u8::from(truncate.restart_identity) << 1);
            for relation in truncate.relations() {
                out.extend(relation.0.to_be_bytes());
            }
        }
        Message::StreamStart(start) => {
            out.push(b'S');
            xid(start.xid, out);
            out.push(start.first_segment.into());
        }
        Message::StreamStop => out.push(b'E'),
        Message::StreamCommit(commit) => {
            out.push(b'c');
            xid(commit.xid, out);
            out.push(0);
            lsn(commit.commit_lsn, out);
            lsn(commit.end_lsn, out);
            timestamp(commit.commit_time, out);
        }
        Message::StreamAbort(stream) => {
            out.push(b'A');
            xid(stream.xid, out);
            xid(stream.subxid, out);
            if let Some(abort) = stream.abort {
                lsn(abort.lsn, out);
                timestamp(abort.time, out);
            }
        }
        Message::BeginPrepare(prepare) => {
            out.push(b'b');
            prepared(prepare, out);
        }
        Message::Prepare(prepare) => {
            out.extend([b'P', 0]);
            prepared(prepare, out);
        }
        Message::CommitPrepared(commit) => {
            out.extend([b'K', 0]);
            lsn(commit.commit_lsn, out);
            lsn(commit.end_lsn, out);
            timestamp(commit.commit_time, out);
            xid(commit.xid, out);
            string(commit.gid, out);
        }
        Message::RollbackPrepared(rollback) => {
            out.extend([b'r', 0]);
            lsn(rollback.prepare_end_lsn, out);
            lsn(rollback.rollback_end_lsn, out);
            timestamp(rollback.prepare_time, out);
            timestamp(rollback.rollback_time, out);
            xid(rollback.xid, out);
            string(rollback.gid, out);
        }
        Message::StreamPrepare(prepare) => {
            out.extend([b'p', 0]);
            prepared(prepare, out);
        }
    }
}

fn prepared(prepare: &Prepared<'_>, out: &mut Vec<u8>) {
    lsn(prepare.prepare_lsn, out);
    lsn(prepare.end_lsn, out);
    timestamp(prepare.prepare_time, out);
    xid(prepare.xid, out);
    string(prepare.gid, out);
}

fn old_tuple(old: &OldTuple<'_>, out: &mut Vec<u8>) {
    match old {
        OldTuple::Key(old) => tuple(b'K', old, out),
        OldTuple::Full(old) => tuple(b'O', old, out),
    }
}

fn tuple(tag: u8, tuple: &Tuple<'_>, out: &mut Vec<u8>) {
    out.push(tag);
    count(tuple.len(), out);
    for cell in tuple.cells() {
        match cell {
            Cell::Null => out.push(b'n'),
            Cell::Unchanged => out.push(b'u'),
            Cell::Text(value) => {
                out.push(b't');
                sized(value, out);
            }
            Cell::Binary(value) => {
                out.push(b'b');
                sized(value, out);
            }
        }
    }
}

fn lsn(lsn: Lsn, out: &mut Vec<u8>) {
    out.extend(lsn.as_u64().to_be_bytes());
}

fn timestamp(time: PgTimestamp, out: &mut Vec<u8>) {
    out.extend(time.as_micros().to_be_bytes());
}

fn xid(xid: Xid, out: &mut Vec<u8>) {
    out.extend(xid.0.to_be_bytes());
}

fn segment_xid(present: Option<Xid>, out: &mut Vec<u8>) {
    if let Some(present) = present {
        xid(present, out);
    }
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.extend(text.as_bytes());
    out.push(0);
}

fn sized(value: &[u8], out: &mut Vec<u8>) {
    out.extend(length(value.len()));
    out.extend(value);
}

fn length(length: usize) -> [u8; 4] {
    i32::try_from(length).expect("it was decoded from four bytes").to_be_bytes()
}

fn count(columns: usize, out: &mut Vec<u8>) {
    out.extend(u16::try_from(columns).expect("it was decoded from two bytes").to_be_bytes());
}
