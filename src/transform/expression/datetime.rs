//! Days, times and timestamps: their numbers, their text in ISO style and UTC, and their parts (`datetime.c`, `timestamp.c`).
//!
//! A date is a number of days and a timestamp one of microseconds since 2000-01-01; the ends of their integers are
//! ±infinity. Text is read in the form in which PostgreSQL writes it under `DateStyle = ISO`, and in no other.

use std::fmt::Write;

use super::error::Fault;
use super::types::Type;

pub(super) const MICROS_PER_SECOND: i64 = 1_000_000;
pub(super) const MICROS_PER_MINUTE: i64 = 60 * MICROS_PER_SECOND;
pub(super) const MICROS_PER_HOUR: i64 = 60 * MICROS_PER_MINUTE;
pub(super) const MICROS_PER_DAY: i64 = 24 * MICROS_PER_HOUR;
/// 2000-01-01 as a Julian day.
const EPOCH_JULIAN_DAY: i32 = 2_451_545;
/// 2000-01-01 in days since 1970-01-01.
pub(super) const EPOCH_UNIX_DAYS: i64 = 10_957;
/// 4714-11-24 BC, where Julian days begin.
const DATE_MIN: i32 = -EPOCH_JULIAN_DAY;
/// 5874897-12-31.
const DATE_MAX: i32 = 2_145_031_948;
/// 4714-11-24 BC 00:00.
const TIMESTAMP_MIN: i64 = -211_813_488_000_000_000;
/// 294277-01-01 00:00, which is out of range.
const TIMESTAMP_END: i64 = 9_223_371_331_200_000_000;

pub(super) const DATE_NEGATIVE_INFINITY: i32 = i32::MIN;
pub(super) const DATE_INFINITY: i32 = i32::MAX;
pub(super) const TIMESTAMP_NEGATIVE_INFINITY: i64 = i64::MIN;
pub(super) const TIMESTAMP_INFINITY: i64 = i64::MAX;

/// A day of the Gregorian calendar, extended to all times. Year 0 is 1 BC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Day {
    pub year: i32,
    pub month: i32,
    pub day: i32,
}

impl Day {
    /// `j2date`.
    pub fn from_date(date: i32) -> Day {
        let mut julian = (date.wrapping_add(EPOCH_JULIAN_DAY)) as u32;
        julian = julian.wrapping_add(32_044);
        let mut quad = julian / 146_097;
        let extra = (julian - quad * 146_097) * 4 + 3;
        julian = julian.wrapping_add(60 + quad * 3 + extra / 146_097);
        quad = julian / 1_461;
        julian -= quad * 1_461;
        let mut y = (julian * 4 / 1_461) as i32;
        julian = if y != 0 { (julian + 305) % 365 } else { (julian + 306) % 366 } + 123;
        y += (quad * 4) as i32;
        let quad = julian * 2_141 / 65_536;
        Day { year: y - 4_800, month: ((quad + 10) % 12 + 1) as i32, day: (julian - 7_834 * quad / 256) as i32 }
    }

    /// Days since 2000-01-01 (`date2j`); the month is one of twelve.
    pub fn to_date(self) -> i64 {
        let (year, month) = if self.month > 2 { (self.year, self.month + 1) } else { (self.year - 1, self.month + 13) };
        let year = i64::from(year) + 4_800;
        let century = year / 100;
        let julian = year * 365 - 32_167 + year / 4 - century + century / 4 + 7_834 * i64::from(month) / 256;
        julian + i64::from(self.day) - i64::from(EPOCH_JULIAN_DAY)
    }

    pub fn is_valid(self) -> bool {
        (1..=12).contains(&self.month) && (1..=days_in_month(self.year, self.month)).contains(&self.day)
    }

    fn write(self, out: &mut String) {
        let year = if self.year > 0 { self.year } else { 1 - self.year };
        put(out, format_args!("{year:04}-{:02}-{:02}", self.month, self.day));
    }
}

pub(super) fn days_in_month(year: i32, month: i32) -> i32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Text never fails to take more of it.
pub(super) fn put(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    if out.write_fmt(arguments).is_err() {
        debug_assert!(false, "writing to a String does not fail");
    }
}

pub(super) fn date_is_finite(date: i32) -> bool {
    date != DATE_INFINITY && date != DATE_NEGATIVE_INFINITY
}

