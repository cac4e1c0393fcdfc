//! Values: out of the cells of a row, and back into the text and bytes that PostgreSQL would send of them.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::datetime::{date_as_timestamp, timestamp_as_comparable, write_date, write_time, write_timestamp};
use super::interval::Interval;
use super::numeric::Numeric;
use super::output::{write_f32, write_f64, write_uuid};

/// A value, or NULL. Text borrows from the cell or from the expression where nothing had to be made of it.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int2(i16),
    Int4(i32),
    Int8(i64),
    Numeric(Numeric),
    Float4(f32),
    Float8(f64),
    /// `text`, `varchar`, `bpchar` with its blanks, and `json` as it was written.
    Text(Cow<'a, str>),
    /// Days since 2000-01-01; the ends are ±infinity.
    Date(i32),
    /// Microseconds since midnight.
    Time(i64),
    /// Microseconds since 2000-01-01; the ends are ±infinity.
    Timestamp(i64),
    /// The same, in UTC.
    Timestamptz(i64),
    Interval(Interval),
    Uuid([u8; 16]),
    /// As `jsonb_out` writes it.
    Jsonb(Cow<'a, str>),
}

/// The version that `jsonb_send` puts in front of the text.
pub(super) const JSONB_VERSION: u8 = 1;

impl<'a> Value<'a> {
    /// Whether it is NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// Appends what the type's output function writes under ISO dates, UTC, the `postgres` interval style and
    /// `extra_float_digits = 3`. False for NULL, which has no text.
    pub fn to_text(&self, out: &mut String) -> bool {
        match self {
            Value::Null => return false,
            Value::Bool(value) => out.push(if *value { 't' } else { 'f' }),
            Value::Int2(value) => super::datetime::put(out, format_args!("{value}")),
            Value::Int4(value) => super::datetime::put(out, format_args!("{value}")),
            Value::Int8(value) => super::datetime::put(out, format_args!("{value}")),
            Value::Numeric(value) => value.write_text(out),
            Value::Float4(value) => write_f32(*value, out),
            Value::Float8(value) => write_f64(*value, out),
            Value::Text(text) | Value::Jsonb(text) => out.push_str(text),
            Value::Date(date) => write_date(*date, out),
            Value::Time(time) => write_time(*time, out),
            Value::Timestamp(timestamp) => write_timestamp(*timestamp, "", out),
            Value::Timestamptz(timestamp) => write_timestamp(*timestamp, "+00", out),
            Value::Interval(interval) => interval.write(out),
            Value::Uuid(bytes) => write_uuid(bytes, out),
        }
        true
    }

    /// Appends what the type's send function sends. False for NULL, which has no bytes.
    pub fn to_binary(&self, out: &mut Vec<u8>) -> bool {
        match self {
            Value::Null => return false,
            Value::Bool(value) => out.push(u8::from(*value)),
            Value::Int2(value) => out.extend(value.to_be_bytes()),
            Value::Int4(value) | Value::Date(value) => out.extend(value.to_be_bytes()),
            Value::Int8(value) | Value::Time(value) | Value::Timestamp(value) | Value::Timestamptz(value) => {
                out.extend(value.to_be_bytes());
            }
            Value::Numeric(value) => value.write_binary(out),
            Value::Float4(value) => out.extend(value.to_be_bytes()),
            Value::Float8(value) => out.extend(value.to_be_bytes()),
            Value::Text(text) => out.extend(text.as_bytes()),
            Value::Jsonb(text) => {
                out.push(JSONB_VERSION);
                out.extend(text.as_bytes());
            }
            Value::Interval(interval) => {
                out.extend(interval.micros.to_be_bytes());
                out.extend(interval.days.to_be_bytes());
                out.extend(interval.months.to_be_bytes());
            }
            Value::Uuid(bytes) => out.extend(bytes),
        }
        true
    }

    /// The same, free of what it borrows from.
    pub(super) fn into_owned(self) -> Value<'static> {
        match self {
            Value::Text(text) => Value::Text(Cow::Owned(text.into_owned())),
            Value::Jsonb(text) => Value::Jsonb(Cow::Owned(text.into_owned())),
            Value::Null => Value::Null,
            Value::Bool(value) => Value::Bool(value),
            Value::Int2(value) => Value::Int2(value),
            Value::Int4(value) => Value::Int4(value),
            Value::Int8(value) => Value::Int8(value),
            Value::Numeric(value) => Value::Numeric(value),
            Value::Float4(value) => Value::Float4(value),
            Value::Float8(value) => Value::Float8(value),
            Value::Date(value) => Value::Date(value),
            Value::Time(value) => Value::Time(value),
            Value::Timestamp(value) => Value::Timestamp(value),
            Value::Timestamptz(value) => Value::Timestamptz(value),
            Value::Interval(value) => Value::Interval(value),
            Value::Uuid(value) => Value::Uuid(value),
        }
    }
}

/// The order of two values that an operator compares, or `None` where the operator has none for them.
#[inline]
pub(super) fn compare(left: &Value<'_>, right: &Value<'_>) -> Option<Ordering> {
    use Value::*;
    Some(match (left, right) {
        (Int4(left), Int4(right)) => left.cmp(right),
        (Text(left), Text(right)) => left.as_bytes().cmp(right.as_bytes()),
        (Bool(left), Bool(right)) => left.cmp(right),
        (Uuid(left), Uuid(right)) => left.cmp(right),
        (Date(left), Date(right)) => left.cmp(right),
        (Time(left), Time(right)) => left.cmp(right),
        // Both are UTC.
        (Timestamp(left) | Timestamptz(left), Timestamp(right) | Timestamptz(right)) => left.cmp(right),
        (Date(left), Timestamp(right) | Timestamptz(right)) => {
            date_as_timestamp(*left).cmp(&timestamp_as_comparable(*right))
        }
        (Timestamp(left) | Timestamptz(left), Date(right)) => {
            timestamp_as_comparable(*left).cmp(&date_as_timestamp(*right))
        }
        (Interval(left), Interval(right)) => left.compare(right),
        (Numeric(left), Numeric(right)) => left.compare(right),
        _ => match (integer(left), integer(right)) {
            (Some(left), Some(right)) => left.cmp(&right),
            _ => compare_floats(float(left)?, float(right)?),
        },
    })
}

/// As [`compare`], of `bpchar`, whose trailing blanks mean nothing.
pub(super) fn compare_bpchar(left: &Value<'_>, right: &Value<'_>) -> Option<Ordering> {
    match (left, right) {
        (Value::Text(left), Value::Text(right)) => Some(trimmed(left).as_bytes().cmp(trimmed(right).as_bytes())),
        _ => None,
    }
}

/// Without the blanks that pad a `bpchar`.
pub(super) fn trimmed(text: &str) -> &str {
    text.trim_end_matches(' ')
}

fn integer(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Int2(value) => Some((*value).into()),
        Value::Int4(value) => Some((*value).into()),
        Value::Int8(value) => Some(*value),
        _ => None,
    }
}

fn float(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Float4(value) => Some((*value).into()),
        Value::Float8(value) => Some(*value),
        _ => None,
    }
}

/// NaN equals itself and is the largest.
fn compare_floats(left: f64, right: f64) -> Ordering {
    left.partial_cmp(&right).unwrap_or_else(|| left.is_nan().cmp(&right.is_nan()))
}
