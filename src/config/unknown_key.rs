//! Keys and tables that no part of the configuration knows. A parsed document comes in, the first stranger in the
//! order of the file goes out, with what its writer most likely meant.
//!
//! serde's own refusal of unknown fields knows neither the table nor a neighbour of the name, and its words are not an
//! interface to build on; it stays behind this check, so that a key which only the lists know cannot pass unread.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::{ConfigError, Key, raw};

/// An unknown key or table, before the file and the line are known.
pub(super) struct Stranger {
    table: String,
    key: String,
    kind: Kind,
    span: Range<usize>,
    suggestion: Suggestion,
}

#[derive(Clone, Copy)]
enum Kind {
    Key,
    Table,
}

impl Stranger {
    pub(super) fn into_error(self, text: &str, path: &Path) -> ConfigError {
        let Stranger { table, key, kind, span, suggestion } = self;
        let (path, line) = (path.to_owned(), raw::line_of(text, &span));
        match kind {
            Kind::Key => ConfigError::UnknownKey { path, key: Key { table, key }, line, suggestion },
            Kind::Table => {
                let table = if table.is_empty() { key } else { format!("{table}.{key}") };
                ConfigError::UnknownTable { path, table, line, suggestion }
            }
        }
    }
}

/// What the writer of an unknown name is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suggestion {
    Nearest(&'static str),
    /// The key exists, in another table.
    BelongsIn(&'static str),
    Known(Vec<&'static str>),
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Suggestion::Nearest(known) => write!(f, "did you mean `{known}`?"),
            Suggestion::BelongsIn("") => f.write_str("it belongs at the top of the file"),
            Suggestion::BelongsIn(table) => write!(f, "it belongs in [{table}]"),
            Suggestion::Known(known) => write!(f, "known here: `{}`", known.join("`, `")),
        }
    }
}

pub(super) fn find(document: &DeTable<'_>) -> Option<Stranger> {
    std::iter::once(("", document))
        .chain(raw::tables_of(document))
        .flat_map(|(table, keys)| strangers_in(table, keys))
        .min_by_key(|stranger| stranger.span.start)
}

/// The known name that `name` most resembles, if it resembles any.
pub(super) fn nearest(name: &str, known: impl IntoIterator<Item = &'static str>) -> Option<&'static str> {
    /// Jaro's measure, 1 for the same word: tells `batch_row` from `batch_rows`, and not `trail` from `target`.
    const RESEMBLES: f64 = 0.75;
    known
        .into_iter()
        .map(|known| (strsim::jaro(name, known), known))
        .filter(|(score, _)| *score >= RESEMBLES)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

fn strangers_in(table: &str, keys: &DeTable<'_>) -> Vec<Stranger> {
    let Some(known) = raw::keys_of(table) else { return Vec::new() };
    let unknown = keys.iter().filter(|(key, _)| !known.contains(&key.get_ref().as_ref()));
    unknown
        .map(|(key, value)| {
            let (name, kind) = (key.get_ref().as_ref(), kind_of(value.get_ref()));
            let suggestion = suggest(table, name, kind);
            Stranger { table: table.to_owned(), key: name.to_owned(), kind, span: key.span(), suggestion }
        })
        .collect()
}

/// `[a]`, `[[a]]` and `a = {}` are tables to a reader of the file.
fn kind_of(value: &DeValue<'_>) -> Kind {
    let all_tables = |values: &[toml::Spanned<DeValue<'_>>]| {
        !values.is_empty() && values.iter().all(|value| value.get_ref().is_table())
    };
    match value {
        DeValue::Table(_) => Kind::Table,
        DeValue::Array(values) if all_tables(values) => Kind::Table,
        _ => Kind::Key,
    }
}

fn suggest(table: &str, name: &str, kind: Kind) -> Suggestion {
    let here = raw::keys_of(table).unwrap_or_default();
    let home = match kind {
        Kind::Key => raw::TABLES.into_iter().find(|table| raw::keys_of(table).unwrap_or_default().contains(&name)),
        Kind::Table => None,
    };
    match (home, nearest(name, here.iter().copied())) {
        (Some(home), _) => Suggestion::BelongsIn(home),
        (None, Some(nearest)) => Suggestion::Nearest(nearest),
        (None, None) => Suggestion::Known(here.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    fn complaint(text: &str) -> String {
        parse::parse(text, "p.toml".as_ref()).err().unwrap().to_string()
    }

    #[test]
    fn a_misspelt_key_is_met_with_its_neighbour() {
        assert_eq!(
            complaint("name = \"n\"\n[apply]\n# rows\nbatch_row = 5\n"),
            "p.toml: unknown key `batch_row` in [apply], line 4; did you mean `batch_rows`?"
        );
        assert_eq!(complaint("nmae = 1"), "p.toml: unknown key `nmae`, line 1; did you mean `name`?");
        assert!(complaint("[source]\npassword = \"x\"").ends_with("did you mean `password_env`?"));
    }

    #[test]
    fn tables_are_called_tables() {
        assert_eq!(complaint("\n[targte]"), "p.toml: unknown table [targte], line 2; did you mean `target`?");
        let known = "known here: `name`, `shards`, `source`, `primary`, `target`, `tables`, `snapshot`, `stream`, `spool`, \
                     `trail`, `apply`, `log`, `masks`, `rule`, `conflict`";
        for text in ["[[zzz]]\ntable = 1", "[verify]", "[http]", "http = { listen = 1 }"] {
            let complaint = complaint(text);
            assert!(complaint.contains("unknown table [") && complaint.ends_with(known), "{complaint}");
        }
        assert_eq!(
            complaint("[source.iam]\nregion = 1"),
            "p.toml: unknown table [source.iam], line 1; known here: `dsn`, `password_file`, `password_env`"
        );
    }

    #[test]
    fn a_key_in_the_wrong_table_is_sent_home() {
        assert_eq!(complaint("batch_bytes = 1"), "p.toml: unknown key `batch_bytes`, line 1; it belongs in [apply]");
        assert_eq!(
            complaint("[apply]\nname = 1"),
            "p.toml: unknown key `name` in [apply], line 2; it belongs at the top of the file"
        );
    }

    #[test]
    fn keys_that_nothing_reads_are_unknown() {
        for (table, key) in [("apply", "threads"), ("target", "profile")] {
            let complaint = complaint(&format!("[{table}]\n{key} = 1"));
            assert!(
                complaint.contains(&format!("unknown key `{key}` in [{table}], line 2; known here")),
                "{complaint}"
            );
        }
    }

    #[test]
    fn the_first_in_the_file_is_reported() {
        assert!(complaint("[stream]\nzzz = 1\n[apply]\naaa = 1").contains("`zzz` in [stream], line 2"));
    }
}
