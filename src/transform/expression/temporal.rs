//! Operators and functions of dates, times, timestamps and intervals.

use super::arithmetic::unexpected;
use super::datetime::{
    DATE_INFINITY, DATE_NEGATIVE_INFINITY, Day, EPOCH_UNIX_DAYS, MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_MINUTE,
    MICROS_PER_SECOND, checked_date, checked_timestamp, date_is_finite, date_to_timestamp, timestamp_is_finite,
};
use super::error::Fault;
use super::evaluate::Arguments;
use super::interval::Interval;
use super::numeric::{Decimal, Numeric};
use super::types::Type;
use super::value::Value;

type Outcome<'v> = Result<Value<'v>, Fault>;

fn shift_date<'v>(date: i32, days: i64) -> Outcome<'v> {
    if !date_is_finite(date) {
        return Ok(Value::Date(date));
    }
    checked_date(i64::from(date) + days).map(Value::Date)
}

pub(super) fn date_plus_days<'v>([left, right, _]: Arguments<'v>) -> Outcome<'v> {
    match (left, right) {
        (Value::Date(date), Value::Int4(days)) | (Value::Int4(days), Value::Date(date)) => {
            shift_date(date, days.into())
        }
        _ => unexpected(),
    }
}

pub(super) fn date_minus_days<'v>([left, right, _]: Arguments<'v>) -> Outcome<'v> {
    match (left, right) {
        (Value::Date(date), Value::Int4(days)) => shift_date(date, -i64::from(days)),
        _ => unexpected(),
    }
}

pub(super) fn date_minus_date<'v>([left, right, _]: Arguments<'v>) -> Outcome<'v> {
    match (left, right) {
        (Value::Date(left), Value::Date(right)) if date_is_finite(left) && date_is_finite(right) => {
            Ok(Value::Int4(left.wrapping_sub(right)))
        }
        (Value::Date(_), Value::Date(_)) => Err(Fault::DatetimeOutOfRange(Type::Date)),
        _ => unexpected(),
    }
}

/// A date and a time of day, in either order.
pub(super) fn date_plus_time<'v>([left, right, _]: Arguments<'v>) -> Outcome<'v> {
    match (left, right) {
        (Value::Date(date), Value::Time(time)) | (Value::Time(time), Value::Date(date)) => {
            let midnight = date_to_timestamp(date, Type::Timestamp)?;
            if !timestamp_is_finite(midnight) {
                return Ok(Value::Timestamp(midnight));
            }
            checked_timestamp(i128::from(midnight) + i128::from(time), Type::Timestamp).map(Value::Timestamp)
        }
        _ => unexpected(),
    }
}

/// A date or timestamp, and an interval; a date is its midnight.
fn shift<'v>(moment: &Value<'v>, interval: Interval) -> Outcome<'v> {
    match moment {
        Value::Date(date) => {
            let midnight = date_to_timestamp(*date, Type::Timestamp)?;
            interval.after(midnight, Type::Timestamp).map(Value::Timestamp)
        }
        Value::Timestamp(timestamp) => interval.after(*timestamp, Type::Timestamp).map(Value::Timestamp),
        Value::Timestamptz(timestamp) => interval.after(*timestamp, Type::Timestamptz).map(Value::Timestamptz),
        // A day has no other days: only the time of the interval counts.
        Value::Time(_) if interval.infinite_sign() != 0 => Err(Fault::DatetimeOutOfRange(Type::Time)),
        Value::Time(time) => {
            // PostgreSQL's sum wraps around too.
            Ok(Value::Time(time.wrapping_add(interval.micros).rem_euclid(MICROS_PER_DAY)))
        }
        _ => unexpected(),
    }
}

pub(super) fn plus_interval<'v>([left, right, _]: Arguments<'v>) -> Outcome<'v> {
    match (left, right) {
        (Value::Interval(left), Value::Interval(right)) => left.add(right).map(Value::Interval),
        (moment, Value::Interval(interval)) | (Value::Interval(interval), moment) => shift(&moment, interval),
        _ => unexpected(),
    }
}

