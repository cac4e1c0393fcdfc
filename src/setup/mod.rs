//! Makes what a replication needs on the three servers, and takes it away again.
//!
//! ```text
//!  check everything ──► publication on A ──► replayed by B ──► schema on C ──► slot on B ──► its trail ──► progress row on C
//! ```
//!
//! **Always holds:**
//! - Nothing is made before every check that can be made has passed.
//! - The publication is seen on the server that decodes before the slot is made there: a slot that is older than its
//!   publication would stream without the tables' rows, and say no more than a warning.
//! - The progress row is the last thing made. `run` refuses without it, so nothing starts from half a setup.

mod by_hand;
mod loss;
mod publication;
mod slot;
mod teardown;
mod trail;
mod writable;

use std::time::{Duration, Instant};

use pgsluice_proto::TimelineId;
use tokio_postgres::Client;

pub use self::by_hand::sql;
pub use self::loss::{Loss, on_existing as losses_on_existing, resync as losses_of_resync};
use self::publication::Made;
pub use self::teardown::{Removal, TornDown, plan_teardown};
use crate::checkpoint::{self, Progress};
use crate::config::{Config, Endpoint, Pattern, Role, TrailConfig};
use crate::error::{Error, Kind, Stage};
use crate::pipeline::{self, Whose};
use crate::postgres::{self, quote_ident};
use crate::preflight;
use crate::schema::compare::{self, Weight};
use crate::shards;
use crate::source::publication::{Publication, PublishedTable, select_tables};
use crate::source::server::{Server, outdated};
use crate::source::slot::SlotState;
use crate::source::{Connection, CreatedSlot};
use crate::trail::Lock;
use crate::transform::Mapping;

const STAGE: Stage = Stage::Setup;

/// One thing that setup or teardown looked after.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Step {
    /// What and where.
    pub object: String,
    pub state: StepState,
    /// For whoever may, where it is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sql: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    Created,
    Present,
    Removed,
    Absent,
    /// It is there, and not ours to remove.
    Left,
}

/// The servers, connected and found to fit together.
struct Servers {
    source: Client,
    source_facts: Server,
    /// A session to the server that publishes, where we have one: the primary, or a source that is one.
    publisher: Option<(Client, Server)>,
    target: Client,
}

impl Servers {
    async fn connect(config: &Config) -> Result<Servers, Error> {
        let source = connect(&config.source).await?;
        let source_facts = Server::inspect(&source, Role::Source, STAGE).await?;
        source_facts.check_decodable(STAGE)?;
        pipeline::check_heartbeat(config, &source_facts, STAGE)?;
        for warning in source_facts.warnings() {
            tracing::warn!("{warning}");
        }
        let publisher = match &config.primary {
            Some(endpoint) => {
                let client = connect(endpoint).await?;
                let facts = Server::inspect(&client, Role::Primary, STAGE).await?;
                check_primary(&facts, &source_facts)?;
                warn_of_outdated(facts.role, facts.version);
                Some((client, facts))
            }
            None if source_facts.in_recovery => None,
            None => {
                let client = postgres::connect(&config.source, STAGE).await?;
                Some((client, source_facts.clone()))
            }
        };
        let target = connect(&config.target).await?;
        let version = "SELECT current_setting('server_version_num')::int";
        let version = target.query_one(version, &[]).await.and_then(|row| row.try_get::<_, i32>(0));
        let version = version.map_err(|error| Error::from_postgres(STAGE, Role::Target, error))?;
        warn_of_outdated(Role::Target, version.unsigned_abs());
        let progress = checkpoint::read(&target, config.name.as_str()).await?;
        preflight::check_target(config, (&source, &target), progress.as_ref(), STAGE).await?;
        Ok(Servers { source, source_facts, publisher, target })
    }

    /// Where the tables and their publication are as they are now, as far as we see.
    fn publishing(&self) -> (&Client, Role) {
        match &self.publisher {
            Some((client, facts)) => (client, facts.role),
            None => (&self.source, Role::Source),
        }
    }
}

