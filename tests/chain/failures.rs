//! What passes by itself, what is waited for, and what `docs/failures.md` says of all failures.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Engine, Server};

use crate::load::{expect_end, settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, Replication};

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
    fail(&replication.chain.c, "53100", 0).await?;
    settle(&replication, &engine, TABLES).await?;
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
fn modules() -> Result<BTreeMap<String, String>> {
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
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Each line names a test, and what the line says that pgsluice says, the module of the test looks for.
#[test]
fn every_failure_that_is_documented_has_a_test() -> Result<()> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/failures.md"))?;
    let modules = modules()?;
    let mut seen = BTreeSet::new();
    let tables = text.split("\n\n").filter(|table| table.starts_with("| failure | "));
    for line in tables.flat_map(|table| table.lines().skip(2)) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [failure, _, said, _, test] = cells.as_slice() else { anyhow::bail!("not five cells: {line}") };
        for test in quoted(test) {
            let (module, name) = test.split_once("::").with_context(|| format!("no test: {line}"))?;
            let source = modules.get(module).with_context(|| format!("no module {module}: {line}"))?;
            ensure!(source.contains(&format!("async fn {name}()")), "no test {test}");
            for said in quoted(said) {
                let is_looked_for = said
                    .split('…')
                    .map(str::trim)
                    .all(|part| source.contains(part) || source.contains(&part.replace('"', "\\\"")));
                ensure!(is_looked_for, "{test} does not look for `{said}`");
            }
        }
        ensure!(quoted(test).count() > 0, "no test: {line}");
        ensure!(seen.insert((*failure).to_owned()), "twice: {failure}");
    }
    ensure!(seen.len() > 30, "only {} lines were read", seen.len());
    Ok(())
}
