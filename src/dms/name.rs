//! Names as DMS matches them: text with `%`, `_`, `[ab]` and `[a-d]` comes in, a [`Name`] goes out that can be compared with
//! others and written as a pattern of ours.

use std::fmt;

/// What `_` in a name stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underscore {
    /// Any one character, as DMS has it.
    #[default]
    AnyCharacter,
    Itself,
}

/// A schema, a table or a column, or several by wildcards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// As it is written in the mapping.
    text: String,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// Any run of characters.
    Run,
    Any,
    One(char),
    /// One of these ranges, whose ends belong to them.
    Of(Vec<(char, char)>),
}

/// A name that has wildcards beside characters that no pattern of ours can hold beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPattern;

impl Name {
    pub fn parse(text: &str, underscore: Underscore) -> Name {
        let mut pieces = Vec::new();
        let mut characters = text.chars();
        while let Some(c) = characters.next() {
            pieces.push(match c {
                '%' => Piece::Run,
                '_' if underscore == Underscore::AnyCharacter => Piece::Any,
                '[' => match characters.as_str().split_once(']') {
                    Some((listed, rest)) if !listed.is_empty() => {
                        characters = rest.chars();
                        class(listed)
                    }
                    Some(_) | None => Piece::One('['),
                },
                c => Piece::One(c),
            });
        }
        Name { text: text.to_owned(), pieces }
    }

    /// A name in which nothing is a wildcard.
    pub fn literal(text: &str) -> Name {
        Name { text: text.to_owned(), pieces: text.chars().map(Piece::One).collect() }
    }

    pub fn all() -> Name {
        Name { text: "%".to_owned(), pieces: vec![Piece::Run] }
    }

    /// The one name that is meant: `_` is a character of names too, so alone it makes no name one of many.
    pub fn single(&self) -> Option<String> {
        let character = |piece: &Piece| match piece {
            Piece::One(c) => Some(*c),
            Piece::Any => Some('_'),
            Piece::Run | Piece::Of(_) => None,
        };
        self.pieces.iter().map(character).collect()
    }

    /// Whether there can be a name that both mean.
    pub fn meets(&self, other: &Name) -> bool {
        meets(&self.pieces, &other.pieces)
    }

    /// Whether it means every name that the other means. Of patterns that are hard to compare it says no.
    pub fn covers(&self, other: &Name) -> bool {
        covers(&self.pieces, &other.pieces)
    }

    /// As a part of a pattern `schema.table`.
    pub fn as_part(&self) -> Result<String, NoPattern> {
        let is_held_in_quotes_only = |c: char| c == '.' || c == '"' || c.is_whitespace();
        match self.exact() {
            Some(name) if name.contains(|c| is_held_in_quotes_only(c) || is_special(c)) => Ok(quoted(&name)),
            Some(name) => Ok(name),
            None if self.holds(is_held_in_quotes_only) => Err(NoPattern),
            None => Ok(self.wild()),
        }
    }

    /// As a pattern of columns.
    pub fn as_column(&self) -> String {
        match self.exact() {
            Some(name) if name.starts_with('"') || name.contains(is_special) => quoted(&name),
            Some(name) => name,
            None => self.wild(),
        }
    }

    fn exact(&self) -> Option<String> {
        let character = |piece: &Piece| match piece {
            Piece::One(c) => Some(*c),
            Piece::Any | Piece::Run | Piece::Of(_) => None,
        };
        self.pieces.iter().map(character).collect()
    }

    fn holds(&self, unfit: impl Fn(char) -> bool) -> bool {
        self.pieces.iter().any(|piece| match piece {
            Piece::One(c) => unfit(*c),
            Piece::Of(ranges) => ranges.iter().any(|(first, last)| unfit(*first) || unfit(*last)),
            Piece::Any | Piece::Run => false,
        })
    }

