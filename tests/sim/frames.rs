//! A walsender's messages as bytes ("Logical Replication Message Formats", "Streaming Replication Protocol").

use pgsluice_proto::wire::put_copy_data;

use super::history::{Change, Form, Transaction};
use super::tables::{Row, SCHEMA, TABLES, Table};

pub fn keepalive(wal_end: u64, reply_requested: bool, out: &mut Vec<u8>) {
    put_copy_data(out, |body| {
        body.push(b'k');
        body.extend(wal_end.to_be_bytes());
        body.extend(0_i64.to_be_bytes());
        body.push(reply_requested.into());
    });
}

pub fn begin(transaction: &Transaction, out: &mut Vec<u8>) {
    data(transaction.commit_lsn, out, |body| {
        body.push(b'B');
        body.extend(transaction.commit_lsn.to_be_bytes());
        body.extend(commit_time(transaction));
        body.extend(transaction.xid.to_be_bytes());
    });
}

pub fn commit(transaction: &Transaction, out: &mut Vec<u8>) {
    data(transaction.commit_lsn, out, |body| {
        body.extend([b'C', 0]);
        body.extend(transaction.commit_lsn.to_be_bytes());
        body.extend(transaction.end_lsn.to_be_bytes());
        body.extend(commit_time(transaction));
    });
}

pub fn stream_start(xid: u32, is_first: bool, out: &mut Vec<u8>) {
    data(0, out, |body| {
        body.push(b'S');
        body.extend(xid.to_be_bytes());
        body.push(is_first.into());
    });
}

pub fn stream_stop(out: &mut Vec<u8>) {
    data(0, out, |body| body.push(b'E'));
}

pub fn stream_abort(xid: u32, subxid: u32, out: &mut Vec<u8>) {
    data(0, out, |body| {
        body.push(b'A');
        body.extend(xid.to_be_bytes());
        body.extend(subxid.to_be_bytes());
    });
}

pub fn stream_commit(transaction: &Transaction, out: &mut Vec<u8>) {
    data(transaction.commit_lsn, out, |body| {
        body.push(b'c');
        body.extend(transaction.xid.to_be_bytes());
        body.push(0);
        body.extend(transaction.commit_lsn.to_be_bytes());
        body.extend(transaction.end_lsn.to_be_bytes());
        body.extend(commit_time(transaction));
    });
}

/// With the transaction it belongs to, inside of a segment.
pub fn relation(table: &Table, xid: Option<u32>, out: &mut Vec<u8>) {
    data(0, out, |body| {
        tag(b'R', xid, body);
        body.extend(table.oid.to_be_bytes());
        string(SCHEMA, body);
        string(table.name, body);
        body.push(if table.is_full { b'f' } else { b'd' });
        body.extend((table.columns.len() as u16).to_be_bytes());
        for (position, (name, type_oid)) in table.columns.iter().enumerate() {
            body.push((table.is_full || table.key.contains(&position)).into());
            string(name, body);
            body.extend(type_oid.to_be_bytes());
            body.extend((-1_i32).to_be_bytes());
        }
    });
}

/// The tables whose descriptions have to be known before the change.
pub fn tables_of(change: &Change) -> Vec<usize> {
    match change {
        Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => vec![*table],
        Change::Truncate { tables } => tables.clone(),
    }
}

/// With the transaction it belongs to, inside of a segment.
pub fn change(change: &Change, xid: Option<u32>, lsn: u64, form: Form, out: &mut Vec<u8>) {
    data(lsn, out, |body| match change {
        Change::Insert { table, new } => {
            tag(b'I', xid, body);
            body.extend(TABLES[*table].oid.to_be_bytes());
            tuple(b'N', new, &[], form, body);
        }
        Change::Update { table, old, new, unchanged } => {
            tag(b'U', xid, body);
            body.extend(TABLES[*table].oid.to_be_bytes());
            if let Some(old) = old {
                old_tuple(&TABLES[*table], old, form, body);
            }
            tuple(b'N', new, unchanged, form, body);
        }
        Change::Delete { table, old } => {
            tag(b'D', xid, body);
            body.extend(TABLES[*table].oid.to_be_bytes());
            old_tuple(&TABLES[*table], old, form, body);
        }
        Change::Truncate { tables } => {
            tag(b'T', xid, body);
            body.extend((tables.len() as u32).to_be_bytes());
            body.push(0);
            tables.iter().for_each(|table| body.extend(TABLES[*table].oid.to_be_bytes()));
        }
    });
}

fn tag(tag: u8, xid: Option<u32>, body: &mut Vec<u8>) {
    body.push(tag);
    body.extend(xid.iter().flat_map(|xid| xid.to_be_bytes()));
}

fn data(lsn: u64, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    put_copy_data(out, |body| {
        body.push(b'w');
        body.extend(lsn.to_be_bytes());
        body.extend(lsn.to_be_bytes());
        body.extend(0_i64.to_be_bytes());
        write(body);
    });
}

/// Of an old row, the whole of it under FULL, else its key and NULLs.
fn old_tuple(table: &Table, old: &Row, form: Form, body: &mut Vec<u8>) {
    if table.is_full {
        return tuple(b'O', old, &[], form, body);
    }
    let key = (0..old.len()).map(|position| old[position].clone().filter(|_| table.key.contains(&position)));
    tuple(b'K', &key.collect(), &[], form, body);
}

fn tuple(tag: u8, row: &Row, unchanged: &[usize], form: Form, body: &mut Vec<u8>) {
    body.push(tag);
    body.extend((row.len() as u16).to_be_bytes());
    for (position, cell) in row.iter().enumerate() {
        match cell {
            _ if unchanged.contains(&position) => body.push(b'u'),
            None => body.push(b'n'),
            Some(value) => {
                body.push(if form == Form::Text { b't' } else { b'b' });
                body.extend((value.len() as u32).to_be_bytes());
                body.extend(&value[..]);
            }
        }
    }
}

fn commit_time(transaction: &Transaction) -> [u8; 8] {
    (i64::from(transaction.xid) * 1_000_000).to_be_bytes()
}

fn string(text: &str, body: &mut Vec<u8>) {
    body.extend(text.as_bytes());
    body.push(0);
}
