//! Text to values, as PostgreSQL's input functions read it: cells in text, literals, and casts from text.
//!
//! Numbers are read in decimal notation alone: `0x1f` and `1_000`, which PostgreSQL takes since 16, are errors here.

use std::borrow::Cow;

use pgsluice_proto::pgoutput::Cell;

use super::datetime::{MICROS_PER_DAY, parse_date, parse_time, parse_timestamp};
use super::error::{EvaluationError, Fault};
use super::interval::Interval;
use super::numeric::Numeric;
use super::types::Type;
use super::value::{JSONB_VERSION, Value};

/// The value of a column of this type.
#[inline]
pub(super) fn read(cell: Cell<'_>, of: Type, column: usize) -> Result<Value<'_>, EvaluationError> {
    match cell {
        Cell::Null => Ok(Value::Null),
        Cell::Unchanged => Err(EvaluationError::Unchanged(column)),
        Cell::Text(bytes) => {
            let text = std::str::from_utf8(bytes).map_err(|_| EvaluationError::Cell(column))?;
            read_text(text, of).map_err(|_| EvaluationError::Cell(column))
        }
        Cell::Binary(bytes) => read_binary(bytes, of).ok_or(EvaluationError::Cell(column)),
    }
}

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
        Type::Uuid => Value::Uuid(parse_uuid(text)?),
    })
}

fn read_binary(bytes: &[u8], of: Type) -> Option<Value<'_>> {
    let text = || std::str::from_utf8(bytes).ok().map(Cow::Borrowed);
    let i64_value = || Some(i64::from_be_bytes(bytes.try_into().ok()?));
    Some(match of {
        Type::Bool => Value::Bool(match bytes {
            [0] => false,
            [1] => true,
            _ => return None,
        }),
        Type::Int2 => Value::Int2(i16::from_be_bytes(bytes.try_into().ok()?)),
        Type::Int4 => Value::Int4(i32::from_be_bytes(bytes.try_into().ok()?)),
        Type::Int8 => Value::Int8(i64_value()?),
        Type::Numeric => Value::Numeric(Numeric::from_binary(bytes)?),
        Type::Float4 => Value::Float4(f32::from_be_bytes(bytes.try_into().ok()?)),
        Type::Float8 => Value::Float8(f64::from_be_bytes(bytes.try_into().ok()?)),
        Type::Text | Type::Varchar | Type::Bpchar | Type::Json | Type::Unknown => Value::Text(text()?),
        Type::Jsonb => {
            let (version, text) = bytes.split_first()?;
            let text = std::str::from_utf8(text).ok().filter(|_| *version == JSONB_VERSION)?;
            Value::Jsonb(Cow::Borrowed(text))
        }
        Type::Date => Value::Date(i32::from_be_bytes(bytes.try_into().ok()?)),
        Type::Time => Value::Time(i64_value().filter(|time| (0..=MICROS_PER_DAY).contains(time))?),
        Type::Timestamp => Value::Timestamp(i64_value()?),
        Type::Timestamptz => Value::Timestamptz(i64_value()?),
        Type::Interval => {
            let (micros, rest) = bytes.split_first_chunk::<8>()?;
            let (days, months) = rest.split_first_chunk::<4>()?;
            let months = i32::from_be_bytes(months.try_into().ok()?);
            let (micros, days) = (i64::from_be_bytes(*micros), i32::from_be_bytes(*days));
            Value::Interval(Interval { micros, days, months })
        }
        Type::Uuid => Value::Uuid(bytes.try_into().ok()?),
    })
}

/// Without what `isspace` of C takes for white space.
fn trim_blanks(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r'])
}

/// As `pg_strtoint32` and its like: digits that go beyond the type are noticed before what follows them.
fn parse_integer(text: &str, of: Type) -> Result<i64, Fault> {
    let min = match of {
        Type::Int2 => i16::MIN.into(),
        Type::Int4 => i32::MIN.into(),
        _ => i64::MIN,
    };
    let text = trim_blanks(text);
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits = unsigned.bytes().take_while(u8::is_ascii_digit);
    let mut sum: i128 = 0;
    for digit in digits.clone() {
        if sum > -i128::from(min / 10) {
            return Err(Fault::OutOfRange(of));
        }
        sum = sum * 10 + i128::from(digit - b'0');
    }
    let count = digits.count();
    if count == 0 || count < unsigned.len() {
        return Err(Fault::InvalidText(of));
    }
    let value = if text.starts_with('-') { -sum } else { sum };
    let fits = value >= i128::from(min) && value < -i128::from(min);
    i64::try_from(value).ok().filter(|_| fits).ok_or(Fault::OutOfRange(of))
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
    let (number, is_whole) = float_text(text);
    let value: f64 = number.parse().map_err(|_| Fault::InvalidText(Type::Float8))?;
    check_float(number, is_whole, value.is_infinite(), value == 0.0, Type::Float8)?;
    Ok(value)
}

fn parse_f32(text: &str) -> Result<f32, Fault> {
    let (number, is_whole) = float_text(text);
    let value: f32 = number.parse().map_err(|_| Fault::InvalidText(Type::Float4))?;
    check_float(number, is_whole, value.is_infinite(), value == 0.0, Type::Float4)?;
    Ok(value)
}

/// As much as `strtod` reads of a decimal number, and whether that is all.
fn float_text(text: &str) -> (&str, bool) {
    let text = trim_blanks(text);
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from.min(bytes.len())..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let is_one_of = |at: usize, set: &[u8]| bytes.get(at).is_some_and(|byte| set.contains(byte));
    let sign = usize::from(is_one_of(0, b"+-"));
    let mut end = sign + digits(sign);
    if is_one_of(end, b".") {
        end += 1 + digits(end + 1);
    }
    if !bytes[sign..end].iter().any(u8::is_ascii_digit) {
        // A word such as NaN.
        return (text, true);
    }
    if is_one_of(end, b"eE") {
        let exponent = end + 1 + usize::from(is_one_of(end + 1, b"+-"));
        end = if digits(exponent) > 0 { exponent + digits(exponent) } else { end };
    }
    (&text[..end], end == text.len())
}

/// A number that becomes infinity or zero only by being read is out of range, whatever follows it.
fn check_float(text: &str, is_whole: bool, is_infinite: bool, is_zero: bool, of: Type) -> Result<(), Fault> {
    let mantissa = text.split(['e', 'E']).next().unwrap_or(text);
    let overflow = is_infinite && text.bytes().any(|byte| byte.is_ascii_digit());
    let underflow = is_zero && mantissa.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
    if overflow || underflow {
        return Err(Fault::OutOfRange(of));
    }
    if is_whole { Ok(()) } else { Err(Fault::InvalidText(of)) }
}

/// `uuid_in`: hexadecimal digits, a hyphen after any four of them, braces around it.
fn parse_uuid(text: &str) -> Result<[u8; 16], Fault> {
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
