//! Rows that a copy sends, and that something on C leaves out: they are counted at both ends.

use anyhow::{Result, ensure};
use pgsluice_testkit::ChainOptions;

use crate::replication::{DATABASE, Replication};

const COPY: &str = "[snapshot]\njobs = 1\n";
const LEAVES_OUT: &str = "\
    CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.id % 10 = 0 THEN RETURN NULL; END IF; RETURN NEW; END $$;";

/// Copies tables of 100 rows, of which C leaves out each tenth until `off` is run there.
async fn ensure_found(replication: &Replication, trigger: &str, off: &str) -> Result<()> {
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(1), "ended with {:?}: {}", output.code, output.stderr);
    for said in ["public.t", "sent 100 rows", "took 90", trigger, off] {
        ensure!(output.stderr.replace('"', "").contains(said), "does not say {said}: {}", output.stderr);
    }
    let c = &replication.chain.c;
    ensure!(c.scalar(DATABASE, "SELECT count(*) FROM t").await? == "0", "rows of the chunk are there");
    ensure!(c.scalar(DATABASE, "SELECT count(*) FROM pgsluice.chunk_state").await? == "0", "a chunk is on record");
    c.sql(DATABASE, off).await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await
}

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int);";
const ROWS: &str = "INSERT INTO t SELECT g, g FROM generate_series(1, 100) g;";

#[tokio::test]
async fn rows_that_a_trigger_leaves_out_end_the_copy() -> Result<()> {
    for kind in ["ALWAYS", "REPLICA"] {
        let on_c = format!(
            "{TABLE}{LEAVES_OUT} CREATE TRIGGER tenth BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION leave_out();
                            ALTER TABLE t ENABLE {kind} TRIGGER tenth"
        );
        let replication =
            Replication::start_differing(ChainOptions::default(), &format!("{TABLE}{ROWS}"), &on_c).await?;
        replication.configure(COPY)?;
        replication.setup().await?;
        ensure_found(&replication, "trigger tenth of public.t", "ALTER TABLE public.t DISABLE TRIGGER tenth").await?;
    }
    Ok(())
}

#[tokio::test]
async fn rows_that_a_trigger_of_a_partition_leaves_out_end_the_copy() -> Result<()> {
    let on_c = format!("CREATE TABLE t (id int PRIMARY KEY, n int) PARTITION BY RANGE (id); CREATE TABLE leaf PARTITION OF t DEFAULT;
                        {LEAVES_OUT} CREATE TRIGGER tenth BEFORE INSERT ON leaf FOR EACH ROW EXECUTE FUNCTION leave_out();
                        ALTER TABLE leaf ENABLE ALWAYS TRIGGER tenth");
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{TABLE}{ROWS}"), &on_c).await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    ensure_found(&replication, "trigger tenth of public.leaf", "ALTER TABLE public.leaf DISABLE TRIGGER tenth").await
}

/// For a role whose sessions are not those of a replica it takes no more than an ordinary trigger.
#[tokio::test]
async fn rows_that_an_ordinary_trigger_leaves_out_end_the_copy() -> Result<()> {
    let on_c = format!(
        "{TABLE}{LEAVES_OUT} CREATE TRIGGER tenth BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION leave_out();"
    );
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{TABLE}{ROWS}"), &on_c).await?;
    replication.configure_unprivileged_target(COPY).await?;
    replication.setup().await?;
    ensure_found(&replication, "trigger tenth of public.t", "ALTER TABLE public.t DISABLE TRIGGER tenth").await
}

/// What rules leave out is not missed, and what is lost of the rest is.
#[tokio::test]
async fn rows_that_rules_leave_out_are_not_lost() -> Result<()> {
    let on_c = format!(
        "{TABLE}{LEAVES_OUT} CREATE TRIGGER tenth BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION leave_out();
                        ALTER TABLE t ENABLE ALWAYS TRIGGER tenth"
    );
    let rows = "INSERT INTO t SELECT g, g FROM generate_series(1, 200) g;";
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{TABLE}{rows}"), &on_c).await?;
    replication.configure(&format!("[[rule]]\ntable = \"public.t\"\nwhere = \"id <= 100\"\n{COPY}"))?;
    replication.setup().await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    for said in ["sent 100 rows", "took 90"] {
        ensure!(output.code == Some(1) && output.stderr.contains(said), "does not say {said}: {}", output.stderr);
    }
    replication.chain.c.sql(DATABASE, "ALTER TABLE t DISABLE TRIGGER tenth").await?;
    replication.catch_up().await?;
    let rows = replication.chain.c.scalar(DATABASE, "SELECT count(*) || ' ' || max(id) FROM t").await?;
    ensure!(rows == "100 100", "{rows}");
    Ok(())
}

/// COPY passes by rules of the target's rewriter, and a view is no table to copy to.
#[tokio::test]
async fn rewrite_rules_and_views_of_the_target_lose_no_rows() -> Result<()> {
    let on_c = format!("{TABLE} CREATE RULE nothing AS ON INSERT TO t DO INSTEAD NOTHING;");
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{TABLE}{ROWS}"), &on_c).await?;
    replication.configure(COPY)?;
    replication.setup().await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await?;
    let view = "ALTER TABLE t RENAME TO u; CREATE VIEW t AS SELECT * FROM u; UPDATE pgsluice.table_state SET state = 'datasync'";
    replication.chain.c.sql(DATABASE, view).await?;
    let refused = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(
        refused.code == Some(3) && refused.stderr.contains("is not a table"),
        "{:?} {}",
        refused.code,
        refused.stderr
    );
    ensure!(replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM u").await? == "100");
    Ok(())
}
