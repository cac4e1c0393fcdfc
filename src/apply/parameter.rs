//! A cell as a statement's parameter: the bytes as the source sent them, in the format in which it sent them.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use pgsluice_proto::pgoutput::Cell;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

#[derive(Clone, Copy, Debug)]
pub(super) struct Parameter<'a>(pub Cell<'a>);

impl ToSql for Parameter<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self.0 {
            Cell::Null => Ok(IsNull::Yes),
            Cell::Text(value) | Cell::Binary(value) => {
                out.put_slice(value);
                Ok(IsNull::No)
            }
            Cell::Unchanged => Err("an unchanged TOAST value has no bytes to send".into()),
        }
    }

    /// The plan has compared the types of both ends; here every type takes what came.
    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        match self.0 {
            Cell::Binary(_) => Format::Binary,
            Cell::Null | Cell::Text(_) | Cell::Unchanged => Format::Text,
        }
    }

    to_sql_checked!();
}
