//! Table mappings of AWS DMS to our rules: the JSON document comes in, `[tables]` and `[[rule]]`s as TOML go out, with a report
//! of what became of each rule.
//!
//! ```text
//!  text ──json, document──► rules ──selection, transformation──► written rules ──output──► TOML
//!                                    claims, expression, types └──► report
//! ```
//!
//! What always holds: each rule of the mapping is in the report once, with every difference named; what is written is understood
//! by `config`; a rule that cannot do here what it does in DMS is not written at all, except for differences that the report
//! names.

mod claims;
mod document;
mod expression;
mod json;
mod name;
mod output;
mod renaming;
mod report;
mod selection;
mod transformation;
mod types;

#[cfg(test)]
mod tests;

use toml::Value;

use self::claims::{Aspect, Claim, Claims, Place};
use self::document::{Content, Locator, Rule, TableSettings};
use self::name::Name;
use self::output::{Written, WrittenRule};

pub use self::document::RuleId;
pub use self::name::Underscore;
pub use self::report::{Entry, Outcome, Report, Verdict};

/// A mapping in our terms.
#[derive(Clone, Debug)]
pub struct Translation {
    /// For the configuration.
    pub toml: String,
    pub report: Report,
}

/// Why a text is no table mapping. Nothing is translated then.
#[derive(Debug, thiserror::Error)]
pub enum DmsError {
    #[error("this is no JSON: {0}")]
    Json(serde_json::Error),
    #[error("this is no table mapping of AWS DMS: {0}")]
    NoMapping(String),
    #[error("{owner}: {what}")]
    Rule { owner: String, what: String },
}

impl DmsError {
    fn rule(owner: &str, what: impl Into<String>) -> DmsError {
        DmsError::Rule { owner: owner.to_owned(), what: what.into() }
    }
}

/// Translates the text of a table mapping.
///
/// # Errors
/// The text is no mapping, or has actions and keys that are not DMS's.
pub fn translate(text: &str, underscore: Underscore) -> Result<Translation, DmsError> {
    let rules = document::read(text, underscore)?;
    let mut translator =
        Translator { rules: &rules, claims: Claims::default(), written: Written::default(), kept: Vec::new() };
    let entries = rules.iter().map(|rule| Entry {
        rule_id: rule.id,
        rule_name: rule.name.clone(),
        rule: rule.title.clone(),
        verdict: translator.rule(rule),
    });
    let rules = entries.collect();
    let report = Report { rules, includes_nothing: translator.written.include.is_empty() };
    Ok(Translation { toml: translator.written.to_string(), report })
}

struct Translator<'r> {
    /// All of them, the lowest number first.
    rules: &'r [Rule],
    claims: Claims,
    written: Written,
    kept: Vec<Kept>,
}

/// The columns that are kept of some tables, in the written rule at this place.
struct Kept {
    of: RuleId,
    pattern: String,
    schema: Name,
    table: Name,
    at: usize,
}

impl Kept {
    fn meets(&self, locator: &Locator) -> bool {
        self.schema.meets(&locator.schema) && self.table.meets(&locator.table)
    }
}

impl Translator<'_> {
    fn rule(&mut self, rule: &Rule) -> Verdict {
        let mut verdict = match &rule.content {
            Content::Selection(selection) => self.selection(rule, selection),
            Content::Transformation(transformation) => self.transformation(rule, transformation),
            Content::TableSettings(settings) => table_settings(settings),
            Content::Validation => Verdict::not_possible(
                "there are no functions for validation; compare rows on both ends by a tool of your own",
            ),
            Content::ObjectMapping => {
                Verdict::not_possible("object-mapping is for streaming targets, such as Kinesis and Kafka")
            }
        };
        rule.notes.iter().for_each(|note| verdict.changed(note));
        verdict
    }

    fn claim(&mut self, of: RuleId, aspect: Aspect, (schema, table): (&Name, &Name), column: Option<&Name>) -> Place {
        let column = column.cloned().unwrap_or_else(Name::all);
        self.claims.place(Claim { of, aspect, schema: schema.clone(), table: table.clone(), column })
    }

    fn write(&mut self, rule: &Rule, table: &str, keys: Vec<(&'static str, Value)>, yields: bool) {
        let of = vec![(rule.id, rule.name.clone())];
        self.written.rules.push(WrittenRule { of, table: table.to_owned(), keys, yields });
    }
}

/// What they set is done here without a setting, mostly.
fn table_settings(settings: &TableSettings) -> Verdict {
    let mut verdict = Verdict::carried();
    match settings.parallel_load.as_deref() {
        None => {}
        Some("partitions-list") => {
            verdict.changed("parallel-load: all partitions are copied, and not those of the list only");
        }
        Some(_) => verdict.note("parallel-load needs no setting: tables are copied by ranges at the same time"),
    }
    match settings.lob_mode.as_deref() {
        None => {}
        Some("none") => {
            verdict.changed(
                "lob-settings: large values are replicated, where the mode none leaves them out; see drop_columns",
            );
        }
        Some("limited") => verdict.changed("lob-settings: values are replicated whole, whatever their size"),
        Some(_) => verdict.note("lob-settings need no setting: values are replicated whole"),
    }
    verdict
}
