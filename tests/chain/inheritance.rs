//! Tables that inherit from one another: each is copied, emptied and cut down by itself, as the source sends it.

use anyhow::{Result, ensure};
use pgsluice_testkit::ChainOptions;

use crate::load::{expect_end, settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, Replication};

const DDL: &str = "\
    CREATE TABLE par (id int PRIMARY KEY, v text); CREATE TABLE chi (x int, PRIMARY KEY (id)) INHERITS (par);
    CREATE TABLE loose (id int, v text); CREATE TABLE loose_chi () INHERITS (loose);
    ALTER TABLE loose REPLICA IDENTITY FULL; ALTER TABLE loose_chi REPLICA IDENTITY FULL;";
/// Of the same keys in both.
const ROWS: &str = "\
    INSERT INTO par SELECT g, 'par ' || g FROM generate_series(1, 500) g;
    INSERT INTO chi SELECT g, 'chi ' || g, g FROM generate_series(1, 500) g;
    INSERT INTO loose SELECT g, 'loose' FROM generate_series(1, 50) g; INSERT INTO loose_chi SELECT * FROM ONLY loose;";
const TABLES: [&str; 4] = ["public.par", "public.chi", "public.loose", "public.loose_chi"];
const COPY: &str = "[snapshot]\njobs = 1\nchunk_bytes = \"1MiB\"\n";

async fn start(on_c: &str) -> Result<Replication> {
    let (on_a, on_c) = (format!("{DDL}{ROWS}"), format!("{DDL}{on_c}"));
    let replication = Replication::start_differing(ChainOptions::default(), &on_a, &on_c).await?;
    replication.configure(COPY)?;
    Ok(replication)
}

/// As the rows are in the tables themselves, which a comparison of parents would not tell.
async fn assert_each_same(replication: &Replication, tables: &[&str]) -> Result<()> {
    replication.assert_same(tables).await?;
    let [_, b, c] = replication.servers();
    for table in tables {
        let sql = format!(
            "SELECT count(*) || ' ' || COALESCE(md5(string_agg(t::text, ',' ORDER BY t::text)), '') FROM ONLY {table} t"
        );
        let (on_b, on_c) = (b.scalar(DATABASE, &sql).await?, c.scalar(DATABASE, &sql).await?);
        ensure!(on_b == on_c, "ONLY {table}: {on_b} on B, {on_c} on C");
    }
    Ok(())
}

#[tokio::test]
async fn a_parent_that_is_copied_again_leaves_the_rows_of_its_children() -> Result<()> {
    let replication = start("").await?;
    replication.setup().await?;
    replication.catch_up().await?;
    assert_each_same(&replication, &TABLES).await?;
    for run in [
        ["run", "--stop-at", "current", "--on-existing", "refuse"],
        ["run", "--stop-at", "current", "--defer-indexes", "-v"],
    ] {
        replication.succeed(&["resync", "--yes", "public.par", "public.loose"]).await?;
        replication.run_each("UPDATE ONLY par SET v = v || '!'; DELETE FROM ONLY loose WHERE id < 4").await?;
        replication.succeed(&run).await?;
        assert_each_same(&replication, &TABLES).await?;
    }
    // Beside the others, which stream.
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    replication.succeed(&["resync", "--yes", "public.par"]).await?;
    wait_log(&engine, "the stream takes over", 1).await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await?;
    assert_each_same(&replication, &TABLES).await
}

#[tokio::test]
async fn a_parent_that_leaves_and_returns_leaves_the_rows_of_its_children() -> Result<()> {
    let replication = start("").await?;
    replication.setup().await?;
    replication.catch_up().await?;
    replication.run_each("ALTER PUBLICATION pgsluice_test DROP TABLE ONLY par").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.catch_up().await?;
    let back = "UPDATE ONLY par SET v = 'meanwhile' WHERE id < 9; ALTER PUBLICATION pgsluice_test ADD TABLE ONLY par; \
                UPDATE chi SET v = 'streamed' WHERE id > 490";
    replication.run_each(back).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.catch_up().await?;
    assert_each_same(&replication, &TABLES).await
}

