//! Random expressions over random rows, evaluated by PostgreSQL and by the engine: results, their types and errors are the same.
//!
//! In: a seed. Out: a table with two columns of every type, and for each expression its value for every row, from text cells and
//! from binary cells, beside what PostgreSQL says. `PGSLUICE_EXPRESSIONS` says how many, `PGSLUICE_SEED` which.

mod generate;
mod kinds;

use anyhow::{Result, ensure};
use pgsluice::transform::expression::{EvaluationError, Expression, Value};
use pgsluice_proto::Oid;
use pgsluice_proto::pgoutput::Cell;
use pgsluice_testkit::{ChainOptions, Install, Pair};
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};

use self::generate::{Generator, loosened};
use self::kinds::{KINDS, Kind, quoted, value};
use crate::load::Random;

const EXPRESSIONS_DEFAULT: usize = 2_000;
const ROWS: usize = 40;
/// One of so many has fewer parentheses than it needs to be well-typed.
const LOOSENED_EVERY: usize = 8;
/// Statements that PostgreSQL is given at once.
const EXPRESSIONS_PER_QUERY: usize = 200;
/// Of a hundred expressions, so many may be refused that PostgreSQL evaluates.
const REFUSED_PERCENT_MAX: usize = 2;
/// The locale provider and the infinite intervals that the comparison needs came with 17.
const MAJOR: u32 = 18;

