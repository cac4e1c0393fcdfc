//! Transactions that the source streams before they have committed: they arrive as they were committed, late enough and in
//! bounded memory, and nothing waits for them meanwhile.
//!
//! `PGSLUICE_STREAMED_ROWS` and `PGSLUICE_SAVEPOINTS` make the largest ones larger.

mod early;
mod spool;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pgsluice_testkit::{ChainOptions, Server, wait_for};

use crate::load::{Changes, Random, assert_memory_is_bounded, settle, stop, wait_c, wait_streaming};
use crate::mode::STREAMING;
use crate::replication::{DATABASE, DEADLINE, Replication};

const MEMORY_MAX_MIB: u64 = 256;
const TABLES: [&str; 4] = ["public.t", "public.whole", "public.large", "public.emptied"];
const DDL: &str = "CREATE TYPE mood AS ENUM ('low', 'high');
    CREATE TABLE t (id int PRIMARY KEY, note text, mood mood);
    CREATE TABLE whole (id int, note text); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE large (id int PRIMARY KEY, n int, body text); ALTER TABLE large ALTER body SET STORAGE EXTERNAL;
    CREATE TABLE emptied (id int PRIMARY KEY, note text)";

/// B streams whatever does not fit into the least that it can have.
fn options() -> ChainOptions {
    ChainOptions::default().b_conf("logical_decoding_work_mem", "64kB")
}

/// Transactions that B has streamed for the engine.
async fn streamed(b: &Server) -> Result<u64> {
    let sql = "SELECT coalesce(sum(stream_txns), 0) FROM pg_stat_replication_slots WHERE slot_name = 'pgsluice_test'";
    Ok(b.scalar(DATABASE, sql).await?.parse()?)
}

