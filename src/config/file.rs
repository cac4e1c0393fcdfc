//! The file of the configuration, as what its values are checked against: a value comes in with its place, and what it means
//! or an error that names the place goes out.

use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::raw::{Count, Size, Text, TextList, line_of};
use super::{ConfigError, Key, Problem, Secret};

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What every value of one file is resolved against.
pub(super) struct File<'a> {
    pub(super) text: &'a str,
    pub(super) path: &'a Path,
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
}

impl File<'_> {
    pub(super) fn value(&self, table: &str, key: &str, at: &Range<usize>, problem: Problem) -> ConfigError {
        let (line, problem) = (line_of(self.text, at), Box::new(problem));
        ConfigError::Value { path: self.path.to_owned(), key: Key::new(table, key), line, problem }
    }

    pub(super) fn required<T>(
        &self,
        value: Option<T>,
        table: &str,
        key: &str,
        example: &'static str,
    ) -> Result<T, ConfigError> {
        value.ok_or_else(|| ConfigError::MissingKey { path: self.path.to_owned(), key: Key::new(table, key), example })
    }

    /// A path that is meant from where the configuration lies.
    pub(super) fn beside(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    pub(super) fn second_password(
        &self,
        table: &str,
        key: &str,
        at: Spanned<Text>,
        other: &'static str,
    ) -> ConfigError {
        self.value(table, key, &at.span(), Problem::SecondPassword { other })
    }

    /// The file's text without its last line's end, which editors add and nobody means.
    pub(super) fn secret_file(&self, table: &str, key: &str, file: Spanned<Text>) -> Result<Secret, ConfigError> {
        let (file, at) = text_of(file);
        let path = self.beside(&file);
        let fail = |problem| self.value(table, key, &at, problem);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => return Err(fail(Problem::PasswordFile { path, error })),
        };
        let line = text.strip_suffix('\n').unwrap_or(&text);
        match line.strip_suffix('\r').unwrap_or(line) {
            "" => Err(fail(Problem::PasswordFileContent { path, fault: "is empty" })),
            line if line.contains('\0') => {
                Err(fail(Problem::PasswordFileContent { path, fault: "holds a zero byte, which no password can" }))
            }
            line => Ok(Secret::new(line.to_owned())),
        }
    }

    pub(super) fn secret_env(&self, table: &str, key: &str, variable: Spanned<Text>) -> Result<Secret, ConfigError> {
        let (variable, at) = text_of(variable);
        match (self.env)(&variable).filter(|password| !password.is_empty()) {
            Some(password) => Ok(Secret::new(password)),
            None => Err(self.value(table, key, &at, Problem::PasswordEnv)),
        }
    }

    pub(super) fn duration(
        &self,
        table: &str,
        key: &str,
        value: Option<Spanned<Text>>,
        range: RangeInclusive<Duration>,
    ) -> Result<Option<Duration>, ConfigError> {
        let Some((found, at)) = value.map(text_of) else { return Ok(None) };
        let checked = match humantime::parse_duration(&found) {
            Ok(duration) => within(duration, &range, |duration| humantime::format_duration(*duration).to_string()),
            Err(error) => Err(Problem::Duration { found, error }),
        };
        checked.map(Some).map_err(|problem| self.value(table, key, &at, problem))
    }

    pub(super) fn count(
        &self,
        table: &str,
        key: &str,
        value: Option<Spanned<Count>>,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ConfigError> {
        let Some(value) = value else { return Ok(None) };
        let Count::Number(count) = *value.get_ref();
        // A negative number is out of range like 0, and shown as what was written.
        let checked = match usize::try_from(count) {
            Ok(count) => within(count, &range, usize::to_string),
            Err(_) => Err(out_of_range(count.to_string(), &range, usize::to_string)),
        };
        checked.map(Some).map_err(|problem| self.value(table, key, &value.span(), problem))
    }

    pub(super) fn size(
        &self,
        table: &str,
        key: &str,
        value: Option<Spanned<Size>>,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ConfigError> {
        let Some(value) = value else { return Ok(None) };
        let bytes = match value.get_ref() {
            Size::Number(bytes) => {
                u64::try_from(*bytes).map_err(|_| out_of_range(bytes.to_string(), &range, |bytes| size_text(*bytes)))
            }
            Size::Text(text) => parse_size(text).ok_or_else(|| Problem::Size { found: text.clone() }),
        };
        let checked = bytes.and_then(|bytes| within(bytes, &range, |bytes| size_text(*bytes)));
        checked.map(Some).map_err(|problem| self.value(table, key, &value.span(), problem))
    }
}

pub(super) fn text_of(value: Spanned<Text>) -> (String, Range<usize>) {
    let at = value.span();
    let Text::Text(text) = value.into_inner();
    (text, at)
}

pub(super) fn list_of(value: Spanned<TextList>) -> (Vec<String>, Range<usize>) {
    let at = value.span();
    let TextList::List(list) = value.into_inner();
    (list, at)
}

fn within<T: PartialOrd>(value: T, range: &RangeInclusive<T>, show: fn(&T) -> String) -> Result<T, Problem> {
    if range.contains(&value) { Ok(value) } else { Err(out_of_range(show(&value), range, show)) }
}

fn out_of_range<T>(found: String, range: &RangeInclusive<T>, show: fn(&T) -> String) -> Problem {
    Problem::OutOfRange { found, least: show(range.start()), most: show(range.end()) }
}

/// `KiB` is 1024 bytes and `kB` 1000, as the IEC and the SI have it. (In `postgresql.conf` `kB` is 1024.)
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim_start() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => KIB,
        "MiB" => MIB,
        "GiB" => GIB,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn size_text(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        _ if bytes.is_multiple_of(MIB) => format!("{}MiB", bytes / MIB),
        _ if bytes.is_multiple_of(KIB) => format!("{}KiB", bytes / KIB),
        _ => format!("{bytes} bytes"),
    }
}
