//! Rules: what C holds is what a view with the same rules gives on A, by the copy as by the stream.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine, Server};

use crate::load::{Changes, Random, stop, wait_streaming};
use crate::replication::{DATABASE, Replication};

pub(crate) const SECRET: &str = "a secret of masks, for tests";

/// Filters that see all of a row, filters of the key alone, and tables of which several become one.
const ON_A: &str = "\
    CREATE TABLE customers (id int PRIMARY KEY, region text, email text, phone text, card text, name varchar(80),
        balance numeric(12,2), notes text, born date, deleted_at timestamptz);
    ALTER TABLE customers REPLICA IDENTITY FULL;
    CREATE TABLE orders (id bigint PRIMARY KEY, \"Customer_ID\" int, amount numeric, note text, secret text);
    CREATE SCHEMA one; CREATE SCHEMA two;
    CREATE TABLE one.items (id int PRIMARY KEY, what text);
    CREATE TABLE two.items (id int PRIMARY KEY, what text);
    CREATE TABLE plain (id int PRIMARY KEY, note text);";

const ON_C: &str = "\
    CREATE SCHEMA crm;
    CREATE TABLE crm.people (customer_id int PRIMARY KEY, region text, email text, phone text, card text, name varchar(80),
        notes text, born date, deleted_at timestamptz, cents bigint, origin text, own text DEFAULT 'of the target');
    CREATE TABLE orders (o_id bigint PRIMARY KEY, o_customer_id int, o_amount numeric, o_note text, shout text);
    CREATE SCHEMA everything;
    CREATE TABLE everything.items (origin text, id int, what text, PRIMARY KEY (origin, id));
    CREATE TABLE plain (id int PRIMARY KEY, note text);";

const RULES: &str = r#"
[tables]
include = ["public.*", "one.items", "two.items"]
[masks]
secret_env = "PGSLUICE_TEST_MASKS"
[[rule]]
table = "public.customers"
where = "region = 'EU' AND deleted_at IS NULL OR balance > 900"
rename_to = "crm.people"
rename_columns = { id = "customer_id" }
drop_columns = ["balance"]
mask = { email = "hmac_sha256", phone = "null", card = { type = "partial", last = 4 }, name = "sha256" }
set = { cents = "(balance * 100)::bigint", origin = "$source_schema || '/' || upper(region)" }
[[rule]]
table = "public.orders"
where = "id % 2 = 0"
rename_columns = { "*" = { case = "lower", add_prefix = "o_" } }
drop_columns = ["secret"]
set = { shout = "upper(note)" }
[[rule]]
table = ["one.*", "two.*"]
rename_schema = "everything"
set = { origin = "$source_schema" }
key = ["origin", "id"]
"#;

const TABLES: [(&str, &str); 4] = [
    ("expected.people", "crm.people"),
    ("expected.orders", "public.orders"),
    ("expected.items", "everything.items"),
    ("public.plain", "public.plain"),
];

const ROWS: &str = "\
    INSERT INTO customers SELECT g, CASE g % 3 WHEN 0 THEN 'EU' WHEN 1 THEN 'US' END, 'clear' || g || '@mail.example',
        '+49 ' || g, '4111-1111-' || g, 'Name ' || g, g % 1000, repeat(md5(g::text), 2), date '1960-01-01' + g % 20000,
        CASE WHEN g % 7 = 0 THEN timestamptz '2020-01-01' END FROM generate_series(1, 9000) g;
    INSERT INTO orders SELECT g, g % 100, g / 7.0, CASE WHEN g % 5 > 0 THEN md5(g::text) END, 'hidden' FROM generate_series(1, 6000) g;
    INSERT INTO one.items SELECT g, 'one ' || g FROM generate_series(1, 3000) g;
    INSERT INTO two.items SELECT g, 'two ' || g FROM generate_series(1, 3000) g;
    INSERT INTO plain SELECT g, 'plain ' || g FROM generate_series(1, 100) g;";

/// Rows come into every filter and leave it, with values that are stored outside of the row and left alone.
const CHANGES: &str = "\
    UPDATE customers SET region = (ARRAY['EU', 'US', NULL])[1 + (random() * 2)::int] WHERE id = 1 + (random() * 8999)::int;
    UPDATE customers SET deleted_at = CASE WHEN deleted_at IS NULL THEN now() END WHERE id % 500 = (random() * 499)::int;
    UPDATE customers SET balance = random() * 1000, phone = '0' WHERE id = 1 + (random() * 8999)::int;
    UPDATE customers SET notes = (SELECT string_agg(md5(g::text || random()), '') FROM generate_series(1, 300) g)
        WHERE id = 1 + (random() * 8999)::int;
    UPDATE customers SET id = -id WHERE id = 1 + (random() * 8999)::int;
    DELETE FROM customers WHERE id = 1 + (random() * 8999)::int;
    INSERT INTO customers SELECT max(id) + 1, 'EU', 'clear@new.example', NULL, '12', 'Näme', NULL, NULL, NULL, NULL FROM customers;
    UPDATE orders SET amount = amount + 1 WHERE id = (random() * 6000)::int;
    UPDATE orders SET id = id + 10001 WHERE id = (random() * 6000)::int AND id % 1000 <> 7;
    UPDATE orders SET note = (SELECT string_agg(md5(g::text), '') FROM generate_series(1, 200) g) WHERE id % 1000 = 7;
    DELETE FROM orders WHERE id = (random() * 6000)::int;
    BEGIN; INSERT INTO orders SELECT min(id) - 1, 1, 1, 'new', 'hidden' FROM orders; SAVEPOINT s;
    DELETE FROM orders; ROLLBACK TO s; UPDATE one.items SET what = what || '.' WHERE id % 100 = 3; COMMIT;
    DELETE FROM two.items WHERE id = (random() * 3000)::int;
    INSERT INTO one.items SELECT max(id) + 1, 'new' FROM one.items;
    UPDATE plain SET note = note || '.' WHERE id = 1 + (random() * 99)::int";

/// As `hmac(value, SECRET, 'sha256')` of pgcrypto, of what is in every PostgreSQL.
pub(crate) fn hmac_sql(value: &str) -> String {
    let pad = |byte: u8| {
        let mut key = [0; 64];
        key[..SECRET.len()].copy_from_slice(SECRET.as_bytes());
        key.iter().fold(String::new(), |mut text, key| {
            write!(text, "{:02x}", key ^ byte).expect("text takes all");
            text
        })
    };
    let (inner, outer) = (pad(0x36), pad(0x5c));
    format!("encode(sha256('\\x{outer}'::bytea || sha256('\\x{inner}'::bytea || convert_to({value}, 'UTF8'))), 'hex')")
}

/// The same rules in SQL.
fn views() -> String {
    format!(
        "CREATE SCHEMA expected;
         CREATE VIEW expected.people AS SELECT id AS customer_id, region, {} AS email, NULL::text AS phone,
             CASE WHEN length(card) > 4 THEN repeat('*', length(card) - 4) || right(card, 4) ELSE repeat('*', length(card)) END AS card,
             encode(sha256(convert_to(name, 'UTF8')), 'hex')::varchar(80) AS name, notes, born, deleted_at,
             (balance * 100)::bigint AS cents, 'public' || '/' || upper(region) AS origin, 'of the target' AS own
         FROM public.customers WHERE region = 'EU' AND deleted_at IS NULL OR balance > 900;
         CREATE VIEW expected.orders AS SELECT id AS o_id, \"Customer_ID\" AS o_customer_id, amount AS o_amount, note AS o_note,
             upper(note) AS shout FROM public.orders WHERE id % 2 = 0;
         CREATE VIEW expected.items AS SELECT 'one' AS origin, id, what FROM one.items
             UNION ALL SELECT 'two', id, what FROM two.items;",
        hmac_sql("email")
    )
}

async fn start(more: &str) -> Result<Replication> {
    let on_a = format!("{ON_A}{}{ROWS}", views());
    let replication = Replication::start_differing(ChainOptions::default(), &on_a, ON_C).await?;
    replication.configure(
        &format!("{RULES}{more}").replace("secret_env = \"PGSLUICE_TEST_MASKS\"", &secret_file(&replication)?),
    )?;
    replication.setup().await?;
    Ok(replication)
}

/// Writes the secret; the line of the configuration that names it.
pub(crate) fn secret_file(replication: &Replication) -> Result<String> {
    let file = replication.config().with_file_name("masks");
    std::fs::write(&file, format!("{SECRET}\n"))?;
    Ok(format!("secret_file = \"{}\"", file.display()))
}

/// All rows of a table, in text, in the order of that.
pub async fn rows(server: &Server, table: &str) -> Result<Vec<String>> {
    let client = server.connect(DATABASE).await?;
    client.batch_execute("SET TimeZone = 'UTC'; SET extra_float_digits = 3").await?;
    let rows = client.query(&format!("SELECT whole::text FROM {table} whole"), &[]).await?;
    let mut rows: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    rows.sort();
    Ok(rows)
}

async fn assert_as_expected(replication: &Replication) -> Result<()> {
    assert_as_views(replication, &TABLES).await
}

/// Of each pair the first on B has the rows that the second on C has.
pub(crate) async fn assert_as_views(replication: &Replication, pairs: &[(&str, &str)]) -> Result<()> {
    let [_, b, c] = replication.servers();
    replication.chain.wait_b_caught_up().await?;
    for &(view, table) in pairs {
        let (expected, found) = (rows(b, view).await?, rows(c, table).await?);
        ensure!(!expected.is_empty(), "{view} tests nothing");
        let different = || expected.iter().zip(&found).find(|(one, other)| one != other);
        ensure!(
            expected == found,
            "{table} on C has {} rows and {view} {}; first difference: {:?}",
            found.len(),
            expected.len(),
            different()
        );
    }
    Ok(())
}

async fn settle(replication: &Replication, engine: &Engine) -> Result<()> {
    let caught_up = replication.wait_caught_up().await;
    caught_up.with_context(|| format!("stderr:\n{}", engine.stderr()))?;
    assert_as_expected(replication).await.with_context(|| format!("stderr:\n{}", engine.stderr()))
}

/// Copy and stream, in the given format, with the engine killed again and again.
async fn equal_to_views(more: &str, stream: &str) -> Result<()> {
    let replication = start(more).await?;
    let changes = Changes::start(&replication, CHANGES);
    let mut random = Random::new();
    for _ in 0..6 {
        let engine = replication.spawn()?;
        random.pause(Duration::from_millis(700)).await;
        engine.sigkill().await?;
    }
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    ensure!(engine.stderr().contains(stream), "streams otherwise:\n{}", engine.stderr());
    // While a table is copied a TRUNCATE of it would wait for the copy on B, and cancel it in the end.
    let truncate =
        "BEGIN; TRUNCATE two.items; INSERT INTO two.items SELECT g, 'again' FROM generate_series(1, 50) g; COMMIT";
    replication.run_each(truncate).await?;
    random.pause(Duration::from_millis(500)).await;
    changes.end().await?;
    settle(&replication, &engine).await?;
    stop(&engine).await
}

#[tokio::test]
async fn copy_and_stream_give_what_views_give() -> Result<()> {
    equal_to_views("[snapshot]\njobs = 2\nchunk_bytes = \"1MiB\"\n", "binary=true").await
}

#[tokio::test]
async fn copy_and_stream_give_what_views_give_in_text() -> Result<()> {
    equal_to_views("[snapshot]\nchunk_bytes = \"1MiB\"\n[stream]\nformat = \"text\"\n", "binary=false").await
}

/// Each of them alone, one after the other, so that a wrong one has a name.
#[tokio::test]
async fn every_transition_of_a_filter() -> Result<()> {
    let replication = start("[snapshot]\ncopy_data = true\n").await?;
    replication.catch_up().await?;
    assert_as_expected(&replication).await.context("after the copy")?;
    let large = "(SELECT string_agg(md5(g::text), '') FROM generate_series(1, 500) g)";
    for change in [
        // In: 3. Out: 1, 2.
        "INSERT INTO customers VALUES (20001, 'EU'), (20002, 'US')",
        "UPDATE customers SET region = 'US' WHERE id = 3",
        "UPDATE customers SET region = 'EU' WHERE id IN (1, 2)",
        "UPDATE customers SET name = 'x' WHERE id IN (4, 6)",
        "DELETE FROM customers WHERE id IN (1, 5)",
        "UPDATE customers SET id = 20003 WHERE id = 6",
        "UPDATE customers SET id = 20004, region = 'US' WHERE id = 9",
        "UPDATE customers SET id = 20005, region = 'EU' WHERE id = 10",
        &format!("UPDATE customers SET notes = {large} WHERE id IN (12, 13)"),
        // Comes in with a value that is stored outside of the row, and that the update leaves alone.
        "UPDATE customers SET region = 'EU' WHERE id = 13",
        "UPDATE customers SET region = NULL WHERE id = 12",
        "UPDATE orders SET id = 20000 WHERE id = 2",
        "UPDATE orders SET id = 20001 WHERE id = 4",
        "UPDATE orders SET id = 20002 WHERE id = 5",
        "UPDATE orders SET id = 20003 WHERE id = 7",
        &format!("UPDATE orders SET note = {large} WHERE id = 8"),
        "UPDATE orders SET amount = 1 WHERE id = 8",
        "UPDATE orders SET id = 20004 WHERE id = 8",
        "DELETE FROM orders WHERE id IN (10, 11)",
        "TRUNCATE one.items",
        "INSERT INTO one.items VALUES (1, 'again')",
        "DELETE FROM two.items WHERE id = 1",
        "TRUNCATE plain; INSERT INTO plain VALUES (1, 'again')",
    ] {
        replication.chain.a.sql(DATABASE, change).await?;
        replication.catch_up().await.with_context(|| change.to_owned())?;
        assert_as_expected(&replication).await.with_context(|| change.to_owned())?;
    }
    Ok(())
}

/// What is known of an old row of a partitioned table, its partition decides.
#[tokio::test]
async fn filters_of_partitioned_tables_see_the_key() -> Result<()> {
    let table = "CREATE TABLE parts (id int, day date, note text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
                 CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
                 CREATE TABLE parts_2 PARTITION OF parts DEFAULT;";
    let replication = Replication::start(table).await?;
    let a = &replication.chain.a;
    let filter = |text: &str| format!("[[rule]]\ntable = \"public.parts\"\nwhere = \"{text}\"\n");
    let refused = async |filter: String| {
        replication.configure(&filter)?;
        let output = replication.command(&["setup"]).await?;
        ensure!(output.code == Some(3), "ended with {:?}: {}", output.code, output.stderr);
        ensure!(output.stderr.contains("replica identity"), "{}", output.stderr);
        Ok(())
    };
    refused(filter("note = 'x'")).await?;
    // Without a key of the root, partitions have their own, and old rows come with that alone.
    a.sql(DATABASE, "ALTER TABLE parts DROP CONSTRAINT parts_pkey; ALTER TABLE parts_1 ADD PRIMARY KEY (id)").await?;
    refused(filter("note = 'x'")).await?;
    a.sql(DATABASE, "ALTER TABLE parts_1 DROP CONSTRAINT parts_1_pkey; ALTER TABLE parts ADD PRIMARY KEY (id, day)")
        .await?;
    // A partition that is attached later would not have it.
    a.sql(DATABASE, "ALTER TABLE parts REPLICA IDENTITY FULL; ALTER TABLE parts_1 REPLICA IDENTITY FULL").await?;
    refused(filter("note = 'x'")).await?;
    a.sql(DATABASE, "ALTER TABLE parts_2 REPLICA IDENTITY FULL").await?;
    refused(filter("note = 'x'")).await?;
    a.sql(DATABASE, "ALTER TABLE parts REPLICA IDENTITY DEFAULT").await?;
    refused(filter("id % 2 = 0")).await?;
    a.sql(DATABASE, "ALTER TABLE parts_1 REPLICA IDENTITY DEFAULT; ALTER TABLE parts_2 REPLICA IDENTITY DEFAULT")
        .await?;
    replication.configure(&filter("id % 2 = 0"))?;
    replication.setup().await?;
    replication
        .run_each(
            "INSERT INTO parts SELECT g, date '2026-01-01' + g, 'n' FROM generate_series(1, 60) g;
             UPDATE parts SET day = day + 31 WHERE id < 30; UPDATE parts SET id = id + 101 WHERE id IN (3, 4, 50, 51);
             DELETE FROM parts WHERE id IN (6, 7, 56, 57); UPDATE parts SET note = 'm' WHERE id > 20",
        )
        .await?;
    replication.catch_up().await?;
    replication.chain.wait_b_caught_up().await?;
    let [_, b, c] = replication.servers();
    let expected = rows(b, "(SELECT * FROM parts WHERE id % 2 = 0)").await?;
    ensure!(expected == rows(c, "parts").await?, "C differs from {expected:?}");
    Ok(())
}

/// A column that comes is no change of the rules; one that is hidden by its name must not pass under another.
#[tokio::test]
async fn columns_come_and_are_renamed_in_mid_stream() -> Result<()> {
    let table = "CREATE TABLE t (id int PRIMARY KEY, email text);";
    let replication = Replication::start(table).await?;
    replication.configure("[[rule]]\ntable = \"public.t\"\nmask = { email = \"sha256\" }\n")?;
    replication.setup().await?;
    let [a, b, c] = replication.servers();
    a.sql(DATABASE, "INSERT INTO t VALUES (1, 'clear@one')").await?;
    replication.catch_up().await?;
    c.sql(DATABASE, "ALTER TABLE t ADD extra int, ADD mail text").await?;
    a.sql(DATABASE, "ALTER TABLE t ADD extra int; INSERT INTO t VALUES (2, 'clear@two', 7)").await?;
    replication.catch_up().await?;
    let expected =
        "(SELECT id, encode(sha256(convert_to(email, 'UTF8')), 'hex') AS email, extra, NULL::text AS mail FROM t)";
    replication.chain.wait_b_caught_up().await?;
    ensure!(rows(b, expected).await? == rows(c, "t").await?, "C differs");
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    a.sql(DATABASE, "ALTER TABLE t RENAME email TO mail; INSERT INTO t VALUES (3, 'clear@three', 8)").await?;
    crate::load::expect_end(&engine, 3, &["\"email\", which the rule hides"]).await?;
    let clear = "SELECT count(*) FROM t WHERE t::text LIKE '%clear%'";
    ensure!(c.scalar(DATABASE, clear).await? == "0", "it is on C");
    // Named as it is called now, it is the same column, and nothing is missing.
    replication.configure("[[rule]]\ntable = \"public.t\"\nmask = { mail = \"sha256\" }\n")?;
    c.sql(DATABASE, "ALTER TABLE t DROP mail").await?;
    c.sql(DATABASE, "ALTER TABLE t RENAME email TO mail").await?;
    replication.catch_up().await?;
    let expected = "(SELECT id, encode(sha256(convert_to(mail, 'UTF8')), 'hex') AS mail, extra FROM t)";
    replication.chain.wait_b_caught_up().await?;
    ensure!(rows(b, expected).await? == rows(c, "(SELECT id, mail, extra FROM t)").await?, "C differs");

    // Gone, it hides nothing any more, and the rule is to go too.
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    a.sql(DATABASE, "ALTER TABLE t DROP mail; INSERT INTO t VALUES (4, 9)").await?;
    crate::load::expect_end(&engine, 3, &["\"mail\", which the rule hides"]).await?;
    ensure!(c.scalar(DATABASE, "SELECT count(*) FROM t").await? == "3", "C has changed");
    Ok(())
}
