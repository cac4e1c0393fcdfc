//! `interval`: months, days and microseconds, of which none is made of another but by name (`timestamp.c`).

use std::cmp::Ordering;

use super::datetime::{
    Day, MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_MINUTE, MICROS_PER_SECOND, TIMESTAMP_INFINITY,
    TIMESTAMP_NEGATIVE_INFINITY, checked_date, checked_timestamp, days_in_month, put, timestamp_is_finite,
    write_fraction,
};
use super::error::Fault;
use super::types::Type;

const DAYS_PER_MONTH: i64 = 30;

/// A value of type `interval`.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    pub(super) micros: i64,
    pub(super) days: i32,
    pub(super) months: i32,
}

const OVERFLOW: Fault = Fault::DatetimeOutOfRange(Type::Interval);

impl Interval {
    pub(super) const INFINITY: Interval = Interval { micros: i64::MAX, days: i32::MAX, months: i32::MAX };
    pub(super) const NEGATIVE_INFINITY: Interval = Interval { micros: i64::MIN, days: i32::MIN, months: i32::MIN };

    /// The order of B-tree indexes: a month counts as 30 days, and a day as 24 hours.
    pub fn compare(&self, other: &Interval) -> Ordering {
        self.in_micros().cmp(&other.in_micros())
    }

    pub(super) fn in_micros(&self) -> i128 {
        let days = i128::from(self.months) * i128::from(DAYS_PER_MONTH) + i128::from(self.days);
        days * i128::from(MICROS_PER_DAY) + i128::from(self.micros)
    }

    /// -1 and 1 for ±infinity, 0 for all others. Infinity is part of the type since PostgreSQL 17.
    pub(super) fn infinite_sign(&self) -> i32 {
        match (self.micros, self.days, self.months) {
            (i64::MAX, i32::MAX, i32::MAX) => 1,
            (i64::MIN, i32::MIN, i32::MIN) => -1,
            _ => 0,
        }
    }

    fn checked(self) -> Result<Interval, Fault> {
        if self.infinite_sign() == 0 { Ok(self) } else { Err(OVERFLOW) }
    }

    pub(super) fn negate(self) -> Result<Interval, Fault> {
        match self.infinite_sign() {
            1 => return Ok(Interval::NEGATIVE_INFINITY),
            -1 => return Ok(Interval::INFINITY),
            _ => {}
        }
        let negated = (self.micros.checked_neg(), self.days.checked_neg(), self.months.checked_neg());
        let (Some(micros), Some(days), Some(months)) = negated else { return Err(OVERFLOW) };
        Interval { micros, days, months }.checked()
    }

    pub(super) fn add(self, other: Interval) -> Result<Interval, Fault> {
        match (self.infinite_sign(), other.infinite_sign()) {
            (0, 0) => {}
            (left, right) if left * right == -1 => return Err(OVERFLOW),
            (0, _) => return Ok(other),
            _ => return Ok(self),
        }
        let sums = (
            self.micros.checked_add(other.micros),
            self.days.checked_add(other.days),
            self.months.checked_add(other.months),
        );
        let (Some(micros), Some(days), Some(months)) = sums else { return Err(OVERFLOW) };
        Interval { micros, days, months }.checked()
    }

    pub(super) fn subtract(self, other: Interval) -> Result<Interval, Fault> {
        if other.infinite_sign() != 0 {
            return self.add(other.negate()?);
        }
        if self.infinite_sign() != 0 {
            return Ok(self);
        }
        let differences = (
            self.micros.checked_sub(other.micros),
            self.days.checked_sub(other.days),
            self.months.checked_sub(other.months),
        );
        let (Some(micros), Some(days), Some(months)) = differences else { return Err(OVERFLOW) };
        Interval { micros, days, months }.checked()
    }

    /// `interval_mul`.
    pub(super) fn multiply(self, factor: f64) -> Result<Interval, Fault> {
        if factor.is_nan() {
            return Err(OVERFLOW);
        }
        if self.infinite_sign() != 0 {
            return match factor {
                0.0 => Err(OVERFLOW),
                _ if factor < 0.0 => self.negate(),
                _ => Ok(self),
            };
        }
        if factor.is_infinite() {
            return match self.in_micros().cmp(&0) {
                Ordering::Equal => Err(OVERFLOW),
                Ordering::Less if factor < 0.0 => Ok(Interval::INFINITY),
                Ordering::Greater if factor > 0.0 => Ok(Interval::INFINITY),
                _ => Ok(Interval::NEGATIVE_INFINITY),
            };
        }
        self.scaled(|part| part * factor)
    }

