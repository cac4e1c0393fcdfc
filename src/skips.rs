//! Transactions of the source that a person wants to be passed over: asked for, taken back, listed.
//!
//! In: the LSN of a commit record. Out: a row of `pgsluice.skips` on the target, which the engine finishes in the transaction
//! that moves progress past it.
//!
//! **Always holds:** what is asked for lies at or behind progress at that moment, and progress cannot pass it unseen: the
//! statement that moves it looks for such rows, and takes its snapshot when it has the lock that we hold meanwhile.
//!
//! With shards it is asked of each that has not passed it. One that has no such transaction settles that with a row that is done
//! and has no `xid`, as long as another may have it; the last of them refuses.

use pgsluice_proto::Lsn;
use serde::Serialize;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use crate::checkpoint;
use crate::config::{Config, Role};
use crate::error::{Error, Kind, Stage};
use crate::postgres;
use crate::preflight;
use crate::shards;
use crate::source::server::Server;

const STAGE: Stage = Stage::Checkpoint;

/// A run that applies a long transaction is not waited for, nor do others wait for us long meanwhile.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '5s'; LOCK TABLE pgsluice.progress IN SHARE ROW EXCLUSIVE MODE";

/// A transaction that is to be passed over, or was.
#[derive(Clone, Debug, Serialize)]
pub struct Skip {
    /// Of its commit record.
    pub commit_lsn: String,
    /// That is to pass it over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<usize>,
    pub requested_by: String,
    pub requested_at: String,
    /// When the target was past it.
    pub done_at: Option<String>,
    pub xid: Option<i64>,
    pub commit_time: Option<String>,
    /// That were left out.
    pub changes: Option<i64>,
}

/// What asking came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Now,
    Before,
}

/// Asks for the transaction whose commit record is at `lsn` to be passed over, by all shards or the one that there is.
///
/// # Errors
/// A refusal if it is on the target already.
pub async fn ask(shards: &[Config], lsn: Lsn) -> Result<Asked, Error> {
    check_target(shards).await?;
    let client = connect(shards).await?;
    check_is_written(shards, lsn).await?;
    let commit_lsn = PgLsn::from(lsn.as_u64());
    client.batch_execute(BEGIN).await.map_err(|error| match error.code() {
        Some(&SqlState::LOCK_NOT_AVAILABLE) => busy(),
        Some(_) | None => failed(error),
    })?;
    let (mut names, mut past) = (Vec::new(), Vec::new());
    for config in shards {
        let name = config.name.as_str();
        let Some(progress) = checkpoint::read(&client, name).await? else { return Err(no_progress(config)) };
        if lsn < progress.end_lsn { past.push((name, progress.end_lsn)) } else { names.push(name) }
    }
    if names.is_empty() {
        let known = list_all(&client, shards).await?;
        let end_lsn = past.iter().map(|(_, end_lsn)| *end_lsn).min().unwrap_or(lsn);
        return Err(passed(&known, lsn, end_lsn));
    }
    let sql =
        "INSERT INTO pgsluice.skips (name, commit_lsn) SELECT n, $2 FROM unnest($1::text[]) n ON CONFLICT DO NOTHING";
    let added = client.execute(sql, &[&names, &commit_lsn]).await.map_err(failed)?;
    client.batch_execute("COMMIT").await.map_err(failed)?;
    for (name, end_lsn) in past {
        tracing::warn!(
            "what the transaction at {lsn} changed in tables of \"{name}\" is on the target, up to {end_lsn}, and stays"
        );
    }
    Ok(if added > 0 { Asked::Now } else { Asked::Before })
}

/// # Errors
/// A refusal if no such WAL is written yet: a transaction that is still to come has no LSN that anybody knows. The primary is asked
/// where there is one, since a standby may have yet to replay the transaction. A server that cannot be asked is no obstacle: the
/// engine refuses what is no commit.
async fn check_is_written(shards: &[Config], lsn: Lsn) -> Result<(), Error> {
    let Some(config) = shards.first() else { return Ok(()) };
    let publisher = config.publisher();
    let position = match postgres::connect(publisher, STAGE).await {
        Ok(client) => Server::inspect(&client, publisher.role, STAGE).await.map(|server| server.position),
        Err(error) => Err(error),
    };
    match position {
        Ok(position) if lsn >= position => Err(Error::refused(
            STAGE,
            format!("{lsn} cannot be skipped: the {} has WAL up to {position} only", publisher.role),
            "give the LSN that the message of a stop has behind `at LSN`",
        )),
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::warn!(%error, "whether there is WAL at this LSN is not known; the engine refuses it if not");
            Ok(())
        }
    }
}

