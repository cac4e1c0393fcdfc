//! The next step of a history: a random statement about what A has now.

use pgsluice_testkit::Random;

use super::catalog::{Column, Table, quoted};

/// One step: what A executes as one transaction, and what of it an operator would execute on C.
#[derive(Clone, Debug)]
pub struct Step {
    pub label: &'static str,
    pub on_a: String,
    pub on_c: Option<String>,
}

impl Step {
    /// Changes, and whatever else is A's own affair.
    fn on_a(label: &'static str, on_a: String) -> Step {
        Step { label, on_a, on_c: None }
    }

    fn on_both(label: &'static str, sql: String) -> Step {
        Step { label, on_c: Some(sql.clone()), on_a: sql }
    }
}

const TYPES: [&str; 6] = ["integer", "bigint", "text", "numeric(10,2)", "date", "boolean"];

/// Draws steps of one history.
#[derive(Debug)]
pub struct Generator {
    pub random: Random,
    publication: String,
    named: u64,
}

impl Generator {
    pub fn new(seed: u64, publication: String) -> Generator {
        Generator { random: Random::seeded(seed), publication, named: 0 }
    }

    /// A name that this history has not used yet.
    fn new_name(&mut self, prefix: &str) -> String {
        self.named += 1;
        format!("{prefix}{}", self.named)
    }

    /// Tables that a history begins with.
    pub fn first_tables(&mut self) -> Vec<Step> {
        let mut steps: Vec<_> = (0..2 + self.random.below(2)).map(|_| self.create(false)).collect();
        steps.push(self.create_partitioned(false));
        steps
    }

    /// What comes next where A has `tables`.
    pub fn next(&mut self, tables: &[Table]) -> Step {
        if tables.is_empty() {
            return self.create(true);
        }
        let table = tables[self.random.below(tables.len() as u64) as usize].clone();
        match self.random.below(100) {
            0..=44 => self.change(&table),
            45..=50 => self.create(true),
            51 => self.create_child(&table),
            52..=54 => Step::on_both("drop table", format!("DROP TABLE {} CASCADE", table.quoted())),
            55..=57 => self.make_again(&table),
            58..=60 => self.rename(&table),
            61..=63 => self.swap(&table, tables),
            64..=67 => self.add_column(&table),
            68..=69 => self.drop_column(&table),
            70..=72 => self.rename_column(&table),
            73..=74 => self.swap_columns(&table),
            75..=77 => self.make_column_again(&table),
            78..=80 => self.change_type(&table),
            81..=86 => self.partition(&table, tables),
            87..=94 => self.publication(&table),
            95..=96 => self.identity(&table),
            97 => self.persistence(&table),
            _ => Step::on_a("truncate", format!("TRUNCATE {}", table.only())),
        }
    }

    fn add_to_publication(&self, table: &str) -> String {
        format!("; ALTER PUBLICATION {} ADD TABLE {table}", self.publication)
    }

    fn create(&mut self, publish: bool) -> Step {
        let name = self.new_name("t");
        self.create_named(&name, publish)
    }

    fn create_named(&mut self, name: &str, publish: bool) -> Step {
        let table = quoted(name);
        let columns: Vec<_> = (0..1 + self.random.below(3))
            .map(|index| format!("{} {}", (b'a' + index as u8) as char, self.random.pick(&TYPES)))
            .collect();
        let columns = columns.join(", ");
        let ddl = if self.random.below(4) == 0 {
            format!("CREATE TABLE {table} (id integer, {columns}); ALTER TABLE {table} REPLICA IDENTITY FULL")
        } else {
            format!("CREATE TABLE {table} (id integer PRIMARY KEY, {columns})")
        };
        let publish = if publish && self.random.below(5) > 0 {
            self.add_to_publication(&format!("ONLY {table}"))
        } else {
            String::new()
        };
        Step { label: "create table", on_a: format!("{ddl}{publish}"), on_c: Some(ddl) }
    }

    fn create_partitioned(&mut self, publish: bool) -> Step {
        let name = self.new_name("p");
        let table = quoted(&name);
        let mut ddl = format!(
            "CREATE TABLE {table} (id integer, part integer, a text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)"
        );
        for value in 0..2 {
            ddl += &format!("; CREATE TABLE {} PARTITION OF {table} FOR VALUES IN ({value})", partition(&name, value));
        }
        let publish = if publish { self.add_to_publication(&table) } else { String::new() };
        Step { label: "create partitioned", on_a: format!("{ddl}{publish}"), on_c: Some(ddl) }
    }

