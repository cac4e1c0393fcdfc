//! Makes objects on the target: units of SQL in.
//!
//! What comes before rows is one transaction, so that nothing is half made. What comes after them takes long and is made by
//! several sessions, each object in a transaction of its own: what is made stays, and the next try goes on from there.

use std::collections::HashSet;
use std::time::Instant;

use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio_postgres::Client;

use super::STAGE;
use super::plan::{Unit, Wave};
use super::toc::DumpId;
use crate::config::{Endpoint, Role};
use crate::error::{Error, Kind};
use crate::postgres;

/// Opens a session that makes objects.
pub async fn connect(endpoint: &Endpoint) -> Result<Client, Error> {
    let target = postgres::connect(endpoint, STAGE).await?;
    // Functions are made before what they mention.
    let settings = format!("SET check_function_bodies = off; {}", postgres::NOTICE_LOST_CLIENT);
    target.batch_execute(&settings).await.map_err(|error| Error::from_postgres(STAGE, Role::Target, error))?;
    Ok(target)
}

/// Makes all units, those of the first wave in one transaction and then those of the others with up to `jobs` sessions.
///
/// # Errors
/// [`Kind::Statement`] with the object that the target refuses.
pub async fn make(endpoint: &Endpoint, units: &[Unit], jobs: usize) -> Result<(), Error> {
    let (before, after) = units.split_at(units.partition_point(|unit| unit.wave == Wave::PreData));
    if !before.is_empty() {
        make_at_once(&connect(endpoint).await?, before).await?;
    }
    let mut sessions = Vec::new();
    for wave in after.chunk_by(|a, b| a.wave == b.wave) {
        let jobs = if wave[0].wave.is_one_by_one() { 1 } else { jobs.min(wave.len()) };
        while sessions.len() < jobs {
            sessions.push(connect(endpoint).await?);
        }
        make_wave(&mut sessions, wave, jobs).await?;
    }
    Ok(())
}

async fn make_at_once(target: &Client, units: &[Unit]) -> Result<(), Error> {
    let failed = |error| Error::from_postgres(STAGE, Role::Target, error);
    target.batch_execute("BEGIN").await.map_err(failed)?;
    for unit in units {
        execute(target, unit).await?;
    }
    target.batch_execute("COMMIT").await.map_err(failed)
}

/// After an error what is under way is waited for, and nothing else is begun.
async fn make_wave(sessions: &mut Vec<Client>, units: &[Unit], jobs: usize) -> Result<(), Error> {
    type Making<'a> = LocalBoxFuture<'a, (Client, &'a Unit, Result<(), Error>)>;
    let mut schedule = Schedule::new(units);
    let mut making: FuturesUnordered<Making<'_>> = FuturesUnordered::new();
    let mut outcome = Ok(());
    loop {
        while making.len() < jobs && outcome.is_ok() {
            let Some(unit) = schedule.begin() else { break };
            // There are at least as many sessions as jobs, and each job gives its own back.
            let Some(session) = sessions.pop() else { break };
            making.push(Box::pin(async move {
                let result = execute(&session, unit).await;
                (session, unit, result)
            }));
        }
        let Some((session, unit, result)) = making.next().await else { return outcome };
        sessions.push(session);
        schedule.end(unit);
        outcome = outcome.and(result);
    }
}

async fn execute(target: &Client, unit: &Unit) -> Result<(), Error> {
    let start = Instant::now();
    target.batch_execute(&unit.sql).await.map_err(|error| {
        let object = unit.object.clone();
        Error::new(
            STAGE,
            match Kind::from_postgres(Role::Target, error) {
                Kind::Server { error, .. } => Kind::Statement { object, error },
                other => other,
            },
        )
    })?;
    let seconds = start.elapsed().as_secs_f64();
    match unit.wave {
        Wave::PreData => tracing::debug!(object = unit.object, seconds, "made"),
        // They take as long as their tables are large.
        _ => tracing::info!(object = unit.object, seconds, "made"),
    }
    Ok(())
}

/// Which unit of a wave can be made next.
struct Schedule<'a> {
    waiting: Vec<&'a Unit>,
    running: Vec<&'a Unit>,
}

impl<'a> Schedule<'a> {
    fn new(units: &'a [Unit]) -> Schedule<'a> {
        Schedule { waiting: units.iter().collect(), running: Vec::new() }
    }

    /// The first that needs nothing which is not made yet, and locks no table against what is being made, nor the other way
    /// round: sessions that wait for each other's locks get nothing done.
    fn begin(&mut self) -> Option<&'a Unit> {
        let open: HashSet<DumpId> = self.waiting.iter().chain(&self.running).map(|unit| unit.id).collect();
        let can_begin = |unit: &&Unit| {
            !unit.after.iter().any(|id| open.contains(id)) && !self.running.iter().any(|other| conflict(unit, other))
        };
        let unit = self.waiting.remove(self.waiting.iter().position(can_begin)?);
        self.running.push(unit);
        Some(unit)
    }

    fn end(&mut self, unit: &Unit) {
        self.running.retain(|other| other.id != unit.id);
    }
}

fn conflict(a: &Unit, b: &Unit) -> bool {
    (a.is_exclusive || b.is_exclusive) && a.locks.iter().any(|table| b.locks.contains(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(id: u32, after: &[u32], locks: &[u32], is_exclusive: bool) -> Unit {
        Unit {
            id: DumpId(id),
            object: String::new(),
            wave: Wave::Build,
            sql: String::new(),
            after: after.iter().copied().map(DumpId).collect(),
            locks: locks.to_vec(),
            is_exclusive,
        }
    }

    fn begin_all(schedule: &mut Schedule<'_>) -> Vec<u32> {
        std::iter::from_fn(|| schedule.begin()).map(|unit| unit.id.0).collect()
    }

    #[test]
    fn indexes_of_a_table_are_built_together_and_constraints_alone() {
        let units = [
            unit(1, &[], &[7], false),
            unit(2, &[], &[7], true),
            unit(3, &[99], &[7], false),
            unit(4, &[], &[8], true),
            unit(5, &[1], &[8], false),
        ];
        let mut schedule = Schedule::new(&units);
        assert_eq!(begin_all(&mut schedule), [1, 3, 4]);
        schedule.end(&units[0]);
        assert!(begin_all(&mut schedule).is_empty());
        schedule.end(&units[3]);
        assert_eq!(begin_all(&mut schedule), [5]);
        schedule.end(&units[2]);
        assert_eq!(begin_all(&mut schedule), [2]);
    }
}
