//! The sessions of an engine on its target, and the batches that they apply side by side.
//!
//! In: batches in the order of the source. Out: the same, applied, in the same order.
//!
//! ```text
//!  batch ──► a free session, and nothing under way claims what it claims? ──yes──► under way ──commits in its turn──► done
//!                                   └─no──► it waits, and all behind it
//! ```
//!
//! A batch that cannot run beside others, such as one with a TRUNCATE or a part of a large transaction, waits until nothing is under
//! way, and nothing begins beside it. With one session that is so for all of them.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesOrdered, StreamExt};
use pgsluice_proto::Lsn;

use super::beside::CommitOrder;
use super::claims::{Claims, KeyBook};
use super::confirmation::Confirmation;
use super::{Answered, Applied, Applier, Orders};
use crate::batch::Batch;
use crate::checkpoint::Position;
use crate::error::Error;

/// Never empty but for those under way.
#[derive(Debug)]
pub struct Crew {
    /// The one that has committed last is the last.
    idle: Vec<Member>,
    size: usize,
    constraints_fire: bool,
    durable: Option<Lsn>,
    confirmation: Confirmation,
    position: Position,
    early: Option<Early>,
}

/// What is known of progress where a tenure begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// All before it is flushed on the target, and with its synchronous standbys.
    Durable,
    /// It is committed.
    Committed,
}

/// The session that applies a large transaction before its turn.
#[derive(Clone, Debug)]
pub struct Early {
    pub orders: Orders,
    /// Its process on the target, once there is one.
    pub pid: Arc<AtomicI32>,
}

#[derive(Debug)]
struct Member {
    applier: Box<Applier>,
    /// Its process on the target.
    pid: i32,
}

/// The batches under way, and the one that waits to be. It stays on one thread.
pub struct Flight {
    jobs: FuturesOrdered<Pin<Box<dyn Future<Output = Landing>>>>,
    /// In the same order.
    under_way: VecDeque<UnderWay>,
    waiting: Option<Waiting>,
    order: Rc<CommitOrder>,
    book: KeyBook,
    numbers: u64,
}

struct Waiting {
    batch: Box<Batch>,
    claims: Option<Claims>,
    is_exclusive: bool,
}

struct UnderWay {
    batch: Rc<Batch>,
    claims: Option<Claims>,
    is_exclusive: bool,
    begun_at: Instant,
}

struct Landing {
    member: Member,
    number: u64,
    result: Result<Applied, Error>,
}

impl Crew {
    /// Sessions of one tenure, which begins where `position` is. What is durable is confirmed after `confirm_delay`.
    pub async fn new(
        (position, begins): (Position, Begins),
        appliers: Vec<Applier>,
        confirm_delay: Duration,
    ) -> Result<Crew, Error> {
        let size = appliers.len();
        let constraints_fire = appliers.iter().any(|applier| applier.options.constraints_fire);
        let mut idle = Vec::with_capacity(size);
        for applier in appliers {
            let pid = applier.pid().await?;
            idle.push(Member { applier: Box::new(applier), pid });
        }
        let (confirmation, start) = (Confirmation::new(confirm_delay), position.end_lsn());
        let mut durable = None;
        match (begins, idle.last_mut()) {
            (Begins::Durable, _) => durable = Some(start),
            (Begins::Committed, last) => last.into_iter().for_each(|last| last.applier.begin_at(start)),
        }
        Ok(Crew { idle, size, constraints_fire, durable, confirmation, position, early: None })
    }

    /// There is a session beside them that applies a large transaction before its turn.
    pub fn set_early(&mut self, early: Early) {
        self.early = Some(early);
    }

    /// The processes on the target, and that of the session beside them.
    pub fn pids(&self) -> (Vec<i32>, Option<Arc<AtomicI32>>) {
        let early = self.early.as_ref().map(|early| early.pid.clone());
        (self.idle.iter().map(|member| member.pid).collect(), early)
    }

    /// Where progress stands, for a further session of the same tenure.
    pub fn position(&self) -> Position {
        self.position.clone()
    }

    /// How many batches can be under way.
    pub fn size(&self) -> usize {
        self.size
    }

    pub fn new_flight(&self) -> Flight {
        Flight {
            jobs: FuturesOrdered::new(),
            under_way: VecDeque::new(),
            waiting: None,
            order: Rc::new(CommitOrder::new(self.early.as_ref().map(|early| early.pid.clone()))),
            book: KeyBook::new(self.constraints_fire),
            numbers: 0,
        }
    }

    /// There is room for a further batch.
    pub fn takes(&self, flight: &Flight) -> bool {
        flight.waiting.is_none() && !self.idle.is_empty() && !flight.is_exclusive()
    }

    /// Takes a batch, which is begun as soon as nothing under way is against it.
    pub fn take(&mut self, batch: Box<Batch>, flight: &mut Flight, now: Instant) {
        debug_assert!(flight.waiting.is_none(), "batches are begun in their order");
        let is_exclusive = self.size == 1 || batch.is_for_itself();
        flight.waiting = Some(Waiting { batch, claims: None, is_exclusive });
        self.begin(flight, now);
    }

    fn begin(&mut self, flight: &mut Flight, now: Instant) {
        if flight.admits()
            && let Some(waiting) = flight.waiting.take()
        {
            match self.idle.pop() {
                Some(member) => flight.push(member, waiting, now, self.early.clone()),
                None => flight.waiting = Some(waiting),
            }
        }
    }

