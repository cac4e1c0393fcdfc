//! What became of each rule, for people and for programs.

use std::fmt;

use serde::{Serialize, Serializer};

use super::document::RuleId;

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Each rule once, the lowest number first.
    pub rules: Vec<Entry>,
    /// DMS replicates nothing then.
    pub includes_nothing: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    pub rule_id: RuleId,
    pub rule_name: String,
    /// Its action and its place.
    pub rule: String,
    #[serde(flatten)]
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub outcome: Outcome,
    /// How it differs, why, and what is to be done.
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It does what it does in DMS.
    Carried,
    /// It does something that differs as the notes say.
    Changed,
    /// Another rule takes precedence in DMS, so it does nothing there and nothing here.
    Ignored,
    NotPossible,
}

impl Verdict {
    pub fn carried() -> Verdict {
        Verdict { outcome: Outcome::Carried, notes: Vec::new() }
    }

    pub fn not_possible(reason: impl Into<String>) -> Verdict {
        Verdict { outcome: Outcome::NotPossible, notes: vec![reason.into()] }
    }

    pub fn ignored(reason: impl Into<String>) -> Verdict {
        Verdict { outcome: Outcome::Ignored, notes: vec![reason.into()] }
    }

    /// The rule does something.
    pub fn is_effective(&self) -> bool {
        match self.outcome {
            Outcome::Carried | Outcome::Changed => true,
            Outcome::Ignored | Outcome::NotPossible => false,
        }
    }

    /// Something to know, which changes nothing.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub fn changed(&mut self, note: impl Into<String>) {
        self.note(note);
        if self.outcome == Outcome::Carried {
            self.outcome = Outcome::Changed;
        }
    }
}

impl Report {
    /// The rules that nothing here stands for.
    pub fn not_possible(&self) -> Vec<RuleId> {
        let rules = self.rules.iter().filter(|entry| entry.verdict.outcome == Outcome::NotPossible);
        rules.map(|entry| entry.rule_id).collect()
    }
}

impl Serialize for RuleId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Outcome::Carried => "carried",
            Outcome::Changed => "changed",
            Outcome::Ignored => "ignored",
            Outcome::NotPossible => "not possible",
        })
    }
}

impl fmt::Display for Report {
    /// A line a rule, and below it one a note.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.rules.iter().map(|entry| entry.rule_id.to_string()).collect();
        let width = ids.iter().map(String::len).chain(["rule-id".len()]).max().unwrap_or(0);
        let outcome_width = "not possible".len();
        write!(f, "{:width$}  {:outcome_width$}  rule", "rule-id", "outcome")?;
        for (entry, id) in self.rules.iter().zip(&ids) {
            write!(f, "\n{id:width$}  {:outcome_width$}  {}", entry.verdict.outcome, entry.rule)?;
            for note in &entry.verdict.notes {
                write!(f, "\n{:indent$}{note}", "", indent = width + outcome_width + 6)?;
            }
        }
        match self.includes_nothing {
            true => {
                write!(f, "\nNo rule includes a table: DMS replicates nothing then, and `include` has to be written.")
            }
            false => Ok(()),
        }
    }
}
