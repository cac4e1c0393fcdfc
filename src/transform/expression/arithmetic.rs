//! + - * / % and the rounding of numbers, with the errors that PostgreSQL raises.

use super::error::Fault;
use super::evaluate::Arguments;
use super::numeric::Numeric;
use super::types::Type;
use super::value::Value;

/// Operators are resolved by the types of their operands, so no other value comes here.
pub(super) fn unexpected<'v>() -> Result<Value<'v>, Fault> {
    debug_assert!(false, "operators are resolved by the types of their operands");
    Ok(Value::Null)
}

fn integers(arguments: &Arguments<'_>) -> (i64, i64) {
    let integer = |value: &Value<'_>| match value {
        Value::Int2(value) => i64::from(*value),
        Value::Int4(value) => i64::from(*value),
        Value::Int8(value) => *value,
        _ => 0,
    };
    (integer(&arguments[0]), integer(&arguments[1]))
}

fn floats(arguments: &Arguments<'_>) -> (f64, f64) {
    let float = |value: &Value<'_>| match value {
        Value::Float4(value) => f64::from(*value),
        Value::Float8(value) => *value,
        _ => f64::NAN,
    };
    (float(&arguments[0]), float(&arguments[1]))
}

/// Exact in 128 bits, whatever the widths; only the result has to fit.
macro_rules! integer_operators {
    ($($name:ident $variant:ident: $compute:expr;)*) => {$(
        pub(super) fn $name<'v>(arguments: Arguments<'v>) -> Result<Value<'v>, Fault> {
            let (left, right) = integers(&arguments);
            let compute: fn(i128, i128) -> Option<i128> = $compute;
            let result = compute(left.into(), right.into()).ok_or(Fault::DivisionByZero)?;
            result.try_into().map(Value::$variant).map_err(|_| Fault::OutOfRange(Type::$variant))
        }
    )*};
}

integer_operators! {
    add_int2 Int2: |left, right| Some(left + right);
    add_int4 Int4: |left, right| Some(left + right);
    add_int8 Int8: |left, right| Some(left + right);
    subtract_int2 Int2: |left, right| Some(left - right);
    subtract_int4 Int4: |left, right| Some(left - right);
    subtract_int8 Int8: |left, right| Some(left - right);
    multiply_int2 Int2: |left, right| Some(left * right);
    multiply_int4 Int4: |left, right| Some(left * right);
    multiply_int8 Int8: |left, right| Some(left * right);
    divide_int2 Int2: |left, right| left.checked_div(right);
    divide_int4 Int4: |left, right| left.checked_div(right);
    divide_int8 Int8: |left, right| left.checked_div(right);
    remainder_int2 Int2: |left, right| left.checked_rem(right);
    remainder_int4 Int4: |left, right| left.checked_rem(right);
    remainder_int8 Int8: |left, right| left.checked_rem(right);
    negate_int2 Int2: |value, _| Some(-value);
    negate_int4 Int4: |value, _| Some(-value);
    negate_int8 Int8: |value, _| Some(-value);
    abs_int2 Int2: |value, _| Some(value.abs());
    abs_int4 Int4: |value, _| Some(value.abs());
    abs_int8 Int8: |value, _| Some(value.abs());
}

/// An infinite result of finite operands is an overflow; a zero that only rounding makes is an underflow.
macro_rules! float_operators {
    ($($name:ident $variant:ident $float:ty: $compute:expr, $underflows:expr;)*) => {$(
        pub(super) fn $name<'v>(arguments: Arguments<'v>) -> Result<Value<'v>, Fault> {
            let (left, right) = floats(&arguments);
            let (left, right) = (left as $float, right as $float);
            let compute: fn($float, $float) -> Result<$float, Fault> = $compute;
            let underflows: fn($float, $float) -> bool = $underflows;
            let result = compute(left, right)?;
            let overflow = result.is_infinite() && !left.is_infinite() && !right.is_infinite();
            if overflow || result == 0.0 && underflows(left, right) {
                return Err(Fault::OutOfRange(Type::$variant));
            }
            Ok(Value::$variant(result))
        }
    )*};
}

