//! Changes of names: as our rules say them, and what they make of a name.

use toml::Value;

use super::document::NameChange;
use super::output::at;

impl NameChange {
    /// What it holds of names.
    pub(super) fn texts(&self) -> Vec<&str> {
        match self {
            NameChange::LowerCase | NameChange::UpperCase => Vec::new(),
            NameChange::To(text)
            | NameChange::AddPrefix(text)
            | NameChange::AddSuffix(text)
            | NameChange::RemovePrefix(text)
            | NameChange::RemoveSuffix(text) => vec![text],
            NameChange::ReplacePrefix(old, new) | NameChange::ReplaceSuffix(old, new) => vec![old, new],
        }
    }

    pub(super) fn to_toml(&self) -> Value {
        let pair = |old: &str, new: &str| Value::from(vec![old, new]);
        match self {
            NameChange::To(name) => Value::from(name.as_str()),
            NameChange::LowerCase => at("case", "lower"),
            NameChange::UpperCase => at("case", "upper"),
            NameChange::AddPrefix(prefix) => at("add_prefix", prefix.as_str()),
            NameChange::AddSuffix(suffix) => at("add_suffix", suffix.as_str()),
            NameChange::RemovePrefix(prefix) => at("remove_prefix", prefix.as_str()),
            NameChange::RemoveSuffix(suffix) => at("remove_suffix", suffix.as_str()),
            NameChange::ReplacePrefix(old, new) => at("replace_prefix", pair(old, new)),
            NameChange::ReplaceSuffix(old, new) => at("replace_suffix", pair(old, new)),
        }
    }

    pub(super) fn apply(&self, name: &str) -> String {
        let without_prefix = |old: &str, new: &str| match name.strip_prefix(old) {
            Some(rest) => format!("{new}{rest}"),
            None => name.to_owned(),
        };
        let without_suffix = |old: &str, new: &str| match name.strip_suffix(old) {
            Some(rest) => format!("{rest}{new}"),
            None => name.to_owned(),
        };
        match self {
            NameChange::To(new) => new.clone(),
            NameChange::LowerCase => name.to_lowercase(),
            NameChange::UpperCase => name.to_uppercase(),
            NameChange::AddPrefix(prefix) => format!("{prefix}{name}"),
            NameChange::AddSuffix(suffix) => format!("{name}{suffix}"),
            NameChange::RemovePrefix(old) => without_prefix(old, ""),
            NameChange::RemoveSuffix(old) => without_suffix(old, ""),
            NameChange::ReplacePrefix(old, new) => without_prefix(old, new),
            NameChange::ReplaceSuffix(old, new) => without_suffix(old, new),
        }
    }
}
