//! The two forms of a connection string, `keyword=value …` and URI: text comes in, the value of each keyword goes out.
//! The rules are libpq's, read from "Connection Strings" in its documentation and, where that is silent, from
//! `conninfo_parse` and `conninfo_uri_parse_options` in `fe-connect.c`.

use super::{DsnError, KEYWORDS, Settings};

pub(super) fn read(text: &str) -> Result<Settings, DsnError> {
    let uri = ["postgresql://", "postgres://"].into_iter().find_map(|scheme| text.strip_prefix(scheme));
    match uri {
        Some(rest) => read_uri(rest),
        None => read_keywords(text),
    }
}

fn read_keywords(text: &str) -> Result<Settings, DsnError> {
    let mut settings = Settings::default();
    let mut rest = text.trim_start_matches(is_space);
    for position in 1.. {
        if rest.is_empty() {
            break;
        }
        let end = rest.find(|c| c == '=' || is_space(c)).ok_or(DsnError::NoEquals { position })?;
        let (keyword, after) = rest.split_at(end);
        let after = after.trim_start_matches(is_space).strip_prefix('=').ok_or(DsnError::NoEquals { position })?;
        let (value, after) = read_value(keyword, after)?;
        settings.set(position, keyword, value)?;
        rest = after.trim_start_matches(is_space);
    }
    Ok(settings)
}

/// The value behind `=` and what follows it. Inside and outside of quotes, a backslash makes the next character literal.
fn read_value<'a>(keyword: &str, text: &'a str) -> Result<(String, &'a str), DsnError> {
    let start = text.trim_start_matches(is_space);
    let (body, quoted) = match start.strip_prefix('\'') {
        Some(body) => (body, true),
        None => (start, false),
    };
    // libpq takes `user= password=x` for the user "password=x", which would then be shown as a user's name.
    if !quoted && start.len() < text.len() {
        let next = start.split_once('=').map(|(next, _)| next.trim_end_matches(is_space));
        if let (Some(_), Some(keyword)) = (next.and_then(known), known(keyword)) {
            return Err(DsnError::NoValue { keyword });
        }
    }
    let mut value = String::new();
    let mut characters = body.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => value.extend(characters.next().map(|(_, literal)| literal)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if !quoted && is_space(c) => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err(DsnError::Unterminated) } else { Ok((value, "")) }
}

fn known(keyword: &str) -> Option<&'static str> {
    KEYWORDS.into_iter().find(|known| *known == keyword)
}

/// What C's `isspace` takes for white space.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// `[user[:password]@][host][:port][/dbname][?keyword=value[&…]]`; a parameter replaces the same value given before it.
///
/// Stricter than libpq: one `@` at most, and only before the first `/`. A password with a bare `@` or `/`
/// would otherwise leave a part of itself in the host or the database's name, and so in messages.
fn read_uri(rest: &str) -> Result<Settings, DsnError> {
    let mut settings = Settings::default();
    let (user_info, rest) = match rest.find(['@', '/']) {
        Some(at) if rest[at..].starts_with('@') => (Some(&rest[..at]), &rest[at + 1..]),
        _ => (None, rest),
    };
    if rest.contains('@') {
        return Err(DsnError::AtSign);
    }
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (address, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    if dbname.contains('/') {
        return Err(DsnError::AtSign);
    }
    if address.contains(',') {
        return Err(DsnError::SeveralHosts);
    }
    let (user, password) = user_info.map_or(("", ""), |info| info.split_once(':').unwrap_or((info, "")));
    let (host, port) = match address.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']').ok_or(DsnError::Bracket)?;
            match after.strip_prefix(':') {
                Some(port) => (host, port),
                None if after.is_empty() => (host, ""),
                None => return Err(DsnError::Bracket),
            }
        }
        None => address.split_once(':').unwrap_or((address, "")),
    };
    for (keyword, value) in [("host", host), ("port", port), ("dbname", dbname), ("user", user), ("password", password)]
    {
        if !value.is_empty() {
            settings.set(0, keyword, percent_decode(value)?)?;
        }
    }
    for (position, parameter) in (1..).zip(parameters.split('&').filter(|_| !parameters.is_empty())) {
        let (keyword, value) = parameter.split_once('=').ok_or(DsnError::Parameter { position })?;
        if value.contains('=') {
            return Err(DsnError::Parameter { position });
        }
        settings.set(position, &percent_decode(keyword)?, percent_decode(value)?)?;
    }
    Ok(settings)
}

/// As in libpq 18, spaces around a value are not part of it; other white space is an error here.
fn percent_decode(text: &str) -> Result<String, DsnError> {
    let text = text.trim_matches(' ');
    if text.contains(is_space) {
        return Err(DsnError::Space);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut segments = text.split('%');
    bytes.extend_from_slice(segments.next().unwrap_or_default().as_bytes());
    for segment in segments {
        let (digits, literal) = segment.split_at_checked(2).ok_or(DsnError::Percent)?;
        // from_str_radix alone would also take a sign.
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(DsnError::Percent);
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| DsnError::Percent)?);
        bytes.extend_from_slice(literal.as_bytes());
    }
    String::from_utf8(bytes).map_err(|_| DsnError::Percent)
}
