//! Rows of every shape, changed in every way.

use anyhow::Result;
use pgsluice_testkit::{ChainOptions, Install};

use crate::bad_input::ensure_refused;
use crate::replication::{DATABASE, Replication};

#[tokio::test]
async fn inserts_updates_and_deletes_by_primary_key() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, note text)").await?;
    replication.setup().await?;
    replication
        .replicate(
            "INSERT INTO t SELECT n, 'note ' || n FROM generate_series(1, 100) n; \
             UPDATE t SET note = note || '!' WHERE id % 3 = 0; DELETE FROM t WHERE id % 10 = 0; \
             UPDATE t SET note = NULL WHERE id = 7; UPDATE t SET id = id + 1000 WHERE id < 5",
            &["public.t"],
        )
        .await
}

/// Under FULL the old row is known whole: a key of the target finds it, and without one all its columns do.
#[tokio::test]
async fn replica_identity_full_with_a_key_on_both_ends_on_one_and_on_none() -> Result<()> {
    let ddl = "\
        CREATE TABLE keyed (id int PRIMARY KEY, note text); ALTER TABLE keyed REPLICA IDENTITY FULL;
        CREATE TABLE keyless (n int, note text, at timestamptz); ALTER TABLE keyless REPLICA IDENTITY FULL;
        CREATE TABLE half (id int NOT NULL, note text); ALTER TABLE half REPLICA IDENTITY FULL;";
    let on_c = "ALTER TABLE half ADD PRIMARY KEY (id)";
    let replication = Replication::start_differing(ChainOptions::default(), ddl, &format!("{ddl}{on_c}")).await?;
    replication.setup().await?;
    let tables = ["public.keyed", "public.keyless", "public.half"];
    let rows = "\
        INSERT INTO keyed SELECT n, nullif('note ' || n, 'note 3') FROM generate_series(1, 20) n;
        INSERT INTO half SELECT * FROM keyed;
        INSERT INTO keyless SELECT n % 3, nullif('note ' || n % 2, 'note 1'), to_timestamp(n % 2)
            FROM generate_series(1, 30) n;
        INSERT INTO keyless VALUES (NULL, NULL, NULL), (NULL, NULL, NULL), (NULL, NULL, 'infinity')";
    replication.replicate(rows, &tables).await?;
    let changes = "\
        UPDATE keyed SET note = 'x' WHERE id % 2 = 0; DELETE FROM keyed WHERE id % 5 = 0; UPDATE keyed SET id = -id;
        UPDATE half SET note = NULL WHERE id % 2 = 0; DELETE FROM half WHERE id = 3; UPDATE half SET id = -id;
        UPDATE keyless SET note = 'one of several' WHERE ctid IN (SELECT min(ctid) FROM keyless GROUP BY n);
        DELETE FROM keyless WHERE ctid IN (SELECT max(ctid) FROM keyless GROUP BY n, note);
        UPDATE keyless SET n = 7 WHERE n IS NULL;
        UPDATE keyless SET note = note";
    replication.replicate(changes, &tables).await
}

/// Values that are equal and yet not the same: the row that is found is the one that is the same.
#[tokio::test]
async fn of_rows_that_are_equal_the_identical_one_is_changed() -> Result<()> {
    let ddl = "CREATE TABLE t (n numeric, i interval, f float8, j jsonb); ALTER TABLE t REPLICA IDENTITY FULL";
    let replication = Replication::start(ddl).await?;
    replication.setup().await?;
    let rows = "\
        INSERT INTO t (n) VALUES (1.0), (1.00), (1);
        INSERT INTO t (i) VALUES ('1 day'), ('24 hours');
        INSERT INTO t (f) VALUES (0), ('-0');
        INSERT INTO t (j) VALUES ('{\"a\": 1}'), ('{\"a\": 1.0}')";
    replication.replicate(rows, &["public.t"]).await?;
    let changes = "\
        DELETE FROM t WHERE n::text = '1'; UPDATE t SET f = 7 WHERE n::text = '1.00';
        DELETE FROM t WHERE i::text = '24:00:00';
        DELETE FROM t WHERE f::text = '-0';
        UPDATE t SET n = 9 WHERE j::text = '{\"a\": 1.0}'";
    replication.replicate(changes, &["public.t"]).await
}

