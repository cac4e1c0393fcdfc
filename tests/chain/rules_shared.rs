//! Many tables into one: each keeps to its own rows, when it is copied, copied again, emptied, and comes later.

use std::time::Duration;

use anyhow::{Result, ensure};
use pgsluice_testkit::{ChainOptions, wait_for};

use crate::bad_input::ensure_said;
use crate::gate::Gate;
use crate::load::{Changes, Random, stop, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, Replication};
use crate::rules::assert_as_views;

const MANY_ON_A: &str = "\
    CREATE SCHEMA one; CREATE TABLE one.items (id int PRIMARY KEY, what text, n int);
    CREATE SCHEMA two; CREATE TABLE two.items (id int PRIMARY KEY, what text, n int);
    CREATE SCHEMA hidden;
    CREATE VIEW hidden.items AS SELECT 'one' AS origin, * FROM one.items UNION ALL SELECT 'two', * FROM two.items;
    INSERT INTO one.items SELECT g, repeat(md5(g::text), 7), g FROM generate_series(1, 20000) g;
    INSERT INTO two.items SELECT g, repeat(md5(g::text), 7), g FROM generate_series(1, 20000) g;";
const MANY_ON_C: &str = "\
    CREATE SCHEMA everything;
    CREATE TABLE everything.items (origin text, id int, what text, n int, PRIMARY KEY (origin, id));";
const MANY: &str = r#"
    [tables]
    include = ["one.items", "two.items"]
    [snapshot]
    jobs = 2
    chunk_bytes = "1MiB"
    [[rule]]
    table = "*.items"
    rename_schema = "everything"
    set = { origin = "$source_schema" }
    key = ["origin", "id"]
"#;
const ITEMS: [(&str, &str); 1] = [("hidden.items", "everything.items")];

async fn start_many() -> Result<Replication> {
    let replication = Replication::start_differing(ChainOptions::default(), MANY_ON_A, MANY_ON_C).await?;
    replication.configure(MANY)?;
    replication.setup().await?;
    Ok(replication)
}

#[tokio::test]
async fn a_copy_into_a_shared_table_that_is_killed_leaves_the_others_rows() -> Result<()> {
    let replication = start_many().await?;
    kill_after_chunks(&replication, 5).await?;
    // Rows that are copied already change, on both sides.
    let changes = "DELETE FROM one.items WHERE id % 7 = 0; UPDATE two.items SET n = -n WHERE id % 5 = 0; \
                   UPDATE one.items SET id = -id WHERE id % 11 = 0; INSERT INTO two.items VALUES (20001, 'new', 1)";
    replication.run_each(changes).await?;
    replication.catch_up().await?;
    assert_as_views(&replication, &ITEMS).await?;
    let change = "DELETE FROM one.items WHERE id < 100; UPDATE two.items SET n = 0 WHERE id < 100; TRUNCATE one.items";
    replication.run_each(change).await?;
    replication.catch_up().await?;
    assert_as_views(&replication, &ITEMS).await
}

#[tokio::test]
async fn one_of_the_tables_that_share_one_is_copied_again() -> Result<()> {
    let replication = start_many().await?;
    replication.catch_up().await?;
    assert_as_views(&replication, &ITEMS).await?;
    let c = &replication.chain.c;
    let others =
        "SELECT md5(string_agg(concat(ctid, xmin, id, n), ',' ORDER BY id)) FROM everything.items WHERE origin = 'two'";
    let before = c.scalar(DATABASE, others).await?;
    c.sql(
        DATABASE,
        "DELETE FROM everything.items WHERE origin = 'one' AND id % 3 = 0; \
                     UPDATE everything.items SET n = 7 WHERE origin = 'one' AND id % 3 = 1",
    )
    .await?;
    replication.succeed(&["resync", "--yes", "one.items"]).await?;
    replication.chain.a.sql(DATABASE, "DELETE FROM one.items WHERE id > 19000").await?;
    kill_after_chunks(&replication, 9).await?;
    replication.catch_up().await?;
    assert_as_views(&replication, &ITEMS).await?;
    ensure!(c.scalar(DATABASE, others).await? == before, "rows of the other table were written again");
    Ok(())
}

const THIRD: &str = "\
    CREATE SCHEMA three; CREATE TABLE three.items (id int PRIMARY KEY, what text, n int);
    INSERT INTO three.items SELECT g, 'three ' || g, g FROM generate_series(1, 500) g;
    ALTER PUBLICATION pgsluice_test ADD TABLE three.items;
    CREATE OR REPLACE VIEW hidden.items AS SELECT 'one' AS origin, * FROM one.items UNION ALL SELECT 'two', * FROM two.items
        UNION ALL SELECT 'three', * FROM three.items;";