/// A session that stays one of the server.
async fn connect(endpoint: &Endpoint) -> Result<Client, Error> {
    let client = postgres::connect(endpoint, STAGE).await?;
    postgres::check_unpooled(endpoint, &client, STAGE).await?;
    Ok(client)
}

fn warn_of_outdated(role: Role, version: u32) {
    if let Some(warning) = outdated(role, version) {
        tracing::warn!("{warning}");
    }
}

/// # Errors
/// A refusal if the source does not descend from this server, or this server cannot feed a decoder.
fn check_primary(primary: &Server, source: &Server) -> Result<(), Error> {
    if primary.system_identifier != source.system_identifier {
        return Err(Error::refused(
            STAGE,
            format!(
                "the source is not a standby of the primary: their system identifiers are {} and {}",
                source.system_identifier, primary.system_identifier
            ),
            "correct the dsn in [source] or [primary]",
        ));
    }
    if primary.in_recovery && !source.in_recovery {
        return Err(Error::refused(
            STAGE,
            "[source] and [primary] are swapped: [primary] names a standby, and [source] the server that takes writes",
            "exchange the two",
        ));
    }
    if primary.in_recovery {
        return Err(Error::refused(
            STAGE,
            "[primary] names a server that is a standby itself",
            "name the server that takes writes; a cascading standby is a [source]",
        ));
    }
    primary.check_wal_level(STAGE)
}

/// Makes whatever is missing, shard by shard; what is there already is checked.
///
/// # Errors
/// A refusal before anything is made; [`Kind::TimedOut`] if another server does not get there within `limit`, which each shard
/// has for itself.
///
/// Tables that match a pattern of `allow_unwritable` may be such that the primary refuses their UPDATEs and DELETEs.
pub async fn set_up(config: &Config, limit: Duration, allow_unwritable: &[Pattern]) -> Result<Vec<Step>, Error> {
    let shards = config.split();
    let mut prepared = Vec::new();
    for config in &shards {
        prepared.push(prepare(config, limit, allow_unwritable).await?);
    }
    let mut steps: Vec<Step> = Vec::new();
    for (config, prepared) in shards.iter().zip(prepared) {
        for step in make(config, prepared, limit).await? {
            // Of what several have, the first one says whether it was there.
            if !steps.iter().any(|known| known.object == step.object) {
                steps.push(step);
            }
        }
    }
    Ok(steps)
}

/// What can be made, since every check has passed.
struct Prepared {
    servers: Servers,
    /// Those of this shard.
    tables: Vec<PublishedTable>,
    /// The slot is there; of a target that only applies, its progress.
    is_present: bool,
    /// Of the trail that is to be made.
    lock: Option<Lock>,
}

async fn prepare(config: &Config, limit: Duration, allow_unwritable: &[Pattern]) -> Result<Prepared, Error> {
    let servers = Servers::connect(config).await?;
    shards::check_split(&servers.target, config, STAGE).await?;
    preflight::wait_for_sight(config, &servers.source, limit, STAGE).await?;
    if config.shard().is_some() {
        let constraints_fire = postgres::prepare_target(&servers.target, STAGE).await?;
        shards::check_order(config, constraints_fire, STAGE)?;
    }
    let all = select_tables(&servers.source, Role::Source, &config.tables, STAGE).await?;
    let mapping = shards::mapping(config, &all, STAGE)?;
    let mut tables = all;
    tables.retain(|published| config.tables.selects(&published.table.schema, &published.table.name));
    for unwritable in writable::check(servers.publishing(), config, &tables, allow_unwritable).await? {
        tracing::warn!("{unwritable}; if there are any: {}", unwritable.mend());
    }
    warn_of_partitions(&tables);
    check_target_tables(config, &servers, &tables, &mapping).await?;
    preflight::check_written_tables(&servers.target, config, &tables, &mapping).await?;
    preflight::check_circle(&servers.source, &servers.target, &tables, STAGE).await?;
    pipeline::check_kept(&servers.target, &mapping).await?;
    pipeline::check_conflicts(&servers.target, config, &tables, &mapping).await?;
    check_schema_rights(config, &servers.target).await?;
    let progress = checkpoint::read(&servers.target, config.name.as_str()).await?;
    if let Some(trail) = config.trail.as_ref().filter(|_| config.only_applies()) {
        trail::check_publication(config, &servers.source, &tables).await?;
        trail::check_progress(config, trail, &servers, progress.as_ref()).await?;
        return Ok(Prepared { servers, tables, is_present: progress.is_some(), lock: None });
    }
    let existing = SlotState::read(&servers.source, Role::Source, &config.slot(), STAGE).await?;
    check_slot_and_progress(config, &servers, existing.as_ref(), progress.as_ref())?;
    let lock = match (&config.trail, &existing, &progress) {
        (Some(trail), None, _) => Some(trail::prepare(trail)?),
        (Some(trail), Some(slot), Some(progress)) => {
            trail::check(config, (trail, &servers.target), (slot, progress)).await?
        }
        (Some(_), Some(_), None) | (None, _, _) => None,
    };
    Ok(Prepared { servers, tables, is_present: existing.is_some(), lock })
}

