//! Transformation rules to rules of ours.

use toml::Value;

use super::claims::{Aspect, Place};
use super::document::{
    Action, Content, DataType, Locator, Masking, NameChange, PrimaryKey, Rule, Target, Transformation,
};
use super::expression::{self, Translated};
use super::name::Name;
use super::output::at;
use super::report::Verdict;
use super::selection::{no_pattern, pattern};
use super::types;
use super::{Kept, Translator};

impl Translator<'_> {
    pub(super) fn transformation(&mut self, rule: &Rule, transformation: &Transformation) -> Verdict {
        let locator = &transformation.locator;
        let Ok(pattern) = pattern(&locator.schema, &locator.table) else {
            return no_pattern();
        };
        let of = Of { rule, locator, pattern: &pattern };
        if let Some(data_type) = &locator.data_type {
            return Verdict::not_possible(format!(
                "the columns of type {data_type} are not known from the mapping: name them"
            ));
        }
        match &transformation.action {
            Action::Rename(target, change) => self.rename(&of, *target, change),
            Action::AddColumn { name, expression, data_type } => {
                self.add_column(&of, name, expression.as_deref(), data_type.as_ref())
            }
            Action::IncludeColumn => self.include_column(&of),
            Action::RemoveColumn => match &locator.column {
                Some(column) => {
                    let keys = vec![("drop_columns", Value::from(vec![column.as_column()]))];
                    self.decide(&of, Aspect::Presence, Some(column), keys)
                }
                None => no_column(),
            },
            Action::DefinePrimaryKey(key) => self.define_primary_key(&of, key),
            Action::ChangeDataType(data_type) => self.change_data_type(&of, data_type),
            Action::AddBeforeImageColumns => Verdict::not_possible("values as they were before are not kept"),
            Action::Mask(masking) => self.mask(&of, masking),
            Action::OfOracle => Verdict::not_possible("tablespaces are renamed for Oracle only"),
        }
    }

    fn rename(&mut self, of: &Of<'_>, target: Target, change: &NameChange) -> Verdict {
        if change.texts().iter().any(|text| text.contains("${")) {
            return Verdict::not_possible("a new name with variables has no equal here");
        }
        let renaming = change.to_toml();
        match (target, &of.locator.column) {
            (Target::Schema, _) => self.decide(of, Aspect::SchemaName, None, vec![("rename_schema", renaming)]),
            (Target::Table, _) => self.decide(of, Aspect::TableName, None, vec![("rename_table", renaming)]),
            (Target::Column, Some(column)) => {
                let keys = vec![("rename_columns", at(&column.as_column(), renaming))];
                self.decide(of, Aspect::ColumnName, Some(column), keys)
            }
            (Target::Column, None) => no_column(),
        }
    }

    fn add_column(
        &mut self,
        of: &Of<'_>,
        name: &str,
        expression: Option<&str>,
        data_type: Option<&DataType>,
    ) -> Verdict {
        let of_type = data_type.map(|data_type| match types::to_postgres(&data_type.name) {
            Ok(of_type) => format!(" of type {of_type}"),
            Err(_) => String::new(),
        });
        let needed = format!("the target needs the column \"{name}\"{}", of_type.unwrap_or_default());
        let Some(expression) = expression else {
            let mut verdict = Verdict::carried();
            verdict.changed(format!("{needed}; nothing is written to it, so it gets its default"));
            return verdict;
        };
        let column = of.locator.column.as_ref().and_then(Name::single);
        let (sql, soft_delete, notes) = match expression::translate(expression, column) {
            Ok(Translated::Expression { sql, soft_delete, notes }) => (sql, soft_delete, notes),
            Ok(Translated::Hash(hashed)) => return self.hashed_column(of, name, &hashed),
            Err(reason) => return Verdict::not_possible(reason),
        };
        let (mut verdict, mut yields) = match self.decided(of, Aspect::Value, Some(&Name::literal(name))) {
            Ok(decided) => decided,
            Err(refusal) => return refusal,
        };
        let mut keys = vec![("set", at(name, sql))];
        if soft_delete {
            match self.claim(of.rule.id, Aspect::SoftDelete, of.tables(), None) {
                Place::Taken(_) => {}
                place @ (Place::Free | Place::Shared(_) | Place::Beside(_)) => {
                    keys.push(("soft_delete", Value::from(true)));
                    yields |= matches!(place, Place::Shared(_));
                }
            }
        }
        self.write(of.rule, of.pattern, keys, yields);
        verdict.note(needed);
        notes.into_iter().for_each(|note| verdict.changed(note));
        if soft_delete {
            verdict.note(
                "deletes become updates: rows stay on the target; with REPLICA IDENTITY FULL, which filters may want, the \
                 table needs a `key` as well, as define-primary-key makes it",
            );
        }
        verdict
    }

    /// A mask stands in the place of its column.
    fn hashed_column(&mut self, of: &Of<'_>, name: &str, hashed: &str) -> Verdict {
        if name != hashed {
            return Verdict::not_possible(format!(
                "a hash stands in the place of its column, not in another one: mask \"{hashed}\" by \
                 data-masking-hash-mask, and rename it where needed"
            ));
        }
        let column = Name::literal(hashed);
        self.decide(of, Aspect::Mask, Some(&column), vec![("mask", at(&column.as_column(), "sha256"))])
    }

    /// All rules of the same tables make one list.
    fn include_column(&mut self, of: &Of<'_>) -> Verdict {
        let Some(column) = &of.locator.column else { return no_column() };
        let column = column.as_column();
        if let Some(kept) = self.kept.iter().find(|kept| kept.pattern == of.pattern) {
            let written = &mut self.written.rules[kept.at];
            written.of.push((of.rule.id, of.rule.name.clone()));
            for (_, value) in written.keys.iter_mut().filter(|(key, _)| *key == "keep_columns") {
                if let Some(columns) = value.as_array_mut() {
                    columns.push(Value::from(column.clone()));
                }
            }
            return Verdict::carried();
        }
        if let Some(kept) = self.kept.iter().find(|kept| kept.meets(of.locator)) {
            return Verdict::not_possible(format!(
                "rule {} keeps columns of some of the same tables: name the columns of each table below one pattern",
                kept.of
            ));
        }
        let place = self.written.rules.len();
        let keys = vec![("keep_columns", Value::from(vec![column]))];
        let verdict = self.decide(of, Aspect::Presence, Some(&Name::all()), keys);
        if self.written.rules.len() > place {
            let (schema, table) = (of.locator.schema.clone(), of.locator.table.clone());
            self.kept.push(Kept { of: of.rule.id, pattern: of.pattern.to_owned(), schema, table, at: place });
        }
        verdict
    }

    fn define_primary_key(&mut self, of: &Of<'_>, key: &PrimaryKey) -> Verdict {
        let columns: Vec<_> = key.columns.iter().map(|column| self.renamed(of, column)).collect();
        let mut verdict = self.decide(of, Aspect::Key, None, vec![("key", Value::from(columns))]);
        if verdict.is_effective() {
            let named = key.name.as_ref().map(|name| format!(" \"{name}\"")).unwrap_or_default();
            verdict.changed(format!("rows are found by these columns; the target's table needs the key{named} itself"));
        }
        verdict
    }

    /// The name that the column has on the target.
    fn renamed(&self, of: &Of<'_>, column: &str) -> String {
        let name = Name::literal(column);
        let change = self.rules.iter().find_map(|rule| match &rule.content {
            Content::Transformation(Transformation { locator, action: Action::Rename(Target::Column, change) }) => {
                let concerns = locator.schema.meets(&of.locator.schema)
                    && locator.table.meets(&of.locator.table)
                    && locator.column.as_ref().is_some_and(|renamed| renamed.covers(&name));
                concerns.then_some(change)
            }
            Content::Transformation(_)
            | Content::Selection(_)
            | Content::TableSettings(_)
            | Content::Validation
            | Content::ObjectMapping => None,
        });
        change.map_or_else(|| column.to_owned(), |change| change.apply(column))
    }

    fn change_data_type(&mut self, of: &Of<'_>, data_type: &DataType) -> Verdict {
        let Some(column) = of.locator.column.as_ref().and_then(Name::single) else {
            return Verdict::not_possible("a type is changed column by column: name each of them");
        };
        let of_type = match types::to_postgres(&data_type.name) {
            Ok(of_type) => of_type,
            Err(reason) => return Verdict::not_possible(reason),
        };
        let keys = vec![("cast", at(&column, of_type))];
        let mut verdict = self.decide(of, Aspect::Type, Some(&Name::literal(&column)), keys);
        if verdict.is_effective() && data_type.has_modifiers {
            verdict.changed("its length, precision and scale are those of the target's column");
        }
        verdict
    }

    fn mask(&mut self, of: &Of<'_>, masking: &Masking) -> Verdict {
        let Some(column) = &of.locator.column else { return no_column() };
        let mask = match masking {
            Masking::Hash => Value::from("sha256"),
            Masking::DigitsRandom => Value::from("digits_random"),
            Masking::Digits(with) if with.chars().count() == 1 => {
                let digits = [("type", "digits"), ("with", with)];
                Value::Table(digits.into_iter().map(|(key, value)| (key.to_owned(), Value::from(value))).collect())
            }
            Masking::Digits(with) => {
                return Verdict::not_possible(format!("a digit becomes one character, and \"{with}\" is not one"));
            }
        };
        self.decide(of, Aspect::Mask, Some(column), vec![("mask", at(&column.as_column(), mask))])
    }

    /// Writes a rule with these keys, unless an earlier one decides all that it does.
    fn decide(
        &mut self,
        of: &Of<'_>,
        aspect: Aspect,
        column: Option<&Name>,
        keys: Vec<(&'static str, Value)>,
    ) -> Verdict {
        match self.decided(of, aspect, column) {
            Ok((verdict, yields)) => {
                self.write(of.rule, of.pattern, keys, yields);
                verdict
            }
            Err(refusal) => refusal,
        }
    }

    /// Whether the rule yields to an earlier one; or that it does nothing, since an earlier one decides all that it does.
    fn decided(&mut self, of: &Of<'_>, aspect: Aspect, column: Option<&Name>) -> Result<(Verdict, bool), Verdict> {
        let mut verdict = Verdict::carried();
        let place = self.claim(of.rule.id, aspect, of.tables(), column);
        match place {
            Place::Free => {}
            Place::Taken(earlier) => {
                return Err(Verdict::ignored(format!(
                    "rule {earlier} decides it already, and the lowest rule-id does in DMS"
                )));
            }
            Place::Shared(earlier) => {
                verdict
                    .note(format!("where an earlier rule decides it, such as {earlier}, that one stands, as in DMS"));
            }
            Place::Beside(earlier) => verdict.changed(format!(
                "rule {earlier} acts on the same column; DMS takes only that of the lowest rule-id, here both are done"
            )),
        }
        Ok((verdict, matches!(place, Place::Shared(_))))
    }
}

/// What a rule acts on.
struct Of<'r> {
    rule: &'r Rule,
    locator: &'r Locator,
    pattern: &'r str,
}

impl Of<'_> {
    fn tables(&self) -> (&Name, &Name) {
        (&self.locator.schema, &self.locator.table)
    }
}

fn no_column() -> Verdict {
    Verdict::not_possible("the rule names no column")
}
