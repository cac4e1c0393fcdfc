//! Random expressions that are well-typed in PostgreSQL, over the columns of the table.

use crate::load::Random;

use super::kinds::Kind::{self, *};
use super::kinds::{KINDS, quoted, value};

const NUMBERS: [Kind; 6] = [Int2, Int4, Int8, Numeric, Float4, Float8];
const INTEGERS: [Kind; 3] = [Int2, Int4, Int8];
const STRINGS: [Kind; 3] = [Text, Varchar, Bpchar];
const MOMENTS: [Kind; 3] = [Date, Timestamp, Timestamptz];

/// The same without one pair of parentheses in a few, so that precedence decides what it means, or that it means nothing.
pub fn loosened(text: &str, random: &mut Random) -> String {
    let bytes = text.as_bytes();
    let mut removed = Vec::new();
    let mut open = Vec::new();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'(' => {
                let is_call = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || text[..at].ends_with("IN "));
                open.push((at, !is_call && random.below(3) == 0));
            }
            b')' => {
                if let Some((start, true)) = open.pop() {
                    removed.extend([start, at]);
                }
            }
            _ => {}
        }
    }
    text.char_indices().filter(|(at, _)| !removed.contains(at)).map(|(_, character)| character).collect()
}

#[derive(Debug)]
pub struct Generator<'r> {
    pub random: &'r mut Random,
}

