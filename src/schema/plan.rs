//! What is to be made on the target: the needed definitions, and what the target has, come in; units of SQL go out, and
//! for every object what becomes of it.

use std::collections::{HashMap, HashSet};

use super::catalog::{Address, Presence};
use super::compare::Shape;
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

/// The order in which objects are made; those of one wave at the same time, but for the first.
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

#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order in which they can be made.
    pub units: Vec<Unit>,
    pub items: Vec<Item>,
}

/// What the target has, as far as it matters for the definitions.
#[derive(Clone, Debug, Default)]
pub struct Target {
    pub presence: Presence,
    /// By the source's OID: the shapes of a table on the source and on the target.
    pub tables: HashMap<u32, (Option<Shape>, Option<Shape>)>,
}

impl Target {
    /// It was looked at: there is at least the table that was selected.
    fn is_known(&self) -> bool {
        !self.tables.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    Create,
    Present,
    LeftOut(String),
}

const ON_TARGET_ALREADY: &str = "its table is on the target already, and is left as it is";
const OTHERWISE: &str = "the table is partitioned otherwise on the target";

/// Decides for each object of the sections.
pub fn plan(definitions: &Definitions, target: &Target, section: Section) -> Plan {
    let mut planner =
        Planner { definitions, target, section, decisions: HashMap::new(), parents: parents(definitions) };
    let mut plan = Plan::default();
    for entry in definitions.needed() {
        if entry.kind == EntryKind::Comment {
            planner.comment(entry, &mut plan.units);
            continue;
        }
        let decision = planner.decide(entry);
        if section.has(wave(entry.kind, false)) {
            plan.items.extend(planner.item(entry, &decision));
            if decision == Decision::Create {
                plan.units.push(planner.unit(entry));
            }
        }
        planner.decisions.insert(entry.id, decision);
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
        | EntryKind::Other => Wave::PreData,
    }
}

/// Of each partition the table that it is a partition of: the one that it depends on.
fn parents(definitions: &Definitions) -> HashMap<DumpId, DumpId> {
    let mut parents = HashMap::new();
    for attach in definitions.needed().filter(|entry| entry.kind == EntryKind::TableAttach) {
        for child in definitions.depended(attach, EntryKind::Table) {
            let is_parent = |other: &&Entry| child.depends_on.contains(&other.id);
            if let Some(parent) = definitions.depended(attach, EntryKind::Table).find(is_parent) {
                parents.insert(child.id, parent.id);
            }
        }
    }
    parents
}

struct Planner<'a> {
    definitions: &'a Definitions,
    target: &'a Target,
    section: Section,
    decisions: HashMap<DumpId, Decision>,
    parents: HashMap<DumpId, DumpId>,
}

