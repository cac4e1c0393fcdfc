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

/// Replay waits for a table whose chunks nobody has read yet, and which all sessions of the copy hold: none of them waits behind it.
#[tokio::test]
async fn a_copy_does_not_wait_for_replay_that_waits_for_it() -> Result<()> {
    for conflict in ["TRUNCATE small", "ALTER TABLE small ALTER n TYPE bigint", "VACUUM FULL small"] {
        let options = ChainOptions::default().b_conf("max_standby_streaming_delay", "-1");
        let (replication, gate, engine) = amid_a_copy(options).await?;
        let [a, b, c] = replication.servers();
        a.sql(DATABASE, conflict).await?;
        a.sql(DATABASE, "INSERT INTO small VALUES (5000, 1); UPDATE large SET note = 'after' WHERE id < 9").await?;
        wait_for("replay to wait for the copy", DEADLINE, || async {
            let waits = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted";
            Ok((b.scalar(DATABASE, waits).await? != "0").then_some(()))
        })
        .await?;
        if conflict.contains("bigint") {
            c.sql(DATABASE, "ALTER TABLE small ALTER n TYPE bigint").await?;
        }
        gate.open_for_chunks().await?;
        settle(&replication, &engine, &BOTH).await.context(conflict)?;
        stop(&engine).await?;
    }
    Ok(())
}

/// The engine has lost a session amid its COMMIT, and copies again under the same epoch before that has come to its end. This client
/// does what the session that was lost would have done.
#[tokio::test]
async fn a_copy_waits_for_the_commit_of_the_try_before() -> Result<()> {
    let first = "CREATE TABLE first (id int PRIMARY KEY);";
    let replication = Replication::start_differing(ChainOptions::default(), first, &format!("{first}{TWO}")).await?;
    replication.configure("[snapshot]\njobs = 1\nchunk_bytes = \"1MiB\"\n")?;
    replication.setup().await?;
    let gate = Gate::close(&replication, 2, "").await?;
    let engine = replication.spawn()?;
    wait_log(&engine, "streaming starts", 1).await?;
    let [a, b, c] = replication.servers();
    c.sql(DATABASE, "INSERT INTO pgsluice.chunk_state SELECT 'other', 'x', 'x', 'x', 0, 0, 0, 0, 0, 0, 0").await?;
    let join = format!(
        "{TWO} INSERT INTO large SELECT g, repeat('x', 200) FROM generate_series(1, 20000) g; \
         ALTER PUBLICATION pgsluice_test ADD TABLE large"
    );
    a.sql(DATABASE, &join).await?;
    let held = "FROM pg_stat_activity WHERE application_name = 'pgsluice' AND wait_event = 'advisory'";
    wait_for("the second chunk", DEADLINE, || async {
        ensure!(engine.is_running(), "the engine has ended:\n{}", engine.stderr());
        Ok((c.scalar(DATABASE, &format!("SELECT count(*) {held}")).await? == "1").then_some(()))
    })
    .await?;
    let done =
        "SELECT end_block || ' ' || (SELECT max(id) FROM large) FROM pgsluice.chunk_state WHERE table_name = 'large'";
    let done = c.scalar(DATABASE, done).await?;
    let (block, last) = done.split_once(' ').context("a block and a row")?;
    let end = block.parse::<u32>()? + 50;
    let next = format!("SELECT max(id) FROM large WHERE ctid >= '({block},0)' AND ctid < '({end},0)'");
    let next = b.scalar(DATABASE, &next).await?;
    let lost = c.connect(DATABASE).await?;
    // It waits for the session that has these rows, and is the one that has them when that is gone.
    let rows =
        format!("BEGIN; INSERT INTO large SELECT g, repeat('x', 200) FROM generate_series({last} + 1, {next}) g");
    let terminate = async {
        wait_for("the rows to be waited for", DEADLINE, || async {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BEGIN; INSERT INTO large%' AND wait_event_type = 'Lock'";
            Ok((c.scalar(DATABASE, waits).await? == "1").then_some(()))
        })
        .await?;
        c.scalar(DATABASE, &format!("SELECT count(pg_terminate_backend(pid)) {held}")).await
    };
    let (inserted, terminated) = tokio::join!(lost.batch_execute(&rows), terminate);
    inserted?;
    ensure!(terminated? == "1", "nobody was held");
    gate.open_for_chunks().await?;
    let record = format!(
        "INSERT INTO pgsluice.chunk_state SELECT name, schema_name, table_name, part, filenode, {block}, {end}, xmin_horizon, \
             {next} - {last}, 0, 0 FROM pgsluice.chunk_state WHERE table_name = 'large'; \
         UPDATE pgsluice.table_state SET rows = rows + {next} - {last} WHERE table_name = 'large'"
    );
    lost.batch_execute(&record).await?;
    wait_for("the copy to wait", DEADLINE, || async {
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgsluice' AND wait_event_type = 'Lock'";
        Ok((c.scalar(DATABASE, waits).await? != "0").then_some(()))
    })
    .await?;
    lost.batch_execute("COMMIT").await?;
    wait_log(&engine, "kept of an interrupted copy", 1).await?;
    wait_log(&engine, "the stream takes over", 1).await?;
    settle(&replication, &engine, &["public.large"]).await?;
    stop(&engine).await
}

