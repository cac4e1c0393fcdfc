use anyhow::{Context, Result, ensure};

use super::{AGAIN, copied, copied_again, copied_with, refused, running};
use crate::load::{settle, stop, wait_log};
use crate::replication::{DATABASE, Replication};

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, w text)";
const ROWS: &str = "INSERT INTO t SELECT g, 'v' || g, 'w' || g FROM generate_series(1, 100) g";
const TABLE: [&str; 1] = ["public.t"];

const SWAPPED: &str = "ALTER TABLE t RENAME v TO x; ALTER TABLE t RENAME w TO v; ALTER TABLE t RENAME x TO w";

/// C has the names all the time, with the values of other columns under them.
#[tokio::test]
async fn a_name_that_another_column_has_now_has_the_table_copied_again() -> Result<()> {
    let back = format!("{SWAPPED}; UPDATE t SET v = 'in between' WHERE id < 10; {SWAPPED}");
    let for_a_while = "ALTER TABLE t RENAME v TO x; ALTER TABLE t ADD v text; UPDATE t SET v = 'of another' WHERE id = 7; \
                       ALTER TABLE t DROP v; ALTER TABLE t RENAME x TO v";
    let cases = [
        "ALTER TABLE t DROP v; ALTER TABLE t ADD v text",
        "ALTER TABLE t DROP v; ALTER TABLE t ADD v text DEFAULT 'default'; INSERT INTO t (id) SELECT max(id) + 1 FROM t",
        "ALTER TABLE t DROP v, ADD v text; UPDATE t SET v = 'new' WHERE id = 1; ALTER TABLE t ADD x int; ALTER TABLE t DROP x",
        "ALTER TABLE t DROP v; ALTER TABLE t RENAME w TO v; ALTER TABLE t ADD w text",
        SWAPPED,
        back.as_str(),
    ];
    for ddl in cases {
        let replication = copied(DDL, ROWS).await?;
        let case = async {
            replication.run_each("UPDATE t SET v = 'before' WHERE id = 2").await?;
            replication.run_each(ddl).await?;
            replication.chain.wait_b_caught_up().await?;
            replication.replicate("UPDATE t SET w = 'after' WHERE id = 3", &TABLE).await?;
            let engine = running(&replication).await?;
            replication.run_each(ddl).await?;
            wait_log(&engine, "is emptied on the target and copied again", 1).await?;
            copied_again(&replication, &engine, 1).await?;
            settle(&replication, &engine, &TABLE).await?;
            replication.run_each("UPDATE t SET v = w; INSERT INTO t VALUES (1000, 'v', 'w')").await?;
            settle(&replication, &engine, &TABLE).await?;
            stop(&engine).await
        };
        case.await.with_context(|| ddl.to_owned())?;
    }
    // C lacks a column of the time between, and is given it.
    for more in ["[snapshot]\n", "[snapshot]\n[apply]\nddl = \"additive\"\n"] {
        let replication = copied_with(DDL, ROWS, more).await?;
        replication.run_each(for_a_while).await?;
        replication.chain.wait_b_caught_up().await?;
        replication.replicate("UPDATE t SET w = 'after' WHERE id = 3", &TABLE).await.context(for_a_while)?;
    }
    Ok(())
}

/// What changes of a column without another's taking its name is no reason to copy anything.
#[tokio::test]
async fn a_column_that_stays_the_one_it_is_has_nothing_copied() -> Result<()> {
    let replication = copied(DDL, ROWS).await?;
    let [a, _, c] = replication.servers();
    let ddl = "ALTER TABLE t RENAME v TO renamed; ALTER TABLE t DROP w; ALTER TABLE t ADD more int DEFAULT 7";
    c.sql(DATABASE, ddl).await?;
    a.sql(DATABASE, ddl).await?;
    replication.chain.wait_b_caught_up().await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(0) && !output.stderr.contains(AGAIN), "{}", output.stderr);
    replication.replicate("UPDATE t SET more = 8, renamed = 'after' WHERE id = 3", &TABLE).await
}

#[tokio::test]
async fn without_a_copy_another_column_is_refused_by_name() -> Result<()> {
    let replication = Replication::start(&format!("{DDL};{ROWS}")).await?;
    replication.setup().await?;
    replication.catch_up().await?;
    replication.run_each("ALTER TABLE t DROP v; ALTER TABLE t ADD v text").await?;
    replication.chain.wait_b_caught_up().await?;
    refused(&replication, &["\"public\".\"t\"", "\"v\" is another column", "`pgsluice resync \"public.t\"`"]).await?;
    let [_, _, c] = replication.servers();
    ensure!(c.scalar(DATABASE, "SELECT count(v) FROM t").await? == "100", "values are gone");
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    replication.replicate("UPDATE t SET v = 'after' WHERE id = 3", &TABLE).await
}

