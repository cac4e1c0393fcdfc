//! `->` and `->>` on `json` and `jsonb`.
//!
//! The server has checked the text, so a value in it is found by its brackets and quotes alone. A part of a `jsonb` is again
//! what `jsonb_out` writes of it; a part of a `json` is as it was written.

use std::borrow::Cow;

use super::arithmetic::unexpected;
use super::error::Fault;
use super::evaluate::Arguments;
use super::value::Value;

type Outcome<'v> = Result<Value<'v>, Fault>;

const UNREADABLE: Fault = Fault::InvalidText(super::types::Type::Json);

/// `->`
pub(super) fn get(arguments: Arguments<'_>) -> Outcome<'_> {
    let [document, key, _] = arguments;
    let (text, is_jsonb) = match document {
        Value::Text(text) => (text, false),
        Value::Jsonb(text) => (text, true),
        _ => return unexpected(),
    };
    // A jsonb that is neither an array nor an object is stored as an array of one element.
    if is_jsonb && matches!(key, Value::Int4(-1 | 0)) && !text.starts_with(['{', '[']) {
        return Ok(Value::Jsonb(text));
    }
    let part = match text {
        Cow::Borrowed(text) => find(text, &key)?.map(Cow::Borrowed),
        Cow::Owned(text) => find(&text, &key)?.map(|part| Cow::Owned(part.to_owned())),
    };
    Ok(match part {
        None => Value::Null,
        Some(part) if is_jsonb => Value::Jsonb(part),
        Some(part) => Value::Text(part),
    })
}

/// `->>`: a string without its quotes, everything else as it is, and null as NULL.
pub(super) fn get_text(arguments: Arguments<'_>) -> Outcome<'_> {
    match get(arguments)? {
        Value::Text(part) | Value::Jsonb(part) if part.starts_with('"') => {
            unquote(&part).map(|text| Value::Text(Cow::Owned(text)))
        }
        Value::Text(part) | Value::Jsonb(part) if part == "null" => Ok(Value::Null),
        Value::Text(part) | Value::Jsonb(part) => Ok(Value::Text(part)),
        _ => Ok(Value::Null),
    }
}

fn find<'t>(text: &'t str, key: &Value<'_>) -> Result<Option<&'t str>, Fault> {
    match key {
        Value::Text(key) => member(text, key),
        Value::Int4(index) => element(text, *index),
        _ => Ok(None),
    }
}

/// The last member of an object with this name.
fn member<'t>(text: &'t str, key: &str) -> Result<Option<&'t str>, Fault> {
    let Some(mut rest) = skip_blanks(text).strip_prefix('{') else { return Ok(None) };
    let mut found = None;
    loop {
        rest = skip_blanks(rest);
        if rest.starts_with('}') {
            return Ok(found);
        }
        rest = skip_blanks(rest.strip_prefix(',').unwrap_or(rest));
        let (name, after_name) = split_value(rest)?;
        let after_colon = skip_blanks(after_name).strip_prefix(':').ok_or(UNREADABLE)?;
        let (value, after_value) = split_value(skip_blanks(after_colon))?;
        let plain = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')).ok_or(UNREADABLE)?;
        let is_named = if plain.contains('\\') { unquote(name)? == key } else { plain == key };
        if is_named {
            found = Some(value);
        }
        rest = after_value;
    }
}

/// The element of an array, counted from its end if negative.
fn element(text: &str, index: i32) -> Result<Option<&str>, Fault> {
    let Some(rest) = skip_blanks(text).strip_prefix('[') else { return Ok(None) };
    let wanted = match usize::try_from(index) {
        Ok(index) => index,
        Err(_) => {
            let mut count = 0;
            each_element(rest, |_| {
                count += 1;
                false
            })?;
            match usize::try_from(count + i64::from(index)) {
                Ok(index) => index,
                Err(_) => return Ok(None),
            }
        }
    };
    let mut at = 0;
    each_element(rest, |_| {
        at += 1;
        at > wanted
    })
}

/// The first element at which `stops` is true.
fn each_element<'t>(after_bracket: &'t str, mut stops: impl FnMut(&'t str) -> bool) -> Result<Option<&'t str>, Fault> {
    let mut rest = after_bracket;
    loop {
        rest = skip_blanks(rest);
        if rest.starts_with(']') {
            return Ok(None);
        }
        rest = skip_blanks(rest.strip_prefix(',').unwrap_or(rest));
        let (value, after_value) = split_value(rest)?;
        if stops(value) {
            return Ok(Some(value));
        }
        rest = after_value;
    }
}

fn skip_blanks(text: &str) -> &str {
    text.trim_start_matches([' ', '\t', '\n', '\r'])
}

/// The value that the text begins with, and what follows it. Never empty; a string has both of its quotes.
fn split_value(text: &str) -> Result<(&str, &str), Fault> {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        match bytes.get(at).ok_or(UNREADABLE)? {
            b'"' => at = end_of_string(bytes, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1).ok_or(UNREADABLE)?;
                at += 1;
            }
            _ => {
                at += bytes[at..]
                    .iter()
                    .take_while(|byte| {
                        !matches!(byte, b'"' | b'{' | b'[' | b'}' | b']' | b',' | b' ' | b'\t' | b'\n' | b'\r')
                    })
                    .count()
                    .max(1);
            }
        }
        if depth == 0 {
            return Ok(text.split_at(at));
        }
    }
}

/// Behind the quote that closes the string at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> Result<usize, Fault> {
    let mut at = start + 1;
    loop {
        match bytes.get(at).ok_or(UNREADABLE)? {
            b'"' => return Ok(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The text of a JSON string.
fn unquote(quoted: &str) -> Result<String, Fault> {
    let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or(UNREADABLE)?;
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        text.push_str(plain);
        let mut characters = escaped.chars();
        let character = match characters.next().ok_or(UNREADABLE)? {
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let (character, length) = unicode_escape(escaped)?;
                text.push(character);
                rest = escaped.get(length..).ok_or(UNREADABLE)?;
                continue;
            }
            itself => itself,
        };
        text.push(character);
        rest = characters.as_str();
    }
    text.push_str(rest);
    Ok(text)
}

/// `uXXXX`, or two of them that are a pair of surrogates, and how long it is.
fn unicode_escape(text: &str) -> Result<(char, usize), Fault> {
    let unit = |from: usize| {
        let digits = text.get(from..from + 4).ok_or(UNREADABLE)?;
        u32::from_str_radix(digits, 16).map_err(|_| UNREADABLE)
    };
    let first = unit(1)?;
    if first == 0 {
        return Err(Fault::UntranslatableCharacter);
    }
    if (0xd800..0xdc00).contains(&first) {
        let second = unit(7)?.checked_sub(0xdc00).filter(|low| *low < 0x400).ok_or(UNREADABLE)?;
        let character = char::from_u32(0x10000 + ((first - 0xd800) << 10) + second).ok_or(UNREADABLE)?;
        return Ok((character, 11));
    }
    Ok((char::from_u32(first).ok_or(UNREADABLE)?, 5))
}
