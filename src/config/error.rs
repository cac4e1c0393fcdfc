//! What can be wrong with a configuration. Every message is one line that names the file, the line where it is known,
//! the key, the fault and the cure; none holds a value that could be a password.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::{DsnError, PatternError, Suggestion};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    /// The text is not TOML. `message` never quotes the text.
    #[error("{}: line {line} is not TOML: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{}: unknown key {key}, line {line}; {suggestion}", path.display())]
    UnknownKey { path: PathBuf, key: Key, line: usize, suggestion: Suggestion },
    #[error("{}: unknown table [{table}], line {line}; {suggestion}", path.display())]
    UnknownTable { path: PathBuf, table: String, line: usize, suggestion: Suggestion },
    #[error("{}: {key} is missing; add, for example, {example}", path.display())]
    MissingKey { path: PathBuf, key: Key, example: &'static str },
    #[error("{}: {key}, line {line}: {problem}", path.display())]
    Value { path: PathBuf, key: Key, line: usize, problem: Box<Problem> },
}

/// A key and the table it stands in, which is empty at the top of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub table: String,
    pub key: String,
}

impl Key {
    pub(super) fn new(table: &str, key: &str) -> Key {
        Key { table: table.to_owned(), key: key.to_owned() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.table.as_str() {
            "" => write!(f, "`{}`", self.key),
            table => write!(f, "`{}` in [{table}]", self.key),
        }
    }
}

/// What is wrong with the value of a known key.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("{0}")]
    Type(String),
    #[error("a name is 1 to {bytes_max} of the characters a-z, 0-9 and _, since it names a replication slot")]
    Name { bytes_max: usize },
    #[error(transparent)]
    Dsn(DsnError),
    #[error(transparent)]
    Pattern(PatternError),
    #[error("the list is empty; name at least one table or pattern, such as \"public.*\"")]
    NoPatterns,
    #[error("the secret is also given by `{other}`; keep one of the two")]
    SecondPassword { other: &'static str },
    #[error("cannot read the file {}: {error}", path.display())]
    PasswordFile { path: PathBuf, error: io::Error },
    #[error("the file {} {fault}", path.display())]
    PasswordFileContent { path: PathBuf, fault: &'static str },
    /// Does not repeat the name: a password written here by mistake would be shown.
    #[error("the environment variable named here is unset, empty or not UTF-8")]
    PasswordEnv,
    #[error("\"{found}\" is not a duration: {error}; write a number with its unit, such as \"10s\"")]
    Duration { found: String, error: humantime::DurationError },
    #[error("\"{found}\" is not a size; write a whole number, alone or with B, kB, KiB, MB, MiB, GB or GiB")]
    Size { found: String },
    #[error("{found} is outside of {least} to {most}")]
    OutOfRange { found: String, least: String, most: String },
}
