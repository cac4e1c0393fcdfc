//! Mistakes in the configuration and on the servers: one message that says what to do, the right exit code, nothing
//! half-made, and no secret in sight.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine, Install, Output, Server, wait_for};

use crate::load::{stop, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication};

const TABLES: &str = "CREATE TABLE log (n int PRIMARY KEY, note text); CREATE TABLE more (n int PRIMARY KEY)";

/// `setup` and `run` fail alike: this exit code, one message with all this in it, and nothing made.
pub(crate) async fn ensure_refused(
    replication: &Replication,
    commands: &[&str],
    code: i32,
    said: &[&str],
) -> Result<()> {
    for command in commands {
        let output = replication.command(&[command]).await?;
        ensure_said(&output, code, said).with_context(|| format!("{command}: {said:?}"))?;
    }
    let sql = "SELECT (SELECT count(*) FROM pg_publication) + \
               (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> 'b_slot') + \
               (SELECT count(*) FROM pg_namespace WHERE nspname = 'pgsluice')";
    for server in replication.servers() {
        ensure!(server.scalar(DATABASE, sql).await? == "0", "{} has something half-made", server.name());
    }
    Ok(())
}

pub(crate) fn ensure_said(output: &Output, code: i32, said: &[&str]) -> Result<()> {
    let Output { stdout, stderr, .. } = output;
    ensure!(output.code == Some(code), "ended with {:?}, not with {code}:\n{stderr}", output.code);
    ensure!(stderr.matches("ERROR").count() == 1, "not one message:\n{stderr}");
    ensure!(stdout.is_empty(), "printed {stdout}");
    for text in said {
        ensure!(stderr.contains(text), "does not say \"{text}\":\n{stderr}");
    }
    Ok(())
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_a_usage_error() -> Result<()> {
    let replication = Replication::start(TABLES).await?;
    replication.configure("[stream]\nstatus_intervall = \"1s\"\n")?;
    let said = ["unknown key `status_intervall` in [stream]", "`status_interval`"];
    ensure_refused(&replication, &["setup", "run", "status", "tail"], 2, &said).await?;
    std::fs::remove_file(replication.config())?;
    ensure_refused(&replication, &["setup", "run"], 2, &["cannot read the configuration", "pgsluice.toml"]).await
}

#[tokio::test]
async fn tables_that_do_not_fit_are_named_before_anything_is_made() -> Result<()> {
    let replication = Replication::start(TABLES).await?;
    let chain = &replication.chain;
    replication.configure("[tables]\ninclude = [\"public.*\", \"public.lgo\"]\n")?;
    ensure_refused(&replication, &["setup"], 3, &["no table on the source matches \"public.lgo\"", "include"]).await?;
    replication.configure("")?;
    chain.c.sql(DATABASE, "DROP TABLE more; ALTER TABLE log DROP COLUMN note").await?;
    let said = ["the target has no table \"public\".\"more\"", "column \"note\" is missing", "`pgsluice schema`"];
    ensure_refused(&replication, &["setup"], 3, &said).await?;
    chain.c.sql(DATABASE, "ALTER TABLE log ADD note text; CREATE VIEW more AS SELECT 1 AS n").await?;
    ensure_refused(&replication, &["setup"], 3, &["\"more\" on the target is not a table"]).await?;
    chain.c.sql(DATABASE, "DROP VIEW more; CREATE TABLE more (n int PRIMARY KEY)").await?;
    replication.setup().await?;

    // Setup again, for other tables than the publication has.
    replication.configure("[tables]\ninclude = [\"public.log\"]\n")?;
    let output = replication.command(&["setup"]).await?;
    ensure_said(&output, 3, &["it has besides \"public\".\"more\"", "ALTER PUBLICATION"])?;
    replication.configure("")?;
    chain.a.sql(DATABASE, "CREATE TABLE third (n int PRIMARY KEY)").await?;
    chain.c.sql(DATABASE, "CREATE TABLE third (n int PRIMARY KEY)").await?;
    chain.wait_b_caught_up().await?;
    let output = replication.command(&["setup"]).await?;
    ensure_said(&output, 3, &["it lacks \"public\".\"third\"", "ALTER PUBLICATION"])?;

    // What C loses later is named by the run, and nothing is lost meanwhile.
    chain.c.sql(DATABASE, "ALTER TABLE log DROP COLUMN note").await?;
    chain.a.sql(DATABASE, "INSERT INTO log VALUES (1, 'one')").await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure_said(&output, 1, &["note", "to mend it"])?;
    chain.c.sql(DATABASE, "ALTER TABLE log ADD note text").await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.log"]).await
}

#[tokio::test]
async fn servers_that_cannot_be_reached_are_named() -> Result<()> {
    let replication = Replication::start(TABLES).await?;
    let [a, b, c] = replication.servers().map(|server| server.dsn(DATABASE));
    // Nobody listens here.
    let nowhere = "host=127.0.0.1 port=1 user=postgres dbname=app sslmode=disable";
    let missing = |server: &Server| server.dsn("nosuchdb");
    let [on_a, on_b, on_c] = replication.servers();
    let cases = [
        ("source", nowhere.to_owned(), a.clone(), c.clone(), "cannot reach the source at 127.0.0.1:1"),
        ("primary", b.clone(), nowhere.to_owned(), c.clone(), "cannot reach the primary at 127.0.0.1:1"),
        ("target", b.clone(), a.clone(), nowhere.to_owned(), "cannot reach the target at 127.0.0.1:1"),
        ("source", missing(on_b), a.clone(), c.clone(), "database \"nosuchdb\" does not exist"),
        ("primary", b.clone(), missing(on_a), c.clone(), "database \"nosuchdb\" does not exist"),
        ("target", b.clone(), a.clone(), missing(on_c), "database \"nosuchdb\" does not exist"),
    ];
    for (role, source, primary, target, said) in cases {
        replication.configure_servers(&source, Some(&primary), &target, "")?;
        ensure_refused(&replication, &["setup"], 1, &[role, said]).await?;
    }
    // With C as the primary: B descends from somebody else.
    replication.configure_servers(&b, Some(&c), &c, "")?;
    ensure_refused(&replication, &["setup"], 3, &["not a standby of the primary", "[primary]"]).await?;
    replication.configure_servers(&b, Some(&b), &c, "")?;
    ensure_refused(&replication, &["setup"], 3, &["[primary] names a server that is a standby itself"]).await
}

#[tokio::test]
async fn an_authentication_that_fails_or_would_give_the_password_away_is_refused() -> Result<()> {
    let replication = Replication::start(TABLES).await?;
    let [a, b, c] = replication.servers().map(|server| server.dsn(DATABASE));
    let [_, on_b, on_c] = replication.servers();
    let cases = [
        ("scram_user", "wr0ng-secret", "password authentication failed"),
        ("md5_user", "md5-pw", "SCRAM-SHA-256"),
        ("clear_user", "clear-pw", "SCRAM-SHA-256"),
    ];
    for (user, password, said) in cases {
        let roles = [
            ("source", on_b.dsn_as(DATABASE, user, password), c.clone()),
            ("target", b.clone(), on_c.dsn_as(DATABASE, user, password)),
        ];
        for (role, source, target) in roles {
            replication.configure_servers(&source, Some(&a), &target, "")?;
            ensure_refused(&replication, &["setup"], 1, &[role, said]).await?;
            let run = replication.command(&["run"]).await?;
            ensure!(run.code == Some(1), "run ended with {:?}: {}", run.code, run.stderr);
            for output in [run, replication.command(&["setup", "-vv"]).await?] {
                let all = output.stderr + &output.stdout;
                ensure!(!all.contains(password), "the password of {user} is shown:\n{all}");
            }
        }
    }
    // The right one is taken.
    let source = on_b.dsn_as(DATABASE, "scram_user", "scram-pw");
    let target = on_c.dsn_as(DATABASE, "scram_user", "scram-pw");
    replication.configure_servers(&source, Some(&a), &target, "")?;
    replication.setup().await?;
    replication.replicate("INSERT INTO log VALUES (1)", &["public.log"]).await?;
    // And what worked once is no reason to try a wrong one over and over.
    let wrong = on_b.dsn_as(DATABASE, "scram_user", "wr0ng-secret");
    replication.configure_servers(&wrong, Some(&a), &target, "")?;
    replication.chain.a.sql(DATABASE, "INSERT INTO log VALUES (2)").await?;
    ensure_said(&replication.command(&["run"]).await?, 1, &["source", "password authentication failed"])?;
    ensure!(on_c.scalar(DATABASE, "SELECT count(*) FROM log").await? == "1");
    Ok(())
}

#[tokio::test]
async fn a_password_is_neither_logged_nor_seen_among_the_processes() -> Result<()> {
    const SECRET: &str = "scram-pw";
    let replication = Replication::start(TABLES).await?;
    let (b, c) = (&replication.chain.b, &replication.chain.c);
    let (source, target) = (b.dsn_as(DATABASE, "scram_user", ""), c.dsn_as(DATABASE, "scram_user", ""));
    let without = |dsn: String| dsn.replace("password= ", "");
    let config = replication.config();
    let folder = config.parent().context("a folder")?;
    std::fs::write(folder.join("password"), format!("{SECRET}\n"))?;
    let dsn = replication.chain.a.dsn(DATABASE);
    let text = format!(
        "name = \"test\"\n[source]\ndsn = \"{}\"\npassword_file = \"password\"\n[primary]\ndsn = \"{dsn}\"\n\
         [target]\ndsn = \"{}\"\npassword_env = \"TARGET_PASSWORD\"\n[tables]\ninclude = [\"public.*\"]\n[snapshot]\ncopy_data = false\n",
        without(source),
        without(target)
    );
    std::fs::write(&config, text)?;
    let env = [("TARGET_PASSWORD", SECRET)];
    let mut said = String::new();
    for arguments in [&["setup", "-vv"][..], &["status"], &["run", "-vv"]] {
        let engine = Engine::spawn_env(ENGINE.as_ref(), &config, arguments, &env)?;
        if arguments[0] == "run" {
            wait_streaming(&engine, 1).await?;
            let command_line = std::fs::read(format!("/proc/{}/cmdline", engine.pid()))?;
            ensure!(!String::from_utf8_lossy(&command_line).contains(SECRET), "the command line has it");
            replication.chain.a.sql(DATABASE, "INSERT INTO log VALUES (1)").await?;
            replication.wait_caught_up().await?;
            // Between two attempts too.
            replication.chain.c.restart().await?;
            wait_streaming(&engine, 2).await?;
            stop(&engine).await?;
        }
        ensure!(engine.wait(DEADLINE).await?.success(), "{arguments:?}: {}", engine.stderr());
        said += &(engine.stderr() + &engine.stdout());
    }
    ensure!(!said.contains(SECRET), "{said}");
    replication.assert_same(&["public.log"]).await
}

#[tokio::test]
async fn row_values_stay_out_of_the_log() -> Result<()> {
    let replication = Replication::start(TABLES).await?;
    replication.setup().await?;
    replication.chain.c.sql(DATABASE, "INSERT INTO log VALUES (4711, 'here')").await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO log VALUES (4711, 'there')").await?;
    let output = replication.command(&["run"]).await?;
    ensure_said(&output, 1, &["\"public\".\"log\"", "log_pkey", "23505", "at LSN"])?;
    ensure!(!output.stderr.contains("4711"), "{}", output.stderr);
    replication.configure("[log]\nrow_values = true\n")?;
    let output = replication.command(&["run"]).await?;
    ensure_said(&output, 1, &["(n)=(4711)"])?;
    // It goes on once C is mended.
    replication.chain.c.sql(DATABASE, "DELETE FROM log").await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.log"]).await
}

#[tokio::test]
async fn a_wal_level_that_is_too_low_is_refused() -> Result<()> {
    let replication = Replication::start_with(ChainOptions::default().wal_level("replica"), TABLES).await?;
    let chain = &replication.chain;
    let mend = "ALTER SYSTEM SET wal_level = 'logical'";
    ensure_refused(&replication, &["setup"], 3, &["wal_level is replica on the source", mend]).await?;
    // B alone is not enough.
    chain.b.configure(&[("wal_level", "logical")])?;
    chain.b.restart().await?;
    ensure_refused(&replication, &["setup"], 3, &["wal_level is replica on the primary", mend]).await?;
    // Nor can it be asked what A has.
    chain
        .a
        .sql(DATABASE, "SET client_min_messages = error; CREATE PUBLICATION pgsluice_test FOR TABLE log, more")
        .await?;
    chain.wait_b_caught_up().await?;
    replication.configure_servers(&chain.b.dsn(DATABASE), None, &chain.c.dsn(DATABASE), "")?;
    let output = replication.command(&["setup"]).await?;
    ensure_said(&output, 3, &["wal_level", "primary"])?;
    let slots = "SELECT count(*) FROM pg_replication_slots";
    wait_for("no slot", DEADLINE, || async { Ok((chain.b.scalar(DATABASE, slots).await? == "0").then_some(())) }).await
}

#[tokio::test]
async fn a_standby_that_is_too_old_is_refused() -> Result<()> {
    if Install::try_find(15).is_none() {
        println!("skipped: there is no PostgreSQL 15 on this machine");
        return Ok(());
    }
    let replication = Replication::start_with(ChainOptions::default().major_ab(15), TABLES).await?;
    let said = ["standby of PostgreSQL 15", "needs 16", "name the primary as [source]"];
    ensure_refused(&replication, &["setup"], 3, &said).await?;
    let (source, target) = (replication.chain.a.dsn(DATABASE), replication.chain.c.dsn(DATABASE));
    replication.configure_servers(&source, None, &target, "")?;
    replication.setup().await?;
    replication.replicate("INSERT INTO log VALUES (1)", &["public.log"]).await
}

#[test]
fn a_missing_configuration_file_is_named() -> Result<()> {
    let output = Command::new(ENGINE).args(["run", "-c", "/nowhere/at-all.toml"]).output()?;
    ensure!(output.status.code() == Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(stderr.contains("/nowhere/at-all.toml"), "{stderr}");
    Ok(())
}
