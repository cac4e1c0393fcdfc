//! What the file says of rules: each `[[rule]]` comes in, a [`Rule`] goes out whose patterns, names and masks are understood.
//! Whether it fits the tables, only the tables can tell.

use std::collections::BTreeMap;
use std::ops::Range;
use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;

use super::file::{File, text_of};
use super::raw::{OneOrMore, RawMask, RawMaskTable, RawRenaming, RawRule, RawSteps, Text, line_of};
use super::{ConfigError, NamePattern, OWN_SCHEMA, Pattern, PatternError, Problem, Secret};

/// The table of the file.
const RULE: &str = super::raw::RULE;
/// A shorter secret is found by trying.
const SECRET_BYTES_MIN: usize = 16;
/// Of a hash in hexadecimal digits: below, values meet by chance.
const HASH_LENGTH_MIN: i64 = 16;
const HASH_LENGTH: usize = 64;

/// What is done to the rows of some tables.
#[derive(Clone, Debug)]
pub struct Rule {
    /// In the file, counted from 1.
    pub line: usize,
    pub(crate) tables: Vec<Pattern>,
    pub(crate) except: Vec<Pattern>,
    /// A condition of SQL; rows that do not meet it are left out.
    pub filter: Option<String>,
    pub rename_schema: Option<Renaming>,
    pub rename_table: Option<Renaming>,
    pub rename_columns: Vec<(NamePattern, Renaming)>,
    pub drop_columns: Vec<NamePattern>,
    /// All others are dropped.
    pub keep_columns: Option<Vec<NamePattern>>,
    pub masks: Vec<(NamePattern, Mask)>,
    /// Columns of the target, and the expressions of SQL that they get their values from.
    pub set: Vec<(String, String)>,
    /// Columns of the source, and the types that they become.
    pub cast: Vec<(String, String)>,
    /// Columns of the target by which a row is found there.
    pub key: Option<Vec<String>>,
    /// A delete becomes an update that says so.
    pub soft_delete: bool,
    /// Where another rule decides the same, that one stands.
    pub yields: bool,
}

impl Rule {
    pub fn matches(&self, schema: &str, table: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(schema, table));
        schema != OWN_SCHEMA && any(&self.tables) && !any(&self.except)
    }

    /// The patterns of its tables; never empty.
    pub fn tables(&self) -> &[Pattern] {
        &self.tables
    }
}

/// How a name becomes another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renaming {
    To(String),
    By(Vec<NameStep>),
}

/// One after the other, as `Renaming::By` lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameStep {
    Replace(String, String),
    ReplacePrefix(String, String),
    ReplaceSuffix(String, String),
    Case(LetterCase),
    AddPrefix(String),
    AddSuffix(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LetterCase {
    Lower,
    Upper,
}

impl Renaming {
    pub fn apply(&self, name: &str) -> String {
        match self {
            Renaming::To(name) => name.clone(),
            Renaming::By(steps) => steps.iter().fold(name.to_owned(), |name, step| step.apply(name)),
        }
    }
}

impl NameStep {
    fn apply(&self, name: String) -> String {
        match self {
            NameStep::Replace(old, new) => name.replace(old, new),
            NameStep::ReplacePrefix(old, new) => match name.strip_prefix(old) {
                Some(rest) => format!("{new}{rest}"),
                None => name,
            },
            NameStep::ReplaceSuffix(old, new) => match name.strip_suffix(old) {
                Some(rest) => format!("{rest}{new}"),
                None => name,
            },
            NameStep::Case(LetterCase::Lower) => name.to_lowercase(),
            NameStep::Case(LetterCase::Upper) => name.to_uppercase(),
            NameStep::AddPrefix(prefix) => format!("{prefix}{name}"),
            NameStep::AddSuffix(suffix) => format!("{name}{suffix}"),
        }
    }
}

/// What takes the place of a value that must not leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mask {
    Null,
    Fixed(String),
    /// Its hash in hexadecimal digits, so many of them.
    Sha256 {
        length: usize,
    },
    /// The same with the secret as key: nobody can find the value by trying.
    HmacSha256 {
        length: usize,
        secret: Secret,
    },
    /// Every digit becomes this character.
    Digits {
        with: char,
    },
    /// Every digit becomes another one, by chance each time.
    DigitsRandom,
    /// Every character but the first and the last so many becomes `with`.
    Partial {
        first: usize,
        last: usize,
        with: char,
    },
    /// The part before the `@` becomes a keyed hash, and the domain `domain`, or stays.
    Email {
        domain: Option<String>,
        secret: Secret,
    },
}

