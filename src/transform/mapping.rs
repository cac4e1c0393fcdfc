//! The rules of all tables: compiled and checked together before the first row.
//!
//! **Always holds:** where several tables of the source go to one of the target, each gives a column of its key a constant of
//! its own. By it their rows are told apart, so that what empties one of them leaves the others.

use std::collections::HashMap;
use std::sync::Arc;

use pgsluice_proto::pgoutput::ReplicaIdentity;

use super::compile::compile;
use super::decide::{check_names, decide};
use super::fingerprint;
use super::plan::Plan;
use super::refusal::RuleError;
use crate::config::{NamePattern, Rule};
use crate::decode::Relation;
use crate::error::{Error, Stage};
use crate::source::publication::{PublishedTable, TableName};

/// What rules make of the tables of a source.
#[derive(Debug, Default)]
pub struct Mapping {
    rules: Arc<[Rule]>,
    /// With the numbers of their columns.
    tables: Vec<(TableName, Vec<i16>)>,
    plans: HashMap<TableName, Arc<Plan>>,
}

impl Mapping {
    /// # Errors
    /// One refusal with every rule that does not fit.
    pub fn of(rules: &[Rule], tables: &[PublishedTable], stage: Stage) -> Result<Mapping, Error> {
        Mapping::new(rules, tables).map_err(|errors| refusal(stage, &errors))
    }

    /// # Errors
    /// Every rule that does not fit, in the order of the file.
    pub fn new(rules: &[Rule], tables: &[PublishedTable]) -> Result<Mapping, Vec<RuleError>> {
        let relations: Vec<_> = tables.iter().map(PublishedTable::relation).collect();
        let mut errors = check_names(rules, &relations);
        let names = tables.iter().map(|table| (table.table.clone(), table.attnums.clone())).collect();
        let mut mapping = Mapping { rules: rules.into(), tables: names, ..Mapping::default() };
        for (relation, table) in relations.iter().zip(tables) {
            match mapping.compile(relation) {
                Ok(Some(plan)) => {
                    errors.extend(mapping.check_partitions(table, &plan));
                    mapping.plans.insert(name_of(relation), Arc::new(plan));
                }
                Ok(None) => {}
                Err(error) => errors.push(*error),
            }
        }
        errors.extend(mapping.check_apart(&relations));
        errors.sort_by_key(|error| error.line);
        if errors.is_empty() { Ok(mapping) } else { Err(errors) }
    }

    /// There is nothing to transform at all.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The plan for a relation as it is now; `None` where no rule is about it.
    pub(super) fn compile(&self, relation: &Relation) -> Result<Option<Plan>, Box<RuleError>> {
        let decisions = decide(&self.rules, relation)?;
        decisions.map(|decisions| compile(&decisions, relation)).transpose()
    }

    /// The plan for a table as it was at first; `None` where no rule is about it.
    pub fn plan(&self, table: &TableName) -> Option<&Arc<Plan>> {
        self.plans.get(table)
    }

    /// Where a table's rows go.
    pub fn target(&self, table: &TableName) -> TableName {
        self.plan(table).map_or_else(|| table.clone(), |plan| name_of(plan.target()))
    }

    /// All tables of the source that it is about.
    pub fn tables(&self) -> impl Iterator<Item = &TableName> + Clone {
        self.tables.iter().map(|(table, _)| table)
    }

    /// The tables whose rows go to one of the target.
    pub fn sources(&self, target: &TableName) -> impl Iterator<Item = &TableName> {
        self.tables().filter(move |table| self.target(table) == *target)
    }

    /// The columns of the source, with their tables, whose values one of the target gets unchanged.
    pub fn origins(&self, target: &TableName, column: &str) -> Vec<(&TableName, String)> {
        let origin = |table| match self.plan(table) {
            Some(plan) => Some((table, plan.origin(column)?.to_owned())),
            None => Some((table, column.to_owned())),
        };
        self.sources(target).filter_map(origin).collect()
    }

    /// The target gets such a column of the table, and its values are not those of one of the source.
    pub fn is_made(&self, table: &TableName, column: &str) -> bool {
        let gets = |plan: &Arc<Plan>| plan.columns().any(|(other, _)| other.name == column);
        self.plan(table).is_some_and(|plan| gets(plan) && plan.origin(column).is_none())
    }

    /// What columns of the target are called on the source, as far as they have its values unchanged.
    pub fn origins_of(&self, table: &TableName, columns: &[&str]) -> Vec<String> {
        let origin = |column: &&str| match self.plan(table) {
            Some(plan) => plan.origin(column).map(str::to_owned),
            None => Some((*column).to_owned()),
        };
        columns.iter().filter_map(origin).collect()
    }

    /// Columns of the key and their values, in text, that mark the table's rows among those of others that go to the same
    /// place, whoever brings those; without any, all rows there are its own.
    pub fn own(&self, table: &TableName) -> Vec<(String, String)> {
        self.plan(table).map_or_else(Vec::new, |plan| plan.constants())
    }

    /// Tables of the target whose deleted rows stay, each with the columns of its key.
    pub fn kept(&self) -> impl Iterator<Item = (TableName, Vec<&str>)> {
        let soft = self.plans.values().filter(|plan| plan.is_soft_deleting());
        soft.map(|plan| {
            let key = plan.target().columns.iter().filter(|column| column.is_identity);
            (name_of(plan.target()), key.map(|column| column.name.as_str()).collect())
        })
    }

