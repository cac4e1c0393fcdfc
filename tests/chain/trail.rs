//! Changes that lie on disk between B and C: the same on C as without, while C is away, while engines are killed, with a full disk, and
//! for several targets at once.
//!
//! `PGSLUICE_OUTAGE_SECONDS` makes C's outage longer, `PGSLUICE_TRAIL_KILLS` the engine die more often.

mod damage;
mod kills;
mod modes;
mod outage;
mod place;
mod room;
mod targets;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine, wait_for};
use serde_json::Value;
use tempfile::TempDir;

use crate::load::{expect_end, settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication};

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, note text, n numeric);
    CREATE TABLE log (n int, at timestamptz DEFAULT now()); ALTER TABLE log REPLICA IDENTITY FULL;
    CREATE TABLE whole (id int, note text); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE large (id int PRIMARY KEY, n int, body text); ALTER TABLE large ALTER body SET STORAGE EXTERNAL";
const TABLES: [&str; 4] = ["public.t", "public.log", "public.whole", "public.large"];

const EXIT_REFUSED: i32 = 3;

/// A replication with a trail in a folder of its own.
struct Trailed {
    replication: Replication,
    folder: TempDir,
}

impl Trailed {
    /// Set up, with `more` in its configuration.
    async fn start(options: ChainOptions, ddl: &str, more: &str) -> Result<Trailed> {
        let trailed = Trailed::unconfigured(options, ddl).await?;
        trailed.configure(more)?;
        trailed.replication.setup().await?;
        Ok(trailed)
    }

    async fn unconfigured(options: ChainOptions, ddl: &str) -> Result<Trailed> {
        Ok(Trailed { replication: Replication::start_with(options, ddl).await?, folder: TempDir::new()? })
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("trail")
    }

    /// `more` goes on with [trail].
    fn configure(&self, more: &str) -> Result<()> {
        self.replication.configure(&format!("[trail]\ndir = \"{}\"\n{more}", self.dir().display()))
    }

    fn capture(&self) -> Result<Engine> {
        Engine::spawn(ENGINE.as_ref(), &self.replication.config(), &["capture"])
    }

    async fn ls(&self) -> Result<Value> {
        let text = self.replication.succeed(&["trail", "ls", "--format", "json"]).await?;
        serde_json::from_str(&text).context(text)
    }

