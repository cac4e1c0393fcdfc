//! How tables of the target differ from those of the source: catalogs of both come in, named differences go out.
//!
//! What a difference comes to is the caller's: one that makes the same tables refuses where one that moves rows may only
//! warn.

use std::collections::HashMap;
use std::fmt;

use pgsluice_proto::Oid;
use tokio_postgres::{Client, Row};

use crate::config::Role;
use crate::error::{Error, Stage};
use crate::postgres::{ColumnType, loss, quote_ident};
use crate::source::publication::{PublishedTable, TableName};
use crate::transform::expression::types::Type;
use crate::transform::{Mapping, Plan};

/// A table as far as its rows are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// It is no table but, say, a view.
    pub is_other: bool,
    /// As `PARTITION BY` has it.
    pub partition_key: Option<String>,
    pub columns: Vec<Column>,
    pub primary_key: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// With its modifier, and its schema unless that is `pg_catalog`.
    pub type_name: String,
    /// The same without the modifier.
    pub base_type: String,
    pub has_modifier: bool,
    pub of: ColumnType,
    /// Where it is not the type's own.
    pub collation: Option<String>,
    pub not_null: bool,
    pub has_default: bool,
    pub is_generated: bool,
    pub is_identity: bool,
    /// The source computes it, and sends the value like any other.
    pub is_generated_and_sent: bool,
}

/// What a difference means for the source's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// All of them fit.
    Harmless,
    /// Some may not fit.
    Conflict,
    /// Some may come out otherwise, and nobody would be told.
    Loss,
    /// There is no place for them.
    Missing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub weight: Weight,
    pub what: String,
    /// What becomes of rows, where that may matter.
    pub consequence: &'static str,
}

/// What is to be done about losses.
pub const LOSS_MEND: &str = "have the columns of the target take what those of the source have (ALTER TABLE … ALTER COLUMN … TYPE …, \
     or DROP EXPRESSION); or, where it is meant, say so in a rule: `cast` or `set` for the column, or `drop_columns`";

const REFUSED: &str = "rows that do not fit are refused";
const NOT_SENT: &str =
    "its values are not sent, unless the publication has generated columns (PostgreSQL 18 and later)";

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// One row a column; a table without columns is one row of NULLs.
const SHAPES_SQL: &str = "\
SELECT w.place, c.relkind NOT IN ('r', 'p'), CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END,
    ARRAY(SELECT k.attname::text FROM pg_index i, unnest(i.indkey) WITH ORDINALITY u (attnum, place)
          JOIN pg_attribute k ON k.attnum = u.attnum
          WHERE i.indrelid = c.oid AND i.indisprimary AND k.attrelid = c.oid AND u.place <= i.indnkeyatts ORDER BY u.place),
    a.attname::text, format_type(a.atttypid, a.atttypmod), format_type(a.atttypid, NULL), a.atttypmod <> -1,
    CASE WHEN l.oid <> t.typcollation THEN format('%I.%I', ln.nspname, l.collname) END,
    a.attnotnull, a.atthasdef AND a.attgenerated = '', a.attgenerated <> '', a.attidentity <> '', a.atttypid, a.atttypmod
FROM unnest($1::text[]) WITH ORDINALITY AS w (name, place)
JOIN pg_class c ON c.oid = to_regclass(w.name)
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_collation l ON l.oid = a.attcollation
LEFT JOIN pg_namespace ln ON ln.oid = l.collnamespace
ORDER BY w.place, a.attnum";

/// Reads the shapes of tables, each quoted and qualified; `None` for those that are not there.
pub async fn shapes(client: &Client, role: Role, stage: Stage, tables: &[String]) -> Result<Vec<Option<Shape>>, Error> {
    let failed = |error| Error::from_postgres(stage, role, error);
    let mut shapes = vec![None; tables.len()];
    for row in client.query(SHAPES_SQL, &[&tables]).await.map_err(failed)? {
        let place: i64 = row.try_get(0).map_err(failed)?;
        // Places are counted from 1.
        if let Some(shape) = usize::try_from(place - 1).ok().and_then(|place| shapes.get_mut(place)) {
            add_row(shape, &row).map_err(failed)?;
        }
    }
    Ok(shapes)
}

