//! Which entries of a dump the selected tables need: entries and a few facts of the catalog in, a choice out.
//!
//! ```text
//!                 ┌── partitions, defaults, owned sequences
//!  selected ──────┼── what any of it depends on: types, functions, sequences, schemas, tables it inherits from …
//!                 ├── indexes, constraints, statistics
//!                 └── triggers, rules, policies, views, foreign keys to other tables: named, and left out
//! ```
//!
//! What an object depends on is asked of the dump: `pg_dump` has followed `pg_depend`, stands an extension for its
//! members and a table for its row type, and orders the entries by it. Looking again would be to differ from it.
//! A function's body is text to PostgreSQL, unless it is one of SQL's own (`BEGIN ATOMIC`): what it calls is not seen.

use std::collections::{HashMap, HashSet};

use super::toc::{DumpId, Entry, EntryKind, ObjectId, PG_CLASS};

/// What the catalog of the source knows of the entries, beyond what the dump says.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The tables that the configuration selects.
    pub selected: HashSet<u32>,
    /// The table to which an index, a constraint, a trigger and so on belongs.
    pub anchors: HashMap<ObjectId, Anchor>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    pub table: u32,
    /// The root of its partitions, else the table itself.
    pub root: u32,
    pub is_primary_key: bool,
    pub references: Option<Reference>,
}

/// The other end of a foreign key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub table: u32,
    pub root: u32,
    /// Quoted, with its schema.
    pub name: String,
}

/// A choice among the entries, as places in their list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// In the order of the list.
    pub needed: Vec<usize>,
    /// With the reason.
    pub left_out: Vec<(usize, String)>,
}

/// Chooses.
pub fn choose(entries: &[Entry], facts: &Facts) -> Needs {
    let mut choice = Choice::new(entries, facts);
    choice.grow();
    let left_out = choice.left_out();
    let needed = (0..entries.len()).filter(|&place| choice.needed.contains(&entries[place].id)).collect();
    Needs { needed, left_out }
}

struct Choice<'a> {
    entries: &'a [Entry],
    places: HashMap<DumpId, usize>,
    /// By the OID of the relation.
    relations: HashMap<u32, DumpId>,
    facts: &'a Facts,
    needed: HashSet<DumpId>,
    /// The selected tables and their partitions: those that get rows.
    tables: HashSet<DumpId>,
}

