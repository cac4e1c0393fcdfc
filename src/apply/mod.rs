//! From batches to transactions on the target.
//!
//! In: a [`Batch`]. Out: its changes and the progress row, committed together.
//!
//! ```text
//!          batch that ends with a transaction                  batch that ends inside of one
//!   Idle ──BEGIN, progress, changes, COMMIT──► Idle     Idle ──BEGIN, hold progress, changes──► Open
//!                                                       Open ──changes──► Open
//!                                                       Open ──changes, progress, COMMIT──► Idle
//! ```
//!
//! Changes are applied as sets. Where that fails there is a ladder, each step after a rollback: as sets, in the source's
//! order, one source transaction at a time. The last step keeps what comes before the transaction that cannot be applied.
//! That one is applied as the policies of its tables have it (`refused`); where they have no answer, its error is the one that
//! is reported.
//!
//! **Always holds:**
//! - Progress and data are one transaction of the target, so both are there or neither is.
//! - Every statement's count of rows is compared with what the change asks for before anything commits.
//! - After an error the session is not used again: what it had open is rolled back with it.

mod attempt;
mod beside;
mod catalog;
mod cause;
mod claims;
mod confirmation;
mod crew;
mod diagnose;
mod divide;
mod durability;
mod early;
mod exceptions;
mod flight;
mod heal;
mod in_order;
mod key;
mod net;
mod parameter;
mod plan;
mod policy;
mod refused;
mod sets;
mod sql;

use std::pin::pin;
use std::time::Instant;

use futures_util::future::{Either, select, try_join};
use pgsluice_proto::Lsn;
use tokio_postgres::Client;

use self::attempt::attempt;
use self::beside::CommitOrder;
pub use self::catalog::{TargetColumn, TargetTable, is_stable_in_binary, load as load_tables};
pub use self::cause::find_cause;
pub use self::crew::{Begins, Crew, Early, Flight};
use self::durability::{Durability, Looked};
pub use self::early::{ORDERS_MAX, Order, Orders};
use self::plan::Plans;
pub use self::plan::{check_columns, row_key_columns};
pub use self::policy::Policies;
use crate::batch::{Batch, Part};
use crate::checkpoint::{Checkpoint, Tenure};
use crate::config::Role;
use crate::error::{Error, Stage};
use crate::postgres::{self, Warnings};

/// The isolation is stated because defaults of the role or database may differ. What may be checked late is checked
/// late: the source's rows come one by one, and need not hold before its statement or transaction has ended.
///
/// Statements are sent behind it without waiting for its answer. Only what it begins may write
/// ([`postgres::write_in_blocks_only`]), so that they do nothing if it fails.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE; SET CONSTRAINTS ALL DEFERRED";

/// What a batch came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Progress on the target; `None` while a transaction is open.
    pub end_lsn: Option<Lsn>,
    pub changes: usize,
    pub transactions: usize,
}

/// What the target and the configuration allow.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Changes are netted and applied as sets.
    pub netting: bool,
    /// Foreign keys and triggers of the target fire.
    pub constraints_fire: bool,
    /// Generated columns of the source are in the stream.
    pub source_generates: bool,
    /// Commits return before they are flushed, and are waited for before they are confirmed.
    pub asynchronous_commit: bool,
}

#[derive(Debug)]
pub struct Applier {
    client: Client,
    checkpoint: Checkpoint,
    plans: Plans,
    durability: Durability,
    options: Options,
    /// A source transaction has been applied in part, and the target's transaction waits for the rest.
    open: bool,
    policies: Policies,
    /// Batches that did not pass as sets, and are not in the progress row yet.
    fallbacks: i64,
}

/// Whether the target was asked something, and has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    Yes,
    No,
}

/// How the changes of a batch are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Netted per key, set by set.
    Sets,
    /// One by one as the source made them.
    InOrder,
    /// The same, and what is refused as the policies have it.
    ByPolicy,
}

