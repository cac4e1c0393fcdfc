//! Columns of C that keep less than those of A: nothing is rounded or cut without a word.

use anyhow::{Context, Result, ensure};
use pgsluice::postgres::{ColumnType, loss};
use pgsluice_proto::Oid;
use pgsluice_testkit::ChainOptions;

use crate::bad_input::ensure_refused;
use crate::load::{settle, stop, wait_log, wait_streaming};
use crate::replication::{DATABASE, Replication};

const WAITS: &str = "waiting for this to be mended";

/// Types of `v` on A before and after, a value that C would not keep, and what has to be done to C.
const WIDENED: [(&str, &str, &str, &str); 6] = [
    ("numeric(10,2)", "numeric(10,4)", "1.2345", "TYPE numeric(10,4);"),
    ("time(3)", "time(6)", "10:11:12.123456", "TYPE time(6) without time zone;"),
    ("real", "double precision", "0.123456789012345", "TYPE double precision;"),
    ("date", "timestamp", "2020-01-01 10:11:12", "TYPE timestamp without time zone;"),
    ("name", "text", "a_name_that_is_longer_than_sixty_three_characters_and_so_is_cut_short", "TYPE text;"),
    ("numeric(10,2)[]", "numeric[]", "{1.2345}", "TYPE numeric[];"),
];

#[tokio::test]
async fn a_type_that_a_widens_is_waited_for() -> Result<()> {
    let tables: String = WIDENED
        .iter()
        .enumerate()
        .map(|(n, (v, ..))| format!("CREATE TABLE t{n} (id int PRIMARY KEY, v {v});"))
        .collect();
    let generated = "CREATE TABLE g (id int PRIMARY KEY, v int, made int GENERATED ALWAYS AS (v * 2) STORED);";
    let replication = Replication::start(&format!("{tables}{generated}")).await?;
    replication.configure("[snapshot]\ncopy_data = true\n")?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    wait_streaming(&engine, 1).await?;
    let [a, _, c] = replication.servers();
    for (n, (_, wider, value, mend)) in WIDENED.iter().enumerate() {
        let table = format!("public.t{n}");
        a.sql(DATABASE, &format!("INSERT INTO t{n} VALUES (1)")).await?;
        replication.wait_caught_up().await?;
        a.sql(DATABASE, &format!("ALTER TABLE t{n} ALTER v TYPE {wider}; INSERT INTO t{n} VALUES (2, '{value}')"))
            .await?;
        wait_log(&engine, mend, 1).await.with_context(|| table.clone())?;
        let log = engine.stderr();
        let alter = format!("ALTER TABLE \"public\".\"t{n}\" ALTER COLUMN \"v\" {mend}");
        ensure!(log.contains(&alter) && log.contains(WAITS) && log.contains("without an error"), "{log}");
        ensure!(c.scalar(DATABASE, &format!("SELECT count(*) FROM t{n}")).await? == "1");
        c.sql(DATABASE, &alter).await?;
        settle(&replication, &engine, &[table.as_str()]).await?;
    }
    // A column that C goes on to compute. Once C takes its values it is another column than before, and is copied.
    a.sql(DATABASE, "INSERT INTO g VALUES (1, 1)").await?;
    settle(&replication, &engine, &["public.g"]).await?;
    a.sql(DATABASE, "ALTER TABLE g ALTER made DROP EXPRESSION; INSERT INTO g VALUES (2, 2, 5)").await?;
    let mend = "ALTER TABLE \"public\".\"g\" ALTER COLUMN \"made\" DROP EXPRESSION;";
    wait_log(&engine, mend, 1).await?;
    c.sql(DATABASE, mend).await?;
    settle(&replication, &engine, &["public.g"]).await?;
    stop(&engine).await
}

