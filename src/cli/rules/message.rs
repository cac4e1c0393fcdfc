//! Messages as a source would send them ("Logical Replication Message Formats" in PostgreSQL's documentation), so that sample
//! rows take the way of real ones. Values travel as text.

use pgsluice_proto::pgoutput::ReplicaIdentity;

use super::sample::{Old, Sample, SampleChange, SampleValue};
use crate::decode::Relation;

/// The type modifier of columns whose type has none.
const NO_MODIFIER: i32 = -1;

/// A transaction of which nothing is known.
pub fn begin() -> Vec<u8> {
    const LSN_TIME_XID: [u8; 20] = [0; 20];
    [b"B".as_slice(), &LSN_TIME_XID].concat()
}

pub fn relation(relation: &Relation) -> Vec<u8> {
    let identity = match relation.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    };
    let mut message = head(b'R', relation);
    push_name(&mut message, &relation.namespace);
    push_name(&mut message, &relation.name);
    message.push(identity);
    push_count(&mut message, relation.columns.len());
    for column in &relation.columns {
        message.push(u8::from(column.is_identity));
        push_name(&mut message, &column.name);
        message.extend(column.type_oid.0.to_be_bytes());
        message.extend(NO_MODIFIER.to_be_bytes());
    }
    message
}

pub fn change(relation: &Relation, sample: &Sample) -> Vec<u8> {
    let (tag, old, new) = match &sample.change {
        SampleChange::Insert { new } => (b'I', None, Some(new)),
        SampleChange::Update { old, new } => (b'U', old.as_ref(), Some(new)),
        SampleChange::Delete { old } => (b'D', Some(old), None),
    };
    let mut message = head(tag, relation);
    match old {
        Some(Old::Key(values)) => push_tuple(&mut message, b'K', values),
        Some(Old::Full(values)) => push_tuple(&mut message, b'O', values),
        None => {}
    }
    if let Some(values) = new {
        push_tuple(&mut message, b'N', values);
    }
    message
}

fn head(tag: u8, relation: &Relation) -> Vec<u8> {
    let mut message = vec![tag];
    message.extend(relation.id.0.to_be_bytes());
    message
}

/// Names of PostgreSQL have no zero byte.
fn push_name(message: &mut Vec<u8>, name: &str) {
    message.extend(name.bytes());
    message.push(0);
}

/// A table has 1600 columns at most.
fn push_count(message: &mut Vec<u8>, columns: usize) {
    message.extend((columns as u16).to_be_bytes());
}

fn push_tuple(message: &mut Vec<u8>, tag: u8, values: &[SampleValue]) {
    message.push(tag);
    push_count(message, values.len());
    for value in values {
        match value {
            SampleValue::Null => message.push(b'n'),
            SampleValue::Unchanged => message.push(b'u'),
            SampleValue::Text(text) => {
                message.push(b't');
                // A whole sample is shorter than what the length can say.
                message.extend((text.len() as u32).to_be_bytes());
                message.extend(text.bytes());
            }
        }
    }
}