pub(super) fn resolve(
    file: &File<'_>,
    rules: Vec<Spanned<RawRule>>,
    secret: Option<Secret>,
) -> Result<Vec<Rule>, ConfigError> {
    rules
        .into_iter()
        .map(|rule| RuleText { file, at: rule.span(), secret: secret.as_ref() }.resolve(rule.into_inner()))
        .collect()
}

/// One rule of the file.
struct RuleText<'a> {
    file: &'a File<'a>,
    at: Range<usize>,
    secret: Option<&'a Secret>,
}

impl RuleText<'_> {
    fn resolve(&self, raw: RawRule) -> Result<Rule, ConfigError> {
        let Some(tables) = raw.table else {
            let what = "is missing; name a table or a pattern, such as table = \"public.*\"";
            return Err(self.wrong("table", &self.at, what));
        };
        let mut rule = Rule {
            line: line_of(self.file.text, &self.at),
            tables: self.patterns("table", tables)?,
            except: self.optional("except", raw.except)?.unwrap_or_default(),
            filter: raw.filter.map(|text| text_of(text).0),
            rename_schema: self.renaming("rename_schema", raw.rename_schema)?,
            rename_table: self.renaming("rename_table", raw.rename_table)?,
            rename_columns: self.by_column("rename_columns", raw.rename_columns, renaming)?,
            drop_columns: self.optional("drop_columns", raw.drop_columns)?.unwrap_or_default(),
            keep_columns: self.optional("keep_columns", raw.keep_columns)?,
            masks: self.by_column("mask", raw.mask, |raw| self.mask(raw))?,
            set: texts(raw.set),
            cast: texts(raw.cast),
            key: raw.key.map(|key| list(key.into_inner())),
            soft_delete: raw.soft_delete.unwrap_or(false),
            yields: raw.yields.unwrap_or(false),
        };
        if let Some(name) = raw.rename_to {
            let (name, at) = text_of(name);
            let parsed: Pattern = self.parse("rename_to", &at, &name)?;
            let Some((schema, table)) = parsed.exact() else {
                let what = format!("\"{name}\" is no single name; write schema.table");
                return Err(self.wrong("rename_to", &at, what));
            };
            if rule.rename_schema.is_some() || rule.rename_table.is_some() {
                let what = "says the same as rename_schema and rename_table; keep one of them";
                return Err(self.wrong("rename_to", &at, what));
            }
            rule.rename_schema = Some(Renaming::To(schema.to_owned()));
            rule.rename_table = Some(Renaming::To(table.to_owned()));
        }
        if rule.keep_columns.is_some() && !rule.drop_columns.is_empty() {
            return Err(self.wrong("keep_columns", &self.at, "drops all others already; leave out drop_columns"));
        }
        Ok(rule)
    }

    fn wrong(&self, key: &str, at: &Range<usize>, what: impl Into<String>) -> ConfigError {
        self.file.value(RULE, key, at, Problem::Type(what.into()))
    }

    fn parse<T: FromStr<Err = PatternError>>(
        &self,
        key: &str,
        at: &Range<usize>,
        text: &str,
    ) -> Result<T, ConfigError> {
        text.parse().map_err(|error| self.file.value(RULE, key, at, Problem::Pattern(error)))
    }

    fn patterns<T: FromStr<Err = PatternError>>(
        &self,
        key: &str,
        value: Spanned<OneOrMore>,
    ) -> Result<Vec<T>, ConfigError> {
        patterns(self.file, RULE, key, value)
    }

    fn optional<T: FromStr<Err = PatternError>>(
        &self,
        key: &str,
        value: Option<Spanned<OneOrMore>>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        value.map(|value| self.patterns(key, value)).transpose()
    }

    fn renaming(&self, key: &str, value: Option<Spanned<RawRenaming>>) -> Result<Option<Renaming>, ConfigError> {
        let Some(value) = value else { return Ok(None) };
        let at = value.span();
        renaming(value.into_inner()).map(Some).map_err(|what| self.wrong(key, &at, what))
    }

    /// Values that stand at names of columns.
    fn by_column<R, T>(
        &self,
        key: &str,
        value: Option<Spanned<BTreeMap<String, R>>>,
        resolve: impl Fn(R) -> Result<T, String>,
    ) -> Result<Vec<(NamePattern, T)>, ConfigError> {
        let Some(value) = value else { return Ok(Vec::new()) };
        let at = value.span();
        let one = |(column, raw): (String, R)| {
            let pattern = self.parse(key, &at, &column)?;
            let value = resolve(raw).map_err(|what| self.wrong(key, &at, format!("`{column}`: {what}")))?;
            Ok((pattern, value))
        };
        value.into_inner().into_iter().map(one).collect()
    }

    fn mask(&self, raw: RawMask) -> Result<Mask, String> {
        let mut raw = match raw {
            RawMask::Name(of) => RawMaskTable { of, ..RawMaskTable::default() },
            RawMask::Table(table) => table,
        };
        let of = std::mem::take(&mut raw.of);
        let mask = match of.as_str() {
            "null" => Mask::Null,
            "fixed" => Mask::Fixed(
                raw.value.take().ok_or("fixed wants a `value`, such as { type = \"fixed\", value = \"–\" }")?,
            ),
            "sha256" => Mask::Sha256 { length: hash_length(raw.length.take())? },
            "hmac_sha256" => Mask::HmacSha256 { length: hash_length(raw.length.take())?, secret: self.secret(&of)? },
            "digits" => Mask::Digits { with: character(raw.with.take(), '#')? },
            "digits_random" => Mask::DigitsRandom,
            "partial" => {
                let count = |value: Option<i64>| {
                    usize::try_from(value.unwrap_or(0)).map_err(|_| "first and last are not below 0".to_owned())
                };
                let (first, last) = (count(raw.first.take())?, count(raw.last.take())?);
                Mask::Partial { first, last, with: character(raw.with.take(), '*')? }
            }
            "email" => {
                let domain = raw.domain.take().unwrap_or_else(|| "masked.invalid".to_owned());
                if domain.is_empty() || domain.contains(['@', ' ']) {
                    return Err("domain is one such as example.org, or \"keep\"".to_owned());
                }
                Mask::Email { domain: (domain != "keep").then_some(domain), secret: self.secret(&of)? }
            }
            _ => {
                return Err(format!(
                    "there is no mask \"{of}\"; masks are null, fixed, sha256, hmac_sha256, digits, digits_random, \
                     partial and email"
                ));
            }
        };
        let RawMaskTable { of: _, value, length, first, last, with, domain } = raw;
        let left = [
            ("value", value.is_some()),
            ("length", length.is_some()),
            ("first", first.is_some()),
            ("last", last.is_some()),
            ("with", with.is_some()),
            ("domain", domain.is_some()),
        ];
        match left.into_iter().find(|(_, is_left)| *is_left) {
            Some((key, _)) => Err(format!("the mask {of} takes no `{key}`")),
            None => Ok(mask),
        }
    }

    fn secret(&self, mask: &str) -> Result<Secret, String> {
        self.secret.cloned().ok_or_else(|| {
            format!("{mask} wants a secret: add secret_file = \"/run/secrets/masks\" under [masks], a file of at least {SECRET_BYTES_MIN} bytes")
        })
    }
}

