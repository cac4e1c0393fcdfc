use super::*;

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
