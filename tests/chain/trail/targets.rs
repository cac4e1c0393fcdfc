//! One capture, and targets with rules of their own that apply from it, each at its own pace.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pgsluice_proto::Lsn;
use pgsluice_testkit::{ChainOptions, Engine, Output, run, wait_for};

use super::{Trailed, segments};
use crate::load::{Changes, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, ENGINE};

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, region text, note text); CREATE TABLE log (n int, body text)";

/// A database on C.
struct Target {
    name: &'static str,
    ddl: &'static str,
    /// [tables] and rules.
    rules: &'static str,
    /// What B says that it has, and what it has.
    expected: &'static str,
    found: &'static str,
}

const EVEN: Target = Target {
    name: "even",
    ddl: "CREATE TABLE half (id int PRIMARY KEY, region text, note text); CREATE TABLE log (n int, body text)",
    rules: "[tables]\ninclude = [\"public.*\"]\n[[rule]]\ntable = \"public.t\"\nwhere = \"id % 2 = 0\"\nrename_to = \"public.half\"\n",
    expected: "SELECT md5(string_agg(id || region || coalesce(note, '-'), ',' ORDER BY id)) || ' ' || (SELECT count(*) FROM log) FROM t WHERE id % 2 = 0",
    found: "SELECT md5(string_agg(id || region || coalesce(note, '-'), ',' ORDER BY id)) || ' ' || (SELECT count(*) FROM log) FROM half",
};
const MASKED: Target = Target {
    name: "masked",
    ddl: "CREATE TABLE t (id int PRIMARY KEY, region text, origin text)",
    rules: "[tables]\ninclude = [\"public.t\"]\n[[rule]]\ntable = \"public.t\"\ndrop_columns = [\"note\"]\nset = { origin = \"'of ' || region\" }\n",
    expected: "SELECT md5(string_agg(id || region || 'of ' || region, ',' ORDER BY id)) FROM t",
    found: "SELECT md5(string_agg(id || region || origin, ',' ORDER BY id)) FROM t",
};

impl Target {
    fn config(&self, trailed: &Trailed, more: &str) -> Result<PathBuf> {
        let chain = &trailed.replication.chain;
        let path = trailed.folder.path().join(format!("{}.toml", self.name));
        let text = format!(
            "name = \"{}\"\n[source]\ndsn = \"{}\"\n[primary]\ndsn = \"{}\"\n[target]\ndsn = \"{}\"\n\
             [trail]\ndir = \"{}\"\nof = \"test\"\n{}{more}",
            self.name,
            chain.b.dsn(DATABASE),
            chain.a.dsn(DATABASE),
            chain.c.dsn(self.name),
            trailed.dir().display(),
            self.rules
        );
        std::fs::write(&path, text)?;
        Ok(path)
    }

    async fn make(&self, trailed: &Trailed, more: &str) -> Result<PathBuf> {
        let c = &trailed.replication.chain.c;
        c.sql("postgres", &format!("CREATE DATABASE {}", self.name)).await?;
        c.sql(self.name, self.ddl).await?;
        let config = self.config(trailed, more)?;
        let output = command(&config, &["setup"]).await?;
        ensure!(output.code == Some(0), "{output:?}");
        Ok(config)
    }

    async fn settle(&self, trailed: &Trailed, engine: &Engine) -> Result<()> {
        let chain = &trailed.replication.chain;
        let position: Lsn = chain.a.scalar(DATABASE, "SELECT pg_current_wal_lsn()").await?.parse()?;
        let progress = "SELECT end_lsn FROM pgsluice.progress";
        wait_for("a target at A's position", DEADLINE, || async {
            ensure!(engine.is_running(), "{} has ended", self.name);
            Ok((chain.c.scalar(self.name, progress).await?.parse::<Lsn>()? >= position).then_some(()))
        })
        .await
        .with_context(|| engine.stderr())?;
        chain.wait_b_caught_up().await?;
        let (expected, found) =
            (chain.b.scalar(DATABASE, self.expected).await?, chain.c.scalar(self.name, self.found).await?);
        ensure!(expected == found, "{}: {found}, not {expected}", self.name);
        Ok(())
    }
}

async fn command(config: &Path, arguments: &[&str]) -> Result<Output> {
    let config = config.to_str().context("a path in UTF-8")?;
    run(ENGINE.as_ref(), &[arguments, &["-c", config]].concat()).await
}

fn spawn(config: &Path) -> Result<Engine> {
    Engine::spawn(ENGINE.as_ref(), config, &["run"])
}

const CHANGES: &str = "BEGIN; INSERT INTO t SELECT coalesce(max(id), 0) + 1, 'eu', repeat('n', 500) FROM t;
    INSERT INTO log SELECT n, repeat('x', 2000) FROM generate_series(1, 20) n; COMMIT; UPDATE t SET region = 'us' WHERE id % 3 = 0 AND region = 'eu';
    DELETE FROM t WHERE id % 10 = 0; SELECT pg_sleep(0.01)";

