//! `pgsluice schema`: what the selected tables need is made on C as A has it, and nothing else.

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{Chain, ChainOptions, Install, Output};
use serde_json::Value;

use crate::replication::{DATABASE, Replication};

/// Everything that a table can need, odd names, and what is left out.
const DDL: &str = r#"
    CREATE SCHEMA shop; CREATE SCHEMA "Odd ""S""";
    CREATE TYPE shop.mood AS ENUM ('sad', 'it''s ok');
    CREATE FUNCTION shop.is_positive(v numeric) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN
--
-- Name: item; Type: TABLE; Schema: shop; Owner: -
--

    RETURN v > 0; END $$;
    CREATE DOMAIN shop.positive AS numeric(10, 2) CHECK (shop.is_positive(VALUE));
    CREATE TYPE shop.pair AS (a int, m shop.mood);
    CREATE TYPE shop.prices AS RANGE (subtype = numeric);
    CREATE COLLATION shop.bytes (provider = libc, locale = 'C');
    CREATE SEQUENCE shop.shared START 100;
    CREATE SEQUENCE shop.downwards INCREMENT -1;
    CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
    CREATE TABLE shop.unselected (id int PRIMARY KEY);
    CREATE TYPE shop.unneeded AS ENUM ('x');
    CREATE TABLE shop.customer (
        id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text COLLATE shop.bytes NOT NULL UNIQUE,
        mood shop.mood DEFAULT 'sad', pair shop.pair, prices shop.prices, balance shop.positive,
        twice numeric GENERATED ALWAYS AS (balance * 2) STORED);
    CREATE TABLE shop.item (
        id serial PRIMARY KEY, n int DEFAULT nextval('shop.shared'), down int DEFAULT nextval('shop.downwards'),
        customer int REFERENCES shop.customer, other int REFERENCES shop.unselected, span int4range,
        CONSTRAINT n_positive CHECK (shop.is_positive(n)), EXCLUDE USING gist (span WITH &&));
    CREATE INDEX ON shop.item ((n + 1)) WHERE n > 5;
    CREATE STATISTICS shop.item_statistics ON id, n FROM shop.item;
    COMMENT ON TABLE shop.item IS 'it''s one'; COMMENT ON INDEX shop.item_expr_idx IS 'of an expression';
    CREATE TRIGGER touch BEFORE INSERT ON shop.item FOR EACH ROW EXECUTE FUNCTION shop.touch();
    CREATE VIEW shop.items AS SELECT * FROM shop.item;
    CREATE TABLE shop.log (id int, day date, region text, moods shop.mood[], PRIMARY KEY (id, day, region))
        PARTITION BY RANGE (day);
    CREATE TABLE shop.log_1 PARTITION OF shop.log FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')
        PARTITION BY LIST (region);
    CREATE TABLE shop.log_1_eu PARTITION OF shop.log_1 FOR VALUES IN ('eu');
    CREATE TABLE shop.log_default PARTITION OF shop.log DEFAULT;
    CREATE INDEX log_region ON shop.log (region);
    ALTER TABLE shop.log ADD FOREIGN KEY (id) REFERENCES shop.customer;
    CREATE TABLE shop.keyless (n int); ALTER TABLE shop.keyless REPLICA IDENTITY FULL;
    CREATE TABLE "Odd ""S"""."T -- Name: x; y" ("Id ;" int NOT NULL, b text DEFAULT 'a;b');
    CREATE UNIQUE INDEX "u ""i" ON "Odd ""S"""."T -- Name: x; y" ("Id ;");
    ALTER TABLE "Odd ""S"""."T -- Name: x; y" REPLICA IDENTITY USING INDEX "u ""i";
"#;

const ROWS: &str = r#"
    INSERT INTO shop.unselected VALUES (1);
    INSERT INTO shop.customer (email, mood, pair, prices, balance)
        SELECT 'c' || g, 'it''s ok', ROW(g, 'sad'::shop.mood)::shop.pair, '[1,2)', g FROM generate_series(1, 50) g;
    INSERT INTO shop.item (customer, other, span) SELECT g, 1, int4range(g, g + 1) FROM generate_series(1, 50) g;
    INSERT INTO shop.log SELECT g, date '2026-01-01' + g, 'eu', '{sad}' FROM generate_series(1, 50) g;
    INSERT INTO shop.keyless SELECT 7 FROM generate_series(1, 3);
    INSERT INTO "Odd ""S"""."T -- Name: x; y" VALUES (1), (2);
