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
mod slot;
mod teardown;
mod trail;

use std::time::{Duration, Instant};

use pgsluice_proto::{Lsn, TimelineId};
use tokio_postgres::Client;

pub use self::by_hand::sql;
pub use self::teardown::tear_down;
use crate::checkpoint::{self, Progress};
use crate::config::{Config, Role, TrailConfig};
use crate::error::{Error, Kind, Stage};
use crate::pipeline::{self, Whose};
use crate::postgres;
use crate::schema::compare::{self, Weight};
use crate::shards;
use crate::source::publication::{self, Heartbeat, Publication, PublishedTable};
use crate::source::server::Server;
use crate::source::slot::SlotState;
use crate::source::{Connection, CreatedSlot};
use crate::trail::Lock;
use crate::transform::Mapping;

const STAGE: Stage = Stage::Setup;
/// How often a condition on another server is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// One thing that setup or teardown looked after.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Step {
    /// What and where.
    pub object: String,
    pub state: StepState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    Created,
    Present,
    Removed,
    Absent,
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
        let source = postgres::connect(&config.source, STAGE).await?;
        let source_facts = Server::inspect(&source, Role::Source, STAGE).await?;
        source_facts.check_decodable(STAGE)?;
        pipeline::check_heartbeat(config, &source_facts, STAGE)?;
        for warning in source_facts.warnings() {
            tracing::warn!("{warning}");
        }
        let publisher = match &config.primary {
            Some(endpoint) => {
                let client = postgres::connect(endpoint, STAGE).await?;
                let facts = Server::inspect(&client, Role::Primary, STAGE).await?;
                check_primary(&facts, &source_facts)?;
                Some((client, facts))
            }
            None if source_facts.in_recovery => None,
            None => {
                let client = postgres::connect(&config.source, STAGE).await?;
                Some((client, source_facts.clone()))
            }
        };
        let target = postgres::connect(&config.target, STAGE).await?;
        Ok(Servers { source, source_facts, publisher, target })
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
pub async fn set_up(config: &Config, limit: Duration) -> Result<Vec<Step>, Error> {
    let shards = config.split();
    let mut prepared = Vec::new();
    for config in &shards {
        prepared.push(prepare(config).await?);
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

async fn prepare(config: &Config) -> Result<Prepared, Error> {
    let servers = Servers::connect(config).await?;
    shards::check_split(&servers.target, config, STAGE).await?;
    if config.shard().is_some() {
        let constraints_fire = postgres::prepare_target(&servers.target, STAGE).await?;
        shards::check_order(config, constraints_fire, STAGE)?;
    }
    let all = publication::select_tables(&servers.source, Role::Source, &config.tables, STAGE).await?;
    let mapping = shards::mapping(config, &all, STAGE)?;
    let mut tables = all;
    tables.retain(|published| config.tables.selects(&published.table.schema, &published.table.name));
    warn_of_missing_identity(&tables);
    warn_of_partitions(&tables);
    check_target_tables(&servers.source, &servers.target, &tables, &mapping).await?;
    pipeline::check_conflicts(&servers.target, config, &tables, &mapping).await?;
    let progress = checkpoint::read(&servers.target, config.name.as_str()).await?;
    if let Some(trail) = config.trail.as_ref().filter(|_| config.only_applies()) {
        trail::check_publication(config, &servers.source, &tables).await?;
        trail::check_progress(config, trail, &servers, progress.as_ref())?;
        return Ok(Prepared { servers, tables, is_present: progress.is_some(), lock: None });
    }
    let existing = SlotState::read(&servers.source, Role::Source, &config.slot(), STAGE).await?;
    check_slot_and_progress(config, &servers, existing.as_ref(), progress.as_ref())?;
    // Whoever captures makes one for a slot that is there.
    let lock = match &config.trail {
        Some(trail) if existing.is_none() => Some(trail::prepare(trail)?),
        Some(_) | None => None,
    };
    Ok(Prepared { servers, tables, is_present: existing.is_some(), lock })
}

async fn make(config: &Config, prepared: Prepared, limit: Duration) -> Result<Vec<Step>, Error> {
    let Prepared { servers, tables, is_present, lock } = prepared;
    if let Some(trail) = config.trail.as_ref().filter(|_| config.only_applies()) {
        return make_reader(config, trail, &servers, is_present).await;
    }
    let deadline = Instant::now() + limit;
    let mut steps = Vec::new();
    steps.push(ensure_publication(config, &servers, &tables, deadline, limit).await?);
    let schema_present = checkpoint::create_schema(&servers.target).await?;
    steps.push(step("schema pgsluice on the target", schema_present));
    let slot_name = format!("slot {} on the source", config.slot());
    let row_name = format!("progress row {} on the target", config.name.as_str());
    if is_present {
        steps.extend([step(slot_name, true), step(row_name, true)]);
        return Ok(steps);
    }
    let (slot, timeline) = slot::create(config, &servers, deadline, limit).await?;
    steps.push(step(slot_name, false));
    let made = make_trail_and_progress(config, &servers, lock.as_ref(), (&slot, timeline)).await;
    match made {
        Ok(trail) => steps.extend(trail),
        Err(error) => {
            slot::remove(config).await?;
            if let (Some(trail), Some(lock)) = (&config.trail, &lock) {
                crate::trail::remove(trail, lock)?;
            }
            return Err(error);
        }
    }
    steps.push(step(row_name, false));
    Ok(steps)
}

async fn make_trail_and_progress(
    config: &Config,
    servers: &Servers,
    lock: Option<&Lock>,
    (slot, timeline): (&CreatedSlot, TimelineId),
) -> Result<Option<Step>, Error> {
    let mut made = None;
    if let (Some(trail), Some(lock)) = (&config.trail, lock) {
        let system_identifier = &servers.source_facts.system_identifier;
        made = Some(trail::create(config, (trail, lock), system_identifier, (slot, timeline))?);
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
        create_progress(config, servers, &trail::first_progress(config, trail)?).await?;
    }
    Ok(vec![step("schema pgsluice on the target", schema_present), step(row, is_present)])
}

fn step(object: impl Into<String>, present: bool) -> Step {
    Step { object: object.into(), state: if present { StepState::Present } else { StepState::Created } }
}

fn warn_of_missing_identity(tables: &[PublishedTable]) {
    for published in tables.iter().filter(|published| !published.has_identity()) {
        let table = &published.table;
        tracing::warn!(
            "{table} has no replica identity: once it is published, PostgreSQL refuses every UPDATE and DELETE of it on \
             the primary. If there are any: ALTER TABLE {table} REPLICA IDENTITY FULL, or give it a primary key"
        );
    }
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
    source: &Client,
    target: &Client,
    tables: &[PublishedTable],
    mapping: &Mapping,
) -> Result<(), Error> {
    let names: Vec<_> = tables.iter().map(|published| published.table.clone()).collect();
    let mut missing = Vec::new();
    for (table, differences) in compare::tables(source, target, &names, mapping, STAGE).await? {
        let Some(differences) = differences else {
            missing.push(format!("the target has no table {}", mapping.target(table)));
            continue;
        };
        for difference in differences {
            match difference.weight {
                Weight::Missing => missing.push(difference.what),
                Weight::Conflict => tracing::warn!("{difference}: rows that do not fit will be refused there"),
                Weight::Harmless => {}
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
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
            pipeline::check_gap(config, Whose::Target, progress, slot)
        }
        (Some(_), None) => Err(Error::refused(
            STAGE,
            format!("slot \"{name}\" exists on the source, but the target has no progress for it"),
            "it is left from a setup that was broken off, or from another target: `pgsluice teardown`, then setup; or \
             change `name`",
        )),
        (None, Some(_)) => Err(Error::refused(
            STAGE,
            format!("the target has progress \"{}\", but slot \"{name}\" is gone from the source", config.name),
            "changes since then are not in a new slot: `pgsluice teardown`, then setup, and copy the tables again",
        )),
    }
}

async fn ensure_publication(
    config: &Config,
    servers: &Servers,
    tables: &[PublishedTable],
    deadline: Instant,
    limit: Duration,
) -> Result<Step, Error> {
    let name = config.publication();
    let object = format!("publication {name}");
    let with_heartbeat = config.stream.heartbeat.is_some();
    let make = |heartbeat| publication::create_sql(&name, tables, heartbeat);
    let heartbeat = if with_heartbeat { Heartbeat::Present } else { Heartbeat::None };
    let mut present = true;
    if let Some((client, facts)) = &servers.publisher {
        let failed = |error| Error::from_postgres(STAGE, facts.role, error);
        if with_heartbeat {
            publication::create_heartbeat(client).await.map_err(failed)?;
        }
        match Publication::read(client, facts.role, &name, STAGE).await? {
            Some(found) => {
                found.check(&config.tables, tables, STAGE)?;
                if with_heartbeat && !found.has_heartbeat {
                    client.batch_execute(&publication::add_heartbeat_sql(&name)).await.map_err(failed)?;
                    present = false;
                }
            }
            None => {
                client.batch_execute(&make(heartbeat)).await.map_err(failed)?;
                present = false;
            }
        }
        let written = Server::inspect(client, facts.role, STAGE).await?.position;
        wait_for_replay(&servers.source, written, deadline, limit).await?;
    }
    match Publication::read(&servers.source, Role::Source, &name, STAGE).await? {
        Some(found) => {
            found.check(&config.tables, tables, STAGE)?;
            check_published_columns(config, &servers.source, &found).await?;
        }
        None => {
            return Err(Error::refused(
                STAGE,
                format!("publication \"{name}\" does not exist, and there is no [primary] to make it on"),
                format!("on the primary, as the owner of the tables: {}; then run setup again", make(Heartbeat::None)),
            ));
        }
    }
    Ok(step(object, present))
}

/// Rules that fit the tables must fit what of them is published too.
async fn check_published_columns(config: &Config, source: &Client, publication: &Publication) -> Result<(), Error> {
    let mut tables = publication.tables.clone();
    if config.shard().is_some() {
        // What other shards publish is theirs to check, and rules may be about nothing else.
        let all = publication::select_tables(source, Role::Source, &config.tables, STAGE).await?;
        tables.extend(all.into_iter().filter(|one| !publication.tables.iter().any(|own| own.table == one.table)));
    }
    let Err(errors) = Mapping::new(&config.rules, &tables) else { return Ok(()) };
    let what: Vec<_> = errors.iter().map(ToString::to_string).collect();
    Err(Error::refused(
        STAGE,
        format!("publication \"{}\" leaves out columns that rules need:\n{}", publication.name, what.join("\n")),
        "on the primary: ALTER PUBLICATION … SET TABLE, with lists that hold these columns, or without lists; what was left \
         out until then has to be copied",
    ))
}

/// Waits until the source has replayed what the primary wrote before `lsn`.
async fn wait_for_replay(source: &Client, lsn: Lsn, deadline: Instant, limit: Duration) -> Result<(), Error> {
    loop {
        let position = Server::inspect(source, Role::Source, STAGE).await?.position;
        if position >= lsn {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let what = format!("replay of {lsn} by the source, which stands at {position},");
            let mend = "look at pg_stat_wal_receiver on the standby: is it connected to the primary?";
            return Err(timed_out(what, limit, mend));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn timed_out(what: String, limit: Duration, mend: impl Into<String>) -> Error {
    let limit = humantime::format_duration(limit).to_string();
    Error::new(STAGE, Kind::TimedOut { what, limit, mend: mend.into() })
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
