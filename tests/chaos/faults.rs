//! What can happen to the servers, the network, the disk and the engine; each is healed before it returns, or heals by itself.

use std::time::Duration;

use anyhow::{Result, ensure};
use pgsluice_testkit::{Proxy, Random, Server, Signal};

use crate::{DATABASE, Stage};

/// How long something is away.
const AWAY_MAX: Duration = Duration::from_secs(3);

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
}

impl Fault {
    pub const ALL: [Fault; 18] = [
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
        }
    }

    pub fn is_possible(self, stage: &Stage) -> bool {
        self != Fault::DiskFull || stage.disk.is_some()
    }

    pub async fn inject(self, stage: &mut Stage, random: &mut Random) -> Result<()> {
        let Stage { chain, to_source, to_target, engines, disk } = stage;
        match self {
            Fault::EngineKilled => drop(engines.running().sigkill().await?),
            Fault::EngineStopped => engines.running().sigterm()?,
            Fault::EnginePaused => {
                engines.running().signal(Signal::STOP)?;
                random.pause(AWAY_MAX * 2).await;
                engines.running().signal(Signal::CONT)?;
            }
            Fault::EngineTakenOver => {
                let older = engines.start_another()?;
                engines.wait_streaming().await?;
                engines.wait_fenced(&older).await?;
            }
            Fault::EngineTakenOverWhilePaused => {
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
            Fault::WalsenderTerminated => terminate(&chain.b, "postgres", "backend_type = 'walsender'").await?,
            Fault::BackendTerminated => terminate(&chain.c, DATABASE, "backend_type = 'client backend'").await?,
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

async fn terminate(server: &Server, database: &str, which: &str) -> Result<()> {
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {which} AND pid <> pg_backend_pid()"
    );
    let ended = server.scalar(database, &sql).await?;
    ensure!(ended.parse::<u32>().is_ok(), "{ended}");
    Ok(())
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
