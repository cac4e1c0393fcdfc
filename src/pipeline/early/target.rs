//! The session on the target that applies a large transaction before it commits.
//!
//! In: orders. Out: what of them cannot be done is given up, which the reader sees, or hears of when it is to commit.
//!
//! It connects when there is a first order. A connection that is lost is not made again: then transactions wait for their commit, as they
//! would without it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::Sender;
use tokio::sync::mpsc::Receiver;

use super::State;
use crate::apply::{Applier, Order};
use crate::batch::Batch;
use crate::error::{Error, Kind, Stage};
use crate::pipeline::shared::Shared;

/// How often is looked whether somebody waits for what the transaction has locked.
pub(in crate::pipeline) const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A transaction of which nothing more comes for this many looks holds back the target's vacuum for nothing.
const IDLE_LOOKS_MAX: u32 = 300;

#[derive(Debug)]
pub(in crate::pipeline) struct EarlyTarget {
    orders: Inbox,
    empty: Sender<Box<Batch>>,
    state: Arc<State>,
    shared: Arc<Shared>,
    /// `None` before the first order, and once it is lost.
    applier: Option<Box<Applier>>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    number: u64,
    changes: usize,
    idle_looks: u32,
}

/// Orders that have come, and are to come.
#[derive(Debug)]
struct Inbox {
    receiver: Receiver<Order>,
    queue: VecDeque<Order>,
}

impl Inbox {
    /// Ends without a result if whoever orders has ended before.
    async fn unless_ended<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                order = self.receiver.recv() => self.queue.push_back(order?),
            }
        }
    }

    async fn next(&mut self) -> Option<Order> {
        match self.queue.pop_front() {
            Some(order) => Some(order),
            None => self.receiver.recv().await,
        }
    }
}

impl EarlyTarget {
    pub(super) fn new(
        receiver: Receiver<Order>,
        empty: Sender<Box<Batch>>,
        state: Arc<State>,
        shared: Arc<Shared>,
    ) -> EarlyTarget {
        let orders = Inbox { receiver, queue: VecDeque::new() };
        EarlyTarget { orders, empty, state, shared, applier: None, open: None }
    }

    /// Does what is ordered until whoever orders has ended. `tick` ends after [`LOOK_INTERVAL`].
    pub async fn run<T: Future<Output = ()>>(
        mut self,
        connect: impl AsyncFnOnce() -> Result<Applier, Error>,
        tick: impl Fn() -> T,
    ) {
        let Some(first) = self.orders.next().await else { return };
        self.orders.queue.push_front(first);
        match self.orders.unless_ended(connect()).await {
            None => return,
            Some(Ok(applier)) => {
                self.state.pid.store(applier.pid().await.unwrap_or(0), Ordering::Relaxed);
                self.applier = Some(Box::new(applier));
            }
            Some(Err(error)) => self.lose(&error),
        }
        while let Some(order) = self.next(&tick).await {
            if self.follow(order).await.is_none() {
                return;
            }
        }
    }

    /// The next order. While none comes, it is looked whether the open transaction is in somebody's way.
    async fn next<T: Future<Output = ()>>(&mut self, tick: &impl Fn() -> T) -> Option<Order> {
        loop {
            if self.open.is_none() {
                return self.orders.next().await;
            }
            tokio::select! {
                biased;
                order = self.orders.next() => return order,
                () = tick() => {}
            }
            let is_idle = self.open.as_mut().is_some_and(|open| {
                open.idle_looks += 1;
                open.idle_looks > IDLE_LOOKS_MAX
            });
            if is_idle {
                self.give_up().await?;
            }
            self.look().await?;
        }
    }

