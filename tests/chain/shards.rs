//! One replication as several: together they bring what one would, and each by itself is one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, wait_for};
use serde_json::Value;

use crate::bad_input::ensure_said;
use crate::load::{Changes, Random, expect_end, settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, Replication};

/// Of two shards `items` and `log` are in the first, `orders` and `late` in the second.
const DDL: &str = "CREATE TABLE items (id int PRIMARY KEY, n int, note text);
                   CREATE TABLE orders (id int PRIMARY KEY, n int, note text);
                   CREATE TABLE log (id bigserial PRIMARY KEY, what text);";
const ROWS: &str = "INSERT INTO items SELECT g, g, md5(g::text) FROM generate_series(1, 20000) g;
                    INSERT INTO orders SELECT g, g, md5(g::text) FROM generate_series(1, 20000) g;";
const TABLES: [&str; 3] = ["public.items", "public.orders", "public.log"];
/// In transactions of one shard and of both.
const CHANGES: &str = "\
    BEGIN; UPDATE items SET n = n + 1 WHERE id = 1 + (random() * 19999)::int;
    UPDATE orders SET n = n + 1 WHERE id = 1 + (random() * 19999)::int; INSERT INTO log (what) VALUES ('both'); COMMIT;
    INSERT INTO orders SELECT max(id) + 1, 0, 'new' FROM orders;
    DELETE FROM items WHERE id = (random() * 20000)::int;
    BEGIN; UPDATE items SET note = ''; UPDATE orders SET note = ''; ROLLBACK";
const COPY: &str = "[snapshot]\njobs = 2\nchunk_bytes = \"1MiB\"\n";

/// Has the configuration say this at its top.
fn configure(replication: &Replication, shards: usize, more: &str) -> Result<()> {
    replication.configure(more)?;
    set_shards(replication, shards)
}

fn set_shards(replication: &Replication, shards: usize) -> Result<()> {
    let text = std::fs::read_to_string(replication.config())?;
    let text = text.replace("name = \"test\"\n", &format!("name = \"test\"\nshards = {shards}\n"));
    std::fs::write(replication.config(), text).context("writing the configuration")
}

/// Two shards, set up, with the rows on A alone, or on both ends.
async fn start(ddl: &str, on_a: &str, on_c: &str, more: &str) -> Result<Replication> {
    let options = ChainOptions::default();
    let replication = Replication::start_differing(options, &format!("{ddl}{on_a}"), &format!("{ddl}{on_c}")).await?;
    configure(&replication, 2, more)?;
    replication.setup().await?;
    Ok(replication)
}

async fn status(replication: &Replication) -> Result<Value> {
    Ok(serde_json::from_str(&replication.succeed(&["status", "--format", "json"]).await?)?)
}

/// What the shards have as progress, if it is one position.
async fn one_lsn(replication: &Replication) -> Result<String> {
    let sql = "SELECT string_agg(DISTINCT end_lsn::text, ' ') FROM pgsluice.progress";
    let lsn = replication.chain.c.scalar(DATABASE, sql).await?;
    ensure!(!lsn.contains(' '), "the shards stand at {lsn}");
    Ok(lsn)
}

#[tokio::test]
async fn two_shards_copy_and_stream_through_kills() -> Result<()> {
    let replication = start(DDL, ROWS, "", COPY).await?;
    let changes = Changes::start(&replication, CHANGES);
    let mut random = Random::new();
    for _ in 0..6 {
        let engine = replication.spawn()?;
        random.pause(Duration::from_millis(1_500)).await;
        engine.sigkill().await?;
    }
    let engine = replication.spawn()?;
    wait_streaming(&engine, 2).await?;
    changes.end().await?;
    settle(&replication, &engine, &TABLES).await?;
    let stderr = engine.stderr();
    ensure!(stderr.contains("shard{number=1}") && stderr.contains("shard{number=2}"), "{stderr}");
    let walsenders = "SELECT count(*) FROM pg_stat_replication WHERE application_name NOT LIKE 'walreceiver'";
    ensure!(replication.chain.b.scalar(DATABASE, walsenders).await? == "2", "not two walsenders");
    stop(&engine).await?;

    replication.run_each("TRUNCATE log; UPDATE items SET n = 0; UPDATE orders SET n = 0").await?;
    replication.catch_up().await?;
    one_lsn(&replication).await?;
    replication.assert_same(&TABLES).await
}

