//! Large transactions that are applied before they commit: seen by nobody before, in nobody's way, and given up without a trace.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Engine, wait_for};
use tokio_postgres::Client;

use super::{DDL, TABLES, options};
use crate::load::{expect_end, settle, stop, wait_c, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, Replication};

/// What is larger than a batch is applied early.
const CONFIG: &str = "[apply]\nbatch_bytes = \"64KiB\"\nbatch_rows = 500\n";
const EXIT_REFUSED: i32 = 3;

/// An engine changes rows of `t` on C.
const AT_WORK: &str =
    "EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.relation = 'public.t'::regclass
    AND l.mode = 'RowExclusiveLock' AND l.granted AND a.application_name LIKE 'pgsluice%')";

/// A transaction on A that is open, and that a session on C is at work on.
struct Scene {
    replication: Replication,
    engine: Engine,
    large: Client,
}

impl Scene {
    async fn set(rows: &str) -> Result<Scene> {
        Scene::set_with("", rows).await
    }

    async fn set_with(rules: &str, rows: &str) -> Result<Scene> {
        let replication = Replication::start_with(options(), DDL).await?;
        replication.configure(&format!("{CONFIG}{rules}"))?;
        replication.setup().await?;
        let engine = replication.spawn()?;
        wait_streaming(&engine, 1).await?;
        replication.chain.a.sql(DATABASE, rows).await?;
        replication.wait_caught_up().await?;
        let large = replication.chain.a.connect(DATABASE).await?;
        large.batch_execute("BEGIN").await?;
        Ok(Scene { replication, engine, large })
    }

    /// Has it change so much that C begins.
    async fn begin(&self, changes: &str) -> Result<()> {
        self.large.batch_execute(&format!("{changes}; {}", rows(1, 5_000))).await?;
        self.wait_at_work().await
    }

    async fn wait_at_work(&self) -> Result<()> {
        let sql = format!("SELECT {AT_WORK}");
        wait_c(&self.replication, "C to be at work on it", &sql).await.with_context(|| self.engine.stderr())
    }

    async fn wait_given_up(&self) -> Result<()> {
        let sql = format!("SELECT NOT {AT_WORK}");
        wait_c(&self.replication, "it to be given up", &sql).await.with_context(|| self.engine.stderr())
    }

    /// Goes on with it for as long as `work` takes, so that nothing ends because nothing came.
    async fn while_busy<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let going_on = async {
            for n in 1.. {
                self.large.batch_execute(&rows(n * 100_000, n * 100_000 + 800)).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        };
        tokio::select! {
            done = work => done,
            ended = going_on => ended.and_then(|()| anyhow::bail!("it has come to an end")),
        }
    }

    async fn end(&self) -> Result<()> {
        self.large.batch_execute("COMMIT").await?;
        settle(&self.replication, &self.engine, &TABLES).await?;
        ensure!(!self.engine.stderr().contains("session ended"), "{}", self.engine.stderr());
        stop(&self.engine).await
    }
}

fn rows(first: u32, last: u32) -> String {
    format!("INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series({first}, {last}) n")
}

#[tokio::test]
async fn a_large_transaction_is_made_before_it_commits_and_seen_after() -> Result<()> {
    let scene =
        Scene::set("INSERT INTO t VALUES (0, 'old'); INSERT INTO large VALUES (1, 1, repeat('large', 500))").await?;
    scene
        .begin("UPDATE t SET note = 'new' WHERE id = 0; UPDATE large SET n = 2; INSERT INTO whole VALUES (1, 'a')")
        .await?;
    let c = &scene.replication.chain.c;
    scene.replication.chain.a.sql(DATABASE, "INSERT INTO whole VALUES (2, 'beside it')").await?;
    wait_c(&scene.replication, "the small one", "SELECT count(*) = 1 FROM whole").await?;
    ensure!(c.scalar(DATABASE, "SELECT string_agg(note, '') FROM t").await? == "old", "C shows what is open");
    let now = c.scalar(DATABASE, "SELECT pg_current_xact_id()").await?;
    scene
        .large
        .batch_execute("UPDATE t SET note = 'changed' WHERE id % 10 = 0; DELETE FROM t WHERE id % 10 = 1")
        .await?;
    scene.end().await?;
    let before = format!("SELECT count(*) > 1000 FROM t WHERE xmin::text::bigint < {now}");
    ensure!(c.scalar(DATABASE, &before).await? == "t", "it was made after its commit");
    Ok(())
}

