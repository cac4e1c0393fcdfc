//! + - * / % with the result scales of `numeric.c`.

use std::cmp::Ordering;

use super::{BASE, DIGIT_DECIMALS, Decimal, Numeric, SCALE_MAX};
use crate::transform::expression::error::Fault;

/// At least so many digits that count are in a quotient (`NUMERIC_MIN_SIG_DIGITS`).
const QUOTIENT_DECIMALS_MIN: i32 = 16;
/// A quotient is not shown with more decimals than these (`NUMERIC_MAX_DISPLAY_SCALE`).
const QUOTIENT_SCALE_MAX: i32 = 1_000;

use Numeric::{Finite, Infinity, NaN, NegativeInfinity};

impl Numeric {
    pub(in super::super) fn add(&self, other: &Numeric) -> Result<Numeric, Fault> {
        match (self, other) {
            (Finite(left), Finite(right)) => Finite(left.plus(right)).checked(),
            (NaN, _) | (_, NaN) | (Infinity, NegativeInfinity) | (NegativeInfinity, Infinity) => Ok(NaN),
            (Finite(_), infinite) | (infinite, _) => Ok(infinite.clone()),
        }
    }

    pub(in super::super) fn subtract(&self, other: &Numeric) -> Result<Numeric, Fault> {
        self.add(&other.clone().negate())
    }

    pub(in super::super) fn multiply(&self, other: &Numeric) -> Result<Numeric, Fault> {
        match (self, other) {
            (Finite(left), Finite(right)) => Finite(left.times(right)).checked(),
            (NaN, _) | (_, NaN) => Ok(NaN),
            _ => Ok(signed_infinity(self.sign() * other.sign())),
        }
    }

    pub(in super::super) fn divide(&self, other: &Numeric) -> Result<Numeric, Fault> {
        match (self, other) {
            (NaN, _) | (_, NaN) => Ok(NaN),
            (Infinity | NegativeInfinity, Infinity | NegativeInfinity) => Ok(NaN),
            (_, Finite(right)) if right.digits.is_empty() => Err(Fault::DivisionByZero),
            (Finite(left), Finite(right)) => {
                let scale = quotient_scale(left, right);
                Finite(left.quotient(right, scale).rounded(scale)).checked()
            }
            (Finite(_), _) => Ok(Numeric::ZERO),
            _ => Ok(signed_infinity(self.sign() * other.sign())),
        }
    }

    pub(in super::super) fn remainder(&self, other: &Numeric) -> Result<Numeric, Fault> {
        match (self, other) {
            (NaN, _) | (_, NaN) => Ok(NaN),
            (_, Finite(right)) if right.digits.is_empty() => Err(Fault::DivisionByZero),
            (Infinity | NegativeInfinity, _) => Ok(NaN),
            (Finite(left), Finite(right)) => {
                let whole = left.quotient(right, 0).truncated(0);
                let scale = left.scale.max(right.scale);
                Finite(left.minus(&whole.times(right)).with_scale(scale)).checked()
            }
            (Finite(_), _) => Ok(self.clone()),
        }
    }
}

fn signed_infinity(sign: i32) -> Numeric {
    match sign {
        0 => NaN,
        1 => Infinity,
        _ => NegativeInfinity,
    }
}

/// `select_div_scale`: as many decimals as make the quotient as exact as a double.
fn quotient_scale(left: &Decimal, right: &Decimal) -> i32 {
    let first = |value: &Decimal| (value.weight, value.digits.first().copied().unwrap_or(0));
    let ((left_weight, left_digit), (right_weight, right_digit)) = (first(left), first(right));
    let weight = left_weight - right_weight - i32::from(left_digit <= right_digit);
    let scale = QUOTIENT_DECIMALS_MIN - weight * DIGIT_DECIMALS;
    scale.max(left.scale).max(right.scale).clamp(0, QUOTIENT_SCALE_MAX)
}

impl Decimal {
    pub(super) fn plus(&self, other: &Decimal) -> Decimal {
        let scale = self.scale.max(other.scale);
        let sum = if self.negative == other.negative {
            Decimal { negative: self.negative, ..self.magnitudes_added(other) }
        } else if self.compare_magnitude(other) == Ordering::Less {
            Decimal { negative: other.negative, ..other.magnitude_less(self) }
        } else {
            Decimal { negative: self.negative, ..self.magnitude_less(other) }
        };
        sum.with_scale(scale).stripped()
    }

    pub(super) fn minus(&self, other: &Decimal) -> Decimal {
        self.plus(&Decimal { negative: !other.negative, ..other.clone() })
    }

    fn magnitudes_added(&self, other: &Decimal) -> Decimal {
        let (first, last) = self.positions_with(other);
        let mut carry = 0;
        let mut digits: Vec<u16> = Vec::with_capacity((first - last + 2) as usize);
        for position in last..=first + 1 {
            let sum = self.digit(position) + other.digit(position) + carry;
            carry = sum / BASE as u16;
            digits.push(sum % BASE as u16);
        }
        digits.reverse();
        Decimal { weight: first + 1, digits, ..Decimal::default() }
    }

