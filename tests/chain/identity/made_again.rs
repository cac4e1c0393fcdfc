use anyhow::{Result, ensure};
use tokio_postgres::Client;

use super::{AGAIN, between, copied, copied_again, copied_with, refused, running};
use crate::load::{expect_end, settle, stop, wait_log};
use crate::replication::{DATABASE, Replication};

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE other (id int PRIMARY KEY, note text)";
const ROWS: &str = "INSERT INTO t SELECT g, 'first' FROM generate_series(1, 100) g; \
                    INSERT INTO other SELECT g, 'other' FROM generate_series(1, 50) g";
const TABLES: [&str; 2] = ["public.t", "public.other"];

/// None of its rows is in the stream, since it was filled before it was published.
const MADE_AGAIN: &str = "\
    DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t SELECT g, 'second' FROM generate_series(1, 7) g;
    ALTER PUBLICATION pgsluice_test ADD TABLE t";
/// What is written meanwhile is in no stream.
const LEFT_AND_BACK: &str = "\
    ALTER PUBLICATION pgsluice_test DROP TABLE t; DELETE FROM t WHERE id % 2 = 0; INSERT INTO t VALUES (1000, 'unpublished');
    ALTER PUBLICATION pgsluice_test ADD TABLE t";
const SWAPPED: &str = "\
    ALTER TABLE t RENAME TO x; ALTER TABLE other RENAME TO t; ALTER TABLE x RENAME TO other";

/// As in one's sleep: nobody looks while it happens.
async fn while_stopped(ddl: &str) -> Result<()> {
    let replication = copied(DDL, ROWS).await?;
    replication.run_each("UPDATE t SET note = 'before' WHERE id < 5").await?;
    replication.run_each(ddl).await?;
    replication.run_each("INSERT INTO t VALUES (-1, 'after'); UPDATE other SET note = 'after' WHERE id = 3").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.catch_up().await?;
    replication.assert_same(&TABLES).await?;
    replication.replicate("UPDATE t SET note = note || '!'; DELETE FROM other WHERE id < 3", &TABLES).await
}

/// Whether or not a change comes before the next look.
async fn while_running(ddl: &str, after: &str, again: usize) -> Result<()> {
    let replication = copied(DDL, ROWS).await?;
    let engine = running(&replication).await?;
    replication.run_each(ddl).await?;
    replication.run_each(after).await?;
    copied_again(&replication, &engine, again).await?;
    settle(&replication, &engine, &TABLES).await?;
    replication.run_each("UPDATE t SET note = note || '!'; DELETE FROM other WHERE id < 3").await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}

#[tokio::test]
async fn a_table_that_is_dropped_and_made_again_is_copied_again() -> Result<()> {
    while_stopped(MADE_AGAIN).await?;
    while_running(MADE_AGAIN, "", 1).await?;
    // And it is said which, and why.
    let replication = copied(DDL, ROWS).await?;
    replication.run_each(MADE_AGAIN).await?;
    replication.chain.wait_b_caught_up().await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    let said = "\"public\".\"t\" is emptied on the target and copied again: another table has that name";
    ensure!(output.code == Some(0) && output.stderr.contains(said), "{}", output.stderr);
    ensure!(!output.stderr.contains("\"other\" is emptied"), "{}", output.stderr);
    replication.assert_same(&TABLES).await
}

/// The stream itself brings the OID.
#[tokio::test]
async fn a_change_of_a_table_that_was_made_again_is_not_taken_for_the_old_ones() -> Result<()> {
    let change = "UPDATE t SET note = 'changed' WHERE id = 3; INSERT INTO t VALUES (50, 'new')";
    while_running(MADE_AGAIN, change, 1).await?;
    while_stopped(&format!("{MADE_AGAIN}; {change}; {MADE_AGAIN}; {change}")).await
}

#[tokio::test]
async fn a_table_that_leaves_and_returns_unseen_is_copied_again() -> Result<()> {
    while_stopped(LEFT_AND_BACK).await?;
    // C lacks the row: without another look the engine would halt.
    while_running(LEFT_AND_BACK, "UPDATE t SET note = 'changed' WHERE id = 1000", 1).await
}

#[tokio::test]
async fn tables_that_swap_their_names_are_copied_again() -> Result<()> {
    while_stopped(SWAPPED).await?;
    while_running(SWAPPED, "", 2).await
}

