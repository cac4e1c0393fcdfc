//! Expressions of DMS, which are SQLite's: text comes in, an expression of ours goes out, or why there is none.
//!
//! ```text
//!  text ──lexer──► tokens ──parse──► tree of PostgreSQL's ──sql──► text, which is parsed once more
//!                            functions, headers, dates
//! ```
//!
//! Why not by replacing text: the operators of the two bind differently, strings can hold anything, and what has no equal has to
//! be found.

mod dates;
mod functions;
mod headers;
mod lexer;
mod parse;
pub mod sql;

#[cfg(test)]
mod tests;

use self::lexer::Token;
use self::sql::Sql;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Translated {
    /// For `set`.
    Expression {
        sql: String,
        /// It tells deletes, so they have to become updates.
        soft_delete: bool,
        /// Where its value differs.
        notes: Vec<String>,
    },
    /// The SHA-256 of this column.
    Hash(String),
}

/// What is known while an expression is read, and found.
#[derive(Debug, Default)]
struct Context {
    /// The one column that the rule is of.
    column: Option<String>,
    soft_delete: bool,
    notes: Vec<String>,
}

impl Context {
    fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// Translates it. `column` is the one column that the rule is of, if it is of one.
///
/// # Errors
/// What of it has no equal here.
pub fn translate(text: &str, column: Option<String>) -> Result<Translated, String> {
    let tokens = lexer::tokens(text)?;
    if let [Token::Word(function), Token::Sign("("), Token::Dollar(column), Token::Sign(")")] = tokens.as_slice()
        && function.eq_ignore_ascii_case("hash_sha256")
        && !column.starts_with("AR_")
    {
        return Ok(Translated::Hash(column.clone()));
    }
    let mut context = Context { column, ..Context::default() };
    let tree = parse::parse(&tokens, &mut context)?;
    // SQLite has no booleans.
    let tree = if tree.is_condition() { tree.cast("integer") } else { tree };
    let sql = Sql::write(&tree);
    sql::check(&sql).map_err(|error| format!("what it becomes, {sql}, cannot be read: {error}"))?;
    let Context { column: _, soft_delete, notes } = context;
    Ok(Translated::Expression { sql, soft_delete, notes })
}