/// Rows of others are none of its own; those that are need a decision, as in any other table.
#[tokio::test]
async fn a_table_that_joins_later_minds_its_own_rows_only() -> Result<()> {
    let replication = start_many().await?;
    replication.catch_up().await?;
    let stale = "INSERT INTO everything.items VALUES ('three', 7, 'stale', 7), ('three', -7, 'stale', 7)";
    replication.chain.c.sql(DATABASE, stale).await?;
    replication.chain.a.sql(DATABASE, THIRD).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.configure(&MANY.replace("\"two.items\"]", "\"two.items\", \"three.items\"]"))?;
    let refused = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(refused.code == Some(3) && refused.stderr.contains("rows already in"), "{}", refused.stderr);
    replication.succeed(&["run", "--stop-at", "current", "--on-existing", "truncate", "--yes"]).await?;
    assert_as_views(&replication, &ITEMS).await?;
    let changes = "DELETE FROM three.items WHERE id < 5; UPDATE one.items SET n = 7 WHERE id < 5; TRUNCATE two.items; \
                   TRUNCATE one.items, three.items; INSERT INTO three.items VALUES (1, 'again', 1)";
    replication.run_each(changes).await?;
    replication.catch_up().await?;
    assert_as_views(&replication, &ITEMS).await
}

/// A constant in the key marks rows whoever brings the others: here another program, and a table that leaves.
#[tokio::test]
async fn rows_of_others_stay_where_a_table_is_the_only_one_left() -> Result<()> {
    let replication = start_many().await?;
    replication.catch_up().await?;
    replication.chain.c.sql(DATABASE, "INSERT INTO everything.items VALUES ('elsewhere', 1, 'kept', 1)").await?;
    replication.chain.a.sql(DATABASE, "ALTER PUBLICATION pgsluice_test DROP TABLE two.items").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.configure(&MANY.replace(", \"two.items\"]", "]"))?;
    let ours = "CREATE OR REPLACE VIEW hidden.items AS SELECT 'one' AS origin, * FROM one.items UNION ALL SELECT 'two', * FROM two.items \
                UNION ALL VALUES ('elsewhere', 1, 'kept', 1)";
    replication.chain.a.sql(DATABASE, ours).await?;
    for change in ["TRUNCATE one.items", "INSERT INTO one.items VALUES (1, 'again', 1)"] {
        replication.run_each(change).await?;
        replication.catch_up().await?;
        assert_as_views(&replication, &ITEMS).await?;
    }
    replication.succeed(&["resync", "--yes", "one.items"]).await?;
    replication.catch_up().await?;
    assert_as_views(&replication, &ITEMS).await
}

/// What rules send elsewhere now is not looked for there, and nothing there is emptied for it.
#[tokio::test]
async fn rows_whose_place_changes_are_left_where_they_are() -> Result<()> {
    let replication = start_many().await?;
    let elsewhere = "CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.items (LIKE everything.items INCLUDING ALL); \
                     INSERT INTO elsewhere.items VALUES ('one', 1, 'of others', 1)";
    replication.chain.c.sql(DATABASE, elsewhere).await?;
    let there = "SELECT string_agg(concat_ws(' ', origin, id, what, n), '; ') FROM elsewhere.items";
    let moved = MANY.replace("rename_schema = \"everything\"", "rename_schema = \"elsewhere\"");
    let refused = async |said: &[&str]| {
        let output = replication.command(&["run", "--stop-at", "current"]).await?;
        ensure_said(&output, 3, &[])?;
        ensure!(said.iter().any(|said| output.stderr.contains(said)), "{}", output.stderr);
        let found = replication.chain.c.scalar(DATABASE, there).await?;
        ensure!(found == "one 1 of others 1", "{found}");
        anyhow::Ok(())
    };
    let lie = "lie on the target in \"everything\".\"items\" where origin = one, and rules have them go to \
               \"elsewhere\".\"items\" where origin = one now";
    kill_after_chunks(&replication, 5).await?;
    replication.configure(&moved)?;
    // One of the two may be whole already.
    refused(&[lie, "are not those under which the rows came"]).await?;
    replication.configure(MANY)?;
    replication.catch_up().await?;
    replication.configure(&moved)?;
    replication.succeed(&["resync", "--yes", "*.items"]).await?;
    refused(&[lie]).await?;
    replication.configure(MANY)?;
    replication.catch_up().await?;
    assert_as_views(&replication, &ITEMS).await
}

