//! Keys that rules make, and columns on C of other types than the values have.

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::ChainOptions;

use crate::replication::{DATABASE, Replication};
use crate::rules::{assert_as_views, rows};

const ON_A: &str = "\
    CREATE TABLE casted (id int PRIMARY KEY, n int, big text); ALTER TABLE casted ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE moved (id int PRIMARY KEY, n int);
    CREATE TABLE joined (a int, b text, n int, PRIMARY KEY (a, b));
    CREATE TABLE chosen (id int, n int, big text, unsafe text); ALTER TABLE chosen REPLICA IDENTITY FULL;
    ALTER TABLE chosen ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE whole (n int, note text, f float8); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE indexed (id int PRIMARY KEY, a int NOT NULL, b int NOT NULL, n int); CREATE UNIQUE INDEX of_indexed ON indexed (a, b);
    ALTER TABLE indexed REPLICA IDENTITY USING INDEX of_indexed;
    CREATE TABLE other (id int PRIMARY KEY, i int, t text, at timestamptz, v varchar(10), num numeric);
    CREATE SCHEMA hidden;
    CREATE VIEW hidden.casted AS SELECT 'k' || id AS key, n, upper(big) AS big FROM casted;
    CREATE VIEW hidden.moved AS SELECT id + 1000 AS id, n FROM moved;
    CREATE VIEW hidden.joined AS SELECT a || '-' || lower(b) AS k, n FROM joined;
    CREATE VIEW hidden.chosen AS SELECT id * 2 AS twice, n, big FROM chosen WHERE n <> 7;
    CREATE VIEW hidden.whole AS SELECT n::text AS n, upper(note) AS note, f, n + 1 AS more FROM whole;
    CREATE VIEW hidden.indexed AS SELECT id, a AS a_1, -b AS b, n FROM indexed WHERE a > b;
    CREATE VIEW hidden.other AS SELECT id::numeric AS id, i::bigint AS i, t::char(5) AS t, at, upper(v) AS v, (i % 100)::smallint AS small,
        round(num, 1)::numeric(12,3) AS num, 'c'::varchar(3) AS c FROM other;";
const ON_C: &str = "\
    CREATE TABLE casted (key text PRIMARY KEY, n int, big text);
    CREATE TABLE moved (id int PRIMARY KEY, n int);
    CREATE TABLE joined (k text PRIMARY KEY, n int);
    CREATE TABLE chosen (twice bigint PRIMARY KEY, n int, big text);
    CREATE TABLE whole (n text, note text, f float8, more int);
    CREATE TABLE indexed (id int, a_1 int, b int, n int, PRIMARY KEY (a_1, b));
    CREATE TABLE other (id numeric PRIMARY KEY, i bigint, t char(5), at timestamptz, v text, small smallint, num numeric(12,3), c varchar(3));";
const RULES: &str = r#"
    [[rule]]
    table = "public.casted"
    drop_columns = "id"
    set = { key = "'k' || id", big = "upper(big)" }
    key = "key"
    [[rule]]
    table = "public.moved"
    set = { id = "id + 1000" }
    [[rule]]
    table = "public.joined"
    drop_columns = ["a", "b"]
    set = { k = "a || '-' || lower(b)" }
    key = ["k"]
    [[rule]]
    table = "public.chosen"
    where = "n <> 7"
    drop_columns = ["unsafe", "id"]
    set = { twice = "id * 2" }
    key = "twice"
    [[rule]]
    table = "public.whole"
    cast = { n = "text" }
    set = { note = "upper(note)", more = "n + 1" }
    [[rule]]
    table = "public.indexed"
    where = "a > b"
    rename_columns = { a = "a_1" }
    set = { b = "-b" }
    [[rule]]
    table = "public.other"
    cast = { t = "text" }
    set = { v = "upper(v)", small = "i % 100", num = "round(num, 1)", c = "'c'" }
"#;
const PAIRS: [(&str, &str); 7] = [
    ("hidden.casted", "casted"),
    ("hidden.moved", "moved"),
    ("hidden.joined", "joined"),
    ("hidden.chosen", "chosen"),
    ("hidden.whole", "whole"),
    ("hidden.indexed", "indexed"),
    ("hidden.other", "other"),
];

fn insert(from: u32) -> String {
    format!(
        "INSERT INTO casted SELECT g, g, repeat('x' || g, 700) FROM generate_series({from}, {from} + 99) g;
         INSERT INTO moved SELECT g, g FROM generate_series({from}, {from} + 99) g;
         INSERT INTO joined SELECT g / 10, 'B' || g % 10, g FROM generate_series({from}, {from} + 99) g;
         INSERT INTO chosen SELECT g, g % 9, repeat('x' || g, 700), 'x' FROM generate_series({from}, {from} + 99) g;
         INSERT INTO whole SELECT g / 2, 'n' || g / 2, g / 2 * 0.1 FROM generate_series({from}, {from} + 99) g;
         INSERT INTO whole VALUES (NULL, NULL, NULL), (NULL, 'x', 'NaN');
         INSERT INTO indexed SELECT g, g % 20, g, g FROM generate_series({from}, {from} + 99) g;
         INSERT INTO indexed SELECT -g, g, -g, g FROM generate_series({from}, {from} + 99) g;
         INSERT INTO other SELECT g, g * 1000, left('t' || g, 5), timestamptz '2026-01-01 00:00+00' + g * interval '1 hour', 'v' || g, g / 7.0
             FROM generate_series({from}, {from} + 99) g;"
    )
}

