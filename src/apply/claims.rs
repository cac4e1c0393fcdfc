//! What a batch claims of the target: the rows and unique values that it changes, so that batches which claim the same follow
//! each other.
//!
//! In: a batch, and what the target's catalog says of keys. Out: [`Claims`], which meet or do not.
//!
//! ```text
//!   a row by its key, old and new ──► own        own meets own and shared
//!   each unique key, old and new ───► own        shared meets own alone
//!   the parent by a foreign key ────► shared
//!   a table without key ────────────► own by an update or delete, shared by an insert
//! ```
//!
//! **Always holds:** claims only keep sessions out of each other's way. What they miss is found by the target: an old value of
//! a unique column that the source does not send, a value that is equal and written in another way. There the later session
//! waits for a lock of the earlier one, or fails and is done again in its turn (`beside`); it never commits first.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::FixedState;
use pgsluice_proto::Oid;
use pgsluice_proto::pgoutput::Cell;
use tokio_postgres::Client;

use super::failed;
use crate::batch::{Batch, BatchedOperation, OldRow, Row};
use crate::decode::{Keys, Relation};
use crate::error::Error;
use crate::postgres::quote_qualified;

/// A row a key: what it is of, its columns there, and the table's own columns that have its values. Partitions may have unique keys of
/// their own, which are taken for keys of all. A key that no columns make up is one that values cannot be compared by:
/// of an expression, or an exclusion constraint. Foreign keys are asked for only where they are checked.
const KEYS_SQL: &str = "\
WITH keyed AS MATERIALIZED (
    SELECT w.place, w.oid, COALESCE(p.relid, w.oid) AS relid
    FROM (SELECT w.place, to_regclass(w.name)::oid AS oid FROM unnest($1::text[]) WITH ORDINALITY AS w (name, place)) w
    LEFT JOIN LATERAL pg_partition_tree(w.oid) p ON true
)
SELECT DISTINCT k.place, k.oid, k.oid AS of, 'unique'::text AS kind, n.columns AS theirs, n.columns AS own, NOT i.nulls_distinct
FROM keyed k
JOIN LATERAL (
    SELECT x.*, NOT COALESCE((to_jsonb(x) ->> 'indnullsnotdistinct')::boolean, false) AS nulls_distinct
    FROM pg_index x WHERE x.indrelid = k.relid AND (x.indisunique OR x.indisexclusion)
) i ON true
JOIN LATERAL (
    SELECT CASE WHEN i.indisexclusion OR i.indexprs IS NOT NULL THEN '{}' ELSE ARRAY(
        SELECT a.attname::text FROM pg_attribute a
        WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]) ORDER BY 1) END AS columns
) n ON true
UNION ALL
SELECT k.place, k.oid, f.confrelid, 'parent', ARRAY(SELECT c.theirs FROM unnest(m.theirs, m.own) AS c (theirs, own) ORDER BY 1),
    ARRAY(SELECT c.own FROM unnest(m.theirs, m.own) AS c (theirs, own) ORDER BY c.theirs), false
FROM keyed k
JOIN pg_constraint f ON f.conrelid = k.oid AND f.contype = 'f' AND $2
JOIN LATERAL (
    SELECT array_agg(t.attname::text ORDER BY c.n) AS theirs, array_agg(o.attname::text ORDER BY c.n) AS own
    FROM unnest(f.confkey, f.conkey) WITH ORDINALITY AS c (theirs, own, n)
    JOIN pg_attribute t ON t.attrelid = f.confrelid AND t.attnum = c.theirs
    JOIN pg_attribute o ON o.attrelid = f.conrelid AND o.attnum = c.own
) m ON true
WHERE k.relid = k.oid";

/// What one batch claims, as hashes. Two that are the same by chance only have a batch wait.
#[derive(Debug, Default)]
pub(super) struct Claims {
    own: Hashes,
    shared: Hashes,
}

type Hashes = HashSet<u64, BuildHasherDefault<AsItIs>>;

impl Claims {
    /// Whether the two want the same of the target, so that the later has to wait for the earlier.
    pub fn meet(&self, other: &Claims) -> bool {
        intersect(&self.own, &other.own) || intersect(&self.own, &other.shared) || intersect(&self.shared, &other.own)
    }
}