    fn wild(&self) -> String {
        self.pieces.iter().map(Piece::written).collect()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Piece {
    fn written(&self) -> String {
        match self {
            Piece::Run => "*".to_owned(),
            Piece::Any => "?".to_owned(),
            Piece::One(c) if is_special(*c) => format!("[{c}]"),
            Piece::One(c) => c.to_string(),
            Piece::Of(ranges) => {
                let range = |(first, last): &(char, char)| match first == last {
                    true => first.to_string(),
                    false => format!("{first}-{last}"),
                };
                format!("[{}]", ranges.iter().map(range).collect::<String>())
            }
        }
    }

    /// Whether there is a character that both stand for. [`Piece::Run`] is not asked.
    fn meets(&self, other: &Piece) -> bool {
        if let (Piece::One(left), Piece::One(right)) = (self, other) {
            return left == right;
        }
        match (self.ranges(), other.ranges()) {
            (Some(left), Some(right)) => left.iter().any(|(a, b)| right.iter().any(|(c, d)| a <= d && c <= b)),
            (None, _) | (_, None) => true,
        }
    }

    /// Whether it stands for every character that the other stands for. [`Piece::Run`] is not asked.
    fn covers(&self, other: &Piece) -> bool {
        if let (Piece::One(left), Piece::One(right)) = (self, other) {
            return left == right;
        }
        match (self.ranges(), other.ranges()) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(left), Some(right)) => right.iter().all(|(c, d)| left.iter().any(|(a, b)| a <= c && d <= b)),
        }
    }

    /// The characters that it stands for, unless it is any.
    fn ranges(&self) -> Option<Vec<(char, char)>> {
        match self {
            Piece::One(c) => Some(vec![(*c, *c)]),
            Piece::Of(ranges) => Some(ranges.clone()),
            Piece::Any | Piece::Run => None,
        }
    }
}

/// What stands between brackets. A single character is itself: `[_]`, `[%]`.
fn class(listed: &str) -> Piece {
    let mut ranges = Vec::new();
    let mut rest = listed.chars();
    while let Some(first) = rest.next() {
        let mut ahead = rest.clone();
        match (ahead.next(), ahead.next()) {
            (Some('-'), Some(last)) => {
                ranges.push((first, last));
                rest = ahead;
            }
            (Some(_) | None, _) => ranges.push((first, first)),
        }
    }
    match ranges.as_slice() {
        [(first, last)] if first == last => Piece::One(*first),
        _ => Piece::Of(ranges),
    }
}

