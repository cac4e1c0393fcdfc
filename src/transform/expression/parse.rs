//! SQL text to the parser's tree, and the parser's places to bytes of the text.

use std::ops::Range;

use sqlparser::ast::{Expr, Spanned};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Span, Token, Tokenizer};

use super::error::ExpressionError;

/// Bounds the depth of the parser's tree, which is walked and dropped recursively. A filter of a thousand values fits.
const TOKENS_MAX: usize = 4_096;

pub(super) fn parse(text: &str) -> Result<Expr, ExpressionError> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text)
        .tokenize_with_location()
        .map_err(|error| ExpressionError::new(range_at(text, error.location), capitalized_less(&error.message)))?;
    if tokens.len() > TOKENS_MAX {
        let message = format!("the expression has more than {TOKENS_MAX} words and signs");
        return Err(ExpressionError::new(0..text.len(), message));
    }
    let mut parser = Parser::new(&PostgreSqlDialect {}).with_tokens_with_locations(tokens);
    let parsed = parser.parse_expr();
    let next = parser.peek_token();
    match parsed {
        Ok(expression) if next.token == Token::EOF => Ok(expression),
        Ok(_) => Err(ExpressionError::new(range(text, next.span), "the expression has ended before this")),
        Err(error) => Err(ExpressionError::new(range(text, next.span), describe(error))),
    }
}

fn describe(error: ParserError) -> String {
    match error {
        ParserError::RecursionLimitExceeded => "the expression is nested too deeply".to_owned(),
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => {
            // The place is in the range.
            let message = message.split(" at Line:").next().unwrap_or(&message);
            format!("this is no expression of SQL: {}", capitalized_less(message))
        }
    }
}

/// Messages begin with a small letter.
fn capitalized_less(message: &str) -> String {
    let mut characters = message.chars();
    characters.next().map_or(String::new(), |first| first.to_lowercase().chain(characters).collect())
}

/// The bytes of a part, or of all of the text where the parser does not know.
pub(super) fn range_of(text: &str, part: &Expr) -> Range<usize> {
    range(text, part.span())
}

pub(super) fn range(text: &str, span: Span) -> Range<usize> {
    if span == Span::empty() {
        return 0..text.len();
    }
    let (start, end) = (byte_of(text, span.start), byte_of(text, span.end));
    start..end.max(start)
}

fn range_at(text: &str, location: Location) -> Range<usize> {
    let start = byte_of(text, location);
    start..text.len().min(start + 1).max(start)
}

/// Lines and columns count from one, columns in characters.
fn byte_of(text: &str, location: Location) -> usize {
    let lines = usize::try_from(location.line.saturating_sub(1)).unwrap_or(0);
    let columns = usize::try_from(location.column.saturating_sub(1)).unwrap_or(0);
    let line_start = match lines {
        0 => 0,
        _ => text.match_indices('\n').nth(lines - 1).map_or(text.len(), |(at, _)| at + 1),
    };
    let line = &text[line_start..];
    line_start + line.char_indices().nth(columns).map_or(line.len(), |(at, _)| at)
}
