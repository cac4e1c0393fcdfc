//! Sample rows: JSON comes in, changes as the source would send them go out.
//!
//! A row is an object of column → value, which is an insert, or `{"op": …, "new": {…}, "old": {…}}`. Rows stand one a line, or
//! in an array. What the replica identity would not let the source send is not sent here either.

use std::fmt;

use pgsluice_proto::pgoutput::ReplicaIdentity;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::decode::Relation;
use crate::postgres::quote_ident;

/// One change, and the line of the sample that it begins in, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub line: usize,
    pub change: SampleChange,
}

/// Values as the columns of the relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SampleChange {
    Insert { new: Vec<SampleValue> },
    Update { old: Option<Old>, new: Vec<SampleValue> },
    Delete { old: Old },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Old {
    /// All others are NULL.
    Key(Vec<SampleValue>),
    Full(Vec<SampleValue>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SampleValue {
    Null,
    /// Large, and an update has left it alone.
    Unchanged,
    Text(String),
}

/// # Errors
/// The first thing that is no row of the relation, with its line.
pub fn parse(text: &str, relation: &Relation) -> Result<Vec<Sample>, String> {
    let mut samples = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
        let value = value.map_err(|error| format!("this is no JSON: {error}"))?;
        let rows = if value.get().starts_with('[') { read(value.get())? } else { vec![value] };
        for row in rows {
            let line = line_of(text, row.get());
            let change = change(row, relation).map_err(|what| format!("line {line}: {what}"))?;
            samples.push(Sample { line, change });
        }
    }
    Ok(samples)
}

/// Of a part of the text.
fn line_of(text: &str, part: &str) -> usize {
    let place = part.as_ptr() as usize - text.as_ptr() as usize;
    1 + text.as_bytes()[..place].iter().filter(|&&byte| byte == b'\n').count()
}

fn read<'t, T: Deserialize<'t>>(text: &'t str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| {
        // The line is that of the row.
        let message = error.to_string();
        message.split(" at line ").next().unwrap_or(&message).to_owned()
    })
}

fn change(row: &RawValue, relation: &Relation) -> Result<SampleChange, String> {
    let object: Object<'_> = read(row.get())?;
    let Some(op) = object.op()? else {
        return Ok(SampleChange::Insert { new: Values::of(&object, relation)?.whole() });
    };
    let values = |key: &str| match object.get(key) {
        Some(part) => Values::of(&read(part.get()).map_err(|what| format!("\"{key}\": {what}"))?, relation).map(Some),
        None => Ok(None),
    };
    match (op.as_str(), values("new")?, values("old")?) {
        ("insert", Some(new), None) => Ok(SampleChange::Insert { new: new.whole() }),
        ("update", Some(new), old) => update(relation, new, old),
        ("delete", None, Some(old)) => delete(relation, old),
        ("insert", ..) => Err("an insert has \"new\" alone".to_owned()),
        ("update", ..) => Err("an update has \"new\", and \"old\" where the key has changed".to_owned()),
        ("delete", ..) => Err("a delete has \"old\" alone".to_owned()),
        (other, ..) => Err(format!("there is no op {other:?}; write insert, update or delete")),
    }
}

/// With a key for its old row only where the key has changed, as the source sends it.
fn update(relation: &Relation, new: Values<'_>, old: Option<Values<'_>>) -> Result<SampleChange, String> {
    let is_full = is_full(relation)?;
    let Some(old) = old else {
        if is_full {
            let why = "under REPLICA IDENTITY FULL an update comes with its old row";
            return Err(format!("{why}; give it as \"old\", where what is left out is as in \"new\""));
        }
        new.check_key("new")?;
        return Ok(SampleChange::Update { old: None, new: new.updated() });
    };
    let old = old.completed_by(&new);
    if is_full {
        let (old, mut new) = (old.whole(), new.updated());
        // What is left alone and does not come is a large value, and NULL is none.
        for (new, old) in new.iter_mut().zip(&old) {
            if (&*new, old) == (&SampleValue::Unchanged, &SampleValue::Null) {
                *new = SampleValue::Null;
            }
        }
        return Ok(SampleChange::Update { old: Some(Old::Full(old)), new });
    }
    old.check_key("old")?;
    let new = new.completed_key_by(&old);
    let old = (!old.has_key_of(&new)).then(|| Old::Key(old.key()));
    Ok(SampleChange::Update { old, new: new.updated() })
}

