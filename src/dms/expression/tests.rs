use pgsluice_proto::pgoutput::Cell;

use super::*;
use crate::transform::Expression;
use crate::transform::expression::types::Type;

fn sql(text: &str) -> String {
    match translate(text, Some("amount".to_owned())) {
        Ok(Translated::Expression { sql, .. }) => sql,
        other => panic!("{text}: {other:?}"),
    }
}

fn refused(text: &str) -> String {
    translate(text, None).expect_err(text)
}

#[test]
fn what_has_an_equal_is_translated() {
    for (text, expected) in [
        ("'eu-west'", "'eu-west'"),
        ("$FIRST_NAME||'_'||$LAST_NAME", r#""FIRST_NAME" || '_' || "LAST_NAME""#),
        ("$id", "id"),
        ("$order", r#""order""#),
        ("upper($name)", "upper(name)"),
        ("TRIM( $a , 'x' )", "btrim(a, 'x')"),
        ("ifnull($a, 'it''s')", "coalesce(a, 'it''s')"),
        ("$a || $b * 2", "(a || b) * 2"),
        ("$a + $b || $c", "a + (b || c)"),
        ("$a - ($b - $c)", "a - (b - c)"),
        ("$a - $b - $c", "a - b - c"),
        ("-$a + .5", "(-a) + 0.5"),
        ("substr($a, 2, 3)", "substr(a, 2, 3)"),
        ("substr($a, -3)", "right(a, 3)"),
        ("round($a, 2)", "round(CAST(a AS numeric), 2)"),
        ("max($a, 5)", "CASE WHEN a IS NOT NULL THEN greatest(a, 5) END"),
        (
            "case when $a = 1 and $b <> 'x' or $c then 'y' else null end",
            "CASE WHEN (a = 1 AND b <> 'x') OR c THEN 'y' ELSE NULL END",
        ),
        ("CASE $a WHEN 1 THEN 'one' END", "CASE a WHEN 1 THEN 'one' END"),
        ("iif($a IS NOT NULL, 1, 0)", "CASE WHEN a IS NOT NULL THEN 1 ELSE 0 END"),
        ("$a == 1", "CAST(a = 1 AS integer)"),
        ("NOT $a = 1", "CAST(NOT (a = 1) AS integer)"),
        ("$a IS $b", "CAST(a IS NOT DISTINCT FROM b AS integer)"),
        ("$a NOT IN (1, 2)", "CAST(a NOT IN (1, 2) AS integer)"),
        ("$a between 1 and 2 and $b", "CAST(a BETWEEN 1 AND 2 AND b AS integer)"),
        ("$a like 'x%'", "CAST(a ILIKE 'x%' AS integer)"),
        ("$a like '50\\%' escape '\\'", "CAST(a ILIKE E'50\\\\%' ESCAPE E'\\\\' AS integer)"),
        ("date($at)", "CAST(at AS date)"),
        ("datetime($t)", "date_trunc('second', CAST(t AS timestamp))"),
        ("strftime('%Y-%m-%d', $t)", "CAST(CAST(t AS date) AS text)"),
        (
            "strftime('%Y/%m', $t)",
            "substr(CAST(CAST(t AS date) AS text), 1, 4) || '/' || substr(CAST(CAST(t AS date) AS text), 6, 2)",
        ),
        ("cast($a as integer)", "CAST(a AS bigint)"),
        ("cast($a as varchar(20))", "CAST(a AS text)"),
        ("operation_indicator('D', 'U', 'I')", "$op"),
        ("operation_indicator(‘D’, ‘U’, ‘I’)", "$op"),
        ("operation_indicator('del','upd','ins');", "CASE $op WHEN 'D' THEN 'del' WHEN 'U' THEN 'upd' ELSE 'ins' END"),
        ("$AR_H_OPERATION", "CASE $op WHEN 'D' THEN 'DELETE' WHEN 'U' THEN 'UPDATE' ELSE 'INSERT' END"),
        ("$AR_H_STREAM_POSITION", "$lsn"),
        ("$AR_H_COMMIT_TIMESTAMP", "$commit_time"),
        ("$AR_M_SOURCE_SCHEMA||'.'||$AR_M_SOURCE_TABLE_NAME", "$source_schema || '.' || $source_table"),
        ("$AR_M_SOURCE_COLUMN_NAME", "'amount'"),
    ] {
        assert_eq!(sql(text), expected, "{text}");
    }
}

#[test]
fn what_has_none_is_refused_with_the_reason() {
    for (text, reason) in [
        ("hex($a)", "hex has no equal here"),
        ("hash_sha256(lower($a))", "hash_sha256 is a mask"),
        ("date('now')", "depends on the clock"),
        ("CURRENT_TIMESTAMP", "depends on the clock"),
        ("date($a, '+1 day')", "modifiers"),
        ("strftime('%j', $a)", "strftime has no %j"),
        ("$a GLOB 'x*'", "GLOB has no equal"),
        ("$a & 1", "the sign & is not supported"),
        ("max($a)", "is an aggregate"),
        ("a || 'x'", "a column is written $a"),
        ("$AR_H_USER", "no header $AR_H_USER"),
        ("$AR_M_SOURCE_COLUMN_NAME", "needs the one column"),
        ("$AR_M_SOURCE_COLUMN_DATATYPE", "what type the column has"),
        ("substr($a, 0)", "before the first character"),
        ("'open", "not closed"),
        ("($a", ") is expected before the end"),
        ("$a $b", "goes on with $b"),
        ("", "ends where a value is expected"),
        ("$", "no name"),
        ("0x1f", "no number in decimal notation"),
        ("frob($a)", "function frob is not known"),
        ("lower($a, $b)", "lower does not take 2 arguments"),
        ("$a NOT 5", "NOT"),
        ("CASE 1 END", "CASE has no WHEN"),
    ] {
        let complaint = refused(text);
        assert!(complaint.contains(reason), "{text}: {complaint}");
    }
    for deep in ["(", "-", "NOT ", "lower("] {
        assert!(refused(&deep.repeat(10_000)).contains("nested too deeply"));
    }
}

#[test]
fn a_hash_of_a_column_is_told_apart() {
    assert_eq!(translate("hash_sha256($EMAIL)", None), Ok(Translated::Hash("EMAIL".to_owned())));
}

#[test]
fn differences_are_noted() {
    let Ok(Translated::Expression { soft_delete, notes, .. }) = translate("operation_indicator('D','U','I')", None)
    else {
        panic!()
    };
    assert!(soft_delete && notes.is_empty());
    let Ok(Translated::Expression { soft_delete, notes, .. }) = translate("$AR_H_CHANGE_SEQ || $AR_H_CHANGE_SEQ", None)
    else {
        panic!()
    };
    assert!(!soft_delete && notes.len() == 1);
}

/// The same row in each test: a column's name, its type and its value.
const ROW: [(&str, Type, Option<&str>); 6] = [
    ("name", Type::Text, Some("Ann_Lee")),
    ("n", Type::Numeric, Some("2.345")),
    ("i", Type::Int4, Some("-7")),
    ("t", Type::Timestamp, Some("2024-02-29 12:34:56.789")),
    ("nil", Type::Text, None),
    ("none", Type::Int4, None),
];

fn value(text: &str) -> Option<String> {
    let columns: Vec<_> = ROW.iter().map(|(name, of, _)| ((*name).to_owned(), of.oid())).collect();
    let sql = sql(text);
    let expression = Expression::parse(&sql, &columns).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let value = expression.evaluate(|at| ROW[at].2.map_or(Cell::Null, |text| Cell::Text(text.as_bytes())));
    let mut text = String::new();
    value.unwrap_or_else(|error| panic!("{sql}: {error}")).to_text(&mut text).then_some(text)
}

/// What SQLite 3.40 makes of the same expressions and values.
#[test]
fn values_are_those_of_sqlite() {
    for (text, expected) in [
        ("$name || '-' || ($i * 2)", Some("Ann_Lee--14")),
        ("'1' || $nil", None),
        ("10 - 4 - 3", Some("3")),
        ("10 - (4 - 3)", Some("9")),
        ("2 + 3 * 4 % 5", Some("4")),
        ("-7 / 2", Some("-3")),
        ("-7 % 3", Some("-1")),
        ("upper($name)", Some("ANN_LEE")),
        ("lower(substr($name, 5))", Some("lee")),
        ("substr($name, 1, 3)", Some("Ann")),
        ("substr($name, -3)", Some("Lee")),
        ("substr($name, -30)", Some("Ann_Lee")),
        ("trim('  x ')", Some("x")),
        ("trim('xxaxx', 'x')", Some("a")),
        ("ltrim('xxaxx', 'x')", Some("axx")),
        ("rtrim('xxaxx', 'x')", Some("xxa")),
        ("replace($name, '_', ' ')", Some("Ann Lee")),
        ("length($name)", Some("7")),
        ("instr($name, '_')", Some("4")),
        ("abs($i)", Some("7")),
        ("coalesce($nil, $nil, 'x')", Some("x")),
        ("ifnull($nil, 'x')", Some("x")),
        ("nullif($name, 'Ann_Lee')", None),
        ("max($i, 5, -9)", Some("5")),
        ("min($i, 5, -9)", Some("-9")),
        ("max($i, $none)", None),
        ("iif($i < 0, 'minus', 'plus')", Some("minus")),
        ("iif($none < 0, 'minus', 'plus')", Some("plus")),
        ("$i = -7", Some("1")),
        ("$i == 7", Some("0")),
        ("$none = 7", None),
        ("$nil IS NULL", Some("1")),
        ("$nil NOT NULL", Some("0")),
        ("$none IS $none", Some("1")),
        ("$i IS NOT $none", Some("1")),
        ("$name LIKE 'ann%'", Some("1")),
        ("$name LIKE 'ann\\_lee'", Some("0")),
        ("$name LIKE 'ann!_l%' ESCAPE '!'", Some("1")),
        ("$i BETWEEN -8 AND -7 AND $name <> 'x'", Some("1")),
        ("$i NOT IN (1, 2)", Some("1")),
        ("NOT $i = 1 AND $i < 0", Some("1")),
        ("NOT ($i = 1 OR $i < 0)", Some("0")),
        ("$i = 1 OR $i = -7 AND $name = 'x'", Some("0")),
        ("CASE $i WHEN 1 THEN 'a' WHEN -7 THEN 'b' END", Some("b")),
        ("CASE WHEN $i > 0 THEN 'a' END", None),
        ("date($t)", Some("2024-02-29")),
        ("time($t)", Some("12:34:56")),
        ("datetime($t)", Some("2024-02-29 12:34:56")),
        ("strftime('%Y-%m-%d', $t)", Some("2024-02-29")),
        ("strftime('%H:%M:%S', $t)", Some("12:34:56")),
        ("strftime('%d.%m.%Y %H:%M', $t)", Some("29.02.2024 12:34")),
        ("strftime('100%% %s', $t)", Some("100% 1709210096")),
        ("strftime('%S|%M', $t)", Some("56|34")),
        ("cast('12' as integer)", Some("12")),
        ("cast($i as text) || 'x'", Some("-7x")),
    ] {
        assert_eq!(value(text).as_deref(), expected, "{text} as {}", sql(text));
    }
    // SQLite writes the same numbers as floating-point ones.
    assert_eq!(value("round($n, 2)").as_deref(), Some("2.35"));
    assert_eq!(value("round(-2.5)").as_deref(), Some("-3"));
}