fn intersect(one: &Hashes, other: &Hashes) -> bool {
    let (few, many) = if one.len() <= other.len() { (one, other) } else { (other, one) };
    few.iter().any(|hash| many.contains(hash))
}

/// The keys of the tables that have come, for all sessions of an engine.
#[derive(Clone, Debug)]
pub(super) struct KeyBook {
    tables: Rc<RefCell<HashMap<Oid, TableKeys>>>,
    constraints_fire: bool,
}

#[derive(Debug)]
struct TableKeys {
    described: Arc<Relation>,
    /// Of the whole table.
    table: u64,
    unique: Vec<KeyColumns>,
    parents: Vec<KeyColumns>,
    /// Rows are found by a key that is among `unique`.
    has_key: bool,
    /// It has a key that values cannot be compared by.
    is_opaque: bool,
}

/// A key, by the positions of its columns in the relation.
#[derive(Debug)]
struct KeyColumns {
    of: u64,
    positions: Vec<usize>,
    nulls_are_equal: bool,
}

impl KeyBook {
    /// `constraints_fire` where foreign keys are checked.
    pub fn new(constraints_fire: bool) -> KeyBook {
        KeyBook { tables: Rc::default(), constraints_fire }
    }

    /// Learns the keys of relations that are not known as they are described now.
    pub async fn learn(&self, client: &Client, relations: &[Arc<Relation>]) -> Result<(), Error> {
        let unknown: Vec<_> = relations.iter().filter(|relation| !self.knows(relation)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let names: Vec<_> =
            unknown.iter().map(|relation| quote_qualified(&relation.namespace, &relation.name)).collect();
        let rows = client.query(KEYS_SQL, &[&names, &self.constraints_fire]).await.map_err(failed)?;
        let mut keys: Vec<_> = unknown.iter().map(|relation| TableKeys::of(relation)).collect();
        for row in rows {
            let place: i64 = row.try_get(0).map_err(failed)?;
            if let Some(keys) = usize::try_from(place - 1).ok().and_then(|place| keys.get_mut(place)) {
                keys.add(&row).map_err(failed)?;
            }
        }
        let mut tables = self.tables.borrow_mut();
        for mut keys in keys {
            keys.add_identity();
            tables.insert(keys.described.id, keys);
        }
        Ok(())
    }

    /// What the batch claims; `None` where that cannot be said, and nothing may run beside it.
    pub fn claims(&self, batch: &Batch) -> Option<Claims> {
        let tables = self.tables.borrow();
        let keys_of = |relation: &Arc<Relation>| tables.get(&relation.id).filter(|keys| keys.is_of(relation));
        let keys: Vec<_> = batch.relations().iter().map(keys_of).collect::<Option<_>>()?;
        let mut claims = Claims::default();
        for change in batch.changes() {
            let keys = keys.get(change.relation_index);
            match (change.operation, keys) {
                (BatchedOperation::Insert { new, .. }, Some(keys)) => keys.claim_new(new, &mut claims),
                (BatchedOperation::Update { old, new, .. }, Some(keys)) => {
                    keys.claim_row(&mut claims);
                    old.into_iter().for_each(|old| keys.claim_old(old, &mut claims));
                    keys.claim_new(new, &mut claims);
                }
                (BatchedOperation::Delete { old, .. }, Some(keys)) => {
                    keys.claim_row(&mut claims);
                    keys.claim_old(old, &mut claims);
                }
                (BatchedOperation::Truncate(_), _) | (_, None) => return None,
            }
        }
        Some(claims)
    }

    fn knows(&self, relation: &Arc<Relation>) -> bool {
        let mut tables = self.tables.borrow_mut();
        let Some(keys) = tables.get_mut(&relation.id) else { return false };
        if keys.is_of(relation) {
            return true;
        }
        // Described again as it was, as each TRUNCATE has it.
        let is_same = Relation { version: relation.version, ..Relation::clone(&keys.described) } == **relation;
        if is_same {
            keys.described = Arc::clone(relation);
        }
        is_same
    }
}

impl TableKeys {
    fn of(relation: &Arc<Relation>) -> TableKeys {
        let described = Arc::clone(relation);
        let table = hash_of([described.namespace.as_str(), &described.name]);
        TableKeys { described, table, unique: Vec::new(), parents: Vec::new(), has_key: false, is_opaque: false }
    }