impl Applier {
    /// Prepares `client`, whose session settings are made, to apply. From here on it writes nothing outside of a block.
    pub async fn new(
        (client, warnings): (Client, Warnings),
        tenure: Tenure<'_>,
        options: Options,
        policies: Policies,
    ) -> Result<Applier, Error> {
        let checkpoint = Checkpoint::prepare(&client, tenure).await?;
        let durability = Durability::new(&client, warnings, options.asynchronous_commit).await?;
        let plans = Plans::new(options.source_generates);
        postgres::write_in_blocks_only(&client, Stage::Apply).await?;
        Ok(Applier { client, checkpoint, plans, durability, options, open: false, policies, fallbacks: 0 })
    }

    /// Applies a batch, and commits unless its last transaction goes on in the next one.
    ///
    /// # Errors
    /// Whatever the target says, [`Kind::Fenced`](crate::error::Kind::Fenced),
    /// [`Kind::RowCount`](crate::error::Kind::RowCount), [`Kind::Mismatch`](crate::error::Kind::Mismatch),
    /// [`Kind::LacksColumns`](crate::error::Kind::LacksColumns). The applier
    /// must be dropped then. Where the error is [`Kind::Lost`](crate::error::Kind::Lost), the commit may have happened:
    /// only the progress row tells.
    pub async fn apply(&mut self, batch: &Batch, now: Instant) -> Result<Applied, Error> {
        self.apply_among(batch, now, None).await
    }

    /// The same in the batch's turn, where `others` may be under way behind it.
    async fn apply_among(
        &mut self,
        batch: &Batch,
        now: Instant,
        others: Option<&CommitOrder>,
    ) -> Result<Applied, Error> {
        let was_open = self.open;
        let manner = if self.options.netting { Manner::Sets } else { Manner::InOrder };
        match self.apply_part(batch, &batch.whole(), manner, others).await {
            // What was applied of the open transaction before cannot be rolled back and kept. Where only progress was to
            // move, there is nothing to apply in another way.
            Err(error) if !was_open && batch.has_changes() && error.is_of_the_data() => {
                self.go_down(batch, manner, error, others).await?;
            }
            result => result?,
        }
        self.committed(batch, now).await
    }

    /// What a batch came to that has been applied, and committed unless it is open.
    async fn committed(&mut self, batch: &Batch, now: Instant) -> Result<Applied, Error> {
        let end_lsn = if batch.is_open() { None } else { batch.end_lsn() };
        if let Some(end_lsn) = end_lsn {
            self.make_durable(end_lsn, now).await?;
        }
        Ok(Applied { end_lsn, changes: batch.len(), transactions: batch.transaction_count() })
    }

    /// All before this is committed on the target and flushed there; `None` before the first such commit.
    pub fn durable(&self) -> Option<Lsn> {
        self.durability.durable()
    }

    /// Something is committed that a crash of the target could still lose.
    pub fn is_waiting_for_flush(&self) -> bool {
        self.durability.is_waiting()
    }

    /// Asks the target what it has flushed meanwhile.
    async fn look_for_flush(&mut self, now: Instant) -> Result<Answered, Error> {
        match self.durability.look(&self.client, now).await? {
            Looked::Told => Ok(Answered::Yes),
            // Amid a transaction there is no other.
            Looked::NeedsSeal if !self.open && self.durability.is_seal_due(now) => {
                self.seal(now).await.map(|()| Answered::Yes)
            }
            Looked::NeedsSeal | Looked::NotAsked => Ok(Answered::No),
        }
    }

    /// Progress has been committed up to `end_lsn`.
    async fn make_durable(&mut self, end_lsn: Lsn, now: Instant) -> Result<(), Error> {
        if self.durability.committed(end_lsn, now) { self.look_for_flush(now).await.map(drop) } else { Ok(()) }
    }

    /// Progress is at `end_lsn`, and nobody knows whether that is durable.
    fn begin_at(&mut self, end_lsn: Lsn) {
        self.durability.committed_elsewhere(end_lsn);
    }

