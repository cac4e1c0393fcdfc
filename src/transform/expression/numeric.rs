//! `numeric`, exact over all of its range: base-10000 digits, as PostgreSQL stores and sends them (`numeric.c`).
//!
//! Arithmetic is in [`arithmetic`]; text and bytes are in [`format`].

mod arithmetic;
mod format;

use std::cmp::Ordering;

use super::error::Fault;
use super::types::Type;

const BASE: u32 = 10_000;
/// Decimal digits in a digit.
const DIGIT_DECIMALS: i32 = 4;
/// The most decimals that a value can show (`NUMERIC_DSCALE_MAX`).
const SCALE_MAX: i32 = 0x3fff;
/// The weight of the first digit that the stored form has room for.
const WEIGHT_MAX: i32 = i16::MAX as i32;

/// A value of type `numeric`.
#[derive(Clone, Debug)]
pub enum Numeric {
    NegativeInfinity,
    Finite(Decimal),
    Infinity,
    /// Equal to itself, and larger than everything else.
    NaN,
}

/// `±Σ digits[i] · 10000^(weight - i)`, shown with `scale` decimals. Neither the first nor the last digit is zero; zero has
/// no digits, and is positive.
#[derive(Clone, Debug, Default)]
pub struct Decimal {
    negative: bool,
    weight: i32,
    scale: i32,
    digits: Vec<u16>,
}

impl Numeric {
    pub(super) const ZERO: Numeric =
        Numeric::Finite(Decimal { negative: false, weight: 0, scale: 0, digits: Vec::new() });

    /// The order of B-tree indexes, in which NaN is the largest.
    pub fn compare(&self, other: &Numeric) -> Ordering {
        match (self, other) {
            (Numeric::Finite(left), Numeric::Finite(right)) => left.compare(right),
            _ => self.rank().cmp(&other.rank()),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Numeric::NegativeInfinity => 0,
            Numeric::Finite(_) => 1,
            Numeric::Infinity => 2,
            Numeric::NaN => 3,
        }
    }

    /// A result fits the stored form, or is an overflow.
    pub(super) fn checked(self) -> Result<Numeric, Fault> {
        match self {
            Numeric::Finite(value) if value.weight > WEIGHT_MAX || value.scale > SCALE_MAX => {
                Err(Fault::OutOfRange(Type::Numeric))
            }
            fits => Ok(fits),
        }
    }

    /// -1, 0 or 1; NaN has none.
    fn sign(&self) -> i32 {
        match self {
            Numeric::NegativeInfinity => -1,
            Numeric::Infinity => 1,
            Numeric::NaN => 0,
            Numeric::Finite(value) => value.sign(),
        }
    }

    pub(super) fn negate(self) -> Numeric {
        match self {
            Numeric::NegativeInfinity => Numeric::Infinity,
            Numeric::Infinity => Numeric::NegativeInfinity,
            Numeric::NaN => Numeric::NaN,
            Numeric::Finite(mut value) => {
                value.negative = !value.negative && !value.digits.is_empty();
                Numeric::Finite(value)
            }
        }
    }

    pub(super) fn abs(self) -> Numeric {
        if self.sign() < 0 { self.negate() } else { self }
    }

    /// Applied to a finite value; the others stay what they are.
    pub(super) fn map(self, change: impl FnOnce(Decimal) -> Decimal) -> Numeric {
        match self {
            Numeric::Finite(value) => Numeric::Finite(change(value)),
            other => other,
        }
    }

    /// To the nearest integer, halves away from zero.
    pub(super) fn to_i64(&self, to: Type) -> Result<i64, Fault> {
        let Numeric::Finite(value) = self else {
            // PostgreSQL has no integer for these, and says so as for a feature that it lacks.
            return Err(Fault::Unsupported);
        };
        let rounded = value.clone().rounded(0);
        let mut sum: i128 = 0;
        if rounded.weight > 5 {
            return Err(Fault::OutOfRange(to));
        }
        for position in (0..=rounded.weight).rev() {
            sum = sum * i128::from(BASE) + i128::from(rounded.digit(position));
        }
        i64::try_from(if rounded.negative { -sum } else { sum }).map_err(|_| Fault::OutOfRange(to))
    }

    /// As `numeric(precision, scale)`.
    pub(super) fn with_modifier(self, precision: i32, scale: i32) -> Result<Numeric, Fault> {
        match self {
            Numeric::NaN => Ok(Numeric::NaN),
            Numeric::Finite(value) => {
                let rounded = value.rounded(scale);
                match rounded.decimals_before_point() <= precision - scale {
                    true => Ok(Numeric::Finite(rounded)),
                    false => Err(Fault::OutOfRange(Type::Numeric)),
                }
            }
            _ => Err(Fault::OutOfRange(Type::Numeric)),
        }
    }
}

impl From<i64> for Numeric {
    fn from(value: i64) -> Numeric {
        Numeric::Finite(Decimal::from_integer(value.into(), 0))
    }
}

