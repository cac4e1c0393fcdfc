//! The translation of DMS's table mappings as a command: what it prints where, what it writes, and how it ends.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::ChainOptions;

use crate::replication::{DATABASE, ENGINE, Replication};
use crate::rules::assert_as_views;

const MAPPING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/dms.json");
const NOT_POSSIBLE: &str = "6 rules of the mapping cannot be carried over: 7, 36, 42, 46, 51, 52";

struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn ended(output: Output) -> Result<Ended> {
    let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    Ok(Ended { code: output.status.code(), out, err })
}

fn import(arguments: &[&str]) -> Result<Ended> {
    ended(Command::new(ENGINE).arg("import-dms").args(arguments).stdin(Stdio::null()).output()?)
}

#[test]
fn what_is_not_possible_refuses_all_of_it() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let rules = directory.path().join("rules.toml");
    let strict = import(&[MAPPING, "--output", &rules.to_string_lossy()])?;
    ensure!(strict.code == Some(3) && strict.out.is_empty() && !rules.exists(), "{}", strict.err);
    ensure!(strict.err.contains(NOT_POSSIBLE) && strict.err.contains("hex has no equal here"), "{}", strict.err);

    let lenient = import(&[MAPPING, "--lenient", "--output", &rules.to_string_lossy()])?;
    ensure!(lenient.code == Some(0) && lenient.out.is_empty(), "{}", lenient.err);
    let printed = import(&[MAPPING, "--lenient"])?;
    ensure!(printed.code == Some(0) && printed.out == std::fs::read_to_string(&rules)?, "{}", printed.out);
    ensure!(lenient.err == printed.err && printed.err.starts_with("rule-id  outcome"), "{}", printed.err);

    let again = import(&[MAPPING, "--lenient", "--output", &rules.to_string_lossy()])?;
    ensure!(again.code == Some(2) && again.err.contains("exists already"), "{}", again.err);
    ensure!(printed.out == std::fs::read_to_string(&rules)?);
    Ok(())
}

#[test]
fn a_check_prints_the_report_and_nothing_else() -> Result<()> {
    let check = import(&[MAPPING, "--check"])?;
    ensure!(check.code == Some(3) && check.out.starts_with("rule-id  outcome"), "{}", check.out);
    ensure!(!check.out.contains("[[rule]]") && check.err.contains(NOT_POSSIBLE), "{}", check.err);
    let json = import(&[MAPPING, "--check", "--lenient", "--format", "json"])?;
    ensure!(json.code == Some(0) && json.err.is_empty(), "{}", json.err);
    let report: serde_json::Value = serde_json::from_str(&json.out)?;
    ensure!(report["rules"][0]["outcome"] == "carried" && report["includes_nothing"] == false, "{report}");
    Ok(())
}

