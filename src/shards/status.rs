//! How all shards stand, as one.
//!
//! In: the status of each. Out: a status in which every figure is that of the shard that is worst off, tables and what is recorded of
//! them are of all shards, and each shard's own figures stand beside it. What is unknown of one is unknown of all.

use crate::checkpoint;
use crate::config::Config;
use crate::error::Error;
use crate::postgres;
use crate::status::{self, Lag, Lags, ShardStatus, SlotStatus, State, Status};

/// From the worst to the best.
const STATES: [State; 7] = [
    State::Unknown,
    State::SlotInvalidated,
    State::SlotMissing,
    State::NotSetUp,
    State::Stopped,
    State::Copying,
    State::Streaming,
];

/// Asks all servers, for each shard.
pub async fn status(config: &Config) -> Status {
    let mut joined: Option<Status> = None;
    for config in &config.split() {
        let mut one = status::read(config).await;
        if one.state != State::Unknown {
            one.errors.extend(another_split(config).await.err().map(|error| error.to_string()));
        }
        if let Some(shard) = config.shard() {
            let Status { name, state, slot, progress, lag, .. } = one.clone();
            one.shards = vec![ShardStatus { number: shard.number, name, state, slot, progress, lag }];
            one.name = shard.whole.to_string();
        }
        joined = Some(match joined {
            None => one,
            Some(joined) => join(joined, one),
        });
    }
    let mut status = joined.unwrap_or_else(|| Status::unknown(config.name.to_string()));
    status.tables.sort_by(|one, other| one.table.cmp(&other.table));
    status.conflicts.sort_by(|one, other| one.table.cmp(&other.table));
    status
}

/// Progress of another number of shards would look like none.
async fn another_split(config: &Config) -> Result<(), Error> {
    let target = postgres::connect(&config.target, crate::error::Stage::Status).await?;
    match checkpoint::read(&target, config.name.as_str()).await? {
        Some(_) if config.shard().is_none() => Ok(()),
        Some(_) | None => super::check_split(&target, config, crate::error::Stage::Status).await,
    }
}

fn join(mut all: Status, one: Status) -> Status {
    let place = |state: State| STATES.iter().position(|known| *known == state);
    if place(one.state) < place(all.state) {
        all.state = one.state;
    }
    // Where one has no slot or no progress there is none of all.
    all.slot = all.slot.zip(one.slot).map(|(all, one)| if keeps(&one) > keeps(&all) { one } else { all });
    all.primary_slot = all.primary_slot.or(one.primary_slot);
    all.progress = all.progress.zip(one.progress).map(|(mut all, mut one)| {
        let fallbacks = all.fallbacks + one.fallbacks;
        (all.fallbacks, one.fallbacks) = (fallbacks, fallbacks);
        if one.end_lsn < all.end_lsn { one } else { all }
    });
    all.lag = worst(all.lag, one.lag);
    all.tables.extend(one.tables);
    all.conflicts.extend(one.conflicts);
    all.skips.extend(one.skips);
    all.shards.extend(one.shards);
    for error in one.errors {
        if !all.errors.contains(&error) {
            all.errors.push(error);
        }
    }
    all
}

fn keeps(slot: &SlotStatus) -> (bool, Option<u64>) {
    (slot.invalidation_reason.is_some(), slot.retained_bytes)
}

fn worst(one: Lags, other: Lags) -> Lags {
    let worst = |one: Lag, other: Lag| Lag {
        bytes: one.bytes.zip(other.bytes).map(|(one, other)| one.max(other)),
        seconds: one.seconds.zip(other.seconds).map(|(one, other)| one.max(other)),
    };
    Lags {
        receive: worst(one.receive, other.receive),
        replay: worst(one.replay, other.replay),
        decode: worst(one.decode, other.decode),
        apply: worst(one.apply, other.apply),
        total: worst(one.total, other.total),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: State, bytes: Option<u64>) -> Status {
        let mut status = Status::unknown("shop".to_owned());
        status.state = state;
        status.lag.total.bytes = bytes;
        status.errors = vec!["the target cannot be reached".to_owned()];
        status
    }

    #[test]
    fn the_worst_counts_and_the_unknown_stays_unknown() {
        let joined = join(status(State::Streaming, Some(7)), status(State::Copying, Some(3)));
        assert_eq!((joined.state, joined.lag.total.bytes, joined.errors.len()), (State::Copying, Some(7), 1));
        let joined = join(joined, status(State::SlotMissing, None));
        assert_eq!((joined.state, joined.lag.total.bytes), (State::SlotMissing, None));
        assert_eq!(join(joined, status(State::Streaming, Some(1))).state, State::SlotMissing);
    }
}
