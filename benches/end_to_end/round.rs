//! One load, once: the same backlog drained by every contender in turn.
//!
//! ```text
//!  tables ──► slots ──► load on A ──► replayed by B ──► for each contender: checkpoint, drain, compare ──► removed
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pgsluice_testkit::{Chain, Server, compare};
use tokio_postgres::Client;

use crate::common::contender::{CONTENDERS, Config, Contender, DATABASE, PUBLICATION, Running};
use crate::common::{process, slot};
use crate::load::Load;

/// The last rows of every load, one for each of two shards. When they are visible on C, so is everything before them.
const MARKER: &str = "CREATE TABLE marker (id int PRIMARY KEY); CREATE TABLE marker_too (id int PRIMARY KEY)";
/// Short against a drain, and little work for C.
const POLL_INTERVAL: Duration = Duration::from_millis(3);
const DRAIN_DEADLINE: Duration = Duration::from_secs(600);

/// What a drain took.
#[derive(Clone, Debug)]
pub struct Drained {
    pub contender: Contender,
    pub seconds: f64,
    pub cpu_b_s: f64,
    /// Without the session that looks for the marker; not known of the ceiling, which does not touch C.
    pub cpu_c_s: Option<f64>,
    pub cpu_engine_s: Option<f64>,
    pub peak_rss_bytes: Option<u64>,
    /// Written to the trail, where there is one.
    pub trail_bytes: Option<u64>,
    /// Why this drain does not count.
    pub void: Option<String>,
}

/// Runs the load and has every contender drain it, beginning with another one each round.
pub async fn run(chain: &Chain, load: &Load, rows: u64, round: usize) -> Result<Vec<Drained>> {
    let config = Config::write(chain)?;
    prepare(chain, load, rows).await?;
    let mut order: Vec<_> = contenders(load).collect();
    for contender in &order {
        contender.prepare(chain, &config).await.with_context(|| format!("prepare {}", contender.name()))?;
    }
    make_backlog(chain, load, rows).await?;
    let expected = checksums(&chain.a, DATABASE, load).await?;

    let turns = order.len();
    order.rotate_left(round % turns);
    let mut drained = Vec::new();
    for contender in order {
        let mut one = drain(chain, &config, contender).await.with_context(|| format!("drain {}", contender.name()))?;
        if let Some(database) = contender.database()
            && checksums(&chain.c, database, load).await? != expected
        {
            one.void.get_or_insert_with(|| "A and C differ".to_owned());
        }
        drained.push(one);
    }
    for contender in contenders(load) {
        contender.remove(chain, &config).await.with_context(|| format!("remove {}", contender.name()))?;
    }
    remove(chain, load).await?;
    Ok(drained)
}

/// Shards have something to share where there is more than one table.
fn contenders(load: &Load) -> impl Iterator<Item = Contender> {
    let is_divided = load.is_divided;
    CONTENDERS.into_iter().filter(move |contender| is_divided || *contender != Contender::Shards)
}

/// Tables with what is in them before the load, on A and in a database of C for every contender.
async fn prepare(chain: &Chain, load: &Load, rows: u64) -> Result<()> {
    let tables = load.tables.join(", ");
    let filled = format!("{MARKER}; {}; {}", load.schema, load.fill(rows));
    let publication = format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE {tables}, public.marker, public.marker_too");
    chain.a.sql(DATABASE, &format!("{filled}; {publication}")).await?;
    chain.a.sql(DATABASE, "VACUUM ANALYZE").await?;
    for database in contenders(load).filter_map(Contender::database) {
        chain.c.sql("postgres", &format!("CREATE DATABASE {database}")).await?;
        chain.c.sql(database, &format!("{filled}; {}", load.schema_of_c)).await?;
        chain.c.sql(database, "VACUUM ANALYZE").await?;
    }
    chain.wait_b_caught_up().await
}

