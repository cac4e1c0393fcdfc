//! Statements over the tables of the schema: what a random number comes to as SQL.
//!
//! They are made without a look at the data, so that a seed says everything. Values come from small sets, so that keys are
//! freed and taken again, and A refuses some statements.

use super::schema::ADDED_COLUMNS_MAX;
use crate::load::Random;

const TABLES: [Table; 11] = [
    Table::Uniques,
    Table::Composite,
    Table::Parent,
    Table::Child,
    Table::Member,
    Table::Large,
    Table::LargeFull,
    Table::LargeIndex,
    Table::Bag,
    Table::Regions,
    Table::Altered,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Uniques,
    Composite,
    Parent,
    Child,
    Member,
    Large,
    LargeFull,
    LargeIndex,
    Bag,
    Regions,
    Altered,
}

/// Makes statements after the temper of one history.
#[derive(Debug)]
pub struct Statements {
    pub random: Random,
    tables: Vec<Table>,
    /// Ids are 1 to this.
    ids: u64,
    /// Of a hundred statements, those of a kind that cannot be netted: a change of key, a TRUNCATE, DDL. Between two of
    /// them has to lie enough for a net.
    barriers: u64,
    columns_added: u64,
}

impl Statements {
    pub fn new(mut random: Random) -> Statements {
        let (ids, barriers) = (random.pick(&[6, 12, 40]), random.pick(&[0, 0, 5, 25]));
        let few = random.below(2) == 0;
        // The bag has no key, so nearly all of its changes stand in the way of nets.
        let kept = |table: &Table| (barriers > 0 || *table != Table::Bag) && (!few || random.below(4) == 0);
        let mut tables: Vec<_> = TABLES.into_iter().filter(kept).collect();
        if tables.is_empty() {
            tables.push(Table::Uniques);
        }
        Statements { random, tables, ids, barriers, columns_added: 0 }
    }

    /// Some rows in each table.
    pub fn insert_everywhere(&mut self) -> Vec<String> {
        self.tables.clone().into_iter().flat_map(|table| self.insert(table)).collect()
    }

    /// One, or some that belong together.
    pub fn next(&mut self) -> Vec<String> {
        let table = self.random.pick(&self.tables);
        if self.chance(self.barriers) {
            return self.barrier(table);
        }
        match self.random.below(8) {
            0..2 => self.insert(table),
            2 => self.delete(table),
            // A row that goes and comes back, or gives way to another.
            3 => [self.delete(table), self.insert(table)].concat(),
            _ => self.update(table),
        }
    }

    fn insert(&mut self, table: Table) -> Vec<String> {
        let (low, high) = self.range();
        let (note, big, number) = (self.note("i"), self.big("i"), self.number());
        let series = format!("FROM generate_series({low}, {high}) i");
        let missing = |name: &str| format!("{series} WHERE NOT EXISTS (SELECT FROM {name} WHERE id = i)");
        let parent = self.parent();
        vec![match table {
            Table::Uniques => {
                let code = self.random.pick(&["'c' || i", "'c' || i + 1", "NULL"]);
                let slot = self.random.pick(&["i", "NULL", "i + 1"]);
                let span = self.random.pick(&["int4range(i * 10, i * 10 + 9)", "NULL"]);
                format!(
                    "INSERT INTO uniques SELECT i, {code}, i % 9, i, {slot}, {span}, {note}, {big} {}",
                    missing("uniques")
                )
            }
            Table::Composite => {
                let (n, k) = (self.numeric(), self.key_text());
                let rows = "INSERT INTO composite (n, k, v, big, list, words)";
                let lists = "ARRAY[i, NULL], ARRAY['x,\"y\"', NULL, '']";
                let one = format!("{rows} SELECT {n}, {k}, {number}, {big}, {lists} FROM generate_series(1, 1) i");
                match self.random.below(3) {
                    0 => format!("{one} ON CONFLICT DO NOTHING"),
                    1 => format!("{one} ON CONFLICT (n, k) DO UPDATE SET v = EXCLUDED.v, list = EXCLUDED.list"),
                    _ => format!("{rows} SELECT i, {k}, i, {big}, {lists} {series} ON CONFLICT DO NOTHING"),
                }
            }
            Table::Parent => {
                let tag = self.random.pick(&["'t' || i", "'t' || i + 1", "NULL"]);
                format!("INSERT INTO parent SELECT i, {parent}, {tag}, {big} {series} ON CONFLICT DO NOTHING")
            }
            Table::Child => format!("INSERT INTO child SELECT i, {parent}, {note} {series} ON CONFLICT DO NOTHING"),
            Table::Member => format!(
                "INSERT INTO member SELECT id, {number} % 3, {} FROM parent WHERE id BETWEEN {low} AND {high} \
                 ON CONFLICT DO NOTHING",
                self.random.pick(&["tag", "NULL"])
            ),
            Table::Large | Table::LargeFull | Table::LargeIndex => {
                let (two, list) = (self.big("i"), self.random.pick(&["ARRAY[big(i), NULL]", "NULL", "'{}'"]));
                format!(
                    "INSERT INTO {} SELECT i, 'k' || i, {number}, {big}, {two}, {list} {series} ON CONFLICT DO NOTHING",
                    name(table)
                )
            }
            Table::Bag => {
                let n = self.numeric();
                let copies = 1 + self.random.below(20);
                format!(
                    "INSERT INTO bag SELECT {n}, {note}, {big}, ARRAY[{number}] FROM generate_series(1, {copies}) i"
                )
            }
            Table::Regions => {
                let region = self.region();
                format!("INSERT INTO regions SELECT i, {region}, {note}, {big} {series} ON CONFLICT DO NOTHING")
            }
            Table::Altered => {
                format!("INSERT INTO altered (id, note) SELECT i, {note} {series} ON CONFLICT DO NOTHING")
            }
        }]
    }

