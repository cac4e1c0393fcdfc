//! `pgsluice schema` a second time, constraints that rows from before them do not pass, and tables that are published in part.

use anyhow::{Result, ensure};
use pgsluice_testkit::{ChainOptions, wait_for};

use crate::replication::{DATABASE, DEADLINE, Replication};
use crate::schema_copy::schema;
use crate::setup::ensure_said;

/// A base type, and every kind of object that can be made of one.
const TYPES: &str = r#"
    SET client_min_messages = error;
    CREATE SCHEMA "Odd S"; SET search_path = "Odd S";
    CREATE TYPE fixed;
    CREATE FUNCTION fixed_in(cstring) RETURNS fixed LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
    CREATE FUNCTION fixed_out(fixed) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out';
    CREATE TYPE fixed (INPUT = fixed_in, OUTPUT = fixed_out, LIKE = int4);
    CREATE FUNCTION lt(fixed, fixed) RETURNS boolean LANGUAGE internal IMMUTABLE STRICT AS 'int4lt';
    CREATE FUNCTION le(fixed, fixed) RETURNS boolean LANGUAGE internal IMMUTABLE STRICT AS 'int4le';
    CREATE FUNCTION eq(fixed, fixed) RETURNS boolean LANGUAGE internal IMMUTABLE STRICT AS 'int4eq';
    CREATE FUNCTION ge(fixed, fixed) RETURNS boolean LANGUAGE internal IMMUTABLE STRICT AS 'int4ge';
    CREATE FUNCTION gt(fixed, fixed) RETURNS boolean LANGUAGE internal IMMUTABLE STRICT AS 'int4gt';
    CREATE FUNCTION cmp(fixed, fixed) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS 'btint4cmp';
    CREATE OPERATOR < (FUNCTION = lt, LEFTARG = fixed, RIGHTARG = fixed);
    CREATE OPERATOR <= (FUNCTION = le, LEFTARG = fixed, RIGHTARG = fixed);
    CREATE OPERATOR = (FUNCTION = eq, LEFTARG = fixed, RIGHTARG = fixed, COMMUTATOR = OPERATOR(=), MERGES);
    CREATE OPERATOR >= (FUNCTION = ge, LEFTARG = fixed, RIGHTARG = fixed);
    CREATE OPERATOR > (FUNCTION = gt, LEFTARG = fixed, RIGHTARG = fixed);
    CREATE OPERATOR CLASS fixed_ops DEFAULT FOR TYPE fixed USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =,
        OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 cmp(fixed, fixed);
    CREATE TYPE span AS RANGE (subtype = fixed);
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE DOMAIN "some 'D'" AS fixed CHECK (VALUE > '0');
    CREATE TYPE pair AS (a fixed, b mood, c span);
    CREATE COLLATION bytes (provider = libc, locale = 'C');
    CREATE TEXT SEARCH CONFIGURATION words (COPY = pg_catalog.simple);
    CREATE FUNCTION plus(a int, VARIADIC b int[] DEFAULT '{}') RETURNS int LANGUAGE sql IMMUTABLE RETURN a + 1;
    CREATE TABLE t (id fixed PRIMARY KEY, s span, m mood, d "some 'D'", p pair, c text COLLATE bytes, l fixed[], n int,
        w tsvector GENERATED ALWAYS AS (to_tsvector('words', 'a')) STORED, CHECK (plus(n, 1) > 0));
    INSERT INTO t (id, m, d, p, l, n) VALUES ('1', 'ok', '2', ROW('1', 'sad', NULL), '{1,2}', 3);
"#;

#[tokio::test]
async fn schema_is_safe_to_run_again_with_types_of_every_kind() -> Result<()> {
    let replication = Replication::start_differing(ChainOptions::default(), TYPES, "").await?;
    replication.configure("[tables]\ninclude = [\"Odd*.*\"]\n[snapshot]\ncopy_data = true\n")?;
    let first = schema(&replication, &[]).await?;
    ensure_said(&first, 0, &[])?;
    ensure!(!first.stdout.contains("present"), "{}", first.stdout);
    for _ in 0..2 {
        let again = schema(&replication, &[]).await?;
        ensure_said(&again, 0, &[])?;
        ensure!(!again.stdout.contains("created"), "{}", again.stdout);
    }
    replication.setup().await?;
    replication.replicate("INSERT INTO \"Odd S\".t (id, n) VALUES ('7', 1)", &["\"Odd S\".t"]).await
}

