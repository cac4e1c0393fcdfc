//! Load on A, a watch over progress on C, and random moments: what the tests of faults share.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgsluice_proto::Lsn;
pub use pgsluice_testkit::Random;
use pgsluice_testkit::{ChainOptions, Engine, Pgbench, Server, wait_for};
use tokio::task::JoinHandle;

use crate::replication::{DATABASE, DEADLINE, Replication};

/// pgbench's tables. The history has no key: what is applied twice is there twice.
pub const PGBENCH_TABLES: [&str; 4] =
    ["public.pgbench_accounts", "public.pgbench_branches", "public.pgbench_history", "public.pgbench_tellers"];

/// Enough that every moment has transactions under way, little enough that an unoptimized engine keeps up.
const TRANSACTIONS_PER_S: &str = "--rate=300";
/// Longer than any test.
const LOAD_SECONDS: u32 = 3_600;

/// A replication of pgbench's tables, set up, with the same rows on A and C.
pub async fn pgbench_replication(options: ChainOptions) -> Result<Replication> {
    let replication = Replication::start_with(options, "").await?;
    let scale = 1;
    tokio::try_join!(
        Pgbench::init(&replication.chain.a, DATABASE, scale, &[]),
        Pgbench::init(&replication.chain.c, DATABASE, scale, &[]),
    )?;
    replication.assert_same(&PGBENCH_TABLES).await?;
    replication.setup().await?;
    Ok(replication)
}

/// TPC-B on A until it is dropped or killed, or A ends.
pub fn start_load(replication: &Replication) -> Result<Pgbench> {
    Pgbench::start(&replication.chain.a, DATABASE, 4, LOAD_SECONDS, &[TRANSACTIONS_PER_S])
}

/// Statements on A, over and over.
#[derive(Debug)]
pub struct Changes(JoinHandle<Result<()>>);

