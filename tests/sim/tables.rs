//! The tables of the simulation, and what is in them at one moment.
//!
//! Values are bytes in the form in which the stream carries them, text or binary; no model looks into one.

use std::collections::BTreeMap;
use std::rc::Rc;

/// `None` is NULL.
pub type Cell = Option<Rc<[u8]>>;
pub type Row = Rc<[Cell]>;
/// The cells of the key's columns, in the order of the definition.
pub type Key = Rc<[Cell]>;
pub type Rows = BTreeMap<Key, Row>;

pub const INT4: u32 = 23;
pub const TEXT: u32 = 25;

pub const SCHEMA: &str = "sim";

#[derive(Debug)]
pub struct Table {
    pub oid: u32,
    pub name: &'static str,
    /// Names and types.
    pub columns: &'static [(&'static str, u32)],
    /// Positions of the primary key's columns; of all columns where there is none.
    pub key: &'static [usize],
    /// Another unique column.
    pub unique: Option<usize>,
    /// REPLICA IDENTITY FULL.
    pub is_full: bool,
    /// It has no primary key. No two rows of it are alike all the same: the engine would not have to tell them apart.
    pub is_keyless: bool,
    /// Columns whose values can be large, so that updates may leave them out.
    pub toasted: &'static [usize],
}

pub static TABLES: [Table; 5] = [
    Table {
        oid: 16_401,
        name: "plain",
        columns: &[("id", INT4), ("note", TEXT), ("large", TEXT)],
        key: &[0],
        unique: None,
        is_full: false,
        is_keyless: false,
        toasted: &[2],
    },
    Table {
        oid: 16_402,
        name: "pair",
        columns: &[("large", TEXT), ("first", INT4), ("more", TEXT), ("second", TEXT)],
        key: &[1, 3],
        unique: None,
        is_full: false,
        is_keyless: false,
        toasted: &[0, 2],
    },
    Table {
        oid: 16_403,
        name: "distinct",
        columns: &[("id", INT4), ("place", INT4), ("note", TEXT)],
        key: &[0],
        unique: Some(1),
        is_full: false,
        is_keyless: false,
        toasted: &[],
    },
    Table {
        oid: 16_404,
        name: "whole",
        columns: &[("note", TEXT), ("id", INT4), ("large", TEXT)],
        key: &[1],
        unique: None,
        is_full: true,
        is_keyless: false,
        toasted: &[2],
    },
    Table {
        oid: 16_405,
        name: "keyless",
        columns: &[("note", TEXT), ("number", INT4)],
        key: &[0, 1],
        unique: None,
        is_full: true,
        is_keyless: true,
        toasted: &[],
    },
];

impl Table {
    pub fn key_of(&self, row: &[Cell]) -> Key {
        self.key.iter().map(|&position| row[position].clone()).collect()
    }

    pub fn position(&self, column: &str) -> usize {
        let position = self.columns.iter().position(|(name, _)| *name == column);
        position.unwrap_or_else(|| panic!("table {} has no column {column}", self.name))
    }
}

/// The rows of all tables, in the order of [`TABLES`].
pub type State = [Rows; TABLES.len()];

/// What differs, for a failure to show.
pub fn differences(expected: &State, found: &State) -> String {
    let mut lines = Vec::new();
    for (table, (expected, found)) in TABLES.iter().zip(expected.iter().zip(found)) {
        let keys: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
        for key in keys {
            let (expected, found) = (expected.get(key), found.get(key));
            if expected != found {
                lines.push(format!("{}: expected {}, found {}", table.name, shown(expected), shown(found)));
            }
        }
    }
    lines.join("\n")
}

fn shown(row: Option<&Row>) -> String {
    let cell = |cell: &Cell| match cell {
        None => "NULL".to_owned(),
        Some(value) if value.len() > 24 => format!("{}… ({} bytes)", value[..12].escape_ascii(), value.len()),
        Some(value) => format!("'{}'", value.escape_ascii()),
    };
    row.map_or("no row".to_owned(), |row| format!("({})", row.iter().map(cell).collect::<Vec<_>>().join(", ")))
}
