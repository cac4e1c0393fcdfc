//! The text of the statements, from what the plan has found. Nothing here asks the server.
//!
//! Every parameter is cast to the type of its column, so that the server reads its bytes as that type whatever stands
//! around it.

use super::catalog::{Equality, TargetColumn, TargetTable};
use crate::decode::PartialTruncate;
use crate::postgres::{quote_ident, quote_literal};

/// How a statement finds its one row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Match<'a> {
    /// By columns that identify it.
    Key(&'a [&'a TargetColumn]),
    /// By all columns that are known, one row of those that are alike.
    WholeRow(&'a [&'a TargetColumn]),
}

/// Numbers parameters in the order in which they are written.
#[derive(Default)]
struct Parameters(usize);

impl Parameters {
    fn next(&mut self, column: &TargetColumn) -> String {
        self.0 += 1;
        format!("${}::{}", self.0, column.type_name)
    }
}

/// Parameters: the columns.
pub(super) fn insert(table: &str, columns: &[&TargetColumn]) -> String {
    if columns.is_empty() {
        return format!("INSERT INTO {table} DEFAULT VALUES");
    }
    let mut parameters = Parameters::default();
    let names = join(columns, ", ", |column| quote_ident(&column.name));
    let values = join(columns, ", ", |column| parameters.next(column));
    format!("INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE VALUES ({values})")
}

/// The same where a row of this key may be there, which then becomes the new one; columns that nobody can set must be it
/// already. Parameters: the columns.
pub(super) fn upsert(table: &str, columns: &[&TargetColumn], key: &[&TargetColumn]) -> String {
    let name = |column: &&TargetColumn| quote_ident(&column.name);
    let is_key = |column: &TargetColumn| key.iter().any(|other| other.name == column.name);
    let others = columns.iter().copied().filter(|column| !is_key(column));
    let (guards, set): (Vec<_>, Vec<_>) = others.partition(|column| column.is_identity_always);
    let assignments = join(&set, ", ", |column| format!("{0} = EXCLUDED.{0}", quote_ident(&column.name)));
    let guard = |column: &&TargetColumn| format!("{table}.{0} IS NOT DISTINCT FROM EXCLUDED.{0}", name(column));
    let guarded = if guards.is_empty() { String::new() } else { format!(" WHERE {}", join(&guards, " AND ", guard)) };
    format!("{} ON CONFLICT ({}) DO UPDATE SET {assignments}{guarded}", insert(table, columns), join(key, ", ", name))
}

/// Parameters: the columns to set, the columns to match, and the `guards`, which nobody can set and which must already
/// be what they are to become.
pub(super) fn update(table: &str, set: &[&TargetColumn], row: Match<'_>, guards: &[&TargetColumn]) -> String {
    let mut parameters = Parameters::default();
    let assignments = if set.is_empty() {
        // Nothing is to be written, but the row has to be there, and counted.
        None
    } else {
        Some(join(set, ", ", |column| format!("{} = {}", quote_ident(&column.name), parameters.next(column))))
    };
    let (with, from, condition) = find(table, row, &mut parameters);
    let guarded = join(guards, "", |column| format!(" AND {}", same(column, &parameters.next(column))));
    match assignments {
        Some(assignments) => {
            format!("{with}UPDATE {table} AS target SET {assignments}{from} WHERE {condition}{guarded}")
        }
        None => format!(
            "{with}SELECT FROM {table} AS target{} WHERE {condition}{guarded} FOR UPDATE OF target",
            from.replace(" FROM ", ", ")
        ),
    }
}

/// Parameters: the columns to match.
pub(super) fn delete(table: &str, row: Match<'_>) -> String {
    let mut parameters = Parameters::default();
    let (with, from, condition) = find(table, row, &mut parameters);
    format!("{with}DELETE FROM {table} AS target{} WHERE {condition}", from.replace(" FROM ", " USING "))
}

/// In which form values come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    Text,
    Binary,
}

