//! Large values, which the source stores out of line and leaves out of updates that do not touch them.

use anyhow::Result;

use crate::replication::{DATABASE, Replication};

/// Values that do not compress below the limit from which on they are stored out of line.
const DDL: &str = "\
    CREATE FUNCTION big(seed int, n int DEFAULT 100) RETURNS text LANGUAGE sql IMMUTABLE
        AS $$ SELECT string_agg(md5(seed::text || i::text), '') FROM generate_series(1, n) i $$;
    CREATE TABLE t (id int PRIMARY KEY, small int, one text, two text, list text[], doc jsonb);
    ALTER TABLE t ALTER two SET STORAGE EXTERNAL;
    CREATE TABLE whole (id int, small int, one text, list text[]); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE whole_keyed (id int PRIMARY KEY, small int, one text); ALTER TABLE whole_keyed REPLICA IDENTITY FULL;
    CREATE TABLE key_is_large (id text PRIMARY KEY, small int, one text);
    ALTER TABLE key_is_large ALTER id SET STORAGE EXTERNAL;";

const TABLES: [&str; 4] = ["public.t", "public.whole", "public.whole_keyed", "public.key_is_large"];

const ROWS: &str = "\
    INSERT INTO t SELECT n, n, big(n), big(n + 100), ARRAY[big(n + 200), NULL, big(n + 300)], to_jsonb(big(n + 400))
        FROM generate_series(1, 20) n;
    INSERT INTO whole SELECT n / 2, n / 2, big(n / 2), ARRAY[big(n / 2)] FROM generate_series(1, 20) n;
    INSERT INTO whole_keyed SELECT n, n, big(n) FROM generate_series(1, 20) n;
    INSERT INTO key_is_large SELECT big(n, 70), n, big(n) FROM generate_series(1, 20) n;";

const CHANGES: &str = "\
    UPDATE t SET small = -small WHERE id < 12;
    UPDATE t SET one = 'short' WHERE id = 2; UPDATE t SET one = big(-3) WHERE id = 3;
    UPDATE t SET two = NULL, small = 0 WHERE id = 4; UPDATE t SET list[2] = 'x' WHERE id = 5;
    UPDATE t SET id = id + 100 WHERE id IN (6, 7); UPDATE t SET id = id + 100, two = big(-8) WHERE id = 8;
    BEGIN; UPDATE t SET small = 1 WHERE id = 9; UPDATE t SET one = big(-9) WHERE id = 9;
    UPDATE t SET small = 2 WHERE id = 9; UPDATE t SET id = 109 WHERE id = 9; COMMIT;
    BEGIN; INSERT INTO t SELECT 50, 50, big(50), big(51), ARRAY[big(52)]; UPDATE t SET small = 51 WHERE id = 50; COMMIT;
    DELETE FROM t WHERE id = 10;
    UPDATE whole SET small = -small; UPDATE whole SET small = 7 WHERE ctid IN (SELECT min(ctid) FROM whole GROUP BY id);
    UPDATE whole SET id = NULL WHERE id = 2; UPDATE whole SET one = NULL WHERE id = 3;
    DELETE FROM whole WHERE ctid IN (SELECT max(ctid) FROM whole GROUP BY id HAVING id > 5);
    UPDATE whole_keyed SET small = -small; UPDATE whole_keyed SET id = -id WHERE id < 9;
    DELETE FROM whole_keyed WHERE id > 18;
    UPDATE key_is_large SET small = -small; UPDATE key_is_large SET id = big(500, 71) WHERE small = -3;
    UPDATE key_is_large SET one = 'x' WHERE small = -4; DELETE FROM key_is_large WHERE small = -5;";

#[tokio::test]
async fn values_that_updates_leave_out_stay_as_they_were() -> Result<()> {
    let replication = Replication::start(DDL).await?;
    replication.setup().await?;
    // Change by change, and all in one transaction.
    replication.run_each(ROWS).await?;
    replication.run_each(CHANGES).await?;
    replication.catch_up().await?;
    replication.assert_same(&TABLES).await?;
    replication.replicate("TRUNCATE t, whole, whole_keyed, key_is_large", &TABLES).await?;
    replication.replicate(&format!("{ROWS}{CHANGES}").replace("BEGIN;", "").replace("COMMIT;", ""), &TABLES).await?;
    let out_of_line = "SELECT bool_and(pg_column_size(one) > 2000) FROM whole_keyed";
    assert_eq!(replication.chain.a.scalar(DATABASE, out_of_line).await?, "t");
    Ok(())
}