impl Planner<'_> {
    fn decide(&self, entry: &Entry) -> Decision {
        match entry.kind {
            EntryKind::Table => self.decide_table(entry),
            EntryKind::Sequence => self.decide_sequence(entry),
            EntryKind::Default => match self.definitions.depended(entry, EntryKind::Table).next() {
                Some(table) => self.decide_part_of(table, entry),
                None => self.decide_alone(entry),
            },
            EntryKind::TableAttach => self.when_any_created(entry, EntryKind::Table),
            EntryKind::SequenceOwnedBy => self.when_any_created(entry, EntryKind::Sequence),
            EntryKind::IndexAttach => self.decide_index_attach(entry),
            EntryKind::Index
            | EntryKind::Constraint
            | EntryKind::CheckConstraint
            | EntryKind::ForeignKey
            | EntryKind::Statistics => self.decide_on_table(entry),
            EntryKind::View
            | EntryKind::Trigger
            | EntryKind::Rule
            | EntryKind::Policy
            | EntryKind::RowSecurity
            | EntryKind::Comment
            | EntryKind::Schema
            | EntryKind::Extension
            | EntryKind::Other => self.decide_alone(entry),
        }
    }

    fn decide_alone(&self, entry: &Entry) -> Decision {
        if self.is_present(entry) { Decision::Present } else { Decision::Create }
    }

    fn decide_table(&self, entry: &Entry) -> Decision {
        let parent = self.parents.get(&entry.id).and_then(|parent| self.definitions.entry(*parent));
        let is_elsewhere = |parent: &Entry| {
            matches!(self.decision(parent.id), Some(Decision::LeftOut(_)))
                || self.is_partitioned_otherwise(parent.object.oid)
        };
        if parent.is_some_and(is_elsewhere) {
            return Decision::LeftOut(OTHERWISE.to_owned());
        }
        self.decide_alone(entry)
    }

    fn decide_sequence(&self, entry: &Entry) -> Decision {
        let owner = self.definitions.depended(entry, EntryKind::Table).find(|one| self.decisions.contains_key(&one.id));
        match owner {
            // The sequence of an identity column is made by a change of the table.
            Some(table) if self.definitions.sql(entry).starts_with("ALTER TABLE ") => self.decide_part_of(table, entry),
            Some(table) if self.decision(table.id) != Some(&Decision::Create) => self.decide_part_of(table, entry),
            Some(_) | None => self.decide_alone(entry),
        }
    }

    /// What is part of a table's definition comes with the table, or not at all.
    fn decide_part_of(&self, table: &Entry, entry: &Entry) -> Decision {
        match self.decision(table.id) {
            Some(Decision::LeftOut(reason)) => Decision::LeftOut(reason.clone()),
            Some(Decision::Present) if self.is_present(entry) => Decision::Present,
            Some(Decision::Present) => Decision::LeftOut(ON_TARGET_ALREADY.to_owned()),
            Some(Decision::Create) | None => Decision::Create,
        }
    }

    fn when_any_created(&self, entry: &Entry, kind: EntryKind) -> Decision {
        let decisions: Vec<_> =
            self.definitions.depended(entry, kind).filter_map(|one| self.decision(one.id)).collect();
        let is_left_out = |decision: &&Decision| matches!(decision, Decision::LeftOut(_));
        if decisions.contains(&&Decision::Create) && !decisions.iter().any(is_left_out) {
            Decision::Create
        } else {
            Decision::Present
        }
    }

    fn decide_on_table(&self, entry: &Entry) -> Decision {
        let Some(anchor) = self.definitions.anchor(entry) else { return self.decide_alone(entry) };
        let table = self.definitions.relation(anchor.table);
        match table.and_then(|table| self.decision(table.id)) {
            Some(Decision::LeftOut(reason)) => return Decision::LeftOut(reason.clone()),
            Some(Decision::Create) if self.section == Section::PostData && self.target.is_known() => {
                return Decision::LeftOut("its table is not on the target; --section pre-data makes it".to_owned());
            }
            _ if self.is_present(entry) => return Decision::Present,
            _ => {}
        }
        let has_primary_key = |address: &Address| self.target.presence.has_primary_key(address);
        if anchor.is_primary_key && self.definitions.address(entry).is_some_and(has_primary_key) {
            return Decision::LeftOut("the table has another primary key on the target".to_owned());
        }
        let on_target = self.target.tables.get(&anchor.table).and_then(|(_, target)| target.as_ref());
        let rows_elsewhere = on_target.is_some_and(|shape| shape.partition_key.is_some());
        if rows_elsewhere && self.is_partitioned_otherwise(anchor.table) {
            return Decision::LeftOut(OTHERWISE.to_owned());
        }
        Decision::Create
    }

    fn decide_index_attach(&self, entry: &Entry) -> Decision {
        let indexes = || {
            let constraints = self.definitions.depended(entry, EntryKind::Constraint);
            self.definitions.depended(entry, EntryKind::Index).chain(constraints)
        };
        let are_made = indexes().all(|index| !matches!(self.decision(index.id), Some(Decision::LeftOut(_))));
        if are_made && !self.target.presence.has_attached(self.definitions.sql(entry)) {
            Decision::Create
        } else {
            Decision::Present
        }
    }

    /// A table of both servers is not divided the same way.
    fn is_partitioned_otherwise(&self, table: u32) -> bool {
        match self.target.tables.get(&table) {
            Some((Some(source), Some(target))) => source.partition_key != target.partition_key,
            _ => false,
        }
    }

    fn is_present(&self, entry: &Entry) -> bool {
        self.definitions.address(entry).is_some_and(|address| self.target.presence.has(address))
    }

    fn decision(&self, id: DumpId) -> Option<&Decision> {
        self.decisions.get(&id)
    }

    /// Of what is no part of another object.
    fn item(&self, entry: &Entry, decision: &Decision) -> Option<Item> {
        self.definitions.address(entry)?;
        let (state, reason) = match decision {
            Decision::Create => (State::Created, None),
            Decision::Present => (State::Present, None),
            Decision::LeftOut(reason) => (State::LeftOut, Some(reason.clone())),
        };
        Some(Item { object: self.definitions.text(entry), state, reason })
    }

    fn unit(&self, entry: &Entry) -> Unit {
        let anchor = self.definitions.anchor(entry);
        let source =
            anchor.and_then(|anchor| self.target.tables.get(&anchor.table)).and_then(|(source, _)| source.as_ref());
        let is_partitioned = source.is_some_and(|shape| shape.partition_key.is_some());
        let locks = match (anchor, anchor.and_then(|anchor| anchor.references.as_ref())) {
            (Some(anchor), Some(reference)) => vec![anchor.root, reference.root],
            (Some(anchor), None) => vec![anchor.table],
            (None, _) => Vec::new(),
        };
        Unit {
            id: entry.id,
            object: self.definitions.text(entry),
            wave: wave(entry.kind, is_partitioned),
            sql: self.definitions.sql(entry).to_owned(),
            after: entry.depends_on.clone(),
            locks,
            is_exclusive: !matches!(entry.kind, EntryKind::Index | EntryKind::Statistics),
        }
    }

    /// A comment goes with what it is on.
    fn comment(&self, entry: &Entry, units: &mut [Unit]) {
        if let Some(unit) = units.iter_mut().find(|unit| entry.depends_on.contains(&unit.id)) {
            unit.sql = format!("{}\n\n{}", unit.sql, self.definitions.sql(entry));
        }
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
