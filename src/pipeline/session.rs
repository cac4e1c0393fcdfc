//! Opens a session: everything that is checked and said before the first row.
//!
//! ```text
//!  target: progress ─► source: identity, slot, server, publication, timeline ─► fence ─► gap ─► tables ─► format ─► START
//!                                                                                             └─► copy, or indexes
//!                                                                                                 again; then anew
//! ```
//!
//! The order is what makes it safe. Whatever refuses, refuses before the fence, so that a configuration that cannot run
//! does not stop an engine that can. The gap is looked for after the fence, when no other engine moves progress any more.
//!
//! The gap: a server whose slot has `confirmed_flush_lsn` above the requested start silently starts at the former. Were
//! progress behind it, the changes between would be lost without an error. So progress that is behind the slot is
//! refused, and with it a slot that was dropped and made again.

use std::sync::Arc;
use std::time::Duration;

use pgsluice_proto::command::ProtoVersion;
use pgsluice_proto::{Lsn, TimelineId};
use tokio::runtime::Runtime;
use tokio_postgres::Client;

use super::asked::{
    Terms, check_heartbeat, check_spool, mapping, of_ours, read_publication, read_slot, stream_options,
};
use super::early::Reads;
use super::feed::{Feed, check_origin};
use super::history::{Whose, check_gap, check_identity, check_position};
use super::identity::Identities;
use super::input::Input;
use super::said::warn_sparsely;
use super::selection::Known;
use super::target::{Fires, check_kept, set_up_target_session, use_binary};
use super::unwritable::Said;
use super::{conflicts, copy};
use crate::apply::{Applier, Begins, Crew, Options, Policies};
use crate::checkpoint::{self, Moves, Position, Progress, Tenure};
use crate::config::{Config, OWN_SCHEMA, Role, SynchronousCommit};
use crate::error::{Error, Kind, Stage};
use crate::postgres::{self, Warnings};
use crate::preflight::{check_circle, check_target, check_written_tables};
use crate::schema::compare::{self, Sent, Weight};
use crate::shards;
use crate::skips;
use crate::snapshot::{self, Copied, CopyOptions, Due, Ruled, State, TableCopy, Wanted};
use crate::source::publication::{Publication, PublishedTable, TableName};
use crate::source::server::Server;
use crate::trail;
use crate::transform::Mapping;

const STAGE: Stage = Stage::Source;
/// A fence that takes longer than this is waiting for somebody.
const FENCE_NOTICE_INTERVAL: Duration = Duration::from_secs(5);

/// A stream that flows, and a target that is ours.
#[derive(Debug)]
pub(super) struct Session {
    pub runtime: Runtime,
    pub stages: Stages,
}

#[derive(Debug)]
pub(super) struct Stages {
    pub crew: Crew,
    /// Where large transactions may be applied before they commit.
    pub early: Option<Reads>,
    pub input: Input,
    pub progress: Progress,
    /// Of that, what the source may hear of from the start.
    pub confirmed: Lsn,
    /// What of the stream is on the target already.
    pub copied: Copied,
    /// Tables that are to be copied beside the stream.
    pub missing: Vec<Wanted>,
    pub known: Known,
    /// Which tables the target has rows of.
    pub identities: Arc<Identities>,
    pub terms: Terms,
    pub mapping: Arc<Mapping>,
    /// Transactions to pass over, by their commit records, in their order.
    pub skips: Vec<Lsn>,
    /// Foreign keys can be made again once progress is here, which the next session does.
    pub restart_at: Option<Lsn>,
}

/// What opening a session has come to.
#[derive(Debug)]
pub(super) enum Opened {
    Session(Box<Session>),
    /// These tables have to be on the target first.
    Missing(Vec<Wanted>),
    /// What was dropped for a copy has to be made again first.
    Deferred,
}

/// What is to be opened.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub config: &'a Config,
    pub options: &'a CopyOptions,
    /// The one that this engine holds, if it held one before, and afterwards the new one.
    pub epoch: &'a mut Option<i64>,
    /// Tables may be copied while the others stream.
    pub beside: bool,
    /// Large transactions may be applied before they commit.
    pub early: bool,
    pub unwritable: &'a mut Said,
}

/// # Errors
/// A refusal with its mend, or whatever a server reports.
pub(super) fn open(attempt: Attempt<'_>) -> Result<Opened, Error> {
    let runtime = postgres::new_runtime(STAGE)?;
    match runtime.block_on(prepare(attempt))? {
        Prepared::Missing(tables) => Ok(Opened::Missing(tables)),
        Prepared::Deferred => Ok(Opened::Deferred),
        Prepared::Ready(stages) => Ok(Opened::Session(Box::new(Session { runtime, stages: *stages }))),
    }
}

