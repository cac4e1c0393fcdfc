//! What stands behind a `$`: columns of the row, and what DMS says of the change and of its source.

use super::Context;
use super::sql::Sql;

pub(super) fn value(name: &str, context: &mut Context) -> Result<Sql, String> {
    if !name.starts_with("AR_") {
        return Ok(Sql::Column(name.to_owned()));
    }
    match name {
        "AR_H_STREAM_POSITION" | "AR_H_CHANGE_SEQ" => {
            context.note(format!("{name} becomes the LSN of the commit, whose form is another: 0/16B3748"));
            Ok(Sql::Placeholder("$lsn"))
        }
        "AR_H_COMMIT_TIMESTAMP" | "AR_H_TIMESTAMP" => {
            context.note(format!("{name} becomes the time of the commit, with its time zone"));
            Ok(Sql::Placeholder("$commit_time"))
        }
        "AR_H_OPERATION" => Ok(operation(Sql::text("DELETE"), Sql::text("UPDATE"), Sql::text("INSERT"))),
        "AR_M_SOURCE_SCHEMA" => Ok(Sql::Placeholder("$source_schema")),
        "AR_M_SOURCE_TABLE_NAME" => Ok(Sql::Placeholder("$source_table")),
        "AR_M_SOURCE_COLUMN_NAME" => match &context.column {
            Some(column) => Ok(Sql::Text(column.clone())),
            None => Err(format!("${name} needs the one column that it is of, as `column-name` of the object-locator")),
        },
        "AR_M_SOURCE_COLUMN_DATATYPE" => Err(format!("${name}: the mapping does not say what type the column has")),
        _ => Err(format!("there is no header ${name} here")),
    }
}

/// A value for each kind of change.
pub(super) fn operation(delete: Sql, update: Sql, insert: Sql) -> Sql {
    let op = Sql::Placeholder("$op");
    let letters = [(&delete, "D"), (&update, "U"), (&insert, "I")];
    if letters.iter().all(|(value, letter)| **value == Sql::text(letter)) {
        return op;
    }
    Sql::Case {
        operand: Some(Box::new(op)),
        branches: vec![(Sql::text("D"), delete), (Sql::text("U"), update)],
        otherwise: Some(Box::new(insert)),
    }
}