async fn make_backlog(chain: &Chain, load: &Load, rows: u64) -> Result<()> {
    let session = chain.a.connect(DATABASE).await?;
    session.batch_execute("SET synchronous_commit = off").await?;
    session.batch_execute(&load.transactions(rows)).await?;
    session.batch_execute("SET synchronous_commit = on").await?;
    session.batch_execute("BEGIN; INSERT INTO marker VALUES (1); INSERT INTO marker_too VALUES (1); COMMIT").await?;
    chain.wait_b_caught_up().await?;
    chain.a.sql(DATABASE, "CHECKPOINT").await?;
    chain.wait_b_caught_up().await
}

async fn drain(chain: &Chain, config: &Config, contender: Contender) -> Result<Drained> {
    chain.b.sql("postgres", "CHECKPOINT").await?;
    chain.c.sql("postgres", "CHECKPOINT").await?;
    let stop_at = slot::position(&chain.b).await?;
    let watch = match contender.database() {
        Some(database) => Some(Watch::open(&chain.c, database).await?),
        None => None,
    };
    let (pid_b, pid_c) = (chain.b.pid().context("B runs")?, chain.c.pid().context("C runs")?);
    let watched = || watch.as_ref().map_or(Ok(0.0), |watch| process::cpu_s(watch.pid));
    let (cpu_b, cpu_c) = (process::tree_cpu_s(pid_b)?, process::tree_cpu_s(pid_c)? - watched()?);

    let start = Instant::now();
    let mut running = contender.start(chain, config, stop_at).await?;
    let ended = wait_for_end(&mut running, watch.as_ref(), start).await;
    let seconds = start.elapsed().as_secs_f64();

    let (cpu_b_s, cpu_c_s) = (process::tree_cpu_s(pid_b)? - cpu_b, process::tree_cpu_s(pid_c)? - watched()? - cpu_c);
    let (cpu_engine_s, peak_rss_bytes) = match &running {
        Running::Engine(engine) => (process::cpu_s(engine.pid()).ok(), process::peak_rss_bytes(engine.pid()).ok()),
        Running::Native | Running::Ceiling(_) => (None, None),
    };
    let stopped = contender.stop(chain, &running).await;
    let void = ended.and(stopped).err().map(|error| format!("{error:#}"));
    let cpu_c_s = watch.is_some().then_some(cpu_c_s);
    let trail_bytes = if contender == Contender::Trail { Some(config.trail_bytes()?) } else { None };
    Ok(Drained { contender, seconds, cpu_b_s, cpu_c_s, cpu_engine_s, peak_rss_bytes, trail_bytes, void })
}

async fn wait_for_end(running: &mut Running, watch: Option<&Watch>, start: Instant) -> Result<()> {
    if let Running::Ceiling(reading) = running {
        return reading.await?.map(drop);
    }
    let watch = watch.context("whoever writes is watched")?;
    while !watch.sees_marker().await? {
        if let Running::Engine(engine) = running
            && !engine.is_running()
        {
            bail!("the engine has ended: {}", engine.stderr());
        }
        if start.elapsed() > DRAIN_DEADLINE {
            bail!("no marker after {DRAIN_DEADLINE:?}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// A session on C that looks for the marker.
struct Watch {
    session: Client,
    look: tokio_postgres::Statement,
    pid: u32,
}

impl Watch {
    async fn open(c: &Server, database: &str) -> Result<Watch> {
        let session = c.connect(database).await?;
        let look = session.prepare("SELECT FROM marker, marker_too").await?;
        let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        Ok(Watch { session, look, pid: pid.cast_unsigned() })
    }

    async fn sees_marker(&self) -> Result<bool> {
        Ok(self.session.query_opt(&self.look, &[]).await?.is_some())
    }
}

async fn checksums(server: &Server, database: &str, load: &Load) -> Result<Vec<String>> {
    let mut sums = Vec::new();
    for table in load.tables {
        sums.push(compare::checksum(server, database, table).await?);
    }
    Ok(sums)
}

async fn remove(chain: &Chain, load: &Load) -> Result<()> {
    let schema = format!("DROP PUBLICATION {PUBLICATION}; DROP SCHEMA public CASCADE; CREATE SCHEMA public");
    chain.a.sql(DATABASE, &schema).await?;
    for database in contenders(load).filter_map(Contender::database) {
        chain.c.sql("postgres", &format!("DROP DATABASE {database} WITH (FORCE)")).await?;
    }
    chain.wait_b_caught_up().await
}
