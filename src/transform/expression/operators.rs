//! The operators, as `pg_operator` has them for the supported types.

use std::sync::LazyLock;

use super::arithmetic as a;
use super::evaluate::{Compare, Comparison, Function};
use super::json;
use super::like;
use super::signature::{Action, Signature};
use super::strings;
use super::temporal as t;
use super::types::Type;
use super::value::{compare, compare_bpchar};

use Type::{
    Bool, Bpchar, Date, Float4, Float8, Int2, Int4, Int8, Interval, Json, Jsonb, Numeric, Text, Time, Timestamp,
    Timestamptz, Uuid,
};

pub(super) const COMPARISONS: [(&str, Comparison); 6] = [
    ("=", Comparison::Equal),
    ("<>", Comparison::NotEqual),
    ("<", Comparison::Less),
    ("<=", Comparison::LessOrEqual),
    (">", Comparison::Greater),
    (">=", Comparison::GreaterOrEqual),
];
/// Why texts are only equal or not.
pub(super) const TEXT_ORDER: &str =
    "the order of texts depends on the collation of the database; only = and <> mean the same everywhere";
const JSONB: &str = "documents of jsonb are not compared; take a value out of them with ->>";

/// Of two operands. `-` of one operand is named `-x`.
pub(super) static OPERATORS: LazyLock<Vec<Signature>> = LazyLock::new(|| {
    let mut all = Vec::new();
    comparisons(&mut all);
    numbers(&mut all);
    moments(&mut all);
    texts(&mut all);
    all
});

fn add(all: &mut Vec<Signature>, name: &'static str, arguments: &[Type], result: Type, function: Function) {
    all.push(Signature { name, arguments: arguments.to_vec(), result, action: Action::Call(function) });
}

fn comparisons(all: &mut Vec<Signature>) {
    let same = [Bool, Numeric, Time, Interval, Uuid].map(|each| (each, each));
    let groups: [&[Type]; 3] = [&[Int2, Int4, Int8], &[Float4, Float8], &[Date, Timestamp, Timestamptz]];
    let crossed = groups.into_iter().flat_map(|group| group.iter().flat_map(|l| group.iter().map(|r| (*l, *r))));
    for (left, right) in same.into_iter().chain(crossed) {
        for (name, comparison) in COMPARISONS {
            let action = Action::Compare(comparison, compare);
            all.push(Signature { name, arguments: vec![left, right], result: Bool, action });
        }
    }
    for (of, function) in [(Text, compare as Compare), (Bpchar, compare_bpchar)] {
        for (name, comparison) in COMPARISONS {
            let action = match comparison {
                Comparison::Equal | Comparison::NotEqual => Action::Compare(comparison, function),
                _ => Action::Refused(TEXT_ORDER),
            };
            all.push(Signature { name, arguments: vec![of, of], result: Bool, action });
        }
    }
    for (name, _) in COMPARISONS {
        all.push(Signature { name, arguments: vec![Jsonb, Jsonb], result: Bool, action: Action::Refused(JSONB) });
    }
}