#[tokio::test]
async fn a_column_that_is_narrower_from_the_start_is_refused_unless_a_rule_says_so() -> Result<()> {
    let on_a = "CREATE TABLE t (id int PRIMARY KEY, v numeric(10,4), d timestamp, fine varchar(20)); \
                INSERT INTO t VALUES (1, 1.2345, '2020-01-01 10:00', 'x')";
    let on_c = "CREATE TABLE t (id bigint PRIMARY KEY, v numeric(10,2), d date, fine varchar(10))";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    let said = [
        "column \"v\" is numeric(10,4) on the source and numeric(10,2) on the target, where values would be rounded",
        "column \"d\" is timestamp without time zone on the source and date on the target, where values would be cut",
        "`cast` or `set`",
    ];
    replication.configure("[snapshot]\ncopy_data = true\n")?;
    ensure_refused(&replication, &["setup"], 3, &said).await?;
    let rule = "[snapshot]\ncopy_data = true\n[[rule]]\ntable = 'public.t'\ncast = { v = 'numeric', d = 'date' }\n";
    replication.configure(rule)?;
    replication.setup().await?;
    replication.catch_up().await?;
    let [a, _, c] = replication.servers();
    a.sql(DATABASE, "INSERT INTO t VALUES (2, 2.3456, '2020-02-02 20:00', 'y')").await?;
    replication.catch_up().await?;
    let rows = "SELECT string_agg(format('%s %s %s %s', id, v, d, fine), ', ' ORDER BY id) FROM t";
    ensure!(c.scalar(DATABASE, rows).await? == "1 1.23 2020-01-01 x, 2 2.35 2020-02-02 y");
    // What was set up as it should be, and is narrower when it is copied.
    replication.succeed(&["teardown", "--yes"]).await?;
    c.sql(DATABASE, "TRUNCATE t; ALTER TABLE t ALTER v TYPE numeric(10,4), ALTER d TYPE timestamp").await?;
    replication.configure("[snapshot]\ncopy_data = true\n")?;
    replication.setup().await?;
    c.sql(DATABASE, "ALTER TABLE t ALTER v TYPE numeric(10,2)").await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(3) && output.stderr.contains(said[0]), "{}", output.stderr);
    ensure!(c.scalar(DATABASE, "SELECT count(*) FROM t").await? == "0");
    c.sql(DATABASE, "ALTER TABLE t ALTER v TYPE numeric(10,4)").await?;
    replication.catch_up().await?;
    ensure!(c.scalar(DATABASE, "SELECT string_agg(v::text, ' ' ORDER BY id) FROM t").await? == "1.2345 2.3456");
    Ok(())
}

/// Types with samples of their values, in which whatever another type could lose is there.
const TYPES: &[(&str, &[&str])] = &[
    ("\"char\"", &["a", "5"]),
    (
        "name",
        &[
            "a",
            "abc",
            "5",
            "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijk",
            "ab ",
            "1.55555",
            "0.123456789012345678",
            "2020-01-01 10:11:12.123456+05",
            "10:11:12.123456+05",
        ],
    ),
    ("smallint", &["5", "-12345"]),
    ("integer", &["5", "-1", "2000000001", "123"]),
    ("bigint", &["5", "-1", "9007199254740993", "2000000001", "123"]),
    ("oid", &["5", "4000000001", "123"]),
    ("real", &["5", "1.5", "0.123456", "-1.234567"]),
    ("double precision", &["5", "1.5", "0.123456789012345", "123.456"]),
    (
        "numeric",
        &[
            "5",
            "1.5",
            "0.12345678901234567890123",
            "123456789.123456789",
            "1234567890123456789012345678901234567890123456789012345678901234",
        ],
    ),
    ("numeric(10,2)", &["5", "1234567.89", "1.55", "123.45", "-1.01"]),
    ("numeric(10,4)", &["5", "123456.7891", "1.5555", "123.4567"]),
    ("numeric(6,-2)", &["500", "123400"]),
    ("numeric(5,0)", &["5", "123"]),
    (
        "text",
        &[
            "a",
            "abc",
            "5",
            "1.55555",
            "0.123456789012345678",
            "ab ",
            "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmno",
            "2020-01-01 10:11:12.123456",
            "2020-01-01",
            "10:11:12.123456+05",
            "-1",
            "1 day 01:01:01.123456",
        ],
    ),
    ("character varying(3)", &["a", "ab ", "5", "-1", "1.5"]),
    (
        "character varying(70)",
        &[
            "1.55555",
            "0.123456789012345678",
            "ab ",
            "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmno",
            "2020-01-01 10:11:12.123456",
            "10:11:12.123456+05",
            "2020-01-01 10:11:12.123456+05",
            "-1",
            "1 day 01:01:01.123456",
        ],
    ),
    ("character(4)", &["ab", "1e-9", "abcd", "5", "-1", "1.5"]),
    ("date", &["2020-01-01", "1999-12-31"]),
    ("time(3) without time zone", &["10:11:12.123", "10:11:12"]),
    ("time without time zone", &["10:11:12.123456", "10:11:12"]),
    ("time(0) with time zone", &["10:11:12+05", "10:11:12+00"]),
    ("time with time zone", &["10:11:12.123456+05", "10:11:12+00"]),
    ("timestamp(0) without time zone", &["2020-01-01 10:11:12"]),
    ("timestamp without time zone", &["2020-01-01 10:11:12.123456", "2020-01-01 00:00:00"]),
    ("timestamp(3) with time zone", &["2020-01-01 10:11:12.123+02"]),
    ("timestamp with time zone", &["2020-01-01 10:11:12.123456+02"]),
    ("interval", &["10:11:12.123456", "1 mon", "1 day 10:00:00"]),
    ("interval(2)", &["10:11:12.12", "1 mon"]),
];