/// Whatever each has to copy first.
#[tokio::test]
async fn a_run_that_stops_by_itself_stops_all_at_one_lsn() -> Result<()> {
    let replication = start(DDL, ROWS, "", COPY).await?;
    let changes = Changes::start(&replication, CHANGES);
    for _ in 0..2 {
        replication.catch_up().await?;
        let lsn = one_lsn(&replication).await?;
        let status = status(&replication).await?;
        ensure!(status["progress"]["end_lsn"] == lsn.as_str() && status["state"] == "stopped", "{status}");
    }
    changes.end().await?;
    let position = replication.chain.a.scalar(DATABASE, "SELECT pg_current_wal_lsn()").await?;
    replication.run_each("INSERT INTO items VALUES (-1, 0, 'late'); INSERT INTO orders VALUES (-1, 0, 'late')").await?;
    replication.succeed(&["run", "--stop-at", &position]).await?;
    let late = "SELECT (SELECT count(*) FROM items WHERE id = -1) + (SELECT count(*) FROM orders WHERE id = -1)";
    ensure!(replication.chain.c.scalar(DATABASE, late).await? == "0", "a change behind the LSN is on C");
    replication.catch_up().await?;
    replication.assert_same(&TABLES).await
}

#[tokio::test]
async fn status_joins_the_shards() -> Result<()> {
    let replication = start(DDL, ROWS, "", COPY).await?;
    let before = status(&replication).await?;
    ensure!(before["name"] == "test" && before["state"] == "stopped", "{before}");
    let engine = replication.spawn()?;
    wait_streaming(&engine, 2).await?;
    settle(&replication, &engine, &TABLES).await?;
    let locker = replication.chain.c.connect(DATABASE).await?;
    locker.batch_execute("BEGIN; LOCK TABLE orders").await?;
    replication.chain.a.sql(DATABASE, "UPDATE orders SET note = repeat('x', 100)").await?;
    wait_for("the lag of the shard that is blocked", DEADLINE, || async {
        let status = status(&replication).await?;
        ensure!(status["state"] == "streaming", "{status}");
        let [all, free, blocked] = [&status, &status["shards"][0], &status["shards"][1]]
            .map(|of| of["lag"]["total"]["bytes"].as_u64().unwrap_or(0));
        let progress = [&status, &status["shards"][1]].map(|of| of["progress"]["end_lsn"].clone());
        Ok((all == blocked && all > 2_000_000 && free < all && progress[0] == progress[1]).then_some(()))
    })
    .await?;
    let joined = status(&replication).await?;
    let tables: Vec<_> = joined["tables"].as_array().context("tables")?.iter().map(|table| &table["table"]).collect();
    assert_eq!(tables, ["\"public\".\"items\"", "\"public\".\"log\"", "\"public\".\"orders\""]);
    let numbers: Vec<_> = joined["shards"].as_array().context("shards")?.iter().map(|one| &one["number"]).collect();
    ensure!(numbers == [1, 2] && joined["shards"][1]["name"] == "test_2", "{joined}");
    let table = replication.succeed(&["status"]).await?;
    ensure!(table.contains("shard 1") && table.contains("shard 2"), "{table}");
    locker.batch_execute("ROLLBACK").await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}

