//! What can happen to the servers, the network, the disk and the engine; each is healed before it returns, or heals by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Proxy, Random, Server, Signal};

use crate::target::Replication;
use crate::{DATABASE, Stage};

/// How long something is away.
const AWAY_MAX: Duration = Duration::from_secs(3);
/// How often the same is done to sessions, one time after the other.
const STORM: u32 = 150;
const STORM_PAUSE_MAX: Duration = Duration::from_millis(20);
const CLIENT_BACKENDS: &str = "backend_type = 'client backend'";
const WALSENDERS: &str = "backend_type = 'walsender' AND application_name <> 'b'";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    EngineKilled,
    EngineStopped,
    EnginePaused,
    EngineTakenOver,
    EngineTakenOverWhilePaused,
    PrimaryCrash,
    StandbyCrash,
    StandbyKilled,
    TargetCrash,
    TargetKilled,
    WalsenderTerminated,
    BackendTerminated,
    SourceCut,
    TargetCut,
    SourceStalled,
    TargetStalled,
    TargetLocked,
    DiskFull,
    TargetFailedOver,
    TargetFailedOverWithLoss,
    HostLost,
    BackendsCancelled,
    BackendsTerminated,
    SourceSessionsCancelled,
}

impl Fault {
    pub const ALL: [Fault; 24] = [
        Fault::EngineKilled,
        Fault::EngineStopped,
        Fault::EnginePaused,
        Fault::EngineTakenOver,
        Fault::EngineTakenOverWhilePaused,
        Fault::PrimaryCrash,
        Fault::StandbyCrash,
        Fault::StandbyKilled,
        Fault::TargetCrash,
        Fault::TargetKilled,
        Fault::WalsenderTerminated,
        Fault::BackendTerminated,
        Fault::SourceCut,
        Fault::TargetCut,
        Fault::SourceStalled,
        Fault::TargetStalled,
        Fault::TargetLocked,
        Fault::DiskFull,
        Fault::TargetFailedOver,
        Fault::TargetFailedOverWithLoss,
        Fault::HostLost,
        Fault::BackendsCancelled,
        Fault::BackendsTerminated,
        Fault::SourceSessionsCancelled,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Fault::EngineKilled => "engine: kill -9",
            Fault::EngineStopped => "engine: SIGTERM",
            Fault::EnginePaused => "engine: SIGSTOP, SIGCONT",
            Fault::EngineTakenOver => "engine: a second one",
            Fault::EngineTakenOverWhilePaused => "engine: a second one meanwhile",
            Fault::PrimaryCrash => "A: immediate stop",
            Fault::StandbyCrash => "B: immediate stop",
            Fault::StandbyKilled => "B: kill -9 of all processes",
            Fault::TargetCrash => "C: immediate stop",
            Fault::TargetKilled => "C: kill -9 of all processes",
            Fault::WalsenderTerminated => "B: walsender terminated",
            Fault::BackendTerminated => "C: backends terminated",
            Fault::SourceCut => "network to B: cut",
            Fault::TargetCut => "network to C: cut",
            Fault::SourceStalled => "network to B: silent",
            Fault::TargetStalled => "network to C: silent",
            Fault::TargetLocked => "C: a table locked",
            Fault::DiskFull => "C: disk full",
            Fault::TargetFailedOver => "C: failover, synchronous",
            Fault::TargetFailedOverWithLoss => "C: failover, asynchronous",
            Fault::HostLost => "engine: host lost",
            Fault::BackendsCancelled => "C: a storm of cancellations",
            Fault::BackendsTerminated => "C: a storm of terminations",
            Fault::SourceSessionsCancelled => "B: a storm of cancellations",
        }
    }

    pub fn is_possible(self, stage: &Stage) -> bool {
        match self {
            Fault::DiskFull => stage.disk.is_some(),
            Fault::HostLost => stage.far_host.is_some(),
            _ => true,
        }
    }

    pub async fn inject(self, stage: &mut Stage, random: &mut Random) -> Result<()> {
        let Stage { chain, to_source, to_target, engines, disk, standby, far_host } = stage;
        match self {
            Fault::EngineKilled => drop(engines.running().sigkill().await?),
            Fault::EngineStopped => engines.running().sigterm()?,
            Fault::EnginePaused => {
                engines.running().signal(Signal::STOP)?;
                random.pause(AWAY_MAX * 2).await;
                engines.running().signal(Signal::CONT)?;
            }
            Fault::EngineTakenOver => {
                engines.wait_streaming_again(0).await?;
                let older = engines.start_another()?;
                engines.wait_streaming().await?;
                engines.wait_fenced(&older).await?;
            }
            Fault::EngineTakenOverWhilePaused => {
                engines.wait_streaming_again(0).await?;
                engines.running().signal(Signal::STOP)?;
                let older = engines.start_another()?;
                random.pause(AWAY_MAX).await;
                older.signal(Signal::CONT)?;
                engines.wait_streaming().await?;
                engines.wait_fenced(&older).await?;
            }
            Fault::PrimaryCrash => crash(&chain.a, random).await?,
            Fault::StandbyCrash => crash(&chain.b, random).await?,
            Fault::TargetCrash => crash(&chain.c, random).await?,
            Fault::StandbyKilled => kill(&chain.b, random).await?,
            Fault::TargetKilled => kill(&chain.c, random).await?,
            Fault::WalsenderTerminated => end(&chain.b, "pg_terminate_backend", WALSENDERS).await?,
            Fault::BackendTerminated => end(&chain.c, "pg_terminate_backend", CLIENT_BACKENDS).await?,
            Fault::BackendsCancelled => storm(&chain.c, "pg_cancel_backend", CLIENT_BACKENDS, random).await?,
            Fault::BackendsTerminated => storm(&chain.c, "pg_terminate_backend", CLIENT_BACKENDS, random).await?,
            Fault::SourceSessionsCancelled => {
                let sessions = format!("({CLIENT_BACKENDS} OR {WALSENDERS})");
                storm(&chain.b, "pg_cancel_backend", &sessions, random).await?;
            }
            Fault::TargetFailedOver | Fault::TargetFailedOverWithLoss => {
                let replication = match self {
                    Fault::TargetFailedOver => Replication::Synchronous,
                    _ => Replication::Asynchronous,
                };
                let streams = engines.streams();
                let failing = standby.take().context("C has a standby")?;
                *standby = Some(failing.fail_over((chain, disk), to_target, (replication, random)).await?);
                match replication {
                    Replication::Synchronous => engines.wait_streaming_again(streams).await?,
                    Replication::Asynchronous => engines.meet_loss(streams).await?,
                }
            }
            Fault::HostLost => {
                let Some(far_host) = far_host else { return Ok(()) };
                engines.wait_streaming_again(0).await?;
                let older = engines.start_far(chain, far_host)?;
                engines.wait_streaming().await?;
                engines.wait_fenced(&older).await?;
                random.pause(AWAY_MAX).await;
                far_host.vanish()?;
                let lost = engines.start_another()?;
                engines.wait_streaming().await?;
                far_host.link(0).mend()?;
                engines.wait_fenced(&lost).await?;
            }
            Fault::SourceCut => cut(to_source, random).await,
            Fault::TargetCut => cut(to_target, random).await,
            Fault::SourceStalled => stall(to_source, random).await,
            Fault::TargetStalled => stall(to_target, random).await,
            Fault::TargetLocked => {
                let locker = chain.c.connect(DATABASE).await?;
                locker.batch_execute("BEGIN; LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE").await?;
                random.pause(AWAY_MAX).await;
                locker.batch_execute("ROLLBACK").await?;
            }
            Fault::DiskFull => {
                let Some(disk) = disk else { return Ok(()) };
                disk.fill()?;
                random.pause(AWAY_MAX * 2).await;
                disk.clear()?;
            }
        }
        Ok(())
    }
}

