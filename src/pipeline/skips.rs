//! Transactions of the stream that are to be passed over.
//!
//! In: the LSNs that somebody has asked for. Out: whether a change is left out, and how many were when its transaction ends.
//!
//! **Always holds:** what is asked for is met or refused. A stream that would go on beyond such an LSN without a transaction
//! whose commit record is there ends, before anything from there on is applied.

use std::collections::VecDeque;

use pgsluice_proto::Lsn;

use crate::config::Config;
use crate::error::{Error, Kind, Stage};
use crate::postgres;
use crate::skips;

#[derive(Debug)]
pub(super) struct Skips {
    /// In their order.
    pending: VecDeque<Lsn>,
    /// It is this stream that has to meet them, and whose target records it.
    is_recorded: bool,
    /// In the transaction that has begun, so many changes were left out.
    left_out: Option<u64>,
}

impl Skips {
    pub fn new(pending: Vec<Lsn>) -> Skips {
        debug_assert!(pending.is_sorted());
        Skips { pending: pending.into(), is_recorded: true, left_out: None }
    }

    /// Of a stream beside the one that records them.
    pub fn unrecorded(pending: Vec<Lsn>) -> Skips {
        Skips { is_recorded: false, ..Skips::new(pending) }
    }

    /// There is none to pass over any more.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// A transaction begins.
    ///
    /// # Errors
    /// A refusal if there is none where there should be one before it.
    pub fn begin(&mut self, commit_lsn: Lsn) -> Result<(), Error> {
        self.check(commit_lsn, Some(commit_lsn))?;
        while self.pending.front().is_some_and(|lsn| *lsn < commit_lsn) {
            self.pending.pop_front();
        }
        if self.pending.front() == Some(&commit_lsn) {
            self.pending.pop_front();
            self.left_out = Some(0);
        }
        Ok(())
    }

    /// Whether the change that has come is left out.
    #[inline]
    pub fn leaves_out(&mut self) -> bool {
        match &mut self.left_out {
            None => false,
            Some(changes) => {
                *changes += 1;
                true
            }
        }
    }

    /// The transaction ends; if it was passed over and that is to be recorded, with how many changes.
    ///
    /// # Errors
    /// As [`Skips::pass`].
    pub fn commit(&mut self, end_lsn: Lsn) -> Result<Option<u64>, Error> {
        self.pass(end_lsn)?;
        Ok(self.left_out.take().filter(|_| self.is_recorded))
    }

    /// Nothing is to come any more that has its commit record before `lsn`.
    ///
    /// # Errors
    /// A refusal if there should have been something.
    pub fn pass(&self, lsn: Lsn) -> Result<(), Error> {
        self.check(lsn, None)
    }

    fn check(&self, lsn: Lsn, next: Option<Lsn>) -> Result<(), Error> {
        match self.pending.front() {
            Some(missed) if self.is_recorded && *missed < lsn => Err(no_commit(*missed, next)),
            Some(_) | None => Ok(()),
        }
    }
}

fn no_commit(lsn: Lsn, next: Option<Lsn>) -> Error {
    let next = next.map_or(String::new(), |next| format!("; the next one is at {next}"));
    let kind = Kind::SkipMissed {
        lsn,
        what: format!(
            "{lsn} is to be skipped, and no transaction of the replicated tables has its commit record there{next}"
        ),
        mend: format!(
            "`pgsluice skip --cancel --lsn {lsn}`, and give the LSN that the message of a stop has behind `at LSN`; nothing from \
             there on was applied"
        ),
    };
    Error::new(Stage::Source, kind)
}

/// What is left of the error; `None` where another shard may have the transaction that this one does not have.
pub(super) fn meet(config: &Config, error: Error) -> Option<Error> {
    let Kind::SkipMissed { lsn, .. } = error.kind() else { return Some(error) };
    let settled = postgres::new_runtime(Stage::Source).and_then(|it| it.block_on(skips::settle_missed(config, *lsn)));
    match settled {
        Ok(true) => {
            tracing::info!(commit_lsn = %lsn, "the transaction that is to be skipped has changed nothing in tables of this shard");
            None
        }
        Ok(false) => Some(error),
        // The next session meets the same.
        Err(why) => Some(why.shown(&config.log)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skips(pending: &[u64]) -> Skips {
        Skips::new(pending.iter().copied().map(Lsn::new).collect())
    }

    #[test]
    fn what_is_met_is_left_out_and_counted() {
        let mut skips = skips(&[20, 40]);
        for (commit_lsn, left_out) in [(10, None), (20, Some(2)), (30, None), (40, Some(2)), (50, None)] {
            skips.begin(Lsn::new(commit_lsn)).unwrap();
            assert_eq!([skips.leaves_out(), skips.leaves_out()], [left_out.is_some(); 2], "{commit_lsn}");
            assert_eq!(skips.commit(Lsn::new(commit_lsn + 5)).unwrap(), left_out);
        }
        assert!(skips.pass(Lsn::MAX).is_ok() && !skips.leaves_out());
    }

    #[test]
    fn what_is_not_met_is_refused() {
        assert!(skips(&[20]).begin(Lsn::new(20)).is_ok());
        let error = skips(&[20]).begin(Lsn::new(21)).unwrap_err().to_string();
        assert!(error.contains("0/14 is to be skipped") && error.contains("the next one is at 0/15"), "{error}");
        let mut skips = skips(&[20]);
        skips.begin(Lsn::new(15)).unwrap();
        assert!(skips.pass(Lsn::new(20)).is_ok() && skips.commit(Lsn::new(21)).is_err());
    }

    #[test]
    fn a_stream_beside_neither_records_nor_refuses() {
        let mut skips = Skips::unrecorded(vec![Lsn::new(20), Lsn::new(30)]);
        skips.begin(Lsn::new(30)).unwrap();
        assert!(skips.leaves_out());
        assert_eq!(skips.commit(Lsn::new(35)).unwrap(), None);
        assert!(!skips.leaves_out() && skips.pass(Lsn::MAX).is_ok());
    }
}
