//! What decides what becomes of a table's rows, in a form that tells later whether it is still the same.
//!
//! It holds a digest of the rules, one of what they decide about the table, and what they decide about each column of the
//! source, which is known by its number: it keeps that under another name. A column that comes or goes changes nothing about
//! the rows that are on the target, as long as the rules are those under which it came.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::mask::Masking;
use super::plan::{How, Output, Plan};
use crate::config::{Mask, Rule};
use crate::postgres::quote_ident;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    /// The rules that are about the table, as they are written.
    rules: String,
    /// Where rows go, which of them, and what is set beside their columns; empty where that is nothing.
    table: String,
    /// By their numbers in `pg_attribute`.
    columns: BTreeMap<i16, Decided>,
}

/// What becomes of a column.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Decided {
    name: String,
    /// On the target; `None` where it is left out.
    target: Option<String>,
    /// A digest, or empty where values go as they are.
    done: String,
}

impl Decided {
    fn is_as_it_is(&self) -> bool {
        self.done.is_empty() && self.target.as_ref() == Some(&self.name)
    }

    /// A column that has another name on the source may well have it on the target too.
    fn is_same(&self, other: &Decided) -> bool {
        let is_at_its_place = self.target == other.target || self.name != other.name;
        self.done == other.done && self.target.is_some() == other.target.is_some() && is_at_its_place
    }
}

impl Fingerprint {
    fn decides_nothing(&self) -> bool {
        self.table.is_empty() && self.columns.values().all(Decided::is_as_it_is)
    }
}

/// Of the plan that these rules make; `attnums` are the numbers of the source's columns.
pub(super) fn of<'r>(plan: &Plan, rules: impl Iterator<Item = &'r Rule>, attnums: &[i16]) -> String {
    let source = &plan.source.columns;
    let left_out = source.iter().map(|column| Decided { name: column.name.clone(), ..Decided::default() });
    let mut columns: Vec<_> = left_out.collect();
    let mut set = Vec::new();
    for (column, output) in plan.target.columns.iter().zip(&plan.outputs) {
        match output.column {
            Some(position) => {
                let name = &source[position].name;
                let done = if matches!(output.how, How::Cell(_)) { String::new() } else { done(name, output) };
                columns[position] = Decided { name: name.clone(), target: Some(column.name.clone()), done };
            }
            None => set.push(format!("{} = {}", quote_ident(&column.name), output.said)),
        }
    }
    // The order of rules decides nothing, nor does where they stand.
    set.sort();
    let mut rules: Vec<_> = rules.map(text_of).collect();
    rules.sort();
    let Plan { target, filter_text, soft_delete, .. } = plan;
    let is_moved = (&plan.source.namespace, &plan.source.name) != (&target.namespace, &target.name);
    let is_chosen = filter_text.is_some() || *soft_delete || !set.is_empty();
    let table = format!("{target} where {filter_text:?} soft_delete {soft_delete}; {}", set.join("; "));
    let fingerprint = Fingerprint {
        rules: digest(&rules.join("\n"), 64),
        table: if is_moved || is_chosen { digest(&table, 64) } else { String::new() },
        columns: attnums.iter().copied().zip(columns).collect(),
    };
    serde_json::to_string(&fingerprint).expect("strings are JSON")
}

/// Rows that came under the one are as the other would have them; `None` is where no rule is about the table.
pub fn is_same(before: Option<&str>, now: Option<&str>) -> bool {
    let parse = |text: &str| serde_json::from_str::<Fingerprint>(text).ok();
    match (before, now) {
        (None, None) => true,
        (Some(text), None) | (None, Some(text)) => parse(text).is_some_and(|one| one.decides_nothing()),
        (Some(before), Some(now)) => {
            let (Some(before), Some(now)) = (parse(before), parse(now)) else { return false };
            let in_both = |(number, column): (&i16, &Decided)| match before.columns.get(number) {
                Some(other) => other.is_same(column),
                // It came meanwhile, and its rows are of the rules that were there then.
                None => before.rules == now.rules,
            };
            before.table == now.table && now.columns.iter().all(in_both)
        }
    }
}

/// What is done to the values, whatever they are called.
fn done(name: &str, output: &Output) -> String {
    let mut secret = Vec::new();
    if let How::Mask { mask, .. } = &output.how {
        mask.write_check(&mut secret);
    }
    digest(&format!("{} {secret:?}", output.said.replace(&quote_ident(name), "it")), 16)
}

fn text_of(rule: &Rule) -> String {
    let rule = Rule { line: 0, ..rule.clone() };
    format!("{rule:?}")
}

fn digest(text: &str, length: usize) -> String {
    let mut digits = Vec::new();
    Masking::new(&Mask::Sha256 { length }).write(text, &mut digits);
    String::from_utf8_lossy(&digits).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A column is a number, its name, its name on the target or `-`, and what is done.
    fn with(rules: &str, table: &str, columns: &[&str]) -> String {
        let column = |text: &&str| {
            let words: Vec<_> = text.split(' ').collect();
            let target = (words[2] != "-").then(|| words[2].to_owned());
            let done = words.get(3).copied().unwrap_or_default().to_owned();
            (words[0].parse().unwrap(), Decided { name: words[1].to_owned(), target, done })
        };
        let columns = columns.iter().map(column).collect();
        let fingerprint = Fingerprint { rules: rules.to_owned(), table: table.to_owned(), columns };
        serde_json::to_string(&fingerprint).unwrap()
    }

    #[test]
    fn what_is_the_same_and_what_is_not() {
        let before = with("r", "t", &["1 a a", "2 email email hashed", "3 x -"]);
        for (now, expected) in [
            (with("r", "t", &["1 a a", "2 email email hashed", "3 x -"]), true),
            // A column comes, or goes.
            (with("r", "t", &["1 a a", "2 email email hashed", "3 x -", "4 b b"]), true),
            (with("r", "t", &["1 a a", "3 x -"]), true),
            // Other rules that come to the same, and such that decide about a column that has come meanwhile.
            (with("s", "t", &["1 a a", "2 email email hashed", "3 x -"]), true),
            (with("s", "t", &["1 a a", "2 email email hashed", "3 x -", "4 b b hashed"]), false),
            (with("s", "t", &["1 a a", "2 email email hashed", "3 x -", "4 b b"]), false),
            // It has another name, and is masked still; or is not, or goes where it did not.
            (with("r", "t", &["1 a a", "2 mail mail hashed", "3 x -"]), true),
            (with("r", "t", &["1 a a", "2 mail email hashed", "3 x -"]), true),
            (with("r", "t", &["1 a a", "2 mail mail", "3 x -"]), false),
            (with("r", "t", &["1 a a", "2 email other hashed", "3 x -"]), false),
            (with("r", "t", &["1 a a", "2 email email hashed", "3 y y"]), false),
            (with("r", "u", &["1 a a", "2 email email hashed", "3 x -"]), false),
            ("x".to_owned(), false),
        ] {
            assert_eq!(is_same(Some(&before), Some(&now)), expected, "{now}");
        }
        assert!(is_same(None, None) && !is_same(Some(&before), None) && !is_same(None, Some(&before)));
        let nothing = with("r", "", &["1 a a", "2 b b"]);
        assert!(is_same(Some(&nothing), None) && is_same(None, Some(&nothing)));
    }
}