pub(super) fn minus_interval<'v>([left, right, _]: Arguments<'v>) -> Outcome<'v> {
    match (left, right) {
        (Value::Interval(left), Value::Interval(right)) => left.subtract(right).map(Value::Interval),
        (Value::Time(time), Value::Interval(interval)) if interval.infinite_sign() == 0 => {
            Ok(Value::Time(time.wrapping_sub(interval.micros).rem_euclid(MICROS_PER_DAY)))
        }
        (moment, Value::Interval(interval)) => shift(&moment, interval.negate()?),
        _ => unexpected(),
    }
}

pub(super) fn timestamp_minus_timestamp<'v>([left, right, _]: Arguments<'v>) -> Outcome<'v> {
    match (left, right) {
        (Value::Timestamp(left), Value::Timestamp(right)) | (Value::Timestamptz(left), Value::Timestamptz(right)) => {
            Interval::between(left, right).map(Value::Interval)
        }
        _ => unexpected(),
    }
}

pub(super) fn time_minus_time<'v>([left, right, _]: Arguments<'v>) -> Outcome<'v> {
    match (left, right) {
        (Value::Time(left), Value::Time(right)) => {
            Ok(Value::Interval(Interval { micros: left - right, days: 0, months: 0 }))
        }
        _ => unexpected(),
    }
}

pub(super) fn negate_interval<'v>([interval, ..]: Arguments<'v>) -> Outcome<'v> {
    match interval {
        Value::Interval(interval) => interval.negate().map(Value::Interval),
        _ => unexpected(),
    }
}

pub(super) fn multiply_interval<'v>([left, right, _]: Arguments<'v>) -> Outcome<'v> {
    match (left, right) {
        (Value::Interval(interval), Value::Float8(factor)) | (Value::Float8(factor), Value::Interval(interval)) => {
            interval.multiply(factor).map(Value::Interval)
        }
        _ => unexpected(),
    }
}

pub(super) fn divide_interval<'v>([left, right, _]: Arguments<'v>) -> Outcome<'v> {
    match (left, right) {
        (Value::Interval(interval), Value::Float8(divisor)) => interval.divide(divisor).map(Value::Interval),
        _ => unexpected(),
    }
}

/// The parts of a timestamp, date, time or interval.
struct Parts {
    day: Day,
    /// Of the day, or of the interval, which may be negative.
    micros: i64,
}

/// Why a value has no parts.
enum Infinite {
    Positive,
    Negative,
}

fn parts(value: &Value<'_>) -> Result<Parts, Infinite> {
    let none = Day { year: 0, month: 0, day: 0 };
    match value {
        Value::Date(DATE_INFINITY) => Err(Infinite::Positive),
        Value::Date(DATE_NEGATIVE_INFINITY) => Err(Infinite::Negative),
        Value::Date(date) => Ok(Parts { day: Day::from_date(*date), micros: 0 }),
        Value::Timestamp(timestamp) | Value::Timestamptz(timestamp) => match timestamp_is_finite(*timestamp) {
            true => Ok(Parts {
                day: Day::from_date(timestamp.div_euclid(MICROS_PER_DAY) as i32),
                micros: timestamp.rem_euclid(MICROS_PER_DAY),
            }),
            false if *timestamp > 0 => Err(Infinite::Positive),
            false => Err(Infinite::Negative),
        },
        Value::Time(micros) => Ok(Parts { day: none, micros: *micros }),
        Value::Interval(interval) => match interval.infinite_sign() {
            0 => Ok(Parts {
                day: Day { year: interval.months / 12, month: interval.months % 12, day: interval.days },
                micros: interval.micros,
            }),
            1 => Err(Infinite::Positive),
            _ => Err(Infinite::Negative),
        },
        _ => Ok(Parts { day: none, micros: 0 }),
    }
}

