//! Tables of every kind, and TRUNCATE of several.

use anyhow::{Context, Result};
use pgsluice_testkit::{ChainOptions, wait_for};

use crate::bad_input::ensure_said;
use crate::load::{assert_memory_is_bounded, expect_end, stop, wait_streaming};
use crate::replication::{DATABASE, DEADLINE, Replication};

/// Rows travel under the name of the partitioned table, so that C may be partitioned otherwise, or not at all.
#[tokio::test]
async fn partitioned_tables_are_partitioned_otherwise_on_the_target() -> Result<()> {
    let on_a = "\
        CREATE TABLE t (id int, day date, note text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
        CREATE TABLE t_2 (note text, day date NOT NULL, junk int, id int NOT NULL); ALTER TABLE t_2 DROP COLUMN junk;
        ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
        CREATE TABLE t_rest PARTITION OF t DEFAULT PARTITION BY HASH (id);
        CREATE TABLE t_rest_0 PARTITION OF t_rest FOR VALUES WITH (MODULUS 1, REMAINDER 0);
        CREATE TABLE whole (id int, place int, note text) PARTITION BY LIST (place);
        CREATE TABLE whole_1 PARTITION OF whole FOR VALUES IN (1); CREATE TABLE whole_2 PARTITION OF whole DEFAULT;
        ALTER TABLE whole REPLICA IDENTITY FULL; ALTER TABLE whole_1 REPLICA IDENTITY FULL;
        ALTER TABLE whole_2 REPLICA IDENTITY FULL;
        CREATE TABLE plain (id int PRIMARY KEY, note text); CREATE TABLE later (LIKE t INCLUDING ALL);";
    let on_c = "\
        CREATE TABLE t (note text, id int, day date, PRIMARY KEY (id, day)) PARTITION BY HASH (id);
        CREATE TABLE t_a PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE t_b PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        CREATE TABLE whole (id int, place int, note text) PARTITION BY RANGE (id);
        CREATE TABLE whole_a PARTITION OF whole FOR VALUES FROM (MINVALUE) TO (10);
        CREATE TABLE whole_b PARTITION OF whole FOR VALUES FROM (10) TO (MAXVALUE);
        CREATE TABLE plain (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
        CREATE TABLE plain_1 PARTITION OF plain FOR VALUES FROM (0) TO (10);
        CREATE TABLE plain_2 PARTITION OF plain DEFAULT; CREATE TABLE later (LIKE t INCLUDING ALL);";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication.setup().await?;
    let tables = ["public.t", "public.whole", "public.plain"];
    let changes = "\
        INSERT INTO t SELECT n, date '2026-01-15' + n * 5, 'note' FROM generate_series(1, 20) n;
        INSERT INTO whole SELECT n % 15, n % 3, 'note' FROM generate_series(1, 40) n;
        INSERT INTO whole SELECT n % 15, n % 3, 'note' FROM generate_series(1, 40) n;
        INSERT INTO plain SELECT n, 'note' FROM generate_series(0, 20) n;
        UPDATE t SET note = 'new' WHERE id % 2 = 0; UPDATE t SET day = '2026-02-10' WHERE id < 4;
        UPDATE t SET day = '2027-01-01', id = id + 1 WHERE id = 20; DELETE FROM t WHERE id % 7 = 0;
        UPDATE whole SET place = 1 WHERE place = 2 AND id > 5; UPDATE whole SET id = id + 9 WHERE id = 7;
        DELETE FROM whole WHERE ctid = (SELECT min(ctid) FROM whole_1) AND place = 1;
        UPDATE plain SET id = id + 30 WHERE id = 0 OR id > 15; UPDATE plain SET note = NULL WHERE id % 4 = 0";
    replication.replicate(changes, &tables).await?;
    // What was its own table becomes a part, and the other way round; rows move only with DDL, which is C's affair.
    let attach = "\
        ALTER TABLE t DETACH PARTITION t_2; INSERT INTO t_2 (id, day) VALUES (999, '2026-02-02');
        INSERT INTO t VALUES (90, '2026-02-02', 'in the default partition');
        ALTER TABLE t ATTACH PARTITION later FOR VALUES FROM ('2028-01-01') TO ('2029-01-01');
        INSERT INTO t VALUES (91, '2028-02-02', 'in the new partition'); UPDATE t SET note = 'x' WHERE id = 91;
        INSERT INTO later VALUES (92, '2028-03-03', 'by its own name')";
    replication.chain.a.sql(DATABASE, attach).await?;
    replication.catch_up().await?;
    let [a, _, c] = replication.servers();
    let february = "day >= '2026-02-01' AND day < '2026-03-01'";
    let rows = |table: &str, id: u32| {
        format!(
            "SELECT string_agg(id || coalesce(note, ''), ' ' ORDER BY id) FROM {table} WHERE {february} AND id <> {id}"
        )
    };
    // Those that went with the partition stay; what was written to it since does not come.
    assert_eq!(c.scalar(DATABASE, &rows("t", 90)).await?, a.scalar(DATABASE, &rows("t_2", 999)).await?);
    c.sql(DATABASE, &format!("DELETE FROM t WHERE {february} AND id <> 90")).await?;
    replication.assert_same(&tables).await?;
    replication.replicate("TRUNCATE t, whole, plain; INSERT INTO plain VALUES (1, 'after')", &tables).await
}

/// A parent and a child may hold rows of one key: an update of the one must leave the other alone.
#[tokio::test]
async fn inheritance_keeps_parents_and_children_apart() -> Result<()> {
    let ddl = "\
        CREATE TABLE parent (id int PRIMARY KEY, note text); CREATE TABLE child (more int, PRIMARY KEY (id)) INHERITS (parent);
        CREATE TABLE whole (id int, note text); CREATE TABLE whole_child () INHERITS (whole);
        ALTER TABLE whole REPLICA IDENTITY FULL; ALTER TABLE whole_child REPLICA IDENTITY FULL;";
    let replication = Replication::start(ddl).await?;
    replication.setup().await?;
    let tables = ["public.parent", "public.child", "public.whole", "public.whole_child"];
    let changes = "\
        INSERT INTO parent SELECT n, 'parent' FROM generate_series(1, 9) n;
        INSERT INTO child SELECT n, 'child', n FROM generate_series(1, 9) n;
        INSERT INTO whole SELECT n, 'same' FROM generate_series(1, 9) n; INSERT INTO whole_child SELECT * FROM ONLY whole;
        UPDATE ONLY parent SET note = 'new' WHERE id < 4; UPDATE child SET note = 'newer' WHERE id > 5;
        UPDATE parent SET note = note || '!' WHERE id % 2 = 0; DELETE FROM ONLY parent WHERE id = 7;
        DELETE FROM child WHERE id = 8; UPDATE ONLY parent SET id = id WHERE id = 1;
        UPDATE ONLY whole SET note = 'new' WHERE id < 4; DELETE FROM ONLY whole_child WHERE id = 6;
        DELETE FROM ONLY whole WHERE id = 9";
    replication.replicate(changes, &tables).await?;
    replication.replicate("TRUNCATE ONLY parent; TRUNCATE whole", &tables).await
}

#[tokio::test]
async fn truncate_of_several_tables_is_one_statement() -> Result<()> {
    let ddl = "\
        CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id serial PRIMARY KEY, a int REFERENCES a);
        CREATE TABLE c (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, b int REFERENCES b);
        CREATE TABLE other (id int PRIMARY KEY)";
    let on_c = format!("{ddl}; CREATE TABLE of_c_alone (a int REFERENCES a)");
    let replication = Replication::start_differing(ChainOptions::default(), ddl, &on_c).await?;
    replication.setup().await?;
    let tables = ["public.a", "public.b", "public.c", "public.other"];
    let rows = "\
        INSERT INTO a SELECT generate_series(1, 9); INSERT INTO b (a) SELECT id FROM a; INSERT INTO c (b) SELECT id FROM b;
        INSERT INTO other SELECT id FROM a ON CONFLICT DO NOTHING;";
    let sequences = "SELECT nextval('b_id_seq') || ' ' || nextval('c_id_seq')";
    let c = &replication.chain.c;
    replication.replicate(rows, &tables).await?;
    c.sql(DATABASE, "SELECT setval('b_id_seq', 100), setval('c_id_seq', 100); DROP TABLE of_c_alone").await?;
    replication.replicate(&format!("TRUNCATE a CASCADE; {rows}"), &tables).await?;
    assert_eq!(c.scalar(DATABASE, sequences).await?, "101 101");
    replication
        .replicate("BEGIN; DELETE FROM other WHERE id = 1; TRUNCATE c, b, a RESTART IDENTITY; COMMIT", &tables)
        .await?;
    assert_eq!(c.scalar(DATABASE, sequences).await?, "1 1");
    replication.replicate(rows, &tables).await?;
    // A table that only C has hangs on it: PostgreSQL refuses, and the engine does not go on without it.
    c.sql(DATABASE, "CREATE TABLE of_c_alone (a int REFERENCES a)").await?;
    replication.chain.a.sql(DATABASE, "TRUNCATE a, b, c").await?;
    let said = replication.halt().await?;
    assert!(said.contains("\"public\".\"a\"") && said.contains("of_c_alone"), "{said}");
    c.sql(DATABASE, "DROP TABLE of_c_alone").await?;
    replication.replicate("INSERT INTO a VALUES (1)", &tables).await
}

/// What is not published is not emptied on C, whether it is named in the same statement or hangs on what is.
#[tokio::test]
async fn a_truncate_of_published_and_other_tables_empties_the_published_ones() -> Result<()> {
    let ddl = "CREATE SCHEMA other; CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY);
               CREATE TABLE other.plain (id int); CREATE TABLE other.child (t int REFERENCES t);";
    let on_c = ddl.replace(" REFERENCES t", "");
    let replication = Replication::start_differing(ChainOptions::default(), ddl, &on_c).await?;
    replication.setup().await?;
    let tables = ["public.t", "public.u"];
    let c = &replication.chain.c;
    c.sql(DATABASE, "INSERT INTO other.plain VALUES (1), (2); INSERT INTO other.child VALUES (1)").await?;
    let rows = "INSERT INTO t VALUES (1), (2); INSERT INTO other.child VALUES (1); INSERT INTO other.plain VALUES (1);";
    for truncate in
        ["TRUNCATE t, other.plain, other.child, u", "TRUNCATE other.plain, t CASCADE", "TRUNCATE other.child, t"]
    {
        replication.replicate(rows, &tables).await?;
        replication.replicate(&format!("{truncate}; INSERT INTO u VALUES (1) ON CONFLICT DO NOTHING"), &tables).await?;
        assert_eq!(c.scalar(DATABASE, "SELECT count(*) FROM t").await?, "0", "{truncate}");
        let others = "SELECT (SELECT count(*) FROM other.plain) || ' ' || (SELECT count(*) FROM other.child)";
        assert_eq!(c.scalar(DATABASE, others).await?, "2 1", "{truncate}");
    }
    // None that is published: nothing comes.
    replication.replicate("INSERT INTO t VALUES (5); TRUNCATE other.plain, other.child", &tables).await
}

/// Rows that come under the names of partitions are rows of tables that nobody selected and C need not have.
#[tokio::test]
async fn partitions_that_are_published_by_their_own_names_are_refused() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
               CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10); CREATE TABLE t_2 PARTITION OF t DEFAULT;";
    let on_c = "CREATE TABLE t (id int PRIMARY KEY, note text)";
    let replication = Replication::start_differing(ChainOptions::default(), ddl, on_c).await?;
    replication.configure("[snapshot]\n")?;
    let [a, _, c] = replication.servers();
    a.sql(DATABASE, "CREATE PUBLICATION pgsluice_test FOR TABLE t").await?;
    replication.chain.wait_b_caught_up().await?;
    let mend = "ALTER PUBLICATION \"pgsluice_test\" SET (publish_via_partition_root = true)";
    let said = ["publishes partitions by their own names", mend];
    ensure_said(&replication.command(&["setup"]).await?, 3, &said)?;
    a.sql(DATABASE, mend).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.setup().await?;
    replication.replicate("INSERT INTO t SELECT n, 'note' FROM generate_series(1, 20) n", &["public.t"]).await?;

    // Under an engine that runs, too; rows that were written meanwhile are named, and copied on demand.
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    a.sql(DATABASE, &mend.replace("true", "false")).await?;
    a.sql(DATABASE, "UPDATE t SET note = 'by the partition' WHERE id IN (3, 13)").await?;
    expect_end(&engine, 3, &[said[0], said[1], "`pgsluice resync`"]).await?;
    assert_eq!(c.scalar(DATABASE, "SELECT count(*) FROM t WHERE note = 'note'").await?, "20");
    a.sql(DATABASE, mend).await?;
    a.sql(DATABASE, "UPDATE t SET note = 'by the whole' WHERE id = 4").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await
}

