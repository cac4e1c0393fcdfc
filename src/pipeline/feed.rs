//! What a session takes its changes from, and whether that holds what follows the target's progress.
//!
//! ```text
//!  slot:   identity, timeline of the source ─► gap between slot and progress ─► START
//!  trail:  identity, timeline of the trail ──► gap between its first segment and progress ─► its tail
//! ```
//!
//! The slot of a trail is the concern of whoever writes it (`capture`), as is the source's history.

use std::time::Instant;

use pgsluice_proto::{Lsn, TimelineId};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::asked::{Streaming, Terms, read_slot};
use super::history::{Whose, check_gap, check_identity, check_timeline};
use super::input::Input;
use crate::checkpoint::{self, Progress};
use crate::config::{Config, Role, TrailConfig};
use crate::error::{Error, Kind, Stage};
use crate::snapshot::{self, Copied};
use crate::source::server::Server;
use crate::source::{Connection, Identity};
use crate::spool::Spool;
use crate::trail::{self, ReaderOf};

#[derive(Debug)]
pub(super) enum Feed {
    Slot { connection: Connection, timeline: TimelineId },
    Trail { config: TrailConfig, known: Box<trail::Known>, kept: Kept },
}

/// What a trail keeps for its reader.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// Which database the target is; `None` where it does not say.
    pub target: Option<String>,
    /// From where on.
    pub from: Lsn,
}

impl Feed {
    /// # Errors
    /// A refusal if the target has what the history of the source, or of the trail, does not.
    pub async fn open(config: &Config, target: &Client, before: &Progress) -> Result<Feed, Error> {
        match &config.trail {
            None => Feed::of_slot(config, target, before).await,
            Some(trail) => Feed::of_trail(config, trail, target, before).await,
        }
    }

    async fn of_slot(config: &Config, target: &Client, before: &Progress) -> Result<Feed, Error> {
        let mut connection = Connection::connect(&config.source)?;
        let identity = connection.identify_system()?;
        if identity.timeline != before.timeline {
            let history = history(&mut connection, identity.timeline)?;
            let copied = copied_up_to(config, target, before).await?;
            check_timeline(config, Whose::Target, before, copied, &identity, &history)?;
        }
        Ok(Feed::Slot { connection, timeline: identity.timeline })
    }

    async fn of_trail(config: &Config, trail: &TrailConfig, target: &Client, before: &Progress) -> Result<Feed, Error> {
        let known = trail::expect(trail)?;
        check_origin(config, &known)?;
        check_known(config, trail, target, &known).await?;
        check_identity(Whose::Target, before, &known.origin.system_identifier)?;
        if known.timeline != before.timeline {
            let system_identifier = known.origin.system_identifier.clone();
            let identity = Identity { system_identifier, timeline: known.timeline, wal_position: known.ends_at };
            let copied = copied_up_to(config, target, before).await?;
            check_timeline(config, Whose::Target, before, copied, &identity, &known.history)?;
        }
        let database = database(target).await?;
        let reader = ReaderOf { name: config.name.as_str(), target: database.as_deref() };
        let from = keep(trail, reader, before.end_lsn)?;
        Ok(Feed::Trail { config: trail.clone(), known: Box::new(known), kept: Kept { target: database, from } })
    }

    pub fn timeline(&self) -> TimelineId {
        match self {
            Feed::Slot { timeline, .. } => *timeline,
            Feed::Trail { known, .. } => known.timeline,
        }
    }

    /// Has the target know what it reads from. Our epoch is the newest one.
    pub async fn record(&self, config: &Config, target: &Client) -> Result<(), Error> {
        let name = config.name.as_str();
        match self {
            Feed::Slot { .. } => checkpoint::forget_trail(target, name).await,
            Feed::Trail { known, .. } => match &known.id {
                Some(id) => checkpoint::record_trail(target, name, id).await,
                None => Ok(()),
            },
        }
    }

    /// # Errors
    /// A refusal if what follows `progress` is not there any more.
    pub async fn check_gap(
        &self,
        config: &Config,
        (source, server): (&Client, &Server),
        progress: &Progress,
    ) -> Result<(), Error> {
        match self {
            Feed::Slot { .. } => {
                let slot = read_slot(config, Whose::Target, source, server).await?;
                check_gap(config, Whose::Target, progress, &slot)
            }
            Feed::Trail { config, .. } => check_trail(&trail::expect(config)?, progress),
        }
    }

