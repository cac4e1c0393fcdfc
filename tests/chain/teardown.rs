//! Teardown by roles that do not own everything: what can go goes and is listed, what cannot is left to its owner as SQL.

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Output};
use serde_json::Value;

use crate::replication::{DATABASE, Replication};
use crate::setup::ensure_said;

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, note text)";
const ROLE_ON_A: &str = "\
    CREATE ROLE reader LOGIN REPLICATION; GRANT USAGE ON SCHEMA public TO reader;
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
    GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO reader; GRANT pg_monitor TO reader";
const ROLE_ON_C: &str = "\
    CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA public TO reader;
    GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO reader";
const COPY: &str = "[snapshot]\ncopy_data = true\n";

/// A replication whose roles own nothing. What they need was made by others.
async fn start(more: &str) -> Result<Replication> {
    let replication = Replication::start_with(ChainOptions::default(), DDL).await?;
    let [a, b, c] = replication.servers();
    a.sql(DATABASE, ROLE_ON_A).await?;
    c.sql(DATABASE, ROLE_ON_C).await?;
    replication.chain.wait_b_caught_up().await?;
    let [a, b, c] = [a, b, c].map(|server| server.dsn(DATABASE).replace("user=postgres", "user=reader"));
    replication.configure_servers(&b, Some(&a), &c, &format!("{COPY}{more}"))?;
    Ok(replication)
}

/// The statements after `on the ROLE (…): ` in an error.
fn statements(output: &Output, role: &str) -> Vec<String> {
    let begin = format!("on the {role} (");
    let lines = output.stderr.lines().filter_map(|line| line.trim().strip_prefix(&begin).map(str::to_owned));
    lines.filter_map(|line| line.split_once("): ").map(|(_, sql)| sql.to_owned())).collect()
}

#[tokio::test]
async fn what_the_role_may_not_remove_is_left_to_its_owner() -> Result<()> {
    let replication = start("").await?;
    let [a, b, c] = replication.servers();
    a.sql(DATABASE, "CREATE PUBLICATION pgsluice_test FOR TABLE ONLY t WITH (publish_via_partition_root = true)")
        .await?;
    // The schema is another's too.
    let printed = replication.succeed(&["setup", "--print-sql"]).await?;
    let (_, on_target) = printed.split_once("-- 3. On the target:").context("no third part")?;
    let (schema, rest) = on_target.split_once("-- With").context("no progress row")?;
    let grants = &rest[rest.find("GRANT").context("no grants")?..];
    c.sql(DATABASE, &format!("{schema}{grants}")).await?;
    replication.setup().await?;
    replication.replicate("INSERT INTO t VALUES (1, 'a')", &["public.t"]).await?;

    let torn_down = replication.command(&["teardown", "--yes", "--format", "json"]).await?;
    ensure_said(&torn_down, 3, &["publication pgsluice_test", "schema pgsluice on the target", "DROP PUBLICATION"])?;
    let steps: Vec<Value> = serde_json::from_str(&torn_down.stdout)?;
    let state = |object: &str| steps.iter().find(|step| step["object"] == object).map(|step| step["state"].clone());
    for (object, expected) in [
        ("slot pgsluice_test on the source", "removed"),
        ("publication pgsluice_test", "left"),
        ("progress row test on the target", "removed"),
        ("schema pgsluice on the target", "left"),
    ] {
        ensure!(state(object) == Some(expected.into()), "{object}: {steps:?}");
    }
    assert_eq!(b.scalar(DATABASE, "SELECT count(*) FROM pg_replication_slots").await?, "0");
    assert_eq!(c.scalar(DATABASE, "SELECT count(*) FROM pgsluice.progress").await?, "0");

    // What is left is not in the way: this is what so many errors advise.
    replication.setup().await?;
    a.sql(DATABASE, "INSERT INTO t VALUES (2, 'b')").await?;
    replication.succeed(&["run", "--stop-at", "current", "--on-existing", "truncate", "--yes"]).await?;
    replication.assert_same(&["public.t"]).await?;
    replication.replicate("UPDATE t SET note = 'c'", &["public.t"]).await?;

    // And what is printed removes it.
    let torn_down = replication.command(&["teardown", "--yes"]).await?;
    for (server, role) in [(a, "primary"), (c, "target")] {
        let sql = statements(&torn_down, role);
        ensure!(!sql.is_empty(), "nothing for the {role}: {}", torn_down.stderr);
        server.sql(DATABASE, &sql.concat()).await?;
    }
    assert_eq!(a.scalar(DATABASE, "SELECT count(*) FROM pg_publication").await?, "0");
    assert_eq!(c.scalar(DATABASE, "SELECT to_regnamespace('pgsluice') IS NULL").await?, "t");
    let again = replication.succeed(&["teardown", "--yes"]).await?;
    ensure!(again.contains("absent") && !again.contains("left"), "{again}");
    Ok(())
}

/// Before the first word of it is done: what is missing, and the SQL for whoever may.
#[tokio::test]
async fn setup_says_who_can_make_what_the_role_cannot() -> Result<()> {
    let replication = start("[stream]\nheartbeat = \"1s\"\n").await?;
    let [a, _, c] = replication.servers();
    let output = replication.command(&["setup"]).await?;
    ensure_said(&output, 3, &["may not make schema pgsluice on the target", "GRANT CREATE ON DATABASE"])?;
    c.sql(DATABASE, "GRANT CREATE ON DATABASE app TO reader").await?;
    let output = replication.command(&["setup"]).await?;
    ensure_said(
        &output,
        3,
        &["no CREATE on the database", "does not own public.t", "FOR TABLE ONLY \"public\".\"t\""],
    )?;
    let sql = output.stderr.split_once("as the owner of the tables: ").context("no statement")?.1;
    a.sql(DATABASE, sql.split_once("; then run setup again").context("no end of it")?.0).await?;
    replication.setup().await?;
    replication.replicate("INSERT INTO t VALUES (1, 'a')", &["public.t"]).await?;

    let torn_down = replication.command(&["teardown", "--yes"]).await?;
    ensure_said(&torn_down, 3, &["DROP PUBLICATION \"pgsluice_test\"", "pgsluice.heartbeat"])?;
    // Its own schema goes, since it has made that.
    assert_eq!(c.scalar(DATABASE, "SELECT to_regnamespace('pgsluice') IS NULL").await?, "t");
    a.sql(DATABASE, &statements(&torn_down, "primary").concat()).await
}