/// The patterns of a key, which is to have at least one.
pub(super) fn patterns<T: FromStr<Err = PatternError>>(
    file: &File<'_>,
    table: &str,
    key: &str,
    value: Spanned<OneOrMore>,
) -> Result<Vec<T>, ConfigError> {
    let at = value.span();
    let list = list(value.into_inner());
    if list.is_empty() {
        let problem = Problem::Type("the list is empty; name at least one".to_owned());
        return Err(file.value(table, key, &at, problem));
    }
    let parse = |text: &String| text.parse().map_err(|error| file.value(table, key, &at, Problem::Pattern(error)));
    list.iter().map(parse).collect()
}

/// # Errors
/// The fault of a secret that protects nothing.
pub(super) fn check_secret(secret: &Secret) -> Result<(), String> {
    if secret.expose().len() >= SECRET_BYTES_MIN {
        return Ok(());
    }
    Err(format!("the secret is shorter than {SECRET_BYTES_MIN} bytes, and can be found by trying"))
}

fn list(value: OneOrMore) -> Vec<String> {
    match value {
        OneOrMore::One(one) => vec![one],
        OneOrMore::More(list) => list,
    }
}

fn texts(value: Option<Spanned<BTreeMap<String, Text>>>) -> Vec<(String, String)> {
    let texts = value.map(Spanned::into_inner).unwrap_or_default();
    texts.into_iter().map(|(name, Text::Text(text))| (name, text)).collect()
}