/// Takes it back.
///
/// # Errors
/// A refusal if it is not pending.
pub async fn take_back(shards: &[Config], lsn: Lsn) -> Result<(), Error> {
    check_target(shards).await?;
    let client = connect(shards).await?;
    let names: Vec<_> = shards.iter().map(|config| config.name.as_str()).collect();
    // That a shard did not have it is of no use without the others.
    let sql = "WITH removed AS (DELETE FROM pgsluice.skips WHERE name = ANY ($1) AND commit_lsn = $2 \
                                AND (done_at IS NULL OR xid IS NULL) RETURNING done_at) \
               SELECT count(*) FROM removed WHERE done_at IS NULL";
    let commit_lsn = PgLsn::from(lsn.as_u64());
    let row = client.query_one(sql, &[&names, &commit_lsn]).await.map_err(failed)?;
    if row.try_get::<_, i64>(0).map_err(failed)? > 0 {
        return Ok(());
    }
    Err(Error::refused(STAGE, format!("no skip of {lsn} is pending"), "`pgsluice skip --list` shows those that are"))
}

/// The stream of a shard has passed `lsn`, and has no transaction with its commit record there. True where that is settled, since
/// another shard may have it.
pub async fn settle_missed(config: &Config, lsn: Lsn) -> Result<bool, Error> {
    let Some(shard) = config.shard() else { return Ok(false) };
    let client = postgres::connect(&config.target, STAGE).await?;
    let (name, commit_lsn) = (config.name.as_str(), PgLsn::from(lsn.as_u64()));
    client.batch_execute("BEGIN").await.map_err(failed)?;
    // All of them, in one order: of two shards that come at once, the second sees what the first has settled.
    let sql = "SELECT k.name <> $1 AND (k.done_at IS NULL OR k.xid IS NOT NULL) FROM pgsluice.skips k \
               JOIN pgsluice.shards s USING (name) WHERE s.whole = $2 AND k.commit_lsn = $3 ORDER BY k.name FOR UPDATE OF k";
    let rows = client.query(sql, &[&name, &shard.whole.as_str(), &commit_lsn]).await.map_err(failed)?;
    let may_have: Vec<bool> = rows.iter().map(|row| row.try_get(0).map_err(failed)).collect::<Result<_, _>>()?;
    if !may_have.contains(&true) {
        return Ok(false);
    }
    let settle = "UPDATE pgsluice.skips SET done_at = now(), changes = 0 \
                  WHERE name = $1 AND commit_lsn = $2 AND done_at IS NULL";
    client.execute(settle, &[&name, &commit_lsn]).await.map_err(failed)?;
    client.batch_execute("COMMIT").await.map_err(failed)?;
    Ok(true)
}

/// All that were asked for, in the order of the source.
pub async fn all(shards: &[Config]) -> Result<Vec<Skip>, Error> {
    let client = connect(shards).await?;
    list_all(&client, shards).await
}

async fn list_all(client: &Client, shards: &[Config]) -> Result<Vec<Skip>, Error> {
    let mut skips = Vec::new();
    for config in shards {
        skips.extend(list(client, config).await?);
    }
    // The sort is stable, and each shard's are in their order already.
    skips.sort_by_key(|skip| skip.commit_lsn.parse::<Lsn>().ok());
    Ok(skips)
}

/// The same over a session that is there; none where there is no table of them.
pub async fn list(client: &Client, config: &Config) -> Result<Vec<Skip>, Error> {
    if !exists(client).await? {
        return Ok(Vec::new());
    }
    let sql = "SELECT commit_lsn::text, requested_by, requested_at::text, done_at::text, xid, commit_time::text, changes \
               FROM pgsluice.skips s WHERE name = $1 ORDER BY s.commit_lsn";
    let rows = client.query(sql, &[&config.name.as_str()]).await.map_err(failed)?;
    let shard = config.shard().map(|shard| shard.number);
    rows.iter().map(|row| skip(row, shard).map_err(failed)).collect()
}

