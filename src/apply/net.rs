//! Netting: the changes of a run of one table, reduced to what each key comes to.
//!
//! In: changes in the order of the source, none of which changes the key of its row. Out: at most one delete and one
//! insert or update a key.
//!
//! ```text
//!            insert          update            delete
//!  (none)    Insert          Update            Delete
//!  Insert    –               Insert, merged    Gone
//!  Update    –               Update, merged    Delete
//!  Delete    Replace         –                 –
//!  Replace   –               Replace, merged   Delete
//!  Gone      Insert          –                 –
//! ```
//!
//! A dash is a history that no table with a key can have; the run is then applied as it came, which names the change.
//!
//! **Always holds:**
//! - Merging keeps the newest known value of every column: an unchanged TOAST cell never hides one that is known.
//! - A key is compared by the bytes that the source sent. A key that is equal by its type's rules and other in its bytes
//!   is a change of key, and those do not come here.
//! - Rows of one key are one row. Under REPLICA IDENTITY FULL the key may be the target's alone, and the source may have
//!   two of them: so what is changed after an insert has to be what was inserted. Otherwise the history is irregular.
//! - No row allocates: versions and slots are runs in vectors that are used again.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use pgsluice_proto::pgoutput::Cell;

use crate::batch::{Kinds, OldRow, Row};

/// What a key comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Insert,
    Update,
    Delete,
    /// A delete and then an insert: columns that only the target has start from their defaults again.
    Replace,
    /// Inserted and deleted within the run.
    Gone,
}

/// A row as one change left it.
#[derive(Clone, Copy, Debug)]
struct Version<'a> {
    row: Row<'a>,
    /// Where the cells that this one left unchanged are to be found.
    previous: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Slot<'a> {
    outcome: Outcome,
    /// A row that holds the key.
    key: Row<'a>,
    /// The newest version; of no meaning for Delete and Gone.
    version: u32,
}

/// A history that the table above does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Irregular;

/// The net of one run.
#[derive(Debug)]
pub(super) struct Net<'a> {
    /// Positions of the key's columns; none where only inserts come.
    key: Vec<usize>,
    slots: Vec<Slot<'a>>,
    versions: Vec<Version<'a>>,
    /// Of `slots`, the first that many by their keys. It lags until a key is looked for.
    index: HashTable<u32>,
    /// Something else than an insert has come. Inserts alone need no index: equal keys are found by the target.
    is_mixed: bool,
    kinds: Kinds,
}

/// The newest version of a row, whole as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct NetRow<'n, 'a> {
    versions: &'n [Version<'a>],
    newest: Version<'a>,
}

impl<'a> NetRow<'_, 'a> {
    /// The newest known value of the column; unchanged where no version of the run has it.
    #[inline]
    pub fn cell(&self, column: usize) -> Cell<'a> {
        match self.newest.row.cell(column) {
            Cell::Unchanged => self.earlier_cell(column),
            cell => cell,
        }
    }

    fn earlier_cell(&self, column: usize) -> Cell<'a> {
        let mut version = &self.newest;
        while let Some(previous) = version.previous {
            version = &self.versions[previous as usize];
            match version.row.cell(column) {
                Cell::Unchanged => {}
                cell => return cell,
            }
        }
        Cell::Unchanged
    }

    /// Every column is known, found without looking at each.
    pub fn is_surely_whole(&self) -> bool {
        !self.newest.row.kinds().has_unchanged()
    }

    /// About the bytes that its values take; what versions before the newest add is left out.
    pub fn value_bytes(&self) -> usize {
        self.newest.row.value_bytes()
    }
}

