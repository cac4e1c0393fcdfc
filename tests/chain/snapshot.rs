//! The initial copy: what is copied, and what follows, is what the source has.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, wait_for};
use serde_json::Value;

use crate::load::{Changes, assert_memory_is_bounded, expect_end, settle, stop, wait_log};
use crate::replication::{DATABASE, DEADLINE, Replication};

/// Of a copy that the environment makes long.
const COPY_DEADLINE: Duration = Duration::from_secs(1_800);

pub(crate) const TABLES: [&str; 7] = [
    "public.keyed",
    "public.keyless",
    "public.composite",
    "public.parted",
    "public.toasted",
    "public.\"Ünïcode \"\"t\"\"\"",
    "public.nothing",
];

const DDL: &str = "\
    CREATE TYPE mood AS ENUM ('calm', 'odd');
    CREATE TABLE keyed (id int PRIMARY KEY, n int, note text, at timestamptz, twice int GENERATED ALWAYS AS (n * 2) STORED);
    CREATE TABLE keyless (n int, mood mood); ALTER TABLE keyless REPLICA IDENTITY FULL;
    CREATE TABLE composite (a text, b int, v numeric, PRIMARY KEY (a, b));
    CREATE TABLE parted (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE parted_2 PARTITION OF parted DEFAULT;
    CREATE TABLE toasted (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, big text);
    ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE \"Ünïcode \"\"t\"\"\" (\"spaced id\" int PRIMARY KEY, dropped int, \"x\"\"y\" bytea);
    ALTER TABLE \"Ünïcode \"\"t\"\"\" DROP COLUMN dropped;
    CREATE TABLE nothing (id int PRIMARY KEY);";

const ROWS: &str = "\
    INSERT INTO keyed SELECT g, g % 100, md5(g::text), now() FROM generate_series(1, 40000) g;
    INSERT INTO keyless SELECT g % 50, CASE WHEN g % 2 = 0 THEN 'calm' ELSE 'odd' END::mood FROM generate_series(1, 500) g;
    INSERT INTO composite SELECT 'k' || g % 100, g, g * 1.01 FROM generate_series(1, 20000) g;
    INSERT INTO parted SELECT g, date '2026-01-01' + g % 60 FROM generate_series(1, 20000) g;
    INSERT INTO toasted (n, big) SELECT g, repeat(md5(g::text), 300) FROM generate_series(1, 300) g;
    INSERT INTO \"Ünïcode \"\"t\"\"\" SELECT g, decode(md5(g::text), 'hex') FROM generate_series(1, 100) g;";

/// Enough that a copy takes a while.
pub(crate) const MORE_ROWS: &str =
    "INSERT INTO keyed SELECT g, g % 100, md5(g::text), now() FROM generate_series(100001, 250000) g";

/// One round of changes of every kind, with a savepoint and a rollback, each table among them.
const CHANGES: &str = "\
    INSERT INTO keyed SELECT max(id) + 1, 1, 'new' FROM keyed;
    UPDATE keyed SET n = n + 1, note = note || 'x' WHERE id % 997 = (random() * 996)::int;
    DELETE FROM keyed WHERE id = (random() * 40000)::int;
    UPDATE keyed SET id = -id WHERE id = (random() * 40000)::int;
    INSERT INTO keyless VALUES (1, 'calm'), (1, 'calm');
    DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless);
    UPDATE composite SET v = v + 1, b = b WHERE b % 499 = (random() * 498)::int;
    UPDATE parted SET day = day + 31 WHERE id = (random() * 20000)::int;
    UPDATE toasted SET n = n + 1 WHERE id = 1 + (random() * 299)::int;
    BEGIN; DELETE FROM composite WHERE b = (random() * 20000)::int; SAVEPOINT s;
    UPDATE toasted SET big = repeat('y', 9000) WHERE id = 1 + (random() * 299)::int; ROLLBACK TO s;
    INSERT INTO composite SELECT 'new', max(b) + 1, 0 FROM composite; COMMIT;
    BEGIN; UPDATE keyed SET n = -1; DELETE FROM nothing; ROLLBACK;
    INSERT INTO nothing SELECT COALESCE(max(id), 0) + 1 FROM nothing";

