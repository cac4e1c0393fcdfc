//! The text and the bytes of `numeric_in`, `numeric_out`, `numeric_recv` and `numeric_send`.

use super::{BASE, DIGIT_DECIMALS, Decimal, Numeric, SCALE_MAX};
use crate::transform::expression::error::Fault;
use crate::transform::expression::types::Type;

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xc000;
const INFINITY: u16 = 0xd000;
const NEGATIVE_INFINITY: u16 = 0xf000;
/// What the bits of the stored infinities read as, and so what is sent.
const INFINITE_SCALE: u16 = 32;
/// An exponent is refused beyond this in any case, so it never overflows what it is added to.
const EXPONENT_MAX: i32 = 1_000_000;

impl Numeric {
    /// Decimal notation with an optional exponent, and the special values; no blanks around it.
    pub(in super::super) fn parse(text: &str) -> Result<Numeric, Fault> {
        const INVALID: Fault = Fault::InvalidText(Type::Numeric);
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if unsigned.eq_ignore_ascii_case("nan") {
            return if unsigned.len() == text.len() { Ok(Numeric::NaN) } else { Err(INVALID) };
        }
        if unsigned.eq_ignore_ascii_case("infinity") || unsigned.eq_ignore_ascii_case("inf") {
            return Ok(if negative { Numeric::NegativeInfinity } else { Numeric::Infinity });
        }
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, Some(exponent)),
            None => (unsigned, None),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_digits(whole) || !is_digits(fraction) || whole.len() + fraction.len() == 0 {
            return Err(INVALID);
        }
        let exponent = exponent.map_or(Ok(0), parse_exponent)?;
        let scale = (fraction.len() as i32 - exponent).max(0);
        if scale > SCALE_MAX {
            return Err(Fault::OutOfRange(Type::Numeric));
        }
        Numeric::Finite(from_decimals(negative, whole, fraction, exponent).with_scale(scale)).checked()
    }

    /// The send format of `numeric`, or `None` if it is not that.
    pub(in super::super) fn from_binary(bytes: &[u8]) -> Option<Numeric> {
        let (words, rest) = bytes.as_chunks::<2>();
        let [count, weight, sign, scale, digits @ ..] = words else { return None };
        let word = |bytes: &[u8; 2]| u16::from_be_bytes(*bytes);
        let digits: Vec<u16> = digits.iter().map(word).collect();
        if !rest.is_empty() || digits.len() != usize::from(word(count)) || digits.iter().any(|digit| *digit >= 10_000) {
            return None;
        }
        let negative = match word(sign) {
            NAN => return Some(Numeric::NaN),
            INFINITY => return Some(Numeric::Infinity),
            NEGATIVE_INFINITY => return Some(Numeric::NegativeInfinity),
            0 => false,
            NEGATIVE => true,
            _ => return None,
        };
        let weight = i16::from_be_bytes(*weight).into();
        let scale = i32::from(word(scale));
        (scale <= SCALE_MAX).then(|| Numeric::Finite(Decimal { negative, weight, scale, digits }.stripped()))
    }

    pub(in super::super) fn write_binary(&self, out: &mut Vec<u8>) {
        let value = match self {
            Numeric::NaN => return put_words(out, &[0, 0, NAN, 0]),
            Numeric::Infinity => return put_words(out, &[0, 0, INFINITY, INFINITE_SCALE]),
            Numeric::NegativeInfinity => return put_words(out, &[0, 0, NEGATIVE_INFINITY, INFINITE_SCALE]),
            Numeric::Finite(value) => value,
        };
        let sign = if value.negative { NEGATIVE } else { 0 };
        put_words(out, &[value.digits.len() as u16, value.weight as u16, sign, value.scale as u16]);
        put_words(out, &value.digits);
    }

    pub(in super::super) fn write_text(&self, out: &mut String) {
        let value = match self {
            Numeric::NaN => return out.push_str("NaN"),
            Numeric::Infinity => return out.push_str("Infinity"),
            Numeric::NegativeInfinity => return out.push_str("-Infinity"),
            Numeric::Finite(value) => value,
        };
        if value.negative {
            out.push('-');
        }
        let digit_text = |position: i32| format!("{:04}", value.digit(position));
        let start = out.len();
        for position in (0..=value.weight.max(0)).rev() {
            out.push_str(&digit_text(position));
        }
        let zeros = out[start..].bytes().take_while(|byte| *byte == b'0').count();
        let zeros = zeros.min(out.len() - start - 1);
        out.replace_range(start..start + zeros, "");
        if value.scale > 0 {
            out.push('.');
            let end = out.len() + value.scale as usize;
            for position in 1..=(value.scale + DIGIT_DECIMALS - 1) / DIGIT_DECIMALS {
                out.push_str(&digit_text(-position));
            }
            out.truncate(end);
        }
    }

    pub(in super::super) fn to_f64(&self) -> f64 {
        match self {
            Numeric::NaN => f64::NAN,
            Numeric::Infinity => f64::INFINITY,
            Numeric::NegativeInfinity => f64::NEG_INFINITY,
            Numeric::Finite(_) => self.through_text(f64::NAN),
        }
    }

    pub(in super::super) fn to_f32(&self) -> f32 {
        match self {
            Numeric::Finite(_) => self.through_text(f32::NAN),
            other => other.to_f64() as f32,
        }
    }

    pub(in super::super) fn is_zero(&self) -> bool {
        self.sign() == 0 && !matches!(self, Numeric::NaN)
    }

    pub(in super::super) fn is_finite(&self) -> bool {
        matches!(self, Numeric::Finite(_))
    }

    /// PostgreSQL converts so too, and it is the one way that rounds right.
    fn through_text<T: std::str::FromStr>(&self, otherwise: T) -> T {
        let mut text = String::new();
        self.write_text(&mut text);
        text.parse().unwrap_or(otherwise)
    }

    /// A double as `numeric`, by so many decimal digits (`DBL_DIG`, `FLT_DIG`).
    pub(in super::super) fn from_float(value: f64, digits: usize) -> Numeric {
        if value.is_nan() {
            return Numeric::NaN;
        }
        if value.is_infinite() {
            return if value > 0.0 { Numeric::Infinity } else { Numeric::NegativeInfinity };
        }
        let text = format!("{value:.*e}", digits - 1);
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
        Numeric::parse(&format!("{mantissa}e{exponent}")).unwrap_or(Numeric::NaN)
    }
}

