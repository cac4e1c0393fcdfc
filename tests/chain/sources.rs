//! Other servers than a UTF-8 standby over TCP: a primary, Unix sockets, other encodings, roles with few rights.

use anyhow::Result;
use pgsluice_testkit::{ChainOptions, Install, assert_same};

use crate::replication::{DATABASE, Replication};

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, note text, list text[])";
const CHANGES: &str = "\
    INSERT INTO t SELECT n, 'Größe ' || n, ARRAY['ü', NULL] FROM generate_series(1, 50) n;
    UPDATE t SET note = 'neu ß', id = id + 100 WHERE id % 5 = 0; DELETE FROM t WHERE id % 7 = 0";

#[tokio::test]
async fn a_primary_is_a_source_too() -> Result<()> {
    for major in [16, 18] {
        if Install::try_find(major).is_none() {
            continue;
        }
        let replication = Replication::start_with(ChainOptions::default().major_ab(major), DDL).await?;
        let [a, _, c] = replication.servers();
        replication.configure_servers(&a.dsn(DATABASE), None, &c.dsn(DATABASE), "")?;
        replication.setup().await?;
        a.sql(DATABASE, CHANGES).await?;
        replication.catch_up().await?;
        assert_same(a, c, DATABASE, &["public.t"]).await;
    }
    Ok(())
}

#[tokio::test]
async fn unix_sockets_to_all_servers() -> Result<()> {
    let replication = Replication::start(DDL).await?;
    let [a, b, c] = replication.servers().map(|server| server.dsn_unix(DATABASE));
    replication.configure_servers(&b, Some(&a), &c, "")?;
    replication.setup().await?;
    replication.replicate(CHANGES, &["public.t"]).await
}

/// The roles and rights that the documentation asks for, and none besides.
#[tokio::test]
async fn roles_with_least_privilege() -> Result<()> {
    let replication = Replication::start(DDL).await?;
    let on_a = "\
        CREATE ROLE reader LOGIN REPLICATION; GRANT USAGE ON SCHEMA public TO reader;
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
        GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO reader; GRANT pg_monitor TO reader;
        CREATE PUBLICATION pgsluice_test FOR TABLE t WITH (publish_via_partition_root = true)";
    replication.chain.a.sql(DATABASE, on_a).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.configure_unprivileged_target("").await?;
    let text = std::fs::read_to_string(replication.config())?.replace("user=postgres", "user=reader");
    std::fs::write(replication.config(), text)?;
    replication.setup().await?;
    replication.succeed(&["status"]).await?;
    replication.replicate(CHANGES, &["public.t"]).await?;
    replication.replicate("TRUNCATE t; INSERT INTO t VALUES (1)", &["public.t"]).await
}

/// The source converts what it sends; SQL_ASCII has nothing to convert from, and its bytes have to be UTF-8.
#[tokio::test]
async fn encodings_of_the_source() -> Result<()> {
    let replication = Replication::start("").await?;
    let [a, b, c] = replication.servers();
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let database = encoding.to_lowercase();
        let create = format!("CREATE DATABASE {database} TEMPLATE template0 LOCALE 'C' ENCODING");
        a.sql(DATABASE, &format!("{create} '{encoding}'")).await?;
        c.sql(DATABASE, &format!("{create} 'UTF8'")).await?;
        let ddl = r#"CREATE TABLE "Größe" (id int PRIMARY KEY, "ü" text, c varchar(3), n name, j jsonb, l text[])"#;
        a.sql(&database, ddl).await?;
        c.sql(&database, ddl).await?;
        replication.chain.wait_b_caught_up().await?;
        for format in ["text", "binary"] {
            let more = format!("[stream]\nformat = \"{format}\"\n");
            replication.configure_servers(&b.dsn(&database), Some(&a.dsn(&database)), &c.dsn(&database), &more)?;
            replication.setup().await?;
            let changes = r#"
                TRUNCATE "Größe"; INSERT INTO "Größe" SELECT n, 'Ä' || n, 'ß', 'é', '{"ö": "å"}', '{ü,NULL}'
                FROM generate_series(1, 9) n; UPDATE "Größe" SET "ü" = 'Ü' WHERE "ü" = 'Ä3'; DELETE FROM "Größe" WHERE id = 5"#;
            a.sql(&database, changes).await?;
            replication.catch_up().await?;
            replication.chain.wait_b_caught_up().await?;
            assert_same(b, c, &database, &["public.\"Größe\""]).await;
        }
        replication.succeed(&["teardown", "--yes"]).await?;
    }
    Ok(())
}
