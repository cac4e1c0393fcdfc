//! No value of a row is in what the engine says, whatever C says of it; and what the matter is, and where, is.

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Server};

use crate::replication::{DATABASE, Replication};

/// In every value of every row, as text and as a number.
const MARKS: [&str; 2] = ["m4rk", "4711"];

/// A row that A has and C does not take.
struct Case {
    table: &'static str,
    /// The type of its column `v` on A, and its value there.
    on_a: (&'static str, &'static str),
    /// The same column on C, and what else there is.
    on_c: (&'static str, &'static str),
    sqlstate: &'static str,
    /// What is said of it.
    said: &'static [&'static str],
    /// Not only where it is copied: the ladder's last step names it too.
    column: bool,
}

const fn case(
    table: &'static str,
    on_a: (&'static str, &'static str),
    on_c: (&'static str, &'static str),
    sqlstate: &'static str,
    said: &'static [&'static str],
) -> Case {
    Case { table, on_a, on_c, sqlstate, said, column: false }
}

/// The same where the column is known.
const fn of_column(
    table: &'static str,
    on_a: (&'static str, &'static str),
    on_c: (&'static str, &'static str),
    sqlstate: &'static str,
    said: &'static [&'static str],
) -> Case {
    Case { table, on_a, on_c, sqlstate, said, column: true }
}

const CASES: &[Case] = &[
    of_column("t_int", ("text", "'m4rk'"), ("int", ""), "22P02", &["invalid input syntax for type integer"]),
    of_column("t_range", ("bigint", "47114711471147"), ("int", ""), "22003", &["out of range for type integer"]),
    of_column(
        "t_long",
        ("text", "'m4rk 4711'"),
        ("varchar(3)", ""),
        "22001",
        &["too long for type character varying(3)"],
    ),
    of_column(
        "t_list",
        ("text[]", "'{m4rk,4711}'"),
        ("varchar(3)[]", ""),
        "22001",
        &["too long for type character varying(3)"],
    ),
    of_column("t_number", ("numeric(20,2)", "47114711"), ("numeric(4,2)", ""), "22003", &["numeric field overflow"]),
    of_column("t_enum", ("text", "'m4rk'"), ("mood", ""), "22P02", &["invalid input value for enum public.mood"]),
    of_column("t_array", ("text", "'m4rk'"), ("int[]", ""), "22P02", &["malformed array literal"]),
    of_column("t_json", ("text", "'{m4rk'"), ("json", ""), "22P02", &["invalid input syntax for type json"]),
    of_column("t_uuid", ("text", "'m4rk'"), ("uuid", ""), "22P02", &["invalid input syntax for type uuid"]),
    of_column("t_bits", ("text", "'101'"), ("bit(2)", ""), "22026", &["does not match type bit(2)"]),
    of_column("t_domain", ("text", "'m4rk'"), ("brief", ""), "23514", &["constraint: brief_fits", "value for domain"]),
    of_column("t_null", ("text", "NULL"), ("text NOT NULL", ""), "23502", &["null value in column \"v\""]),
    case(
        "t_unique",
        ("text", "'m4rk'"),
        ("text", "CREATE UNIQUE INDEX t_unique_v ON t_unique (v); INSERT INTO t_unique VALUES (4712, 'm4rk')"),
        "23505",
        &["duplicate key value violates unique constraint", "constraint: t_unique_v"],
    ),
    case(
        "t_exclude",
        ("text", "'m4rk'"),
        (
            "text",
            "ALTER TABLE t_exclude ADD CONSTRAINT t_alone EXCLUDE (v WITH =); INSERT INTO t_exclude VALUES (4712, 'm4rk')",
        ),
        "23P01",
        &["constraint: t_alone"],
    ),
    case(
        "t_check",
        ("text", "'m4rk'"),
        ("text", "ALTER TABLE t_check ADD CONSTRAINT t_fits CHECK (v < 'a')"),
        "23514",
        &["violates check constraint", "constraint: t_fits"],
    ),
    case(
        "t_zero",
        ("text", "'m4rk'"),
        ("text", "ALTER TABLE t_zero ADD CHECK (1 / (id - 4711) > 0)"),
        "22012",
        &["division by zero"],
    ),
    case(
        "t_regex",
        ("text", "'m4rk('"),
        ("text", "ALTER TABLE t_regex ADD CHECK (v ~ v)"),
        "2201B",
        &["invalid regular expression"],
    ),
    case(
        "t_made",
        ("text", "'m4rk'"),
        ("text", "ALTER TABLE t_made ADD g int GENERATED ALWAYS AS (v::int) STORED"),
        "22P02",
        &["invalid input syntax for type integer"],
    ),
    case(
        "t_index",
        ("text", "(SELECT string_agg(md5(i::text || 'm4rk'), 'm4rk') FROM generate_series(1, 200) i)"),
        ("text", "CREATE INDEX t_index_v ON t_index (v)"),
        "54000",
        &["for index \"t_index_v\""],
    ),
    case("t_query", ("text", "'m4rk &'"), ("tsquery", ""), "42601", &["syntax error"]),
    case("t_name", ("text", "'m4rk'"), ("regclass", ""), "42P01", &["does not exist"]),
    case("t_raise", ("text", "'m4rk'"), ("text", ""), "P0001", &["in function: tell"]),
    case("t_forge", ("text", "'m4rk'"), ("text", ""), "23505", &["in function: forge"]),
    case(
        "t_inner",
        ("text", "'m4rk'"),
        ("text", ""),
        "22P02",
        &["in function: inner_sql", "invalid input syntax for type integer"],
    ),
];

