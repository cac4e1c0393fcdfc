//! Rules that do not fit, and rules that are changed: what is said, with its place, and that nothing is made or lost.

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::ChainOptions;

use crate::bad_input::{ensure_refused, ensure_said};
use crate::replication::{DATABASE, Replication};
use crate::rules::{assert_as_views, secret_file};

/// All columns of people are known of old rows, of customers the key alone.
const ON_A: &str = "\
    CREATE TABLE people (id int PRIMARY KEY, region text, email text, born date, tags text[], n int);
    ALTER TABLE people REPLICA IDENTITY FULL;
    CREATE TABLE customers (id int PRIMARY KEY, region text, email text, n int);
    CREATE TABLE log (n int, note text); ALTER TABLE log REPLICA IDENTITY FULL;
    CREATE SCHEMA one; CREATE SCHEMA two;
    CREATE TABLE one.items (id int PRIMARY KEY); CREATE TABLE two.items (id int PRIMARY KEY);";

/// Rules, of which @1 and @2 are the lines in what is said.
const UNFIT: &[(&str, &[&str])] = &[
    (
        "table = 'public.people'\nwhere = \"regoin = 'EU'\"",
        &[
            "rule of line @1, table \"public\".\"people\": where: there is no column \"regoin\"; did you mean \"region\"?",
            "    regoin = 'EU'\n    ^^^^^^\n",
        ],
    ),
    (
        "table = 'public.people'\nmask = { emial = 'null' }",
        &["rule of line @1, table \"public\".\"people\": mask: there is no column \"emial\"; did you mean \"email\"?"],
    ),
    (
        "table = 'public.*'\nmask = { emial = 'null' }",
        &["rule of line @1: mask: there is no column \"emial\"; did you mean"],
    ),
    ("table = 'public.people'\nmask = { Email = 'null' }", &["there is no column \"Email\"; did you mean \"email\"?"]),
    ("table = 'public.people'\ndrop_columns = 'nn'", &["rule of line @1", "drop_columns: there is no column \"nn\""]),
    ("table = 'public.people'\ncast = { nn = 'bigint' }", &["rule of line @1", "cast: there is no column \"nn\""]),
    ("table = 'public.people'\nrename_columns = { nn = 'm' }", &["rename_columns: there is no column \"nn\""]),
    (
        "table = 'public.people'\nset = { x = \"n + length(emial)\" }",
        &[
            "rule of line @1, table \"public\".\"people\": set of \"x\": there is no column \"emial\"",
            "    n + length(emial)\n               ^^^^^\n",
        ],
    ),
    (
        "table = 'public.people'\nset = { x = '$commit_lsn' }",
        &["rule of line @1", "    $commit_lsn\n    ^^^^^^^^^^^\n"],
    ),
    (
        "table = 'public.people'\nwhere = 'n + 1'",
        &["rule of line @1", "where: a condition is boolean, and this is integer"],
    ),
    (
        "table = 'public.people'\nwhere = 'born = n'",
        &["rule of line @1", "where: ", "no operator date = integer", "    born = n\n    ^^^^^^^^\n"],
    ),
    ("table = 'public.people'\nwhere = \"n = 'x'\"", &["where: ", "    n = 'x'\n        ^^^\n"]),
    (
        "table = 'public.people'\nwhere = \"region < 'M'\"",
        &["where: ", "collation", "    region < 'M'\n    ^^^^^^^^^^^^\n"],
    ),
    ("table = 'public.people'\nwhere = 'born < now()'", &["where: ", "now", "    born < now()\n           ^^^"]),
    ("table = 'public.people'\nwhere = \"n = 1 AND\"", &["where: ", "    n = 1 AND\n             ^\n"]),
    ("table = 'public.people'\nset = { x = '1 / 0' }", &["set of \"x\": ", "division by zero", "    1 / 0\n"]),
    (
        "table = 'public.people'\ncast = { n = 'circle' }",
        &["cast: ", "the type circle is not supported", "    CAST(\"n\" AS circle)\n         ^^^"],
    ),
    (
        "table = 'public.people'\nrename_columns = { n = 'm' }\n[[rule]]\ntable = 'public.*'\nrename_columns = { n = 'k' }",
        &[
            "rule of line @2, table \"public\".\"people\": the name of column \"n\" is decided by the rule of line @1 as well",
            "yields = true",
        ],
    ),
    (
        "table = 'public.people'\nmask = { '*' = 'null' }\n[[rule]]\ntable = '*.people'\nmask = { email = 'digits' }",
        &["rule of line @2", "the mask of column \"email\" is decided by the rule of line @1 as well"],
    ),
    (
        "table = 'public.people'\nmask = { 'e*' = 'null', '*l' = 'digits' }",
        &["rule of line @1", "mask: \"*l\" and \"e*\" both match column \"email\"", "an entry of its own"],
    ),
    (
        "table = 'public.people'\nrename_columns = { email = 'region' }",
        &["rule of line @1, table \"public\".\"people\": two columns would have the name \"region\""],
    ),
    (
        "table = 'public.people'\nrename_columns = { '*' = { replace_prefix = ['region', 'n'] } }",
        &["two columns would have the name \"n\""],
    ),
    (
        "table = 'public.customers'\ndrop_columns = 'id'",
        &["rule of line @1, table \"public\".\"customers\": column \"id\" is dropped, and rows are found by it"],
    ),
    ("table = 'public.customers'\nkeep_columns = 'n*'", &["column \"id\" is dropped, and rows are found by it"]),
    (
        "table = 'public.customers'\nmask = { id = 'null' }",
        &["mask: rows are found by column \"id\", and null makes values the same", "hmac_sha256"],
    ),
    (
        "table = 'public.customers'\nset = { id = 'n + 1' }",
        &["column \"id\": rows are found by it, and its value of an old row"],
    ),
    (
        "table = 'public.customers'\nkey = 'email'",
        &["key: ", "\"email\"", "ALTER TABLE \"public\".\"customers\" REPLICA IDENTITY FULL"],
    ),
    ("table = 'public.customers'\nkey = 'nn'", &["key: the target gets no column \"nn\""]),
    (
        "table = 'public.people'\nset = { x = 'lower(email)' }\nmask = { email = 'digits' }",
        &["rule of line @1", "set of \"x\": column \"email\" is masked, and its value would be seen here"],
    ),
    (
        "table = 'public.people'\nset = { email = 'region' }\nmask = { email = 'digits' }",
        &["column \"email\" is masked, and set to an expression as well"],
    ),
    (
        "table = 'public.people'\ncast = { email = 'int' }\nmask = { email = 'digits' }",
        &["column \"email\" is masked and cast"],
    ),
    (
        "table = 'public.people'\nmask = { tags = 'sha256' }",
        &["mask: sha256, 64 digits cannot mask column \"tags\", whose type is not text", "mask it by null, or drop"],
    ),
    ("table = 'public.people'\nmask = { n = 'digits' }", &["cannot mask column \"n\", whose type is not text"]),
    (
        "table = 'public.people'\nmask = { born = { type = 'fixed', value = 'x' } }",
        &["rule of line @1", "mask: ", "date"],
    ),
    (
        "table = ['one.*', 'two.*']\nrename_schema = 'all'",
        &[
            "rule of line @1: \"one\".\"items\", \"two\".\"items\" all go to \"all\".\"items\"",
            "key = [\"origin\", \"id\"]",
        ],
    ),
    (
        "table = ['one.*', 'two.*']\nrename_schema = 'all'\nset = { origin = '$source_schema' }",
        &["nothing tells their rows apart"],
    ),
    (
        "table = 'two.items'\nrename_to = 'one.items'",
        &["\"one\".\"items\", \"two\".\"items\" all go to \"one\".\"items\""],
    ),
    (
        "table = 'public.peple'\nwhere = 'n = 1'",
        &["rule of line @1: no table that is replicated matches \"public.peple\""],
    ),
    (
        "table = 'public.log'\nsoft_delete = true\nset = { op = '$op' }",
        &["soft_delete: there is no key by which a row is found", "key = [\"id\"]"],
    ),
    (
        "table = 'public.customers'\nsoft_delete = true",
        &["soft_delete: no column would say that a row is deleted", "\"$op\""],
    ),
    (
        "table = 'public.customers'\nsoft_delete = true\nset = { origin = \"'shop'\", of = '$source_table', n = '$lsn || n' }",
        &["soft_delete: no column would say that a row is deleted", "\"$op\""],
    ),
    // All that does not fit is said at once.
    (
        "table = 'public.people'\nwhere = 'nn = 1'\n[[rule]]\ntable = 'public.customers'\ndrop_columns = 'id'",
        &["rule of line @1, table \"public\".\"people\"", "rule of line @2, table \"public\".\"customers\""],
    ),
];

