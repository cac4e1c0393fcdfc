//! Masks: C has what stands for a value, and nobody reads the value itself in anything that the engine leaves behind.

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::ChainOptions;

use crate::replication::{DATABASE, Replication};
use crate::rules::{assert_as_views, hmac_sql, secret_file};

/// Masked values have one of these in them: texts, texts of digits, and dates.
const CLEAR: [&str; 3] = ["cleartext-", "471108154711", "1847-0"];

/// So are numbers that are masked, and a hash has no such word.
fn is_clear_number(word: &str) -> bool {
    word.len() == 10 && word.starts_with("1847300") && word.bytes().all(|byte| byte.is_ascii_digit())
}

/// The first line that has a masked value in it, and what comes before that.
fn clear_line(text: &str) -> Option<&str> {
    let is_clear = |line: &&str| {
        let mut words = line.split(|c: char| !c.is_ascii_alphanumeric());
        CLEAR.iter().any(|clear| line.contains(clear)) || words.any(is_clear_number)
    };
    text.lines().find(is_clear).map(|line| line.get(..400).unwrap_or(line))
}

const ON_A: &str = "\
    CREATE TABLE people (id int PRIMARY KEY, gone text, fixed text, born date, pin int, hashed varchar(80), keyed text,
        digits text, random text, part char(40), mail text, doc json, num int, big text, n int);
    ALTER TABLE people ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE accounts (login text PRIMARY KEY, n int, big text, padded char(40));
    ALTER TABLE accounts ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE visits (login varchar(80), n int, big text); ALTER TABLE visits REPLICA IDENTITY FULL;
    ALTER TABLE visits ALTER big SET STORAGE EXTERNAL;";

const ON_C: &str = "\
    CREATE TABLE people (id int PRIMARY KEY, gone text, fixed text, born date, pin int, hashed varchar(80), keyed text,
        digits text, random text, part char(40), mail text, doc text, num text, big text, n int);
    CREATE TABLE accounts (login text PRIMARY KEY, n int, big text, padded char(80));
    CREATE TABLE visits (login varchar(80), n int, big text);
    CREATE SCHEMA found;
    CREATE VIEW found.people AS SELECT id, gone, fixed, born, pin, hashed, keyed, digits,
        regexp_replace(random, '[0-9]', '#', 'g') AS random, part, mail, doc, num, big, n FROM people;";

const RULES: &str = r#"
[[rule]]
table = "public.people"
[rule.mask]
gone = "null"
fixed = { type = "fixed", value = "–" }
born = { type = "fixed", value = "1970-01-01" }
pin = { type = "fixed", value = "0" }
hashed = { type = "sha256", length = 32 }
keyed = "hmac_sha256"
digits = "digits"
random = "digits_random"
part = { type = "partial", first = 2, last = 2 }
mail = "email"
doc = "sha256"
num = { type = "hmac_sha256", length = 16 }
big = "hmac_sha256"
[[rule]]
table = "public.accounts"
mask = { login = "hmac_sha256", big = "sha256", padded = "hmac_sha256" }
[[rule]]
table = "public.visits"
mask = { login = "hmac_sha256", big = "hmac_sha256" }
"#;

const PAIRS: [(&str, &str); 3] = [
    ("expected.people", "found.people"),
    ("expected.accounts", "public.accounts"),
    ("expected.visits", "public.visits"),
];

/// The same masks in SQL.
fn views() -> String {
    let [keyed, mail, num, big, login, padded] =
        ["keyed", "mail", "num::text", "big", "login", "padded::text"].map(hmac_sql);
    let sha256 = |value| format!("encode(sha256(convert_to({value}, 'UTF8')), 'hex')");
    let [hashed, doc, plain_big] = ["hashed", "doc::text", "big"].map(sha256);
    format!(
        "CREATE SCHEMA expected;
         CREATE VIEW expected.people AS SELECT id, NULL::text AS gone, CASE WHEN fixed IS NOT NULL THEN '–' END AS fixed,
             CASE WHEN born IS NOT NULL THEN date '1970-01-01' END AS born, CASE WHEN pin IS NOT NULL THEN 0 END AS pin,
             left({hashed}, 32) AS hashed, {keyed} AS keyed, regexp_replace(digits, '[0-9]', '#', 'g') AS digits,
             regexp_replace(random, '[0-9]', '#', 'g') AS random,
             (left(part, 2) || repeat('*', length(part) - 4) || right(part::text, 2))::char(40) AS part,
             left({mail}, 24) || '@masked.invalid' AS mail, {doc} AS doc, left({num}, 16) AS num, {big} AS big, n FROM people;
         CREATE VIEW expected.accounts AS SELECT {login} AS login, n, {plain_big} AS big, {padded}::char(80) AS padded
             FROM accounts;
         CREATE VIEW expected.visits AS SELECT {login} AS login, n, {big} AS big FROM visits;"
    )
}

