//! A server's own error, from either of the two client libraries.

use std::fmt;

use postgres_protocol::message::backend::{ErrorFields, ErrorResponseBody};
use tokio_postgres::error::DbError;

/// The fields of an ErrorResponse that say something to a person or to a decision ("Error and Notice Message Fields").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// The five characters of SQLSTATE ("PostgreSQL Error Codes").
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub column: Option<String>,
    pub constraint: Option<String>,
    /// A function of the database, such as a trigger's, was running: the message may be its own.
    pub in_function: bool,
}

impl ServerError {
    pub fn from_db_error(error: &DbError) -> ServerError {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        ServerError {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: owned(error.detail()),
            hint: owned(error.hint()),
            column: owned(error.column()),
            constraint: owned(error.constraint()),
            in_function: error.where_().is_some(),
        }
    }

    /// # Errors
    /// If the message is not laid out as documented.
    pub fn from_response(body: &ErrorResponseBody) -> std::io::Result<ServerError> {
        ServerError::from_fields(body.fields())
    }

    /// Of an error or a notice.
    ///
    /// # Errors
    /// If the message is not laid out as documented.
    pub fn from_fields(mut fields: ErrorFields<'_>) -> std::io::Result<ServerError> {
        let mut error = ServerError::default();
        while let Some(field) = fallible_iterator::FallibleIterator::next(&mut fields)? {
            let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => error.code = value,
                b'M' => error.message = value,
                b'D' => error.detail = Some(value),
                b'H' => error.hint = Some(value),
                b'c' => error.column = Some(value),
                b'n' => error.constraint = Some(value),
                b'W' => error.in_function = true,
                // Severity, position and the place in the server's source.
                _ => {}
            }
        }
        Ok(error)
    }

    /// The first two characters of SQLSTATE.
    pub fn class(&self) -> &str {
        self.code.get(..2).unwrap_or_default()
    }

    /// Data exceptions quote the value at fault in their very message, and so may errors that a function raises, with
    /// whatever SQLSTATE it likes.
    fn message_may_hold_values(&self) -> bool {
        matches!(self.class(), "22" | "P0") || self.in_function
    }

    /// The error without anything that could hold a value of a row.
    pub fn without_row_values(&self) -> ServerError {
        let mut error = ServerError { detail: None, ..self.clone() };
        if self.message_may_hold_values() {
            error.message = "the message may hold row values; set row_values = true in [log] to see it".to_owned();
            error.hint = None;
        }
        error
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)?;
        for (label, text) in
            [("constraint", &self.constraint), ("column", &self.column), ("detail", &self.detail), ("hint", &self.hint)]
        {
            if let Some(text) = text {
                write!(f, "; {label}: {text}")?;
            }
        }
        Ok(())
    }
}