/// Copies, in chunks as small as they come.
const COPY: &str = "[snapshot]\njobs = 3\nchunk_bytes = \"1MiB\"\n";

/// A filled A, an empty C, and nothing set up.
pub(crate) async fn start() -> Result<Replication> {
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{DDL}{ROWS}"), DDL).await?;
    replication.configure(COPY)?;
    Ok(replication)
}

#[tokio::test]
async fn a_copy_under_load_meets_the_stream() -> Result<()> {
    let replication = start().await?;
    let changes = Changes::start(&replication, CHANGES);
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_log(&engine, "streaming starts", 1).await?;
    // Some changes come while it streams.
    replication.wait_caught_up().await?;
    changes.end().await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await?;
    let sql = "SELECT DISTINCT state FROM pgsluice.table_state";
    let states = replication.chain.c.query_text(DATABASE, sql).await?;
    ensure!(states.len() == 1 && states[0][0].as_deref() == Some("finishedcopy"), "{states:?}");
    // Nothing is copied again.
    let again = replication.catch_up().await?;
    ensure!(!again.contains("copying starts"), "{again}");
    replication.assert_same(&TABLES).await
}

/// Whenever it dies, or is asked to end, the next one goes on, and the tables come out the same.
#[tokio::test]
async fn an_engine_killed_while_it_copies() -> Result<()> {
    let replication = start().await?;
    replication.chain.a.sql(DATABASE, MORE_ROWS).await?;
    replication.setup().await?;
    let changes = Changes::start(&replication, CHANGES);
    let count = "SELECT count(*) FROM pgsluice.chunk_state";
    for kill in 0..5 {
        let engine = replication.spawn()?;
        wait_log(&engine, "copying starts", 1).await?;
        let chunks = kill * 3;
        wait_for("some chunks", DEADLINE, || async {
            let done: i64 = replication.chain.c.scalar(DATABASE, count).await?.parse()?;
            Ok((done >= chunks || engine.stderr().contains("streaming starts")).then_some(()))
        })
        .await?;
        match kill % 2 {
            0 => drop(engine.sigkill().await?),
            _ => stop(&engine).await?,
        }
    }
    let engine = replication.spawn()?;
    wait_log(&engine, "streaming starts", 1).await?;
    changes.end().await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}

/// Another engine takes over amid the copy: the first one writes nothing more, the second goes on.
#[tokio::test]
async fn a_copy_is_fenced_like_the_stream() -> Result<()> {
    let replication = start().await?;
    replication.chain.a.sql(DATABASE, MORE_ROWS).await?;
    replication.setup().await?;
    let older = replication.spawn()?;
    wait_log(&older, "copying starts", 1).await?;
    let newer = replication.spawn()?;
    expect_end(&older, 3, &["fenced"]).await?;
    wait_log(&newer, "streaming starts", 1).await?;
    replication.run_each("UPDATE keyed SET n = -n WHERE id % 10 = 0; DELETE FROM composite WHERE b > 100").await?;
    settle(&replication, &newer, &TABLES).await?;
    stop(&newer).await
}

const WIDE: &str = "CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, n int, big text); \
                    ALTER TABLE t ALTER big SET STORAGE EXTERNAL;";

