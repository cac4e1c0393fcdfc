use anyhow::{Result, ensure};

use super::{between, copied, refused, running};
use crate::load::{expect_end, stop};
use crate::replication::{DATABASE, Replication};

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, w text)";
const ROWS: &str = "INSERT INTO t SELECT g, 'v' || g, 'w' || g FROM generate_series(1, 100) g";
const TABLE: [&str; 1] = ["public.t"];

/// A copy has all rows, and a stream of some would leave the others as they were.
#[tokio::test]
async fn a_publication_with_a_row_filter_is_refused_by_setup() -> Result<()> {
    let replication = Replication::start_differing(Default::default(), &format!("{DDL};{ROWS}"), DDL).await?;
    replication.configure("[snapshot]\n")?;
    let [a, _, c] = replication.servers();
    a.sql(
        DATABASE,
        "CREATE PUBLICATION pgsluice_test FOR TABLE t WHERE (id <> 2) WITH (publish_via_partition_root = true)",
    )
    .await?;
    replication.chain.wait_b_caught_up().await?;
    let output = replication.command(&["setup"]).await?;
    ensure!(output.code == Some(3), "{:?}: {}", output.code, output.stderr);
    ensure!(
        output.stderr.contains("row filter") && output.stderr.contains("\"public\".\"t\" (WHERE (id <> 2))"),
        "{}",
        output.stderr
    );
    ensure!(c.scalar(DATABASE, "SELECT to_regnamespace('pgsluice') IS NULL").await? == "t", "something was made");
    a.sql(DATABASE, between(&output.stderr, "on the primary: ", "; then")).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.setup().await?;
    replication.replicate("UPDATE t SET v = 'after' WHERE id = 2", &TABLE).await
}

/// At work and at the start; and what was lost meanwhile comes once it is whole again.
#[tokio::test]
async fn a_row_filter_that_is_put_on_is_refused() -> Result<()> {
    let replication = copied(DDL, ROWS).await?;
    let engine = running(&replication).await?;
    let filter = "ALTER PUBLICATION pgsluice_test SET TABLE t WHERE (id > 50); UPDATE t SET v = 'filtered'";
    replication.run_each(filter).await?;
    expect_end(&engine, 3, &["row filter", "\"public\".\"t\" (WHERE (id > 50))"]).await?;
    let said = refused(&replication, &["row filter", "(WHERE (id > 50))"]).await?;
    replication.run_each(between(&said, "on the primary: ", "; then")).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.replicate("UPDATE t SET w = 'after' WHERE id = 3", &TABLE).await?;
    // Nobody has seen it come and go.
    replication
        .run_each("ALTER PUBLICATION pgsluice_test SET TABLE t WHERE (id > 50); DELETE FROM t WHERE id < 9")
        .await?;
    replication.run_each("ALTER PUBLICATION pgsluice_test SET TABLE t").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.replicate("UPDATE t SET w = 'again' WHERE id = 30", &TABLE).await
}

#[tokio::test]
async fn operations_that_are_left_out_are_refused_at_work() -> Result<()> {
    let replication = copied(DDL, ROWS).await?;
    let [a, _, _] = replication.servers();
    let engine = running(&replication).await?;
    a.sql(DATABASE, "ALTER PUBLICATION pgsluice_test SET (publish = 'insert')").await?;
    replication.run_each("UPDATE t SET v = 'unpublished'").await?;
    expect_end(&engine, 3, &["leaves out UPDATE, DELETE, TRUNCATE"]).await?;
    let said = refused(&replication, &["leaves out UPDATE, DELETE, TRUNCATE", "has to be copied"]).await?;
    a.sql(DATABASE, between(&said, "on the primary: ", "; what")).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.replicate("UPDATE t SET w = 'after' WHERE id = 3", &TABLE).await
}

/// Values that C has must follow or go; nothing is removed unasked.
#[tokio::test]
async fn a_column_list_that_is_put_on_is_refused_until_it_is_wanted() -> Result<()> {
    let replication = copied(DDL, ROWS).await?;
    let [a, _, c] = replication.servers();
    let engine = running(&replication).await?;
    a.sql(DATABASE, "ALTER PUBLICATION pgsluice_test SET TABLE t (id, v)").await?;
    replication.run_each("UPDATE t SET w = 'unpublished', v = 'published'").await?;
    let said = ["column \"w\" of \"public\".\"t\" is not published any more", "`pgsluice resync \"public.t\"`"];
    expect_end(&engine, 3, &said).await?;
    refused(&replication, &said).await?;
    ensure!(c.scalar(DATABASE, "SELECT count(w) FROM t").await? == "100", "values are gone");
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    replication.catch_up().await?;
    let values = "SELECT count(w) || ' ' || count(v) FROM t WHERE v = 'published'";
    ensure!(c.scalar(DATABASE, values).await? == "0 100", "{}", c.scalar(DATABASE, values).await?);
    // All of it again: the values that were left out come too.
    let engine = running(&replication).await?;
    stop(&engine).await?;
    a.sql(DATABASE, "ALTER PUBLICATION pgsluice_test SET TABLE t").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.replicate("UPDATE t SET v = 'after' WHERE id = 3", &TABLE).await
}
