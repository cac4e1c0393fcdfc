//! What the rules make of each table.

use clap::Args;
use pgsluice_proto::pgoutput::ReplicaIdentity;
use serde::Serialize;

use self::types::TypeNames;
use super::Compiled;
use crate::cli::{ConfigArgument, Format, output};
use crate::config::{Config, Pattern, Rule};
use crate::decode::{Column, Relation};
use crate::error::{Error, Stage};
use crate::postgres::{self, quote_ident, quote_literal};
use crate::source::publication::TableName;
use crate::transform::Mapping;

mod types;

#[derive(Debug, Args)]
pub struct ExplainArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Only tables of the source that match, as patterns in [tables] do; may be given again
    #[arg(long, value_name = "PATTERN")]
    table: Vec<Pattern>,
}

pub fn run(arguments: &ExplainArguments, format: Format) -> Result<(), Error> {
    let config = arguments.config.load()?;
    let tables = postgres::new_runtime(Stage::Source)?.block_on(read(&config, &arguments.table))?;
    match format {
        Format::Json => output::json(&tables),
        Format::Table => tables.iter().try_for_each(|table| output::text_line(&table.text())),
    }
}

async fn read(config: &Config, patterns: &[Pattern]) -> Result<Vec<Table>, Error> {
    let Compiled { client, relations, mapping } = Compiled::read(config).await?;
    let is_meant = |pattern: &Pattern, relation: &Relation| pattern.matches(&relation.namespace, &relation.name);
    if let Some(pattern) = patterns.iter().find(|pattern| !relations.iter().any(|one| is_meant(pattern, one))) {
        let what = format!("no table that is replicated matches \"{pattern}\"");
        let mend = "correct the pattern (names are compared exactly, upper and lower case included)";
        return Err(Error::refused(Stage::Config, what, mend));
    }
    let meant = |relation: &&Relation| patterns.is_empty() || patterns.iter().any(|one| is_meant(one, relation));
    let relations: Vec<_> = relations.iter().filter(meant).collect();
    let of_target = |relation: &&Relation| target_of(&mapping, relation).columns.into_iter();
    let types = TypeNames::read(&client, relations.iter().flat_map(of_target).map(|column| column.type_oid)).await?;
    Ok(relations.into_iter().map(|relation| Table::new(relation, &config.rules, &mapping, &types)).collect())
}

fn name_of(relation: &Relation) -> TableName {
    TableName { schema: relation.namespace.clone(), name: relation.name.clone() }
}

/// As the target has it.
fn target_of(mapping: &Mapping, relation: &Relation) -> Relation {
    mapping.plan(&name_of(relation)).map_or_else(|| relation.clone(), |plan| plan.target().as_ref().clone())
}

#[derive(Serialize)]
struct Table {
    /// Names are quoted.
    source: String,
    target: String,
    /// The lines of the rules about it. Without any, rows pass as they are.
    rules: Vec<usize>,
    #[serde(rename = "where")]
    filter: Option<String>,
    soft_delete: bool,
    replica_identity: &'static str,
    /// Columns of the target by which a row is found there; all of them under FULL.
    key: Vec<String>,
    /// What tells its rows from others in the same place.
    own: Vec<Own>,
    columns: Vec<TargetColumn>,
    /// Columns of the source that nothing on the target is made of.
    left_out: Vec<String>,
}

#[derive(Serialize)]
struct Own {
    column: String,
    value: String,
}

#[derive(Serialize)]
struct TargetColumn {
    name: String,
    #[serde(rename = "type")]
    of: String,
    made_of: String,
}

impl Table {
    fn new(relation: &Relation, rules: &[Rule], mapping: &Mapping, types: &TypeNames) -> Table {
        let name = name_of(relation);
        let matching = rules.iter().filter(|rule| rule.matches(&name.schema, &name.name));
        let plan = mapping.plan(&name);
        let target = target_of(mapping, relation);
        let column = |(column, made_of): (&Column, String)| TargetColumn {
            name: column.name.clone(),
            of: types.name(column.type_oid),
            made_of,
        };
        let columns = match plan {
            Some(plan) => plan.columns().map(|(of, said)| column((of, said.to_owned()))).collect(),
            None => relation.columns.iter().map(|of| column((of, quote_ident(&of.name)))).collect(),
        };
        let key = target.columns.iter().filter(|column| column.is_identity).map(|column| column.name.clone());
        Table {
            source: relation.to_string(),
            target: target.to_string(),
            rules: matching.map(|rule| rule.line).collect(),
            filter: plan.and_then(|plan| plan.filter_text()).map(str::to_owned),
            soft_delete: plan.is_some_and(|plan| plan.is_soft_deleting()),
            replica_identity: identity_name(target.replica_identity),
            key: key.collect(),
            own: mapping.own(&name).into_iter().map(|(column, value)| Own { column, value }).collect(),
            columns,
            left_out: plan.map_or_else(Vec::new, |plan| plan.left_out().map(str::to_owned).collect()),
        }
    }

    /// For people: the source's name, and below it what becomes of it.
    fn text(&self) -> String {
        let mut text = format!("{}\n", self.source);
        let mut add = |label: &str, value: &str| {
            // A condition may be of several lines.
            let value = value.trim().replace('\n', "\n               ");
            text = format!("{text}  {label:11}  {value}\n");
        };
        if self.rules.is_empty() {
            add("goes to", "the same name; no rule is about it, and rows pass as they are");
            return text;
        }
        add("goes to", &self.target);
        let lines: Vec<_> = self.rules.iter().map(ToString::to_string).collect();
        add("rules", &format!("of line {}", lines.join(", ")));
        if let Some(filter) = &self.filter {
            add("where", filter);
        }
        if self.soft_delete {
            add("soft delete", "a row that is deleted stays, and what is set without columns of the source says so");
        }
        add("key", &self.key_text());
        if !self.own.is_empty() {
            let is = |Own { column, value }: &Own| format!("{} = {}", quote_ident(column), quote_literal(value));
            let marks: Vec<_> = self.own.iter().map(is).collect();
            add("own rows", &format!("those with {}; others there are left alone", marks.join(" AND ")));
        }
        for (place, line) in self.column_lines().iter().enumerate() {
            add(if place == 0 { "columns" } else { "" }, line);
        }
        if !self.left_out.is_empty() {
            add("left out", &quoted(&self.left_out));
        }
        text
    }

    fn key_text(&self) -> String {
        match (self.replica_identity, self.key.as_slice()) {
            ("full", _) => "the whole row, by REPLICA IDENTITY FULL".to_owned(),
            (_, []) => "none: the source takes inserts only".to_owned(),
            (_, key) => quoted(key),
        }
    }

    fn column_lines(&self) -> Vec<String> {
        let width = |of: fn(&TargetColumn) -> usize| self.columns.iter().map(of).max().unwrap_or(0);
        let name_width = width(|column| quote_ident(&column.name).chars().count());
        let type_width = width(|column| column.of.chars().count());
        let line = |TargetColumn { name, of, made_of }: &TargetColumn| {
            format!("{:name_width$}  {of:type_width$}  {made_of}", quote_ident(name))
        };
        self.columns.iter().map(line).collect()
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| quote_ident(name)).collect::<Vec<_>>().join(", ")
}

fn identity_name(identity: ReplicaIdentity) -> &'static str {
    match identity {
        ReplicaIdentity::Default => "default",
        ReplicaIdentity::Nothing => "nothing",
        ReplicaIdentity::Full => "full",
        ReplicaIdentity::Index => "index",
    }
}