/// The units of `extract` for each type, by their canonical names.
pub(super) fn units_of(of: Type) -> &'static [&'static str] {
    match of {
        Type::Date => &["year", "quarter", "month", "day", "dow", "isodow", "doy", "epoch"],
        Type::Time => &["hour", "minute", "second", "milliseconds", "microseconds", "epoch"],
        Type::Interval => {
            &["year", "month", "day", "hour", "minute", "second", "milliseconds", "microseconds", "epoch"]
        }
        _ => &[
            "year",
            "quarter",
            "month",
            "day",
            "hour",
            "minute",
            "second",
            "milliseconds",
            "microseconds",
            "dow",
            "isodow",
            "doy",
            "epoch",
        ],
    }
}

/// `extract`, whose first argument is one of [`units_of`]. Infinity has no parts that come again and again.
pub(super) fn extract<'v>([unit, value, _]: Arguments<'v>) -> Outcome<'v> {
    let Value::Text(unit) = unit else { return unexpected() };
    let parts = match parts(&value) {
        Ok(parts) => parts,
        Err(infinite) => {
            // Hours of an interval only grow, as its years do.
            let grows =
                matches!(&*unit, "year" | "epoch") || matches!((&value, &*unit), (Value::Interval(_), "day" | "hour"));
            return Ok(match (grows, infinite) {
                (false, _) => Value::Null,
                (true, Infinite::Positive) => Value::Numeric(Numeric::Infinity),
                (true, Infinite::Negative) => Value::Numeric(Numeric::NegativeInfinity),
            });
        }
    };
    let Parts { day, micros } = parts;
    let is_interval = matches!(value, Value::Interval(_));
    let within_minute = micros % MICROS_PER_MINUTE;
    let integer = match &*unit {
        "year" if day.year > 0 || is_interval => day.year.into(),
        // There is no year 0 before 1 AD, but 1 BC.
        "year" => i64::from(day.year) - 1,
        "quarter" => i64::from(day.month - 1) / 3 + 1,
        "month" => day.month.into(),
        "day" => day.day.into(),
        "hour" => micros / MICROS_PER_HOUR,
        "minute" => micros / MICROS_PER_MINUTE % 60,
        "second" => return decimal(Decimal::from_microseconds(within_minute.into())),
        "milliseconds" => {
            return decimal(Decimal::from_microseconds(i128::from(within_minute) * 1_000).with_scale(3));
        }
        "microseconds" => within_minute,
        "dow" => (day.to_date() + 6).rem_euclid(7),
        "isodow" => (day.to_date() + 5).rem_euclid(7) + 1,
        "doy" => day.to_date() - Day { month: 1, day: 1, ..day }.to_date() + 1,
        "epoch" => return epoch(&value),
        _ => return unexpected(),
    };
    Ok(Value::Numeric(Numeric::from(integer)))
}

/// `date_part`: the same as a double, whose fractions are sums of doubles.
pub(super) fn date_part<'v>([unit, value, none]: Arguments<'v>) -> Outcome<'v> {
    // Of a date it is that of its midnight.
    let value = match value {
        Value::Date(date) => Value::Timestamp(date_to_timestamp(date, Type::Timestamp)?),
        other => other,
    };
    let fraction = match (&unit, parts(&value)) {
        (Value::Text(unit), Ok(Parts { micros, .. })) => {
            let within_minute = micros % MICROS_PER_MINUTE;
            let seconds = (within_minute / MICROS_PER_SECOND) as f64;
            let rest = (within_minute % MICROS_PER_SECOND) as f64;
            match &**unit {
                "second" => Some(seconds + rest / 1e6),
                "milliseconds" => Some(seconds * 1e3 + rest / 1e3),
                "epoch" => epoch_float(&value),
                _ => None,
            }
        }
        _ => None,
    };
    if let Some(fraction) = fraction {
        return Ok(Value::Float8(fraction));
    }
    match extract([unit, value, none])? {
        Value::Numeric(part) => Ok(Value::Float8(part.to_f64())),
        other => Ok(other),
    }
}