fn add_row(shape: &mut Option<Shape>, row: &Row) -> Result<(), tokio_postgres::Error> {
    let shape = match shape {
        Some(shape) => shape,
        None => shape.insert(Shape {
            is_other: row.try_get(1)?,
            partition_key: row.try_get(2)?,
            primary_key: row.try_get(3)?,
            columns: Vec::new(),
        }),
    };
    let Some(name) = row.try_get(4)? else { return Ok(()) };
    shape.columns.push(Column {
        name,
        type_name: row.try_get(5)?,
        base_type: row.try_get(6)?,
        has_modifier: row.try_get(7)?,
        collation: row.try_get(8)?,
        not_null: row.try_get(9)?,
        has_default: row.try_get(10)?,
        is_generated: row.try_get(11)?,
        is_identity: row.try_get(12)?,
        of: ColumnType { oid: Oid(row.try_get(13)?), modifier: row.try_get(14)? },
        is_generated_and_sent: false,
    });
    Ok(())
}

/// The columns of tables whose values are sent, where a publication says so. Of other tables they are all that are not generated.
#[derive(Clone, Debug, Default)]
pub struct Sent(HashMap<TableName, Vec<String>>);

impl Sent {
    /// As a publication has them.
    pub fn of<'a>(published: impl Iterator<Item = &'a PublishedTable>) -> Sent {
        let names = |one: &PublishedTable| one.columns.iter().map(|(name, _)| name.clone()).collect();
        Sent(published.map(|one| (one.table.clone(), names(one))).collect())
    }

    /// The shape that a reader of the stream sees, without columns that are not sent.
    fn shape(&self, table: &TableName, mut shape: Shape) -> Shape {
        let Some(sent) = self.0.get(table) else { return shape };
        let is_sent = |column: &Column| sent.contains(&column.name);
        // One that is generated and not sent is of interest still: the target may have it as well.
        shape.columns.retain(|column| column.is_generated || is_sent(column));
        for column in shape.columns.iter_mut().filter(|column| is_sent(column)) {
            column.is_generated_and_sent = column.is_generated;
        }
        shape
    }
}

/// Compares tables of the source, as rules have them and as far as they are sent, with those of the target, where there are such.
pub async fn tables<'a>(
    source: &Client,
    target: &Client,
    tables: &'a [TableName],
    (mapping, sent): (&Mapping, &Sent),
    stage: Stage,
) -> Result<Vec<(&'a TableName, Option<Vec<Difference>>)>, Error> {
    let names: Vec<_> = tables.iter().map(TableName::to_string).collect();
    let on_source = shapes(source, Role::Source, stage, &names).await?;
    let names: Vec<_> = tables.iter().map(|table| mapping.target(table).to_string()).collect();
    let on_target = shapes(target, Role::Target, stage, &names).await?;
    let compared = tables.iter().zip(on_source.into_iter().zip(on_target)).map(|(table, (source, target))| {
        let source = sent.shape(table, source.unwrap_or_default());
        (
            table,
            target.map(|target| match mapping.plan(table) {
                Some(plan) => differences(&mapping.target(table), &by_rules(plan, &source, &target), &target),
                None => differences(table, &source, &target),
            }),
        )
    });
    Ok(compared.collect())
}

/// The shape that rows have after the rules. What they do not say is as the target has it.
fn by_rules(plan: &Plan, source: &Shape, target: &Shape) -> Shape {
    let column = |column: &crate::decode::Column, origin: Option<&str>| {
        let name = &column.name;
        let on_source = origin.and_then(|origin| source.columns.iter().find(|one| one.name == origin));
        if let Some(same) = on_source {
            return Column { name: name.clone(), ..same.clone() };
        }
        let on_target = target.columns.iter().find(|one| one.name == *name).cloned().unwrap_or_default();
        let type_name =
            Type::from_oid(column.type_oid).map_or_else(|| on_target.base_type.clone(), |of| of.name().to_owned());
        let is_same = type_name == on_target.base_type;
        let type_name = if is_same { on_target.type_name.clone() } else { type_name };
        Column { name: name.clone(), base_type: type_name.clone(), type_name, is_generated: false, ..on_target }
    };
    let columns = plan.target().columns.iter().map(|one| column(one, plan.origin(&one.name))).collect();
    Shape {
        columns,
        partition_key: source.partition_key.clone(),
        primary_key: target.primary_key.clone(),
        ..Shape::default()
    }
}