enum Prepared {
    Ready(Box<Stages>),
    Missing(Vec<Wanted>),
    Deferred,
}

async fn prepare(attempt: Attempt<'_>) -> Result<Prepared, Error> {
    let Attempt { config, options, epoch, beside, early, unwritable } = attempt;
    let (target, warnings) = postgres::connect_hearing(&config.target, Stage::Apply).await?;
    if epoch.is_none() {
        postgres::check_unpooled(&config.target, &target, Stage::Apply).await?;
    }
    shards::check_split(&target, config, STAGE).await?;
    let progress = checkpoint::read(&target, config.name.as_str()).await?;
    let source = postgres::connect(&config.source, STAGE).await?;
    if epoch.is_none() {
        postgres::check_unpooled(&config.source, &source, STAGE).await?;
    }
    check_target(config, (&source, &target), progress.as_ref(), STAGE).await?;
    let before = progress.ok_or_else(|| no_progress(config))?;
    let server = Server::inspect(&source, Role::Source, STAGE).await?;
    server.warnings().into_iter().for_each(|warning| unwritable.warn(warning));
    // What cannot be mended first: a setting that is wrong now may be why the slot is lost.
    check_identity(Whose::Target, &before, &server.system_identifier)?;
    if server.in_recovery && server.position < before.end_lsn {
        let kind = Kind::Behind { replayed: server.position, progress: before.end_lsn };
        return Err(Error::new(STAGE, kind));
    }
    check_position(Whose::Target, &before, &server)?;
    match &config.trail {
        None => {
            read_slot(config, Whose::Target, &source, &server).await?;
            server.check_decodable(STAGE)?;
            check_spool(config)?;
        }
        Some(trail) => check_origin(config, &trail::expect(trail)?)?,
    }
    check_heartbeat(config, &server, STAGE)?;
    let publication = match read_publication(config, &source).await {
        Ok(publication) => of_ours(config, publication)?,
        Err(refused) => {
            leave_incomplete(config, (&source, &target)).await?;
            return Err(refused);
        }
    };
    // Of one that is at work only what is to come is in doubt.
    let writable = unwritable.check(config, &source, STAGE).await;
    writable.map_err(|error| if epoch.is_some() { error.to_be_waited_for() } else { error })?;
    check_circle(&source, &target, &publication.tables, STAGE).await?;
    let mapping = mapping(config, &source, &publication).await?;
    let feed = Feed::open(config, &target, &before).await?;
    check_gap_before_fence(config, &feed, (&source, &server), &target).await?;
    let current = checkpoint::read(&target, config.name.as_str()).await?.ok_or_else(|| no_progress(config))?;
    let ruled = ruled(&publication.tables, &mapping);
    let name = config.name.as_str();
    let mut foreseen = snapshot::foresee(&target, name, &ruled, config.snapshot.copy_data).await?;
    let position = Server::inspect(&source, Role::Source, STAGE).await?.position;
    let judged = judge(config, &target, &publication, position).await?;
    let is_replaced = |state: &TableCopy| judged.replaced.iter().any(|(table, _)| *table == state.table);
    foreseen.iter_mut().filter(|state| is_replaced(state)).for_each(|state| state.state = State::DataSync);
    check_kept(&target, &mapping).await?;
    let in_order = check_written_tables(&target, config, &publication.tables, &mapping).await;
    in_order.map_err(|error| if epoch.is_some() { error.to_be_waited_for() } else { error })?;
    let records = checkpoint::complete(&target).await?;
    conflicts::check(&target, config, &publication.tables, &mapping).await?;
    conflicts::check_records(config, records)?;
    skips::pending(&target, config.name.as_str(), current.end_lsn).await?;

    let fires = set_up_target_session(&target, &publication.tables, &mapping).await?;
    let constraints_fire = fires.constraints;
    shards::check_order(config, constraints_fire, STAGE)?;
    let (source_major, is_at_work) = (server.major(), epoch.is_some());
    let published =
        Published { name, source_major, is_at_work, publication: &publication, states: &foreseen, mapping: &mapping };
    let foreseen = missing(&target, published, options, constraints_fire).await?;
    let sent = Sent::of(publication.tables.iter());
    check_losses(&source, &target, &foreseen, (&mapping, &sent))
        .await
        .map_err(|error| if is_at_work { error.to_be_waited_for() } else { error })?;
    let binary = use_binary(config, (source_major, &publication.tables), &mapping, &target).await?;
    // Taken: where the answer is lost, nobody knows whose the next epoch is, and to take over is the way to go on.
    let (held, heard) = (epoch.take(), warnings.count());
    let fenced = fence(config, &target, feed.timeline(), held).await?;
    let progress = fenced.ok_or_else(|| no_progress(config))?;
    if held.is_some_and(|held| current.epoch < held) {
        let what = "the target has failed over to a replica that had less, or was restored; going on from what it has";
        tracing::warn!(end_lsn = %progress.end_lsn, "{what}");
    }
    // The fence is a commit as the target's own are: where nobody has cancelled its wait, all before it is as durable as they are.
    let begins = if warnings.count() == heard { Begins::Durable } else { Begins::Committed };
    let is_confirmed = config.apply.confirm_delay.is_zero() && begins == Begins::Durable;
    let confirmed = if is_confirmed { progress.end_lsn } else { Lsn::INVALID };
    *epoch = Some(progress.epoch);
    feed.check_gap(config, (&source, &server), &progress).await?;
    feed.record(config, &target).await?;
    let skips = skips::pending(&target, config.name.as_str(), progress.end_lsn).await?;

    let mut names = publication.tables.iter().map(|published| &published.table);
    if !names.any(|table| config.tables.is_bench(&table.schema, &table.name)) {
        snapshot::forget(&target, config.name.as_str(), (OWN_SCHEMA, &config.name.bench_table())).await?;
    }
    let states = settle(config, (&source, &target), (&publication, position), &ruled, progress.epoch).await?;
    let missing = missing(&target, Published { states: &states, ..published }, options, constraints_fire).await?;
    warn_of_conflicts(&source, &target, &missing, (&mapping, &sent)).await?;
    // Where nothing streams yet, nothing has to wait for the copy, and one stream is enough for what follows it. Where
    // foreign keys fire, a table's rows must not be ahead of those that they refer to.
    let beside = beside && !constraints_fire && states.iter().any(|state| state.state == State::Ready);
    if !missing.is_empty() && !beside {
        return Ok(Prepared::Missing(missing));
    }
    let deferred = snapshot::read_deferred(&target, config.name.as_str()).await?;
    if deferred.iter().any(|one| one.due == Due::Now) {
        return Ok(Prepared::Deferred);
    }
    // Tables that are copied beside it must not begin again for that: when they are handed over is time enough.
    let restart_at = deferred.iter().filter_map(|one| one.due.lsn()).max().filter(|_| missing.is_empty());
    let copied = Copied::new(&states, progress.end_lsn);
    let all = snapshot::read(&target, name).await?;
    let identities = Arc::new(Identities::new(&all, &publication.tables, config.snapshot.copy_data));
    let known = known(config, &all, &publication, server.position, identities.clone());

    let proto_version = ProtoVersion::newest_of(server.major());
    let options = stream_options(config, &server);
    let source_generates = publication.tables.iter().any(|published| published.has_generated);
    let terms = Terms { source_generates, proto_version, publication: publication.name, binary, options };
    let input = feed.start(config, &terms, (progress.end_lsn, confirmed))?;
    let options = apply_options(config, constraints_fire, source_generates);
    let crew = crew(config, (target, warnings), (&progress, begins), (options, fires)).await?;
    tracing::info!(start_lsn = %progress.end_lsn, epoch = progress.epoch, binary, "streaming starts");
    let mapping = Arc::new(mapping);
    // Nothing may be needed that only its commit tells: what a copy has already, what is passed over.
    let is_plain = copied.ends_at().is_none() && missing.is_empty() && skips.is_empty();
    let may_be_early = early && is_plain && input.has_spool() && crew.size() > 1 && config.conflicts.only_stop();
    let reads = Reads { mapping: mapping.clone(), binary, known: known.clone() };
    let early = (may_be_early && !constraints_fire && restart_at.is_none()).then_some(reads);
    let stages = Stages {
        crew,
        early,
        input,
        progress,
        confirmed,
        copied,
        missing,
        known,
        identities,
        terms,
        mapping,
        skips,
        restart_at,
    };
    Ok(Prepared::Ready(Box::new(stages)))
}