impl Changes {
    /// Runs these, which semicolons divide, until [`Changes::end`]: those between BEGIN and COMMIT are a transaction, any
    /// other is one of its own.
    pub fn start(replication: &Replication, statements: impl Into<String>) -> Changes {
        let (dsn, statements) = (replication.chain.a.dsn(DATABASE), statements.into());
        Changes(tokio::spawn(async move {
            let (client, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            loop {
                for statement in statements.split(';') {
                    client.batch_execute(statement).await?;
                }
            }
        }))
    }

    /// An error if they had ended by themselves.
    pub async fn end(self) -> Result<()> {
        self.0.abort();
        match self.0.await {
            Err(error) if error.is_cancelled() => Ok(()),
            ended => anyhow::bail!("the changes ended by themselves: {ended:?}"),
        }
    }
}

/// Waits until the engine has committed something more on C.
pub async fn wait_progress(replication: &Replication) -> Result<()> {
    let sql = "SELECT count(*) FROM public.pgbench_history";
    let before: u64 = replication.chain.c.scalar(DATABASE, sql).await?.parse()?;
    wait_for("more rows on C", DEADLINE, || async {
        let rows: u64 = replication.chain.c.scalar(DATABASE, sql).await?.parse()?;
        Ok((rows > before).then_some(()))
    })
    .await
}

/// Waits until this engine has brought C to where A is now, and compares.
pub async fn settle(replication: &Replication, engine: &Engine, tables: &[&str]) -> Result<()> {
    let caught_up = replication.wait_caught_up();
    let longer = Duration::from_secs(LOAD_SECONDS.into());
    let ended = wait_for("the end of the engine", longer, || async { Ok((!engine.is_running()).then_some(())) });
    let outcome = tokio::select! {
        caught_up = caught_up => caught_up,
        _ = ended => Err(anyhow::anyhow!("the engine has ended")),
    };
    outcome.with_context(|| format!("stderr:\n{}", engine.stderr()))?;
    replication.assert_same(tables).await
}

/// Waits until C says that this is true.
pub async fn wait_c(replication: &Replication, what: &str, sql: &str) -> Result<()> {
    wait_for(what, DEADLINE, || async { Ok((replication.chain.c.scalar(DATABASE, sql).await? == "t").then_some(())) })
        .await
}

/// Waits until the engine streams, for the `session`th time.
pub async fn wait_streaming(engine: &Engine, session: usize) -> Result<()> {
    wait_log(engine, "streaming starts", session).await
}

/// Waits until the engine's log has said this so often.
pub async fn wait_log(engine: &Engine, text: &str, times: usize) -> Result<()> {
    let what = format!("\"{text}\" in the log");
    let is_logged = || engine.stderr().matches(text).count() >= times;
    let logged = || async {
        // What it said last counts.
        ensure!(engine.is_running() || is_logged(), "the engine has ended");
        Ok(is_logged().then_some(()))
    };
    wait_for(&what, DEADLINE, logged).await.with_context(|| format!("stderr:\n{}", engine.stderr()))
}

/// Waits until the engine has ended with this exit code, and has said all this on stderr.
pub async fn expect_end(engine: &Engine, code: i32, said: &[&str]) -> Result<()> {
    let status = engine.wait(DEADLINE).await?;
    let stderr = engine.stderr();
    ensure!(status.code() == Some(code), "ended with {status}, not with {code}:\n{stderr}");
    for text in said {
        ensure!(stderr.contains(text), "does not say \"{text}\":\n{stderr}");
    }
    Ok(())
}

/// Asks the engine to end, and waits until it has done so well and in time.
pub async fn stop(engine: &Engine) -> Result<()> {
    stop_by(engine, pgsluice_testkit::Signal::TERM).await
}

pub async fn stop_by(engine: &Engine, signal: pgsluice_testkit::Signal) -> Result<()> {
    /// Promised is one second. The rest is for a machine that is busy with other tests.
    const LIMIT: Duration = Duration::from_secs(5);
    let start = Instant::now();
    engine.signal(signal)?;
    expect_end(engine, 0, &[]).await?;
    ensure!(start.elapsed() < LIMIT, "it took {:?} to stop", start.elapsed());
    Ok(())
}

/// Reads progress on C all the time, through restarts of C, to see that it never goes back.
#[derive(Debug)]
pub struct ProgressWatch {
    ended: Arc<AtomicBool>,
    task: JoinHandle<Result<usize>>,
}

impl ProgressWatch {
    pub fn start(c: &Server) -> ProgressWatch {
        let ended = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(watch_progress(c.dsn(DATABASE), ended.clone()));
        ProgressWatch { ended, task }
    }

    /// Ends the watch; an error if progress ever went back, or never moved.
    pub async fn finish(self) -> Result<()> {
        self.ended.store(true, Ordering::Release);
        let steps = self.task.await??;
        ensure!(steps > 1, "progress never moved");
        Ok(())
    }
}

async fn watch_progress(dsn: String, ended: Arc<AtomicBool>) -> Result<usize> {
    let (mut highest, mut steps) = (Lsn::INVALID, 0);
    while !ended.load(Ordering::Acquire) {
        // C is restarted by some tests.
        let Ok((client, connection)) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await else { continue };
        tokio::spawn(connection);
        let sql = "SELECT end_lsn::text FROM pgsluice.progress WHERE name = 'test'";
        while let (false, Ok(row)) = (ended.load(Ordering::Acquire), client.query_one(sql, &[]).await) {
            let end_lsn: Lsn = row.get::<_, String>(0).parse()?;
            ensure!(end_lsn >= highest, "progress went back from {highest} to {end_lsn}");
            steps += usize::from(end_lsn > highest);
            highest = end_lsn;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(steps)
}

/// The most that the engine has held since it was started.
pub fn assert_memory_is_bounded(engine: &Engine, max_mib: u64) -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{}/status", engine.pid()))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM of the engine")?;
    let peak_mib = line.split_whitespace().nth(1).context("a number")?.parse::<u64>()? / 1024;
    println!("the engine has held {peak_mib} MiB");
    assert!(peak_mib < max_mib, "the engine has held {peak_mib} MiB");
    Ok(())
}