"#;

const TABLES: [&str; 5] =
    ["shop.customer", "shop.item", "shop.log", "shop.keyless", "\"Odd \"\"S\"\"\".\"T -- Name: x; y\""];

const CONFIG: &str = "[tables]\ninclude = [\"shop.*\", \"Odd*.*\"]\nexclude = [\"shop.unselected\"]\n\
                      [snapshot]\njobs = 2\n";

/// What must be alike on both ends, of all tables but the one that is not selected.
const DEFINITIONS: [&str; 6] = [
    "SELECT concat_ws(' ', indexrelid::regclass, pg_get_indexdef(indexrelid), indisvalid, indisreplident) FROM pg_index \
     WHERE indrelid >= 16384 AND indrelid <> COALESCE(to_regclass('shop.unselected'), 0)",
    // From 18 on NOT NULL is a constraint too.
    "SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated) FROM pg_constraint \
     WHERE oid >= 16384 AND contype <> 'n' AND confrelid <> COALESCE(to_regclass('shop.unselected'), 1) \
     AND conrelid <> COALESCE(to_regclass('shop.unselected'), 1)",
    "SELECT concat_ws(' ', c.oid::regclass, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, \
         attgenerated, COALESCE(pg_get_expr(d.adbin, d.adrelid), '-'), attcollation::regcollation) \
     FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid \
     LEFT JOIN pg_attrdef d ON d.adrelid = attrelid AND d.adnum = attnum \
     WHERE c.oid >= 16384 AND relkind IN ('r', 'p') AND attnum > 0 AND relname <> 'unselected'",
    "SELECT concat_ws(' ', oid::regclass, relkind, relreplident, pg_get_expr(relpartbound, oid), pg_get_partkeydef(oid), \
         obj_description(oid)) FROM pg_class \
     WHERE oid >= 16384 AND relkind IN ('r', 'p', 'i', 'I', 'S') AND relname !~ '^(unselected|pg_toast)'",
    "SELECT concat_ws(' ', typname, typtype, (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum \
         WHERE enumtypid = t.oid)) \
     FROM pg_type t WHERE typnamespace = 'shop'::regnamespace AND typtype IN ('e', 'd', 'r') AND typname <> 'unneeded'",
    "SELECT pg_get_statisticsobjdef(oid) FROM pg_statistic_ext",
];

async fn start(options: ChainOptions) -> Result<Replication> {
    let replication = Replication::start_differing(options, &format!("{DDL}{ROWS}"), "").await?;
    replication.configure(CONFIG)?;
    Ok(replication)
}

/// Runs the command with the programs of the source's version.
pub async fn schema(replication: &Replication, arguments: &[&str]) -> Result<Output> {
    let directory = replication.chain.b.install().bin_dir.clone();
    let directory = directory.to_str().context("a path in UTF-8")?;
    replication.command(&[&["schema", "--pg-bin", directory], arguments].concat()).await
}

async fn make(replication: &Replication, arguments: &[&str]) -> Result<String> {
    let output = schema(replication, arguments).await?;
    ensure!(output.code == Some(0), "schema {arguments:?} ended with {:?}: {}", output.code, output.stderr);
    Ok(output.stdout)
}

/// Objects with their states, and the reason where there is one.
async fn items(replication: &Replication, arguments: &[&str]) -> Result<Vec<(String, String)>> {
    let items: Vec<Value> =
        serde_json::from_str(&make(replication, &[arguments, &["--format", "json"]].concat()).await?)?;
    let text = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
    let row = |item: &Value| (text(item, "object"), format!("{}{}", text(item, "state"), text(item, "reason")));
    Ok(items.iter().map(row).collect())
}

async fn ensure_refused(replication: &Replication, arguments: &[&str], said: &[&str]) -> Result<()> {
    let output = schema(replication, arguments).await?;
    ensure!(output.code == Some(3), "ended with {:?}, not with 3: {}", output.code, output.stderr);
    for text in said {
        ensure!(output.stderr.contains(text), "does not say \"{text}\":\n{}", output.stderr);
    }
    Ok(())
}

