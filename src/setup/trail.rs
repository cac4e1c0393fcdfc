//! What setup and teardown do about a trail: made with the slot that it is of, or later, for a slot that is there and has passed nothing that
//! the target lacks; and for another target of it, no more than a place to begin.

use pgsluice_proto::{Lsn, TimelineId};
use tokio_postgres::Client;

use super::{STAGE, Servers, Step, StepState, on_replication_connection};
use crate::checkpoint::{self, Progress};
use crate::config::{Config, Role, TrailConfig};
use crate::error::Error;
use crate::pipeline::{self, Whose};
use crate::source::CreatedSlot;
use crate::source::publication::{Publication, PublishedTable, TableName};
use crate::source::slot::SlotState;
use crate::trail::{self, Command, Known, Lock, Origin, ReaderOf, Writer};

/// Before there is a slot: that there is no trail of another, and nobody writes one.
///
/// # Errors
/// A refusal if so; whatever the folder has against it.
pub(super) fn prepare(trail: &TrailConfig) -> Result<Lock, Error> {
    let dir = trail.dir.display();
    let lock = lock_new(trail)?;
    if let Some(known) = trail::read(trail)? {
        let what = format!("there is a trail in {dir} already, of slot \"{}\", which is gone", known.origin.slot);
        let mend = "`pgsluice teardown` removes it; or name another folder as `dir` in [trail]";
        return Err(Error::refused(STAGE, what, mend));
    }
    Ok(lock)
}

fn lock_new(trail: &TrailConfig) -> Result<Lock, Error> {
    trail::lock_new(trail)?.ok_or_else(|| {
        let what = format!("the trail in {} is being written by another process", trail.dir.display());
        Error::refused(STAGE, what, "stop it; or name another folder as `dir` in [trail]")
    })
}

/// Where slot and progress are there: that the trail fits between them; or the lock of one that is to begin, since there has been none.
///
/// # Errors
/// A refusal if there has been one, which is not there now, or the slot has passed what the target lacks.
pub(super) async fn check(
    config: &Config,
    (trail, target): (&TrailConfig, &Client),
    (slot, progress): (&SlotState, &Progress),
) -> Result<Option<Lock>, Error> {
    if let Some(known) = trail::read(trail)? {
        pipeline::check_origin(config, &known)?;
        pipeline::check_trail(&known, progress)?;
        return pipeline::check_end(config, &known, slot).map(|()| None);
    }
    let dir = trail.dir.display();
    if let Some(id) = checkpoint::known_trail(target, config.name.as_str()).await? {
        let what = format!(
            "there is no trail in {dir}, and the target has read from one, {id}: another would lack what only that one has"
        );
        let mend = "is its disk mounted? If that trail is lost: `pgsluice teardown`, `pgsluice setup`, and copy the tables again";
        return Err(Error::refused(STAGE, what, mend));
    }
    pipeline::check_gap(config, Whose::Target, progress, slot)?;
    if let Some(pid) = slot.active_pid {
        let what = format!(
            "slot \"{}\", which is to get a trail in {dir}, is in use by process {pid} on the source",
            config.slot()
        );
        return Err(Error::refused(STAGE, what, "stop the engine that uses it first"));
    }
    lock_new(trail).map(Some)
}

/// Makes the trail of a slot that is there, from where that stands.
///
/// # Errors
/// As [`check`], since time has passed; whatever the folder has against it.
pub(super) async fn begin_at_slot(
    config: &Config,
    servers: &Servers,
    (trail, lock): (&TrailConfig, &Lock),
) -> Result<Step, Error> {
    let (name, slot) = (config.name.as_str(), config.slot());
    let found = SlotState::read(&servers.source, Role::Source, &slot, STAGE).await?;
    let progress = checkpoint::read(&servers.target, name).await?;
    let (Some(found), Some(progress)) = (found, progress) else {
        let what = format!("slot \"{slot}\" or the target's progress is gone since setup began");
        return Err(Error::refused(STAGE, what, "run setup again"));
    };
    pipeline::check_gap(config, Whose::Target, &progress, &found)?;
    let starts_at = found.confirmed_flush_lsn.unwrap_or(progress.end_lsn);
    let identity = on_replication_connection(config, |connection| connection.identify_system()).await?;
    let origin = Origin { system_identifier: identity.system_identifier, slot, consistent_point: None };
    Writer::create(trail, lock, origin, identity.timeline, starts_at)?;
    record(config, trail, &servers.target, starts_at).await?;
    Ok(step(trail, StepState::Created))
}

