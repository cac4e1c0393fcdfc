//! Whether the source's history holds what the target has, and the slot what follows it.
//!
//! In: progress on the target, or how far a trail goes; what the source says of itself and of the slot. Out: nothing, or a refusal.

use pgsluice_proto::{Lsn, TimelineId};

use crate::checkpoint::Progress;
use crate::config::Config;
use crate::error::{Error, Stage};
use crate::source::Identity;
use crate::source::server::Server;
use crate::source::slot::SlotState;

const STAGE: Stage = Stage::Source;

/// Who has all before a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Target,
    Trail,
}

impl Whose {
    pub(super) fn it(self) -> &'static str {
        match self {
            Whose::Target => "the target",
            Whose::Trail => "the trail",
        }
    }

    fn progress(self) -> &'static str {
        match self {
            Whose::Target => "the target's progress",
            Whose::Trail => "the trail's end",
        }
    }

    /// How else it can come to have less.
    fn failover(self) -> &'static str {
        match self {
            Whose::Target => {
                ", or has failed over to a replica that had less, which `confirm_delay` in [apply] provides for"
            }
            Whose::Trail => "",
        }
    }

    /// What else could be wrong.
    fn correct(self) -> &'static str {
        match self {
            Whose::Target => "correct [source] or [target]",
            Whose::Trail => "correct [source], or `dir` in [trail]",
        }
    }
}

/// # Errors
/// A refusal if the target's progress speaks of another cluster.
pub fn check_identity(whose: Whose, progress: &Progress, found: &str) -> Result<(), Error> {
    if progress.system_identifier == found {
        return Ok(());
    }
    let known = &progress.system_identifier;
    Err(Error::refused(
        STAGE,
        format!("the source is another cluster: its system identifier is {found}, {} is of {known}", whose.progress()),
        format!("{}; for a new source, `pgsluice teardown` and `pgsluice setup`", whose.correct()),
    ))
}

/// # Errors
/// A refusal if a primary's WAL ends before what the target has.
pub(super) fn check_position(whose: Whose, progress: &Progress, server: &Server) -> Result<(), Error> {
    if server.in_recovery || server.position >= progress.end_lsn {
        return Ok(());
    }
    let (position, end_lsn) = (server.position, progress.end_lsn);
    Err(Error::refused(
        STAGE,
        format!(
            "the source's WAL ends at {position}, and {} has changes up to {end_lsn}: the source has lost them",
            whose.it()
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
    whose: Whose,
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
                "the source has left timeline {ours} at {lsn}, and {} has changes up to {}: it may hold what \
                 the source has lost",
                whose.it(),
                copied.unwrap_or(progress.end_lsn)
            ),
            match whose {
                Whose::Target => format!(
                    "if the source is the very server that was decoded before it was promoted, nothing is lost; on the \
                     target: UPDATE pgsluice.progress SET timeline = {} WHERE name = '{}'; otherwise compare the two, then \
                     `pgsluice teardown`, `pgsluice setup`, and copy the tables again",
                    identity.timeline, config.name
                ),
                Whose::Trail => {
                    "compare source and targets, then `pgsluice teardown`, `pgsluice setup`, and copy the tables again"
                        .to_owned()
                }
            },
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
pub fn check_gap(config: &Config, whose: Whose, progress: &Progress, slot: &SlotState) -> Result<(), Error> {
    let name = config.slot();
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
            "slot \"{name}\" has moved to {confirmed}, past {} {}: changes between the two are gone \
             from the slot; it was dropped and made again, advanced by hand, or {} was restored{}",
            whose.progress(),
            progress.end_lsn,
            whose.it(),
            whose.failover()
        )
    };
    let set_up_anew = "`pgsluice teardown`, `pgsluice setup`, and copy the tables again";
    let mend = match whose {
        Whose::Target => format!("the target is whole up to there but cannot go on; {set_up_anew}"),
        Whose::Trail => format!(
            "is the right disk mounted, and is the trail no older copy of itself? It is whole up to there, and targets get what it has, \
             but it cannot go on; {set_up_anew}"
        ),
    };
    Err(Error::refused(STAGE, what, mend))
}
