//! Tables of C that somebody changes under a running engine: it waits, says what to do, and goes on once that is done.

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::ChainOptions;

use crate::load::{settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, Replication};

const WAITS: &str = "waiting for this to be mended";
const TABLES: &[&str] = &["public.t", "public.other"];
const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, note text, n int); CREATE TABLE other (id int PRIMARY KEY)";

/// What is done to C, what is said then, and what mends it.
const CASES: [(&str, &[&str], &str); 5] = [
    (
        "ALTER TABLE t DROP COLUMN n",
        &["has no column \"n\"", "ADD COLUMN \"n\" integer;"],
        "ALTER TABLE t ADD COLUMN n int",
    ),
    (
        "ALTER TABLE t RENAME COLUMN note TO remark",
        &["has no column \"note\""],
        "ALTER TABLE t RENAME COLUMN remark TO note",
    ),
    ("ALTER TABLE t RENAME TO away", &["the target has no table \"public\".\"t\""], "ALTER TABLE away RENAME TO t"),
    (
        "DROP TABLE t",
        &["the target has no table \"public\".\"t\""],
        "CREATE TABLE t (id int PRIMARY KEY, note text, n int)",
    ),
    (
        "CREATE SCHEMA elsewhere; ALTER TABLE t SET SCHEMA elsewhere",
        &["the target has no table \"public\".\"t\""],
        "ALTER TABLE elsewhere.t SET SCHEMA public; DROP SCHEMA elsewhere",
    ),
];

#[tokio::test]
async fn what_is_gone_on_the_target_is_waited_for() -> Result<()> {
    let replication = Replication::start(DDL).await?;
    let [a, _, c] = replication.servers();
    for (round, netting) in [true, false].into_iter().enumerate() {
        replication.configure(&format!("[apply]\nnetting = {netting}\n"))?;
        replication.setup().await?;
        let engine = replication.spawn()?;
        wait_streaming(&engine, 1).await?;
        for (n, (obstacle, said, mend)) in CASES.iter().enumerate() {
            // Statements for the table are prepared.
            let id = 100 * (round * CASES.len() + n);
            a.sql(DATABASE, &format!("INSERT INTO t VALUES ({id}, 'x', 1); UPDATE t SET n = 2 WHERE id = {id}"))
                .await?;
            replication.wait_caught_up().await?;
            let before = engine.stderr().matches(said[0]).count();
            c.sql(DATABASE, obstacle).await?;
            a.sql(DATABASE, "INSERT INTO other SELECT coalesce(max(id), 0) + 1 FROM other").await?;
            a.sql(DATABASE, &format!("INSERT INTO t VALUES ({}, 'y', 2)", id + 1)).await?;
            wait_log(&engine, said[0], before + 1).await.with_context(|| (*obstacle).to_owned())?;
            let log = engine.stderr();
            ensure!(log.contains(WAITS), "{obstacle}: {log}");
            for text in *said {
                ensure!(log.contains(text), "{obstacle} does not say {text}: {log}");
            }
            ensure!(!log.contains("see to the row") && !log.contains("pgsluice skip"), "{obstacle}: {log}");
            c.sql(DATABASE, mend).await?;
            if obstacle.starts_with("DROP TABLE") || obstacle.contains("DROP COLUMN") {
                // What was there is gone with it.
                replication.wait_caught_up().await?;
                a.sql(DATABASE, "TRUNCATE t").await?;
            }
            settle(&replication, &engine, TABLES).await.with_context(|| (*obstacle).to_owned())?;
        }
        stop(&engine).await?;
    }
    Ok(())
}

/// The statement that is said is the one that helps.
#[tokio::test]
async fn rights_that_are_taken_are_named_and_waited_for() -> Result<()> {
    let replication = Replication::start_with(ChainOptions::default(), DDL).await?;
    replication.configure_unprivileged_target("").await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let [a, _, c] = replication.servers();
    let grant = |rights: &str| format!("GRANT {rights} ON TABLE \"public\".\"t\" TO \"writer\";");
    let cases = [
        ("REVOKE INSERT ON t FROM writer", grant("INSERT"), "INSERT INTO t SELECT max(id) + 1, 'x', 1 FROM t"),
        (
            "REVOKE UPDATE, DELETE ON t FROM writer",
            grant("UPDATE, DELETE"),
            "DELETE FROM t WHERE id = (SELECT min(id) FROM t)",
        ),
        ("REVOKE TRUNCATE ON t FROM writer", grant("TRUNCATE"), "TRUNCATE t; INSERT INTO t VALUES (50)"),
    ];
    a.sql(DATABASE, "INSERT INTO t SELECT i, 'x', 1 FROM generate_series(1, 9) i").await?;
    settle(&replication, &engine, TABLES).await?;
    for (revoke, grant, change) in cases {
        c.sql(DATABASE, revoke).await?;
        a.sql(DATABASE, change).await?;
        wait_log(&engine, &grant, 1).await.with_context(|| revoke.to_owned())?;
        let log = engine.stderr();
        ensure!(log.contains("42501") && log.contains("permission denied for table t") && log.contains(WAITS), "{log}");
        ensure!(!log.contains("see to the row"), "{log}");
        c.sql(DATABASE, &grant).await?;
        settle(&replication, &engine, TABLES).await.with_context(|| revoke.to_owned())?;
    }
    stop(&engine).await?;
    // A run with an end does not wait, and says the same.
    c.sql(DATABASE, "REVOKE INSERT ON t FROM writer").await?;
    a.sql(DATABASE, "INSERT INTO t VALUES (99)").await?;
    let said = replication.halt().await?;
    ensure!(said.contains(&grant("INSERT")) && said.contains("(at LSN "), "{said}");
    Ok(())
}

/// A row that is deleted stays on C with a mark, and its key is found by ON CONFLICT.
#[tokio::test]
async fn an_index_that_on_conflict_needs_is_waited_for() -> Result<()> {
    let on_c = "CREATE TABLE t (id int PRIMARY KEY, note text, gone boolean)";
    let replication =
        Replication::start_differing(ChainOptions::default(), "CREATE TABLE t (id int PRIMARY KEY, note text)", on_c)
            .await?;
    replication.configure("[[rule]]\ntable = 'public.t'\nsoft_delete = true\nset = { gone = \"$op = 'D'\" }\n")?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let [a, _, c] = replication.servers();
    a.sql(DATABASE, "INSERT INTO t VALUES (1, 'x')").await?;
    replication.wait_caught_up().await?;
    c.sql(DATABASE, "ALTER TABLE t DROP CONSTRAINT t_pkey").await?;
    a.sql(DATABASE, "INSERT INTO t VALUES (2, 'y')").await?;
    wait_log(&engine, WAITS, 1).await?;
    ensure!(engine.stderr().contains("unique index"), "{}", engine.stderr());
    c.sql(DATABASE, "ALTER TABLE t ADD PRIMARY KEY (id)").await?;
    replication.wait_caught_up().await?;
    ensure!(c.scalar(DATABASE, "SELECT count(*) FROM t WHERE NOT gone").await? == "2");
    stop(&engine).await
}