/// Both ends of the interval look the same.
#[tokio::test]
async fn changes_under_a_name_that_a_table_had_for_a_while_are_not_lost() -> Result<()> {
    let swapped =
        format!("{SWAPPED}; INSERT INTO t VALUES (501, 'of other'); DELETE FROM other WHERE id = 9; {SWAPPED}");
    while_stopped(&swapped).await?;
    while_stopped(
        "ALTER TABLE t RENAME TO away; UPDATE away SET note = 'away' WHERE id = 8; ALTER TABLE away RENAME TO t",
    )
    .await
}

/// Of what is published because of its schema, or because all is, the catalog has no row of the table's own.
#[tokio::test]
async fn tables_of_schemas_and_of_all_are_told_apart_too() -> Result<()> {
    for of in ["FOR TABLES IN SCHEMA public", "FOR ALL TABLES"] {
        let ddl = format!("{DDL}; CREATE SCHEMA away");
        let replication = Replication::start(&ddl).await?;
        replication.configure("[snapshot]\n")?;
        let [a, _, _] = replication.servers();
        let publication = format!("CREATE PUBLICATION pgsluice_test {of} WITH (publish_via_partition_root = true)");
        a.sql(DATABASE, &format!("{ROWS}; {publication}")).await?;
        replication.chain.wait_b_caught_up().await?;
        replication.setup().await?;
        replication.catch_up().await?;
        let made_again = MADE_AGAIN.replace("ALTER PUBLICATION pgsluice_test ADD TABLE t", "");
        replication.run_each(&made_again).await?;
        replication.run_each("UPDATE t SET note = 'after' WHERE id = 1").await?;
        replication.chain.wait_b_caught_up().await?;
        replication.catch_up().await?;
        replication.assert_same(&TABLES).await?;
        if of != "FOR ALL TABLES" {
            let moved = "ALTER TABLE t SET SCHEMA away; UPDATE away.t SET note = 'unpublished'; ALTER TABLE away.t SET SCHEMA public";
            replication.run_each(moved).await?;
            replication.chain.wait_b_caught_up().await?;
            replication.replicate("INSERT INTO t VALUES (99, 'after')", &TABLES).await?;
        }
    }
    Ok(())
}

/// Where rows were on C before, none of them is removed unasked.
#[tokio::test]
async fn without_a_copy_another_table_is_refused_by_name() -> Result<()> {
    let replication = Replication::start(&format!("{DDL};{ROWS}")).await?;
    replication.setup().await?;
    replication.catch_up().await?;
    let engine = running(&replication).await?;
    replication.run_each(&format!("{MADE_AGAIN}; INSERT INTO t VALUES (900, 'new')")).await?;
    let said =
        ["\"public\".\"t\" on the source is not the table", "copy_data is false", "`pgsluice resync \"public.t\"`"];
    expect_end(&engine, 3, &said).await?;
    let [_, _, c] = replication.servers();
    ensure!(c.scalar(DATABASE, "SELECT count(*) FROM t WHERE note = 'first'").await? == "100", "rows are gone");
    refused(&replication, &said).await?;
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    replication.catch_up().await?;
    replication.assert_same(&TABLES).await?;

    // Or what is on C is said to be right.
    replication.run_each(LEFT_AND_BACK).await?;
    replication.chain.wait_b_caught_up().await?;
    let said = refused(&replication, &said).await?;
    c.sql(DATABASE, "DELETE FROM t WHERE id % 2 = 0; INSERT INTO t VALUES (1000, 'unpublished')").await?;
    c.sql(DATABASE, between(&said, "on the target: ", " stage=")).await?;
    replication.replicate("UPDATE t SET note = 'after'", &TABLES).await
}

/// Rows that only C has would go with it.
#[tokio::test]
async fn a_table_that_was_appended_to_is_refused() -> Result<()> {
    let replication = copied(DDL, ROWS).await?;
    let [a, _, c] = replication.servers();
    let late = "CREATE TABLE late (id int PRIMARY KEY, note text)";
    a.sql(
        DATABASE,
        &format!("{late}; INSERT INTO late VALUES (1, 'of A'); ALTER PUBLICATION pgsluice_test ADD TABLE late"),
    )
    .await?;
    c.sql(DATABASE, &format!("{late}; INSERT INTO late VALUES (-1, 'of C')")).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.succeed(&["run", "--stop-at", "current", "--on-existing", "append"]).await?;
    replication
        .run_each("ALTER PUBLICATION pgsluice_test DROP TABLE late; ALTER PUBLICATION pgsluice_test ADD TABLE late")
        .await?;
    replication.chain.wait_b_caught_up().await?;
    refused(&replication, &["\"public\".\"late\"", "has rows of others too"]).await?;
    ensure!(c.scalar(DATABASE, "SELECT count(*) FROM late").await? == "2", "rows are gone");
    Ok(())
}

