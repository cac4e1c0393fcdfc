//! A server's own error, from either of the two client libraries, and what of it may be shown.
//!
//! In: the fields of an ErrorResponse. Out: its text, in which no value of a row stands unless that is asked for.
//!
//! An error that comes while rows are written can hold their values anywhere: data exceptions quote them, input functions of
//! types that name objects call them missing, and a function that raises an error chooses every field of it. So of such an
//! error is shown what is proved to be free of them:
//!
//! - the words of PostgreSQL's own messages ([`template`](super::template)), or else SQLSTATE's own name;
//! - names of tables, columns, constraints and types that the server's catalog has ([`ServerError::confirm`]);
//! - the whole message where it is about the server, such as a full disk, and no function was running.

use std::collections::BTreeSet;
use std::fmt;

use postgres_protocol::message::backend::{ErrorFields, ErrorResponseBody};
use tokio_postgres::error::DbError;

use super::context::{Context, InCopy};
use super::template::{self, NameKind};
use super::{printable, sqlstate};

/// A name that an error gives, and what it is given for.
pub type Named = (NameKind, String);

/// What a statement works on, whose values an error of it may quote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carries {
    /// Catalogs, settings, slots.
    #[default]
    Nothing,
    /// Definitions, which may be checked against rows that are there; or a stream, whose filters are evaluated.
    Definitions,
    /// Rows, which it writes or reads.
    Rows,
}

/// The fields of an ErrorResponse that say something to a person or to a decision ("Error and Notice Message Fields").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// The five characters of SQLSTATE ("PostgreSQL Error Codes").
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub table: Option<String>,
    pub column: Option<String>,
    pub constraint: Option<String>,
    pub data_type: Option<String>,
    /// The call stack, innermost first: what COPY was at, functions that were running.
    pub context: Option<String>,
    pub carries: Carries,
    /// Values are to be shown.
    pub shows_values: bool,
    /// Of the names in it, those that the server has.
    pub(crate) confirmed: BTreeSet<Named>,
    /// The column that a failing parameter was for, as the engine knows it.
    pub of_column: Option<String>,
}

