//! Which columns take values of another type and keep less of them, without an error.
//!
//! In: two built-in types with their modifiers, as `pg_attribute` and Relation messages have them. Out: what is lost on the way
//! from the one to the other, where a value can be. What the other type refuses is no loss: that is an error by itself.
//!
//! Values travel as the text of the one type, which the input function of the other reads, with the settings of
//! [`SESSION_SETTINGS`](super::SESSION_SETTINGS): so timestamps with time zone come in UTC.
//!
//! Types that are not built in are not known here: the OID of one says nothing on another server.

use std::fmt;

use pgsluice_proto::Oid;

/// A type with its modifier, -1 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnType {
    pub oid: Oid,
    pub modifier: i32,
}

/// One that nobody knows.
impl Default for ColumnType {
    fn default() -> ColumnType {
        ColumnType { oid: Oid(0), modifier: -1 }
    }
}

/// What becomes of a value that is not kept as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Digits behind the last that the type has.
    Rounded,
    /// The time of a day, a date, a time zone, or characters.
    Cut,
    /// Blanks at the end come or go.
    Blanks,
    /// Numbers become others, or moments.
    Wrapped,
}

impl Loss {
    pub fn as_str(self) -> &'static str {
        match self {
            Loss::Rounded => "rounded",
            Loss::Cut => "cut",
            Loss::Blanks => "padded or stripped of blanks",
            Loss::Wrapped => "turned into others",
        }
    }
}

/// Types that lose something, or that others lose something to (`pg_type.dat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Char,
    Name,
    Int2,
    Int4,
    Int8,
    ObjectId,
    Float4,
    Float8,
    Numeric,
    Money,
    Text,
    Varchar,
    Bpchar,
    Date,
    Time,
    TimeTz,
    Timestamp,
    TimestampTz,
    Interval,
}

/// OID, OID of the array of them, name.
const KINDS: [(Kind, u32, u32, &str); 19] = [
    (Kind::Char, 18, 1002, "\"char\""),
    (Kind::Name, 19, 1003, "name"),
    (Kind::Int8, 20, 1016, "bigint"),
    (Kind::Int2, 21, 1005, "smallint"),
    (Kind::Int4, 23, 1007, "integer"),
    (Kind::Text, 25, 1009, "text"),
    (Kind::ObjectId, 26, 1028, "oid"),
    (Kind::Float4, 700, 1021, "real"),
    (Kind::Float8, 701, 1022, "double precision"),
    (Kind::Money, 790, 791, "money"),
    (Kind::Bpchar, 1042, 1014, "character"),
    (Kind::Varchar, 1043, 1015, "character varying"),
    (Kind::Date, 1082, 1182, "date"),
    (Kind::Time, 1083, 1183, "time without time zone"),
    (Kind::Timestamp, 1114, 1115, "timestamp without time zone"),
    (Kind::TimestampTz, 1184, 1185, "timestamp with time zone"),
    (Kind::Interval, 1186, 1187, "interval"),
    (Kind::TimeTz, 1266, 1270, "time with time zone"),
    (Kind::Numeric, 1700, 1231, "numeric"),
];

/// `VARHDRSZ`, which modifiers of lengths and of numeric include.
const HEADER_BYTES: i32 = 4;
/// Digits that `real` and `double precision` keep of any number (`FLT_DIG`, `DBL_DIG`).
const FLOAT4_DIGITS: i32 = 6;
const FLOAT8_DIGITS: i32 = 15;
/// Digits of a second that a timestamp has without a modifier.
const MICROSECONDS: i32 = 6;
/// Bytes of a name, without the one that ends it, and of a character at most.
const NAME_BYTES: i32 = 63;
const CHARACTER_BYTES: i32 = 4;
/// What an interval's modifier holds for "all fields" and "all digits".
const INTERVAL_FULL_RANGE: i32 = 0x7FFF;
const INTERVAL_FULL_PRECISION: i32 = 0xFFFF;