/// Another number of shards is refused by whatever would work with it, and goes by setting up anew.
#[tokio::test]
async fn another_number_of_shards_is_refused() -> Result<()> {
    let replication = start(DDL, ROWS, ROWS, "").await?;
    replication.run_each("UPDATE items SET n = 0; UPDATE orders SET n = 0").await?;
    replication.catch_up().await?;
    let lsn = one_lsn(&replication).await?;
    for shards in [1, 3] {
        configure(&replication, shards, "")?;
        let said = format!("was set up with shards = 2, and the configuration has shards = {shards}");
        for command in [["run", "--stop-at", "current"].as_slice(), &["setup"], &["skip", "--lsn", "FF/0", "--yes"]] {
            ensure_said(&replication.command(command).await?, 3, &[&said, "set shards = 2 again", "teardown"])?;
        }
        let status = status(&replication).await?;
        ensure!(status["errors"].to_string().contains("shards = 2"), "{status}");
    }
    let made = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'";
    ensure!(replication.chain.b.scalar(DATABASE, made).await? == "2" && one_lsn(&replication).await? == lsn);

    // The configuration says three, and the two that there are go.
    replication.succeed(&["teardown", "--yes"]).await?;
    replication.setup().await?;
    replication.replicate("UPDATE items SET n = 1; UPDATE orders SET n = 2", &TABLES).await?;
    configure(&replication, 2, "")?;
    ensure_said(&replication.command(&["run", "--stop-at", "current"]).await?, 3, &["was set up with shards = 3"])?;
    replication.succeed(&["teardown", "--yes"]).await?;
    configure(&replication, 1, "")?;
    replication.setup().await?;
    replication.replicate("UPDATE items SET n = 3; UPDATE orders SET n = 4", &TABLES).await?;
    configure(&replication, 2, "")?;
    ensure_said(&replication.command(&["setup"]).await?, 3, &["shards = 1, and the configuration has shards = 2"])?;

    // A shard's name is taken by another replication, and the other way round.
    replication.succeed(&["teardown", "--yes"]).await?;
    replication.setup().await?;
    let text = std::fs::read_to_string(replication.config())?;
    std::fs::write(replication.config(), text.replace("name = \"test\"\nshards = 2\n", "name = \"test_1\"\n"))?;
    for command in [["setup"].as_slice(), &["teardown", "--yes"]] {
        ensure_said(&replication.command(command).await?, 3, &["is of shard 1 of \"test\""])?;
    }
    Ok(())
}

/// What is about tables of one shard alone does not disturb the others, and what is about none is refused as ever.
#[tokio::test]
async fn sections_rules_and_patterns_are_of_the_whole() -> Result<()> {
    let more = r#"
        [tables]
        include = ["public.items", "public.orders"]
        [stream]
        heartbeat = "100ms"
        [[conflict]]
        table = "public.orders"
        on_duplicate = "overwrite"
        [[rule]]
        table = "public.items"
        mask = { note = "null" }
    "#;
    let replication = start(DDL, "", "INSERT INTO orders VALUES (1, 0, 'theirs')", more).await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 2).await?;
    replication.run_each("INSERT INTO items VALUES (1, 1, 'secret'); INSERT INTO orders VALUES (1, 1, 'ours')").await?;
    settle(&replication, &engine, &["public.orders"]).await?;
    let c = &replication.chain.c;
    ensure!(c.scalar(DATABASE, "SELECT coalesce(note, 'masked') FROM items").await? == "masked");
    // Each shard hears of A, though nobody writes.
    let now = replication.chain.a.scalar(DATABASE, "SELECT clock_timestamp()").await?;
    let beaten = format!("SELECT coalesce(min(commit_time) > '{now}', false) FROM pgsluice.progress");
    wait_for("heartbeats in both shards", DEADLINE, || async {
        Ok((c.scalar(DATABASE, &beaten).await? == "t").then_some(()))
    })
    .await?;
    let status = status(&replication).await?;
    ensure!(status["conflicts"][0]["overwritten"] == 1 && status["lag"]["total"]["seconds"].is_number(), "{status}");
    stop(&engine).await?;
    replication.run_each("INSERT INTO items VALUES (2, 1, 'secret'); INSERT INTO orders VALUES (2, 1, 'ours')").await?;
    replication.chain.wait_b_caught_up().await?;
    let tail = replication.succeed(&["tail", "--no-follow"]).await?;
    ensure!(tail.contains("items") && tail.contains("orders") && !tail.contains("secret"), "{tail}");
    let limited = replication.succeed(&["tail", "--limit", "1"]).await?;
    ensure!(limited.lines().count() == 1, "{limited}");

    configure(&replication, 2, &more.replace("table = \"public.orders\"", "table = \"public.ordres\""))?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure_said(&output, 3, &["no table that is replicated matches \"public.ordres\""])?;
    configure(&replication, 2, &more.replace("table = \"public.items\"", "table = \"public.itms\""))?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure_said(&output, 3, &["no table that is replicated matches \"public.itms\""])?;
    configure(&replication, 2, more)?;
    replication.succeed(&["teardown", "--yes"]).await?;
    let left = "SELECT to_regnamespace('pgsluice') IS NULL AND NOT EXISTS (SELECT FROM pg_publication)";
    for server in [&replication.chain.a, c] {
        ensure!(server.scalar(DATABASE, left).await? == "t", "something is left on {}", server.name());
    }
    let slots = "SELECT count(*) FROM pg_replication_slots";
    ensure!(replication.chain.b.scalar(DATABASE, slots).await? == "0", "a slot is left");
    Ok(())
}