fn epoch_float(value: &Value<'_>) -> Option<f64> {
    const UNIX_MICROS: i64 = EPOCH_UNIX_DAYS * MICROS_PER_DAY;
    match value {
        Value::Timestamp(timestamp) | Value::Timestamptz(timestamp) => Some(match timestamp.checked_add(UNIX_MICROS) {
            Some(micros) => micros as f64 / 1e6,
            None => (*timestamp as f64 + UNIX_MICROS as f64) / 1e6,
        }),
        Value::Time(time) => Some(*time as f64 / 1e6),
        Value::Interval(interval) => {
            let (years, months) = (f64::from(interval.months / 12), f64::from(interval.months % 12));
            let seconds = interval.micros as f64 / 1e6 + 365.25 * 86_400.0 * years;
            Some(seconds + 30.0 * 86_400.0 * months + 86_400.0 * f64::from(interval.days))
        }
        _ => None,
    }
}

fn decimal<'v>(value: Decimal) -> Outcome<'v> {
    Ok(Value::Numeric(Numeric::Finite(value)))
}

/// Seconds since 1970-01-01, or of the interval, whose years have 365.25 days.
fn epoch<'v>(value: &Value<'v>) -> Outcome<'v> {
    match value {
        Value::Date(date) => Ok(Value::Numeric(Numeric::from((i64::from(*date) + EPOCH_UNIX_DAYS) * 86_400))),
        Value::Timestamp(timestamp) | Value::Timestamptz(timestamp) => {
            let micros = i128::from(*timestamp) + i128::from(EPOCH_UNIX_DAYS) * i128::from(MICROS_PER_DAY);
            let seconds = Decimal::from_microseconds(micros);
            // Beyond 64 bits PostgreSQL divides as `numeric` does, to fewer decimals.
            decimal(if i64::try_from(micros).is_ok() { seconds } else { seconds.rounded(4).with_scale(6) })
        }
        Value::Time(time) => decimal(Decimal::from_microseconds((*time).into())),
        Value::Interval(interval) => {
            let (years, months) = (i128::from(interval.months / 12), i128::from(interval.months % 12));
            // In quarters of a day, so that the years are whole.
            let quarters = years * 1_461 + months * 120 + i128::from(interval.days) * 4;
            let micros = quarters * i128::from(MICROS_PER_DAY / 4) + i128::from(interval.micros);
            decimal(Decimal::from_microseconds(micros))
        }
        _ => unexpected(),
    }
}

/// The units that `date_trunc` takes.
pub(super) const TRUNCATION_UNITS: [&str; 10] =
    ["year", "quarter", "month", "week", "day", "hour", "minute", "second", "milliseconds", "microseconds"];

/// `date_trunc`, whose first argument is one of [`TRUNCATION_UNITS`].
pub(super) fn truncate<'v>([unit, value, _]: Arguments<'v>) -> Outcome<'v> {
    let Value::Text(unit) = unit else { return unexpected() };
    let (Ok(parts), Value::Timestamp(timestamp) | Value::Timestamptz(timestamp)) = (parts(&value), &value) else {
        return Ok(value);
    };
    let Day { year, month, .. } = parts.day;
    let day = timestamp.div_euclid(MICROS_PER_DAY);
    let whole = |micros: i64| i128::from(*timestamp) - i128::from(parts.micros % micros);
    let start = match &*unit {
        "year" => Day { year, month: 1, day: 1 }.to_date(),
        "quarter" => Day { year, month: (month - 1) / 3 * 3 + 1, day: 1 }.to_date(),
        "month" => Day { year, month, day: 1 }.to_date(),
        "week" => day - (day + 5).rem_euclid(7),
        _ => day,
    };
    let micros = match &*unit {
        "hour" => whole(MICROS_PER_HOUR),
        "minute" => whole(MICROS_PER_MINUTE),
        "second" => whole(MICROS_PER_SECOND),
        "milliseconds" => whole(1_000),
        "microseconds" => (*timestamp).into(),
        _ => i128::from(start) * i128::from(MICROS_PER_DAY),
    };
    if matches!(value, Value::Timestamp(_)) {
        checked_timestamp(micros, Type::Timestamp).map(Value::Timestamp)
    } else {
        checked_timestamp(micros, Type::Timestamptz).map(Value::Timestamptz)
    }
}