async fn definitions(chain: &Chain) -> Result<[Vec<String>; 2]> {
    let mut both = [Vec::new(), Vec::new()];
    for (server, list) in [&chain.b, &chain.c].into_iter().zip(&mut both) {
        for sql in DEFINITIONS {
            let rows = server.query_text(DATABASE, &format!("{sql} ORDER BY 1")).await?;
            list.extend(rows.into_iter().flatten().flatten());
        }
        // Those of the engine, and those that bear the OID of their table.
        list.retain(|definition| !["pgsluice.", "pg_toast."].iter().any(|schema| definition.contains(schema)));
    }
    Ok(both)
}

async fn ensure_same_definitions(chain: &Chain) -> Result<()> {
    chain.wait_b_caught_up().await?;
    let [on_b, on_c] = definitions(chain).await?;
    ensure!(on_b.len() > 80, "only {} definitions are compared", on_b.len());
    let beyond = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|definition| !those.contains(definition)).cloned().collect()
    };
    let (only_b, only_c) = (beyond(&on_b, &on_c), beyond(&on_c, &on_b));
    ensure!(on_b == on_c, "only on B: {only_b:#?}, only on C: {only_c:#?}");
    Ok(())
}

async fn objects_of_c(chain: &Chain) -> Result<String> {
    chain.c.scalar(DATABASE, "SELECT count(*) FROM pg_class WHERE oid >= 16384").await
}

#[tokio::test]
async fn an_empty_target_gets_what_the_tables_need() -> Result<()> {
    let replication = start(ChainOptions::default()).await?;
    let first = items(&replication, &[]).await?;
    let left_out: Vec<_> = first
        .iter()
        .filter(|(_, state)| state != "created")
        .map(|(object, state)| format!("{object}: {state}"))
        .collect();
    let expected = [
        "view shop.items: left_outviews are not copied",
        "trigger touch on shop.item: left_outtriggers are not copied",
        "table constraint item_other_fkey on shop.item: left_outit refers to shop.unselected, which is not selected",
    ];
    assert_eq!(left_out, expected);
    ensure_same_definitions(&replication.chain).await?;
    for unneeded in ["to_regclass('shop.unselected')", "to_regtype('shop.unneeded')", "to_regproc('shop.touch')"] {
        let sql = format!("SELECT {unneeded} IS NULL");
        assert_eq!(replication.chain.c.scalar(DATABASE, &sql).await?, "t", "{unneeded}");
    }

    let second = items(&replication, &[]).await?;
    let states: Vec<_> = second.iter().filter(|(_, state)| !state.starts_with("left_out")).collect();
    ensure!(states.len() + 3 == first.len() && states.iter().all(|(_, state)| state == "present"), "{second:?}");
    ensure_same_definitions(&replication.chain).await?;

    replication.setup().await?;
    replication.catch_up().await?;
    replication.assert_same(&TABLES).await
}

#[tokio::test]
async fn tables_before_the_rows_and_indexes_after_them() -> Result<()> {
    let replication = start(ChainOptions::default()).await?;
    let indexes = "SELECT count(*) FROM pg_index WHERE indrelid >= 16384 AND indrelid::regclass::text LIKE 'shop%'";
    ensure_refused(&replication, &["--section", "post-data"], &["no table", "--section pre-data"]).await?;
    make(&replication, &["--section", "pre-data"]).await?;
    assert_eq!(replication.chain.c.scalar(DATABASE, indexes).await?, "0");
    replication.setup().await?;
    replication.catch_up().await?;
    let post_data = ["--section", "post-data", "--jobs", "2"];
    let first = items(&replication, &post_data).await?;
    ensure!(first.iter().filter(|(_, state)| state == "created").count() > 15, "{first:?}");
    ensure_same_definitions(&replication.chain).await?;
    let again = items(&replication, &post_data).await?;
    ensure!(again.iter().all(|(_, state)| state != "created"), "{again:?}");
    ensure_same_definitions(&replication.chain).await?;
    replication.assert_same(&TABLES).await
}