/// Rows of people and of what belongs to them.
fn insert(from: u32, to: u32) -> String {
    format!(
        "INSERT INTO people SELECT g, 'cleartext-gone-' || g, 'cleartext-fixed-' || g, date '1847-03-05' + g % 200, 1847300000 + g,
             'cleartext-hashed-' || g, 'cleartext-login-' || g, '+471108154711' || g, '471108154711' || g, 'cleartext-part-' || g,
             'cleartext-' || g || '@cleartext-.example', format('{{\"a\":  \"cleartext-doc-%s\"}}', g)::json, 1847300000 + g,
             {LARGE}, g FROM generate_series({from}, {to}) g;
         INSERT INTO people (id) SELECT -g FROM generate_series({from}, {to}) g WHERE g % 10 = 0;
         INSERT INTO accounts SELECT 'cleartext-login-' || g, g, {LARGE}, 'cleartext-padded-' || g FROM generate_series({from}, {to}) g;
         INSERT INTO visits SELECT 'cleartext-login-' || g, g % 3, {LARGE} FROM generate_series({from}, {to}) g, generate_series(1, 2);"
    )
}

/// Stored outside of its row from here on.
const LARGE: &str = "repeat('cleartext-big-' || g, CASE WHEN g % 3 = 0 THEN 300 ELSE 1 END)";

const CHANGES: &str = "\
    UPDATE people SET n = n + 1;
    UPDATE people SET keyed = 'cleartext-other-' || id, num = num + 1, mail = NULL WHERE id % 4 = 1;
    UPDATE people SET id = id + 10000 WHERE id % 5 = 3;
    UPDATE people SET big = repeat('cleartext-new-' || id, 300), part = 'cleartext-new', gone = NULL WHERE id % 7 = 2;
    UPDATE people SET big = NULL, digits = NULL WHERE id % 7 = 4;
    DELETE FROM people WHERE id % 11 = 5;
    UPDATE accounts SET n = -n;
    UPDATE accounts SET login = login || '-moved' WHERE n % 5 = 0;
    UPDATE accounts SET login = 'cleartext-again-' || n, big = repeat('cleartext-', 500) WHERE n % 7 = -3;
    DELETE FROM accounts WHERE n % 11 = -4;
    UPDATE visits SET n = n + 10 WHERE n = 1;
    UPDATE visits SET login = 'cleartext-seldom' WHERE n = 2;
    DELETE FROM visits WHERE ctid = (SELECT min(ctid) FROM visits);
    DELETE FROM visits WHERE n = 0 AND login LIKE '%7'";

/// A replication, and all that the engine says in it.
struct Heard {
    replication: Replication,
    said: String,
}

impl Heard {
    /// C logs whatever it is sent.
    async fn start(on_a: &str, on_c: &str) -> Result<Heard> {
        let options = ChainOptions::default().c_conf("log_statement", "all");
        let replication = Replication::start_differing(options, on_a, on_c).await?;
        Ok(Heard { replication, said: String::new() })
    }

    fn configure(&self, rules: &str) -> Result<()> {
        let masks = format!("[masks]\n{}\n", secret_file(&self.replication)?);
        let snapshot = if rules.contains("[snapshot]") { "" } else { "[snapshot]\ncopy_data = true\n" };
        self.replication.configure(&format!("[log]\nrow_values = true\n{masks}{snapshot}{rules}"))
    }

    /// As loud as it gets.
    async fn command(&mut self, code: i32, arguments: &[&str]) -> Result<String> {
        let output = self.replication.command(&[arguments, &["-vv"]].concat()).await?;
        let all = output.stdout + &output.stderr;
        ensure!(output.code == Some(code), "{arguments:?} ended with {:?}, not with {code}:\n{all}", output.code);
        self.said += &all;
        Ok(all)
    }