/// What can be lost of a value of `source` in a column of type `target`; `None` where nothing is, or nothing is known.
pub fn loss(source: ColumnType, target: ColumnType) -> Option<Loss> {
    if source == target {
        return None;
    }
    let (to, to_array) = kind(target.oid)?;
    let Some((from, from_array)) = kind(source.oid) else { return from_other(source.oid, to) };
    if from_array != to_array {
        // Text that holds the array's own text keeps it; other arrays and elements are errors.
        return None;
    }
    match to {
        Kind::Char => (from != Kind::Char).then_some(Loss::Cut),
        Kind::Name => is_longer_than_a_name(from, source.modifier).then_some(Loss::Cut),
        Kind::ObjectId => {
            matches!(from, Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Text | Kind::Varchar | Kind::Bpchar)
                .then_some(Loss::Wrapped)
        }
        Kind::Float4 => float(from, source.modifier, FLOAT4_DIGITS),
        Kind::Float8 => float(from, source.modifier, FLOAT8_DIGITS),
        Kind::Numeric => numeric(from, source.modifier, target.modifier),
        Kind::Money => {
            let may_have_digits = matches!(from, Kind::Float4 | Kind::Float8 | Kind::Numeric);
            (may_have_digits || is_text(from) && from != Kind::Char).then_some(Loss::Rounded)
        }
        Kind::Bpchar => matches!(from, Kind::Text | Kind::Varchar | Kind::Name).then_some(Loss::Blanks),
        Kind::Date | Kind::Time | Kind::TimeTz | Kind::Timestamp | Kind::TimestampTz | Kind::Interval => {
            moment((from, source.modifier), (to, target.modifier))
        }
        // What they do not take they refuse.
        Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Text | Kind::Varchar => None,
    }
}

/// Of built-in types that lose nothing among each other: what takes any text takes theirs, and cuts what is too long.
fn from_other(source: Oid, to: Kind) -> Option<Loss> {
    /// `boolean`, whose text is one character; `uuid`, `macaddr`, `macaddr8`, `inet`, `cidr`, `xid`, whose text is short.
    const BOOLEAN: u32 = 16;
    const SHORT: [u32; 6] = [2950, 829, 774, 869, 650, 28];
    let is_built_in = source.0 != 0 && source < Oid::FIRST_UNPINNED;
    let is_cut = match to {
        Kind::Char => source.0 != BOOLEAN,
        Kind::Name => source.0 != BOOLEAN && !SHORT.contains(&source.0),
        Kind::Int2
        | Kind::Int4
        | Kind::Int8
        | Kind::ObjectId
        | Kind::Float4
        | Kind::Float8
        | Kind::Numeric
        | Kind::Money
        | Kind::Text
        | Kind::Varchar
        | Kind::Bpchar
        | Kind::Date
        | Kind::Time
        | Kind::TimeTz
        | Kind::Timestamp
        | Kind::TimestampTz
        | Kind::Interval => false,
    };
    (is_built_in && is_cut).then_some(Loss::Cut)
}

fn kind(oid: Oid) -> Option<(Kind, bool)> {
    KINDS.iter().find_map(|(kind, of, array, _)| match oid.0 {
        oid if oid == *of => Some((*kind, false)),
        oid if oid == *array => Some((*kind, true)),
        _ => None,
    })
}

fn is_text(kind: Kind) -> bool {
    matches!(kind, Kind::Text | Kind::Varchar | Kind::Bpchar | Kind::Name | Kind::Char)
}

fn is_number(kind: Kind) -> bool {
    matches!(kind, Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::ObjectId | Kind::Float4 | Kind::Float8 | Kind::Numeric)
}

/// Characters that a text has at most.
fn text_length(from: Kind, modifier: i32) -> Option<i32> {
    match from {
        Kind::Char => Some(1),
        Kind::Name => Some(NAME_BYTES),
        Kind::Varchar | Kind::Bpchar if modifier >= HEADER_BYTES => Some(modifier - HEADER_BYTES),
        _ => None,
    }
}

/// By the digits that every number of the type keeps.
fn float(from: Kind, modifier: i32, digits: i32) -> Option<Loss> {
    let has = match from {
        Kind::Int2 => Some(5),
        Kind::Int4 | Kind::ObjectId => Some(10),
        Kind::Float4 => Some(FLOAT4_DIGITS),
        Kind::Numeric => precision(modifier),
        Kind::Int8 | Kind::Float8 => None,
        Kind::Text | Kind::Varchar | Kind::Bpchar | Kind::Name | Kind::Char => text_length(from, modifier),
        // They are no numbers.
        Kind::Money | Kind::Date | Kind::Time | Kind::TimeTz | Kind::Timestamp | Kind::TimestampTz | Kind::Interval => {
            return None;
        }
    };
    let same = from == Kind::Float8 && digits == FLOAT8_DIGITS;
    (!same && has.is_none_or(|has| has > digits)).then_some(Loss::Rounded)
}

