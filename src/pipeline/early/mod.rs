//! A large transaction that is applied before it commits: what the reader has to do with it.
//!
//! In: the spool, which keeps such a transaction as any other in progress. Out: orders to the session that applies it ([`target`]).
//!
//! ```text
//!  spool ──largest──► followed ──► decoder of its own ─► transform ─► parts ══ orders ══► its session on the target
//!                        └── undone, a TRUNCATE, anything that fails: given up, and replayed when it commits
//!  its commit ──► the rest of its parts ──► a batch in the ordinary order, that has the session commit
//! ```
//!
//! **Always holds:**
//! - The spool keeps all of it until that batch is handed over, so it can be given up at any time before.
//! - The reader never waits for its session while others have something to be read.
//! - A session that cannot be made, or that has ended in whatever way, has given up all transactions there will be.
//! - What is decided by the commit is decided then: whether the target has it already, and whether it is still wanted.

mod target;

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crossbeam_channel::Receiver;
use pgsluice_proto::{Lsn, PgTimestamp, Xid};
use tokio::sync::mpsc::{self, error::TrySendError};

pub(super) use self::target::{EarlyTarget, LOOK_INTERVAL};
use super::intake::Intake;
use super::selection::{Beside, Known, Selection};
use super::shared::{Shared, empty_batches};
use crate::apply::{Early as ForCrew, ORDERS_MAX, Order, Orders};
use crate::batch::{Batch, Limits, Transaction};
use crate::decode::{Arrival, Decoded, Decoder};
use crate::error::Error;
use crate::snapshot::Copied;
use crate::spool::{Followed, Replayed};
use crate::transform::{Mapping, Transform};

/// One being filled, one being applied.
const BATCHES: usize = 2;
/// So many messages are decoded before somebody else has his turn.
const MESSAGES_MAX: usize = 1_000;

/// What both sides know of each other.
#[derive(Debug, Default)]
struct State {
    /// Transactions up to this number are given up by the session.
    given_up: AtomicU64,
    /// Of the session on the target; 0 before there is one.
    pid: Arc<AtomicI32>,
}

/// What decides how its rows are read.
#[derive(Clone, Debug)]
pub(super) struct Reads {
    pub mapping: Arc<Mapping>,
    pub binary: bool,
    pub known: Known,
}

#[derive(Debug)]
pub(super) struct Early {
    reads: Reads,
    orders: Orders,
    empty: Receiver<Box<Batch>>,
    /// One that was not handed over.
    spare: Option<Box<Batch>>,
    state: Arc<State>,
    /// Transactions that have been begun.
    count: u64,
    following: Option<Box<Following>>,
}

/// The transaction that is being applied.
#[derive(Debug)]
struct Following {
    xid: Xid,
    decoder: Decoder,
    selection: Selection,
    transform: Transform,
    batch: Option<Box<Batch>>,
    /// The session has heard of it.
    is_ordered: bool,
    described: Vec<Described>,
}

/// A description of a relation, which the stream takes for known once the transaction has committed.
#[derive(Debug)]
pub(super) struct Described {
    pub arrival: Arrival,
    pub lsn: Lsn,
    pub payload: Vec<u8>,
}

/// What following has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// There is nothing that is followed.
    Nothing,
    /// There is more.
    More,
    /// All that has come is in parts, the last one not handed over perhaps.
    UpToDate,
    /// Until the session gives back a part.
    NoBatch,
}

/// Both ends, and what the crew has to know.
pub(super) fn early(reads: Reads, shared: Arc<Shared>) -> Result<(Early, EarlyTarget, ForCrew), Error> {
    let (give_back, empty) = empty_batches(BATCHES)?;
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    let state = Arc::new(State::default());
    let target = EarlyTarget::new(ordered, give_back, state.clone(), shared);
    let for_crew = ForCrew { orders: orders.clone(), pid: state.pid.clone() };
    let early = Early { reads, orders, empty, spare: None, state, count: 0, following: None };
    Ok((early, target, for_crew))
}

impl Early {
    /// Whether this transaction is followed, and not given up.
    pub fn has(&self, xid: Xid) -> bool {
        self.following.as_ref().is_some_and(|following| following.xid == xid) && !self.is_given_up()
    }

    /// Goes on with the transaction that is followed, or begins with one that is large enough.
    ///
    /// # Errors
    /// [`Kind::Spool`](crate::error::Kind::Spool).
    pub fn go_on(&mut self, intake: &mut Intake, limits: Limits) -> Result<Came, Error> {
        if self.following.is_none() && !self.begin(intake, limits) {
            return Ok(Came::Nothing);
        }
        if self.is_given_up() {
            self.give_up(intake);
            return Ok(Came::Nothing);
        }
        for _ in 0..MESSAGES_MAX {
            if !self.has_batch(limits) {
                return Ok(Came::NoBatch);
            }
            let Some(following) = &mut self.following else { return Ok(Came::Nothing) };
            let taken = match intake.followed(following.xid)? {
                Followed::Message(message) => following.take(&message),
                Followed::UpToDate => {
                    if self.is_session_idle() {
                        self.hand_over();
                    }
                    return Ok(Came::UpToDate);
                }
                Followed::Undone => Ok(Taken::NotEarly),
            };
            match taken {
                Ok(Taken::Yes) => {}
                Ok(Taken::NotEarly) => {
                    self.give_up(intake);
                    return Ok(Came::Nothing);
                }
                // If it is one, it comes again when the transaction has committed.
                Err(error) => {
                    tracing::debug!(error = %error.code(), "a large transaction waits for its commit");
                    self.give_up(intake);
                    return Ok(Came::Nothing);
                }
            }
            if self.is_full(limits) {
                self.hand_over();
            }
        }
        Ok(Came::More)
    }