    fn is_of(&self, relation: &Relation) -> bool {
        self.described.version == relation.version
    }

    /// A row of [`KEYS_SQL`].
    fn add(&mut self, row: &tokio_postgres::Row) -> Result<(), tokio_postgres::Error> {
        let (of, kind): (u32, &str) = (row.try_get(2)?, row.try_get(3)?);
        let (theirs, own): (Vec<String>, Vec<String>) = (row.try_get(4)?, row.try_get(5)?);
        let position = |name: &String| self.described.columns.iter().position(|column| column.name == *name);
        let positions: Option<Vec<_>> = own.iter().map(position).collect();
        // Further columns of the target keep their values: what they make up is not ours to compare.
        let positions = positions.filter(|positions| !positions.is_empty());
        let of = hash_of(std::iter::once(of.to_string()).chain(theirs));
        match (kind, positions) {
            ("parent", positions) => {
                let key = |positions| KeyColumns { of, positions, nulls_are_equal: false };
                self.parents.extend(positions.map(key));
            }
            (_, Some(positions)) => {
                self.unique.push(KeyColumns { of, positions, nulls_are_equal: row.try_get(6)? });
            }
            (_, None) => self.is_opaque = true,
        }
        Ok(())
    }

    /// Rows are found by the replica identity. Where no unique key of the target is within it, it is a key of its own.
    fn add_identity(&mut self) {
        let is_identity = |&position: &usize| self.described.columns[position].is_identity;
        let identity: Vec<_> = (0..self.described.columns.len()).filter(is_identity).collect();
        let is_whole = identity.len() == self.described.columns.len();
        self.has_key = self.unique.iter().any(|key| key.positions.iter().all(is_identity));
        if !self.has_key && !identity.is_empty() && !is_whole {
            self.unique.push(KeyColumns { of: self.table, positions: identity, nulls_are_equal: true });
            self.has_key = true;
        }
        // What rules make of keys only the target can compare.
        self.is_opaque |= self.described.keys != Keys::Apart;
    }

    /// Of an update or delete, which finds its row.
    fn claim_row(&self, claims: &mut Claims) {
        if !self.has_key {
            claims.own.insert(self.table);
        }
    }

    fn claim_new(&self, new: Row<'_>, claims: &mut Claims) {
        self.claim_table(claims);
        for key in &self.unique {
            claims.own.extend(key.hash(new, |_| true));
        }
        for key in &self.parents {
            claims.shared.extend(key.hash(new, |_| true));
        }
    }

    fn claim_old(&self, old: OldRow<'_>, claims: &mut Claims) {
        self.claim_table(claims);
        let is_known = |position: usize| match old {
            OldRow::Key(_) => self.described.columns[position].is_identity,
            OldRow::Full(_) => true,
        };
        for key in &self.unique {
            claims.own.extend(key.hash(old.row(), is_known));
        }
    }

    fn claim_table(&self, claims: &mut Claims) {
        if self.is_opaque {
            claims.own.insert(self.table);
        } else if !self.has_key {
            claims.shared.insert(self.table);
        }
    }
}

impl KeyColumns {
    /// `None` where the row has no value that could meet another, or one that is not known.
    fn hash(&self, row: Row<'_>, is_known: impl Fn(usize) -> bool) -> Option<u64> {
        let mut hasher = FixedState::with_seed(self.of).build_hasher();
        for &position in &self.positions {
            match row.cell(position) {
                _ if !is_known(position) => return None,
                Cell::Text(value) | Cell::Binary(value) => {
                    hasher.write_usize(value.len());
                    hasher.write(value);
                }
                Cell::Null if self.nulls_are_equal => hasher.write_usize(usize::MAX),
                Cell::Null | Cell::Unchanged => return None,
            }
        }
        Some(hasher.finish())
    }
}

fn hash_of(texts: impl IntoIterator<Item = impl AsRef<str>>) -> u64 {
    let mut hasher = FixedState::with_seed(0).build_hasher();
    for text in texts {
        hasher.write_usize(text.as_ref().len());
        hasher.write(text.as_ref().as_bytes());
    }
    hasher.finish()
}

/// What is hashed already.
#[derive(Debug, Default)]
pub(super) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
