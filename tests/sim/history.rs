//! What happens on the source: transactions one after the other, and what its tables hold after each.
//!
//! In: a seed's random numbers. Out: changes as WAL has them, among them changes of keys, TOAST values that an update
//! leaves out, unique values that swap their rows, TRUNCATE, transactions without changes and ones larger than a batch.

use std::rc::Rc;

use super::random::Random;
use super::tables::{Cell, INT4, Key, Row, State, TABLES};

/// Where WAL begins.
pub const FIRST_LSN: u64 = 0x100_0000;
/// Few keys, so that they meet again and again.
const KEYS: usize = 10;
/// Where transactions seldom meet.
const MANY_KEYS: usize = 500;
/// Those before the one without a key, of which no two transactions are apart.
const KEYED_TABLES: usize = 4;

#[derive(Clone, Debug)]
pub enum Change {
    Insert {
        table: usize,
        new: Row,
    },
    /// `unchanged` are the columns whose values are left out.
    Update {
        table: usize,
        old: Option<Row>,
        new: Row,
        unchanged: Vec<usize>,
    },
    Delete {
        table: usize,
        old: Row,
    },
    Truncate {
        tables: Vec<usize>,
    },
}

#[derive(Clone, Debug)]
pub struct Transaction {
    pub xid: u32,
    pub commit_lsn: u64,
    pub end_lsn: u64,
    pub changes: Vec<Change>,
}

#[derive(Debug)]
pub struct History {
    pub transactions: Vec<Transaction>,
    /// At each place what the transactions before it leave.
    states: Vec<State>,
}

/// In which form values travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Text,
    Binary,
}

impl History {
    pub fn new(random: &mut Random, form: Form) -> History {
        // Many small transactions that seldom meet, so that they are applied beside each other; or few that do.
        let is_long = random.happens(300);
        let (keys, tables) = if is_long { (MANY_KEYS, KEYED_TABLES) } else { (KEYS, TABLES.len()) };
        let mut maker = Maker { state: State::default(), changes: Vec::new(), form, keys, tables, values: 0 };
        let mut history = History { transactions: Vec::new(), states: vec![State::default()] };
        let mut lsn = FIRST_LSN;
        let large = random.between(20, 60);
        for place in 0..if is_long { random.between(60, 150) } else { random.between(3, 40) } {
            let changes = match random.below(20) {
                0 => 0,
                _ if is_long => random.between(1, 3),
                1..4 => random.between(16, large),
                _ => random.between(1, 6),
            };
            while maker.changes.len() < changes {
                maker.make(random);
            }
            // Other WAL may lie before it, or nothing.
            let commit_lsn = lsn + 8 * (1 + maker.changes.len() as u64) + 8 * random.pick(&[0, 0, 1, 60]);
            let end_lsn = commit_lsn + 48;
            lsn = end_lsn;
            let changes = std::mem::take(&mut maker.changes);
            history.transactions.push(Transaction { xid: 700 + place as u32, commit_lsn, end_lsn, changes });
            history.states.push(maker.state.clone());
        }
        history
    }

    /// How many transactions have ended at or before `lsn`.
    pub fn ended_by(&self, lsn: u64) -> usize {
        self.transactions.partition_point(|transaction| transaction.end_lsn <= lsn)
    }

    /// What the tables hold after the first `transactions`.
    pub fn state_after(&self, transactions: usize) -> &State {
        &self.states[transactions]
    }
}

/// Makes changes that the tables, as they are, allow.
struct Maker {
    state: State,
    changes: Vec<Change>,
    form: Form,
    keys: usize,
    /// Of the tables, the first so many.
    tables: usize,
    values: u32,
}

impl Maker {
    fn make(&mut self, random: &mut Random) {
        let table = random.below(self.tables);
        match random.below(40) {
            0..16 => self.insert(random, table),
            16..28 => self.update(random, table),
            28..36 => self.delete(random, table),
            36..38 => self.swap(random),
            38 if random.happens(300) => self.truncate(random, table),
            _ => self.change_key(random, table),
        }
    }

    fn insert(&mut self, random: &mut Random, table: usize) {
        let new = self.row(random, table);
        let key = TABLES[table].key_of(&new);
        if self.state[table].contains_key(&key) || self.is_taken(table, &new, None) {
            return;
        }
        self.state[table].insert(key, new.clone());
        self.changes.push(Change::Insert { table, new });
    }