impl<'a> Choice<'a> {
    fn new(entries: &'a [Entry], facts: &'a Facts) -> Choice<'a> {
        let places = entries.iter().enumerate().map(|(place, entry)| (entry.id, place)).collect();
        let of_relations = entries.iter().filter(|entry| entry.object.class == PG_CLASS);
        let relations = of_relations.clone().map(|entry| (entry.object.oid, entry.id)).collect();
        let (needed, tables) = (HashSet::new(), HashSet::new());
        let mut choice = Choice { entries, places, relations, facts, needed, tables };
        for entry in of_relations.filter(|entry| facts.selected.contains(&entry.object.oid)) {
            choice.take(entry);
            choice.tables.insert(entry.id);
        }
        choice
    }

    /// Takes what belongs to what is taken, until there is no more.
    fn grow(&mut self) {
        loop {
            let before = (self.needed.len(), self.tables.len());
            for entry in self.entries {
                if !self.needed.contains(&entry.id) && self.belongs(entry) {
                    self.take(entry);
                    if entry.kind == EntryKind::TableAttach {
                        let attached: Vec<_> = self.of_kind(entry, EntryKind::Table).map(|table| table.id).collect();
                        self.tables.extend(attached);
                    }
                }
            }
            if before == (self.needed.len(), self.tables.len()) {
                return;
            }
        }
    }

    /// Takes an entry and all that it depends on.
    fn take(&mut self, entry: &Entry) {
        let mut waiting = vec![entry.id];
        while let Some(id) = waiting.pop() {
            let Some(entry) = self.entry(id) else { continue };
            if self.needed.insert(id) {
                // A sequence comes after the table that owns it, and is used by others without it.
                let follows = |one: &DumpId| entry.kind != EntryKind::Sequence || !self.is_kind(*one, EntryKind::Table);
                waiting.extend(entry.depends_on.iter().copied().filter(follows));
            }
        }
    }

    /// It is part of what is taken, though nothing that is taken depends on it.
    fn belongs(&self, entry: &Entry) -> bool {
        let is_needed = |one: &Entry| self.needed.contains(&one.id);
        match entry.kind {
            EntryKind::TableAttach => {
                self.of_kind(entry, EntryKind::Table).any(|table| self.tables.contains(&table.id))
            }
            EntryKind::Default | EntryKind::Sequence => self.of_kind(entry, EntryKind::Table).any(is_needed),
            EntryKind::SequenceOwnedBy => self
                .of_kind(entry, EntryKind::Sequence)
                .any(|sequence| is_needed(sequence) && self.of_kind(sequence, EntryKind::Table).all(is_needed)),
            EntryKind::Index | EntryKind::Constraint | EntryKind::Statistics => self.is_of_table(entry),
            // Of a table, or of a domain.
            EntryKind::CheckConstraint => match self.facts.anchors.get(&entry.object) {
                Some(_) => self.is_of_table(entry),
                None => entry.depends_on.iter().any(|id| self.needed.contains(id)),
            },
            EntryKind::ForeignKey => self.is_of_table(entry) && self.other_end(entry).is_none(),
            EntryKind::IndexAttach => {
                let mut indexes =
                    self.of_kind(entry, EntryKind::Index).chain(self.of_kind(entry, EntryKind::Constraint));
                indexes.all(is_needed)
            }
            // CREATE EXTENSION comments on it by itself, and whose it is on the target may not be us.
            EntryKind::Comment => {
                let commented = entry.depends_on.iter().filter_map(|id| self.entry(*id));
                commented.filter(|one| one.kind != EntryKind::Extension).any(is_needed)
            }
            EntryKind::Table
            | EntryKind::View
            | EntryKind::Trigger
            | EntryKind::Rule
            | EntryKind::Policy
            | EntryKind::RowSecurity
            | EntryKind::Schema
            | EntryKind::Extension
            | EntryKind::ShellType
            | EntryKind::Other => false,
        }
    }

    fn left_out(&self) -> Vec<(usize, String)> {
        let reason = |entry: &Entry| match entry.kind {
            EntryKind::Trigger if self.is_of_table(entry) => Some("triggers are not copied".to_owned()),
            EntryKind::Rule if self.is_of_table(entry) => Some("rules are not copied".to_owned()),
            EntryKind::Policy if self.is_of_table(entry) => Some("row security policies are not copied".to_owned()),
            EntryKind::RowSecurity if self.depends_on_table(entry) => Some("row security is not copied".to_owned()),
            EntryKind::View if self.depends_on_table(entry) => Some("views are not copied".to_owned()),
            EntryKind::ForeignKey if self.is_of_table(entry) => {
                self.other_end(entry).map(|name| format!("it refers to {name}, which is not selected"))
            }
            _ => None,
        };
        let places = (0..self.entries.len()).filter(|&place| !self.needed.contains(&self.entries[place].id));
        places.filter_map(|place| Some((place, reason(&self.entries[place])?))).collect()
    }

    /// The table that a foreign key refers to, where it gets no rows.
    fn other_end(&self, entry: &Entry) -> Option<&str> {
        let reference = self.facts.anchors.get(&entry.object)?.references.as_ref()?;
        (!self.gets_rows(reference.table)).then_some(reference.name.as_str())
    }

    fn is_of_table(&self, entry: &Entry) -> bool {
        self.facts.anchors.get(&entry.object).is_some_and(|anchor| self.gets_rows(anchor.table))
    }

    fn gets_rows(&self, table: u32) -> bool {
        self.relations.get(&table).is_some_and(|id| self.tables.contains(id))
    }

    fn depends_on_table(&self, entry: &Entry) -> bool {
        entry.depends_on.iter().any(|id| self.tables.contains(id))
    }

    fn of_kind(&self, entry: &'a Entry, kind: EntryKind) -> impl Iterator<Item = &'a Entry> {
        entry.depends_on.iter().filter_map(|id| self.entry(*id)).filter(move |one| one.kind == kind)
    }

    fn is_kind(&self, id: DumpId, kind: EntryKind) -> bool {
        self.entry(id).is_some_and(|entry| entry.kind == kind)
    }

    /// `None` for what the dump leaves out, as the schema `public`.
    fn entry(&self, id: DumpId) -> Option<&'a Entry> {
        self.places.get(&id).map(|&place| &self.entries[place])
    }
}

