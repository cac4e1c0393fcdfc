//! What rules know of a row as it was, where the source sends it in part.

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Output};

use crate::replication::{DATABASE, Replication};
use crate::rules::{assert_as_views, rows};

const COPY: &str = "[snapshot]\ncopy_data = true\n";

/// Keys of more than 2,000 bytes are out of line, and come beside the row that leaves them alone.
#[tokio::test]
async fn keys_that_are_large_values() -> Result<()> {
    let on_a = "\
        CREATE TABLE things (k text PRIMARY KEY, n int); ALTER TABLE things ALTER k SET STORAGE EXTERNAL;
        CREATE TABLE kept (k text PRIMARY KEY, n int); ALTER TABLE kept ALTER k SET STORAGE EXTERNAL;
        CREATE FUNCTION key(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT $1 || repeat(md5($1), 70) $$;
        CREATE SCHEMA hidden; CREATE VIEW hidden.things AS SELECT k, n, upper(k) AS u FROM things WHERE substr(k, 1, 1) <> 'z';
        CREATE TABLE hidden.ever (k text PRIMARY KEY, n int);
        CREATE FUNCTION hidden.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO hidden.ever VALUES (NEW.*) ON CONFLICT (k) DO UPDATE SET n = NEW.n; RETURN NULL; END $$;
        CREATE TRIGGER note AFTER INSERT OR UPDATE ON kept FOR EACH ROW EXECUTE FUNCTION hidden.note();
        CREATE VIEW hidden.kept AS SELECT ever.k, ever.n, kept.k IS NULL AS is_gone FROM hidden.ever LEFT JOIN kept USING (k);
        INSERT INTO things SELECT key('k' || g), g FROM generate_series(1, 50) g; INSERT INTO kept SELECT * FROM things;";
    let on_c = "\
        CREATE TABLE things (k text PRIMARY KEY, n int, u text); CREATE TABLE kept (k text PRIMARY KEY, n int, op text);
        CREATE VIEW is_kept AS SELECT k, n, op = 'D' AS is_gone FROM kept;";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication.configure(&format!(
        "{COPY}[[rule]]\ntable = 'public.things'\nwhere = \"substr(k, 1, 1) <> 'z'\"\nset = {{ u = \"upper(k)\" }}\n\
         [[rule]]\ntable = 'public.kept'\nsoft_delete = true\nset = {{ op = '$op' }}\n"
    ))?;
    replication.setup().await?;
    replication.catch_up().await?;
    for change in [
        "UPDATE things SET n = -n WHERE n < 20; UPDATE kept SET n = -n WHERE n < 20",
        "UPDATE things SET k = key('z' || n) WHERE n = 21; UPDATE kept SET k = key('z' || n) WHERE n = 21",
        "UPDATE things SET k = key('y' || n) WHERE n = 21; UPDATE things SET n = 0 WHERE n = 22",
        "DELETE FROM things WHERE n = 23; DELETE FROM kept WHERE n = 23; UPDATE kept SET n = 1 WHERE n = 24",
        "UPDATE things SET n = n + 100; UPDATE kept SET n = n + 100",
    ] {
        replication.run_each(change).await?;
        replication.catch_up().await.with_context(|| change.to_owned())?;
        let pairs = [("hidden.things", "public.things"), ("hidden.kept", "public.is_kept")];
        assert_as_views(&replication, &pairs).await.with_context(|| change.to_owned())?;
    }
    Ok(())
}

