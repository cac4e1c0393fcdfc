//! Relation and Type messages: what the rows that follow mean.

use super::message::segment_xid;
use crate::cursor::Cursor;
use crate::{DecodeError, DecodeErrorKind, Oid, Xid};

/// Which columns of an old row the source writes to WAL for updates and deletes (`pg_class.relreplident`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing: only inserts can be replicated.
    Nothing,
    /// The whole row.
    Full,
    /// A unique index over columns that are not null.
    Index,
}

/// A table as the source has it now. It replaces all that was known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationMessage<'a> {
    /// The streamed transaction that sees it so.
    pub xid: Option<Xid>,
    pub id: Oid,
    /// Empty for `pg_catalog`.
    pub namespace: &'a str,
    pub name: &'a str,
    pub replica_identity: ReplicaIdentity,
    columns: u16,
    encoded_columns: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    /// Part of the replica identity; true for every column under FULL.
    pub is_identity: bool,
    pub name: &'a str,
    pub type_oid: Oid,
    /// `pg_attribute.atttypmod`, -1 for none.
    pub type_modifier: i32,
}

impl<'a> RelationMessage<'a> {
    pub(super) fn decode(cursor: &mut Cursor<'a>, in_segment: bool) -> Result<RelationMessage<'a>, DecodeError> {
        let xid = segment_xid(cursor, in_segment)?;
        let id = cursor.oid("relation id")?;
        let namespace = cursor.string("relation namespace")?;
        let name = cursor.string("relation name")?;
        let replica_identity = match cursor.u8("replica identity")? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            tag => return Err(cursor.error_back(1, DecodeErrorKind::UnknownTag { field: "replica identity", tag })),
        };
        let columns = cursor.u16("relation column count")?;
        let start = cursor.offset();
        for _ in 0..columns {
            Column::decode(cursor)?;
        }
        let encoded_columns = cursor.since(start);
        Ok(RelationMessage { xid, id, namespace, name, replica_identity, columns, encoded_columns })
    }

    /// The columns in the order in which rows carry them.
    pub fn columns(&self) -> impl ExactSizeIterator<Item = Column<'a>> {
        let mut cursor = Cursor::new(crate::Lsn::INVALID, self.encoded_columns);
        (0..usize::from(self.columns))
            .map(move |_| Column::decode(&mut cursor).expect("RelationMessage::decode has read every column"))
    }
}

impl<'a> Column<'a> {
    fn decode(cursor: &mut Cursor<'a>) -> Result<Column<'a>, DecodeError> {
        Ok(Column {
            is_identity: cursor.flag("column flags")?,
            name: cursor.string("column name")?,
            type_oid: cursor.oid("column type")?,
            type_modifier: cursor.i32("column type modifier")?,
        })
    }
}

/// Names a type that is not built in, before the Relation that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeMessage<'a> {
    pub xid: Option<Xid>,
    pub oid: Oid,
    /// Empty for `pg_catalog`.
    pub namespace: &'a str,
    pub name: &'a str,
}

impl<'a> TypeMessage<'a> {
    pub(super) fn decode(cursor: &mut Cursor<'a>, in_segment: bool) -> Result<TypeMessage<'a>, DecodeError> {
        let xid = segment_xid(cursor, in_segment)?;
        Ok(TypeMessage {
            xid,
            oid: cursor.oid("type id")?,
            namespace: cursor.string("type namespace")?,
            name: cursor.string("type name")?,
        })
    }
}
