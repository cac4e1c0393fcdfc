//! What becomes of each needed object: what the target has comes in, a decision goes out.
//!
//! A table that is there is taken as it is, with all that its definition holds. What belongs to a table follows what was
//! decided for the table.

use std::collections::HashMap;

use super::Section;
use super::catalog::{Address, Presence};
use super::compare::Shape;
use super::definitions::Definitions;
use super::toc::{DumpId, Entry, EntryKind};

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

/// What becomes of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Create,
    Present,
    /// With the reason.
    LeftOut(String),
}

const ON_TARGET_ALREADY: &str = "its table is on the target already, and is left as it is";
const UNVALIDATED_DOMAIN: &str = "it is NOT VALID, and values from before it would not pass on the target";
const OTHERWISE: &str = "the table is partitioned otherwise on the target";

/// Decides for one entry after the other, in the order of the dump.
pub struct Decider<'a> {
    definitions: &'a Definitions,
    target: &'a Target,
    section: Section,
    decisions: HashMap<DumpId, Decision>,
    parents: HashMap<DumpId, DumpId>,
}

impl<'a> Decider<'a> {
    pub fn new(definitions: &'a Definitions, target: &'a Target, section: Section) -> Decider<'a> {
        Decider { definitions, target, section, decisions: HashMap::new(), parents: parents(definitions) }
    }

    pub fn decide(&mut self, entry: &Entry) -> Decision {
        let decision = self.weigh(entry);
        self.decisions.insert(entry.id, decision.clone());
        decision
    }

    fn weigh(&self, entry: &Entry) -> Decision {
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
            EntryKind::ShellType => self.decide_shell(entry),
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

    /// A shell becomes the type, and is not there beside it.
    fn decide_shell(&self, entry: &Entry) -> Decision {
        let of_it = self.definitions.needed().find(|one| one.is_type_of(entry));
        if of_it.is_some_and(|of_it| self.is_present(of_it)) { Decision::Present } else { Decision::Create }
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
        let Some(anchor) = self.definitions.anchor(entry) else { return self.decide_on_domain(entry) };
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

    /// A domain looks at every value that comes, those of rows from before its constraint as well. Tables go without theirs while they
    /// are copied; a domain would have to go without for good.
    fn decide_on_domain(&self, entry: &Entry) -> Decision {
        let is_unvalidated = self.definitions.sql(entry).ends_with(" NOT VALID;");
        match self.decide_alone(entry) {
            Decision::Create if is_unvalidated => Decision::LeftOut(UNVALIDATED_DOMAIN.to_owned()),
            decision => decision,
        }
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