    /// Waits until the trail has what A has now.
    async fn wait_captured(&self) -> Result<()> {
        let position: pgsluice_proto::Lsn =
            self.replication.chain.a.scalar(DATABASE, "SELECT pg_current_wal_lsn()").await?.parse()?;
        wait_for("the trail at A's position", DEADLINE, || async {
            let end = self.ls().await?["ends_at"].as_str().map(str::parse::<pgsluice_proto::Lsn>).transpose()?;
            Ok((end >= Some(position)).then_some(()))
        })
        .await
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The segments in a folder, in their order.
fn segments(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == "trail") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

const CHANGES: &str = "INSERT INTO t SELECT n, 'note ' || n, n / 3.0 FROM generate_series(1, 500) n;
    INSERT INTO log SELECT generate_series(1, 100); UPDATE t SET note = NULL WHERE id % 7 = 0; DELETE FROM t WHERE id % 5 = 0;
    BEGIN; INSERT INTO whole SELECT n, repeat('x', 300) FROM generate_series(1, 2000) n; SAVEPOINT a; DELETE FROM whole; ROLLBACK TO a;
    UPDATE whole SET note = 'changed' WHERE id < 20; COMMIT;
    INSERT INTO large SELECT n, n, repeat(md5(n::text), 300) FROM generate_series(1, 50) n; UPDATE large SET n = -n;
    ALTER TABLE t ADD COLUMN more int DEFAULT 7; INSERT INTO t (id, note, more) VALUES (1000, 'with more', 8);
    TRUNCATE log; INSERT INTO log VALUES (1), (1)";

#[tokio::test]
async fn what_comes_through_a_trail_is_what_comes_without() -> Result<()> {
    for (streamed, more) in [(true, ""), (false, "segment_bytes = \"256KiB\"\n[stream]\nstreaming = false\n")] {
        let options = ChainOptions::default().b_conf("logical_decoding_work_mem", "64kB");
        let trailed = Trailed::start(options, DDL, more).await?;
        let replication = &trailed.replication;
        replication.chain.c.sql(DATABASE, "ALTER TABLE t ADD COLUMN more int DEFAULT 7").await?;
        // By one process for both, that stops by itself and begins again.
        replication.run_each(CHANGES).await?;
        replication.catch_up().await?;
        replication.assert_same(&TABLES).await?;
        let engine = replication.spawn()?;
        wait_streaming(&engine, 1).await?;
        replication.run_each("DELETE FROM t; DELETE FROM large; INSERT INTO t VALUES (1, 'once more')").await?;
        settle(replication, &engine, &TABLES).await?;
        stop(&engine).await?;
        // By one that captures, and one that applies what is there.
        let capture = trailed.capture()?;
        wait_log(&capture, "capturing starts", 1).await?;
        replication.run_each("INSERT INTO log SELECT generate_series(1, 5000); UPDATE t SET id = id + 1").await?;
        trailed.wait_captured().await?;
        let end_lsn = replication.end_lsn().await?;
        let confirmed = format!("SELECT bool_and(confirmed_flush_lsn > '{end_lsn}') FROM pg_replication_slots");
        wait_for("the slot ahead of C", DEADLINE, || async {
            Ok((replication.chain.b.scalar(DATABASE, &confirmed).await? == "t").then_some(()))
        })
        .await?;
        let engine = replication.spawn()?;
        wait_log(&engine, "another process writes the trail, and this one only applies", 1).await?;
        settle(replication, &engine, &TABLES).await?;
        // The capture can be stopped and come again without the other.
        stop(&capture).await?;
        let capture = trailed.capture()?;
        wait_log(&capture, "capturing starts", 1).await?;
        replication.run_each("INSERT INTO log VALUES (7)").await?;
        settle(replication, &engine, &TABLES).await?;
        stop(&engine).await?;
        stop(&capture).await?;
        replication.succeed(&["trail", "verify"]).await?;
        let status = replication.succeed(&["status"]).await?;
        ensure!(status.contains("trail ") && status.contains("reader test"), "{status}");
        let sql = "SELECT coalesce(sum(stream_txns), 0) > 0 FROM pg_stat_replication_slots";
        let is_streamed = replication.chain.b.scalar(DATABASE, sql).await? == "t";
        ensure!(is_streamed == streamed, "streamed: {is_streamed}");
        replication.succeed(&["teardown", "--yes"]).await?;
        ensure!(segments(&trailed.dir())?.is_empty(), "teardown leaves segments");
    }
    Ok(())
}

#[tokio::test]
async fn a_copy_and_tables_that_join_later_come_beside_a_trail() -> Result<()> {
    let trailed = Trailed::unconfigured(ChainOptions::default(), DDL).await?;
    let replication = &trailed.replication;
    replication.run_each("INSERT INTO t SELECT n, 'before' FROM generate_series(1, 1000) n").await?;
    trailed.configure("[snapshot]\ncopy_data = true\n")?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    replication.run_each("UPDATE t SET note = 'behind' WHERE id % 2 = 0; INSERT INTO log VALUES (1)").await?;
    settle(replication, &engine, &TABLES).await?;
    for server in [&replication.chain.a, &replication.chain.c] {
        server.sql(DATABASE, "CREATE TABLE later (id int PRIMARY KEY, n int)").await?;
    }
    replication
        .run_each("INSERT INTO later SELECT n, 0 FROM generate_series(1, 500) n; ALTER PUBLICATION pgsluice_test ADD TABLE later")
        .await?;
    wait_log(&engine, "the stream takes over the tables", 1).await?;
    replication.run_each("UPDATE later SET n = n + 1; DELETE FROM t WHERE id < 10").await?;
    settle(replication, &engine, &["public.t", "public.log", "public.later"]).await?;
    stop(&engine).await
}

/// B is promoted under the capture, or while none runs; the trail says from where on it is of another timeline.
#[tokio::test]
async fn a_promotion_of_the_standby_is_in_the_trail() -> Result<()> {
    for is_running in [true, false] {
        let trailed = Trailed::start(ChainOptions::default(), "CREATE TABLE log (n int)", "").await?;
        let replication = &trailed.replication;
        let chain = &replication.chain;
        let mut engine = replication.spawn()?;
        chain.a.sql(DATABASE, "INSERT INTO log VALUES (0)").await?;
        settle(replication, &engine, &["public.log"]).await?;
        if !is_running {
            stop(&engine).await?;
        }
        chain.a.stop_immediate().await?;
        chain.b.sql(DATABASE, "SELECT pg_promote()").await?;
        let more = format!("[trail]\ndir = \"{}\"\n", trailed.dir().display());
        replication.configure_servers(&chain.b.dsn(DATABASE), None, &chain.c.dsn(DATABASE), &more)?;
        if is_running {
            // That of the capture, and that of the target.
            wait_log(&engine, "the source was promoted, and the stream goes on", 2).await?;
        } else {
            engine = replication.spawn()?;
        }
        for round in 0..3 {
            chain.b.sql(DATABASE, "INSERT INTO log SELECT generate_series(1, 10)").await?;
            let expected = chain.b.scalar(DATABASE, "SELECT count(*) FROM log").await?;
            wait_for("the rows on C", DEADLINE, || async {
                ensure!(engine.is_running(), "the engine has ended:\n{}", engine.stderr());
                Ok((chain.c.scalar(DATABASE, "SELECT count(*) FROM log").await? == expected).then_some(()))
            })
            .await?;
            match round {
                0 => drop(engine.sigkill().await?),
                _ => stop(&engine).await?,
            }
            engine = replication.spawn()?;
        }
        wait_streaming(&engine, 1).await?;
        stop(&engine).await?;
        pgsluice_testkit::assert_same(&chain.b, &chain.c, DATABASE, &["public.log"]).await;
        let listed = trailed.ls().await?;
        let timelines: Vec<_> =
            listed["segments"].as_array().context("segments")?.iter().map(|one| one["timeline"].as_u64()).collect();
        ensure!(timelines.last() == Some(&Some(2)), "{timelines:?}");
        let timeline = chain.c.scalar(DATABASE, "SELECT timeline FROM pgsluice.progress").await?;
        ensure!(timeline == "2", "progress is of timeline {timeline}");
    }
    Ok(())
}

#[tokio::test]
async fn a_dump_shows_what_came() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "").await?;
    let replication = &trailed.replication;
    replication
        .run_each("INSERT INTO t VALUES (1, 'one'), (2, 'two'); UPDATE t SET note = 'ONE' WHERE id = 1; TRUNCATE log")
        .await?;
    replication.catch_up().await?;
    let lines = |text: String| text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
    let all = lines(replication.succeed(&["trail", "dump"]).await?)?;
    let operations: Vec<_> = all.iter().map(|line| line["operation"].as_str().unwrap_or_default()).collect();
    ensure!(operations == ["insert", "insert", "update", "truncate"], "{all:?}");
    ensure!(all[1]["new"]["note"] == "two" && all[0]["commit_lsn"] == all[1]["commit_lsn"], "{all:?}");
    ensure!(lines(replication.succeed(&["trail", "dump", "--limit", "1"]).await?)?.len() == 1, "a limit");
    let end = trailed.ls().await?["ends_at"].as_str().context("an end")?.to_owned();
    ensure!(replication.succeed(&["trail", "dump", "--from", &end]).await?.is_empty(), "nothing follows the end");
    Ok(())
}