/// Functions of C that say of a row whatever they like.
const ON_C: &str = "\
    CREATE TYPE mood AS ENUM ('good'); CREATE DOMAIN brief AS text CONSTRAINT brief_fits CHECK (length(VALUE) < 3);
    CREATE TABLE audit (v int);
    CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION 'no %', NEW.v USING detail = NEW.v, hint = NEW.v, column = NEW.v, constraint = NEW.v, datatype = NEW.v,
            table = NEW.v, schema = NEW.v; END $$;
    CREATE FUNCTION forge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION 'duplicate key value violates unique constraint \"%\"', NEW.v USING errcode = '23505', constraint = NEW.v;
        END $$;
    CREATE FUNCTION inner_sql() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        EXECUTE format('INSERT INTO public.audit VALUES (%L)', NEW.v); RETURN NEW; END $$";
const TRIGGERS: [(&str, &str); 3] = [("t_raise", "tell"), ("t_forge", "forge"), ("t_inner", "inner_sql")];

fn tables(of: impl Fn(&Case) -> (&'static str, &'static str)) -> String {
    let table = |case: &Case| {
        let (v, more) = of(case);
        format!("CREATE TABLE {} (id int PRIMARY KEY, v {v}); {more};\n", case.table)
    };
    CASES.iter().map(table).collect()
}

async fn start(more: &str) -> Result<Replication> {
    let on_a = tables(|case| (case.on_a.0, ""));
    let triggers: String = TRIGGERS
        .iter()
        .map(|(table, function)| {
            format!(
                "CREATE TRIGGER says BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {function}(); \
                 ALTER TABLE {table} ENABLE ALWAYS TRIGGER says;"
            )
        })
        .collect();
    let on_c = format!("{ON_C}; {} {triggers}", tables(|case| case.on_c));
    let replication = Replication::start_differing(ChainOptions::default(), &on_a, &on_c).await?;
    replication.configure(&format!("[tables]\ninclude = [\"public.t_*\"]\n{more}"))?;
    Ok(replication)
}

async fn insert(a: &Server, case: &Case) -> Result<()> {
    a.sql(DATABASE, &format!("INSERT INTO {} VALUES (4711, {})", case.table, case.on_a.1)).await
}

fn ensure_hidden(case: &Case, text: &str) -> Result<()> {
    ensure!(!MARKS.iter().any(|mark| without_lsn(text).contains(mark)), "{}: {text}", case.table);
    Ok(())
}

