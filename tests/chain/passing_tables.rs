//! Tables that the stream has changes of and that the publication does not hold any more, where it holds whatever there is.

use anyhow::{Result, ensure};
use pgsluice_testkit::ChainOptions;

use crate::load::{expect_end, settle, stop, wait_c, wait_log, wait_streaming};
use crate::replication::{DATABASE, Replication};

const KEPT: &str = "CREATE TABLE kept (id int PRIMARY KEY, n int);";
const SETTINGS: &str = "[stream]\nretry_limit = \"3s\"\n[snapshot]\njobs = 1\n";

/// A chain that is copied, with a publication of all tables, and no engine at work.
async fn start() -> Result<Replication> {
    let replication = Replication::start_differing(ChainOptions::default(), KEPT, KEPT).await?;
    replication.configure(SETTINGS)?;
    let publication = "CREATE PUBLICATION pgsluice_test FOR ALL TABLES WITH (publish_via_partition_root = true)";
    replication.chain.a.sql(DATABASE, publication).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.setup().await?;
    replication.catch_up().await?;
    Ok(replication)
}

/// Makes, fills and drops so many tables, each with a row of the table that stays in between.
async fn pass(replication: &Replication, names: std::ops::Range<usize>) -> Result<()> {
    for n in names {
        let sql = format!(
            "CREATE TABLE passing_{n} (id int PRIMARY KEY, v text); INSERT INTO passing_{n} VALUES (1, 'x'), (2, 'y');
             UPDATE passing_{n} SET v = 'z' WHERE id = 1; INSERT INTO kept VALUES ({n}, 1); DROP TABLE passing_{n}"
        );
        replication.run_each(&sql).await?;
    }
    Ok(())
}

#[tokio::test]
async fn tables_made_and_dropped_while_the_engine_is_away_cost_no_session() -> Result<()> {
    let replication = start().await?;
    pass(&replication, 0..40).await?;
    replication.chain.wait_b_caught_up().await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(0), "{}", output.stderr);
    let sessions = output.stderr.matches("streaming starts").count();
    ensure!(sessions == 1, "{sessions} sessions:\n{}", output.stderr);
    for said in ["\"passing_0\" is not published any more", "\"passing_39\" is not published any more"] {
        ensure!(output.stderr.contains(said), "does not say {said}: {}", output.stderr);
    }
    replication.assert_same(&["public.kept"]).await
}

/// Behind a backlog, with one among them that stays: it is copied, and no number of the others ends the run.
#[tokio::test]
async fn tables_that_pass_while_the_engine_streams_are_no_failures() -> Result<()> {
    let replication = start().await?;
    replication.chain.c.sql(DATABASE, "CREATE TABLE stays (id int PRIMARY KEY, v text)").await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let locker = replication.chain.c.connect(DATABASE).await?;
    locker.batch_execute("BEGIN; LOCK TABLE kept IN ACCESS EXCLUSIVE MODE").await?;
    pass(&replication, 0..20).await?;
    replication
        .run_each("CREATE TABLE stays (id int PRIMARY KEY, v text); INSERT INTO stays VALUES (1, 'x'), (2, 'y')")
        .await?;
    pass(&replication, 20..40).await?;
    replication.run_each("UPDATE stays SET v = 'z' WHERE id = 2").await?;
    replication.chain.wait_b_caught_up().await?;
    locker.batch_execute("COMMIT").await?;
    wait_log(&engine, "the stream takes over", 1).await?;
    settle(&replication, &engine, &["public.kept", "public.stays"]).await?;
    let sessions = engine.stderr().matches("streaming starts").count();
    ensure!(sessions < 10, "{sessions} sessions:\n{}", engine.stderr());
    stop(&engine).await
}

/// A large transaction that is applied before it commits changes a table that is as new as itself: nobody takes that for one
/// that has left.
#[tokio::test]
async fn a_new_table_of_a_large_transaction_in_progress_is_not_left_out() -> Result<()> {
    let replication = start().await?;
    replication.configure(&format!("{SETTINGS}[apply]\nbatch_bytes = \"64KiB\"\nbatch_rows = 500\n"))?;
    replication.chain.c.sql(DATABASE, "CREATE TABLE young (id int PRIMARY KEY, v text)").await?;
    replication.chain.b.reload(&[("logical_decoding_work_mem", "64kB")]).await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let large = replication.chain.a.connect(DATABASE).await?;
    large
        .batch_execute(
            "BEGIN; INSERT INTO kept SELECT g, g FROM generate_series(1, 10000) g; \
             CREATE TABLE young (id int PRIMARY KEY, v text); \
             INSERT INTO young SELECT g, md5(g::text) FROM generate_series(1, 100) g; UPDATE kept SET n = -n",
        )
        .await?;
    // Some of it is sent when as much of the next one is.
    let applied =
        "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'kept'::regclass AND mode = 'RowExclusiveLock')";
    wait_c(&replication, "rows of a transaction in progress", applied).await?;
    replication.run_each("INSERT INTO kept VALUES (0, 0)").await?;
    wait_c(&replication, "a row beside it", "SELECT EXISTS (SELECT FROM kept WHERE id = 0)").await?;
    large.batch_execute("COMMIT").await?;
    wait_log(&engine, "the stream takes over", 1).await?;
    settle(&replication, &engine, &["public.kept", "public.young"]).await?;
    stop(&engine).await
}

/// One that is published and not selected is refused as before, however old its changes are.
#[tokio::test]
async fn a_table_that_stays_published_is_not_taken_for_one_that_has_left() -> Result<()> {
    let replication = start().await?;
    let only = format!("[tables]\ninclude = [\"public.kept\"]\n{SETTINGS}");
    replication.configure(&only)?;
    pass(&replication, 0..3).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.catch_up().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    replication.run_each("CREATE TABLE stays (id int PRIMARY KEY); INSERT INTO stays VALUES (1)").await?;
    expect_end(&engine, 3, &["\"stays\", which [tables] does not select"]).await?;
    wait_log(&engine, "tables that are replicated have changed", 1).await?;
    replication.run_each("DROP TABLE stays; INSERT INTO kept VALUES (100, 1)").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.kept"]).await
}