/// A row in each of so many tables, one table a transaction: 2,000, or as many as `PGSLUICE_TABLES` says.
#[tokio::test]
async fn thousands_of_tables() -> Result<()> {
    let tables: u32 = std::env::var("PGSLUICE_TABLES").map_or(Ok(2_000), |text| text.parse())?;
    // For what the test itself does in one transaction; C is as it is.
    let options = ChainOptions::default().a_conf("max_locks_per_transaction", "1024");
    let each = |statements: &str| format!("DO $$ BEGIN FOR i IN 1..{tables} LOOP {statements} END LOOP; END $$");
    let ddl = each(
        "EXECUTE format('CREATE TABLE t_%s (id int PRIMARY KEY, note text)', i); IF i % 100 = 0 THEN COMMIT; END IF;",
    );
    let replication = Replication::start_with(options, &ddl).await?;
    replication.setup().await?;
    // All of them at once, and one by one.
    let row = "EXECUTE format('INSERT INTO t_%s VALUES (%s)', i, i); COMMIT;";
    replication.chain.a.sql(DATABASE, &each(row)).await?;
    replication.chain.wait_b_caught_up().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let change = "EXECUTE format('UPDATE t_%s SET note = ''note %s''', i, i); COMMIT;";
    replication.chain.a.sql(DATABASE, &each(change)).await?;
    replication.wait_caught_up().await.with_context(|| engine.stderr())?;
    assert_memory_is_bounded(&engine, 512)?;
    stop(&engine).await?;
    // Each has its row, and no other.
    let check = each(
        "EXECUTE format('SELECT count(*) FILTER (WHERE id = %s AND note = ''note %s'') * 2 - count(*) FROM t_%s', i, i, i) INTO here;
         IF here <> 1 THEN RAISE EXCEPTION 'table % differs', i; END IF; COMMIT;",
    )
    .replace("DO $$ BEGIN", "DO $$ DECLARE here int; BEGIN");
    replication.chain.c.sql(DATABASE, &check).await
}

