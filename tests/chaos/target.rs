//! C as a pair: the server that the engine writes to, a standby of it, and the address that leads to whichever of them is the primary.
//!
//! ```text
//!  engine ──to_target──► C ──to_standby──► its standby
//!           └─ failover: C is killed, the standby is promoted, to_target leads there, and that gets a standby in turn
//! ```
//!
//! The standby is a synchronous one, but around a failover that is to lose something. An engine commits without waiting for it, as for the
//! disk of C.

use std::time::Duration;

use anyhow::{Context, Result};
use pgsluice_testkit::{Chain, Proxy, Random, Server, SmallDisk, wait_for};

use crate::DISK_MIB;

const STANDBY: &str = "c_standby";
const DEADLINE: Duration = Duration::from_secs(60);
/// So long the standby receives nothing before C is lost.
const STALL_MAX: Duration = Duration::from_millis(1_500);
/// So long the load goes on beside a standby that nobody waits for before C is lost.
const ASYNCHRONOUS: Duration = Duration::from_secs(2);

/// Whether what C says to be flushed is on its standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    Synchronous,
    Asynchronous,
}

pub struct Standby {
    server: Server,
    /// Of its tables, where C has one.
    disk: Option<SmallDisk>,
    to_standby: Proxy,
}

impl Standby {
    /// Gives C a synchronous one.
    pub async fn start(c: &Server, disk: Option<&SmallDisk>) -> Result<Standby> {
        let to_standby = Proxy::start(c.port()).await?;
        let own = disk.map(|_| SmallDisk::mount_for(c, DISK_MIB)).transpose()?;
        let tablespaces: Vec<_> = disk.iter().zip(&own).map(|(here, there)| (here.path(), there.path())).collect();
        let server = c.make_standby(STANDBY, to_standby.port(), &tablespaces).await?;
        let standby = Standby { server, disk: own, to_standby };
        standby.replicate(c, Replication::Synchronous).await?;
        Ok(standby)
    }

    async fn replicate(&self, c: &Server, replication: Replication) -> Result<()> {
        let (names, state) = match replication {
            Replication::Synchronous => (STANDBY, "sync"),
            Replication::Asynchronous => ("", "async"),
        };
        c.reload(&[("synchronous_standby_names", names)]).await?;
        self.wait_for_state(c, &format!("sync_state = '{state}'")).await
    }

    async fn wait_for_state(&self, c: &Server, state: &str) -> Result<()> {
        let sql = format!("SELECT count(*) > 0 FROM pg_stat_replication WHERE state = 'streaming' AND {state}");
        let is_so = || async { Ok((c.scalar("postgres", &sql).await? == "t").then_some(())) };
        wait_for(&format!("the standby of C with {state}"), DEADLINE, is_so).await
    }

    /// C is lost, the standby takes its place, and gets one of its own.
    pub async fn fail_over(
        self,
        (chain, disk): (&mut Chain, &mut Option<SmallDisk>),
        to_target: &Proxy,
        (replication, random): (Replication, &mut Random),
    ) -> Result<Standby> {
        self.wait_for_state(&chain.c, "true").await?;
        if replication == Replication::Asynchronous {
            self.replicate(&chain.c, replication).await?;
            tokio::time::sleep(ASYNCHRONOUS).await;
        }
        self.to_standby.stall();
        random.pause(STALL_MAX).await;
        to_target.refuse();
        chain.c.kill().await?;
        // What was not passed on by then is lost with C.
        self.to_standby.refuse();
        self.to_standby.resume();
        self.server.promote().await.context("the standby of C")?;
        // Both end with the C that is lost.
        drop(std::mem::replace(&mut chain.c, self.server));
        *disk = self.disk;
        to_target.route_to(chain.c.port());
        to_target.accept();
        Standby::start(&chain.c, disk.as_ref()).await
    }
}
