//! What `status` says while the engine works.

use std::time::Duration;

use anyhow::{Result, ensure};
use pgsluice_testkit::wait_for;
use serde_json::Value;

use crate::load::{stop, wait_c, wait_streaming};
use crate::replication::{DATABASE, Replication};

/// The lag must not wait for the engine's next status update, which comes after 15 s at the earliest.
const DEADLINE: Duration = Duration::from_secs(10);

/// C is locked, so all that A writes ends up between the engine and C.
#[tokio::test]
async fn every_byte_of_lag_is_in_a_hop() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, note text)").await?;
    replication.configure("[stream]\nstatus_interval = \"30s\"\n")?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    replication.wait_caught_up().await?;
    let locker = replication.chain.c.connect(DATABASE).await?;
    locker.batch_execute("BEGIN; LOCK TABLE t").await?;
    let rows = "INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(1, 10000) n";
    replication.chain.a.sql(DATABASE, rows).await?;

    wait_for("all of the lag to be the last hop's", DEADLINE, || async {
        let status: Value = serde_json::from_str(&replication.succeed(&["status", "--format", "json"]).await?)?;
        let [receive, replay, decode, apply, total] =
            ["receive", "replay", "decode", "apply", "total"].map(|hop| status["lag"][hop]["bytes"].as_u64());
        let in_between = [receive, replay, decode].map(|bytes| bytes == Some(0));
        ensure!(in_between == [true; 3] && total > Some(2_000_000) && apply == total, "the lag is {}", status["lag"]);
        Ok(Some(()))
    })
    .await?;

    locker.batch_execute("ROLLBACK").await?;
    replication.wait_caught_up().await?;
    ensure!(!engine.stderr().contains('\x1b'), "a log in a file has colours: {:?}", engine.stderr());
    replication.assert_same(&["public.t"]).await
}

async fn status(replication: &Replication) -> Result<(Option<i32>, Value)> {
    let output = replication.command(&["status", "--format", "json"]).await?;
    Ok((output.code, serde_json::from_str(&output.stdout)?))
}

/// What a server that cannot be asked would have said is unknown, and what the others say is not.
#[tokio::test]
async fn what_is_unknown_is_not_none_and_what_is_known_is_shown() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY)").await?;
    replication.setup().await?;
    replication.catch_up().await?;
    let [a, b, c] = replication.servers();
    // A is away, and whatever it has written.
    let nowhere = "host=127.0.0.1 port=1 dbname=app user=postgres";
    replication.configure_servers(&b.dsn(DATABASE), Some(nowhere), &c.dsn(DATABASE), "")?;
    let (code, said) = status(&replication).await?;
    ensure!(code == Some(0) && said["state"] == "stopped", "{said}");
    ensure!(said["lag"]["total"]["bytes"].is_null() && said["lag"]["receive"]["bytes"].is_null(), "{said}");
    ensure!(
        said["lag"]["apply"].is_object() && said["errors"][0].as_str().is_some_and(|it| it.contains("primary")),
        "{said}"
    );
    // B is away. A knows what it keeps for it, and where it writes; C where it is.
    replication.configure("")?;
    a.sql(DATABASE, "INSERT INTO t SELECT generate_series(1, 1000)").await?;
    b.stop_fast().await?;
    let (code, said) = status(&replication).await?;
    ensure!(code == Some(1) && said["state"] == "unknown", "{said}");
    ensure!(said["primary_slot"]["name"] == "b_slot", "{said}");
    ensure!(said["primary_slot"]["retained_bytes"].is_u64(), "{said}");
    ensure!(said["lag"]["total"]["bytes"].as_u64() > Some(10_000), "{said}");
    ensure!(said["lag"]["decode"]["bytes"].is_null() && said["lag"]["replay"]["bytes"].is_null(), "{said}");
    Ok(())
}

/// WAL that changes nothing goes on, and the last transaction grows old.
#[tokio::test]
async fn an_idle_chain_has_no_lag_in_seconds() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY)").await?;
    replication.setup().await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (1)").await?;
    replication.catch_up().await?;
    let old = "SELECT clock_timestamp() - commit_time > interval '3 s' FROM pgsluice.progress";
    wait_c(&replication, "the last transaction to be old", old).await?;
    replication.chain.a.sql(DATABASE, "SELECT pg_log_standby_snapshot(); CHECKPOINT").await?;
    replication.chain.wait_b_caught_up().await?;
    let (_, said) = status(&replication).await?;
    let total = &said["lag"]["total"];
    ensure!(total["bytes"].as_u64() > Some(0), "{said}");
    ensure!(total["seconds"].as_f64().is_some_and(|seconds| seconds < 3.0), "{said}");
    // Once something has committed, it is behind since then at most.
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (2)").await?;
    replication.chain.wait_b_caught_up().await?;
    let (_, said) = status(&replication).await?;
    ensure!(said["lag"]["total"]["seconds"].as_f64() > Some(3.0), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_table_that_has_left_is_not_being_copied() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE left_alone (id int PRIMARY KEY)";
    let replication = Replication::start(ddl).await?;
    replication.configure("[snapshot]\ncopy_data = true\n")?;
    replication.setup().await?;
    replication.catch_up().await?;
    replication.chain.a.sql(DATABASE, "ALTER PUBLICATION pgsluice_test DROP TABLE left_alone").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.catch_up().await?;
    let (code, said) = status(&replication).await?;
    ensure!(code == Some(0) && said["state"] == "stopped", "{said}");
    let text = replication.succeed(&["status"]).await?;
    ensure!(text.contains("not replicated any more") && !text.contains("datasync"), "{text}");
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let (_, said) = status(&replication).await?;
    ensure!(said["state"] == "streaming", "{said}");
    stop(&engine).await
}
