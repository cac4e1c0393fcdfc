//! Names with wildcards: `schema.table` as text comes in, a [`Pattern`] that says which tables it means goes out; a
//! [`NamePattern`] does the same for a name alone, such as a column's.
//!
//! Names are compared exactly, character by character. An unquoted part is not folded to lower case as SQL folds it:
//! folding would make `Shop.*` silently miss the schema `"Shop"`. `*` stands for any run of characters, `?` for one, and
//! `[a-cx]` for one of those, all within a part; a part in double quotes is literal, with `""` for a quote, as in SQL.

use std::fmt;
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    schema: Part,
    table: Part,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Exact(String),
    /// Unquoted, with at least one wildcard.
    Wild(Vec<Piece>),
}

/// What a place in a wild name may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// Any run of characters.
    Run,
    Any,
    One(char),
    /// One of these ranges, whose ends belong to them.
    Of(Vec<(char, char)>),
}

/// A name, or several by wildcards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    text: String,
    part: Part,
}

impl NamePattern {
    pub fn matches(&self, name: &str) -> bool {
        self.part.matches(name)
    }

    /// The name, where the pattern means one and no other.
    pub fn exact(&self) -> Option<&str> {
        match &self.part {
            Part::Exact(name) => Some(name),
            Part::Wild(_) => None,
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for NamePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<NamePattern, PatternError> {
        let part = match text.strip_prefix('"') {
            Some(quoted) => match quoted_part(quoted, text)? {
                (part, "") => part,
                (_, _) => return Err(PatternError::Quote(text.to_owned())),
            },
            None => unquoted_part(text, text)?,
        };
        Ok(NamePattern { text: text.to_owned(), part })
    }
}

impl Pattern {
    pub fn matches(&self, schema: &str, table: &str) -> bool {
        self.schema.matches(schema) && self.table.matches(table)
    }

    /// Schema and table, where the pattern means one table and no other.
    pub fn exact(&self) -> Option<(&str, &str)> {
        match (&self.schema, &self.table) {
            (Part::Exact(schema), Part::Exact(table)) => Some((schema, table)),
            (Part::Wild(_), _) | (_, Part::Wild(_)) => None,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("\"{0}\" names no schema; write schema.table, such as public.orders or public.*")]
    NoSchema(String),
    #[error("\"{0}\" has more than two parts; write schema.table, and a part that holds a dot in double quotes")]
    TooManyParts(String),
    #[error("\"{0}\" has an empty part; write schema.table, such as public.orders or public.*")]
    EmptyPart(String),
    #[error("\"{0}\" has a quote that does not enclose a whole part; write \"My.Schema\".\"T\"\"x\", as in SQL")]
    Quote(String),
    #[error("\"{0}\" has white space outside of double quotes; write one schema.table in each string of the list")]
    Space(String),
    #[error(
        "\"{0}\" has a [ that begins no list of characters such as [ab] or [a-d]; write a name that holds it in double quotes"
    )]
    Class(String),
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        let (schema, rest) = part(text, text)?;
        let rest = rest.strip_prefix('.').ok_or_else(|| PatternError::NoSchema(text.to_owned()))?;
        let (table, rest) = part(rest, text)?;
        match rest {
            "" => Ok(Pattern { text: text.to_owned(), schema, table }),
            _ => Err(PatternError::TooManyParts(text.to_owned())),
        }
    }
}

/// The first part of `rest`, and what follows it: nothing, or text that begins with a dot.
fn part<'a>(rest: &'a str, whole: &str) -> Result<(Part, &'a str), PatternError> {
    if let Some(quoted) = rest.strip_prefix('"') {
        return quoted_part(quoted, whole);
    }
    let (name, after) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
    match name {
        _ if name.contains('"') => Err(PatternError::Quote(whole.to_owned())),
        _ if name.contains(char::is_whitespace) => Err(PatternError::Space(whole.to_owned())),
        _ => Ok((unquoted_part(name, whole)?, after)),
    }
}

fn unquoted_part(name: &str, whole: &str) -> Result<Part, PatternError> {
    if name.is_empty() {
        return Err(PatternError::EmptyPart(whole.to_owned()));
    }
    if !name.contains(['*', '?', '[']) {
        return Ok(Part::Exact(name.to_owned()));
    }
    let mut pieces = Vec::new();
    let mut characters = name.chars();
    while let Some(c) = characters.next() {
        pieces.push(match c {
            '*' => Piece::Run,
            '?' => Piece::Any,
            '[' => class(&mut characters).ok_or_else(|| PatternError::Class(whole.to_owned()))?,
            c => Piece::One(c),
        });
    }
    Ok(Part::Wild(pieces))
}

/// What follows a `[`, up to its `]`.
fn class(characters: &mut std::str::Chars<'_>) -> Option<Piece> {
    let (listed, rest) = characters.as_str().split_once(']')?;
    *characters = rest.chars();
    let mut ranges = Vec::new();
    let mut listed = listed.chars();
    while let Some(first) = listed.next() {
        let mut ahead = listed.clone();
        match (ahead.next(), ahead.next()) {
            (Some('-'), Some(last)) => {
                ranges.push((first, last));
                listed = ahead;
            }
            _ => ranges.push((first, first)),
        }
    }
    (!ranges.is_empty()).then_some(Piece::Of(ranges))
}

