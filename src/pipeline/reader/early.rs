//! A large transaction that is applied before it commits, and its commit among those of others.

use std::time::Instant;

use pgsluice_proto::pgoutput::StreamCommit;

use super::{Reader, Step, Wait};
use crate::decode::Decoded;
use crate::error::Error;
use crate::pipeline::early::{Came, Described};
use crate::pipeline::selection::Beside;

impl Reader {
    /// Goes on with such a transaction. Where it has committed, nothing else is done before that is dealt with.
    pub(super) fn serve_early(&mut self, now: Instant) -> Result<Option<Step>, Error> {
        let (Some(early), Some(intake)) = (&mut self.early, self.input.streaming()) else { return Ok(None) };
        let Some(commit) = intake.followed_commit() else {
            self.has_more_early = early.go_on(intake, self.limits)? == Came::More;
            return Ok(None);
        };
        if !self.commits_early(commit) {
            self.wait_for_commit();
            return Ok(Some(Step::Again));
        }
        let (Some(early), Some(intake)) = (&mut self.early, self.input.streaming()) else { return Ok(None) };
        Ok(Some(match early.go_on(intake, self.limits)? {
            Came::Nothing | Came::More => Step::Again,
            Came::NoBatch => Step::Wait(Wait::ForWaker),
            Came::UpToDate => self.commit_early(commit, now)?,
        }))
    }

    /// It comes as any other when it has committed.
    fn wait_for_commit(&mut self) {
        if let (Some(early), Some(intake)) = (&mut self.early, self.input.streaming()) {
            early.give_up(intake);
        }
    }

    /// The target does not have it yet, and it is still what was expected.
    fn commits_early(&self, commit: StreamCommit) -> bool {
        let is_before_end = self.stop_at.is_none_or(|stop| commit.commit_lsn < stop);
        let is_alone = matches!(self.selection.beside(), Beside::None) && self.skips.is_empty();
        let is_followed = self.early.as_ref().is_some_and(|early| early.has(commit.xid));
        is_followed && is_alone && is_before_end && !self.decoder.is_behind(commit.commit_lsn)
    }

    /// All of its parts are ordered: its commit comes in a batch of its own, behind those of all that come before it.
    fn commit_early(&mut self, commit: StreamCommit, now: Instant) -> Result<Step, Error> {
        if self.batch.as_ref().is_some_and(|batch| !batch.is_empty()) {
            self.hand_over(now);
        }
        if self.batch.is_none() && !self.take_batch() {
            return Ok(Step::Wait(Wait::ForWaker));
        }
        let Some((number, described)) = self.early.as_mut().and_then(|early| early.finish()) else {
            return Ok(Step::Again);
        };
        let mut payload = Vec::new();
        commit.begin().encode(&mut payload);
        if let (Decoded::Begin(begin), Some(batch)) =
            (self.decoder.decode(commit.commit_lsn, &payload)?, &mut self.batch)
        {
            batch.begin(begin);
            batch.set_early(number);
        }
        for Described { arrival, lsn, payload } in &described {
            self.decoder.decode_arrived(*arrival, *lsn, payload)?;
        }
        payload.clear();
        commit.commit().encode(&mut payload);
        if let (Decoded::Commit(commit), Some(batch)) =
            (self.decoder.decode(commit.commit_lsn, &payload)?, &mut self.batch)
        {
            batch.commit(commit);
            self.received = commit.end_lsn;
        }
        if let Some(intake) = self.input.streaming() {
            intake.forget_followed(commit.xid);
        }
        self.hand_over(now);
        Ok(Step::Again)
    }
}