#[tokio::test]
async fn who_may_write_and_what_does_not_fit_is_said() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "").await?;
    let replication = &trailed.replication;
    let refused = async |arguments: &[&str], said: &str| -> Result<()> {
        let output = replication.command(arguments).await?;
        ensure!(output.code == Some(3) && output.stderr.contains(said), "{arguments:?}: {output:?}");
        Ok(())
    };
    let capture = trailed.capture()?;
    wait_log(&capture, "capturing starts", 1).await?;
    refused(&["capture"], &format!("is written by process {}", capture.pid())).await?;
    refused(&["teardown", "--yes"], "is in use by process").await?;
    stop(&capture).await?;
    refused(&["trail", "forget", "nobody"], "there are test").await?;
    trailed.configure("of = \"other\"\n")?;
    refused(&["capture"], "only its own configuration").await?;
    replication.configure("")?;
    refused(&["capture"], "the configuration has no [trail]").await?;
    refused(&["trail", "ls"], "the configuration has no [trail]").await?;
    // In another folder none begins.
    trailed.configure("")?;
    replication.run_each("INSERT INTO t VALUES (1)").await?;
    let capture = trailed.capture()?;
    wait_log(&capture, "capturing starts", 1).await?;
    trailed.wait_captured().await?;
    stop(&capture).await?;
    let end = trailed.ls().await?["ends_at"].as_str().context("an end")?.to_owned();
    let other = trailed.folder.path().join("other");
    replication.configure(&format!("[trail]\ndir = \"{}\"\n", other.display()))?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(3) && output.stderr.contains("there is no trail in"), "{output:?}");
    trailed.configure("")?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await?;
    ensure!(!end.is_empty(), "an end");
    Ok(())
}