#[tokio::test]
async fn replica_identity_of_an_index_and_of_nothing() -> Result<()> {
    let ddl = "\
        CREATE TABLE by_index (id int PRIMARY KEY, a int NOT NULL, b text NOT NULL, c text, d text);
        CREATE UNIQUE INDEX by_index_key ON by_index (b, a) INCLUDE (c);
        ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_key;
        CREATE TABLE nothing (id int, note text); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
        CREATE TABLE default_without_key (id int, note text);";
    let replication = Replication::start(ddl).await?;
    replication.setup().await?;
    let changes = "\
        INSERT INTO by_index SELECT n, n % 5, 'b' || n, 'c' || n, 'd' || n FROM generate_series(1, 20) n;
        INSERT INTO nothing SELECT n % 3, 'note' FROM generate_series(1, 10) n;
        INSERT INTO default_without_key SELECT n % 3, 'note' FROM generate_series(1, 10) n;
        UPDATE by_index SET c = NULL WHERE id % 2 = 0; UPDATE by_index SET d = 'new', id = id + 100 WHERE id % 3 = 0;
        UPDATE by_index SET a = a + 10 WHERE id % 4 = 0; UPDATE by_index SET b = b || '!' WHERE id % 5 = 0;
        DELETE FROM by_index WHERE id % 7 = 0";
    let tables = ["public.by_index", "public.nothing", "public.default_without_key"];
    replication.replicate(changes, &tables).await?;
    // In mid-stream, each way.
    let further = "\
        ALTER TABLE by_index REPLICA IDENTITY DEFAULT; UPDATE by_index SET c = 'by key';
        ALTER TABLE by_index REPLICA IDENTITY FULL; UPDATE by_index SET c = 'by row', id = id + 1000;
        ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_key; UPDATE by_index SET id = id + 1000;
        ALTER TABLE nothing REPLICA IDENTITY FULL; UPDATE nothing SET note = 'x' WHERE id = 1;
        DELETE FROM nothing WHERE id = 2;
        ALTER TABLE nothing REPLICA IDENTITY NOTHING; INSERT INTO nothing VALUES (9, 'y')";
    replication.replicate(further, &tables).await
}

#[tokio::test]
async fn columns_are_matched_by_name_and_further_ones_keep_their_values() -> Result<()> {
    let on_a = "\
        CREATE TABLE t (id int PRIMARY KEY, a text, b int, c date);
        CREATE TABLE nothing_in_it (); ALTER TABLE nothing_in_it REPLICA IDENTITY FULL";
    let on_c = "\
        CREATE TABLE t (extra text DEFAULT 'default', c date, more int DEFAULT 7, b int, id int PRIMARY KEY, a text);
        ALTER TABLE t DROP COLUMN more; ALTER TABLE t ADD COLUMN last int DEFAULT 8 NOT NULL;
        CREATE TABLE nothing_in_it (extra int DEFAULT 9)";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication.setup().await?;
    let tables = ["public.t", "public.nothing_in_it"];
    let rows = "\
        INSERT INTO t SELECT n, 'a' || n, n, date '2026-01-01' + n FROM generate_series(1, 10) n;
        INSERT INTO nothing_in_it DEFAULT VALUES; INSERT INTO nothing_in_it DEFAULT VALUES";
    replication.replicate(rows, &tables).await?;
    let c = &replication.chain.c;
    c.sql(DATABASE, "UPDATE t SET extra = 'kept ' || id, last = id").await?;
    let changes = "\
        UPDATE t SET a = 'new', c = NULL WHERE id < 8; UPDATE t SET id = id + 100 WHERE id < 4;
        DELETE FROM nothing_in_it WHERE ctid = (SELECT min(ctid) FROM nothing_in_it)";
    replication.replicate(changes, &tables).await?;
    assert_eq!(c.scalar(DATABASE, "SELECT count(*) FROM nothing_in_it WHERE extra = 9").await?, "1");
    let kept = "SELECT bool_and(extra = 'kept ' || id % 100 AND last = id % 100) FROM t";
    assert_eq!(c.scalar(DATABASE, kept).await?, "t");
    Ok(())
}

