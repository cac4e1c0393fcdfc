//! LIKE and ILIKE (`like_match.c`): `%` stands for any characters, `_` for one, the escape character for the next itself.

use super::arithmetic::unexpected;
use super::error::Fault;
use super::evaluate::Arguments;
use super::strings::lower_character;
use super::value::Value;

pub(super) fn like(arguments: Arguments<'_>) -> Result<Value<'_>, Fault> {
    match_with(arguments, false)
}

pub(super) fn ilike(arguments: Arguments<'_>) -> Result<Value<'_>, Fault> {
    match_with(arguments, true)
}

/// Text, pattern, and the escape string: of one character, or empty for none.
fn match_with(arguments: Arguments<'_>, folds_case: bool) -> Result<Value<'_>, Fault> {
    let [Value::Text(text), Value::Text(pattern), escape] = arguments else { return unexpected() };
    let escape = match &escape {
        Value::Text(escape) => escape,
        _ => "\\",
    };
    let mut escapes = escape.chars();
    let escape = escapes.next();
    if escapes.next().is_some() {
        return Err(Fault::InvalidEscape);
    }
    let same: fn(char, char) -> bool = match folds_case {
        true => |wanted, found| lower_character(wanted) == lower_character(found),
        false => |wanted, found| wanted == found,
    };
    is_match(&text, &pattern, escape, same).map(Value::Bool)
}

/// The first character of a pattern, by itself or behind the escape character, and what follows it.
#[derive(Clone, Copy)]
enum Step<'p> {
    End,
    Any(&'p str),
    One(&'p str),
    Exactly(char, &'p str),
}

fn step(pattern: &str, escape: Option<char>) -> Result<Step<'_>, Fault> {
    let mut characters = pattern.chars();
    let Some(first) = characters.next() else { return Ok(Step::End) };
    if Some(first) == escape {
        let literal = characters.next().ok_or(Fault::PatternEndsWithEscape)?;
        return Ok(Step::Exactly(literal, characters.as_str()));
    }
    let rest = characters.as_str();
    Ok(match first {
        '%' => Step::Any(rest),
        '_' => Step::One(rest),
        _ => Step::Exactly(first, rest),
    })
}

fn split_first(text: &str) -> Option<(char, &str)> {
    let mut characters = text.chars();
    characters.next().map(|first| (first, characters.as_str()))
}

/// On a mismatch, the last `%` takes more; what came before it need never be tried again. As in PostgreSQL, an escape at the
/// end of the pattern is an error only if there is text left to match with it.
fn is_match(text: &str, pattern: &str, escape: Option<char>, same: fn(char, char) -> bool) -> Result<bool, Fault> {
    let (mut text, mut pattern) = (text, pattern);
    let mut last_any: Option<(&str, &str)> = None;
    loop {
        let Some((found, text_rest)) = split_first(text) else { return Ok(only_any(pattern, escape)) };
        match step(pattern, escape)? {
            Step::Any(rest) => {
                let Some((start, rest)) = after_any(text, rest, escape)? else { return Ok(false) };
                if rest.is_empty() {
                    return Ok(true);
                }
                step(rest, escape)?;
                (text, pattern) = (start, rest);
                last_any = Some((start, rest));
                continue;
            }
            Step::One(rest) => {
                (text, pattern) = (text_rest, rest);
                continue;
            }
            Step::Exactly(wanted, rest) if same(wanted, found) => {
                (text, pattern) = (text_rest, rest);
                continue;
            }
            Step::Exactly(..) | Step::End => {}
        }
        let Some((start, rest)) = last_any else { return Ok(false) };
        let Some((_, next)) = split_first(start) else { return Ok(false) };
        (text, pattern) = (next, rest);
        last_any = Some((next, rest));
    }
}

/// Behind a `%` and all of `%` and `_` that follow it, of which each `_` takes a character: `None` if there is none left.
fn after_any<'t, 'p>(
    text: &'t str,
    pattern: &'p str,
    escape: Option<char>,
) -> Result<Option<(&'t str, &'p str)>, Fault> {
    let (mut text, mut pattern) = (text, pattern);
    loop {
        // An escape is not looked behind here.
        let is_escape = pattern.chars().next().is_some_and(|first| Some(first) == escape);
        let next = if is_escape { Step::End } else { step(pattern, escape)? };
        match next {
            Step::Any(rest) => pattern = rest,
            Step::One(rest) => match split_first(text) {
                Some((_, text_rest)) => (text, pattern) = (text_rest, rest),
                None => return Ok(None),
            },
            Step::Exactly(..) | Step::End => return Ok(Some((text, pattern))),
        }
    }
}

/// Whether the pattern takes no text at all.
fn only_any(pattern: &str, escape: Option<char>) -> bool {
    pattern.is_empty() || escape != Some('%') && pattern.bytes().all(|byte| byte == b'%')
}