/// Those that the engine has yet to meet, in their order.
///
/// # Errors
/// A refusal if progress is past one of them.
pub async fn pending(client: &Client, name: &str, progress: Lsn) -> Result<Vec<Lsn>, Error> {
    if !exists(client).await? {
        return Ok(Vec::new());
    }
    let sql = "SELECT commit_lsn FROM pgsluice.skips WHERE name = $1 AND done_at IS NULL ORDER BY 1";
    let rows = client.query(sql, &[&name]).await.map_err(failed)?;
    let lsn = |row: &Row| row.try_get::<_, PgLsn>(0).map(|lsn| Lsn::new(lsn.into())).map_err(failed);
    let pending: Vec<_> = rows.iter().map(lsn).collect::<Result<_, _>>()?;
    match pending.first() {
        Some(lsn) if *lsn < progress => Err(passed(&[], *lsn, progress)),
        Some(_) | None => Ok(pending),
    }
}

/// To the target, which is the same of all shards.
/// Before anything is written.
async fn check_target(shards: &[Config]) -> Result<(), Error> {
    match shards.first() {
        Some(config) => preflight::check_target_alone(config, STAGE).await,
        None => Ok(()),
    }
}

async fn connect(shards: &[Config]) -> Result<Client, Error> {
    let Some(first) = shards.first() else { return Err(Error::new(STAGE, Kind::Panicked)) };
    let client = postgres::connect(&first.target, STAGE).await?;
    for config in shards {
        shards::check_split(&client, config, STAGE).await?;
        if checkpoint::read(&client, config.name.as_str()).await?.is_none() {
            return Err(no_progress(config));
        }
    }
    checkpoint::complete(&client).await?;
    if exists(&client).await? {
        return Ok(client);
    }
    Err(Error::refused(
        STAGE,
        "schema pgsluice on the target lacks the table of skips, and the role may not make it",
        "run `pgsluice setup` as a role that may, or take the SQL of `pgsluice setup --print-sql`",
    ))
}

async fn exists(client: &Client) -> Result<bool, Error> {
    let row = client.query_one("SELECT to_regclass('pgsluice.skips') IS NOT NULL", &[]).await.map_err(failed)?;
    row.try_get(0).map_err(failed)
}

fn skip(row: &Row, shard: Option<usize>) -> Result<Skip, tokio_postgres::Error> {
    Ok(Skip {
        commit_lsn: row.try_get(0)?,
        shard,
        requested_by: row.try_get(1)?,
        requested_at: row.try_get(2)?,
        done_at: row.try_get(3)?,
        xid: row.try_get(4)?,
        commit_time: row.try_get(5)?,
        changes: row.try_get(6)?,
    })
}

/// `known` are those that were asked for before.
fn passed(known: &[Skip], lsn: Lsn, progress: Lsn) -> Error {
    let is_it = |skip: &&Skip| skip.commit_lsn == lsn.to_string() && skip.xid.is_some();
    match known.iter().find(is_it).and_then(|skip| skip.done_at.as_ref()) {
        Some(done_at) => Error::refused(
            STAGE,
            format!("the transaction at {lsn} was skipped already, at {done_at}"),
            "start the engine: it goes on behind it",
        ),
        None => Error::refused(
            STAGE,
            format!("{lsn} cannot be skipped: the target's progress is past it, at {progress}"),
            format!(
                "give the LSN that the message of a stop has behind `at LSN`; where a skip of {lsn} is pending, `pgsluice skip \
                 --cancel --lsn {lsn}`"
            ),
        ),
    }
}

fn busy() -> Error {
    let what = "an engine is amid a transaction on the target, and holds progress until it ends";
    Error::refused(
        STAGE,
        what,
        "run `pgsluice skip` again; if that transaction waits for something, stop the engine first",
    )
}

fn no_progress(config: &Config) -> Error {
    Error::refused(
        STAGE,
        format!("the target has no progress row \"{}\" in pgsluice.progress", config.name),
        "run `pgsluice setup` first; if it was run, check that [target] names the same database",
    )
}

fn failed(error: tokio_postgres::Error) -> Error {
    Error::from_postgres(STAGE, Role::Target, error)
}
