//! Nothing is written outside of a transaction, and nothing twice: a BEGIN that fails, statements that somebody cancels, a
//! deadlock amid a batch of which a part has committed, progress that somebody else has moved.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Chain, ChainOptions, CutPoint, Engine, Proxy, wait_for};

use crate::load::{
    PGBENCH_TABLES, Random, pgbench_replication, settle, start_load, stop, wait_log, wait_progress, wait_streaming,
};
use crate::replication::{DATABASE, DEADLINE, Replication};

/// How every transaction of a batch begins.
const BEGIN: &[u8] = b"BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE";

/// What a session does behind a BEGIN without waiting for its answer.
const TABLES: &str = "\
    CREATE TABLE keyless (n int); CREATE TABLE keyed (id int PRIMARY KEY, note text);
    CREATE TABLE many (id int PRIMARY KEY, note text)";
const TABLE_NAMES: [&str; 3] = ["public.keyless", "public.keyed", "public.many"];

/// An engine whose sessions on C go through a proxy.
async fn through_proxy(more: &str) -> Result<(Replication, Proxy, Engine)> {
    let replication = Replication::start(TABLES).await?;
    let Chain { a, b, c } = &replication.chain;
    let proxy = Proxy::start(c.port()).await?;
    replication.configure_servers(&b.dsn(DATABASE), Some(&a.dsn(DATABASE)), &proxy.dsn(DATABASE), more)?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    // It has learnt the tables then: all that a batch does is on its way at once.
    a.sql(
        DATABASE,
        "INSERT INTO keyless VALUES (0); INSERT INTO keyed VALUES (0, ''); INSERT INTO many VALUES (0, '')",
    )
    .await?;
    settle(&replication, &engine, &TABLE_NAMES).await?;
    Ok((replication, proxy, engine))
}

/// One BEGIN fails, as by `pg_cancel_backend`: a row by itself, rows of several tables, sets and a COPY, a position alone. Neither
/// progress nor any row may be written by what was sent behind it.
#[tokio::test]
async fn a_begin_that_fails_takes_everything_behind_it_along() -> Result<()> {
    let transactions = [
        "INSERT INTO keyless VALUES (1), (1)",
        "UPDATE keyed SET note = 'new'; DELETE FROM keyless WHERE n = 0; INSERT INTO keyed VALUES ({n}, 'a'), ({n} + 1, 'b')",
        "INSERT INTO many SELECT i, 'many' FROM generate_series({n}, {n} + 99) i; UPDATE many SET note = 'again' WHERE id > {n}",
        "TRUNCATE keyless; INSERT INTO keyless VALUES (7)",
        "CREATE TABLE IF NOT EXISTS elsewhere.other_{n} ()",
    ];
    for more in ["[apply]\nnetting = false\nworkers = 1\n", "[apply]\nsynchronous_commit = 'on'\n"] {
        let (replication, proxy, engine) = through_proxy(more).await?;
        let [a, _, c] = replication.servers();
        a.sql(DATABASE, "ALTER TABLE keyless REPLICA IDENTITY FULL; CREATE SCHEMA elsewhere").await?;
        for (place, changes) in transactions.iter().enumerate() {
            let n = (place + 1) * 1_000;
            proxy.arm(BEGIN, CutPoint::Fail);
            a.sql(DATABASE, &format!("BEGIN; {}; COMMIT", changes.replace("{n}", &n.to_string()))).await?;
            wait_for("the BEGIN to fail", DEADLINE, || async { Ok(proxy.fired().then_some(())) }).await?;
            settle(&replication, &engine, &TABLE_NAMES).await.with_context(|| changes.to_string())?;
            wait_log(&engine, "session ended; it will be built anew", place + 1).await?;
            wait_log(&engine, "SQLSTATE 57014", place + 1).await?;
        }
        ensure!(c.log().contains("in a read-only transaction"), "nothing was sent behind a BEGIN that failed");
        stop(&engine).await?;
    }
    Ok(())
}