/// A row of nothing is a row: what counts is how many there are.
#[tokio::test]
async fn tables_without_columns_on_both_ends() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (); ALTER TABLE t REPLICA IDENTITY FULL").await?;
    replication.setup().await?;
    let c = &replication.chain.c;
    let steps = [
        ("INSERT INTO t SELECT FROM generate_series(1, 5)", "5"),
        ("DELETE FROM t WHERE ctid IN (SELECT ctid FROM t LIMIT 2)", "3"),
        ("TRUNCATE t; INSERT INTO t DEFAULT VALUES", "1"),
    ];
    for (change, rows) in steps {
        replication.replicate(change, &["public.t"]).await?;
        assert_eq!(c.scalar(DATABASE, "SELECT count(*) FROM t").await?, rows, "{change}");
    }
    Ok(())
}

/// Rows that are older than a column do not hold its value, nor lose that of one that is gone: PostgreSQL fills it in when it
/// sends the old row, and C finds its row by that.
#[tokio::test]
async fn rows_older_than_their_columns_are_found_under_full() -> Result<()> {
    let ddl = "\
        CREATE TABLE keyless (n int, gone text, note text); ALTER TABLE keyless REPLICA IDENTITY FULL;
        CREATE TABLE keyed (id int PRIMARY KEY, gone text, note text); ALTER TABLE keyed REPLICA IDENTITY FULL;";
    let rows = "\
        INSERT INTO keyless SELECT n % 4, 'gone', nullif('note ' || n % 2, 'note 1') FROM generate_series(1, 20) n;
        INSERT INTO keyed SELECT n, 'gone', nullif('note ' || n % 2, 'note 1') FROM generate_series(1, 20) n;";
    let replication = Replication::start(ddl).await?;
    replication.setup().await?;
    let tables = ["public.keyless", "public.keyed"];
    replication.replicate(rows, &tables).await?;
    let alters = [
        "ALTER TABLE {} ADD d int DEFAULT 5, ADD e text DEFAULT 'e', ADD f numeric",
        "ALTER TABLE {} DROP gone",
        "ALTER TABLE {} ALTER d DROP DEFAULT, DROP note",
    ];
    let changes = "\
        UPDATE keyless SET f = 1 WHERE ctid IN (SELECT min(ctid) FROM keyless GROUP BY n);
        DELETE FROM keyless WHERE ctid IN (SELECT max(ctid) FROM keyless GROUP BY n);
        INSERT INTO keyless (n) VALUES (9); UPDATE keyless SET d = NULL WHERE n = 9;
        UPDATE keyed SET f = 2 WHERE id % 5 = 0; DELETE FROM keyed WHERE id = (SELECT min(id) FROM keyed);
        UPDATE keyed SET id = -id WHERE id % 7 = 0";
    for alter in alters {
        for table in ["keyless", "keyed"] {
            let alter = alter.replace("{}", table);
            replication.chain.c.sql(DATABASE, &alter).await?;
            replication.chain.a.sql(DATABASE, &alter).await?;
        }
        replication.replicate(changes, &tables).await?;
    }
    // And the same where all of it comes at once.
    replication.chain.c.sql(DATABASE, "ALTER TABLE keyless ADD g int DEFAULT 7").await?;
    replication
        .run_each(
            "UPDATE keyless SET d = 8 WHERE n = 2; ALTER TABLE keyless ADD g int DEFAULT 7; UPDATE keyless SET d = 9 WHERE n = 2;
             DELETE FROM keyless WHERE n = 1; ALTER TABLE keyless DROP e; UPDATE keyless SET g = 1 WHERE n = 2;
             DELETE FROM keyless WHERE n = 9",
        )
        .await?;
    replication.catch_up().await?;
    replication.assert_same(&tables).await
}

