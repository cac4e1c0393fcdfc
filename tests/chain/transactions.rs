//! Transactions of every size and shape: each arrives whole, in the order of commits, in bounded memory.

use anyhow::Result;
use pgsluice_testkit::wait_for;

use crate::load::assert_memory_is_bounded;
use crate::replication::{DATABASE, DEADLINE, Replication};

/// Smaller than the transactions, so that they are applied in parts.
const SMALL_BATCHES: &str = "[apply]\nbatch_rows = 10\n";

const MEMORY_MAX_MIB: u64 = 256;
const LARGE_ROW_MIB: u64 = 50;
/// A row is received, kept in a batch, and twice as large in each of the two send buffers of the SQL client.
const LARGE_ROW_COPIES: u64 = 6;

#[tokio::test]
async fn savepoints_and_prepared_transactions_arrive_as_they_were_committed() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE whole (id int, note text);
               ALTER TABLE whole REPLICA IDENTITY FULL";
    let replication = Replication::start(ddl).await?;
    let tables = ["public.t", "public.whole"];
    for (n, more) in ["", SMALL_BATCHES].into_iter().enumerate() {
        replication.configure(more)?;
        replication.setup().await?;
        let from = n * 1000;
        replication
            .run_each(
                &format!(
                    "BEGIN; INSERT INTO t SELECT {from} + n, 'kept' FROM generate_series(1, 15) n; SAVEPOINT a;
                     UPDATE t SET note = 'lost'; DELETE FROM t WHERE id % 3 = 0; INSERT INTO whole SELECT * FROM t;
                     SAVEPOINT b; TRUNCATE t; ROLLBACK TO a; UPDATE t SET note = 'after' WHERE id % 2 = 0; SAVEPOINT a;
                     INSERT INTO whole SELECT * FROM t; RELEASE a; COMMIT;
                     BEGIN; INSERT INTO t SELECT {from} + n, 'lost' FROM generate_series(100, 150) n; ROLLBACK;
                     BEGIN; INSERT INTO t VALUES ({from} + 200, 'prepared');
                     UPDATE t SET note = 'prepared' WHERE id % 5 = 0; PREPARE TRANSACTION 'first';
                     BEGIN; INSERT INTO t VALUES ({from} + 201, 'lost'); PREPARE TRANSACTION 'second';
                     INSERT INTO t VALUES ({from} + 202, 'between');
                     ROLLBACK PREPARED 'second'; COMMIT PREPARED 'first';
                     SELECT pg_logical_emit_message(true, 'p', 'content'), pg_logical_emit_message(false, 'p', 'content');
                     BEGIN; SELECT pg_logical_emit_message(true, 'p', 'content'); INSERT INTO t VALUES ({from} + 203); COMMIT"
                ),
            )
            .await?;
        replication.catch_up().await?;
        replication.assert_same(&tables).await?;
    }
    // One that is prepared and left so is not there, and does not hold up the others.
    replication.run_each("BEGIN; INSERT INTO t VALUES (5000); PREPARE TRANSACTION 'left'").await?;
    replication.replicate("INSERT INTO t VALUES (5001)", &tables).await?;
    replication.replicate("COMMIT PREPARED 'left'", &tables).await
}

#[tokio::test]
async fn interleaved_transactions_large_and_small() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, note text)").await?;
    replication.configure(SMALL_BATCHES)?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    let [one, two] = [replication.chain.a.connect(DATABASE).await?, replication.chain.a.connect(DATABASE).await?];
    one.batch_execute("BEGIN; INSERT INTO t SELECT n, 'one' FROM generate_series(1, 95) n").await?;
    two.batch_execute("BEGIN; INSERT INTO t SELECT n, 'two' FROM generate_series(101, 130) n").await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (1000, 'between')").await?;
    one.batch_execute("UPDATE t SET note = 'changed' WHERE id < 50").await?;
    two.batch_execute("COMMIT; UPDATE t SET note = 'of the other' WHERE id = 1000").await?;
    one.batch_execute("DELETE FROM t WHERE id = 105; COMMIT").await?;
    for n in 0..30 {
        one.batch_execute(&format!("UPDATE t SET note = 'note {n}' WHERE id = {n}; INSERT INTO t VALUES (2000 + {n})"))
            .await?;
    }
    replication.wait_caught_up().await?;
    replication.assert_same(&["public.t"]).await?;
    assert!(engine.is_running());
    Ok(())
}

/// Progress follows the source though nothing of ours happens there.
#[tokio::test]
async fn empty_transactions_move_progress() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int)").await?;
    replication.configure("[tables]\ninclude = [\"public.t\"]\n")?;
    replication.setup().await?;
    let _engine = replication.spawn()?;
    replication.chain.a.sql(DATABASE, "INSERT INTO other SELECT generate_series(1, 1000)").await?;
    replication.wait_caught_up().await?;
    let before = replication.end_lsn().await?;
    replication.chain.a.sql(DATABASE, "CREATE TABLE another AS SELECT 1; DROP TABLE another; BEGIN; COMMIT").await?;
    replication.wait_caught_up().await?;
    assert_ne!(replication.end_lsn().await?, before);
    let confirmed = "SELECT confirmed_flush_lsn >= $$LSN$$ FROM pg_replication_slots WHERE slot_name = 'pgsluice_test'";
    let confirmed = confirmed.replace("LSN", &before);
    wait_for("the slot to follow", DEADLINE, || async {
        Ok((replication.chain.b.scalar(DATABASE, &confirmed).await? == "t").then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_transaction_far_larger_than_a_batch_needs_no_more_memory() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, n int, note text)";
    let replication = Replication::start(ddl).await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    let a = &replication.chain.a;
    a.sql(DATABASE, "INSERT INTO t SELECT n, n, 'some note of row ' || n FROM generate_series(1, 200000) n").await?;
    replication.wait_caught_up().await?;
    replication.assert_same(&["public.t"]).await?;
    a.sql(DATABASE, "BEGIN; UPDATE t SET n = -n WHERE id % 4 = 0; DELETE FROM t WHERE id % 5 = 0; COMMIT").await?;
    replication.wait_caught_up().await?;
    assert_memory_is_bounded(&engine, MEMORY_MAX_MIB)?;
    replication.assert_same(&["public.t"]).await
}

#[tokio::test]
async fn rows_of_50_megabytes() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, n int, note text)").await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    let bytes = LARGE_ROW_MIB * 1024 * 1024;
    let changes = format!(
        "INSERT INTO t SELECT n, n, repeat(md5(n::text), {bytes} / 32) FROM generate_series(1, 4) n; UPDATE t SET n = -n;
         UPDATE t SET note = repeat('x', {bytes}) WHERE id = 2; DELETE FROM t WHERE id = 1"
    );
    replication.chain.a.sql(DATABASE, &changes).await?;
    replication.wait_caught_up().await?;
    assert_memory_is_bounded(&engine, MEMORY_MAX_MIB / 2 + LARGE_ROW_COPIES * LARGE_ROW_MIB)?;
    let sql = "SELECT string_agg(id || ' ' || n || ' ' || md5(note), ', ' ORDER BY id) FROM t";
    let [_, b, c] = replication.servers();
    assert_eq!(b.scalar(DATABASE, sql).await?, c.scalar(DATABASE, sql).await?);
    Ok(())
}