/// Nothing is made.
#[tokio::test]
async fn what_shards_cannot_do_is_refused_before_anything_is_made() -> Result<()> {
    let schemas = "CREATE SCHEMA two; CREATE TABLE two.items (id int PRIMARY KEY);
                   CREATE SCHEMA three; CREATE TABLE three.items (id int PRIMARY KEY);";
    let on_c = "CREATE TABLE items (origin text, id int, PRIMARY KEY (origin, id));";
    let replication = Replication::start_differing(ChainOptions::default(), schemas, on_c).await?;
    let shared = r#"
        [tables]
        include = ["two.*", "three.*"]
        [[rule]]
        table = "*.items"
        rename_schema = "public"
        set = { origin = "$source_schema" }
        key = ["origin", "id"]
    "#;
    configure(&replication, 2, shared)?;
    let said = ["\"two\".\"items\" (shard 1)", "\"three\".\"items\" (shard 2)", "are in different shards"];
    ensure_said(&replication.command(&["setup"]).await?, 3, &said)?;

    replication.configure_unprivileged_target("[tables]\ninclude = [\"two.*\"]\n").await?;
    replication.chain.c.sql(DATABASE, "CREATE SCHEMA two; CREATE TABLE two.items (id int PRIMARY KEY)").await?;
    set_shards(&replication, 2)?;
    let said = ["shards is set, and foreign keys of the target are checked", "GRANT SET ON PARAMETER"];
    ensure_said(&replication.command(&["setup"]).await?, 3, &said)?;
    ensure!(replication.chain.b.scalar(DATABASE, "SELECT count(*) FROM pg_replication_slots").await? == "0");
    ensure!(replication.chain.a.scalar(DATABASE, "SELECT count(*) FROM pg_publication").await? == "0");
    ensure!(replication.chain.c.scalar(DATABASE, "SELECT to_regclass('pgsluice.progress') IS NULL").await? == "t");
    Ok(())
}

/// The LSN that a stop names.
fn lsn_of(said: &str) -> Result<String> {
    let lsn = said.split("(at LSN ").nth(1).and_then(|rest| rest.split(')').next());
    Ok(lsn.with_context(|| format!("no LSN in {said}"))?.to_owned())
}

/// Of a shard that does not take a change: the others stop too, and what they have is not lost.
#[tokio::test]
async fn an_error_stops_all_and_a_skip_is_asked_of_all() -> Result<()> {
    let replication = start(DDL, "", "INSERT INTO orders VALUES (2, 0, 'theirs')", "").await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 2).await?;
    replication
        .run_each(
            "INSERT INTO items VALUES (1, 0, 'one'); INSERT INTO orders VALUES (2, 0, 'two');
             INSERT INTO orders VALUES (3, 0, 'three'); INSERT INTO items VALUES (4, 0, 'four')",
        )
        .await?;
    expect_end(&engine, 1, &["shard=2", "ends the other shards too", "orders_pkey"]).await?;
    let lsn = lsn_of(&engine.stderr())?;
    // The first has it behind, or not.
    let asked = replication.succeed(&["skip", "--lsn", &lsn, "--yes"]).await?;
    ensure!(asked.contains("is skipped by `pgsluice run`"), "{asked}");
    replication.catch_up().await?;
    replication.assert_same(&["public.items"]).await?;
    let rows = "SELECT string_agg(note, ' ' ORDER BY id) FROM orders";
    ensure!(replication.chain.c.scalar(DATABASE, rows).await? == "theirs three");
    let list = replication.succeed(&["skip", "--list"]).await?;
    ensure!(list.contains("shard 2: skipped at") && list.contains("1 changes"), "{list}");
    Ok(())
}