    async fn catch_up(&mut self) -> Result<()> {
        self.command(0, &["run", "--stop-at", "current"]).await.map(drop)
    }

    /// The engine stops, and says all this.
    async fn halt(&mut self, said: &[&str]) -> Result<()> {
        let stderr = self.command(1, &["run", "--stop-at", "current"]).await?;
        for text in said {
            ensure!(stderr.contains(text), "does not say \"{text}\":\n{stderr}");
        }
        Ok(())
    }

    async fn on_a(&self, sql: &str) -> Result<()> {
        self.replication.chain.a.sql(DATABASE, sql).await?;
        self.replication.chain.wait_b_caught_up().await
    }

    async fn on_c(&self, sql: &str) -> Result<()> {
        self.replication.chain.c.sql(DATABASE, sql).await
    }

    /// In no table of C, not in its log, and in nothing that the engine says.
    async fn assert_hidden(&mut self) -> Result<()> {
        for command in [&["status", "--format", "json"][..], &["rules", "explain"], &["tail", "--no-follow"]] {
            self.command(0, command).await?;
        }
        let c = &self.replication.chain.c;
        let mut dump = c.install().command("pg_dump");
        dump.args(["--inserts", "--dbname", &c.dsn(DATABASE)]);
        let dump = dump.output().context("pg_dump")?;
        ensure!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        let places = [("C", String::from_utf8(dump.stdout)?), ("C's log", c.log()), ("the output", self.said.clone())];
        for (place, text) in places {
            ensure!(!text.is_empty(), "{place} tests nothing");
            ensure!(clear_line(&text).is_none(), "in {place}: {:?}", clear_line(&text));
        }
        Ok(())
    }
}

async fn every_mask(format: &str) -> Result<()> {
    let mut heard = Heard::start(&format!("{ON_A}{}{}", insert(1, 120), views()), ON_C).await?;
    heard.configure(&format!("{RULES}{format}"))?;
    heard.command(0, &["setup"]).await?;
    heard.catch_up().await?;
    assert_as_views(&heard.replication, &PAIRS).await.context("after the copy")?;
    heard.on_a(&insert(121, 240)).await?;
    heard.command(0, &["tail", "--no-follow"]).await?;
    heard.catch_up().await?;
    assert_as_views(&heard.replication, &PAIRS).await.context("after inserts")?;
    // Each alone, and then all of them in one batch.
    for change in CHANGES.split(';').chain([CHANGES]) {
        heard.on_a(change).await?;
        heard.catch_up().await?;
        assert_as_views(&heard.replication, &PAIRS).await.with_context(|| change.to_owned())?;
    }
    // Rows that were joined still are, whether they were copied or streamed.
    let joined = "SELECT count(*) FROM people JOIN accounts ON keyed = accounts.login JOIN visits USING (login)";
    let [on_a, on_c] = [&heard.replication.chain.a, &heard.replication.chain.c];
    let (expected, found) = (on_a.scalar(DATABASE, joined).await?, on_c.scalar(DATABASE, joined).await?);
    ensure!(expected == found && found.parse::<u32>()? > 100, "{expected} joined rows on A, {found} on C");
    heard.assert_hidden().await
}

#[tokio::test]
async fn masked_values_are_as_in_sql_and_nowhere_in_clear() -> Result<()> {
    every_mask("").await
}

#[tokio::test]
async fn masked_values_are_as_in_sql_and_nowhere_in_clear_in_text() -> Result<()> {
    every_mask("[stream]\nformat = \"text\"\n").await
}

const FAILING: &str = "\
    CREATE TABLE people (id int PRIMARY KEY, keyed text, hashed text, n int, code text);";
const FAILING_ON_C: &str = "\
    CREATE TABLE people (id int PRIMARY KEY, keyed text UNIQUE, hashed varchar(40), n int, ratio int, code int);";
const FAILING_RULES: &str = r#"
    [[rule]]
    table = "public.people"
    mask = { keyed = "hmac_sha256", hashed = { type = "sha256", length = 32 } }
    cast = { code = "int" }
    set = { ratio = "100 / n" }
"#;

