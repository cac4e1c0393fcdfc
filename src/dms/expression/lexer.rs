//! The text of an expression to its tokens.

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// `$NAME`, without the sign.
    Dollar(String),
    /// A keyword or the name of a function.
    Word(String),
    Text(String),
    Number(String),
    Sign(&'static str),
}

/// The longer ones first.
const SIGNS: [&str; 18] =
    ["||", "==", "<>", "!=", "<=", ">=", "<", ">", "=", "(", ")", ",", "+", "-", "*", "/", "%", ";"];
/// The quotes of strings, straight and as word processors make them. SQLite takes a name in double quotes that is no column for
/// a string, and the columns here have a `$`.
const SINGLE: [char; 3] = ['\'', '‘', '’'];
const DOUBLE: [char; 3] = ['"', '“', '”'];

pub fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, after) = match first {
            '$' => dollar(&rest[1..])?,
            c if SINGLE.contains(&c) => string(rest, &SINGLE)?,
            c if DOUBLE.contains(&c) => string(rest, &DOUBLE)?,
            c if c.is_ascii_digit() || c == '.' => number(rest)?,
            c if c.is_alphabetic() || c == '_' => {
                let (word, after) = split(rest, |c| c.is_alphanumeric() || c == '_');
                (Token::Word(word.to_owned()), after)
            }
            c => match SIGNS.iter().find_map(|sign| Some((*sign, rest.strip_prefix(sign)?))) {
                Some((sign, after)) => (Token::Sign(sign), after),
                None => return Err(format!("the sign {c} is not supported")),
            },
        };
        tokens.push(token);
        rest = after.trim_start();
    }
    // One that ends a statement says nothing.
    while tokens.last() == Some(&Token::Sign(";")) {
        tokens.pop();
    }
    Ok(tokens)
}

fn dollar(rest: &str) -> Result<(Token, &str), String> {
    let (name, after) = split(rest, |c| c.is_alphanumeric() || matches!(c, '_' | '#'));
    if name.is_empty() {
        return Err("a $ has no name behind it".to_owned());
    }
    Ok((Token::Dollar(name.to_owned()), after))
}

/// A quote inside is written twice.
fn string<'t>(text: &'t str, quotes: &[char]) -> Result<(Token, &'t str), String> {
    let mut content = String::new();
    let mut characters = text.chars();
    characters.next();
    while let Some(c) = characters.next() {
        if !quotes.contains(&c) {
            content.push(c);
            continue;
        }
        let mut ahead = characters.clone();
        if c.is_ascii() && ahead.next() == Some(c) {
            content.push(c);
            characters = ahead;
        } else {
            return Ok((Token::Text(content), characters.as_str()));
        }
    }
    Err("a string is not closed".to_owned())
}

fn number(text: &str) -> Result<(Token, &str), String> {
    let (digits, mut after) = split(text, |c| c.is_ascii_digit() || c == '.');
    let mut number = digits.to_owned();
    if let Some(exponent) = after.strip_prefix(['e', 'E']) {
        let (sign, exponent) = split(exponent, |c| c == '+' || c == '-');
        let (digits, behind) = split(exponent, |c| c.is_ascii_digit());
        number = format!("{number}e{sign}{digits}");
        after = behind;
    }
    let is_cut_short = after.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.');
    if is_cut_short || number.parse::<f64>().is_err() {
        return Err(format!("\"{number}\" begins no number in decimal notation"));
    }
    Ok((Token::Number(if number.starts_with('.') { format!("0{number}") } else { number }), after))
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}
