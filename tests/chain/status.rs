//! What `status` says while the engine works.

use std::time::Duration;

use anyhow::{Result, ensure};
use pgsluice_testkit::wait_for;
use serde_json::Value;

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
