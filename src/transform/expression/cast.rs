//! Casts between the types, as `pg_cast` has them, and through text where it has none.

use std::borrow::Cow;

use super::datetime::{MICROS_PER_DAY, date_to_timestamp, timestamp_is_finite, timestamp_to_date};
use super::error::Fault;
use super::input::read_text;
use super::interval::Interval;
use super::numeric::Numeric;
use super::types::{Category, Type};
use super::value::{Value, trimmed};

/// What stands in parentheses after the name of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Modifier {
    Length(usize),
    Numeric { precision: i32, scale: i32 },
}

/// Whether `cast` knows the way, if it is asked for by name.
pub(super) fn is_castable(from: Type, to: Type) -> bool {
    use Type::*;
    if from == to || from == Unknown {
        return true;
    }
    match (from.category(), to.category()) {
        (_, Category::String) | (Category::Number, Category::Number) => true,
        (Category::String, _) => matches!(to, Bool | Uuid) || to.category() == Category::Number,
        _ => matches!(
            (from, to),
            (Int4, Bool)
                | (Bool, Int4)
                | (Date, Timestamp | Timestamptz)
                | (Timestamp, Date | Time | Timestamptz)
                | (Timestamptz, Date | Time | Timestamp)
                | (Time, Interval)
                | (Interval, Time)
        ),
    }
}

/// The value as one of another type. It is not NULL.
pub(super) fn cast<'v>(value: Value<'v>, from: Type, to: Type, modifier: Option<Modifier>) -> Result<Value<'v>, Fault> {
    let value = if from == to { value } else { convert(value, from, to)? };
    match (modifier, value) {
        (Some(Modifier::Length(length)), Value::Text(text)) => Ok(Value::Text(fit(text, length, to))),
        (Some(Modifier::Numeric { precision, scale }), Value::Numeric(value)) => {
            value.with_modifier(precision, scale).map(Value::Numeric)
        }
        (_, value) => Ok(value),
    }
}

/// Cut to this number of characters, and padded to it if that is what the type does.
fn fit(text: Cow<'_, str>, length: usize, to: Type) -> Cow<'_, str> {
    let count = text.chars().count();
    if count > length {
        let cut = text.char_indices().nth(length).map_or(text.len(), |(at, _)| at);
        return match text {
            Cow::Borrowed(text) => Cow::Borrowed(&text[..cut]),
            Cow::Owned(mut text) => {
                text.truncate(cut);
                Cow::Owned(text)
            }
        };
    }
    if to != Type::Bpchar || count == length {
        return text;
    }
    let mut padded = text.into_owned();
    padded.extend(std::iter::repeat_n(' ', length - count));
    Cow::Owned(padded)
}

fn convert<'v>(value: Value<'v>, from: Type, to: Type) -> Result<Value<'v>, Fault> {
    if to.is_string() {
        return Ok(Value::Text(to_string(value, from, to)));
    }
    match value {
        Value::Text(text) => read_text(&text, to).map(Value::into_owned),
        Value::Bool(value) => Ok(Value::Int4(value.into())),
        Value::Int4(value) if to == Type::Bool => Ok(Value::Bool(value != 0)),
        Value::Int2(value) => from_integer(value.into(), to),
        Value::Int4(value) => from_integer(value.into(), to),
        Value::Int8(value) => from_integer(value, to),
        Value::Numeric(value) => from_numeric(&value, to),
        Value::Float4(value) => from_float(value.into(), 6, to),
        Value::Float8(value) => from_float(value, 15, to),
        Value::Date(date) => {
            let timestamp = date_to_timestamp(date, to)?;
            Ok(if to == Type::Timestamp { Value::Timestamp(timestamp) } else { Value::Timestamptz(timestamp) })
        }
        Value::Timestamp(timestamp) | Value::Timestamptz(timestamp) => Ok(from_timestamp(timestamp, to)),
        Value::Time(micros) => Ok(Value::Interval(Interval { micros, days: 0, months: 0 })),
        Value::Interval(interval) => match interval.infinite_sign() {
            0 => Ok(Value::Time(interval.micros.rem_euclid(MICROS_PER_DAY))),
            _ => Err(Fault::DatetimeOutOfRange(Type::Interval)),
        },
        Value::Null | Value::Uuid(_) | Value::Jsonb(_) => Ok(Value::Null),
    }
}