impl ServerError {
    pub fn from_db_error(error: &DbError) -> ServerError {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        ServerError {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: owned(error.detail()),
            hint: owned(error.hint()),
            table: owned(error.table()),
            column: owned(error.column()),
            constraint: owned(error.constraint()),
            data_type: owned(error.datatype()),
            context: owned(error.where_()),
            ..ServerError::default()
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
                b't' => error.table = Some(value),
                b'c' => error.column = Some(value),
                b'n' => error.constraint = Some(value),
                b'd' => error.data_type = Some(value),
                b'W' => error.context = Some(value),
                // Severity, schema, position and the place in the server's source.
                _ => {}
            }
        }
        Ok(error)
    }

    /// The first two characters of SQLSTATE.
    pub fn class(&self) -> &str {
        self.code.get(..2).unwrap_or_default()
    }

    /// The parameter, counted from 0, whose value the server could not read.
    pub fn parameter(&self) -> Option<usize> {
        match self.context() {
            Context::Parameter(number) => number.checked_sub(1),
            Context::None | Context::Tuple | Context::Copy(_) | Context::Function(_) => None,
        }
    }

    /// The names in it. What they are for has to be asked of the server before they are shown, since a function can put a value
    /// of a row in the place of each.
    pub fn names(&self) -> Vec<Named> {
        let mut names = Vec::new();
        if !self.is_raised() {
            let fields = [
                (NameKind::Relation, &self.table),
                (NameKind::Column, &self.column),
                (NameKind::Constraint, &self.constraint),
                (NameKind::Type, &self.data_type),
            ];
            names.extend(fields.into_iter().filter_map(|(kind, name)| Some((kind, name.clone()?))));
            names.extend(template::matching(&self.code, &self.message).into_iter().flat_map(|matched| matched.names()));
        }
        match self.context() {
            Context::Copy(copy) => {
                names.push((NameKind::Relation, copy.table.to_owned()));
                names.extend(copy.column.map(|column| (NameKind::Column, column.to_owned())));
            }
            Context::Function(Some(function)) => names.push((NameKind::Function, function.to_owned())),
            Context::None | Context::Tuple | Context::Parameter(_) | Context::Function(None) => {}
        }
        names
    }

    /// Has those of its names shown that the server knows as what they are given for.
    pub fn confirm(&mut self, names: impl IntoIterator<Item = Named>) {
        self.confirmed.extend(names);
    }

    /// The constraint that a row does not fit, if the server has it.
    pub fn shown_constraint(&self) -> Option<&str> {
        self.field(NameKind::Constraint, self.constraint.as_deref())
    }

    /// The column that it is about, if that is known.
    pub fn shown_column(&self) -> Option<&str> {
        let of_copy = match self.context() {
            Context::Copy(InCopy { column, .. }) => column,
            Context::None | Context::Tuple | Context::Parameter(_) | Context::Function(_) => None,
        };
        let of_server = || self.field(NameKind::Column, self.column.as_deref());
        self.of_column
            .as_deref()
            .or_else(of_server)
            .or_else(|| of_copy.filter(|name| self.shows(NameKind::Column, name)))
    }

    /// A function of the database that was running, if the server has one of that name.
    pub fn shown_function(&self) -> Option<&str> {
        match self.context() {
            Context::Function(name) => name.filter(|name| self.shows(NameKind::Function, name)),
            Context::None | Context::Tuple | Context::Copy(_) | Context::Parameter(_) => None,
        }
    }

    /// A function of the database, such as a trigger's, was running.
    pub fn is_in_function(&self) -> bool {
        matches!(self.context(), Context::Function(_))
    }

    fn context(&self) -> Context<'_> {
        Context::parse(self.context.as_deref())
    }

    /// A function has raised it, with whatever fields it likes.
    fn is_raised(&self) -> bool {
        let is_raise = |context: &String| context.lines().next().is_some_and(|first| first.ends_with(" at RAISE"));
        self.is_in_function() && (self.class() == "P0" || self.context.as_ref().is_some_and(is_raise))
    }

    fn field<'a>(&self, kind: NameKind, name: Option<&'a str>) -> Option<&'a str> {
        name.filter(|name| (self.shows_values || !self.is_raised()) && self.shows(kind, name))
    }

    fn shows(&self, kind: NameKind, name: &str) -> bool {
        let is_trusted = match self.carries {
            Carries::Nothing => true,
            Carries::Definitions => !self.is_in_function(),
            Carries::Rows => false,
        };
        let is_confirmed = || self.confirmed.iter().any(|(of, known)| *of == kind && known == name);
        self.shows_values || is_trusted || is_confirmed()
    }

    /// The message holds no value: it is about the server, its disks and sessions, or about definitions alone.
    fn is_plain(&self) -> bool {
        let is_plain = match self.class() {
            // Connections and transactions, rights, resources, objects in use, operators, files.
            "08" | "25" | "26" | "28" | "3D" | "40" | "53" | "55" | "57" | "58" => true,
            // Values themselves, what functions raise, and whatever nobody has foreseen.
            "22" | "P0" | "XX" => false,
            // Types that name objects call their values missing, or wrong.
            _ => self.carries != Carries::Rows || self.code == "42501",
        };
        self.carries == Carries::Nothing || is_plain && !self.is_in_function()
    }

    /// The message, as far as it may be shown, and whether hint and detail may follow it.
    fn said(&self) -> (String, bool) {
        if self.shows_values || self.is_plain() {
            return (self.message.clone(), true);
        }
        let matched = if self.is_raised() { None } else { template::matching(&self.code, &self.message) };
        match matched {
            // Names and definitions: what PostgreSQL adds to its own words is of these too.
            Some(matched) => {
                let is_whole = matches!(self.class(), "0A" | "3F" | "42" | "54") && !self.is_in_function();
                (matched.text(|kind, name| self.shows(kind, name)), is_whole)
            }
            None => (sqlstate::words(&self.code).to_owned(), false),
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (message, is_whole) = self.said();
        write!(f, "{} (SQLSTATE {})", printable(&message), printable(&self.code))?;
        let table = self.field(NameKind::Relation, self.table.as_deref());
        let data_type = self.field(NameKind::Type, self.data_type.as_deref());
        let whole = |text: &Option<String>| text.clone().filter(|_| is_whole);
        // A constraint's own violation quotes the row.
        let quotes_row = self.class() == "23" && self.carries != Carries::Nothing;
        let detail = whole(&self.detail).filter(|_| self.shows_values || !quotes_row);
        let fields = [
            ("constraint", self.shown_constraint().map(str::to_owned)),
            ("of table", table.map(str::to_owned)),
            ("column", self.shown_column().map(str::to_owned)),
            ("type", data_type.map(str::to_owned)),
            ("in function", self.shown_function().map(str::to_owned)),
            ("detail", detail),
            ("hint", whole(&self.hint)),
        ];
        for (label, text) in fields {
            if let Some(text) = text {
                write!(f, "; {label}: {}", printable(&text))?;
            }
        }
        if let Context::Copy(InCopy { line, .. }) = self.context() {
            write!(f, "; line {line} of a COPY")?;
        }
        if !is_whole {
            f.write_str("; row values are not shown without --show-values")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &str = "m4rk";

    fn error(code: &str, message: &str, context: Option<&str>) -> ServerError {
        ServerError {
            code: code.to_owned(),
            message: message.to_owned(),
            context: context.map(str::to_owned),
            carries: Carries::Rows,
            ..ServerError::default()
        }
    }

    fn confirmed(mut error: ServerError, names: &[(NameKind, &str)]) -> String {
        error.confirm(names.iter().map(|(kind, name)| (*kind, (*name).to_owned())));
        error.to_string()
    }

    #[test]
    fn a_copy_says_its_cause_and_column() {
        let context = format!("COPY t, line 3, column v: \"{MARK}\"");
        let mut error = error("22P02", &format!("invalid input syntax for type integer: \"{MARK}\""), Some(&context));
        error.confirm([(NameKind::Type, "integer".to_owned()), (NameKind::Column, "v".to_owned())]);
        let said = error.to_string();
        assert!(said.starts_with("invalid input syntax for type integer (SQLSTATE 22P02); column: v"), "{said}");
        assert!(said.contains("line 3") && !said.contains(MARK), "{said}");
    }

    #[test]
    fn a_full_disk_is_said_amid_a_copy_too() {
        let message = "could not extend file \"base/5/1\": No space left on device";
        let context = format!("COPY t, line 3: \"{MARK}\"");
        let full =
            ServerError { hint: Some("Check free disk space.".to_owned()), ..error("53100", message, Some(&context)) };
        let said = full.to_string();
        assert!(said.contains(message) && said.contains("Check free disk space.") && !said.contains(MARK), "{said}");
    }

    #[test]
    fn what_a_function_raises_shows_its_name_alone() {
        let context = format!("PL/pgSQL function refuse() line 1 at RAISE\nSQL statement \"{MARK}\"");
        for code in ["P0001", "23505", "53100", "42501", "57014", "22P02"] {
            let mut raised = error(code, MARK, Some(&context));
            for field in [
                &mut raised.detail,
                &mut raised.hint,
                &mut raised.table,
                &mut raised.column,
                &mut raised.constraint,
                &mut raised.data_type,
            ] {
                *field = Some(MARK.to_owned());
            }
            let names = raised.names();
            assert_eq!(names, [(NameKind::Function, "refuse".to_owned())]);
            // Even where the value happens to be a name.
            let named =
                [NameKind::Column, NameKind::Constraint, NameKind::Relation, NameKind::Type].map(|kind| (kind, MARK));
            raised.confirm(names);
            let said = confirmed(raised, &named);
            assert!(!said.contains(MARK) && said.contains("in function: refuse"), "{said}");
        }
    }

    #[test]
    fn names_are_believed_where_the_server_has_them() {
        let message = "duplicate key value violates unique constraint \"t_pkey\"";
        let duplicate = || ServerError {
            constraint: Some("t_pkey".to_owned()),
            detail: Some(format!("Key (id)=({MARK}) already exists.")),
            ..error("23505", message, Some("SQL statement \"…\"\nPL/pgSQL function f() line 2 at SQL statement"))
        };
        let said = duplicate().to_string();
        assert!(
            !said.contains("t_pkey") && said.starts_with("duplicate key value violates unique constraint"),
            "{said}"
        );
        let said = confirmed(duplicate(), &[(NameKind::Constraint, "t_pkey")]);
        assert!(said.contains(message) && said.contains("constraint: t_pkey") && !said.contains(MARK), "{said}");
    }

    #[test]
    fn values_are_shown_where_they_are_asked_for() {
        let shown = ServerError { shows_values: true, ..error("22P02", MARK, None) };
        assert!(shown.to_string().contains(MARK));
    }

    #[test]
    fn what_writes_no_rows_says_all_but_data() {
        let missing =
            ServerError { carries: Carries::Definitions, ..error("42704", "type \"mood\" does not exist", None) };
        assert!(missing.to_string().contains("type \"mood\" does not exist"));
    }
}
