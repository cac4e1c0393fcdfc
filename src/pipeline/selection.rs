//! Which changes of a stream are taken.
//!
//! ```text
//!                              ┌─ of a table whose copy holds it ───────► left out
//!  change of a transaction ────┼─ of a table that is copied beside ─────► left out, or the only ones that are taken
//!                              ├─ of a table that is published no more ─► left out
//!                              ├─ of another table under a known name ──► left out before the copy of that name, else refused
//!                              ├─ a heartbeat ──────────────────────────► left out
//!                              ├─ for other targets of the trail ──────► left out
//!                              └─ any other ────────────────────────────► taken
//! ```

use std::sync::Arc;

use pgsluice_proto::Lsn;

use super::handover::Handover;
use super::identity::{Differs, Identities};
use super::table_set::TableSet;
use crate::config::TableSelection;
use crate::decode::Relation;
use crate::error::{Error, Kind, Stage};
use crate::snapshot::Copied;
use crate::source::publication::HEARTBEAT;

#[derive(Debug)]
pub(super) struct Selection {
    /// What of the stream is on the target already.
    copied: Copied,
    beside: Beside,
    known: Known,
    /// Of the transaction that has begun.
    commit_lsn: Lsn,
    /// By the version of each relation whose changes have come.
    verdicts: Vec<Verdict>,
}

/// What tables that are copied beside the stream have to do with this one.
#[derive(Debug)]
pub(super) enum Beside {
    /// There are none, or no more.
    None,
    /// It leaves them out until they are handed over.
    LeftOut(Arc<Handover>),
    /// It brings them alone.
    Only(Arc<Handover>),
}

/// The tables that may come.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// Whichever, as long as they are what the target has rows of.
    Same(Arc<Identities>),
    /// Those that are selected, and where `copied` says so only these. `as_of` is where the source was before the publication was
    /// read: a table that it does not hold, and that a transaction has changed whose commit record lies before, has left it since.
    /// With `others`, what is not selected is for other targets of the same trail.
    Only { selection: TableSelection, copied: Option<TableSet>, as_of: Lsn, others: bool, identities: Arc<Identities> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    NotYet,
    /// In transactions whose commit record is not before this.
    TakenFrom(Lsn),
    LeftOut,
    /// In transactions whose commit record is before this. After it the table may have joined.
    LeftOutBefore(Lsn),
    /// What it describes is not what the target has rows of. In transactions before this it is of the past.
    Differs(Lsn),
}

impl Selection {
    pub fn new(copied: Copied, beside: Beside, known: Known) -> Selection {
        Selection { copied, beside, known, commit_lsn: Lsn::INVALID, verdicts: Vec::new() }
    }

    pub fn beside(&self) -> &Beside {
        &self.beside
    }

    /// A transaction begins. False where its turn has not come: tables that it may change are not handed over yet.
    pub fn begin(&mut self, commit_lsn: Lsn) -> bool {
        self.commit_lsn = commit_lsn;
        match &self.beside {
            Beside::LeftOut(handover) if handover.at().is_some_and(|at| at <= commit_lsn) => {
                let is_done = handover.is_done();
                if is_done {
                    self.beside = Beside::None;
                    self.verdicts.clear();
                }
                is_done
            }
            Beside::None | Beside::LeftOut(_) | Beside::Only(_) => true,
        }
    }

    /// Whether a change of this relation, in the transaction that has begun, is taken.
    ///
    /// # Errors
    /// [`Kind::TablesToCopy`] if it is one that has to be copied before, or is not selected.
    #[inline]
    pub fn takes(&mut self, relation: &Relation) -> Result<bool, Error> {
        let verdict = match self.verdicts.get(relation.version as usize) {
            Some(Verdict::NotYet) | None => self.judge(relation)?,
            Some(Verdict::LeftOutBefore(lsn)) if self.commit_lsn >= *lsn => self.judge(relation)?,
            Some(verdict) => *verdict,
        };
        Ok(match verdict {
            Verdict::TakenFrom(lsn) => self.commit_lsn >= lsn,
            Verdict::LeftOut | Verdict::LeftOutBefore(_) | Verdict::NotYet => false,
            Verdict::Differs(lsn) if self.commit_lsn < lsn => false,
            Verdict::Differs(_) => return Err(self.replaced(relation)),
        })
    }