#[tokio::test]
async fn a_trail_of_another_slot_is_refused() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "").await?;
    let replication = &trailed.replication;
    let text = std::fs::read_to_string(replication.config())?.replace("name = \"test\"", "name = \"other\"");
    std::fs::write(replication.config(), text)?;
    let output = replication.command(&["setup"]).await?;
    ensure!(output.code == Some(3) && output.stderr.contains("there is a trail in"), "{output:?}");
    std::fs::rename(trailed.dir(), trailed.folder.path().join("away"))?;
    replication.setup().await?;
    std::fs::remove_dir_all(trailed.dir())?;
    std::fs::rename(trailed.folder.path().join("away"), trailed.dir())?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(3) && output.stderr.contains("the trail is of slot \"pgsluice_test\""), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn keys_change_from_segment_to_segment() -> Result<()> {
    let trailed = Trailed::unconfigured(ChainOptions::default(), DDL).await?;
    let replication = &trailed.replication;
    for (name, digit) in [("one", "1"), ("two", "2")] {
        std::fs::write(trailed.folder.path().join(name), digit.repeat(64))?;
    }
    let key = |name: &str| format!("\"{}\"", trailed.folder.path().join(name).display());
    trailed.configure(&format!("key_file = {}\n", key("one")))?;
    replication.setup().await?;
    let fill = async |clear: &str| -> Result<()> {
        let capture = trailed.capture()?;
        wait_log(&capture, "capturing starts", 1).await?;
        replication.run_each(&format!("INSERT INTO t SELECT coalesce(max(id), 0) + 1, '{clear}' FROM t")).await?;
        trailed.wait_captured().await?;
        stop(&capture).await
    };
    fill("clear text of the first").await?;
    trailed.configure(&format!("key_file = {}\n", key("two")))?;
    let output = replication.command(&["trail", "verify"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("which is not known"), "{output:?}");
    trailed.configure(&format!("key_file = {}\nold_key_files = [{}]\n", key("two"), key("one")))?;
    fill("clear text of the second").await?;
    for path in segments(&trailed.dir())? {
        let bytes = std::fs::read(&path)?;
        ensure!(!bytes.windows(10).any(|window| window == b"clear text"), "clear text in {}", path.display());
    }
    let ids: std::collections::BTreeSet<_> = trailed.ls().await?["segments"]
        .as_array()
        .context("segments")?
        .iter()
        .map(|segment| segment["key_id"].as_str().unwrap_or_default().to_owned())
        .collect();
    ensure!(ids.len() == 2 && ids.iter().all(|id| id.len() == 16), "{ids:?}");
    replication.catch_up().await?;
    replication.assert_same(&TABLES).await
}

/// A second engine takes over all that the first one did.
#[tokio::test]
async fn an_engine_that_takes_over_captures_too() -> Result<()> {
    let trailed = Trailed::start(ChainOptions::default(), DDL, "").await?;
    let replication = &trailed.replication;
    let first = replication.spawn()?;
    wait_streaming(&first, 1).await?;
    let second = replication.spawn()?;
    wait_log(&second, "another process writes the trail, and this one does once that has ended", 1).await?;
    expect_end(&first, EXIT_REFUSED, &["has taken over"]).await?;
    wait_log(&second, "capturing starts", 1).await?;
    replication
        .run_each("INSERT INTO t SELECT n, 'note ' || n FROM generate_series(1, 500) n; DELETE FROM t WHERE id % 5 = 0")
        .await?;
    settle(replication, &second, &TABLES).await?;
    let writer = trailed.ls().await?["writer"].clone();
    ensure!(writer["pid"] == second.pid() && writer["command"] == "run", "{writer}");
    let output = replication.command(&["capture"]).await?;
    ensure!(output.code == Some(EXIT_REFUSED) && output.stderr.contains("is written by process"), "{}", output.stderr);
    stop(&second).await?;

    // Not where there is one that was asked for nothing else: that may be between two of its runs.
    let capture = trailed.capture()?;
    wait_log(&capture, "capturing starts", 1).await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    stop(&capture).await?;
    let capture = trailed.capture()?;
    wait_log(&capture, "capturing starts", 1).await?;
    stop(&capture).await?;
    stop(&engine).await
}