fn put_words(out: &mut Vec<u8>, words: &[u16]) {
    out.extend(words.iter().flat_map(|word| word.to_be_bytes()));
}

fn parse_exponent(text: &str) -> Result<i32, Fault> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    // Seen digit by digit, and so before whatever follows them.
    let leading = digits.bytes().take_while(u8::is_ascii_digit);
    let value = leading.fold(0_i64, |value, digit| (value * 10 + i64::from(digit - b'0')).min(i64::from(i32::MAX)));
    if value > i64::from(i32::MAX / 2) {
        return Err(Fault::OutOfRange(Type::Numeric));
    }
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Fault::InvalidText(Type::Numeric));
    }
    let exponent: i32 = text.parse().map_err(|_| Fault::OutOfRange(Type::Numeric))?;
    if exponent.abs() > EXPONENT_MAX { Err(Fault::OutOfRange(Type::Numeric)) } else { Ok(exponent) }
}

/// Decimal digits, aligned to digits of four.
fn from_decimals(negative: bool, whole: &str, fraction: &str, exponent: i32) -> Decimal {
    let decimals = || whole.bytes().chain(fraction.bytes()).map(|byte| u32::from(byte - b'0'));
    // The power of ten that the last decimal counts, and the zeros that bring it to a multiple of four.
    let last_power = exponent - fraction.len() as i32;
    let zeros = last_power.rem_euclid(DIGIT_DECIMALS) as usize;
    let total = whole.len() + fraction.len() + zeros;
    let padding = (DIGIT_DECIMALS as usize - total % DIGIT_DECIMALS as usize) % DIGIT_DECIMALS as usize;
    let padded: Vec<u32> =
        std::iter::repeat_n(0, padding).chain(decimals()).chain(std::iter::repeat_n(0, zeros)).collect();
    let digits: Vec<u16> =
        padded.as_chunks::<4>().0.iter().map(|[a, b, c, d]| ((a * 10 + b) * 100 + c * 10 + d) as u16).collect();
    debug_assert!(digits.iter().all(|digit| u32::from(*digit) < BASE));
    let weight = last_power.div_euclid(DIGIT_DECIMALS) + digits.len() as i32 - 1;
    Decimal { negative, weight, scale: 0, digits }.stripped()
}