async fn make(config: &Config, prepared: Prepared, limit: Duration) -> Result<Vec<Step>, Error> {
    let Prepared { servers, tables, is_present, lock } = prepared;
    if let Some(trail) = config.trail.as_ref().filter(|_| config.only_applies()) {
        return make_reader(config, trail, &servers, is_present).await;
    }
    let (mut made, mut has_schema) = (Made::default(), true);
    let parts = Parts { config, servers: &servers, tables: &tables, is_present, lock: lock.as_ref() };
    let steps = parts.make(limit, (&mut made, &mut has_schema)).await;
    if steps.is_err() {
        made.undo(config, &servers).await;
        if !has_schema {
            undo_schema(config, &servers.target).await;
        }
    }
    steps
}

/// What one replication is made of.
struct Parts<'a> {
    config: &'a Config,
    servers: &'a Servers,
    tables: &'a [PublishedTable],
    /// As in [`Prepared`].
    is_present: bool,
    lock: Option<&'a Lock>,
}

impl Parts<'_> {
    /// Says as it goes what it has made that was not there before.
    async fn make(&self, limit: Duration, (made, has_schema): (&mut Made, &mut bool)) -> Result<Vec<Step>, Error> {
        let Parts { config, servers, tables, is_present, lock } = *self;
        let deadline = Instant::now() + limit;
        let mut steps = Vec::new();
        steps.push(publication::ensure(config, servers, tables, (deadline, limit), made).await?);
        *has_schema = has_own_schema(&servers.target).await?;
        let schema_present = checkpoint::create_schema(&servers.target).await?;
        steps.push(step("schema pgsluice on the target", schema_present));
        let slot_name = format!("slot {} on the source", config.slot());
        let row_name = format!("progress row {} on the target", config.name.as_str());
        if is_present {
            steps.extend([step(slot_name, true), step(row_name, true)]);
            if let (Some(trail), Some(lock)) = (&config.trail, lock) {
                steps.push(trail::begin_at_slot(config, servers, (trail, lock)).await?);
            }
            return Ok(steps);
        }
        let (slot, timeline) = slot::create(config, servers, deadline, limit).await?;
        steps.push(step(slot_name, false));
        let trail = make_trail_and_progress(config, servers, lock, (&slot, timeline)).await;
        if trail.is_err() {
            slot::remove(config).await?;
            if let (Some(trail), Some(lock)) = (&config.trail, lock) {
                crate::trail::remove(trail, lock)?;
            }
        }
        steps.extend(trail?);
        steps.push(step(row_name, false));
        Ok(steps)
    }
}

async fn has_own_schema(target: &Client) -> Result<bool, Error> {
    let failed = |error| Error::from_postgres(STAGE, Role::Target, error);
    let row = target.query_one("SELECT to_regnamespace('pgsluice') IS NOT NULL", &[]).await.map_err(failed)?;
    row.try_get(0).map_err(failed)
}

