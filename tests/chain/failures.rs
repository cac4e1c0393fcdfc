//! What passes by itself, what is waited for, and what `docs/failures.md` says of all failures.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{CutPoint, Engine, Proxy, Server, wait_for};

use crate::load::{expect_end, settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, Replication};

const TABLES: &[&str] = &["public.t"];

async fn start(more: &str) -> Result<(Replication, Engine)> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, note text)").await?;
    replication.configure(more)?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    Ok((replication, engine))
}

/// Has the target raise an error for rows of `t`, so often or until it is told to end.
async fn fail(c: &Server, sqlstate: &str, times: u32) -> Result<()> {
    let sql = format!(
        "DROP SEQUENCE IF EXISTS failures; CREATE SEQUENCE failures;
         CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF nextval('public.failures') <= {times} THEN RAISE EXCEPTION 'made for a test' USING ERRCODE = '{sqlstate}'; END IF;
             RETURN NEW; END $$;
         CREATE OR REPLACE TRIGGER fail BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION fail();
         ALTER TABLE t ENABLE ALWAYS TRIGGER fail"
    );
    c.sql(DATABASE, &sql).await
}

/// Serialization failure, deadlock, a lock that is not had, too many connections, out of memory, a cancelled query, a
/// shutdown, a failover.
#[tokio::test]
async fn errors_that_pass_are_tried_again() -> Result<()> {
    let (replication, engine) = start("").await?;
    for (row, sqlstate) in (1..).zip(["40001", "40P01", "55P03", "53300", "53200", "57014", "57P01", "25006"]) {
        fail(&replication.chain.c, sqlstate, 2).await?;
        replication.chain.a.sql(DATABASE, &format!("INSERT INTO t VALUES ({row}, '{sqlstate}')")).await?;
        settle(&replication, &engine, TABLES).await.with_context(|| sqlstate.to_owned())?;
        let said = engine.stderr();
        ensure!(
            said.contains(&format!("SQLSTATE {sqlstate}")) && said.contains("session ended; it will be built anew"),
            "{said}"
        );
    }
    stop(&engine).await
}

#[tokio::test]
async fn a_full_disk_of_the_target_is_waited_for() -> Result<()> {
    // Much longer than a try of what passes by itself may take.
    let (replication, engine) = start("[stream]\nretry_limit = \"0s\"\n").await?;
    fail(&replication.chain.c, "53100", 1_000_000).await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (1, 'x')").await?;
    wait_log(&engine, "waiting for this to be mended", 1).await?;
    wait_streaming(&engine, 4).await?;
    ensure!(engine.stderr().contains("SQLSTATE 53100"), "{}", engine.stderr());
    // Without a lock that could stand against the engine's: it would end at a deadlock.
    replication.chain.c.sql(DATABASE, "SELECT setval('failures', 2000000)").await?;
    settle(&replication, &engine, TABLES).await?;
    stop(&engine).await
}