impl Decimal {
    /// `value` · 10^-`scale`, where `scale` is a multiple of four or `value` is scaled to one.
    fn from_integer(value: i128, scale: i32) -> Decimal {
        let mut digits = Vec::new();
        let mut rest = value.unsigned_abs();
        while rest > 0 {
            digits.push((rest % u128::from(BASE)) as u16);
            rest /= u128::from(BASE);
        }
        digits.reverse();
        let weight = digits.len() as i32 - 1 - scale / DIGIT_DECIMALS;
        Decimal { negative: value < 0, weight, scale, digits }.stripped()
    }

    /// `microseconds` as a number of seconds with six decimals, as `extract` gives them.
    pub(super) fn from_microseconds(microseconds: i128) -> Decimal {
        Decimal { scale: 6, ..Decimal::from_integer(microseconds * 100, 8) }
    }

    pub(super) fn with_scale(self, scale: i32) -> Decimal {
        Decimal { scale, ..self }
    }

    fn sign(&self) -> i32 {
        match (self.digits.is_empty(), self.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        }
    }

    /// The digit that counts 10000^`position`.
    fn digit(&self, position: i32) -> u16 {
        usize::try_from(self.weight - position).ok().and_then(|index| self.digits.get(index)).copied().unwrap_or(0)
    }

    /// The position of the last digit.
    fn last_position(&self) -> i32 {
        self.weight - self.digits.len() as i32 + 1
    }

    fn decimals_before_point(&self) -> i32 {
        let first = match self.digits.first() {
            None => return i32::MIN / 2,
            Some(first) => i32::from(*first),
        };
        let decimals = [1, 10, 100, 1000].iter().filter(|power| first >= **power).count() as i32;
        self.weight * DIGIT_DECIMALS + decimals
    }

    fn stripped(mut self) -> Decimal {
        let leading = self.digits.iter().take_while(|digit| **digit == 0).count();
        self.digits.drain(..leading);
        self.weight -= leading as i32;
        while self.digits.last() == Some(&0) {
            self.digits.pop();
        }
        if self.digits.is_empty() {
            self.weight = 0;
            self.negative = false;
        }
        self
    }

    fn compare(&self, other: &Decimal) -> Ordering {
        let signs = self.sign().cmp(&other.sign());
        if signs != Ordering::Equal {
            return signs;
        }
        let magnitudes = self.compare_magnitude(other);
        if self.negative { magnitudes.reverse() } else { magnitudes }
    }

    fn compare_magnitude(&self, other: &Decimal) -> Ordering {
        match (self.digits.is_empty(), other.digits.is_empty()) {
            // Digits that are missing at the end are zeros, and none ends with a zero.
            (false, false) => self.weight.cmp(&other.weight).then_with(|| self.digits.cmp(&other.digits)),
            (left, right) => right.cmp(&left),
        }
    }

    /// Rounded to `scale` decimals, which may be negative, halves away from zero.
    pub(super) fn rounded(self, scale: i32) -> Decimal {
        self.cut(scale, |rest, half| rest >= half)
    }

    pub(super) fn truncated(self, scale: i32) -> Decimal {
        self.cut(scale, |_, _| false)
    }

    /// Drops what is beyond `scale` decimals; `up` says whether the rest of the last digit kept, of which half is given,
    /// carries.
    fn cut(mut self, scale: i32, up: fn(u16, u16) -> bool) -> Decimal {
        let kept_decimals = (self.weight + 1) * DIGIT_DECIMALS + scale;
        self.scale = scale.max(0);
        if kept_decimals < 0 || self.digits.is_empty() {
            return Decimal { scale: self.scale, ..Decimal::default() };
        }
        let kept = ((kept_decimals + DIGIT_DECIMALS - 1) / DIGIT_DECIMALS) as usize;
        let split = kept_decimals % DIGIT_DECIMALS;
        let carries = if split == 0 {
            let carries = self.digits.get(kept).is_some_and(|digit| up(*digit, 5_000));
            self.digits.truncate(kept);
            if carries { 1 } else { 0 }
        } else {
            if kept > self.digits.len() {
                return self;
            }
            self.digits.truncate(kept);
            let power = 10_u16.pow((DIGIT_DECIMALS - split) as u32);
            let last = &mut self.digits[kept - 1];
            let rest = *last % power;
            *last -= rest;
            if up(rest, power / 2) { power } else { 0 }
        };
        self.carried(carries).stripped()
    }

    /// Adds to the last digit.
    fn carried(mut self, carry: u16) -> Decimal {
        let mut carry = carry;
        for digit in self.digits.iter_mut().rev() {
            if carry == 0 {
                return self;
            }
            *digit += carry;
            carry = u16::from(u32::from(*digit) >= BASE);
            *digit -= carry * BASE as u16;
        }
        if carry > 0 {
            self.digits.insert(0, carry);
            self.weight += 1;
        }
        self
    }

    /// Towards negative infinity.
    pub(super) fn floor(self) -> Decimal {
        let below = self.negative && self.clone().truncated(0).compare_magnitude(&self) != Ordering::Equal;
        let truncated = self.truncated(0);
        if below { truncated.minus(&Decimal::from_integer(1, 0)) } else { truncated }
    }

    /// Towards positive infinity.
    pub(super) fn ceil(self) -> Decimal {
        let above = !self.negative && self.clone().truncated(0).compare_magnitude(&self) != Ordering::Equal;
        let truncated = self.truncated(0);
        if above { truncated.plus(&Decimal::from_integer(1, 0)) } else { truncated }
    }
}