pub(super) fn copy(table: &str, columns: &[&TargetColumn], form: Form) -> String {
    let names = join(columns, ", ", |column| quote_ident(&column.name));
    let format = match form {
        Form::Text => "text",
        Form::Binary => "binary",
    };
    format!("COPY {table} ({names}) FROM STDIN (FORMAT {format})")
}

/// Parameters: an array a column, those to set and then those of the key.
pub(super) fn update_set(table: &str, set: &[&TargetColumn], key: &[&TargetColumn], form: Form) -> String {
    let mut source = Unnest { form, columns: Vec::new() };
    let assignments = join(set, ", ", |column| format!("{} = {}", quote_ident(&column.name), source.next(column)));
    let condition = source.matches(key);
    let item = source.item();
    if set.is_empty() {
        // Nothing is to be written, but the rows have to be there, and counted.
        return format!("SELECT FROM {table} AS target, {item} WHERE {condition} FOR UPDATE OF target");
    }
    format!("UPDATE {table} AS target SET {assignments} FROM {item} WHERE {condition}")
}

/// Parameters: an array a column of the key.
pub(super) fn delete_set(table: &str, key: &[&TargetColumn], form: Form) -> String {
    let mut source = Unnest { form, columns: Vec::new() };
    let condition = source.matches(key);
    format!("DELETE FROM {table} AS target USING {} WHERE {condition}", source.item())
}

/// Arrays as a FROM item with a column each.
///
/// They are unnested side by side in a select list: the executor then takes an element of each at a time, where a function
/// in FROM would write each array into a tuplestore first ("SQL Functions Returning Sets").
struct Unnest<'a> {
    form: Form,
    columns: Vec<&'a TargetColumn>,
}

impl<'a> Unnest<'a> {
    /// The value of one more array, as its column's type.
    fn next(&mut self, column: &'a TargetColumn) -> String {
        self.columns.push(column);
        let value = format!("source.p{}", self.columns.len());
        match self.form {
            Form::Text => format!("{value}::{}", column.type_name),
            Form::Binary => value,
        }
    }

    fn matches(&mut self, key: &[&'a TargetColumn]) -> String {
        join(key, " AND ", |column| {
            let operator = column.foreign_equality.as_deref().unwrap_or("=");
            format!("target.{} {operator} {}", quote_ident(&column.name), self.next(column))
        })
    }

    fn item(&self) -> String {
        let mut index = 0;
        let arrays = join(&self.columns, ", ", |column| {
            index += 1;
            let element = match self.form {
                Form::Text => "text",
                Form::Binary => &column.type_name,
            };
            format!("unnest(${index}::{element}[]) AS p{index}")
        });
        format!("(SELECT {arrays}) AS source")
    }
}

/// Never CASCADE: what the source emptied is listed.
pub(super) fn truncate<'a>(tables: impl Iterator<Item = &'a TargetTable>, restart_identity: bool) -> String {
    let list: Vec<_> = tables.map(TargetTable::alone).collect();
    let identity = if restart_identity { "RESTART IDENTITY" } else { "CONTINUE IDENTITY" };
    format!("TRUNCATE TABLE {} {identity} RESTRICT", list.join(", "))
}

/// The same for a part of what the source emptied: TRUNCATE refuses a table that a foreign key of another one refers to.
/// Sequences stay where they are.
pub(super) fn delete_all<'a>(tables: impl Iterator<Item = &'a TargetTable>) -> String {
    tables.map(|table| format!("DELETE FROM {}", table.alone())).collect::<Vec<_>>().join("; ")
}