/// All rows in one statement, or row by row where one of them fails.
const COMPARE: &str = r"
CREATE FUNCTION evaluate(expressions text[])
RETURNS TABLE (expression int, id int, result text, state text, type oid) LANGUAGE plpgsql AS $$
DECLARE ids int[]; results text[];
BEGIN
    FOR e IN 1 .. cardinality(expressions) LOOP
        expression := e;
        BEGIN
            EXECUTE format('SELECT array_agg(id ORDER BY id), array_agg(CASE WHEN x IS NULL THEN NULL ELSE concat(x) END ORDER BY id),
                            max(pg_typeof(x)::oid) FROM (SELECT id, (%s) AS x FROM t OFFSET 0) q', expressions[e])
            INTO ids, results, type;
            state := NULL;
            FOR i IN 1 .. cardinality(ids) LOOP
                id := ids[i]; result := results[i];
                RETURN NEXT;
            END LOOP;
        EXCEPTION WHEN OTHERS THEN
            FOR id IN SELECT t.id FROM t ORDER BY t.id LOOP
                BEGIN
                    EXECUTE format('SELECT CASE WHEN x IS NULL THEN NULL ELSE concat(x) END, pg_typeof(x)::oid
                                    FROM (SELECT (%s) AS x FROM t WHERE id = %s OFFSET 0) q', expressions[e], id)
                    INTO result, type;
                    state := NULL;
                EXCEPTION WHEN OTHERS THEN
                    result := NULL; type := NULL; state := SQLSTATE;
                END;
                RETURN NEXT;
            END LOOP;
        END;
    END LOOP;
END $$";

/// A value as the server sends it.
struct Raw(Option<Vec<u8>>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Raw(Some(raw.to_owned())))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Raw(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// The table as the engine sees it: columns, and the cells of each row in both formats.
struct Table {
    columns: Vec<(String, Oid)>,
    text: Vec<Vec<Option<Vec<u8>>>>,
    binary: Vec<Vec<Option<Vec<u8>>>>,
}

/// What PostgreSQL says of an expression and a row.
struct Expected {
    result: Option<String>,
    state: Option<String>,
    of: Option<u32>,
}

#[derive(Debug, Default)]
struct Counts {
    compared: usize,
    values: usize,
    errors: usize,
    refused: usize,
    refused_by_both: usize,
    /// Without parentheses some chains are ambiguous by PostgreSQL's grammar, and are read from the left here.
    refused_by_postgresql: usize,
}

#[tokio::test]
async fn values_types_and_errors_are_those_of_postgresql() -> Result<()> {
    if Install::try_find(MAJOR).is_none() {
        return Ok(());
    }
    let pair = Pair::start(ChainOptions::default().major_ab(MAJOR).major_c(MAJOR)).await?;
    let create = "CREATE DATABASE expressions TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'";
    pair.c.sql("postgres", create).await?;
    let client = pair.c.connect("expressions").await?;
    let settings = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 3; SET jit = off";
    client.batch_execute(settings).await?;
    let mut random = Random::new();
    let table = make_table(&client, &mut random).await?;
    columns_come_back_as_they_were_sent(&table)?;
    let count = match std::env::var("PGSLUICE_EXPRESSIONS") {
        Ok(count) => count.parse()?,
        Err(_) => EXPRESSIONS_DEFAULT,
    };
    let mut counts = Counts::default();
    let mut differences = Vec::new();
    for start in (0..count).step_by(EXPRESSIONS_PER_QUERY) {
        let size = EXPRESSIONS_PER_QUERY.min(count - start);
        let mut generator = Generator { random: &mut random };
        let depths = [1, 1, 2, 2, 3, 4];
        let mut expressions: Vec<String> = (0..size).map(|i| generator.any(depths[i % depths.len()])).collect();
        for text in expressions.iter_mut().step_by(LOOSENED_EVERY) {
            *text = loosened(text, &mut random);
        }
        for (text, expected) in expressions.iter().zip(ask(&client, &expressions).await?) {
            compare(&table, text, &expected, &mut counts, &mut differences);
        }
    }
    println!("{counts:?}");
    for difference in differences.iter().take(40) {
        println!("{difference}");
    }
    ensure!(differences.is_empty(), "{} expressions differ, the first: {}", differences.len(), differences[0]);
    ensure!(counts.refused_by_postgresql * 100 <= count, "too many are accepted: {counts:?}");
    ensure!(counts.refused * 100 <= count * REFUSED_PERCENT_MAX, "too many are refused: {counts:?}");
    Ok(())
}

async fn make_table(client: &Client, random: &mut Random) -> Result<Table> {
    let columns: Vec<(&str, Kind)> =
        KINDS.iter().flat_map(|kind| kind.columns().map(|column| (column, *kind))).collect();
    let definitions: Vec<String> = columns.iter().map(|(name, kind)| format!("{name} {}", kind.type_name())).collect();
    let mut rows = Vec::new();
    for id in 0..ROWS {
        let values = columns.iter().map(|(_, kind)| match random.below(7) {
            0 => "NULL".to_owned(),
            _ => quoted(&value(*kind, random)),
        });
        rows.push(format!("({id}, {})", values.collect::<Vec<_>>().join(", ")));
    }
    let sql = format!(
        "CREATE TABLE t (id int PRIMARY KEY, {}); INSERT INTO t VALUES {}; {COMPARE}",
        definitions.join(", "),
        rows.join(", ")
    );
    client.batch_execute(&sql).await?;
    let select = "SELECT * FROM t ORDER BY id";
    let statement = client.prepare(select).await?;
    let columns = statement.columns().iter().map(|column| (column.name().to_owned(), Oid(column.type_().oid())));
    let columns: Vec<_> = columns.collect();
    let binary = client.query(&statement, &[]).await?;
    let binary = binary.iter().map(|row| (0..row.len()).map(|at| row.get::<_, Raw>(at).0).collect()).collect();
    let mut text = Vec::new();
    for message in client.simple_query(select).await? {
        if let SimpleQueryMessage::Row(row) = message {
            text.push((0..row.len()).map(|at| row.get(at).map(|text| text.as_bytes().to_owned())).collect());
        }
    }
    Ok(Table { columns, text, binary })
}

/// One list for each expression, with an entry for every row.
async fn ask(client: &Client, expressions: &[String]) -> Result<Vec<Vec<Expected>>> {
    let mut answers: Vec<Vec<Expected>> = expressions.iter().map(|_| Vec::new()).collect();
    for row in client.query("SELECT * FROM evaluate($1)", &[&expressions]).await? {
        let index = usize::try_from(row.get::<_, i32>(0) - 1)?;
        answers[index].push(Expected { result: row.get(2), state: row.get(3), of: row.get(4) });
    }
    Ok(answers)
}

fn cell(value: &Option<Vec<u8>>, is_binary: bool) -> Cell<'_> {
    match value {
        None => Cell::Null,
        Some(bytes) if is_binary => Cell::Binary(bytes),
        Some(bytes) => Cell::Text(bytes),
    }
}

fn columns_come_back_as_they_were_sent(table: &Table) -> Result<()> {
    for (index, (name, _)) in table.columns.iter().enumerate() {
        let expression = Expression::parse(&format!("\"{name}\""), &table.columns)?;
        for (text, binary) in table.text.iter().zip(&table.binary) {
            for (row, is_binary) in [(text, false), (binary, true)] {
                let value = expression.evaluate(|at| cell(&row[at], is_binary))?;
                let (mut as_text, mut as_binary) = (String::new(), Vec::new());
                let known = value.to_text(&mut as_text);
                ensure!(known == value.to_binary(&mut as_binary) && known == text[index].is_some(), "{name}");
                if let (Some(text), Some(binary)) = (&text[index], &binary[index]) {
                    ensure!(as_text.as_bytes() == text, "{name}: {as_text}");
                    ensure!(as_binary == *binary, "{name}: {as_text} in binary");
                }
            }
        }
    }
    Ok(())
}

/// Text, or the SQLSTATE.
fn outcome(value: Result<Value<'_>, EvaluationError>, of: Oid) -> Result<Option<String>, String> {
    let value = match value {
        Ok(value) => value,
        Err(EvaluationError::Fault(fault)) => return Err(fault.sqlstate().to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    let (mut text, mut binary) = (String::new(), Vec::new());
    if !value.to_text(&mut text) {
        return Ok(None);
    }
    value.to_binary(&mut binary);
    // What is sent is read back as the same.
    let columns = [("x".to_owned(), of)];
    let same = Expression::parse("x", &columns).map_err(|error| error.to_string())?;
    let mut again = String::new();
    let read = same.evaluate(|_| Cell::Binary(&binary)).map_err(|error| error.to_string())?;
    read.to_text(&mut again);
    if again == text { Ok(Some(text)) } else { Err(format!("{text} comes back as {again}")) }
}

fn compare(table: &Table, text: &str, expected: &[Expected], counts: &mut Counts, differences: &mut Vec<String>) {
    let is_refused = |expected: &Expected| expected.state.as_ref().is_some_and(|state| state.starts_with("42"));
    let expression = match Expression::parse(text, &table.columns) {
        Ok(expression) => expression,
        Err(error) => {
            let agreed = expected.iter().all(|expected| expected.state.is_some());
            if agreed {
                counts.refused_by_both += 1;
            } else {
                counts.refused += 1;
                println!("refused: {text}: {error} at {:?}", error.range);
            }
            return;
        }
    };
    if expected.iter().all(is_refused) {
        counts.refused_by_postgresql += 1;
        println!("refused by PostgreSQL: {text}: {:?}", expected[0].state);
        return;
    }
    counts.compared += 1;
    for (id, expected) in expected.iter().enumerate() {
        if let Some(of) = expected.of.filter(|of| *of != expression.type_oid().0) {
            differences.push(format!("{text}: has type {of}, but we say {}", expression.type_oid().0));
            return;
        }
        for (rows, is_binary) in [(&table.text, false), (&table.binary, true)] {
            let ours = outcome(expression.evaluate(|at| cell(&rows[id][at], is_binary)), expression.type_oid());
            let same = match (&ours, &expected.state) {
                (Ok(ours), None) => *ours == expected.result,
                (Err(ours), Some(state)) => ours == state,
                _ => false,
            };
            counts.values += 1;
            counts.errors += usize::from(expected.state.is_some());
            if !same {
                let read: Vec<String> = expression
                    .columns()
                    .iter()
                    .map(|at| {
                        let value = table.text[id][*at].as_ref().map(|text| String::from_utf8_lossy(text));
                        format!("{}={value:?}", table.columns[*at].0)
                    })
                    .collect();
                differences.push(format!(
                    "{text}\n    with {}, binary={is_binary}:\n    PostgreSQL {:?} {:?}, we {ours:?}",
                    read.join(" "),
                    expected.result,
                    expected.state
                ));
                return;
            }
        }
    }
}
