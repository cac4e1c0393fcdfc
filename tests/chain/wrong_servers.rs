//! Targets that are, or could be, the database that is replicated: refused before anything is written, and by every command that
//! writes there. What only looks like it is a target like any other.

use anyhow::{Result, ensure};
use pgsluice_testkit::{ChainOptions, Server, assert_same};

use crate::replication::{DATABASE, Replication};
use crate::setup::ensure_said;

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, note text)";
const ROWS: &str = "INSERT INTO t SELECT n, 'a' FROM generate_series(1, 10) n";
/// All that write to the target.
const WRITING: [&[&str]; 9] = [
    &["schema"],
    &["schema", "--section", "sequences"],
    &["setup"],
    &["run", "--stop-at", "current"],
    &["run", "--stop-at", "current", "--on-existing", "truncate", "--yes"],
    &["resync", "--yes", "public.t"],
    &["skip", "--yes", "--lsn", "0/1"],
    &["bench", "--seconds", "1"],
    &["teardown", "--yes"],
];

async fn system_identifier(server: &Server) -> Result<String> {
    server.scalar(DATABASE, "SELECT system_identifier FROM pg_control_system()").await
}

/// Every command refuses, names the cluster, and speaks of nothing that would remove rows there.
async fn ensure_refused(replication: &Replication, said: &[&str]) -> Result<()> {
    let identifier = system_identifier(&replication.chain.a).await?;
    for command in WRITING {
        let output = replication.command(command).await?;
        ensure_said(&output, 3, &[said, &[identifier.as_str(), "database \"app\""]].concat())?;
        ensure!(!output.stderr.contains("truncate"), "{command:?} advises to empty production: {}", output.stderr);
    }
    Ok(())
}

/// A has its rows, and nothing of ours but what the right configuration has made.
async fn ensure_unharmed(replication: &Replication) -> Result<()> {
    let [a, b, _] = replication.servers();
    ensure!(a.scalar(DATABASE, "SELECT count(*) FROM t").await? == "10", "A has lost rows");
    ensure!(a.scalar(DATABASE, "SELECT to_regnamespace('pgsluice') IS NULL").await? == "t", "A has our schema");
    ensure!(a.scalar(DATABASE, "SELECT count(*) FROM pg_publication").await? == "1", "A's publications");
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'pgsluice_test'";
    ensure!(b.scalar(DATABASE, slots).await? == "1", "B's slot is gone");
    Ok(())
}

#[tokio::test]
async fn a_target_that_is_what_is_replicated_is_refused_by_every_command() -> Result<()> {
    let options = ChainOptions::default();
    let replication =
        Replication::start_differing(options.clone(), &format!("{DDL}; {ROWS}"), &format!("{DDL}; {ROWS}")).await?;
    replication.setup().await?;
    replication.replicate("UPDATE t SET note = 'b'", &["public.t"]).await?;
    let [a, b, c] = replication.servers();
    let (of_a, of_b) = (a.dsn(DATABASE), b.dsn(DATABASE));
    // By another name than in [primary].
    let copy = "[snapshot]\ncopy_data = true\n";
    replication.configure_servers(&of_b, Some(&of_a), &a.dsn_unix(DATABASE), copy)?;
    ensure_refused(&replication, &["that of the primary", &a.socket_dir().display().to_string()]).await?;
    // A as the source itself.
    replication.configure_servers(&of_a, None, &a.dsn_unix(DATABASE), copy)?;
    ensure_refused(&replication, &["that of the source"]).await?;
    // Nobody but the target could tell.
    replication.configure_servers(&of_b, None, &of_a, copy)?;
    ensure_refused(&replication, &["cannot be told from the primary", "name the primary in [primary]"]).await?;
    // One digit of the port.
    replication.configure_servers(&of_b, Some(&of_a), &of_b, copy)?;
    ensure_refused(&replication, &["that of the source", &b.port().to_string()]).await?;
    let b2 = replication.chain.start_cascaded(&options).await?;
    replication.configure_servers(&of_b, Some(&of_a), &b2.dsn(DATABASE), copy)?;
    ensure_refused(&replication, &["takes no writes", &b2.port().to_string()]).await?;
    ensure_unharmed(&replication).await?;

    replication.configure_servers(&of_b, Some(&of_a), &c.dsn(DATABASE), "")?;
    replication.replicate("UPDATE t SET note = 'c'; DELETE FROM t WHERE id = 5", &["public.t"]).await
}

