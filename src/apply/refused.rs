//! Changes that the target does not take, applied as the policies of their tables have it.
//!
//! In: changes that did not pass in order, in the target's transaction that is open. Out: in the same transaction, what the
//! policies make of them, with a record of each that was left out.
//!
//! ```text
//!  run of changes ──savepoint──► in order ──passes──► a run of twice as many
//!                                    └──refused, rolled back──► a run of half as many
//!                                                               one change alone ──► heal ──► set aside, or the error
//! ```
//!
//! **Always holds:**
//! - A change passes as it came, or is healed as its table's policy has it, or is set aside with a record in the same
//!   transaction. Otherwise its error is returned, and nothing commits.
//! - A change that hit no row is taken for one of a missing row only if the row is missing (`diagnose`).
//! - An error that is not of a row, and a change that hits more than one row, are never healed nor set aside.
//! - Savepoints are for runs: where few changes conflict there are few, and many changes are on their way at once.

use std::ops::Range;

use tokio_postgres::Client;

use super::attempt::attempt;
use super::diagnose::true_reason;
use super::exceptions::{Tally, set_aside};
use super::heal::heal;
use super::in_order;
use super::plan::Plans;
use super::policy::Policies;
use crate::batch::{Batch, BatchedChange, BatchedOperation};
use crate::config::OnError;
use crate::error::Error;

/// What a failure of one change costs at most, in changes that are sent for nothing.
const RUN_MAX: usize = 1024;

/// Applies the changes at these places in the transaction that is open on `client`.
pub(super) async fn apply(
    client: &Client,
    plans: &mut Plans,
    policies: &Policies,
    batch: &Batch,
    places: Range<usize>,
) -> Result<(), Error> {
    let mut tally = Tally::default();
    let (mut place, mut length) = (places.start, 1);
    while place < places.end {
        let end = (place + length).min(places.end);
        match attempt(client, in_order::apply(client, plans, batch.changes_in(place..end))).await? {
            Ok(()) => (place, length) = (end, (length * 2).min(RUN_MAX)),
            Err(_) if end - place > 1 => length = (end - place) / 2,
            Err(error) => {
                if let Some(change) = batch.changes_in(place..end).next() {
                    settle((client, plans), policies, &mut tally, &change, error).await?;
                }
                (place, length) = (end, 1);
            }
        }
    }
    tally.record(client, &policies.name).await
}

/// One change that was refused, and is undone.
async fn settle(
    (client, plans): (&Client, &mut Plans),
    policies: &Policies,
    tally: &mut Tally,
    change: &BatchedChange<'_>,
    error: Error,
) -> Result<(), Error> {
    let (BatchedOperation::Insert { relation, .. }
    | BatchedOperation::Update { relation, .. }
    | BatchedOperation::Delete { relation, .. }) = change.operation
    else {
        return Err(error);
    };
    let policy = policies.policy(relation);
    let at = change.transaction.commit_lsn;
    let error = true_reason((client, plans), change, error).await.map_err(|error| error.at(at))?;
    let healed = heal((client, plans), policy, change, error).await;
    let error = match healed.map_err(|error| error.at(at))? {
        Ok(how) => {
            tally.count(relation, how);
            return Ok(());
        }
        Err(error) => error,
    };
    match policy.on_error.unwrap_or_default() {
        OnError::Exceptions if error.is_of_a_row() => {
            tally.count_set_aside(relation);
            set_aside((client, plans), policies, change, relation, error).await
        }
        OnError::Exceptions | OnError::Stop => Err(error),
    }
}