#[tokio::test]
async fn shards_without_the_transaction_settle_a_skip_and_the_last_one_refuses() -> Result<()> {
    let replication = start(DDL, "", "", "").await?;
    replication.chain.a.sql(DATABASE, "SELECT pg_create_logical_replication_slot('look', 'pgoutput')").await?;
    replication
        .run_each(
            "INSERT INTO items VALUES (1, 0, 'one'); INSERT INTO orders VALUES (2, 0, 'two');
             BEGIN; INSERT INTO items VALUES (3, 0, 'three'); INSERT INTO orders VALUES (3, 0, 'three'); COMMIT;
             INSERT INTO items VALUES (4, 0, 'four'); INSERT INTO orders VALUES (4, 0, 'four')",
        )
        .await?;
    let commits = "SELECT ('0/0'::pg_lsn + ('x' || encode(substring(data FROM 2 FOR 8), 'hex'))::bit(64)::bigint)::text \
                   FROM pg_logical_slot_peek_binary_changes('look', NULL, NULL, 'proto_version', '1', \
                   'publication_names', 'pgsluice_test_1,pgsluice_test_2') WHERE substring(data FROM 1 FOR 1) = 'B'";
    let commits = crate::conflicts::column(&replication.chain.a, commits).await?;
    ensure!(commits.len() == 5, "{commits:?}");
    // Of the second shard alone, and of both.
    for lsn in &commits[1..3] {
        replication.succeed(&["skip", "--lsn", lsn, "--yes"]).await?;
    }
    replication.catch_up().await?;
    for table in ["items", "orders"] {
        let ids = format!("SELECT string_agg(id::text, ' ' ORDER BY id) FROM {table}");
        let expected = if table == "items" { "1 4" } else { "4" };
        assert_eq!(replication.chain.c.scalar(DATABASE, &ids).await?, expected);
    }
    let list = replication.succeed(&["skip", "--list"]).await?;
    ensure!(list.matches("has nothing of it").count() == 1 && list.matches("skipped at").count() == 3, "{list}");

    let nowhere = replication.chain.a.scalar(DATABASE, "SELECT pg_current_wal_lsn() + 8").await?;
    replication.chain.a.sql(DATABASE, "CREATE TABLE noise AS SELECT generate_series(1, 5000) n").await?;
    replication.succeed(&["skip", "--lsn", &nowhere, "--yes"]).await?;
    replication.run_each("INSERT INTO items VALUES (5, 0, ''); INSERT INTO orders VALUES (5, 0, '')").await?;
    for _ in 0..2 {
        let output = replication.command(&["run", "--stop-at", "current"]).await?;
        ensure_said(&output, 3, &["is to be skipped, and no transaction", "--cancel"])?;
    }
    replication.succeed(&["skip", "--cancel", "--lsn", &nowhere]).await?;
    replication.catch_up().await?;
    let [items, orders] = ["items", "orders"].map(|table| format!("SELECT count(*) FROM {table} WHERE id = 5"));
    let c = &replication.chain.c;
    ensure!(c.scalar(DATABASE, &items).await? == "1" && c.scalar(DATABASE, &orders).await? == "1");
    Ok(())
}