/// The sessions that apply: the one that has fenced, and others beside it.
async fn crew(
    config: &Config,
    target: (Client, Warnings),
    (progress, begins): (&Progress, Begins),
    (options, fires): (Options, Fires),
) -> Result<Crew, Error> {
    let mut workers = config.apply.workers;
    if workers > 1 && fires.triggers {
        tracing::info!(
            "changes are applied by one session: what triggers of the target read, no other may be changing"
        );
        workers = 1;
    }
    let policies = Policies::of(config);
    let position = Position::new(progress.end_lsn);
    let tenure = tenure(config, progress.epoch, position.clone());
    let mut appliers = vec![Applier::new(target, tenure.clone(), options, policies).await?];
    while appliers.len() < workers {
        appliers.push(connect_applier(config, tenure.clone(), options).await?);
    }
    Crew::new((position, begins), appliers, config.apply.confirm_delay).await
}

/// A further session that applies.
pub(super) async fn connect_applier(config: &Config, tenure: Tenure<'_>, options: Options) -> Result<Applier, Error> {
    let (client, warnings) = postgres::connect_hearing(&config.target, Stage::Apply).await?;
    postgres::prepare_target(&client, Stage::Apply).await?;
    Applier::new((client, warnings), tenure, options, Policies::of(config)).await
}

