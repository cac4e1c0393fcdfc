//! SQLite's functions of dates and times. It has no types for them: its results are texts, which these give too where they are
//! cut out of one, and dates and times where they are those.

use super::sql::{Operator, Sql};

type Outcome = Result<Sql, String>;

/// `date`, `time` and `datetime` of a moment, to the second.
pub(super) fn named(function: &str, moment: &Sql) -> Outcome {
    is_fixed(function, moment)?;
    match function {
        "date" => Ok(moment.clone().cast("date")),
        "time" => Ok(seconds(moment).cast("time")),
        _ => Ok(seconds(moment)),
    }
}

/// `strftime`: each part of the format is cut out of a text of the date or of the time.
pub(super) fn formatted(format: &str, moment: &Sql) -> Outcome {
    is_fixed("strftime", moment)?;
    match format {
        "%Y-%m-%d" | "%F" => return Ok(moment.clone().cast("date").cast("text")),
        "%H:%M:%S" | "%T" => return Ok(seconds(moment).cast("time").cast("text")),
        "%Y-%m-%d %H:%M:%S" => return Ok(seconds(moment).cast("text")),
        _ => {}
    }
    let mut parts = Vec::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        match c {
            '%' => parts.push(conversion(characters.next(), moment)?),
            c => match parts.last_mut() {
                Some(Sql::Text(text)) => text.push(c),
                Some(_) | None => parts.push(Sql::Text(c.to_string())),
            },
        }
    }
    let concatenate = |left, right| Sql::Binary(Operator::Concatenate, Box::new(left), Box::new(right));
    parts.into_iter().reduce(concatenate).ok_or_else(|| "strftime has an empty format".to_owned())
}

fn conversion(letter: Option<char>, moment: &Sql) -> Outcome {
    // 2024-02-29 and 12:34:56, cut where a part begins.
    let cut = |text: Sql, from: u8, length: u8| {
        let position = [from, length].map(|number| Sql::Number(number.to_string()));
        Sql::Call("substr", [text].into_iter().chain(position).collect())
    };
    let date = || moment.clone().cast("date").cast("text");
    let time = || seconds(moment).cast("time").cast("text");
    Ok(match letter {
        Some('Y') => cut(date(), 1, 4),
        Some('m') => cut(date(), 6, 2),
        Some('d') => cut(date(), 9, 2),
        Some('F') => date(),
        Some('H') => cut(time(), 1, 2),
        Some('M') => cut(time(), 4, 2),
        Some('S') => cut(time(), 7, 2),
        Some('T') => time(),
        Some('R') => cut(time(), 1, 5),
        Some('s') => {
            let epoch = Sql::Extract("epoch", Box::new(moment.clone().cast("timestamp")));
            Sql::Call("floor", vec![epoch]).cast("bigint").cast("text")
        }
        Some('%') => Sql::text("%"),
        Some(letter) => return Err(format!("strftime has no %{letter} here")),
        None => return Err("the format of strftime ends with %".to_owned()),
    })
}

fn seconds(moment: &Sql) -> Sql {
    Sql::Call("date_trunc", vec![Sql::text("second"), moment.clone().cast("timestamp")])
}

/// # Errors
/// The moment is that of the evaluation.
fn is_fixed(function: &str, moment: &Sql) -> Result<(), String> {
    match moment {
        Sql::Text(text) if text.eq_ignore_ascii_case("now") => Err(now(function)),
        _ => Ok(()),
    }
}

pub(super) fn now(function: &str) -> String {
    format!("{function} of the moment depends on the clock, and a row must come out the same whenever it is evaluated")
}
