//! The source: WAL that grows, a slot, and a walsender that streams from it.
//!
//! In: what happened, and when the scheduler has it happen. Out: a walsender's bytes on a socket; what is confirmed.
//!
//! It does as PostgreSQL does (`walsender.c`, `logical.c`): a stream starts at the requested position or at the slot's
//! `confirmed_flush_lsn`, whichever is later; transactions whose commit record lies before that are left out; a relation
//! is described before its first row of a stream, and again whenever it may have changed.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use pgsluice_proto::Lsn;
use pgsluice_proto::wire::{self, Split};

use super::frames;
use super::history::{FIRST_LSN, Form, History};
use super::random::Random;
use super::streamed::{Around, Streamed};
use super::tables::TABLES;
use crate::source::slot::SlotState;

/// What a walsender has encoded and not sent: as little as its socket would hold.
const PENDING_BYTES_MAX: usize = 2_000;

pub struct Source {
    pub history: Rc<History>,
    form: Form,
    /// So many transactions have committed.
    pub committed: usize,
    /// All WAL there is lies before this.
    pub wal_end: u64,
    pub confirmed: u64,
    /// What of it a crash leaves.
    saved: u64,
    walsender: Option<Walsender>,
    /// The highest flushed position that was ever reported, for the scheduler to judge.
    pub reported: u64,
    /// Amid a transaction a keepalive may show a position past it. PostgreSQL's does not, and does not promise it.
    pub is_eager: bool,
    /// What the engine has and the slot does not know to be confirmed is sent again, whatever start is asked for.
    pub is_generous: bool,
    /// It is asked for transactions in progress.
    pub streams: bool,
    /// What it came to, for the world to count.
    pub seen: Vec<&'static str>,
}

struct Walsender {
    socket: UnixStream,
    /// Encoded and not sent.
    pending: Vec<u8>,
    inbox: Vec<u8>,
    /// The transaction that comes next, and how many of its messages have been sent.
    next: usize,
    within: usize,
    /// All WAL before this is decoded.
    position: u64,
    described: [bool; TABLES.len()],
    /// Transactions that are streamed before they have committed.
    streamed: Streamed,
}

/// The slot is used by another walsender.
#[derive(Debug)]
pub struct InUse;

impl Source {
    pub fn new(history: Rc<History>, form: Form) -> Source {
        Source {
            history,
            form,
            committed: 0,
            wal_end: FIRST_LSN,
            confirmed: FIRST_LSN,
            saved: FIRST_LSN,
            walsender: None,
            reported: FIRST_LSN,
            is_eager: false,
            is_generous: false,
            streams: false,
            seen: Vec::new(),
        }
    }

    /// What `pg_replication_slots` shows.
    pub fn slot(&self) -> SlotState {
        SlotState {
            slot_name: "pgsluice_sim".to_owned(),
            plugin: Some("pgoutput".to_owned()),
            database: Some("sim".to_owned()),
            active: self.walsender.is_some(),
            active_pid: None,
            wal_status: Some("reserved".to_owned()),
            invalidation_reason: None,
            conflicting: Some(false),
            synced: Some(false),
            confirmed_flush_lsn: Some(Lsn::new(self.confirmed)),
            restart_lsn: Some(Lsn::new(self.saved)),
            safe_wal_size: None,
        }
    }

    /// The next transaction commits.
    pub fn commit(&mut self) -> bool {
        let Some(transaction) = self.history.transactions.get(self.committed) else { return false };
        self.committed += 1;
        self.wal_end = transaction.end_lsn;
        true
    }

    /// WAL of no interest is written.
    pub fn write_other_wal(&mut self, random: &mut Random) {
        let next = self.history.transactions.get(self.committed);
        let limit = next.map_or(self.wal_end + 800, |transaction| transaction.commit_lsn);
        self.wal_end += 8 * random.below(((limit - self.wal_end) / 8 + 1) as usize) as u64;
    }

    /// START_REPLICATION.
    ///
    /// # Errors
    /// If another walsender is at it.
    pub fn start(&mut self, requested: u64) -> Result<UnixStream, InUse> {
        if self.walsender.is_some() {
            return Err(InUse);
        }
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("a socket that does not block");
        let start = if self.is_generous { self.confirmed } else { requested.max(self.confirmed) };
        let next = self.history.transactions.partition_point(|transaction| transaction.commit_lsn < start);
        self.walsender = Some(Walsender {
            socket: ours,
            pending: Vec::new(),
            inbox: Vec::new(),
            next,
            within: 0,
            position: start,
            described: [false; TABLES.len()],
            streamed: Streamed::new(self.streams),
        });
        Ok(theirs)
    }

    /// The walsender's connection is cut.
    pub fn cut(&mut self) {
        self.walsender = None;
    }

    /// The server crashes: the slot goes back to what it has saved. True if that is less than it was.
    pub fn crash(&mut self) -> bool {
        self.walsender = None;
        let goes_back = self.saved < self.confirmed;
        self.confirmed = self.saved;
        goes_back
    }

    /// A checkpoint saves the slot.
    pub fn save(&mut self) {
        self.saved = self.confirmed;
    }

