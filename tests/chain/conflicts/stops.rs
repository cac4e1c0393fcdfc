//! What stops whatever the policy, what a stop says, and policies that contradict each other.

use anyhow::{Result, ensure};
use pgsluice_testkit::ChainOptions;

use super::{CANARY, column, counts, exceptions};
use crate::bad_input::{ensure_refused, ensure_said};
use crate::replication::{DATABASE, Replication};

const ASIDE: &str = "[apply]\non_error = 'exceptions'\n";

#[tokio::test]
async fn what_is_not_of_a_row_stops_whatever_the_policy() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, note text)";
    let on_c = "CREATE TABLE t (id int, note text); CREATE INDEX ON t (id)";
    let replication = Replication::start_differing(ChainOptions::default(), ddl, on_c).await?;
    replication.configure(&format!("{ASIDE}on_missing_row = 'insert'\n"))?;
    replication.setup().await?;
    replication.replicate("INSERT INTO t SELECT i, 'note' FROM generate_series(1, 9) i", &["public.t"]).await?;
    let cases = [
        ("INSERT INTO t VALUES (1, 'again')", "UPDATE hit 2 rows", "DELETE FROM t WHERE note = 'again'"),
        ("ALTER TABLE t RENAME note TO noted", "has no column \"note\"", "ALTER TABLE t RENAME noted TO note"),
        (
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$; \
             CREATE TRIGGER refuse BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION refuse(); \
             ALTER TABLE t ENABLE ALWAYS TRIGGER refuse",
            "P0001",
            "DROP TRIGGER refuse ON t",
        ),
    ];
    let [a, _, c] = replication.servers();
    for (obstacle, named, mend) in cases {
        c.sql(DATABASE, obstacle).await?;
        a.sql(DATABASE, "UPDATE t SET note = note || '.' WHERE id = 1").await?;
        let said = replication.halt().await?;
        ensure!(said.contains(named), "{obstacle}: {said}");
        c.sql(DATABASE, mend).await?;
        replication.catch_up().await?;
        replication.assert_same(&["public.t"]).await?;
    }
    ensure!(exceptions(c, "t").await?.is_empty() && counts(c, "t").await? == "none");

    // What is said expressly counts more than what is said of all errors.
    c.sql(DATABASE, "CREATE UNIQUE INDEX t_key ON t (id); INSERT INTO t VALUES (20, 'theirs')").await?;
    replication.configure(&format!("{ASIDE}on_duplicate = 'stop'\non_missing_row = 'stop'\n"))?;
    a.sql(DATABASE, "INSERT INTO t VALUES (20, 'ours')").await?;
    ensure!(replication.halt().await?.contains("t_key"));
    c.sql(DATABASE, "DELETE FROM t WHERE id IN (2, 20)").await?;
    a.sql(DATABASE, "DELETE FROM t WHERE id = 2").await?;
    ensure!(replication.halt().await?.contains("DELETE hit 0 rows"));
    c.sql(DATABASE, "INSERT INTO t VALUES (2, 'note')").await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await
}

/// Many rows are counted together, and these counts must not make up for each other.
#[tokio::test]
async fn a_row_that_is_there_twice_does_not_stand_for_one_that_is_missing() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, note text)";
    let on_c =
        "CREATE TABLE t (id int, note text); CREATE INDEX ON t (id); CREATE UNIQUE INDEX ON t (id) WHERE id > 30";
    let replication = Replication::start_differing(ChainOptions::default(), ddl, on_c).await?;
    replication.setup().await?;
    replication.replicate("INSERT INTO t SELECT i, 'note' FROM generate_series(1, 40) i", &["public.t"]).await?;
    let [a, _, c] = replication.servers();
    for (change, said) in [("UPDATE t SET note = note || '.'", "UPDATE hit"), ("DELETE FROM t", "DELETE hit")] {
        c.sql(DATABASE, "DELETE FROM t WHERE id = 2; INSERT INTO t SELECT * FROM t WHERE id = 1").await?;
        a.sql(DATABASE, change).await?;
        let stop = replication.halt().await?;
        ensure!(stop.contains(said), "{change}: {stop}");
        c.sql(DATABASE, "DELETE FROM t WHERE ctid = (SELECT max(ctid) FROM t WHERE id = 1)").await?;
        c.sql(DATABASE, "INSERT INTO t SELECT 2, note FROM t WHERE id = 1").await?;
        replication.catch_up().await?;
        replication.assert_same(&["public.t"]).await?;
    }
    Ok(())
}

/// No row is deleted.
const HOLD: &str = "\
    CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
    CREATE TRIGGER hold BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION hold(); ALTER TABLE t ENABLE ALWAYS TRIGGER hold";