/// Under which all sessions of an engine move progress.
pub(super) fn tenure(config: &Config, epoch: i64, position: Position) -> Tenure<'_> {
    Tenure { name: config.name.as_str(), epoch, moves: Moves::Progress, position }
}

fn ruled<'a>(tables: &'a [PublishedTable], mapping: &Mapping) -> Vec<Ruled<'a>> {
    let one = |PublishedTable { table, .. }: &'a PublishedTable| Ruled {
        table,
        rules: mapping.fingerprint(table),
        place: mapping.place(table),
    };
    tables.iter().map(one).collect()
}

/// How the target is written to.
pub(super) fn apply_options(config: &Config, constraints_fire: bool, source_generates: bool) -> Options {
    Options {
        source_generates,
        netting: config.apply.netting,
        constraints_fire,
        asynchronous_commit: config.apply.synchronous_commit == SynchronousCommit::Off,
    }
}

/// What is published, and how far each table is.
#[derive(Clone, Copy, Debug)]
struct Published<'a> {
    name: &'a str,
    source_major: u32,
    /// This engine has had a session before.
    is_at_work: bool,
    publication: &'a Publication,
    states: &'a [TableCopy],
    mapping: &'a Mapping,
}

/// The tables that are published and not on the target yet.
async fn missing(
    target: &Client,
    published: Published<'_>,
    options: &CopyOptions,
    constraints_fire: bool,
) -> Result<Vec<Wanted>, Error> {
    let Published { name, source_major, is_at_work, publication, states, mapping } = published;
    let state = |table: &TableName| states.iter().find(|state| state.table == *table && state.is_missing());
    let missing = publication.tables.iter().filter_map(|published| Some((published, state(&published.table)?.state)));
    let tables: Vec<_> = missing.collect();
    if tables.is_empty() {
        Ok(Vec::new())
    } else {
        let wanted = copy::wanted(target, (name, mapping), (source_major, tables), options, constraints_fire).await;
        wanted.map_err(|error| if is_at_work { error.to_be_waited_for() } else { error })
    }
}

