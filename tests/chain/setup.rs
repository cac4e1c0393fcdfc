//! What setup makes, waits for and refuses, and that it leaves nothing half-made.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Chain, ChainOptions, Engine, Output, wait_for};
use serde_json::Value;

use crate::load::expect_end;
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication, SETUP};

const LOG_TABLE: &str = "CREATE TABLE log (n int)";
const CREATING: &str = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE_REPLICATION_SLOT%'";

/// Neither B nor C has anything of ours by which a run or another setup would be misled.
async fn ensure_nothing_made(chain: &Chain) -> Result<()> {
    let slots = chain.b.scalar(DATABASE, "SELECT count(*) FROM pg_replication_slots").await?;
    ensure!(slots == "0", "B has a slot");
    if chain.c.scalar(DATABASE, "SELECT to_regclass('pgsluice.progress') IS NOT NULL").await? == "t" {
        let rows = chain.c.scalar(DATABASE, "SELECT count(*) FROM pgsluice.progress").await?;
        ensure!(rows == "0", "C has a progress row");
    }
    Ok(())
}

pub fn ensure_said(output: &Output, code: i32, said: &[&str]) -> Result<()> {
    ensure!(output.code == Some(code), "ended with {:?}, not with {code}:\n{}", output.code, output.stderr);
    for text in said {
        ensure!(output.stderr.contains(text), "does not say \"{text}\":\n{}", output.stderr);
    }
    Ok(())
}

/// Waits until setup has B make the slot.
async fn wait_creating(chain: &Chain) -> Result<()> {
    wait_for("the slot to be under way", DEADLINE, || async {
        Ok((chain.b.scalar(DATABASE, CREATING).await? == "1").then_some(()))
    })
    .await
}

fn spawn_setup(replication: &Replication) -> Result<Engine> {
    Engine::spawn(ENGINE.as_ref(), &replication.config(), &SETUP)
}

async fn ensure_replicates(replication: &Replication) -> Result<()> {
    replication.replicate("INSERT INTO log SELECT generate_series(1, 10)", &["public.log"]).await
}

#[tokio::test]
async fn setup_says_what_it_made_and_makes_it_once() -> Result<()> {
    let replication = Replication::start_with(ChainOptions::default().autovacuum(false), LOG_TABLE).await?;
    let states = |stdout: String| -> Result<Vec<String>> {
        let steps: Vec<Value> = serde_json::from_str(&stdout)?;
        let state = |step: &Value| Some(format!("{}: {}", step["object"].as_str()?, step["state"].as_str()?));
        steps.iter().map(|step| state(step).context("a step without object or state")).collect()
    };
    let made = |state: &str| {
        [
            format!("publication pgsluice_test: {state}"),
            format!("schema pgsluice on the target: {state}"),
            format!("slot pgsluice_test on the source: {state}"),
            format!("progress row test on the target: {state}"),
        ]
    };
    let first = states(replication.succeed(&[&SETUP[..], &["--format", "json"]].concat()).await?)?;
    assert_eq!(first, made("created"));
    ensure_replicates(&replication).await?;
    let end_lsn = replication.end_lsn().await?;
    let second = states(replication.succeed(&[&SETUP[..], &["--format", "json"]].concat()).await?)?;
    assert_eq!(second, made("present"));
    assert_eq!(replication.end_lsn().await?, end_lsn);
    let a_slots = "SELECT count(*) FILTER (WHERE slot_type = 'logical') FROM pg_replication_slots";
    assert_eq!(replication.chain.a.scalar(DATABASE, a_slots).await?, "0");
    ensure_replicates(&replication).await
}

#[tokio::test]
async fn setup_waits_for_a_transaction_that_is_open_on_a() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    let chain = &replication.chain;
    let open = chain.a.connect(DATABASE).await?;
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await?;
    let setup = spawn_setup(&replication)?;
    wait_creating(chain).await?;
    open.batch_execute("COMMIT").await?;
    expect_end(&setup, 0, &[]).await?;
    ensure_replicates(&replication).await
}

#[tokio::test]
async fn setup_gives_up_on_a_transaction_that_does_not_end_and_names_it() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    let chain = &replication.chain;
    let open = chain.a.connect(DATABASE).await?;
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await?;
    let pid: i32 = open.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    let output = replication.command(&[&SETUP[..], &["--timeout", "2s"]].concat()).await?;
    ensure_said(&output, 1, &[&format!("pid {pid} "), "within 2s", "--timeout"])?;
    ensure_nothing_made(chain).await?;
    // Nor is anything left that it had made before.
    assert_eq!(chain.a.scalar(DATABASE, "SELECT count(*) FROM pg_publication").await?, "0");
    assert_eq!(chain.c.scalar(DATABASE, "SELECT to_regnamespace('pgsluice') IS NULL").await?, "t");
    open.batch_execute("ROLLBACK").await?;

    chain.a.sql(DATABASE, "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'forgotten'").await?;
    let output = replication.command(&[&SETUP[..], &["--timeout", "2s"]].concat()).await?;
    ensure_said(&output, 1, &["prepared transaction forgotten"])?;
    ensure_nothing_made(chain).await?;
    chain.a.sql(DATABASE, "ROLLBACK PREPARED 'forgotten'").await?;
    replication.setup().await?;
    ensure_replicates(&replication).await
}