#[tokio::test]
async fn unlogged_and_temporary_tables_are_left_out() -> Result<()> {
    let on_a = "CREATE TABLE t (id int PRIMARY KEY); CREATE UNLOGGED TABLE u (id int PRIMARY KEY)";
    let on_c = "CREATE TABLE t (id int PRIMARY KEY)";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication.setup().await?;
    let changes = "INSERT INTO u VALUES (1); CREATE TEMP TABLE t2 AS SELECT 1; INSERT INTO t VALUES (1)";
    replication.replicate(changes, &["public.t"]).await
}

#[tokio::test]
async fn a_table_of_1600_columns() -> Result<()> {
    let columns: Vec<_> = (2..=1600).map(|n| format!("c{n} int")).collect();
    let ddl = format!(
        "CREATE TABLE t (id int PRIMARY KEY, {list}); CREATE TABLE whole (c1 int, {list});
         ALTER TABLE whole REPLICA IDENTITY FULL",
        list = columns.join(", ")
    );
    let replication = Replication::start(&ddl).await?;
    replication.setup().await?;
    let values: Vec<_> = (2..=1600).map(|n| n.to_string()).collect();
    let changes = format!(
        "INSERT INTO t VALUES (1, {list}); INSERT INTO t (id, c1600) VALUES (2, 7); UPDATE t SET c1000 = NULL WHERE id = 1;
         UPDATE t SET id = 3 WHERE id = 2; INSERT INTO whole VALUES (1, {list}), (2, {list}), (1, {list});
         UPDATE whole SET c1600 = 5 WHERE c1 = 2; DELETE FROM whole WHERE ctid = '(0,1)'",
        list = values.join(", ")
    );
    replication.replicate(&changes, &["public.t", "public.whole"]).await
}

