//! C fails over to a replica: nothing is confirmed to the source that the replica could lack.
//!
//! ```text
//!   engine ──► to_target ──► C ◄── to_replica ◄── C2          C2 lags by what is held up between them; then C is killed,
//!                   └──────after the failover──────► C2       C2 is promoted, and the address of C is C2's
//! ```

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Chain, Engine, Proxy, Server, assert_same, wait_for};

use crate::load::{expect_end, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, Replication};

const TABLE: &str = "CREATE TABLE log (n int)";

/// The engine tells B twice a second what it may forget.
const STATUS: &str = "[stream]\nstatus_interval = '500ms'\n";

struct Scene {
    replication: Replication,
    to_target: Proxy,
    to_replica: Proxy,
    c2: Server,
}

impl Scene {
    async fn set(apply: &str) -> Result<Scene> {
        let replication = Replication::start(TABLE).await?;
        let c = &replication.chain.c;
        let (to_target, to_replica) = (Proxy::start(c.port()).await?, Proxy::start(c.port()).await?);
        let c2 = c.make_standby("c2", to_replica.port(), &[]).await?;
        let scene = Scene { replication, to_target, to_replica, c2 };
        scene.configure(apply)?;
        scene.replication.setup().await?;
        Ok(scene)
    }

    fn configure(&self, apply: &str) -> Result<()> {
        let Chain { a, b, .. } = &self.replication.chain;
        let more = format!("{STATUS}[apply]\n{apply}");
        let target = self.to_target.dsn(DATABASE);
        self.replication.configure_servers(&b.dsn(DATABASE), Some(&a.dsn(DATABASE)), &target, &more)
    }

    /// Inserts it on A, and returns where A is then.
    async fn insert(&self, n: i32) -> Result<String> {
        let a = &self.replication.chain.a;
        a.sql(DATABASE, &format!("INSERT INTO log VALUES ({n}), ({n})")).await?;
        a.scalar(DATABASE, "SELECT pg_current_wal_lsn()").await
    }

    async fn wait(&self, what: &str, server: &Server, sql: &str) -> Result<()> {
        wait_for(what, DEADLINE, || async { Ok((server.scalar(DATABASE, sql).await? == "t").then_some(())) }).await
    }

    async fn wait_on(&self, server: &Server, n: i32) -> Result<()> {
        let sql = format!("SELECT count(*) = 2 FROM log WHERE n = {n}");
        self.wait(&format!("row {n} on {}", server.name()), server, &sql).await
    }

    async fn is_confirmed(&self, position: &str) -> Result<bool> {
        let sql = format!("SELECT bool_or(confirmed_flush_lsn >= '{position}') FROM pg_replication_slots");
        Ok(self.replication.chain.b.scalar(DATABASE, &sql).await? == "t")
    }

    async fn wait_confirmed(&self, position: &str) -> Result<()> {
        wait_for("the slot to be confirmed", DEADLINE, || async {
            Ok(self.is_confirmed(position).await?.then_some(()))
        })
        .await
    }

    /// C dies, and C2 takes its place.
    async fn fail_over(&self) -> Result<()> {
        self.replication.chain.c.kill().await?;
        // What was on its way to it is lost.
        self.to_replica.refuse();
        self.c2.promote().await?;
        self.to_target.route_to(self.c2.port());
        Ok(())
    }

    /// C2 has all that A has, once.
    async fn settle(&self, engine: &Engine) -> Result<()> {
        let position = self.insert(1_000).await?;
        let sql = format!("SELECT end_lsn >= '{position}' FROM pgsluice.progress");
        let reached = async || {
            ensure!(engine.is_running(), "the engine has ended");
            Ok((self.c2.scalar(DATABASE, &sql).await? == "t").then_some(()))
        };
        wait_for("C2 at A's position", DEADLINE, reached).await.with_context(|| engine.stderr())?;
        self.replication.chain.wait_b_caught_up().await?;
        assert_same(&self.replication.chain.b, &self.c2, DATABASE, &["public.log"]).await;
        Ok(())
    }
}

/// With `synchronous_commit = off` rows are on C at once, and with `on` only when C2 has them. Either way nothing is confirmed before,
/// not even if somebody cancels the wait, of which a COMMIT only warns.
#[tokio::test]
async fn nothing_is_confirmed_that_a_synchronous_standby_lacks() -> Result<()> {
    for level in ["off", "on"] {
        let scene = Scene::set(&format!("synchronous_commit = '{level}'\n")).await?;
        let c = &scene.replication.chain.c;
        c.reload(&[("synchronous_standby_names", "c2")]).await?;
        let engine = scene.replication.spawn()?;
        wait_streaming(&engine, 1).await?;
        let position = scene.insert(1).await?;
        scene.wait_confirmed(&position).await?;
        scene.wait_on(&scene.c2, 1).await?;

        scene.to_replica.stall();
        let position = scene.insert(2).await?;
        if level == "off" {
            scene.wait_on(c, 2).await?;
        }
        let waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let cancel = "SELECT count(pg_cancel_backend(pid)) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        for _ in 0..3 {
            // Whichever comes first.
            wait_for("a wait for C2, or a confirmation", DEADLINE, || async {
                let waits = c.scalar(DATABASE, waiting).await? == "t";
                Ok((waits || scene.is_confirmed(&position).await?).then_some(()))
            })
            .await?;
            ensure!(!scene.is_confirmed(&position).await?, "{level}: confirmed, and not on C2");
            c.scalar(DATABASE, cancel).await?;
        }
        scene.wait("the next wait for C2", c, waiting).await?;
        scene.fail_over().await?;
        scene.settle(&engine).await?;
        wait_log(&engine, "session ended; it will be built anew", 1).await?;
        stop(&engine).await?;
    }
    Ok(())
}

/// An asynchronous replica has what is older than its lag. What is younger is not confirmed yet, and comes again; so does the fence, which
/// C2 has not had either.
#[tokio::test]
async fn what_an_asynchronous_replica_lacks_comes_again_with_a_delay() -> Result<()> {
    let scene = Scene::set("confirm_delay = '1s'\n").await?;
    let engine = scene.replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let position = scene.insert(1).await?;
    scene.wait_confirmed(&position).await?;
    stop(&engine).await?;
    scene.wait_on(&scene.c2, 1).await?;

    // Longer than all that follows.
    scene.configure("confirm_delay = '1h'\n")?;
    scene.to_replica.stall();
    let engine = scene.replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let position = scene.insert(2).await?;
    scene.wait_on(&scene.replication.chain.c, 2).await?;
    ensure!(!scene.is_confirmed(&position).await?, "confirmed before its time");
    scene.fail_over().await?;
    wait_log(&engine, "has failed over to a replica that had less", 1).await?;
    scene.settle(&engine).await?;
    stop(&engine).await
}

/// Without a delay the slot has forgotten what C2 lacks, which is said.
#[tokio::test]
async fn a_failover_that_has_lost_what_was_confirmed_is_refused() -> Result<()> {
    let scene = Scene::set("").await?;
    let engine = scene.replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    scene.insert(1).await?;
    scene.wait_on(&scene.c2, 1).await?;
    scene.to_replica.stall();
    let position = scene.insert(2).await?;
    scene.wait_confirmed(&position).await?;
    scene.fail_over().await?;
    expect_end(
        &engine,
        3,
        &["past the target's progress", "has failed over to a replica that had less", "confirm_delay"],
    )
    .await
}
