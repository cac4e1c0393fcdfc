use std::collections::{HashMap, HashSet};

use crate::source::publication::TableName;

/// Tables that are looked up by schema and name, without putting the two together.
#[derive(Clone, Debug, Default)]
pub(super) struct TableSet(HashMap<String, HashSet<String>>);

impl TableSet {
    pub fn contains(&self, schema: &str, name: &str) -> bool {
        self.0.get(schema).is_some_and(|names| names.contains(name))
    }
}

impl<'a> FromIterator<&'a TableName> for TableSet {
    fn from_iter<I: IntoIterator<Item = &'a TableName>>(tables: I) -> TableSet {
        let mut set = TableSet::default();
        for table in tables {
            set.0.entry(table.schema.clone()).or_default().insert(table.name.clone());
        }
        set
    }
}