    /// Encodes one message more, if there is one to send. True if there was.
    pub fn decode(&mut self, random: &mut Random) -> bool {
        let Source { history, form, committed, wal_end, walsender, is_eager, seen, .. } = self;
        let Some(walsender) = walsender else { return false };
        if walsender.pending.len() >= PENDING_BYTES_MAX {
            return false;
        }
        if walsender.within == 0 && walsender.stream(history, *form, (*committed, *wal_end, *is_eager), seen, random) {
            return true;
        }
        if walsender.next >= *committed {
            return walsender.idle(*wal_end, random);
        }
        let transaction = &history.transactions[walsender.next];
        if random.happens(40) {
            walsender.keepalive(transaction.commit_lsn, *wal_end, *is_eager, random);
            return true;
        }
        let out = &mut walsender.pending;
        match walsender.within.checked_sub(1) {
            None => frames::begin(transaction, out),
            Some(place) if place < transaction.changes.len() => {
                let change = &transaction.changes[place];
                for table in frames::tables_of(change) {
                    if !walsender.described[table] || random.happens(20) {
                        frames::relation(&TABLES[table], None, out);
                        walsender.described[table] = true;
                    }
                }
                frames::change(change, None, transaction.commit_lsn - 8, *form, out);
            }
            Some(_) => {
                frames::commit(transaction, out);
                walsender.position = walsender.position.max(transaction.end_lsn);
                walsender.next += 1;
                walsender.within = 0;
                return true;
            }
        }
        walsender.within += 1;
        true
    }

    /// Sends at most so many bytes. True if it sent any.
    pub fn send(&mut self, bytes: usize) -> bool {
        let Some(walsender) = &mut self.walsender else { return false };
        let bytes = bytes.min(walsender.pending.len());
        match walsender.socket.write(&walsender.pending[..bytes]) {
            Ok(written) => {
                walsender.pending.drain(..written);
                written > 0
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(_) => {
                self.receive();
                self.walsender = None;
                true
            }
        }
    }

    /// Takes what the engine reports. True if there was something.
    pub fn receive(&mut self) -> bool {
        let Some(walsender) = &mut self.walsender else { return false };
        let mut bytes = [0; 4096];
        let mut is_over = false;
        loop {
            match walsender.socket.read(&mut bytes) {
                Ok(0) => is_over = true,
                Ok(read) => {
                    walsender.inbox.extend(&bytes[..read]);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => is_over = true,
            }
            break;
        }
        let mut heard = false;
        while let Ok(Split::Whole(message)) = wire::split(&walsender.inbox) {
            heard = true;
            match (message.tag, message.body) {
                (wire::COPY_DATA, [b'r', rest @ ..]) => {
                    let lsn = |at: usize| u64::from_be_bytes(rest[at..at + 8].try_into().expect("eight bytes"));
                    assert!(lsn(0) >= lsn(8), "written {} is behind flushed {}", lsn(0), lsn(8));
                    self.reported = self.reported.max(lsn(8));
                    self.confirmed = self.confirmed.max(lsn(8));
                }
                (wire::COPY_DONE, []) => is_over = true,
                other => panic!("a walsender is told {other:?}"),
            }
            let total = message.total_bytes();
            walsender.inbox.drain(..total);
        }
        if is_over {
            self.walsender = None;
        }
        heard || is_over
    }
}

impl Walsender {
    /// Encodes one message of what is in progress, or the commit of it. False if it is the turn of something else.
    fn stream(
        &mut self,
        history: &History,
        form: Form,
        (committed, wal_end, is_eager): (usize, u64, bool),
        seen: &mut Vec<&'static str>,
        random: &mut Random,
    ) -> bool {
        let in_segment = self.streamed.in_segment();
        if in_segment && random.happens(40) {
            let limit = if is_eager { wal_end } else { self.position };
            let shown = self.position + 8 * random.below(((limit - self.position) / 8 + 1) as usize) as u64;
            frames::keepalive(shown, random.happens(300), &mut self.pending);
            return true;
        }
        let around = Around { history, form, next: self.next, committed };
        if self.streamed.step(around, &mut self.pending, seen, random) {
            return true;
        }
        let Some(transaction) = history.transactions.get(self.next).filter(|_| self.next < committed) else {
            return false;
        };
        let Some(described) = self.streamed.commit(self.next, transaction, &mut self.pending) else { return false };
        // What was described to the transaction counts as known from now on.
        self.described.iter_mut().zip(described).for_each(|(known, described)| *known |= described);
        seen.push("a streamed transaction");
        self.position = self.position.max(transaction.end_lsn);
        self.next += 1;
        true
    }

    /// All is sent: the position moves, and the engine may hear of it.
    fn idle(&mut self, wal_end: u64, random: &mut Random) -> bool {
        if self.position == wal_end && !random.happens(50) {
            return false;
        }
        self.position = wal_end;
        frames::keepalive(self.position, random.happens(300), &mut self.pending);
        true
    }

    /// Amid what there is to send. Between transactions what lies before the position has been sent.
    fn keepalive(&mut self, commit_lsn: u64, wal_end: u64, is_eager: bool, random: &mut Random) {
        let limit = if self.within > 0 && is_eager { wal_end } else { commit_lsn };
        let shown = self.position + 8 * random.below(((limit.saturating_sub(self.position)) / 8 + 1) as usize) as u64;
        if self.within == 0 {
            self.position = self.position.max(shown);
        }
        frames::keepalive(shown, random.happens(300), &mut self.pending);
    }
}