/// The root says that whole old rows come, and the partition sends their keys: what stands there as NULL is not known.
#[tokio::test]
async fn old_rows_of_a_partition_that_sends_less_than_its_root_says() -> Result<()> {
    let on_a = "\
        CREATE TABLE things (id int PRIMARY KEY, big text, n int) PARTITION BY RANGE (id);
        CREATE TABLE things_1 PARTITION OF things FOR VALUES FROM (0) TO (1000); ALTER TABLE things_1 ALTER big SET STORAGE EXTERNAL;
        ALTER TABLE things REPLICA IDENTITY FULL; ALTER TABLE things_1 REPLICA IDENTITY DEFAULT;
        INSERT INTO things SELECT g, repeat('x', 5000 + g), g FROM generate_series(1, 9) g";
    let on_c = "CREATE TABLE things (id int PRIMARY KEY, big text, n int, size int)";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication
        .configure(&format!("{COPY}[[rule]]\ntable = 'public.things'\nset = {{ size = 'length(big) + n' }}\n"))?;
    let mend = "ALTER TABLE \"public\".\"things_1\" REPLICA IDENTITY FULL";
    let ensure_refused = |output: Output| {
        ensure!(output.code == Some(3) && output.stderr.contains(mend), "{:?}: {}", output.code, output.stderr);
        anyhow::Ok(())
    };
    ensure_refused(replication.command(&["setup"]).await?)?;
    let a = &replication.chain.a;
    a.sql(DATABASE, mend).await?;
    replication.setup().await?;
    replication.catch_up().await?;
    let found = || async { rows(&replication.chain.c, "(SELECT id, n, size FROM things WHERE id % 100 = 7)").await };
    ensure!(found().await? == ["(7,7,5014)"], "{:?}", found().await?);
    a.sql(DATABASE, "UPDATE things SET id = 107 WHERE id = 7").await?;
    replication.catch_up().await?;
    ensure!(found().await? == ["(107,7,5014)"], "{:?}", found().await?);
    a.sql(DATABASE, "ALTER TABLE things_1 REPLICA IDENTITY DEFAULT; UPDATE things SET id = 207 WHERE id = 107").await?;
    ensure_refused(replication.command(&["run", "--stop-at", "current"]).await?)?;
    ensure!(found().await? == ["(107,7,5014)"], "{:?}", found().await?);
    Ok(())
}

/// What is set from metadata is not what a row was inserted with: the rows of one batch still come to what they are.
#[tokio::test]
async fn whole_old_rows_beside_columns_that_differ_each_time() -> Result<()> {
    let on_a = "CREATE TABLE things (id int, note text, n int); ALTER TABLE things REPLICA IDENTITY FULL";
    let on_c = "CREATE TABLE things (id int PRIMARY KEY, note text, n int, op text, lsn text); \
                CREATE VIEW found AS SELECT id, note, n FROM things WHERE lsn IS NOT NULL";
    for key in ["", "key = 'id'\n"] {
        let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
        let rule = "[[rule]]\ntable = 'public.things'\nset = { op = '$op', lsn = '$lsn' }\n";
        replication.configure(&format!("{COPY}{rule}{key}"))?;
        replication.setup().await?;
        let changes = "\
            INSERT INTO things SELECT g, 'n' || g, g FROM generate_series(1, 100) g; UPDATE things SET n = n + 1 WHERE id % 2 = 0;
            DELETE FROM things WHERE id % 3 = 0; INSERT INTO things SELECT g, 'again', 0 FROM generate_series(3, 60, 3) g;
            UPDATE things SET note = NULL WHERE id % 5 = 0; DELETE FROM things WHERE note IS NULL AND id > 50";
        for changes in [changes.to_owned(), format!("DELETE FROM things; {changes}")] {
            replication.run_each(&changes).await?;
            replication.catch_up().await?;
            assert_as_views(&replication, &[("public.things", "public.found")]).await?;
        }
        // A second row of the key of another is for C to find.
        let second = "BEGIN; INSERT INTO things VALUES (1, 'second', 1); DELETE FROM things WHERE id = 1 AND note = 'n1'; COMMIT";
        let more = "INSERT INTO things SELECT g, 'n' || g, g FROM generate_series(201, 230) g";
        replication.run_each(&format!("{second}; {more}")).await?;
        let said = replication.halt().await?;
        ensure!(said.contains("23505"), "{key}: {said}");
    }
    Ok(())
}
