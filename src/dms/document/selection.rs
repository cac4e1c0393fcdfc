//! Selection rules: which tables, and which rows of them.

use super::super::DmsError;
use super::super::json::Json;
use super::super::name::{Name, Underscore};
use super::fields::Fields;

#[derive(Clone, Debug)]
pub struct Selection {
    pub action: SelectionAction,
    pub schema: Name,
    pub table: Name,
    pub table_type: TableType,
    pub load_order: Option<String>,
    /// Every one of them has to hold.
    pub filters: Vec<Filter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectionAction {
    Include,
    Exclude,
    /// As include, of one table.
    Explicit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableType {
    Table,
    View,
    All,
}

#[derive(Clone, Debug)]
pub struct Filter {
    pub column: String,
    /// One of them has to hold; never empty.
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug)]
pub enum Condition {
    Compare(Comparison, String),
    Between { negated: bool, start: String, end: String },
    Null { negated: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    AtMost,
    AtLeast,
    Equal,
    NotEqual,
}

#[derive(Clone, Copy)]
enum Operator {
    Compare(Comparison),
    Between { negated: bool },
    Null { negated: bool },
}

const ACTIONS: [(&str, SelectionAction); 3] = [
    ("include", SelectionAction::Include),
    ("exclude", SelectionAction::Exclude),
    ("explicit", SelectionAction::Explicit),
];
const TABLE_TYPES: [(&str, TableType); 3] =
    [("table", TableType::Table), ("view", TableType::View), ("all", TableType::All)];
const OPERATORS: [(&str, Operator); 9] = [
    ("lte", Operator::Compare(Comparison::AtMost)),
    ("ste", Operator::Compare(Comparison::AtMost)),
    ("gte", Operator::Compare(Comparison::AtLeast)),
    ("eq", Operator::Compare(Comparison::Equal)),
    ("noteq", Operator::Compare(Comparison::NotEqual)),
    ("between", Operator::Between { negated: false }),
    ("notbetween", Operator::Between { negated: true }),
    ("null", Operator::Null { negated: false }),
    ("notnull", Operator::Null { negated: true }),
];

impl Selection {
    pub fn title(&self) -> String {
        let action = ACTIONS.iter().find(|(_, action)| *action == self.action).map_or("", |(word, _)| word);
        format!("{action} {}.{}", self.schema, self.table)
    }
}

pub(super) fn read(
    fields: &Fields<'_>,
    underscore: Underscore,
    notes: &mut Vec<String>,
) -> Result<Selection, DmsError> {
    let action = fields.choice("rule-action", &ACTIONS)?;
    let Some(locator) = fields.get("object-locator") else {
        return Err(fields.wrong("`object-locator` is missing"));
    };
    let locator = Fields::new(fields.owner(), locator, &["schema-name", "table-name", "table-type"], notes)?;
    let (schema, table) = (locator.required("schema-name")?, locator.required("table-name")?);
    let name = |text: &str| match action {
        SelectionAction::Include | SelectionAction::Exclude => Ok(Name::parse(text, underscore)),
        SelectionAction::Explicit if text.contains('%') => {
            Err(fields.wrong(format!("explicit takes the exact name of one table, and \"{text}\" has a wildcard")))
        }
        SelectionAction::Explicit => Ok(Name::literal(text)),
    };
    let table_type = match locator.word("table-type")? {
        Some(_) => locator.choice("table-type", &TABLE_TYPES)?,
        None => TableType::Table,
    };
    let filters = fields.list("filters")?.iter().map(|filter| read_filter(fields.owner(), filter, notes));
    Ok(Selection {
        action,
        schema: name(&schema)?,
        table: name(&table)?,
        table_type,
        load_order: fields.word("load-order")?,
        filters: filters.collect::<Result<_, _>>()?,
    })
}

fn read_filter(owner: &str, json: &Json, notes: &mut Vec<String>) -> Result<Filter, DmsError> {
    let filter = Fields::new(owner, json, &["filter-type", "column-name", "filter-conditions"], notes)?;
    filter.choice("filter-type", &[("source", ())])?;
    let column = filter.required("column-name")?;
    let conditions = filter.list("filter-conditions")?.iter().map(|condition| read_condition(owner, condition, notes));
    let conditions = conditions.collect::<Result<Vec<_>, _>>()?;
    if conditions.is_empty() {
        return Err(filter.wrong(format!("the filter of column \"{column}\" has no `filter-conditions`")));
    }
    Ok(Filter { column, conditions })
}

fn read_condition(owner: &str, json: &Json, notes: &mut Vec<String>) -> Result<Condition, DmsError> {
    let condition = Fields::new(owner, json, &["filter-operator", "value", "start-value", "end-value"], notes)?;
    let value = |key| condition.scalar(key)?.ok_or_else(|| condition.wrong(format!("`{key}` is missing")));
    Ok(match condition.choice("filter-operator", &OPERATORS)? {
        Operator::Compare(comparison) => Condition::Compare(comparison, value("value")?),
        Operator::Between { negated } => {
            Condition::Between { negated, start: value("start-value")?, end: value("end-value")? }
        }
        Operator::Null { negated } => Condition::Null { negated },
    })
}
