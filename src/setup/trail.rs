//! What setup and teardown do about a trail: made with the slot that it is of; and for another target of it, no more than a place to
//! begin.

use pgsluice_proto::{Lsn, TimelineId};
use tokio_postgres::Client;

use super::{STAGE, Servers, Step, StepState};
use crate::checkpoint::Progress;
use crate::config::{Config, Role, TrailConfig};
use crate::error::Error;
use crate::pipeline::{self, Whose};
use crate::source::CreatedSlot;
use crate::source::publication::{Publication, PublishedTable, TableName};
use crate::trail::{self, Command, Known, Lock, Origin, Writer};

/// Before there is a slot: that there is no trail of another, and nobody writes one.
///
/// # Errors
/// A refusal if so; whatever the folder has against it.
pub(super) fn prepare(trail: &TrailConfig) -> Result<Lock, Error> {
    let dir = trail.dir.display();
    let Some(lock) = trail::lock(trail, Command::Setup)? else {
        let what = format!("the trail in {dir} is being written by another process");
        return Err(Error::refused(STAGE, what, "stop it; or name another folder as `dir` in [trail]"));
    };
    if let Some(known) = trail::read(trail)? {
        let what = format!("there is a trail in {dir} already, of slot \"{}\", which is gone", known.origin.slot);
        let mend = "`pgsluice teardown` removes it; or name another folder as `dir` in [trail]";
        return Err(Error::refused(STAGE, what, mend));
    }
    Ok(lock)
}

/// Makes the trail of a new slot, with its first reader.
pub(super) fn create(
    config: &Config,
    (trail, lock): (&TrailConfig, &Lock),
    system_identifier: &str,
    (slot, timeline): (&CreatedSlot, TimelineId),
) -> Result<Step, Error> {
    let point = slot.consistent_point;
    let origin = Origin {
        system_identifier: system_identifier.to_owned(),
        slot: config.slot(),
        consistent_point: Some(point.as_u64()),
    };
    Writer::create(trail, lock, origin, timeline, point)?;
    trail::record_reader(trail, config.name.as_str(), point)?;
    Ok(step(trail, StepState::Created))
}

/// Takes a trail away again, unless there is none.
///
/// # Errors
/// A refusal if others write or read it.
pub(super) fn remove(config: &Config, trail: &TrailConfig) -> Result<Step, Error> {
    let lock = check_remove(config, trail)?;
    let state = if trail::remove(trail, &lock)? { StepState::Removed } else { StepState::Absent };
    Ok(step(trail, state))
}

/// # Errors
/// As [`remove`].
pub(super) fn check_remove(config: &Config, trail: &TrailConfig) -> Result<Lock, Error> {
    let dir = trail.dir.display();
    let Some(lock) = trail::lock(trail, Command::Teardown)? else {
        let what = format!("the trail in {dir} is being written by another process");
        return Err(Error::refused(STAGE, what, "stop `pgsluice capture` or `pgsluice run` first"));
    };
    let others: Vec<_> = trail::readers(trail)?.into_iter().map(|reader| reader.name).collect();
    let others: Vec<_> = others.into_iter().filter(|name| name != config.name.as_str()).collect();
    if others.is_empty() {
        return Ok(lock);
    }
    Err(Error::refused(
        STAGE,
        format!("the trail in {dir} has other readers: {}", others.join(", ")),
        "`pgsluice teardown` with the configuration of each first; of one that is gone, `pgsluice trail forget`",
    ))
}

fn step(trail: &TrailConfig, state: StepState) -> Step {
    Step { object: format!("trail in {}", trail.dir.display()), state, sql: None }
}

/// Where another target of a trail begins: with tables that are copied, at its end, since copies are of a later moment; with tables
/// that are there already, where the trail begins, if that is as the slot was made.
///
/// # Errors
/// A refusal if nobody can tell what the target has of what the trail has not any more.
pub(super) fn begin(config: &Config, known: &Known) -> Result<Lsn, Error> {
    if config.snapshot.copy_data {
        return Ok(known.ends_at);
    }
    if known.origin.consistent_point == Some(known.begins_at.as_u64()) {
        return Ok(known.begins_at);
    }
    Err(Error::refused(
        STAGE,
        format!(
            "copy_data is false in [snapshot], and the trail begins at {}, which is not where its slot was made: what was changed before \
             is not in it",
            known.begins_at
        ),
        "set copy_data = true, which copies the tables first",
    ))
}

/// The progress of a new reader, which is known from then on.
pub(super) fn first_progress(config: &Config, trail: &TrailConfig) -> Result<Progress, Error> {
    let known = trail::expect(trail)?;
    let at = begin(config, &known)?;
    trail::record_reader(trail, config.name.as_str(), at)?;
    // It may have been shortened until then, and is not from now on.
    let begins_at = trail::expect(trail)?.begins_at;
    if begins_at > at {
        return Err(trail::passed_over(begins_at, at));
    }
    let left = known.history.iter().find(|(_, left_at)| at < *left_at).map(|(timeline, _)| *timeline);
    Ok(Progress {
        system_identifier: known.origin.system_identifier,
        timeline: left.unwrap_or(known.timeline),
        slot: config.slot(),
        consistent_point: at,
        end_lsn: at,
        commit_time: None,
        epoch: 0,
        fallbacks: 0,
    })
}

/// What of the publication is for this target.
///
/// # Errors
/// A refusal if there is none, or it lacks tables that are wanted.
pub(super) async fn check_publication(
    config: &Config,
    source: &Client,
    tables: &[PublishedTable],
) -> Result<(), Error> {
    let name = config.publication();
    let Some(found) = Publication::read(source, Role::Source, &name, STAGE).await? else {
        let what = format!("publication \"{name}\" does not exist on the source");
        let mend = "run `pgsluice setup` with the configuration that writes the trail; or correct `of` in [trail]";
        return Err(Error::refused(STAGE, what, mend));
    };
    found.check_operations(STAGE)?;
    let is_missing = |table: &&TableName| !found.tables.iter().any(|one| one.table == **table);
    let missing: Vec<_> = tables.iter().map(|one| &one.table).filter(is_missing).map(ToString::to_string).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let what = format!("[tables] selects {}, which publication \"{name}\" does not hold", missing.join(", "));
    let mend = "select them in the configuration that writes the trail too, and run its setup; or exclude them";
    Err(Error::refused(STAGE, what, mend))
}

/// # Errors
/// A refusal if progress from before cannot be gone on with from this trail.
pub(super) fn check_progress(
    config: &Config,
    trail: &TrailConfig,
    servers: &Servers,
    progress: Option<&Progress>,
) -> Result<(), Error> {
    let known = trail::expect(trail)?;
    pipeline::check_origin(config, &known)?;
    match progress {
        None => begin(config, &known).map(drop),
        Some(progress) => {
            pipeline::check_identity(Whose::Target, progress, &servers.source_facts.system_identifier)?;
            pipeline::check_trail(&known, progress)
        }
    }
}