#[tokio::test]
async fn another_database_of_the_same_cluster_is_a_target() -> Result<()> {
    let replication = Replication::start(DDL).await?;
    let [a, b, _] = replication.servers();
    a.sql("postgres", "CREATE DATABASE other").await?;
    a.sql("other", DDL).await?;
    replication.chain.wait_b_caught_up().await?;
    let rows = "SELECT string_agg(id || note, ' ' ORDER BY id) FROM t";
    for source in [b.dsn(DATABASE), a.dsn(DATABASE)] {
        let primary = (source != a.dsn(DATABASE)).then(|| a.dsn(DATABASE));
        replication.configure_servers(&source, primary.as_deref(), &a.dsn("other"), "")?;
        replication.setup().await?;
        a.sql(DATABASE, &format!("{ROWS}; UPDATE t SET note = 'b' WHERE id > 5")).await?;
        replication.catch_up().await?;
        assert_eq!(a.scalar("other", rows).await?, a.scalar(DATABASE, rows).await?);
        replication.succeed(&["teardown", "--yes"]).await?;
        a.sql(DATABASE, "TRUNCATE t").await?;
        a.sql("other", "TRUNCATE t").await?;
    }
    Ok(())
}

/// The system identifier and the database's OID are those of A: only the running servers tell them apart.
#[tokio::test]
async fn a_copy_of_the_cluster_that_was_promoted_is_a_target() -> Result<()> {
    let options = ChainOptions::default();
    let replication = Replication::start_with(options.clone(), DDL).await?;
    let [a, b, _] = replication.servers();
    a.sql(DATABASE, ROWS).await?;
    replication.chain.wait_b_caught_up().await?;
    let copy = replication.chain.start_cascaded(&options).await?;
    let seen = || async {
        Ok((copy.scalar(DATABASE, "SELECT count(*) FROM t").await.ok().as_deref() == Some("10")).then_some(()))
    };
    pgsluice_testkit::wait_for("the copy to have the rows", crate::replication::DEADLINE, seen).await?;
    copy.scalar(DATABASE, "SELECT pg_promote()").await?;
    assert_eq!(system_identifier(&copy).await?, system_identifier(a).await?);

    replication.configure_servers(&b.dsn(DATABASE), None, &copy.dsn(DATABASE), "")?;
    let output = replication.command(&["setup"]).await?;
    ensure_said(&output, 3, &["cannot be told from the primary", "name the primary in [primary]"])?;
    replication.configure_servers(&b.dsn(DATABASE), Some(&a.dsn(DATABASE)), &copy.dsn(DATABASE), "")?;
    replication.setup().await?;
    a.sql(DATABASE, "UPDATE t SET note = 'b' WHERE id > 5").await?;
    replication.catch_up().await?;
    replication.chain.wait_b_caught_up().await?;
    assert_same(b, &copy, DATABASE, &["public.t"]).await;

    // What B still has is for the copy, also when A is no more: setup could tell the two apart.
    a.sql(DATABASE, "DELETE FROM t WHERE id = 1").await?;
    replication.chain.wait_b_caught_up().await?;
    let end = b.scalar(DATABASE, "SELECT pg_last_wal_replay_lsn()").await?;
    a.stop_immediate().await?;
    replication.succeed(&["run", "--stop-at", &end]).await?;
    assert_eq!(copy.scalar(DATABASE, "SELECT count(*) FROM t").await?, "9");
    Ok(())
}