/// Nothing of the kind is a change of the table.
#[tokio::test]
async fn what_leaves_a_table_the_one_it_is_has_nothing_copied() -> Result<()> {
    let replication = copied(DDL, ROWS).await?;
    let harmless = "\
        VACUUM FULL t; CLUSTER t USING t_pkey; REINDEX TABLE t; ALTER TABLE t ALTER note TYPE varchar(500); TRUNCATE other;
        ALTER PUBLICATION pgsluice_test OWNER TO postgres; ALTER TABLE t REPLICA IDENTITY FULL; GRANT SELECT ON t TO PUBLIC;
        ALTER TABLE t ALTER id TYPE bigint; UPDATE t SET note = 'after' WHERE id = 3; ANALYZE t";
    replication.chain.c.sql(DATABASE, "ALTER TABLE t ALTER id TYPE bigint").await?;
    replication.run_each(harmless).await?;
    replication.chain.wait_b_caught_up().await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(0) && !output.stderr.contains(AGAIN), "{}", output.stderr);
    replication.assert_same(&TABLES).await
}

/// An earlier version has kept nothing: what is there now is.
#[tokio::test]
async fn tables_of_an_earlier_version_are_kept_from_now_on() -> Result<()> {
    let replication = copied(DDL, ROWS).await?;
    let [_, _, c] = replication.servers();
    c.sql(DATABASE, "ALTER TABLE pgsluice.table_state DROP COLUMN identity").await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(0) && output.stderr.contains("was not kept before"), "{}", output.stderr);
    let kept = "SELECT count(*) FROM pgsluice.table_state WHERE identity IS NOT NULL";
    ensure!(c.scalar(DATABASE, kept).await? == "2");
    replication.run_each(MADE_AGAIN).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.replicate("INSERT INTO t VALUES (77, 'after')", &TABLES).await
}

/// A role that may not add the column goes on as the earlier version did, and says what it lacks.
#[tokio::test]
async fn a_role_that_may_not_keep_what_tables_are_is_told() -> Result<()> {
    let replication = copied_with(DDL, ROWS, "[snapshot]\n").await?;
    let [_, _, c] = replication.servers();
    let grants = "\
        ALTER TABLE pgsluice.table_state DROP COLUMN identity; CREATE ROLE writer LOGIN; GRANT USAGE ON SCHEMA public, pgsluice TO writer;
        GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public, pgsluice TO writer";
    c.sql(DATABASE, grants).await?;
    replication.configure_target_role("writer", "[snapshot]\n")?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(0) && output.stderr.contains("ADD COLUMN IF NOT EXISTS identity"), "{}", output.stderr);
    replication.replicate("INSERT INTO t VALUES (777, 'after')", &TABLES).await
}

/// Has C hold rows that are copied into a table until this session ends.
async fn hold_copy(replication: &Replication, table: &str) -> Result<Client> {
    let [_, _, c] = replication.servers();
    let trigger = format!(
        "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END';
         CREATE TRIGGER hold BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION hold();
         ALTER TABLE {table} ENABLE ALWAYS TRIGGER hold"
    );
    c.sql(DATABASE, &trigger).await?;
    let holder = c.connect(DATABASE).await?;
    holder.batch_execute("SELECT pg_advisory_lock(7)").await?;
    Ok(holder)
}

/// It is another table once its copy has begun, and again.
#[tokio::test]
async fn a_table_that_is_made_again_amid_its_copy_begins_again() -> Result<()> {
    let replication = copied(DDL, ROWS).await?;
    let holder = hold_copy(&replication, "t").await?;
    let engine = running(&replication).await?;
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    wait_log(&engine, "copying starts", 1).await?;
    engine.sigkill().await?;
    holder.batch_execute("SELECT pg_advisory_unlock(7)").await?;
    replication.run_each(MADE_AGAIN).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.catch_up().await?;
    replication.assert_same(&TABLES).await
}

#[tokio::test]
async fn a_table_that_is_made_again_while_others_are_copied_comes_too() -> Result<()> {
    let replication = copied(DDL, ROWS).await?;
    let holder = hold_copy(&replication, "other").await?;
    let engine = running(&replication).await?;
    replication.succeed(&["resync", "--yes", "public.other"]).await?;
    wait_log(&engine, "copying starts", 1).await?;
    replication.run_each(&format!("{MADE_AGAIN}; INSERT INTO t VALUES (55, 'new')")).await?;
    wait_log(&engine, AGAIN, 1).await?;
    holder.batch_execute("SELECT pg_advisory_unlock(7)").await?;
    copied_again(&replication, &engine, 1).await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}
