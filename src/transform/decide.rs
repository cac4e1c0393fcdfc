//! What all rules together decide about one table: rules come in, for every name and column one decision goes out.
//!
//! Two rules that decide the same are refused, unless one of them yields.

use super::expression::nearest;
use super::refusal::RuleError;
use crate::config::{Mask, NamePattern, Renaming, Rule};
use crate::decode::Relation;

/// What was decided, and by which rule.
pub(super) type Decision<'r, T> = Option<(&'r Rule, T)>;
type Outcome<T> = Result<T, Box<RuleError>>;

/// All that is decided about a table.
#[derive(Debug, Default)]
pub(super) struct Decisions<'r> {
    pub filter: Decision<'r, &'r str>,
    pub schema: Decision<'r, &'r Renaming>,
    pub table: Decision<'r, &'r Renaming>,
    pub key: Decision<'r, &'r [String]>,
    pub soft_delete: Decision<'r, ()>,
    /// As the columns of the relation.
    pub columns: Vec<ColumnDecisions<'r>>,
    /// Columns of the target, by their names.
    pub set: Vec<(&'r str, Decision<'r, &'r str>)>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct ColumnDecisions<'r> {
    /// False where it is dropped.
    pub stays: Decision<'r, bool>,
    pub rename: Decision<'r, &'r Renaming>,
    pub mask: Decision<'r, &'r Mask>,
    pub cast: Decision<'r, &'r str>,
}

/// `None` where no rule is about the table.
pub(super) fn decide<'r>(rules: &'r [Rule], relation: &Relation) -> Outcome<Option<Decisions<'r>>> {
    let mut matching = rules.iter().filter(|rule| rule.matches(&relation.namespace, &relation.name)).peekable();
    if matching.peek().is_none() {
        return Ok(None);
    }
    let mut decisions =
        Decisions { columns: vec![ColumnDecisions::default(); relation.columns.len()], ..Decisions::default() };
    for rule in matching {
        Deciding { rule, relation }.decide(&mut decisions)?;
    }
    Ok(Some(decisions))
}

/// One rule, and the table that it is about.
struct Deciding<'r, 't> {
    rule: &'r Rule,
    relation: &'t Relation,
}

impl<'r> Deciding<'r, '_> {
    fn decide(&self, all: &mut Decisions<'r>) -> Outcome<()> {
        let rule = self.rule;
        self.settle(&mut all.filter, rule.filter.as_deref(), "where")?;
        self.settle(&mut all.schema, rule.rename_schema.as_ref(), "the name of the schema")?;
        self.settle(&mut all.table, rule.rename_table.as_ref(), "the name of the table")?;
        self.settle(&mut all.key, rule.key.as_deref(), "key")?;
        self.settle(&mut all.soft_delete, rule.soft_delete.then_some(()), "soft_delete")?;
        for (position, column) in all.columns.iter_mut().enumerate() {
            self.decide_column(position, column)?;
        }
        for (name, text) in &rule.set {
            let known = all.set.iter().position(|(other, _)| other == name);
            let place = known.unwrap_or_else(|| {
                all.set.push((name, None));
                all.set.len() - 1
            });
            self.settle(&mut all.set[place].1, Some(text.as_str()), &format!("set of column \"{name}\""))?;
        }
        Ok(())
    }

    fn decide_column(&self, position: usize, column: &mut ColumnDecisions<'r>) -> Outcome<()> {
        let (rule, name) = (self.rule, self.relation.columns[position].name.as_str());
        let what = |what: &str| format!("{what} of column \"{name}\"");
        let is_dropped = rule.drop_columns.iter().any(|pattern| pattern.matches(name));
        let stays = match &rule.keep_columns {
            Some(keep) => Some(keep.iter().any(|pattern| pattern.matches(name))),
            None => is_dropped.then_some(false),
        };
        self.settle(&mut column.stays, stays, &what("keeping or dropping"))?;
        let rename = self.pick(&rule.rename_columns, name, "rename_columns")?;
        self.settle(&mut column.rename, rename, &what("the name"))?;
        self.settle(&mut column.mask, self.pick(&rule.masks, name, "mask")?, &what("the mask"))?;
        let cast = rule.cast.iter().find(|(known, _)| known == name).map(|(_, to)| to.as_str());
        self.settle(&mut column.cast, cast, &what("the type"))
    }

    /// What stands at the name itself, or else at the one pattern that matches it.
    fn pick<T>(&self, entries: &'r [(NamePattern, T)], name: &str, key: &str) -> Outcome<Option<&'r T>> {
        if let Some((_, value)) = entries.iter().find(|(pattern, _)| pattern.exact() == Some(name)) {
            return Ok(Some(value));
        }
        let matching: Vec<_> = entries.iter().filter(|(pattern, _)| pattern.matches(name)).collect();
        match matching.as_slice() {
            [] => Ok(None),
            [(_, value)] => Ok(Some(value)),
            [(one, _), (other, _), ..] => {
                let what = format!("{key}: \"{one}\" and \"{other}\" both match column \"{name}\"");
                Err(RuleError::new(self.rule, self.relation, what, format!("give \"{name}\" an entry of its own")))
            }
        }
    }

    fn settle<T>(&self, slot: &mut Decision<'r, T>, value: Option<T>, what: &str) -> Outcome<()> {
        let Some(value) = value else { return Ok(()) };
        match slot {
            Some((first, _)) if !self.rule.yields && !first.yields => {
                let what = format!("{what} is decided by the rule of line {} as well", first.line);
                let mend = "keep one of the two, or let one of the rules have yields = true";
                Err(RuleError::new(self.rule, self.relation, what, mend))
            }
            Some(_) if self.rule.yields => Ok(()),
            Some(_) | None => {
                *slot = Some((self.rule, value));
                Ok(())
            }
        }
    }
}

