//! The points at which a death matters, one by one: the engine is held there, and then it is killed, or the session that
//! it has on C.
//!
//! ```text
//!  session   START ── fence
//!  stream    row ── progress ── COMMIT ── (durable, and not answered)
//!  copy      row ── chunk ── end of a table ── index made again
//! ```
//!
//! C holds it, by a trigger that waits for a lock of the test, so that the engine is the one that is shipped. What comes out
//! is compared with B; the tables have no key where rows are inserted, so what comes twice is there twice.

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Engine, wait_for};
use tokio_postgres::Client;

use crate::load::{settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication};

/// Where C holds the engine.
struct Point {
    name: &'static str,
    /// `EVENT ON table FOR EACH ROW WHEN (…)` of a trigger.
    trigger: &'static str,
}

/// A session takes the place of another.
const FENCE: Point =
    Point { name: "fence", trigger: "BEFORE UPDATE ON pgsluice.progress FOR EACH ROW WHEN (NEW.epoch > OLD.epoch)" };

const STREAM: &[Point] = &[
    Point { name: "row", trigger: "BEFORE INSERT ON log FOR EACH ROW" },
    Point {
        name: "progress",
        trigger: "BEFORE UPDATE ON pgsluice.progress FOR EACH ROW WHEN (NEW.end_lsn > OLD.end_lsn)",
    },
    Point { name: "COMMIT", trigger: "AFTER INSERT ON log DEFERRABLE INITIALLY DEFERRED FOR EACH ROW" },
];

const COPY: &[Point] = &[
    Point { name: "row", trigger: "BEFORE INSERT ON log FOR EACH ROW WHEN (NEW.n = 5000)" },
    Point { name: "chunk", trigger: "BEFORE INSERT ON pgsluice.chunk_state FOR EACH ROW" },
    Point {
        name: "end of a table",
        trigger: "BEFORE UPDATE ON pgsluice.table_state FOR EACH ROW WHEN (NEW.state = 'finishedcopy')",
    },
    Point { name: "index", trigger: "BEFORE DELETE ON pgsluice.deferred FOR EACH ROW" },
];

const HELD: &str = "FROM pg_stat_activity WHERE application_name LIKE 'pgsluice%' \
                    AND (wait_event_type = 'Lock' AND wait_event = 'advisory' OR wait_event = 'SyncRep')";

/// Held open by a client of the test.
struct Hold {
    client: Client,
    table: String,
}

impl Point {
    /// From now on the engine stops here.
    async fn close(&self, replication: &Replication) -> Result<Hold> {
        let kind = if self.trigger.contains("DEFERRED") { "CONSTRAINT TRIGGER" } else { "TRIGGER" };
        let table = self.trigger.split(" ON ").nth(1).and_then(|rest| rest.split(' ').next()).context("a table")?;
        let client = replication.chain.c.connect(DATABASE).await?;
        let sql = format!(
            "CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 PERFORM pg_advisory_xact_lock_shared(7); RETURN coalesce(NEW, OLD); END $$;
             CREATE {kind} hold {} EXECUTE FUNCTION public.hold();
             ALTER TABLE {table} ENABLE ALWAYS TRIGGER hold; SELECT pg_advisory_lock(7)",
            self.trigger
        );
        client.batch_execute(&sql).await.with_context(|| sql.clone())?;
        Ok(Hold { client, table: table.to_owned() })
    }
}

impl Hold {
    async fn open(self) -> Result<()> {
        let sql = format!("SELECT pg_advisory_unlock(7); DROP TRIGGER hold ON {}", self.table);
        Ok(self.client.batch_execute(&sql).await?)
    }
}

/// Waits until C holds a session of the engine.
async fn wait_held(replication: &Replication, engine: &Engine) -> Result<()> {
    let sql = format!("SELECT count(*) > 0 {HELD}");
    wait_for("the engine to be held", DEADLINE, || async {
        ensure!(engine.is_running(), "the engine has ended");
        Ok((replication.chain.c.scalar(DATABASE, &sql).await? == "t").then_some(()))
    })
    .await
    .with_context(|| engine.stderr())
}

/// Ends the session that is held, as an administrator or a failing C does.
async fn terminate_held(replication: &Replication) -> Result<()> {
    let sql = format!("SELECT count(pg_terminate_backend(pid)) > 0 {HELD}");
    let ended = replication.chain.c.scalar(DATABASE, &sql).await?;
    ensure!(ended == "t", "nobody was held any more");
    Ok(())
}

async fn start() -> Result<Replication> {
    let replication = Replication::start("CREATE TABLE log (n int)").await?;
    replication.configure("[apply]\nsynchronous_commit = \"on\"\n")?;
    replication.setup().await?;
    Ok(replication)
}

async fn insert(replication: &Replication, n: usize) -> Result<()> {
    replication.chain.a.sql(DATABASE, &format!("INSERT INTO log VALUES ({n}), ({n})")).await
}