/// # Errors
/// A refusal that names columns that would keep less of the source's values than there is, without an error.
async fn check_losses(
    source: &Client,
    target: &Client,
    tables: &[Wanted],
    as_sent: (&Mapping, &Sent),
) -> Result<(), Error> {
    let names: Vec<_> = tables.iter().map(|wanted| wanted.table.clone()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let compared = compare::tables(source, target, &names, as_sent, Stage::Snapshot).await?;
    let differences = compared.into_iter().filter_map(|(_, differences)| differences).flatten();
    let losses: Vec<_> = differences.filter(|one| one.weight == Weight::Loss).map(|one| one.what).collect();
    if losses.is_empty() { Ok(()) } else { Err(Error::refused(Stage::Snapshot, losses.join("; "), compare::LOSS_MEND)) }
}

/// Names columns that may not take the source's values. Whether they do only the rows can tell.
async fn warn_of_conflicts(
    source: &Client,
    target: &Client,
    tables: &[Wanted],
    as_sent: (&Mapping, &Sent),
) -> Result<(), Error> {
    let names: Vec<_> = tables.iter().map(|wanted| wanted.table.clone()).collect();
    for (_, differences) in compare::tables(source, target, &names, as_sent, Stage::Snapshot).await? {
        for difference in differences.into_iter().flatten().filter(|difference| difference.weight == Weight::Conflict) {
            warn_sparsely(format!("{difference}: {}", difference.consequence));
        }
    }
    Ok(())
}

/// Brings what is kept of the tables to what is published, and returns the states of those that are. The publication was read before
/// the source was at `position`.
async fn settle(
    config: &Config,
    (source, target): (&Client, &Client),
    (publication, position): (&Publication, Lsn),
    ruled: &[Ruled<'_>],
    epoch: i64,
) -> Result<Vec<TableCopy>, Error> {
    let (name, copy_data) = (config.name.as_str(), config.snapshot.copy_data);
    // What has rows without a copy is kept with the others.
    snapshot::learn(target, name, ruled, copy_data).await?;
    let states = snapshot::read(target, name).await?;
    let judged = snapshot::compare(source, name, &states, &publication.tables, copy_data, position).await?;
    warn_of_notes(&states);
    snapshot::settle(target, (name, epoch), &judged).await?;
    let names = publication.tables.iter().map(|published| &published.table);
    let again = match copy_data {
        true => "it is emptied and copied again",
        false => "it is refused until `pgsluice resync` has it copied",
    };
    for table in snapshot::mark_absent(target, name, names, copy_data).await? {
        tracing::warn!("{table} is not replicated any more: if it comes again, {again}");
    }
    snapshot::learn(target, name, ruled, copy_data).await
}

/// Tables of a publication that does not bring all that happens to them are copied again once it does.
async fn leave_incomplete(config: &Config, (source, target): (&Client, &Client)) -> Result<(), Error> {
    match Publication::read(source, Role::Source, &config.publication(), STAGE).await? {
        Some(publication) if publication.leaves_out_operations() => {
            snapshot::leave(target, config.name.as_str(), &publication.tables).await
        }
        Some(_) | None => Ok(()),
    }
}

/// How rows are known to differ, until their tables are copied again.
fn warn_of_notes(states: &[TableCopy]) {
    for state in states.iter().filter(|state| state.is_followed()) {
        for note in state.identity.iter().flat_map(|identity| &identity.notes) {
            tracing::warn!("{note}");
        }
    }
}

/// What is published, compared with what the target has rows of.
async fn judge(
    config: &Config,
    target: &Client,
    publication: &Publication,
    position: Lsn,
) -> Result<snapshot::Judged, Error> {
    let name = config.name.as_str();
    let states = snapshot::read(target, name).await?;
    snapshot::judge(name, &states, &publication.tables, config.snapshot.copy_data, position)
}

/// The tables whose changes may come. The source was at `as_of` before the publication was read.
fn known(
    config: &Config,
    states: &[TableCopy],
    publication: &Publication,
    as_of: Lsn,
    identities: Arc<Identities>,
) -> Known {
    let mut copied = None;
    if config.snapshot.copy_data {
        let copied_before = states.iter().filter(|state| !state.is_missing()).map(|state| &state.table);
        copied = Some(publication.tables.iter().map(|one| &one.table).chain(copied_before).collect());
    }
    Known::Only { selection: config.tables.clone(), copied, as_of, others: config.only_applies(), identities }
}

/// Takes over from another engine, and says so where one still has a transaction open.
async fn fence(
    config: &Config,
    target: &Client,
    timeline: TimelineId,
    held: Option<i64>,
) -> Result<Option<Progress>, Error> {
    let fencing = checkpoint::fence(target, config.name.as_str(), timeline, held);
    tokio::pin!(fencing);
    loop {
        tokio::select! {
            fenced = &mut fencing => return fenced,
            () = tokio::time::sleep(FENCE_NOTICE_INTERVAL) => {
                tracing::warn!("another session on the target holds the progress row; waiting for its transaction to end");
            }
        }
    }
}

/// Until the fence, another engine may be at work and move slot and progress, progress always first: so that is read last.
async fn check_gap_before_fence(
    config: &Config,
    feed: &Feed,
    (source, server): (&Client, &Server),
    target: &Client,
) -> Result<(), Error> {
    match feed {
        Feed::Slot { .. } => {
            let slot = read_slot(config, Whose::Target, source, server).await?;
            let current = checkpoint::read(target, config.name.as_str()).await?.ok_or_else(|| no_progress(config))?;
            check_gap(config, Whose::Target, &current, &slot)
        }
        Feed::Trail { .. } => {
            let current = checkpoint::read(target, config.name.as_str()).await?.ok_or_else(|| no_progress(config))?;
            feed.check_gap(config, (source, server), &current).await
        }
    }
}

fn no_progress(config: &Config) -> Error {
    let name = config.name.as_str();
    Error::refused(
        STAGE,
        format!("the target has no progress row \"{name}\" in pgsluice.progress"),
        "run `pgsluice setup` first; if it was run, check that [target] names the same database",
    )
}
