//! What is to be made on the target: the needed definitions, and what the target has, come in; units of SQL go out, and
//! for every object what becomes of it.

use std::collections::HashSet;

use super::decide::{Decider, Decision, Target};
use super::definitions::Definitions;
use super::toc::{DumpId, Entry, EntryKind, ObjectId, PG_CLASS};
use super::{Item, Section, State};

/// The SQL of one object and of the comments on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    pub id: DumpId,
    pub object: String,
    pub wave: Wave,
    pub sql: String,
    pub after: Vec<DumpId>,
    /// Tables of the source, by OID, whose like on the target it locks.
    pub locks: Vec<u32>,
    /// Nothing else can be made on these tables meanwhile.
    pub is_exclusive: bool,
}

/// The order in which objects are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wave {
    /// Tables and what they need, one after the other.
    PreData,
    /// Indexes and constraints of partitioned tables, which have no rows of their own.
    Partitioned,
    /// Those that read rows.
    Build,
    /// Partitions of indexes, and what is made at once.
    Attach,
    ForeignKeys,
}

impl Wave {
    /// These take no time. What is done to a partitioned table locks partitions too. And an index of a partitioned table
    /// becomes valid with its last partition: of two that are attached at the same time neither sees the other, and the
    /// index stays invalid.
    pub fn is_one_by_one(self) -> bool {
        match self {
            Wave::PreData | Wave::Partitioned | Wave::Attach => true,
            Wave::Build | Wave::ForeignKeys => false,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order in which they can be made.
    pub units: Vec<Unit>,
    pub items: Vec<Item>,
}

/// Decides for each object of the sections.
pub fn plan(definitions: &Definitions, target: &Target, section: Section) -> Plan {
    let mut decider = Decider::new(definitions, target, section);
    let mut plan = Plan::default();
    for entry in definitions.needed() {
        if entry.kind == EntryKind::Comment {
            comment(definitions, entry, &mut plan.units);
            continue;
        }
        let decision = decider.decide(entry);
        if section.has(wave(entry.kind, false)) {
            plan.items.extend(item(definitions, entry, &decision));
            if decision == Decision::Create {
                plan.units.push(unit(definitions, target, entry));
            }
        }
    }
    plan.units.sort_by_key(|unit| unit.wave);
    plan.items.extend(definitions.left_out().filter(|(entry, _)| section.has(wave(entry.kind, false))).map(
        |(entry, reason)| Item {
            object: definitions.text(entry),
            state: State::LeftOut,
            reason: Some(reason.to_owned()),
        },
    ));
    plan
}

fn wave(kind: EntryKind, is_partitioned: bool) -> Wave {
    match kind {
        EntryKind::Index | EntryKind::Constraint if is_partitioned => Wave::Partitioned,
        EntryKind::Index | EntryKind::Constraint => Wave::Build,
        EntryKind::IndexAttach
        | EntryKind::CheckConstraint
        | EntryKind::Statistics
        | EntryKind::Trigger
        | EntryKind::Rule
        | EntryKind::Policy
        | EntryKind::RowSecurity => Wave::Attach,
        EntryKind::ForeignKey => Wave::ForeignKeys,
        EntryKind::Table
        | EntryKind::TableAttach
        | EntryKind::Default
        | EntryKind::Sequence
        | EntryKind::SequenceOwnedBy
        | EntryKind::View
        | EntryKind::Comment
        | EntryKind::Schema
        | EntryKind::Extension
        | EntryKind::ShellType
        | EntryKind::Other => Wave::PreData,
    }
}

/// Of what is no part of another object.
fn item(definitions: &Definitions, entry: &Entry, decision: &Decision) -> Option<Item> {
    definitions.address(entry)?;
    let (state, reason) = match decision {
        Decision::Create => (State::Created, None),
        Decision::Present => (State::Present, None),
        Decision::LeftOut(reason) => (State::LeftOut, Some(reason.clone())),
    };
    Some(Item { object: definitions.text(entry), state, reason })
}

fn unit(definitions: &Definitions, target: &Target, entry: &Entry) -> Unit {
    let anchor = definitions.anchor(entry);
    let source = anchor.and_then(|anchor| target.tables.get(&anchor.table)).and_then(|(source, _)| source.as_ref());
    let is_partitioned = source.is_some_and(|shape| shape.partition_key.is_some());
    let locks = match (anchor, anchor.and_then(|anchor| anchor.references.as_ref())) {
        (Some(anchor), Some(reference)) => vec![anchor.root, reference.root],
        (Some(anchor), None) => vec![anchor.table],
        (None, _) => Vec::new(),
    };
    Unit {
        id: entry.id,
        object: definitions.text(entry),
        wave: wave(entry.kind, is_partitioned),
        sql: definitions.sql(entry).to_owned(),
        after: entry.depends_on.clone(),
        locks,
        is_exclusive: !matches!(entry.kind, EntryKind::Index | EntryKind::Statistics),
    }
}

/// A comment goes with what it is on.
fn comment(definitions: &Definitions, entry: &Entry, units: &mut [Unit]) {
    if let Some(unit) = units.iter_mut().find(|unit| entry.depends_on.contains(&unit.id)) {
        unit.sql = format!("{}\n\n{}", unit.sql, definitions.sql(entry));
    }
}

/// The catalogs in which objects of the definitions are to be looked for.
pub fn classes(definitions: &Definitions) -> HashSet<u32> {
    definitions.needed().filter_map(|entry| definitions.address(entry)).map(|address| address.class).collect()
}

/// The tables among the definitions.
pub fn tables(definitions: &Definitions) -> impl Iterator<Item = ObjectId> {
    let is_table = |entry: &&Entry| entry.kind == EntryKind::Table && entry.object.class == PG_CLASS;
    definitions.needed().filter(is_table).map(|entry| entry.object)
}