    /// `interval_div`.
    pub(super) fn divide(self, divisor: f64) -> Result<Interval, Fault> {
        if divisor.is_nan() {
            return Err(OVERFLOW);
        }
        if divisor == 0.0 {
            return Err(Fault::DivisionByZero);
        }
        if self.infinite_sign() != 0 {
            return match divisor {
                _ if divisor.is_infinite() => Err(OVERFLOW),
                _ if divisor < 0.0 => self.negate(),
                _ => Ok(self),
            };
        }
        self.scaled(|part| part / divisor)
    }

    /// What is left of a month becomes days of thirty to a month, and what is left of a day becomes time.
    fn scaled(self, scale: impl Fn(f64) -> f64) -> Result<Interval, Fault> {
        const SECONDS_PER_DAY: f64 = 86_400.0;
        let to_i32 = |value: f64| {
            let fits = value >= f64::from(i32::MIN) && value < -f64::from(i32::MIN);
            if fits { Ok(value as i32) } else { Err(OVERFLOW) }
        };
        // `TSROUND`: what is beyond microseconds is the inexactness of doubles.
        let rounded = |value: f64| (value * 1e6).round_ties_even() / 1e6;
        let (scaled_months, scaled_days) = (scale(self.months.into()), scale(self.days.into()));
        let (months, mut days) = (to_i32(scaled_months)?, to_i32(scaled_days)?);
        let days_of_month = rounded((scaled_months - f64::from(months)) * DAYS_PER_MONTH as f64);
        let rest_of_days = scaled_days - f64::from(days) + days_of_month - days_of_month.trunc();
        let mut seconds = rounded(rest_of_days * SECONDS_PER_DAY);
        if seconds.abs() >= SECONDS_PER_DAY {
            let whole = (seconds / SECONDS_PER_DAY).trunc();
            days = days.checked_add(to_i32(whole)?).ok_or(OVERFLOW)?;
            seconds -= whole * SECONDS_PER_DAY;
        }
        days = days.checked_add(to_i32(days_of_month)?).ok_or(OVERFLOW)?;
        let micros = (scale(self.micros as f64) + seconds * MICROS_PER_SECOND as f64).round_ties_even();
        // 2^63 itself is not in range.
        if !(micros >= i64::MIN as f64 && micros < -(i64::MIN as f64)) {
            return Err(OVERFLOW);
        }
        Interval { micros: micros as i64, days, months }.checked()
    }

    /// `timestamp_mi`: microseconds as whole days and the rest of a day.
    pub(super) fn between(later: i64, earlier: i64) -> Result<Interval, Fault> {
        if !timestamp_is_finite(later) || !timestamp_is_finite(earlier) {
            return match (later, earlier) {
                _ if later == earlier => Err(OVERFLOW),
                (TIMESTAMP_INFINITY, _) | (_, TIMESTAMP_NEGATIVE_INFINITY) => Ok(Interval::INFINITY),
                _ => Ok(Interval::NEGATIVE_INFINITY),
            };
        }
        let micros = later.checked_sub(earlier).ok_or(OVERFLOW)?;
        Ok(Interval { micros: micros % MICROS_PER_DAY, days: (micros / MICROS_PER_DAY) as i32, months: 0 })
    }

    /// `timestamp_pl_interval`: months first, to the last day of a month that is too short, then days, then time.
    pub(super) fn after(self, timestamp: i64, of: Type) -> Result<i64, Fault> {
        let overflow = Fault::DatetimeOutOfRange(of);
        match (self.infinite_sign(), timestamp) {
            (-1, TIMESTAMP_INFINITY) | (1, TIMESTAMP_NEGATIVE_INFINITY) => return Err(overflow),
            (1, _) => return Ok(TIMESTAMP_INFINITY),
            (-1, _) => return Ok(TIMESTAMP_NEGATIVE_INFINITY),
            (_, TIMESTAMP_INFINITY | TIMESTAMP_NEGATIVE_INFINITY) => return Ok(timestamp),
            _ => {}
        }
        let mut date = timestamp.div_euclid(MICROS_PER_DAY);
        let time = timestamp.rem_euclid(MICROS_PER_DAY);
        if self.months != 0 {
            let day = Day::from_date(date as i32);
            let months = i64::from(day.year) * 12 + i64::from(day.month - 1) + i64::from(self.months);
            let year = i32::try_from(months.div_euclid(12)).map_err(|_| overflow)?;
            let month = months.rem_euclid(12) as i32 + 1;
            if !(-4_713..=5_874_898).contains(&year) {
                return Err(overflow);
            }
            date = Day { year, month, day: day.day.min(days_in_month(year, month)) }.to_date();
            checked_date(date).map_err(|_| overflow)?;
            checked_timestamp(i128::from(date) * i128::from(MICROS_PER_DAY) + i128::from(time), of)?;
        }
        date += i64::from(self.days);
        let micros = i128::from(date) * i128::from(MICROS_PER_DAY) + i128::from(time);
        if self.days != 0 {
            checked_timestamp(micros, of)?;
        }
        checked_timestamp(micros + i128::from(self.micros), of)
    }

