//! Tables that are copied while the others stream.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine, wait_for};
use tokio_postgres::Client;

use crate::load::{Changes, Random, expect_end, settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication};

const OLD: &str = "CREATE TABLE old (id int PRIMARY KEY, n int, note text);";
const LATE: &str = "CREATE TABLE late (id int PRIMARY KEY, u int UNIQUE, note text);
                    CREATE TABLE later (id int, day date, note text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
                    CREATE TABLE later_1 PARTITION OF later FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
                    CREATE TABLE later_2 PARTITION OF later DEFAULT;";
const TABLES: [&str; 3] = ["public.old", "public.late", "public.later"];

const OLD_ROWS: &str = "INSERT INTO old SELECT g, g % 10, md5(g::text) FROM generate_series(1, 5000) g;";
const LATE_ROWS: &str = "\
    INSERT INTO late SELECT g, g, repeat(md5(g::text), 20) FROM generate_series(1, 20000) g;
    INSERT INTO later SELECT g, date '2026-01-01' + g % 60, md5(g::text) FROM generate_series(1, 20000) g;";

/// Of every kind, in transactions of one table and of several.
const CHANGES: &str = "\
    BEGIN; UPDATE old SET n = n + 1 WHERE id = 1 + (random() * 4999)::int;
    UPDATE late SET note = note || 'x' WHERE id = 1 + (random() * 19999)::int; COMMIT;
    INSERT INTO late SELECT max(id) + 1, max(u) + 1, 'new' FROM late;
    UPDATE later SET day = day + 31 WHERE id = (random() * 20000)::int;
    DELETE FROM late WHERE id = (random() * 20000)::int;
    UPDATE late SET id = -id, u = -u WHERE id = (random() * 20000)::int;
    BEGIN; DELETE FROM later WHERE id % 1999 = 0; SAVEPOINT s; DELETE FROM late; ROLLBACK TO s;
    INSERT INTO later SELECT g, '2026-01-07', 'again' FROM generate_series(0, 20000, 1999) g; COMMIT;
    INSERT INTO old SELECT max(id) + 1, 0, 'new' FROM old;
    BEGIN; UPDATE old SET n = -1; UPDATE late SET note = ''; ROLLBACK";

const COPY: &str = "[snapshot]\njobs = 2\nchunk_bytes = \"1MiB\"\n";

/// A chain on which `old` streams, with the two others filled on A, empty on C, and not published yet.
async fn start() -> Result<(Replication, Engine)> {
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{OLD}{OLD_ROWS}"), OLD).await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    replication.wait_caught_up().await?;
    replication.chain.a.sql(DATABASE, &format!("{LATE}{LATE_ROWS}")).await?;
    replication.chain.c.sql(DATABASE, LATE).await?;
    Ok((replication, engine))
}

async fn publish(replication: &Replication) -> Result<()> {
    replication.chain.a.sql(DATABASE, "ALTER PUBLICATION pgsluice_test ADD TABLE late, later").await
}

/// The copy of the table on C cannot end before this session commits.
async fn block_copy(replication: &Replication, table: &str) -> Result<Client> {
    let blocker = replication.chain.c.connect(DATABASE).await?;
    blocker.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN EXCLUSIVE MODE")).await?;
    Ok(blocker)
}

const TAKEN_OVER: &str = "the stream takes over";

/// The first row of a table that nobody has told the engine of has it copied; meanwhile the others stream.
#[tokio::test]
async fn tables_that_join_are_copied_while_the_others_stream() -> Result<()> {
    let (replication, engine) = start().await?;
    let [_, _, c] = replication.servers();
    let blocker = block_copy(&replication, "late").await?;
    publish(&replication).await?;
    let changes = Changes::start(&replication, CHANGES);
    wait_log(&engine, "copying starts", 1).await?;
    replication.run_each("INSERT INTO old VALUES (-1, 0, 'while it is copied')").await?;
    wait_for("a row that came meanwhile", DEADLINE, || async {
        Ok((c.scalar(DATABASE, "SELECT count(*) FROM old WHERE id = -1").await? == "1").then_some(()))
    })
    .await?;
    ensure!(!engine.stderr().contains(TAKEN_OVER), "the copy was over before");
    blocker.batch_execute("COMMIT").await?;
    wait_log(&engine, TAKEN_OVER, 1).await?;
    changes.end().await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await?;
    let unfinished = "SELECT count(*) FROM pgsluice.table_state WHERE state NOT IN ('finishedcopy', 'ready')";
    ensure!(c.scalar(DATABASE, unfinished).await? == "0", "tables are not finished");
    replication.replicate("DELETE FROM late WHERE id % 2 = 0; TRUNCATE old, later", &TABLES).await
}

/// Waits until `late` is copied, and what followed is not applied.
async fn wait_copied(replication: &Replication) -> Result<()> {
    let copied = "SELECT count(*) FROM pgsluice.table_state WHERE table_name = 'late' AND state = 'catchup'";
    wait_for("the copy of a table", DEADLINE, || async {
        Ok((replication.chain.c.scalar(DATABASE, copied).await? == "1").then_some(()))
    })
    .await
}

/// What commits after the tables have changed hands waits for what committed before.
#[tokio::test]
async fn changes_keep_their_order_when_tables_change_hands() -> Result<()> {
    let (replication, engine) = start().await?;
    let [a, b, c] = replication.servers();
    // `late` is copied, and the copy of `later` waits.
    let blocker = block_copy(&replication, "later").await?;
    publish(&replication).await?;
    wait_copied(&replication).await?;
    // The catch-up will wait for this row.
    let row_blocker = c.connect(DATABASE).await?;
    row_blocker.batch_execute("BEGIN; SELECT FROM late WHERE id = 5 FOR UPDATE").await?;
    a.sql(DATABASE, "UPDATE late SET id = -5 WHERE id = 5").await?;
    replication.chain.wait_b_caught_up().await?;
    blocker.batch_execute("COMMIT").await?;
    wait_log(&engine, "change hands", 1).await?;
    replication.run_each("UPDATE late SET note = 'after' WHERE id = -5; UPDATE old SET n = 7 WHERE id = 5").await?;
    let end = a.scalar(DATABASE, "SELECT pg_current_wal_lsn()").await?;
    let sent = format!(
        "SELECT count(*) FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid \
         WHERE s.slot_name = 'pgsluice_test' AND r.sent_lsn >= '{end}'"
    );
    wait_for("the changes at the engine", DEADLINE, || async {
        Ok((b.scalar(DATABASE, &sent).await? == "1").then_some(()))
    })
    .await?;
    ensure!(!engine.stderr().contains(TAKEN_OVER), "the catch-up did not wait");
    row_blocker.batch_execute("COMMIT").await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}

/// Tables are marked while the engine runs, and while it does not, again and again.
#[tokio::test]
async fn tables_are_copied_again_under_load() -> Result<()> {
    let (replication, first) = start().await?;
    publish(&replication).await?;
    let changes = Changes::start(&replication, CHANGES);
    wait_log(&first, TAKEN_OVER, 1).await?;
    let damage = "UPDATE late SET note = 'damaged' WHERE id % 3 = 0; UPDATE later SET note = 'damaged'";
    replication.chain.c.sql(DATABASE, damage).await?;
    replication.succeed(&["resync", "--yes", "public.late*"]).await?;
    wait_log(&first, TAKEN_OVER, 2).await?;
    let mut engine = first;
    for table in ["public.late", "public.old", "public.later", "public.late*"] {
        replication.wait_caught_up().await?;
        stop(&engine).await?;
        replication.succeed(&["resync", "--yes", table]).await?;
        engine = replication.spawn()?;
        wait_log(&engine, TAKEN_OVER, 1).await?;
    }
    changes.end().await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}

/// Once no session of an engine that is dead is left on C.
async fn is_handed_over(replication: &Replication) -> Result<bool> {
    let [_, _, c] = replication.servers();
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgsluice'";
    wait_for("the end of an engine's sessions", DEADLINE, || async {
        Ok((c.scalar(DATABASE, sessions).await? == "0").then_some(()))
    })
    .await?;
    let copied = "SELECT count(*) FROM pgsluice.table_state WHERE table_name LIKE 'late%' AND state = 'finishedcopy'";
    Ok(c.scalar(DATABASE, copied).await? == "2")
}

/// Whenever it dies, amid the copy, the catch-up or the handover, the next one goes on.
#[tokio::test]
async fn an_engine_killed_while_tables_join() -> Result<()> {
    let mut random = Random::new();
    let (replication, first) = start().await?;
    publish(&replication).await?;
    let changes = Changes::start(&replication, CHANGES);
    wait_log(&first, "copying starts", 1).await?;
    let mut engine = first;
    for round in 0..12 {
        // From the beginning of the copy to some time after the handover.
        random.pause(std::time::Duration::from_millis(1 + 120 * (round % 6))).await;
        engine.sigkill().await?;
        if is_handed_over(&replication).await? {
            replication.succeed(&["resync", "--yes", "public.late*"]).await?;
        }
        engine = replication.spawn()?;
        wait_log(&engine, "copying starts", 1).await?;
    }
    wait_log(&engine, TAKEN_OVER, 1).await?;
    changes.end().await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}

/// B goes away amid the copy beside the stream, and C while the tables catch up.
#[tokio::test]
async fn servers_that_restart_while_tables_join() -> Result<()> {
    let (replication, engine) = start().await?;
    let [_, _, c] = replication.servers();
    let blocker = block_copy(&replication, "later").await?;
    publish(&replication).await?;
    let changes = Changes::start(&replication, CHANGES);
    wait_log(&engine, "copying starts", 1).await?;
    replication.chain.b.stop_immediate().await?;
    replication.chain.b.start().await?;
    wait_log(&engine, "copying starts", 2).await?;
    wait_copied(&replication).await?;
    let row_blocker = c.connect(DATABASE).await?;
    row_blocker.batch_execute("BEGIN; SELECT FROM late FOR UPDATE").await?;
    blocker.batch_execute("COMMIT").await?;
    wait_log(&engine, "catching up", 1).await?;
    replication.chain.c.stop_immediate().await?;
    replication.chain.c.start().await?;
    wait_log(&engine, TAKEN_OVER, 1).await?;
    changes.end().await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}

/// What came of a table that has left the publication again, without ever having been copied, is of no use on C.
#[tokio::test]
async fn a_table_that_was_published_for_a_while_is_left_out() -> Result<()> {
    let (replication, engine) = start().await?;
    stop(&engine).await?;
    publish(&replication).await?;
    let leave = "UPDATE late SET note = 'published' WHERE id < 10; DELETE FROM old WHERE id < 10;
                 ALTER PUBLICATION pgsluice_test DROP TABLE late; INSERT INTO old VALUES (-7, 7, 'after')";
    replication.run_each(leave).await?;
    replication.chain.wait_b_caught_up().await?;
    let engine = replication.spawn()?;
    wait_log(&engine, "\"late\" is not published any more", 1).await?;
    wait_log(&engine, TAKEN_OVER, 1).await?;
    settle(&replication, &engine, &["public.old", "public.later"]).await?;
    let rows = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM late").await?;
    ensure!(rows == "0", "{rows} rows of a table that is not replicated");
    // When it comes again it is copied like any other.
    replication.run_each("ALTER PUBLICATION pgsluice_test ADD TABLE late; UPDATE late SET note = 'again'").await?;
    wait_log(&engine, TAKEN_OVER, 2).await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}

/// What happens to a table while it is not published is in no stream: it is copied again when it comes back, whether the
/// engine was at work meanwhile or not.
#[tokio::test]
async fn a_table_that_leaves_and_comes_back_is_copied_again() -> Result<()> {
    let (replication, engine) = start().await?;
    publish(&replication).await?;
    wait_log(&engine, TAKEN_OVER, 1).await?;
    replication.run_each("ALTER PUBLICATION pgsluice_test DROP TABLE late").await?;
    wait_log(&engine, "\"late\" is not replicated any more", 1).await?;
    replication.run_each("DELETE FROM late WHERE id % 2 = 0; UPDATE old SET n = 1").await?;
    replication.run_each("ALTER PUBLICATION pgsluice_test ADD TABLE late; UPDATE late SET note = 'back'").await?;
    wait_log(&engine, TAKEN_OVER, 2).await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await?;

    replication.run_each("ALTER PUBLICATION pgsluice_test DROP TABLE late").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.catch_up().await?;
    replication.run_each("DELETE FROM late WHERE id % 3 = 0; ALTER PUBLICATION pgsluice_test ADD TABLE late").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.replicate("UPDATE late SET note = 'back again'", &TABLES).await
}

/// A table that is published and not selected is neither replicated by accident nor left out without a word.
#[tokio::test]
async fn a_published_table_that_is_not_selected_is_refused() -> Result<()> {
    let (replication, engine) = start().await?;
    stop(&engine).await?;
    let without = format!("[tables]\ninclude = [\"public.*\"]\nexclude = [\"public.later\"]\n{COPY}");
    replication.configure(&without)?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    publish(&replication).await?;
    replication.run_each("UPDATE later SET note = 'x'; UPDATE late SET note = 'x'; UPDATE old SET note = 'x'").await?;
    let said = ["\"public\".\"later\", which [tables] does not select", "DROP TABLE ONLY \"public\".\"later\""];
    expect_end(&engine, 3, &said).await?;
    // What was written for it until then is left out.
    replication.run_each("ALTER PUBLICATION pgsluice_test DROP TABLE later").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.replicate("UPDATE later SET note = 'y'", &["public.old", "public.late"]).await?;
    let rows = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM later").await?;
    ensure!(rows == "0", "{rows} rows of a table that is not selected");
    replication.configure(COPY)?;
    replication.run_each("ALTER PUBLICATION pgsluice_test ADD TABLE later").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.replicate("UPDATE later SET note = 'z' WHERE id < 100", &TABLES).await
}

/// Marked while it catches up, a table is not taken over as if nothing had been said.
#[tokio::test]
async fn a_table_that_is_marked_while_it_catches_up_is_copied_again() -> Result<()> {
    let (replication, engine) = start().await?;
    let [a, _, c] = replication.servers();
    let blocker = block_copy(&replication, "later").await?;
    publish(&replication).await?;
    wait_copied(&replication).await?;
    let row_blocker = c.connect(DATABASE).await?;
    row_blocker.batch_execute("BEGIN; SELECT FROM late WHERE id = 5 FOR UPDATE").await?;
    a.sql(DATABASE, "UPDATE late SET note = 'held' WHERE id = 5").await?;
    blocker.batch_execute("COMMIT").await?;
    wait_log(&engine, "catching up", 1).await?;
    // It waits for the catch-up's transaction, and comes right behind it.
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'WITH marked%'";
    let release = async {
        wait_for("resync to wait", DEADLINE, || async { Ok((c.scalar(DATABASE, waits).await? == "1").then_some(())) })
            .await?;
        let end = "UPDATE late SET note = 'damaged' WHERE id = 6; COMMIT";
        row_blocker.batch_execute(end).await.context("letting the catch-up go on")
    };
    tokio::try_join!(replication.succeed(&["resync", "--yes", "public.late"]), release)?;
    wait_log(&engine, "copying starts", 2).await?;
    wait_log(&engine, TAKEN_OVER, 1).await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}

/// The sessions that look for new tables can end without the stream's noticing.
#[tokio::test]
async fn a_lost_watch_does_not_disturb_the_stream() -> Result<()> {
    let (replication, engine) = start().await?;
    let [_, b, _] = replication.servers();
    let watch = "FROM pg_stat_activity WHERE application_name = 'pgsluice' AND backend_type = 'client backend'";
    // And whoever looks for a promotion.
    wait_for("the watch", DEADLINE, || async {
        Ok((b.scalar(DATABASE, &format!("SELECT count(*) {watch}")).await? == "2").then_some(()))
    })
    .await?;
    b.sql(DATABASE, &format!("SELECT pg_terminate_backend(pid) {watch}")).await?;
    wait_log(&engine, "whether there are tables to copy is not known", 1).await?;
    replication.run_each("UPDATE old SET n = 9").await?;
    settle(&replication, &engine, &["public.old"]).await?;
    let sessions = engine.stderr().matches("streaming starts").count();
    ensure!(sessions == 1, "{sessions} sessions");
    // And it is at work again.
    publish(&replication).await?;
    wait_log(&engine, TAKEN_OVER, 1).await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}

/// A TRUNCATE of a table that streams and of one that is copied beside it, which refers to it.
#[tokio::test]
async fn a_truncate_across_streams_is_applied_to_each_by_itself() -> Result<()> {
    let (replication, engine) = start().await?;
    let [a, _, c] = replication.servers();
    let refers = "CREATE TABLE refers (id int PRIMARY KEY, n int REFERENCES old)";
    c.sql(DATABASE, refers).await?;
    a.sql(DATABASE, &format!("{refers}; INSERT INTO refers SELECT g, g FROM generate_series(1, 100) g")).await?;
    let blocker = block_copy(&replication, "late").await?;
    a.sql(DATABASE, "ALTER PUBLICATION pgsluice_test ADD TABLE refers, late").await?;
    replication.chain.wait_b_caught_up().await?;
    stop(&engine).await?;
    // Both are in the stream while one of them is not on C yet.
    a.sql(DATABASE, "TRUNCATE old, refers; INSERT INTO old VALUES (1, 1, 'new'); INSERT INTO refers VALUES (1, 1)")
        .await?;
    let engine = replication.spawn()?;
    wait_log(&engine, "copying starts", 1).await?;
    blocker.batch_execute("COMMIT").await?;
    wait_log(&engine, TAKEN_OVER, 1).await?;
    settle(&replication, &engine, &["public.old", "public.refers", "public.late"]).await?;
    stop(&engine).await
}

/// Indexes are back before the changes that follow, foreign keys once the stream has the tables.
#[tokio::test]
async fn indexes_of_tables_that_join_can_wait_too() -> Result<()> {
    let (replication, first) = start().await?;
    stop(&first).await?;
    let [a, _, c] = replication.servers();
    let family = "CREATE TABLE parent (id int PRIMARY KEY, n int); CREATE INDEX parent_n ON parent (n);
                  CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, UNIQUE (parent, id));";
    let rows = "INSERT INTO parent SELECT g, g % 7 FROM generate_series(1, 3000) g;
                INSERT INTO child SELECT g, 1 + g % 3000 FROM generate_series(1, 9000) g;
                ALTER PUBLICATION pgsluice_test ADD TABLE parent, child";
    c.sql(DATABASE, family).await?;
    let definitions = "SELECT pg_get_indexdef(indexrelid) AS d FROM pg_index WHERE indrelid IN ('parent'::regclass, 'child'::regclass)
                       UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'child'::regclass AND convalidated ORDER BY d";
    let before = c.query_text(DATABASE, definitions).await?;
    a.sql(DATABASE, &format!("{family}{rows}")).await?;
    replication.chain.wait_b_caught_up().await?;
    let engine = Engine::spawn(Path::new(ENGINE), &replication.config(), &["run", "--defer-indexes"])?;
    wait_log(&engine, "indexes are made again", 1).await?;
    wait_log(&engine, TAKEN_OVER, 1).await?;
    replication
        .run_each(
            "INSERT INTO parent VALUES (-1, 0); INSERT INTO child VALUES (-1, -1); DELETE FROM child WHERE id % 5 = 0",
        )
        .await?;
    let deferred = "SELECT count(*) FROM pgsluice.deferred";
    wait_for("foreign keys", DEADLINE, || async { Ok((c.scalar(DATABASE, deferred).await? == "0").then_some(())) })
        .await?;
    ensure!(c.query_text(DATABASE, definitions).await? == before, "not all of {before:?} is there again");
    settle(&replication, &engine, &["public.old", "public.parent", "public.child"]).await?;
    stop(&engine).await
}