const TABLES: &str = "[tables]\ninclude = [\"public.*\", \"one.*\", \"two.*\"]\n";

async fn start() -> Result<Replication> {
    Replication::start_differing(ChainOptions::default(), ON_A, ON_A).await
}

/// Writes a configuration with these rules; the lines that the rules begin in.
fn configure(replication: &Replication, rules: &str) -> Result<Vec<String>> {
    replication.configure(&format!("{TABLES}[[rule]]\n{rules}\n"))?;
    let text = std::fs::read_to_string(replication.config())?;
    let lines = text.lines().zip(1..).filter(|(line, _)| *line == "[[rule]]");
    Ok(lines.map(|(_, number): (_, u32)| number.to_string()).collect())
}

#[tokio::test]
async fn rules_that_do_not_fit_are_refused_before_anything_is_made() -> Result<()> {
    let replication = start().await?;
    for (rules, said) in UNFIT {
        let lines = configure(&replication, rules)?;
        let numbered = |text: &&str| {
            lines.iter().zip(1..).fold((*text).to_owned(), |text, (line, at)| text.replace(&format!("@{at}"), line))
        };
        let said: Vec<_> = said.iter().map(numbered).collect();
        let said: Vec<_> = said.iter().map(String::as_str).collect();
        ensure_refused(&replication, &["setup"], 3, &said).await.with_context(|| (*rules).to_owned())?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_rule_at_all_is_a_usage_error() -> Result<()> {
    let replication = start().await?;
    for (rules, said) in [
        ("table = 'public.people'\nwhere = 3", "`where` in [rule], line 14: expected a string in quotes"),
        ("table = 'public.people'\nfilter = 'n = 1'", "unknown key `filter` in [rule]"),
        ("where = 'n = 1'", "`table` in [rule], line 12: is missing"),
        ("table = 'people'", "\"people\" names no schema"),
        ("table = 'public.people'\nmask = { email = 'md5' }", "there is no mask \"md5\""),
        ("table = 'public.people'\nmask = { email = 'email' }", "email wants a secret"),
        ("table = 'public.people'\nmask = { email = { type = 'sha256', length = 8 } }", "length is 16 to 64"),
        ("table = 'public.people'\nset = { x = ", "line 14 is not TOML"),
    ] {
        configure(&replication, rules)?;
        ensure_refused(&replication, &["setup", "run"], 2, &[said]).await.with_context(|| rules.to_owned())?;
    }
    Ok(())
}

/// What the message says is what has to be run.
#[tokio::test]
async fn a_filter_wants_a_replica_identity_that_has_its_columns() -> Result<()> {
    let replication = start().await?;
    let mend = "ALTER TABLE \"public\".\"customers\" REPLICA IDENTITY FULL";
    configure(&replication, "table = 'public.customers'\nwhere = \"region = 'EU' AND id > 0 AND n > 0\"")?;
    let said = ["where: updates and deletes come without the old value of \"region\", \"n\"", mend];
    ensure_refused(&replication, &["setup"], 3, &said).await?;
    replication.chain.a.sql(DATABASE, mend).await?;
    replication.chain.wait_b_caught_up().await?;
    replication.setup().await?;
    let sql = "INSERT INTO customers VALUES (1, 'EU', NULL, 1), (2, 'US', NULL, 1); UPDATE customers SET region = 'EU'; \
               UPDATE customers SET n = 0 WHERE id = 1";
    replication.replicate(sql, &[]).await?;
    let found = replication.chain.c.query_text(DATABASE, "SELECT id FROM customers").await?;
    ensure!(found.concat() == [Some("2".to_owned())], "{found:?}");
    // Less would not do while it runs either.
    let less = "INSERT INTO customers VALUES (3, 'EU'); ALTER TABLE customers REPLICA IDENTITY DEFAULT; INSERT INTO customers VALUES (4, 'EU')";
    replication.chain.a.sql(DATABASE, less).await?;
    replication.chain.wait_b_caught_up().await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    ensure_said(&output, 3, &[mend])
}

const SOME: &str = "[[rule]]\ntable = 'public.people'\nwhere = \"region = 'EU'\"\nmask = { email = 'hmac_sha256' }\n";
const OTHER: &str =
    "[[rule]]\ntable = 'public.people'\nwhere = \"region = 'US'\"\nset = { email = \"lower(email) || n\" }\n";

const FOLLOWED: &str = "\
    CREATE TABLE people (id int PRIMARY KEY, region text, email text, n int);
    CREATE TABLE plain (id int PRIMARY KEY);";
const ROWS: &str = "\
    ALTER TABLE people REPLICA IDENTITY FULL;
    INSERT INTO people SELECT g, CASE g % 2 WHEN 0 THEN 'EU' ELSE 'US' END, 'E' || g, g FROM generate_series(1, 100) g;
    INSERT INTO plain SELECT generate_series(1, 10);
    CREATE SCHEMA expected;";

fn views() -> String {
    let masked = crate::rules::hmac_sql("email");
    format!(
        "CREATE VIEW expected.some AS SELECT id, region, {masked} AS email, n FROM people WHERE region = 'EU';
         CREATE VIEW expected.other AS SELECT id, region, lower(email) || n AS email, n FROM people WHERE region = 'US';"
    )
}

/// The tables under some rules are followed, and are as `view` says.
async fn follows(replication: &Replication, view: &str, change: &str) -> Result<String> {
    replication.chain.a.sql(DATABASE, change).await?;
    replication.chain.wait_b_caught_up().await?;
    let printed = replication.catch_up().await?;
    assert_as_views(replication, &[(view, "public.people"), ("public.plain", "public.plain")]).await?;
    Ok(printed)
}

/// Rows on C are of one set of rules, whatever the configuration says.
#[tokio::test]
async fn rules_that_change_want_their_tables_copied_anew() -> Result<()> {
    let on_a = format!("{FOLLOWED}{ROWS}{}", views());
    let replication = Replication::start_differing(ChainOptions::default(), &on_a, FOLLOWED).await?;
    let masks = format!(
        "[snapshot]\ncopy_data = true\n[tables]\ninclude = [\"public.*\"]\n[masks]\n{}\n",
        secret_file(&replication)?
    );
    let use_rules = |rules: &str| replication.configure(&format!("{masks}{rules}"));
    use_rules(SOME)?;
    replication.setup().await?;
    follows(&replication, "expected.some", "SELECT 1").await?;
    follows(&replication, "expected.some", "UPDATE people SET n = n + 1 WHERE id < 20; DELETE FROM plain WHERE id = 1")
        .await?;

    // Where they stand is no change, nor is a rule that comes to the same.
    use_rules(&format!(
        "# A comment\n\n[[rule]]\ntable = 'public.people'\nyields = true\ndrop_columns = 'x*'\n{SOME}"
    ))?;
    let printed = follows(&replication, "expected.some", "UPDATE people SET region = 'US' WHERE id = 2").await?;
    ensure!(!printed.contains("copying starts"), "{printed}");

    let secret = replication.config().with_file_name("masks");
    let first = std::fs::read_to_string(&secret)?;
    let without = "[[rule]]\ntable = 'public.plain'\nwhere = 'id > 5'\n";
    for (rules, named, secret_is) in [
        (OTHER, "\"public\".\"people\"", first.as_str()),
        ("", "\"public\".\"people\"", first.as_str()),
        (SOME, "\"public\".\"people\"", "another secret of masks, for tests"),
        (&format!("{SOME}{without}"), "\"public\".\"plain\"", first.as_str()),
        (&format!("{OTHER}{without}"), "\"public\".\"people\", \"public\".\"plain\"", first.as_str()),
    ] {
        use_rules(rules)?;
        std::fs::write(&secret, secret_is)?;
        // An engine that is at work under the rules as they were stays.
        let progress = "SELECT end_lsn || ' ' || epoch FROM pgsluice.progress";
        let before = replication.chain.c.scalar(DATABASE, progress).await?;
        let output = replication.command(&["run", "--stop-at", "current"]).await?;
        ensure_said(&output, 3, &[&format!("the rules for {named} are not those under which"), "pgsluice resync"])?;
        ensure!(replication.chain.c.scalar(DATABASE, progress).await? == before, "progress has moved, or was fenced");
        std::fs::write(&secret, &first)?;
        use_rules(SOME)?;
        let change = "INSERT INTO people SELECT max(id) + 1, 'EU', 'E', 1 FROM people";
        follows(&replication, "expected.some", change).await.context("after it was taken back")?;
    }

    use_rules(OTHER)?;
    replication.succeed(&["resync", "--yes", "public.people"]).await?;
    follows(&replication, "expected.other", "UPDATE people SET region = 'EU' WHERE id = 1").await?;
    let change = "UPDATE people SET region = 'US' WHERE id IN (4, 6); DELETE FROM people WHERE id = 3; INSERT INTO plain VALUES (11)";
    let printed = follows(&replication, "expected.other", change).await?;
    ensure!(!printed.contains("copying starts"), "{printed}");
    Ok(())
}

/// Columns that come, go and are renamed are no change of rules, unless what they hide would be seen.
#[tokio::test]
async fn columns_that_change_under_rules_that_do_not() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, email text, n int); CREATE TABLE u (id int PRIMARY KEY, email text); \
               CREATE TABLE plain (id int PRIMARY KEY)";
    let mask = "mask = { email = 'sha256' }\n";
    let rule = format!("[[rule]]\ntable = 'public.*'\n{mask}");
    let replication = Replication::start(ddl).await?;
    replication.configure(&rule)?;
    replication.setup().await?;
    let [a, _, c] = replication.servers();
    let both = async |ddl: &str| {
        c.sql(DATABASE, ddl).await?;
        a.sql(DATABASE, ddl).await
    };
    a.sql(DATABASE, "INSERT INTO t VALUES (1, 'clear'), (2, 'clear')").await?;
    replication.catch_up().await?;
    // Masked as it comes, in a table that no rule has decided anything about before.
    both("ALTER TABLE plain ADD email text; ALTER TABLE t DROP n; ALTER TABLE t ADD phone text").await?;
    a.sql(DATABASE, "INSERT INTO plain VALUES (1, 'clear'); INSERT INTO t VALUES (3, 'clear', 'known')").await?;
    for _ in 0..2 {
        replication.catch_up().await?;
    }
    // It has come under rules that left it alone.
    replication.configure(&rule.replace("sha256' }", "sha256', phone = 'sha256' }"))?;
    let refused =
        async |said: &str| ensure_said(&replication.command(&["run", "--stop-at", "current"]).await?, 3, &[said]);
    refused("the rules for \"public\".\"t\" are not those").await?;
    // u still has it, so the rule itself is not wrong.
    replication.configure(&rule)?;
    both("ALTER TABLE t RENAME email TO mail").await?;
    a.sql(DATABASE, "INSERT INTO t VALUES (4, 'clear')").await?;
    replication.chain.wait_b_caught_up().await?;
    refused("the rules for \"public\".\"t\" are not those").await?;
    let clear = "SELECT count(*) FROM (SELECT t::text AS row FROM t UNION ALL SELECT plain::text FROM plain) all_rows WHERE row LIKE '%clear%'";
    ensure!(c.scalar(DATABASE, clear).await? == "0", "a masked value is on C in clear");
    // With its new name in the rule nothing has to be copied again.
    replication.configure(&rule.replace("email =", "'*mail' ="))?;
    replication.catch_up().await?;
    ensure!(c.scalar(DATABASE, clear).await? == "0" && c.scalar(DATABASE, "SELECT count(*) FROM t").await? == "4");
    Ok(())
}

/// What a message asks for does not make rows others'.
#[tokio::test]
async fn a_constant_marks_rows_only_where_it_is_of_the_key() -> Result<()> {
    let on_a = "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1)";
    let on_c = "CREATE TABLE t (id int PRIMARY KEY, n int, origin text)";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    replication
        .configure("[snapshot]\ncopy_data = true\n[[rule]]\ntable = 'public.t'\nset = { origin = \"'shop'\" }\n")?;
    replication.setup().await?;
    replication.catch_up().await?;
    replication.chain.a.sql(DATABASE, "ALTER TABLE t REPLICA IDENTITY FULL").await?;
    replication.chain.wait_b_caught_up().await?;
    replication.succeed(&["resync", "--yes", "public.t"]).await?;
    replication.catch_up().await?;
    let found = crate::rules::rows(&replication.chain.c, "t").await?;
    ensure!(found == ["(1,1,shop)"], "{found:?}");
    Ok(())
}