fn renaming(raw: RawRenaming) -> Result<Renaming, String> {
    let steps = match raw {
        RawRenaming::To(name) if name.is_empty() => return Err("a name cannot be empty".to_owned()),
        RawRenaming::To(name) => return Ok(Renaming::To(name)),
        RawRenaming::Steps(steps) => *steps,
    };
    let RawSteps {
        replace,
        replace_prefix,
        replace_suffix,
        remove_prefix,
        remove_suffix,
        case,
        add_prefix,
        add_suffix,
    } = steps;
    let pair = |make: fn(String, String) -> NameStep| move |[old, new]: [String; 2]| make(old, new);
    let steps: Vec<_> = [
        replace.map(pair(NameStep::Replace)),
        replace_prefix.map(pair(NameStep::ReplacePrefix)),
        replace_suffix.map(pair(NameStep::ReplaceSuffix)),
        remove_prefix.map(|old| NameStep::ReplacePrefix(old, String::new())),
        remove_suffix.map(|old| NameStep::ReplaceSuffix(old, String::new())),
        case.map(NameStep::Case),
        add_prefix.map(NameStep::AddPrefix),
        add_suffix.map(NameStep::AddSuffix),
    ]
    .into_iter()
    .flatten()
    .collect();
    if steps.is_empty() { Err("says nothing".to_owned()) } else { Ok(Renaming::By(steps)) }
}

fn hash_length(length: Option<i64>) -> Result<usize, String> {
    match length {
        None => Ok(HASH_LENGTH),
        Some(length) if (HASH_LENGTH_MIN..=HASH_LENGTH as i64).contains(&length) => Ok(length as usize),
        Some(_) => Err(format!("length is {HASH_LENGTH_MIN} to {HASH_LENGTH} hexadecimal digits")),
    }
}

