//! JSON as table mappings are found in the wild: text comes in, a [`Json`] goes out that has forgotten nothing, not even that a
//! key was given twice.
//!
//! Why not `serde_json::Value`: it keeps one of two equal keys, and does not say so. Why not structs: a mapping has numbers in
//! quotes and without, which each field would have to allow for.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// From here on the numbers that JSON's readers hold are no longer each whole number.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    Null,
    Bool(bool),
    /// As it is written in decimal.
    Number(String),
    Text(String),
    List(Vec<Json>),
    /// In their order.
    Object(Vec<(String, Json)>),
}

/// # Errors
/// What is no JSON, with its line and column.
pub fn parse(text: &str) -> Result<Json, serde_json::Error> {
    let text = text.trim_start_matches('\u{feff}');
    serde_json::from_str(&with_straight_quotes(text))
}

/// Word processors turn the quotes around strings into curly ones; inside of strings they stay what they are.
fn with_straight_quotes(text: &str) -> Cow<'_, str> {
    const CURLY: [char; 4] = ['“', '”', '„', '‟'];
    if !text.contains(CURLY) {
        return Cow::Borrowed(text);
    }
    let mut straight = String::with_capacity(text.len());
    /// The quote that the string at hand has been opened with.
    #[derive(PartialEq)]
    enum Open {
        No,
        Straight,
        Curly,
    }
    let mut open = Open::No;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        let is_curly = CURLY.contains(&c);
        match (c, &open) {
            ('\\', Open::Straight | Open::Curly) => {
                straight.push(c);
                straight.extend(characters.next());
                continue;
            }
            ('"', Open::No) => open = Open::Straight,
            ('"', Open::Straight | Open::Curly) => open = Open::No,
            _ if is_curly && open == Open::No => open = Open::Curly,
            _ if is_curly && open == Open::Curly => open = Open::No,
            _ => {
                straight.push(c);
                continue;
            }
        }
        straight.push('"');
    }
    Cow::Owned(straight)
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Json, E> {
        if value.abs() >= EXACT_MAX {
            return Err(E::custom("the number is too large to be read exactly; write it in quotes"));
        }
        Ok(Json::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut object = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            object.push(entry);
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Json {
        Json::Text(text.to_owned())
    }

    #[test]
    fn keys_that_come_twice_are_kept() {
        let entry = |value| ("a".to_owned(), value);
        let twice = Json::Object(vec![entry(Json::Number("1".to_owned())), entry(Json::Null)]);
        assert_eq!(parse(r#"{"a": 1, "a": null}"#).unwrap(), twice);
    }

    #[test]
    fn curly_quotes_around_strings_are_straightened_and_those_inside_are_kept() {
        let list = |items: &[&str]| Json::List(items.iter().copied().map(text).collect());
        assert_eq!(parse("\u{feff}[“a”, \"b “c” \\\"d\", ”e”]").unwrap(), list(&["a", "b “c” \"d", "e"]));
        assert_eq!(parse("[\"‘D’\"]").unwrap(), list(&["‘D’"]));
    }

    #[test]
    fn numbers_keep_their_digits_or_are_refused() {
        for number in ["0", "-7", "18446744073709551615", "0.1", "12.5"] {
            assert_eq!(parse(number).unwrap(), Json::Number(number.to_owned()));
        }
        let complaint = parse("{\n\"a\": 123456789012345678901234}").unwrap_err().to_string();
        assert!(complaint.contains("write it in quotes") && complaint.contains("line 2"), "{complaint}");
    }
}