    /// Makes a commit that waits as the target's own do. It flushes all that comes before it, if it has written something itself.
    async fn seal(&mut self, now: Instant) -> Result<(), Error> {
        let begin = self.durability.begin_seal(now);
        self.execute(&begin).await?;
        self.checkpoint.touch(&self.client).await?;
        self.execute("COMMIT").await?;
        self.durability.sealed();
        Ok(())
    }

    /// Has the target flush what is committed, and rolls back what is not.
    async fn flush(&mut self, now: Instant) -> Result<Answered, Error> {
        if self.open {
            self.roll_back().await?;
        }
        if !self.durability.is_waiting() {
            return Ok(Answered::No);
        }
        self.seal(now).await.map(|()| Answered::Yes)
    }

    /// Looks whether another engine has taken over, and whether the target is still there.
    pub async fn check_fence(&self) -> Result<(), Error> {
        self.checkpoint.check(&self.client).await
    }

    /// The lower steps of the ladder, after `error` on the first.
    async fn go_down(
        &mut self,
        batch: &Batch,
        manner: Manner,
        error: Error,
        others: Option<&CommitOrder>,
    ) -> Result<(), Error> {
        self.roll_back().await?;
        if manner == Manner::Sets {
            self.fallbacks += 1;
            log_fallback(&error);
            match self.apply_part(batch, &batch.whole(), Manner::InOrder, others).await {
                Err(error) if error.is_of_the_data() => self.roll_back().await?,
                result => return result,
            }
        }
        // Whatever comes before the transaction at fault is kept.
        for part in batch.parts() {
            match self.apply_part(batch, &part, Manner::InOrder, others).await {
                // Where no policy has an answer, this finds out why a row was not hit.
                Err(error) if error.is_of_the_data() && (self.policies.concern(batch) || error.hit_no_row()) => {
                    self.roll_back().await?;
                    self.apply_part(batch, &part, Manner::ByPolicy, others).await?;
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Applies a part in a transaction of its own, or the open one that it belongs to.
    ///
    /// Batches behind ours may hold what we want, and want what we hold, and the target may choose us to end that. Then they let go, and
    /// we come again: with this part alone, since whatever came before it is committed.
    async fn apply_part(
        &mut self,
        batch: &Batch,
        part: &Part,
        manner: Manner,
        others: Option<&CommitOrder>,
    ) -> Result<(), Error> {
        let was_open = self.open;
        match self.try_part(batch, part, manner).await {
            Err(error) if error.is_deadlock() && !was_open && others.is_some_and(CommitOrder::ask_to_yield) => {
                self.roll_back().await?;
                self.try_part(batch, part, manner).await
            }
            result => result,
        }
    }

    async fn try_part(&mut self, batch: &Batch, part: &Part, manner: Manner) -> Result<(), Error> {
        let was_open = std::mem::replace(&mut self.open, part.end_lsn.is_none());
        if was_open {
            self.go_on(batch, part).await?;
        } else {
            let Applier { client, checkpoint, plans, options, policies, fallbacks, .. } = self;
            let begin = begin(client, checkpoint, part, *fallbacks);
            let places = part.places.clone();
            match manner {
                Manner::Sets => behind(begin, sets::apply(client, plans, batch, options.constraints_fire)).await?,
                Manner::InOrder => behind(begin, in_order::apply(client, plans, batch.changes_in(places))).await?,
                Manner::ByPolicy => {
                    begin.await?;
                    refused::apply(client, plans, policies, batch, places).await?;
                }
            }
        }
        let Some(end_lsn) = part.end_lsn else { return Ok(()) };
        // What is checked late is checked here.
        self.commit(end_lsn).await.map_err(|error| match part.commit_lsn {
            Some(commit_lsn) => error.at(commit_lsn),
            None => error,
        })?;
        self.fallbacks = 0;
        Ok(())
    }

    /// Commits the transaction that moves progress to `end_lsn`.
    async fn commit(&mut self, end_lsn: Lsn) -> Result<(), Error> {
        self.execute("COMMIT").await?;
        self.checkpoint.moved_to(end_lsn);
        Ok(())
    }

    /// Applies a further part of an open transaction, which is all of the batch.
    async fn go_on(&mut self, batch: &Batch, part: &Part) -> Result<(), Error> {
        debug_assert_eq!(part.places, 0..batch.len(), "nothing stands beside what goes on");
        let has_policy = self.policies.concern(batch);
        if self.options.netting || has_policy {
            self.go_on_by_steps(batch, has_policy).await?;
        } else {
            in_order::apply(&self.client, &mut self.plans, batch.changes()).await?;
        }
        let Some(end_lsn) = part.end_lsn else { return Ok(()) };
        self.checkpoint.advance(&self.client, end_lsn, part.commit_time, self.fallbacks).await
    }

    /// In a transaction of the target that holds more than this batch, which a rollback of all would lose.
    async fn go_on_by_steps(&mut self, batch: &Batch, has_policy: bool) -> Result<(), Error> {
        let Applier { client, plans, options, policies, .. } = self;
        if options.netting {
            let Err(error) = attempt(client, sets::apply(client, plans, batch, options.constraints_fire)).await? else {
                return Ok(());
            };
            self.fallbacks += 1;
            log_fallback(&error);
        }
        match attempt(client, in_order::apply(client, plans, batch.changes())).await? {
            Ok(()) => Ok(()),
            Err(error) if has_policy || error.hit_no_row() => {
                refused::apply(client, plans, policies, batch, 0..batch.len()).await
            }
            Err(error) => Err(error),
        }
    }

    async fn roll_back(&mut self) -> Result<(), Error> {
        self.open = false;
        self.execute("ROLLBACK").await
    }

    async fn execute(&self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await.map_err(failed)
    }
}

/// Progress goes first: from here on no other engine can commit before us, nor we after it.
async fn begin(client: &Client, checkpoint: &Checkpoint, part: &Part, fallbacks: i64) -> Result<(), Error> {
    let begin = async { client.batch_execute(BEGIN).await.map_err(failed) };
    if !part.skipped.is_empty() {
        // What is pending stands in the way of progress.
        return begin_with_skips(client, checkpoint, part, fallbacks).await;
    }
    match part.end_lsn {
        None => try_join(begin, checkpoint.hold(client)).await?,
        Some(end_lsn) => try_join(begin, checkpoint.advance(client, end_lsn, part.commit_time, fallbacks)).await?,
    };
    Ok(())
}

/// The same, where transactions are passed over.
async fn begin_with_skips(client: &Client, checkpoint: &Checkpoint, part: &Part, fallbacks: i64) -> Result<(), Error> {
    client.batch_execute(BEGIN).await.map_err(failed)?;
    checkpoint.hold(client).await?;
    for skipped in &part.skipped {
        checkpoint.finish_skip(client, skipped).await?;
    }
    match part.end_lsn {
        None => Ok(()),
        Some(end_lsn) => checkpoint.advance(client, end_lsn, part.commit_time, fallbacks).await,
    }
}

fn log_fallback(error: &Error) {
    tracing::info!(error = %error.code(), "a batch does not pass as sets; it is applied in order");
}

/// Has `changes` leave behind `begin` without waiting for what that comes to. An error of `begin` is the one that counts:
/// an engine that is fenced finds its changes there already.
async fn behind(
    begin: impl Future<Output = Result<(), Error>>,
    changes: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    match select(pin!(begin), pin!(changes)).await {
        Either::Left((begun, changes)) => {
            begun?;
            changes.await
        }
        Either::Right((changed, begin)) => {
            begin.await?;
            changed
        }
    }
}

fn failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(Stage::Apply, Role::Target, error)
}
