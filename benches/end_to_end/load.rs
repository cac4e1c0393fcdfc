//! The loads, as SQL for A: tables, what is in them before, and the transactions that are drained.
//!
//! Whatever is there before is the same on A and on C without being copied, since it is computed from the key. What the
//! load itself writes may be random.

use std::fmt::Write;

/// Rows are counted in steps of this, so that every load comes to whole transactions.
pub const ROWS_STEP: u64 = 1_000;

const ACCOUNTS: u64 = 200_000;
const TELLERS: u64 = 50;
const BRANCHES: u64 = 5;
const HOT_ROWS: u64 = 100;

#[derive(Debug)]
pub struct Load {
    pub name: &'static str,
    pub description: &'static str,
    /// Against the better native, and against the ceiling where the goals name that.
    pub goal: f64,
    pub goal_of_ceiling: Option<f64>,
    pub tables: &'static [&'static str],
    /// On A and C.
    pub schema: &'static str,
    /// On C alone.
    pub schema_of_c: &'static str,
    /// Its tables are of two shards.
    pub is_divided: bool,
    /// Of the rows asked for, one in so many is enough: A takes longer for small transactions than anybody to drain them.
    share: u64,
    fill: fn(u64) -> String,
    transactions: fn(u64) -> String,
}

impl Load {
    /// What is changed, of the rows asked for.
    pub fn rows(&self, asked: u64) -> u64 {
        (asked / self.share / ROWS_STEP).max(1) * ROWS_STEP
    }

    /// Statements that fill the tables of a server.
    pub fn fill(&self, rows: u64) -> String {
        (self.fill)(rows)
    }

    /// One statement that makes all transactions on A.
    pub fn transactions(&self, rows: u64) -> String {
        (self.transactions)(rows)
    }
}

const NARROW: &str =
    "CREATE TABLE narrow (id bigint PRIMARY KEY, n int, note text, amount numeric, at timestamptz, tag uuid)";

