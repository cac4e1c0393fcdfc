//! Tables that change while rows of them flow.

use anyhow::Result;

use crate::replication::{DATABASE, Replication};

async fn on_both(replication: &Replication, ddl: &str) -> Result<()> {
    replication.chain.c.sql(DATABASE, ddl).await?;
    replication.chain.a.sql(DATABASE, ddl).await
}

/// C first, or at the same place in the stream: nothing stops.
#[tokio::test]
async fn columns_come_go_and_change_their_type() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, a text, b int)").await?;
    replication.setup().await?;
    // Where the table will be at the end.
    replication.configure("[tables]\ninclude = [\"public.*\", \"s.*\"]\n")?;
    let engine = replication.spawn()?;
    let a = &replication.chain.a;
    let table = ["public.t"];
    a.sql(DATABASE, "INSERT INTO t SELECT n, 'a' || n, n FROM generate_series(1, 10) n").await?;
    replication.wait_caught_up().await?;
    let steps = [
        ("ALTER TABLE t ADD c int", "INSERT INTO t VALUES (11, 'a', 1, 2); UPDATE t SET c = id WHERE id < 5"),
        (
            "ALTER TABLE t ADD d int NOT NULL DEFAULT 5",
            "INSERT INTO t (id) VALUES (12); UPDATE t SET d = 6 WHERE id = 1",
        ),
        ("ALTER TABLE t ALTER b TYPE bigint", "UPDATE t SET b = 5000000000 WHERE id = 2"),
        ("ALTER TABLE t ALTER a TYPE varchar(20)", "UPDATE t SET a = a || '!' WHERE id = 3"),
        ("ALTER TABLE t ALTER c TYPE text USING 'c' || c", "UPDATE t SET c = c || '!'"),
        ("CREATE INDEX t_b ON t (b)", "UPDATE t SET b = -b"),
    ];
    for (ddl, changes) in steps {
        on_both(&replication, ddl).await?;
        a.sql(DATABASE, changes).await?;
        replication.wait_caught_up().await?;
        replication.assert_same(&table).await?;
    }
    // Dropped on A first: C's column is one of its own from then on.
    a.sql(DATABASE, "ALTER TABLE t DROP b; UPDATE t SET a = 'dropped' WHERE id = 4; INSERT INTO t (id) VALUES (13)")
        .await?;
    replication.wait_caught_up().await?;
    replication.assert_same(&table).await?;
    replication.chain.c.sql(DATABASE, "ALTER TABLE t DROP b").await?;
    // A rename is the one that needs C to follow at the very place. So is a rename of the table.
    on_both(&replication, "ALTER TABLE t RENAME a TO \"A\"").await?;
    a.sql(DATABASE, "UPDATE t SET \"A\" = 'renamed' WHERE id = 5; INSERT INTO t (id) VALUES (14)").await?;
    replication.wait_caught_up().await?;
    on_both(&replication, "CREATE SCHEMA s; ALTER TABLE t SET SCHEMA s; ALTER TABLE s.t RENAME TO u").await?;
    a.sql(DATABASE, "UPDATE s.u SET d = 7 WHERE id = 6").await?;
    replication.wait_caught_up().await?;
    replication.assert_same(&["s.u"]).await?;
    assert!(engine.is_running());
    Ok(())
}

/// A schema that is renamed takes its tables along, and C has to follow at the same place.
#[tokio::test]
async fn a_schema_is_renamed_in_mid_stream() -> Result<()> {
    let ddl = "CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY, a text); \
               CREATE TABLE s.whole (n int); ALTER TABLE s.whole REPLICA IDENTITY FULL";
    let replication = Replication::start(ddl).await?;
    replication.configure("[tables]\ninclude = [\"s.*\"]\n")?;
    replication.setup().await?;
    replication.configure("[tables]\ninclude = [\"s.*\", \"renamed.*\"]\n")?;
    let engine = replication.spawn()?;
    let a = &replication.chain.a;
    a.sql(DATABASE, "INSERT INTO s.t SELECT n, 'a' FROM generate_series(1, 9) n; INSERT INTO s.whole VALUES (1), (1)")
        .await?;
    replication.wait_caught_up().await?;
    on_both(&replication, "ALTER SCHEMA s RENAME TO renamed").await?;
    a.sql(DATABASE, "UPDATE renamed.t SET a = 'b' WHERE id < 5; DELETE FROM renamed.whole WHERE ctid = '(0,1)'")
        .await?;
    crate::load::settle(&replication, &engine, &["renamed.t", "renamed.whole"]).await?;

    // On A first: what comes under the new name waits until C has it too.
    a.sql(DATABASE, "UPDATE renamed.t SET a = 'c' WHERE id = 1; ALTER SCHEMA renamed RENAME TO s").await?;
    a.sql(DATABASE, "UPDATE s.t SET a = 'd' WHERE id = 2; INSERT INTO s.whole VALUES (2)").await?;
    crate::load::wait_log(&engine, "the target has no table \"s\"", 1).await?;
    replication.chain.c.sql(DATABASE, "ALTER SCHEMA renamed RENAME TO s").await?;
    crate::load::settle(&replication, &engine, &["s.t", "s.whole"]).await?;
    crate::load::stop(&engine).await
}