/// A child that C alone has holds no rows of the parent: neither are they in the way, nor are they removed.
#[tokio::test]
async fn a_child_that_the_target_alone_has_is_left_alone() -> Result<()> {
    let own = "CREATE TABLE own () INHERITS (par); INSERT INTO own VALUES (1, 'own'), (1000, 'own');";
    for on_existing in ["refuse", "append", "truncate"] {
        let replication = start(own).await?;
        if on_existing == "truncate" {
            replication.chain.c.sql(DATABASE, "INSERT INTO par VALUES (1, 'old'), (2000, 'old')").await?;
        }
        replication.setup().await?;
        replication.succeed(&["run", "--stop-at", "current", "--on-existing", on_existing, "--yes"]).await?;
        replication.succeed(&["resync", "--yes", "public.par"]).await?;
        replication.catch_up().await?;
        let rows = replication.chain.c.scalar(DATABASE, "SELECT string_agg(id || v, ' ' ORDER BY id) FROM own").await?;
        ensure!(rows == "1own 1000own", "{on_existing}: {rows}");
        replication.chain.c.sql(DATABASE, "DROP TABLE own").await?;
        assert_each_same(&replication, &TABLES).await?;
    }
    Ok(())
}

/// The child is done, and of the parent some chunks are: it is cut down by its own keys, and the child's rows of the same keys stay.
#[tokio::test]
async fn an_interrupted_copy_of_a_parent_is_cut_down_by_itself() -> Result<()> {
    let rows = "\
        INSERT INTO par SELECT g, repeat('p', 60) FROM generate_series(1, 40000) g;
        INSERT INTO chi SELECT g, repeat('c', 60), g FROM generate_series(1, 60000) g;";
    let on_c = format!("{DDL} ALTER TABLE par ADD CONSTRAINT stops CHECK (id <> 35000) NO INHERIT");
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{DDL}{rows}"), &on_c).await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    expect_end(&engine, 1, &["stops"]).await?;
    let c = &replication.chain.c;
    let done = "SELECT count(*) FROM pgsluice.table_state WHERE table_name = 'chi' AND state = 'finishedcopy'";
    ensure!(c.scalar(DATABASE, done).await? == "1", "the child is not done");
    ensure!(c.scalar(DATABASE, "SELECT count(*) > 0 FROM ONLY par").await? == "t", "no chunk of the parent is done");
    c.sql(DATABASE, "ALTER TABLE par DROP CONSTRAINT stops").await?;
    replication
        .run_each("DELETE FROM ONLY par WHERE id % 7 = 0; UPDATE ONLY par SET v = 'new' WHERE id % 5 = 0")
        .await?;
    replication.chain.wait_b_caught_up().await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(0), "{}", output.stderr);
    ensure!(output.stderr.contains("kept of an interrupted copy"), "{}", output.stderr);
    assert_each_same(&replication, &TABLES[..2]).await
}

/// C has made the child a partition of the parent: to empty the one would empty the other, which is replicated by itself.
#[tokio::test]
async fn a_child_that_is_a_partition_on_the_target_is_not_emptied_with_its_parent() -> Result<()> {
    let on_a = "CREATE TABLE par (id int PRIMARY KEY, v text); CREATE TABLE chi (PRIMARY KEY (id)) INHERITS (par);
                INSERT INTO par VALUES (-1, 'par'); INSERT INTO chi SELECT g, 'chi' FROM generate_series(1, 100) g";
    let on_c = "CREATE TABLE par (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
                CREATE TABLE rest PARTITION OF par FOR VALUES FROM (MINVALUE) TO (1);
                CREATE TABLE chi PARTITION OF par FOR VALUES FROM (1) TO (MAXVALUE);";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    replication.catch_up().await?;
    let mark = "UPDATE pgsluice.table_state SET state = 'datasync' WHERE table_name = 'par'";
    for command in [["resync", "--yes", "public.par"], ["run", "--stop-at", "current"]] {
        let refused = replication.command(&command).await?;
        ensure!(refused.code == Some(3), "{}", refused.stderr);
        for said in ["rows of \"public\".\"par\"", "its partition \"public\".\"chi\""] {
            ensure!(refused.stderr.contains(said), "does not say {said}: {}", refused.stderr);
        }
        // As an earlier version would have done.
        replication.chain.c.sql(DATABASE, mark).await?;
    }
    let rows = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM chi").await?;
    ensure!(rows == "100", "{rows} rows are left");
    Ok(())
}