impl<'a> Net<'a> {
    /// `changes` is about how many will come.
    pub fn new(key: Vec<usize>, changes: usize) -> Net<'a> {
        Net {
            key,
            slots: Vec::with_capacity(changes),
            versions: Vec::with_capacity(changes),
            index: HashTable::new(),
            is_mixed: false,
            kinds: Kinds::default(),
        }
    }

    /// `key` of the run must hold columns unless only inserts come.
    pub fn insert(&mut self, new: Row<'a>) -> Result<(), Irregular> {
        self.kinds = self.kinds.union(new.kinds());
        let known = if self.is_mixed { self.find(new)? } else { None };
        let Some(slot) = known else {
            self.add(Outcome::Insert, new, Some(new));
            return Ok(());
        };
        let outcome = match self.slots[slot].outcome {
            Outcome::Delete => Outcome::Replace,
            Outcome::Gone => Outcome::Insert,
            Outcome::Insert | Outcome::Update | Outcome::Replace => return Err(Irregular),
        };
        let version = self.push_version(new, None);
        self.slots[slot] = Slot { outcome, version, ..self.slots[slot] };
        Ok(())
    }

    /// `new` has the key of the row that it changes.
    pub fn update(&mut self, old: Option<OldRow<'a>>, new: Row<'a>) -> Result<(), Irregular> {
        self.kinds = self.kinds.union(new.kinds());
        self.is_mixed = true;
        let Some(slot) = self.find(new)? else {
            self.add(Outcome::Update, new, Some(new));
            return Ok(());
        };
        old.map_or(Ok(()), |old| self.check_same_row(slot, old))?;
        match self.slots[slot].outcome {
            Outcome::Insert | Outcome::Update | Outcome::Replace => {
                let previous = new.kinds().has_unchanged().then_some(self.slots[slot].version);
                self.slots[slot].version = self.push_version(new, previous);
                Ok(())
            }
            Outcome::Delete | Outcome::Gone => Err(Irregular),
        }
    }

    /// `old` holds the key.
    pub fn delete(&mut self, old: OldRow<'a>) -> Result<(), Irregular> {
        let row = old.row();
        self.kinds = self.kinds.union(row.kinds());
        self.is_mixed = true;
        let Some(slot) = self.find(row)? else {
            self.add(Outcome::Delete, row, None);
            return Ok(());
        };
        self.check_same_row(slot, old)?;
        self.slots[slot].outcome = match self.slots[slot].outcome {
            Outcome::Insert => Outcome::Gone,
            Outcome::Update | Outcome::Replace => Outcome::Delete,
            Outcome::Delete | Outcome::Gone => return Err(Irregular),
        };
        Ok(())
    }

    /// Only inserts have come, or all that came to something else is gone again.
    pub fn is_of_inserts(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot.outcome, Outcome::Insert | Outcome::Gone))
    }

    /// Rows that hold the keys to delete, those of replaced rows among them. Neighbours in the order of the keys, which
    /// lie on the same pages of the target's index, come one after the other.
    pub fn deletes(&self) -> Vec<Row<'a>> {
        let rows = self.of(&[Outcome::Delete, Outcome::Replace]).map(|slot| slot.key).collect();
        in_order(rows, |row| self.position(*row))
    }

    /// In the order of the keys, as the deletes.
    pub fn updates(&self) -> Vec<NetRow<'_, 'a>> {
        let rows = self.of(&[Outcome::Update]).map(|slot| self.newest(slot)).collect();
        in_order(rows, |row| self.position(row.newest.row))
    }

    /// In the order in which they came, which is that of the pages that they fill.
    pub fn inserts(&self) -> impl Iterator<Item = NetRow<'_, 'a>> {
        self.of(&[Outcome::Insert, Outcome::Replace]).map(|slot| self.newest(slot))
    }

    fn of<'s>(&'s self, outcomes: &'static [Outcome]) -> impl Iterator<Item = &'s Slot<'a>> {
        self.slots.iter().filter(|slot| outcomes.contains(&slot.outcome))
    }

    fn newest(&self, slot: &Slot<'a>) -> NetRow<'_, 'a> {
        NetRow { versions: &self.versions, newest: self.versions[slot.version as usize] }
    }

    /// Where about a key lies among others: its first bytes, most significant first. Types that sort otherwise than their
    /// bytes are still apart from each other, and nothing but speed rests on it.
    fn position(&self, row: Row<'a>) -> u128 {
        let mut bytes = [0; size_of::<u128>()];
        let mut rest = bytes.as_mut_slice();
        for &column in &self.key {
            if let Cell::Text(value) | Cell::Binary(value) = row.cell(column) {
                let taken = value.len().min(rest.len());
                rest[..taken].copy_from_slice(&value[..taken]);
                rest = &mut rest[taken..];
            }
        }
        u128::from_be_bytes(bytes)
    }

    /// Irregular where two inserts before have one key.
    fn find(&mut self, row: Row<'a>) -> Result<Option<usize>, Irregular> {
        let Net { key, slots, index, .. } = self;
        let rehash = |slot: &u32| hash(key, slots[*slot as usize].key);
        if index.len() < slots.len() {
            index.reserve(slots.capacity() - index.len(), rehash);
        }
        let same = |slot: &u32, row: Row<'_>| {
            let known = slots[*slot as usize].key;
            key.iter().all(|&column| known.cell(column) == row.cell(column))
        };
        for (late, slot) in slots.iter().enumerate().skip(index.len()) {
            match index.entry(hash(key, slot.key), |known| same(known, slot.key), rehash) {
                Entry::Occupied(_) => return Err(Irregular),
                Entry::Vacant(place) => place.insert(late as u32),
            };
        }
        Ok(index.find(hash(key, row), |known| same(known, row)).map(|slot| *slot as usize))
    }

    /// Whether the row that was inserted is the one that is changed, where the source sends all of it; what rules cannot
    /// know of it is unchanged. With any other outcome a second row of the key has been found irregular before.
    fn check_same_row(&self, slot: usize, old: OldRow<'a>) -> Result<(), Irregular> {
        let (Slot { outcome: Outcome::Insert, version, .. }, OldRow::Full(old)) = (self.slots[slot], old) else {
            return Ok(());
        };
        let known = NetRow { versions: &self.versions, newest: self.versions[version as usize] };
        let same = (0..old.len()).all(|column| [known.cell(column), Cell::Unchanged].contains(&old.cell(column)));
        if same { Ok(()) } else { Err(Irregular) }
    }

    fn add(&mut self, outcome: Outcome, key: Row<'a>, new: Option<Row<'a>>) {
        let version = new.map_or(u32::MAX, |new| self.push_version(new, None));
        self.slots.push(Slot { outcome, key, version });
    }

    /// The kinds of cells in all rows of the run.
    pub fn kinds(&self) -> Kinds {
        self.kinds
    }

    fn push_version(&mut self, row: Row<'a>, previous: Option<u32>) -> u32 {
        self.versions.push(Version { row, previous });
        (self.versions.len() - 1) as u32
    }
}