#[tokio::test]
async fn keys_move_are_swapped_and_are_used_again() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, code text UNIQUE, note text)").await?;
    replication.setup().await?;
    let changes = "\
        INSERT INTO t SELECT n, 'code ' || n, 'note ' || n FROM generate_series(1, 10) n;
        BEGIN; UPDATE t SET id = 11 WHERE id = 10; UPDATE t SET id = 10 WHERE id = 9; UPDATE t SET id = 9 WHERE id = 11;
        UPDATE t SET note = 'moved twice' WHERE id = 9; COMMIT;
        BEGIN; UPDATE t SET code = 'between' WHERE id = 1; UPDATE t SET code = 'code 1' WHERE id = 2;
        UPDATE t SET code = 'code 2' WHERE id = 1; COMMIT;
        BEGIN; DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (3, 'code 3', 'again'); COMMIT;
        DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (4, 'code 4', 'in the next transaction');
        DELETE FROM t WHERE id = 5; INSERT INTO t VALUES (50, 'code 5', 'its code only');
        INSERT INTO t VALUES (60, 'short'); UPDATE t SET id = 61 WHERE id = 60; DELETE FROM t WHERE id = 61;
        UPDATE t SET note = note; UPDATE t SET id = id, code = code WHERE id < 5;
        UPDATE t SET id = id + 1000 WHERE id = 6; UPDATE t SET id = id - 1000 WHERE id = 1006";
    // Each in a transaction of its own but in one batch, and all in one transaction.
    replication.run_each(changes).await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await?;
    let in_one = changes.replace("BEGIN;", "").replace("COMMIT;", "");
    replication.replicate(&format!("TRUNCATE t; {in_one}"), &["public.t"]).await
}

/// A deferrable constraint is checked at the end of the statement, or of the transaction; row by row it does not hold.
#[tokio::test]
async fn deferrable_constraints_hold_where_they_held_on_the_source() -> Result<()> {
    let ddl = "\
        CREATE TABLE parent (id int PRIMARY KEY, place int UNIQUE DEFERRABLE);
        CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent DEFERRABLE)";
    let replication = Replication::start(ddl).await?;
    // A role whose constraints are not turned off by session_replication_role.
    replication.configure_unprivileged_target("").await?;
    replication.setup().await?;
    replication
        .replicate(
            "INSERT INTO parent VALUES (1, 1), (2, 2), (3, 3); UPDATE parent SET place = 4 - place;
             BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO child VALUES (1, 9); INSERT INTO parent VALUES (9, 9); COMMIT;
             BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE parent SET place = 1 WHERE id = 1;
             UPDATE parent SET place = 3 WHERE id = 3; COMMIT",
            &["public.parent", "public.child"],
        )
        .await
}