/// Lets a copy fail amid a table, with some chunks of it done, and then makes changes in all of it.
async fn interrupted_amid_a_table() -> Result<Replication> {
    let rows = "INSERT INTO t SELECT g, g, g % 10, CASE WHEN g % 500 = 0 THEN repeat(md5(g::text), 200) END \
                FROM generate_series(1, 80000) g";
    let on_c = format!("{WIDE} ALTER TABLE t ADD CONSTRAINT stops CHECK (id <> 60000)");
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{WIDE} {rows}"), &on_c).await?;
    replication.configure("[snapshot]\njobs = 1\nchunk_bytes = \"1MiB\"\n")?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    expect_end(&engine, 1, &["stops"]).await?;
    let done = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM pgsluice.chunk_state").await?;
    ensure!(done.parse::<u32>()? >= 2, "{done} chunks are done");
    replication.chain.c.sql(DATABASE, "ALTER TABLE t DROP CONSTRAINT stops").await?;
    let changes = "\
        DELETE FROM t WHERE id % 7 = 0; UPDATE t SET n = n + 1 WHERE id % 5 = 0; \
        UPDATE t SET id = -id WHERE id % 11 = 0; UPDATE t SET id = 7, big = 'moved' WHERE id = 79998; \
        UPDATE t SET u = -u WHERE id IN (1, 79999); UPDATE t SET u = 79999 WHERE id = 1; \
        UPDATE t SET u = 1 WHERE id = 79999; UPDATE t SET n = 5 WHERE id = 500; \
        INSERT INTO t SELECT g, g, 0, 'new' FROM generate_series(80001, 81000) g; \
        BEGIN; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (2, 2, 2, 'again'); COMMIT; \
        BEGIN; UPDATE t SET n = 99; ROLLBACK";
    replication.run_each(changes).await?;
    Ok(replication)
}

/// What is on C and still the same stays, the rest is made so, and no unique key is in the way.
#[tokio::test]
async fn a_copy_goes_on_inside_of_a_table() -> Result<()> {
    let replication = interrupted_amid_a_table().await?;
    let kept = "SELECT min(ctid::text) FROM t WHERE id = 3";
    let before = replication.chain.c.scalar(DATABASE, kept).await?;
    let engine = replication.spawn()?;
    wait_log(&engine, "kept of an interrupted copy", 1).await?;
    settle(&replication, &engine, &["public.t"]).await?;
    stop(&engine).await?;
    ensure!(replication.chain.c.scalar(DATABASE, kept).await? == before, "a row that was there was written again");
    replication.replicate("UPDATE t SET n = n + 1; DELETE FROM t WHERE id > 70000", &["public.t"]).await
}

#[tokio::test]
async fn a_table_that_was_rewritten_or_has_a_new_column_is_copied_anew() -> Result<()> {
    let both = "ALTER TABLE t ADD COLUMN more int DEFAULT 7";
    for (on_a, on_c) in [("VACUUM FULL t", ""), (both, "ALTER TABLE t ADD COLUMN more int")] {
        let replication = interrupted_amid_a_table().await?;
        replication.chain.a.sql(DATABASE, on_a).await?;
        replication.chain.c.sql(DATABASE, on_c).await?;
        replication.chain.wait_b_caught_up().await?;
        let engine = replication.spawn()?;
        wait_log(&engine, "begins again", 1).await.with_context(|| on_a.to_owned())?;
        settle(&replication, &engine, &["public.t"]).await?;
        stop(&engine).await?;
    }
    Ok(())
}

/// Rows that were there before cannot be told from those of a copy that was interrupted.
#[tokio::test]
async fn an_interrupted_copy_that_appends_needs_a_person() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY)";
    let on_a = format!("{ddl}; INSERT INTO t SELECT generate_series(1, 100)");
    let on_c = format!("{ddl}; INSERT INTO t VALUES (1000), (50)");
    let replication = Replication::start_differing(ChainOptions::default(), &on_a, &on_c).await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    let run = ["run", "--stop-at", "current", "--on-existing", "append"];
    let output = replication.command(&run).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("23505"), "{}", output.stderr);
    let output = replication.command(&run).await?;
    ensure!(output.code == Some(3) && output.stderr.contains("state = 'init'"), "{}", output.stderr);
    let mend = "DELETE FROM t WHERE id = 50; UPDATE pgsluice.table_state SET state = 'init'";
    replication.chain.c.sql(DATABASE, mend).await?;
    replication.succeed(&run).await?;
    let rows = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM t").await?;
    ensure!(rows == "101", "{rows} rows");
    Ok(())
}

