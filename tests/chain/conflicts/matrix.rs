//! Every policy, every operation, every outcome, in every mode, as transactions of their own and within one.

use anyhow::{Context, Result};

use super::{CANARY, column, counts, exceptions};
use crate::mode::Mode;
use crate::replication::{DATABASE, Replication};

/// On A and C.
const TABLE: &str = "\
    CREATE TABLE TABLE_NAME (id int PRIMARY KEY, note text, n int CONSTRAINT TABLE_NAME_n UNIQUE, big text);
    ALTER TABLE TABLE_NAME ALTER big SET STORAGE EXTERNAL;";

/// On C alone.
const MORE_ON_C: &str = "\
    ALTER TABLE TABLE_NAME ADD own text DEFAULT 'default', ADD CONSTRAINT TABLE_NAME_small CHECK (n < 1000);";

/// Rows 3 and 5 have a value that is stored outside of them.
const ROWS: &str = "\
    INSERT INTO TABLE_NAME SELECT i, 'canary-4711 ' || i, i, CASE WHEN i IN (3, 5) THEN repeat('x', 3000) END
    FROM generate_series(1, 9) i;";

/// What stands in the way on C.
const OBSTACLES: &str = "\
    UPDATE TABLE_NAME SET own = 'of C';
    DELETE FROM TABLE_NAME WHERE id IN (1, 2, 5, 7);
    INSERT INTO TABLE_NAME (id, note, n, own) VALUES (20, 'theirs', 520, 'of C'), (21, 'theirs', 521, 'theirs'),
        (23, 'theirs', 523, 'theirs'), (24, 'theirs', 524, 'theirs'), (96, 'theirs', 24, 'theirs'),
        (97, 'theirs', 606, 'theirs'), (98, 'theirs', 22, 'theirs');";

/// On A, each of which conflicts, with others between that do not.
const CHANGES: [&str; 14] = [
    "INSERT INTO TABLE_NAME SELECT i, 'passes', 100000 - i FROM generate_series(99101, 99140) i",
    "UPDATE TABLE_NAME SET note = 'canary-4711 missing' WHERE id = 1",
    "DELETE FROM TABLE_NAME WHERE id = 2",
    "UPDATE TABLE_NAME SET id = 21, note = 'canary-4711 moved' WHERE id = 3",
    "UPDATE TABLE_NAME SET note = 'canary-4711 large', n = 2000 WHERE id = 4",
    "UPDATE TABLE_NAME SET note = 'canary-4711 in part' WHERE id = 5",
    "UPDATE TABLE_NAME SET n = 606 WHERE id = 6",
    "UPDATE TABLE_NAME SET id = 23, note = 'canary-4711 both' WHERE id = 7",
    "UPDATE TABLE_NAME SET note = 'passes' WHERE id = 8",
    "INSERT INTO TABLE_NAME VALUES (20, 'canary-4711 key', 20)",
    "INSERT INTO TABLE_NAME VALUES (22, 'canary-4711 other', 22)",
    "INSERT INTO TABLE_NAME VALUES (24, 'canary-4711 two', 24)",
    "DELETE FROM TABLE_NAME WHERE id = 9",
    "UPDATE TABLE_NAME SET note = 'canary-4711 twice' WHERE id = 20",
];

/// A policy, and what C comes to by it.
struct Outcome {
    table: &'static str,
    policy: &'static str,
    /// Key, note, n, length of `big`, and what C alone has.
    rows: &'static str,
    exceptions: &'static [&'static str],
    counts: &'static str,
}

const THEIRS: &str = "96:theirs:24::theirs 97:theirs:606::theirs 98:theirs:22::theirs";

const OUTCOMES: [Outcome; 3] = [
    Outcome {
        table: "taken",
        policy: "on_duplicate = 'overwrite'\non_missing_row = 'insert'\non_error = 'exceptions'",
        rows: "1:canary-4711 missing:1::default 4:canary-4711 4:4::of C 6:canary-4711 6:6::of C 8:passes:8::of C \
               20:canary-4711 twice:20::of C 21:canary-4711 moved:3:3000:of C 23:canary-4711 both:7::theirs \
               24:theirs:524::theirs",
        exceptions: &[
            "UPDATE id 23514 taken_small",
            "UPDATE id -",
            "UPDATE id 23505 taken_n",
            "INSERT id 23505 taken_n",
            "INSERT id 23505 taken_n",
        ],
        counts: "3 0 1 1 5",
    },
    Outcome {
        table: "kept",
        policy: "on_duplicate = 'keep'\non_missing_row = 'skip'\non_error = 'exceptions'",
        rows: "3:canary-4711 3:3:3000:of C 4:canary-4711 4:4::of C 6:canary-4711 6:6::of C 8:passes:8::of C \
               20:canary-4711 twice:20::of C 21:theirs:521::theirs 23:theirs:523::theirs 24:theirs:524::theirs",
        exceptions: &["UPDATE id 23514 kept_small"],
        counts: "0 5 0 4 1",
    },
    Outcome {
        table: "aside",
        policy: "on_error = 'exceptions'",
        rows: "3:canary-4711 3:3:3000:of C 4:canary-4711 4:4::of C 6:canary-4711 6:6::of C 8:passes:8::of C \
               20:canary-4711 twice:20::of C 21:theirs:521::theirs 23:theirs:523::theirs 24:theirs:524::theirs",
        exceptions: &[
            "UPDATE id -",
            "DELETE id -",
            "UPDATE id 23505 aside_pkey",
            "UPDATE id 23514 aside_small",
            "UPDATE id -",
            "UPDATE id 23505 aside_n",
            "UPDATE id -",
            "INSERT id 23505 aside_pkey",
            "INSERT id 23505 aside_n",
            "INSERT id 23505 aside_pkey",
        ],
        counts: "0 0 0 0 10",
    },
];

