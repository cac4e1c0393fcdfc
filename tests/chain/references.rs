//! Foreign keys of C that act on other tables when rows go that are to be copied again.

use anyhow::{Result, ensure};
use pgsluice_testkit::ChainOptions;

use crate::load::expect_end;
use crate::replication::{DATABASE, Replication};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int);";
const ROWS: &str = "INSERT INTO t SELECT g, g FROM generate_series(1, 100) g;";
const COPY: &str = "[snapshot]\njobs = 1\nchunk_bytes = \"1MiB\"\n";
/// Tables that C alone has.
const REFERRING: &str = "\
    CREATE TABLE k (id int PRIMARY KEY, t int CONSTRAINT k_to_t REFERENCES t ON DELETE CASCADE);
    CREATE TABLE m (k int CONSTRAINT m_to_k REFERENCES k ON DELETE CASCADE);
    CREATE TABLE nulls (t int DEFAULT 1 CONSTRAINT nulls_to_t REFERENCES t ON DELETE SET NULL);
    CREATE TABLE parted (id int, t int) PARTITION BY RANGE (id); CREATE TABLE parted_1 PARTITION OF parted DEFAULT;
    ALTER TABLE parted_1 ADD CONSTRAINT part_to_t FOREIGN KEY (t) REFERENCES t ON DELETE SET DEFAULT;";
const REFERRING_ROWS: &str = "\
    INSERT INTO k SELECT id, id FROM t; INSERT INTO m SELECT id FROM k; INSERT INTO nulls SELECT id FROM t;
    INSERT INTO parted SELECT id, id FROM t;";
const GRANT: &str = "GRANT SET ON PARAMETER session_replication_role TO writer";

/// The rows that refer to others.
async fn referring(replication: &Replication) -> Result<String> {
    let sql = "SELECT (SELECT count(*) FROM k) || ' ' || (SELECT count(*) FROM m) || ' ' || (SELECT count(t) FROM nulls) || ' ' \
               || (SELECT count(t) FROM parted)";
    replication.chain.c.scalar(DATABASE, sql).await
}

async fn ensure_refused(replication: &Replication, run: &[&str], said: &[&str]) -> Result<()> {
    let (before, sql) = (referring(replication).await?, "SELECT count(*) FROM t");
    let rows = replication.chain.c.scalar(DATABASE, sql).await?;
    let refused = replication.command(run).await?;
    ensure!(refused.code == Some(3), "ended with {:?}: {}", refused.code, refused.stderr);
    for said in said {
        ensure!(refused.stderr.contains(said), "does not say {said}: {}", refused.stderr);
    }
    ensure!(referring(replication).await? == before, "rows that refer to others are gone or changed");
    ensure!(replication.chain.c.scalar(DATABASE, sql).await? == rows, "rows are gone");
    Ok(())
}

const RUN: [&str; 3] = ["run", "--stop-at", "current"];
const TRUNCATE: [&str; 6] = ["run", "--stop-at", "current", "--on-existing", "truncate", "--yes"];

#[tokio::test]
async fn a_table_that_others_refer_to_is_not_emptied_at_their_cost() -> Result<()> {
    let on_a = format!("{TABLE}{ROWS}");
    let replication =
        Replication::start_differing(ChainOptions::default(), &on_a, &format!("{TABLE}{REFERRING}")).await?;
    replication.configure_unprivileged_target(COPY).await?;
    replication.setup().await?;
    replication.catch_up().await?;
    replication.chain.c.sql(DATABASE, REFERRING_ROWS).await?;
    let named = [
        "\"public\".\"k\"",
        "\"k_to_t\"",
        "CASCADE",
        "\"m_to_k\"",
        "\"nulls_to_t\"",
        "SET NULL",
        "\"part_to_t\"",
        GRANT,
    ];
    ensure_refused(&replication, &["resync", "--yes", "public.t"], &named).await?;
    let ready = "SELECT count(*) FROM pgsluice.table_state WHERE state = 'datasync'";
    ensure!(replication.chain.c.scalar(DATABASE, ready).await? == "0", "a table is marked that was refused");
    // Marked by hand, or by an earlier version, it is refused by whoever would empty it.
    replication.chain.c.sql(DATABASE, "UPDATE pgsluice.table_state SET state = 'datasync'").await?;
    ensure_refused(&replication, &RUN, &named).await?;
    // What is said, typed.
    replication.chain.c.sql(DATABASE, GRANT).await?;
    replication.run_each("UPDATE t SET n = -n").await?;
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await?;
    ensure!(referring(&replication).await? == "100 100 100 100", "{}", referring(&replication).await?);
    Ok(())
}

