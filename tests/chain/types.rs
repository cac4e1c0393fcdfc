//! Values of every type, in text and in binary, as keys and without a key.

use anyhow::{Result, ensure};
use pgsluice_testkit::{ChainOptions, Install};

use crate::replication::{DATABASE, Replication};

/// A type, and values of it as SQL expressions.
pub(crate) struct Case {
    type_name: &'static str,
    values: &'static [&'static str],
    /// It can be a primary key.
    is_key: bool,
}

pub(crate) const fn key(type_name: &'static str, values: &'static [&'static str]) -> Case {
    Case { type_name, values, is_key: true }
}

pub(crate) const fn no_key(type_name: &'static str, values: &'static [&'static str]) -> Case {
    Case { type_name, values, is_key: false }
}

/// Everything that is built in and can be a column. Values are their text, in quotes where they are used.
const BUILT_IN: &[Case] = &[
    key("boolean", &["t", "f"]),
    key("\"char\"", &["a", "", "\\\\377"]),
    key("smallint", &["-32768", "32767", "0"]),
    key("int", &["-2147483648", "2147483647", "0"]),
    key("bigint", &["-9223372036854775808", "9223372036854775807", "0"]),
    key("real", &["NaN", "Infinity", "-Infinity", "-0", "1.1754944e-38", "3.4028235e38", "0.1", "1e-45"]),
    key("float8", &["NaN", "Infinity", "-Infinity", "-0", "2.2250738585072014e-308", "0.1", "4.9e-324", "1e308"]),
    key("numeric", &["NaN", "Infinity", "-Infinity", "0", "-0.00000000000000000001", "1e1000", "1.10", "9999.9999"]),
    key("numeric(1000, 500)", &["0.1", "1e499"]),
    no_key("money", &["-92233720368547758.08", "0.01", "1234567.89"]),
    key("text", &["", "a", "ü 表 😀", " \t\n\\\\ '' \" , {} NULL", "NULL"]),
    key("varchar(5)", &["", "NULL", "ü表😀"]),
    key("char(5)", &["", "a", "ü表"]),
    key("name", &["", "pg_class", "ü"]),
    key("bytea", &["", "\\\\x00ff5c27"]),
    key("date", &["infinity", "-infinity", "4713-01-01 BC", "5874897-12-31", "2026-02-28", "0001-12-31 BC"]),
    key("time", &["00:00", "24:00", "23:59:59.999999"]),
    key("timetz", &["24:00+00", "00:00+15:59", "23:59:59.999999-15:59:59"]),
    key(
        "timestamp",
        &["infinity", "-infinity", "4713-01-01 00:00 BC", "294276-12-31 23:59:59.999999", "1999-12-31 24:00"],
    ),
    key("timestamptz", &["infinity", "-infinity", "4713-01-02 00:00+00 BC", "2026-03-29 02:30:00.000001+02"]),
    key("interval", &["178000000 years", "-178000000 years", "1 mon -1 day +00:00:00.000001", "-1 mon", "0"]),
    no_key("json", &["{\"b\": 1, \"a\":  [1.0, null, \"ü\"], \"b\": 2}", "null", "\"\"", "1e400"]),
    key("jsonb", &["{\"b\": 1, \"a\": [1.00, null, \"ü \\\\u00e9\"]}", "null", "\"\"", "[]", "1e400"]),
    no_key("jsonpath", &["$.a[*] ? (@ > 1)", "strict $"]),
    key("uuid", &["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]),
    key("bit(3)", &["101", "000"]),
    key("varbit", &["", "1", "10101010101"]),
    key("inet", &["1.2.3.4", "1.2.3.4/24", "::1/128", "fe80::1/64", "0.0.0.0/0"]),
    key("cidr", &["1.2.3.0/24", "::/0", "fe80::/64"]),
    key("macaddr", &["08:00:2b:01:02:03"]),
    key("macaddr8", &["08:00:2b:01:02:03:04:05"]),
    no_key("point", &["(1,-0)", "(NaN,Infinity)", "(0.1,1e-300)"]),
    no_key("line", &["{1,-1,0}"]),
    no_key("lseg", &["[(0,0),(1,1)]"]),
    no_key("box", &["(1,1),(0,0)", "(2,0.5),(0,0)"]),
    no_key("path", &["[(0,0),(1,1)]", "((0,0),(1,1),(2,0))"]),
    no_key("polygon", &["((0,0),(1,1),(2,0))"]),
    no_key("circle", &["<(0,0),1>", "<(1,1),1>"]),
    key("tsvector", &["", "a:1A b:2,3B ü", "''it''''s''"]),
    key("int4range", &["empty", "(,)", "[1,5)", "(,5)"]),
    key("int8range", &["[1,5)"]),
    key("numrange", &["[1.0,1.10)", "(,NaN]", "[-Infinity,Infinity]"]),
    key("daterange", &["[2026-01-01,infinity)", "empty"]),
    key("tsrange", &["(2026-01-01 00:00,2026-01-02 24:00]"]),
    key("tstzrange", &["[2026-01-01 00:00+00,)"]),
    key("int4multirange", &["{}", "{[1,2),[5,9)}", "{(,)}"]),
    key("nummultirange", &["{[1.0,1.10),(5,]}"]),
    key("datemultirange", &["{[2026-01-01,2026-01-05)}"]),
    key("int8multirange", &["{[-9223372036854775808,9223372036854775807)}", "{}"]),
    key("tsmultirange", &["{(2026-01-01 00:00,2026-01-02 24:00],[infinity,infinity]}"]),
    key("tstzmultirange", &["{[2026-01-01 00:00+00,2026-01-01 01:00+00),[2026-02-01 00:00+00,)}"]),
    key("pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF"]),
    key("oid", &["0", "4294967295"]),
    no_key("xid", &["0", "4294967295"]),
    key("xid8", &["18446744073709551615"]),
    no_key("cid", &["7"]),
    key("tid", &["(0,1)", "(4294967295,65535)"]),
    no_key("pg_snapshot", &["10:20:10,14,15"]),
    no_key("txid_snapshot", &["10:20:10,14,15"]),
    no_key("refcursor", &["c"]),
];

/// What travels as text: names of objects, whose OIDs are of one cluster; what has no binary form; and what has one that
/// PostgreSQL cannot read itself where it is empty.
const BUILT_IN_AS_TEXT: &[Case] = &[
    key("regtype", &["int4", "pg_catalog.\"char\"", "public.mood", "-"]),
    key("regclass", &["pg_class", "public.k_0", "-"]),
    no_key("regproc", &["pg_catalog.now"]),
    no_key("regprocedure", &["pg_catalog.now()", "public.word_cmp(public.word,public.word)", "-"]),
    no_key("regoper", &["pg_catalog.||/", "0"]),
    no_key("regoperator", &["pg_catalog.+(integer,integer)", "public.<(public.word,public.word)", "-(NONE,bigint)"]),
    no_key("regconfig", &["pg_catalog.simple"]),
    no_key("regdictionary", &["pg_catalog.simple"]),
    no_key("regcollation", &["pg_catalog.\"C\"", "-"]),
    no_key("regnamespace", &["pg_catalog", "public"]),
    no_key("regrole", &["postgres"]),
    key("oidvector", &["1 2 3", ""]),
    no_key("int2vector", &["1 2 3", ""]),
    key("tsquery", &["", "a & !b <-> c:*A"]),
    no_key("aclitem", &["postgres=r*/postgres"]),
];

const USER_DDL: &str = "\
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s \"x\", (\\)');
    CREATE DOMAIN positive AS numeric CHECK (VALUE > 0);
    CREATE DOMAIN positives AS positive[] CHECK (cardinality(VALUE) < 9);
    CREATE TYPE pair AS (a int, b text);
    CREATE TYPE nested AS (p pair, m mood, l pair[], d positive);
    CREATE TYPE odd AS (j json, p point, \"Q \"\"x\" box);
    CREATE TYPE numbers AS RANGE (subtype = numeric);
    CREATE TYPE moods AS RANGE (subtype = mood);
    CREATE TYPE word;
    CREATE FUNCTION word_in(cstring) RETURNS word LANGUAGE internal IMMUTABLE STRICT AS 'textin';
    CREATE FUNCTION word_out(word) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
    CREATE TYPE word (INPUT = word_in, OUTPUT = word_out, LIKE = text, COLLATABLE = true);
    CREATE CAST (word AS text) WITHOUT FUNCTION AS ASSIGNMENT;
    CREATE FUNCTION word_cmp(word, word) RETURNS int LANGUAGE sql IMMUTABLE STRICT
        AS 'SELECT pg_catalog.bttextcmp(pg_catalog.lower($1::text), pg_catalog.lower($2::text))';
    CREATE FUNCTION word_lt(word, word) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS 'SELECT public.word_cmp($1, $2) < 0';
    CREATE FUNCTION word_le(word, word) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS 'SELECT public.word_cmp($1, $2) <= 0';
    CREATE FUNCTION word_eq(word, word) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS 'SELECT public.word_cmp($1, $2) = 0';
    CREATE FUNCTION word_ge(word, word) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS 'SELECT public.word_cmp($1, $2) >= 0';
    CREATE FUNCTION word_gt(word, word) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS 'SELECT public.word_cmp($1, $2) > 0';
    CREATE OPERATOR < (FUNCTION = word_lt, LEFTARG = word, RIGHTARG = word);
    CREATE OPERATOR <= (FUNCTION = word_le, LEFTARG = word, RIGHTARG = word);
    CREATE OPERATOR = (FUNCTION = word_eq, LEFTARG = word, RIGHTARG = word);
    CREATE OPERATOR >= (FUNCTION = word_ge, LEFTARG = word, RIGHTARG = word);
    CREATE OPERATOR > (FUNCTION = word_gt, LEFTARG = word, RIGHTARG = word);
    CREATE OPERATOR CLASS word_ops DEFAULT FOR TYPE word USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =,
        OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 word_cmp(word, word);
    CREATE DOMAIN nickname AS word;";

/// On C first, so that types of the same name have other OIDs there, and those OIDs are other types.
const JUNK_DDL: &str = "\
    CREATE TYPE junk1 AS ENUM ('x'); CREATE TYPE junk2 AS (x int); CREATE DOMAIN junk3 AS int; CREATE TABLE junk4 (x int);
    CREATE TYPE junk5 AS (x text, y text); CREATE TYPE junk6 AS RANGE (subtype = int);";

const USER: &[Case] = &[
    key("mood", &["sad", "it''s \"x\", (\\\\)"]),
    key("positive", &["1.50", "NaN"]),
    no_key("positives", &["{}", "{1.0,NULL,2}"]),
    key("pair", &["(1,a)", "(,)", "(2,\"\")", "(3,\"\"\"\\\\\\\\ ü,)\"\"\")"]),
    key("nested", &["(\"(1,\"\"x y\"\")\",sad,\"{\"\"(2,)\"\",NULL}\",1.0)", "(,,,)"]),
    no_key("odd", &["(\"{\"\"a\"\":  1}\",\"(1,2)\",\"(1,1),(0,0)\")", "(null,,)"]),
    key("numbers", &["[1.0,2.00)", "empty", "(,)"]),
    key("moods", &["[sad,ok]"]),
    key("numbers_multirange", &["{[1.0,2.00),(3,)}", "{}"]),
    no_key("moods_multirange", &["{[sad,ok]}"]),
    key("word", &["Straße", "", "Größe"]),
    key("nickname", &["Nick"]),
];

/// Three tables a type: values by key, values as the key, and rows without a key, alone and in arrays.
fn tables_sql(cases: &[&Case]) -> String {
    let mut sql = String::new();
    for (n, Case { type_name, is_key, .. }) in cases.iter().enumerate() {
        sql += &format!("CREATE TABLE k_{n} (id int PRIMARY KEY, v {type_name}, a {type_name}[], b {type_name}[][]);");
        sql +=
            &format!("CREATE TABLE f_{n} (v {type_name}, a {type_name}[]); ALTER TABLE f_{n} REPLICA IDENTITY FULL;");
        if *is_key {
            sql += &format!("CREATE TABLE p_{n} (v {type_name} PRIMARY KEY, n int);");
        }
    }
    sql
}

/// Each value inserted, moved by an update to another row, and deleted.
fn changes_sql(cases: &[&Case]) -> String {
    let mut sql = String::new();
    for (n, Case { type_name, values, is_key }) in cases.iter().enumerate() {
        let list: Vec<_> = values.iter().map(|value| format!("E'{value}'::{type_name}")).collect();
        let array = format!("ARRAY[{}, NULL]::{type_name}[]", list.join(", "));
        for (id, value) in list.iter().enumerate() {
            sql += &format!("INSERT INTO k_{n} VALUES ({id}, {value}, {array}, ARRAY[{array}, {array}]);");
            sql += &format!("INSERT INTO f_{n} VALUES ({value}, {array}), ({value}, NULL);");
            if *is_key {
                sql += &format!("INSERT INTO p_{n} VALUES ({value}, {id}); UPDATE p_{n} SET n = -n WHERE n = {id};");
            }
        }
        sql += &format!("INSERT INTO k_{n} VALUES (100, NULL, NULL, '{{}}'), (101, {}, '{{}}', NULL);", list[0]);
        // Subscripts that do not begin at 1.
        sql +=
            &format!("UPDATE k_{n} SET a = NULL WHERE id = 101; UPDATE k_{n} SET a[-3:-2] = {array} WHERE id = 101;");
        sql +=
            &format!("UPDATE k_{n} t SET v = (SELECT v FROM k_{n} o WHERE o.id = t.id + 1), id = -id WHERE id < 90;");
        sql += &format!("INSERT INTO f_{n} VALUES (NULL, NULL); UPDATE f_{n} SET a = '{{}}' WHERE a IS NULL;");
        sql += &format!("DELETE FROM f_{n} WHERE ctid IN (SELECT ctid FROM f_{n} LIMIT 2);");
        if *is_key {
            let last = list.last().expect("every type has a value");
            sql += &format!("DELETE FROM p_{n} WHERE n = 0; UPDATE p_{n} SET v = {} WHERE v = {last};", list[0]);
        }
    }
    sql
}

fn table_names(cases: &[&Case]) -> Vec<String> {
    let tables = |(n, case): (usize, &&Case)| {
        let kinds = if case.is_key { ["k", "f", "p"].as_slice() } else { &["k", "f"] };
        kinds.iter().map(|kind| format!("public.{kind}_{n}")).collect::<Vec<_>>()
    };
    cases.iter().enumerate().flat_map(tables).collect()
}

/// Digits that are all needed, in front of the point and behind it.
#[tokio::test]
async fn numbers_of_a_thousand_digits() -> Result<()> {
    let digits = |from: u32, to: u32| {
        format!(
            "(SELECT string_agg((g * g * 7919 / 13 % 10)::text, '' ORDER BY g) FROM generate_series({from}::bigint, {to}) g)"
        )
    };
    let rows = format!(
        "INSERT INTO t SELECT 1, ('9' || {0} || '.' || {1} || '1')::numeric, ('-1' || {1})::numeric, ('0.' || {0} || '7')::numeric;
         INSERT INTO keyed SELECT a FROM t; INSERT INTO whole SELECT b, c FROM t;",
        digits(1, 500),
        digits(501, 1000),
    );
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, a numeric, b numeric, c numeric); CREATE TABLE keyed (a numeric PRIMARY KEY);
               CREATE TABLE whole (b numeric, c numeric); ALTER TABLE whole REPLICA IDENTITY FULL";
    let tables = ["public.t", "public.keyed", "public.whole"];
    for format in ["text", "binary"] {
        let replication = Replication::start(ddl).await?;
        replication.configure(&format!("[stream]\nformat = \"{format}\"\n"))?;
        replication.setup().await?;
        replication.replicate(&rows, &tables).await?;
        let c = &replication.chain.c;
        assert_eq!(c.scalar(DATABASE, "SELECT length(a::text) FROM t").await?, "1003", "{format}");
        let changes = "UPDATE t SET a = a + 1, b = -b; UPDATE keyed SET a = a + 1; UPDATE whole SET c = -c; DELETE FROM t WHERE a < 0";
        replication.replicate(changes, &tables).await?;
    }
    Ok(())
}

/// Replicates the values of all `cases`, and returns what the engine said.
async fn replicate_all(options: ChainOptions, cases: &[&Case], format: &str) -> Result<String> {
    replicate_with(options, USER_DDL, cases, format).await
}

/// The same with other definitions before the tables.
pub(crate) async fn replicate_with(options: ChainOptions, ddl: &str, cases: &[&Case], format: &str) -> Result<String> {
    let from_a = options.major_ab == Some(15);
    let tables = tables_sql(cases);
    let on_a = format!("{ddl}{tables}");
    let replication = Replication::start_differing(options, &on_a, &format!("{JUNK_DDL}{on_a}")).await?;
    let more = format!("[stream]\nformat = \"{format}\"\n");
    replication.configure(&more)?;
    if from_a {
        // Its standbys do not decode.
        let [a, _, c] = replication.servers().map(|server| server.dsn(DATABASE));
        replication.configure_servers(&a, None, &c, &more)?;
    }
    replication.setup().await?;
    replication.chain.a.sql(DATABASE, &changes_sql(cases)).await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure!(output.code == Some(0), "{}", output.stderr);
    let names = table_names(cases);
    replication.assert_same(&names.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    Ok(output.stderr)
}

/// The same values, there before the replication and copied.
async fn copy_all(options: ChainOptions, cases: &[&Case]) -> Result<()> {
    let tables = tables_sql(cases);
    let on_a = format!("{USER_DDL}{tables}");
    let replication = Replication::start_differing(options, &on_a, &format!("{JUNK_DDL}{on_a}")).await?;
    replication.chain.a.sql(DATABASE, &changes_sql(cases)).await?;
    replication.configure("[snapshot]\n")?;
    replication.setup().await?;
    replication.catch_up().await?;
    let names = table_names(cases);
    replication.assert_same(&names.iter().map(String::as_str).collect::<Vec<_>>()).await
}

#[tokio::test]
async fn every_type_is_copied() -> Result<()> {
    let cases: Vec<_> = [BUILT_IN, BUILT_IN_AS_TEXT, USER].into_iter().flatten().collect();
    copy_all(ChainOptions::default(), &cases).await
}

#[tokio::test]
async fn every_type_in_text() -> Result<()> {
    let cases: Vec<_> = [BUILT_IN, BUILT_IN_AS_TEXT, USER].into_iter().flatten().collect();
    let said = replicate_all(ChainOptions::default(), &cases, "text").await?;
    assert!(said.contains("binary=false"), "{said}");
    Ok(())
}

#[tokio::test]
async fn every_built_in_type_in_binary() -> Result<()> {
    let cases: Vec<_> = BUILT_IN.iter().collect();
    let said = replicate_all(ChainOptions::default(), &cases, "binary").await?;
    assert!(said.contains("binary=true"), "{said}");
    Ok(())
}

/// One column that must travel as text is enough to have all of it in text, and is named.
#[tokio::test]
async fn automatic_format_is_text_where_binary_would_not_be_right() -> Result<()> {
    for case in BUILT_IN_AS_TEXT
        .iter()
        .chain(USER)
        .filter(|case| ["aclitem", "oidvector", "regtype", "tsquery", "word"].contains(&case.type_name))
    {
        let said = replicate_all(ChainOptions::default(), &[&BUILT_IN[3], case], "auto").await?;
        assert!(said.contains("binary=false"), "{}: {said}", case.type_name);
    }
    Ok(())
}

#[tokio::test]
async fn major_versions_differ() -> Result<()> {
    if Install::try_find(16).is_none() {
        return Ok(());
    }
    let binary: Vec<_> = BUILT_IN.iter().collect();
    let users: Vec<_> = USER.iter().collect();
    for (from, to) in [(16, 18), (18, 16)] {
        let options = || ChainOptions::default().major_ab(from).major_c(to);
        // Infinite ones mean something else to releases before 17.
        let is_stable = |case: &&&Case| to > from || !case.type_name.contains("interval");
        let stable: Vec<_> = binary.iter().filter(is_stable).copied().collect();
        replicate_all(options(), &stable, "binary").await?;
        replicate_all(options(), &users, "auto").await?;
        copy_all(options(), &[binary.as_slice(), &users].concat()).await?;
    }
    Ok(())
}

/// Settings of roles and databases change how values look, and must not change what arrives.
#[tokio::test]
async fn settings_of_roles_and_databases_do_not_matter() -> Result<()> {
    const HOSTILE: [(&str, &str, &str); 12] = [
        ("DateStyle", "'SQL, DMY'", "'German'"),
        ("IntervalStyle", "'sql_standard'", "'iso_8601'"),
        ("bytea_output", "'escape'", "'escape'"),
        ("extra_float_digits", "-15", "0"),
        ("TimeZone", "'Asia/Kathmandu'", "'America/New_York'"),
        ("lc_monetary", "'C.utf8'", "'POSIX'"),
        ("client_encoding", "'LATIN1'", "'SQL_ASCII'"),
        ("search_path", "'pg_temp, junk'", "'public'"),
        ("array_nulls", "off", "off"),
        ("xmloption", "'document'", "'document'"),
        ("standard_conforming_strings", "off", "off"),
        ("default_transaction_isolation", "'serializable'", "'repeatable read'"),
    ];
    let cases: Vec<_> = BUILT_IN.iter().chain(USER).collect();
    let tables = tables_sql(&cases);
    let mut roles = ["CREATE ROLE hostile SUPERUSER REPLICATION LOGIN;".to_owned(), String::new()];
    roles[1] = roles[0].clone();
    for (name, on_a, on_c) in HOSTILE {
        roles[0] += &format!("ALTER ROLE hostile SET {name} = {on_a};");
        roles[1] += &format!("ALTER ROLE hostile SET {name} = {on_c};");
    }
    roles[1] += "ALTER ROLE hostile SET default_transaction_read_only = on;";
    let [on_a, on_c] = roles.map(|roles| format!("{USER_DDL}{tables}{roles}"));
    let replication = Replication::start_differing(ChainOptions::default(), &on_a, &on_c).await?;
    let [a, b, c] = replication.servers().map(|server| server.dsn(DATABASE).replace("user=postgres", "user=hostile"));
    replication.configure_servers(&b, Some(&a), &c, "")?;
    replication.setup().await?;
    let names = table_names(&cases);
    replication.replicate(&changes_sql(&cases), &names.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// A column that becomes another type in mid-stream, of the user's own at last, goes on as text without being told.
#[tokio::test]
async fn a_binary_stream_meets_a_type_of_the_user() -> Result<()> {
    let ddl = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, v text)";
    let replication = Replication::start_differing(ChainOptions::default(), ddl, &format!("{JUNK_DDL}{ddl}")).await?;
    replication.setup().await?;
    let engine = replication.spawn()?;
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (1, 'sad')").await?;
    replication.wait_caught_up().await?;
    let alter = "ALTER TABLE t ALTER v TYPE mood USING v::mood; ALTER TABLE t ADD w mood[]";
    replication.chain.c.sql(DATABASE, alter).await?;
    replication.chain.a.sql(DATABASE, alter).await?;
    let changes = "INSERT INTO t VALUES (2, 'ok', '{sad,NULL}'); UPDATE t SET v = 'ok', w = '{ok}' WHERE id = 1";
    replication.chain.a.sql(DATABASE, changes).await?;
    replication.wait_caught_up().await?;
    replication.assert_same(&["public.t"]).await?;
    let said = engine.stderr();
    assert!(said.contains("binary=true") && said.contains("binary=false"), "{said}");
    Ok(())
}

/// A type that was altered on both ends, while rows of the old one wait.
#[tokio::test]
async fn a_backlog_of_an_older_type_goes_on_in_text() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, v int)").await?;
    replication.setup().await?;
    let alter = "ALTER TABLE t ALTER v TYPE bigint";
    replication
        .run_each(&format!("INSERT INTO t VALUES (1, 1); {alter}; INSERT INTO t VALUES (2, 5000000000)"))
        .await?;
    replication.chain.c.sql(DATABASE, alter).await?;
    replication.replicate("UPDATE t SET v = v + 1", &["public.t"]).await
}

/// The bytes of infinity are a very long time to servers before 17.
#[tokio::test]
async fn infinite_intervals_are_not_taken_for_finite_ones() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, i interval); CREATE TABLE copied (id int PRIMARY KEY, i interval[])";
    let options = ChainOptions::default().major_ab(18).major_c(16);
    let replication = Replication::start_with(options, ddl).await?;
    replication.setup().await?;
    let tables = ["public.t", "public.copied"];
    replication
        .replicate("INSERT INTO t VALUES (1, '1 day'); INSERT INTO copied VALUES (1, '{1 day}')", &tables)
        .await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (2, 'infinity')").await?;
    let said = replication.halt().await?;
    assert!(said.contains("SQLSTATE 22"), "{said}");
    assert_eq!(replication.chain.c.scalar(DATABASE, "SELECT count(*) FROM t").await?, "1");
    Ok(())
}

/// And from 17 on they are themselves.
#[tokio::test]
async fn infinite_intervals_travel_between_servers_that_have_them() -> Result<()> {
    if Install::try_find(18).is_none() {
        println!("skipped: there is no PostgreSQL 18");
        return Ok(());
    }
    let infinite = key("interval", &["infinity", "-infinity", "1 day", "-178000000 years"]);
    for format in ["text", "binary"] {
        let options = ChainOptions::default().major_ab(18).major_c(18);
        replicate_all(options, &[&infinite, &BUILT_IN[3]], format).await?;
    }
    Ok(())
}