async fn wait_streamed(b: &Server, more_than: u64) -> Result<()> {
    wait_for("B to stream a transaction in progress", DEADLINE, || async {
        Ok((streamed(b).await? > more_than).then_some(()))
    })
    .await
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test]
async fn small_transactions_arrive_while_a_large_one_is_open() -> Result<()> {
    let replication = Replication::start_with(options(), DDL).await?;
    replication.configure("[stream]\nstatus_interval = \"100ms\"\n")?;
    replication.setup().await?;
    let mut engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let (a, b) = (&replication.chain.a, &replication.chain.b);
    let large = a.connect(DATABASE).await?;
    large.batch_execute("BEGIN; INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n").await?;
    for round in 0..3 {
        a.sql(DATABASE, &format!("INSERT INTO whole VALUES ({round}, 'small')")).await?;
        wait_streamed(b, 0).await?;
        wait_c(&replication, "the small one", &format!("SELECT count(*) = {round} + 1 FROM whole")).await?;
        // Nor is it confirmed any later.
        let end_lsn = replication.end_lsn().await?;
        let confirmed = format!("SELECT bool_and(confirmed_flush_lsn >= '{end_lsn}') FROM pg_replication_slots");
        wait_for("the slot to follow", DEADLINE, || async {
            Ok((b.scalar(DATABASE, &confirmed).await? == "t").then_some(()))
        })
        .await?;
        // What is gone with the engine comes again from its beginning.
        engine.sigkill().await?;
        engine = replication.spawn()?;
        wait_streaming(&engine, 1).await?;
    }
    ensure!(replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM t").await? == "0", "an open one is on C");
    large.batch_execute("UPDATE t SET mood = 'high' WHERE id % 7 = 0; COMMIT").await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}

/// Whatever a large transaction can hold, and others beside it. `n` tells the rounds apart.
async fn change(replication: &Replication, n: usize) -> Result<()> {
    let a = &replication.chain.a;
    let [one, two, three] = [a.connect(DATABASE).await?, a.connect(DATABASE).await?, a.connect(DATABASE).await?];
    let (from, moods) = (n * 100_000, "(ARRAY['low', 'high']::mood[])[1 + n % 2]");
    let rows = |first: usize, last: usize, note: &str| {
        let (first, last) = (from + first, from + last);
        format!("INSERT INTO t SELECT n, repeat('{note} ', 20), {moods} FROM generate_series({first}, {last}) n;")
    };
    one.batch_execute(&format!("BEGIN; {}", rows(1, 2000, "one"))).await?;
    two.batch_execute(&format!("BEGIN; {} SAVEPOINT a; {}", rows(3001, 4000, "two"), rows(4001, 5000, "lost"))).await?;
    three.batch_execute(&format!("BEGIN; {}", rows(6001, 8000, "lost as a whole"))).await?;
    a.sql(DATABASE, &format!("INSERT INTO t VALUES ({from} + 9001, 'small')")).await?;
    // Nested ones, a change of a table that is taken back, and what is done anew after it.
    two.batch_execute(&format!(
        "SAVEPOINT b; UPDATE t SET note = 'lost' WHERE id BETWEEN {from} + 3001 AND {from} + 3500; RELEASE b;
         SAVEPOINT c; DELETE FROM t WHERE id BETWEEN {from} + 3501 AND {from} + 3600; ROLLBACK TO a;
         INSERT INTO whole SELECT n, repeat('y', 200) FROM generate_series(1, 1000) n; SAVEPOINT d;
         ALTER TABLE whole ADD COLUMN lost int; INSERT INTO whole SELECT n, repeat('z', 200), n FROM generate_series(1, 1000) n;
         ROLLBACK TO d; UPDATE whole SET note = 'whole' WHERE id % 9 = 0; DELETE FROM whole WHERE id % 10 = 0"
    ))
    .await?;
    three.batch_execute("ROLLBACK").await?;
    // Keys, values that are left out because they are as they were, and an emptied table.
    one.batch_execute(&format!(
        "INSERT INTO large SELECT {from} + n, n, repeat(md5(n::text), 200) FROM generate_series(1, 100) n;
         UPDATE large SET n = -n WHERE id > {from}; UPDATE large SET id = -id WHERE id > {from} AND n % 3 = 0;
         INSERT INTO emptied SELECT n FROM generate_series(1, 1000) n ON CONFLICT DO NOTHING; TRUNCATE emptied;
         INSERT INTO emptied SELECT n, repeat('e', 100) FROM generate_series(1, 1000) n;
         UPDATE t SET id = id + 50000 WHERE id BETWEEN {from} + 1 AND {from} + 500"
    ))
    .await?;
    two.batch_execute("COMMIT").await?;
    one.batch_execute(&format!(
        "ALTER TABLE t ADD COLUMN more_{n} int DEFAULT 7;
         INSERT INTO t (id, note, more_{n}) SELECT {from} + n, 'with more', n FROM generate_series(60001, 61000) n"
    ))
    .await?;
    a.sql(DATABASE, "INSERT INTO whole VALUES (0, 'small'); UPDATE whole SET note = 'once more' WHERE id = 1").await?;
    one.batch_execute("COMMIT").await?;
    replication
        .run_each(&format!(
            "BEGIN; {} PREPARE TRANSACTION 'kept'; BEGIN; {} PREPARE TRANSACTION 'lost';
             INSERT INTO t VALUES ({from} + 9002, 'between'); ROLLBACK PREPARED 'lost'; COMMIT PREPARED 'kept';
             UPDATE t SET note = 'at last' WHERE id BETWEEN {from} + 70001 AND {from} + 70010",
            rows(70_001, 71_000, "prepared"),
            rows(72_001, 73_000, "prepared in vain")
        ))
        .await
}

#[tokio::test]
async fn whatever_a_streamed_transaction_holds_arrives_as_without_streaming() -> Result<()> {
    let replication = Replication::start_with(options(), DDL).await?;
    replication.setup().await?;
    let rounds = [("buffered", true), ("immediate", true), ("buffered", false), ("immediate", true)];
    for (n, (when, is_on)) in rounds.into_iter().enumerate() {
        let more = format!("[stream]\nstreaming = {is_on}\n[spool]\nmemory_bytes = \"256KiB\"\n");
        // Small batches make parts of what is replayed.
        replication
            .configure(&format!("{more}[apply]\nbatch_bytes = \"64KiB\"\nbatch_rows = {}\n", [10, 10_000][n / 2]))?;
        replication.chain.b.reload(&[(STREAMING, when)]).await?;
        let before = streamed(&replication.chain.b).await?;
        replication.chain.c.sql(DATABASE, &format!("ALTER TABLE t ADD COLUMN more_{n} int DEFAULT 7")).await?;
        change(&replication, n).await.with_context(|| format!("round {n}"))?;
        replication.catch_up().await?;
        replication.assert_same(&TABLES).await?;
        if is_on {
            wait_streamed(&replication.chain.b, before).await?;
        } else {
            ensure!(streamed(&replication.chain.b).await? == before, "B streams what it was not asked for");
        }
    }
    Ok(())
}

/// What a transaction says of a table is not heard of if it comes to nothing, and not heard for longer than it lasts.
#[tokio::test]
async fn descriptions_of_tables_are_those_of_their_transactions() -> Result<()> {
    let on_c = format!("{DDL}; ALTER TABLE t ADD COLUMN more int");
    let options = ChainOptions::default().b_conf(STREAMING, "immediate");
    let replication = Replication::start_differing(options, DDL, &on_c).await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    let a = &replication.chain.a;
    let altering =
        "BEGIN; INSERT INTO t VALUES (1); ALTER TABLE t ADD COLUMN more int; INSERT INTO t VALUES (2, 'x', 'low', 5)";
    replication.run_each(&format!("{altering}; ROLLBACK; INSERT INTO t VALUES (3, 'y')")).await?;
    replication.run_each(&format!("{altering}; COMMIT; INSERT INTO t VALUES (4, 'z', NULL, 6)")).await?;
    // One that has described the table, and goes on with it after others have.
    let open = a.connect(DATABASE).await?;
    open.batch_execute("BEGIN; INSERT INTO t VALUES (5, 'with note', 'high', 7)").await?;
    a.sql(DATABASE, "INSERT INTO whole VALUES (1); UPDATE t SET note = 'beside it' WHERE id = 3").await?;
    wait_c(&replication, "what came beside it", "SELECT count(*) = 1 FROM whole").await?;
    open.batch_execute("UPDATE t SET more = 8 WHERE id = 5; COMMIT").await?;
    a.sql(DATABASE, "UPDATE t SET more = more + 1").await?;
    settle(&replication, &engine, &["public.t", "public.whole"]).await?;
    stop(&engine).await
}

#[tokio::test]
async fn an_engine_killed_amid_streamed_transactions_loses_and_doubles_nothing() -> Result<()> {
    let kills = number("PGSLUICE_KILLS", 10);
    let mut random = Random::new();
    let replication = Replication::start_with(options(), DDL).await?;
    replication
        .configure("[spool]\nmemory_bytes = \"256KiB\"\n[apply]\nbatch_rows = 100\nbatch_bytes = \"64KiB\"\n")?;
    replication.setup().await?;
    let large = "BEGIN; INSERT INTO whole SELECT n, repeat('kept', 50) FROM generate_series(1, 1500) n; SAVEPOINT a;
                 INSERT INTO whole SELECT n, repeat('lost', 50) FROM generate_series(1, 1500) n; ROLLBACK TO a;
                 UPDATE whole SET note = 'changed' WHERE id <= 3; DELETE FROM whole WHERE id > 100; COMMIT;
                 SELECT pg_sleep(0.2)";
    let small = "INSERT INTO emptied SELECT coalesce(max(id), 0) + 1 FROM emptied; SELECT pg_sleep(0.01)";
    let changes = [Changes::start(&replication, large), Changes::start(&replication, small)];
    for _ in 0..kills {
        let engine = replication.spawn()?;
        wait_streaming(&engine, 1).await?;
        random.pause(Duration::from_millis(1_500)).await;
        engine.sigkill().await?;
    }
    wait_streamed(&replication.chain.b, 0).await?;
    let engine = replication.spawn()?;
    for changes in changes {
        changes.end().await?;
    }
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}

#[tokio::test]
async fn transactions_of_any_size_take_bounded_memory_and_nobody_waits_for_them() -> Result<()> {
    let (rows, savepoints) = (number("PGSLUICE_STREAMED_ROWS", 200_000), number("PGSLUICE_SAVEPOINTS", 2_000));
    // Beyond this, memory is not the place for three servers.
    let replication = Replication::start_with(options().on_disk(rows > 1_000_000), DDL).await?;
    replication.configure("[spool]\nmemory_bytes = \"16MiB\"\n")?;
    replication.setup().await?;
    let mut engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let a = &replication.chain.a;
    let [one, two] = [a.connect(DATABASE).await?, a.connect(DATABASE).await?];
    let insert =
        format!("BEGIN; INSERT INTO emptied SELECT n, repeat(md5(n::text), 6) FROM generate_series(1, {rows}) n");
    // Each block with EXCEPTION is a subtransaction, and every other is rolled back.
    let subtransactions = format!(
        "BEGIN; DO $$ BEGIN FOR i IN 1..{savepoints} LOOP
             BEGIN
                 INSERT INTO t SELECT i * 10 + n, 'note of ' || i FROM generate_series(0, 4) n;
                 IF i % 2 = 0 THEN RAISE EXCEPTION 'undone'; END IF;
             EXCEPTION WHEN raise_exception THEN NULL;
             END;
         END LOOP; END $$"
    );
    let wait_small = async |n: u32| {
        a.sql(DATABASE, &format!("INSERT INTO whole VALUES ({n}, 'small')")).await?;
        let committed_at = Instant::now();
        wait_c(&replication, "a small one", &format!("SELECT count(*) = {n} FROM whole")).await?;
        anyhow::Ok(committed_at.elapsed())
    };
    let beside = async {
        let mut longest = Duration::ZERO;
        for n in 1..=20 {
            longest = longest.max(wait_small(n).await?);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        println!("a small one took at most {longest:?} while A wrote both as fast as it could");
        anyhow::Ok(())
    };
    let open = async { anyhow::Ok(tokio::try_join!(one.batch_execute(&insert), two.batch_execute(&subtransactions))?) };
    tokio::try_join!(open, beside)?;
    wait_streamed(&replication.chain.b, 1).await?;
    // The first one waits for what B has yet to decode.
    wait_small(21).await?;
    let mut longest = Duration::ZERO;
    for n in 22..=40 {
        longest = longest.max(wait_small(n).await?);
    }
    println!("a small one took at most {longest:?} while both were open");
    assert_memory_is_bounded(&engine, MEMORY_MAX_MIB)?;
    engine.sigkill().await?;
    engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    a.sql(DATABASE, "INSERT INTO whole VALUES (100, 'while both are open')").await?;
    wait_c(&replication, "a small one", "SELECT count(*) = 41 FROM whole").await?;
    let are_open = "SELECT (SELECT count(*) FROM emptied) + (SELECT count(*) FROM t) = 0";
    ensure!(replication.chain.c.scalar(DATABASE, are_open).await? == "t", "C has what is open");
    one.batch_execute("COMMIT").await?;
    two.batch_execute("COMMIT").await?;
    assert_memory_is_bounded(&engine, MEMORY_MAX_MIB)?;
    engine.sigkill().await?;
    engine = replication.spawn()?;
    // Each test has a minute, and these may be of any size.
    let all = "SELECT (SELECT count(*) FROM emptied) || ' ' || (SELECT count(*) FROM t)";
    let on_a = a.scalar(DATABASE, all).await?;
    let arrived = || async { Ok((replication.chain.c.scalar(DATABASE, all).await? == on_a).then_some(())) };
    let deadline = DEADLINE.mul_f64(1.0 + rows as f64 / 200_000.0);
    tokio::select! {
        arrived = wait_for("both on C", deadline, arrived) => arrived?,
        status = engine.wait(deadline) => bail!("the engine has ended with {}:\n{}", status?, engine.stderr()),
    }
    settle(&replication, &engine, &TABLES).await?;
    assert_memory_is_bounded(&engine, MEMORY_MAX_MIB)?;
    ensure!(!engine.stderr().contains("session ended"), "the engine lost its session:\n{}", engine.stderr());
    stop(&engine).await
}