/// Without the right to the setting, by dropping what acts.
#[tokio::test]
async fn rows_that_were_there_before_are_not_removed_at_the_cost_of_others() -> Result<()> {
    let on_c = format!("{TABLE}{ROWS}{REFERRING}{REFERRING_ROWS}");
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{TABLE}{ROWS}"), &on_c).await?;
    replication.configure_unprivileged_target(COPY).await?;
    replication.setup().await?;
    let drops = [
        "ALTER TABLE \"public\".\"k\" DROP CONSTRAINT \"k_to_t\"",
        "ALTER TABLE \"public\".\"nulls\" DROP CONSTRAINT \"nulls_to_t\"",
        "ALTER TABLE \"public\".\"parted_1\" DROP CONSTRAINT \"part_to_t\"",
    ];
    let add = "ALTER TABLE \"public\".\"k\" ADD CONSTRAINT \"k_to_t\" FOREIGN KEY (t) REFERENCES public.t(id) ON DELETE CASCADE";
    ensure_refused(&replication, &TRUNCATE, &[&drops[..], &[add]].concat()).await?;
    replication.chain.c.sql(DATABASE, &drops.join(";")).await?;
    replication.succeed(&TRUNCATE).await?;
    replication.chain.c.sql(DATABASE, add).await?;
    replication.assert_same(&["public.t"]).await?;
    ensure!(referring(&replication).await? == "100 100 100 100", "{}", referring(&replication).await?);
    Ok(())
}

/// One that does not act keeps rows from being deleted as long as any refer to them, and is named before that is tried.
#[tokio::test]
async fn a_foreign_key_that_keeps_rows_is_named() -> Result<()> {
    let keeps = "CREATE TABLE keeps (t int CONSTRAINT keeps_t REFERENCES t);";
    let on_c = format!("{TABLE}{ROWS}{keeps} INSERT INTO keeps VALUES (NULL);{REFERRING}{REFERRING_ROWS}
        ALTER TABLE k DROP CONSTRAINT k_to_t; ALTER TABLE nulls DROP CONSTRAINT nulls_to_t; ALTER TABLE parted_1 DROP CONSTRAINT part_to_t");
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{TABLE}{ROWS}"), &on_c).await?;
    replication.configure_unprivileged_target(COPY).await?;
    replication.setup().await?;
    replication.chain.c.sql(DATABASE, "INSERT INTO keeps VALUES (7)").await?;
    ensure_refused(
        &replication,
        &TRUNCATE,
        &["\"keeps_t\"", "NO ACTION", "ALTER TABLE \"public\".\"keeps\" DROP CONSTRAINT"],
    )
    .await?;
    replication.chain.c.sql(DATABASE, "DELETE FROM keeps WHERE t = 7").await?;
    replication.succeed(&TRUNCATE).await?;
    replication.assert_same(&["public.t"]).await
}

/// A copy that was interrupted removes rows too, when it goes on.
#[tokio::test]
async fn a_copy_that_goes_on_does_not_cascade() -> Result<()> {
    let rows = "INSERT INTO t SELECT g, g FROM generate_series(1, 100000) g";
    let on_c = format!("{TABLE}{REFERRING} ALTER TABLE t ADD CONSTRAINT stops CHECK (id <> 90000)");
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{TABLE}{rows}"), &on_c).await?;
    replication.configure_unprivileged_target(COPY).await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    expect_end(&engine, 1, &["stops"]).await?;
    let refer = "ALTER TABLE t DROP CONSTRAINT stops; INSERT INTO k SELECT id, id FROM t WHERE id < 50";
    replication.chain.c.sql(DATABASE, refer).await?;
    replication.run_each("UPDATE t SET n = -n WHERE id % 5 = 0").await?;
    replication.chain.wait_b_caught_up().await?;
    ensure_refused(&replication, &RUN, &["\"k_to_t\""]).await?;
    replication.chain.c.sql(DATABASE, GRANT).await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await?;
    ensure!(referring(&replication).await?.starts_with("49 "), "{}", referring(&replication).await?);
    Ok(())
}

/// Under it rows that go would take rows along that are to stay, so an interrupted copy begins again.
#[tokio::test]
async fn a_table_that_refers_to_itself_is_copied_whole() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, n int, up int REFERENCES t ON DELETE CASCADE);";
    let rows = "INSERT INTO t SELECT g, g, NULLIF(g - 1, 0) FROM generate_series(1, 80000) g";
    let on_c = format!("{ddl} ALTER TABLE t ADD CONSTRAINT stops CHECK (id <> 70000)");
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{ddl}{rows}"), &on_c).await?;
    replication.configure_unprivileged_target(COPY).await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    expect_end(&engine, 1, &["stops"]).await?;
    replication.chain.c.sql(DATABASE, "ALTER TABLE t DROP CONSTRAINT stops").await?;
    replication.run_each("UPDATE t SET n = -n WHERE id = 80000; INSERT INTO t VALUES (80001, 1, 80000)").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await
}

/// Somebody has had foreign keys act in sessions of replicas too.
#[tokio::test]
async fn a_foreign_key_that_acts_on_replicas_is_seen_as_well() -> Result<()> {
    let on_c = format!(
        "{TABLE}{ROWS}{REFERRING}{REFERRING_ROWS}
        DO $$ DECLARE g record; BEGIN
            FOR g IN SELECT tgname FROM pg_trigger WHERE tgrelid = 't'::regclass LOOP
                EXECUTE format('ALTER TABLE t ENABLE ALWAYS TRIGGER %I', g.tgname);
            END LOOP; END $$"
    );
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{TABLE}{ROWS}"), &on_c).await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    ensure_refused(&replication, &TRUNCATE, &["\"k_to_t\"", "DROP CONSTRAINT \"k_to_t\""]).await
}
