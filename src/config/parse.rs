//! From TOML text to a [`RawConfig`], or to an error that names the line and the key.

use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::raw::{CONFLICT, RULE, RawConfig, TABLES, line_of, tables_of};
use super::{ConfigError, Key, Problem, unknown_key};

pub(super) fn parse(text: &str, path: &Path) -> Result<RawConfig, ConfigError> {
    // The error's message alone: its Display quotes the line, which can hold a password.
    let syntax = |error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| line_of(text, &span)),
        message: error.message().replace('\n', ", "),
    };
    let document = DeTable::parse(text).map_err(syntax)?;
    if let Some(stranger) = unknown_key::find(document.get_ref()) {
        return Err(stranger.into_error(text, path));
    }
    let value_error = |key: Key, span: Range<usize>, message: String| ConfigError::Value {
        path: path.to_owned(),
        key,
        line: line_of(text, &span),
        problem: Box::new(Problem::Type(message)),
    };
    for (key, value) in document.get_ref() {
        let name = key.get_ref().as_ref();
        let message = match value.get_ref() {
            DeValue::Array(list) if comes_often(name) && list.iter().all(|one| one.get_ref().is_table()) => continue,
            _ if comes_often(name) => format!("expected {name}s, each below a line [[{name}]] of its own"),
            value if !TABLES.contains(&name) || value.is_table() => continue,
            _ => format!("expected a table, written as [{name}] on a line of its own"),
        };
        return Err(value_error(Key::new("", name), key.span(), message));
    }
    let keys = document.get_ref().clone();
    RawConfig::deserialize(toml::Deserializer::from(document)).map_err(|error| {
        match error.span().and_then(|span| Some((key_at(&keys, span.start)?, span))) {
            Some((key, span)) => {
                let message = match words_for(text, &span) {
                    Some(words) if error.message().contains("wanted string or table") => {
                        format!("expected {words}, in quotes")
                    }
                    Some(_) | None => error.message().to_owned(),
                };
                value_error(key, span, message)
            }
            None => syntax(error),
        }
    })
}

/// The words that the value at `span` may be, where it is one of a few: what the parser says of a word that is none.
fn words_for(text: &str, span: &Range<usize>) -> Option<String> {
    let other = format!("{}\"\"{}", text.get(..span.start)?, text.get(span.end..)?);
    let error = RawConfig::deserialize(toml::Deserializer::parse(&other).ok()?).err()?;
    error.message().split_once("expected ").map(|(_, words)| words.to_owned())
}

fn comes_often(table: &str) -> bool {
    matches!(table, RULE | CONFLICT)
}

/// The key whose value holds the byte at `offset`.
fn key_at(document: &DeTable<'_>, offset: usize) -> Option<Key> {
    let mut keys = tables_of(document)
        .chain([("", document)])
        .flat_map(|(table, keys)| keys.iter().map(move |entry| (table, entry)));
    keys.find(|(_, (_, value))| value.span().contains(&offset))
        .map(|(table, (key, _))| Key::new(table, key.get_ref().as_ref()))
}
