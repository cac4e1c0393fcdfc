//! Rules before anything is replicated: `rules explain` and `rules test`, what is refused, and `tail`, which shows nothing
//! that a rule hides.

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Output};
use serde_json::{Value, json};

use crate::replication::{DATABASE, Replication};

const SECRET: &str = "a secret of the masks";
const TABLES: &str = "\
    CREATE TABLE customers (cust_id int PRIMARY KEY, region text, email text, card varchar(20), price numeric, notes text);
    ALTER TABLE customers REPLICA IDENTITY FULL;
    CREATE TABLE orders (id int PRIMARY KEY, note text, body jsonb, pin int); CREATE TABLE log (n int PRIMARY KEY, note text)";
const RULES: &str = r#"
    [masks]
    secret_file = "secret"
    [[rule]]
    table = "public.customers"
    where = "region = 'EU'"
    rename_to = "crm.customers_eu"
    drop_columns = ["notes", "region"]
    rename_columns = { cust_id = "customer_id" }
    mask = { email = "hmac_sha256", card = { type = "partial", last = 4 } }
    cast = { price = "bigint" }
    set = { origin = "$source_schema || '.' || $source_table" }
    key = ["customer_id"]
    [[rule]]
    table = "public.orders"
    mask = { pin = { type = "fixed", value = "0" } }
    set = { op = "$op" }
    soft_delete = true
"#;

async fn start() -> Result<Replication> {
    let replication = Replication::start_differing(ChainOptions::default(), TABLES, "").await?;
    std::fs::write(replication.config().with_file_name("secret"), SECRET)?;
    replication.configure(RULES)?;
    Ok(replication)
}