#[tokio::test]
async fn an_engine_killed_at_each_point_of_the_stream() -> Result<()> {
    let replication = start().await?;
    for (n, point) in STREAM.iter().chain([&FENCE]).enumerate() {
        let hold = point.close(&replication).await?;
        insert(&replication, n).await?;
        let engine = replication.spawn()?;
        wait_held(&replication, &engine).await.context(point.name)?;
        engine.sigkill().await?;
        // The next one is there before C knows what becomes of the transaction.
        let engine = replication.spawn()?;
        hold.open().await?;
        settle(&replication, &engine, &["public.log"]).await.context(point.name)?;
        stop(&engine).await?;
    }
    // At START, where another reader has the slot.
    let reader = Engine::spawn(ENGINE.as_ref(), &replication.config(), &["tail"])?;
    wait_for("a reader", DEADLINE, || async {
        let active = replication.chain.b.scalar(DATABASE, "SELECT active FROM pg_replication_slots").await?;
        Ok((active == "t").then_some(()))
    })
    .await?;
    insert(&replication, 10).await?;
    let engine = replication.spawn()?;
    wait_log(&engine, "is active for PID", 1).await?;
    engine.sigkill().await?;
    stop(&reader).await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.log"]).await
}

#[tokio::test]
async fn a_session_of_the_target_that_is_ended_at_each_point_of_the_stream() -> Result<()> {
    let replication = start().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    for (n, point) in STREAM.iter().enumerate() {
        let hold = point.close(&replication).await?;
        insert(&replication, n).await?;
        // And once more, when it comes there again.
        for _ in 0..2 {
            wait_held(&replication, &engine).await.context(point.name)?;
            terminate_held(&replication).await?;
        }
        hold.open().await?;
        settle(&replication, &engine, &["public.log"]).await.context(point.name)?;
    }
    let hold = FENCE.close(&replication).await?;
    insert(&replication, 10).await?;
    replication.chain.b.restart().await?;
    wait_held(&replication, &engine).await?;
    terminate_held(&replication).await?;
    hold.open().await?;
    settle(&replication, &engine, &["public.log"]).await?;
    wait_log(&engine, "session ended; it will be built anew", 8).await?;
    wait_log(&engine, "SQLSTATE 57P01", 7).await?;
    stop(&engine).await
}

/// The commit is on C's disk, and waits for a standby of C that there is not: its outcome is known there and nowhere else.
#[tokio::test]
async fn a_death_between_a_commit_and_its_answer() -> Result<()> {
    let replication = start().await?;
    let c = &replication.chain.c;
    let mut engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    for round in 0..4 {
        c.reload(&[("synchronous_standby_names", "nobody")]).await?;
        insert(&replication, round).await?;
        wait_held(&replication, &engine).await?;
        match round % 2 {
            0 => terminate_held(&replication).await?,
            _ => {
                engine.sigkill().await?;
                engine = replication.spawn()?;
            }
        }
        c.reload(&[("synchronous_standby_names", "")]).await?;
        settle(&replication, &engine, &["public.log"]).await?;
    }
    stop(&engine).await
}

#[tokio::test]
async fn deaths_at_each_point_of_a_copy() -> Result<()> {
    let ddl =
        "CREATE TABLE log (n int); CREATE TABLE keyed (id int PRIMARY KEY, n int); CREATE INDEX keyed_n ON keyed (n);";
    let rows = "INSERT INTO log SELECT generate_series(1, 10000); INSERT INTO keyed SELECT g, g % 10 FROM generate_series(1, 2000) g;";
    let options = pgsluice_testkit::ChainOptions::default();
    let replication = Replication::start_differing(options, &format!("{ddl}{rows}"), ddl).await?;
    replication.configure("[snapshot]\njobs = 1\n")?;
    let tables = ["public.log", "public.keyed"];
    let spawn = || Engine::spawn(ENGINE.as_ref(), &replication.config(), &["run", "--defer-indexes"]);
    for (kills, point) in [true, false].into_iter().flat_map(|kills| COPY.iter().map(move |point| (kills, point))) {
        replication.setup().await?;
        let hold = point.close(&replication).await?;
        let mut engine = spawn()?;
        wait_held(&replication, &engine).await.context(point.name)?;
        match kills {
            true => drop(engine.sigkill().await?),
            false => terminate_held(&replication).await?,
        }
        hold.open().await?;
        wait_for("the end of the session", DEADLINE, || async {
            Ok((!engine.is_running() || engine.stderr().contains("session ended")).then_some(()))
        })
        .await?;
        // Before the first chunk nothing shows that the configuration is right, and a failure ends the run.
        if !engine.is_running() {
            engine = spawn()?;
        }
        replication.run_each("INSERT INTO log VALUES (0); UPDATE keyed SET n = n + 1 WHERE id % 7 = 0").await?;
        settle(&replication, &engine, &tables).await.with_context(|| format!("{}, {kills}", point.name))?;
        stop(&engine).await?;
        let indexes = "SELECT count(*) FROM pg_index WHERE indrelid = 'keyed'::regclass AND indisvalid";
        ensure!(replication.chain.c.scalar(DATABASE, indexes).await? == "2", "an index is missing");
        replication.succeed(&["teardown", "--yes"]).await?;
        replication.chain.c.sql(DATABASE, "TRUNCATE log, keyed").await?;
    }
    Ok(())
}
