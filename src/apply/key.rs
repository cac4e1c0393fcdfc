//! The key of a row, as messages and exceptions name it.

use std::fmt::Write;

use pgsluice_proto::Oid;
use pgsluice_proto::pgoutput::Cell;

use crate::batch::Row;
use crate::decode::Relation;
use crate::error::RowKey;

/// The columns at the positions of `key`, with the row's values.
pub(super) fn row_key(relation: &Relation, key: &[usize], row: Row<'_>) -> RowKey {
    let columns = key.iter().map(|&position| relation.columns[position].name.clone()).collect();
    let value = |&position: &usize| text(row.cell(position), relation.columns[position].type_oid);
    RowKey { columns, values: Some(key.iter().map(value).collect()), shows_values: false }
}

/// `None` for NULL.
fn text(cell: Cell<'_>, type_oid: Oid) -> Option<String> {
    match cell {
        Cell::Null => None,
        Cell::Unchanged => Some("unchanged".to_owned()),
        Cell::Text(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Cell::Binary(bytes) => Some(binary_text(bytes, type_oid)),
    }
}

/// Of the types that keys mostly have; others are shown as their bytes.
fn binary_text(bytes: &[u8], type_oid: Oid) -> String {
    /// `bigint`, `smallint`, `integer`, `uuid`; `name`, `text`, `char(n)`, `varchar` (`pg_type.dat`).
    const INT8: u32 = 20;
    const INT2: u32 = 21;
    const INT4: u32 = 23;
    const UUID: u32 = 2950;
    const TEXTS: [u32; 4] = [19, 25, 1042, 1043];
    match (type_oid.0, bytes) {
        (INT2, &[a, b]) => i16::from_be_bytes([a, b]).to_string(),
        (INT4, &[a, b, c, d]) => i32::from_be_bytes([a, b, c, d]).to_string(),
        (INT8, &[a, b, c, d, e, f, g, h]) => i64::from_be_bytes([a, b, c, d, e, f, g, h]).to_string(),
        (UUID, bytes) if bytes.len() == 16 => {
            [0..4, 4..6, 6..8, 8..10, 10..16].map(|part| hexadecimal(&bytes[part])).join("-")
        }
        (of, bytes) if TEXTS.contains(&of) => String::from_utf8_lossy(bytes).into_owned(),
        (_, bytes) => format!("\\x{}", hexadecimal(bytes)),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A String takes all that is written to it.
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_their_types_have_them() {
        let binary = |bytes: &[u8], of| binary_text(bytes, Oid(of));
        assert_eq!(binary(&[0xff, 0xfe], 21), "-2");
        assert_eq!(binary(&7_i32.to_be_bytes(), 23), "7");
        assert_eq!(binary(&i64::MIN.to_be_bytes(), 20), "-9223372036854775808");
        assert_eq!(binary("ü".as_bytes(), 25), "ü");
        let uuid: Vec<u8> = (0..16).collect();
        assert_eq!(binary(&uuid, 2950), "00010203-0405-0607-0809-0a0b0c0d0e0f");
        assert_eq!(binary(&[1, 2, 3], 23), "\\x010203");
        assert_eq!(text(Cell::Null, Oid(23)), None);
        assert_eq!(text(Cell::Text(b"x"), Oid(25)).as_deref(), Some("x"));
    }
}