pub(super) fn timestamp_is_finite(timestamp: i64) -> bool {
    timestamp != TIMESTAMP_INFINITY && timestamp != TIMESTAMP_NEGATIVE_INFINITY
}

pub(super) fn checked_date(date: i64) -> Result<i32, Fault> {
    match i32::try_from(date) {
        Ok(date) if (DATE_MIN..DATE_MAX).contains(&date) || date == DATE_MAX => Ok(date),
        _ => Err(Fault::DatetimeOutOfRange(Type::Date)),
    }
}

pub(super) fn checked_timestamp(micros: i128, of: Type) -> Result<i64, Fault> {
    match i64::try_from(micros) {
        Ok(micros) if (TIMESTAMP_MIN..TIMESTAMP_END).contains(&micros) => Ok(micros),
        _ => Err(Fault::DatetimeOutOfRange(of)),
    }
}

/// Midnight of a date.
pub(super) fn date_to_timestamp(date: i32, to: Type) -> Result<i64, Fault> {
    match date {
        DATE_INFINITY => Ok(TIMESTAMP_INFINITY),
        DATE_NEGATIVE_INFINITY => Ok(TIMESTAMP_NEGATIVE_INFINITY),
        _ => checked_timestamp(i128::from(date) * i128::from(MICROS_PER_DAY), to),
    }
}

/// As [`date_to_timestamp`] for comparisons, where a date beyond all timestamps is beyond them.
pub(super) fn date_as_timestamp(date: i32) -> i128 {
    match date {
        DATE_INFINITY => i128::MAX,
        DATE_NEGATIVE_INFINITY => i128::MIN,
        _ => i128::from(date) * i128::from(MICROS_PER_DAY),
    }
}

pub(super) fn timestamp_as_comparable(timestamp: i64) -> i128 {
    match timestamp {
        TIMESTAMP_INFINITY => i128::MAX,
        TIMESTAMP_NEGATIVE_INFINITY => i128::MIN,
        _ => timestamp.into(),
    }
}

pub(super) fn timestamp_to_date(timestamp: i64) -> i32 {
    match timestamp {
        TIMESTAMP_INFINITY => DATE_INFINITY,
        TIMESTAMP_NEGATIVE_INFINITY => DATE_NEGATIVE_INFINITY,
        _ => timestamp.div_euclid(MICROS_PER_DAY) as i32,
    }
}

pub(super) fn write_date(date: i32, out: &mut String) {
    match date {
        DATE_INFINITY => out.push_str("infinity"),
        DATE_NEGATIVE_INFINITY => out.push_str("-infinity"),
        _ => {
            let day = Day::from_date(date);
            day.write(out);
            out.push_str(if day.year > 0 { "" } else { " BC" });
        }
    }
}

pub(super) fn write_timestamp(timestamp: i64, zone: &str, out: &mut String) {
    match timestamp {
        TIMESTAMP_INFINITY => out.push_str("infinity"),
        TIMESTAMP_NEGATIVE_INFINITY => out.push_str("-infinity"),
        _ => {
            let day = Day::from_date(timestamp.div_euclid(MICROS_PER_DAY) as i32);
            day.write(out);
            out.push(' ');
            write_time(timestamp.rem_euclid(MICROS_PER_DAY), out);
            out.push_str(zone);
            out.push_str(if day.year > 0 { "" } else { " BC" });
        }
    }
}

pub(super) fn write_time(time: i64, out: &mut String) {
    let (hours, minutes) = (time / MICROS_PER_HOUR, time / MICROS_PER_MINUTE % 60);
    put(out, format_args!("{hours:02}:{minutes:02}:{:02}", time / MICROS_PER_SECOND % 60));
    write_fraction(time % MICROS_PER_SECOND, out);
}

/// Microseconds as decimals, without zeros at the end.
pub(super) fn write_fraction(micros: i64, out: &mut String) {
    if micros != 0 {
        put(out, format_args!(".{micros:06}"));
        out.truncate(out.trim_end_matches('0').len());
    }
}

/// `YYYY-MM-DD`, with ` BC` at its end, or ±infinity.
pub(super) fn parse_date(text: &str) -> Result<i32, Fault> {
    match infinity(text) {
        Some(true) => return Ok(DATE_INFINITY),
        Some(false) => return Ok(DATE_NEGATIVE_INFINITY),
        None => {}
    }
    let (text, bc) = without_bc(text);
    checked_date(parse_day(text, bc, Type::Date)?.to_date())
}

