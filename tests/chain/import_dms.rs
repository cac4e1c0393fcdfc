//! The translation of DMS's table mappings as a command: what it prints where, what it writes, and how it ends.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use crate::replication::ENGINE;

const MAPPING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/dms.json");
const NOT_POSSIBLE: &str = "6 rules of the mapping cannot be carried over: 7, 36, 42, 46, 51, 52";

struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn ended(output: Output) -> Result<Ended> {
    let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    Ok(Ended { code: output.status.code(), out, err })
}

fn import(arguments: &[&str]) -> Result<Ended> {
    ended(Command::new(ENGINE).arg("import-dms").args(arguments).stdin(Stdio::null()).output()?)
}

#[test]
fn what_is_not_possible_refuses_all_of_it() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let rules = directory.path().join("rules.toml");
    let strict = import(&[MAPPING, "--output", &rules.to_string_lossy()])?;
    ensure!(strict.code == Some(3) && strict.out.is_empty() && !rules.exists(), "{}", strict.err);
    ensure!(strict.err.contains(NOT_POSSIBLE) && strict.err.contains("hex has no equal here"), "{}", strict.err);

    let lenient = import(&[MAPPING, "--lenient", "--output", &rules.to_string_lossy()])?;
    ensure!(lenient.code == Some(0) && lenient.out.is_empty(), "{}", lenient.err);
    let printed = import(&[MAPPING, "--lenient"])?;
    ensure!(printed.code == Some(0) && printed.out == std::fs::read_to_string(&rules)?, "{}", printed.out);
    ensure!(lenient.err == printed.err && printed.err.starts_with("rule-id  outcome"), "{}", printed.err);

    let again = import(&[MAPPING, "--lenient", "--output", &rules.to_string_lossy()])?;
    ensure!(again.code == Some(2) && again.err.contains("exists already"), "{}", again.err);
    ensure!(printed.out == std::fs::read_to_string(&rules)?);
    Ok(())
}

#[test]
fn a_check_prints_the_report_and_nothing_else() -> Result<()> {
    let check = import(&[MAPPING, "--check"])?;
    ensure!(check.code == Some(3) && check.out.starts_with("rule-id  outcome"), "{}", check.out);
    ensure!(!check.out.contains("[[rule]]") && check.err.contains(NOT_POSSIBLE), "{}", check.err);
    let json = import(&[MAPPING, "--check", "--lenient", "--format", "json"])?;
    ensure!(json.code == Some(0) && json.err.is_empty(), "{}", json.err);
    let report: serde_json::Value = serde_json::from_str(&json.out)?;
    ensure!(report["rules"][0]["outcome"] == "carried" && report["includes_nothing"] == false, "{report}");
    Ok(())
}

#[test]
fn what_is_no_mapping_is_an_error_of_usage() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let write = |name: &str, text: &str| -> Result<String> {
        let path = directory.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let missing = directory.path().join("missing.json").to_string_lossy().into_owned();
    for (file, complaint) in [
        (missing, "cannot read"),
        (write("broken.json", "{\"rules\": [\n}")?, "this is no JSON: expected value at line 2 column 1"),
        (write("other.json", "{}")?, "it has no list \"rules\""),
        (
            write("action.json", r#"{"rules": [{"rule-id": 4, "rule-type": "section"}]}"#)?,
            "rule-id 4: unknown rule-type",
        ),
    ] {
        let ended = import(&[&file])?;
        ensure!(ended.code == Some(2) && ended.out.is_empty(), "{}", ended.err);
        ensure!(ended.err.contains(complaint) && ended.err.contains(&file), "{}", ended.err);
    }
    Ok(())
}

#[test]
fn a_mapping_comes_from_standard_input_too() -> Result<()> {
    let mut child = Command::new(ENGINE)
        .args(["import-dms", "-", "--lenient"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no stdin")?.write_all(&std::fs::read(Path::new(MAPPING))?)?;
    let piped = ended(child.wait_with_output()?)?;
    ensure!(piped.code == Some(0) && piped.out == import(&[MAPPING, "--lenient"])?.out, "{}", piped.err);
    Ok(())
}
