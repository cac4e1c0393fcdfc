//! Text to values, as PostgreSQL's input functions read it: cells in text, literals, and casts from text.
//!
//! Numbers are read in decimal notation alone: `0x1f` and `1_000`, which PostgreSQL takes since 16, are errors here.

use std::borrow::Cow;

use super::datetime::{parse_date, parse_time, parse_timestamp};
use super::error::Fault;
use super::interval::Interval;
use super::numeric::Numeric;
use super::types::Type;
use super::value::{Value, read_uuid};

/// The value that this text is of a type.
#[inline]
pub(super) fn read_text(text: &str, of: Type) -> Result<Value<'_>, Fault> {
    Ok(match of {
        Type::Bool => Value::Bool(parse_bool(text)?),
        Type::Int2 => Value::Int2(parse_integer(text, of)?.try_into().map_err(|_| Fault::OutOfRange(of))?),
        Type::Int4 => Value::Int4(parse_integer(text, of)?.try_into().map_err(|_| Fault::OutOfRange(of))?),
        Type::Int8 => Value::Int8(parse_integer(text, of)?),
        Type::Numeric => Value::Numeric(Numeric::parse(trim_blanks(text))?),
        Type::Float4 => Value::Float4(parse_f32(text)?),
        Type::Float8 => Value::Float8(parse_f64(text)?),
        Type::Text | Type::Varchar | Type::Bpchar | Type::Json | Type::Unknown => Value::Text(Cow::Borrowed(text)),
        Type::Jsonb => Value::Jsonb(Cow::Borrowed(text)),
        Type::Date => Value::Date(parse_date(text)?),
        Type::Time => Value::Time(parse_time(text)?),
        Type::Timestamp => Value::Timestamp(parse_timestamp(text, of)?),
        Type::Timestamptz => Value::Timestamptz(parse_timestamp(text, of)?),
        Type::Interval => Value::Interval(Interval::parse(text)?),
        Type::Uuid => read_uuid(text)?,
    })
}

/// Without what `isspace` of C takes for white space.
fn trim_blanks(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r'])
}

fn parse_integer(text: &str, of: Type) -> Result<i64, Fault> {
    let text = trim_blanks(text);
    text.parse().map_err(|error: std::num::ParseIntError| match error.kind() {
        std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => Fault::OutOfRange(of),
        _ => Fault::InvalidText(of),
    })
}

/// `boolin`: any beginning of a word that means only one thing.
fn parse_bool(text: &str) -> Result<bool, Fault> {
    let text = trim_blanks(text);
    let begins = |word: &str, min: usize| {
        (min..=word.len()).contains(&text.len()) && word.as_bytes()[..text.len()].eq_ignore_ascii_case(text.as_bytes())
    };
    if begins("true", 1) || begins("yes", 1) || begins("on", 2) || text == "1" {
        Ok(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || text == "0" {
        Ok(false)
    } else {
        Err(Fault::InvalidText(Type::Bool))
    }
}

fn parse_f64(text: &str) -> Result<f64, Fault> {
    let text = float_text(text, Type::Float8)?;
    let value: f64 = text.parse().map_err(|_| Fault::InvalidText(Type::Float8))?;
    check_float_range(text, value.is_infinite(), value == 0.0, Type::Float8)?;
    Ok(value)
}

fn parse_f32(text: &str) -> Result<f32, Fault> {
    let text = float_text(text, Type::Float4)?;
    let value: f32 = text.parse().map_err(|_| Fault::InvalidText(Type::Float4))?;
    check_float_range(text, value.is_infinite(), value == 0.0, Type::Float4)?;
    Ok(value)
}

/// What both PostgreSQL and Rust read, which agree on all of it.
fn float_text(text: &str, of: Type) -> Result<&str, Fault> {
    let text = trim_blanks(text);
    if text.is_empty() { Err(Fault::InvalidText(of)) } else { Ok(text) }
}

/// A number that becomes infinity or zero only by being read is out of range.
fn check_float_range(text: &str, is_infinite: bool, is_zero: bool, of: Type) -> Result<(), Fault> {
    let mantissa = text.split(['e', 'E']).next().unwrap_or(text);
    let overflow = is_infinite && text.bytes().any(|byte| byte.is_ascii_digit());
    let underflow = is_zero && mantissa.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
    if overflow || underflow { Err(Fault::OutOfRange(of)) } else { Ok(()) }
}

/// `uuid_in`: hexadecimal digits, a hyphen after any four of them, braces around it.
pub(super) fn parse_uuid(text: &str) -> Result<[u8; 16], Fault> {
    const INVALID: Fault = Fault::InvalidText(Type::Uuid);
    let inner = match text.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}').ok_or(INVALID)?,
        None => text,
    };
    let mut rest = inner.as_bytes();
    let mut uuid = [0; 16];
    for (index, byte) in uuid.iter_mut().enumerate() {
        let [high, low, after @ ..] = rest else { return Err(INVALID) };
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(INVALID);
        *byte = (digit(*high)? * 16 + digit(*low)?) as u8;
        rest = match after {
            [b'-', after @ ..] if index % 2 == 1 && index < 15 => after,
            _ => after,
        };
    }
    if rest.is_empty() { Ok(uuid) } else { Err(INVALID) }
}