#[tokio::test]
async fn rewrites_and_ddl_inside_of_transactions() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE whole (n int, a text);
               ALTER TABLE whole REPLICA IDENTITY FULL";
    let replication = Replication::start(ddl).await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    let a = &replication.chain.a;
    let tables = ["public.t", "public.whole"];
    a.sql(DATABASE, "INSERT INTO t SELECT n, 'a' FROM generate_series(1, 100) n; INSERT INTO whole SELECT * FROM t")
        .await?;
    for rewrite in ["VACUUM FULL t", "VACUUM FULL whole", "CLUSTER t USING t_pkey", "REINDEX TABLE t"] {
        a.sql(DATABASE, rewrite).await?;
        a.sql(DATABASE, "UPDATE t SET a = a || '!' WHERE id % 2 = 0; DELETE FROM whole WHERE n % 10 = 3").await?;
    }
    replication.wait_caught_up().await?;
    replication.assert_same(&tables).await?;
    replication.chain.c.sql(DATABASE, "ALTER TABLE t ADD b int; ALTER TABLE t ADD c int").await?;
    let inside = "\
        BEGIN; UPDATE t SET a = 'before' WHERE id < 10; ALTER TABLE t ADD b int DEFAULT 3; UPDATE t SET b = 4 WHERE id < 5;
        SAVEPOINT s; ALTER TABLE t ADD lost int; UPDATE t SET lost = 1; ROLLBACK TO s;
        CREATE TABLE made_and_dropped (x int); INSERT INTO made_and_dropped VALUES (1); DROP TABLE made_and_dropped;
        ALTER TABLE t ADD c int; UPDATE t SET c = b; ALTER TABLE t DROP b; INSERT INTO t VALUES (200, 'after', 9); COMMIT";
    a.sql(DATABASE, inside).await?;
    replication.wait_caught_up().await?;
    replication.assert_same(&tables).await?;
    assert!(engine.is_running());
    Ok(())
}

/// A first: the engine stops and names what C lacks; once C has it, all of it arrives.
#[tokio::test]
async fn a_column_that_the_target_lacks_stops_the_engine_until_it_is_there() -> Result<()> {
    let replication =
        Replication::start("CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE u (id int)").await?;
    replication.setup().await?;
    replication
        .run_each(
            "INSERT INTO t VALUES (1, 'before'); INSERT INTO u VALUES (1); ALTER TABLE t ADD \"New\" int;
             INSERT INTO t VALUES (2, 'after', 7); UPDATE t SET \"New\" = 8 WHERE id = 1; INSERT INTO u VALUES (2)",
        )
        .await?;
    for _ in 0..2 {
        let said = replication.halt().await?;
        assert!(said.contains("\"public\".\"t\"") && said.contains("no column \"New\""), "{said}");
        assert!(said.contains("at LSN"), "{said}");
    }
    replication.chain.c.sql(DATABASE, "ALTER TABLE t ADD \"New\" int").await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t", "public.u"]).await
}

/// Rows under the old name and under the new one may lie in one batch: what comes before the rename is committed, so
/// that C can be mended for what comes after it.
#[tokio::test]
async fn a_rename_on_the_source_first_can_be_mended() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, a text)").await?;
    replication.setup().await?;
    replication
        .run_each(
            "INSERT INTO t VALUES (1, 'before'); UPDATE t SET a = 'changed'; ALTER TABLE t RENAME a TO b;
             INSERT INTO t VALUES (2, 'after')",
        )
        .await?;
    let said = replication.halt().await?;
    assert!(said.contains("no column \"b\""), "{said}");
    assert_eq!(replication.chain.c.scalar(DATABASE, "SELECT id || a FROM t").await?, "1changed");
    replication.chain.c.sql(DATABASE, "ALTER TABLE t RENAME a TO b").await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await
}

#[tokio::test]
async fn a_table_that_the_target_lost_stops_the_engine_until_it_is_there() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, a text)").await?;
    replication.setup().await?;
    replication.replicate("INSERT INTO t VALUES (1, 'a')", &["public.t"]).await?;
    replication.chain.c.sql(DATABASE, "ALTER TABLE t RENAME TO away").await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (2, 'b')").await?;
    let said = replication.halt().await?;
    assert!(said.contains("no table \"public\".\"t\""), "{said}");
    replication.chain.c.sql(DATABASE, "ALTER TABLE away RENAME TO t").await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await
}