/// Strings stay as they are, but that a `bpchar` loses its padding on the way to the other two.
fn to_string<'v>(value: Value<'v>, from: Type, to: Type) -> Cow<'v, str> {
    match value {
        Value::Text(text) if from == Type::Bpchar && to != Type::Bpchar => match text {
            Cow::Borrowed(text) => Cow::Borrowed(trimmed(text)),
            Cow::Owned(text) => Cow::Owned(trimmed(&text).to_owned()),
        },
        Value::Text(text) | Value::Jsonb(text) => text,
        Value::Bool(value) => Cow::Borrowed(if value { "true" } else { "false" }),
        other => {
            let mut text = String::new();
            other.to_text(&mut text);
            Cow::Owned(text)
        }
    }
}

fn from_integer<'v>(value: i64, to: Type) -> Result<Value<'v>, Fault> {
    let out_of_range = |_| Fault::OutOfRange(to);
    Ok(match to {
        Type::Int2 => Value::Int2(value.try_into().map_err(out_of_range)?),
        Type::Int4 => Value::Int4(value.try_into().map_err(out_of_range)?),
        Type::Numeric => Value::Numeric(Numeric::from(value)),
        Type::Float4 => Value::Float4(value as f32),
        Type::Float8 => Value::Float8(value as f64),
        _ => Value::Int8(value),
    })
}

fn from_numeric<'v>(value: &Numeric, to: Type) -> Result<Value<'v>, Fault> {
    // A finite value that only the target makes infinite or zero is out of its range.
    let lost = |is_infinite: bool, is_zero: bool| value.is_finite() && (is_infinite || is_zero && !value.is_zero());
    match to {
        Type::Float8 => {
            let float = value.to_f64();
            let lost = lost(float.is_infinite(), float == 0.0);
            if lost { Err(Fault::OutOfRange(to)) } else { Ok(Value::Float8(float)) }
        }
        Type::Float4 => {
            let float = value.to_f32();
            let lost = lost(float.is_infinite(), float == 0.0);
            if lost { Err(Fault::OutOfRange(to)) } else { Ok(Value::Float4(float)) }
        }
        _ => from_integer(value.to_i64(to)?, to),
    }
}

/// Integers are the nearest ones, halves to the even one.
fn from_float<'v>(value: f64, digits: usize, to: Type) -> Result<Value<'v>, Fault> {
    match to {
        Type::Float8 => Ok(Value::Float8(value)),
        Type::Float4 => {
            let narrow = value as f32;
            let lost = narrow.is_infinite() && value.is_finite() || narrow == 0.0 && value != 0.0;
            if lost { Err(Fault::OutOfRange(to)) } else { Ok(Value::Float4(narrow)) }
        }
        Type::Numeric => Ok(Value::Numeric(Numeric::from_float(value, digits))),
        _ => {
            let rounded = value.round_ties_even();
            // 2^63 itself is not in range, and a double cannot tell it from the largest that is.
            let limit = 9_223_372_036_854_775_808.0;
            if rounded >= -limit && rounded < limit {
                from_integer(rounded as i64, to)
            } else {
                Err(Fault::OutOfRange(to))
            }
        }
    }
}

fn from_timestamp<'v>(timestamp: i64, to: Type) -> Value<'v> {
    match to {
        Type::Date => Value::Date(timestamp_to_date(timestamp)),
        Type::Timestamp => Value::Timestamp(timestamp),
        Type::Timestamptz => Value::Timestamptz(timestamp),
        // Infinity has no time of day.
        _ if !timestamp_is_finite(timestamp) => Value::Null,
        _ => Value::Time(timestamp.rem_euclid(MICROS_PER_DAY)),
    }
}
