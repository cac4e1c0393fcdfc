//! The types, a table's columns of them, and values at their edges.

/// What an expression is to be. Strings and numbers of all widths are generated where any of them will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Numeric,
    Float4,
    Float8,
    Text,
    Varchar,
    Bpchar,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Uuid,
    Json,
    Jsonb,
}

use crate::load::Random;

use Kind::*;

pub const KINDS: [Kind; 18] = [
    Bool,
    Int2,
    Int4,
    Int8,
    Numeric,
    Float4,
    Float8,
    Text,
    Varchar,
    Bpchar,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Uuid,
    Json,
    Jsonb,
];

impl Kind {
    pub fn type_name(self) -> &'static str {
        match self {
            Bool => "boolean",
            Int2 => "smallint",
            Int4 => "integer",
            Int8 => "bigint",
            Numeric => "numeric",
            Float4 => "real",
            Float8 => "double precision",
            Text => "text",
            Varchar => "varchar",
            Bpchar => "char(6)",
            Date => "date",
            Time => "time",
            Timestamp => "timestamp",
            Timestamptz => "timestamptz",
            Interval => "interval",
            Uuid => "uuid",
            Json => "json",
            Jsonb => "jsonb",
        }
    }

    /// Two columns of each, so that columns meet.
    pub fn columns(self) -> [&'static str; 2] {
        match self {
            Bool => ["b1", "b2"],
            Int2 => ["s1", "s2"],
            Int4 => ["i1", "i2"],
            Int8 => ["l1", "l2"],
            Numeric => ["n1", "n2"],
            Float4 => ["r1", "r2"],
            Float8 => ["f1", "f2"],
            Text => ["t1", "t2"],
            Varchar => ["v1", "\"V2\""],
            Bpchar => ["c1", "c2"],
            Date => ["d1", "d2"],
            Time => ["h1", "h2"],
            Timestamp => ["ts1", "ts2"],
            Timestamptz => ["tz1", "tz2"],
            Interval => ["iv1", "iv2"],
            Uuid => ["u1", "u2"],
            Json => ["j1", "j2"],
            Jsonb => ["jb1", "jb2"],
        }
    }

    /// What columns hold and literals are: text that the type's input function takes.
    pub fn values(self) -> &'static [&'static str] {
        match self {
            Bool => &["true", "false"],
            Int2 => &["0", "1", "-1", "7", "32767", "-32768", "100", "-3"],
            Int4 => &["0", "1", "-1", "7", "2147483647", "-2147483648", "12", "-3", "46341", "65536"],
            Int8 => &["0", "1", "-7", "9223372036854775807", "-9223372036854775808", "3037000500", "10", "4294967296"],
            Numeric => &[
                "0",
                "1",
                "-1",
                "0.5",
                "-0.5",
                "1.50",
                "2.5",
                "NaN",
                "Infinity",
                "-Infinity",
                "0.0000",
                "99999.99995",
                "1234567890123456789012345678901234567890",
                "-0.0000000000000000000000000000000000000012345",
                "1e-30",
                "12345.6789",
                "9999.9999",
                "10000",
                "1e20",
                "-7.25",
                "32767.5",
                "-2147483648.5",
                "3",
                "9223372036854775807.4",
            ],
            Float4 => &[
                "0",
                "-0",
                "1",
                "-1.5",
                "0.1",
                "NaN",
                "Infinity",
                "-Infinity",
                "3.4028235e38",
                "1.1754944e-38",
                "1e-45",
                "2.5",
                "16777216",
                "1e6",
                "123456",
                "1e-5",
                "0.0001",
                "-32768.5",
            ],
            Float8 => &[
                "0",
                "-0",
                "1",
                "-1.5",
                "0.1",
                "NaN",
                "Infinity",
                "-Infinity",
                "1.7976931348623157e308",
                "5e-324",
                "2.2250738585072014e-308",
                "0.5",
                "2.5",
                "-3.5",
                "1e15",
                "123456789012345.6",
                "1e-5",
                "9007199254740993",
                "9223372036854775807",
                "2147483647.5",
                "1e23",
                "0.30000000000000004",
            ],
            Text | Varchar => &[
                "",
                " ",
                "a",
                "A",
                "abc",
                "ABC ",
                " abc",
                "ab%c",
                "a_c",
                "a\\c",
                "\\",
                "%",
                "äöü",
                "ÄÖÜß",
                "İı",
                "日本語",
                "😀x",
                "ǅ",
                "ΑΣ",
                "12",
                " -7 ",
                "1.5e3",
                "t",
                "yes",
                "1e400",
                "NaN",
                "x'y",
                "aaa",
                "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
                "99999999999999999999",
            ],
            Bpchar => &["", "a", "A", "abc", " a", "ab%", "äö", "12", "abcdef", "日本"],
            Date => &[
                "2000-01-01",
                "1999-12-31",
                "2024-02-29",
                "1970-01-01",
                "infinity",
                "-infinity",
                "0001-01-01",
                "0044-03-15 BC",
                "4714-11-24 BC",
                "5874897-12-31",
                "2023-03-31",
                "1900-02-28",
                "294276-12-31",
                "0001-12-31 BC",
            ],
            Time => &["00:00:00", "24:00:00", "12:34:56.789", "23:59:59.999999", "00:00:00.000001", "04:05:00"],
            Timestamp | Timestamptz => &[
                "2000-01-01 00:00:00",
                "1999-12-31 23:59:59.999999",
                "2024-02-29 12:34:56.5",
                "infinity",
                "-infinity",
                "0001-01-01 00:00:00",
                "0044-03-15 10:00:00 BC",
                "4714-11-24 00:00:00 BC",
                "294276-12-31 23:59:59.999999",
                "1970-01-01 00:00:00.123456",
                "2023-03-31 01:02:03",
                "1900-12-31 00:00:00",
            ],
            Interval => &[
                "00:00:00",
                "1 day",
                "1 mon",
                "-1 mons",
                "1 year 2 mons 3 days 04:05:06.789",
                "-00:00:00.000001",
                "178000000 years",
                "infinity",
                "-infinity",
                "24:00:00",
                "30 days",
                "-1 days +02:03:00",
                "-1 years -2 mons +3 days -04:05:06",
                "999 days",
                "2562047788:00:54.775807",
                "1 mon -1 days",
            ],
            Uuid => &[
                "00000000-0000-0000-0000-000000000000",
                "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
                "ffffffff-ffff-ffff-ffff-ffffffffffff",
            ],
            Json => &[
                r#"{"a": 1, "b": {"c": "x"}, "a": "last"}"#,
                "[1,  2, \"drei\", null, {\"a\": []}]",
                "\"text\"",
                "null",
                "1.50",
                r#"{ "a" : "q\"\u00e4\n\ud83d\ude00\\" , "b":[ ] }"#,
                "{}",
                "[]",
                "true",
                r#"{"\u0061": "esc", "b": " , ]} "}"#,
            ],
            Jsonb => &[
                r#"{"a": 1, "b": {"c": "x"}}"#,
                "[1, 2, \"drei\", null, {\"a\": []}]",
                "\"text\"",
                "null",
                "1.50",
                "[[1], [2, 3]]",
                r#"{"a": "q\"\u00e4\n\ud83d\ude00\\", "b": null}"#,
                "{}",
                "[]",
                "true",
                r#"{"b": " , ]} ", "aa": 1e3}"#,
            ],
        }
    }
}

pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// One of those at the edges, or any other.
pub fn value(kind: Kind, random: &mut Random) -> String {
    if random.below(3) > 0 {
        return random.pick(kind.values()).to_owned();
    }
    let sign = random.pick(&["", "-"]);
    let bits = random.below(1 << 62);
    match kind {
        Int2 => (bits as i16).to_string(),
        Int4 => (bits as i32).to_string(),
        Int8 => format!("{sign}{}", bits >> random.below(60)),
        Numeric => {
            let (whole, fraction) = (digits(random), digits(random));
            if random.below(2) == 0 { format!("{sign}0{whole}") } else { format!("{sign}0{whole}.{fraction}") }
        }
        Float4 => number(f32::from_bits(bits as u32).into()),
        Float8 if random.below(2) == 0 => number(f64::from_bits(bits << 1)),
        Float8 => format!("{sign}{}.{}", bits % 100_000, random.below(1_000_000)),
        Text | Varchar => {
            (0..random.below(9)).map(|_| random.pick(&['a', 'B', 'ä', ' ', '1', '%', '_', '日', 'x'])).collect()
        }
        Date => day(random),
        Timestamp | Timestamptz => format!("{} {}", day(random), clock(random)),
        Time => clock(random),
        Interval => {
            let (months, days) = (random.below(4_000) as i64 - 2_000, random.below(4_000) as i64 - 2_000);
            format!("{months} mons {days} days {sign}{}", clock(random))
        }
        Bool | Bpchar | Uuid | Json | Jsonb => random.pick(kind.values()).to_owned(),
    }
}

fn digits(random: &mut Random) -> String {
    (0..1 + random.below(30)).map(|_| random.pick(&['0', '0', '9', '9', '1', '5', '4', '7'])).collect()
}

fn number(value: f64) -> String {
    if value.is_finite() { format!("{value:e}") } else { "0.25".to_owned() }
}

fn day(random: &mut Random) -> String {
    format!("{:04}-{:02}-{:02}", 1 + random.below(9_999), 1 + random.below(12), 1 + random.below(28))
}

fn clock(random: &mut Random) -> String {
    format!("{:02}:{:02}:{:02}.{:06}", random.below(24), random.below(60), random.below(60), random.below(1_000_000))
}