/// What a TRUNCATE comes to in a table that keeps rows all the same.
pub(super) fn truncate_part(table: &TargetTable, part: &PartialTruncate) -> String {
    let is = |(column, value): &(String, String)| format!("{} = {}", quote_ident(column), quote_literal(value));
    let own: Vec<_> = part.own.iter().map(is).collect();
    let condition = if own.is_empty() { String::new() } else { format!(" WHERE {}", own.join(" AND ")) };
    let Some(mark) = &part.mark else { return format!("DELETE FROM {}{condition}", table.alone()) };
    let assignment = |(column, value): &(String, Option<String>)| {
        let value = value.as_deref().map_or_else(|| "NULL".to_owned(), quote_literal);
        format!("{} = {value}", quote_ident(column))
    };
    let assignments: Vec<_> = mark.iter().map(assignment).collect();
    format!("UPDATE {} SET {}{condition}", table.alone(), assignments.join(", "))
}

/// The parts of a statement that find the row: what stands before it, a further FROM item, and the condition.
fn find(table: &str, row: Match<'_>, parameters: &mut Parameters) -> (String, &'static str, String) {
    match row {
        Match::Key(columns) => {
            let condition = join(columns, " AND ", |column| {
                let operator = column.foreign_equality.as_deref().unwrap_or("=");
                format!("target.{} {operator} {}", quote_ident(&column.name), parameters.next(column))
            });
            (String::new(), "", condition)
        }
        Match::WholeRow(columns) => {
            let values: Vec<_> = columns.iter().map(|column| parameters.next(column)).collect();
            let same: Vec<_> = columns.iter().zip(&values).map(|(column, value)| same(column, value)).collect();
            let condition = if same.is_empty() { "true".to_owned() } else { same.join(" AND ") };
            // Of rows that are equal, the one that is the same to the last byte goes first. It takes reading them all.
            let order = if columns.iter().all(|column| column.equality == Equality::Exact) {
                String::new()
            } else {
                let names = join(columns, ", ", |column| format!("target.{}", quote_ident(&column.name)));
                let values = values.join(", ");
                // Without the cast the operator would be applied column by column.
                format!("ORDER BY ROW({names})::record OPERATOR(pg_catalog.*=) ROW({values})::record DESC ")
            };
            // A ctid is unique within one partition only.
            let with = format!(
                "WITH found AS MATERIALIZED (SELECT target.tableoid, target.ctid FROM {table} AS target \
                 WHERE {condition} {order}LIMIT 1 FOR UPDATE) "
            );
            (with, " FROM found", "target.tableoid = found.tableoid AND target.ctid = found.ctid".to_owned())
        }
    }
}

/// The column holds the parameter's value, or both are NULL.
fn same(column: &TargetColumn, parameter: &str) -> String {
    let name = quote_ident(&column.name);
    match column.equality {
        Equality::Exact | Equality::Loose => format!("target.{name} IS NOT DISTINCT FROM {parameter}"),
        // Copies of one value have one text.
        Equality::None => format!("target.{name}::text IS NOT DISTINCT FROM {parameter}::text"),
    }
}

