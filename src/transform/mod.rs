//! What rules do to rows on their way.
//!
//! In: decoded changes, in the names and types of the source. Out: changes in a batch, in those of the target.
//!
//! ```text
//!  rules ──decide──► what is decided of a table ──plan──► Plan, once for each description of a relation
//!  change ──filter──► passes? ──columns as they came, masks, expressions──► row in the batch
//! ```
//!
//! **Always holds:**
//! - A relation that no rule is about passes unread, and so do rows that only get other names.
//! - Rules are compiled wholly before the first row of a table, or refused with their line and a caret.
//! - A row that a rule cannot be applied to stops the stream before anything of it is in a batch. No error holds a value.

mod compile;
mod decide;
pub mod expression;
mod fingerprint;
mod mapping;
mod mask;
mod metadata;
mod plan;
mod refusal;
mod row;

use std::sync::Arc;

use pgsluice_proto::Lsn;
use pgsluice_proto::pgoutput::Begin;

pub use self::expression::{EvaluationError, Expression, ExpressionError, Value};
pub use self::fingerprint::is_same as are_same_rules;
pub use self::mapping::Mapping;
use self::mapping::refusal;
pub use self::metadata::Metadata;
pub use self::plan::Plan;
pub use self::refusal::RuleError;
pub use self::row::{RowError, Why, Workshop};
use crate::batch::Batch;
use crate::decode::{Change, PartialTruncate, Relation, Truncate};
use crate::error::{Error, Kind, Stage};
use crate::postgres::quote_ident;
use crate::source::publication::TableName;

const STAGE: Stage = Stage::Transform;

/// The rules of one stream.
#[derive(Debug)]
pub struct Transform {
    mapping: Arc<Mapping>,
    /// By the version of each relation whose changes have come.
    plans: Vec<Known>,
    workshop: Workshop,
    commit_lsn: Lsn,
}

#[derive(Clone, Debug)]
enum Known {
    NotYet,
    Untouched,
    Plan(Arc<Plan>),
}

impl Transform {
    /// Values that rules make are `binary` where those of the stream are.
    pub fn new(mapping: Arc<Mapping>, binary: bool) -> Transform {
        let workshop = Workshop::new(Metadata::of_copy(Lsn::INVALID), binary);
        Transform { mapping, plans: Vec::new(), workshop, commit_lsn: Lsn::INVALID }
    }

    /// A transaction begins.
    pub fn begin(&mut self, begin: &Begin) {
        if !self.mapping.is_empty() {
            self.workshop.metadata.begin(begin);
            self.commit_lsn = begin.commit_lsn;
        }
    }

    /// Adds to the batch what the change comes to.
    ///
    /// # Errors
    /// [`Kind::Refused`] if the rules do not fit the relation as it is now, [`Kind::Row`] if one cannot be applied to the row.
    #[inline]
    pub fn push(&mut self, change: &Change<'_>, batch: &mut Batch) -> Result<(), Error> {
        if self.mapping.is_empty() {
            batch.push(change);
            return Ok(());
        }
        self.push_by_rules(change, batch)
    }

    fn push_by_rules(&mut self, change: &Change<'_>, batch: &mut Batch) -> Result<(), Error> {
        match self.known(change.relation)? {
            Known::NotYet | Known::Untouched => batch.push(change),
            Known::Plan(plan) if plan.keeps_rows() => {
                batch.push(&Change { relation: plan.target(), operation: change.operation });
            }
            Known::Plan(plan) => plan
                .push(change.operation, &mut self.workshop, batch)
                .map_err(|error| row_failed(&plan, error).at(self.commit_lsn))?,
        }
        Ok(())
    }

    /// Whether rules make something of the commit in the rows of the relation.
    ///
    /// # Errors
    /// As [`Transform::push`].
    pub fn reads_commit(&mut self, relation: &Arc<Relation>) -> Result<bool, Error> {
        if self.mapping.is_empty() {
            return Ok(false);
        }
        Ok(matches!(self.known(relation)?, Known::Plan(plan) if plan.reads_commit()))
    }

    /// What the truncate comes to on the target.
    pub fn truncate(&mut self, truncate: Truncate) -> Result<Truncate, Error> {
        if self.mapping.is_empty() {
            return Ok(truncate);
        }
        let Truncate { relations, restart_identity, mut is_partial, mut in_part } = truncate;
        let mut whole = Vec::with_capacity(relations.len());
        for relation in relations {
            let Known::Plan(plan) = self.known(&relation)? else {
                whole.push(relation);
                continue;
            };
            let table = TableName { schema: relation.namespace.clone(), name: relation.name.clone() };
            let own = self.mapping.own(&table);
            if !plan.is_soft_deleting() && own.is_empty() {
                whole.push(Arc::clone(plan.target()));
                continue;
            }
            let mark = match plan.is_soft_deleting() {
                true => Some(plan.marks(&self.workshop.metadata).map_err(|error| row_failed(&plan, error))?),
                false => None,
            };
            in_part.push(PartialTruncate { relation: Arc::clone(plan.target()), own, mark });
            is_partial = true;
        }
        Ok(Truncate { relations: whole, restart_identity, is_partial, in_part })
    }

    #[inline]
    fn known(&mut self, relation: &Arc<Relation>) -> Result<Known, Error> {
        match self.plans.get(relation.version as usize) {
            Some(Known::NotYet) | None => self.learn(relation),
            Some(known) => Ok(known.clone()),
        }
    }

    #[cold]
    fn learn(&mut self, relation: &Arc<Relation>) -> Result<Known, Error> {
        self.mapping.check_hidden(relation).map_err(|error| refusal(STAGE, &[*error]).at(self.commit_lsn))?;
        let plan = self.mapping.compile(relation).map_err(|error| refusal(STAGE, &[*error]).at(self.commit_lsn))?;
        let known = plan.map_or(Known::Untouched, |plan| Known::Plan(Arc::new(plan)));
        // Versions count the descriptions in the stream, so there are as many plans as those.
        let place = relation.version as usize;
        if self.plans.len() <= place {
            self.plans.resize(place + 1, Known::NotYet);
        }
        // The source describes a relation anew and anew; of earlier descriptions no row comes any more.
        let is_older = |known: &Known| matches!(known, Known::Plan(plan) if plan.source().id == relation.id);
        self.plans.iter_mut().filter(|known| is_older(known)).for_each(|known| *known = Known::NotYet);
        self.plans[place] = known.clone();
        Ok(known)
    }
}

/// An error of a row, in the names of the source.
pub fn row_failed(plan: &Plan, error: RowError) -> Error {
    let RowError { at, why } = error;
    let source = plan.source();
    let what = if at == "where" { "where".to_owned() } else { format!("column {}", quote_ident(&at)) };
    let again = format!("then `pgsluice resync \"{}.{}\"` copies the table anew", source.namespace, source.name);
    let mend = match &why {
        Why::Unchanged(_) | Why::NoOldRow => {
            format!("on the primary: ALTER TABLE {source} REPLICA IDENTITY FULL; {again}")
        }
        Why::Cell(_) | Why::Fault(_) => format!("have the rule take every row of the table, {again}"),
    };
    Error::new(STAGE, Kind::Row { what: format!("a rule cannot be applied to a row: {what}: {why}"), mend })
        .on(source.to_string())
}
