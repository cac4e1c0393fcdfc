//! Why a rule does not fit a table.

use std::fmt;
use std::ops::Range;

use super::expression::ExpressionError;
use crate::config::Rule;
use crate::decode::Relation;

/// One fault, with its place in the configuration and in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleError {
    /// Of the rule's first line in the configuration.
    pub line: usize,
    /// Quoted; `None` where the rule fits no table at all.
    pub table: Option<String>,
    pub what: String,
    /// Where in an expression.
    at: Option<(String, Range<usize>)>,
    pub mend: String,
}

impl RuleError {
    pub(super) fn new(
        rule: &Rule,
        relation: &Relation,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) -> Box<RuleError> {
        let (what, mend) = (what.into(), mend.into());
        Box::new(RuleError { line: rule.line, table: Some(relation.to_string()), what, at: None, mend })
    }

    pub(super) fn without_table(rule: &Rule, what: impl Into<String>, mend: impl Into<String>) -> Box<RuleError> {
        Box::new(RuleError { line: rule.line, table: None, what: what.into(), at: None, mend: mend.into() })
    }

    /// An expression at `key` of the rule that cannot be compiled.
    pub(super) fn expression(
        rule: &Rule,
        relation: &Relation,
        key: &str,
        text: &str,
        error: ExpressionError,
    ) -> Box<RuleError> {
        let ExpressionError { range, message } = error;
        let mut error = RuleError::new(rule, relation, format!("{key}: {message}"), "correct the expression");
        error.at = Some((text.to_owned(), range));
        error
    }
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule of line {}", self.line)?;
        if let Some(table) = &self.table {
            write!(f, ", table {table}")?;
        }
        write!(f, ": {}", self.what)?;
        if let Some((text, range)) = &self.at {
            write!(f, "\n{}", with_caret(text, range))?;
        }
        Ok(())
    }
}

impl std::error::Error for RuleError {}

/// The line of the text that the range begins in, and carets below the range.
fn with_caret(text: &str, range: &Range<usize>) -> String {
    let start = range.start.min(text.len());
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let blanks: String = text[line_start..start].chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let marked = text[start..range.end.clamp(start, line_end)].chars().count().max(1);
    format!("    {}\n    {blanks}{}", &text[line_start..line_end], "^".repeat(marked))
}

#[cfg(test)]
mod tests {
    use super::with_caret;

    #[test]
    fn carets_stand_below_what_is_meant() {
        assert_eq!(with_caret("a = bü + c", &(4..7)), "    a = bü + c\n        ^^");
        assert_eq!(with_caret("a\n = \tb\nc", &(6..7)), "     = \tb\n       \t^");
        assert_eq!(with_caret("a =", &(3..3)), "    a =\n       ^");
        assert_eq!(with_caret("a\nb", &(0..3)), "    a\n    ^");
    }
}