/// What waits in the stream is of the old name, and the catalogs of both ends have the new one.
#[tokio::test]
async fn a_renamed_column_gets_no_second_one_for_what_came_before() -> Result<()> {
    for more in ["[snapshot]\n", "[snapshot]\n[apply]\nddl = \"additive\"\n"] {
        let replication = copied_with(DDL, ROWS, more).await?;
        let [_, _, c] = replication.servers();
        let before = "INSERT INTO t VALUES (101, 'v101', 'w'); UPDATE t SET v = 'changed' WHERE id < 5";
        replication
            .run_each(&format!("{before}; ALTER TABLE t RENAME v TO z; UPDATE t SET z = 'after' WHERE id = 9"))
            .await?;
        c.sql(DATABASE, "ALTER TABLE t RENAME v TO z").await?;
        replication.chain.wait_b_caught_up().await?;
        let said = replication.halt().await?;
        let rename = "ALTER TABLE \"public\".\"t\" RENAME COLUMN \"z\" TO \"v\";";
        ensure!(said.contains(rename) && said.contains("until LSN") && said.contains("at LSN"), "{said}");
        ensure!(!said.contains("ADD COLUMN"), "{said}");
        let names = "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute \
                     WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped";
        ensure!(c.scalar(DATABASE, names).await? == "id z w", "{}", c.scalar(DATABASE, names).await?);
        c.sql(DATABASE, rename).await?;
        let said = replication.halt().await?;
        let again = "ALTER TABLE \"public\".\"t\" RENAME COLUMN \"v\" TO \"z\";";
        ensure!(said.contains("has no column \"z\"") && said.contains(again), "{said}");
        c.sql(DATABASE, again).await?;
        replication.catch_up().await?;
        replication.assert_same(&TABLE).await?;
    }
    Ok(())
}

/// A column that C lacks, and whose name means another one by now.
#[tokio::test]
async fn a_column_whose_name_was_given_away_is_not_added() -> Result<()> {
    let cases = [
        // Of another type, and of the same; dropped, and renamed.
        "ALTER TABLE t ADD n int; UPDATE t SET n = id; ALTER TABLE t DROP n; ALTER TABLE t ADD n text; UPDATE t SET n = 'n' WHERE id = 5",
        "ALTER TABLE t ADD n int; UPDATE t SET n = id; ALTER TABLE t DROP n; ALTER TABLE t ADD n int; UPDATE t SET n = 5 WHERE id = 5",
        "ALTER TABLE t ADD n int; UPDATE t SET n = id; ALTER TABLE t RENAME n TO m; UPDATE t SET m = 5 WHERE id = 5",
    ];
    for ddl in cases {
        let replication = copied_with(DDL, ROWS, "[snapshot]\n[apply]\nddl = \"additive\"\n").await?;
        let [_, b, c] = replication.servers();
        replication.run_each(ddl).await?;
        replication.chain.wait_b_caught_up().await?;
        let said = replication.halt().await.with_context(|| ddl.to_owned())?;
        ensure!(said.contains("has no column \"n\"") && said.contains("pgsluice resync"), "{ddl}: {said}");
        let columns =
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped";
        ensure!(c.scalar(DATABASE, columns).await? == "3", "{ddl}: {said}");
        // As it is said: made as it is on the source, and copied again.
        let now = "SELECT format('ALTER TABLE t ADD %I %s', attname, format_type(atttypid, atttypmod)) FROM pg_attribute \
                   WHERE attrelid = 't'::regclass AND attnum > 3 AND NOT attisdropped";
        c.sql(DATABASE, &b.scalar(DATABASE, now).await?).await?;
        replication.succeed(&["resync", "--yes", "public.t"]).await?;
        replication.catch_up().await?;
        replication.assert_same(&TABLE).await?;
    }
    Ok(())
}

/// Several columns that come one after the other while nobody looks are no riddle.
#[tokio::test]
async fn columns_of_a_backlog_are_added_one_after_the_other() -> Result<()> {
    let replication = copied_with(DDL, ROWS, "[snapshot]\n[apply]\nddl = \"additive\"\n").await?;
    let ddl = "ALTER TABLE t ADD a int; UPDATE t SET a = id WHERE id < 5; ALTER TABLE t ADD b text DEFAULT 'b'; \
               UPDATE t SET b = 'c' WHERE id = 9; ALTER TABLE t ADD gone int; UPDATE t SET gone = 1 WHERE id = 3; \
               ALTER TABLE t DROP gone; UPDATE t SET b = 'd' WHERE id = 10";
    replication.run_each(ddl).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.catch_up().await?;
    replication.chain.c.sql(DATABASE, "ALTER TABLE t DROP gone").await?;
    replication.assert_same(&TABLE).await
}