pub const LOADS: [Load; 9] = [
    Load {
        name: "inserts",
        description: "inserts of 6 columns, 1,000 a transaction",
        goal: 1.2,
        goal_of_ceiling: Some(0.95),
        tables: &["public.narrow"],
        schema: NARROW,
        schema_of_c: "",
        is_divided: false,
        share: 1,
        fill: |_| String::new(),
        transactions: |rows| batches(rows / 1_000, &insert("i * 1000 + 1", "i * 1000 + 1000")),
    },
    Load {
        name: "indexed-inserts",
        description: "the same with 3 more indexes on C",
        goal: 1.4,
        goal_of_ceiling: None,
        tables: &["public.narrow"],
        schema: NARROW,
        schema_of_c: "CREATE INDEX ON narrow (n); CREATE INDEX ON narrow (at); CREATE INDEX ON narrow (tag)",
        is_divided: false,
        share: 1,
        fill: |_| String::new(),
        transactions: |rows| batches(rows / 1_000, &insert("i * 1000 + 1", "i * 1000 + 1000")),
    },
    Load {
        name: "single-row",
        description: "transactions of 1 insert",
        goal: 2.2,
        goal_of_ceiling: None,
        tables: &["public.narrow"],
        schema: NARROW,
        schema_of_c: "",
        is_divided: false,
        share: 2,
        fill: |_| String::new(),
        transactions: |rows| batches(rows, &insert("i", "i")),
    },
    Load {
        name: "updates",
        description: "updates by key, 1,000 a transaction",
        goal: 1.5,
        goal_of_ceiling: None,
        tables: &["public.narrow"],
        schema: NARROW,
        schema_of_c: "",
        is_divided: false,
        share: 1,
        fill: |rows| insert("1", &rows.to_string()),
        transactions: |rows| {
            batches(
                rows / 1_000,
                "UPDATE narrow SET n = n + 1, amount = amount + 1, note = repeat(md5(note), 2) \
                 WHERE id BETWEEN i * 1000 + 1 AND i * 1000 + 1000",
            )
        },
    },
    Load {
        name: "deletes",
        description: "deletes by key, 1,000 a transaction",
        goal: 1.6,
        goal_of_ceiling: None,
        tables: &["public.narrow"],
        schema: NARROW,
        schema_of_c: "",
        is_divided: false,
        share: 1,
        // Some rows stay, to be compared.
        fill: |rows| insert("1", &(rows + ROWS_STEP).to_string()),
        transactions: |rows| {
            batches(rows / 1_000, "DELETE FROM narrow WHERE id BETWEEN i * 1000 + 1 AND i * 1000 + 1000")
        },
    },
    Load {
        name: "tpcb",
        description: "pgbench's TPC-B, 3 updates and 1 insert a transaction",
        goal: 1.7,
        goal_of_ceiling: None,
        tables: &["public.accounts", "public.tellers", "public.branches", "public.history"],
        schema: "CREATE TABLE branches (bid int PRIMARY KEY, bbalance int, filler char(88)); \
                 CREATE TABLE tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84)); \
                 CREATE TABLE accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84)); \
                 CREATE TABLE history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22))",
        schema_of_c: "",
        is_divided: false,
        share: 2,
        fill: |_| {
            format!(
                "INSERT INTO branches SELECT g, 0, '' FROM generate_series(1, {BRANCHES}) g; \
                 INSERT INTO tellers SELECT g, 1 + g % {BRANCHES}, 0, '' FROM generate_series(1, {TELLERS}) g; \
                 INSERT INTO accounts SELECT g, 1 + g % {BRANCHES}, 0, '' FROM generate_series(1, {ACCOUNTS}) g"
            )
        },
        transactions: tpcb,
    },
    Load {
        name: "hot-rows",
        description: "updates of the same 100 rows, 10 of each a transaction",
        goal: 3.0,
        goal_of_ceiling: None,
        tables: &["public.narrow"],
        schema: NARROW,
        schema_of_c: "",
        is_divided: false,
        share: 1,
        fill: |_| insert("1", &HOT_ROWS.to_string()),
        transactions: |rows| {
            batches(rows / 1_000, "FOR k IN 1..10 LOOP UPDATE narrow SET n = n + 1, amount = amount + 1; END LOOP")
        },
    },
    Load {
        name: "one-transaction",
        description: "one transaction of inserts",
        goal: 1.3,
        goal_of_ceiling: None,
        tables: &["public.narrow"],
        schema: NARROW,
        schema_of_c: "",
        is_divided: false,
        share: 1,
        fill: |_| String::new(),
        transactions: |rows| insert("1", &rows.to_string()),
    },
    Load {
        name: "two-tables",
        description: "inserts into two tables, 1,000 a transaction, 3 more indexes on C",
        goal: 1.4,
        goal_of_ceiling: None,
        tables: &["public.narrow", "public.beside"],
        schema: "CREATE TABLE narrow (id bigint PRIMARY KEY, n int, note text, amount numeric, at timestamptz, tag uuid); \
                 CREATE TABLE beside (LIKE narrow INCLUDING ALL)",
        schema_of_c: "CREATE INDEX ON narrow (n); CREATE INDEX ON narrow (at); CREATE INDEX ON narrow (tag); \
                      CREATE INDEX ON beside (n); CREATE INDEX ON beside (at); CREATE INDEX ON beside (tag)",
        is_divided: true,
        share: 1,
        fill: |_| String::new(),
        transactions: |rows| {
            let first = insert("i * 1000 + 1", "i * 1000 + 500");
            let second = insert("i * 1000 + 501", "i * 1000 + 1000").replace("INTO narrow", "INTO beside");
            batches(rows / 1_000, &format!("{first}; {second}"))
        },
    },
];

/// Rows of keys from `first` to `last`.
fn insert(first: &str, last: &str) -> String {
    format!(
        "INSERT INTO narrow SELECT g, (g % 1000)::int, repeat(md5(g::text), 2), g * 1.01, \
         timestamptz '2026-01-01 00:00:00Z' + g * interval '1 ms', md5('tag' || g)::uuid \
         FROM generate_series({first}, {last}) g"
    )
}

/// A transaction of `statement` for each `i`.
fn batches(count: u64, statement: &str) -> String {
    format!("DO $$ BEGIN FOR i IN 0..{} LOOP {statement}; COMMIT; END LOOP; END $$", count - 1)
}

fn tpcb(rows: u64) -> String {
    let mut body = String::from("DO $$ DECLARE a int; t int; b int; d int; BEGIN FOR i IN 1..");
    write!(body, "{} LOOP ", rows / 4).expect("a string takes all");
    for (name, count) in [("a", ACCOUNTS), ("t", TELLERS), ("b", BRANCHES)] {
        write!(body, "{name} := 1 + floor(random() * {count}); ").expect("a string takes all");
    }
    body + "d := floor(random() * 10001) - 5000; \
            UPDATE accounts SET abalance = abalance + d WHERE aid = a; \
            UPDATE tellers SET tbalance = tbalance + d WHERE tid = t; \
            UPDATE branches SET bbalance = bbalance + d WHERE bid = b; \
            INSERT INTO history (tid, bid, aid, delta, mtime) VALUES (t, b, a, d, clock_timestamp()); \
            COMMIT; END LOOP; END $$"
}