#[tokio::test]
async fn three_targets_with_other_rules_each_have_what_is_theirs() -> Result<()> {
    let more = "segment_bytes = \"256KiB\"\n";
    let trailed = Trailed::start(ChainOptions::default(), DDL, more).await?;
    let replication = &trailed.replication;
    // From the beginning, with tables that are as they were then.
    let without_copy = "[snapshot]\ncopy_data = false\n";
    let [even, masked] = [EVEN.make(&trailed, without_copy).await?, MASKED.make(&trailed, without_copy).await?];
    let capture = trailed.capture()?;
    wait_log(&capture, "capturing starts", 1).await?;
    let changes = Changes::start(replication, CHANGES);
    let engines = [replication.spawn()?, spawn(&even)?, spawn(&masked)?];
    for engine in &engines {
        wait_streaming(engine, 1).await?;
    }
    let [own, even_engine, masked_engine] = engines;
    // One is stopped for a while, and all that it has not read is kept.
    stop(&masked_engine).await?;
    let first = segments(&trailed.dir())?[0].clone();
    let kept = segments(&trailed.dir())?.len();
    wait_for("more segments", DEADLINE, || async { Ok((segments(&trailed.dir())?.len() >= kept + 4).then_some(())) })
        .await?;
    ensure!(
        segments(&trailed.dir())?[0] == first || segments(&trailed.dir())?.len() >= 4,
        "what nobody else needs is kept for it"
    );
    let masked_engine = spawn(&masked)?;
    wait_streaming(&masked_engine, 1).await?;
    changes.end().await?;
    crate::load::settle(replication, &own, &["public.t", "public.log"]).await?;
    EVEN.settle(&trailed, &even_engine).await?;
    MASKED.settle(&trailed, &masked_engine).await?;
    wait_for("what all have passed to go", DEADLINE, || async {
        Ok((segments(&trailed.dir())?.len() <= 2).then_some(()))
    })
    .await?;
    for engine in [&own, &even_engine, &masked_engine, &capture] {
        stop(engine).await?;
    }
    // Each goes by itself, and slot and trail with the last.
    let output = replication.command(&["teardown", "--yes"]).await?;
    ensure!(output.code == Some(3) && output.stderr.contains("other readers: even, masked"), "{output:?}");
    for config in [&even, &masked] {
        let output = command(config, &["teardown", "--yes"]).await?;
        ensure!(output.code == Some(0), "{output:?}");
    }
    replication.succeed(&["teardown", "--yes"]).await.map(drop)
}

#[tokio::test]
async fn a_target_that_comes_later_is_copied_and_goes_on_from_the_trail() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "segment_bytes = \"256KiB\"\n").await?;
    let replication = &trailed.replication;
    let capture = trailed.capture()?;
    wait_log(&capture, "capturing starts", 1).await?;
    let own = replication.spawn()?;
    wait_streaming(&own, 1).await?;
    let changes = Changes::start(replication, CHANGES);
    wait_for("a trail that has lost its beginning", DEADLINE, || async {
        let first = segments(&trailed.dir())?.first().cloned();
        Ok(first.is_some_and(|first| !first.ends_with("0000000000000001.trail")).then_some(()))
    })
    .await?;
    replication.chain.c.sql("postgres", "CREATE DATABASE even").await?;
    replication.chain.c.sql("even", EVEN.ddl).await?;
    let config = EVEN.config(&trailed, "[snapshot]\ncopy_data = false\n")?;
    let output = command(&config, &["setup"]).await?;
    ensure!(output.code == Some(3) && output.stderr.contains("set copy_data = true"), "{output:?}");
    let config = EVEN.config(&trailed, "")?;
    let output = command(&config, &["setup"]).await?;
    ensure!(output.code == Some(0), "{output:?}");
    let engine = spawn(&config)?;
    wait_streaming(&engine, 1).await?;
    changes.end().await?;
    EVEN.settle(&trailed, &engine).await?;
    for engine in [&engine, &own, &capture] {
        stop(engine).await?;
    }
    // Tables that the capture has not are refused.
    replication.run_each("CREATE TABLE other.t (id int)").await.err().context("there is no schema of that name")?;
    replication.run_each("CREATE SCHEMA other; CREATE TABLE other.t (id int PRIMARY KEY)").await?;
    replication.chain.wait_b_caught_up().await?;
    let text = std::fs::read_to_string(&config)?.replace("\"public.*\"", "\"public.*\", \"other.*\"");
    std::fs::write(&config, text)?;
    replication.chain.c.sql("even", "CREATE SCHEMA other; CREATE TABLE other.t (id int PRIMARY KEY)").await?;
    let output = command(&config, &["setup"]).await?;
    ensure!(output.code == Some(3) && output.stderr.contains("does not hold"), "{output:?}");
    Ok(())
}
