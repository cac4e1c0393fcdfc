//! `run --defer-indexes`: what is dropped for a copy is there again afterwards, as it was, whatever happens in between.

mod partitions;
mod refusals;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine, wait_for};

use crate::gate::Gate;
use crate::load::{Changes, settle, stop, wait_log};
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication};

const TABLES: [&str; 5] = ["public.parent", "public.child", "public.parted", "public.refers", "public.identified"];

/// Every kind of index and of constraint that can be dropped, and those that cannot.
const DDL: &str = "\
    CREATE TABLE parent (id int PRIMARY KEY, code text, n int, note text, extra text UNIQUE, favourite int);
    ALTER TABLE parent ADD CONSTRAINT \"Parent's code\" UNIQUE (code) WITH (fillfactor = 70);
    COMMENT ON CONSTRAINT \"Parent's code\" ON parent IS 'it''s a constraint';
    ALTER TABLE parent ADD CONSTRAINT late UNIQUE (code, id) WITH (fillfactor = 60) DEFERRABLE INITIALLY DEFERRED;
    CREATE INDEX parent_n ON parent (n DESC NULLS LAST) WITH (fillfactor = 80); ALTER TABLE parent CLUSTER ON parent_n;
    CREATE INDEX parent_partial ON parent USING hash (note) WHERE n > 50 AND note <> 'it''s';
    CREATE INDEX \"Parent expr\" ON parent (lower(note), (n + 1)); COMMENT ON INDEX \"Parent expr\" IS 'an index; of two';
    ALTER INDEX \"Parent expr\" ALTER COLUMN 2 SET STATISTICS 500;
    CREATE UNIQUE INDEX parent_unique ON parent (n, id) INCLUDE (note) NULLS NOT DISTINCT;
    CREATE TABLE child (id int PRIMARY KEY, parent int CONSTRAINT to_parent REFERENCES parent ON UPDATE CASCADE, code text,
        up int REFERENCES child, span int4range, EXCLUDE USING gist (span WITH &&) WITH (fillfactor = 75) WHERE (id > 0));
    ALTER TABLE child ADD FOREIGN KEY (code) REFERENCES parent (code) DEFERRABLE;
    ALTER TABLE child ADD CONSTRAINT unchecked FOREIGN KEY (id) REFERENCES parent NOT VALID;
    COMMENT ON CONSTRAINT to_parent ON child IS 'up';
    ALTER TABLE parent ADD FOREIGN KEY (favourite) REFERENCES child DEFERRABLE INITIALLY DEFERRED;
    CREATE TABLE parted (id int, day date, v int, parent int REFERENCES parent, PRIMARY KEY (id, day), UNIQUE (v, day, id))
        PARTITION BY RANGE (day);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE parted_2 PARTITION OF parted DEFAULT PARTITION BY HASH (id);
    CREATE TABLE parted_2_a PARTITION OF parted_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE parted_2_b PARTITION OF parted_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE INDEX own_name ON parted_1 (v); CREATE INDEX parted_v ON parted (v); COMMENT ON INDEX own_name IS 'of a part';
    CREATE INDEX only_here ON parted_2_b (id, v); CREATE UNIQUE INDEX amid ON parted_2 (id, day, v);
    CREATE TABLE refers (id int PRIMARY KEY, pid int, pday date, FOREIGN KEY (pid, pday) REFERENCES parted);
    CREATE TABLE identified (a int NOT NULL, b int NOT NULL, n int);
    CREATE UNIQUE INDEX identified_key ON identified (a, b); CREATE INDEX identified_n ON identified (n);
    ALTER TABLE identified REPLICA IDENTITY USING INDEX identified_key;";

/// Another table's foreign key rests on an index, and another index lies elsewhere.
const ON_C: &str = "\
    CREATE SCHEMA other; CREATE TABLE other.outside (id int PRIMARY KEY, extra text REFERENCES parent (extra));
    DROP INDEX identified_n; CREATE INDEX identified_n ON identified (n) TABLESPACE side;";

