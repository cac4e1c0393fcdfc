//! The functions of SQLite's that have an equal here, and what is said of the others.

use super::sql::{Operator, Sql};
use super::{Context, dates, headers};

type Outcome = Result<Sql, String>;

/// Those without an equal, and why.
const NONE: [(&str, &str); 17] = [
    ("hex", "hex has no equal here"),
    ("unhex", "unhex has no equal here"),
    ("quote", "quote has no equal here"),
    ("char", "char has no equal here"),
    ("unicode", "unicode has no equal here"),
    ("printf", "printf has no equal here"),
    ("format", "format has no equal here"),
    ("typeof", "typeof has no equal here: a column has one type"),
    ("julianday", "julianday has no equal here"),
    ("unixepoch", "unixepoch has no equal here; write extract(epoch FROM …)"),
    ("random", "random gives another result each time, and a row must come out the same whenever it is evaluated"),
    ("randomblob", "randomblob gives another result each time, and a row must come out the same"),
    ("zeroblob", "zeroblob has no equal here"),
    ("last_insert_rowid", "last_insert_rowid is of a session of SQLite"),
    ("changes", "changes is of a session of SQLite"),
    ("total_changes", "total_changes is of a session of SQLite"),
    (
        "hash_sha256",
        "hash_sha256 is a mask here and no function: { type = \"sha256\" } in `mask` hashes a column in its place",
    ),
];

pub(super) fn call(name: &str, arguments: Vec<Sql>, context: &mut Context) -> Outcome {
    let wrong_count = format!("{name} does not take {} arguments", arguments.len());
    match (name, arguments.as_slice()) {
        ("operation_indicator", [delete, update, insert]) => {
            context.soft_delete = true;
            Ok(headers::operation(delete.clone(), update.clone(), insert.clone()))
        }
        ("lower", [_]) => Ok(Sql::Call("lower", arguments)),
        ("upper", [_]) => Ok(Sql::Call("upper", arguments)),
        ("ltrim", [_] | [_, _]) => Ok(Sql::Call("ltrim", arguments)),
        ("rtrim", [_] | [_, _]) => Ok(Sql::Call("rtrim", arguments)),
        ("trim", [_] | [_, _]) => Ok(Sql::Call("btrim", arguments)),
        ("replace", [_, _, _]) => Ok(Sql::Call("replace", arguments)),
        ("length", [_]) => Ok(Sql::Call("length", arguments)),
        ("instr", [_, _]) => Ok(Sql::Call("strpos", arguments)),
        ("abs", [_]) => Ok(Sql::Call("abs", arguments)),
        ("coalesce", [_, _, ..]) | ("ifnull", [_, _]) => Ok(Sql::Call("coalesce", arguments)),
        ("nullif", [_, _]) => Ok(Sql::Call("nullif", arguments)),
        ("substr" | "substring", [text, start]) => substring(text, start, None, context),
        ("substr" | "substring", [text, start, length]) => substring(text, start, Some(length), context),
        ("round", [number]) => round(number, Sql::Number("0".to_owned())),
        ("round", [number, digits]) => round(number, digits.clone()),
        ("max", [_, _, ..]) => Ok(extreme("greatest", arguments)),
        ("min", [_, _, ..]) => Ok(extreme("least", arguments)),
        ("iif" | "if", [condition, then, otherwise]) => Ok(Sql::Case {
            operand: None,
            branches: vec![(condition.clone(), then.clone())],
            otherwise: Some(Box::new(otherwise.clone())),
        }),
        ("date" | "time" | "datetime", [moment]) => dates::named(name, moment),
        ("strftime", [Sql::Text(format), moment]) => dates::formatted(format, moment),
        ("date" | "time" | "datetime", []) | ("strftime", [_]) => Err(dates::now(name)),
        ("date" | "time" | "datetime", [_, ..]) | ("strftime", [_, _, _, ..]) => {
            Err(format!("{name} with modifiers has no equal here"))
        }
        ("strftime", _) => Err("strftime takes its format as a string".to_owned()),
        ("max" | "min", [_]) => Err(format!("{name} of one value is an aggregate, and an expression sees one row")),
        (
            "operation_indicator"
            | "lower"
            | "upper"
            | "ltrim"
            | "rtrim"
            | "trim"
            | "replace"
            | "length"
            | "instr"
            | "abs"
            | "coalesce"
            | "ifnull"
            | "nullif"
            | "substr"
            | "substring"
            | "round"
            | "max"
            | "min"
            | "iif"
            | "if",
            _,
        ) => Err(wrong_count),
        (name, _) => {
            let reason = NONE.iter().find(|(known, _)| *known == name).map(|(_, reason)| (*reason).to_owned());
            Err(reason.unwrap_or_else(|| format!("the function {name} is not known here")))
        }
    }
}