    #[cold]
    fn judge(&mut self, relation: &Relation) -> Result<Verdict, Error> {
        let (schema, name) = (relation.namespace.as_str(), relation.name.as_str());
        let is_ours = match &self.beside {
            Beside::None => true,
            Beside::LeftOut(handover) => !handover.concerns(schema, name),
            Beside::Only(handover) => handover.concerns(schema, name),
        };
        let verdict = if (schema, name) == HEARTBEAT {
            // That its transaction comes is all that it is for.
            Verdict::LeftOut
        } else if let Some(differs) = self.differs_from(relation) {
            differs
        } else if is_ours {
            self.judge_ours(relation)?
        } else {
            Verdict::LeftOut
        };
        // Versions count the descriptions in the stream, so there are as many verdicts as those.
        let place = relation.version as usize;
        if self.verdicts.len() <= place {
            self.verdicts.resize(place + 1, Verdict::NotYet);
        }
        self.verdicts[place] = verdict;
        Ok(verdict)
    }

    fn identities(&self) -> &Identities {
        match &self.known {
            Known::Same(identities) | Known::Only { identities, .. } => identities,
        }
    }

    /// Tables that the relation is not, though it has the name or the OID of one, and whose changes this stream brings.
    fn differing(&self, relation: &Relation) -> Vec<Differs> {
        let mut differing = self.identities().differing(relation, self.commit_lsn);
        differing.retain(|Differs { table, .. }| match &self.beside {
            Beside::None => true,
            Beside::LeftOut(handover) => !handover.concerns(&table.schema, &table.name),
            Beside::Only(handover) => handover.concerns(&table.schema, &table.name),
        });
        differing
    }

    fn differs_from(&self, relation: &Relation) -> Option<Verdict> {
        let copied = |differs: &Differs| {
            self.copied.snapshot_lsn(&differs.table.schema, &differs.table.name).unwrap_or(Lsn::INVALID)
        };
        self.differing(relation).iter().map(copied).min().map(Verdict::Differs)
    }

    #[cold]
    fn replaced(&self, relation: &Relation) -> Error {
        let differing = self.differing(relation);
        let why = differing.first().map(|differs| differs.why.clone()).unwrap_or_default();
        let tables = differing.into_iter().map(|differs| differs.table).collect();
        Error::new(Stage::Source, Kind::TablesReplaced { tables, why }).at(self.commit_lsn)
    }

    fn judge_ours(&self, relation: &Relation) -> Result<Verdict, Error> {
        let (schema, name) = (relation.namespace.as_str(), relation.name.as_str());
        let taken = Verdict::TakenFrom(self.copied.snapshot_lsn(schema, name).unwrap_or(Lsn::INVALID));
        let Known::Only { selection, copied, as_of, others, .. } = &self.known else { return Ok(taken) };
        let is_selected = selection.selects(schema, name);
        if *others && !is_selected {
            return Ok(Verdict::LeftOut);
        }
        if is_selected && copied.as_ref().is_none_or(|tables| tables.contains(schema, name)) {
            return Ok(taken);
        }
        if self.commit_lsn >= *as_of {
            return Err(Error::new(Stage::Source, Kind::TablesToCopy(vec![relation.to_string()])));
        }
        if !selection.is_bench(schema, name) {
            tracing::warn!("{relation} is not published any more: what of its changes is still to come is left out");
        }
        Ok(Verdict::LeftOutBefore(*as_of))
    }
}