#[tokio::test]
async fn a_table_that_joins_lands_in_its_shard_and_can_be_copied_again() -> Result<()> {
    let replication = start(DDL, ROWS, "", COPY).await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 2).await?;
    settle(&replication, &engine, &TABLES).await?;
    let late = "CREATE TABLE late (id int PRIMARY KEY, note text)";
    let [a, _, c] = replication.servers();
    a.sql(DATABASE, &format!("{late}; INSERT INTO late SELECT g, 'x' FROM generate_series(1, 1000) g")).await?;
    c.sql(DATABASE, late).await?;
    replication.chain.wait_b_caught_up().await?;
    // Setup says which publication it belongs to.
    let setup = replication.command(&["setup"]).await?;
    ensure_said(&setup, 3, &["publication \"pgsluice_test_2\"", "it lacks \"public\".\"late\""])?;
    a.sql(DATABASE, "ALTER PUBLICATION pgsluice_test_2 ADD TABLE late").await?;
    let tables = [TABLES.as_slice(), &["public.late"]].concat();
    wait_log(&engine, "the stream takes over", 1).await?;
    a.sql(DATABASE, "UPDATE late SET note = 'y'; UPDATE items SET n = 0").await?;
    settle(&replication, &engine, &tables).await?;
    let name = c.scalar(DATABASE, "SELECT name FROM pgsluice.table_state WHERE table_name = 'late'").await?;
    assert_eq!(name, "test_2");

    c.sql(DATABASE, "DELETE FROM items WHERE id < 100; UPDATE late SET note = 'theirs'").await?;
    let marked = replication.succeed(&["resync", "--yes", "public.items", "public.late"]).await?;
    ensure!(marked.contains("items") && marked.contains("late"), "{marked}");
    wait_log(&engine, "the stream takes over", 3).await?;
    settle(&replication, &engine, &tables).await?;
    stop(&engine).await?;
    let strange = replication.command(&["resync", "--yes", "public.items", "public.nothing"]).await?;
    ensure_said(&strange, 3, &["no table of \"test\" matches \"public.nothing\""])?;

    // In the publication of another shard nobody would follow it.
    a.sql(DATABASE, "ALTER PUBLICATION pgsluice_test_1 ADD TABLE late").await?;
    replication.chain.wait_b_caught_up().await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure_said(&output, 3, &["is in the shard of \"pgsluice_test_2\"", "DROP TABLE ONLY \"public\".\"late\""])
}

/// More shards than tables: those without any follow the source, and hold no WAL back.
#[tokio::test]
async fn a_shard_without_tables_keeps_up() -> Result<()> {
    let replication = Replication::start(DDL).await?;
    configure(&replication, 16, "")?;
    let steps = replication.succeed(&["setup"]).await?;
    ensure!(steps.contains("pgsluice_test_16") && steps.matches("schema pgsluice").count() == 1, "{steps}");
    let print = replication.succeed(&["setup", "--print-sql"]).await?;
    ensure!(print.contains("-- Shard 16 of 16") && print.contains("INSERT INTO pgsluice.shards"), "{print}");
    let engine = replication.spawn()?;
    wait_streaming(&engine, 16).await?;
    replication.chain.a.sql(DATABASE, ROWS).await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await?;
    let removed = replication.succeed(&["teardown", "--yes"]).await?;
    ensure!(removed.matches("removed").count() == 16 * 3 + 1, "{removed}");
    Ok(())
}

/// One shard streams, and the other waits for a table of C amid its copy.
#[tokio::test]
async fn a_stop_amid_the_copy_of_one_ends_all_and_the_copy_goes_on() -> Result<()> {
    let replication = start(DDL, ROWS, "", COPY).await?;
    let c = &replication.chain.c;
    let locker = c.connect(DATABASE).await?;
    locker.batch_execute("BEGIN; LOCK TABLE orders IN SHARE MODE").await?;
    let engine = replication.spawn()?;
    wait_for("the copy to wait for the lock, and the other shard to stream", DEADLINE, || async {
        let sql = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'orders'::regclass AND NOT granted)";
        let waits = c.scalar(DATABASE, sql).await? == "t";
        Ok((waits && engine.stderr().contains("streaming starts")).then_some(()))
    })
    .await?;
    stop(&engine).await?;
    ensure!(c.scalar(DATABASE, "SELECT count(*) FROM orders").await? == "0", "the lock has kept nobody out");
    locker.batch_execute("ROLLBACK").await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 2).await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}

/// It does not follow the others as if that were all.
#[tokio::test]
async fn tail_ends_where_one_shard_cannot_be_followed() -> Result<()> {
    let replication = start(DDL, "", "", "").await?;
    replication.chain.b.sql(DATABASE, "SELECT pg_drop_replication_slot('pgsluice_test_2')").await?;
    let said = ["slot \"pgsluice_test_2\" does not exist on the source", "pgsluice setup"];
    ensure_said(&replication.command(&["tail"]).await?, 3, &said)
}