const CHANGES: &str = "\
    UPDATE casted SET n = n + 1 WHERE id % 2 = 0; UPDATE casted SET big = 'new' WHERE id % 7 = 0; UPDATE casted SET id = id + 5000 WHERE id % 10 = 3;
    DELETE FROM casted WHERE id % 11 = 4;
    UPDATE moved SET n = n + 1 WHERE id % 2 = 0; UPDATE moved SET id = id + 5000 WHERE id % 10 = 3; DELETE FROM moved WHERE id % 11 = 4;
    UPDATE joined SET n = n + 1 WHERE n % 2 = 0; UPDATE joined SET b = 'X' || b WHERE n % 10 = 3; UPDATE joined SET b = lower(b) WHERE n % 10 = 5;
    DELETE FROM joined WHERE n % 11 = 4;
    UPDATE chosen SET n = n + 1; UPDATE chosen SET id = -id WHERE id % 10 = 3; UPDATE chosen SET big = 'new', unsafe = 'y' WHERE id % 7 = 1;
    UPDATE chosen SET unsafe = 'z'; DELETE FROM chosen WHERE id % 11 = 4;
    UPDATE whole SET n = n + 1 WHERE n % 3 = 0; UPDATE whole SET note = NULL WHERE n % 5 = 0; DELETE FROM whole WHERE n % 7 = 1;
    DELETE FROM whole WHERE ctid = (SELECT min(ctid) FROM whole WHERE n IS NULL); UPDATE whole SET f = 1.5 WHERE note IS NULL;
    UPDATE indexed SET n = n + 1; UPDATE indexed SET a = a + 1000 WHERE id % 10 = 3; UPDATE indexed SET a = a - 10000 WHERE id % 10 = -3;
    UPDATE indexed SET id = id + 100000 WHERE id % 7 = 0; DELETE FROM indexed WHERE id % 11 = 4;
    UPDATE other SET i = i + 1, num = -num, t = 'new', at = at + interval '1 day'; UPDATE other SET id = -id WHERE id % 3 = 0;
    UPDATE other SET v = NULL, t = NULL, num = NULL, i = NULL, at = NULL WHERE id % 5 = 1; DELETE FROM other WHERE id % 11 = 4";

async fn keys(format: &str) -> Result<()> {
    let replication =
        Replication::start_differing(ChainOptions::default(), &format!("{ON_A}{}", insert(1)), ON_C).await?;
    replication.configure(&format!("[snapshot]\ncopy_data = true\n{RULES}{format}"))?;
    replication.setup().await?;
    replication.catch_up().await?;
    assert_as_views(&replication, &PAIRS).await.context("after the copy")?;
    let inserts = insert(1001);
    // Each alone, and then all of them in one batch.
    for change in [inserts.as_str()].into_iter().chain(CHANGES.split(';')).chain([CHANGES]) {
        replication.chain.a.sql(DATABASE, change).await.with_context(|| change.to_owned())?;
        replication.catch_up().await.with_context(|| change.to_owned())?;
        assert_as_views(&replication, &PAIRS).await.with_context(|| change.to_owned())?;
    }
    Ok(())
}

#[tokio::test]
async fn rows_are_found_by_keys_that_rules_make() -> Result<()> {
    keys("").await
}

#[tokio::test]
async fn rows_are_found_by_keys_that_rules_make_in_text() -> Result<()> {
    keys("[stream]\nformat = \"text\"\n").await
}

/// 1.3 and 1.4 are two keys on A and one on C: what cannot be row by row, cannot be in a batch.
#[tokio::test]
async fn keys_that_rules_make_the_same_are_left_to_the_target() -> Result<()> {
    let on_a = "CREATE TABLE met (k numeric PRIMARY KEY, n int); INSERT INTO met VALUES (1.3, 1)";
    let on_c = "CREATE TABLE met (k int PRIMARY KEY, n int)";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication.configure("[snapshot]\ncopy_data = true\n[[rule]]\ntable = 'public.met'\ncast = { k = 'int' }\n")?;
    replication.setup().await?;
    replication.catch_up().await?;
    let met = "BEGIN; INSERT INTO met SELECT g, g FROM generate_series(100, 200) g; INSERT INTO met VALUES (1.4, 2); \
               DELETE FROM met WHERE k = 1.3; COMMIT";
    replication.run_each(met).await?;
    let said = replication.halt().await?;
    ensure!(said.contains("23505") && said.contains("met_pkey"), "{said}");
    ensure!(rows(&replication.chain.c, "met").await? == ["(1,1)"], "half of it");
    Ok(())
}