/// One that was interrupted goes on where it was.
#[tokio::test]
async fn an_index_that_cannot_be_built_is_named_and_the_rest_is_made_later() -> Result<()> {
    let replication = start(ChainOptions::default()).await?;
    make(&replication, &["--section", "pre-data"]).await?;
    let c = &replication.chain.c;
    let rows = "INSERT INTO shop.customer (email) VALUES ('secret value'), ('secret value')";
    c.sql(DATABASE, rows).await?;
    let output = schema(&replication, &["--section", "post-data"]).await?;
    ensure!(output.code == Some(1), "ended with {:?}: {}", output.code, output.stderr);
    ensure!(
        output.stderr.contains("refuses table constraint customer_email_key on shop.customer"),
        "{}",
        output.stderr
    );
    ensure!(!output.stderr.contains("secret"), "{}", output.stderr);
    c.sql(DATABASE, "DELETE FROM shop.customer").await?;
    make(&replication, &["--section", "post-data"]).await?;
    ensure_same_definitions(&replication.chain).await
}

#[tokio::test]
async fn printed_sql_changes_nothing_and_makes_the_same() -> Result<()> {
    let replication = start(ChainOptions::default()).await?;
    let Chain { a, b, c, .. } = &replication.chain;
    // With a password, which the programs get as well.
    let source = b.dsn_as(DATABASE, "scram_user", "scram-pw");
    replication.configure_servers(&source, Some(&a.dsn(DATABASE)), &c.dsn(DATABASE), CONFIG)?;
    let before = objects_of_c(&replication.chain).await?;
    let printed = make(&replication, &["--print"]).await?;
    for text in [
        "CREATE TABLE shop.customer (",
        "ATTACH PARTITION shop.log_1_eu",
        "REPLICA IDENTITY FULL",
        "-- left out: trigger",
    ] {
        ensure!(printed.contains(text), "\"{text}\" is not in:\n{printed}");
    }
    assert_eq!(objects_of_c(&replication.chain).await?, before);
    replication.chain.c.sql(DATABASE, &printed).await?;
    ensure_same_definitions(&replication.chain).await?;
    let setval = make(&replication, &["--print", "--section", "sequences"]).await?;
    ensure!(setval.matches("setval").count() == 4, "{setval}");
    replication.chain.c.sql(DATABASE, &setval).await
}