    fn create_child(&mut self, parent: &Table) -> Step {
        if parent.is_partitioned {
            return self.create_partitioned(true);
        }
        let table = quoted(&self.new_name("c"));
        let ddl = format!(
            "CREATE TABLE {table} () INHERITS ({}); ALTER TABLE {table} REPLICA IDENTITY FULL",
            parent.quoted()
        );
        let publish = self.add_to_publication(&format!("ONLY {table}"));
        Step { label: "create child", on_a: format!("{ddl}{publish}"), on_c: Some(ddl) }
    }

    /// Another table under a name that there was.
    fn make_again(&mut self, table: &Table) -> Step {
        let Step { on_a, on_c, .. } = self.create_named(&table.name, true);
        let drop = format!("DROP TABLE {} CASCADE; ", table.quoted());
        let rows = if self.random.below(2) == 0 {
            format!("; INSERT INTO {} (id) SELECT nextval('h.ids') FROM generate_series(1, 5)", table.quoted())
        } else {
            String::new()
        };
        Step {
            label: "drop and create",
            on_a: format!("{drop}{on_a}{rows}"),
            on_c: on_c.map(|ddl| format!("{drop}{ddl}")),
        }
    }

    fn rename(&mut self, table: &Table) -> Step {
        let to = self.new_name("t");
        if table.is_partitioned {
            return self.change(table);
        }
        Step::on_both("rename table", format!("ALTER TABLE {} RENAME TO \"{to}\"", table.quoted()))
    }

    fn swap(&mut self, one: &Table, tables: &[Table]) -> Step {
        let other = &tables[self.random.below(tables.len() as u64) as usize];
        if one.name == other.name || one.is_partitioned || other.is_partitioned {
            return self.change(one);
        }
        Step::on_both(
            "swap tables",
            format!(
                "ALTER TABLE {} RENAME TO swapping; ALTER TABLE {} RENAME TO \"{}\"; ALTER TABLE h.swapping RENAME TO \"{}\"",
                one.quoted(),
                other.quoted(),
                one.name,
                other.name
            ),
        )
    }

    fn column(&mut self, table: &Table) -> Option<Column> {
        let free: Vec<_> = table.columns.iter().filter(|column| !table.key.contains(&column.name)).collect();
        (!free.is_empty() && !table.inherits && !table.is_partitioned)
            .then(|| free[self.random.below(free.len() as u64) as usize].clone())
    }

    fn add_column(&mut self, table: &Table) -> Step {
        if table.inherits {
            return self.change(table);
        }
        let (name, type_name) = (self.new_name("n"), self.random.pick(&TYPES));
        let default = match self.random.below(3) {
            0 => format!(" DEFAULT {}", self.value(type_name)),
            _ => String::new(),
        };
        Step::on_both("add column", format!("ALTER TABLE {} ADD COLUMN {name} {type_name}{default}", table.quoted()))
    }

    fn drop_column(&mut self, table: &Table) -> Step {
        let Some(column) = self.column(table) else { return self.change(table) };
        Step::on_both("drop column", format!("ALTER TABLE {} DROP COLUMN \"{}\" CASCADE", table.quoted(), column.name))
    }

    fn rename_column(&mut self, table: &Table) -> Step {
        let Some(column) = self.column(table) else { return self.change(table) };
        let to = self.new_name("r");
        Step::on_both(
            "rename column",
            format!("ALTER TABLE {} RENAME COLUMN \"{}\" TO {to}", table.quoted(), column.name),
        )
    }

    fn swap_columns(&mut self, table: &Table) -> Step {
        let (Some(one), Some(other)) = (self.column(table), self.column(table)) else { return self.change(table) };
        if one.name == other.name {
            return self.change(table);
        }
        let (table, one, other) = (table.quoted(), one.name, other.name);
        Step::on_both(
            "swap columns",
            format!(
                "ALTER TABLE {table} RENAME COLUMN \"{one}\" TO swapping; ALTER TABLE {table} RENAME COLUMN \"{other}\" TO \
                 \"{one}\"; ALTER TABLE {table} RENAME COLUMN swapping TO \"{other}\""
            ),
        )
    }