#[test]
fn what_is_no_mapping_is_an_error_of_usage() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let write = |name: &str, text: &str| -> Result<String> {
        let path = directory.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let missing = directory.path().join("missing.json").to_string_lossy().into_owned();
    for (file, complaint) in [
        (missing, "cannot read"),
        (write("broken.json", "{\"rules\": [\n}")?, "this is no JSON: expected value at line 2 column 1"),
        (write("other.json", "{}")?, "it has no list \"rules\""),
        (
            write("action.json", r#"{"rules": [{"rule-id": 4, "rule-type": "section"}]}"#)?,
            "rule-id 4: unknown rule-type",
        ),
    ] {
        let ended = import(&[&file])?;
        ensure!(ended.code == Some(2) && ended.out.is_empty(), "{}", ended.err);
        ensure!(ended.err.contains(complaint) && ended.err.contains(&file), "{}", ended.err);
    }
    Ok(())
}

#[test]
fn a_mapping_comes_from_standard_input_too() -> Result<()> {
    let mut child = Command::new(ENGINE)
        .args(["import-dms", "-", "--lenient"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no stdin")?.write_all(&std::fs::read(Path::new(MAPPING))?)?;
    let piped = ended(child.wait_with_output()?)?;
    ensure!(piped.code == Some(0) && piped.out == import(&[MAPPING, "--lenient"])?.out, "{}", piped.err);
    Ok(())
}

/// What the mapping supposes on the source; and below a line of comment, as comments, what it makes of that on the target.
const TABLES: &str = include_str!("../fixtures/dms.sql");
/// What filters want, in the words of the refusal.
const IDENTITIES: [&str; 3] = [
    "ALTER TABLE \"shop\".\"customers\" REPLICA IDENTITY FULL",
    "ALTER TABLE \"shop\".\"orders\" REPLICA IDENTITY FULL",
    "ALTER TABLE \"shop\".\"events\" REPLICA IDENTITY FULL",
];
const ROWS: &str = "\
    INSERT INTO shop.customers SELECT g, 'C-' || g, 'First' || g, 'Last' || g, CASE WHEN g % 9 > 0 THEN g || '@mail.example' END,
        '+49 ' || g, '4111 ' || g, (ARRAY['EU', 'UK', 'US', NULL])[1 + g % 4], CASE WHEN g % 5 = 0 THEN now() END, 'notes'
        FROM generate_series($, $ + 99) g;
    INSERT INTO shop.orders SELECT g * 10, g * 100, g, (ARRAY['draft', 'open', NULL])[1 + g % 3] FROM generate_series($, $ + 99) g;
    INSERT INTO shop.orders SELECT 5000 + g, g - $, g, 'open' FROM generate_series($, $ + 99) g;
    INSERT INTO shop.order_items SELECT g, g, g * 2, 'sku' || g FROM generate_series($, $ + 99) g;
    INSERT INTO shop.events SELECT g, g % 120, 'payload ' || g FROM generate_series($, $ + 149) g;
    INSERT INTO shop.products SELECT g, 'product ' || g, g FROM generate_series($, $ + 99) g;
    INSERT INTO shop.ref_country SELECT 'c' || g, 'Country ' || g FROM generate_series($, $ + 99) g;
    INSERT INTO shop.tmp_import VALUES ($);
    INSERT INTO audit.\"AUDIT_LOG\" SELECT g, 'entry ' || g FROM generate_series($, $ + 99) g;";

/// The mapping in SQL, as far as SQL can tell: digits that are chosen by chance are all the same here.
const VIEWS: &str = "\
    CREATE SCHEMA expected;
    CREATE VIEW expected.customers AS SELECT id, cust_no AS customer_number, first_name, last_name,
        encode(sha256(convert_to(email, 'UTF8')), 'hex') AS email, regexp_replace(phone, '[0-9]', '#', 'g') AS phone,
        regexp_replace(card_no, '[0-9]', '#', 'g') AS card_no, region, deleted_at, first_name || ' ' || upper(last_name) AS full_name
        FROM shop.customers WHERE region IN ('EU', 'UK') AND deleted_at IS NULL AND email IS NOT NULL;
    CREATE VIEW expected.orders AS SELECT id, total_amt AS total_amount, tax_amt AS tax_amount, status, 'shop.orders' AS origin,
        CASE WHEN total_amt >= 1000 THEN 'large' WHEN total_amt > 0 THEN 'small' ELSE 'none' END AS size
        FROM shop.orders WHERE (id BETWEEN 1 AND 1000 OR id >= 5000) AND total_amt <= 9999.99 AND status <> 'draft';
    CREATE VIEW expected.order_items AS SELECT id, qty AS quantity, price::numeric(12,2) AS price, sku_tx AS sku FROM shop.order_items;
    CREATE VIEW expected.events AS SELECT ev_id AS id, ev_code AS code, ev_payload AS payload FROM shop.events
        WHERE ev_id <= 1000000 AND ev_code NOT BETWEEN 90 AND 99;
    CREATE VIEW expected.products AS SELECT id, name FROM shop.products;";
const FOUND: &str = "\
    CREATE SCHEMA found;
    CREATE VIEW found.customers AS SELECT id, customer_number, first_name, last_name, email,
        regexp_replace(phone, '[0-9]', '#', 'g') AS phone, card_no, region, deleted_at, full_name
        FROM store.s_customers WHERE loaded_at IS NOT NULL;
    CREATE VIEW found.orders AS SELECT id, total_amount, tax_amount, status, origin, size FROM store.purchases
        WHERE commit_lsn::pg_lsn > '0/0';
    CREATE VIEW found.events AS SELECT id, code, payload FROM store.events_v2 WHERE op IN ('I', 'U');";
const PAIRS: [(&str, &str); 7] = [
    ("expected.customers", "found.customers"),
    ("expected.orders", "found.orders"),
    ("expected.order_items", "store.s_order_items"),
    ("expected.events", "found.events"),
    ("expected.products", "store.s_products"),
    ("shop.ref_country", "store.lookup_country"),
    ("audit.\"AUDIT_LOG\"", "\"AUDIT\".audit_log"),
];

const CHANGES: &str = "\
    UPDATE shop.customers SET region = 'UK', phone = '0170' WHERE id % 8 = 2;
    UPDATE shop.customers SET deleted_at = now() WHERE id % 7 = 1; UPDATE shop.customers SET last_name = 'Other' WHERE id % 6 = 0;
    DELETE FROM shop.customers WHERE id % 10 = 4;
    UPDATE shop.orders SET total_amt = total_amt * 20 WHERE id % 30 = 0; UPDATE shop.orders SET status = 'open' WHERE status IS NULL;
    UPDATE shop.orders SET id = id + 3000 WHERE id < 500; DELETE FROM shop.orders WHERE id % 70 = 0;
    UPDATE shop.order_items SET price = 7 WHERE id < 20; DELETE FROM shop.order_items WHERE id = 30;
    UPDATE shop.events SET ev_code = ev_code + 5, ev_payload = 'new' WHERE ev_id % 3 = 0; DELETE FROM shop.events WHERE ev_id = 7;
    UPDATE shop.events SET ev_id = 2000000 WHERE ev_id = 8;
    UPDATE shop.products SET cost = 0; UPDATE shop.products SET name = 'x' WHERE id = 5; DELETE FROM shop.products WHERE id = 6;
    UPDATE shop.ref_country SET code = 'moved' WHERE code = 'c3'; UPDATE shop.ref_country SET label = 'x' WHERE code = 'c4';
    DELETE FROM shop.tmp_import;
    UPDATE audit.\"AUDIT_LOG\" SET \"ID\" = -\"ID\" WHERE \"ID\" < 10; DELETE FROM audit.\"AUDIT_LOG\" WHERE \"ID\" = 20";

fn on_target() -> String {
    let comments = TABLES.lines().skip_while(|line| !line.starts_with("--\n") && *line != "--");
    comments.map(|line| line.trim_start_matches("--")).collect::<Vec<_>>().join("\n")
}

/// With no word of it changed by hand, what is imported replicates.
#[tokio::test]
async fn an_imported_mapping_replicates() -> Result<()> {
    let imported = import(&[MAPPING, "--lenient"])?.out;
    let on_a = format!("{TABLES}{}{VIEWS}", ROWS.replace('$', "1"));
    let on_c = format!("{}{FOUND}", on_target());
    let replication = Replication::start_differing(ChainOptions::default(), &on_a, &on_c).await?;
    replication.configure(&format!("[snapshot]\ncopy_data = true\n{imported}"))?;
    let refused = replication.command(&["setup"]).await?;
    ensure!(refused.code == Some(3), "{}", refused.stderr);
    for mend in IDENTITIES {
        ensure!(refused.stderr.contains(mend), "does not say {mend}: {}", refused.stderr);
        replication.chain.a.sql(DATABASE, mend).await?;
    }
    replication.chain.wait_b_caught_up().await?;
    replication.setup().await?;
    replication.catch_up().await?;
    assert_as_views(&replication, &PAIRS).await.context("after the copy")?;
    let masked = "SELECT count(*) FROM store.s_customers WHERE phone = '+49 ' || id AND id > 10";
    for changes in [&ROWS.replace('$', "201"), CHANGES] {
        replication.run_each(changes).await?;
        replication.catch_up().await?;
        assert_as_views(&replication, &PAIRS).await?;
    }
    let c = &replication.chain.c;
    let gone = c
        .scalar(
            DATABASE,
            "SELECT string_agg(id::text, ' ' ORDER BY id) FROM store.events_v2 WHERE op = 'D' AND id < 10",
        )
        .await?;
    ensure!(gone == "7 8", "{gone}");
    ensure!(c.scalar(DATABASE, masked).await?.parse::<u32>()? < 10, "phones are not masked");
    Ok(())
}
