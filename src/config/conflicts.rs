//! What the file says of conflicts: the defaults of `[apply]` and each `[[conflict]]` come in, the policy of any table goes
//! out. Whether sections contradict each other, only the tables can tell.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::file::File;
use super::raw::{CONFLICT, RawConflict, line_of};
use super::rules::patterns;
use super::{ConfigError, Pattern, Problem};

/// What becomes of a row whose key is on the target already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDuplicate {
    Stop,
    /// The target's row becomes the source's.
    Overwrite,
    /// The target's row stays, and the change is left out.
    Keep,
}

/// What becomes of an update or delete whose row is not on the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMissingRow {
    Stop,
    /// An update becomes an insert of the whole row, a delete is done.
    Insert,
    /// It is left out.
    Skip,
}

/// What becomes of a change that the target does not take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    #[default]
    Stop,
    /// It is set aside in `pgsluice.exceptions`.
    Exceptions,
}

/// What is done about the conflicts of a table. What `on_duplicate` and `on_missing_row` do not say, `on_error` does, which
/// stops by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub on_duplicate: Option<OnDuplicate>,
    pub on_missing_row: Option<OnMissingRow>,
    pub on_error: Option<OnError>,
}

impl Policy {
    /// Every conflict ends the stream.
    pub fn only_stops(self) -> bool {
        matches!(self.on_duplicate, None | Some(OnDuplicate::Stop))
            && matches!(self.on_missing_row, None | Some(OnMissingRow::Stop))
            && self.on_error.unwrap_or_default() == OnError::Stop
    }

    /// What this one leaves open, the other one decides.
    fn or(self, other: Policy) -> Policy {
        Policy {
            on_duplicate: self.on_duplicate.or(other.on_duplicate),
            on_missing_row: self.on_missing_row.or(other.on_missing_row),
            on_error: self.on_error.or(other.on_error),
        }
    }

    /// A key that the two decide differently.
    fn contradiction(self, other: Policy) -> Option<&'static str> {
        fn differ<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
            one.is_some() && other.is_some() && one != other
        }
        [
            ("on_duplicate", differ(self.on_duplicate, other.on_duplicate)),
            ("on_missing_row", differ(self.on_missing_row, other.on_missing_row)),
            ("on_error", differ(self.on_error, other.on_error)),
        ]
        .into_iter()
        .find_map(|(key, differs)| differs.then_some(key))
    }
}

/// The policies of all tables, by their names on the source.
#[derive(Clone, Debug, Default)]
pub struct Conflicts {
    defaults: Policy,
    /// In the order of the file.
    sections: Vec<Section>,
}

/// One `[[conflict]]`.
#[derive(Clone, Debug)]
struct Section {
    /// In the file, counted from 1.
    line: usize,
    tables: Vec<Pattern>,
    except: Vec<Pattern>,
    policy: Policy,
}

impl Section {
    fn matches(&self, schema: &str, table: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(schema, table));
        any(&self.tables) && !any(&self.except)
    }
}

impl Conflicts {
    pub fn policy(&self, schema: &str, table: &str) -> Policy {
        self.decided(schema, table).or(self.defaults)
    }

    /// What sections say of the table, without the defaults, each with its line.
    pub fn sections<'a>(&'a self, schema: &'a str, table: &'a str) -> impl Iterator<Item = (usize, Policy)> + 'a {
        let matching = self.sections.iter().filter(move |section| section.matches(schema, table));
        matching.map(|section| (section.line, section.policy))
    }

    /// No table has another policy than to stop.
    pub fn only_stop(&self) -> bool {
        let policies = self.sections.iter().map(|section| section.policy);
        policies.chain([self.defaults]).all(Policy::only_stops)
    }

    /// What is wrong with the sections, now that the tables are known: two that decide differently about one of them, and
    /// one that is about none.
    pub fn check<'a>(&self, tables: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Vec<String> {
        let is_idle = |section: &&Section| !tables.clone().any(|(schema, table)| section.matches(schema, table));
        let idle = self.sections.iter().filter(is_idle).map(|Section { line, tables, .. }| {
            let patterns: Vec<_> = tables.iter().map(|pattern| format!("\"{pattern}\"")).collect();
            format!("[[conflict]] of line {line}: no table that is replicated matches {}", patterns.join(", "))
        });
        let contradicted = tables.clone().filter_map(|(schema, table)| self.contradiction(schema, table));
        idle.chain(contradicted).collect()
    }

    fn contradiction(&self, schema: &str, table: &str) -> Option<String> {
        let mut before: Vec<(usize, Policy)> = Vec::new();
        for (line, policy) in self.sections(schema, table) {
            for (first, other) in &before {
                if let Some(key) = policy.contradiction(*other) {
                    return Some(format!(
                        "[[conflict]] of line {line}: {key} of \"{schema}\".\"{table}\" is decided otherwise by that of line \
                         {first}"
                    ));
                }
            }
            before.push((line, policy));
        }
        None
    }

    fn decided(&self, schema: &str, table: &str) -> Policy {
        self.sections(schema, table).fold(Policy::default(), |decided, (_, policy)| decided.or(policy))
    }
}