fn is_longer_than_a_name(from: Kind, modifier: i32) -> bool {
    match from {
        Kind::Text => true,
        Kind::Varchar | Kind::Bpchar => {
            modifier < HEADER_BYTES || (modifier - HEADER_BYTES).saturating_mul(CHARACTER_BYTES) > NAME_BYTES
        }
        Kind::Numeric => precision(modifier).is_none_or(|precision| precision > NAME_BYTES - 3),
        Kind::Char
        | Kind::Name
        | Kind::Int2
        | Kind::Int4
        | Kind::Int8
        | Kind::ObjectId
        | Kind::Float4
        | Kind::Float8
        | Kind::Money
        | Kind::Date
        | Kind::Time
        | Kind::TimeTz
        | Kind::Timestamp
        | Kind::TimestampTz
        | Kind::Interval => false,
    }
}

/// By the digits behind the point that the one may have, and the other keeps.
fn numeric(from: Kind, modifier: i32, to: i32) -> Option<Loss> {
    let kept = scale(to)?;
    let has = match from {
        Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::ObjectId => Some(0),
        Kind::Numeric => scale(modifier),
        Kind::Float4 | Kind::Float8 => None,
        // `.55` has the most digits that three characters can have; four can have an exponent.
        Kind::Text | Kind::Varchar | Kind::Bpchar | Kind::Name | Kind::Char => {
            text_length(from, modifier).filter(|length| *length <= 3).map(|length| length - 1)
        }
        // They are no numbers.
        Kind::Money | Kind::Date | Kind::Time | Kind::TimeTz | Kind::Timestamp | Kind::TimestampTz | Kind::Interval => {
            return None;
        }
    };
    has.is_none_or(|has| has > kept).then_some(Loss::Rounded)
}

/// `None` without a modifier. Zeros that a negative scale brings are no digits.
fn precision(modifier: i32) -> Option<i32> {
    (modifier >= HEADER_BYTES).then(|| (modifier - HEADER_BYTES) >> 16 & 0xFFFF)
}

/// `None` without a modifier. A scale has had 11 bits and a sign since 15, and its values before are the same in those
/// (`numeric_typmod_scale`).
fn scale(modifier: i32) -> Option<i32> {
    const SCALE_BITS: i32 = 0x7FF;
    const SIGN: i32 = 0x400;
    (modifier >= HEADER_BYTES).then(|| (((modifier - HEADER_BYTES) & SCALE_BITS) ^ SIGN) - SIGN)
}

fn moment((from, source): (Kind, i32), (to, target): (Kind, i32)) -> Option<Loss> {
    if is_text(from) {
        return (from != Kind::Char || to == Kind::Interval).then_some(Loss::Cut);
    }
    // A number of eight digits is a date, one of six a time, and any an interval.
    if is_number(from) || from == Kind::Interval && to == Kind::TimeTz {
        return Some(Loss::Wrapped);
    }
    let has_date = |kind| matches!(kind, Kind::Date | Kind::Timestamp | Kind::TimestampTz);
    let has_time =
        |kind| matches!(kind, Kind::Time | Kind::TimeTz | Kind::Timestamp | Kind::TimestampTz | Kind::Interval);
    let is_moment = has_date(from) || has_time(from);
    let loses_part = has_date(from) && !has_date(to) && has_time(to) && has_time(from) && to != Kind::Interval
        || has_time(from) && !has_time(to)
        || from == Kind::TimeTz && to == Kind::Time;
    let rounds = has_time(from) && has_time(to) && digits(from, source) > digits(to, target);
    let drops_fields = to == Kind::Interval
        && (from != Kind::Interval || range(source) != range(target))
        && range(target) != INTERVAL_FULL_RANGE;
    match () {
        () if !is_moment => None,
        () if loses_part || drops_fields => Some(Loss::Cut),
        () if rounds => Some(Loss::Rounded),
        () => None,
    }
}

/// Of a second.
fn digits(kind: Kind, modifier: i32) -> i32 {
    match kind {
        _ if modifier < 0 => MICROSECONDS,
        Kind::Interval if modifier & INTERVAL_FULL_PRECISION == INTERVAL_FULL_PRECISION => MICROSECONDS,
        Kind::Interval => modifier & INTERVAL_FULL_PRECISION,
        _ => modifier,
    }
}

