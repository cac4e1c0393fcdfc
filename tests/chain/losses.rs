//! What would be lost is named, with the server it would be lost on, and somebody has to agree to it.

use anyhow::{Result, ensure};
use pgsluice_testkit::ChainOptions;

use crate::replication::{DATABASE, Replication};
use crate::setup::ensure_said;

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, deleted_at timestamptz); CREATE TABLE empty (id int PRIMARY KEY); \
                   CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id); \
                   CREATE TABLE parts_1 PARTITION OF parts DEFAULT";
const ON_C: &str =
    "INSERT INTO t SELECT n FROM generate_series(101, 142) n; INSERT INTO parts SELECT generate_series(1, 7)";
const ON_A: &str = "INSERT INTO t VALUES (1), (2); INSERT INTO parts VALUES (1)";
const COPY: &str = "[snapshot]\ncopy_data = true\n";
const TABLES: [&str; 3] = ["public.t", "public.empty", "public.parts"];

async fn rows(replication: &Replication) -> Result<String> {
    replication.chain.c.scalar(DATABASE, "SELECT (SELECT count(*) FROM t) || ' ' || (SELECT count(*) FROM parts)").await
}

#[tokio::test]
async fn rows_go_only_where_somebody_has_agreed_to_that() -> Result<()> {
    let options = ChainOptions::default();
    let replication =
        Replication::start_differing(options, &format!("{DDL}; {ON_A}"), &format!("{DDL}; {ON_C}")).await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    let c = &replication.chain.c;
    let server = format!("127.0.0.1:{}, database \"app\"", c.port());
    let (t, parts) = ("\"public\".\"t\"", "\"public\".\"parts\"");

    let refused = replication.command(&["run", "--stop-at", "current"]).await?;
    let counted = [format!("{t} (42 rows)"), format!("{parts} (7 rows)")];
    ensure_said(&refused, 3, &[&server, &counted[0], &counted[1], "--on-existing truncate"])?;
    let truncate = ["run", "--stop-at", "current", "--on-existing", "truncate"];
    let asked = replication.command(&truncate).await?;
    let counted = [format!("{t}: 42 rows"), format!("{parts}: 7 rows")];
    ensure_said(&asked, 2, &[&server, &counted[0], &counted[1], "--yes"])?;
    ensure!(!asked.stderr.contains("\"empty\""), "an empty table loses nothing: {}", asked.stderr);
    assert_eq!(rows(&replication).await?, "42 7");
    replication.succeed(&[&truncate[..], &["--yes"]].concat()).await?;
    replication.assert_same(&TABLES).await?;
    // There is nothing to be lost any more, so nobody is asked.
    replication.succeed(&truncate).await?;

    let asked = replication.command(&["resync", "public.t", "public.parts"]).await?;
    let counted = [format!("{t}: 2 rows"), format!("{parts}: 1 row")];
    ensure_said(&asked, 2, &[&server, &counted[0], &counted[1], "copied from the source again", "--yes"])?;
    let states = "SELECT count(*) FROM pgsluice.table_state WHERE state <> 'ready'";
    assert_eq!(c.scalar(DATABASE, states).await?, "0");
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    assert_eq!(c.scalar(DATABASE, states).await?, "1");
    replication.catch_up().await?;
    replication.assert_same(&TABLES).await?;

    let asked = replication.command(&["teardown"]).await?;
    let source = format!("slot pgsluice_test on the source, 127.0.0.1:{}", replication.chain.b.port());
    let primary = format!("publication pgsluice_test on the primary, 127.0.0.1:{}", replication.chain.a.port());
    ensure_said(&asked, 2, &[&source, &primary, &server, "copy of all tables", "--yes"])
}

/// The history is only on C, and gone for good once the table is copied again.
#[tokio::test]
async fn history_that_only_the_target_has_is_named() -> Result<()> {
    let replication = Replication::start(DDL).await?;
    let rule = format!("[[rule]]\ntable = \"public.t\"\nsoft_delete = true\nset = {{ op = \"$op\" }}\n{COPY}");
    replication.chain.c.sql(DATABASE, "ALTER TABLE t ADD op text").await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (1), (2), (3)").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.configure(&rule)?;
    replication.setup().await?;
    replication.catch_up().await?;
    replication.chain.a.sql(DATABASE, "DELETE FROM t WHERE id = 2").await?;
    replication.catch_up().await?;
    assert_eq!(replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM t WHERE op = 'D'").await?, "1");
    let asked = replication.command(&["resync", "public.t"]).await?;
    ensure_said(&asked, 2, &["\"public\".\"t\": 3 rows", "history that soft_delete keeps"])
}