#[tokio::test]
async fn sequences_get_the_values_and_never_go_back() -> Result<()> {
    let replication = start(ChainOptions::default()).await?;
    let Chain { b, c, .. } = &replication.chain;
    let section = ["--section", "sequences"];
    ensure_refused(&replication, &section, &["the target has no sequence \"shop\".\"customer_id_seq\""]).await?;
    make(&replication, &[]).await?;
    // One is ahead, one of those that count downwards is behind, one is where nothing was taken from it.
    c.sql(DATABASE, "SELECT setval('shop.shared', 5000), setval('shop.downwards', -2)").await?;
    let name = |name: &str| format!("sequence \"shop\".\"{name}\"");
    let expected = |states: [&str; 4]| {
        let names = ["customer_id_seq", "downwards", "item_id_seq", "shared"];
        names.map(name).into_iter().zip(states.map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(items(&replication, &section).await?, expected(["set", "set", "set", "present"]));
    assert_eq!(items(&replication, &section).await?, expected(["present"; 4]));
    for sequence in ["customer_id_seq", "item_id_seq", "downwards"] {
        let sql = format!("SELECT last_value || ' ' || is_called FROM shop.{sequence}");
        assert_eq!(c.scalar(DATABASE, &sql).await?, b.scalar(DATABASE, &sql).await?);
    }
    assert_eq!(c.scalar(DATABASE, "SELECT nextval('shop.shared')").await?, "5001");
    let used: i64 = replication.chain.a.scalar(DATABASE, "SELECT max(id) FROM shop.item").await?.parse()?;
    ensure!(c.scalar(DATABASE, "SELECT nextval('shop.item_id_seq')").await?.parse::<i64>()? > used);
    c.sql(DATABASE, "SELECT setval('shop.downwards', -1000)").await?;
    assert_eq!(items(&replication, &section).await?, expected(["present"; 4]));
    assert_eq!(c.scalar(DATABASE, "SELECT last_value FROM shop.downwards").await?, "-1000");
    Ok(())
}

#[tokio::test]
async fn tables_that_differ_are_named_and_nothing_is_made() -> Result<()> {
    let on_a = "CREATE TABLE t (id int PRIMARY KEY, c int, gone text, n numeric(8, 2), d int DEFAULT 5);
                CREATE TABLE fresh (id int PRIMARY KEY)";
    let on_c = "CREATE TABLE t (id int PRIMARY KEY, c bigint, n numeric, d int, more text, must text NOT NULL)";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    let before = objects_of_c(&replication.chain).await?;
    let said = [
        "table \"public\".\"t\": column \"c\" is integer on the source and bigint on the target",
        "table \"public\".\"t\": column \"gone\" is missing on the target",
        "column \"must\" is on the target only, and is NOT NULL without a default",
        "column \"n\" is numeric(8,2) on the source and numeric on the target",
        "column \"d\" is with a default on the source and without a default on the target",
        "column \"more\" is on the target only",
    ];
    ensure_refused(&replication, &[], &said).await?;
    assert_eq!(objects_of_c(&replication.chain).await?, before);

    let mend = "ALTER TABLE t ALTER c TYPE int, DROP must, ADD gone text";
    replication.chain.c.sql(DATABASE, mend).await?;
    let output = schema(&replication, &[]).await?;
    ensure!(output.code == Some(0), "ended with {:?}: {}", output.code, output.stderr);
    ensure!(output.stderr.contains(said[3]) && !output.stderr.contains(said[0]), "{}", output.stderr);
    assert_eq!(replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM fresh").await?, "0");

    // Setup only warns of a type.
    replication.chain.c.sql(DATABASE, "ALTER TABLE t ALTER c TYPE bigint").await?;
    let setup = replication.command(&["setup"]).await?;
    ensure!(setup.code == Some(0) && setup.stderr.contains(said[0]), "{:?}: {}", setup.code, setup.stderr);
    Ok(())
}

#[tokio::test]
async fn what_the_target_refuses_is_named_and_nothing_of_it_stays() -> Result<()> {
    let replication = start(ChainOptions::default()).await?;
    // In the way of a table's row type, which is not looked for by itself.
    let c = &replication.chain.c;
    c.sql(DATABASE, "CREATE SCHEMA shop; CREATE TYPE shop.keyless AS (a int)").await?;
    let before = objects_of_c(&replication.chain).await?;
    let output = schema(&replication, &[]).await?;
    ensure!(output.code != Some(0), "it went through: {}", output.stdout);
    ensure!(output.stderr.contains("keyless"), "{}", output.stderr);
    assert_eq!(objects_of_c(&replication.chain).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_target_that_is_partitioned_otherwise_keeps_its_partitions() -> Result<()> {
    let replication = start(ChainOptions::default()).await?;
    let on_c = "CREATE SCHEMA shop; CREATE TYPE shop.mood AS ENUM ('sad', 'it''s ok');
                CREATE TABLE shop.log (id int NOT NULL, day date NOT NULL, region text NOT NULL, moods shop.mood[])
                    PARTITION BY HASH (id);
                CREATE TABLE shop.log_all PARTITION OF shop.log FOR VALUES WITH (MODULUS 1, REMAINDER 0)";
    replication.chain.c.sql(DATABASE, on_c).await?;
    let items = items(&replication, &[]).await?;
    for object in
        ["table shop.log_1", "table shop.log_1_eu", "index shop.log_region", "table constraint log_pkey on shop.log"]
    {
        let state = items.iter().find(|(one, _)| one == object).map(|(_, state)| state.as_str());
        assert_eq!(state, Some("left_outthe table is partitioned otherwise on the target"), "{object}");
    }
    replication.setup().await?;
    replication.catch_up().await?;
    replication.assert_same(&TABLES).await
}

#[tokio::test]
async fn a_role_that_may_read_the_selected_tables_alone() -> Result<()> {
    let replication = start(ChainOptions::default()).await?;
    let Chain { a, b, c, .. } = &replication.chain;
    let grants = "CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA shop, \"Odd \"\"S\"\"\" TO reader;
        GRANT SELECT ON ALL TABLES IN SCHEMA shop, \"Odd \"\"S\"\"\" TO reader; REVOKE SELECT ON shop.unselected FROM reader";
    a.sql(DATABASE, grants).await?;
    replication.chain.wait_b_caught_up().await?;
    let source = b.dsn(DATABASE).replace("user=postgres", "user=reader");
    c.sql(DATABASE, "CREATE ROLE maker LOGIN; GRANT CREATE ON DATABASE app TO maker").await?;
    let target = c.dsn(DATABASE).replace("user=postgres", "user=maker");
    replication.configure_servers(&source, None, &target, CONFIG)?;
    make(&replication, &[]).await?;
    ensure_same_definitions(&replication.chain).await?;
    a.sql(DATABASE, "REVOKE SELECT ON shop.log_1_eu FROM reader").await?;
    replication.chain.wait_b_caught_up().await?;
    ensure_refused(&replication, &[], &["may not read shop.log_1_eu", "GRANT"]).await
}

#[tokio::test]
async fn without_pg_dump_it_says_what_is_missing() -> Result<()> {
    let replication = Replication::start_differing(ChainOptions::default(), "CREATE TABLE t (id int)", "").await?;
    let empty = tempfile::TempDir::new()?;
    let directory = empty.path().to_str().context("a path in UTF-8")?;
    let config = replication.config();
    let run = async |environment: &[(&str, &str)]| {
        let engine = pgsluice_testkit::Engine::spawn_env(
            crate::replication::ENGINE.as_ref(),
            &config,
            &["schema"],
            environment,
        )?;
        let status = engine.wait(crate::replication::DEADLINE).await?;
        ensure!(status.code() == Some(3), "ended with {status}: {}", engine.stderr());
        Ok(engine.stderr())
    };
    let said = run(&[("PATH", directory), ("PGSLUICE_PG_BIN", directory)]).await?;
    let major = replication.chain.b.install().major;
    for text in
        [&format!("no pg_dump with a pg_restore in {directory}"), &format!("postgresql-client-{major}"), "--pg-bin"]
    {
        ensure!(said.contains(text), "does not say \"{text}\":\n{said}");
    }
    if let Some(old) = Install::try_find(16).filter(|old| old.major < major) {
        let directory = old.bin_dir.to_str().context("a path in UTF-8")?;
        let said = run(&[("PGSLUICE_PG_BIN", directory)]).await?;
        ensure!(
            said.contains(&format!("pg_dump is older than the source, which is PostgreSQL {major}: version 16")),
            "{said}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_newer_source_and_an_older_target_and_the_other_way_round() -> Result<()> {
    for (source, target) in [(18, 16), (16, 18)] {
        if Install::try_find(source).is_none() || Install::try_find(target).is_none() {
            continue;
        }
        let replication = start(ChainOptions::default().major_ab(source).major_c(target)).await?;
        make(&replication, &[]).await?;
        ensure_same_definitions(&replication.chain).await?;
        replication.setup().await?;
        replication.catch_up().await?;
        replication.assert_same(&TABLES).await?;
        if source == 18 {
            let virtual_column = "CREATE TABLE shop.computed (a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL);
                                  CREATE TABLE shop.another (a int)";
            replication.chain.a.sql(DATABASE, virtual_column).await?;
            replication.chain.wait_b_caught_up().await?;
            let output = schema(&replication, &[]).await?;
            ensure!(output.code == Some(1), "ended with {:?}: {}", output.code, output.stderr);
            ensure!(
                output.stderr.contains("the target refuses table shop.computed: syntax error"),
                "{}",
                output.stderr
            );
            let made = "SELECT to_regclass('shop.another') IS NULL";
            assert_eq!(replication.chain.c.scalar(DATABASE, made).await?, "t");
        }
    }
    Ok(())
}

/// Where the servers have an extension to make.
#[tokio::test]
async fn an_extension_stands_for_its_members() -> Result<()> {
    let replication =
        Replication::start_differing(ChainOptions::default(), "CREATE TABLE t (id int PRIMARY KEY)", "").await?;
    let available = "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'";
    if replication.chain.a.scalar(DATABASE, available).await? == "0" {
        return Ok(());
    }
    let ddl = "CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions;
               CREATE TABLE v (id int PRIMARY KEY, v extensions.vector(3));
               CREATE INDEX ON v USING hnsw (v extensions.vector_l2_ops)";
    replication.chain.a.sql(DATABASE, ddl).await?;
    replication.chain.wait_b_caught_up().await?;
    let items = items(&replication, &[]).await?;
    let objects: Vec<_> = items.iter().map(|(object, _)| object.as_str()).collect();
    let expected = [
        "schema extensions",
        "extension vector",
        "table public.t",
        "table public.v",
        "table constraint t_pkey on public.t",
        "table constraint v_pkey on public.v",
        "index public.v_v_idx",
    ];
    assert_eq!(objects, expected);
    Ok(())
}