/// The same for a batch beside another, which begins before its turn.
#[tokio::test]
async fn a_begin_that_fails_beside_another_batch_is_done_again() -> Result<()> {
    let (replication, proxy, engine) = through_proxy("[apply]\nnetting = false\nworkers = 2\nbatch_rows = 2\n").await?;
    let [_, _, c] = replication.servers();
    let locker = c.connect(DATABASE).await?;
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity \
                 WHERE application_name LIKE 'pgsluice%' AND wait_event_type = 'Lock'";
    let is_beside = "SELECT count(*) > 0 FROM pg_stat_activity \
                     WHERE application_name LIKE 'pgsluice%' AND state = 'idle in transaction'";
    let wait_c = async |what: &str, sql: &str| {
        wait_for(what, DEADLINE, || async { Ok((c.scalar(DATABASE, sql).await? == "t").then_some(())) }).await
    };
    // In the first round the second session learns the tables.
    for round in 1..=2 {
        locker.batch_execute("BEGIN; SELECT FROM keyed WHERE id = 0 FOR UPDATE").await?;
        replication.run_each("BEGIN; UPDATE keyed SET note = 'x'; INSERT INTO keyless VALUES (1); COMMIT").await?;
        wait_c("the first batch to wait", waits).await?;
        if round == 2 {
            proxy.arm(BEGIN, CutPoint::Fail);
        }
        for n in 1..=4 {
            let n = round * 10 + n;
            let rows = format!("INSERT INTO keyless VALUES ({n}); INSERT INTO many VALUES ({n}, '')");
            replication.run_each(&format!("BEGIN; {rows}; COMMIT")).await?;
        }
        if round == 2 {
            wait_for("the BEGIN to fail", DEADLINE, || async { Ok(proxy.fired().then_some(())) }).await?;
        } else {
            wait_c("a batch beside it", is_beside).await?;
        }
        locker.batch_execute("COMMIT").await?;
        settle(&replication, &engine, &TABLE_NAMES).await?;
    }
    stop(&engine).await
}

/// Somebody cancels whatever the engine's sessions on C do, over and over, under load.
#[tokio::test]
async fn statements_that_are_cancelled_under_load_lose_and_double_nothing() -> Result<()> {
    for more in ["[apply]\nnetting = false\nworkers = 2\n", "[apply]\nworkers = 2\nbatch_rows = 50\n"] {
        let replication = pgbench_replication(ChainOptions::default()).await?;
        replication.configure(more)?;
        let load = start_load(&replication)?;
        let engine = replication.spawn()?;
        wait_progress(&replication).await?;
        let canceller = replication.chain.c.connect(DATABASE).await?;
        let storm = "DO $$ BEGIN FOR i IN 1..150 LOOP
                         PERFORM pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgsluice%';
                         PERFORM pg_stat_clear_snapshot(); PERFORM pg_sleep(0.001);
                     END LOOP; END $$";
        let mut random = Random::new();
        for _ in 0..6 {
            canceller.batch_execute(storm).await?;
            random.pause(Duration::from_millis(50)).await;
            wait_progress(&replication).await?;
        }
        load.kill().await?;
        settle(&replication, &engine, &PGBENCH_TABLES).await?;
        wait_log(&engine, "SQLSTATE 57014", 1).await?;
        stop(&engine).await?;
    }
    Ok(())
}