/// As after an outage of all, when a supervisor starts the engine before a server takes connections.
#[tokio::test]
async fn a_run_that_starts_before_its_servers_waits_for_them() -> Result<()> {
    const NO_SESSION: &str = "no session can be opened yet";
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, note text)").await?;
    replication.setup().await?;
    let (b, c) = (&replication.chain.b, &replication.chain.c);
    for (server, said) in [(b, "cannot reach the source at"), (c, "cannot reach the target at")] {
        server.stop_fast().await?;
        // Somebody waits for the end of these.
        for arguments in [&["run", "--stop-at", "current"][..], &["setup"]] {
            let output = replication.command(arguments).await?;
            ensure!(output.code == Some(1) && output.stderr.contains(said), "{arguments:?}: {output:?}");
        }
        let engine = replication.spawn()?;
        wait_log(&engine, NO_SESSION, 2).await?;
        ensure!(engine.stderr().contains(said), "{}", engine.stderr());
        server.start().await?;
        replication.chain.wait_b_streaming().await?;
        let row = format!("INSERT INTO t SELECT count(*), '{}' FROM t", server.name());
        replication.chain.a.sql(DATABASE, &row).await?;
        wait_streaming(&engine, 1).await?;
        settle(&replication, &engine, TABLES).await?;
        stop(&engine).await?;
    }
    // One that takes no more connections, and one whose disk is full when its progress row is to be written.
    c.sql(DATABASE, "ALTER DATABASE app CONNECTION LIMIT 0; CREATE ROLE limited LOGIN").await?;
    c.sql(DATABASE, "GRANT ALL ON SCHEMA pgsluice, public TO limited; GRANT ALL ON ALL TABLES IN SCHEMA pgsluice, public TO limited")
        .await?;
    replication.configure_target_role("limited", "")?;
    let engine = replication.spawn()?;
    wait_log(&engine, "SQLSTATE 53300", 2).await?;
    c.sql(DATABASE, "ALTER DATABASE app CONNECTION LIMIT -1").await?;
    wait_streaming(&engine, 1).await?;
    stop(&engine).await?;
    replication.configure("")?;
    let full = "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'made for a test' USING ERRCODE = '53100'; END $$;
                CREATE TRIGGER full_disk BEFORE UPDATE ON pgsluice.progress FOR EACH ROW EXECUTE FUNCTION full_disk();
                ALTER TABLE pgsluice.progress ENABLE ALWAYS TRIGGER full_disk";
    c.sql(DATABASE, full).await?;
    let engine = replication.spawn()?;
    wait_log(&engine, "SQLSTATE 53100", 1).await?;
    c.sql(DATABASE, "DROP TRIGGER full_disk ON pgsluice.progress").await?;
    wait_streaming(&engine, 1).await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (100, 'x')").await?;
    settle(&replication, &engine, TABLES).await?;
    stop(&engine).await?;
    // What no time mends.
    let [source, primary] = [b, &replication.chain.a].map(|server| server.dsn(DATABASE));
    for (target, said) in [
        (c.dsn("nosuchdb"), "database \"nosuchdb\" does not exist"),
        (c.dsn_as(DATABASE, "scram_user", "wr0ng-secret"), "password authentication failed"),
    ] {
        replication.configure_servers(&source, Some(&primary), &target, "")?;
        expect_end(&replication.spawn()?, 1, &[said]).await?;
    }
    Ok(())
}

/// As where it has much to remove first that an earlier walsender has spilled.
#[tokio::test]
async fn a_walsender_that_is_slow_to_start_is_waited_for() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, note text)").await?;
    let [a, b, c] = replication.servers();
    let proxy = Proxy::start(b.port()).await?;
    let source = format!("{} connect_timeout=1", proxy.dsn(DATABASE));
    replication.configure_servers(&source, Some(&a.dsn(DATABASE)), &c.dsn(DATABASE), "")?;
    replication.setup().await?;
    proxy.arm(b"START_REPLICATION", CutPoint::Stall);
    let engine = replication.spawn()?;
    wait_for("the engine to ask for the stream", DEADLINE, || async { Ok(proxy.fired().then_some(())) }).await?;
    // Longer than other answers are waited for.
    tokio::time::sleep(Duration::from_secs(2)).await;
    proxy.resume();
    wait_streaming(&engine, 1).await?;
    replication.run_each("INSERT INTO t VALUES (1, 'x')").await?;
    settle(&replication, &engine, TABLES).await?;
    ensure!(!engine.stderr().contains("session ended"), "{}", engine.stderr());
    stop(&engine).await
}

#[tokio::test]
async fn failures_that_do_not_end_end_the_run() -> Result<()> {
    let (replication, engine) = start("[stream]\nretry_limit = \"1s\"\n").await?;
    fail(&replication.chain.c, "40001", 1_000_000).await?;
    let before = replication.end_lsn().await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (1, 'x')").await?;
    expect_end(&engine, 1, &["gave up after", "of failures in a row", "SQLSTATE 40001"]).await?;
    ensure!(replication.end_lsn().await? == before, "progress has moved");
    fail(&replication.chain.c, "40001", 0).await?;
    replication.replicate("INSERT INTO t VALUES (2, 'y')", TABLES).await
}

/// The sources of all tests of this folder, by their modules.
pub(crate) fn modules() -> Result<BTreeMap<String, String>> {
    let mut modules: BTreeMap<String, String> = BTreeMap::new();
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chain"))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
                modules.entry(name.to_owned()).or_default().push_str(&std::fs::read_to_string(&path)?);
            }
        }
    }
    Ok(modules)
}