pub(super) fn resolve(
    file: &File<'_>,
    defaults: Policy,
    sections: Vec<Spanned<RawConflict>>,
) -> Result<Conflicts, ConfigError> {
    let resolve = |section: Spanned<RawConflict>| resolve_one(file, section.span(), section.into_inner());
    Ok(Conflicts { defaults, sections: sections.into_iter().map(resolve).collect::<Result<_, _>>()? })
}

fn resolve_one(file: &File<'_>, at: Range<usize>, raw: RawConflict) -> Result<Section, ConfigError> {
    let RawConflict { table, except, on_duplicate, on_missing_row, on_error } = raw;
    let wrong = |key: &str, what: &str| file.value(CONFLICT, key, &at, Problem::Type(what.to_owned()));
    let Some(table) = table else {
        return Err(wrong("table", "is missing; name a table or a pattern, such as table = \"public.*\""));
    };
    let policy = Policy { on_duplicate, on_missing_row, on_error };
    if policy == Policy::default() {
        return Err(wrong("table", "nothing is said about it; add on_duplicate, on_missing_row or on_error"));
    }
    Ok(Section {
        line: line_of(file.text, &at),
        tables: patterns(file, CONFLICT, "table", table)?,
        except: except.map(|except| patterns(file, CONFLICT, "except", except)).transpose()?.unwrap_or_default(),
        policy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const LEAST: &str = "name = \"n\"\nsource.dsn = \"host=/s user=u\"\ntarget.dsn = \"host=/t user=u\"\n\
                         tables.include = [\"s.*\"]\n";

    fn conflicts(text: &str) -> Result<Conflicts, String> {
        let config = Config::parse(&format!("{LEAST}{text}"), "p.toml".as_ref(), &|_| None);
        config.map(|config| config.conflicts).map_err(|error| error.to_string())
    }

    #[test]
    fn sections_add_to_the_defaults() {
        let conflicts = conflicts(
            "apply.on_error = 'exceptions'\n[[conflict]]\ntable = 's.*'\nexcept = 's.log'\non_duplicate = 'keep'\n\
             [[conflict]]\ntable = ['s.a', 's.b']\non_missing_row = 'insert'\n",
        )
        .unwrap();
        let policy =
            |on_duplicate, on_missing_row| Policy { on_duplicate, on_missing_row, on_error: Some(OnError::Exceptions) };
        assert_eq!(conflicts.policy("s", "a"), policy(Some(OnDuplicate::Keep), Some(OnMissingRow::Insert)));
        assert_eq!(conflicts.policy("s", "c"), policy(Some(OnDuplicate::Keep), None));
        assert_eq!(conflicts.policy("s", "log"), policy(None, None));
        assert!(!conflicts.only_stop() && !conflicts.policy("s", "log").only_stops());
        assert_eq!(conflicts.check([("s", "a"), ("s", "log")].into_iter()), [""; 0]);
    }

    #[test]
    fn by_default_everything_stops() {
        let stated = "apply = { on_duplicate = 'stop', on_missing_row = 'stop', on_error = 'stop' }";
        for text in ["", stated, "[[conflict]]\ntable = 's.a'\non_error = 'stop'"] {
            let conflicts = conflicts(text).unwrap();
            assert!(conflicts.only_stop() && conflicts.policy("s", "a").only_stops(), "{text}");
        }
    }

    #[test]
    fn sections_that_decide_differently_are_named_with_both_lines() {
        let conflicts = conflicts(
            "[[conflict]]\ntable = 's.*'\non_duplicate = 'keep'\non_error = 'stop'\n[[conflict]]\ntable = 's.a'\n\
             on_duplicate = 'overwrite'\non_error = 'stop'\n[[conflict]]\ntable = 't.b'\non_error = 'stop'\n",
        )
        .unwrap();
        let found = conflicts.check([("s", "a"), ("s", "b")].into_iter());
        let expected = [
            "[[conflict]] of line 13: no table that is replicated matches \"t.b\"",
            "[[conflict]] of line 9: on_duplicate of \"s\".\"a\" is decided otherwise by that of line 5",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, what) in [
            ("on_error = 'stop'", "`table` in [conflict], line 5: is missing"),
            ("table = 's.a'", "`table` in [conflict], line 5: nothing is said about it"),
            ("table = []\non_error = 'stop'", "line 6: the list is empty"),
            ("table = 'a'\non_error = 'stop'", "line 6: \"a\" names no schema"),
            (
                "table = 's.a'\non_eror = 'stop'",
                "unknown key `on_eror` in [conflict], line 7; did you mean `on_error`?",
            ),
            ("table = 's.a'\non_error = 'skip'", "`on_error` in [conflict], line 7: unknown variant `skip`"),
            ("table = 's.a'\non_missing_row = 'keep'", "`stop`, `insert`, `skip`"),
            ("table = 's.a'\non_duplicate = 'skip'", "`stop`, `overwrite`, `keep`"),
        ] {
            let complaint = conflicts(&format!("[[conflict]]\n{text}")).unwrap_err();
            assert!(complaint.contains(what), "{complaint}");
        }
        let complaint = conflicts("[conflict]\ntable = 's.a'").unwrap_err();
        assert!(complaint.contains("expected conflicts, each below a line [[conflict]]"), "{complaint}");
        let complaint = conflicts("on_duplicate = 'keep'").unwrap_err();
        assert!(complaint.contains("belongs in [apply]"), "{complaint}");
    }
}