fn numbers(all: &mut Vec<Signature>) {
    let integers: [(&str, [Function; 3]); 4] = [
        ("+", [a::add_int2, a::add_int4, a::add_int8]),
        ("-", [a::subtract_int2, a::subtract_int4, a::subtract_int8]),
        ("*", [a::multiply_int2, a::multiply_int4, a::multiply_int8]),
        ("/", [a::divide_int2, a::divide_int4, a::divide_int8]),
    ];
    let widths = [Int2, Int4, Int8];
    for (name, functions) in integers {
        for (l, left) in widths.into_iter().enumerate() {
            for (r, right) in widths.into_iter().enumerate() {
                add(all, name, &[left, right], widths[l.max(r)], functions[l.max(r)]);
            }
        }
    }
    for (of, function) in widths.into_iter().zip([a::remainder_int2 as Function, a::remainder_int4, a::remainder_int8])
    {
        add(all, "%", &[of, of], of, function);
    }
    let floats: [(&str, Function, Function); 4] = [
        ("+", a::add_float4, a::add_float8),
        ("-", a::subtract_float4, a::subtract_float8),
        ("*", a::multiply_float4, a::multiply_float8),
        ("/", a::divide_float4, a::divide_float8),
    ];
    for (name, single, double) in floats {
        add(all, name, &[Float4, Float4], Float4, single);
        for pair in [[Float4, Float8], [Float8, Float4], [Float8, Float8]] {
            add(all, name, &pair, Float8, double);
        }
    }
    let numerics: [(&str, Function); 5] = [
        ("+", a::add_numeric),
        ("-", a::subtract_numeric),
        ("*", a::multiply_numeric),
        ("/", a::divide_numeric),
        ("%", a::remainder_numeric),
    ];
    for (name, function) in numerics {
        add(all, name, &[Numeric, Numeric], Numeric, function);
    }
    let negations: [(Type, Function); 6] = [
        (Int2, a::negate_int2),
        (Int4, a::negate_int4),
        (Int8, a::negate_int8),
        (Numeric, a::negate_numeric),
        (Float4, a::negate_float),
        (Float8, a::negate_float),
    ];
    for (of, function) in negations {
        add(all, "-x", &[of], of, function);
    }
}

fn moments(all: &mut Vec<Signature>) {
    add(all, "+", &[Date, Int4], Date, t::date_plus_days);
    add(all, "+", &[Int4, Date], Date, t::date_plus_days);
    add(all, "-", &[Date, Int4], Date, t::date_minus_days);
    add(all, "-", &[Date, Date], Int4, t::date_minus_date);
    add(all, "+", &[Date, Time], Timestamp, t::date_plus_time);
    add(all, "+", &[Time, Date], Timestamp, t::date_plus_time);
    let sums = [(Date, Timestamp), (Timestamp, Timestamp), (Timestamptz, Timestamptz), (Time, Time)];
    for (moment, result) in sums {
        add(all, "+", &[moment, Interval], result, t::plus_interval);
        add(all, "+", &[Interval, moment], result, t::plus_interval);
        add(all, "-", &[moment, Interval], result, t::minus_interval);
    }
    add(all, "+", &[Interval, Interval], Interval, t::plus_interval);
    add(all, "-", &[Interval, Interval], Interval, t::minus_interval);
    add(all, "-x", &[Interval], Interval, t::negate_interval);
    for of in [Timestamp, Timestamptz] {
        add(all, "-", &[of, of], Interval, t::timestamp_minus_timestamp);
    }
    add(all, "-", &[Time, Time], Interval, t::time_minus_time);
    add(all, "*", &[Interval, Float8], Interval, t::multiply_interval);
    add(all, "*", &[Float8, Interval], Interval, t::multiply_interval);
    add(all, "/", &[Interval, Float8], Interval, t::divide_interval);
}

fn texts(all: &mut Vec<Signature>) {
    add(all, "||", &[Text, Text], Text, strings::concatenate);
    for other in [
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
        Json,
        Jsonb,
    ] {
        add(all, "||", &[other, Text], Text, strings::concatenate);
        add(all, "||", &[Text, other], Text, strings::concatenate);
    }
    let action = Action::Refused("documents of jsonb are not merged; cast one of them to text");
    all.push(Signature { name: "||", arguments: vec![Jsonb, Jsonb], result: Jsonb, action });
    for text in [Text, Bpchar] {
        add(all, "~~", &[text, Text], Bool, like::like);
        add(all, "~~*", &[text, Text], Bool, like::ilike);
    }
    for (document, part) in [(Json, Json), (Jsonb, Jsonb)] {
        for key in [Text, Int4] {
            add(all, "->", &[document, key], part, json::get);
            add(all, "->>", &[document, key], Text, json::get_text);
        }
    }
}
