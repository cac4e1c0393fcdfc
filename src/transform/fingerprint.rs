//! What decides what becomes of a table's rows, in a form that tells later whether it is still the same.
//!
//! It holds a digest for the table and one for each column of the source. A column that comes to the source later, or goes,
//! changes nothing about the rows that are on the target: only columns that are in both are compared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::mask::Masking;
use super::plan::{How, Output, Plan};
use crate::config::Mask;
use crate::postgres::quote_ident;

/// Stands for a column that goes to the target as it is.
const AS_IT_IS: &str = "";

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    /// Where rows go, which of them, and what is set beside their columns.
    table: String,
    /// By their names on the source.
    columns: BTreeMap<String, String>,
}

/// `None` where rules decide nothing.
pub(super) fn of(plan: &Plan) -> Option<String> {
    let mut of_columns = vec![Vec::new(); plan.source.columns.len()];
    let mut set = Vec::new();
    for (column, output) in plan.target.columns.iter().zip(&plan.outputs) {
        let said = said(&column.name, output);
        match output.column {
            Some(position) if is_as_it_is(plan, &column.name, output) => {
                of_columns[position].push(AS_IT_IS.to_owned());
            }
            Some(position) => of_columns[position].push(said),
            None => set.push(said),
        }
    }
    // The order of rules decides nothing.
    set.sort();
    let digest_of_column = |said: Vec<String>| match said.as_slice() {
        [one] if one == AS_IT_IS => AS_IT_IS.to_owned(),
        said => digest(&said.join("; "), 16),
    };
    let names = plan.source.columns.iter().map(|column| column.name.clone());
    let columns: BTreeMap<_, _> = names.zip(of_columns.into_iter().map(digest_of_column)).collect();
    let is_moved = plan.source.namespace != plan.target.namespace || plan.source.name != plan.target.name;
    let is_chosen = plan.filter_text.is_some() || plan.soft_delete || !set.is_empty();
    if !is_moved && !is_chosen && columns.values().all(|said| said == AS_IT_IS) {
        return None;
    }
    let Plan { target, filter_text, soft_delete, .. } = plan;
    let table = format!("{target} where {filter_text:?} soft_delete {soft_delete}; {}", set.join("; "));
    let fingerprint = Fingerprint { table: digest(&table, 64), columns };
    Some(serde_json::to_string(&fingerprint).expect("strings are JSON"))
}

/// Rows that came under the one are as the other would have them.
pub fn is_same(one: Option<&str>, other: Option<&str>) -> bool {
    if one == other {
        return true;
    }
    let parse = |text: Option<&str>| text.and_then(|text| serde_json::from_str::<Fingerprint>(text).ok());
    // Without rules no columns are noted, so nothing tells a new one.
    let (Some(one), Some(other)) = (parse(one), parse(other)) else { return false };
    let in_both = |(name, said): (&String, &String)| other.columns.get(name).is_none_or(|other| other == said);
    one.table == other.table && one.columns.iter().all(in_both)
}

fn is_as_it_is(plan: &Plan, name: &str, output: &Output) -> bool {
    matches!(output.how, How::Cell(position) if plan.source.columns[position].name == name)
}

fn said(name: &str, output: &Output) -> String {
    let mut secret = Vec::new();
    if let How::Mask { mask, .. } = &output.how {
        mask.write_check(&mut secret);
    }
    format!("{} = {} {secret:?}", quote_ident(name), output.said)
}

fn digest(text: &str, length: usize) -> String {
    let mut digits = Vec::new();
    Masking::new(&Mask::Sha256 { length }).write(text, &mut digits);
    String::from_utf8_lossy(&digits).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(table: &str, columns: &[(&str, &str)]) -> String {
        let columns = columns.iter().map(|(name, said)| ((*name).to_owned(), (*said).to_owned())).collect();
        serde_json::to_string(&Fingerprint { table: table.to_owned(), columns }).unwrap()
    }

    #[test]
    fn columns_that_come_or_go_change_nothing() {
        let some = with("t", &[("a", ""), ("b", "1")]);
        for other in [with("t", &[("a", ""), ("b", "1"), ("c", "2")]), with("t", &[("a", "")])] {
            assert!(is_same(Some(&some), Some(&other)) && is_same(Some(&other), Some(&some)), "{other}");
        }
        let others = [with("u", &[("a", ""), ("b", "1")]), with("t", &[("a", "1"), ("b", "1")]), "x".to_owned()];
        for other in others.iter().map(Some).chain([None]) {
            let other = other.map(String::as_str);
            assert!(!is_same(Some(&some), other) && !is_same(other, Some(&some)), "{other:?}");
        }
        assert!(is_same(None, None));
    }
}