/// Weight, what differs, and the consequence.
type Found = (Weight, String, &'static str);

/// Compares a table of the source with the one that is to get its rows.
pub fn differences(table: &TableName, source: &Shape, target: &Shape) -> Vec<Difference> {
    if target.is_other {
        let what = format!("{table} on the target is not a table");
        return vec![Difference { weight: Weight::Missing, what, consequence: "" }];
    }
    let mut found = Vec::new();
    for column in &source.columns {
        match target.columns.iter().find(|other| other.name == column.name) {
            Some(other) => compare_columns(column, other, &mut found),
            // Its values are not sent.
            None if column.is_generated && !column.is_generated_and_sent => {
                let what = format!("generated column {} is missing on the target", quoted(column));
                found.push((Weight::Harmless, what, ""));
            }
            None => found.push((Weight::Missing, format!("column {} is missing on the target", quoted(column)), "")),
        }
    }
    let is_extra = |column: &&Column| !source.columns.iter().any(|other| other.name == column.name);
    for column in target.columns.iter().filter(is_extra) {
        found.push(extra(column));
    }
    if !target.primary_key.is_empty() && target.primary_key != source.primary_key {
        let (source, target) = (key(&source.primary_key), key(&target.primary_key));
        let what = format!("the primary key is {source} on the source and {target} on the target");
        found.push((Weight::Harmless, what, ""));
    }
    let difference = |(weight, what, consequence)| {
        let what = format!("table {table}: {what}");
        Difference { weight, what, consequence }
    };
    found.into_iter().map(difference).collect()
}

fn compare_columns(source: &Column, target: &Column, found: &mut Vec<Found>) {
    let loss = if target.is_generated { None } else { loss(source.of, target.of) };
    if let Some(loss) = loss {
        let (of_source, of_target) = (&source.type_name, &target.type_name);
        let what = format!("column {} is {of_source} on the source and {of_target} on the target", quoted(source));
        found.push((Weight::Loss, format!("{what}, where values would be {} without an error", loss.as_str()), ""));
    }
    match (source.is_generated, target.is_generated) {
        (true, false) if source.is_generated_and_sent => {}
        (true, false) => {
            let what = format!("column {} is generated on the source and not generated on the target", quoted(source));
            found.push((Weight::Conflict, what, NOT_SENT));
        }
        (false, true) => {
            let what = format!("column {} is generated on the target and not on the source", quoted(source));
            found.push((Weight::Loss, format!("{what}, whose values would be left out without an error"), ""));
        }
        (true, true) | (false, false) => {}
    }
    let mut add = |weight, on_source: &str, on_target: &str| {
        let name = quoted(source);
        let what = format!("column {name} is {on_source} on the source and {on_target} on the target");
        found.push((weight, what, REFUSED));
    };
    if loss.is_none() && source.type_name != target.type_name {
        // A type without a modifier holds whatever the same type with one does.
        let is_wider = source.base_type == target.base_type && !target.has_modifier;
        let weight = if is_wider { Weight::Harmless } else { Weight::Conflict };
        add(weight, &source.type_name, &target.type_name);
    }
    if source.collation != target.collation {
        let name = |column: &Column| match &column.collation {
            Some(collation) => format!("of collation {collation}"),
            None => "of its type's collation".to_owned(),
        };
        add(Weight::Harmless, &name(source), &name(target));
    }
    match (source.not_null, target.not_null) {
        (true, false) => add(Weight::Harmless, "NOT NULL", "nullable"),
        (false, true) => add(Weight::Conflict, "nullable", "NOT NULL"),
        (true, true) | (false, false) => {}
    }
    if source.is_identity != target.is_identity {
        let name = |column: &Column| if column.is_identity { "an identity column" } else { "no identity column" };
        add(Weight::Harmless, name(source), name(target));
    } else if source.has_default != target.has_default {
        let name = |column: &Column| if column.has_default { "with a default" } else { "without a default" };
        add(Weight::Harmless, name(source), name(target));
    }
}

/// A column that only the target has.
fn extra(column: &Column) -> Found {
    let fills_itself = column.has_default || column.is_generated || column.is_identity || !column.not_null;
    let name = quoted(column);
    if fills_itself {
        (Weight::Harmless, format!("column {name} is on the target only"), "")
    } else {
        (Weight::Conflict, format!("column {name} is on the target only, and is NOT NULL without a default"), REFUSED)
    }
}

fn quoted(column: &Column) -> String {
    quote_ident(&column.name)
}

fn key(columns: &[String]) -> String {
    match columns {
        [] => "none".to_owned(),
        columns => format!("({})", columns.iter().map(|column| quote_ident(column)).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, type_name: &str) -> Column {
        let base_type = type_name.split('(').next().unwrap_or_default().to_owned();
        let has_modifier = type_name.contains('(');
        Column { name: name.to_owned(), type_name: type_name.to_owned(), base_type, has_modifier, ..Column::default() }
    }

    fn shape(columns: Vec<Column>) -> Shape {
        Shape { columns, ..Shape::default() }
    }

    fn compared(source: Vec<Column>, target: Vec<Column>) -> Vec<(Weight, String)> {
        let table = TableName { schema: "s".to_owned(), name: "t".to_owned() };
        let found = differences(&table, &shape(source), &shape(target));
        let what =
            |one: &Difference| one.what.strip_prefix("table \"s\".\"t\": column ").unwrap_or(&one.what).to_owned();
        found.iter().map(|one| (one.weight, what(one))).collect()
    }

    #[test]
    fn equal_tables_do_not_differ() {
        let columns = vec![column("a", "integer"), column("b", "numeric(10,2)")];
        assert!(compared(columns.clone(), columns).is_empty());
    }

    #[test]
    fn types_are_named() {
        let of = |source, target| compared(vec![column("c", source)], vec![column("c", target)]);
        let expected = |weight, what: &str| vec![(weight, what.to_owned())];
        let what = "\"c\" is integer on the source and bigint on the target";
        assert_eq!(of("integer", "bigint"), expected(Weight::Conflict, what));
        let what = "\"c\" is numeric(10,2) on the source and numeric(9,2) on the target";
        assert_eq!(of("numeric(10,2)", "numeric(9,2)"), expected(Weight::Conflict, what));
        let what = "\"c\" is numeric(10,2) on the source and numeric on the target";
        assert_eq!(of("numeric(10,2)", "numeric"), expected(Weight::Harmless, what));
    }

    #[test]
    fn columns_of_one_side_only() {
        let required = Column { not_null: true, ..column("x", "text") };
        let filled = Column { has_default: true, ..required.clone() };
        let computed = Column { is_generated: true, ..column("g", "text") };
        let both = || column("a", "integer");
        assert_eq!(
            compared(vec![both(), column("b", "text"), computed], vec![both()]),
            [
                (Weight::Missing, "\"b\" is missing on the target".to_owned()),
                (Weight::Harmless, "table \"s\".\"t\": generated column \"g\" is missing on the target".to_owned()),
            ]
        );
        let what = "\"x\" is on the target only".to_owned();
        assert_eq!(compared(vec![both()], vec![both(), filled]), [(Weight::Harmless, what.clone())]);
        let what = format!("{what}, and is NOT NULL without a default");
        assert_eq!(compared(vec![both()], vec![both(), required]), [(Weight::Conflict, what)]);
    }

    #[test]
    fn what_a_column_takes() {
        let not_null = || Column { not_null: true, ..column("c", "text") };
        let generated = || Column { is_generated: true, ..column("c", "text") };
        let weights = |source, target| compared(vec![source], vec![target]).iter().map(|one| one.0).collect::<Vec<_>>();
        assert_eq!(weights(not_null(), column("c", "text")), [Weight::Harmless]);
        assert_eq!(weights(column("c", "text"), not_null()), [Weight::Conflict]);
        assert_eq!(weights(generated(), column("c", "text")), [Weight::Conflict]);
        assert_eq!(weights(column("c", "text"), generated()), [Weight::Loss]);
    }
}