/// What is wrong with one row each, what is said of it, and what mends it on A or on C.
const FAILURES: [(&str, &[&str], &str); 3] = [
    (
        "10, 'cleartext-1', 'cleartext-x', 1, '1'",
        &["23505", "people_keyed_key", "(keyed)=("],
        "ALTER TABLE people DROP CONSTRAINT people_keyed_key",
    ),
    ("11, NULL, 'cleartext-x', 1, '1'", &["22001"], "ALTER TABLE people ALTER hashed TYPE varchar(64)"),
    ("12, NULL, NULL, -1, '1'", &["23514", "above"], "ALTER TABLE people DROP CONSTRAINT above"),
];

/// Rows that rules cannot be applied to, and what is said of them.
const UNFIT: [(&str, &[&str]); 3] = [
    ("20, 'cleartext-20', 'cleartext-20', 0, '1'", &["column \"ratio\"", "division by zero", "22012"]),
    ("21, 'cleartext-21', 'cleartext-21', 1, 'cleartext-21'", &["column \"code\"", "22P02"]),
    ("22, 'cleartext-22', 'cleartext-22', 1, '471108154711'", &["column \"code\"", "22003"]),
];

async fn start_failing() -> Result<Heard> {
    let first = "INSERT INTO people VALUES (1, 'cleartext-1', 'cleartext-1', 1, '1')";
    let heard = Heard::start(&format!("{FAILING}{first}"), FAILING_ON_C).await?;
    heard.configure(FAILING_RULES)?;
    Ok(heard)
}

/// C's complaints hold what C was sent, and row_values lets them be seen.
#[tokio::test]
async fn errors_of_the_target_hold_masked_values_at_most() -> Result<()> {
    let mut heard = start_failing().await?;
    heard.on_c("ALTER TABLE people ADD CONSTRAINT above CHECK (n > 0)").await?;
    heard.command(0, &["setup"]).await?;
    heard.catch_up().await?;
    for (row, said, mend) in FAILURES {
        if row.starts_with("11") {
            heard.on_c("ALTER TABLE people ALTER hashed TYPE varchar(10) USING NULL").await?;
        }
        heard.on_a(&format!("INSERT INTO people VALUES ({row})")).await?;
        heard.halt(said).await?;
        heard.on_c(mend).await?;
        heard.catch_up().await?;
    }
    // By the copy as well.
    heard.on_c("DELETE FROM people; ALTER TABLE people ADD UNIQUE (keyed)").await?;
    heard.command(0, &["resync", "--yes", "public.people"]).await?;
    heard.halt(&["23505", "(keyed)=("]).await?;
    heard.on_c("ALTER TABLE people DROP CONSTRAINT people_keyed_key, ALTER hashed TYPE varchar(10)").await?;
    heard.halt(&["22001"]).await?;
    heard.on_c("ALTER TABLE people ALTER hashed TYPE varchar(64)").await?;
    heard.catch_up().await?;
    let rows = heard
        .replication
        .chain
        .c
        .scalar(DATABASE, "SELECT count(DISTINCT keyed) || ' of ' || count(*) FROM people")
        .await?;
    ensure!(rows == "1 of 4", "{rows}");
    heard.assert_hidden().await
}

/// Values that an expression fails on are in no message, masked or not.
#[tokio::test]
async fn rows_that_rules_cannot_take_are_not_shown() -> Result<()> {
    let mut heard = start_failing().await?;
    heard.command(0, &["setup"]).await?;
    heard.catch_up().await?;
    for (row, said) in UNFIT {
        let at = ["at LSN", "\"public\".\"people\""];
        let said = [said, &at].concat();
        heard.on_a(&format!("INSERT INTO people VALUES ({row})")).await?;
        heard.halt(&said).await?;
        // The copy meets it too; only when it is gone it ends well, and the stream does not go back to it.
        heard.command(0, &["resync", "--yes", "public.people"]).await?;
        heard.halt(&said[..said.len() - 2]).await?;
        heard.on_a("DELETE FROM people WHERE id >= 20").await?;
        heard.catch_up().await?;
        let rows = heard.replication.chain.c.scalar(DATABASE, "SELECT string_agg(id::text, ',') FROM people").await?;
        ensure!(rows == "1", "{rows}");
        heard.assert_hidden().await?;
    }
    Ok(())
}
