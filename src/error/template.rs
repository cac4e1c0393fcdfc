//! PostgreSQL's own messages, told apart from the values that they quote.
//!
//! In: SQLSTATE and message of an error. Out: the same message with its values left out, and the names in it for the server's
//! catalog to confirm. A message that is none of these is shown as the name of its SQLSTATE instead.
//!
//! `{v}` stands for a value and is never shown; `{r}`, `{c}`, `{k}`, `{t}`, `{s}` for the name of a relation, column, constraint
//! or index, type, schema; `{h}` for bytes in hexadecimal digits; `{n}` for a number, `{f}` for the path of a file, `{e}` for an
//! encoding. What stands in brackets is left out.
//! The texts are those of the server's source; under another `lc_messages` none of them matches.

/// What a name is the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NameKind {
    Relation,
    Column,
    Constraint,
    Type,
    Schema,
    Function,
}

impl NameKind {
    pub fn as_str(self) -> &'static str {
        match self {
            NameKind::Relation => "relation",
            NameKind::Column => "column",
            NameKind::Constraint => "constraint",
            NameKind::Type => "type",
            NameKind::Schema => "schema",
            NameKind::Function => "function",
        }
    }
}

/// What stands in place of a name or value that is not shown.
const HIDDEN: &str = "…";

/// SQLSTATE and text. Of several with one SQLSTATE the first that matches counts.
const MESSAGES: &[(&str, &str)] = &[
    ("0A000", "cannot truncate a table referenced in a foreign key constraint"),
    ("0A000", "cannot update table \"{r}\""),
    ("0A000", "cached plan must not change result type"),
    ("0A000", "logical decoding cannot be used while in recovery"),
    ("21000", "ON CONFLICT DO UPDATE command cannot affect row a second time"),
    ("22001", "value too long for type {t}"),
    ("22003", "numeric field overflow"),
    ("22003", "integer out of range"),
    ("22003", "smallint out of range"),
    ("22003", "bigint out of range"),
    ("22003", "value overflows numeric format"),
    ("22003", "value out of range: overflow"),
    ("22003", "value out of range: underflow"),
    ("22003", "value \"{v}\" is out of range for type {t}"),
    ("22003", "\"{v}\" is out of range for type {t}"),
    ("22004", "domain {t} does not allow null values"),
    ("22007", "invalid input syntax for type {t}[: \"{v}\"]"),
    ("22008", "date/time field value out of range[: \"{v}\"]"),
    ("22008", "date out of range[: \"{v}\"]"),
    ("22008", "date out of range for timestamp"),
    ("22008", "timestamp out of range[: \"{v}\"]"),
    ("22008", "timestamp out of range"),
    ("22008", "interval out of range"),
    ("22008", "timestamp cannot be precise to more than {n} digits"),
    ("22009", "time zone displacement out of range[: \"{v}\"]"),
    ("22012", "division by zero"),
    ("22015", "interval field value out of range[: \"{v}\"]"),
    ("22021", "invalid byte sequence for encoding \"{e}\"[: {v}]"),
    ("22026", "bit string length {n} does not match type {t}"),
    ("22001", "bit string too long for type {t}"),
    ("22032", "invalid JSON text"),
    ("22P02", "invalid input syntax for type {t}[: \"{v}\"]"),
    ("22P02", "invalid input syntax for type {t}"),
    ("22P02", "invalid input value for enum {t}[: \"{v}\"]"),
    ("22P02", "malformed array literal[: \"{v}\"]"),
    ("22P02", "malformed range literal[: \"{v}\"]"),
    ("22P02", "malformed multirange literal[: \"{v}\"]"),
    ("22P02", "malformed record literal[: \"{v}\"]"),
    ("22P02", "\"{v}\" is not a valid binary digit"),
    ("22P02", "\"{v}\" is not a valid hexadecimal digit"),
    ("22P03", "incorrect binary data format"),
    ("22P03", "incorrect binary data format in bind parameter {n}"),
    ("22P03", "insufficient data left in message"),
    ("22P03", "invalid sign in external \"numeric\" value"),
    ("22P03", "invalid scale in external \"numeric\" value"),
    ("22P04", "missing data for column \"{c}\""),
    ("22P04", "extra data after last expected column"),
    ("22P04", "row field count is {n}, expected {n}"),
    ("22P05", "character with byte sequence[ {h}] in encoding \"{e}\" has no equivalent in encoding \"{e}\""),
    ("22P05", "unsupported Unicode escape sequence"),
    ("2200L", "invalid XML document"),
    ("2200M", "invalid XML document"),
    ("2200N", "invalid XML content"),
    ("23502", "null value in column \"{c}\" of relation \"{r}\" violates not-null constraint"),
    ("23502", "column \"{c}\" of relation \"{r}\" contains null values"),
    ("23502", "domain {t} does not allow null values"),
    ("23503", "insert or update on table \"{r}\" violates foreign key constraint \"{k}\""),
    ("23503", "update or delete on table \"{r}\" violates foreign key constraint \"{k}\" on table \"{r}\""),
    (
        "23001",
        "update or delete on table \"{r}\" violates RESTRICT setting of foreign key constraint \"{k}\" on table \"{r}\"",
    ),
    ("23505", "duplicate key value violates unique constraint \"{k}\""),
    ("23505", "could not create unique index \"{k}\""),
    ("23514", "new row for relation \"{r}\" violates check constraint \"{k}\""),
    ("23514", "new row for relation \"{r}\" violates partition constraint"),
    ("23514", "no partition of relation \"{r}\" found for row"),
    ("23514", "check constraint \"{k}\" of relation \"{r}\" is violated by some row"),
    ("23514", "partition constraint of relation \"{r}\" is violated by some row"),
    ("23514", "value for domain {t} violates check constraint \"{k}\""),
    ("23P01", "conflicting key value violates exclusion constraint \"{k}\""),
    ("23P01", "could not create exclusion constraint \"{k}\""),
    ("25006", "cannot execute {w} in a read-only transaction"),
    ("3F000", "schema \"{s}\" does not exist"),
    ("40001", "could not serialize access due to concurrent update"),
    ("40001", "could not serialize access due to concurrent delete"),
    ("40P01", "deadlock detected"),
    ("42501", "permission denied for {w} {r}"),
    ("42501", "must be owner of {w} {r}"),
    ("42501", "new row violates row-level security policy for table \"{r}\""),
    ("42703", "column \"{c}\" of relation \"{r}\" does not exist"),
    ("42703", "column \"{c}\" does not exist"),
    ("42703", "column {c} does not exist"),
    ("42704", "type \"{t}\" does not exist"),
    ("42804", "column \"{c}\" is of type {t} but expression is of type {t}"),
    ("42846", "cannot cast type {t} to {t}"),
    ("42883", "operator does not exist: {v}"),
    ("42P01", "relation \"{r}\" does not exist"),
    ("42P10", "there is no unique or exclusion constraint matching the ON CONFLICT specification"),
    ("428C9", "cannot insert a non-DEFAULT value into column \"{c}\""),
    ("428C9", "column \"{c}\" can only be updated to DEFAULT"),
    ("53100", "could not extend file \"{f}\": No space left on device"),
    ("53100", "could not write to file \"{f}\": No space left on device"),
    ("53200", "out of memory"),
    ("54000", "index row size {n} exceeds {w} version {n} maximum {n} for index \"{k}\""),
    ("54000", "index row size {n} exceeds maximum {n} for index \"{k}\""),
    ("54000", "index row requires {n} bytes, maximum size is {n}"),
    ("54000", "row is too big: size {n}, maximum size {n}"),
    ("54001", "stack depth limit exceeded"),
    ("55P03", "canceling statement due to lock timeout"),
    ("55P03", "could not obtain lock on row in relation \"{r}\""),
    ("57014", "canceling statement due to statement timeout"),
    ("57014", "canceling statement due to user request"),
];