/// Every row that has ever passed the filter, as it was when it passed it last.
const KEPT_ON_A: &str = "\
    CREATE SCHEMA one; CREATE TABLE one.items (id int PRIMARY KEY, what text, n int);
    CREATE SCHEMA two; CREATE TABLE two.items (id int PRIMARY KEY, what text, n int);
    ALTER TABLE one.items REPLICA IDENTITY FULL; ALTER TABLE two.items REPLICA IDENTITY FULL;
    CREATE SCHEMA hidden; CREATE TABLE hidden.ever (origin text, id int, what text, n int, PRIMARY KEY (origin, id));
    CREATE FUNCTION hidden.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO hidden.ever VALUES (TG_TABLE_SCHEMA, NEW.*) ON CONFLICT (origin, id) DO UPDATE SET what = NEW.what, n = NEW.n;
        RETURN NULL; END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE ON one.items FOR EACH ROW WHEN (NEW.n >= 0) EXECUTE FUNCTION hidden.note();
    CREATE TRIGGER note AFTER INSERT OR UPDATE ON two.items FOR EACH ROW WHEN (NEW.n >= 0) EXECUTE FUNCTION hidden.note();
    CREATE VIEW hidden.items AS SELECT ever.*, items.id IS NULL AS is_gone FROM hidden.ever LEFT JOIN
        (SELECT 'one' AS origin, * FROM one.items UNION ALL SELECT 'two', * FROM two.items) items
        ON items.origin = ever.origin AND items.id = ever.id AND items.n >= 0;
    INSERT INTO one.items SELECT g, 'one ' || g, g % 10 - 3 FROM generate_series(1, 300) g;
    INSERT INTO two.items SELECT g, 'two ' || g, g % 10 - 3 FROM generate_series(1, 300) g;";
const KEPT_ON_C: &str = "\
    CREATE SCHEMA everything;
    CREATE TABLE everything.items (origin text, id int, what text, n int, op text, PRIMARY KEY (origin, id));
    CREATE VIEW everything.kept AS SELECT origin, id, what, n, op = 'D' AS is_gone FROM everything.items;";
const KEPT: &str = r#"
    [tables]
    include = ["one.items", "two.items"]
    [snapshot]
    copy_data = true
    [[rule]]
    table = "*.items"
    where = "n >= 0"
    rename_schema = "everything"
    set = { origin = "$source_schema", op = "$op" }
    key = ["origin", "id"]
    soft_delete = true
"#;
const KEPT_LOAD: &str = "\
    UPDATE one.items SET n = -n, what = what || '.' WHERE random() < 0.1;
    UPDATE two.items SET n = n - 1, what = left(what, 10) WHERE random() < 0.2;
    UPDATE two.items SET n = n + 7 WHERE n < 0 AND random() < 0.5;
    DELETE FROM one.items WHERE random() < 0.05;
    INSERT INTO one.items SELECT g, 'again', g % 3 - 1 FROM generate_series(1, 300) g WHERE random() < 0.2 ON CONFLICT DO NOTHING;
    INSERT INTO two.items SELECT g, 'again', g % 3 - 1 FROM generate_series(1, 300) g ON CONFLICT DO NOTHING;
    UPDATE one.items SET id = 1000 - id, n = -n WHERE id < 1000 AND random() < 0.02
        AND NOT EXISTS (SELECT FROM one.items other WHERE other.id = 1000 - items.id);
    BEGIN; DELETE FROM one.items WHERE id % 3 = 0; SAVEPOINT s; TRUNCATE two.items; ROLLBACK TO s;
    INSERT INTO one.items VALUES (3, 'in one', 1), (6, 'in one', -1); UPDATE one.items SET n = 1 WHERE id = 6; COMMIT;
    BEGIN; TRUNCATE one.items; INSERT INTO one.items VALUES (1, 'first', 1), (2, 'second', -1); COMMIT;
    TRUNCATE one.items, two.items";

/// All at once: a filter, rows that stay, and a table that is shared.
async fn everything_at_once(more: &str) -> Result<()> {
    let replication = Replication::start_differing(ChainOptions::default(), KEPT_ON_A, KEPT_ON_C).await?;
    replication.configure(&format!("{KEPT}{more}"))?;
    replication.setup().await?;
    replication.catch_up().await?;
    let kept = [("hidden.items", "everything.kept")];
    assert_as_views(&replication, &kept).await?;
    let changes = Changes::start(&replication, KEPT_LOAD);
    let mut random = Random::new();
    for _ in 0..4 {
        let engine = replication.spawn()?;
        random.pause(Duration::from_millis(800)).await;
        engine.sigkill().await?;
    }
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    random.pause(Duration::from_millis(500)).await;
    changes.end().await?;
    replication.wait_caught_up().await.map_err(|error| error.context(engine.stderr()))?;
    assert_as_views(&replication, &kept).await?;
    stop(&engine).await
}

#[tokio::test]
async fn rows_of_a_filter_that_stay_in_a_shared_table() -> Result<()> {
    everything_at_once("").await
}

#[tokio::test]
async fn rows_of_a_filter_that_stay_in_a_shared_table_change_by_change() -> Result<()> {
    everything_at_once("[apply]\nnetting = false\n").await
}

/// Kills an engine that has copied so many chunks and is about to note one more.
pub(crate) async fn kill_after_chunks(replication: &Replication, chunks: u32) -> Result<()> {
    let gate = Gate::close(replication, chunks, "").await?;
    let engine = replication.spawn()?;
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    wait_for("the copy to wait", DEADLINE, || async {
        ensure!(engine.is_running(), "the engine has ended:\n{}", engine.stderr());
        Ok((replication.chain.c.scalar(DATABASE, waiting).await? != "0").then_some(()))
    })
    .await?;
    engine.sigkill().await?;
    gate.open_for_chunks().await
}