const ROWS: &str = "\
    INSERT INTO parent SELECT g, 'c' || g, g % 100, md5(g::text), 'e' || g FROM generate_series(1, 20000) g;
    INSERT INTO child SELECT g, g, 'c' || g, NULLIF(g - 1, 0), int4range(g * 10, g * 10 + 5) FROM generate_series(1, 20000) g;
    UPDATE parent SET favourite = id WHERE id BETWEEN 2 AND 200;
    INSERT INTO parted SELECT g, date '2026-01-01' + g % 60, g, g FROM generate_series(1, 10000) g;
    INSERT INTO refers SELECT g, g, date '2026-01-01' + g % 60 FROM generate_series(1, 5000) g;
    INSERT INTO identified SELECT g, g % 7, g FROM generate_series(1, 10000) g;";

const CHANGES: &str = "\
    BEGIN; INSERT INTO parent SELECT max(id) + 1, 'c' || max(id) + 1, 0, 'new', 'e' || max(id) + 1 FROM parent;
    INSERT INTO child SELECT max(id), max(id), 'c' || max(id), NULL, NULL FROM parent; COMMIT;
    UPDATE parent SET n = n + 1 WHERE id % 997 = (random() * 996)::int;
    DELETE FROM refers WHERE id = (random() * 5000)::int;
    UPDATE child SET up = NULL, span = NULL WHERE id % 499 = (random() * 498)::int;
    UPDATE parted SET v = -v WHERE id % 499 = (random() * 498)::int;
    UPDATE identified SET n = n + 1 WHERE a % 499 = (random() * 498)::int;
    INSERT INTO refers SELECT max(id) + 1, 1, date '2026-01-02' FROM refers";

const COPY: &str = "[snapshot]\njobs = 3\nchunk_bytes = \"1MiB\"\n";

/// All that the catalog of C says of indexes and constraints of the schema.
const DEFINITIONS: &str = "\
    SELECT c.relname || ': ' || pg_get_indexdef(c.oid) || ' ' || concat_ws(', ', obj_description(c.oid, 'pg_class'),
        i.indisclustered, i.indisreplident, i.indisvalid, c.relispartition, c.reloptions, c.reltablespace,
        (SELECT array_agg(a.attstattarget) FROM pg_attribute a WHERE a.attrelid = c.oid),
        (SELECT inhparent::regclass FROM pg_inherits WHERE inhrelid = c.oid))
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL SELECT conrelid::regclass || ': ' || conname || ' ' || pg_get_constraintdef(oid) || ' '
        || concat_ws(', ', obj_description(oid, 'pg_constraint'), convalidated, conislocal, coninhcount)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype IN ('p', 'u', 'x', 'f') ORDER BY 1";

fn spawn(replication: &Replication) -> Result<Engine> {
    Engine::spawn(Path::new(ENGINE), &replication.config(), &["run", "--defer-indexes"])
}

async fn definitions(replication: &Replication) -> Result<Vec<String>> {
    let rows = replication.chain.c.query_text(DATABASE, DEFINITIONS).await?;
    Ok(rows.into_iter().flatten().flatten().collect())
}

async fn wait_definitions(replication: &Replication, engine: &Engine, expected: &[String]) -> Result<()> {
    let outcome = wait_for("the definitions that were there before", DEADLINE, || async {
        ensure!(engine.is_running(), "the engine has ended");
        let found = definitions(replication).await?;
        let lacks: Vec<_> = expected.iter().filter(|one| !found.contains(one)).collect();
        let strange: Vec<_> = found.iter().filter(|one| !expected.contains(one)).collect();
        ensure!(found == expected, "C lacks {lacks:#?} and has besides {strange:#?}");
        Ok(Some(()))
    });
    outcome.await.with_context(|| format!("stderr:\n{}", engine.stderr()))
}

async fn start() -> Result<Replication> {
    let replication = Replication::start_differing(ChainOptions::default(), &format!("{DDL}{ROWS}"), DDL).await?;
    let client = replication.chain.c.connect(DATABASE).await?;
    for statement in ["SET allow_in_place_tablespaces = on", "CREATE TABLESPACE side LOCATION ''", ON_C] {
        client.batch_execute(statement).await?;
    }
    replication.configure(COPY)?;
    replication.setup().await?;
    Ok(replication)
}