#[tokio::test]
async fn a_setup_that_was_killed_can_be_taken_away_and_done_again() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    let chain = &replication.chain;
    let open = chain.a.connect(DATABASE).await?;
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await?;
    let setup = spawn_setup(&replication)?;
    wait_creating(chain).await?;
    setup.sigkill().await?;
    open.batch_execute("ROLLBACK").await?;
    // B goes on with what it was asked for.
    wait_for("B to be done with it", DEADLINE, || async {
        chain.log_standby_snapshot().await?;
        Ok((chain.b.scalar(DATABASE, CREATING).await? == "0").then_some(()))
    })
    .await?;
    let run = replication.command(&["run"]).await?;
    ensure_said(&run, 3, &["no progress row", "pgsluice setup"])?;
    let again = replication.command(&SETUP).await?;
    if again.code != Some(0) {
        ensure_said(&again, 3, &["broken off", "pgsluice teardown"])?;
        replication.succeed(&["teardown", "--yes"]).await?;
        replication.setup().await?;
    }
    ensure_replicates(&replication).await
}

#[tokio::test]
async fn without_the_primary_setup_says_what_to_run_there() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    let chain = &replication.chain;
    replication.configure_servers(&chain.b.dsn(DATABASE), None, &chain.c.dsn(DATABASE), "")?;
    let output = replication.command(&SETUP).await?;
    let create = "CREATE PUBLICATION \"pgsluice_test\" FOR TABLE ONLY \"public\".\"log\" WITH \
                  (publish_via_partition_root = true)";
    ensure_said(&output, 3, &["publication \"pgsluice_test\" does not exist", create])?;
    ensure_nothing_made(chain).await?;

    chain.a.sql(DATABASE, create).await?;
    chain.wait_b_caught_up().await?;
    let setup = spawn_setup(&replication)?;
    crate::load::wait_log(&setup, "SELECT pg_log_standby_snapshot();", 1).await?;
    let done = || async {
        chain.log_standby_snapshot().await?;
        Ok((!setup.is_running()).then_some(()))
    };
    wait_for("setup to end", DEADLINE, done).await?;
    expect_end(&setup, 0, &[]).await?;
    replication.configure("")?;
    ensure_replicates(&replication).await
}

