//! Takes away what setup has made.
//!
//! ```text
//!  look at all of it ──► a person agrees ──► what is ours goes ──► what is not is named, with the SQL for its owner
//! ```
//!
//! **Always holds:**
//! - Nothing is removed before all of it was looked at, on every server and of every shard.
//! - What cannot be removed keeps nothing else from going, and whatever has gone is listed, also when a later step fails.

mod left;

use tokio_postgres::Client;

use self::left::{Fate, drop_publication, remove_heartbeat, remove_progress};
use super::{STAGE, Step, StepState, slot, trail};
use crate::bench;
use crate::checkpoint;
use crate::config::{Config, OWN_SCHEMA, Role, TrailConfig};
use crate::error::Error;
use crate::pipeline;
use crate::postgres::{self, quote_literal};
use crate::preflight;
use crate::shards;
use crate::snapshot;
use crate::source::slot::SlotState;
use crate::trail::ReaderOf;

/// What a teardown would do.
#[derive(Debug)]
pub struct Removal {
    config: Config,
    shards: Vec<Config>,
    /// For a person to agree to.
    would: String,
}

/// What a teardown has done.
#[derive(Debug)]
pub struct TornDown {
    pub steps: Vec<Step>,
    /// What has kept it from going on, or what is left.
    pub outcome: Result<(), Error>,
}

/// Looks at what there is of the replication, of all shards that there are, however many the configuration has.
///
/// # Errors
/// A refusal if something of it is in use, or would be missed.
pub async fn plan_teardown(config: &Config) -> Result<Removal, Error> {
    let target = postgres::connect(&config.target, STAGE).await?;
    let source = postgres::connect(&config.source, STAGE).await?;
    // That it answers is to be known before anything goes.
    let _publisher = postgres::connect(config.publisher(), STAGE).await?;
    let shards = config.split_into(shards::present(&target, config).await?);
    let mut exceptions = 0;
    for config in &shards {
        let progress = checkpoint::read(&target, config.name.as_str()).await?;
        preflight::check_target(config, (&source, &target), progress.as_ref(), STAGE).await?;
        shards::check_split(&target, config, STAGE).await?;
        check_deferred(config, &target).await?;
        if !config.only_applies() {
            check_slot(config, &source).await?;
        }
        if progress.is_some() {
            exceptions += left::count_exceptions(&target, config.name.as_str()).await?;
        }
    }
    if let Some(trail) = &config.trail {
        if config.only_applies() {
            let database = pipeline::database(&target).await?;
            crate::trail::check_reader(trail, ReaderOf { name: config.name.as_str(), target: database.as_deref() })?;
        } else {
            trail::check_remove(config, trail)?;
        }
    }
    let would = would(config, &shards, exceptions);
    Ok(Removal { config: config.clone(), shards, would })
}

/// In words.
fn would(config: &Config, shards: &[Config], exceptions: u64) -> String {
    let mut lines = vec![format!("This removes replication \"{}\":", config.name)];
    for shard in shards {
        if !config.only_applies() {
            lines.push(format!("  slot {} on the source, {}", shard.slot(), config.source.place()));
            let publisher = config.publisher();
            lines.push(format!(
                "  publication {} on the {}, {}",
                shard.publication(),
                publisher.role,
                publisher.place()
            ));
        }
        lines.push(format!("  progress \"{}\" on the target, {}", shard.name, config.target.place()));
    }
    if exceptions > 0 {
        lines.push(format!("  {exceptions} rows of pgsluice.exceptions there, changes that the target has not taken"));
    }
    if let Some(trail) = &config.trail {
        let what = if config.only_applies() { "the place of this reader in the trail" } else { "the trail" };
        lines.push(format!("  {what} in {}", trail.dir.display()));
    }
    lines.push(
        "The tables and their rows stay. It cannot go on from there: to replicate again takes a copy of all tables."
            .to_owned(),
    );
    lines.join("\n")
}

impl Removal {
    /// What would be done, for a person.
    pub fn text(&self) -> &str {
        &self.would
    }

    /// Removes what there is. The schema goes too where nothing else is in it.
    pub async fn carry_out(self) -> TornDown {
        let mut steps: Vec<Step> = Vec::new();
        for config in &self.shards {
            let mut own = Vec::new();
            let outcome = match self.config.trail.as_ref().filter(|_| config.only_applies()) {
                Some(trail) => tear_down_reader(config, trail, &mut own).await,
                None => tear_down_one(config, &mut own).await,
            };
            // Of what several have, the last one says what has become of it.
            steps.retain(|known| !own.iter().any(|step| step.object == known.object));
            steps.extend(own);
            if outcome.is_err() {
                return TornDown { steps, outcome };
            }
        }
        let outcome = left::refusal(&steps);
        TornDown { steps, outcome }
    }
}