    /// The other magnitude is not larger.
    fn magnitude_less(&self, other: &Decimal) -> Decimal {
        let (first, last) = self.positions_with(other);
        let mut borrow = 0;
        let mut digits: Vec<u16> = Vec::with_capacity((first - last + 1) as usize);
        for position in last..=first {
            let subtrahend = other.digit(position) + borrow;
            let digit = self.digit(position);
            borrow = u16::from(digit < subtrahend);
            digits.push(digit + borrow * BASE as u16 - subtrahend);
        }
        digits.reverse();
        Decimal { weight: first, digits, ..Decimal::default() }
    }

    fn positions_with(&self, other: &Decimal) -> (i32, i32) {
        (self.weight.max(other.weight), self.last_position().min(other.last_position()))
    }

    pub(super) fn times(&self, other: &Decimal) -> Decimal {
        let scale = self.scale + other.scale;
        let mut digits = vec![0_u16; self.digits.len() + other.digits.len()];
        for (i, left) in self.digits.iter().enumerate().rev() {
            let mut carry = 0_u32;
            for (j, right) in other.digits.iter().enumerate().rev() {
                let sum = u32::from(*left) * u32::from(*right) + u32::from(digits[i + j + 1]) + carry;
                digits[i + j + 1] = (sum % BASE) as u16;
                carry = sum / BASE;
            }
            digits[i] = carry as u16;
        }
        let negative = self.negative != other.negative;
        let product = Decimal { negative, weight: self.weight + other.weight + 1, scale, digits }.stripped();
        if scale > SCALE_MAX { product.rounded(SCALE_MAX) } else { product }
    }

    /// Cut off somewhere beyond `scale` decimals, so that rounding there is exact. The divisor is not zero.
    fn quotient(&self, divisor: &Decimal, scale: i32) -> Decimal {
        let weight = self.weight - divisor.weight;
        let count = weight + 1 + scale / DIGIT_DECIMALS + 2;
        if self.digits.is_empty() || count <= 0 {
            return Decimal::default();
        }
        let mut remainder: Vec<u32> = vec![0];
        remainder.extend(self.digits.iter().map(|digit| u32::from(*digit)));
        remainder.resize(count as usize + divisor.digits.len() + 1, 0);
        let digits = long_division(&mut remainder, &divisor.digits, count as usize);
        Decimal { negative: self.negative != divisor.negative, weight, scale: 0, digits }.stripped()
    }
}

/// Knuth's algorithm D: the first `count` digits of the quotient. `remainder` has a zero in front, and a digit for every
/// one that is looked at.
fn long_division(remainder: &mut [u32], divisor: &[u16], count: usize) -> Vec<u16> {
    let normalize = BASE / (u32::from(divisor[0]) + 1);
    let mut scaled: Vec<u32> = vec![0; divisor.len()];
    let mut carry = 0;
    for (to, from) in scaled.iter_mut().zip(divisor).rev() {
        let product = u32::from(*from) * normalize + carry;
        (*to, carry) = (product % BASE, product / BASE);
    }
    carry = 0;
    for digit in remainder.iter_mut().rev() {
        let product = *digit * normalize + carry;
        (*digit, carry) = (product % BASE, product / BASE);
    }
    let second = scaled.get(1).copied().unwrap_or(0);
    let mut quotient = Vec::with_capacity(count);
    for at in 0..count {
        let leading = remainder[at] * BASE + remainder[at + 1];
        let mut guess = (leading / scaled[0]).min(BASE - 1);
        while scaled.len() > 1 && guess * second > (leading - guess * scaled[0]) * BASE + remainder[at + 2] {
            guess -= 1;
            if leading - guess * scaled[0] >= BASE {
                break;
            }
        }
        if subtract_multiple(&mut remainder[at..=at + scaled.len()], &scaled, guess) {
            guess -= 1;
            add_back(&mut remainder[at..=at + scaled.len()], &scaled);
        }
        quotient.push(guess as u16);
    }
    quotient
}

/// Whether it became negative.
fn subtract_multiple(from: &mut [u32], divisor: &[u32], factor: u32) -> bool {
    let mut borrow = 0;
    for (digit, part) in from[1..].iter_mut().zip(divisor).rev() {
        let product = part * factor + borrow;
        let (low, high) = (product % BASE, product / BASE);
        let short = u32::from(*digit < low);
        *digit = *digit + short * BASE - low;
        borrow = high + short;
    }
    let negative = from[0] < borrow;
    from[0] = (from[0] + BASE).wrapping_sub(borrow) % BASE;
    negative
}

fn add_back(to: &mut [u32], divisor: &[u32]) {
    let mut carry = 0;
    for (digit, part) in to[1..].iter_mut().zip(divisor).rev() {
        let sum = *digit + part + carry;
        (*digit, carry) = (sum % BASE, sum / BASE);
    }
    to[0] = (to[0] + carry) % BASE;
}