#[tokio::test]
async fn what_print_sql_prints_makes_a_replication() -> Result<()> {
    let replication =
        Replication::start("CREATE TABLE log (n int); CREATE TABLE \"T\" (\"i d\" int PRIMARY KEY)").await?;
    let chain = &replication.chain;
    let sql = replication.succeed(&[&SETUP[..], &["--print-sql"]].concat()).await?;
    ensure_nothing_made(chain).await?;
    let published = "SELECT count(*) FROM pg_publication";
    ensure!(chain.a.scalar(DATABASE, published).await? == "0", "--print-sql has made a publication");
    // One part a server, each under its own headline.
    let (rest, on_target) = sql.split_once("-- 3. ").context("no third part")?;
    let (on_primary, on_source) = rest.split_once("-- 2. ").context("no second part")?;
    let without_headline = |part: &str| part.split_once('\n').map(|(_, sql)| sql.to_owned()).unwrap_or_default();
    chain.a.sql(DATABASE, on_primary).await?;
    chain.wait_b_caught_up().await?;
    let nudge = async {
        loop {
            chain.log_standby_snapshot().await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let on_source = without_headline(on_source);
    let lsn = tokio::select! {
        lsn = chain.b.scalar(DATABASE, &on_source) => lsn?,
        stopped = nudge => return stopped,
    };
    let on_target = without_headline(on_target).replace("<LSN>", &lsn);
    chain.c.sql(DATABASE, &on_target).await?;
    let insert = "INSERT INTO log VALUES (1); INSERT INTO \"T\" VALUES (1)";
    replication.replicate(insert, &["public.log", "public.\"T\""]).await?;
    // And setup finds it as its own.
    let steps = replication.succeed(&SETUP).await?;
    ensure!(!steps.contains("created"), "{steps}");
    Ok(())
}

#[tokio::test]
async fn a_standby_without_feedback_is_refused() -> Result<()> {
    let options = ChainOptions::default().hot_standby_feedback(false);
    let replication = Replication::start_with(options, LOG_TABLE).await?;
    let output = replication.command(&SETUP).await?;
    ensure_said(&output, 3, &["hot_standby_feedback is off", "ALTER SYSTEM SET hot_standby_feedback = on"])?;
    ensure_nothing_made(&replication.chain).await
}

#[tokio::test]
async fn a_primary_is_a_source_too() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    let chain = &replication.chain;
    replication.configure_servers(&chain.a.dsn(DATABASE), None, &chain.c.dsn_unix(DATABASE), "")?;
    replication.setup().await?;
    ensure_replicates(&replication).await?;
    replication.succeed(&["teardown", "--yes"]).await?;
    let left = "SELECT count(*) FROM pg_publication UNION ALL \
                SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'";
    let left = chain.a.query_text(DATABASE, left).await?;
    ensure!(left == [[Some("0".to_owned())], [Some("0".to_owned())]], "A has something left: {left:?}");
    Ok(())
}

/// What a role needs where a DBA has run what `--print-sql` prints.
#[tokio::test]
async fn roles_with_few_privileges_replicate() -> Result<()> {
    const ROLE: &str = "CREATE ROLE little LOGIN REPLICATION; GRANT USAGE ON SCHEMA public TO little; \
                        GRANT SELECT ON ALL TABLES IN SCHEMA public TO little";
    let replication = Replication::start(LOG_TABLE).await?;
    let chain = &replication.chain;
    chain.a.sql(DATABASE, ROLE).await?;
    chain.a.sql(DATABASE, "GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO little").await?;
    chain.a.sql(DATABASE, "GRANT pg_monitor TO little").await?;
    let on_c = "CREATE ROLE little LOGIN; GRANT USAGE ON SCHEMA public TO little; \
                GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO little";
    chain.c.sql(DATABASE, on_c).await?;
    chain.wait_b_caught_up().await?;
    let [a, b, c] = replication.servers().map(|server| server.dsn(DATABASE).replace("user=postgres", "user=little"));
    replication.configure_servers(&b, Some(&a), &c, "")?;

    let output = replication.command(&SETUP).await?;
    ensure_said(&output, 3, &["may not make schema pgsluice on the target"])?;
    ensure_nothing_made(chain).await?;
    let sql = replication.succeed(&[&SETUP[..], &["--print-sql"]].concat()).await?;
    let (on_primary, _) = sql.split_once("-- 2. ").context("no second part")?;
    chain.a.sql(DATABASE, on_primary).await?;
    let (_, on_target) = sql.split_once("-- 3. On the target:").context("no third part")?;
    let (schema, rest) = on_target.split_once("-- With").context("no progress row")?;
    let grants = &rest[rest.find("GRANT").context("no grants")?..];
    chain.c.sql(DATABASE, &format!("{schema}{grants}")).await?;
    replication.setup().await?;
    ensure_replicates(&replication).await?;
    let status = replication.succeed(&["status", "--format", "json"]).await?;
    ensure!(status.contains("\"stopped\""), "{status}");
    replication.setup().await
}

/// Without ONLY a table stands for those that inherit from it.
#[tokio::test]
async fn tables_that_inherit_from_a_selected_one_are_not_published_with_it() -> Result<()> {
    let ddl = "CREATE TABLE parent (id int, v text); CREATE TABLE child (x int) INHERITS (parent); \
               ALTER TABLE parent REPLICA IDENTITY FULL; ALTER TABLE child REPLICA IDENTITY FULL; \
               CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE parts_1 PARTITION OF parts DEFAULT";
    let replication = Replication::start(ddl).await?;
    let [a, _, c] = replication.servers();
    replication.configure("[tables]\ninclude = [\"public.parent\", \"public.parts\"]\n")?;
    replication.setup().await?;
    let published = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_publication_tables";
    assert_eq!(a.scalar(DATABASE, published).await?, "parent parts");
    let changes =
        "INSERT INTO parent VALUES (1, 'a'); INSERT INTO child VALUES (2, 'b', 3); INSERT INTO parts VALUES (1), (2)";
    a.sql(DATABASE, changes).await?;
    replication.catch_up().await?;
    let rows = "SELECT (SELECT count(*) FROM ONLY parent) || ' ' || (SELECT count(*) FROM child) || ' ' || count(*) FROM parts";
    assert_eq!(c.scalar(DATABASE, rows).await?, "1 0 2");

    // What is advised where it was published after all does no more than that.
    a.sql(DATABASE, "ALTER PUBLICATION pgsluice_test ADD TABLE ONLY child").await?;
    replication.chain.wait_b_caught_up().await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure_said(&output, 3, &["DROP TABLE ONLY \"public\".\"child\""])?;
    let output = replication.command(&["setup"]).await?;
    let set = "SET TABLE ONLY \"public\".\"parent\", ONLY \"public\".\"parts\"";
    ensure_said(&output, 3, &["it has besides \"public\".\"child\"", set])?;
    a.sql(DATABASE, &format!("ALTER PUBLICATION pgsluice_test {set}")).await?;
    assert_eq!(a.scalar(DATABASE, published).await?, "parent parts");
    replication.setup().await?;
    a.sql(DATABASE, "INSERT INTO parent VALUES (4, 'd'); INSERT INTO child VALUES (5, 'e', 6)").await?;
    replication.catch_up().await?;
    assert_eq!(c.scalar(DATABASE, rows).await?, "2 0 2");
    Ok(())
}

/// What a setup has made on A and C and cannot keep goes with it; what was there before stays.
#[tokio::test]
async fn a_setup_that_fails_leaves_nothing_half_made() -> Result<()> {
    let replication = Replication::start(LOG_TABLE).await?;
    let chain = &replication.chain;
    replication.configure("[stream]\nheartbeat = \"1s\"\n")?;
    let open = chain.a.connect(DATABASE).await?;
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await?;
    let output = replication.command(&[&SETUP[..], &["--timeout", "2s"]].concat()).await?;
    ensure_said(&output, 1, &["within 2s"])?;
    ensure_nothing_made(chain).await?;
    let left = "SELECT count(*) || ' ' || (to_regnamespace('pgsluice') IS NULL) FROM pg_publication";
    assert_eq!(chain.a.scalar(DATABASE, left).await?, "0 true");
    assert_eq!(chain.c.scalar(DATABASE, left).await?, "0 true");

    chain
        .a
        .sql(DATABASE, "CREATE PUBLICATION pgsluice_test FOR TABLE ONLY log WITH (publish_via_partition_root = true)")
        .await?;
    let output = replication.command(&[&SETUP[..], &["--timeout", "2s"]].concat()).await?;
    ensure_said(&output, 1, &["within 2s"])?;
    ensure_nothing_made(chain).await?;
    assert_eq!(chain.a.scalar(DATABASE, "SELECT count(*) FROM pg_publication").await?, "1");
    open.batch_execute("COMMIT").await?;
    replication.setup().await?;
    ensure_replicates(&replication).await
}

/// What A has now is what is set up, however far behind B is.
#[tokio::test]
async fn setup_and_schema_wait_for_what_the_primary_has_now() -> Result<()> {
    let options = ChainOptions::default().b_conf("recovery_min_apply_delay", "2s");
    let replication = Replication::start_with(options, "").await?;
    let [a, b, c] = replication.servers();
    replication.configure("[snapshot]\ncopy_data = true\n[tables]\ninclude = [\"public.*\"]\n")?;
    a.sql(
        DATABASE,
        "SET synchronous_commit = off; CREATE TABLE first (id int PRIMARY KEY); INSERT INTO first VALUES (1)",
    )
    .await?;
    let schema = crate::schema_copy::schema(&replication, &[]).await?;
    ensure_said(&schema, 0, &[])?;
    ensure!(schema.stdout.contains("table public.first"), "{}", schema.stdout);
    a.sql(DATABASE, "CREATE TABLE second (id int PRIMARY KEY); INSERT INTO second VALUES (2)").await?;
    c.sql(DATABASE, "CREATE TABLE second (id int PRIMARY KEY)").await?;
    replication.setup().await?;
    assert_eq!(a.scalar(DATABASE, "SELECT count(*) FROM pg_publication_tables").await?, "2");
    replication.catch_up().await?;
    replication.assert_same(&["public.first", "public.second"]).await?;
    replication.succeed(&["teardown", "--yes"]).await?;

    b.sql(DATABASE, "SELECT pg_wal_replay_pause()").await?;
    a.sql(DATABASE, "CREATE TABLE third (id int PRIMARY KEY)").await?;
    let of_b = format!("127.0.0.1:{}", b.port());
    for command in [&["setup", "--timeout", "1s"][..], &["schema", "--timeout", "1s"]] {
        let output = replication.command(command).await?;
        ensure_said(&output, 1, &["replay of ", &of_b, "which stands at", "pg_wal_replay_resume", "within 1s"])?;
    }
    ensure_nothing_made(&replication.chain).await?;
    // Without A nobody knows what B lacks, and what it has is named.
    replication.configure_servers(
        &b.dsn(DATABASE),
        None,
        &c.dsn(DATABASE),
        "[tables]\ninclude = [\"public.third\"]\n",
    )?;
    let output = replication.command(&["setup"]).await?;
    ensure_said(&output, 3, &["matches \"public.third\"", "shows what its primary had at"])?;
    b.sql(DATABASE, "SELECT pg_wal_replay_resume()").await
}
