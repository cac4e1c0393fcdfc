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

/// The newest description of each relation. Whoever holds an older `Arc` holds rows that were sent under it.
#[derive(Debug, Default)]
pub(super) struct RelationMap {
    /// Looked into for every row. The keys are OIDs of the source's catalog, so no one can choose them to collide.
    relations: HashMap<Oid, Arc<Relation>, foldhash::fast::RandomState>,
    versions: u64,
}

impl RelationMap {
    /// Every message replaces what was known, so that statements made for the old shape are not used for the new.
    pub fn replace(&mut self, message: &RelationMessage<'_>) {
        self.versions += 1;
        let columns = message.columns().map(|column| Column {
            name: column.name.to_owned(),
            type_oid: column.type_oid,
            is_identity: column.is_identity,
        });
        let relation = Relation {
            id: message.id,
            version: self.versions,
            // The protocol shortens this one name.
            namespace: if message.namespace.is_empty() { "pg_catalog" } else { message.namespace }.to_owned(),
            name: message.name.to_owned(),
            renamed_from: None,
            replica_identity: message.replica_identity,
            columns: columns.collect(),
            keys: Keys::Apart,
        };
        self.relations.insert(message.id, Arc::new(relation));
    }

    #[inline]
    pub fn get(&self, lsn: Lsn, id: Oid) -> Result<&Arc<Relation>, DecodeError> {
        self.relations.get(&id).ok_or_else(|| {
            let kind = DecodeErrorKind::InvalidValue { field: "relation id without a Relation", value: id.0.into() };
            DecodeError { lsn, offset: 1, kind }
        })
    }
}