/// Takes the schema away again that this setup has made and cannot use.
async fn undo_schema(config: &Config, target: &Client) {
    // A transaction of ours may have failed in it.
    let removed = match target.batch_execute("ROLLBACK").await {
        Ok(()) => checkpoint::remove(target, config.name.as_str()).await.map(drop),
        Err(error) => Err(Error::from_postgres(STAGE, Role::Target, error)),
    };
    if let Err(error) = removed {
        tracing::warn!("schema pgsluice, which this setup has made on the target, is still there: {error}");
    }
}

/// # Errors
/// A refusal, with what to grant, if the role may not make the schema and its tables.
async fn check_schema_rights(config: &Config, target: &Client) -> Result<(), Error> {
    let failed = |error| Error::from_postgres(STAGE, Role::Target, error);
    let sql = "SELECT has_database_privilege(current_database(), 'CREATE'), current_database()::text";
    let row = target.query_one(sql, &[]).await.map_err(failed)?;
    if row.try_get(0).map_err(failed)? || has_own_schema(target).await? {
        return Ok(());
    }
    let (user, database) = (quote_ident(&config.target.user), quote_ident(row.try_get(1).map_err(failed)?));
    Err(Error::refused(
        STAGE,
        format!("role {user} may not make schema pgsluice on the target ({})", config.target.place()),
        format!(
            "there: GRANT CREATE ON DATABASE {database} TO {user}; or have its SQL run, which setup --print-sql prints"
        ),
    ))
}

async fn make_trail_and_progress(
    config: &Config,
    servers: &Servers,
    lock: Option<&Lock>,
    (slot, timeline): (&CreatedSlot, TimelineId),
) -> Result<Option<Step>, Error> {
    let mut made = None;
    if let (Some(trail), Some(lock)) = (&config.trail, lock) {
        made = Some(trail::create(config, servers, (trail, lock), (slot, timeline)).await?);
    }
    create_progress(config, servers, &first_progress(config, servers, slot, timeline)).await?;
    Ok(made)
}

/// For another target of a trail: nothing but where it begins.
async fn make_reader(
    config: &Config,
    trail: &TrailConfig,
    servers: &Servers,
    is_present: bool,
) -> Result<Vec<Step>, Error> {
    let schema_present = checkpoint::create_schema(&servers.target).await?;
    let row = format!("progress row {} on the target", config.name.as_str());
    if !is_present {
        trail::make_reader(config, trail, servers).await?;
    }
    Ok(vec![step("schema pgsluice on the target", schema_present), step(row, is_present)])
}

fn step(object: impl Into<String>, present: bool) -> Step {
    Step { object: object.into(), state: if present { StepState::Present } else { StepState::Created }, sql: None }
}

fn warn_of_partitions(tables: &[PublishedTable]) {
    for published in tables.iter().filter(|published| published.is_partitioned) {
        tracing::warn!(
            "{} is partitioned and published through its root: PostgreSQL does not replicate the TRUNCATE of a single \
             partition then; delete its rows instead",
            published.table
        );
    }
}

