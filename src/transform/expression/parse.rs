//! SQL text to the parser's tree, and the parser's places to bytes of the text.

use std::ops::Range;

use sqlparser::ast::{Expr, FunctionArg, FunctionArgExpr, FunctionArguments, InTarget, Spanned};
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
    if tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_))).count() > TOKENS_MAX {
        let message = format!("the expression has more than {TOKENS_MAX} words and signs");
        return Err(ExpressionError::new(0..text.len(), message));
    }
    let mut parser = Parser::new(&PostgreSqlDialect {}).with_tokens_with_locations(tokens);
    let parsed = parser.parse_expr();
    let next = parser.peek_token();
    match parsed {
        Ok(expression) if next.token == Token::EOF => Ok(expression),
        Ok(_) => Err(ExpressionError::new(range(text, next.span), "the expression has ended before this")),
        Err(error) if next.token == Token::EOF => Err(ExpressionError::new(text.len()..text.len(), describe(error))),
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
    with_closed_parentheses(text, range(text, edge(part, Edge::Start).union(&edge(part, Edge::End))))
}

/// The tree does not know where its parentheses are: those that are opened in the range are closed in it.
fn with_closed_parentheses(text: &str, range: Range<usize>) -> Range<usize> {
    let count = |parenthesis: char| text[range.clone()].matches(parenthesis).count();
    let mut end = range.end;
    for _ in count(')')..count('(') {
        let rest = text[end..].trim_start();
        match rest.strip_prefix(')') {
            Some(after) => end = text.len() - after.len(),
            None => break,
        }
    }
    range.start..end
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Edge {
    Start,
    End,
}

/// The first or the last piece of a tree whose place is known. A chain of operators is as deep as it is long, so this is a
/// loop, where the parser's own search for places recurses.
fn edge(tree: &Expr, edge: Edge) -> Span {
    let mut tree = tree;
    loop {
        tree = match (tree, edge) {
            (Expr::Identifier(name), _) => return name.span,
            (Expr::Value(value), _) => return value.span,
            (Expr::TypedString(typed), _) => return typed.value.span,
            (Expr::Case { case_token, .. }, Edge::Start) => return case_token.0.span,
            (Expr::Case { end_token, .. }, Edge::End) => return end_token.0.span,
            (Expr::Function(function), Edge::Start) => return function.name.span(),
            (Expr::Function(function), Edge::End) => match &function.args {
                FunctionArguments::List(list) => match list.args.last() {
                    Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(last))) => last,
                    _ => return function.name.span(),
                },
                _ => return function.name.span(),
            },
            (Expr::CompoundIdentifier(names), _) => {
                return names.iter().map(|name| name.span).fold(Span::empty(), |all, each| all.union(&each));
            }
            (
                Expr::BinaryOp { left, .. } | Expr::IsDistinctFrom(left, _) | Expr::IsNotDistinctFrom(left, _),
                Edge::Start,
            ) => left,
            (
                Expr::BinaryOp { right, .. } | Expr::IsDistinctFrom(_, right) | Expr::IsNotDistinctFrom(_, right),
                Edge::End,
            ) => right,
            (Expr::Like { pattern, .. } | Expr::ILike { pattern, .. }, Edge::End) => pattern,
            (Expr::Between { high, .. }, Edge::End) => high,
            (Expr::In { target: InTarget::List(list), expr, .. }, Edge::End) => list.last().unwrap_or(expr),
            (Expr::Position { r#in, .. }, Edge::End) => r#in,
            (Expr::Substring { expr, substring_from, substring_for, .. }, Edge::End) => {
                substring_for.as_deref().or(substring_from.as_deref()).unwrap_or(expr)
            }
            (
                Expr::Nested(expr)
                | Expr::UnaryOp { expr, .. }
                | Expr::Cast { expr, .. }
                | Expr::IsNull(expr)
                | Expr::IsNotNull(expr)
                | Expr::IsTrue(expr)
                | Expr::IsNotTrue(expr)
                | Expr::IsFalse(expr)
                | Expr::IsNotFalse(expr)
                | Expr::IsUnknown(expr)
                | Expr::IsNotUnknown(expr)
                | Expr::Like { expr, .. }
                | Expr::ILike { expr, .. }
                | Expr::Between { expr, .. }
                | Expr::In { expr, .. }
                | Expr::Extract { expr, .. }
                | Expr::Ceil { expr, .. }
                | Expr::Floor { expr, .. }
                | Expr::Position { expr, .. }
                | Expr::Substring { expr, .. }
                | Expr::Trim { expr, .. },
                _,
            ) => expr,
            (Expr::Interval(interval), _) => &interval.value,
            _ => return Span::empty(),
        };
    }
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
