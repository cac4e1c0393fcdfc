//! What a table mapping says: JSON comes in, [`Rule`]s go out in which every action, target and operator is known and has what it
//! needs. What becomes of them is not decided here.

mod fields;
mod selection;
mod transformation;

use std::fmt;

use self::fields::Fields;
use super::DmsError;
use super::json::{self, Json};
use super::name::{Name, Underscore};

pub use self::selection::{Comparison, Condition, Filter, Selection, SelectionAction, TableType};
pub use self::transformation::{Action, DataType, Masking, NameChange, PrimaryKey, Target, Transformation};

/// The number of a rule: the lower one takes precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(u128);

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub id: RuleId,
    pub name: String,
    /// Its action and its place, for people.
    pub title: String,
    /// What is odd about how it is written.
    pub notes: Vec<String>,
    pub content: Content,
}

#[derive(Clone, Debug)]
pub enum Content {
    Selection(Selection),
    Transformation(Transformation),
    TableSettings(TableSettings),
    Validation,
    ObjectMapping,
}

#[derive(Clone, Debug)]
pub struct TableSettings {
    /// The type of `parallel-load`.
    pub parallel_load: Option<String>,
    /// The mode of `lob-settings`.
    pub lob_mode: Option<String>,
}

/// What a transformation acts on.
#[derive(Clone, Debug)]
pub struct Locator {
    pub schema: Name,
    pub table: Name,
    pub column: Option<Name>,
    /// Only columns of this type.
    pub data_type: Option<String>,
}

#[derive(Clone, Copy)]
enum RuleType {
    Selection,
    Transformation,
    TableSettings,
    Validation,
    ObjectMapping,
}

const RULE_TYPES: [(&str, RuleType); 5] = [
    ("selection", RuleType::Selection),
    ("transformation", RuleType::Transformation),
    ("table-settings", RuleType::TableSettings),
    ("validation", RuleType::Validation),
    ("object-mapping", RuleType::ObjectMapping),
];
const RULE_KEYS: [&str; 5] = ["rule-type", "rule-id", "rule-name", "rule-action", "object-locator"];
/// The console writes it, and it says nothing.
const OF_THE_CONSOLE: [&str; 1] = ["isAutoSegmentationChecked"];

/// The rules of a mapping, the lowest number first.
pub fn read(text: &str, underscore: Underscore) -> Result<Vec<Rule>, DmsError> {
    let json = json::parse(text).map_err(DmsError::Json)?;
    let Json::Object(entries) = &json else {
        return Err(DmsError::NoMapping("it is no object with a list \"rules\"".to_owned()));
    };
    let list = match entries.iter().rev().find(|(key, _)| key == "rules") {
        Some((_, Json::List(list))) => list,
        Some(_) => return Err(DmsError::NoMapping("its \"rules\" are no list".to_owned())),
        None => return Err(DmsError::NoMapping("it has no list \"rules\"".to_owned())),
    };
    let rules = list.iter().enumerate().map(|(at, rule)| read_rule(at + 1, rule, underscore));
    let mut rules = rules.collect::<Result<Vec<_>, _>>()?;
    rules.sort_by_key(|rule| rule.id);
    match rules.windows(2).find(|pair| pair[0].id == pair[1].id) {
        Some(pair) => Err(DmsError::rule(&owner(pair[0].id), "another rule has the same number")),
        None => Ok(rules),
    }
}

fn owner(id: RuleId) -> String {
    format!("rule-id {id}")
}

/// The rule that is the `nth` of the list.
fn read_rule(nth: usize, json: &Json, underscore: Underscore) -> Result<Rule, DmsError> {
    let head = Fields::new(format!("rule {nth} of the list"), json, &keys_of(json), &mut Vec::new())?;
    let id = head.required("rule-id")?;
    let Ok(number) = id.trim().parse() else {
        return Err(head.wrong(format!("the rule-id \"{id}\" is no whole number")));
    };
    let id = RuleId(number);
    let rule_type = Fields::new(owner(id), json, &keys_of(json), &mut Vec::new())?.choice("rule-type", &RULE_TYPES)?;
    let mut notes = Vec::new();
    let known: &[&str] = match rule_type {
        RuleType::Selection => &["load-order", "filters"],
        RuleType::Transformation => &transformation::KEYS,
        RuleType::TableSettings => &["parallel-load", "lob-settings"],
        RuleType::Validation => &["rule-target", "source-function", "target-function"],
        RuleType::ObjectMapping => &["target-table-name", "mapping-parameters", "rule-target"],
    };
    let known = [RULE_KEYS.as_slice(), OF_THE_CONSOLE.as_slice(), known].concat();
    let fields = Fields::new(owner(id), json, &known, &mut notes)?;
    let name = fields.scalar("rule-name")?.unwrap_or_default();
    let (title, content) = match rule_type {
        RuleType::Selection => {
            let selection = selection::read(&fields, underscore, &mut notes)?;
            (selection.title(), Content::Selection(selection))
        }
        RuleType::Transformation => {
            let (title, transformation) = transformation::read(&fields, underscore, &mut notes)?;
            (title, Content::Transformation(transformation))
        }
        RuleType::TableSettings => {
            (format!("table-settings {}", place(&fields)), Content::TableSettings(table_settings(&fields)?))
        }
        RuleType::Validation => (format!("validation {}", place(&fields)), Content::Validation),
        RuleType::ObjectMapping => (format!("object-mapping {}", place(&fields)), Content::ObjectMapping),
    };
    Ok(Rule { id, name, title, notes, content })
}

/// All keys are known, as long as the type of the rule is not.
fn keys_of(json: &Json) -> Vec<&str> {
    match json {
        Json::Object(entries) => entries.iter().map(|(key, _)| key.as_str()).collect(),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) | Json::List(_) => Vec::new(),
    }
}

fn table_settings(fields: &Fields<'_>) -> Result<TableSettings, DmsError> {
    let word = |object: &str, key: &str| match fields.get(object) {
        Some(settings) => Fields::new(fields.owner(), settings, &keys_of(settings), &mut Vec::new())?.word(key),
        None => Ok(None),
    };
    Ok(TableSettings { parallel_load: word("parallel-load", "type")?, lob_mode: word("lob-settings", "mode")? })
}

/// Where a rule acts that is not carried, as far as it says so.
fn place(fields: &Fields<'_>) -> String {
    let Some(Json::Object(entries)) = fields.get("object-locator") else { return String::new() };
    let part = |(key, value): &(String, Json)| match value {
        Json::Text(text) if key.ends_with("-name") && !text.is_empty() => Some(text.clone()),
        _ => None,
    };
    entries.iter().filter_map(part).collect::<Vec<_>>().join(".")
}
