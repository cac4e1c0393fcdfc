//! Masks: a value comes in, what may be seen of it goes out.
//!
//! A mask is given text. What it cannot take is an error, and nothing of the value is in it.

use hmac::{Hmac, KeyInit, Mac};
use rand::RngExt;
use sha2::{Digest, Sha256};

use crate::config::Mask;

/// Of the hash that stands for the part of an address before the `@`: chance never makes two the same.
const EMAIL_DIGITS: usize = 24;

/// A mask, ready for many values.
#[derive(Clone)]
pub(super) enum Masking {
    Null,
    Fixed(Vec<u8>),
    Sha256 { length: usize },
    HmacSha256 { length: usize, keyed: Box<Hmac<Sha256>> },
    Digits { with: char },
    DigitsRandom,
    Partial { first: usize, last: usize, with: char },
    Email { domain: Option<String>, keyed: Box<Hmac<Sha256>> },
}

impl std::fmt::Debug for Masking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Masking")
    }
}

impl Masking {
    pub fn new(mask: &Mask) -> Masking {
        match mask {
            Mask::Null => Masking::Null,
            Mask::Fixed(value) => Masking::Fixed(value.clone().into_bytes()),
            Mask::Sha256 { length } => Masking::Sha256 { length: *length },
            Mask::HmacSha256 { length, secret } => {
                Masking::HmacSha256 { length: *length, keyed: Box::new(keyed(secret.expose())) }
            }
            Mask::Digits { with } => Masking::Digits { with: *with },
            Mask::DigitsRandom => Masking::DigitsRandom,
            Mask::Partial { first, last, with } => Masking::Partial { first: *first, last: *last, with: *with },
            Mask::Email { domain, secret } => {
                Masking::Email { domain: domain.clone(), keyed: Box::new(keyed(secret.expose())) }
            }
        }
    }

    /// Appends what stands for the value. False where that is NULL.
    pub fn write(&self, value: &str, out: &mut Vec<u8>) -> bool {
        match self {
            Masking::Null => return false,
            Masking::Fixed(fixed) => out.extend_from_slice(fixed),
            Masking::Sha256 { length } => hexadecimal(&Sha256::digest(value), *length, out),
            Masking::HmacSha256 { length, keyed } => hash(keyed, value, *length, out),
            Masking::Digits { with } => each(value, out, |_, c| if c.is_ascii_digit() { *with } else { c }),
            Masking::DigitsRandom => {
                let mut random = rand::rng();
                each(
                    value,
                    out,
                    |_, c| {
                        if c.is_ascii_digit() { char::from(random.random_range(b'0'..=b'9')) } else { c }
                    },
                );
            }
            Masking::Partial { first, last, with } => {
                let length = value.chars().count();
                // Of a value that would be seen whole nothing is seen.
                let seen = if first + last < length { *first..length - last } else { 0..length };
                each(value, out, |at, c| if seen.contains(&at) { *with } else { c });
            }
            Masking::Email { domain, keyed } => {
                hash(keyed, value, EMAIL_DIGITS, out);
                out.push(b'@');
                let own = value.rsplit_once('@').map(|(_, domain)| domain);
                out.extend_from_slice(domain.as_deref().or(own).unwrap_or("masked.invalid").as_bytes());
            }
        }
        true
    }
}

impl Masking {
    /// Appends what tells one secret from another, if there is one.
    pub fn write_check(&self, out: &mut Vec<u8>) {
        if let Masking::HmacSha256 { keyed, .. } | Masking::Email { keyed, .. } = self {
            hash(keyed, "pgsluice", 64, out);
        }
    }
}

/// What a mask promises, whatever the value.
pub(super) trait Promises {
    /// The same value is always masked alike.
    fn is_stable(&self) -> bool;
    /// Different values stay different.
    fn keeps_apart(&self) -> bool;
    /// In a word, and without the secret.
    fn name(&self) -> String;
}

impl Promises for Mask {
    fn is_stable(&self) -> bool {
        *self != Mask::DigitsRandom
    }

    fn keeps_apart(&self) -> bool {
        match self {
            Mask::Sha256 { .. } | Mask::HmacSha256 { .. } | Mask::Email { .. } => true,
            Mask::Null | Mask::Fixed(_) | Mask::Digits { .. } | Mask::DigitsRandom | Mask::Partial { .. } => false,
        }
    }