/// What a rule makes of a row is made early, unless it is made of what only the commit tells.
#[tokio::test]
async fn rules_wait_for_no_commit_but_those_that_are_about_it() -> Result<()> {
    let rules = "[[rule]]\ntable = \"public.t\"\nwhere = \"id % 3 <> 0\"\nset = { note = \"upper(note) || $op\" }\n\
                 [[rule]]\ntable = \"public.large\"\nset = { body = \"$lsn\" }\n";
    for needs_commit in [false, true] {
        let scene = Scene::set_with(rules, "INSERT INTO t VALUES (-1, 'old')").await?;
        let (a, c) = (&scene.replication.chain.a, &scene.replication.chain.c);
        scene.begin("UPDATE t SET note = 'large' WHERE id = -1").await?;
        let now = c.scalar(DATABASE, "SELECT pg_current_xact_id()").await?;
        if needs_commit {
            scene.large.batch_execute("INSERT INTO large VALUES (1, 1, 'large')").await?;
            scene.while_busy(scene.wait_given_up()).await?;
        }
        let lsn = "SELECT pg_current_wal_insert_lsn()";
        let before = a.scalar(DATABASE, lsn).await?;
        scene.large.batch_execute("COMMIT").await?;
        let after = a.scalar(DATABASE, lsn).await?;
        scene.replication.wait_caught_up().await?;
        let sum = |note: &str| format!("SELECT count(*) || ' ' || sum(hashtext(id || {note})) FROM t");
        let made = sum("upper(note) || CASE WHEN id < 0 THEN 'U' ELSE 'I' END") + " WHERE id % 3 <> 0";
        ensure!(
            a.scalar(DATABASE, &made).await? == c.scalar(DATABASE, &sum("note")).await?,
            "C is not as the rules say"
        );
        let early = format!("SELECT count(*) > 1000 FROM t WHERE xmin::text::bigint < {now}");
        ensure!((c.scalar(DATABASE, &early).await? == "t") != needs_commit, "needs its commit: {needs_commit}");
        let of_commit = format!("SELECT count(*) FROM large WHERE body::pg_lsn BETWEEN '{before}' AND '{after}'");
        ensure!(c.scalar(DATABASE, &of_commit).await? == u8::from(needs_commit).to_string(), "the commit is another");
        ensure!(!scene.engine.stderr().contains("session ended"), "{}", scene.engine.stderr());
        stop(&scene.engine).await?;
    }
    Ok(())
}

/// What a session of C waits for, it gets while the transaction is still open and goes on.
#[tokio::test]
async fn a_large_transaction_gives_way() -> Result<()> {
    // One that commits before it, and comes to C late: it finds rows locked that were changed after it.
    let scene = Scene::set("INSERT INTO t VALUES (-2, 'old'); INSERT INTO t VALUES (-1, 'old')").await?;
    let (a, c) = (&scene.replication.chain.a, &scene.replication.chain.c);
    let locker = c.connect(DATABASE).await?;
    locker.batch_execute("BEGIN; SELECT FROM t WHERE id = -2 FOR UPDATE").await?;
    a.sql(DATABASE, "UPDATE t SET note = 'small' WHERE id < 0").await?;
    scene.begin("UPDATE t SET note = 'large' WHERE id = -1").await?;
    locker.batch_execute("COMMIT").await?;
    let small = wait_c(&scene.replication, "the small one", "SELECT count(*) = 2 FROM t WHERE note = 'small'");
    scene.while_busy(small).await?;
    scene.end().await?;

    // Somebody who has nothing to do with it.
    let scene = Scene::set("INSERT INTO t VALUES (-1, 'old')").await?;
    scene.begin("UPDATE t SET note = 'large' WHERE id = -1").await?;
    scene.while_busy(scene.replication.chain.c.sql(DATABASE, "ALTER TABLE t ADD COLUMN more int")).await?;
    scene.replication.chain.a.sql(DATABASE, "INSERT INTO whole VALUES (1, 'beside it')").await?;
    scene.large.batch_execute("COMMIT").await?;
    settle(&scene.replication, &scene.engine, &["public.whole"]).await?;
    let sql = "SELECT count(*) || ' ' || sum(hashtext(id || note)) FROM t";
    let (on_a, on_c) =
        (scene.replication.chain.a.scalar(DATABASE, sql), scene.replication.chain.c.scalar(DATABASE, sql));
    ensure!(on_a.await? == on_c.await?, "the large one is not as on A");
    stop(&scene.engine).await?;

    // Another engine, which takes over.
    let scene = Scene::set("INSERT INTO t VALUES (-1, 'old')").await?;
    scene.begin("UPDATE t SET note = 'large' WHERE id = -1").await?;
    let other = scene.replication.spawn()?;
    scene.while_busy(expect_end(&scene.engine, EXIT_REFUSED, &["has taken over"])).await?;
    wait_streaming(&other, 1).await?;
    scene.large.batch_execute("COMMIT").await?;
    settle(&scene.replication, &other, &TABLES).await?;
    stop(&other).await
}

