//! Tables that the stream does not have yet: copied beside it, brought up to it, and watched for.
//!
//! In: the tables that were missing when the session was opened. Out: their rows on the target, and the handover of what
//! follows to the stream. After that, an error as soon as there are others: the next session has them copied.
//!
//! ```text
//!  slot with its snapshot ──copy──► rows ──catch-up: the slot's stream, of these tables alone──► handover ──► watch
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use pgsluice_proto::Lsn;
use tokio_postgres::Client;

use super::Opening;
use super::asked::{Streaming, Terms};
use super::handover::Handover;
use super::identity::Identities;
use super::input::Input;
use super::reader::Start;
use super::selection::{Beside, Known, Selection};
use super::session::apply_options;
use super::shared::{Phase, Shared};
use super::skips::Skips;
use super::unwritable::Said;
use super::workers::{Ends, Workers, no_resources};
use crate::apply::{Applier, Begins, Crew, Policies};
use crate::checkpoint::{Moves, Position, Progress, Tenure};
use crate::config::{Config, Role};
use crate::error::{Disposition, Error, Kind, Stage};
use crate::postgres;
use crate::snapshot::{self, Copied, CopyOptions, Due, Follows, Order, SnapshotSlot, TableCopy, Wanted};
use crate::source::Waker;
use crate::source::publication::{Publication, TableName};
use crate::source::server::Server;
use crate::transform::{Mapping, Transform};

const STAGE: Stage = Stage::Snapshot;
/// How often is looked whether there are tables to copy.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);
/// Between two tries of a copy.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Newcomers {
    config: Config,
    epoch: i64,
    options: CopyOptions,
    chunks: Arc<AtomicUsize>,
    terms: Terms,
    mapping: Arc<Mapping>,
    identities: Arc<Identities>,
    missing: Option<Missing>,
    /// Transactions that are passed over, here too.
    skips: Vec<Lsn>,
    unwritable: Said,
    /// Disconnected when the session has ended.
    session: Receiver<()>,
}

#[derive(Debug)]
struct Missing {
    tables: Vec<Wanted>,
    handover: Arc<Handover>,
    /// Of the catch-up.
    shared: Arc<Shared>,
}

impl Newcomers {
    pub fn new(
        opening: &Opening,
        progress: &Progress,
        (tables, skips): (Vec<Wanted>, Vec<Lsn>),
        (terms, mapping, identities): (Terms, Arc<Mapping>, Arc<Identities>),
        stream: Waker,
        session: Receiver<()>,
    ) -> Result<Newcomers, Error> {
        let missing = if tables.is_empty() {
            None
        } else {
            let shared = Arc::new(Shared::new(progress.end_lsn, progress.end_lsn).map_err(no_resources)?);
            let names = tables.iter().map(|wanted| &wanted.table).collect();
            let handover = Handover::new(names, progress.end_lsn, stream, shared.waker.clone());
            Some(Missing { tables, handover: Arc::new(handover), shared })
        };
        Ok(Newcomers {
            config: opening.config.clone(),
            epoch: progress.epoch,
            options: opening.options.clone(),
            chunks: opening.chunks.clone(),
            terms,
            mapping,
            identities,
            missing,
            skips,
            unwritable: opening.unwritable.clone(),
            session,
        })
    }

    /// Where the tables that are missing come into the stream.
    pub fn handover(&self) -> Option<Arc<Handover>> {
        self.missing.as_ref().map(|missing| missing.handover.clone())
    }

    /// Works until the session ends.
    ///
    /// # Errors
    /// [`Kind::TablesToCopy`] when there are other tables; a refusal when the publication is not what it has to be; [`Kind::DeferredDue`] when foreign keys can be made again; whatever
    /// keeps these tables from being copied.
    pub fn run(mut self) -> Result<(), Error> {
        if let Some(missing) = self.missing.take() {
            self.bring(missing)?;
        }
        self.watch()
    }