float_operators! {
    add_float4 Float4 f32: |left, right| Ok(left + right), |_, _| false;
    add_float8 Float8 f64: |left, right| Ok(left + right), |_, _| false;
    subtract_float4 Float4 f32: |left, right| Ok(left - right), |_, _| false;
    subtract_float8 Float8 f64: |left, right| Ok(left - right), |_, _| false;
    multiply_float4 Float4 f32: |left, right| Ok(left * right), |left, right| left != 0.0 && right != 0.0;
    multiply_float8 Float8 f64: |left, right| Ok(left * right), |left, right| left != 0.0 && right != 0.0;
    divide_float4 Float4 f32: |left, right| {
        if right == 0.0 && !left.is_nan() { Err(Fault::DivisionByZero) } else { Ok(left / right) }
    }, |left, right| left != 0.0 && !right.is_infinite();
    divide_float8 Float8 f64: |left, right| {
        if right == 0.0 && !left.is_nan() { Err(Fault::DivisionByZero) } else { Ok(left / right) }
    }, |left, right| left != 0.0 && !right.is_infinite();
}

macro_rules! float_functions {
    ($($name:ident: $compute:expr;)*) => {$(
        pub(super) fn $name<'v>([value, ..]: Arguments<'v>) -> Result<Value<'v>, Fault> {
            match value {
                Value::Float4(value) => {
                    let compute: fn(f64) -> f64 = $compute;
                    Ok(Value::Float4(compute(value.into()) as f32))
                }
                Value::Float8(value) => {
                    let compute: fn(f64) -> f64 = $compute;
                    Ok(Value::Float8(compute(value)))
                }
                _ => unexpected(),
            }
        }
    )*};
}

float_functions! {
    negate_float: |value| -value;
    abs_float: f64::abs;
    round_float: f64::round_ties_even;
    ceil_float: f64::ceil;
    floor_float: f64::floor;
    trunc_float: f64::trunc;
}

macro_rules! numeric_operators {
    ($($name:ident: $compute:expr;)*) => {$(
        pub(super) fn $name<'v>([left, right, _]: Arguments<'v>) -> Result<Value<'v>, Fault> {
            match (left, right) {
                (Value::Numeric(left), Value::Numeric(right)) => {
                    let compute: fn(&Numeric, &Numeric) -> Result<Numeric, Fault> = $compute;
                    compute(&left, &right).map(Value::Numeric)
                }
                _ => unexpected(),
            }
        }
    )*};
}

numeric_operators! {
    add_numeric: Numeric::add;
    subtract_numeric: Numeric::subtract;
    multiply_numeric: Numeric::multiply;
    divide_numeric: Numeric::divide;
    remainder_numeric: Numeric::remainder;
}

macro_rules! numeric_functions {
    ($($name:ident: $compute:expr;)*) => {$(
        /// The second argument is the number of decimals, where there is one.
        pub(super) fn $name<'v>([value, decimals, _]: Arguments<'v>) -> Result<Value<'v>, Fault> {
            let decimals = if let Value::Int4(decimals) = decimals { decimals } else { 0 };
            match value {
                Value::Numeric(value) => {
                    let compute: fn(Numeric, i32) -> Numeric = $compute;
                    Numeric::checked(compute(value, decimals)).map(Value::Numeric)
                }
                _ => unexpected(),
            }
        }
    )*};
}

/// The least and the greatest number of decimals that a number is rounded to (`NUMERIC_MAX_RESULT_SCALE` and the weight
/// of the largest number).
fn rounding_scale(decimals: i32) -> i32 {
    decimals.clamp(-131_073, 16_383)
}

numeric_functions! {
    negate_numeric: |value, _| value.negate();
    abs_numeric: |value, _| value.abs();
    round_numeric: |value, decimals| value.map(|value| value.rounded(rounding_scale(decimals)));
    trunc_numeric: |value, decimals| value.map(|value| value.truncated(rounding_scale(decimals)));
    ceil_numeric: |value, _| value.map(|value| value.ceil());
    floor_numeric: |value, _| value.map(|value| value.floor());
}