#[tokio::test]
async fn generated_columns_are_computed_by_whoever_has_them() -> Result<()> {
    let on_a = "\
        CREATE TABLE both_ends (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
        CREATE TABLE on_target (id int PRIMARY KEY, n int, twice int);
        CREATE TABLE on_source (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
        CREATE TABLE whole (n int, more int); ALTER TABLE whole REPLICA IDENTITY FULL;";
    let on_c = "\
        CREATE TABLE both_ends (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
        CREATE TABLE on_target (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (n * 2) STORED, n int);
        CREATE TABLE on_source (id int PRIMARY KEY, n int, twice int DEFAULT 5);
        CREATE TABLE whole (more int GENERATED ALWAYS AS (n * 3) STORED, n int);";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    // That C computes what A has otherwise has to be meant.
    let said = "is generated on the target and not on the source, whose values would be left out";
    ensure_refused(&replication, &["setup"], 3, &["\"on_target\": column \"twice\"", said]).await?;
    replication.configure(
        "[[rule]]\ntable = 'public.on_target'\ndrop_columns = 'twice'\n[[rule]]\ntable = 'public.whole'\ndrop_columns = 'more'\n",
    )?;
    replication.setup().await?;
    let changes = "\
        INSERT INTO both_ends SELECT n, n FROM generate_series(1, 9) n; UPDATE both_ends SET n = n + 1 WHERE id > 5;
        INSERT INTO on_target SELECT n, n, n * 2 FROM generate_series(1, 9) n;
        UPDATE on_target SET n = n + 1, twice = n * 2 + 2 WHERE id > 5;
        UPDATE on_target SET twice = twice WHERE id = 1; UPDATE on_target SET id = 100 WHERE id = 2;
        INSERT INTO on_source SELECT n, n FROM generate_series(1, 9) n; UPDATE on_source SET n = n + 1 WHERE id > 5;
        INSERT INTO whole SELECT n, 8 FROM generate_series(1, 9) n;
        UPDATE whole SET n = 70 WHERE n = 7; DELETE FROM whole WHERE n = 3";
    replication.chain.a.sql(DATABASE, changes).await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.both_ends", "public.on_target"]).await?;
    let c = &replication.chain.c;
    assert_eq!(c.scalar(DATABASE, "SELECT sum(twice) FROM on_source").await?, "45");
    assert_eq!(c.scalar(DATABASE, "SELECT sum(n) || ' ' || sum(more) FROM whole").await?, "105 315");
    Ok(())
}

/// The same by a copy, with columns that are computed when they are read (18), and with a publication that sends what is stored.
#[tokio::test]
async fn generated_columns_are_copied_and_may_be_published() -> Result<()> {
    if Install::try_find(18).is_none() {
        println!("skipped: there is no PostgreSQL 18");
        return Ok(());
    }
    let on_a = "\
        CREATE TABLE on_target (id int PRIMARY KEY, n int, twice int);
        CREATE TABLE stored (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED, more int);
        CREATE TABLE plain_on_c (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED, more int);
        CREATE TABLE virtual (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) VIRTUAL, more int);
        CREATE TABLE virtual_on_c (id int PRIMARY KEY, n int, twice int);
        CREATE TABLE whole (n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
        ALTER TABLE whole REPLICA IDENTITY FULL;";
    let on_c = "\
        CREATE TABLE on_target (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (n * 2) STORED, n int);
        CREATE TABLE stored (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED, more int);
        CREATE TABLE plain_on_c (more int, twice int, id int PRIMARY KEY, n int);
        CREATE TABLE virtual (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) VIRTUAL, more int);
        CREATE TABLE virtual_on_c (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) VIRTUAL);
        CREATE TABLE whole (n int, twice int, v int GENERATED ALWAYS AS (n * 3) VIRTUAL);";
    let options = ChainOptions::default().major_ab(18).major_c(18);
    let replication = Replication::start_differing(options, on_a, on_c).await?;
    let tables = ["on_target", "stored", "plain_on_c", "virtual", "virtual_on_c", "whole"];
    let mut rows = String::new();
    for table in tables {
        rows += &match table {
            "whole" => "INSERT INTO whole SELECT n FROM generate_series(1, 9) n;".to_owned(),
            "on_target" | "virtual_on_c" => {
                format!("INSERT INTO {table} SELECT n, n, n * 2 FROM generate_series(1, 9) n;")
            }
            _ => format!("INSERT INTO {table} (id, n, more) SELECT n, n, -n FROM generate_series(1, 9) n;"),
        };
    }
    let publication = "CREATE PUBLICATION pgsluice_test FOR TABLES IN SCHEMA public \
                       WITH (publish_via_partition_root = true, publish_generated_columns = stored)";
    replication.chain.a.sql(DATABASE, &format!("{rows} {publication}")).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.configure(
        "[snapshot]\n[[rule]]\ntable = 'public.on_target'\ndrop_columns = 'twice'\n\
         [[rule]]\ntable = 'public.virtual_on_c'\ndrop_columns = 'twice'\n",
    )?;
    replication.setup().await?;
    replication.catch_up().await?;
    let names = tables.map(|table| format!("public.{table}"));
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    replication.assert_same(&names).await?;
    let changes = "\
        UPDATE on_target SET n = n + 1, twice = n * 2 + 2 WHERE id > 5; UPDATE stored SET n = n + 1 WHERE id > 5;
        UPDATE plain_on_c SET n = n + 1 WHERE id > 5; UPDATE plain_on_c SET more = 7 WHERE id = 2;
        UPDATE virtual SET n = n + 1 WHERE id > 5; UPDATE virtual_on_c SET n = n + 1, twice = twice + 2 WHERE id > 5;
        UPDATE whole SET n = 70 WHERE n = 7; DELETE FROM whole WHERE n = 3; DELETE FROM plain_on_c WHERE id = 4;
        INSERT INTO stored (id, n) VALUES (10, 10); INSERT INTO plain_on_c (id, n) VALUES (10, 10);
        INSERT INTO virtual (id, n) VALUES (10, 10); INSERT INTO whole VALUES (10)";
    replication.replicate(changes, &names).await
}