/// An LSN may happen to have these digits.
fn without_lsn(text: &str) -> String {
    let words = text.split_whitespace().filter(|word| {
        let is_lsn =
            |(high, low): (&str, &str)| [high, low].iter().all(|half| half.chars().all(|c| c.is_ascii_hexdigit()));
        !word.trim_matches(|c: char| !c.is_ascii_alphanumeric()).split_once('/').is_some_and(is_lsn)
    });
    // The log begins each line with a time.
    words.filter(|word| !(word.contains('T') && word.ends_with('Z'))).collect::<Vec<_>>().join(" ")
}

fn ensure_case_said(case: &Case, text: &str) -> Result<()> {
    let table = format!("table \"public\".\"{}\"", case.table);
    let sqlstate = format!("SQLSTATE {}", case.sqlstate);
    let column = if case.column { "column: v" } else { "" };
    for said in case.said.iter().copied().chain([table.as_str(), &sqlstate, "to mend it:", column]) {
        let said_or_named = text.contains(said) || said == "column: v" && text.contains("column \"v\"");
        ensure!(said_or_named, "{} does not say {said}: {text}", case.table);
    }
    ensure_hidden(case, text)
}

#[tokio::test]
async fn the_stream_shows_what_is_wrong_and_no_value() -> Result<()> {
    let replication = start("").await?;
    replication.setup().await?;
    let [a, _, c] = replication.servers();
    for (netting, case) in CASES.iter().enumerate().map(|(n, case)| (n % 2 == 0, case)) {
        let mode = format!("[tables]\ninclude = [\"public.t_*\"]\n[apply]\nnetting = {netting}\n");
        replication.configure(&mode)?;
        insert(a, case).await?;
        let said = replication.halt().await?;
        ensure_case_said(case, &said)?;
        let lsn = said.split_once("(at LSN ").and_then(|(_, rest)| rest.split_once(')')).context("no LSN")?.0;
        replication.succeed(&["skip", "--lsn", lsn, "--yes"]).await?;
    }
    replication.catch_up().await?;
    // An update names the column too.
    c.sql(DATABASE, "INSERT INTO t_long VALUES (1, 'x')").await?;
    a.sql(DATABASE, "BEGIN; SET LOCAL session_replication_role = replica; INSERT INTO t_long VALUES (1, 'x'); COMMIT")
        .await?;
    replication.configure("[tables]\ninclude = [\"public.t_*\"]\n[apply]\non_duplicate = 'overwrite'\n")?;
    replication.catch_up().await?;
    a.sql(DATABASE, "UPDATE t_long SET v = 'm4rk' WHERE id = 1").await?;
    let said = replication.halt().await?;
    ensure!(said.contains("column: v") && said.contains("ALTER COLUMN \"v\" TYPE text"), "{said}");
    // What is advised helps.
    c.sql(DATABASE, "ALTER TABLE t_long ALTER COLUMN v TYPE text").await?;
    replication.catch_up().await?;
    ensure!(c.scalar(DATABASE, "SELECT v FROM t_long WHERE id = 1").await? == "m4rk");
    // Whoever wants to see values does.
    a.sql(DATABASE, "INSERT INTO t_int VALUES (4712, 'm4rk')").await?;
    let output = replication.command(&["run", "--stop-at", "current", "--show-values"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("\"m4rk\""), "{}", output.stderr);
    Ok(())
}

#[tokio::test]
async fn exceptions_hold_what_is_wrong_and_no_value() -> Result<()> {
    let replication = start("[apply]\non_error = 'exceptions'\n").await?;
    replication.setup().await?;
    let [a, _, c] = replication.servers();
    // Others are not about a row.
    let of_row = |case: &&Case| matches!(&case.sqlstate[..2], "22" | "23");
    for case in CASES.iter().filter(of_row) {
        insert(a, case).await?;
    }
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(0), "{}", output.stderr);
    for case in CASES.iter().filter(of_row) {
        let sql = format!(
            "SELECT concat_ws('; ', sqlstate, message, constraint_name, key_values, old_row, new_row) FROM pgsluice.exceptions \
             WHERE table_name = '{}'",
            case.table
        );
        let recorded = c.scalar(DATABASE, &sql).await?;
        ensure_hidden(case, &recorded)?;
        let column = if case.column { "v" } else { "" };
        for said in case.said.iter().copied().chain([case.sqlstate, column]) {
            ensure!(recorded.contains(said), "{} does not record {said}: {recorded}", case.table);
        }
        ensure_hidden(case, &output.stderr)?;
    }
    Ok(())
}