fn delete(relation: &Relation, old: Values<'_>) -> Result<SampleChange, String> {
    if is_full(relation)? {
        return Ok(SampleChange::Delete { old: Old::Full(old.whole()) });
    }
    old.check_key("old")?;
    Ok(SampleChange::Delete { old: Old::Key(old.key()) })
}

/// Whether old rows come whole.
fn is_full(relation: &Relation) -> Result<bool, String> {
    match relation.replica_identity {
        ReplicaIdentity::Full => Ok(true),
        ReplicaIdentity::Default | ReplicaIdentity::Index if relation.columns.iter().any(|c| c.is_identity) => {
            Ok(false)
        }
        ReplicaIdentity::Default | ReplicaIdentity::Index | ReplicaIdentity::Nothing => {
            Err(format!("the source takes no updates and deletes of {relation}, which has no replica identity"))
        }
    }
}

/// What a row says of each column of the relation; `None` where it leaves the column out.
struct Values<'r> {
    relation: &'r Relation,
    values: Vec<Option<SampleValue>>,
}

impl<'r> Values<'r> {
    fn of(object: &Object<'_>, relation: &'r Relation) -> Result<Values<'r>, String> {
        let mut values = vec![None; relation.columns.len()];
        for (name, value) in &object.0 {
            let Some(position) = relation.columns.iter().position(|column| column.name == *name) else {
                let known: Vec<_> = relation.columns.iter().map(|column| quote_ident(&column.name)).collect();
                let (name, known) = (quote_ident(name), known.join(", "));
                return Err(format!("{relation} has no column {name}; it has {known}"));
            };
            if values[position].replace(value_of(value)?).is_some() {
                return Err(format!("column {} has two values", quote_ident(name)));
            }
        }
        Ok(Values { relation, values })
    }

    /// What is left out is NULL.
    fn whole(self) -> Vec<SampleValue> {
        self.values.into_iter().map(|value| value.unwrap_or(SampleValue::Null)).collect()
    }

    /// What is left out was left alone.
    fn updated(self) -> Vec<SampleValue> {
        self.values.into_iter().map(|value| value.unwrap_or(SampleValue::Unchanged)).collect()
    }

    fn is_key(&self, position: usize) -> bool {
        self.relation.columns[position].is_identity
    }

    fn key(self) -> Vec<SampleValue> {
        let relation = self.relation;
        let pairs = relation.columns.iter().zip(self.values);
        let cell = |value: Option<SampleValue>| value.unwrap_or(SampleValue::Null);
        pairs.map(|(column, value)| if column.is_identity { cell(value) } else { SampleValue::Null }).collect()
    }

    fn completed_by(mut self, other: &Values<'_>) -> Values<'r> {
        for (value, other) in self.values.iter_mut().zip(&other.values).filter(|(value, _)| value.is_none()) {
            value.clone_from(other);
        }
        self
    }

    fn completed_key_by(mut self, old: &Values<'_>) -> Values<'r> {
        for position in (0..self.values.len()).filter(|&position| old.is_key(position)) {
            if self.values[position].is_none() {
                self.values[position].clone_from(&old.values[position]);
            }
        }
        self
    }

    fn has_key_of(&self, other: &Values<'_>) -> bool {
        (0..self.values.len())
            .filter(|&position| self.is_key(position))
            .all(|position| self.values[position] == other.values[position])
    }

    /// # Errors
    /// A column of the key that has no value.
    fn check_key(&self, part: &str) -> Result<(), String> {
        let missing = (0..self.values.len())
            .find(|&position| self.is_key(position) && matches!(self.values[position], None | Some(SampleValue::Null)));
        let Some(position) = missing else { return Ok(()) };
        let name = quote_ident(&self.relation.columns[position].name);
        Err(format!("\"{part}\" has no value for column {name}, which is in the replica identity"))
    }
}

fn value_of(value: &RawValue) -> Result<SampleValue, String> {
    Ok(match value.get() {
        "null" => SampleValue::Null,
        text if text.starts_with('"') => SampleValue::Text(read(text)?),
        // Numbers as they are written, so that none loses digits.
        text => SampleValue::Text(text.to_owned()),
    })
}

/// A JSON object, in its order.
struct Object<'t>(Vec<(String, &'t RawValue)>);