fn lines(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Runs rows through the rules of a table.
async fn try_out(replication: &Replication, table: &str, rows: &str) -> Result<Output> {
    let file = replication.config().with_file_name("rows.json");
    std::fs::write(&file, rows)?;
    replication.command(&["rules", "test", "--table", table, &file.to_string_lossy()]).await
}

/// The same where that must succeed.
async fn lines_of(replication: &Replication, table: &str, rows: &str) -> Result<Vec<Value>> {
    let output = try_out(replication, table, rows).await?;
    ensure!(output.code == Some(0), "{}", output.stderr);
    lines(&output.stdout)
}

fn ensure_refused(output: &Output, code: i32, said: &str) -> Result<()> {
    ensure!(output.code == Some(code) && output.stdout.is_empty(), "{output:?}");
    ensure!(output.stderr.contains(said), "does not say\n{said}\nbut\n{}", output.stderr);
    Ok(())
}

#[tokio::test]
async fn explain_shows_what_becomes_of_each_table() -> Result<()> {
    let replication = start().await?;
    let json = replication.succeed(&["rules", "explain", "--format", "json"]).await?;
    let tables: Value = serde_json::from_str(&json)?;
    ensure!(!json.contains(SECRET), "{json}");
    let column = |name: &str, of: &str, made_of: &str| json!({ "name": name, "type": of, "made_of": made_of });
    assert_eq!(
        tables[0],
        json!({
            "source": "\"public\".\"customers\"", "target": "\"crm\".\"customers_eu\"", "rules": [15],
            "where": "region = 'EU'", "soft_delete": false, "replica_identity": "index", "key": ["customer_id"],
            "own": [], "left_out": ["region", "notes"],
            "columns": [
                column("customer_id", "integer", "\"cust_id\""),
                column("email", "text", "\"email\" masked: hmac_sha256, 64 digits"),
                column("card", "character varying", "\"card\" masked: partial, first 0 and last 4, with '*'"),
                column("price", "bigint", "CAST(\"price\" AS bigint)"),
                column("origin", "text", "$source_schema || '.' || $source_table"),
            ],
        })
    );
    ensure!(tables[1]["source"] == "\"public\".\"log\"" && tables[1]["rules"] == json!([]), "{tables}");
    ensure!(tables[2]["soft_delete"] == true && tables[2]["key"] == json!(["id"]), "{tables}");

    let text = replication.succeed(&["rules", "explain", "--table", "public.[cl]*"]).await?;
    for line in [
        "\"public\".\"customers\"",
        "  goes to      \"crm\".\"customers_eu\"",
        "  where        region = 'EU'",
        "  columns      \"customer_id\"  integer            \"cust_id\"",
        "               \"price\"        bigint             CAST(\"price\" AS bigint)",
        "  left out     \"region\", \"notes\"",
        "\"public\".\"log\"",
        "  goes to      the same name; no rule is about it, and rows pass as they are",
    ] {
        ensure!(text.lines().any(|other| other == line), "no line {line} in\n{text}");
    }
    ensure!(!text.contains("orders") && !text.contains(SECRET), "{text}");
    let unknown = replication.command(&["rules", "explain", "--table", "public.customer"]).await?;
    ensure_refused(&unknown, 3, "no table that is replicated matches \"public.customer\"")
}

#[tokio::test]
async fn rules_that_do_not_fit_are_all_named_with_their_places() -> Result<()> {
    let replication = start().await?;
    replication.configure(
        r#"
        [[rule]]
        table = "public.customers"
        where = "regoin = 'EU'"
        [[rule]]
        table = "public.orders"
        mask = { noet = "null" }
        [[rule]]
        table = "public.items"
        drop_columns = "x"
        "#,
    )?;
    for command in [["rules", "explain"].as_slice(), &["rules", "test", "--table", "public.log", "/dev/null"]] {
        let output = replication.command(command).await?;
        ensure_refused(&output, 3, "    regoin = 'EU'\n    ^^^^^^\n")?;
        ensure_refused(&output, 3, "did you mean \"region\"?")?;
        ensure_refused(
            &output,
            3,
            "table \"public\".\"orders\": mask: there is no column \"noet\"; did you mean \"note\"?",
        )?;
        ensure_refused(&output, 3, "no table that is replicated matches \"public.items\"")?;
    }
    Ok(())
}

#[tokio::test]
async fn sample_rows_become_what_goes_to_the_target() -> Result<()> {
    let replication = start().await?;
    let rows = r#"
        {"cust_id": 1, "region": "EU", "email": "a@b.example", "card": "4111111111111111", "price": 1.5}
        {"op": "insert", "new": {"cust_id": 2, "region": "US"}}
        {"op": "update", "new": {"cust_id": 1, "region": "EU", "price": null}, "old": {"card": "1234567"}}
        {"op": "update", "new": {"cust_id": 1, "region": "EU"}, "old": {"region": "US"}}
        {"op": "update", "new": {"cust_id": 1, "region": "US"}, "old": {"region": "EU"}}
        {"op": "delete", "old": {"cust_id": 1, "region": "EU"}}
        {"op": "delete", "old": {"cust_id": 1, "region": "US"}}"#;
    let lines = lines_of(&replication, "public.customers", rows).await?;
    let ops: Vec<_> = lines.iter().map(|line| line["op"].as_str().unwrap_or_default()).collect();
    assert_eq!(ops, ["insert", "none", "update", "insert", "delete", "delete", "none"]);
    assert_eq!(lines[1], json!({ "op": "none" }));
    assert_eq!(lines[0]["table"], "\"crm\".\"customers_eu\"");
    let email = lines[0]["new"]["email"].as_str().context("email")?;
    ensure!(email.len() == 64 && !email.contains('@'), "{email}");
    let origin = "public.customers";
    let expected =
        json!({ "customer_id": "1", "email": email, "card": "************1111", "price": "2", "origin": origin });
    assert_eq!(lines[0]["new"], expected);
    // The old row has what the update has left alone: it is not sent again.
    assert_eq!(lines[2]["new"], json!({ "customer_id": "1", "email": null, "price": null, "origin": origin }));
    assert_eq!(lines[2]["old"], json!({ "customer_id": "1" }));
    assert_eq!(lines[4], json!({ "op": "delete", "table": "\"crm\".\"customers_eu\"", "old": { "customer_id": "1" } }));

    // Without FULL only the key of an old row is known.
    let rows = r#"[{"id": 1, "body": {"a": 1}}, {"op": "update", "new": {"id": 1, "pin": 1234}},
        {"op": "delete", "old": {"id": 1, "note": "n"}}, {"op": "update", "new": {"id": 2, "note": "n", "body": [], "pin": 5}, "old": {"id": 1}}]"#;
    let lines = lines_of(&replication, "public.orders", rows).await?;
    let update = |new: Value| json!({ "op": "update", "table": "\"public\".\"orders\"", "new": new });
    assert_eq!(lines[0]["new"], json!({ "id": "1", "note": null, "body": "{\"a\": 1}", "pin": null, "op": "I" }));
    assert_eq!(lines[1], update(json!({ "id": "1", "pin": "0", "op": "U" })));
    assert_eq!(lines[2], update(json!({ "id": "1", "op": "D" })));
    // The row of the old key stays, as deleted.
    assert_eq!(lines[3], update(json!({ "id": "1", "op": "D" })));
    assert_eq!(lines[4]["new"], json!({ "id": "2", "note": "n", "body": "[]", "pin": "0", "op": "U" }));
    assert_eq!((lines[4]["op"].as_str(), lines.len()), (Some("insert"), 5));

    let plain = lines_of(&replication, "public.log", "{\"n\": 1, \"note\": \"x\"}").await?;
    ensure!(replication.succeed(&["rules", "test", "--table", "public.log"]).await?.is_empty(), "no rows on stdin");
    assert_eq!(plain, [json!({ "op": "insert", "table": "\"public\".\"log\"", "new": { "n": "1", "note": "x" } })]);
    Ok(())
}

