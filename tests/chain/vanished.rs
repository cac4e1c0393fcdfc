//! Hosts and networks that are gone without a word: nobody closes a connection, and nobody hears of it. And the opposite: a server
//! that is there and says nothing for long.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine, FarHost, Link, wait_for};

use crate::load::{settle, stop, wait_c, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication};

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, note text)";
const TIMEOUT: &str = "tcp_user_timeout=2000";
/// A session of the engine on C waits for a lock.
const BLOCKED: &str = "SELECT count(*) > 0 FROM pg_stat_activity \
                       WHERE wait_event_type = 'Lock' AND application_name LIKE 'pgsluice%'";

/// Reached from everywhere, and with a walsender that soon lets go of whoever is gone.
fn options() -> ChainOptions {
    const NAME: &str = "listen_addresses";
    ChainOptions::default().a_conf(NAME, "*").b_conf(NAME, "*").c_conf(NAME, "*").b_conf("wal_sender_timeout", "2s")
}

/// An engine on another host, which has one way to A and B, and one to C.
fn configure_far(replication: &Replication, sources: &Link, target: &Link, more: &str) -> Result<()> {
    let [a, b, c] = replication.servers().map(|server| server.dsn(DATABASE));
    let dsn = |link: &Link, dsn: &str| format!("{} {TIMEOUT}", link.dsn(dsn));
    replication.configure_servers(&dsn(sources, &b), Some(&dsn(sources, &a)), &dsn(target, &c), more)
}

fn spawn_far(host: &FarHost, replication: &Replication) -> Result<Engine> {
    let mut command = host.command(Path::new(ENGINE));
    command.args(["run", "-c"]).arg(replication.config());
    Engine::spawn_command(command)
}

/// Its backend on C waits for a lock, with the answer to a statement still to come, or has answered, and nobody has acknowledged that.
#[tokio::test]
async fn an_engine_whose_host_vanishes_amid_a_batch_holds_up_no_other() -> Result<()> {
    let Some(host) = FarHost::start(1)? else { return Ok(()) };
    let replication = Replication::start_with(options(), DDL).await?;
    replication.setup().await?;
    let (a, c) = (&replication.chain.a, &replication.chain.c);
    replication.replicate("INSERT INTO t VALUES (1, 'old')", &["public.t"]).await?;
    for answers in [true, false] {
        configure_far(&replication, host.link(0), host.link(0), "")?;
        let far = spawn_far(&host, &replication)?;
        wait_streaming(&far, 1).await?;
        let holder = c.connect(DATABASE).await?;
        holder.batch_execute("BEGIN; SELECT FROM t WHERE id = 1 FOR UPDATE").await?;
        a.sql(DATABASE, &format!("UPDATE t SET note = 'answers: {answers}' WHERE id = 1")).await?;
        wait_c(&replication, "a batch to wait", BLOCKED).await?;
        host.vanish()?;
        if answers {
            holder.batch_execute("ROLLBACK").await?;
        }
        replication.configure("")?;
        let near = replication.spawn()?;
        wait_streaming(&near, 1).await?;
        if !answers {
            holder.batch_execute("ROLLBACK").await?;
        }
        settle(&replication, &near, &["public.t"]).await.with_context(|| format!("answers: {answers}"))?;
        stop(&near).await?;
        far.sigkill().await?;
        host.link(0).mend()?;
    }
    Ok(())
}

#[tokio::test]
async fn servers_that_vanish_are_noticed_and_gone_on_with() -> Result<()> {
    let Some(host) = FarHost::start(2)? else { return Ok(()) };
    let replication = Replication::start_with(options(), DDL).await?;
    replication.setup().await?;
    configure_far(&replication, host.link(0), host.link(1), "")?;
    let far = spawn_far(&host, &replication)?;
    wait_streaming(&far, 1).await?;
    for (n, link) in [1, 0].into_iter().enumerate() {
        host.link(link).cut()?;
        let rows = format!("INSERT INTO t SELECT {n} * 10000 + n, repeat('x', 1000) FROM generate_series(1, 5000) n");
        replication.chain.a.sql(DATABASE, &rows).await?;
        wait_log(&far, "session ended; it will be built anew", n + 1).await?;
        host.link(link).mend()?;
        settle(&replication, &far, &["public.t"]).await?;
    }
    ensure!(far.stderr().contains("the target has answered nothing"), "{}", far.stderr());
    stop(&far).await
}

#[tokio::test]
async fn a_target_that_vanishes_amid_a_copy_is_noticed() -> Result<()> {
    let Some(host) = FarHost::start(2)? else { return Ok(()) };
    let replication = Replication::start_with(options(), DDL).await?;
    replication
        .chain
        .a
        .sql(DATABASE, "INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) n")
        .await?;
    replication.chain.wait_b_caught_up().await?;
    let copies = "[snapshot]\ncopy_data = true\n";
    replication.configure(copies)?;
    replication.setup().await?;
    configure_far(&replication, host.link(0), host.link(1), copies)?;
    let c = &replication.chain.c;
    // A row that the copy wants to insert, and that nobody has yet.
    let holder = c.connect(DATABASE).await?;
    holder.batch_execute("BEGIN; INSERT INTO t VALUES (10000)").await?;
    let far = spawn_far(&host, &replication)?;
    wait_c(&replication, "the copy to wait", BLOCKED).await.with_context(|| far.stderr())?;
    host.link(1).cut()?;
    wait_log(&far, "session ended", 1).await?;
    holder.batch_execute("ROLLBACK").await?;
    host.link(1).mend()?;
    wait_streaming(&far, 1).await?;
    settle(&replication, &far, &["public.t"]).await?;
    stop(&far).await
}

/// While a backend waits for a lock it reads nothing, and TCP's window closes before what is still to be sent: the host is there all the same.
#[tokio::test]
async fn a_target_that_is_silent_is_not_taken_for_lost_and_says_what_it_waits_for() -> Result<()> {
    let replication = Replication::start(DDL).await?;
    let [a, b, c] = replication.servers();
    let target = format!("{} tcp_user_timeout=1000", c.dsn(DATABASE));
    let more = "[apply]\nnetting = false\nworkers = 1\n";
    replication.configure_servers(&b.dsn(DATABASE), Some(&a.dsn(DATABASE)), &target, more)?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    a.sql(DATABASE, "INSERT INTO t VALUES (1, 'old')").await?;
    replication.wait_caught_up().await?;
    let holder = c.connect(DATABASE).await?;
    let pid: i32 = holder.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    holder.batch_execute("BEGIN; SELECT FROM t WHERE id = 1 FOR UPDATE").await?;
    a.sql(
        DATABASE,
        "BEGIN; UPDATE t SET note = 'new' WHERE id = 1;
         INSERT INTO t SELECT n, repeat('x', 100000) FROM generate_series(2, 200) n; COMMIT",
    )
    .await?;
    wait_for("what C waits for to be said twice", DEADLINE, || async {
        let said = engine.stderr();
        let lines = said.lines().filter(|line| line.contains("no answer from the target"));
        Ok((lines.filter(|line| line.contains(&format!("held by process {pid}"))).count() >= 2).then_some(()))
    })
    .await
    .with_context(|| engine.stderr())?;
    holder.batch_execute("ROLLBACK").await?;
    settle(&replication, &engine, &["public.t"]).await?;
    ensure!(!engine.stderr().contains("session ended"), "{}", engine.stderr());
    stop(&engine).await
}
