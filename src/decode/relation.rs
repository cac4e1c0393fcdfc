//! What the source has said of its relations so far in this stream.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use pgsluice_proto::pgoutput::{RelationMessage, ReplicaIdentity};
use pgsluice_proto::{DecodeError, DecodeErrorKind, Lsn, Oid};

use crate::postgres::quote_qualified;

/// A table of the source as one Relation message described it. It never changes: the next message makes a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    pub id: Oid,
    /// Counts the Relation messages of the stream: another number is another description.
    pub version: u64,
    pub namespace: String,
    pub name: String,
    /// Schema and name on the source, where rules have given the table others.
    pub renamed_from: Option<(String, String)>,
    pub replica_identity: ReplicaIdentity,
    /// In the order in which rows carry them.
    pub columns: Vec<Column>,
    /// No source says it; rules do.
    pub keys: Keys,
}

/// How the keys of rows on the target belong to the rows of the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keys {
    /// Two rows of the source never have one.
    #[default]
    Apart,
    /// Two rows of the source may come to have one, and only the target tells whether they do.
    MayMeet,
    /// The target keeps rows that were deleted, so that an insert may find its key there.
    KeptDeleted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_oid: Oid,
    /// `atttypmod`; `None` where nobody has said it, as of values that rules make.
    pub type_modifier: Option<i32>,
    /// Part of the replica identity; true for every column under FULL.
    pub is_identity: bool,
}

impl Relation {
    /// Schema and name on the source.
    pub fn on_source(&self) -> (&str, &str) {
        match &self.renamed_from {
            Some((schema, name)) => (schema, name),
            None => (&self.namespace, &self.name),
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quote_qualified(&self.namespace, &self.name))
    }
}

/// When a Relation message came, which is not when it is decoded if it was kept with its transaction meanwhile. The later
/// one is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival(u64);

impl Arrival {
    /// In the `segment`th segment of streamed transactions, counted from 1.
    pub fn in_segment(segment: u64) -> Arrival {
        Arrival(2 * segment)
    }

    /// Of an ordinary transaction, after so many segments.
    pub fn after_segments(segments: u64) -> Arrival {
        Arrival(2 * segments + 1)
    }

    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// One that [`Arrival::as_u64`] has given.
    pub fn from_u64(number: u64) -> Arrival {
        Arrival(number)
    }

    fn is_in_segment(self) -> bool {
        self.0.is_multiple_of(2)
    }
}

/// A description, and when it came.
#[derive(Clone, Debug)]
struct Described {
    relation: Arc<Relation>,
    arrival: Arrival,
}

/// The newest description of each relation. Whoever holds an older `Arc` holds rows that were sent under it.
///
/// The source describes a relation once for each streamed transaction, and when that commits, takes the description for
/// known outside of it too, unless the relation has changed since (`cleanup_rel_sync_cache` in `pgoutput.c`). So inside of a
/// transaction its own descriptions count, and behind it those that came last.
#[derive(Debug, Default)]
pub(super) struct RelationMap {
    /// Looked into for every row. The keys are OIDs of the source's catalog, so no one can choose them to collide.
    relations: HashMap<Oid, Described, foldhash::fast::RandomState>,
    /// Those that had come later than what the transaction says.
    newer: Vec<Described>,
    versions: u64,
}

impl RelationMap {
    /// Every message replaces what was known, so that statements made for the old shape are not used for the new. One that
    /// a streamed transaction repeats tells nothing new.
    pub fn replace(&mut self, message: &RelationMessage<'_>, arrival: Arrival) {
        let columns = message.columns().map(|column| Column {
            name: column.name.to_owned(),
            type_oid: column.type_oid,
            type_modifier: Some(column.type_modifier),
            is_identity: column.is_identity,
        });
        let relation = Relation {
            id: message.id,
            version: self.versions + 1,
            // The protocol shortens this one name.
            namespace: if message.namespace.is_empty() { "pg_catalog" } else { message.namespace }.to_owned(),
            name: message.name.to_owned(),
            renamed_from: None,
            replica_identity: message.replica_identity,
            columns: columns.collect(),
            keys: Keys::Apart,
        };
        if arrival.is_in_segment()
            && let Some(known) = self.relations.get_mut(&message.id)
            && (Relation { version: known.relation.version, ..relation.clone() }) == *known.relation
        {
            known.arrival = known.arrival.max(arrival);
            return;
        }
        self.versions += 1;
        let before = self.relations.insert(message.id, Described { relation: Arc::new(relation), arrival });
        self.newer.extend(before.filter(|before| before.arrival > arrival));
    }

    /// The transaction has ended.
    #[inline]
    pub fn end_transaction(&mut self) {
        for newer in self.newer.drain(..) {
            let described = self.relations.get(&newer.relation.id);
            if described.is_none_or(|described| described.arrival < newer.arrival) {
                self.relations.insert(newer.relation.id, newer);
            }
        }
    }

    #[inline]
    pub fn get(&self, lsn: Lsn, id: Oid) -> Result<&Arc<Relation>, DecodeError> {
        self.relations.get(&id).map(|described| &described.relation).ok_or_else(|| {
            let kind = DecodeErrorKind::InvalidValue { field: "relation id without a Relation", value: id.0.into() };
            DecodeError { lsn, offset: 1, kind }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgsluice_proto::pgoutput::{Decoder, Message};

    fn describe(map: &mut RelationMap, column: &[u8], arrival: Arrival) {
        let mut payload = b"R\0\0\0\x09a\0t\0d\0\x01\x01".to_vec();
        payload.extend(column);
        payload.extend(b"\0\0\0\0\x14\xff\xff\xff\xff");
        let mut decoder = Decoder::new();
        let Ok(Message::Relation(relation)) = decoder.decode(Lsn::INVALID, &payload) else { panic!("no relation") };
        map.replace(&relation, arrival);
    }

    fn known(map: &RelationMap) -> (&str, u64) {
        let relation = map.get(Lsn::INVALID, Oid(9)).unwrap();
        (&relation.columns[0].name, relation.version)
    }

    #[test]
    fn inside_of_a_streamed_transaction_its_own_description_counts_and_behind_it_the_last_that_came() {
        let mut map = RelationMap::default();
        describe(&mut map, b"now", Arrival::after_segments(3));
        // Came before that, and is decoded after it.
        describe(&mut map, b"before", Arrival::in_segment(3));
        assert_eq!(known(&map), ("before", 2));
        describe(&mut map, b"later", Arrival::in_segment(3));
        assert_eq!(known(&map), ("later", 3));
        map.end_transaction();
        assert_eq!(known(&map), ("now", 1));
        // Came after it.
        describe(&mut map, b"later", Arrival::in_segment(4));
        map.end_transaction();
        assert_eq!(known(&map), ("later", 4));
    }

    #[test]
    fn what_a_streamed_transaction_repeats_is_no_new_description() {
        let mut map = RelationMap::default();
        describe(&mut map, b"a", Arrival::after_segments(0));
        describe(&mut map, b"a", Arrival::in_segment(1));
        map.end_transaction();
        assert_eq!(known(&map), ("a", 1));
        describe(&mut map, b"a", Arrival::after_segments(1));
        assert_eq!(known(&map), ("a", 2));
    }
}
