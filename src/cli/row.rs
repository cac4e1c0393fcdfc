//! A row of a batch as a JSON object.

use pgsluice_proto::pgoutput::Cell;
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::batch::Row;
use crate::decode::{Column, Relation};

/// Which columns of a row are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// What it is found by.
    Identity,
}

/// Column → value, in the order of the relation. What the source did not send is left out, so that it is not taken for NULL.
pub struct RowObject<'a> {
    pub relation: &'a Relation,
    pub row: Row<'a>,
    pub part: Part,
}

impl<'a> RowObject<'a> {
    fn cells(&self) -> impl Iterator<Item = (&'a Column, Cell<'a>)> {
        let part = self.part;
        let cells = self.relation.columns.iter().zip(self.row.cells());
        cells.filter(move |(column, _)| part == Part::Whole || column.is_identity)
    }

    /// Columns whose values were not sent.
    pub fn unchanged(&self) -> impl Iterator<Item = &'a str> {
        let unchanged = self.cells().filter(|(_, cell)| *cell == Cell::Unchanged);
        unchanged.map(|(column, _)| column.name.as_str())
    }
}

impl Serialize for RowObject<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        for (column, cell) in self.cells() {
            match cell {
                Cell::Unchanged => {}
                Cell::Null => object.serialize_entry(&column.name, &())?,
                Cell::Text(text) | Cell::Binary(text) => {
                    object.serialize_entry(&column.name, &String::from_utf8_lossy(text))?;
                }
            }
        }
        object.end()
    }
}