    /// Where the table's rows are found: the table on the target, and what tells them from others there.
    pub fn place(&self, table: &TableName) -> String {
        let marks: Vec<_> = self.own(table).iter().map(|(column, value)| format!("{column} = {value}")).collect();
        let condition = if marks.is_empty() { String::new() } else { format!(" where {}", marks.join(" and ")) };
        format!("{}{condition}", self.target(table))
    }

    /// What decides what becomes of the table's rows, to tell by [`are_same_rules`](super::are_same_rules) whether it is
    /// still the same; `None` where no rule is about it.
    pub fn fingerprint(&self, table: &TableName) -> Option<String> {
        let (_, attnums) = self.tables.iter().find(|(name, _)| name == table)?;
        let rules = self.rules.iter().filter(|rule| rule.matches(&table.schema, &table.name));
        Some(fingerprint::of(self.plan(table)?, rules, attnums))
    }

    /// Of a partitioned table the root's replica identity is told, and the partition's decides what comes of an old row. Under FULL,
    /// a partition that is attached later has another one, and values that were left out would look like NULL.
    fn check_partitions(&self, table: &PublishedTable, plan: &Plan) -> Option<RuleError> {
        let is_told = table.replica_identity == ReplicaIdentity::Default && !table.identity.is_empty();
        if !table.is_partitioned || plan.filter_text().is_none() || is_told && !table.partitions_differ {
            return None;
        }
        let relation = plan.source();
        let rule = self
            .rules
            .iter()
            .find(|rule| rule.filter.is_some() && rule.matches(&relation.namespace, &relation.name))?;
        let what = "where: the table is partitioned, and what is known of old rows depends on the replica identity of each \
                    partition, of those to come too";
        let mend = format!(
            "on the primary: ALTER TABLE {relation} REPLICA IDENTITY DEFAULT, and the same for its partitions; and filter by \
             columns of its primary key"
        );
        Some(*RuleError::new(rule, relation, what, mend))
    }

    /// # Errors
    /// A column that a rule hides by its name and that the relation had before has gone: under another name its values would pass.
    pub(super) fn check_hidden(&self, relation: &Relation) -> Result<(), Box<RuleError>> {
        let Some(known) = self.plan(&name_of(relation)) else { return Ok(()) };
        let has = |relation: &Relation, name: &str| relation.columns.iter().any(|column| column.name == name);
        for rule in self.rules.iter().filter(|rule| rule.matches(&relation.namespace, &relation.name)) {
            let masked = rule.masks.iter().map(|(pattern, _)| pattern);
            let names = rule.drop_columns.iter().chain(masked).filter_map(NamePattern::exact);
            let mut gone = names.filter(|name| has(known.source(), name) && !has(relation, name));
            if let Some(name) = gone.next() {
                let what =
                    format!("column \"{name}\", which the rule hides, has gone from the source or is renamed there");
                let mend =
                    "name the column in the rule as it is called now, or take it out if it is gone, and start again";
                return Err(RuleError::new(rule, relation, what, mend));
            }
        }
        Ok(())
    }

    /// Tables that go to one place, and whose rows nothing tells apart there.
    fn check_apart(&self, relations: &[Relation]) -> Vec<RuleError> {
        let mut sources: HashMap<TableName, Vec<TableName>> = HashMap::new();
        for relation in relations {
            let name = name_of(relation);
            sources.entry(self.target(&name)).or_default().push(name);
        }
        let shared = sources.into_iter().filter(|(_, sources)| sources.len() > 1 && !self.are_apart(sources));
        shared
            .filter_map(|(target, mut sources)| {
                sources.sort();
                self.indistinct(&target, &sources)
            })
            .collect()
    }

    /// There is a column that all of them give a constant, each another one.
    fn are_apart(&self, sources: &[TableName]) -> bool {
        let constants: Vec<_> = sources.iter().map(|table| self.own(table)).collect();
        let columns = constants.first().into_iter().flatten().map(|(column, _)| column);
        columns.into_iter().any(|column| {
            let value = |of_table: &Vec<(String, String)>| {
                of_table.iter().find(|(name, _)| name == column).map(|(_, value)| value.clone())
            };
            let values: Option<Vec<String>> = constants.iter().map(value).collect();
            values.is_some_and(|values| (1..values.len()).all(|at| !values[..at].contains(&values[at])))
        })
    }

    fn indistinct(&self, target: &TableName, sources: &[TableName]) -> Option<RuleError> {
        let renaming = |table: &&TableName| self.plan(table).is_some();
        let table = sources.iter().find(renaming)?;
        let rule = self.rules.iter().find(|rule| rule.matches(&table.schema, &table.name))?;
        let list: Vec<_> = sources.iter().map(TableName::to_string).collect();
        let what = format!("{} all go to {target}, and nothing tells their rows apart there", list.join(", "));
        let mend = "give each of them a constant of its own in the key, such as set = { origin = \"$source_table\" } with \
                    key = [\"origin\", \"id\"]; or rename them apart";
        Some(*RuleError::without_table(rule, what, mend))
    }
}

/// All that does not fit, as one refusal.
pub(super) fn refusal(stage: Stage, errors: &[RuleError]) -> Error {
    let mut mends: Vec<&str> = Vec::new();
    for error in errors {
        if !mends.contains(&error.mend.as_str()) {
            mends.push(&error.mend);
        }
    }
    let what: Vec<_> = errors.iter().map(RuleError::to_string).collect();
    Error::refused(stage, what.join("\n"), mends.join("; "))
}

fn name_of(relation: &Relation) -> TableName {
    TableName { schema: relation.namespace.clone(), name: relation.name.clone() }
}
