//! Transformation rules: what becomes of names, columns and values.

use super::super::DmsError;
use super::super::json::Json;
use super::super::name::{Name, Underscore};
use super::Locator;
use super::fields::Fields;

/// The keys of such rules beside those of every rule.
pub(super) const KEYS: [&str; 7] =
    ["rule-target", "value", "old-value", "expression", "data-type", "primary-key-def", "before-image-def"];

#[derive(Clone, Debug)]
pub struct Transformation {
    pub locator: Locator,
    pub action: Action,
}

#[derive(Clone, Debug)]
pub enum Action {
    Rename(Target, NameChange),
    AddColumn {
        name: String,
        expression: Option<String>,
        data_type: Option<DataType>,
    },
    /// All columns are dropped but those that such rules name.
    IncludeColumn,
    RemoveColumn,
    DefinePrimaryKey(PrimaryKey),
    ChangeDataType(DataType),
    AddBeforeImageColumns,
    Mask(Masking),
    /// A tablespace is renamed.
    OfOracle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Schema,
    Table,
    Column,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameChange {
    To(String),
    LowerCase,
    UpperCase,
    AddPrefix(String),
    AddSuffix(String),
    RemovePrefix(String),
    RemoveSuffix(String),
    ReplacePrefix(String, String),
    ReplaceSuffix(String, String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Masking {
    /// Every digit becomes this text.
    Digits(String),
    DigitsRandom,
    Hash,
}

#[derive(Clone, Debug)]
pub struct DataType {
    pub name: String,
    pub has_modifiers: bool,
}

#[derive(Clone, Debug)]
pub struct PrimaryKey {
    pub name: Option<String>,
    /// Never empty.
    pub columns: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Rename,
    ConvertLowercase,
    ConvertUppercase,
    AddPrefix,
    AddSuffix,
    RemovePrefix,
    RemoveSuffix,
    ReplacePrefix,
    ReplaceSuffix,
    AddColumn,
    IncludeColumn,
    RemoveColumn,
    DefinePrimaryKey,
    ChangeDataType,
    AddBeforeImageColumns,
    DigitsMask,
    DigitsRandomize,
    HashMask,
}

const ACTIONS: [(&str, Word); 18] = [
    ("rename", Word::Rename),
    ("convert-lowercase", Word::ConvertLowercase),
    ("convert-uppercase", Word::ConvertUppercase),
    ("add-prefix", Word::AddPrefix),
    ("add-suffix", Word::AddSuffix),
    ("remove-prefix", Word::RemovePrefix),
    ("remove-suffix", Word::RemoveSuffix),
    ("replace-prefix", Word::ReplacePrefix),
    ("replace-suffix", Word::ReplaceSuffix),
    ("add-column", Word::AddColumn),
    ("include-column", Word::IncludeColumn),
    ("remove-column", Word::RemoveColumn),
    ("define-primary-key", Word::DefinePrimaryKey),
    ("change-data-type", Word::ChangeDataType),
    ("add-before-image-columns", Word::AddBeforeImageColumns),
    ("data-masking-digits-mask", Word::DigitsMask),
    ("data-masking-digits-randomize", Word::DigitsRandomize),
    ("data-masking-hash-mask", Word::HashMask),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum RuleTarget {
    Name(Target),
    Tablespace,
}

const TARGETS: [(&str, RuleTarget); 5] = [
    ("schema", RuleTarget::Name(Target::Schema)),
    ("table", RuleTarget::Name(Target::Table)),
    ("column", RuleTarget::Name(Target::Column)),
    ("table-tablespace", RuleTarget::Tablespace),
    ("index-tablespace", RuleTarget::Tablespace),
];

/// The rule, and its title.
pub(super) fn read(
    fields: &Fields<'_>,
    underscore: Underscore,
    notes: &mut Vec<String>,
) -> Result<(String, Transformation), DmsError> {
    let word = fields.choice("rule-action", &ACTIONS)?;
    let target = read_target(fields, word)?;
    let locator = read_locator(fields, target, underscore, notes)?;
    let action = match target {
        RuleTarget::Tablespace => Action::OfOracle,
        RuleTarget::Name(target) => read_action(fields, word, target, notes)?,
    };
    let needs_column = matches!(
        &action,
        Action::Rename(Target::Column, _)
            | Action::IncludeColumn
            | Action::RemoveColumn
            | Action::ChangeDataType(_)
            | Action::Mask(_)
    );
    if needs_column && locator.column.is_none() && locator.data_type.is_none() {
        return Err(fields.wrong("`column-name` is missing in `object-locator`"));
    }
    let title = title(word, target, &locator);
    Ok((title, Transformation { locator, action }))
}

/// Of actions that have one target only, it may be left out.
fn read_target(fields: &Fields<'_>, word: Word) -> Result<RuleTarget, DmsError> {
    let only = match word {
        Word::AddColumn
        | Word::IncludeColumn
        | Word::RemoveColumn
        | Word::ChangeDataType
        | Word::AddBeforeImageColumns
        | Word::DigitsMask
        | Word::DigitsRandomize
        | Word::HashMask => Some(("column", RuleTarget::Name(Target::Column))),
        Word::DefinePrimaryKey => Some(("table", RuleTarget::Name(Target::Table))),
        Word::Rename
        | Word::ConvertLowercase
        | Word::ConvertUppercase
        | Word::AddPrefix
        | Word::AddSuffix
        | Word::RemovePrefix
        | Word::RemoveSuffix
        | Word::ReplacePrefix
        | Word::ReplaceSuffix => None,
    };
    let target = match (fields.word("rule-target")?, only) {
        (None, Some((_, only))) => only,
        (Some(_), _) | (None, None) => fields.choice("rule-target", &TARGETS)?,
    };
    match only {
        Some((name, only)) if only != target => {
            Err(fields.wrong(format!("the rule-target of this rule-action is {name}")))
        }
        Some(_) | None => Ok(target),
    }
}

fn read_locator(
    fields: &Fields<'_>,
    target: RuleTarget,
    underscore: Underscore,
    notes: &mut Vec<String>,
) -> Result<Locator, DmsError> {
    const KEYS: [&str; 7] = [
        "schema-name",
        "table-name",
        "column-name",
        "data-type",
        "table-type",
        "table-tablespace-name",
        "index-tablespace-name",
    ];
    let Some(locator) = fields.get("object-locator") else {
        return Err(fields.wrong("`object-locator` is missing"));
    };
    let locator = Fields::new(fields.owner(), locator, &KEYS, notes)?;
    let name = |key| Ok(locator.text(key)?.map(|text| Name::parse(&text, underscore)));
    let missing = |key: &str| locator.wrong(format!("`{key}` is missing in `object-locator`"));
    let table_may_lack = matches!(target, RuleTarget::Name(Target::Schema) | RuleTarget::Tablespace);
    let table = match name("table-name")? {
        Some(table) => table,
        None if table_may_lack => Name::all(),
        None => return Err(missing("table-name")),
    };
    let schema = match name("schema-name")? {
        Some(schema) => schema,
        None if target == RuleTarget::Tablespace => Name::all(),
        None => return Err(missing("schema-name")),
    };
    Ok(Locator { schema, table, column: name("column-name")?, data_type: locator.word("data-type")? })
}

fn read_action(fields: &Fields<'_>, word: Word, target: Target, notes: &mut Vec<String>) -> Result<Action, DmsError> {
    let value = || fields.required("value");
    // What is removed is in `value`; consoles have written it to `old-value` too.
    let removed = || match fields.text("value")? {
        Some(value) => Ok(value),
        None => fields.required("old-value"),
    };
    let replaced = || Ok::<_, DmsError>((fields.required("old-value")?, fields.scalar("value")?.unwrap_or_default()));
    let rename = |change| Action::Rename(target, change);
    Ok(match word {
        Word::Rename => rename(NameChange::To(value()?)),
        Word::ConvertLowercase => rename(NameChange::LowerCase),
        Word::ConvertUppercase => rename(NameChange::UpperCase),
        Word::AddPrefix => rename(NameChange::AddPrefix(value()?)),
        Word::AddSuffix => rename(NameChange::AddSuffix(value()?)),
        Word::RemovePrefix => rename(NameChange::RemovePrefix(removed()?)),
        Word::RemoveSuffix => rename(NameChange::RemoveSuffix(removed()?)),
        Word::ReplacePrefix => {
            let (old, new) = replaced()?;
            rename(NameChange::ReplacePrefix(old, new))
        }
        Word::ReplaceSuffix => {
            let (old, new) = replaced()?;
            rename(NameChange::ReplaceSuffix(old, new))
        }
        Word::AddColumn => Action::AddColumn {
            name: value()?,
            expression: fields.text("expression")?,
            data_type: read_data_type(fields, notes)?,
        },
        Word::IncludeColumn => Action::IncludeColumn,
        Word::RemoveColumn => Action::RemoveColumn,
        Word::DefinePrimaryKey => Action::DefinePrimaryKey(read_primary_key(fields, notes)?),
        Word::ChangeDataType => match read_data_type(fields, notes)? {
            Some(data_type) => Action::ChangeDataType(data_type),
            None => return Err(fields.wrong("`data-type` is missing")),
        },
        Word::AddBeforeImageColumns => Action::AddBeforeImageColumns,
        Word::DigitsMask => Action::Mask(Masking::Digits(value()?)),
        Word::DigitsRandomize => Action::Mask(Masking::DigitsRandom),
        Word::HashMask => Action::Mask(Masking::Hash),
    })
}

/// An object, or the name of a type alone.
fn read_data_type(fields: &Fields<'_>, notes: &mut Vec<String>) -> Result<Option<DataType>, DmsError> {
    match fields.get("data-type") {
        None => Ok(None),
        Some(Json::Text(name)) if name.is_empty() => Ok(None),
        Some(Json::Text(name)) => Ok(Some(DataType { name: name.trim().to_owned(), has_modifiers: false })),
        Some(json) => {
            let data_type = Fields::new(fields.owner(), json, &["type", "precision", "scale", "length"], notes)?;
            let mut has_modifiers = false;
            for key in ["precision", "scale", "length"] {
                has_modifiers |= data_type.word(key)?.is_some();
            }
            match data_type.word("type")? {
                Some(name) => Ok(Some(DataType { name, has_modifiers })),
                None => Err(fields.wrong("`type` is missing in `data-type`")),
            }
        }
    }
}

fn read_primary_key(fields: &Fields<'_>, notes: &mut Vec<String>) -> Result<PrimaryKey, DmsError> {
    let Some(json) = fields.get("primary-key-def") else {
        return Err(fields.wrong("`primary-key-def` is missing"));
    };
    let definition = Fields::new(fields.owner(), json, &["name", "origin", "columns"], notes)?;
    let column = |json: &Json| match json {
        Json::Text(column) if !column.is_empty() => Ok(column.clone()),
        _ => Err(fields.wrong("`columns` of `primary-key-def` are names of columns")),
    };
    let columns = definition.list("columns")?.iter().map(column).collect::<Result<Vec<_>, _>>()?;
    if columns.is_empty() {
        return Err(fields.wrong("`columns` is missing in `primary-key-def`"));
    }
    Ok(PrimaryKey { name: definition.text("name")?, columns })
}

fn title(word: Word, target: RuleTarget, locator: &Locator) -> String {
    let action = ACTIONS.iter().find(|(_, action)| *action == word).map_or("", |(name, _)| name);
    let Locator { schema, table, column, data_type: _ } = locator;
    let place = match (target, column) {
        (RuleTarget::Name(Target::Schema), _) => format!("schema {schema}"),
        (RuleTarget::Name(Target::Column), Some(column)) => format!("{schema}.{table}.{column}"),
        (RuleTarget::Tablespace, _) => "a tablespace".to_owned(),
        (RuleTarget::Name(Target::Table | Target::Column), _) => format!("{schema}.{table}"),
    };
    format!("{action} {place}")
}