fn removed(object: String, present: bool) -> Step {
    Step { object, state: if present { StepState::Removed } else { StepState::Absent }, sql: None }
}

async fn check_slot(config: &Config, source: &Client) -> Result<bool, Error> {
    let existing = SlotState::read(source, Role::Source, &config.slot(), STAGE).await?;
    if let Some(pid) = existing.as_ref().and_then(|slot| slot.active_pid) {
        return Err(Error::refused(
            STAGE,
            format!("slot \"{}\" is in use by process {pid} on the source", config.slot()),
            "stop the engine that uses it first",
        ));
    }
    Ok(existing.is_some())
}

async fn tear_down_one(config: &Config, steps: &mut Vec<Step>) -> Result<(), Error> {
    let source = postgres::connect(&config.source, STAGE).await?;
    let target = postgres::connect(&config.target, STAGE).await?;
    let publisher = postgres::connect(config.publisher(), STAGE).await?;
    let role = config.publisher().role;

    // The slot goes first: a slot whose publication is gone fails, a publication without a slot costs nothing.
    let object = format!("slot {} on the source", config.slot());
    if check_slot(config, &source).await? {
        let sql = format!("SELECT pg_drop_replication_slot({})", quote_literal(&config.slot()));
        let fate = match slot::remove(config).await {
            Ok(()) => Fate::Removed,
            Err(error) => left::by_owner(error, &config.source, sql)?,
        };
        steps.push(fate.step(object));
    } else {
        steps.push(removed(object, false));
    }
    let object = format!("publication {}", config.publication());
    steps.push(drop_publication(config, &publisher).await?.step(object));
    remove_bench(config, (&publisher, role), steps).await?;
    if config.stream.heartbeat.is_some() {
        let object = format!("heartbeat of {} on the {role}", config.name);
        steps.push(remove_heartbeat(config, &publisher).await?.step(object));
    }
    remove_bench(config, (&target, Role::Target), steps).await?;
    if let Some(trail) = &config.trail {
        steps.push(trail::remove(config, trail)?);
    }
    remove_progress(config, &target, steps).await
}

/// Of another target of a trail: slot, publication and the trail stay.
async fn tear_down_reader(config: &Config, trail: &TrailConfig, steps: &mut Vec<Step>) -> Result<(), Error> {
    let target = postgres::connect(&config.target, STAGE).await?;
    let is_known = crate::trail::readers(trail)?.iter().any(|reader| reader.name == config.name.as_str());
    remove_progress(config, &target, steps).await?;
    if is_known {
        crate::trail::forget_reader(trail, config.name.as_str())?;
    }
    steps.insert(0, removed(format!("reader {} of the trail", config.name), is_known));
    Ok(())
}

/// What a bench that was killed has left; there is a step of it only where there was something.
async fn remove_bench(config: &Config, (client, role): (&Client, Role), steps: &mut Vec<Step>) -> Result<(), Error> {
    let table = config.name.bench_table();
    let object = format!("table {OWN_SCHEMA}.{table} on the {role}");
    let endpoint = if role == Role::Target { &config.target } else { config.publisher() };
    let fate = match bench::remove_leftovers(config, client, role, STAGE).await {
        Ok(false) => return Ok(()),
        Ok(true) => Fate::Removed,
        Err(error) => left::by_owner(error, endpoint, format!("DROP TABLE {OWN_SCHEMA}.{table}"))?,
    };
    steps.push(fate.step(object));
    Ok(())
}

/// # Errors
/// A refusal with the SQL of the indexes and foreign keys that the target still lacks: nobody else knows of them.
async fn check_deferred(config: &Config, target: &Client) -> Result<(), Error> {
    let name = config.name.as_str();
    if checkpoint::read(target, name).await?.is_none() {
        return Ok(());
    }
    let deferred = snapshot::read_deferred(target, name).await?;
    if deferred.is_empty() {
        return Ok(());
    }
    let statements: String = deferred.iter().map(|one| format!("\n    {}", one.sql())).collect();
    Err(Error::refused(
        STAGE,
        format!("the target lacks {} indexes and constraints that were dropped for a copy", deferred.len()),
        format!(
            "`pgsluice run --stop-at current` makes them again; or run on the target, as far as they are wanted:{statements}\n  \
             and then: DELETE FROM pgsluice.deferred WHERE name = {}",
            quote_literal(name)
        ),
    ))
}
