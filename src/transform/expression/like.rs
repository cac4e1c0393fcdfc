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

/// What one step of a pattern asks for.
enum Step {
    Any,
    One,
    Exactly(char),
}

fn next_step(pattern: &str, escape: Option<char>) -> Result<Option<(Step, &str)>, Fault> {
    let mut characters = pattern.chars();
    let Some(character) = characters.next() else { return Ok(None) };
    let step = match character {
        _ if Some(character) == escape => Step::Exactly(characters.next().ok_or(Fault::PatternEndsWithEscape)?),
        '%' => Step::Any,
        '_' => Step::One,
        _ => Step::Exactly(character),
    };
    Ok(Some((step, characters.as_str())))
}

/// On a mismatch, the last `%` takes one character more: what came before it need never be tried again.
fn is_match(text: &str, pattern: &str, escape: Option<char>, same: fn(char, char) -> bool) -> Result<bool, Fault> {
    let (mut text, mut pattern) = (text, pattern);
    let mut last_any: Option<(&str, &str)> = None;
    loop {
        let after_first = |text: &'_ str| text.chars().next().map(|first| (first, first.len_utf8()));
        // The executor looks at the pattern only as far as there is text to match.
        let step = if text.is_empty() && last_any.is_none() {
            end_step(pattern, escape)?
        } else {
            next_step(pattern, escape)?
        };
        match (step, after_first(text)) {
            (Some((Step::Any, rest)), _) => {
                pattern = rest;
                last_any = Some((text, rest));
                continue;
            }
            (Some((Step::One, rest)), Some((_, length))) => {
                (text, pattern) = (&text[length..], rest);
                continue;
            }
            (Some((Step::Exactly(wanted), rest)), Some((first, length))) if same(wanted, first) => {
                (text, pattern) = (&text[length..], rest);
                continue;
            }
            (None, None) => return Ok(true),
            _ => {}
        }
        let Some((start, rest)) = last_any else { return Ok(false) };
        let Some((_, length)) = after_first(start) else { return Ok(false) };
        (text, pattern) = (&start[length..], rest);
        last_any = Some((text, rest));
    }
}

/// At the end of the text only `%` is looked for, and an escape without a character after it is not noticed.
fn end_step(pattern: &str, escape: Option<char>) -> Result<Option<(Step, &str)>, Fault> {
    match pattern.chars().next() {
        Some('%') if escape != Some('%') => next_step(pattern, escape),
        Some(_) => Ok(Some((Step::One, ""))),
        None => Ok(None),
    }
}