/// SQLite counts a start below 1 from the end, and a length below 0 backwards.
fn substring(text: &Sql, start: &Sql, length: Option<&Sql>, context: &mut Context) -> Outcome {
    if let (Sql::Sign("-", count), None) = (start, length)
        && let Sql::Number(_) = **count
    {
        return Ok(Sql::Call("right", vec![text.clone(), (**count).clone()]));
    }
    match start {
        Sql::Number(number) if number.parse::<u32>().is_ok_and(|start| start > 0) => {}
        Sql::Number(_) | Sql::Sign(..) => {
            return Err("substr that begins before the first character has no equal here".to_owned());
        }
        _ => context.note("substr counts a start below 1 from the end in SQLite, and not here"),
    }
    match length {
        None | Some(Sql::Number(_)) => {}
        Some(Sql::Sign(..)) => return Err("substr of a negative length has no equal here".to_owned()),
        Some(_) => context.note("substr with a negative length is an error here"),
    }
    let arguments = [text, start].into_iter().chain(length).cloned().collect();
    Ok(Sql::Call("substr", arguments))
}

/// Half a unit is rounded away from zero, as it is for `numeric` alone.
fn round(number: &Sql, digits: Sql) -> Outcome {
    let Sql::Number(count) = &digits else {
        return Err("round takes the number of digits as a number of 0 or more here".to_owned());
    };
    let arguments =
        if count == "0" { vec![number.clone().cast("numeric")] } else { vec![number.clone().cast("numeric"), digits] };
    Ok(Sql::Call("round", arguments))
}

/// In SQLite the result is NULL if one of them is; greatest and least pass over it.
fn extreme(function: &'static str, arguments: Vec<Sql>) -> Sql {
    let may_be_null = |argument: &&Sql| !matches!(argument, Sql::Text(_) | Sql::Number(_));
    let is_known = |operand: &Sql| Sql::IsNull { negated: true, operand: Box::new(operand.clone()) };
    let and = |left, right| Sql::Binary(Operator::And, Box::new(left), Box::new(right));
    let all_known = arguments.iter().filter(may_be_null).map(is_known).reduce(and);
    let call = Sql::Call(function, arguments);
    match all_known {
        None => call,
        Some(all_known) => Sql::Case { operand: None, branches: vec![(all_known, call)], otherwise: None },
    }
}

/// SQLite's CAST takes what of a text is a number, and 0 where nothing is.
pub(super) fn cast(operand: Sql, name: &str, context: &mut Context) -> Outcome {
    let to = match name.to_ascii_lowercase().as_str() {
        "text" | "varchar" | "char" | "nvarchar" | "string" | "clob" => return Ok(operand.cast("text")),
        "integer" | "int" | "bigint" | "smallint" | "tinyint" => "bigint",
        "real" | "double" | "float" => "double precision",
        "numeric" | "decimal" => "numeric",
        _ => return Err(format!("CAST to {name} has no equal here")),
    };
    context.note(format!(
        "CAST to {name}: text that is no number is an error here, and fractions are rounded to integers"
    ));
    Ok(operand.cast(to))
}