#[tokio::test]
async fn rows_that_rules_cannot_take_are_named_without_their_values() -> Result<()> {
    let replication = start().await?;
    let rows = "{\"cust_id\": 1, \"region\": \"EU\", \"price\": 1e30}\n{\"cust_id\": 2, \"region\": \"EU\"}\n";
    let output = try_out(&replication, "public.customers", rows).await?;
    ensure!(output.code == Some(1), "{output:?}");
    let printed = lines(&output.stdout)?;
    let error = printed[0]["error"].as_str().context("an error")?;
    ensure!(error.contains("column \"price\"") && error.contains("22003") && !error.contains("1e30"), "{error}");
    ensure!(printed[0]["line"] == 1 && printed[1]["op"] == "insert", "{printed:?}");
    ensure!(output.stderr.contains("rules cannot be applied to 1 of 2 rows"), "{}", output.stderr);

    // A key that moves is two changes, and none of them where the second cannot be made.
    let rows = r#"{"op": "update", "new": {"id": 2}, "old": {"id": 1}} {"id": 3}"#;
    let printed = lines(&try_out(&replication, "public.orders", rows).await?.stdout)?;
    ensure!(printed.len() == 2 && printed[1]["new"]["id"] == "3", "{printed:?}");
    ensure!(printed[0]["error"].as_str().is_some_and(|error| error.contains("\"note\" is needed")), "{printed:?}");

    let unknown = try_out(&replication, "public.log", "{\"n\": 1}\n{\"n\": 2, \"m\": 3}").await?;
    ensure_refused(&unknown, 2, "line 2: \"public\".\"log\" has no column \"m\"; it has \"n\", \"note\"")?;
    ensure_refused(&try_out(&replication, "public.lag", "").await?, 2, "[tables] selects no table \"public.lag\"")?;
    ensure_refused(&try_out(&replication, "public.*", "").await?, 2, "\"public.*\" is no single name")
}

#[tokio::test]
async fn tail_shows_nothing_that_is_hidden() -> Result<()> {
    const TABLE: &str = "CREATE TABLE people (id int PRIMARY KEY, email text, region text)";
    let on_a = format!("{TABLE}; ALTER TABLE people REPLICA IDENTITY FULL; CREATE TABLE kept (id int PRIMARY KEY)");
    let on_c = format!("{TABLE}; CREATE TABLE kept (id int PRIMARY KEY, op text)");
    let replication = Replication::start_differing(ChainOptions::default(), &on_a, &on_c).await?;
    std::fs::write(replication.config().with_file_name("secret"), SECRET)?;
    replication.configure(
        r#"
        [masks]
        secret_file = "secret"
        [[rule]]
        table = "public.people"
        where = "region <> 'none'"
        mask = { email = "hmac_sha256" }
        [[rule]]
        table = "public.kept"
        set = { op = "$op" }
        soft_delete = true
        "#,
    )?;
    replication.setup().await?;
    let changes = "INSERT INTO people VALUES (1, 'first@clear.example', 'EU'), (2, 'second@clear.example', 'none'); \
                   UPDATE people SET email = 'third@clear.example' WHERE id = 1; \
                   UPDATE people SET region = 'none' WHERE id = 1; TRUNCATE people, kept";
    replication.chain.a.sql(DATABASE, changes).await?;
    replication.chain.wait_b_caught_up().await?;
    let text = replication.succeed(&["tail", "--no-follow"]).await?;
    ensure!(!text.contains("clear"), "{text}");
    let lines = lines(&text)?;
    let operations: Vec<_> = lines.iter().map(|line| line["operation"].as_str().unwrap_or_default()).collect();
    assert_eq!(operations, ["insert", "update", "delete", "truncate"]);
    ensure!(lines[0]["new"]["email"] == lines[1]["old"]["email"] && lines[0]["new"]["region"] == "EU", "{text}");
    ensure!(lines[1]["new"]["email"] == lines[2]["old"]["email"] && lines[2]["commit_lsn"].is_string(), "{text}");
    ensure!(lines[3]["tables"] == json!(["\"public\".\"people\""]), "{text}");
    let marked = json!([{ "table": "\"public\".\"kept\"", "rows": {}, "set": { "op": "D" } }]);
    ensure!(lines[3]["in_part"] == marked, "{text}");

    // Two changes of one, cut by the limit.
    replication.chain.a.sql(DATABASE, "INSERT INTO kept VALUES (1); UPDATE kept SET id = 2").await?;
    replication.chain.wait_b_caught_up().await?;
    let count = |text: String| text.lines().count();
    assert_eq!(count(replication.succeed(&["tail", "--no-follow"]).await?), 7);
    assert_eq!(count(replication.succeed(&["tail", "--limit", "6"]).await?), 6);
    Ok(())
}