/// `YYYY-MM-DD HH:MM[:SS[.ffffff]]` or `YYYY-MM-DD`; with a zone, an offset from UTC may follow.
pub(super) fn parse_timestamp(text: &str, of: Type) -> Result<i64, Fault> {
    match infinity(text) {
        Some(true) => return Ok(TIMESTAMP_INFINITY),
        Some(false) => return Ok(TIMESTAMP_NEGATIVE_INFINITY),
        None => {}
    }
    let (text, bc) = without_bc(text);
    let (date, time) = text.split_once([' ', 'T']).unwrap_or((text, "00:00"));
    let (time, offset) = match (of, time.find(['+', '-', 'Z'])) {
        (Type::Timestamptz, Some(at)) => (&time[..at], parse_offset(&time[at..], of)?),
        _ => (time, 0),
    };
    let day = parse_day(date, bc, of)?;
    let micros = i128::from(day.to_date()) * i128::from(MICROS_PER_DAY) + i128::from(parse_clock(time, of)?);
    checked_timestamp(micros - i128::from(offset), of)
}

pub(super) fn parse_time(text: &str) -> Result<i64, Fault> {
    parse_clock(text, Type::Time)
}

fn infinity(text: &str) -> Option<bool> {
    match text {
        "infinity" => Some(true),
        "-infinity" => Some(false),
        _ => None,
    }
}

fn without_bc(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC").map_or((text, false), |text| (text, true))
}

/// Digits alone, at least `min` and at most `max` of them.
fn number(text: &str, min: usize, max: usize, of: Type) -> Result<i32, Fault> {
    let is_number = (min..=max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().map_err(|_| Fault::InvalidText(of)) } else { Err(Fault::InvalidText(of)) }
}

fn parse_day(text: &str, bc: bool, of: Type) -> Result<Day, Fault> {
    let mut parts = text.split('-');
    let mut next = |min, max| number(parts.next().unwrap_or(""), min, max, of);
    let (year, month, day) = (next(4, 7)?, next(1, 2)?, next(1, 2)?);
    if parts.next().is_some() {
        return Err(Fault::InvalidText(of));
    }
    let day = Day { year: if bc { 1 - year } else { year }, month, day };
    if day.is_valid() && year > 0 { Ok(day) } else { Err(Fault::DatetimeFieldOverflow(of)) }
}

/// `HH:MM[:SS[.ffffff]]`, up to 24:00.
fn parse_clock(text: &str, of: Type) -> Result<i64, Fault> {
    let mut parts = text.split(':');
    let mut next = || parts.next().unwrap_or("");
    let (hours, minutes) = (number(next(), 1, 2, of)?, number(next(), 2, 2, of)?);
    let (seconds, fraction) = match parts.next() {
        None => (0, 0),
        Some(text) => {
            let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
            (number(seconds, 2, 2, of)?, number(fraction, 1, 6, of)? * 10_i32.pow(6 - fraction.len() as u32))
        }
    };
    let minutes_of_day = i64::from(hours) * 60 + i64::from(minutes);
    let micros = minutes_of_day * MICROS_PER_MINUTE + i64::from(seconds) * MICROS_PER_SECOND + i64::from(fraction);
    let valid = parts.next().is_none() && minutes < 60 && seconds <= 60 && micros <= MICROS_PER_DAY;
    if valid { Ok(micros) } else { Err(Fault::DatetimeFieldOverflow(of)) }
}

/// `Z`, or `±HH[:MM[:SS]]` east of UTC, in microseconds.
fn parse_offset(text: &str, of: Type) -> Result<i64, Fault> {
    if text == "Z" {
        return Ok(0);
    }
    let mut seconds = 0;
    let mut parts = text[1..].split(':');
    for unit in [3_600, 60, 1] {
        let Some(part) = parts.next() else { break };
        seconds += i64::from(number(part, 2, 2, of)?) * unit;
    }
    if parts.next().is_some() || seconds >= 16 * 3_600 {
        return Err(Fault::InvalidText(of));
    }
    Ok(if text.starts_with('-') { -seconds } else { seconds } * MICROS_PER_SECOND)
}