/// What two operators call equal lies where no session of ours looks by itself.
#[tokio::test]
async fn an_interrupted_copy_is_cut_down_by_operators_of_other_schemas() -> Result<()> {
    let own = "\
        CREATE SCHEMA own; CREATE TYPE own.code;
        CREATE FUNCTION own.code_in(cstring) RETURNS own.code LANGUAGE internal IMMUTABLE STRICT AS 'textin';
        CREATE FUNCTION own.code_out(own.code) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
        CREATE TYPE own.code (INPUT = own.code_in, OUTPUT = own.code_out, LIKE = text, COLLATABLE = true);
        CREATE FUNCTION own.cmp(own.code, own.code) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS 'bttextcmp';
        CREATE FUNCTION own.lt(own.code, own.code) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'text_lt';
        CREATE FUNCTION own.le(own.code, own.code) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'text_le';
        CREATE FUNCTION own.eq(own.code, own.code) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'texteq';
        CREATE FUNCTION own.ge(own.code, own.code) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'text_ge';
        CREATE FUNCTION own.gt(own.code, own.code) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'text_gt';
        CREATE OPERATOR own.< (FUNCTION = own.lt, LEFTARG = own.code, RIGHTARG = own.code);
        CREATE OPERATOR own.<= (FUNCTION = own.le, LEFTARG = own.code, RIGHTARG = own.code);
        CREATE OPERATOR own.= (FUNCTION = own.eq, LEFTARG = own.code, RIGHTARG = own.code, MERGES);
        CREATE OPERATOR own.>= (FUNCTION = own.ge, LEFTARG = own.code, RIGHTARG = own.code);
        CREATE OPERATOR own.> (FUNCTION = own.gt, LEFTARG = own.code, RIGHTARG = own.code);
        CREATE OPERATOR CLASS own.code_ops DEFAULT FOR TYPE own.code USING btree AS OPERATOR 1 own.<, OPERATOR 2 own.<=,
            OPERATOR 3 own.=, OPERATOR 4 own.>=, OPERATOR 5 own.>, FUNCTION 1 own.cmp(own.code, own.code);
        CREATE DOMAIN own.named AS own.code;";
    for key in ["own.code", "own.named"] {
        let ddl = format!("{own} CREATE TABLE t (code {key}, n int, note text, PRIMARY KEY (n, code));");
        let rows =
            "INSERT INTO t SELECT lpad(g::text, 8, 'c')::own.code, g, repeat('x', 60) FROM generate_series(1, 30000) g";
        let on_c = format!("{ddl} ALTER TABLE t ADD CONSTRAINT stops CHECK (n <> 25000)");
        let replication = Replication::start_differing(ChainOptions::default(), &format!("{ddl}{rows}"), &on_c).await?;
        replication.configure("[snapshot]\njobs = 1\nchunk_bytes = \"1MiB\"\n")?;
        replication.setup().await?;
        replication.halt().await?;
        replication.chain.c.sql(DATABASE, "ALTER TABLE t DROP CONSTRAINT stops").await?;
        replication.run_each("DELETE FROM t WHERE n % 7 = 0; UPDATE t SET note = 'new' WHERE n % 5 = 0").await?;
        replication.chain.wait_b_caught_up().await?;
        let output = replication.command(&["run", "--stop-at", "current"]).await?;
        ensure!(output.code == Some(0), "{}", output.stderr);
        ensure!(output.stderr.contains("kept of an interrupted copy"), "{}", output.stderr);
        replication.assert_same(&["public.t"]).await?;
    }
    Ok(())
}

/// The session that holds the tables is ended, and one of them, for which those that read have had no room in the lock table, is
/// rewritten before its first chunk is read: the snapshot sees nothing in its new file.
#[tokio::test]
async fn a_table_that_is_rewritten_amid_the_copy_begins_again() -> Result<()> {
    /// A quarter of the lock table has room for 100 tables in each of 16 sessions.
    const OTHERS: usize = 120;
    let rows = "INSERT INTO large SELECT g, md5(g::text) FROM generate_series(1, 20000) g; INSERT INTO small VALUES (1, 1), (2, 2);";
    let others: String = (0..OTHERS).map(|n| format!("CREATE TABLE other_{n} (id int PRIMARY KEY, n int);")).collect();
    let fill = |n| format!("INSERT INTO other_{n} SELECT g, g FROM generate_series(1, 500) g;");
    let others_rows: String = (0..OTHERS).map(fill).collect();
    let options = ChainOptions::default().b_conf("max_standby_streaming_delay", "-1");
    let on_a = format!("{TWO}{others}{rows}{others_rows}");
    let replication = Replication::start_differing(options, &on_a, &format!("{TWO}{others}")).await?;
    replication.configure("[snapshot]\njobs = 16\n")?;
    replication.setup().await?;
    let [a, b, c] = replication.servers();
    // Every job is held with its first chunk.
    let gate = Gate::close(&replication, 0, "").await?;
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
    gate.open_for_chunks().await?;
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