    /// `None` if whoever orders has ended.
    async fn follow(&mut self, order: Order) -> Option<()> {
        match order {
            Order::Part { number, batch } => {
                let done = self.apply(number, &batch).await;
                // There is room for all there are, and a reader that has ended needs none.
                drop(self.empty.send(batch));
                self.shared.waker.wake();
                done?;
                self.look().await
            }
            Order::GiveUp => self.give_up().await,
            Order::Commit { number, end, answer } => {
                let outcome = match (&mut self.applier, &self.open) {
                    (Some(applier), Some(open)) if open.number == number => {
                        let changes = open.changes;
                        self.orders.unless_ended(applier.commit_early(end)).await?.map(|()| changes)
                    }
                    _ => Err(Error::new(Stage::Apply, Kind::EarlyGivenUp)),
                };
                self.open = None;
                // The error ends the session of all.
                drop(answer.send(outcome));
                Some(())
            }
        }
    }

    async fn apply(&mut self, number: u64, batch: &Batch) -> Option<()> {
        if self.open.as_ref().is_some_and(|open| open.number != number) {
            self.give_up().await?;
        }
        let Some(applier) = self.applier.as_mut().filter(|_| self.state.given_up.load(Ordering::Acquire) < number)
        else {
            return Some(());
        };
        let open = self.open.get_or_insert(Open { number, changes: 0, idle_looks: 0 });
        open.changes += batch.len();
        open.idle_looks = 0;
        match self.orders.unless_ended(applier.apply_early(batch)).await? {
            Ok(()) => Some(()),
            Err(error) => self.failed(&error).await,
        }
    }

    async fn look(&mut self) -> Option<()> {
        let (Some(applier), Some(_)) = (&self.applier, &self.open) else { return Some(()) };
        match self.orders.unless_ended(applier.is_waited_for()).await? {
            Ok(false) => Some(()),
            Ok(true) => {
                tracing::debug!("somebody waits for what a large transaction has locked");
                self.give_up().await
            }
            Err(error) => self.failed(&error).await,
        }
    }

    async fn failed(&mut self, error: &Error) -> Option<()> {
        tracing::debug!(error = %error.code(), "a large transaction waits for its commit");
        self.give_up().await
    }

    /// Rolls back what is open.
    async fn give_up(&mut self) -> Option<()> {
        let (Some(applier), Some(open)) = (&mut self.applier, self.open.take()) else { return Some(()) };
        match self.orders.unless_ended(applier.give_up()).await? {
            Ok(()) => {
                self.state.given_up.fetch_max(open.number, Ordering::AcqRel);
                self.shared.waker.wake();
            }
            Err(error) => self.lose(&error),
        }
        Some(())
    }

    /// There is no session any more, or none to be had.
    fn lose(&mut self, error: &Error) {
        tracing::warn!(error = %error.code(), "large transactions wait for their commit: their session on the target is lost");
        self.give_up_all();
    }

    fn give_up_all(&mut self) {
        self.applier = None;
        self.open = None;
        self.state.pid.store(0, Ordering::Relaxed);
        self.state.given_up.store(u64::MAX, Ordering::Release);
        self.shared.waker.wake();
    }
}

impl Drop for EarlyTarget {
    /// Whatever has ended it, a panic too: nobody is to wait for a session that is not there.
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                "large transactions wait for their commit: the thread that applied them has panicked; this is a bug in pgsluice"
            );
        }
        self.give_up_all();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use pgsluice_proto::Lsn;
    use tokio::sync::mpsc;

    use super::*;
    use crate::apply::ORDERS_MAX;
    use crate::error::Error;

    #[test]
    fn a_thread_that_panics_has_given_up_all_that_comes() {
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let (give_back, _empty) = crossbeam_channel::bounded(1);
        let (state, shared) = (Arc::new(State::default()), Arc::new(Shared::new(Lsn::INVALID, Lsn::INVALID).unwrap()));
        let target = EarlyTarget::new(ordered, give_back, state.clone(), shared);
        orders.try_send(Order::GiveUp).unwrap();
        let connect = async || -> Result<Applier, Error> { panic!("as any bug would") };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let run = || runtime.block_on(target.run(connect, || std::future::ready(())));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        assert_eq!(state.given_up.load(Ordering::Acquire), u64::MAX);
    }
}
