//! Takes away what setup has made.

use tokio_postgres::Client;

use super::{STAGE, Step, StepState, slot, trail};
use crate::bench;
use crate::checkpoint;
use crate::config::{Config, OWN_SCHEMA, Role, TrailConfig};
use crate::error::Error;
use crate::postgres::{self, quote_ident, quote_literal};
use crate::shards;
use crate::snapshot;
use crate::source::slot::SlotState;

/// Removes slot, publication and progress, those of all shards that there are, however many the configuration has; the schema
/// too where nothing else is in it.
pub async fn tear_down(config: &Config) -> Result<Vec<Step>, Error> {
    let target = postgres::connect(&config.target, STAGE).await?;
    let shards = config.split_into(shards::present(&target, config).await?);
    for config in &shards {
        shards::check_split(&target, config, STAGE).await?;
        check_deferred(config, &target).await?;
    }
    if let Some(trail) = config.trail.as_ref() {
        if config.only_applies() {
            return tear_down_reader(config, trail, &target).await;
        }
        trail::check_remove(config, trail)?;
    }
    let mut steps: Vec<Step> = Vec::new();
    for config in &shards {
        let removed = tear_down_one(config).await?;
        // Of what several have, the last one says what has become of it.
        steps.retain(|known| !removed.iter().any(|step| step.object == known.object));
        steps.extend(removed);
    }
    Ok(steps)
}

async fn tear_down_one(config: &Config) -> Result<Vec<Step>, Error> {
    let removed = |object: String, present: bool| Step {
        object,
        state: if present { StepState::Removed } else { StepState::Absent },
    };
    let mut steps = Vec::new();
    let source = postgres::connect(&config.source, STAGE).await?;
    let target = postgres::connect(&config.target, STAGE).await?;
    let publisher = postgres::connect(config.publisher(), STAGE).await?;
    let role = config.publisher().role;

    // The slot goes first: a slot whose publication is gone fails, a publication without a slot costs nothing.
    let existing = SlotState::read(&source, Role::Source, &config.slot(), STAGE).await?;
    if let Some(pid) = existing.as_ref().and_then(|slot| slot.active_pid) {
        return Err(Error::refused(
            STAGE,
            format!("slot \"{}\" is in use by process {pid} on the source", config.slot()),
            "stop the engine that uses it first",
        ));
    }
    if existing.is_some() {
        slot::remove(config).await?;
    }
    steps.push(removed(format!("slot {} on the source", config.slot()), existing.is_some()));

    let name = config.publication();
    let failed = |error| Error::from_postgres(STAGE, role, error);
    let found = publisher.query_opt("SELECT FROM pg_publication WHERE pubname = $1", &[&name]).await.map_err(failed)?;
    if found.is_some() {
        let in_recovery = publisher.query_one("SELECT pg_is_in_recovery()", &[]).await.map_err(failed)?;
        if in_recovery.try_get(0).map_err(failed)? {
            tracing::warn!(
                "on the primary: DROP PUBLICATION {}; (there is no [primary] to do it on)",
                quote_ident(&name)
            );
        } else {
            publisher.batch_execute(&format!("DROP PUBLICATION {}", quote_ident(&name))).await.map_err(failed)?;
            steps.push(removed(format!("publication {name}"), true));
            remove_bench(config, (&publisher, role), &mut steps).await?;
            if config.stream.heartbeat.is_some() {
                let dropped = drop_heartbeat(config, &publisher).await.map_err(failed)?;
                steps.push(removed(format!("heartbeat of {} on the {role}", config.name), dropped));
            }
        }
    } else {
        steps.push(removed(format!("publication {name}"), false));
    }
    remove_bench(config, (&target, Role::Target), &mut steps).await?;
    if let Some(trail) = &config.trail {
        steps.push(trail::remove(config, trail)?);
    }
    let (row, schema) = checkpoint::remove(&target, config.name.as_str()).await?;
    steps.push(removed(format!("progress row {} on the target", config.name), row));
    steps.push(removed("schema pgsluice on the target".to_owned(), schema));
    Ok(steps)
}

/// Of another target of a trail: slot, publication and the trail stay.
async fn tear_down_reader(config: &Config, trail: &TrailConfig, target: &Client) -> Result<Vec<Step>, Error> {
    let (row, schema) = checkpoint::remove(target, config.name.as_str()).await?;
    let is_known = crate::trail::readers(trail)?.iter().any(|reader| reader.name == config.name.as_str());
    if is_known {
        crate::trail::forget_reader(trail, config.name.as_str())?;
    }
    let removed = |object: String, present: bool| Step {
        object,
        state: if present { StepState::Removed } else { StepState::Absent },
    };
    Ok(vec![
        removed(format!("reader {} of the trail", config.name), is_known),
        removed(format!("progress row {} on the target", config.name), row),
        removed("schema pgsluice on the target".to_owned(), schema),
    ])
}

/// The row, and the table and schema too where nobody else has something in them. False where there was no row.
async fn drop_heartbeat(config: &Config, publisher: &Client) -> Result<bool, tokio_postgres::Error> {
    let exists = publisher.query_one("SELECT to_regclass('pgsluice.heartbeat') IS NOT NULL", &[]).await?;
    if !exists.try_get::<_, bool>(0)? {
        return Ok(false);
    }
    let rows = publisher.execute("DELETE FROM pgsluice.heartbeat WHERE name = $1", &[&config.name.as_str()]).await?;
    let is_used = "SELECT EXISTS (SELECT FROM pgsluice.heartbeat) \
                   OR EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = 'pgsluice.heartbeat'::regclass)";
    if publisher.query_one(is_used, &[]).await?.try_get(0)? {
        return Ok(rows > 0);
    }
    publisher.batch_execute("DROP TABLE pgsluice.heartbeat").await?;
    bench::drop_empty_schema(publisher).await?;
    Ok(rows > 0)
}

/// What a bench that was killed has left; there is a step of it only where there was something.
async fn remove_bench(config: &Config, (client, role): (&Client, Role), steps: &mut Vec<Step>) -> Result<(), Error> {
    if bench::remove_leftovers(config, client, role, STAGE).await? {
        let object = format!("table {OWN_SCHEMA}.{} on the {role}", config.name.bench_table());
        steps.push(Step { object, state: StepState::Removed });
    }
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
        format!("the target lacks {} indexes and foreign keys that were dropped for a copy", deferred.len()),
        format!(
            "`pgsluice run --stop-at current` makes them again; or run on the target, as far as they are wanted:{statements}\n  \
             and then: DELETE FROM pgsluice.deferred WHERE name = {}",
            quote_literal(name)
        ),
    ))
}