/// It cannot be asked whether anybody waits for it while it waits itself.
#[tokio::test]
async fn a_large_transaction_that_waits_for_a_lock_gives_way_too() -> Result<()> {
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'pgsluice%'";
    // The row of somebody else, and a whole table of somebody else.
    let holds = ["SELECT FROM t WHERE id = -2 FOR UPDATE", "LOCK TABLE whole IN SHARE MODE"];
    for (hold, wants) in
        holds.into_iter().zip(["UPDATE t SET note = 'large' WHERE id = -2", "INSERT INTO whole VALUES (1)"])
    {
        let scene = Scene::set("INSERT INTO t VALUES (-2, 'old'); INSERT INTO t VALUES (-1, 'old')").await?;
        let c = &scene.replication.chain.c;
        scene.begin("UPDATE t SET note = 'large' WHERE id = -1").await?;
        let holder = c.connect(DATABASE).await?;
        holder.batch_execute(&format!("BEGIN; {hold}")).await?;
        scene.large.batch_execute(&format!("{wants}; {}", rows(5_001, 10_000))).await?;
        let either = format!("SELECT ({waits}) OR NOT {AT_WORK}");
        wait_c(&scene.replication, "it to wait, or to have let go", &either).await?;
        let user = c.connect(DATABASE).await?;
        user.batch_execute("SET lock_timeout = '20s'").await?;
        scene.while_busy(async { Ok(user.batch_execute("SELECT FROM t WHERE id = -1 FOR UPDATE").await?) }).await?;
        holder.batch_execute("COMMIT").await?;
        scene.end().await.with_context(|| hold.to_owned())?;
    }
    Ok(())
}

/// It waits for its commit then, as without such a session.
#[tokio::test]
async fn a_target_without_room_for_the_session_takes_large_transactions_in_their_turn() -> Result<()> {
    let replication = Replication::start_with(options(), DDL).await?;
    let c = &replication.chain.c;
    replication.configure_unprivileged_target(CONFIG).await?;
    c.sql(DATABASE, "GRANT SET ON PARAMETER session_replication_role TO writer").await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    c.sql(DATABASE, "ALTER ROLE writer CONNECTION LIMIT 1").await?;
    let large = replication.chain.a.connect(DATABASE).await?;
    large.batch_execute(&format!("BEGIN; {}", rows(1, 5_000))).await?;
    wait_log(&engine, "large transactions wait for their commit", 1).await?;
    large.batch_execute(&rows(5_001, 20_000)).await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO whole VALUES (1, 'beside it')").await?;
    wait_c(&replication, "the small one", "SELECT count(*) = 1 FROM whole").await?;
    large.batch_execute("COMMIT").await?;
    settle(&replication, &engine, &TABLES).await?;
    ensure!(!engine.stderr().contains("session ended"), "{}", engine.stderr());
    stop(&engine).await
}

/// Rows that its own changes cannot be made to before others have come; and what is undone, as a part or as a whole.
#[tokio::test]
async fn what_cannot_be_applied_early_is_applied_in_its_turn() -> Result<()> {
    for undoing in [
        "ROLLBACK TO a",
        "TRUNCATE t",
        "ROLLBACK; BEGIN; INSERT INTO whole VALUES (7, 'another')",
        "UPDATE t SET id = id - 100000",
    ] {
        let scene = Scene::set("INSERT INTO t VALUES (-2, 'old'); INSERT INTO t VALUES (-1, 'old')").await?;
        let a = &scene.replication.chain.a;
        scene.begin("SAVEPOINT a; DELETE FROM t WHERE id = -1").await?;
        scene.large.batch_execute(undoing).await?;
        a.sql(DATABASE, "INSERT INTO emptied VALUES (1, 'beside it')").await?;
        wait_c(&scene.replication, "the small one", "SELECT count(*) = 1 FROM emptied").await?;
        scene.end().await.with_context(|| undoing.to_owned())?;
    }
    let scene = Scene::set("INSERT INTO t VALUES (-2, 'old'); INSERT INTO t VALUES (-1, 'old')").await?;
    let (a, c) = (&scene.replication.chain.a, &scene.replication.chain.c);
    let locker = c.connect(DATABASE).await?;
    locker.batch_execute("BEGIN; SELECT FROM t WHERE id = -2 FOR UPDATE").await?;
    a.sql(DATABASE, "DELETE FROM t WHERE id < 0; INSERT INTO whole VALUES (1, 'behind it')").await?;
    // The keys are free on A, and not yet on C.
    scene.large.batch_execute(&format!("{}; INSERT INTO t VALUES (-1, 'large')", rows(1, 5_000))).await?;
    wait_for("B to have sent it", DEADLINE, || async {
        let sql = "SELECT stream_count > 0 FROM pg_stat_replication_slots WHERE slot_name = 'pgsluice_test'";
        Ok((scene.replication.chain.b.scalar(DATABASE, sql).await? == "t").then_some(()))
    })
    .await?;
    locker.batch_execute("COMMIT").await?;
    wait_c(&scene.replication, "what is before it", "SELECT count(*) = 1 FROM whole").await?;
    scene.end().await
}