/// Values travel as text where types differ, and may well be taken: that is only warned of.
///
/// # Errors
/// A refusal that names every table and column that the target lacks.
async fn check_target_tables(
    config: &Config,
    servers: &Servers,
    tables: &[PublishedTable],
    mapping: &Mapping,
) -> Result<(), Error> {
    let Servers { source, target, .. } = servers;
    let names: Vec<_> = tables.iter().map(|published| published.table.clone()).collect();
    // Once there is a publication, it says which columns are sent.
    let published = Publication::read(source, Role::Source, &config.publication(), STAGE).await?;
    let sent = compare::Sent::of(published.iter().flat_map(|publication| &publication.tables));
    let (mut missing, mut losses) = (Vec::new(), Vec::new());
    for (table, differences) in compare::tables(source, target, &names, (mapping, &sent), STAGE).await? {
        let Some(differences) = differences else {
            missing.push(format!("the target has no table {}", mapping.target(table)));
            continue;
        };
        for difference in differences {
            match difference.weight {
                Weight::Missing => missing.push(difference.what),
                Weight::Loss => losses.push(difference.what),
                Weight::Conflict => tracing::warn!("{difference}: {}", difference.consequence),
                Weight::Harmless => {}
            }
        }
    }
    if missing.is_empty() && losses.is_empty() {
        return Ok(());
    }
    if missing.is_empty() {
        return Err(Error::refused(STAGE, losses.join("; "), compare::LOSS_MEND));
    }
    missing.append(&mut losses);
    Err(Error::refused(
        STAGE,
        missing.join("; "),
        "make them on the target as they are on the source, or as rules have them (`pgsluice schema` makes tables that are \
         not there and that rules leave their shape), or exclude the tables",
    ))
}

/// # Errors
/// A refusal if a slot or a progress row from before cannot be gone on with.
fn check_slot_and_progress(
    config: &Config,
    servers: &Servers,
    slot: Option<&SlotState>,
    progress: Option<&Progress>,
) -> Result<(), Error> {
    let name = config.slot();
    match (slot, progress) {
        (None, None) => Ok(()),
        (Some(slot), Some(progress)) => {
            slot.check(&servers.source_facts.database, STAGE)?;
            pipeline::check_identity(Whose::Target, progress, &servers.source_facts.system_identifier)?;
            // A slot that has a trail may be ahead of the target, and is compared with the trail.
            if config.trail.is_some() { Ok(()) } else { pipeline::check_gap(config, Whose::Target, progress, slot) }
        }
        (Some(_), None) => Err(Error::refused(
            STAGE,
            format!(
                "slot \"{name}\" exists on the source, but the target ({}) has no progress for it",
                config.target.place()
            ),
            "if [target] is not the one that it was set up for, correct the dsn, or choose another `name`: the slot holds what \
             that one has not got yet. If it is left from a setup that was broken off, `pgsluice teardown`, then setup",
        )),
        (None, Some(_)) => Err(Error::refused(
            STAGE,
            format!("the target has progress \"{}\", but slot \"{name}\" is gone from the source", config.name),
            "changes since then are not in a new slot: `pgsluice teardown`, then setup, and copy the tables again",
        )),
    }
}

/// Does something over a replication connection to the source, which blocks, on a thread that may. It begins at once,
/// whether or not anybody waits yet.
fn on_replication_connection<T, F>(config: &Config, work: F) -> impl Future<Output = Result<T, Error>> + use<T, F>
where
    T: Send + 'static,
    F: FnOnce(&mut Connection) -> Result<T, Error> + Send + 'static,
{
    let endpoint = config.source.clone();
    let working = tokio::task::spawn_blocking(move || work(&mut Connection::connect(&endpoint)?));
    async { working.await.unwrap_or_else(|_| Err(Error::new(STAGE, Kind::Panicked))) }
}

fn first_progress(config: &Config, servers: &Servers, slot: &CreatedSlot, timeline: TimelineId) -> Progress {
    Progress {
        system_identifier: servers.source_facts.system_identifier.clone(),
        timeline,
        slot: config.slot(),
        consistent_point: slot.consistent_point,
        end_lsn: slot.consistent_point,
        commit_time: None,
        epoch: 0,
        fallbacks: 0,
    }
}

async fn create_progress(config: &Config, servers: &Servers, progress: &Progress) -> Result<(), Error> {
    let failed = |error| Error::from_postgres(STAGE, Role::Target, error);
    servers.target.batch_execute("BEGIN").await.map_err(failed)?;
    if let Some(shard) = config.shard() {
        let record = shards::record_sql(shard, config.name.as_str());
        servers.target.batch_execute(&record).await.map_err(failed)?;
    }
    checkpoint::create(&servers.target, config.name.as_str(), progress).await?;
    servers.target.batch_execute("COMMIT").await.map_err(failed)
}
