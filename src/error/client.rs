//! What an error of the SQL client library comes to.

use std::io;

use super::{Kind, ServerError};
use crate::config::Role;

impl Kind {
    pub fn from_postgres(role: Role, error: tokio_postgres::Error) -> Kind {
        if let Some(db) = error.as_db_error() {
            let error = ServerError::from_db_error(db);
            return match error.class() {
                "28" => Kind::Authentication { role, why: error.to_string() },
                _ => Kind::Server { role, error },
            };
        }
        let source = io_source(&error).unwrap_or_else(|| io::Error::other(error.to_string()));
        match source.kind() {
            io::ErrorKind::PermissionDenied => Kind::Authentication { role, why: source.to_string() },
            _ if error.is_closed() || is_io(&error) => Kind::Lost { role, source },
            _ => Kind::Protocol { role, what: chain(&error) },
        }
    }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<io::Error>())
}

/// The I/O error inside, as an error of our own: the library does not give it away.
fn io_source(error: &tokio_postgres::Error) -> Option<io::Error> {
    let source = std::error::Error::source(error)?.downcast_ref::<io::Error>()?;
    Some(io::Error::new(source.kind(), source.to_string()))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