impl Generator<'_> {
    /// Of any type.
    pub fn any(&mut self, depth: u32) -> String {
        // Filters are what there is most of.
        let kind = if self.random.below(3) == 0 { Bool } else { self.random.pick(&KINDS) };
        self.of(kind, depth)
    }

    fn column(&mut self, kind: Kind) -> String {
        self.random.pick(&kind.columns()).to_owned()
    }

    /// A literal that has its type by itself.
    fn literal(&mut self, kind: Kind) -> String {
        let value = value(kind, self.random);
        match kind {
            Bool => value,
            Int4 | Numeric if value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => value,
            Text => format!("{}::text", quoted(&value)),
            Date => format!("DATE {}", quoted(&value)),
            Interval => format!("INTERVAL {}", quoted(&value)),
            Timestamp => format!("TIMESTAMP {}", quoted(&value)),
            Bpchar => format!("{}::bpchar", quoted(&value)),
            _ => format!("CAST({} AS {})", quoted(&value), kind.type_name()),
        }
    }

    fn leaf(&mut self, kind: Kind) -> String {
        match kind {
            Json | Jsonb => self.column(kind),
            _ if self.random.below(4) > 0 => self.column(kind),
            _ => self.literal(kind),
        }
    }

    /// Beside something of a known type, where a quoted literal takes it.
    fn beside(&mut self, kind: Kind, depth: u32) -> String {
        match self.random.below(4) {
            0 if !matches!(kind, Json | Jsonb) => quoted(&value(kind, self.random)),
            1 if self.random.below(4) == 0 => "NULL".to_owned(),
            _ => self.of(kind, depth),
        }
    }

    pub fn of(&mut self, kind: Kind, depth: u32) -> String {
        if depth == 0 || self.random.below(6) == 0 {
            return self.leaf(kind);
        }
        if self.random.below(4) == 0 {
            return self.common_form(kind, depth - 1);
        }
        let depth = depth - 1;
        match kind {
            Bool => self.condition(depth),
            Int2 | Int4 | Int8 | Numeric | Float4 | Float8 => self.number(kind, depth),
            Text => self.text(depth),
            Varchar => format!("({})::varchar{}", self.castable_to_text(depth), self.length()),
            Bpchar => format!(
                "({})::{}",
                self.castable_to_text(depth),
                if self.random.below(2) == 0 { "bpchar" } else { "char(4)" }
            ),
            Date | Time | Timestamp | Timestamptz | Interval => self.moment(kind, depth),
            Uuid => format!("({})::uuid", self.of(Text, depth)),
            Json | Jsonb => self.part(kind, "->", depth),
        }
    }

    fn part(&mut self, kind: Kind, operator: &str, depth: u32) -> String {
        let key = self.random.pick(&["'a'", "'b'", "'c'", "0", "1", "-1", "2", "-9", "t1", "i1"]);
        format!("({} {operator} {key})", self.of(kind, depth))
    }

    fn length(&mut self) -> &'static str {
        self.random.pick(&["", "(3)", "(1)"])
    }

    fn castable_to_text(&mut self, depth: u32) -> String {
        let kind = self.random.pick(&KINDS);
        self.of(kind, depth)
    }

    /// CASE, COALESCE and the others that exist for every type.
    fn common_form(&mut self, kind: Kind, depth: u32) -> String {
        let (first, second) = (self.of(kind, depth), self.beside(kind, depth));
        let has_order = !matches!(kind, Text | Varchar | Bpchar | Json | Jsonb);
        let has_equality = !matches!(kind, Json | Jsonb);
        match self.random.below(7) {
            0 => format!("CASE WHEN {} THEN {first} ELSE {second} END", self.of(Bool, depth)),
            1 => format!(
                "CASE WHEN {} THEN {second} WHEN {} THEN {first} END",
                self.of(Bool, depth),
                self.of(Bool, depth)
            ),
            2 => {
                let compared = self.random.pick(&[Int4, Text, Date, Numeric, Bool, Uuid]);
                let (operand, value) = (self.of(compared, depth), self.beside(compared, depth));
                format!("CASE {operand} WHEN {value} THEN {first} ELSE {second} END")
            }
            3 if has_equality => format!("nullif({first}, {second})"),
            4 if has_order => {
                let name = self.random.pick(&["greatest", "least"]);
                format!("{name}({first}, {second}, {})", self.of(kind, depth))
            }
            _ => format!("coalesce({first}, {second})"),
        }
    }

    fn condition(&mut self, depth: u32) -> String {
        match self.random.below(13) {
            0 => format!("({} AND {})", self.of(Bool, depth), self.of(Bool, depth)),
            1 => format!("({} OR {} OR {})", self.of(Bool, depth), self.of(Bool, depth), self.of(Bool, depth)),
            2 => format!("(NOT {})", self.of(Bool, depth)),
            3 => {
                let operand = self.castable_to_text(depth);
                format!("({operand} IS {}NULL)", self.random.pick(&["", "NOT "]))
            }
            4 => {
                let test = self.random.pick(&["TRUE", "FALSE", "UNKNOWN", "NOT TRUE", "NOT FALSE", "NOT UNKNOWN"]);
                format!("({} IS {test})", self.of(Bool, depth))
            }
            5 => self.in_list(depth),
            6 => self.between(depth),
            7 => self.like(depth),
            8 => {
                let (left, right) = self.comparable(depth);
                format!("({left} IS {}DISTINCT FROM {right})", self.random.pick(&["", "NOT "]))
            }
            9 => format!(
                "({})::boolean",
                if self.random.below(2) == 0 { self.of(Int4, depth) } else { self.of(Text, depth) }
            ),
            10 => {
                let kind = self.random.pick(&STRINGS);
                let operator = self.random.pick(&["=", "<>", "!="]);
                let other = if self.random.below(3) == 0 { self.random.pick(&STRINGS) } else { kind };
                format!("({} {operator} {})", self.of(kind, depth), self.beside(other, depth))
            }
            _ => {
                let (left, right) = self.comparable(depth);
                let operator = self.random.pick(&["=", "<>", "<", "<=", ">", ">="]);
                format!("({left} {operator} {right})")
            }
        }
    }

    /// Two values that have an order.
    fn comparable(&mut self, depth: u32) -> (String, String) {
        let (left, right) = match self.random.below(4) {
            0 => (self.random.pick(&NUMBERS), self.random.pick(&NUMBERS)),
            1 => (self.random.pick(&MOMENTS), self.random.pick(&MOMENTS)),
            _ => {
                let same = self.random.pick(&[
                    Bool,
                    Int2,
                    Int4,
                    Int8,
                    Numeric,
                    Float4,
                    Float8,
                    Date,
                    Time,
                    Timestamp,
                    Timestamptz,
                    Interval,
                    Uuid,
                ]);
                return (self.of(same, depth), self.beside(same, depth));
            }
        };
        (self.of(left, depth), self.of(right, depth))
    }

    fn in_list(&mut self, depth: u32) -> String {
        let kind = self
            .random
            .pick(&[Int2, Int4, Int8, Numeric, Float4, Float8, Text, Varchar, Bpchar, Date, Uuid, Timestamp, Bool]);
        let number = NUMBERS.contains(&kind);
        let count = 1 + self.random.below(4);
        let mut list = Vec::new();
        for _ in 0..count {
            let element = if number && self.random.below(3) == 0 { self.random.pick(&NUMBERS) } else { kind };
            list.push(match self.random.below(5) {
                0 => self.of(element, depth.min(1)),
                1 => self.beside(kind, 0),
                _ => self.literal(element),
            });
        }
        let negated = self.random.pick(&["", "NOT "]);
        format!("({} {negated}IN ({}))", self.of(kind, depth), list.join(", "))
    }

    fn between(&mut self, depth: u32) -> String {
        let kind = self.random.pick(&[Int2, Int4, Int8, Numeric, Float8, Date, Timestamp, Interval]);
        let (low, high) = (self.beside(kind, depth), self.beside(kind, depth));
        let negated = self.random.pick(&["", "NOT "]);
        format!("({} {negated}BETWEEN {low} AND {high})", self.of(kind, depth))
    }

    fn like(&mut self, depth: u32) -> String {
        let pattern = match self.random.below(3) {
            0 => {
                let kind = self.random.pick(&STRINGS);
                self.of(kind, 0)
            }
            _ => {
                let pieces = ["%", "_", "a", "b", "c", "A", "\\%", "\\_", "\\\\", "ä", "%%", " ", "x", "日", "\\"];
                let text: String = (0..1 + self.random.below(4)).map(|_| self.random.pick(&pieces)).collect();
                quoted(&text)
            }
        };
        let kind = self.random.pick(&STRINGS);
        let operator = self.random.pick(&["LIKE", "ILIKE", "NOT LIKE", "NOT ILIKE"]);
        let escape = self.random.pick(&["", "", "", " ESCAPE 'a'", " ESCAPE '!'", " ESCAPE ''"]);
        format!("({} {operator} {pattern}{escape})", self.of(kind, depth))
    }

    fn number(&mut self, kind: Kind, depth: u32) -> String {
        let cast = |inner: String| format!("({inner})::{}", kind.type_name());
        match self.random.below(9) {
            0..=2 => {
                let operator = self.random.pick(&["+", "-", "*", "/"]);
                let (left, right) = (self.of(kind, depth), self.beside(kind, depth));
                if self.random.below(2) == 0 {
                    format!("({left} {operator} {right})")
                } else {
                    format!("({right} {operator} {left})")
                }
            }
            3 => {
                let other = self.random.pick(&NUMBERS);
                let operator = self.random.pick(&["+", "-", "*", "/"]);
                cast(format!("{} {operator} {}", self.of(kind, depth), self.of(other, depth)))
            }
            4 if INTEGERS.contains(&kind) || kind == Numeric => {
                let (left, right) = (self.of(kind, depth), self.beside(kind, depth));
                if self.random.below(3) == 0 { format!("mod({left}, {right})") } else { format!("({left} % {right})") }
            }
            5 => format!("(- {})", self.of(kind, depth)),
            6 => {
                let from = self.random.pick(&NUMBERS);
                cast(self.of(from, depth))
            }
            7 => cast(self.integer_function(depth)),
            _ => self.number_function(kind, depth),
        }
    }

    fn number_function(&mut self, kind: Kind, depth: u32) -> String {
        let operand = self.of(kind, depth);
        match (kind, self.random.below(4)) {
            (Numeric, 0) => {
                let name = self.random.pick(&["round", "trunc"]);
                format!("{name}({operand}, {})", self.random.pick(&["0", "2", "-2", "5", "40", "-4", "s1"]))
            }
            (Numeric, 1) => {
                let (precision, scale) = (1 + self.random.below(20), self.random.below(8));
                format!("({operand})::numeric({precision}, {scale})")
            }
            (Numeric | Float8, 2) => {
                format!("{}({operand})", self.random.pick(&["round", "ceil", "floor", "trunc", "ceiling"]))
            }
            (Numeric, 3) => {
                let from = self.random.pick(&[Date, Time, Timestamp, Timestamptz, Interval]);
                let unit = self.random.pick(match from {
                    Date => &["year", "quarter", "month", "day", "dow", "isodow", "doy", "epoch"],
                    Time => &["hour", "minute", "second", "milliseconds", "microseconds", "epoch"],
                    Interval => &["year", "month", "day", "hour", "minute", "second", "milliseconds", "epoch"],
                    _ => &["year", "month", "day", "hour", "minute", "second", "microseconds", "dow", "doy", "epoch"],
                });
                if self.random.below(2) == 0 {
                    format!("extract({unit} FROM {})", self.of(from, depth))
                } else {
                    format!("date_part('{unit}', {})::text::numeric", self.of(from, depth))
                }
            }
            _ => format!("abs({operand})"),
        }
    }

    fn integer_function(&mut self, depth: u32) -> String {
        let kind = self.random.pick(&STRINGS);
        match self.random.below(5) {
            0 => format!("{}({})", self.random.pick(&["length", "char_length", "octet_length"]), self.of(kind, depth)),
            1 => format!("position({} IN {})", self.beside(Text, depth), self.of(kind, depth)),
            2 => format!("{} - {}", self.of(Date, depth), self.of(Date, depth)),
            3 => format!("({})::text", self.of(Int4, depth)),
            _ => self.of(Text, depth),
        }
    }

    fn text(&mut self, depth: u32) -> String {
        let string = self.random.pick(&STRINGS);
        let operand = self.of(string, depth);
        let count = self.random.pick(&["0", "1", "2", "3", "-1", "-2", "100", "s1", "i1"]);
        match self.random.below(13) {
            0 if self.random.below(2) == 0 => {
                let (kind, literal) = (self.random.pick(&KINDS), quoted(&value(Text, self.random)));
                // Such documents are merged.
                let kind = if kind == Jsonb { Json } else { kind };
                let column = self.column(kind);
                if self.random.below(2) == 0 {
                    format!("({column} || {literal})")
                } else {
                    format!("({literal} || {column})")
                }
            }
            0 => format!("({operand} || {})", self.of(string, depth)),
            1 => {
                let other = self.castable_to_text(depth);
                if self.random.below(2) == 0 {
                    format!("({operand} || {other})")
                } else {
                    format!("({other} || {operand})")
                }
            }
            2 => format!("({})::text", self.castable_to_text(depth)),
            3 => format!("{}({operand})", self.random.pick(&["lower", "upper", "reverse"])),
            4 => {
                let name = self.random.pick(&["ltrim", "rtrim", "btrim"]);
                if self.random.below(2) == 0 {
                    format!("{name}({operand})")
                } else {
                    format!("{name}({operand}, {})", self.beside(Text, 0))
                }
            }
            5 => {
                let place = self.random.pick(&["BOTH", "LEADING", "TRAILING"]);
                format!("trim({place} 'aA ' FROM {operand})")
            }
            6 => format!("substr({operand}, {count})"),
            7 => format!(
                "substring({operand} FROM {} FOR {count})",
                self.random.pick(&["0", "1", "2", "-2147483648", "3"])
            ),
            8 => format!("{}({operand}, {count})", self.random.pick(&["left", "right"])),
            9 => format!("replace({operand}, {}, {})", self.beside(Text, 0), self.beside(Text, 0)),
            10 => {
                format!("concat({operand}, {}, NULL, {})", self.castable_to_text(depth), self.castable_to_text(depth))
            }
            11 => self.part(Json, "->>", depth),
            _ => self.part(Jsonb, "->>", depth),
        }
    }

    fn moment(&mut self, kind: Kind, depth: u32) -> String {
        let sign = self.random.pick(&["+", "-"]);
        let same = self.of(kind, depth);
        match (kind, self.random.below(4)) {
            (Date, 0 | 1) => format!("({same} {sign} {})", self.of(Int4, depth)),
            (Date, _) => {
                let from = self.random.pick(&[Timestamp, Timestamptz]);
                format!("({})::date", self.of(from, depth))
            }
            (Time, 0 | 1) => format!("({same} {sign} {})", self.of(Interval, depth)),
            (Time, _) => {
                let from = self.random.pick(&[Timestamp, Timestamptz, Interval]);
                format!("({})::time", self.of(from, depth))
            }
            (Timestamp, 0) => format!("({same} {sign} {})", self.of(Interval, depth)),
            (Timestamp, 1) => match self.random.below(2) {
                0 => format!("({} {sign} {})", self.of(Date, depth), self.of(Interval, depth)),
                _ => format!("({} + {})", self.of(Date, depth), self.of(Time, depth)),
            },
            (Timestamptz, 0) => format!("({same} {sign} {})", self.of(Interval, depth)),
            (Timestamp | Timestamptz, 2) => {
                let unit = self.random.pick(&[
                    "year",
                    "quarter",
                    "month",
                    "week",
                    "day",
                    "hour",
                    "minute",
                    "second",
                    "milliseconds",
                ]);
                format!("date_trunc('{unit}', {same})")
            }
            (Timestamp | Timestamptz, _) => {
                let from = self.random.pick(&MOMENTS);
                format!("({})::{}", self.of(from, depth), kind.type_name())
            }
            (_, 0) => format!("({same} {sign} {})", self.beside(Interval, depth)),
            (_, 1) if self.random.below(2) == 0 => format!("(- {same})"),
            (_, 1) => {
                let number = self.random.pick(&[Int4, Float8, Float8]);
                let (factor, operator) = (self.of(number, depth), self.random.pick(&["*", "/"]));
                if operator == "*" && self.random.below(2) == 0 {
                    format!("({factor} * {same})")
                } else {
                    format!("({same} {operator} {factor})")
                }
            }
            (_, 2) => format!("({} - {})", self.of(Time, depth), self.of(Time, depth)),
            _ => {
                let of = self.random.pick(&[Timestamp, Timestamptz]);
                format!("({} - {})", self.of(of, depth), self.of(of, depth))
            }
        }
    }
}
