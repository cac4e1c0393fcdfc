//! The functions, and why others are refused.

use std::sync::LazyLock;

use super::arithmetic as a;
use super::evaluate::Function;
use super::signature::{Action, Signature};
use super::strings as s;
use super::temporal as t;
use super::types::Type;

use Type::{Bpchar, Date, Float4, Float8, Int2, Int4, Int8, Interval, Numeric, Text, Time, Timestamp, Timestamptz};

const TABLE: &[(&str, &[Type], Type, Function)] = &[
    ("lower", &[Text], Text, s::lower),
    ("upper", &[Text], Text, s::upper),
    ("btrim", &[Text], Text, s::trim_both),
    ("btrim", &[Text, Text], Text, s::trim_both),
    ("ltrim", &[Text], Text, s::trim_left),
    ("ltrim", &[Text, Text], Text, s::trim_left),
    ("rtrim", &[Text], Text, s::trim_right),
    ("rtrim", &[Text, Text], Text, s::trim_right),
    ("length", &[Text], Int4, s::length),
    ("length", &[Bpchar], Int4, s::length_bpchar),
    ("char_length", &[Text], Int4, s::length),
    ("char_length", &[Bpchar], Int4, s::length_bpchar),
    ("character_length", &[Text], Int4, s::length),
    ("character_length", &[Bpchar], Int4, s::length_bpchar),
    ("octet_length", &[Text], Int4, s::octet_length),
    ("octet_length", &[Bpchar], Int4, s::octet_length),
    ("substr", &[Text, Int4], Text, s::substring),
    ("substr", &[Text, Int4, Int4], Text, s::substring),
    ("substring", &[Text, Int4], Text, s::substring),
    ("substring", &[Text, Int4, Int4], Text, s::substring),
    ("replace", &[Text, Text, Text], Text, s::replace),
    ("left", &[Text, Int4], Text, s::left),
    ("right", &[Text, Int4], Text, s::right),
    ("strpos", &[Text, Text], Int4, s::position),
    ("starts_with", &[Text, Text], Type::Bool, s::starts_with),
    ("reverse", &[Text], Text, s::reverse),
    ("abs", &[Int2], Int2, a::abs_int2),
    ("abs", &[Int4], Int4, a::abs_int4),
    ("abs", &[Int8], Int8, a::abs_int8),
    ("abs", &[Numeric], Numeric, a::abs_numeric),
    ("abs", &[Float4], Float4, a::abs_float),
    ("abs", &[Float8], Float8, a::abs_float),
    ("mod", &[Int2, Int2], Int2, a::remainder_int2),
    ("mod", &[Int4, Int4], Int4, a::remainder_int4),
    ("mod", &[Int8, Int8], Int8, a::remainder_int8),
    ("mod", &[Numeric, Numeric], Numeric, a::remainder_numeric),
    ("round", &[Numeric], Numeric, a::round_numeric),
    ("round", &[Numeric, Int4], Numeric, a::round_numeric),
    ("round", &[Float8], Float8, a::round_float),
    ("trunc", &[Numeric], Numeric, a::trunc_numeric),
    ("trunc", &[Numeric, Int4], Numeric, a::trunc_numeric),
    ("trunc", &[Float8], Float8, a::trunc_float),
    ("ceil", &[Numeric], Numeric, a::ceil_numeric),
    ("ceil", &[Float8], Float8, a::ceil_float),
    ("ceiling", &[Numeric], Numeric, a::ceil_numeric),
    ("ceiling", &[Float8], Float8, a::ceil_float),
    ("floor", &[Numeric], Numeric, a::floor_numeric),
    ("floor", &[Float8], Float8, a::floor_float),
    ("extract", &[Text, Date], Numeric, t::extract),
    ("extract", &[Text, Time], Numeric, t::extract),
    ("extract", &[Text, Timestamp], Numeric, t::extract),
    ("extract", &[Text, Timestamptz], Numeric, t::extract),
    ("extract", &[Text, Interval], Numeric, t::extract),
    ("date_part", &[Text, Date], Float8, t::date_part),
    ("date_part", &[Text, Time], Float8, t::date_part),
    ("date_part", &[Text, Timestamp], Float8, t::date_part),
    ("date_part", &[Text, Timestamptz], Float8, t::date_part),
    ("date_part", &[Text, Interval], Float8, t::date_part),
    ("date_trunc", &[Text, Timestamp], Timestamp, t::truncate),
    ("date_trunc", &[Text, Timestamptz], Timestamptz, t::truncate),
];

pub(super) static FUNCTIONS: LazyLock<Vec<Signature>> = LazyLock::new(|| {
    let row = |(name, arguments, result, function): &(&'static str, &[Type], Type, Function)| Signature {
        name,
        arguments: arguments.to_vec(),
        result: *result,
        action: Action::Call(*function),
    };
    let mut all: Vec<Signature> = TABLE.iter().map(row).collect();
    // With a text as the second argument it is another function.
    let action =
        Action::Refused("regular expressions are not supported; give the position of the substring as an integer");
    for arguments in [vec![Text, Text], vec![Text, Text, Text]] {
        all.push(Signature { name: "substring", arguments, result: Text, action });
    }
    let action = Action::Refused("an interval is not cut; extract a part of it");
    let arguments = vec![Text, Interval];
    all.push(Signature { name: "date_trunc", arguments, result: Interval, action });
    all
});

/// Those that the grammar of expressions gives a form of their own, or any number of arguments.
pub(super) const SPECIAL: [&str; 5] = ["coalesce", "nullif", "greatest", "least", "concat"];

const NOT_THE_SAME: [&str; 20] = [
    "now",
    "current_timestamp",
    "current_date",
    "current_time",
    "localtime",
    "localtimestamp",
    "clock_timestamp",
    "statement_timestamp",
    "transaction_timestamp",
    "timeofday",
    "random",
    "random_normal",
    "gen_random_uuid",
    "uuidv7",
    "uuidv4",
    "nextval",
    "currval",
    "txid_current",
    "pg_sleep",
    "setseed",
];
const OF_THE_SESSION: [&str; 7] =
    ["current_user", "session_user", "user", "current_role", "current_schema", "current_database", "current_catalog"];
const AGGREGATES: [&str; 17] = [
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "array_agg",
    "string_agg",
    "bool_and",
    "bool_or",
    "every",
    "json_agg",
    "jsonb_agg",
    "stddev",
    "variance",
    "any_value",
    "row_number",
    "rank",
];

/// Why there is no function of this name, and what would be right.
pub(super) fn refusal(name: &str) -> String {
    if NOT_THE_SAME.contains(&name) {
        return format!(
            "{name} gives another result each time, and a row must come out the same whenever it is evaluated"
        );
    }
    if OF_THE_SESSION.contains(&name) {
        return format!("{name} depends on the session, and a row must come out the same whoever evaluates it");
    }
    if AGGREGATES.contains(&name) {
        return format!("{name} is an aggregate or window function, and an expression sees one row");
    }
    let known = TABLE.iter().map(|(name, ..)| *name).chain(SPECIAL);
    match nearest(name, known) {
        Some(meant) => format!("there is no function {name} here; did you mean {meant}?"),
        None => format!("there is no function {name} here"),
    }
}

/// The name that was most likely meant, if any is near.
pub(in crate::transform) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    /// As `config` has it for its keys.
    const SIMILARITY_MIN: f64 = 0.7;
    let scored = known.map(|each| (strsim::jaro_winkler(name, each), each));
    let best = scored.max_by(|left, right| left.0.total_cmp(&right.0))?;
    (best.0 >= SIMILARITY_MIN).then_some(best.1)
}