    fn update(&mut self, random: &mut Random, table: usize) {
        let Some((key, old)) = self.any(random, table) else { return };
        let mut new = old.to_vec();
        let mut unchanged = Vec::new();
        for position in (0..new.len()).filter(|position| !TABLES[table].key.contains(position)) {
            if TABLES[table].toasted.contains(&position) && new[position].is_some() && random.happens(600) {
                unchanged.push(position);
            } else if random.happens(700) {
                new[position] = self.value(random, table, position);
            }
        }
        let new: Row = new.into();
        if self.is_taken(table, &new, Some(&key)) {
            return;
        }
        self.state[table].insert(key, new.clone());
        let old = TABLES[table].is_full.then_some(old);
        self.changes.push(Change::Update { table, old, new, unchanged });
    }

    fn delete(&mut self, random: &mut Random, table: usize) {
        let Some((key, old)) = self.any(random, table) else { return };
        self.state[table].remove(&key);
        self.changes.push(Change::Delete { table, old });
    }

    fn change_key(&mut self, random: &mut Random, table: usize) {
        let Some((key, old)) = self.any(random, table) else { return };
        let mut new = old.to_vec();
        for &position in TABLES[table].key {
            if random.happens(700) {
                new[position] = self.value(random, table, position);
            }
        }
        let new_key = TABLES[table].key_of(&new);
        if self.state[table].contains_key(&new_key) {
            return;
        }
        let is_out = |position: &usize| new[*position].is_some();
        let unchanged = TABLES[table].toasted.iter().copied().filter(is_out).collect();
        let new: Row = new.into();
        self.state[table].remove(&key);
        self.state[table].insert(new_key, new.clone());
        self.changes.push(Change::Update { table, old: Some(old), new, unchanged });
    }

    /// Two rows swap a unique value, by way of NULL.
    fn swap(&mut self, random: &mut Random) {
        let (table, position) = (2, 1);
        let (Some((one, first)), Some((other, second))) = (self.any(random, table), self.any(random, table)) else {
            return;
        };
        if one == other {
            return;
        }
        let mut step = |key: &Key, row: &Row, value: Cell| {
            let mut new = row.to_vec();
            new[position] = value;
            let new: Row = new.into();
            self.state[table].insert(key.clone(), new.clone());
            self.changes.push(Change::Update { table, old: None, new, unchanged: Vec::new() });
        };
        step(&one, &first, None);
        step(&other, &second, first[position].clone());
        step(&one, &first, second[position].clone());
    }

    fn truncate(&mut self, random: &mut Random, table: usize) {
        let mut tables = vec![table];
        if random.happens(300) {
            tables.push((table + 1) % TABLES.len());
        }
        tables.iter().for_each(|&table| self.state[table].clear());
        self.changes.push(Change::Truncate { tables });
    }

    fn any(&self, random: &mut Random, table: usize) -> Option<(Key, Row)> {
        let rows = &self.state[table];
        let place = random.below(rows.len());
        rows.iter().nth(place).map(|(key, row)| (key.clone(), row.clone()))
    }

    /// Another row than that of `key` has the unique value.
    fn is_taken(&self, table: usize, row: &Row, key: Option<&Key>) -> bool {
        let Some(position) = TABLES[table].unique else { return false };
        let is_other = |other: &Key| key.is_none_or(|key| key != other);
        let same = |other: &Row| other[position].is_some() && other[position] == row[position];
        self.state[table].iter().any(|(other_key, other)| is_other(other_key) && same(other))
    }

    fn row(&mut self, random: &mut Random, table: usize) -> Row {
        (0..TABLES[table].columns.len()).map(|position| self.value(random, table, position)).collect()
    }

    fn value(&mut self, random: &mut Random, table: usize, position: usize) -> Cell {
        let definition = &TABLES[table];
        let is_key = definition.key.contains(&position) && !definition.is_keyless;
        if !is_key && random.happens(150) {
            return None;
        }
        self.values += 1;
        let value: Rc<[u8]> = if definition.columns[position].1 == INT4 {
            let number = random.below(if is_key { self.keys } else { 4 * KEYS }) as i32;
            match self.form {
                Form::Text => number.to_string().into_bytes().into(),
                Form::Binary => number.to_be_bytes().into(),
            }
        } else if is_key {
            random.pick(&["a", "b", "", "\t"]).as_bytes().into()
        } else {
            let special = random.pick(&["", "", "\t", "\\N", "\r\n", "\\.", "é"]);
            let padding = if definition.toasted.contains(&position) { random.pick(&[0, 40, 400]) } else { 0 };
            format!("{}{special}{}", self.values, "x".repeat(padding)).into_bytes().into()
        };
        Some(value)
    }
}