fn join<'a>(columns: &[&'a TargetColumn], separator: &str, text: impl FnMut(&&'a TargetColumn) -> String) -> String {
    columns.iter().map(text).collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, type_name: &str) -> TargetColumn {
        TargetColumn {
            name: name.to_owned(),
            type_oid: 0,
            type_modifier: -1,
            type_name: type_name.to_owned(),
            is_array: false,
            is_generated: false,
            is_identity_always: false,
            is_primary_key: false,
            foreign_equality: None,
            equality: Equality::Exact,
            is_finite_interval: false,
        }
    }

    #[test]
    fn statements_by_key() {
        let (id, note) = (column("id", "int4"), column("no\"te", "text"));
        assert_eq!(
            insert("s.t", &[&id, &note]),
            "INSERT INTO s.t (\"id\", \"no\"\"te\") OVERRIDING SYSTEM VALUE VALUES ($1::int4, $2::text)"
        );
        assert_eq!(insert("s.t", &[]), "INSERT INTO s.t DEFAULT VALUES");
        assert_eq!(
            update("s.t", &[&id, &note], Match::Key(&[&id]), &[]),
            "UPDATE s.t AS target SET \"id\" = $1::int4, \"no\"\"te\" = $2::text WHERE target.\"id\" = $3::int4"
        );
        assert_eq!(delete("s.t", Match::Key(&[&id])), "DELETE FROM s.t AS target WHERE target.\"id\" = $1::int4");
    }

    #[test]
    fn an_insert_may_find_its_key() {
        let (id, note) = (column("id", "int4"), column("note", "text"));
        assert_eq!(
            upsert("s.t", &[&id, &note], &[&id]),
            "INSERT INTO s.t (\"id\", \"note\") OVERRIDING SYSTEM VALUE VALUES ($1::int4, $2::text) \
             ON CONFLICT (\"id\") DO UPDATE SET \"note\" = EXCLUDED.\"note\""
        );
    }

    #[test]
    fn an_update_that_sets_nothing_still_counts_its_row() {
        let id = column("id", "int4");
        assert_eq!(
            update("s.t", &[], Match::Key(&[&id]), &[]),
            "SELECT FROM s.t AS target WHERE target.\"id\" = $1::int4 FOR UPDATE OF target"
        );
    }

    #[test]
    fn a_column_that_cannot_be_set_guards_the_update() {
        let (id, note) = (column("id", "int4"), column("note", "text"));
        assert_eq!(
            update("s.t", &[&note], Match::Key(&[&id]), &[&id]),
            "UPDATE s.t AS target SET \"note\" = $1::text WHERE target.\"id\" = $2::int4 \
             AND target.\"id\" IS NOT DISTINCT FROM $3::int4"
        );
    }

    #[test]
    fn whole_rows_touch_one_of_those_that_are_alike() {
        let (id, mut doc) = (column("id", "int4"), column("doc", "json"));
        doc.equality = Equality::None;
        assert_eq!(
            delete("s.t", Match::WholeRow(&[&id, &doc])),
            "WITH found AS MATERIALIZED (SELECT target.tableoid, target.ctid FROM s.t AS target \
             WHERE target.\"id\" IS NOT DISTINCT FROM $1::int4 \
             AND target.\"doc\"::text IS NOT DISTINCT FROM $2::json::text \
             ORDER BY ROW(target.\"id\", target.\"doc\")::record OPERATOR(pg_catalog.*=) \
             ROW($1::int4, $2::json)::record DESC LIMIT 1 FOR UPDATE) \
             DELETE FROM s.t AS target USING found WHERE target.tableoid = found.tableoid AND target.ctid = found.ctid"
        );
    }

    #[test]
    fn sets_of_rows_come_as_arrays() {
        let (id, note) = (column("id", "int4"), column("note", "text"));
        assert_eq!(
            update_set("s.t", &[&note], &[&id], Form::Binary),
            "UPDATE s.t AS target SET \"note\" = source.p1 \
             FROM (SELECT unnest($1::text[]) AS p1, unnest($2::int4[]) AS p2) AS source WHERE target.\"id\" = source.p2"
        );
        assert_eq!(
            delete_set("s.t", &[&id, &note], Form::Text),
            "DELETE FROM s.t AS target USING (SELECT unnest($1::text[]) AS p1, unnest($2::text[]) AS p2) AS source \
             WHERE target.\"id\" = source.p1::int4 AND target.\"note\" = source.p2::text"
        );
        assert_eq!(copy("s.t", &[&id], Form::Binary), "COPY s.t (\"id\") FROM STDIN (FORMAT binary)");
    }

    #[test]
    fn truncate_is_one_statement_without_cascade() {
        let table = |name: &str, is_partitioned| TargetTable {
            oid: 0,
            parents: Vec::new(),
            name: name.to_owned(),
            can_copy: true,
            is_partitioned,
            columns: Vec::new(),
            unique_keys: Vec::new(),
            may_restart: true,
        };
        assert_eq!(
            truncate([table("s.a", false), table("s.b", true)].iter(), true),
            "TRUNCATE TABLE ONLY s.a, s.b RESTART IDENTITY RESTRICT"
        );
    }
}
