//! Expressions of SQL over one row, for filters and computed columns: as PostgreSQL would evaluate them, without it.
//!
//! ```text
//!  text ──parse──► the parser's tree ──resolve──► typed nodes ──evaluate over cells──► value ──► text | bytes
//! ```
//!
//! In: an expression and the columns of a relation, once; then rows, cell by cell. Out: a value, or an error, and the same one
//! whenever and wherever the row is evaluated. What always holds:
//!
//! - An expression is understood wholly when it is parsed, or refused there, with its place and what would be right. Types
//!   and operators are resolved by PostgreSQL's own rules ([`types`], `signature`), so a result has the type that it would
//!   have in PostgreSQL, and an expression never means something else here.
//! - What depends on anything but the row is refused: the clock, the session, the settings under which a text is read
//!   as a moment, and the collation under which texts are ordered.
//! - A row is evaluated from its text and from its binary cells to the same value. Times are of the time zone UTC.
//!
//! **Where it differs from PostgreSQL**, which `tests/chain/expressions` compares it with:
//!
//! - Texts are equal if their bytes are, as under every deterministic collation.
//! - `lower`, `upper` and ILIKE map each character to one, by Unicode as the standard library has it, as the built-in locale
//!   `C.UTF-8` does; ICU and other locales may map some characters to others.
//! - A part without columns that fails makes the expression be refused, also where PostgreSQL would not come to it.
//! - Text is cast to numbers in decimal notation only: no `0x1f`, no `1_000`, no hexadecimal floats.
//! - Dates, times and intervals in literals are read in ISO style, and intervals with whole numbers before their units.
//! - Chains that PostgreSQL's grammar refuses, such as `a < b < c`, are read from the left; `BETWEEN SYMMETRIC` is refused.
//! - Regular expressions, arrays, ranges, enums, `bytea` and `time with time zone` are refused.
//! - Results longer than a value of PostgreSQL can be are an error, which it raises as one of its memory.

mod arithmetic;
mod cast;
mod datetime;
mod error;
mod evaluate;
mod functions;
mod input;
mod interval;
mod json;
mod like;
mod numeric;
mod operators;
mod output;
mod parse;
mod resolve;
mod signature;
mod strings;
mod temporal;
pub mod types;
mod value;

use pgsluice_proto::Oid;
use pgsluice_proto::pgoutput::Cell;

pub use error::{EvaluationError, ExpressionError, Fault};
pub use interval::Interval;
pub use numeric::{Decimal, Numeric};
pub use value::Value;

pub(super) use functions::nearest;

use evaluate::{Node, Row};
use types::Type;

/// An expression over the columns of one relation, ready to be evaluated row by row.
#[derive(Clone, Debug)]
pub struct Expression {
    root: Node,
    of: Type,
    columns: Vec<usize>,
}

impl Expression {
    /// Compiles it. `columns` are the name and type OID of each column of the relation, in the order of its cells. Those
    /// whose names begin with `$` can be written as they are.
    pub fn parse(text: &str, columns: &[(String, Oid)]) -> Result<Expression, ExpressionError> {
        let tree = parse::parse(text)?;
        let (typed, columns) = resolve::resolve(text, &tree, columns)?;
        Ok(Expression { root: typed.node, of: typed.of, columns })
    }

    /// Whether the text is an expression at all, before there are columns for it.
    pub fn check_syntax(text: &str) -> Result<(), ExpressionError> {
        parse::parse(text).map(drop)
    }

    /// The OID of the type that PostgreSQL would give it.
    pub fn type_oid(&self) -> Oid {
        self.of.oid()
    }

    /// The indexes of the columns that it reads, in ascending order.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Its value over the row whose cells are given. A cell is asked for only if its value is needed.
    pub fn evaluate<'a>(&'a self, cell: impl Fn(usize) -> Cell<'a>) -> Result<Value<'a>, EvaluationError> {
        self.root.value(&Row { cell: &cell, subject: None })
    }

    /// Whether it holds for the row: NULL is not true, and neither is a value that is not boolean.
    pub fn is_true<'a>(&'a self, cell: impl Fn(usize) -> Cell<'a>) -> Result<bool, EvaluationError> {
        Ok(self.root.truth(&Row { cell: &cell, subject: None })? == Some(true))
    }
}

#[cfg(test)]
mod tests;