/// Which table comes first is the copy's affair.
#[tokio::test]
async fn the_copy_shows_what_is_wrong_and_no_value() -> Result<()> {
    let replication = start("[snapshot]\ncopy_data = true\njobs = 1\n").await?;
    let [a, _, c] = replication.servers();
    for case in CASES {
        insert(a, case).await?;
    }
    replication.chain.wait_b_caught_up().await?;
    replication.setup().await?;
    let mut left: Vec<_> = CASES.iter().collect();
    while !left.is_empty() {
        let output = replication.command(&["run", "--stop-at", "current", "--on-existing", "append"]).await?;
        ensure!(output.code == Some(1), "{:?}: {}", output.code, output.stderr);
        let is_it =
            |case: &&&Case| output.stderr.contains(&format!("table \"public\".\"{}\": the target reports", case.table));
        let case = *left.iter().find(is_it).with_context(|| output.stderr.clone())?;
        ensure_case_said(case, &output.stderr)?;
        a.sql(DATABASE, &format!("DELETE FROM {}", case.table)).await?;
        c.sql(DATABASE, &format!("DELETE FROM {}; UPDATE pgsluice.table_state SET state = 'init'", case.table)).await?;
        left.retain(|other| other.table != case.table);
    }
    Ok(())
}

/// Bytes of a database without an encoding are no characters on C.
#[tokio::test]
async fn bytes_that_are_no_characters_are_said_with_their_column() -> Result<()> {
    const BYTES: &str = "bytes";
    let chain = "CREATE TABLE t (id int PRIMARY KEY, other text, v text)";
    let replication = Replication::start_differing(ChainOptions::default(), "", chain).await?;
    let [a, b, c] = replication.servers();
    let make = format!("CREATE DATABASE {BYTES} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'");
    a.sql("postgres", &make).await?;
    a.sql(BYTES, chain).await?;
    replication.chain.wait_b_caught_up().await?;
    let [source, primary, target] = [b.dsn(BYTES), a.dsn(BYTES), c.dsn(DATABASE)];
    let configure = |more: &str| replication.configure_servers(&source, Some(&primary), &target, more);
    let insert = "INSERT INTO t VALUES (1, 'm4rk', E'm4rk \\xff\\xfe')";
    configure("")?;
    replication.setup().await?;
    a.sql(BYTES, insert).await?;
    for more in ["", "[apply]\nnetting = false\n", "[stream]\nformat = \"text\"\n", "[snapshot]\ncopy_data = true\n"] {
        if more.contains("copy_data") {
            replication.succeed(&["teardown", "--yes"]).await?;
        }
        configure(more)?;
        if more.contains("copy_data") {
            replication.setup().await?;
        }
        let said = replication.halt().await?;
        for text in ["table \"public\".\"t\"", "invalid byte sequence for encoding \"UTF8\"", "SQLSTATE 22021", "UTF8"]
        {
            ensure!(said.contains(text), "{more}: does not say {text}: {said}");
        }
        let named = if more.contains("copy_data") { "a COPY" } else { "column: v" };
        ensure!(said.contains(named), "{more}: {said}");
        ensure!(more.contains("copy_data") || said.contains("(at LSN "), "{more}: {said}");
        ensure!(!said.contains("m4rk") && !said.contains("0xff"), "{said}");
    }
    // What is advised helps.
    a.sql(BYTES, "UPDATE t SET v = 'fine'").await?;
    replication.catch_up().await?;
    ensure!(c.scalar(DATABASE, "SELECT v FROM t").await? == "fine");
    Ok(())
}