/// The fields that an interval keeps.
fn range(modifier: i32) -> i32 {
    if modifier < 0 { INTERVAL_FULL_RANGE } else { modifier >> 16 & INTERVAL_FULL_RANGE }
}

/// As `format_type` writes it, for the types that are known here.
impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((kind, is_array)) = kind(self.oid) else { return write!(f, "the type with OID {}", self.oid.0) };
        let name = KINDS.iter().find(|(of, ..)| *of == kind).map_or("", |(_, _, _, name)| *name);
        let (first, rest) = name.split_once(' ').unwrap_or((name, ""));
        match kind {
            Kind::Bpchar if self.modifier < 0 => f.write_str("bpchar")?,
            Kind::Varchar | Kind::Bpchar if self.modifier >= HEADER_BYTES => {
                write!(f, "{name}({})", self.modifier - HEADER_BYTES)?;
            }
            Kind::Numeric => match scale(self.modifier) {
                Some(scale) => write!(f, "numeric({},{scale})", precision(self.modifier).unwrap_or(0))?,
                None => f.write_str(name)?,
            },
            Kind::Time | Kind::TimeTz | Kind::Timestamp | Kind::TimestampTz if self.modifier >= 0 => {
                write!(f, "{first}({}) {rest}", self.modifier)?;
            }
            Kind::Interval
                if digits(kind, self.modifier) < MICROSECONDS && range(self.modifier) == INTERVAL_FULL_RANGE =>
            {
                write!(f, "interval({})", digits(kind, self.modifier))?;
            }
            _ => f.write_str(name)?,
        }
        f.write_str(if is_array { "[]" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(oid: u32, modifier: i32) -> ColumnType {
        ColumnType { oid: Oid(oid), modifier }
    }

    fn numeric_of(precision: i32, scale: i32) -> ColumnType {
        of(1700, (precision << 16 | scale & 0x7FF) + HEADER_BYTES)
    }

    #[test]
    fn what_rounds_or_cuts() {
        let (date, timestamp, float4, float8) = (of(1082, -1), of(1114, -1), of(700, -1), of(701, -1));
        for (source, target, expected) in [
            (numeric_of(10, 4), numeric_of(10, 2), Some(Loss::Rounded)),
            (numeric_of(10, 2), numeric_of(10, 4), None),
            // More digits before the point than there is room for are an error.
            (numeric_of(20, 2), numeric_of(4, 2), None),
            (of(1700, -1), numeric_of(10, 2), Some(Loss::Rounded)),
            (numeric_of(10, 2), of(1700, -1), None),
            (of(23, -1), numeric_of(5, -2), Some(Loss::Rounded)),
            (of(23, -1), numeric_of(5, 0), None),
            (float8, float4, Some(Loss::Rounded)),
            (float4, float8, None),
            (float8, float8, None),
            (numeric_of(10, 4), float8, None),
            (numeric_of(16, 4), float8, Some(Loss::Rounded)),
            (of(20, -1), of(23, -1), None),
            (timestamp, date, Some(Loss::Cut)),
            (date, timestamp, None),
            (of(1083, 6), of(1083, 3), Some(Loss::Rounded)),
            (of(1083, 3), of(1083, -1), None),
            (of(1114, -1), of(1114, 6), None),
            (of(25, -1), of(19, -1), Some(Loss::Cut)),
            (of(1043, 4 + 15), of(19, -1), None),
            (of(25, -1), of(1043, 4 + 5), None),
            (of(1231, -1), ColumnType { oid: Oid(1231), ..numeric_of(10, 2) }, Some(Loss::Rounded)),
            (of(16385, -1), of(1082, -1), None),
        ] {
            assert_eq!(loss(source, target), expected, "{source} in {target}");
        }
    }

    #[test]
    fn types_are_written_as_a_statement_takes_them() {
        for (column, expected) in [
            (numeric_of(10, 4), "numeric(10,4)"),
            (numeric_of(5, -2), "numeric(5,-2)"),
            (of(1700, -1), "numeric"),
            (of(1083, 3), "time(3) without time zone"),
            (of(1114, -1), "timestamp without time zone"),
            (of(1043, 24), "character varying(20)"),
            (of(1186, -1), "interval"),
            (of(1186, (0x7FFF << 16) | 2), "interval(2)"),
            (of(1007, -1), "integer[]"),
        ] {
            assert_eq!(column.to_string(), expected);
        }
    }
}
