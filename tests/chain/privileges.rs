//! The rights that `docs/operating.md` asks for, as it has them, and none besides: a first use of the documents, from the roles to
//! the teardown, with the configuration of the README.

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Server, assert_same};

use crate::replication::Replication;
use crate::setup::ensure_said;

/// The database of the documents.
const SHOP: &str = "shop";
const TABLES: [&str; 2] = ["shop.customer", "shop.item"];
const DDL: &str = "\
    CREATE SCHEMA shop AUTHORIZATION shop_owner; SET ROLE shop_owner; CREATE TYPE shop.mood AS ENUM ('sad', 'ok');
    CREATE TABLE shop.customer (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, mood shop.mood);
    CREATE TABLE shop.item (id serial PRIMARY KEY, customer int REFERENCES shop.customer, note text);
    CREATE INDEX ON shop.item (note); CREATE TABLE shop.tmp_1 (id int);";
const ROWS: &str = "\
    INSERT INTO shop.customer (mood) SELECT 'ok' FROM generate_series(1, 20);
    INSERT INTO shop.item (customer, note) SELECT n, 'a' FROM generate_series(1, 20) n";

/// A document's blocks of a language, under a headline.
fn blocks(document: &str, headline: &str, language: &str) -> Result<Vec<String>> {
    let path = format!("{}/{document}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path)?;
    let (_, section) = text.split_once(&format!("\n{headline}\n")).with_context(|| format!("no {headline}"))?;
    // The next headline of any kind ends it.
    let section = section.split("\n#").next().unwrap_or(section);
    let block = |rest: &str| {
        rest.split_once("```").map(|(block, _)| block.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"))
    };
    Ok(section.split(&format!("```{language}\n")).skip(1).filter_map(block).collect())
}

/// The block of the privileges that begins with these words.
fn privileges(begins: &str) -> Result<String> {
    let blocks = blocks("docs/operating.md", "### Privileges", "sql")?;
    blocks.into_iter().find(|block| block.starts_with(begins)).with_context(|| format!("no block begins with {begins}"))
}

/// The configuration of the README, with the addresses of these servers.
fn configuration(servers: [&Server; 3]) -> Result<String> {
    let [a, b, c] = servers.map(|server| format!("port={}", server.port()));
    let text = blocks("README.md", "## Use it", "toml")?.pop().context("no configuration")?;
    let text = text.replace("port=5432", &a).replace("port=5433", &b).replace("port=5434", &c);
    // These servers trust whoever comes.
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with("password_file"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Servers with the database of the documents, its tables on A, and the roles as the first blocks make them.
async fn start() -> Result<Replication> {
    let replication = Replication::start_with(ChainOptions::default(), "").await?;
    let [a, _, c] = replication.servers();
    for server in [a, c] {
        server.sql("postgres", "CREATE ROLE shop_owner").await?;
        server.sql("postgres", "CREATE DATABASE shop").await?;
        // What everybody may do by default is no part of what is asked for.
        server
            .sql(SHOP, "REVOKE TEMPORARY ON DATABASE shop FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC")
            .await?;
    }
    a.sql(SHOP, &format!("{DDL} {ROWS}")).await?;
    a.sql(SHOP, &privileges("-- A, as an administrator")?).await?;
    c.sql(SHOP, &privileges("-- C, as an administrator")?).await?;
    replication.chain.wait_b_caught_up().await?;
    std::fs::write(replication.config(), configuration(replication.servers())?)?;
    Ok(replication)
}

async fn ensure_same(replication: &Replication) -> Result<()> {
    replication.chain.wait_b_caught_up().await?;
    assert_same(&replication.chain.b, &replication.chain.c, SHOP, &TABLES).await;
    Ok(())
}

/// From setup to teardown, with the publication as its owner makes it.
async fn use_it(replication: &Replication) -> Result<()> {
    let [a, _, c] = replication.servers();
    let refused = replication.command(&["setup"]).await?;
    ensure_said(&refused, 3, &["does not own shop.customer, shop.item", "as the owner of the tables"])?;
    let printed = replication.succeed(&["setup", "--print-sql"]).await?;
    let on_primary = printed.split_once("-- 2. ").context("no second part")?.0;
    let owner = privileges("-- A, as the owner of the tables")?;
    a.sql(SHOP, "GRANT CREATE ON DATABASE shop TO shop_owner").await?;
    a.sql(SHOP, &format!("{owner}\nSET ROLE shop_owner;\n{on_primary}")).await?;
    replication.succeed(&["setup"]).await?;
    replication.succeed(&["run", "--stop-at", "current"]).await?;
    ensure_same(replication).await?;
    let changes = "UPDATE shop.item SET note = 'b' WHERE id > 5; DELETE FROM shop.item WHERE id = 3; \
                   INSERT INTO shop.customer (mood) VALUES ('sad')";
    a.sql(SHOP, changes).await?;
    replication.succeed(&["run", "--stop-at", "current"]).await?;
    ensure_same(replication).await?;
    let status = replication.succeed(&["status", "--format", "json"]).await?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    ensure!(status["state"] == "stopped" && status["lag"]["receive"]["bytes"].is_number(), "{status}");
    replication.succeed(&["resync", "--yes", "shop.*"]).await?;
    a.sql(SHOP, "TRUNCATE shop.item; INSERT INTO shop.item (customer, note) VALUES (1, 'c')").await?;
    replication.succeed(&["run", "--stop-at", "current"]).await?;
    ensure_same(replication).await?;

    let torn_down = replication.command(&["teardown", "--yes"]).await?;
    ensure_said(&torn_down, 3, &["DROP PUBLICATION \"pgsluice_shop\""])?;
    a.sql(SHOP, "SET ROLE shop_owner; DROP PUBLICATION pgsluice_shop").await?;
    let again = replication.succeed(&["teardown", "--yes"]).await?;
    ensure!(!again.contains("removed") && !again.contains("left"), "{again}");
    let left = "SELECT to_regnamespace('pgsluice') IS NULL AND NOT EXISTS (SELECT FROM pg_publication)";
    for server in [a, c] {
        assert_eq!(server.scalar(SHOP, left).await?, "t", "{} has something left", server.name());
    }
    assert_eq!(replication.chain.b.scalar(SHOP, "SELECT count(*) FROM pg_replication_slots").await?, "0");
    Ok(())
}

#[tokio::test]
async fn the_documented_rights_are_enough_where_schema_makes_the_tables() -> Result<()> {
    let replication = start().await?;
    let schema = crate::schema_copy::schema(&replication, &[]).await?;
    ensure_said(&schema, 0, &[])?;
    ensure_said(&crate::schema_copy::schema(&replication, &["--section", "sequences"]).await?, 0, &[])?;
    use_it(&replication).await
}

#[tokio::test]
async fn the_documented_rights_are_enough_where_the_tables_are_another_roles() -> Result<()> {
    let replication = start().await?;
    let c = &replication.chain.c;
    c.sql(SHOP, DDL).await?;
    c.sql(SHOP, &privileges("-- C, where another role owns the tables")?).await?;
    use_it(&replication).await
}