/// A message that is one of PostgreSQL's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Matched<'a>(Vec<Part<'a>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'static str),
    Value,
    Name(NameKind, &'a str),
    /// A number, path or word of the server's.
    Plain(&'a str),
    Left,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Text(&'static str),
    Hole(char),
    Open,
    Close,
}

impl Matched<'_> {
    pub fn names(&self) -> Vec<(NameKind, String)> {
        let name = |part: &Part<'_>| match *part {
            Part::Name(kind, name) => Some((kind, name.to_owned())),
            Part::Text(_) | Part::Value | Part::Plain(_) | Part::Left => None,
        };
        self.0.iter().filter_map(name).collect()
    }

    /// The message, with the names that `shows` has.
    pub fn text(&self, shows: impl Fn(NameKind, &str) -> bool) -> String {
        let part = |part: &Part<'_>| match *part {
            Part::Text(text) => text.to_owned(),
            Part::Plain(text) => text.to_owned(),
            Part::Name(kind, name) if shows(kind, name) => name.to_owned(),
            Part::Name(..) | Part::Value => HIDDEN.to_owned(),
            Part::Left => String::new(),
        };
        self.0.iter().map(part).collect()
    }
}

/// The message as one of PostgreSQL's own.
pub(super) fn matching<'a>(code: &str, message: &'a str) -> Option<Matched<'a>> {
    let of_code = MESSAGES.iter().filter(|(of, _)| *of == code);
    of_code.map(|(_, text)| pieces(text)).find_map(|pieces| matched(&pieces, message))
}

