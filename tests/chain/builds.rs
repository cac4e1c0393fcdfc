//! What a server has only if it was built with it: ICU's collations, libxml, extensions. Debian's PostgreSQL 15 has all of
//! these, as a primary that is the source itself and as C.

use anyhow::Result;
use pgsluice_testkit::{ChainOptions, Install};

use crate::replication::{DATABASE, Replication};
use crate::types::{Case, key, no_key, replicate_with};

/// 15 at both ends, where it is on this machine and `probe` works on it.
async fn start(ddl: &str, probe: &str) -> Result<Option<Replication>> {
    if Install::try_find(15).is_none() {
        println!("skipped: there is no PostgreSQL 15 on this machine");
        return Ok(None);
    }
    let replication = Replication::start_with(ChainOptions::default().major_ab(15).major_c(15), "").await?;
    let [a, _, c] = replication.servers();
    if let Err(error) = a.sql(DATABASE, probe).await {
        println!("skipped: the PostgreSQL 15 of this machine lacks what it takes: {error:#}");
        return Ok(None);
    }
    for server in [a, c] {
        server.sql(DATABASE, ddl).await?;
    }
    replication.chain.wait_b_caught_up().await?;
    Ok(Some(replication))
}

/// Equal is then what is not the same: keys that differ by case only are one key to the servers, and each row is changed as it
/// is written.
#[tokio::test]
async fn keys_under_a_nondeterministic_collation() -> Result<()> {
    let ddl = "\
        CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE t (k text COLLATE blind PRIMARY KEY, n int, u text COLLATE blind UNIQUE);
        CREATE TABLE pair (a text COLLATE blind, b int, note text COLLATE blind, PRIMARY KEY (b, a));
        CREATE TABLE whole (k text COLLATE blind, n int); ALTER TABLE whole REPLICA IDENTITY FULL;";
    let probe = "CREATE COLLATION probe (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    let Some(replication) = start(ddl, probe).await? else { return Ok(()) };
    let [a, _, c] = replication.servers().map(|server| server.dsn(DATABASE));
    let tables = ["public.t", "public.pair", "public.whole"];
    let rows = "\
        INSERT INTO t SELECT 'Key ' || n, n, 'U ' || n FROM generate_series(1, 30) n;
        INSERT INTO pair SELECT 'Part ' || n, n % 3, 'Note' FROM generate_series(1, 30) n;
        INSERT INTO whole VALUES ('abc', 1), ('ABC', 1), ('Abc', 1), ('abc', 1), ('ABD', 2)";
    let changes = "\
        UPDATE t SET n = -n WHERE k = 'KEY 1'; UPDATE t SET k = 'KEY 2' WHERE k = 'key 2'; UPDATE t SET u = upper(u) WHERE n = 3;
        DELETE FROM t WHERE k = 'kEY 4'; INSERT INTO t VALUES ('KEY 4', 40, 'u 4');
        BEGIN; DELETE FROM t WHERE k = 'key 5'; INSERT INTO t VALUES ('kEy 5', 50, 'u 5'); UPDATE t SET n = 51 WHERE k = 'key 5'; COMMIT;
        BEGIN; UPDATE t SET k = 'between' WHERE k = 'key 6'; UPDATE t SET k = 'KEY 6' WHERE k = 'key 7';
        UPDATE t SET k = 'KEY 7' WHERE k = 'BETWEEN'; COMMIT;
        BEGIN; UPDATE t SET u = 'x' WHERE n = 8; UPDATE t SET u = 'U 8' WHERE n = 9; UPDATE t SET u = 'U 9' WHERE n = 8; COMMIT;
        INSERT INTO t VALUES ('short', 1, 'short'); UPDATE t SET k = 'SHORT', u = 'SHORT' WHERE k = 'short'; DELETE FROM t WHERE k = 'Short';
        UPDATE t SET n = n + 1 WHERE n > 20;
        UPDATE pair SET note = upper(note) WHERE b = 1; UPDATE pair SET a = upper(a) WHERE b = 2; DELETE FROM pair WHERE a = 'PART 3';
        UPDATE whole SET n = 7 WHERE ctid = '(0,2)'; DELETE FROM whole WHERE ctid = '(0,3)'; UPDATE whole SET k = upper(k) WHERE ctid = '(0,1)'";
    for more in ["", "[apply]\nnetting = false\n"] {
        replication.configure_servers(&a, None, &c, more)?;
        replication.setup().await?;
        replication.replicate(rows, &tables).await?;
        replication.run_each(changes).await?;
        replication.catch_up().await?;
        replication.assert_same(&tables).await?;
        replication.replicate("TRUNCATE t, pair, whole", &tables).await?;
    }
    // Copied with these rows there, and cut down by its keys where it had begun.
    replication.succeed(&["teardown", "--yes"]).await?;
    replication.chain.a.sql(DATABASE, rows).await?;
    replication.configure_servers(&a, None, &c, "[snapshot]\n")?;
    replication.setup().await?;
    replication.catch_up().await?;
    replication.assert_same(&tables).await
}

/// What only some servers have.
const HERE_AND_THERE: &[(&str, Case)] = &[
    (
        "SELECT '<a/>'::xml;",
        no_key("xml", &["<a b=\"1\"><![CDATA[<]]></a>", "", "text &amp; <b/> ü", "<?xml version=\"1.0\"?><a/>"]),
    ),
    ("CREATE EXTENSION hstore;", key("hstore", &["", "a=>1, \"b c\"=>NULL", "\"q\\\\\"\"=>\"ü, =>\""])),
    ("CREATE EXTENSION ltree;", key("ltree", &["", "Top.Science.Astronomy"])),
    ("CREATE EXTENSION citext;", key("citext", &["Straße", "", "ABC"])),
    ("CREATE EXTENSION cube;", key("cube", &["(1, 2),(3, 4)", "(0)"])),
    ("CREATE EXTENSION isn;", key("isbn13", &["978-0-393-04002-9"])),
];

#[tokio::test]
async fn types_of_some_builds_and_of_extensions() -> Result<()> {
    if Install::try_find(15).is_none() {
        println!("skipped: there is no PostgreSQL 15 on this machine");
        return Ok(());
    }
    let options = || ChainOptions::default().major_ab(15).major_c(15);
    let probe = Replication::start_with(options(), "").await?;
    let mut there = Vec::new();
    let mut ddl = String::new();
    for (makes, case) in HERE_AND_THERE {
        match probe.chain.a.sql(DATABASE, makes).await {
            Ok(()) => {
                there.push(case);
                ddl += makes;
            }
            Err(error) => println!("skipped: {error:#}"),
        }
    }
    drop(probe);
    for format in ["text", "auto"] {
        replicate_with(options(), &ddl, &there, format).await?;
    }
    Ok(())
}

/// An extension that is not of PostgreSQL's own.
#[tokio::test]
async fn vectors_of_pgvector() -> Result<()> {
    let probe = Replication::start("").await?;
    if let Err(error) = probe.chain.c.sql(DATABASE, "CREATE EXTENSION vector").await {
        println!("skipped: {error:#}");
        return Ok(());
    }
    drop(probe);
    let vector = key("vector(3)", &["[1,-2,3.5]", "[0,0,0]", "[1e-38,1e38,-1e-45]"]);
    let sparse = key("sparsevec(5)", &["{1:1.5,3:2}/5", "{}/5"]);
    replicate_with(ChainOptions::default(), "CREATE EXTENSION vector;", &[&vector, &sparse], "auto").await.map(drop)
}
