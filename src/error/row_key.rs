//! By what a person finds a row.

use std::fmt;

use super::printable;
use crate::postgres::quote_ident;

/// The columns that tell a row from others, and what they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowKey {
    /// None where all columns together do.
    pub columns: Vec<String>,
    /// As the columns, NULL as `None`. They are values of rows.
    pub values: Option<Vec<Option<String>>>,
    /// They are to be shown.
    pub shows_values: bool,
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.columns.is_empty() {
            return f.write_str("key: the whole row");
        }
        let columns: Vec<_> = self.columns.iter().map(|column| quote_ident(column)).collect();
        write!(f, "key: ({})", printable(&columns.join(", ")))?;
        let Some(values) = self.values.as_ref().filter(|_| self.shows_values) else { return Ok(()) };
        let values: Vec<_> = values.iter().map(|value| value.as_deref().unwrap_or("NULL")).collect();
        write!(f, " = ({})", values.join(", "))
    }
}