    fn name(&self) -> String {
        match self {
            Mask::Null => "null".to_owned(),
            Mask::Fixed(value) => format!("fixed {value:?}"),
            Mask::Sha256 { length } => format!("sha256, {length} digits"),
            Mask::HmacSha256 { length, .. } => format!("hmac_sha256, {length} digits"),
            Mask::Digits { with } => format!("digits, with {with:?}"),
            Mask::DigitsRandom => "digits_random".to_owned(),
            Mask::Partial { first, last, with } => format!("partial, first {first} and last {last}, with {with:?}"),
            Mask::Email { domain: Some(domain), .. } => format!("email, at {domain}"),
            Mask::Email { domain: None, .. } => "email, domain kept".to_owned(),
        }
    }
}

fn keyed(secret: &str) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length")
}

fn hash(keyed: &Hmac<Sha256>, value: &str, length: usize, out: &mut Vec<u8>) {
    let mut mac = keyed.clone();
    mac.update(value.as_bytes());
    hexadecimal(&mac.finalize().into_bytes(), length, out);
}

fn hexadecimal(bytes: &[u8], length: usize, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    out.extend(digits.take(length));
}

fn each(value: &str, out: &mut Vec<u8>, mut masked: impl FnMut(usize, char) -> char) {
    let mut buffer = [0; 4];
    for (at, c) in value.chars().enumerate() {
        out.extend_from_slice(masked(at, c).encode_utf8(&mut buffer).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn masked(mask: &Mask, value: &str) -> Option<String> {
        let mut out = Vec::new();
        Masking::new(mask).write(value, &mut out).then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn known_hashes() {
        // FIPS 180-2, "abc"; RFC 4231 has test case 2 with the key "Jefe".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(masked(&Mask::Sha256 { length: 64 }, "abc").as_deref(), Some(abc));
        assert_eq!(masked(&Mask::Sha256 { length: 16 }, "abc").as_deref(), Some(&abc[..16]));
        let mask = Mask::HmacSha256 { length: 64, secret: Secret::new("Jefe".to_owned()) };
        let known = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(masked(&mask, "what do ya want for nothing?").as_deref(), Some(known));
    }

    #[test]
    fn what_is_seen_of_a_value() {
        let card = "4111-1111 é1";
        assert_eq!(masked(&Mask::Null, card), None);
        assert_eq!(masked(&Mask::Fixed("–".to_owned()), card).as_deref(), Some("–"));
        assert_eq!(masked(&Mask::Digits { with: '#' }, card).as_deref(), Some("####-#### é#"));
        let partial = |first, last, value| masked(&Mask::Partial { first, last, with: '*' }, value).unwrap();
        assert_eq!(partial(1, 2, card), "4*********é1");
        assert_eq!(partial(0, 4, "abcd"), "****");
        assert_eq!(partial(2, 3, "abcd"), "****");
        assert_eq!(partial(0, 0, ""), "");
        let random = masked(&Mask::DigitsRandom, card).unwrap();
        let shape = |text: &str| text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect::<String>();
        assert_eq!(shape(&random), shape(card));
        let long = "0".repeat(100);
        assert_ne!(masked(&Mask::DigitsRandom, &long), masked(&Mask::DigitsRandom, &long));
    }

    #[test]
    fn an_address_stays_one() {
        let secret = || Secret::new("0123456789abcdef".to_owned());
        let mask = |domain: Option<&str>| Mask::Email { domain: domain.map(str::to_owned), secret: secret() };
        let one = masked(&mask(Some("x.org")), "a.b@corp.example").unwrap();
        assert!(one.ends_with("@x.org") && one.len() == EMAIL_DIGITS + 6 && !one.contains("a.b"), "{one}");
        assert_ne!(masked(&mask(Some("x.org")), "a.b@other.example").unwrap(), one);
        assert!(masked(&mask(None), "a.b@corp.example").unwrap().ends_with("@corp.example"));
        assert!(masked(&mask(None), "no address").unwrap().ends_with("@masked.invalid"));
    }
}