#[cfg(test)]
mod tests {
    use super::super::toc;
    use super::*;

    /// A schema, a type, two tables, one of them partitioned, a view, and what hangs on them.
    const LIST: &str = "\
1; 2615 1 SCHEMA - s o
2; 1247 2 TYPE s mood o
;\tdepends on: 1
3; 1259 3 TABLE s parent o
;\tdepends on: 1 2 4
4; 1259 4 SEQUENCE s foreign_seq o
;\tdepends on: 1 5
5; 1259 5 TABLE s other o
;\tdepends on: 1 6
6; 1247 6 TYPE s unused o
;\tdepends on: 1
7; 0 0 SEQUENCE OWNED BY s foreign_seq o
;\tdepends on: 4
8; 1259 8 TABLE s part o
;\tdepends on: 1 3
9; 0 0 TABLE ATTACH s part o
;\tdepends on: 8 3
10; 2606 10 CONSTRAINT s part part_pkey o
;\tdepends on: 8
11; 2606 11 FK CONSTRAINT s parent fk o
;\tdepends on: 3 5
12; 2606 12 FK CONSTRAINT s other fk_back o
;\tdepends on: 3 5
13; 1259 13 VIEW s v o
;\tdepends on: 3
14; 0 0 COMMENT s TYPE mood o
;\tdepends on: 2
15; 0 0 COMMENT s TABLE other o
;\tdepends on: 5
16; 1259 16 SEQUENCE s own_seq o
;\tdepends on: 8 1
17; 0 0 SEQUENCE OWNED BY s own_seq o
;\tdepends on: 16
";

    fn anchor(table: u32, references: Option<u32>) -> Anchor {
        let reference = |table| Reference { table, root: table, name: "s.other".to_owned() };
        Anchor { table, root: table, is_primary_key: false, references: references.map(reference) }
    }

    fn chosen(selected: &[u32]) -> (Vec<u32>, Vec<(u32, String)>) {
        let entries = toc::parse(LIST).unwrap();
        let constraint = |oid| ObjectId { class: 2606, oid };
        let anchors = [
            (constraint(10), anchor(8, None)),
            (constraint(11), anchor(3, Some(5))),
            (constraint(12), anchor(5, Some(3))),
        ];
        let facts = Facts { selected: selected.iter().copied().collect(), anchors: anchors.into() };
        let needs = choose(&entries, &facts);
        let left_out = needs.left_out.into_iter().map(|(place, reason)| (entries[place].id.0, reason));
        (needs.needed.into_iter().map(|place| entries[place].id.0).collect(), left_out.collect())
    }

    #[test]
    fn a_table_with_its_partitions_and_what_they_need() {
        let (needed, left_out) = chosen(&[3]);
        assert_eq!(needed, [1, 2, 3, 4, 8, 9, 10, 14, 16, 17]);
        let foreign_key = "it refers to s.other, which is not selected".to_owned();
        assert_eq!(left_out, [(11, foreign_key), (13, "views are not copied".to_owned())]);
    }

    #[test]
    fn what_refers_to_a_table_is_not_needed_by_it() {
        assert_eq!(chosen(&[5]).0, [1, 4, 5, 6, 7, 15]);
        let (needed, left_out) = chosen(&[3, 5]);
        assert_eq!(needed, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17]);
        assert_eq!(left_out, [(13, "views are not copied".to_owned())]);
    }
}