    /// Begins behind `progress`, all before `confirmed` confirmed.
    pub fn start(self, config: &Config, terms: &Terms, (progress, confirmed): (Lsn, Lsn)) -> Result<Input, Error> {
        match self {
            Feed::Slot { connection, .. } => {
                let streaming = if config.stream.streaming { Streaming::On } else { Streaming::Off };
                let mut stream = terms.start(connection, &config.slot(), progress, streaming)?;
                if confirmed < progress {
                    stream.feedback().confirm_nothing_yet();
                }
                let spool = config.stream.streaming.then(|| Spool::new(config.spool.clone()));
                Ok(Input::source(stream, spool))
            }
            Feed::Trail { config: trail, kept, .. } => Input::trail(config, &trail, progress, kept, Instant::now()),
        }
    }
}

/// # Errors
/// A refusal if the trail lacks what follows progress, or is of an earlier slot; [`Kind::TrailBehind`] if it ends before.
pub fn check_trail(known: &trail::Known, progress: &Progress) -> Result<(), Error> {
    if known.begins_at > progress.end_lsn {
        return Err(trail::passed_over(known.begins_at, progress.end_lsn));
    }
    if known.origin.consistent_point.is_some_and(|point| progress.consistent_point < Lsn::new(point)) {
        let what = "the trail is of another slot than the target's progress: it was begun later";
        return Err(Error::refused(
            Stage::Trail,
            what,
            "`pgsluice teardown`, `pgsluice setup`, and copy the tables again",
        ));
    }
    if known.ends_at < progress.end_lsn {
        let (end, progress) = (known.ends_at, progress.end_lsn);
        return Err(Error::new(Stage::Trail, Kind::TrailBehind { end, progress }));
    }
    Ok(())
}

/// # Errors
/// A refusal if the trail is of another slot than that of the configuration.
pub fn check_origin(config: &Config, known: &trail::Known) -> Result<(), Error> {
    let (slot, wanted) = (&known.origin.slot, config.slot());
    if *slot == wanted {
        return Ok(());
    }
    let what = format!("the trail is of slot \"{slot}\", and the configuration is of \"{wanted}\"");
    let mend = "name the replication that writes it as `of` in [trail]; or another folder as `dir`";
    Err(Error::refused(Stage::Trail, what, mend))
}

/// # Errors
/// A refusal if the target has read from another trail.
async fn check_known(config: &Config, trail: &TrailConfig, target: &Client, known: &trail::Known) -> Result<(), Error> {
    let (Some(id), Some(read)) = (&known.id, checkpoint::known_trail(target, config.name.as_str()).await?) else {
        return Ok(());
    };
    if *id == read {
        return Ok(());
    }
    let what = format!(
        "the trail in {} is another one, {id}, than the one that the target reads from, {read}",
        trail.dir.display()
    );
    let mend = format!(
        "is the right disk mounted? If it is that trail, and only its file `identity` was lost, on the target: UPDATE pgsluice.trails SET \
         id = '{id}' WHERE name = '{}'; if that trail is lost: `pgsluice teardown`, `pgsluice setup`, and copy the tables again",
        config.name
    );
    Err(Error::refused(Stage::Trail, what, mend))
}

/// From now on what follows is kept for us. Where the disk is full it is enough that we are known: then no less is kept.
fn keep(trail: &TrailConfig, reader: ReaderOf<'_>, progress: Lsn) -> Result<Lsn, Error> {
    match trail::claim_reader(trail, reader, progress) {
        Err(error) if error.is_full_disk() => {
            let known = trail::readers(trail)?.into_iter().find(|known| known.name == reader.name);
            known.map(|known| known.position).ok_or(error)
        }
        claimed => claimed,
    }
}

/// Tells the target's database from all others; a replica of its server that takes its place has the same. `None` where the role may
/// not know.
pub async fn database(target: &Client) -> Result<Option<String>, Error> {
    let sql = "SELECT format('%s of cluster %s', oid, (SELECT system_identifier FROM pg_control_system())) \
               FROM pg_database WHERE datname = current_database()";
    match target.query_one(sql, &[]).await {
        Ok(row) => row.try_get(0).map(Some).map_err(|error| Error::from_postgres(Stage::Trail, Role::Target, error)),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(None),
        Err(error) => Err(Error::from_postgres(Stage::Trail, Role::Target, error)),
    }
}

/// The first timeline has no history, and no file of it.
pub(super) fn history(connection: &mut Connection, timeline: TimelineId) -> Result<Vec<(TimelineId, Lsn)>, Error> {
    if timeline == TimelineId::FIRST { Ok(Vec::new()) } else { connection.timeline_history(timeline) }
}

/// Tables that are copied are of a later moment than progress.
async fn copied_up_to(config: &Config, target: &Client, before: &Progress) -> Result<Option<Lsn>, Error> {
    let copies = snapshot::read(target, config.name.as_str()).await?;
    Ok(Copied::new(&copies, before.end_lsn).ends_at())
}