fn pieces(text: &'static str) -> Vec<Piece> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(['{', '[', ']']) {
        if at > 0 {
            pieces.push(Piece::Text(&rest[..at]));
        }
        match rest.as_bytes()[at] {
            b'[' => pieces.push(Piece::Open),
            b']' => pieces.push(Piece::Close),
            _ => pieces.push(Piece::Hole(rest[at + 1..].chars().next().unwrap_or('v'))),
        }
        rest = &rest[at + if rest.as_bytes()[at] == b'{' { 3 } else { 1 }..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    pieces
}

fn matched<'a>(pieces: &[Piece], message: &'a str) -> Option<Matched<'a>> {
    let (mut parts, mut rest, mut is_left_out) = (Vec::new(), message, false);
    for (index, piece) in pieces.iter().enumerate() {
        match *piece {
            Piece::Open | Piece::Close => is_left_out = *piece == Piece::Open,
            Piece::Text(text) => {
                rest = rest.strip_prefix(text)?;
                parts.push(if is_left_out { Part::Left } else { Part::Text(text) });
            }
            Piece::Hole(of) => {
                let next = pieces[index + 1..].iter().find_map(|piece| match piece {
                    Piece::Text(text) => Some(*text),
                    Piece::Hole(_) | Piece::Open | Piece::Close => None,
                });
                // A value may hold whatever follows it in the message too.
                let end = match next {
                    None => rest.len(),
                    Some(next) if of == 'v' => rest.rfind(next)?,
                    Some(next) => rest.find(next)?,
                };
                let text = &rest[..end];
                rest = &rest[end..];
                parts.push(if is_left_out { Part::Left } else { part(of, text)? });
            }
        }
    }
    rest.is_empty().then_some(Matched(parts))
}

/// `None` where it cannot be what it should be.
fn part(of: char, text: &str) -> Option<Part<'_>> {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    match of {
        'r' => Some(Part::Name(NameKind::Relation, text)),
        'c' => Some(Part::Name(NameKind::Column, text)),
        'k' => Some(Part::Name(NameKind::Constraint, text)),
        't' => Some(Part::Name(NameKind::Type, text)),
        's' => Some(Part::Name(NameKind::Schema, text)),
        'n' => all(|c| c.is_ascii_digit()).then_some(Part::Plain(text)),
        'h' => all(|c| c.is_ascii_hexdigit() || "x ".contains(c)).then_some(Part::Value),
        'f' => all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)).then_some(Part::Value),
        'e' => all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_').then_some(Part::Plain(text)),
        // Of a few that the server has.
        'w' => matches!(
            text,
            "table"
                | "schema"
                | "sequence"
                | "function"
                | "view"
                | "column"
                | "database"
                | "relation"
                | "type"
                | "btree"
                | "INSERT"
                | "UPDATE"
                | "DELETE"
                | "TRUNCATE TABLE"
                | "COPY FROM"
                | "SELECT FOR UPDATE"
        )
        .then_some(Part::Plain(text)),
        _ => Some(Part::Value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(code: &str, message: &str) -> Option<String> {
        matching(code, message).map(|matched| matched.text(|_, _| true))
    }

    #[test]
    fn values_are_left_out() {
        for (code, message, expected) in [
            ("22P02", "invalid input syntax for type integer: \"m4rk\"", "invalid input syntax for type integer"),
            ("22P02", "invalid input syntax for type json", "invalid input syntax for type json"),
            (
                "22003",
                "value \"m4rk\" is out of range for type integer",
                "value \"…\" is out of range for type integer",
            ),
            ("22001", "value too long for type character varying(5)", "value too long for type character varying(5)"),
            (
                "23505",
                "duplicate key value violates unique constraint \"a b\"",
                "duplicate key value violates unique constraint \"a b\"",
            ),
            (
                "22P05",
                "character with byte sequence 0xe2 0x82 0xac in encoding \"UTF8\" has no equivalent in encoding \"LATIN1\"",
                "character with byte sequence in encoding \"UTF8\" has no equivalent in encoding \"LATIN1\"",
            ),
        ] {
            assert_eq!(text(code, message).as_deref(), Some(expected), "{message}");
        }
        assert_eq!(text("23505", "m4rk"), None);
        assert_eq!(text("54000", "index row size m4rk exceeds maximum 1 for index \"x\""), None);
    }

    #[test]
    fn a_value_that_goes_on_as_the_message_does_is_still_a_value() {
        let message = "value \"1\" is out of range for type m4rk\" is out of range for type integer";
        assert_eq!(text("22003", message).as_deref(), Some("value \"…\" is out of range for type integer"));
        let message = "invalid input syntax for type integer: \"x\": \"m4rk\"";
        assert_eq!(text("22P02", message).as_deref(), Some("invalid input syntax for type integer"));
    }

    #[test]
    fn names_that_are_not_known_are_not_shown() {
        let matched =
            matching("23502", "null value in column \"v\" of relation \"t\" violates not-null constraint").unwrap();
        assert_eq!(matched.names(), [(NameKind::Column, "v".to_owned()), (NameKind::Relation, "t".to_owned())]);
        let text = matched.text(|kind, _| kind == NameKind::Column);
        assert_eq!(text, "null value in column \"v\" of relation \"…\" violates not-null constraint");
    }
}
