//! Our rules as TOML: what has been decided comes in, text for the configuration goes out.

use std::fmt::{self, Display};

use toml::Value;

use super::document::RuleId;

/// `[tables]` and the rules.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Patterns, without doubles.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub rules: Vec<WrittenRule>,
}

#[derive(Clone, Debug)]
pub struct WrittenRule {
    /// The rules of the mapping that it stands for, and their names.
    pub of: Vec<(RuleId, String)>,
    /// A pattern.
    pub table: String,
    /// Keys of a rule and their values.
    pub keys: Vec<(&'static str, Value)>,
    pub yields: bool,
}

impl Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Rules of an AWS DMS table mapping: for a configuration that has name, [source] and [target].")?;
        if self.has_single_wildcards() {
            writeln!(f, "# ? stands for any one character, as _ does in DMS.")?;
        }
        writeln!(f, "\n[tables]")?;
        match self.include.as_slice() {
            [] => writeln!(f, "# include = []: no rule of the mapping includes a table")?,
            include => writeln!(f, "include = {}", patterns(include))?,
        }
        if !self.exclude.is_empty() {
            writeln!(f, "exclude = {}", patterns(&self.exclude))?;
        }
        self.rules.iter().try_for_each(|rule| write!(f, "\n{rule}"))
    }
}

impl Written {
    fn has_single_wildcards(&self) -> bool {
        let tables = self.rules.iter().map(|rule| &rule.table);
        self.include.iter().chain(&self.exclude).chain(tables).any(|pattern| pattern.contains('?'))
    }
}

impl Display for WrittenRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, name) in &self.of {
            writeln!(f, "# rule-id {id}: {}", name.replace(char::is_control, " "))?;
        }
        writeln!(f, "[[rule]]")?;
        writeln!(f, "table = {}", Value::from(self.table.as_str()))?;
        for (key, value) in &self.keys {
            writeln!(f, "{key} = {value}")?;
        }
        if self.yields {
            writeln!(f, "yields = true")?;
        }
        Ok(())
    }
}

fn patterns(patterns: &[String]) -> Value {
    Value::from(patterns.to_vec())
}

/// A value at a name, such as `{ name = value }`.
pub fn at(name: &str, value: impl Into<Value>) -> Value {
    Value::Table([(name.to_owned(), value.into())].into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_as_toml_has_it() {
        let value = at("a b\"c", "x\n'\"\\");
        let read: toml::Table = format!("v = {value}").parse().unwrap();
        assert_eq!(read["v"], value);
        assert_eq!(at("a", "b").to_string(), "{ a = \"b\" }");
    }
}
