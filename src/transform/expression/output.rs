//! Text of values as PostgreSQL's output functions write it, where it is more than a number.

use super::datetime::put;

/// `float8out` with the shortest digits that read back as the same value.
pub(super) fn write_f64(value: f64, out: &mut String) {
    match special(value) {
        Some(text) => out.push_str(text),
        None => {
            let with_digits = |digits: usize| format!("{value:.*e}", digits - 1);
            let text = shortest(format!("{value:e}"), with_digits, |text| text.parse() == Ok(value));
            write_shortest(&text, 15, out);
        }
    }
}

/// `float4out`, the same.
pub(super) fn write_f32(value: f32, out: &mut String) {
    match special(value.into()) {
        Some(text) => out.push_str(text),
        None => {
            let with_digits = |digits: usize| format!("{value:.*e}", digits - 1);
            let text = shortest(format!("{value:e}"), with_digits, |text| text.parse() == Ok(value));
            write_shortest(&text, 6, out);
        }
    }
}

/// PostgreSQL does not take digits that lie exactly between two values, and are read back only by the rule for halves
/// (`d2s.c`, `acceptBounds`): 1e23 is written 9.999999999999999e+22.
fn shortest(text: String, with_digits: impl Fn(usize) -> String, reads_back: impl Fn(&str) -> bool) -> String {
    /// Of a double.
    const DIGITS_MAX: usize = 17;
    let count_digits = |text: &str| text.bytes().take_while(|byte| *byte != b'e').filter(u8::is_ascii_digit).count();
    // Of two that are as near, the even one.
    let even = with_digits(count_digits(&text));
    let mut text = if reads_back(&even) { even } else { text };
    loop {
        let digits = count_digits(&text);
        if digits >= DIGITS_MAX || around(&text).iter().all(|near| reads_back(near)) {
            return text;
        }
        // One more digit; a zero at the end makes no other number of it.
        let is_longer = |text: &str| reads_back(text) && !text.split('e').next().unwrap_or("").ends_with('0');
        let longer = (digits + 1..=DIGITS_MAX).map(&with_digits).find(|text| is_longer(text));
        match longer {
            Some(longer) => text = longer,
            None => return text,
        }
    }
}

/// Numbers just above and just below.
fn around(text: &str) -> [String; 2] {
    /// Far beyond the digits that decide between two values.
    const FAR: usize = 40;
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let point = if mantissa.contains('.') { "" } else { "." };
    let above = format!("{mantissa}{point}{}1e{exponent}", "0".repeat(FAR));
    // The last digit is not zero, but in a zero.
    let (start, last) = mantissa.split_at(mantissa.len() - 1);
    let below = match last.parse::<u8>() {
        Ok(digit @ 1..) => format!("{start}{}{point}{}e{exponent}", digit - 1, "9".repeat(FAR)),
        _ => text.to_owned(),
    };
    if mantissa.trim_start_matches('-') == "0" { [text.to_owned(), below] } else { [above, below] }
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