#[tokio::test]
async fn identity_columns_take_the_values_of_the_source() -> Result<()> {
    let on_a = "\
        CREATE TABLE always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text);
        CREATE TABLE by_default (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, note text);
        CREATE TABLE on_target (id int PRIMARY KEY, note text);
        CREATE TABLE whole (id int GENERATED ALWAYS AS IDENTITY, note text); ALTER TABLE whole REPLICA IDENTITY FULL;";
    let on_c = on_a.replace("on_target (id int", "on_target (id int GENERATED ALWAYS AS IDENTITY (START 500)");
    let replication = Replication::start_differing(ChainOptions::default(), on_a, &on_c).await?;
    replication.setup().await?;
    let tables = ["public.always", "public.by_default", "public.on_target", "public.whole"];
    let changes = "\
        INSERT INTO always (note) SELECT 'n' || n FROM generate_series(1, 9) n;
        INSERT INTO always OVERRIDING SYSTEM VALUE VALUES (-5, 'over');
        INSERT INTO by_default (note) SELECT note FROM always;
        INSERT INTO on_target SELECT * FROM always; INSERT INTO whole (note) SELECT note FROM always;
        UPDATE always SET note = 'new' WHERE id % 2 = 0; DELETE FROM always WHERE id = 3;
        UPDATE by_default SET id = id + 100 WHERE id < 3; UPDATE on_target SET note = NULL WHERE id > 6;
        UPDATE whole SET note = 'new' WHERE id % 2 = 0; DELETE FROM whole WHERE id = 5";
    replication.replicate(changes, &tables).await?;
    // The one thing that SQL offers no way to do: the engine says so, and how to mend it.
    let moves = "UPDATE always SET id = DEFAULT WHERE id = 4; UPDATE whole SET id = DEFAULT WHERE id = 1";
    let a = &replication.chain.a;
    a.sql(DATABASE, moves).await?;
    for table in ["always", "whole"] {
        let said = replication.halt().await?;
        let mend = format!("ALTER TABLE \"public\".\"{table}\" ALTER COLUMN \"id\" SET GENERATED BY DEFAULT");
        assert!(said.contains(&mend), "{said}");
        replication.chain.c.sql(DATABASE, &mend).await?;
    }
    replication.replicate("UPDATE on_target SET note = 'moved' WHERE id < 4", &tables).await
}

#[tokio::test]
async fn names_of_every_kind() -> Result<()> {
    let long = "n".repeat(63);
    let schema = r#""Größe ""x"" \'""#;
    let tables = [
        format!(r#"{schema}."select""#),
        format!(r#"{schema}."{long}""#),
        format!(r#"{schema}."表 $1 % ; --""#),
        r#"public."Mixed Case.with dot""#.to_owned(),
        r#"public."pg_x:=""""#.to_owned(),
    ];
    let mut ddl = format!("CREATE SCHEMA {schema};");
    let mut rows = String::new();
    let mut changes = String::new();
    for table in &tables {
        ddl += &format!(
            r#"CREATE TABLE {table} ("primary" int, "{long}" text, "Ü ""q"" '$1'" int, PRIMARY KEY ("primary"));"#
        );
        rows += &format!("INSERT INTO {table} SELECT n, 'n', n FROM generate_series(1, 9) n;");
        changes +=
            &format!(r#"UPDATE {table} SET "{long}" = 'x', "primary" = "primary" + 100 WHERE "Ü ""q"" '$1'" > 4;"#);
        changes += &format!(r#"DELETE FROM {table} WHERE "primary" = 2; TRUNCATE public."pg_x:=""";"#);
    }
    let replication = Replication::start(&ddl).await?;
    replication.configure("[tables]\ninclude = [\"public.*\", \"\\\"Größe \\\"\\\"x\\\"\\\" \\\\'\\\".*\"]\n")?;
    replication.setup().await?;
    let tables: Vec<_> = tables.iter().map(String::as_str).collect();
    replication.replicate(&rows, &tables).await?;
    replication.replicate(&changes, &tables).await
}
