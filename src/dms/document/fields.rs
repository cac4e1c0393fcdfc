//! The fields of one JSON object, as mappings write them: numbers with and without quotes, null and "" for nothing, keys given
//! twice, keys that DMS does not know.

use super::super::DmsError;
use super::super::json::Json;

/// As `config` has it for its keys.
const SIMILARITY_MIN: f64 = 0.85;

/// An object, and whose it is in messages.
pub(super) struct Fields<'j> {
    owner: String,
    entries: &'j [(String, Json)],
}

impl<'j> Fields<'j> {
    /// Looks at the keys once: what is odd about them goes to `notes`.
    ///
    /// # Errors
    /// A key that is nearly a known one: what was meant by it would be left out.
    pub fn new(
        owner: impl Into<String>,
        json: &'j Json,
        known: &[&str],
        notes: &mut Vec<String>,
    ) -> Result<Fields<'j>, DmsError> {
        let owner = owner.into();
        let Json::Object(entries) = json else {
            return Err(DmsError::rule(&owner, "an object in braces is expected here"));
        };
        for (at, (key, value)) in entries.iter().enumerate() {
            if let Some((_, first)) = entries[..at].iter().find(|(earlier, _)| earlier == key)
                && first != value
            {
                notes.push(format!("`{key}` is given twice, and the last one counts"));
            }
            if known.contains(&key.as_str()) || is_nothing(value) {
                continue;
            }
            if let Some(meant) = nearest(key, known) {
                return Err(DmsError::rule(&owner, format!("unknown key `{key}`; did you mean `{meant}`?")));
            }
            notes.push(format!("the unknown key `{key}` is left out"));
        }
        Ok(Fields { owner, entries })
    }

    pub fn wrong(&self, what: impl Into<String>) -> DmsError {
        DmsError::rule(&self.owner, what)
    }

    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// What is there, and is not null. Of two the last one counts, as for DMS.
    pub fn get(&self, key: &str) -> Option<&'j Json> {
        let (_, value) = self.entries.iter().rev().find(|(name, _)| name == key)?;
        (*value != Json::Null).then_some(value)
    }

    /// A text or a number, which may be empty.
    pub fn scalar(&self, key: &str) -> Result<Option<String>, DmsError> {
        match self.get(key) {
            None => Ok(None),
            Some(Json::Text(text) | Json::Number(text)) => Ok(Some(text.clone())),
            Some(Json::Bool(value)) => Ok(Some(value.to_string())),
            Some(Json::Null | Json::List(_) | Json::Object(_)) => Err(self.wrong(format!("`{key}` is no text"))),
        }
    }

    /// As [`Fields::scalar`], where an empty text is nothing.
    pub fn text(&self, key: &str) -> Result<Option<String>, DmsError> {
        Ok(self.scalar(key)?.filter(|text| !text.is_empty()))
    }

    pub fn required(&self, key: &str) -> Result<String, DmsError> {
        self.text(key)?.ok_or_else(|| self.wrong(format!("`{key}` is missing")))
    }

    /// A word of DMS, which blanks around it do not change.
    pub fn word(&self, key: &str) -> Result<Option<String>, DmsError> {
        Ok(self.text(key)?.map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()))
    }

    /// One of these words.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<T, DmsError> {
        let word = self.word(key)?.ok_or_else(|| self.wrong(format!("`{key}` is missing")))?;
        choices.iter().find(|(name, _)| *name == word).map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            let known = match nearest(&word, &names) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("there is {}", names.join(", ")),
            };
            self.wrong(format!("unknown {key} \"{word}\"; {known}"))
        })
    }

    /// A list, or nothing.
    pub fn list(&self, key: &str) -> Result<&'j [Json], DmsError> {
        match self.get(key) {
            None => Ok(&[]),
            Some(Json::List(items)) => Ok(items),
            Some(Json::Text(text)) if text.is_empty() => Ok(&[]),
            Some(_) => Err(self.wrong(format!("`{key}` is no list"))),
        }
    }
}

fn is_nothing(value: &Json) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::Text(text) => text.is_empty(),
        Json::List(items) => items.is_empty(),
        Json::Object(entries) => entries.is_empty(),
        Json::Bool(true) | Json::Number(_) => false,
    }
}

fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let scored = known.iter().map(|each| (strsim::jaro_winkler(word, each), *each));
    let best = scored.max_by(|left, right| left.0.total_cmp(&right.0))?;
    (best.0 >= SIMILARITY_MIN).then_some(best.1)
}