    /// Copies the tables, brings them up to the stream, and hands them over.
    fn bring(&self, missing: Missing) -> Result<(), Error> {
        let Missing { tables, handover, shared } = missing;
        let names: Vec<_> = tables.iter().map(|wanted| wanted.table.clone()).collect();
        let Some(slot) = self.copy(tables)? else { return Ok(()) };
        // Without an end the catch-up comes to one with the session.
        let (true, Some(at)) = (self.catch_up(slot, &names, &handover, shared)?, handover.at()) else { return Ok(()) };
        let (name, epoch) = (self.config.name.as_str(), self.epoch);
        postgres::new_runtime(STAGE)?.block_on(async {
            let target = postgres::connect(&self.config.target, STAGE).await?;
            postgres::prepare_target(&target, STAGE).await?;
            snapshot::hand_over(&target, name, epoch, names.iter(), at).await
        })?;
        tracing::info!(tables = names.len(), at = %at, "the stream takes over the tables that were copied beside it");
        handover.finish();
        Ok(())
    }

    /// Copies the tables, again and again where that may help: the stream of the others does not suffer for it. `None` where
    /// the session has ended.
    fn copy(&self, tables: Vec<Wanted>) -> Result<Option<SnapshotSlot>, Error> {
        let mut pause = PAUSE_MIN;
        loop {
            let over = Arc::new(AtomicBool::new(false));
            let order = Order {
                epoch: self.epoch,
                tables: tables.clone(),
                options: self.options.clone(),
                follows: Follows::CatchUp,
                done: self.chunks.clone(),
                over: over.clone(),
            };
            let error = match until(&self.session, &over, || snapshot::copy(&self.config, order)) {
                // A slot that could not start may do so when transactions on the primary have ended.
                Err(error) if goes_on_after(&error) => error.shown(&self.config.log),
                result => return result,
            };
            tracing::warn!(%error, retry_in = ?pause, "the copy beside the stream has ended; it will go on");
            if self.session.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return Ok(None);
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Brings what the slot streams of these tables, up to where they are handed over. False where the session has ended
    /// before.
    fn catch_up(
        &self,
        slot: SnapshotSlot,
        names: &[TableName],
        handover: &Arc<Handover>,
        shared: Arc<Shared>,
    ) -> Result<bool, Error> {
        let SnapshotSlot { connection, name, consistent_point } = slot;
        let runtime = postgres::new_runtime(STAGE)?;
        let crew = runtime.block_on(async {
            let (target, warnings) = postgres::connect_hearing(&self.config.target, STAGE).await?;
            let fires = postgres::prepare_target(&target, STAGE).await?;
            let options = apply_options(&self.config, fires, self.terms.source_generates);
            let moved: Vec<_> = names.iter().map(|table| (table.schema.clone(), table.name.clone())).collect();
            let (name, policies) = (self.config.name.as_str(), Policies::of(&self.config));
            let (moves, position) = (Moves::Tables(&moved), Position::new(consistent_point));
            let tenure = Tenure { name, epoch: self.epoch, moves, position: position.clone() };
            let applier = Applier::new((target, warnings), tenure, options, policies).await?;
            // Were it lost, the tables would be copied again.
            Crew::new((position, Begins::Durable), vec![applier], Duration::ZERO).await
        })?;
        let stream = self.terms.start(connection, &name, consistent_point, Streaming::Off)?;
        let input = Input::source(stream, None);
        tracing::info!(tables = names.len(), start_lsn = %consistent_point, "catching up with the stream");
        let known = Known::Same(self.identities.clone());
        let selection = Selection::new(Copied::default(), Beside::Only(handover.clone()), known);
        let transform = Transform::new(self.mapping.clone(), self.terms.binary);
        let skips = Skips::unrecorded(self.skips.clone());
        let start = Start { progress: consistent_point, selection, transform, skips, stop_at: None, early: None };
        shared.committed(Some(consistent_point), 0, 0);
        shared.confirm(Some(consistent_point));
        let workers = Workers::start(&self.config, Ends { input, start, crew, runtime }, shared.clone())?;
        workers.wait("catching up", &self.session)?;
        Ok(shared.phase() == Phase::Running)
    }

    /// Looks for tables to copy, and for foreign keys that can be made again, until the session ends. A server that cannot be
    /// asked is asked again: the stream, which has connections of its own, does not depend on it.
    fn watch(&mut self) -> Result<(), Error> {
        let runtime = postgres::new_runtime(STAGE)?;
        let mut servers = None;
        while self.session.recv_timeout(WATCH_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            match runtime.block_on(self.look(&mut servers)) {
                Ok(None) => {}
                Ok(Some(found)) => return Err(found),
                Err(error) => {
                    let error = error.shown(&self.config.log);
                    tracing::warn!(%error, "whether there are tables to copy is not known");
                    servers = None;
                }
            }
        }
        Ok(())
    }

    /// What the next session has to do, if anything.
    async fn look(&mut self, servers: &mut Option<(Client, Client)>) -> Result<Option<Error>, Error> {
        if servers.is_none() {
            let source = postgres::connect(&self.config.source, STAGE).await?;
            *servers = Some((source, postgres::connect(&self.config.target, STAGE).await?));
        }
        let Some((source, target)) = servers else { return Ok(None) };
        match self.unwritable.check(&self.config, source, STAGE).await {
            Err(error) if matches!(error.kind(), Kind::Refused { .. }) => return Ok(Some(error.to_be_waited_for())),
            checked => checked?,
        }
        match self.tables_to_copy(source, target).await {
            Ok(tables) if tables.is_empty() => {}
            Ok(tables) => return Ok(Some(Error::new(STAGE, Kind::TablesToCopy(tables)))),
            Err(refused) if matches!(refused.kind(), Kind::Refused { .. }) => return Ok(Some(refused)),
            Err(error) => return Err(error),
        }
        let deferred = snapshot::read_deferred(target, self.config.name.as_str()).await?;
        let is_due = deferred.iter().any(|one| one.due == Due::Now);
        Ok(is_due.then(|| Error::new(STAGE, Kind::DeferredDue)))
    }

    /// Tables, quoted, that are published and not on the target, or on the target and not published any more, or that are not
    /// those of which the target has rows. What is new in any other is kept.
    ///
    /// # Errors
    /// A refusal where the publication does not bring all that happens to rows, or a table cannot be copied again.
    async fn tables_to_copy(&self, source: &Client, target: &Client) -> Result<Vec<String>, Error> {
        let name = self.config.publication();
        let Some(publication) = Publication::read(source, Role::Source, &name, STAGE).await? else {
            // The stream ends by itself then.
            return Ok(Vec::new());
        };
        if publication.leaves_out_operations() {
            snapshot::leave(target, self.config.name.as_str(), &publication.tables).await?;
        }
        publication.check_operations(STAGE)?;
        let publication = publication.without_identity_of_bench(&self.config.tables);
        let position = Server::inspect(source, Role::Source, STAGE).await?.position;
        let is_ours = |table: &TableName| self.config.tables.selects(&table.schema, &table.name);
        let ours: Vec<_> = publication.tables.into_iter().filter(|one| is_ours(&one.table)).collect();
        let published: Vec<_> = ours.iter().map(|one| &one.table).collect();
        let (name, copy_data) = (self.config.name.as_str(), self.config.snapshot.copy_data);
        let states = snapshot::read(target, name).await?;
        let judged = snapshot::compare(source, name, &states, &ours, copy_data, position).await?;
        if !judged.replaced.is_empty() {
            return Ok(judged.replaced.iter().map(|(table, _)| table.to_string()).collect());
        }
        snapshot::settle(target, (name, self.epoch), &judged).await?;
        let is_missing = |table: &TableName| match states.iter().find(|state| state.table == *table) {
            Some(state) => state.is_missing(),
            None => self.config.snapshot.copy_data,
        };
        let has_left = |state: &&TableCopy| state.is_followed() && !published.contains(&&state.table);
        let joined = published.iter().filter(|table| is_missing(table)).map(|table| table.to_string());
        let left = states.iter().filter(has_left).map(|state| state.table.to_string());
        Ok(joined.chain(left).collect())
    }
}

/// Whether a copy that has ended so may be gone on with in this session.
fn goes_on_after(error: &Error) -> bool {
    match error.kind() {
        Kind::TimedOut { .. } => true,
        // They are not what the session has taken them for.
        Kind::TablesToCopy(_) => false,
        _ => error.disposition() != Disposition::Halt,
    }
}

/// Does something long, and has `over` become true meanwhile if the session ends.
fn until<T>(session: &Receiver<()>, over: &AtomicBool, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (done, is_done) = crossbeam_channel::bounded::<()>(0);
        scope.spawn(move || {
            crossbeam_channel::select! {
                recv(session) -> _ => over.store(true, Ordering::Release),
                recv(is_done) -> _ => {}
            }
        });
        let result = work();
        drop(done);
        result
    })
}