/// A plan for a table that is as good as empty looks through all of it for every row. It must not outlive the emptiness.
#[tokio::test]
async fn a_table_that_grows_is_still_looked_into_by_its_index() -> Result<()> {
    let replication =
        Replication::start("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0)").await?;
    replication.configure("[apply]\nbatch_rows = 100\n")?;
    replication.chain.c.sql(DATABASE, "VACUUM ANALYZE t").await?;
    replication.setup().await?;
    let changes = "\
        DO $$ BEGIN
            FOR i IN 1..100 LOOP UPDATE t SET n = n + 1; END LOOP; COMMIT;
            INSERT INTO t SELECT g, 0 FROM generate_series(2, 5000) g; COMMIT;
            FOR i IN 0..49 LOOP UPDATE t SET n = n + 1 WHERE id BETWEEN i * 100 + 1 AND i * 100 + 100; COMMIT; END LOOP;
        END $$";
    replication.replicate(changes, &["public.t"]).await?;
    let read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE relname = 't' AND idx_tup_read >= 5000";
    let read = wait_for("the statistics of a session that has ended", DEADLINE, || async {
        Ok(replication.chain.c.query_text(DATABASE, read).await?.pop())
    })
    .await?;
    let [Some(read)] = read.as_slice() else { panic!("one column: {read:?}") };
    assert!(read.parse::<u64>()? < 4 * 5_000, "{read} entries of the index were read for 5,001 updates");
    Ok(())
}

/// Each TRUNCATE has the source describe the table anew, and a backlog has all those descriptions in one batch.
#[tokio::test]
async fn a_table_that_is_truncated_again_and_again() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, a text, b text, c text)").await?;
    replication.setup().await?;
    let client = replication.chain.a.connect(DATABASE).await?;
    for id in 0..1_000 {
        client.batch_execute(&format!("TRUNCATE t; INSERT INTO t VALUES ({id}, 'a', 'b', 'c')")).await?;
    }
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await
}
