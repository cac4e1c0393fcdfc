//! Functions of text. Positions and lengths are in characters.

use std::borrow::Cow;

use super::arithmetic::unexpected;
use super::error::Fault;
use super::evaluate::Arguments;
use super::value::{Value, trimmed};

/// PostgreSQL's limit on a value (`MaxAllocSize`).
const TEXT_BYTES_MAX: usize = 0x3fff_ffff;

type Outcome<'v> = Result<Value<'v>, Fault>;

fn borrowed_part<'v>(text: Cow<'v, str>, part: impl FnOnce(&str) -> &str) -> Outcome<'v> {
    Ok(Value::Text(match text {
        Cow::Borrowed(text) => Cow::Borrowed(part(text)),
        Cow::Owned(text) => Cow::Owned(part(&text).to_owned()),
    }))
}

fn owned<'v>(text: String) -> Outcome<'v> {
    if text.len() > TEXT_BYTES_MAX { Err(Fault::TooLong) } else { Ok(Value::Text(Cow::Owned(text))) }
}

fn integer<'v>(value: usize) -> Outcome<'v> {
    i32::try_from(value).map(Value::Int4).map_err(|_| Fault::TooLong)
}

pub(super) fn concatenate<'v>([left, right, _]: Arguments<'v>) -> Outcome<'v> {
    match (left, right) {
        (Value::Text(left), Value::Text(right)) => owned(left.into_owned() + &right),
        _ => unexpected(),
    }
}

/// The mapping of one character to one, as `lower()` does it under the built-in locale `C.UTF-8`.
pub(super) fn lower_character(character: char) -> char {
    let mut mapped = character.to_lowercase();
    match (mapped.next(), mapped.next()) {
        (Some(lower), None) => lower,
        // Only İ becomes two: i, and a dot above it.
        (Some(lower), Some(_)) => lower,
        (None, _) => character,
    }
}

fn upper_character(character: char) -> char {
    let mut mapped = character.to_uppercase();
    if let (Some(upper), None) = (mapped.next(), mapped.next()) {
        return upper;
    }
    // Greek letters with an iota below have a title case; the others that become several letters stay.
    let title = match character {
        '\u{1f80}'..='\u{1f87}' | '\u{1f90}'..='\u{1f97}' | '\u{1fa0}'..='\u{1fa7}' => u32::from(character) + 8,
        '\u{1fb3}' | '\u{1fc3}' | '\u{1ff3}' => u32::from(character) + 9,
        _ => return character,
    };
    char::from_u32(title).unwrap_or(character)
}

pub(super) fn lower<'v>([text, ..]: Arguments<'v>) -> Outcome<'v> {
    match text {
        Value::Text(text) => owned(text.chars().map(lower_character).collect()),
        _ => unexpected(),
    }
}

pub(super) fn upper<'v>([text, ..]: Arguments<'v>) -> Outcome<'v> {
    match text {
        Value::Text(text) => owned(text.chars().map(upper_character).collect()),
        _ => unexpected(),
    }
}

/// The characters to trim, which are blanks if none are given.
fn trim<'v>([text, set, _]: Arguments<'v>, part: for<'t> fn(&'t str, &dyn Fn(char) -> bool) -> &'t str) -> Outcome<'v> {
    let Value::Text(text) = text else { return unexpected() };
    match &set {
        Value::Text(set) => borrowed_part(text, |text| part(text, &|character| set.contains(character))),
        _ => borrowed_part(text, |text| part(text, &|character| character == ' ')),
    }
}

pub(super) fn trim_both(arguments: Arguments<'_>) -> Outcome<'_> {
    trim(arguments, |text, is_trimmed| text.trim_matches(is_trimmed))
}

pub(super) fn trim_left(arguments: Arguments<'_>) -> Outcome<'_> {
    trim(arguments, |text, is_trimmed| text.trim_start_matches(is_trimmed))
}

pub(super) fn trim_right(arguments: Arguments<'_>) -> Outcome<'_> {
    trim(arguments, |text, is_trimmed| text.trim_end_matches(is_trimmed))
}

pub(super) fn length<'v>([text, ..]: Arguments<'v>) -> Outcome<'v> {
    match text {
        Value::Text(text) => integer(text.chars().count()),
        _ => unexpected(),
    }
}

pub(super) fn length_bpchar<'v>([text, ..]: Arguments<'v>) -> Outcome<'v> {
    match text {
        Value::Text(text) => integer(trimmed(&text).chars().count()),
        _ => unexpected(),
    }
}