    /// Another column under a name that there was: a new one, or one that took the name over.
    fn make_column_again(&mut self, table: &Table) -> Step {
        let (Some(one), Some(other)) = (self.column(table), self.column(table)) else { return self.change(table) };
        let (quoted, name) = (table.quoted(), &one.name);
        let drop = format!("ALTER TABLE {quoted} DROP COLUMN \"{name}\" CASCADE");
        let again = if self.random.below(2) == 0 || one.name == other.name {
            let type_name = if self.random.below(2) == 0 { one.type_name } else { self.random.pick(&TYPES).to_owned() };
            format!("ALTER TABLE {quoted} ADD COLUMN \"{name}\" {type_name}")
        } else {
            format!("ALTER TABLE {quoted} RENAME COLUMN \"{}\" TO \"{name}\"", other.name)
        };
        Step::on_both("drop and add column", format!("{drop}; {again}"))
    }

    fn change_type(&mut self, table: &Table) -> Step {
        let Some(Column { name, type_name }) = self.column(table) else { return self.change(table) };
        let (to, using) = match type_name.as_str() {
            "integer" => ("bigint", format!("\"{name}\"::bigint")),
            "bigint" => ("numeric(10,2)", format!("(\"{name}\" % 1000)::numeric(10,2)")),
            "numeric(10,2)" => ("numeric(12,4)", format!("\"{name}\"::numeric(12,4)")),
            // The same values under another name would hide what went wrong.
            _ => ("text", format!("'changed ' || \"{name}\"::text")),
        };
        Step::on_both(
            "change type",
            format!("ALTER TABLE {} ALTER COLUMN \"{name}\" TYPE {to} USING {using}", table.quoted()),
        )
    }

    fn partition(&mut self, table: &Table, tables: &[Table]) -> Step {
        let Some(table) =
            tables.iter().find(|other| other.is_partitioned && (table.is_partitioned || other.is_published))
        else {
            return self.create_partitioned(true);
        };
        let (root, new) = (table.quoted(), table.partitions.iter().max().map_or(0, |value| value + 1));
        let part = partition(&table.name, new);
        match (self.random.below(4), table.partitions.first()) {
            (0, _) => {
                Step::on_both("add partition", format!("CREATE TABLE {part} PARTITION OF {root} FOR VALUES IN ({new})"))
            }
            (1, _) => {
                let (make, attach) = (
                    format!("CREATE TABLE {part} (LIKE {root} INCLUDING ALL)"),
                    format!("ALTER TABLE {root} ATTACH PARTITION {part} FOR VALUES IN ({new})"),
                );
                let rows =
                    format!("INSERT INTO {part} (id, part) SELECT nextval('h.ids'), {new} FROM generate_series(1, 3)");
                Step {
                    label: "attach filled partition",
                    on_a: format!("{make}; {rows}; {attach}"),
                    on_c: Some(format!("{make}; {attach}")),
                }
            }
            (2, Some(value)) => {
                Step::on_both("drop partition", format!("DROP TABLE {}", partition(&table.name, *value)))
            }
            (3, Some(value)) => {
                let part = partition(&table.name, *value);
                Step::on_both(
                    "detach partition",
                    format!("ALTER TABLE {root} DETACH PARTITION {part}; DROP TABLE {part}"),
                )
            }
            _ => self.change(table),
        }
    }

    fn publication(&mut self, table: &Table) -> Step {
        let (publication, only) = (self.publication.clone(), table.only());
        let (add, drop) = (
            format!("ALTER PUBLICATION {publication} ADD TABLE {only}"),
            format!("ALTER PUBLICATION {publication} DROP TABLE {only}"),
        );
        if !table.is_published {
            return Step::on_a("publish", add);
        }
        let change = self.change(table).on_a;
        match self.random.below(10) {
            0..=2 => Step::on_a("unpublish", drop),
            3..=5 => Step::on_a("unpublish and publish", format!("{drop}; {change}; {add}")),
            6 if !table.key.is_empty() => {
                Step::on_a("row filter", format!("{drop}; {add} WHERE (\"{}\" % 3 <> 0)", table.key[0]))
            }
            7 if !table.key.is_empty() => {
                let key: Vec<_> = table.key.iter().map(|column| format!("\"{column}\"")).collect();
                Step::on_a("column list", format!("{drop}; {add} ({})", key.join(", ")))
            }
            8 => {
                let set = |publish| format!("ALTER PUBLICATION {publication} SET (publish = '{publish}')");
                let (some, all) = (set("insert"), set("insert, update, delete, truncate"));
                match self.random.below(2) {
                    0 => Step::on_a("publish operations", some),
                    _ => Step::on_a("publish operations and back", format!("{some}; {change}; {all}")),
                }
            }
            _ => Step::on_a("change", change),
        }
    }