    fn delete(&mut self, table: Table) -> Vec<String> {
        let wanted = self.wanted();
        vec![match table {
            Table::Composite => {
                format!("DELETE FROM composite WHERE n = {} OR k = {}", self.numeric(), self.key_text())
            }
            Table::Member => format!("DELETE FROM member WHERE place = {} AND parent % 2 = 0", self.random.below(3)),
            Table::Bag => match self.random.below(3) {
                0 => format!("DELETE FROM bag WHERE n = {} AND note IS NULL", self.numeric()),
                _ => format!("DELETE FROM bag WHERE ctid = ({})", self.one_of_bag()),
            },
            Table::Regions => format!("DELETE FROM regions WHERE region = {} AND {wanted}", self.region()),
            _ => format!("DELETE FROM {} WHERE {wanted}", name(table)),
        }]
    }

    /// Of anything but the key.
    fn update(&mut self, table: Table) -> Vec<String> {
        let row = match table {
            Table::Composite => "v",
            Table::Bag => "list[1]",
            Table::Member => "place",
            _ => "id",
        };
        let (note, big, number, wanted) = (self.note(row), self.big(row), self.number(), self.wanted());
        let update = format!("UPDATE {} SET", name(table));
        match table {
            Table::Uniques => self.update_uniques(),
            Table::Composite => {
                let set = self.random.pick(&["v = v + 1", "list[2] = v", "words = words || 'z'::text", "big = big"]);
                let wanted = self.random.pick(&["n > 2", "true", "v % 2 = 0", "n IN (1, 2.5)"]);
                vec![match self.random.below(3) {
                    0 => format!("{update} big = {big} WHERE {wanted}"),
                    _ => format!("{update} {set} WHERE {wanted}"),
                }]
            }
            Table::Parent => vec![match self.random.below(4) {
                0 => format!("{update} boss = {} WHERE {wanted}", self.parent()),
                1 => format!("{update} big = {} WHERE {wanted}", big),
                2 => self.rotate(table, "tag"),
                // Goes on to the members.
                _ => format!("{update} tag = 't' || {number} WHERE id = {}", self.id()),
            }],
            Table::Child => vec![match self.random.below(2) {
                0 => format!("{update} parent = {} WHERE {wanted}", self.parent()),
                _ => format!("{update} note = {note} WHERE {wanted}"),
            }],
            Table::Member => {
                vec![format!("{update} tag = (SELECT tag FROM parent WHERE id = {}) WHERE place = 1", self.id())]
            }
            Table::Large | Table::LargeFull | Table::LargeIndex => {
                vec![match self.random.below(7) {
                    // Not a key that anybody nets by.
                    6 if table == Table::LargeIndex => self.rotate(table, "id"),
                    0 => format!("{update} one = {big}, n = {number} WHERE {wanted}"),
                    1 => format!("{update} two = {big} WHERE {wanted}"),
                    2 => format!("{update} list[2] = 'x', two = NULL WHERE {wanted}"),
                    3 => format!("{update} one = two, two = one WHERE {wanted}"),
                    _ => format!("{update} n = n + 1 WHERE {wanted}"),
                }]
            }
            Table::Bag => vec![match self.random.below(4) {
                0 => format!("{update} note = {note} WHERE n = {}", self.numeric()),
                1 => format!("{update} n = n + 1, big = {} WHERE note IS NULL", big),
                2 => format!("{update} note = note WHERE ctid = ({})", self.one_of_bag()),
                _ => format!("{update} n = {} WHERE ctid = ({})", self.numeric(), self.one_of_bag()),
            }],
            Table::Regions => vec![match self.random.below(2) {
                0 => format!("{update} note = {note} WHERE {wanted}"),
                _ => format!("{update} big = {} WHERE {wanted}", big),
            }],
            Table::Altered if self.columns_added > 0 && self.chance(70) => {
                let column = 1 + self.random.below(self.columns_added);
                let value = if column % 2 == 1 { note } else { "id * 2".to_owned() };
                vec![format!("{update} e{column} = {value} WHERE {wanted}")]
            }
            Table::Altered => vec![format!("{update} note = {note} WHERE {wanted}")],
        }
    }