    /// The postgres style: `1 year 2 mons -3 days +04:05:06.7`.
    pub(super) fn write(&self, out: &mut String) {
        match self.infinite_sign() {
            1 => return out.push_str("infinity"),
            -1 => return out.push_str("-infinity"),
            _ => {}
        }
        let parts = [(self.months / 12, "year"), (self.months % 12, "mon"), (self.days, "day")];
        let (mut is_first, mut is_before) = (true, false);
        for (count, unit) in parts.into_iter().filter(|(count, _)| *count != 0) {
            let space = if is_first { "" } else { " " };
            let plus = if is_before && count > 0 { "+" } else { "" };
            let plural = if count == 1 { "" } else { "s" };
            put(out, format_args!("{space}{plus}{count} {unit}{plural}"));
            (is_first, is_before) = (false, count < 0);
        }
        if is_first || self.micros != 0 {
            let sign = match (self.micros < 0, is_before) {
                (true, _) => "-",
                (false, true) => "+",
                (false, false) => "",
            };
            out.push_str(if is_first { "" } else { " " });
            out.push_str(sign);
            write_clock(self.micros.unsigned_abs(), out);
        }
    }

    /// What [`Self::write`] writes, with the long names of the units too.
    pub(super) fn parse(text: &str) -> Result<Interval, Fault> {
        const INVALID: Fault = Fault::InvalidText(Type::Interval);
        match text {
            "infinity" => return Ok(Interval::INFINITY),
            "-infinity" => return Ok(Interval::NEGATIVE_INFINITY),
            _ => {}
        }
        let mut words = text.split_ascii_whitespace().peekable();
        let (mut months, mut days, mut micros) = (0_i64, 0_i64, 0_i64);
        let mut is_empty = true;
        while let Some(word) = words.next() {
            is_empty = false;
            if word.contains(':') {
                if words.peek().is_some() {
                    return Err(INVALID);
                }
                micros = micros.checked_add(parse_clock(word)?).ok_or(OVERFLOW)?;
                continue;
            }
            let count: i64 = word.parse().map_err(|_| INVALID)?;
            let (field, factor) = match words.next().ok_or(INVALID)? {
                "year" | "years" => (&mut months, 12),
                "mon" | "mons" | "month" | "months" => (&mut months, 1),
                "week" | "weeks" => (&mut days, 7),
                "day" | "days" => (&mut days, 1),
                "hour" | "hours" => (&mut micros, MICROS_PER_HOUR),
                "min" | "mins" | "minute" | "minutes" => (&mut micros, MICROS_PER_MINUTE),
                "sec" | "secs" | "second" | "seconds" => (&mut micros, MICROS_PER_SECOND),
                _ => return Err(INVALID),
            };
            *field = count.checked_mul(factor).and_then(|count| field.checked_add(count)).ok_or(OVERFLOW)?;
        }
        let (Ok(months), Ok(days)) = (i32::try_from(months), i32::try_from(days)) else { return Err(OVERFLOW) };
        if is_empty { Err(INVALID) } else { Interval { micros, days, months }.checked() }
    }
}

fn write_clock(micros: u64, out: &mut String) {
    let seconds = micros / MICROS_PER_SECOND as u64;
    put(out, format_args!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60));
    write_fraction((micros % MICROS_PER_SECOND as u64) as i64, out);
}

/// `[±]H…:MM[:SS[.ffffff]]`.
fn parse_clock(text: &str) -> Result<i64, Fault> {
    const INVALID: Fault = Fault::InvalidText(Type::Interval);
    let (negative, text) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let mut parts = text.split(':');
    let (hours, minutes, seconds) =
        (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or("00"));
    let (seconds, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let number = |text: &str, max: usize| -> Result<i128, Fault> {
        let is_number = (1..=max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { text.parse().map_err(|_| INVALID) } else { Err(INVALID) }
    };
    let fraction = number(fraction, 6)? * 10_i128.pow(6 - fraction.len() as u32);
    let (hours, minutes, seconds) = (number(hours, 10)?, number(minutes, 2)?, number(seconds, 2)?);
    if parts.next().is_some() || minutes > 59 || seconds > 59 {
        return Err(INVALID);
    }
    let micros = ((hours * 60 + minutes) * 60 + seconds) * i128::from(MICROS_PER_SECOND) + fraction;
    i64::try_from(if negative { -micros } else { micros }).map_err(|_| OVERFLOW)
}