/// A table that cannot be copied stops the engine, and says why; what streams is whole.
#[tokio::test]
async fn a_table_that_joins_with_rows_on_the_target_is_refused() -> Result<()> {
    let (replication, engine) = start().await?;
    replication.chain.c.sql(DATABASE, "INSERT INTO late VALUES (7, 7, 'not of A')").await?;
    publish(&replication).await?;
    expect_end(&engine, 3, &["rows already in \"public\".\"late\"", "--on-existing truncate"]).await?;
    // Without it, what came of it until then is no matter.
    replication.run_each("UPDATE late SET note = 'x'; ALTER PUBLICATION pgsluice_test DROP TABLE late").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.replicate("UPDATE old SET n = 8", &["public.old", "public.later"]).await?;
    let rows = replication.chain.c.query_text(DATABASE, "SELECT note FROM late").await?;
    ensure!(rows.concat() == [Some("not of A".to_owned())], "{rows:?}");
    replication.run_each("ALTER PUBLICATION pgsluice_test ADD TABLE late").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.run_each("UPDATE old SET n = 7; UPDATE late SET note = 'x'").await?;
    replication.succeed(&["run", "--stop-at", "current", "--on-existing", "truncate", "--yes"]).await?;
    replication.assert_same(&TABLES).await
}

/// Without a copy nothing brings again what was under the old name: all of it comes, and then the new name does.
#[tokio::test]
async fn a_table_that_is_renamed_behind_a_backlog_loses_nothing() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY)").await?;
    replication.setup().await?;
    replication.catch_up().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let locker = replication.chain.c.connect(DATABASE).await?;
    locker.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await?;
    replication
        .run_each("INSERT INTO t SELECT generate_series(1, 100); ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (101)")
        .await?;
    wait_log(&engine, "tables that are replicated have changed", 1).await?;
    locker.batch_execute("ROLLBACK").await?;
    // It waits for the table under its new name, with all that came under the old one.
    wait_log(&engine, "the target has no table \"public\".\"u\"", 1).await?;
    ensure!(replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM t").await? == "100");
    replication.chain.c.sql(DATABASE, "ALTER TABLE t RENAME TO u").await?;
    settle(&replication, &engine, &["public.u"]).await?;
    stop(&engine).await
}