/// A stop keeps what was before it; in the midst of a large transaction with a policy too.
#[tokio::test]
async fn a_stop_within_a_large_transaction_leaves_nothing_of_it() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, note text)";
    let replication = Replication::start(ddl).await?;
    for netting in [true, false] {
        let mode = format!("[apply]\nbatch_rows = 5\nnetting = {netting}\non_duplicate = 'keep'\n");
        replication.configure(&mode)?;
        replication.setup().await?;
        let [a, _, c] = replication.servers();
        c.sql(DATABASE, "INSERT INTO t VALUES (20, 'theirs'), (50, 'theirs')").await?;
        let rows = "INSERT INTO t SELECT i, 'ours' FROM generate_series(1, 60) i";
        a.sql(DATABASE, &format!("BEGIN; {rows}; DELETE FROM t WHERE id = 60; INSERT INTO t VALUES (61); COMMIT"))
            .await?;
        c.sql(DATABASE, HOLD).await?;
        let said = replication.halt().await?;
        ensure!(said.contains("DELETE hit 0 rows"), "{said}");
        ensure!(c.scalar(DATABASE, "SELECT count(*) FROM t").await? == "2" && counts(c, "t").await? == "none");
        c.sql(DATABASE, "DROP TRIGGER hold ON t; DROP FUNCTION hold").await?;
        replication.catch_up().await?;
        let theirs = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM t WHERE note = 'theirs'";
        ensure!(c.scalar(DATABASE, theirs).await? == "20 50");
        ensure!(c.scalar(DATABASE, "SELECT count(*) FROM t").await? == "60" && counts(c, "t").await? == "0 2 0 0 0");
        c.sql(DATABASE, "DELETE FROM pgsluice.conflicts").await?;
        a.sql(DATABASE, "TRUNCATE t").await?;
        replication.catch_up().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_stop_says_what_it_is_about_and_what_to_do() -> Result<()> {
    let ddl = "CREATE TABLE t (id int, \"Part\" text, note text, PRIMARY KEY (id, \"Part\"))";
    let replication = Replication::start(ddl).await?;
    replication.setup().await?;
    let [a, _, c] = replication.servers();
    for format in ["text", "binary"] {
        replication.configure(&format!("[stream]\nformat = '{format}'\n"))?;
        c.sql(DATABASE, &format!("INSERT INTO t VALUES (4711, '{CANARY}', 'theirs')")).await?;
        a.sql(DATABASE, &format!("INSERT INTO t VALUES (4711, '{CANARY}', '{CANARY} ours')")).await?;
        let said = replication.halt().await?;
        for named in [
            "table \"public\".\"t\"",
            "SQLSTATE 23505",
            "constraint: t_pkey",
            "key: (\"id\", \"Part\") (at LSN ",
            "to mend it: see to the row on the target",
            "on_duplicate",
            "`pgsluice skip --lsn ",
        ] {
            ensure!(said.contains(named), "does not say {named}: {said}");
        }
        ensure!(!said.contains(CANARY), "{said}");
        let rows = "SELECT string_agg(note, ' ') FROM t";
        ensure!(c.scalar(DATABASE, rows).await? == "theirs", "C has changed");
        let output = replication.command(&["run", "--stop-at", "current", "--show-values"]).await?;
        let named = format!("key: (\"id\", \"Part\") = (4711, {CANARY}) (at LSN ");
        ensure!(output.code == Some(1) && output.stderr.contains(&named), "{}", output.stderr);
        c.sql(DATABASE, "DELETE FROM t").await?;
        replication.catch_up().await?;
        replication.assert_same(&["public.t"]).await?;

        c.sql(DATABASE, "DELETE FROM t").await?;
        a.sql(DATABASE, "DELETE FROM t").await?;
        let said = replication.halt().await?;
        ensure!(said.contains("DELETE hit 0 rows") && said.contains("key: (\"id\", \"Part\") (at LSN "), "{said}");
        ensure!(said.contains("on_missing_row") && !said.contains(CANARY), "{said}");
        c.sql(DATABASE, &format!("INSERT INTO t VALUES (4711, '{CANARY}')")).await?;
        replication.catch_up().await?;
        replication.assert_same(&["public.t"]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn values_are_recorded_where_they_are_asked_for() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, note text, at timestamptz, list int[])";
    let replication = Replication::start(ddl).await?;
    replication.configure(ASIDE)?;
    replication.setup().await?;
    let [a, _, c] = replication.servers();
    c.sql(DATABASE, "ALTER TABLE t ADD CONSTRAINT short CHECK (length(note) < 20)").await?;
    for format in ["text", "binary"] {
        replication.configure(&format!("{ASIDE}[stream]\nformat = '{format}'\n"))?;
        a.sql(DATABASE, "TRUNCATE t").await?;
        replication.catch_up().await?;
        c.sql(DATABASE, "DELETE FROM pgsluice.exceptions").await?;
        a.sql(
            DATABASE,
            "INSERT INTO t VALUES (1, 'one', '2020-02-03 04:05:06.7Z', '{1,NULL}'), (2, 'two', NULL, NULL)",
        )
        .await?;
        replication.catch_up().await?;
        let change = format!("UPDATE t SET note = '{CANARY} is far too long' WHERE id = 1");
        a.sql(DATABASE, &change).await?;
        a.sql(DATABASE, "UPDATE t SET id = 3, note = repeat('z', 30) WHERE id = 2").await?;
        let output = replication.command(&["run", "--stop-at", "current", "--show-values"]).await?;
        ensure!(output.code == Some(0), "{}", output.stderr);
        let recorded = column(
            c,
            "SELECT concat_ws(' | ', key_values, old_row, new_row, message LIKE '%(1, canary-4711%', \
                    xid > 0, commit_time > now() - interval '1 hour') FROM pgsluice.exceptions ORDER BY id",
        )
        .await?;
        let one = format!(
            "{{1}} | {{\"at\": \"2020-02-03 04:05:06.7+00\", \"id\": \"1\", \"list\": \"{{1,NULL}}\", \
             \"note\": \"{CANARY} is far too long\"}} | t | t | t"
        );
        let two = "{2} | {\"id\": \"2\"} | {\"at\": null, \"id\": \"3\", \"list\": null, \
                   \"note\": \"zzzzzzzzzzzzzzzzzzzzzzzzzzzzzz\"} | f | t | t";
        assert_eq!(recorded, [one.as_str(), two], "{format}");
    }
    Ok(())
}

#[tokio::test]
async fn policies_that_contradict_each_other_or_the_tables_are_refused() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE log (n int);
        ALTER TABLE log REPLICA IDENTITY FULL";
    let replication = Replication::start(ddl).await?;
    let section = |table: &str, policy: &str| format!("[[conflict]]\ntable = '{table}'\n{policy}\n");
    let refused = async |text: String, code, said: &[&str]| {
        replication.configure(&text)?;
        ensure_refused(&replication, &["setup"], code, said).await
    };
    let keep = section("public.*", "on_duplicate = 'keep'");
    let both = format!("{keep}{}", section("public.t", "on_duplicate = 'overwrite'"));
    let said = ["[[conflict]] of line 15: on_duplicate of \"public\".\"t\" is decided otherwise by that of line 12"];
    refused(both.clone(), 3, &said).await?;
    let misspelt = section("public.tt", "on_error = 'exceptions'");
    refused(misspelt, 3, &["line 12: no table that is replicated matches \"public.tt\""]).await?;
    let overwrite = section("public.*", "on_duplicate = 'overwrite'");
    let said = ["\"log\" on the target has no unique index of a key to find a row by", "to mend it"];
    refused(overwrite, 3, &said).await?;
    let soft = "[[rule]]\ntable = 'public.t'\nsoft_delete = true\nset = { gone = \"$op = 'D'\" }\n";
    replication.chain.c.sql(DATABASE, "ALTER TABLE t ADD gone boolean").await?;
    let said = ["on_duplicate = \"keep\" and soft_delete exclude each other for \"public\".\"t\""];
    refused(format!("{soft}{keep}"), 3, &said).await?;
    refused(section("public.t", "on_errors = 'stop'"), 2, &["unknown key `on_errors` in [conflict]", "`on_error`"])
        .await?;
    refused("[apply]\non_duplicate = 'skip'\n".to_owned(), 2, &["`stop`, `overwrite`, `keep`"]).await?;

    // The same at a start, before another engine is fenced.
    replication.configure("")?;
    replication.setup().await?;
    let epoch = "SELECT epoch FROM pgsluice.progress";
    let before = replication.chain.c.scalar(DATABASE, epoch).await?;
    replication.configure(&both)?;
    ensure_said(&replication.command(&["run"]).await?, 3, &["is decided otherwise"])?;
    ensure!(replication.chain.c.scalar(DATABASE, epoch).await? == before);

    // A default is for the tables that it fits.
    replication.configure("[apply]\non_duplicate = 'overwrite'\non_missing_row = 'insert'\n")?;
    replication.chain.c.sql(DATABASE, "INSERT INTO t VALUES (1, 'theirs')").await?;
    let rows = "INSERT INTO t VALUES (1, 'ours'); INSERT INTO log VALUES (1), (1)";
    replication.replicate(rows, &["public.t", "public.log"]).await
}
