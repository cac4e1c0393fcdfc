//! Where in its log the subtransactions of a transaction begin.
//!
//! Subtransactions are nested, and one that is undone is undone before anything else of its transaction comes. So what lies
//! behind the beginning of one that is undone is of it, or of one inside of it: the log is cut there, and whatever began
//! behind it is forgotten (`stream_abort_internal` in `worker.c`).

use std::collections::HashSet;

use pgsluice_proto::Xid;

#[derive(Debug, Default)]
pub(super) struct Subtransactions {
    /// With the place of the first message of each, in the order of these places.
    began: Vec<(Xid, u64)>,
    /// Those of `began`. The keys are numbers that the source counts up, so no one can choose them to collide.
    known: HashSet<u32, foldhash::fast::RandomState>,
    /// Of the message before: runs of one are the rule.
    last: Option<Xid>,
}

impl Subtransactions {
    pub fn len(&self) -> usize {
        self.began.len()
    }

    /// A message of this one comes at this place of the log.
    #[inline]
    pub fn note(&mut self, xid: Xid, place: u64) {
        if self.last == Some(xid) {
            return;
        }
        self.last = Some(xid);
        if self.known.insert(xid.0) {
            self.began.push((xid, place));
        }
    }

    /// Forgets this one and all that began behind it. Where it began; `None` where nothing of it has come.
    pub fn undo(&mut self, xid: Xid) -> Option<u64> {
        if !self.known.contains(&xid.0) {
            return None;
        }
        self.last = None;
        while let Some((other, place)) = self.began.pop() {
            self.known.remove(&other.0);
            if other == xid {
                return Some(place);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_behind_one_that_is_undone_is_forgotten_with_it() {
        let mut subtransactions = Subtransactions::default();
        for (xid, place) in [(10, 0), (11, 5), (10, 7), (12, 9), (12, 11), (11, 13)] {
            subtransactions.note(Xid(xid), place);
        }
        assert_eq!((subtransactions.len(), subtransactions.undo(Xid(13))), (3, None));
        assert_eq!(subtransactions.undo(Xid(11)), Some(5));
        assert_eq!((subtransactions.len(), subtransactions.undo(Xid(12))), (1, None));
        // The number comes again at another place.
        subtransactions.note(Xid(11), 5);
        subtransactions.note(Xid(12), 6);
        assert_eq!((subtransactions.undo(Xid(12)), subtransactions.undo(Xid(10))), (Some(6), Some(0)));
        assert_eq!((subtransactions.len(), subtransactions.undo(Xid(11))), (0, None));
    }
}
