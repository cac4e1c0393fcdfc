//! What the CONTEXT of a server's error says about where it happened.
//!
//! It is a stack of lines, innermost first. COPY quotes the row or value that it was at, and so may a statement that a function
//! has put together; so none of it is shown as it is.

/// Where the server was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Context<'a> {
    None,
    /// At a row version that it was changing, within a JSON value or decoding, and in no function.
    Tuple,
    /// Reading what is copied.
    Copy(InCopy<'a>),
    /// Reading the parameter with this number, counted from 1.
    Parameter(usize),
    /// Anything else, such as a function of the database: its name where that is said.
    Function(Option<&'a str>),
}

/// Names are as the server writes them: without schema and quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InCopy<'a> {
    pub table: &'a str,
    pub line: u64,
    pub column: Option<&'a str>,
}

impl<'a> Context<'a> {
    pub fn parse(text: Option<&'a str>) -> Context<'a> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Context::None };
        let rest = skip_plain(text);
        if rest.is_empty() {
            return Context::Tuple;
        }
        if let Some(number) = parameter(rest) {
            return Context::Parameter(number);
        }
        // What COPY quotes may have lines of its own. COPY is the outermost of the stack, so nothing of the server follows.
        match rest.strip_prefix("COPY ").and_then(in_copy) {
            Some(copy) => Context::Copy(copy),
            None => Context::Function(rest.lines().find_map(function)),
        }
    }
}

/// `COPY t, line 3, column v: "value"`, `COPY t, line 3: "row"`, `COPY t, line 3`, `COPY t, line 3, column v: null input`.
fn in_copy(text: &str) -> Option<InCopy<'_>> {
    let (table, rest) = text.split_once(", line ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (line, rest) = (rest[..digits].parse().ok()?, &rest[digits..]);
    let column = rest.strip_prefix(", column ").map(|rest| {
        let end = [": \"", ": null input"].iter().filter_map(|end| rest.find(end)).min();
        &rest[..end.unwrap_or(rest.len())]
    });
    Some(InCopy { table, line, column })
}

/// `unnamed portal parameter $2`, with its value where the server logs that.
fn parameter(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("unnamed portal parameter $").or_else(|| {
        let rest = text.strip_prefix("portal \"")?;
        rest.split_once("\" parameter $").map(|(_, rest)| rest)
    })?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let is_end = rest.len() == digits || rest[digits..].starts_with(" = ");
    rest[..digits].parse().ok().filter(|_| is_end)
}

/// Without leading lines such as `while updating tuple (0,1) in relation "t"`, `JSON data, line 1: {…` and `slot "s", output
/// plugin "pgoutput", in the change callback`.
fn skip_plain(text: &str) -> &str {
    let mut rest = text;
    let is_plain = |line: &str| {
        line.starts_with("while ") && line.contains(" tuple (")
            || line.starts_with("JSON data, line ")
            || line.starts_with("slot \"") && line.contains(", output plugin \"pgoutput\", ")
    };
    while rest.lines().next().is_some_and(is_plain) {
        rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
    }
    rest
}

/// The name in `PL/pgSQL function audit.note(integer) line 3 at RAISE`, without its schema.
fn function(line: &str) -> Option<&str> {
    let start = ["PL/pgSQL function ", "SQL function ", "PL/Python function ", "PL/Perl function ", "PL/Tcl function "]
        .iter()
        .find_map(|start| line.strip_prefix(start))?;
    let end = start.find(['(', ' ']).unwrap_or(start.len());
    let name = start[..end].trim_matches('"');
    Some(name.rsplit_once('.').map_or(name, |(_, name)| name.trim_matches('"')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_says_table_line_and_column() {
        let copy = |table, line, column| Context::Copy(InCopy { table, line, column });
        for (text, expected) in [
            ("COPY t, line 3, column v: \"x: \"y\"", copy("t", 3, Some("v"))),
            ("COPY My t, line 12: \"1\tPL/pgSQL function f() line 1 at RAISE\n\"", copy("My t", 12, None)),
            ("COPY t, line 1", copy("t", 1, None)),
            ("COPY t, line 1, column a b: null input", copy("t", 1, Some("a b"))),
            ("COPY t, line 1, column v", copy("t", 1, Some("v"))),
            ("JSON data, line 1: {secret\nCOPY t, line 1, column v: \"{secret\"", copy("t", 1, Some("v"))),
        ] {
            assert_eq!(Context::parse(Some(text)), expected, "{text}");
        }
    }

    #[test]
    fn functions_come_before_what_called_them() {
        let function = |name| Context::Function(Some(name));
        for (text, expected) in [
            ("PL/pgSQL function refuse() line 1 at RAISE\nCOPY t, line 3: \"secret\"", function("refuse")),
            (
                "SQL statement \"INSERT …\"\nPL/pgSQL function audit.note(integer) line 3 at SQL statement",
                function("note"),
            ),
            ("PL/Python function \"tell\"", function("tell")),
            ("something of an extension", Context::Function(None)),
        ] {
            assert_eq!(Context::parse(Some(text)), expected, "{text}");
        }
    }

    #[test]
    fn parameters_and_tuples() {
        assert_eq!(Context::parse(Some("unnamed portal parameter $12")), Context::Parameter(12));
        assert_eq!(Context::parse(Some("unnamed portal parameter $2 = 'secret'")), Context::Parameter(2));
        assert_eq!(Context::parse(Some("portal \"p\" parameter $2")), Context::Parameter(2));
        assert_eq!(Context::parse(Some("while updating tuple (0,1) in relation \"t\"")), Context::Tuple);
        assert_eq!(Context::parse(None), Context::None);
    }
}
