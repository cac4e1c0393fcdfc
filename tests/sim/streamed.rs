//! Transactions that the walsender streams before they have committed (`ReorderBufferStreamTXN`, `pgoutput.c`).
//!
//! In: the history, of which some transactions are streamed. Out: their messages in segments, between the transactions that
//! commit before them, with parts that are undone again, and transactions that are undone as a whole.
//!
//! ```text
//!  Stream Start ─► changes of the history │ changes of nothing, under a subtransaction ─► Stream Stop
//!                                         └─► Stream Abort of it, and of those inside of it, before anything else of
//!                                             the transaction comes
//! ```

use std::collections::BTreeMap;

use super::frames;
use super::history::{Change, Form, History, Transaction};
use super::random::Random;
use super::tables::TABLES;

/// Transactions ahead of the next one to commit that may be in progress.
const AHEAD_MAX: usize = 5;
/// Transactions that come to nothing, of a stream; and subtransactions of a transaction.
const GHOSTS_MAX: u32 = 4;
const DOOMED_MAX: u32 = 4;
/// Messages of a segment.
const SEGMENT_MAX: usize = 8;
/// Numbers of subtransactions, and of transactions that come to nothing, are higher than those of all others.
const FIRST_GHOST_XID: u32 = 50_000;
const FIRST_SUBXID: u32 = 100_000;
/// The place of the first transaction that comes to nothing.
const FIRST_GHOST: usize = 1_000_000;

#[derive(Default)]
pub struct Streamed {
    is_on: bool,
    /// By their places in the history.
    open: BTreeMap<usize, Open>,
    segment: Option<Segment>,
    ghosts: u32,
    subxids: u32,
}

#[derive(Clone, Copy)]
struct Segment {
    place: usize,
    left: usize,
}

#[derive(Default)]
struct Open {
    xid: u32,
    has_begun: bool,
    /// Of its changes in the history.
    sent: usize,
    described: [bool; TABLES.len()],
    /// The subtransaction that its changes belong to.
    subxid: Option<u32>,
    /// Subtransactions that are to be undone, each inside of the one before it.
    doomed: Vec<u32>,
    /// That there were.
    doomed_count: u32,
}

/// What it streams from.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    pub history: &'a History,
    pub form: Form,
    /// The next transaction to commit, and how many have.
    pub next: usize,
    pub committed: usize,
}

fn is_streamed(place: usize, transaction: &Transaction) -> bool {
    transaction.changes.len() >= 10 || place.is_multiple_of(4)
}

impl Streamed {
    pub fn new(is_on: bool) -> Streamed {
        Streamed { is_on, ..Streamed::default() }
    }

    pub fn in_segment(&self) -> bool {
        self.segment.is_some()
    }

    /// Encodes a message, if it is the turn of one.
    pub fn step(
        &mut self,
        around: Around<'_>,
        out: &mut Vec<u8>,
        seen: &mut Vec<&'static str>,
        random: &mut Random,
    ) -> bool {
        if let Some(segment) = self.segment {
            self.go_on(segment, around, out, random);
            return true;
        }
        if !self.is_on {
            return false;
        }
        let Around { history, next, committed, .. } = around;
        let transaction = history.transactions.get(next).filter(|_| next < committed);
        let must = transaction.is_some_and(|transaction| is_streamed(next, transaction));
        if must && self.is_whole(next, history) {
            return self.undo(next, out, seen, random);
        }
        if !must && !random.happens(60) {
            return false;
        }
        let place = if must && random.happens(700) { Some(next) } else { self.any(around, random) };
        let Some(place) = place.or(must.then_some(next)) else { return false };
        if random.happens(300) && self.undo(place, out, seen, random) {
            return true;
        }
        self.start(place, around, out, random);
        true
    }

    /// The transaction at this place commits, if it is one that was streamed, and all of it is sent. What was described
    /// to it.
    pub fn commit(
        &mut self,
        place: usize,
        transaction: &Transaction,
        out: &mut Vec<u8>,
    ) -> Option<[bool; TABLES.len()]> {
        if self.segment.is_some() || !self.is_on || !is_streamed(place, transaction) {
            return None;
        }
        let open = self.open.remove(&place)?;
        assert!(open.sent == transaction.changes.len() && open.doomed.is_empty(), "it is whole");
        frames::stream_commit(transaction, out);
        Some(open.described)
    }

    /// All of its changes are sent.
    fn is_whole(&self, place: usize, history: &History) -> bool {
        self.open
            .get(&place)
            .is_some_and(|open| open.has_begun && open.sent == history.transactions[place].changes.len())
    }