#[tokio::test]
async fn rows_that_are_there_already_are_refused_removed_or_kept() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE u (id int PRIMARY KEY);";
    let replication = Replication::start_differing(
        ChainOptions::default(),
        &format!("{ddl} INSERT INTO t VALUES (1, 1), (2, 2); INSERT INTO u VALUES (1)"),
        &format!("{ddl} INSERT INTO t VALUES (7, 7)"),
    )
    .await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    let refused = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(refused.code == Some(3), "{}", refused.stderr);
    for said in ["rows already in \"public\".\"t\"", "--on-existing truncate"] {
        ensure!(refused.stderr.contains(said), "does not say {said}: {}", refused.stderr);
    }
    let at = replication.command(&["run", "--stop-at", "0/1"]).await?;
    ensure!(at.code == Some(3) && at.stderr.contains("a copy is of the source as it is now"), "{}", at.stderr);
    ensure!(!refused.stderr.contains("\"u\""), "an empty table is none of it: {}", refused.stderr);
    let rows = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM u").await?;
    ensure!(rows == "0", "nothing was copied before");
    replication.succeed(&["run", "--stop-at", "current", "--on-existing", "append"]).await?;
    let rows = replication.chain.c.query_text(DATABASE, "SELECT id FROM t ORDER BY id").await?;
    ensure!(rows.concat() == ["1", "2", "7"].map(|id| Some(id.to_owned())), "{rows:?}");

    replication.succeed(&["teardown", "--yes"]).await?;
    replication.setup().await?;
    replication.succeed(&["run", "--stop-at", "current", "--on-existing", "truncate", "--yes"]).await?;
    replication.assert_same(&["public.t", "public.u"]).await
}

#[tokio::test]
async fn what_cannot_be_copied_is_named_before_anything_is() -> Result<()> {
    let on_a = "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1);
                CREATE TABLE closed (id int PRIMARY KEY); INSERT INTO closed VALUES (1);";
    let on_c = "CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE closed (id int PRIMARY KEY);";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    replication.chain.c.sql(DATABASE, "ALTER TABLE closed RENAME id TO other; ALTER TABLE t RENAME TO gone").await?;
    let refused = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(refused.code == Some(3), "{}", refused.stderr);
    for said in ["the target has no table \"public\".\"t\"", "\"closed\" has no column \"id\""] {
        ensure!(refused.stderr.contains(said), "does not say {said}: {}", refused.stderr);
    }
    replication.chain.c.sql(DATABASE, "ALTER TABLE closed RENAME other TO id; ALTER TABLE gone RENAME TO t").await?;
    let role = "CREATE ROLE reader LOGIN REPLICATION; GRANT SELECT ON t TO reader; \
                GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO reader";
    replication.chain.a.sql(DATABASE, role).await?;
    replication.chain.wait_b_caught_up().await?;
    let reader = replication.chain.b.dsn(DATABASE).replace("user=postgres", "user=reader");
    let (a, c) = (replication.chain.a.dsn(DATABASE), replication.chain.c.dsn(DATABASE));
    replication.configure_servers(&reader, Some(&a), &c, COPY)?;
    let refused = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(refused.code == Some(3), "{}", refused.stderr);
    for said in ["may not read \"public\".\"closed\"", "GRANT SELECT ON \"public\".\"closed\""] {
        ensure!(refused.stderr.contains(said), "does not say {said}: {}", refused.stderr);
    }
    let rows = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM t").await?;
    ensure!(rows == "0", "nothing was copied before");
    Ok(())
}

/// A duplicate that only the target has ends the copy with its name; mended, it goes on.
#[tokio::test]
async fn a_conflict_on_the_target_stops_the_copy() -> Result<()> {
    let on_a =
        "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT g, g % 10 FROM generate_series(1, 100) g";
    let on_c = "CREATE TABLE t (id int PRIMARY KEY, n smallint UNIQUE)";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    let narrower = "column \"n\" is integer on the source and smallint on the target: rows that do not fit are refused";
    expect_end(&engine, 1, &[narrower, "table \"public\".\"t\"", "t_n_key", "23505"]).await?;
    replication.chain.c.sql(DATABASE, "ALTER TABLE t DROP CONSTRAINT t_n_key").await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await
}