const UNVALIDATED: &str = "\
    CREATE TABLE t (id int PRIMARY KEY, b int, v text);
    CREATE TABLE parts (id int PRIMARY KEY, b int) PARTITION BY RANGE (id);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10); CREATE TABLE parts_2 PARTITION OF parts DEFAULT;
    CREATE TABLE parent (id int PRIMARY KEY, b int); CREATE TABLE child (x int, PRIMARY KEY (id)) INHERITS (parent);
    CREATE TABLE refers (id int PRIMARY KEY, t int);
    CREATE DOMAIN positive AS int; CREATE TABLE of_domain (id int PRIMARY KEY, d positive);
    INSERT INTO t SELECT n, -n FROM generate_series(1, 9) n; INSERT INTO parts SELECT n, -n FROM generate_series(1, 20) n;
    INSERT INTO parent VALUES (1, -1); INSERT INTO child VALUES (2, -2, 0); INSERT INTO refers VALUES (1, 77);
    INSERT INTO of_domain VALUES (1, -1);
    ALTER TABLE t ADD CONSTRAINT t_b CHECK (b > 0) NOT VALID; COMMENT ON CONSTRAINT t_b ON t IS 'of t';
    ALTER TABLE parts ADD CONSTRAINT parts_b CHECK (b > 0) NOT VALID; ALTER TABLE parts_2 ADD CONSTRAINT two CHECK (b <> -20) NOT VALID;
    ALTER TABLE parent ADD CONSTRAINT parent_b CHECK (b > 0) NOT VALID;
    ALTER TABLE refers ADD CONSTRAINT refers_t FOREIGN KEY (t) REFERENCES t NOT VALID;
    ALTER DOMAIN positive ADD CONSTRAINT is_positive CHECK (VALUE > 0) NOT VALID;";
const CONSTRAINTS: &str = "\
    SELECT string_agg(concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated, \
        obj_description(oid, 'pg_constraint')), '; ' ORDER BY conrelid::regclass::text, conname) \
    FROM pg_constraint WHERE contype IN ('c', 'f') AND conrelid <> 0 AND connamespace = 'public'::regnamespace";
const TABLES: [&str; 6] =
    ["public.t", "public.parts", "public.parent", "public.child", "public.refers", "public.of_domain"];

/// As the README says: schema, setup, run; then again, killed meanwhile, and by resync.
#[tokio::test]
async fn constraints_that_are_not_valid_come_after_the_copy() -> Result<()> {
    let replication = Replication::start_differing(ChainOptions::default(), UNVALIDATED, "").await?;
    let [a, b, c] = replication.servers();
    let version: u32 = a.scalar(DATABASE, "SELECT current_setting('server_version_num')").await?.parse()?;
    if version >= 180_000 {
        a.sql(DATABASE, "ALTER TABLE t ADD CONSTRAINT t_v NOT NULL v NOT VALID").await?;
    }
    replication.configure("[snapshot]\ncopy_data = true\njobs = 1\n")?;
    let made = schema(&replication, &[]).await?;
    ensure_said(&made, 0, &[])?;
    let left_out = made.stdout.lines().filter(|line| line.contains("left out")).collect::<Vec<_>>().join("\n");
    ensure!(left_out.contains("is_positive") && left_out.contains("NOT VALID"), "{}", made.stdout);
    replication.setup().await?;
    let expected = b.scalar(DATABASE, CONSTRAINTS).await?;
    assert_eq!(c.scalar(DATABASE, CONSTRAINTS).await?, expected);

    // Amid a copy the engine dies: what was set aside is on record, and comes back with the next one.
    let waits = "CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS \
                     $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END $$; \
                 CREATE TRIGGER waits BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION waits(); \
                 ALTER TABLE t ENABLE ALWAYS TRIGGER waits";
    c.sql(DATABASE, waits).await?;
    let blocker = c.connect(DATABASE).await?;
    blocker.batch_execute("SELECT pg_advisory_lock(7)").await?;
    let engine = replication.spawn()?;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'";
    wait_for("the copy to wait", DEADLINE, || async { Ok((c.scalar(DATABASE, waiting).await? != "0").then_some(())) })
        .await?;
    ensure!(c.scalar(DATABASE, "SELECT count(*) FROM pgsluice.deferred").await? != "0", "nothing is on record");
    engine.sigkill().await?;
    blocker.batch_execute("SELECT pg_advisory_unlock(7)").await?;
    c.sql(DATABASE, "DROP TRIGGER waits ON t").await?;
    let is_whole = async |replication: &Replication| -> Result<()> {
        replication.assert_same(&TABLES).await?;
        assert_eq!(c.scalar(DATABASE, CONSTRAINTS).await?, expected);
        assert_eq!(c.scalar(DATABASE, "SELECT count(*) FROM pgsluice.deferred").await?, "0");
        Ok(())
    };
    replication.catch_up().await?;
    is_whole(&replication).await?;
    // Each is at work again.
    for insert in [
        "INSERT INTO t VALUES (100, -1, 'v')",
        "INSERT INTO parts VALUES (3000, -1)",
        "INSERT INTO child VALUES (100, -1)",
    ] {
        ensure!(c.sql(DATABASE, insert).await.is_err(), "C takes {insert}");
    }
    let changes = "UPDATE t SET b = 1, v = 'v' WHERE id < 4; DELETE FROM parts WHERE id % 2 = 0; INSERT INTO child VALUES (5, 5, 5)";
    replication.replicate(changes, &TABLES).await?;
    replication.succeed(&["resync", "--yes", "public.*"]).await?;
    replication.catch_up().await?;
    is_whole(&replication).await?;
    replication.succeed(&["resync", "--yes", "public.child"]).await?;
    replication.succeed(&["run", "--stop-at", "current", "--defer-indexes"]).await?;
    is_whole(&replication).await
}