/// What PostgreSQL makes of the samples: the value goes as text into a column of the other type, and comes back.
const TRY: &str = "\
    CREATE FUNCTION same_number(one text, other text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
        RETURN one::numeric = other::numeric; EXCEPTION WHEN OTHERS THEN RETURN false; END $$;
    CREATE FUNCTION becomes(source text, target text, VARIABLE text) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE sent text; there text; back text; BEGIN
        EXECUTE format('SELECT format(''%%s'', %L::%s)', VARIABLE, source) INTO sent;
        BEGIN
            EXECUTE format('CREATE TEMP TABLE tried (v %s)', target);
            EXECUTE format('INSERT INTO tried VALUES (%L)', sent);
            SELECT format('%s', v) INTO there FROM tried;
            DROP TABLE tried;
        EXCEPTION WHEN OTHERS THEN RETURN 'refused'; END;
        BEGIN
            EXECUTE format('SELECT format(''%%s'', %L::%s)', there, source) INTO back;
        EXCEPTION WHEN OTHERS THEN RETURN CASE WHEN same_number(there, sent) THEN 'kept' ELSE 'lost' END; END;
        RETURN CASE WHEN back = sent OR same_number(there, sent) THEN 'kept' ELSE 'lost' END;
    END $$";

/// Every pair of types, against the server: whatever is called a loss is one for some value, and nothing else is for any.
#[tokio::test]
async fn every_pair_of_types_is_as_the_server_has_it() -> Result<()> {
    let replication = Replication::start("").await?;
    let c = &replication.chain.c;
    let client = c.connect(DATABASE).await?;
    client
        .batch_execute(
            "SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET IntervalStyle = 'postgres'; SET lc_monetary = 'C'",
        )
        .await?;
    client.batch_execute(TRY).await?;
    let columns: String = TYPES.iter().enumerate().map(|(n, (name, _))| format!(", c{n} {name}")).collect();
    client.batch_execute(&format!("CREATE TABLE types (id int{columns})")).await?;
    let sql = "SELECT atttypid, atttypmod FROM pg_attribute WHERE attrelid = 'types'::regclass AND attnum > 1 ORDER BY attnum";
    let types: Vec<_> = client
        .query(sql, &[])
        .await?
        .iter()
        .map(|row| ColumnType { oid: Oid(row.get(0)), modifier: row.get(1) })
        .collect();
    let (mut pairs, mut wrong) = (0, Vec::new());
    for ((from, samples), source) in TYPES.iter().zip(&types) {
        ensure!(source.to_string() == *from, "{source} is {from}");
        for ((to, _), target) in TYPES.iter().zip(&types) {
            pairs += 1;
            let sql = "SELECT string_agg(becomes($1, $2, v), ' ') FROM unnest($3::text[]) v";
            let outcome: String = client.query_one(sql, &[from, to, &samples.to_vec()]).await?.get(0);
            // Whether what is refused anyway is called a loss does not matter.
            let loses = outcome.contains("lost") || !outcome.contains("kept");
            let is_wrong = match loss(*source, *target) {
                None => outcome.contains("lost"),
                Some(_) => !loses,
            };
            if is_wrong {
                wrong.push(format!("{from} in {to}: {outcome}, and is called {:?}", loss(*source, *target)));
            }
        }
    }
    ensure!(wrong.is_empty(), "{} of {pairs}:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}