/// A table can be copied again, and one that is new is copied, while what follows for all of them waits and is not lost.
#[tokio::test]
async fn tables_are_copied_again_or_later() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE u (id int PRIMARY KEY, n int REFERENCES t);
               CREATE TABLE late (id int PRIMARY KEY, n int);";
    let rows = "INSERT INTO t SELECT g, g FROM generate_series(1, 100) g; INSERT INTO u VALUES (1, 1); \
                INSERT INTO late VALUES (1, 1)";
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{ddl} {rows}"), ddl).await?;
    let without = format!("[tables]\ninclude = [\"public.t\", \"public.u\"]\n{COPY}");
    replication.configure(&without)?;
    replication.setup().await?;
    replication.replicate("UPDATE t SET n = n + 1", &["public.t", "public.u"]).await?;

    replication.chain.c.sql(DATABASE, "SET session_replication_role = replica; DELETE FROM t WHERE id < 50").await?;
    let strange = replication.command(&["resync", "--yes", "public.t", "public.x*"]).await?;
    ensure!(strange.code == Some(3) && strange.stderr.contains("matches \"public.x*\""), "{}", strange.stderr);
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    replication.chain.a.sql(DATABASE, "UPDATE t SET n = -n; DELETE FROM t WHERE id = 60; UPDATE u SET n = 2").await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t", "public.u"]).await?;

    replication.configure(COPY)?;
    let add = "ALTER PUBLICATION pgsluice_test ADD TABLE late; UPDATE late SET n = 2; INSERT INTO late VALUES (2, 2); \
               UPDATE t SET n = n + 7";
    replication.chain.a.sql(DATABASE, add).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t", "public.u", "public.late"]).await?;
    replication.replicate("UPDATE late SET n = 3; DELETE FROM late WHERE id = 1", &["public.late"]).await
}

/// What would end the slot while it waits for the copy is said before, and what it keeps meanwhile.
#[tokio::test]
async fn what_slots_retain_and_may_retain_is_named() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, note text)";
    let mut options = ChainOptions::default().b_conf("max_slot_wal_keep_size", "64MB");
    // A copy that takes longer than all of these goes on.
    for timeout in ["statement_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout"] {
        options = options.b_conf(timeout, "3s");
    }
    let rows = format!("{ddl}; INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 20000) g");
    let replication = Replication::start_differing(options, &rows, ddl).await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    let [a, _, c] = replication.servers();
    // The copy begins, and does not end.
    let blocker = c.connect(DATABASE).await?;
    blocker.batch_execute("BEGIN; LOCK TABLE t IN EXCLUSIVE MODE").await?;
    let engine = replication.spawn()?;
    wait_log(&engine, "the source keeps 64MB of WAL at most", 1).await?;
    wait_log(&engine, "copying starts", 1).await?;
    a.sql(DATABASE, "CREATE TABLE more AS SELECT repeat('x', 500) FROM generate_series(1, 108000) g").await?;
    replication.chain.wait_b_caught_up().await?;
    wait_log(&engine, "WAL is retained while tables are copied", 1).await?;
    wait_log(&engine, "the slot is lost after", 1).await?;
    let said = engine.stderr();
    for slot in ["pgsluice_test: ", "pgsluice_copy_", "b_slot: "] {
        ensure!(said.contains(slot), "does not say {slot}: {said}");
    }
    let status: Value = serde_json::from_str(&replication.succeed(&["status", "--format", "json"]).await?)?;
    let number = |slot: &str, field: &str| status[slot][field].as_i64();
    ensure!(number("slot", "retained_bytes") > Some(50 << 20), "B's slot: {}", status["slot"]);
    ensure!(number("primary_slot", "retained_bytes").is_some(), "A's slot: {}", status["primary_slot"]);
    let safe = number("slot", "safe_wal_bytes");
    ensure!(safe > Some(0) && safe < Some(32 << 20), "{safe:?} bytes are left");
    blocker.batch_execute("COMMIT").await?;
    wait_log(&engine, "streaming starts", 1).await?;
    stop(&engine).await
}