#[tokio::test]
async fn what_a_publication_leaves_out_may_be_missing_on_the_target() -> Result<()> {
    let on_a =
        "CREATE TABLE t (id int PRIMARY KEY, a text, secret text NOT NULL); CREATE TABLE u (id int PRIMARY KEY, n int)";
    let on_c = "CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE u (id int PRIMARY KEY)";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    let [a, b, c] = replication.servers();
    let create =
        "CREATE PUBLICATION pgsluice_test FOR TABLE ONLY t (id, a), ONLY u WITH (publish_via_partition_root = true)";
    a.sql(DATABASE, create).await?;
    replication.configure("[snapshot]\ncopy_data = true\n")?;
    // What is published and missing is named, and nothing else.
    let output = replication.command(&["setup"]).await?;
    ensure_said(&output, 3, &["\"u\": column \"n\" is missing on the target"])?;
    ensure!(!output.stderr.contains("secret"), "{}", output.stderr);
    c.sql(DATABASE, "ALTER TABLE u ADD n int").await?;
    ensure_said(&schema(&replication, &[]).await?, 0, &[])?;
    replication.setup().await?;
    a.sql(DATABASE, "INSERT INTO t VALUES (1, 'a', 's'), (2, 'b', 's'); INSERT INTO u VALUES (1, 2)").await?;
    replication.catch_up().await?;
    a.sql(DATABASE, "UPDATE t SET a = 'c', secret = 't' WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (3, 'd', 's')").await?;
    replication.catch_up().await?;
    replication.chain.wait_b_caught_up().await?;
    let rows = "SELECT string_agg(id || a, ' ' ORDER BY id) FROM t";
    assert_eq!(c.scalar(DATABASE, rows).await?, b.scalar(DATABASE, rows).await?);
    replication.assert_same(&["public.u"]).await?;

    // A column that the source computes is sent where the publication says so, and then has to have a place.
    let version: u32 = a.scalar(DATABASE, "SELECT current_setting('server_version_num')").await?.parse()?;
    if version < 180_000 {
        eprintln!("skipped from here on: generated columns are published from PostgreSQL 18 on");
        return Ok(());
    }
    replication.succeed(&["teardown", "--yes"]).await?;
    a.sql(DATABASE, "ALTER TABLE t ADD g int GENERATED ALWAYS AS (id * 2) STORED").await?;
    a.sql(DATABASE, &create.replace("(id, a)", "(id, a, g)")).await?;
    let output = replication.command(&["setup"]).await?;
    ensure_said(&output, 3, &["\"t\": column \"g\" is missing on the target"])?;
    c.sql(DATABASE, "ALTER TABLE t ADD g int; TRUNCATE t, u").await?;
    replication.setup().await?;
    replication.catch_up().await?;
    let rows = "SELECT string_agg(id || a || g, ' ' ORDER BY id) FROM t";
    assert_eq!(c.scalar(DATABASE, rows).await?, b.scalar(DATABASE, rows).await?);
    Ok(())
}