    fn update_uniques(&mut self) -> Vec<String> {
        let (note, wanted, id, other) = (self.note("id"), self.wanted(), self.id(), self.id());
        let code = format!("'c{}'", self.id());
        let update = "UPDATE uniques SET";
        match self.random.below(10) {
            0 => vec![format!("{update} note = {note} WHERE {wanted}")],
            1 => vec![format!("{update} slot = slot + 1")],
            2 => vec![format!("{update} slot = {} - slot", self.ids + 1)],
            3 => vec![
                "SET CONSTRAINTS ALL DEFERRED".to_owned(),
                format!("{update} slot = {id} WHERE id = {other}"),
                format!("{update} slot = {other} WHERE id = {id}"),
            ],
            4 => vec![self.rotate(Table::Uniques, "code"), self.rotate(Table::Uniques, "code")],
            5 => vec![self.rotate(Table::Uniques, "b")],
            6 => vec![self.rotate(Table::Uniques, "span")],
            // Freed, and taken by another.
            7 => vec![
                format!("{update} code = NULL WHERE code = {code}"),
                format!(
                    "{update} code = {code} WHERE id = {other} AND NOT EXISTS (SELECT FROM uniques WHERE code = {code})"
                ),
            ],
            8 => vec![
                format!("DELETE FROM uniques WHERE code = {code} OR a = {id} % 9 AND b = {id}"),
                format!("{update} code = {code}, a = {id} % 9, b = {id} WHERE id = {other}"),
            ],
            _ => vec![format!("{update} big = {} WHERE {wanted}", self.big("id"))],
        }
    }

    fn barrier(&mut self, table: Table) -> Vec<String> {
        if self.chance(15) {
            return vec![match table {
                Table::Parent | Table::Child | Table::Member => "TRUNCATE parent CASCADE".to_owned(),
                _ => format!("TRUNCATE {}", name(table)),
            }];
        }
        let (id, to) = (self.id(), self.id());
        match table {
            Table::Composite => {
                let (n, k) = (self.numeric(), self.key_text());
                // Keys that are equal and not the same among them.
                vec![match self.random.below(4) {
                    0 => format!("UPDATE composite SET n = n * 1.0, v = v + 1 WHERE n = {n}"),
                    1 => format!("UPDATE composite SET k = upper(k) WHERE k = {k}"),
                    2 => format!("UPDATE composite SET n = {n}, k = {k} WHERE v = {id}"),
                    _ => format!("UPDATE composite SET n = n + 1 WHERE n > {id}"),
                }]
            }
            Table::Member => vec![format!("UPDATE member SET place = (place + 1) % 3 WHERE parent = {id}")],
            Table::Bag => vec![
                format!("DELETE FROM bag WHERE n = {}", self.numeric()),
                "INSERT INTO unpublished.t VALUES (1)".to_owned(),
            ],
            Table::Regions => vec![format!("UPDATE regions SET region = {} WHERE {}", self.region(), self.wanted())],
            Table::Altered => self.alter(),
            Table::LargeIndex => vec![match self.random.below(2) {
                0 => format!("UPDATE large_index SET k = 'k' || {to} WHERE id = {id}"),
                _ => format!("UPDATE large_index SET id = {to} WHERE id = {id}"),
            }],
            Table::LargeFull if self.chance(30) => {
                vec![format!("ALTER TABLE large_full REPLICA IDENTITY {}", self.random.pick(&["FULL", "DEFAULT"]))]
            }
            Table::Uniques | Table::Parent | Table::Child | Table::Large | Table::LargeFull => {
                vec![match self.random.below(3) {
                    0 => self.rotate(table, "id"),
                    1 => format!("UPDATE {} SET id = {to} WHERE id = {id}", name(table)),
                    _ => format!("UPDATE {} SET id = -id WHERE {}", name(table), self.wanted()),
                }]
            }
        }
    }

