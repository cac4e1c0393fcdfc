//! What of a batch can be netted, and what it comes to.
//!
//! In: a batch whose relations have plans. Out: segments, in the order in which they have to be applied.
//!
//! ```text
//!  changes ──► Netted, a net a table │ InOrder │ Netted │ …
//! ```
//!
//! What cannot be netted stands in the way of what can: a TRUNCATE, a change of key, an update or delete of a table without
//! key, or without a unique index of it on the target, a row under a description that another has replaced within the batch.
//! Those are applied in order, between the nets of what comes before and after. Short runs are not worth a net.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use pgsluice_proto::pgoutput::Cell;
use pgsluice_proto::{Lsn, Oid};

use super::net::{Irregular, Net};
use super::plan::{Plans, TablePlan};
use super::sql::Form;
use crate::batch::{Batch, BatchedChange, BatchedOperation};
use crate::decode::Relation;

/// Changes that follow each other in a batch.
#[derive(Debug)]
pub(super) enum Segment<'a> {
    Netted(Vec<TableNet<'a>>),
    /// Those at these places.
    InOrder(Range<usize>),
}

/// What one table comes to in a segment.
#[derive(Debug)]
pub(super) struct TableNet<'a> {
    pub relation: &'a Arc<Relation>,
    pub net: Net<'a>,
    pub form: Form,
    /// Of the first transaction that changes it, for errors that concern many rows.
    pub at: Lsn,
}

/// Divides the batch where a change cannot be netted, nets runs of at least `netted_min` changes, and joins the others.
pub(super) fn divide<'a>(plans: &Plans, batch: &'a Batch, netted_min: usize) -> Vec<Segment<'a>> {
    let newest: HashMap<Oid, u64> = batch.relations().iter().map(|relation| (relation.id, relation.version)).collect();
    let is_newest = |relation: &Relation| newest.get(&relation.id) == Some(&relation.version);
    let netting = |relation: &Arc<Relation>| plans.known(relation).filter(|_| is_newest(relation)).map(Netting::new);
    let tables: Vec<_> = batch.relations().iter().map(netting).collect();
    let mut runs = Runs::default();
    for (place, change) in batch.changes().enumerate() {
        let can_net = match change.operation {
            BatchedOperation::Truncate(_) => false,
            operation => tables[change.relation_index].as_ref().is_some_and(|netting| netting.takes(&operation)),
        };
        runs.push(place, can_net);
    }
    let mut segments: Vec<Segment<'a>> = Vec::new();
    for (places, can_net) in runs.finish() {
        let netted = (can_net && places.len() >= netted_min).then(|| net(plans, batch, places.clone())).flatten();
        match (netted, segments.last_mut()) {
            (Some(tables), _) => segments.push(Segment::Netted(tables)),
            (None, Some(Segment::InOrder(before))) => before.end = places.end,
            (None, _) => segments.push(Segment::InOrder(places)),
        }
    }
    segments
}

/// What decides whether a change of a table can be netted.
#[derive(Debug)]
struct Netting<'p> {
    key: Option<&'p [usize]>,
    can_copy: bool,
}

impl<'p> Netting<'p> {
    fn new(plan: &'p TablePlan) -> Netting<'p> {
        Netting { key: plan.netting_key(), can_copy: plan.can_copy() }
    }

    #[inline]
    fn takes(&self, operation: &BatchedOperation<'_>) -> bool {
        match (operation, self.key) {
            (BatchedOperation::Insert { .. }, _) => self.can_copy,
            (BatchedOperation::Delete { .. }, Some(_)) => true,
            (BatchedOperation::Update { old, new, .. }, Some(key)) => key.iter().all(|&column| {
                let cell = new.cell(column);
                cell != Cell::Unchanged && old.is_none_or(|old| old.row().cell(column) == cell)
            }),
            (BatchedOperation::Update { .. } | BatchedOperation::Delete { .. }, None)
            | (BatchedOperation::Truncate(_), _) => false,
        }
    }
}

/// Grows runs of places, change by change.
#[derive(Debug, Default)]
struct Runs {
    done: Vec<(Range<usize>, bool)>,
    run: Range<usize>,
    can_net: bool,
}

impl Runs {
    #[inline]
    fn push(&mut self, place: usize, can_net: bool) {
        if can_net != self.can_net {
            self.close();
            (self.run, self.can_net) = (place..place, can_net);
        }
        self.run.end = place + 1;
    }

    fn close(&mut self) {
        if !self.run.is_empty() {
            self.done.push((self.run.clone(), self.can_net));
        }
    }

    fn finish(mut self) -> Vec<(Range<usize>, bool)> {
        self.close();
        self.done
    }
}

/// Nets a run; `None` where a history or a form of values has to be applied in order.
fn net<'a>(plans: &Plans, batch: &'a Batch, places: Range<usize>) -> Option<Vec<TableNet<'a>>> {
    let mut order: Vec<usize> = Vec::new();
    let mut tables: Vec<Option<TableNet<'a>>> = Vec::new();
    let changes = places.len();
    for change in batch.changes_in(places) {
        if tables.len() <= change.relation_index {
            tables.resize_with(change.relation_index + 1, || None);
        }
        let table = match &mut tables[change.relation_index] {
            Some(table) => table,
            new => {
                order.push(change.relation_index);
                // Nearly always a few tables have nearly all changes.
                new.insert(start_net(plans, &change, changes >> (order.len() - 1).min(20))?)
            }
        };
        let taken = match change.operation {
            BatchedOperation::Insert { new, .. } => table.net.insert(new),
            BatchedOperation::Update { old, new, .. } => table.net.update(old, new),
            BatchedOperation::Delete { old, .. } => table.net.delete(old),
            BatchedOperation::Truncate(_) => Err(Irregular),
        };
        taken.ok()?;
    }
    let nets = order.into_iter().filter_map(|index| tables[index].take());
    nets.map(|table| choose_form(plans, table)).collect()
}

fn start_net<'a>(plans: &Plans, change: &BatchedChange<'a>, changes: usize) -> Option<TableNet<'a>> {
    let (BatchedOperation::Insert { relation, .. }
    | BatchedOperation::Update { relation, .. }
    | BatchedOperation::Delete { relation, .. }) = change.operation
    else {
        return None;
    };
    let key = plans.known(relation)?.netting_key().unwrap_or_default().to_vec();
    Some(TableNet { relation, net: Net::new(key, changes), form: Form::Text, at: change.transaction.commit_lsn })
}

/// All values of a table come as text or all in binary, or the table is applied in order.
fn choose_form<'a>(plans: &Plans, table: TableNet<'a>) -> Option<TableNet<'a>> {
    let plan = plans.known(table.relation)?;
    let kinds = table.net.kinds();
    let form = match (kinds.has_text(), kinds.has_binary()) {
        (true, true) => return None,
        (_, false) => Form::Text,
        (false, true) if plan.fits_binary(table.relation) => Form::Binary,
        (false, true) => return None,
    };
    (table.net.is_of_inserts() || plan.can_unnest(form)).then_some(TableNet { form, ..table })
}