async fn crash(server: &Server, random: &mut Random) -> Result<()> {
    server.stop_immediate().await?;
    random.pause(AWAY_MAX).await;
    server.start().await
}

async fn kill(server: &Server, random: &mut Random) -> Result<()> {
    server.kill().await?;
    random.pause(AWAY_MAX).await;
    server.start().await
}

/// Has `how` done to sessions of the database, those of the engine and of whoever else is there but us.
async fn end(server: &Server, how: &str, which: &str) -> Result<()> {
    let ended = server.scalar(DATABASE, &of_sessions(how, which)).await?;
    ensure!(ended.parse::<u32>().is_ok(), "{ended}");
    Ok(())
}

/// The same, over and over.
async fn storm(server: &Server, how: &str, which: &str, random: &mut Random) -> Result<()> {
    let client = server.connect(DATABASE).await?;
    let sql = of_sessions(how, which);
    for _ in 0..STORM {
        client.batch_execute(&sql).await?;
        random.pause(STORM_PAUSE_MAX).await;
    }
    Ok(())
}

fn of_sessions(how: &str, which: &str) -> String {
    format!("SELECT count({how}(pid)) FROM pg_stat_activity WHERE {which} AND pid <> pg_backend_pid()")
}

async fn cut(network: &Proxy, random: &mut Random) {
    if random.below(2) == 0 {
        network.cut();
    } else {
        network.refuse();
        random.pause(AWAY_MAX).await;
        network.accept();
    }
}

async fn stall(network: &Proxy, random: &mut Random) {
    network.stall();
    random.pause(AWAY_MAX * 2).await;
    network.resume();
}