/// As [`part`], from behind the opening quote.
fn quoted_part<'a>(rest: &'a str, whole: &str) -> Result<(Part, &'a str), PatternError> {
    let mut name = String::new();
    let mut characters = rest.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        match (c, characters.peek()) {
            ('"', Some((_, '"'))) => {
                characters.next();
                name.push('"');
            }
            ('"', None | Some((_, '.'))) if name.is_empty() => return Err(PatternError::EmptyPart(whole.to_owned())),
            ('"', None | Some((_, '.'))) => return Ok((Part::Exact(name), &rest[at + 1..])),
            ('"', Some(_)) => break,
            (c, _) => name.push(c),
        }
    }
    Err(PatternError::Quote(whole.to_owned()))
}

impl Part {
    fn matches(&self, name: &str) -> bool {
        match self {
            Part::Exact(exact) => exact == name,
            Part::Wild(wild) => wild_matches(wild, &name.chars().collect::<Vec<_>>()),
        }
    }
}

/// Only the last `*` met is ever tried again, one character longer, so the time is bounded by the product of both
/// lengths however many stars there are.
fn wild_matches(wild: &[Piece], name: &[char]) -> bool {
    let (mut w, mut n) = (0, 0);
    let mut last_star = None;
    while n < name.len() {
        match (wild.get(w), last_star) {
            (Some(Piece::Run), _) => {
                last_star = Some((w, n));
                w += 1;
            }
            (Some(piece), _) if piece.takes(name[n]) => (w, n) = (w + 1, n + 1),
            (_, Some((star, from))) => {
                last_star = Some((star, from + 1));
                (w, n) = (star + 1, from + 1);
            }
            (_, None) => return false,
        }
    }
    wild[w..].iter().all(|piece| *piece == Piece::Run)
}

impl Piece {
    /// Whether it stands for this one character.
    fn takes(&self, c: char) -> bool {
        match self {
            Piece::Run => false,
            Piece::Any => true,
            Piece::One(one) => *one == c,
            Piece::Of(ranges) => ranges.iter().any(|(first, last)| (*first..=*last).contains(&c)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn wildcards_stay_within_their_part() {
        for (text, schema, table, expected) in [
            ("shop.*", "shop", "orders", true),
            ("shop.*", "shop", "", true),
            ("shop.*", "shop2", "orders", false),
            ("*.*", "a", "b.c", true),
            ("shop.tmp_*", "shop", "tmp_", true),
            ("shop.tmp_*", "shop", "tm", false),
            ("shop.part_????", "shop", "part_2024", true),
            ("shop.part_????", "shop", "part_202", false),
            ("shop.?", "shop", "ü", true),
            ("s.*a*b", "s", "xaxbxab", true),
            ("s.*a*b", "s", "xaxbxa", false),
            ("s.a**b?", "s", "ab1", true),
            ("Shop.orders", "shop", "orders", false),
            ("a*.b", "ac", "b", true),
            ("s.a[0-9x]_?", "s", "a7_z", true),
            ("s.a[0-9x]_?", "s", "ax_z", true),
            ("s.a[0-9x]_?", "s", "ay_z", false),
            ("s.[*]*", "s", "*b", true),
            ("s.[*]*", "s", "b", false),
            (r#""s*".t"#, "s*", "t", true),
            (r#""s*".t"#, "sx", "t", false),
        ] {
            assert_eq!(pattern(text).matches(schema, table), expected, "{text} on {schema}.{table}");
        }
        let stars = "s.".to_owned() + &"*a".repeat(200);
        assert!(!pattern(&stars).matches("s", &"a".repeat(199)));
    }

    #[test]
    fn quoted_parts_are_literal() {
        assert_eq!(pattern(r#""My.Schema"."T""x""#).exact(), Some(("My.Schema", "T\"x")));
        assert_eq!(pattern(r#"public."""""#).exact(), Some(("public", "\"")));
        assert_eq!(pattern(r#""a b".C"#).exact(), Some(("a b", "C")));
        assert_eq!(pattern("a.b*").exact(), None);
        assert_eq!(pattern(r#"*."x""#).to_string(), r#"*."x""#);
    }

    #[test]
    fn a_name_alone_may_hold_dots_and_blanks() {
        let name = |text: &str| text.parse::<NamePattern>().unwrap();
        assert_eq!(name("a.b c").exact(), Some("a.b c"));
        assert_eq!(name(r#""*_id""#).exact(), Some("*_id"));
        assert!(name("*_id").matches("cust_id") && !name("*_id").matches("id"));
        assert_eq!("".parse::<NamePattern>(), Err(PatternError::EmptyPart(String::new())));
        assert_eq!(r#""a"b"#.parse::<NamePattern>(), Err(PatternError::Quote(r#""a"b"#.to_owned())));
    }

    #[test]
    fn text_that_is_not_schema_and_table_is_refused() {
        type Make = fn(String) -> PatternError;
        for (text, make) in [
            ("orders", PatternError::NoSchema as Make),
            (r#""a""#, PatternError::NoSchema),
            ("a.b.c", PatternError::TooManyParts),
            ("a.", PatternError::EmptyPart),
            (".a", PatternError::EmptyPart),
            ("", PatternError::EmptyPart),
            (r#""".a"#, PatternError::EmptyPart),
            (r#"a."b"#, PatternError::Quote),
            (r#"a."b""#.trim_end_matches('"'), PatternError::Quote),
            (r#"a."b"c"#, PatternError::Quote),
            (r#"a.b"c""#, PatternError::Quote),
            (r#"a."b"""#, PatternError::Quote),
            ("a.b, c.d", PatternError::Space),
            ("a.b[c", PatternError::Class),
            ("a.b[]", PatternError::Class),
        ] {
            assert_eq!(text.parse::<Pattern>(), Err(make(text.to_owned())), "{text}");
        }
    }
}