/// A wildcard in a pattern of ours.
fn is_special(c: char) -> bool {
    matches!(c, '*' | '?' | '[')
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What comes before the first run of either side meets piece by piece, which tells most names apart.
fn meets(mut left: &[Piece], mut right: &[Piece]) -> bool {
    while let ([first, left_rest @ ..], [other, right_rest @ ..]) = (left, right) {
        if *first == Piece::Run || *other == Piece::Run {
            break;
        }
        if !first.meets(other) {
            return false;
        }
        (left, right) = (left_rest, right_rest);
    }
    runs_meet(left, right)
}

/// Both are walked at once; `reached[j]` says that the pieces so far can meet the first `j` of the right side.
fn runs_meet(left: &[Piece], right: &[Piece]) -> bool {
    let mut reached = vec![false; right.len() + 1];
    reached[0] = true;
    skip_runs(&mut reached, right);
    for piece in left {
        let mut next = vec![false; right.len() + 1];
        for (j, _) in reached.iter().enumerate().filter(|(_, is_reached)| **is_reached) {
            match (piece, right.get(j)) {
                (Piece::Run, _) => next[j..].fill(true),
                (_, Some(Piece::Run)) => next[j] = true,
                (piece, Some(other)) if piece.meets(other) => next[j + 1] = true,
                (_, Some(_) | None) => {}
            }
        }
        skip_runs(&mut next, right);
        reached = next;
    }
    reached[right.len()]
}

/// A run may stand for nothing.
fn skip_runs(reached: &mut [bool], right: &[Piece]) {
    for (j, piece) in right.iter().enumerate() {
        if reached[j] && *piece == Piece::Run {
            reached[j + 1] = true;
        }
    }
}

/// The pieces of the right side are taken as if they were characters: a run of it is taken by a run only.
fn covers(left: &[Piece], right: &[Piece]) -> bool {
    let (mut l, mut r) = (0, 0);
    let mut last_run = None;
    while r < right.len() {
        match (left.get(l), last_run) {
            (Some(Piece::Run), _) => {
                last_run = Some((l, r));
                l += 1;
            }
            (Some(piece), _) if right[r] != Piece::Run && piece.covers(&right[r]) => (l, r) = (l + 1, r + 1),
            (_, Some((run, from))) => {
                last_run = Some((run, from + 1));
                (l, r) = (run + 1, from + 1);
            }
            (_, None) => return false,
        }
    }
    left[l..].iter().all(|piece| *piece == Piece::Run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{NamePattern, Pattern};

    fn name(text: &str) -> Name {
        Name::parse(text, Underscore::AnyCharacter)
    }

    #[test]
    fn every_wildcard_has_its_form() {
        for (text, written) in [
            ("orders", "orders"),
            ("%", "*"),
            ("tmp%", "tmp*"),
            ("order_items", "order?items"),
            ("order[_]items", "order_items"),
            ("p[ab]", "p[ab]"),
            ("p[a-dx]%", "p[a-dx]*"),
            ("50[%]", "50%"),
            ("a[b", "\"a[b\""),
            ("a*", "\"a*\""),
            ("a*%", "a[*]*"),
            ("a[]%", "a[[]]*"),
            ("a.b", "\"a.b\""),
            ("my table", "\"my table\""),
            ("a\"b", "\"a\"\"b\""),
        ] {
            assert_eq!(name(text).as_part().as_deref(), Ok(written), "{text}");
            assert!(format!("s.{written}").parse::<Pattern>().is_ok(), "{text}");
            assert!(name(text).as_column().parse::<NamePattern>().is_ok(), "{text}");
        }
        assert_eq!(name("a.b%").as_part(), Err(NoPattern));
        assert_eq!(name("a.b%").as_column(), "a.b*");
        assert_eq!(name("a[.x]b").as_part(), Err(NoPattern));
        assert_eq!(Name::parse("order_items", Underscore::Itself).as_part().as_deref(), Ok("order_items"));
        assert_eq!(Name::literal("a_%").as_part().as_deref(), Ok("a_%"));
    }

    #[test]
    fn what_is_written_means_what_was_read() {
        for (text, yes, no) in [
            ("a_c%", "abc", "ac"),
            ("a[_]c%", "a_cd", "abc"),
            ("p[a-c]", "pb", "pd"),
            ("a*%", "a*b", "ab"),
            ("a[]%", "a[]b", "ab"),
        ] {
            let pattern: NamePattern = name(text).as_column().parse().unwrap();
            assert!(pattern.matches(yes) && !pattern.matches(no), "{text} as {pattern}");
        }
    }

    #[test]
    fn names_meet_and_cover() {
        for (left, right, meets, covers) in [
            ("%", "orders", true, true),
            ("orders", "%", true, false),
            ("a%", "%b", true, false),
            ("a%", "b%", false, false),
            ("a%", "ab%", true, true),
            ("%a%", "%a", true, true),
            ("a_", "a[bc]", true, true),
            ("a[b-d]", "ac", true, true),
            ("a[b-d]", "a[ce]", true, false),
            ("a[bc]", "a[de]", false, false),
            ("%a%b", "xaxb", true, true),
            ("%a%b", "xaxc", false, false),
            ("order_items", "order_items", true, true),
            ("_", "%", true, false),
            ("", "%", true, false),
            ("a", "", false, false),
        ] {
            assert_eq!(name(left).meets(&name(right)), meets, "{left} meets {right}");
            assert_eq!(name(right).meets(&name(left)), meets, "{right} meets {left}");
            assert_eq!(name(left).covers(&name(right)), covers, "{left} covers {right}");
        }
    }

    #[test]
    fn an_underscore_alone_makes_no_name_one_of_many() {
        assert_eq!(name("order_items").single().as_deref(), Some("order_items"));
        assert_eq!(name("order[_]items").single().as_deref(), Some("order_items"));
        assert_eq!(name("order%").single(), None);
        assert_eq!(name("p[ab]").single(), None);
    }
}