/// # Errors
/// Rules that fit none of the tables, and names of columns in a rule that none of its tables has: both are misspelt, and a
/// mask that is misspelt would let through what it should hide.
pub(super) fn check_names(rules: &[Rule], relations: &[Relation]) -> Vec<RuleError> {
    rules.iter().flat_map(|rule| check_names_of(rule, relations)).collect()
}

fn check_names_of(rule: &Rule, relations: &[Relation]) -> Vec<RuleError> {
    let matching: Vec<_> =
        relations.iter().filter(|relation| rule.matches(&relation.namespace, &relation.name)).collect();
    let Some(first) = matching.first() else {
        let patterns: Vec<_> = rule.tables().iter().map(|pattern| format!("\"{pattern}\"")).collect();
        let what = format!("no table that is replicated matches {}", patterns.join(", "));
        return vec![*RuleError::without_table(rule, what, "correct the pattern, or select the tables in [tables]")];
    };
    let patterns = |entries: &[NamePattern], key| {
        entries.iter().filter_map(|entry| Some((entry.exact()?.to_owned(), key))).collect::<Vec<_>>()
    };
    let masked: Vec<_> = rule.masks.iter().map(|(pattern, _)| pattern.clone()).collect();
    let renamed: Vec<_> = rule.rename_columns.iter().map(|(pattern, _)| pattern.clone()).collect();
    let cast = rule.cast.iter().map(|(name, _)| (name.clone(), "cast"));
    let mut names = patterns(&rule.drop_columns, "drop_columns");
    names.extend(patterns(rule.keep_columns.as_deref().unwrap_or_default(), "keep_columns"));
    names.extend(patterns(&masked, "mask"));
    names.extend(patterns(&renamed, "rename_columns"));
    names.extend(cast);
    let has = |name: &str| matching.iter().any(|table| table.columns.iter().any(|column| column.name == name));
    let unknown = names.into_iter().filter(|(name, _)| !has(name));
    unknown
        .map(|(name, key)| {
            let known = matching.iter().flat_map(|table| &table.columns).map(|column| column.name.as_str());
            let hint = nearest(&name, known).map_or(String::new(), |known| format!("; did you mean \"{known}\"?"));
            let what = format!("{key}: there is no column \"{name}\"{hint}");
            let mend = "correct the name (names are compared exactly, upper and lower case included)";
            match matching.as_slice() {
                [_] => *RuleError::new(rule, first, what, mend),
                _ => *RuleError::without_table(rule, what, mend),
            }
        })
        .collect()
}