/// How the changes of A are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Division {
    /// Each is a transaction.
    Apart,
    /// They are one transaction, which is many batches.
    OneOfManyBatches,
}

#[tokio::test]
async fn every_conflict_comes_out_as_its_policy_has_it() -> Result<()> {
    let on_a: String = OUTCOMES.iter().map(|outcome| TABLE.replace("TABLE_NAME", outcome.table)).collect();
    let more: String = OUTCOMES.iter().map(|outcome| MORE_ON_C.replace("TABLE_NAME", outcome.table)).collect();
    let replication =
        Replication::start_differing(pgsluice_testkit::ChainOptions::default(), &on_a, &format!("{on_a}{more}"))
            .await?;
    replication.setup().await?;
    for (netting, binary) in [(true, true), (true, false), (false, true), (false, false)] {
        for division in [Division::Apart, Division::OneOfManyBatches] {
            let mode = Mode { netting, binary, synchronous_commit: false, streaming: true, workers: 2 };
            round(&replication, mode, division).await.with_context(|| format!("{mode:?}, {division:?}"))?;
        }
    }
    Ok(())
}

async fn round(replication: &Replication, mode: Mode, division: Division) -> Result<()> {
    let sections: String = OUTCOMES
        .iter()
        .map(|Outcome { table, policy, .. }| format!("[[conflict]]\ntable = 'public.{table}'\n{policy}\n"))
        .collect();
    let batch_rows = if division == Division::Apart { 10_000 } else { 2 };
    let mode = mode.configuration().replace("[apply]\n", &format!("[apply]\nbatch_rows = {batch_rows}\n"));
    replication.configure(&format!("{mode}{sections}"))?;
    let c = &replication.chain.c;
    c.sql(DATABASE, "DELETE FROM pgsluice.exceptions; DELETE FROM pgsluice.conflicts").await?;
    let of_all = |sql: &str| OUTCOMES.map(|outcome| sql.replace("TABLE_NAME", outcome.table)).join(";");
    replication.chain.a.sql(DATABASE, &of_all("TRUNCATE TABLE_NAME")).await?;
    replication.chain.a.sql(DATABASE, &of_all(ROWS)).await?;
    replication.catch_up().await?;
    c.sql(DATABASE, &of_all(OBSTACLES)).await?;

    let changes = CHANGES.map(&of_all).join(";");
    match division {
        Division::Apart => replication.run_each(&changes).await?,
        Division::OneOfManyBatches => replication.run_each(&format!("BEGIN; {changes}; COMMIT")).await?,
    }
    replication.catch_up().await?;
    for outcome in &OUTCOMES {
        check(replication, outcome).await.with_context(|| outcome.table)?;
    }
    Ok(())
}

async fn check(replication: &Replication, outcome: &Outcome) -> Result<()> {
    let Outcome { table, rows, exceptions: expected, counts: counted, .. } = outcome;
    let c = &replication.chain.c;
    let sql = format!(
        "SELECT string_agg(format('%s:%s:%s:%s:%s', id, note, n, length(big), own), ' ' ORDER BY id) FROM {table} \
         WHERE id < 1000"
    );
    assert_eq!(c.scalar(DATABASE, &sql).await?, format!("{rows} {THEIRS}"));
    let passed = format!("SELECT count(*) FROM {table} WHERE id > 1000 AND note = 'passes'");
    assert_eq!(c.scalar(DATABASE, &passed).await?, "40");
    assert_eq!(exceptions(c, table).await?, *expected);
    assert_eq!(counts(c, table).await?, *counted);
    let said = format!("SELECT e::text FROM pgsluice.exceptions e WHERE table_name = '{table}'");
    for exception in column(c, &said).await? {
        assert!(!exception.contains(CANARY), "{exception}");
    }
    Ok(())
}