    /// A transaction in progress that has something to send, or one that will come to nothing.
    fn any(&mut self, around: Around<'_>, random: &mut Random) -> Option<usize> {
        let Around { history, next, .. } = around;
        if random.happens(200) {
            let ghosts: Vec<_> = self.open.keys().copied().filter(|place| *place >= FIRST_GHOST).collect();
            if ghosts.is_empty() && self.ghosts < GHOSTS_MAX {
                self.ghosts += 1;
                return Some(FIRST_GHOST + self.ghosts as usize);
            }
            return ghosts.first().copied();
        }
        let ahead = next..history.transactions.len().min(next + AHEAD_MAX);
        let is_ready =
            |place: &usize| is_streamed(*place, &history.transactions[*place]) && !self.is_whole(*place, history);
        let ready: Vec<_> = ahead.filter(is_ready).collect();
        (!ready.is_empty()).then(|| ready[random.below(ready.len())])
    }

    fn start(&mut self, place: usize, around: Around<'_>, out: &mut Vec<u8>, random: &mut Random) {
        let xid = match around.history.transactions.get(place) {
            Some(transaction) => transaction.xid,
            None => FIRST_GHOST_XID + (place - FIRST_GHOST) as u32,
        };
        let open = self.open.entry(place).or_insert_with(|| Open { xid, ..Open::default() });
        frames::stream_start(xid, !open.has_begun, out);
        open.has_begun = true;
        self.segment = Some(Segment { place, left: random.between(0, SEGMENT_MAX) });
    }

    fn go_on(&mut self, segment: Segment, around: Around<'_>, out: &mut Vec<u8>, random: &mut Random) {
        let Segment { place, left } = segment;
        let Some(open) = self.open.get_mut(&place) else { unreachable!("what has a segment is open") };
        let changes = around.history.transactions.get(place).map_or(&[][..], |transaction| &transaction.changes[..]);
        let may_be_doomed = open.doomed_count < DOOMED_MAX && random.happens(150);
        if left == 0 || changes.len() == open.sent && open.doomed.is_empty() && !may_be_doomed {
            frames::stream_stop(out);
            self.segment = None;
            return;
        }
        self.segment = Some(Segment { place, left: left - 1 });
        let mut number = || {
            self.subxids += 1;
            FIRST_SUBXID + self.subxids
        };
        if may_be_doomed {
            open.doomed.push(number());
            open.doomed_count += 1;
        } else if random.happens(200) {
            open.subxid = random.happens(700).then(number);
        }
        if let Some(&doomed) = open.doomed.last() {
            let any = &around.history.transactions[random.below(around.history.transactions.len())].changes;
            if !any.is_empty() {
                open.send(&any[random.below(any.len())], doomed, around.form, out, random);
            }
            return;
        }
        open.send(&changes[open.sent], open.subxid.unwrap_or(open.xid), around.form, out, random);
        open.sent += 1;
    }

    /// Undoes what is to be undone of it, one after the other or all at once, or the whole if that comes to nothing. True
    /// if there was something.
    fn undo(&mut self, place: usize, out: &mut Vec<u8>, seen: &mut Vec<&'static str>, random: &mut Random) -> bool {
        let Some(open) = self.open.get_mut(&place) else { return false };
        if !open.doomed.is_empty() {
            // The inner one alone, or all of them, in whichever order: the source names each.
            let undone = match random.below(3) {
                0 => open.doomed.drain(open.doomed.len() - 1..).collect(),
                1 => std::mem::take(&mut open.doomed),
                _ => open.doomed.drain(..).rev().collect(),
            };
            undone.into_iter().for_each(|subxid| frames::stream_abort(open.xid, subxid, out));
            // What was described to it may have been described in what is undone.
            open.described = Default::default();
            // So may the subtransaction that would come next have begun there.
            open.subxid = None;
            seen.push("an aborted part of a streamed transaction");
            return true;
        }
        if place < FIRST_GHOST || random.happens(500) {
            return false;
        }
        frames::stream_abort(open.xid, open.xid, out);
        self.open.remove(&place);
        seen.push("a streamed transaction that is aborted");
        true
    }
}

impl Open {
    fn send(&mut self, change: &Change, xid: u32, form: Form, out: &mut Vec<u8>, random: &mut Random) {
        for table in frames::tables_of(change) {
            if !self.described[table] || random.happens(20) {
                frames::relation(&TABLES[table], Some(xid), out);
                self.described[table] = true;
            }
        }
        frames::change(change, Some(xid), 0, form, out);
    }
}