    fn identity(&mut self, table: &Table) -> Step {
        let identity = if table.key.is_empty() { "FULL" } else { self.random.pick(&["FULL", "DEFAULT"]) };
        Step::on_a("replica identity", with_identity(table, identity))
    }

    /// What has a table with a key and its partitions send that key.
    pub fn default_identity(table: &Table) -> String {
        with_identity(table, "DEFAULT")
    }

    /// A table that is published cannot be made unlogged: it leaves before, and comes back.
    fn persistence(&mut self, table: &Table) -> Step {
        if table.is_partitioned {
            return self.change(table);
        }
        let (name, change) = (table.quoted(), self.change(table).on_a);
        let off = format!("ALTER TABLE {name} SET UNLOGGED; {change}; ALTER TABLE {name} SET LOGGED");
        let (only, publication) = (table.only(), &self.publication);
        if table.is_published {
            let around = format!(
                "ALTER PUBLICATION {publication} DROP TABLE {only}; {off}; ALTER PUBLICATION {publication} ADD TABLE {only}"
            );
            return Step::on_a("unlogged", around);
        }
        Step::on_a("unlogged", off)
    }

    /// Rows in, changed or out.
    fn change(&mut self, table: &Table) -> Step {
        let can_change = table.has_identity || !table.is_published;
        let sql = match self.random.below(if can_change { 4 } else { 1 }) {
            0 | 1 => self.insert(table),
            2 => self.update(table),
            _ => format!("DELETE FROM {} WHERE {}", table.only(), self.some_rows(table)),
        };
        Step::on_a("change", sql)
    }

    pub fn insert(&mut self, table: &Table) -> String {
        let values: Vec<_> = table
            .columns
            .iter()
            .map(|column| match column.name.as_str() {
                "part" if table.is_partitioned => match table.partitions.as_slice() {
                    [] => "0".to_owned(),
                    values => self.random.pick(values).to_string(),
                },
                _ if is_numbered(table, column) => "nextval('h.ids')".to_owned(),
                _ => self.value(&column.type_name),
            })
            .collect();
        let rows = 1 + self.random.below(8);
        format!("INSERT INTO {} SELECT {} FROM generate_series(1, {rows})", table.quoted(), values.join(", "))
    }

    fn update(&mut self, table: &Table) -> String {
        let free: Vec<_> = table.columns.iter().filter(|column| column.name != "part").collect();
        let Some(&column) = free.get(self.random.below(free.len().max(1) as u64) as usize) else {
            return self.insert(table);
        };
        let value =
            if is_numbered(table, column) { "nextval('h.ids')".to_owned() } else { self.value(&column.type_name) };
        let (only, rows) = (table.only(), self.some_rows(table));
        format!("UPDATE {only} SET \"{}\" = {value} WHERE {rows}", column.name)
    }

    /// A few of a table's rows, in any of its partitions.
    fn some_rows(&mut self, table: &Table) -> String {
        let (offset, limit) = (self.random.below(12), 1 + self.random.below(4));
        format!(
            "(tableoid, ctid) IN (SELECT tableoid, ctid FROM {} ORDER BY 1, 2 OFFSET {offset} LIMIT {limit})",
            table.only()
        )
    }

    fn value(&mut self, type_name: &str) -> String {
        let number = self.random.below(1_000);
        match type_name {
            "date" => format!("date '2026-01-01' + {number}"),
            "boolean" => number.is_multiple_of(2).to_string(),
            "text" if number.is_multiple_of(7) => format!("repeat('{number}', 3000)"),
            "text" => format!("'v{number}'"),
            _ if number.is_multiple_of(10) => "NULL".to_owned(),
            name if name.starts_with("numeric") => format!("{number}.25"),
            _ => number.to_string(),
        }
    }
}

/// Its values are unique, or were meant to be.
fn is_numbered(table: &Table, column: &Column) -> bool {
    let takes_numbers = !matches!(column.type_name.as_str(), "date" | "boolean");
    takes_numbers && (column.name == "id" || table.key.contains(&column.name))
}

/// Of the table and all of its partitions.
fn with_identity(table: &Table, identity: &str) -> String {
    let partitions = table.partitions.iter().map(|value| partition(&table.name, *value));
    let tables = std::iter::once(table.quoted()).chain(partitions);
    tables.map(|table| format!("ALTER TABLE {table} REPLICA IDENTITY {identity}")).collect::<Vec<_>>().join("; ")
}

fn partition(root: &str, value: i64) -> String {
    quoted(&format!("{root}_{value}"))
}