    /// All of it has come, and is handed over: its number, and what it has described.
    pub fn finish(&mut self) -> Option<(u64, Vec<Described>)> {
        self.hand_over();
        let following = self.following.take()?;
        self.spare = following.batch.or(self.spare.take());
        Some((self.count, following.described))
    }

    /// It comes as any other when it has committed.
    pub fn give_up(&mut self, intake: &mut Intake) {
        let Some(following) = self.following.take() else { return };
        self.spare = following.batch.or(self.spare.take());
        if following.is_ordered {
            self.order(Order::GiveUp);
        }
        intake.wait_for_commit(following.xid);
    }

    /// There is room for as many as there can be. A session that has ended has given up, and nothing is open there.
    fn order(&self, order: Order) {
        if let Err(TrySendError::Full(_)) = self.orders.try_send(order) {
            debug_assert!(false, "more than {ORDERS_MAX} orders are on their way");
            self.state.given_up.store(u64::MAX, Ordering::Release);
        }
    }

    fn is_given_up(&self) -> bool {
        self.state.given_up.load(Ordering::Acquire) >= self.count
    }

    fn begin(&mut self, intake: &mut Intake, limits: Limits) -> bool {
        // Every transaction that was lost of a session counts for all that would come.
        if self.state.given_up.load(Ordering::Acquire) == u64::MAX {
            return false;
        }
        let Some(xid) = intake.follow_largest(limits.bytes as u64) else { return false };
        self.count += 1;
        let Reads { mapping, binary, known } = self.reads.clone();
        let mut selection = Selection::new(Copied::default(), Beside::None, known);
        // Its commit record comes after all that there is now.
        selection.begin(Lsn::MAX);
        self.following = Some(Box::new(Following {
            xid,
            decoder: Decoder::amid(xid),
            selection,
            transform: Transform::new(mapping, binary),
            batch: None,
            is_ordered: false,
            described: Vec::new(),
        }));
        true
    }

    fn has_batch(&mut self, limits: Limits) -> bool {
        let Some(following) = &mut self.following else { return false };
        if following.batch.is_none()
            && let Some(mut batch) = self.spare.take().or_else(|| self.empty.try_recv().ok())
        {
            batch.clear(limits);
            batch.resume(in_progress(following.xid));
            following.batch = Some(batch);
        }
        following.batch.is_some()
    }

    fn is_full(&self, limits: Limits) -> bool {
        let batch = self.following.as_ref().and_then(|following| following.batch.as_ref());
        batch.is_some_and(|batch| batch.len() >= limits.rows || batch.bytes() >= limits.bytes)
    }

    fn is_session_idle(&self) -> bool {
        self.empty.len() + 1 + usize::from(self.spare.is_some()) >= BATCHES
    }

    fn hand_over(&mut self) {
        let Some(following) = &mut self.following else { return };
        if let Some(batch) = following.batch.take_if(|batch| batch.has_changes()) {
            following.is_ordered = true;
            let number = self.count;
            self.order(Order::Part { number, batch });
        }
    }
}

enum Taken {
    Yes,
    /// The transaction has to wait for its commit.
    NotEarly,
}

impl Following {
    fn take(&mut self, message: &Replayed<'_>) -> Result<Taken, Error> {
        let Replayed { lsn, arrival, payload } = *message;
        let Some(batch) = &mut self.batch else { return Ok(Taken::NotEarly) };
        if let Some(arrival) = arrival {
            self.described.push(Described { arrival, lsn, payload: payload.to_vec() });
        }
        match self.decoder.decode(lsn, payload)? {
            Decoded::Change(change) => {
                if !self.selection.takes(change.relation)? {
                    return Ok(Taken::Yes);
                }
                if self.transform.reads_commit(change.relation)? {
                    return Ok(Taken::NotEarly);
                }
                self.transform.push(&change, batch)?;
                Ok(Taken::Yes)
            }
            // It would keep everybody from reading the table for as long as the transaction takes.
            Decoded::Truncate(_) => Ok(Taken::NotEarly),
            Decoded::Begin(_) | Decoded::Commit(_) | Decoded::Nothing => Ok(Taken::Yes),
        }
    }
}

/// What is known of a transaction that has not committed.
fn in_progress(xid: Xid) -> Transaction {
    Transaction { xid, commit_lsn: Lsn::MAX, end_lsn: None, commit_time: PgTimestamp::from_micros(0) }
}
