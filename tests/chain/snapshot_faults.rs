//! What comes between a copy and its end: tables that are emptied or rewritten, servers that restart, and a standby that does
//! not wait for it.

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, wait_for};

use crate::gate::Gate;
use crate::load::{settle, stop, wait_log};
use crate::replication::{DATABASE, DEADLINE, Replication};
use crate::snapshot::{MORE_ROWS, TABLES, start};

const TWO: &str = "CREATE TABLE large (id int PRIMARY KEY, note text); CREATE TABLE small (id int PRIMARY KEY, n int);";
const BOTH: [&str; 2] = ["public.large", "public.small"];

/// Starts a copy that has done a chunk and is held before the next.
async fn amid_a_copy(options: ChainOptions) -> Result<(Replication, Gate, pgsluice_testkit::Engine)> {
    let rows = "INSERT INTO large SELECT g, repeat('x', 200) FROM generate_series(1, 20000) g; \
                INSERT INTO small SELECT g, g FROM generate_series(1, 1000) g";
    let replication = Replication::start_differing(options, &format!("{TWO}{rows}"), TWO).await?;
    replication.configure("[snapshot]\njobs = 1\nchunk_bytes = \"1MiB\"\n")?;
    replication.setup().await?;
    let gate = Gate::close(&replication, 1, "").await?;
    let engine = replication.spawn()?;
    wait_for("the first chunk", DEADLINE, || async {
        ensure!(engine.is_running(), "the engine has ended:\n{}", engine.stderr());
        let done = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM pgsluice.chunk_state").await?;
        Ok((done == "1").then_some(()))
    })
    .await?;
    Ok((replication, gate, engine))
}

/// B replays what takes a lock that the copy has, or removes rows that its snapshot sees, and ends the copy's sessions.
#[tokio::test]
async fn a_copy_that_recovery_cancels_goes_on() -> Result<()> {
    let conflicts = [
        "TRUNCATE large; INSERT INTO large VALUES (1, 'after'); INSERT INTO small VALUES (5000, 1)",
        "TRUNCATE small; INSERT INTO small VALUES (1, 1); DELETE FROM large WHERE id % 3 = 0",
        "ALTER TABLE large ALTER id TYPE bigint; UPDATE large SET note = 'after' WHERE id % 3 = 0",
        "DROP INDEX gone; UPDATE small SET n = n + 1",
    ];
    for conflict in conflicts {
        let options = ChainOptions::default().b_conf("max_standby_streaming_delay", "100ms");
        let (replication, gate, engine) = amid_a_copy(options).await?;
        let [a, b, c] = replication.servers();
        if conflict.contains("gone") {
            a.sql(DATABASE, "CREATE INDEX gone ON large (note)").await?;
        }
        replication.run_each(conflict).await?;
        // It comes so far only by cancelling.
        replication.chain.wait_b_caught_up().await?;
        gate.open_for_chunks().await?;
        if conflict.contains("bigint") {
            c.sql(DATABASE, "ALTER TABLE large ALTER id TYPE bigint").await?;
        }
        wait_log(&engine, "session ended; it will be built anew", 1).await.context(conflict)?;
        settle(&replication, &engine, &BOTH).await.context(conflict)?;
        ensure!(b.log().contains("conflict with recovery"), "{conflict}: B has cancelled nobody");
        stop(&engine).await?;
    }
    Ok(())
}

/// B waits for the copy, and the TRUNCATE comes in the stream, as any change does.
#[tokio::test]
async fn a_table_that_is_truncated_amid_the_copy_is_empty_at_last() -> Result<()> {
    let options = ChainOptions::default().b_conf("max_standby_streaming_delay", "-1");
    let (replication, gate, engine) = amid_a_copy(options).await?;
    replication
        .run_each("INSERT INTO small VALUES (5000, 1); TRUNCATE large, small; INSERT INTO large VALUES (1, 'after')")
        .await?;
    gate.open_for_chunks().await?;
    settle(&replication, &engine, &BOTH).await?;
    assert_eq!(replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM small").await?, "0");
    stop(&engine).await
}

/// The session that holds the tables is ended, and one of them is rewritten before its first chunk is read: the snapshot
/// sees nothing in its new file.
#[tokio::test]
async fn a_table_that_is_rewritten_amid_the_copy_begins_again() -> Result<()> {
    let rows = "INSERT INTO large SELECT g, md5(g::text) FROM generate_series(1, 20000) g; \
                INSERT INTO small SELECT g, g FROM generate_series(1, 1000) g";
    let options = ChainOptions::default().b_conf("max_standby_streaming_delay", "-1");
    let replication = Replication::start_differing(options, &format!("{TWO}{rows}"), TWO).await?;
    replication.configure("[snapshot]\njobs = 1\n")?;
    replication.setup().await?;
    let [a, b, c] = replication.servers();
    let blocker = c.connect(DATABASE).await?;
    blocker.batch_execute("BEGIN; LOCK TABLE large IN EXCLUSIVE MODE").await?;
    let engine = replication.spawn()?;
    wait_log(&engine, "copying starts", 1).await?;
    let held =
        "FROM pg_locks WHERE relation = 'small'::regclass AND mode = 'AccessShareLock' AND pid <> pg_backend_pid()";
    wait_for("the tables to be held", DEADLINE, || async {
        Ok((b.scalar(DATABASE, &format!("SELECT count(*) {held}")).await? == "1").then_some(()))
    })
    .await?;
    b.sql(DATABASE, &format!("SELECT pg_terminate_backend(pid) {held}")).await?;
    a.sql(DATABASE, "ALTER TABLE small ALTER n TYPE bigint").await?;
    replication.chain.wait_b_caught_up().await?;
    blocker.batch_execute("COMMIT").await?;
    wait_log(&engine, "truncated or rewritten", 1).await?;
    c.sql(DATABASE, "ALTER TABLE small ALTER n TYPE bigint").await?;
    wait_log(&engine, "streaming starts", 1).await?;
    settle(&replication, &engine, &BOTH).await?;
    stop(&engine).await
}

/// All servers go away while tables are copied; the copy comes to an end all the same.
#[tokio::test]
async fn servers_that_restart_while_tables_are_copied() -> Result<()> {
    let replication = start().await?;
    replication.chain.a.sql(DATABASE, MORE_ROWS).await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_log(&engine, "copying starts", 1).await?;
    replication.chain.a.stop_immediate().await?;
    replication.chain.b.stop_immediate().await?;
    replication.chain.a.start().await?;
    replication.chain.b.start().await?;
    wait_log(&engine, "copying starts", 2).await?;
    wait_log(&engine, "session ended; it will be built anew", 1).await?;
    replication.chain.c.stop_immediate().await?;
    replication.chain.c.start().await?;
    replication.chain.a.sql(DATABASE, "DELETE FROM keyed WHERE id % 3 = 0").await?;
    wait_log(&engine, "streaming starts", 1).await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}