    /// The next batch that is done, in their order; `None` where nothing is under way. One that has waited for it is begun.
    ///
    /// # Errors
    /// As [`Applier::apply`]. The crew must be dropped then.
    pub async fn next(
        &mut self,
        flight: &mut Flight,
        now: &dyn Fn() -> Instant,
    ) -> Result<Option<(Box<Batch>, Applied)>, Error> {
        let Some(Landing { member, number, result }) = flight.jobs.next().await else { return Ok(None) };
        let applied = result?;
        flight.order.committed(number);
        self.durable = self.durable.max(member.applier.durable());
        self.idle.push(member);
        let done = flight.under_way.pop_front().expect("what lands was under way");
        let batch = Rc::into_inner(done.batch).expect("a job that is over has let go of its batch").into();
        let now = now();
        self.confirmation.answered(self.durable, done.begun_at, now);
        self.begin(flight, now);
        Ok(Some((batch, applied)))
    }

    /// All before this is committed on the target and flushed there; `None` before the first such commit.
    pub fn durable(&self) -> Option<Lsn> {
        self.durable
    }

    /// All before this may be confirmed to the source; `None` before there is anything.
    pub fn confirmed(&self) -> Option<Lsn> {
        self.confirmation.confirmed()
    }

    /// Something is committed that a crash of the target could still lose.
    pub fn is_waiting_for_flush(&self) -> bool {
        // Commits follow each other in WAL, so whatever the last one waits for has all others with it.
        self.idle.last().is_some_and(|last| last.applier.is_waiting_for_flush())
    }

    /// Asks the target what it has flushed meanwhile.
    pub async fn look_for_flush(&mut self, now: &dyn Fn() -> Instant) -> Result<(), Error> {
        let Some(last) = self.idle.last_mut() else { return Ok(()) };
        let asked_at = now();
        let answered = last.applier.look_for_flush(asked_at).await?;
        self.learn(answered, asked_at, now());
        Ok(())
    }

    /// Has the target flush what is committed, and rolls back what is not.
    pub async fn flush(&mut self, now: &dyn Fn() -> Instant) -> Result<(), Error> {
        let Some(last) = self.idle.last_mut() else { return Ok(()) };
        let asked_at = now();
        let answered = last.applier.flush(asked_at).await?;
        self.learn(answered, asked_at, now());
        Ok(())
    }

    fn learn(&mut self, answered: Answered, asked_at: Instant, now: Instant) {
        self.durable = self.durable.max(self.idle.last().and_then(|last| last.applier.durable()));
        if answered == Answered::Yes {
            self.confirmation.answered(self.durable, asked_at, now);
        }
    }
}

impl Flight {
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// More than one batch is under way, so that one could stand in the way of another.
    pub fn is_shared(&self) -> bool {
        self.under_way.len() > 1
    }

    /// Has those that wait for their turn see whether they are in the way.
    pub fn look(&self) {
        self.order.look();
    }

    fn is_exclusive(&self) -> bool {
        self.under_way.iter().any(|one| one.is_exclusive)
    }

    /// Nothing under way is against the one that waits.
    fn admits(&mut self) -> bool {
        let Flight { under_way, waiting: Some(waiting), book, .. } = self else { return false };
        if under_way.is_empty() {
            return true;
        }
        if waiting.is_exclusive || under_way.iter().any(|one| one.is_exclusive) {
            return false;
        }
        // Claims are made when there is something to compare them with: most batches of a quiet stream are alone.
        if waiting.claims.is_none() {
            waiting.claims = book.claims(&waiting.batch);
        }
        let Some(claims) = &waiting.claims else { return false };
        under_way.iter_mut().all(|one| {
            if one.claims.is_none() {
                one.claims = book.claims(&one.batch);
            }
            one.claims.as_ref().is_some_and(|others| !others.meet(claims))
        })
    }

    fn push(
        &mut self,
        member: Member,
        Waiting { batch, claims, is_exclusive }: Waiting,
        now: Instant,
        early: Option<Early>,
    ) {
        let number = self.numbers;
        self.numbers += 1;
        self.order.begun(number, member.pid);
        let batch: Rc<Batch> = Rc::from(batch);
        let job =
            job(member, Rc::clone(&batch), number, now, (self.order.clone(), self.book.clone(), is_exclusive), early);
        self.jobs.push_back(Box::pin(job));
        self.under_way.push_back(UnderWay { batch, claims, is_exclusive, begun_at: now });
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").field("under_way", &self.under_way.len()).finish_non_exhaustive()
    }
}

async fn job(
    mut member: Member,
    batch: Rc<Batch>,
    number: u64,
    now: Instant,
    (order, book, is_exclusive): (Rc<CommitOrder>, KeyBook, bool),
    early: Option<Early>,
) -> Landing {
    let applier = &mut member.applier;
    let apply = async {
        if batch.is_empty() {
            return applier.check_fence().await.map(|()| Applied::default());
        }
        if let Some(number) = batch.early() {
            return applier.have_committed(&batch, now, (early.as_ref().map(|early| &early.orders), number)).await;
        }
        if is_exclusive {
            return applier.apply(&batch, now).await;
        }
        book.learn(&applier.client, batch.relations()).await?;
        applier.apply_beside(&batch, now, (&order, number)).await
    };
    let result = apply.await;
    drop(batch);
    Landing { member, number, result }
}
