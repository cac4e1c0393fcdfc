//! What is refused, where and with which words; and what an evaluation does and does not read.
//!
//! That values are those of PostgreSQL is proven in `tests/chain/expressions`.

use std::cell::RefCell;

use pgsluice_proto::Oid;
use pgsluice_proto::pgoutput::Cell;

use super::types::Type;
use super::{EvaluationError, Expression, Value};

fn columns() -> Vec<(String, Oid)> {
    let columns = [
        ("id", Type::Int4),
        ("region", Type::Text),
        ("amount", Type::Numeric),
        ("deleted_at", Type::Timestamptz),
        ("Mixed", Type::Text),
        ("document", Type::Json),
        ("data", Type::Jsonb),
        ("day", Type::Date),
        ("owner", Type::Uuid),
    ];
    let mut columns: Vec<_> = columns.into_iter().map(|(name, of)| (name.to_owned(), of.oid())).collect();
    columns.push(("shape".to_owned(), Oid(600)));
    columns
}

fn parse(text: &str) -> Expression {
    Expression::parse(text, &columns()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The part of the text that is at fault, and the message.
fn refusal(text: &str) -> (&str, String) {
    let error = Expression::parse(text, &columns()).expect_err(text);
    (&text[error.range.clone()], error.message)
}

#[test]
fn refusals_name_the_place_and_what_would_be_right() {
    let cases = [
        ("regoin = 'EU'", "regoin", "there is no column \"regoin\"; did you mean \"region\"?"),
        ("mixed = 'x'", "mixed", "there is no column \"mixed\"; did you mean \"Mixed\"?"),
        ("\"ID\" = 1", "\"ID\"", "there is no column \"ID\""),
        ("t.id = 1", "t.id", "name the column alone, without its table"),
        ("shape IS NULL", "shape", "column \"shape\" has the type with OID 600, which expressions do not know"),
        ("id = 'x'", "'x'", "this is no value of type integer"),
        ("day = '29.2.2024'", "'29.2.2024'", "this is no value of type date; write it as '2024-02-29'"),
        ("day > 'today'", "'today'", "this is no value of type date; write it as '2024-02-29'"),
        ("id = region", "id = region", "there is no operator integer = text; cast one side with ::"),
        ("amount AND true", "amount", "a condition is boolean, and this is numeric; compare it with something"),
        (
            "region < 'EU'",
            "region < 'EU'",
            "the order of texts depends on the collation of the database; only = and <> mean the same everywhere",
        ),
        (
            "greatest(region, 'a')",
            "greatest(region, 'a')",
            "the order of texts depends on the collation of the database; only = and <> mean the same everywhere",
        ),
        ("document = 'x'", "document = 'x'", "there is no operator json = unknown; take a value out of json with ->>"),
        ("data = data", "data = data", "documents of jsonb are not compared; take a value out of them with ->>"),
        (
            "id > 1 AND now() > deleted_at",
            "now",
            "now gives another result each time, and a row must come out the same whenever it is evaluated",
        ),
        (
            "deleted_at < current_timestamp",
            "current_timestamp",
            "current_timestamp gives another result each time, and a row must come out the same whenever it is evaluated",
        ),
        (
            "random() < 0.5",
            "random",
            "random gives another result each time, and a row must come out the same whenever it is evaluated",
        ),
        ("count(id) > 1", "count(id)", "count is an aggregate or window function, and an expression sees one row"),
        ("lowwer(region)", "lowwer(region)", "there is no function lowwer here; did you mean lower?"),
        ("left(region)", "left(region)", "there is no left(text); there is left(text, integer)"),
        ("id IN (SELECT 1)", "id", "an expression sees one row, and no query; write the values as a list"),
        (
            "region::date",
            "region",
            "there is no cast here from text to date; what a text means as a moment depends on the settings of a session",
        ),
        (
            "substring(region, '2')",
            "region, '2'",
            "regular expressions are not supported; give the position of the substring as an integer",
        ),
        ("region::point", "region", "the type point is not supported in expressions"),
        (
            "CASE WHEN id = 1 THEN day ELSE 1 END",
            "CASE WHEN id = 1 THEN day ELSE 1 END",
            "the results of CASE have no type in common: integer, date; cast some of them with ::",
        ),
        ("id = 1 / 0", "1 / 0", "this fails for every row: division by zero"),
        ("region ~ 'x'", "region ~ 'x'", "the operator ~ is not supported"),
        ("id = $1", "$1", "there is no $1 here; known: none"),
        (
            "extract(week FROM day) = 1",
            "day",
            "EXTRACT has no week of date here; there is year, quarter, month, day, dow, isodow, doy, epoch",
        ),
        ("id = 1 id", "id", "the expression has ended before this"),
        ("id = ", "", "this is no expression of SQL: expected: an expression, found: EOF"),
        ("region = 'EU", "'", "unterminated string literal"),
    ];
    let found = cases.map(|(text, ..)| {
        let (at, message) = refusal(text);
        (text, at, message)
    });
    assert_eq!(found.each_ref().map(|(text, at, message)| (*text, *at, message.as_str())), cases);
}

#[test]
fn the_place_is_right_behind_other_lines_and_letters() {
    let text = "region = 'äöü'\n  AND regoin = 'x'";
    let error = Expression::parse(text, &columns()).expect_err("regoin");
    assert_eq!(&text[error.range], "regoin");
}

#[test]
fn deep_and_long_expressions_are_refused_or_evaluated_but_never_overflow_the_stack() {
    let nested = format!("{}id{} = 1", "(".repeat(5_000), ")".repeat(5_000));
    assert!(Expression::parse(&nested, &columns()).is_err());
    let sum = format!("id = 1{}", " + 1".repeat(1_000));
    assert_eq!(refusal(&sum).1, "the expression is nested too deeply");
    let long = format!("id = 1{}", " OR id = 1".repeat(10_000));
    assert_eq!(refusal(&long).1, "the expression has more than 4096 words and signs");
    let list: Vec<String> = (0..1_000).map(|i| i.to_string()).collect();
    let filter = parse(&format!("id IN ({}){}", list.join(", "), " OR region = 'x'".repeat(200)));
    assert_eq!(filter.is_true(|_| Cell::Text(b"999")), Ok(true));
}

#[test]
fn only_columns_that_decide_are_read() {
    let filter = parse("id = 1 AND region = 'EU'");
    assert_eq!(filter.columns(), [0, 1]);
    let asked = RefCell::new(Vec::new());
    let cell = |index| {
        asked.borrow_mut().push(index);
        if index == 0 { Cell::Text(b"2") } else { Cell::Unchanged }
    };
    assert_eq!(filter.is_true(cell), Ok(false));
    assert_eq!(*asked.borrow(), [0]);
    let unchanged = |index| if index == 0 { Cell::Text(b"1") } else { Cell::Unchanged };
    assert_eq!(filter.is_true(unchanged), Err(EvaluationError::Unchanged(1)));
}

#[test]
fn what_was_not_sent_is_not_null() {
    assert_eq!(parse("region IS NOT NULL").is_true(|_| Cell::Unchanged), Ok(true));
    assert_eq!(parse("coalesce(region, 'x') = 'y'").is_true(|_| Cell::Unchanged), Err(EvaluationError::Unchanged(1)));
}

#[test]
fn null_is_not_true() {
    assert_eq!(parse("region = 'EU'").is_true(|_| Cell::Null), Ok(false));
    assert_eq!(parse("NOT region = 'EU'").is_true(|_| Cell::Null), Ok(false));
    assert_eq!(parse("(region = 'EU') IS NULL").is_true(|_| Cell::Null), Ok(true));
}

#[test]
fn a_cell_that_is_no_value_of_its_type_is_an_error_without_the_value() {
    let filter = parse("id = 1");
    for cell in [Cell::Text(b"secret"), Cell::Text(b"\xff"), Cell::Binary(b"secret")] {
        let error = filter.is_true(|_| cell).expect_err("no integer");
        assert_eq!(error, EvaluationError::Cell(0));
        assert!(!error.to_string().contains("secret"));
    }
}

#[test]
fn text_is_borrowed_where_nothing_is_made_of_it() {
    for text in ["region", "substr(region, 2)", "trim(region)", "coalesce(region, 'x')", "data -> 'a'", "data ->> 'a'"]
    {
        let expression = parse(text);
        let cell = |index| if index == 6 { Cell::Text(b"{\"a\": 1}") } else { Cell::Text(b" EU ") };
        let value = expression.evaluate(cell).expect("a value");
        let is_borrowed =
            matches!(value, Value::Text(std::borrow::Cow::Borrowed(_)) | Value::Jsonb(std::borrow::Cow::Borrowed(_)));
        assert!(is_borrowed, "{text}");
    }
}

#[test]
fn faults_carry_the_sqlstate_of_postgresql() {
    let state = |text: &str| match parse(text).evaluate(|_| Cell::Text(b"0")) {
        Err(EvaluationError::Fault(fault)) => fault.sqlstate(),
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(state("1 / id"), "22012");
    assert_eq!(state("id - 2147483647 - 2"), "22003");
    assert_eq!(state("(region || 'x')::integer"), "22P02");
    assert_eq!(state("substr(region, 1, id - 1)"), "22011");
    // An exponent is too large as soon as its digits are, whatever follows them.
    assert_eq!(state("('1e4' || region || '0000000000-0000')::numeric"), "22003");
    assert_eq!(state("('1e4' || region || '-0000')::numeric"), "22P02");
    assert_eq!(state("('x1e4' || region || '0000000000')::numeric"), "22P02");
}

/// Bytes of every kind, in text and in binary, give a value or an error.
#[test]
fn no_cell_makes_an_evaluation_panic() {
    let types = "b s i l n r f t v c d h ts tz iv u j jb".split(' ');
    let oids = [16, 21, 23, 20, 1700, 700, 701, 25, 1043, 1042, 1082, 1083, 1114, 1184, 1186, 2950, 114, 3802];
    let columns: Vec<_> = types.zip(oids).map(|(name, oid)| (name.to_owned(), Oid(oid))).collect();
    let texts = [
        "concat(b, s, i, l, n, r, f, t, v, c, d, h, ts, tz, iv, u, j, jb)",
        "n * n / nullif(n, 0) % 7.5 + round(n, s)",
        "d + i > ts - iv OR d - d = 1",
        "ts - tz::timestamp",
        "tz + iv",
        "h + iv",
        "h - h",
        "-iv",
        "iv + iv - iv",
        "extract(epoch FROM iv)",
        "extract(epoch FROM ts)",
        "extract(doy FROM d)",
        "extract(second FROM h)",
        "date_trunc('week', ts)",
        "date_trunc('quarter', tz)",
        "d::timestamp::text || tz::date",
        "iv::time",
        "ts::time",
        "j -> 'a' ->> 0",
        "j ->> 'a'",
        "j -> -1",
        "jb ->> 'a'",
        "jb -> 0 ->> t",
        "t LIKE v",
        "t ILIKE c ESCAPE '!'",
        "t::numeric + t::float8 * t::float4 - t::int8",
        "t::uuid = u",
        "t::bool OR b",
        "f::numeric::int8 + r::int4",
        "substr(t, s, i)",
        "left(t, i) || right(t, i)",
        "floor(n) - ceil(n) + trunc(n, i)",
        "n::float4 * n::float8",
        "n::numeric(10, 2)::int8",
        "s * s + i * l",
        "-s",
        "abs(l) % -1",
        "r / f",
        "n::varchar(3) || f::char(4)",
    ];
    let pieces: [&[u8]; 24] = [
        b"",
        b"0",
        b"-",
        b"1",
        b"9",
        b":",
        b" ",
        b"BC",
        b".",
        b"e",
        b"+",
        b"infinity",
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
        b"\\",
        b"u00",
        b"\xc3\xa4",
        b"\x80\x00",
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"1 mon",
    ];
    let expressions: Vec<_> = texts
        .iter()
        .map(|text| Expression::parse(text, &columns).unwrap_or_else(|error| panic!("{text}: {error}")))
        .collect();
    let mut state = 1_u64;
    let mut below = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    for _ in 0..4_000 {
        let sizes = [1, 2, 4, 4, 8, 8, 16, 20];
        let cells: Vec<Vec<u8>> = columns
            .iter()
            .map(|_| {
                let mut bytes: Vec<u8> = (0..below(8)).flat_map(|_| pieces[below(pieces.len())].to_vec()).collect();
                if below(2) == 0 {
                    bytes.resize(sizes[below(sizes.len())], below(256) as u8);
                }
                bytes
            })
            .collect();
        for expression in &expressions {
            for is_binary in [false, true] {
                let cell = |at: usize| if is_binary { Cell::Binary(&cells[at]) } else { Cell::Text(&cells[at]) };
                if let Ok(value) = expression.evaluate(cell) {
                    value.to_text(&mut String::new());
                    value.to_binary(&mut Vec::new());
                }
            }
        }
    }
}