/// Sorts what is not in order already, as it often is.
fn in_order<T>(mut rows: Vec<T>, position: impl Fn(&T) -> u128) -> Vec<T> {
    if !rows.is_sorted_by_key(&position) {
        rows.sort_by_cached_key(position);
    }
    rows
}

fn hash(columns: &[usize], row: Row<'_>) -> u64 {
    let mut hasher = FixedState::with_seed(0).build_hasher();
    for &column in columns {
        match row.cell(column) {
            Cell::Text(value) | Cell::Binary(value) => hasher.write(value),
            Cell::Null | Cell::Unchanged => hasher.write_u8(0),
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pgsluice_proto::pgoutput::{Begin, Decoder, Message, ReplicaIdentity};
    use pgsluice_proto::{Lsn, Oid, PgTimestamp, Xid};

    use super::*;
    use crate::batch::{Batch, BatchedOperation};
    use crate::decode::{Change, Keys, Operation, Relation};

    /// The rows of a history, in the memory of a batch: the first word of a change is what it does, the others are
    /// cells, `-` for NULL and `?` for unchanged.
    fn batch_of(history: &[&str]) -> Batch {
        let relation = Arc::new(Relation {
            id: Oid(1),
            version: 1,
            namespace: "public".to_owned(),
            name: "t".to_owned(),
            renamed_from: None,
            replica_identity: ReplicaIdentity::Default,
            columns: Vec::new(),
            keys: Keys::Apart,
        });
        let mut batch = Batch::default();
        batch.begin(Begin { commit_lsn: Lsn::new(1), commit_time: PgTimestamp::default(), xid: Xid(1) });
        for row in history.iter().flat_map(|change| change[2..].split(" was ")) {
            let cells: Vec<_> = row.split(' ').collect();
            let mut message = [b"I\0\0\0\x01N".as_slice(), &(cells.len() as u16).to_be_bytes()].concat();
            for cell in cells {
                match cell {
                    "-" => message.push(b'n'),
                    "?" => message.push(b'u'),
                    value => {
                        message.push(b't');
                        message.extend((value.len() as u32).to_be_bytes());
                        message.extend(value.bytes());
                    }
                }
            }
            let Ok(Message::Insert(insert)) = Decoder::new().decode(Lsn::new(1), &message) else {
                panic!("a row: {message:?}")
            };
            batch.push(&Change { relation: &relation, operation: Operation::Insert { new: insert.new } });
        }
        batch
    }

    /// What a history comes to for a key of the first column: deletes, updates, inserts. `U`, `D`, and `I` are changes of
    /// a table whose key the source knows; `was` brings the whole row as it was.
    fn net(history: &[&str]) -> Result<Vec<String>, Irregular> {
        let batch = batch_of(history);
        let mut rows = batch.changes().map(|change| match change.operation {
            BatchedOperation::Insert { new, .. } => new,
            other => panic!("only rows: {other:?}"),
        });
        let mut net = Net::new(vec![0], 0);
        for change in history {
            let row = rows.next().expect("a row a change");
            let old = change.contains(" was ").then(|| OldRow::Full(rows.next().expect("the row that was")));
            match &change[..2] {
                "I " => net.insert(row)?,
                "U " => net.update(old, row)?,
                "D " => net.delete(old.unwrap_or(OldRow::Key(row)))?,
                other => panic!("not a change: {other}"),
            }
        }
        let text = |cell: Cell<'_>| match cell {
            Cell::Null => "-".to_owned(),
            Cell::Unchanged => "?".to_owned(),
            Cell::Text(value) | Cell::Binary(value) => String::from_utf8_lossy(value).into_owned(),
        };
        let deletes = net.deletes().into_iter().map(|row| format!("D {}", text(row.cell(0))));
        let whole = |row: NetRow<'_, '_>| [0, 1, 2].map(|column| text(row.cell(column))).join(" ");
        let updates = net.updates().into_iter().map(|row| format!("U {}", whole(row)));
        let inserts = net.inserts().map(|row| format!("I {}", whole(row)));
        Ok(deletes.chain(updates).chain(inserts).collect())
    }

    #[test]
    fn every_outcome_after_every_other() {
        // What comes before, and what it comes to with an insert, an update that leaves a column unchanged, a delete.
        // The key that comes first makes the run a mixed one. It ends as it began.
        type Row = (&'static [&'static str], [Option<&'static [&'static str]>; 3]);
        const TABLE: [Row; 6] = [
            (&[], [Some(&["I 1 x y"]), Some(&["U 1 z ?"]), Some(&["D 1"])]),
            (&["I 1 a b"], [None, Some(&["I 1 z b"]), Some(&[])]),
            (&["U 1 a b"], [None, Some(&["U 1 z b"]), Some(&["D 1"])]),
            (&["D 1 - -"], [Some(&["D 1", "I 1 x y"]), None, None]),
            (&["D 1 - -", "I 1 a b"], [None, Some(&["D 1", "I 1 z b"]), Some(&["D 1"])]),
            (&["I 1 a b", "D 1 - -"], [Some(&["I 1 x y"]), None, None]),
        ];
        for (before, expected) in TABLE {
            for (change, expected) in ["I 1 x y", "U 1 z ?", "D 1 - -"].into_iter().zip(expected) {
                let history = [&["I 9 c d", "D 9 - -"], before, &[change]].concat();
                let expected = expected.map(|changes| changes.iter().map(ToString::to_string).collect());
                assert_eq!(net(&history), expected.ok_or(Irregular), "{history:?}");
            }
        }
    }

    #[test]
    fn the_newest_known_value_of_each_column_is_kept() {
        let cases: [(&[&str], &[&str]); 6] = [
            (&["I 1 a b", "U 1 ? c", "U 1 d ?", "U 1 ? ?"], &["I 1 d c"]),
            (&["U 1 ? b", "U 1 ? ?", "U 1 ? c"], &["U 1 ? c"]),
            (&["U 1 a ?", "U 1 ? -", "U 1 ? ?"], &["U 1 a -"]),
            (&["U 1 a b", "U 1 - ?", "U 1 ? ?"], &["U 1 - b"]),
            // What was before a delete is not what is unchanged after it.
            (&["U 1 a b", "D 1 - -", "I 1 c d", "U 1 ? e"], &["D 1", "I 1 c e"]),
            (&["D 1 - -", "I 1 a b", "D 1 - -", "I 1 c -", "U 1 d ?"], &["D 1", "I 1 d -"]),
        ];
        for (history, expected) in cases {
            assert_eq!(net(history).unwrap(), expected, "{history:?}");
        }
    }

    #[test]
    fn keys_are_apart_and_in_their_order_where_they_are_looked_for() {
        let history = [
            "U 6 h i", "U 3 a b", "I 7 a b", "D 5 - -", "I 4 a b", "U 7 c d", "D 2 - -", "I 2 e f", "U 3 ? g",
            "D 4 - -",
        ];
        assert_eq!(net(&history).unwrap(), ["D 2", "D 5", "U 3 a g", "U 6 h i", "I 7 c d", "I 2 e f"]);
        // The bytes are the key.
        assert_eq!(net(&["D 1.0 - -", "I 1.00 a b", "U 1.00 ? c"]).unwrap(), ["D 1.0", "I 1.00 a c"]);
    }

    /// Two rows of one key are for the target to find, as long as nothing has to be told of which of them it is.
    #[test]
    fn inserts_of_one_key_are_irregular_once_another_change_comes() {
        assert_eq!(net(&["I 1 a b", "I 1 c d"]).unwrap(), ["I 1 a b", "I 1 c d"]);
        for change in ["D 1 - -", "U 1 e f", "D 2 - -"] {
            assert_eq!(net(&["I 1 a b", "I 1 c d", change]), Err(Irregular), "{change}");
        }
        assert_eq!(net(&["D 2 - -", "I 1 a b", "I 1 c d"]), Err(Irregular));
    }

    #[test]
    fn what_is_changed_after_an_insert_is_what_was_inserted() {
        assert_eq!(net(&["I 1 a b", "U 1 c ? was 1 a b", "D 1 c b was 1 c b"]).unwrap(), [""; 0]);
        assert_eq!(net(&["U 1 c d was 1 a b", "U 1 e f was 1 c d"]).unwrap(), ["U 1 e f"]);
        let another: [&[&str]; 4] = [
            &["I 1 a b", "U 1 c d was 1 a -"],
            &["I 1 a b", "D 1 - - was 1 x b"],
            &["I 1 a b", "U 1 c ? was 1 a b", "D 1 - - was 1 a b"],
            &["I 1 a b", "D 1 - - was 1 a b", "I 1 c d", "D 1 - - was 1 a b"],
        ];
        for history in another {
            assert_eq!(net(history), Err(Irregular), "{history:?}");
        }
    }
}