/// What stands in backticks.
pub(crate) fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The top-level items of a source file. An item follows an empty line and is not indented.
fn items(source: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut after_empty = false;
    for line in source.lines() {
        if after_empty && !line.is_empty() && !line.starts_with([' ', '}']) {
            items.push(String::new());
        }
        after_empty = line.is_empty();
        items.last_mut().expect("there is a first").extend([line, "\n"]);
    }
    items
}

/// A test with what it uses of its module, by name: functions that it calls, and constants.
fn test_source(module: &str, name: &str) -> Option<String> {
    let items = items(module);
    let is_test = |item: &&String| item.contains("#[tokio::test]") || item.lines().any(|line| line == "#[test]");
    let test = items.iter().filter(is_test).find(|item| item.contains(&format!("fn {name}()")))?;
    let used = items.iter().filter(|item| !is_test(item)).filter(|item| {
        let head = item.lines().find(|line| ["fn ", "const ", "static "].iter().any(|word| line.contains(word)));
        let named =
            head.and_then(|line| line.split(['(', ':', '<']).next()).and_then(|head| head.split(' ').next_back());
        named.is_some_and(|named| {
            !named.is_empty() && test.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == named)
        })
    });
    Some(used.fold(test.clone(), |text, item| text + item))
}

/// The module and the name of a test that a document names, with its source.
pub(crate) fn documented_test(modules: &BTreeMap<String, String>, test: &str) -> Result<String> {
    let (module, name) = test.split_once("::").with_context(|| format!("no test: {test}"))?;
    let source = modules.get(module).with_context(|| format!("no module of {test}"))?;
    test_source(source, name).with_context(|| format!("no test {test}"))
}

/// Each line names a test, and one of its tests looks for what the line says that pgsluice says.
#[test]
fn every_failure_that_is_documented_has_a_test() -> Result<()> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/failures.md"))?;
    let modules = modules()?;
    let mut seen = BTreeSet::new();
    let tables = text.split("\n\n").filter(|table| table.starts_with("| failure | "));
    let mut wrong = Vec::new();
    for line in tables.flat_map(|table| table.lines().skip(2)) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [failure, _, said, _, test] = cells.as_slice() else { anyhow::bail!("not five cells: {line}") };
        let tests: Vec<_> = quoted(test).map(|test| documented_test(&modules, test)).collect::<Result<_>>()?;
        ensure!(!tests.is_empty(), "no test: {line}");
        for said in quoted(said) {
            let has =
                |source: &String, part: &str| source.contains(part) || source.contains(&part.replace('"', "\\\""));
            let is_looked_for = |source: &String| said.split('…').map(str::trim).all(|part| has(source, part));
            if !tests.iter().any(is_looked_for) {
                wrong.push(format!("{test} does not look for `{said}`"));
            }
        }
        ensure!(quoted(said).count() > 0 || *said == "nothing", "what is said? {line}");
        ensure!(seen.insert((*failure).to_owned()), "twice: {failure}");
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(seen.len() > 30, "only {} lines were read", seen.len());
    Ok(())
}

/// Each behaviour names tests that exist, or is excused; and the counts are those of the lines.
#[test]
fn every_behaviour_that_is_documented_has_a_test_or_an_excuse() -> Result<()> {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/docs");
    let text = std::fs::read_to_string(format!("{docs}/conformance.md"))?;
    let limits = std::fs::read_to_string(format!("{docs}/limits.md"))?;
    let modules = modules()?;
    let (mut proved, mut excused) = (0, 0);
    let tables = text.split("\n\n").filter(|table| table.starts_with("| behaviour | "));
    for line in tables.flat_map(|table| table.lines().skip(2)) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [behaviour, by] = cells.as_slice() else { anyhow::bail!("not two cells: {line}") };
        if *by == "[limits](limits.md)" {
            ensure!(limits.contains(&format!("\n| {behaviour} | ")), "no excuse: {line}");
            excused += 1;
            continue;
        }
        for test in quoted(by) {
            documented_test(&modules, test)?;
        }
        ensure!(quoted(by).count() > 0, "neither a test nor an excuse: {line}");
        proved += 1;
    }
    let counts = format!("Proved: {proved}. Excused: {excused}. Failing: 0.");
    ensure!(text.contains(&counts), "the counts are: {counts}");
    for test in quoted(&limits).filter(|quoted| quoted.contains("::")) {
        documented_test(&modules, test)?;
    }
    ensure!(proved > 80, "only {proved} lines were read");
    Ok(())
}