pub(super) fn octet_length<'v>([text, ..]: Arguments<'v>) -> Outcome<'v> {
    match text {
        Value::Text(text) => integer(text.len()),
        _ => unexpected(),
    }
}

/// The byte at which this character begins, or the end.
fn byte_of(text: &str, character: usize) -> usize {
    text.char_indices().nth(character).map_or(text.len(), |(at, _)| at)
}

/// Positions count from one, and may lie before the text.
pub(super) fn substring<'v>([text, from, length]: Arguments<'v>) -> Outcome<'v> {
    let (Value::Text(text), Value::Int4(from)) = (text, from) else { return unexpected() };
    let from = i64::from(from);
    let end = match length {
        Value::Int4(length) if length < 0 => return Err(Fault::NegativeSubstringLength),
        Value::Int4(length) => from + i64::from(length),
        _ => i64::MAX,
    };
    let skipped = (from.max(1) - 1) as usize;
    let count = end.saturating_sub(from.max(1)).max(0) as usize;
    borrowed_part(text, |text| {
        let rest = &text[byte_of(text, skipped)..];
        &rest[..byte_of(rest, count)]
    })
}

pub(super) fn replace<'v>([text, from, to]: Arguments<'v>) -> Outcome<'v> {
    let (Value::Text(text), Value::Text(from), Value::Text(to)) = (text, from, to) else { return unexpected() };
    if from.is_empty() || !text.contains(&*from) {
        return Ok(Value::Text(text));
    }
    let count = text.matches(&*from).count();
    if text.len().saturating_add(count.saturating_mul(to.len())) > 2 * TEXT_BYTES_MAX {
        return Err(Fault::TooLong);
    }
    owned(text.replace(&*from, &to))
}

/// A negative count is of the characters at the other end that are left out.
fn count_of(text: &str, count: i32) -> usize {
    let length = text.chars().count() as i64;
    if count >= 0 { count as usize } else { (length + i64::from(count)).max(0) as usize }
}

pub(super) fn left<'v>([text, count, _]: Arguments<'v>) -> Outcome<'v> {
    let (Value::Text(text), Value::Int4(count)) = (text, count) else { return unexpected() };
    borrowed_part(text, |text| &text[..byte_of(text, count_of(text, count))])
}

pub(super) fn right<'v>([text, count, _]: Arguments<'v>) -> Outcome<'v> {
    let (Value::Text(text), Value::Int4(count)) = (text, count) else { return unexpected() };
    // The least integer has no negative, and PostgreSQL then leaves out nothing.
    let count = if count == i32::MIN { i32::MAX } else { count };
    borrowed_part(text, |text| {
        let kept = count_of(text, count);
        &text[byte_of(text, text.chars().count().saturating_sub(kept))..]
    })
}

/// Where the second text begins in the first, from one, or zero.
pub(super) fn position<'v>([text, part, _]: Arguments<'v>) -> Outcome<'v> {
    let (Value::Text(text), Value::Text(part)) = (text, part) else { return unexpected() };
    match text.find(&*part) {
        None => Ok(Value::Int4(0)),
        Some(at) => integer(text[..at].chars().count() + 1),
    }
}

pub(super) fn starts_with<'v>([text, start, _]: Arguments<'v>) -> Outcome<'v> {
    match (text, start) {
        (Value::Text(text), Value::Text(start)) => Ok(Value::Bool(text.starts_with(&*start))),
        _ => unexpected(),
    }
}

pub(super) fn reverse<'v>([text, ..]: Arguments<'v>) -> Outcome<'v> {
    match text {
        Value::Text(text) => owned(text.chars().rev().collect()),
        _ => unexpected(),
    }
}