/// A batch whose first transactions are committed one by one meets a deadlock with a user of C, who holds what it wants and wants what it
/// holds, while another batch is under way behind it. What is committed by then is not applied again.
#[tokio::test]
async fn after_a_deadlock_amid_a_batch_only_what_is_not_committed_comes_again() -> Result<()> {
    let ddl = "CREATE TABLE pad (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, note text);
               CREATE TABLE keyless (n int); CREATE TABLE refused (id int PRIMARY KEY);
               CREATE TABLE held (id int PRIMARY KEY, n int)";
    for netting in [false, true] {
        // It is looked for once, so long after the wait has begun.
        let options = ChainOptions::default().c_conf("deadlock_timeout", "3s");
        let replication = Replication::start_with(options, ddl).await?;
        let [a, _, c] = replication.servers();
        let more = format!("[apply]\nworkers = 3\nbatch_rows = 4\nnetting = {netting}\non_error = 'exceptions'\n");
        replication.configure(&more)?;
        c.sql(DATABASE, "ALTER TABLE refused ADD CONSTRAINT never CHECK (id < 0)").await?;
        replication.setup().await?;
        let engine = replication.spawn()?;
        // It has learnt the keys of all tables then.
        a.sql(
            DATABASE,
            "INSERT INTO pad DEFAULT VALUES; INSERT INTO held VALUES (1, 0), (2, 0);
             INSERT INTO keyless VALUES (0); INSERT INTO refused VALUES (-1)",
        )
        .await?;
        replication.wait_caught_up().await?;
        let (gate, user) = (c.connect(DATABASE).await?, c.connect(DATABASE).await?);
        gate.batch_execute("BEGIN; SELECT FROM pad WHERE id = 1 FOR UPDATE").await?;
        // The engine looks for the deadlock, and so is the one that ends it.
        user.batch_execute("SET deadlock_timeout = '1h'; BEGIN; SELECT FROM held WHERE id = 2 FOR UPDATE").await?;
        replication
            .run_each(
                "BEGIN; UPDATE pad SET note = 'first' WHERE id = 1; INSERT INTO pad SELECT FROM generate_series(1, 3); COMMIT;
                 INSERT INTO keyless VALUES (1); INSERT INTO refused VALUES (1);
                 BEGIN; UPDATE held SET n = 1 WHERE id = 1; UPDATE held SET n = 1 WHERE id = 2; COMMIT",
            )
            .await?;
        for _ in 0..3 {
            a.sql(DATABASE, "INSERT INTO pad SELECT FROM generate_series(1, 4)").await?;
        }
        let sessions = "SELECT count(*) FILTER (WHERE wait_event_type = 'Lock') || ' ' || \
                            count(*) FILTER (WHERE state = 'idle in transaction') \
                        FROM pg_stat_activity WHERE application_name LIKE 'pgsluice%'";
        let wait_sessions = async |what: &str, wanted: &[&str]| {
            wait_for(what, DEADLINE, || async {
                Ok(wanted.contains(&c.scalar(DATABASE, sessions).await?.as_str()).then_some(()))
            })
            .await
            .with_context(|| engine.stderr())
        };
        wait_sessions("the first batch at the gate, one behind it", &["1 1"]).await?;
        gate.batch_execute("COMMIT").await?;
        let committed = "SELECT count(*) = 1 FROM keyless WHERE n = 1";
        wait_for("a part of the batch to be committed", DEADLINE, || async {
            Ok((c.scalar(DATABASE, committed).await? == "t").then_some(()))
        })
        .await
        .with_context(|| engine.stderr())?;
        wait_sessions("the third transaction to wait for the user", &["1 1", "1 2"]).await?;
        user.batch_execute("UPDATE held SET n = n WHERE id = 1; COMMIT").await?;
        replication.wait_caught_up().await.with_context(|| engine.stderr())?;
        replication.assert_same(&["public.keyless", "public.held", "public.pad"]).await?;
        ensure!(c.log().contains("deadlock detected"), "there was no deadlock");
        let exceptions = "SELECT count(*) FROM pgsluice.exceptions";
        assert_eq!(c.scalar(DATABASE, exceptions).await?, "1", "{}", engine.stderr());
        stop(&engine).await?;
    }
    Ok(())
}

/// Progress is moved only from where the engine has left it: else what somebody has moved by hand would be overwritten, and what
/// was meant by that lost.
#[tokio::test]
async fn progress_that_somebody_else_has_moved_is_read_again() -> Result<()> {
    let replication = Replication::start("CREATE TABLE log (n int)").await?;
    replication.setup().await?;
    let [a, _, c] = replication.servers();
    let engine = replication.spawn()?;
    a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
    settle(&replication, &engine, &["public.log"]).await?;
    c.sql(DATABASE, "UPDATE pgsluice.progress SET end_lsn = end_lsn + 1").await?;
    a.sql(DATABASE, "INSERT INTO log VALUES (2)").await?;
    wait_log(&engine, "progress on the target is at", 1).await?;
    settle(&replication, &engine, &["public.log"]).await?;
    stop(&engine).await
}