/// The target knows its trail, and the trail its reader.
async fn record(config: &Config, trail: &TrailConfig, target: &Client, at: Lsn) -> Result<(), Error> {
    let name = config.name.as_str();
    let database = pipeline::database(target).await?;
    trail::record_reader(trail, ReaderOf { name, target: database.as_deref() }, at)?;
    if let Some(id) = trail::expect(trail)?.id {
        checkpoint::record_trail(target, name, &id).await?;
    }
    Ok(())
}

/// Makes the trail of a new slot, with its first reader.
pub(super) async fn create(
    config: &Config,
    servers: &Servers,
    (trail, lock): (&TrailConfig, &Lock),
    (slot, timeline): (&CreatedSlot, TimelineId),
) -> Result<Step, Error> {
    let point = slot.consistent_point;
    let origin = Origin {
        system_identifier: servers.source_facts.system_identifier.clone(),
        slot: config.slot(),
        consistent_point: Some(point.as_u64()),
    };
    Writer::create(trail, lock, origin, timeline, point)?;
    record(config, trail, &servers.target, point).await?;
    Ok(step(trail, StepState::Created))
}

/// Takes a trail away again, unless there is none.
///
/// # Errors
/// A refusal if others write or read it.
pub(super) fn remove(config: &Config, trail: &TrailConfig) -> Result<Step, Error> {
    let Some(lock) = check_remove(config, trail)? else { return Ok(step(trail, StepState::Absent)) };
    let state = if trail::remove(trail, &lock)? { StepState::Removed } else { StepState::Absent };
    Ok(step(trail, state))
}

/// The lock of what is to be removed; `None` where there is nothing, and nothing is made in its place.
///
/// # Errors
/// As [`remove`].
pub(super) fn check_remove(config: &Config, trail: &TrailConfig) -> Result<Option<Lock>, Error> {
    let dir = trail.dir.display();
    if !trail::is_there(trail)? {
        tracing::warn!("there is no trail in {dir}: if its disk is not mounted, what lies there stays");
        return Ok(None);
    }
    let Some(lock) = trail::lock(trail, Command::Teardown)? else {
        let what = format!("the trail in {dir} is being written by another process");
        return Err(Error::refused(STAGE, what, "stop `pgsluice capture` or `pgsluice run` first"));
    };
    let others: Vec<_> = trail::readers(trail)?.into_iter().map(|reader| reader.name).collect();
    let others: Vec<_> = others.into_iter().filter(|name| name != config.name.as_str()).collect();
    if others.is_empty() {
        return Ok(Some(lock));
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

/// Makes the progress of a new reader on its target, with the trail that it reads from.
pub(super) async fn make_reader(config: &Config, trail: &TrailConfig, servers: &Servers) -> Result<(), Error> {
    let database = pipeline::database(&servers.target).await?;
    let progress = first_progress(config, trail, database.as_deref())?;
    if let Some(id) = trail::expect(trail)?.id {
        checkpoint::record_trail(&servers.target, config.name.as_str(), &id).await?;
    }
    super::create_progress(config, servers, &progress).await
}

/// The progress of a new reader, which is known from then on; its database too, where that is known.
pub(super) fn first_progress(config: &Config, trail: &TrailConfig, target: Option<&str>) -> Result<Progress, Error> {
    let known = trail::expect(trail)?;
    let at = begin(config, &known)?;
    let reader = ReaderOf { name: config.name.as_str(), target };
    // It may be known from a setup that was broken off, and then no more is let go than was.
    let before = trail::readers(trail)?.into_iter().find(|known| known.name == reader.name);
    trail::record_reader(trail, reader, before.map_or(at, |before| before.position.min(at)))?;
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
pub(super) async fn check_progress(
    config: &Config,
    trail: &TrailConfig,
    servers: &Servers,
    progress: Option<&Progress>,
) -> Result<(), Error> {
    let known = trail::expect(trail)?;
    pipeline::check_origin(config, &known)?;
    let database = pipeline::database(&servers.target).await?;
    trail::check_reader(trail, ReaderOf { name: config.name.as_str(), target: database.as_deref() })?;
    match progress {
        None => begin(config, &known).map(drop),
        Some(progress) => {
            pipeline::check_identity(Whose::Target, progress, &servers.source_facts.system_identifier)?;
            pipeline::check_trail(&known, progress)
        }
    }
}