/// Waits until so many chunks, and so many objects to be made again before the stream, are on record.
async fn wait_records(replication: &Replication, engine: &Engine, chunks: &str, deferred: &str) -> Result<()> {
    let sql = format!(
        "SELECT (SELECT count(*) FROM pgsluice.chunk_state) {chunks}, \
                (SELECT count(*) FROM pgsluice.deferred WHERE kind <> 'foreign key') {deferred}"
    );
    let outcome = wait_for("the records", DEADLINE, || async {
        ensure!(engine.is_running(), "the engine has ended");
        let row = replication.chain.c.query_text(DATABASE, &sql).await?.concat();
        Ok(row.iter().all(|column| column.as_deref() == Some("t")).then_some(()))
    });
    outcome.await.with_context(|| format!("{chunks} chunks, {deferred} deferred; stderr:\n{}", engine.stderr()))
}

/// Killed amid the copy and amid the builds, and gone on without the flag: nothing of it is lost.
#[tokio::test]
async fn what_is_dropped_comes_back_after_kills_under_load() -> Result<()> {
    let replication = start().await?;
    let before = definitions(&replication).await?;
    let gate = Gate::close(&replication, 4, "identified_n").await?;
    let changes = Changes::start(&replication, CHANGES);

    let engine = spawn(&replication)?;
    wait_records(&replication, &engine, ">= 4", "= 12").await?;
    let left = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class \
                WHERE relkind IN ('i', 'I') AND relnamespace = 'public'::regnamespace AND relname !~ '_pkey'";
    let left = replication.chain.c.scalar(DATABASE, left).await?;
    ensure!(left == "identified_key parent_extra_key", "of indexes are left: {left}");
    let foreign_keys =
        "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace";
    let left = replication.chain.c.scalar(DATABASE, foreign_keys).await?;
    ensure!(left == "0", "{left} foreign keys are left");
    let status = replication.succeed(&["status", "--format", "json"]).await?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let of_child =
        status["tables"].as_array().and_then(|tables| tables.iter().find(|one| one["table"] == "\"public\".\"child\""));
    let of_child = of_child.context("status lists the child")?;
    ensure!(
        (&of_child["deferred_indexes"], &of_child["deferred_foreign_keys"]) == (&1.into(), &4.into()),
        "{of_child}"
    );
    let status = replication.succeed(&["status"]).await?;
    ensure!(status.contains("still dropped: 1 indexes, 4 foreign keys"), "{status}");
    engine.sigkill().await?;

    gate.open_for_chunks().await?;
    let engine = replication.spawn()?;
    wait_records(&replication, &engine, "> 4", "= 1").await?;
    ensure!(!engine.stderr().contains("streaming starts"), "it streams without an index:\n{}", engine.stderr());
    let held = "SELECT count(*) FROM pg_replication_slots WHERE temporary";
    wait_for("B to keep nothing for the copy", DEADLINE, || async {
        Ok((replication.chain.b.scalar(DATABASE, held).await? == "0").then_some(()))
    })
    .await?;
    engine.sigkill().await?;

    gate.open_for_indexes().await?;
    let engine = replication.spawn()?;
    wait_definitions(&replication, &engine, &before).await?;
    changes.end().await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await?;
    let records = replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM pgsluice.deferred").await?;
    ensure!(records == "0", "{records} records are left");
    replication.succeed(&["teardown", "--yes"]).await.map(drop)
}

/// In one go, and again for one table, whose other ends stay.
#[tokio::test]
async fn a_copy_in_one_go_and_a_resync() -> Result<()> {
    let replication = start().await?;
    let before = definitions(&replication).await?;
    let changes = Changes::start(&replication, CHANGES);
    let engine = spawn(&replication)?;
    wait_log(&engine, "indexes and foreign keys are dropped", 1).await?;
    wait_definitions(&replication, &engine, &before).await?;
    stop(&engine).await?;
    replication.succeed(&["resync", "--yes", "public.parent"]).await?;
    let engine = spawn(&replication)?;
    // The other tables stream meanwhile.
    wait_log(&engine, "dropped until the tables are copied", 1).await?;
    wait_log(&engine, "the stream takes over", 1).await?;
    changes.end().await?;
    wait_definitions(&replication, &engine, &before).await?;
    settle(&replication, &engine, &TABLES).await?;
    stop(&engine).await
}
