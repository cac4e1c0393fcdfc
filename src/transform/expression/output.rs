//! Text of values as PostgreSQL's output functions write it, where it is more than a number.

use super::datetime::put;

/// `float8out` with the shortest digits that read back as the same value.
pub(super) fn write_f64(value: f64, out: &mut String) {
    match special(value) {
        Some(text) => out.push_str(text),
        None => write_shortest(&format!("{value:e}"), 15, out),
    }
}

/// `float4out`, the same.
pub(super) fn write_f32(value: f32, out: &mut String) {
    match special(value.into()) {
        Some(text) => out.push_str(text),
        None => write_shortest(&format!("{value:e}"), 6, out),
    }
}

fn special(value: f64) -> Option<&'static str> {
    if value.is_nan() {
        Some("NaN")
    } else if value == f64::INFINITY {
        Some("Infinity")
    } else if value == f64::NEG_INFINITY {
        Some("-Infinity")
    } else {
        None
    }
}

/// Digits and exponent of ten, in positional notation if the exponent is from -4 to below `exponent_end`.
fn write_shortest(scientific: &str, exponent_end: i32, out: &mut String) {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let unsigned = mantissa.strip_prefix('-').unwrap_or(mantissa);
    out.push_str(&mantissa[..mantissa.len() - unsigned.len()]);
    if !(-4..exponent_end).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return put(out, format_args!("{unsigned}e{sign}{:02}", exponent.abs()));
    }
    let digits: String = unsigned.chars().filter(|character| *character != '.').collect();
    if exponent < 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', (-exponent - 1) as usize));
        return out.push_str(&digits);
    }
    let whole = exponent as usize + 1;
    if digits.len() <= whole {
        out.push_str(&digits);
        out.extend(std::iter::repeat_n('0', whole - digits.len()));
    } else {
        put(out, format_args!("{}.{}", &digits[..whole], &digits[whole..]));
    }
}

pub(super) fn write_uuid(bytes: &[u8; 16], out: &mut String) {
    for (index, byte) in bytes.iter().enumerate() {
        out.push_str(if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" });
        put(out, format_args!("{byte:02x}"));
    }
}
