//! Names and literals inside of SQL text.

use std::fmt;

/// A name in double quotes, whatever it holds.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `"schema"."name"`.
pub fn quote_qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(name))
}

/// A table as statements name it that read, lock or remove its rows: a partitioned one with its partitions, any other without the
/// tables that inherit from it. Their rows are their own, and are replicated under their own names if at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnRows(String);

impl OwnRows {
    /// `table` is quoted, with its schema.
    pub fn of(table: impl fmt::Display, is_partitioned: bool) -> OwnRows {
        OwnRows(if is_partitioned { table.to_string() } else { format!("ONLY {table}") })
    }
}

impl fmt::Display for OwnRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A string constant that means the same whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_doubled() {
        assert_eq!(quote_qualified("My \"S\"", "t.x"), "\"My \"\"S\"\"\".\"t.x\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), "E'a\\\\''b'");
    }
}