impl<'t> Object<'t> {
    fn get(&self, key: &str) -> Option<&'t RawValue> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| *value)
    }

    /// What a change does; `None` for a row that is a row. A table may well have a column `op`.
    fn op(&self) -> Result<Option<String>, String> {
        let is_part = |(name, _): &(String, _)| ["op", "new", "old"].contains(&name.as_str());
        let is_change = self.0.iter().all(is_part) && (self.get("new").is_some() || self.get("old").is_some());
        match self.get("op").filter(|_| is_change) {
            Some(op) => read(op.get()).map(Some).map_err(|what| format!("\"op\": {what}")),
            None => Ok(None),
        }
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<'de>, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of column and value")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Object(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use pgsluice_proto::Oid;

    use super::*;
    use crate::decode::{Column, Keys};

    /// Columns `id`, `region` and `note`, of which `key` is the replica identity; all of them under FULL.
    fn relation(replica_identity: ReplicaIdentity, key: &[&str]) -> Relation {
        let is_identity = |name: &str| replica_identity == ReplicaIdentity::Full || key.contains(&name);
        let column = |name: &str| Column {
            name: name.to_owned(),
            type_oid: Oid(25),
            type_modifier: None,
            is_identity: is_identity(name),
        };
        Relation {
            id: Oid(1),
            version: 0,
            namespace: "s".to_owned(),
            name: "t".to_owned(),
            renamed_from: None,
            replica_identity,
            columns: ["id", "region", "note"].map(column).into(),
            keys: Keys::Apart,
        }
    }

    fn keyed() -> Relation {
        relation(ReplicaIdentity::Default, &["id", "region"])
    }

    /// `-` is NULL and `?` is unchanged.
    fn words(values: &[SampleValue]) -> String {
        let word = |value: &SampleValue| match value {
            SampleValue::Null => "-".to_owned(),
            SampleValue::Unchanged => "?".to_owned(),
            SampleValue::Text(text) => text.clone(),
        };
        values.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    fn said(text: &str, relation: &Relation) -> Result<Vec<String>, String> {
        let old = |old: &Old| match old {
            Old::Key(values) => format!(" key {}", words(values)),
            Old::Full(values) => format!(" full {}", words(values)),
        };
        let one = |sample: Sample| {
            let text = match &sample.change {
                SampleChange::Insert { new } => format!("I {}", words(new)),
                SampleChange::Update { old: was, new } => {
                    format!("U {}{}", words(new), was.as_ref().map_or(String::new(), old))
                }
                SampleChange::Delete { old: was } => format!("D{}", old(was)),
            };
            format!("{}: {text}", sample.line)
        };
        Ok(parse(text, relation)?.into_iter().map(one).collect())
    }

    #[test]
    fn rows_stand_on_lines_or_in_an_array() {
        let lines = "{\"id\": 1}\n\n{\"note\": \"a\", \"id\": 2}\n";
        assert_eq!(said(lines, &keyed()).unwrap(), ["1: I 1 - -", "3: I 2 - a"]);
        let array = "\n[{\"id\": 1},\n {\"id\": 2, \"region\": null}]\n";
        assert_eq!(said(array, &keyed()).unwrap(), ["2: I 1 - -", "3: I 2 - -"]);
        assert_eq!(said(" ", &keyed()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn values_are_the_text_of_what_is_written() {
        let values = r#"{"id": 12345678901234567890.10, "region": true, "note": {"a": [1, null]}}"#;
        assert_eq!(said(values, &keyed()).unwrap(), [r#"1: I 12345678901234567890.10 true {"a": [1, null]}"#]);
        assert_eq!(said(r#"{"note": "a\u00fc\"b"}"#, &keyed()).unwrap(), ["1: I - - aü\"b"]);
    }

    #[test]
    fn changes_come_as_the_replica_identity_has_it() {
        let full = relation(ReplicaIdentity::Full, &[]);
        for (change, of, expected) in [
            (r#"{"op": "insert", "new": {"id": 1}}"#, keyed(), "I 1 - -"),
            (r#"{"op": "update", "new": {"id": 1, "region": "a"}}"#, keyed(), "U 1 a ?"),
            // The key has changed, and what of it has not is known from the new row, or the other way round.
            (
                r#"{"op": "update", "new": {"id": 1, "region": "a"}, "old": {"id": 2, "note": "x"}}"#,
                keyed(),
                "U 1 a ? key 2 a -",
            ),
            (r#"{"op": "update", "new": {"id": 1}, "old": {"id": 2, "region": "b"}}"#, keyed(), "U 1 b ? key 2 b -"),
            // It has not, so no source would send it.
            (r#"{"op": "update", "new": {"note": "x"}, "old": {"id": 2, "region": "b"}}"#, keyed(), "U 2 b x"),
            (r#"{"op": "delete", "old": {"id": 1, "region": "a", "note": "x"}}"#, keyed(), "D key 1 a -"),
            (
                r#"{"op": "update", "new": {"id": 1, "region": "a"}, "old": {"region": "b"}}"#,
                full.clone(),
                "U 1 a - full 1 b -",
            ),
            (r#"{"op": "delete", "old": {"note": "x"}}"#, full, "D full - - x"),
        ] {
            assert_eq!(said(change, &of).unwrap(), [format!("1: {expected}")], "{change}");
        }
    }

    #[test]
    fn what_is_no_row_of_the_table_is_named_with_its_line() {
        for (text, complaint) in [
            (
                "{\"id\": 1}\n{\"idd\": 1}",
                "line 2: \"s\".\"t\" has no column \"idd\"; it has \"id\", \"region\", \"note\"",
            ),
            ("{\"id\": 1}\n7", "line 2: invalid type: integer `7`, expected an object of column and value"),
            ("{\"id\": 1,\n}", "this is no JSON: key must be a string at line 2 column 1"),
            (r#"{"id": 1, "id": 2}"#, "line 1: column \"id\" has two values"),
            (r#"{"op": "upsert", "new": {}}"#, "line 1: there is no op \"upsert\""),
            (r#"{"op": "insert", "new": {}, "old": {}}"#, "line 1: an insert has \"new\" alone"),
            (r#"{"op": "delete", "new": {}}"#, "line 1: a delete has \"old\" alone"),
            (r#"{"op": "update", "old": {}}"#, "line 1: an update has \"new\""),
            (r#"{"op": "update", "new": {"id": 1}}"#, "line 1: \"new\" has no value for column \"region\""),
            (r#"{"op": "delete", "old": {"id": 1}}"#, "line 1: \"old\" has no value for column \"region\""),
            (r#"{"op": "insert", "new": 3}"#, "line 1: \"new\": invalid type: integer `3`"),
            (r#"{"op": 1, "new": {}}"#, "line 1: \"op\": invalid type"),
        ] {
            let said = said(text, &keyed()).unwrap_err();
            assert!(said.starts_with(complaint), "{said}");
        }
        let full = said(r#"{"op": "update", "new": {"id": 1}}"#, &relation(ReplicaIdentity::Full, &[])).unwrap_err();
        assert!(full.contains("give it as \"old\""), "{full}");
        let none = said(r#"{"op": "delete", "old": {"id": 1}}"#, &relation(ReplicaIdentity::Nothing, &[])).unwrap_err();
        assert!(none.contains("which has no replica identity"), "{none}");
    }

    #[test]
    fn a_column_may_be_called_op() {
        let mut table = keyed();
        table.columns[2].name = "op".to_owned();
        assert_eq!(said(r#"{"id": 1, "op": "update"}"#, &table).unwrap(), ["1: I 1 - update"]);
    }
}
