//! Whether the source's history holds what the target has, and the slot what follows it.
//!
//! In: progress on the target, what the source says of itself and of the slot. Out: nothing, or a refusal.

use pgsluice_proto::{Lsn, TimelineId};

use crate::checkpoint::Progress;
use crate::config::Config;
use crate::error::{Error, Stage};
use crate::source::Identity;
use crate::source::server::Server;
use crate::source::slot::SlotState;

const STAGE: Stage = Stage::Source;

/// # Errors
/// A refusal if the target's progress speaks of another cluster.
pub fn check_identity(progress: &Progress, found: &str) -> Result<(), Error> {
    if progress.system_identifier == found {
        return Ok(());
    }
    let known = &progress.system_identifier;
    Err(Error::refused(
        STAGE,
        format!("the source is another cluster: its system identifier is {found}, the target's progress is of {known}"),
        "correct [source] or [target]; for a new source, `pgsluice teardown` and `pgsluice setup`",
    ))
}

/// # Errors
/// A refusal if a primary's WAL ends before what the target has.
pub(super) fn check_position(progress: &Progress, server: &Server) -> Result<(), Error> {
    if server.in_recovery || server.position >= progress.end_lsn {
        return Ok(());
    }
    let (position, end_lsn) = (server.position, progress.end_lsn);
    Err(Error::refused(
        STAGE,
        format!(
            "the source's WAL ends at {position}, and the target has changes up to {end_lsn}: the source has lost them"
        ),
        "it was restored, or promoted before it had them; compare it with the target, then set up anew",
    ))
}

/// # Errors
/// A refusal if the target may hold changes that the source's history does not.
///
/// A source that is promoted under our stream is seen to be while the stream lasts, and progress then speaks of its new
/// timeline. Where we ended before that, only a person knows that it is the same server: a slot says nothing of where it
/// was made.
pub(super) fn check_timeline(
    config: &Config,
    progress: &Progress,
    copied: Option<Lsn>,
    identity: &Identity,
    history: &[(TimelineId, Lsn)],
) -> Result<(), Error> {
    let ours = progress.timeline;
    let left_at = history.iter().find(|(timeline, _)| *timeline == ours).map(|(_, lsn)| *lsn);
    let copied_before = |lsn| copied.is_none_or(|copied| copied <= lsn);
    match left_at {
        Some(lsn) if copied_before(lsn) && progress.end_lsn <= lsn => Ok(()),
        Some(lsn) => Err(Error::refused(
            STAGE,
            format!(
                "the source has left timeline {ours} at {lsn}, and the target has changes up to {}: it may hold what \
                 the source has lost",
                copied.unwrap_or(progress.end_lsn)
            ),
            format!(
                "if the source is the very server that was decoded before it was promoted, nothing is lost; on the \
                 target: UPDATE pgsluice.progress SET timeline = {} WHERE name = '{}'; otherwise compare the two, then \
                 `pgsluice teardown`, `pgsluice setup`, and copy the tables again",
                identity.timeline, config.name
            ),
        )),
        None => Err(Error::refused(
            STAGE,
            format!("the source is on timeline {}, which does not descend from timeline {ours}", identity.timeline),
            "the source was restored or failed back; compare it with the target, then set up anew",
        )),
    }
}

/// # Errors
/// A refusal if the slot no longer holds what follows the target's progress.
pub fn check_gap(config: &Config, progress: &Progress, slot: &SlotState) -> Result<(), Error> {
    let name = config.name.slot();
    let Some(confirmed) = slot.confirmed_flush_lsn else {
        let what = format!("slot \"{name}\" has no confirmed_flush_lsn: it was never completed");
        return Err(Error::refused(STAGE, what, "`pgsluice teardown`, then `pgsluice setup`"));
    };
    let remade = confirmed < progress.consistent_point;
    if confirmed <= progress.end_lsn && !remade {
        return Ok(());
    }
    let what = if remade {
        format!(
            "slot \"{name}\" stands at {confirmed}, before {} where setup made it: it is another slot",
            progress.consistent_point
        )
    } else {
        format!(
            "slot \"{name}\" has moved to {confirmed}, past the target's progress {}: changes between the two are gone \
             from the slot; it was dropped and made again, advanced by hand, or the target was restored",
            progress.end_lsn
        )
    };
    let mend = "the target is whole up to its progress but cannot go on; `pgsluice teardown`, `pgsluice setup`, and \
                copy the tables again";
    Err(Error::refused(STAGE, what, mend))
}