    fn alter(&mut self) -> Vec<String> {
        if self.columns_added == ADDED_COLUMNS_MAX || (self.columns_added > 0 && self.chance(40)) {
            return vec![format!("ALTER TABLE altered DROP COLUMN e{}", 1 + self.random.below(self.columns_added))];
        }
        // Never one that was there before: C may have kept its values.
        self.columns_added += 1;
        let column = self.columns_added;
        let kind = if column % 2 == 1 { "text" } else { "int" };
        vec![format!("ALTER TABLE altered ADD COLUMN e{column} {kind}"), format!("UPDATE altered SET e{column} = id")]
    }

    fn rotate(&mut self, table: Table, column: &str) -> String {
        let ids: Vec<_> = (0..2 + self.random.below(3)).map(|_| self.id()).collect();
        let spare = match column {
            "id" => "'-1000'",
            "code" | "tag" => self.random.pick(&["NULL", "'spare'"]),
            _ => "NULL",
        };
        format!("SELECT rotate('{}', '{column}', ARRAY{ids:?}, {spare})", name(table))
    }

    /// One row of the bag, the same whatever their order is on disk.
    fn one_of_bag(&mut self) -> String {
        format!("SELECT ctid FROM bag ORDER BY n, n::text, note, big, list LIMIT 1 OFFSET {}", self.random.below(20))
    }

    fn parent(&mut self) -> String {
        match self.random.below(4) {
            0 => "NULL".to_owned(),
            _ => format!("(SELECT id FROM parent WHERE id >= {} ORDER BY id LIMIT 1)", self.id()),
        }
    }

    fn wanted(&mut self) -> String {
        let (low, high) = self.range();
        match self.random.below(5) {
            0 => format!("id = {}", self.id()),
            1 => format!("id % {} = 0", 2 + self.random.below(3)),
            2 => format!("id IN ({}, {}, {})", self.id(), self.id(), self.id()),
            3 => "true".to_owned(),
            _ => format!("id BETWEEN {low} AND {high}"),
        }
    }

    fn range(&mut self) -> (u64, u64) {
        let low = self.id();
        (low, low + self.random.below(self.ids))
    }

    fn id(&mut self) -> u64 {
        1 + self.random.below(self.ids)
    }

    fn number(&mut self) -> u64 {
        self.random.below(self.ids)
    }

    /// `row` is an expression that tells rows apart.
    fn note(&mut self, row: &str) -> String {
        match self.random.below(6) {
            0 => "NULL".to_owned(),
            1 => self.random.pick(&["''", "'\\N'", "'\\.'"]).to_owned(),
            2 => format!("E'a\\tb\\n\\\\c\\r' || {row}"),
            3 => format!("'{{\"Ü\",NULL}}' || {row}"),
            4 => format!("'NOTE ' || {row}"),
            _ => format!("'note ' || {row}"),
        }
    }

    fn big(&mut self, row: &str) -> String {
        match self.random.below(4) {
            0 => "NULL".to_owned(),
            1 => "'short'".to_owned(),
            2 => format!("big({})", self.random.below(1_000)),
            _ => format!("big({row})"),
        }
    }

    fn numeric(&mut self) -> &'static str {
        self.random.pick(&["1", "1.0", "1.00", "2.5", "2.50", "'NaN'", "3", "1e2", "100", "-0.10"])
    }

    fn key_text(&mut self) -> &'static str {
        self.random.pick(&["'a'", "'A'", "'b'", "'B'", "'ü'", "''", "'a '"])
    }

    fn region(&mut self) -> &'static str {
        self.random.pick(&["'a'", "'b'", "'c'"])
    }

    fn chance(&mut self, of_hundred: u64) -> bool {
        self.random.below(100) < of_hundred
    }
}

fn name(table: Table) -> &'static str {
    match table {
        Table::Uniques => "uniques",
        Table::Composite => "composite",
        Table::Parent => "parent",
        Table::Child => "child",
        Table::Member => "member",
        Table::Large => "large",
        Table::LargeFull => "large_full",
        Table::LargeIndex => "large_index",
        Table::Bag => "bag",
        Table::Regions => "regions",
        Table::Altered => "altered",
    }
}