fn character(text: Option<String>, default: char) -> Result<char, String> {
    let Some(text) = text else { return Ok(default) };
    let mut characters = text.chars();
    match (characters.next(), characters.next()) {
        (Some(one), None) => Ok(one),
        _ => Err("`with` is one character".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const LEAST: &str = "name = \"n\"\nsource.dsn = \"host=/s user=u\"\ntarget.dsn = \"host=/t user=u\"\n\
                         tables.include = [\"s.*\"]\nmasks.secret_env = \"SECRET\"\n";

    fn rules(text: &str) -> Result<Vec<Rule>, String> {
        let env = |name: &str| (name == "SECRET").then(|| "0123456789abcdef".to_owned());
        let config = Config::parse(&format!("{LEAST}{text}"), "p.toml".as_ref(), &env);
        config.map(|config| config.rules).map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_has_its_meaning() {
        let rules = rules(
            r#"
            [[rule]]
            table = "s.customers"
            where = "region = 'EU'"
            rename_to = "crm.customers_eu"
            drop_columns = "notes"
            rename_columns = { cust_id = "customer_id", "*_X" = { case = "lower", remove_suffix = "_X", add_prefix = "x_" } }
            mask = { email = "hmac_sha256", phone = "null", card = { type = "partial", last = 4 } }
            set = { loaded_from = "'eu-west'" }
            cast = { price = "integer" }
            key = ["customer_id"]
            soft_delete = true
            [[rule]]
            table = ["s.*", "t.a[bc]"]
            except = "s.customers"
            keep_columns = ["id", "a*"]
            yields = true
            "#,
        )
        .unwrap();
        let [one, other] = rules.as_slice() else { panic!("{rules:?}") };
        assert_eq!((one.line, one.filter.as_deref()), (7, Some("region = 'EU'")));
        assert!(one.matches("s", "customers") && !one.matches("s", "x"));
        assert!(!one.matches("pgsluice", "customers"));
        assert_eq!(one.rename_schema, Some(Renaming::To("crm".to_owned())));
        assert_eq!(one.rename_table, Some(Renaming::To("customers_eu".to_owned())));
        let renamed =
            |name| one.rename_columns.iter().find(|(column, _)| column.matches(name)).map(|(_, to)| to.apply(name));
        assert_eq!(renamed("cust_id").as_deref(), Some("customer_id"));
        assert_eq!(renamed("AB_X").as_deref(), Some("x_ab"));
        assert_eq!(one.masks.len(), 3);
        assert_eq!(one.set, [("loaded_from".to_owned(), "'eu-west'".to_owned())]);
        assert!(one.soft_delete && !one.yields && other.yields);
        assert_eq!(one.key.as_deref(), Some(["customer_id".to_owned()].as_slice()));
        assert!(other.matches("s", "x") && other.matches("t", "ab") && !other.matches("s", "customers"));
        assert!(other.keep_columns.as_ref().is_some_and(|keep| keep[1].matches("ab")));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, what) in [
            ("where = 'a'", "`table` in [rule], line 6: is missing"),
            ("table = 's.a'\nfilter = 'a'", "unknown key `filter` in [rule], line 8"),
            ("table = 'a'", "line 7: \"a\" names no schema"),
            ("table = []", "line 7: the list is empty"),
            ("table = 's.a'\nrename_to = 's.*'", "`rename_to` in [rule], line 8: \"s.*\" is no single name"),
            ("table = 's.a'\nrename_to = 's.b'\nrename_table = 'c'", "line 8: says the same"),
            ("table = 's.a'\nmask = { a = 'md5' }", "`mask` in [rule], line 8: `a`: there is no mask \"md5\""),
            ("table = 's.a'\nmask = { a = { type = 'null', first = 1 } }", "the mask null takes no `first`"),
            ("table = 's.a'\nmask = { a = { type = 'sha256', length = 4 } }", "length is 16 to 64"),
            ("table = 's.a'\nmask = { a = 3 }", "`mask` in [rule], line 8: expected the name of a mask"),
            ("table = 's.a'\nrename_columns = { a = { upper = true } }", "line 8: expected a new name"),
            ("table = 's.a'\nrename_columns = { a = {} }", "`a`: says nothing"),
            ("table = 's.a'\ndrop_columns = 'x'\nkeep_columns = 'a'", "drops all others already"),
        ] {
            let complaint = rules(&format!("[[rule]]\n{text}")).unwrap_err();
            assert!(complaint.contains(what), "{complaint}");
        }
        assert!(rules("[rule]\ntable = 's.a'").unwrap_err().contains("expected rules, each below a line [[rule]]"));
    }
}