/// Ten tables, as many rows as `PGSLUICE_COPY_ROWS` says in all, changes of every kind in each all the while, and as many
/// kills as `PGSLUICE_COPY_KILLS` says.
#[tokio::test]
async fn ten_tables_under_load() -> Result<()> {
    let number = |name: &str, default: i64| std::env::var(name).map_or(Ok(default), |text| text.parse());
    let (rows, kills) = (number("PGSLUICE_COPY_ROWS", 100_000)? / 10, number("PGSLUICE_COPY_KILLS", 1)?);
    let names: Vec<_> = (0..10).map(|table| format!("public.t{table}")).collect();
    let create =
        |table: &String| format!("CREATE TABLE {table} (id bigint PRIMARY KEY, n int, note text, at timestamptz);");
    let ddl: String = names.iter().map(create).collect();
    let replication = Replication::start(&ddl).await?;
    replication.configure("[snapshot]\nchunk_bytes = \"4MiB\"\n")?;
    let a = &replication.chain.a;
    for table in &names {
        let fill =
            format!("INSERT INTO {table} SELECT g, g % 100, md5(g::text), now() FROM generate_series(1, {rows}) g");
        a.sql(DATABASE, &fill).await?;
    }
    let change = |table: &String| {
        format!(
            "BEGIN; INSERT INTO {table} SELECT max(id) + 1, 0, 'new', now() FROM {table}; \
             UPDATE {table} SET n = n + 1 WHERE id IN (SELECT (random() * {rows})::int FROM generate_series(1, 20)); \
             SAVEPOINT s; DELETE FROM {table} WHERE id = (random() * {rows})::int; ROLLBACK TO s; \
             DELETE FROM {table} WHERE id = (random() * {rows})::int; COMMIT; \
             BEGIN; UPDATE {table} SET n = -1 WHERE id = 1; ROLLBACK;"
        )
    };
    let statements: Vec<_> = names.iter().map(change).collect();
    let changes = Changes::start(&replication, statements.join(";"));
    replication.setup().await?;
    let count = "SELECT count(*) FROM pgsluice.chunk_state";
    let mut engine = replication.spawn()?;
    for _ in 0..kills {
        let before: i64 = replication.chain.c.scalar(DATABASE, count).await?.parse()?;
        wait_for("another chunk", DEADLINE, || async {
            ensure!(engine.is_running(), "the engine has ended:\n{}", engine.stderr());
            let done: i64 = replication.chain.c.scalar(DATABASE, count).await?.parse()?;
            Ok((done > before || engine.stderr().contains("streaming starts")).then_some(()))
        })
        .await?;
        engine.sigkill().await?;
        engine = replication.spawn()?;
    }
    wait_for("the end of the copy", COPY_DEADLINE, || async {
        ensure!(engine.is_running(), "the engine has ended:\n{}", engine.stderr());
        Ok(engine.stderr().contains("streaming starts").then_some(()))
    })
    .await?;
    changes.end().await?;
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    settle(&replication, &engine, &names).await?;
    stop(&engine).await?;
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'";
    ensure!(replication.chain.a.scalar(DATABASE, slots).await? == "0", "A has a logical slot");
    Ok(())
}

/// Rows that are far larger than what is handed on at once.
#[tokio::test]
async fn rows_of_50_megabytes_are_copied() -> Result<()> {
    let tables = ["a", "b", "c", "d"];
    let ddl = tables.map(|table| format!("CREATE TABLE {table} (id int PRIMARY KEY, note text);")).concat();
    let fill = |table| {
        format!(
            "INSERT INTO {table} SELECT n, repeat(md5(n::text), 50 * 1024 * 1024 / 32) FROM generate_series(1, 2) n;"
        )
    };
    let on_a = format!("{ddl}{}", tables.map(fill).concat());
    let replication = Replication::start_differing(ChainOptions::default(), &on_a, &ddl).await?;
    replication.configure("[snapshot]\n")?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_log(&engine, "streaming starts", 1).await?;
    assert_memory_is_bounded(&engine, 256)?;
    for table in tables {
        let sql = format!("SELECT string_agg(id || ' ' || md5(note), ', ' ORDER BY id) FROM {table}");
        let [_, b, c] = replication.servers();
        assert_eq!(b.scalar(DATABASE, &sql).await?, c.scalar(DATABASE, &sql).await?);
    }
    Ok(())
}
