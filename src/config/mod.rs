//! The configuration: TOML text comes in, a [`Config`] goes out, and nothing past it is checked a second time.
//!
//! ```text
//! text ─parse─► RawConfig ──resolve──► Config ──split──► one Config a shard
//!        keys,            values, DSNs (libpq's),
//!        types            patterns, passwords
//! ```
//!
//! What always holds: every number is within its named bounds, every endpoint has one host, a user and a database, and
//! no password is in a `Debug`, a `Display` or an error. What the text says and what it means are different types, so
//! that no stage meets an `Option` which stands for a default.

mod conflicts;
mod disk_key;
mod dsn;
mod error;
mod file;
mod parse;
mod pattern;
mod raw;
mod resolve;
mod rules;
mod secret;
mod shard;
mod spool;
mod trail;
mod unknown_key;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use conflicts::{Conflicts, OnDuplicate, OnError, OnMissingRow, Policy};
pub use disk_key::DiskKey;
pub use dsn::{DsnError, SslMode};
pub use error::{ConfigError, Key, Problem};
pub use pattern::{NamePattern, Pattern, PatternError};
pub use rules::{LetterCase, Mask, NameStep, Renaming, Rule};
pub use secret::Secret;
pub use shard::{Shard, number_of};
pub use spool::SpoolConfig;
pub use trail::TrailConfig;
pub use unknown_key::Suggestion;

/// The schema that is ours, on whichever server: no pattern and no rule is about its tables.
pub const OWN_SCHEMA: &str = "pgsluice";

/// All that the engine is told before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: Name,
    /// Replications that the tables are divided among; see [`Config::split`].
    pub shards: usize,
    pub source: Endpoint,
    /// The server that a standby source replays from: asked for what a standby cannot do.
    pub primary: Option<Endpoint>,
    pub target: Endpoint,
    pub tables: TableSelection,
    pub snapshot: SnapshotConfig,
    pub stream: StreamConfig,
    pub spool: SpoolConfig,
    /// Changes lie there between source and target.
    pub trail: Option<TrailConfig>,
    pub apply: ApplyConfig,
    pub log: LogConfig,
    /// In the order of the file.
    pub rules: Vec<Rule>,
    pub conflicts: Conflicts,
}

impl Config {
    /// Reads the file at `path`, the password files it names and the environment variables it names.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        Config::parse(&text, path, &|variable| std::env::var(variable).ok())
    }

    /// As [`Config::load`], with the text and the environment as arguments. `path` stands in messages, and its folder
    /// is where a relative `password_file` is looked for.
    pub fn parse(text: &str, path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        resolve::resolve(parse::parse(text, path)?, text, path, env)
    }

    /// The name that slot and publication go by: our own, unless we apply from the trail of another.
    pub fn captured_as(&self) -> &Name {
        self.trail.as_ref().and_then(|trail| trail.of.as_ref()).unwrap_or(&self.name)
    }

    /// The replication slot on the source.
    pub fn slot(&self) -> String {
        self.captured_as().slot()
    }

    /// The publication on the source, or on its primary.
    pub fn publication(&self) -> String {
        self.captured_as().publication()
    }

    /// Another configuration has slot and publication, and writes the trail that we apply from.
    pub fn only_applies(&self) -> bool {
        self.trail.as_ref().is_some_and(|trail| trail.of.is_some())
    }

    /// Where publications are made: on the primary, or on a source that is one.
    pub fn publisher(&self) -> &Endpoint {
        self.primary.as_ref().unwrap_or(&self.source)
    }
}

/// What this replication is called on every server: 1 to 50 of `a-z`, `0-9` and `_`, the characters that a replication
/// slot's name may have (`ReplicationSlotValidateName`), short enough that the prefix keeps it below `NAMEDATALEN`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(String);

impl Name {
    const BYTES_MAX: usize = 50;

    fn new(text: &str) -> Option<Name> {
        let plain = text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        (plain && (1..=Name::BYTES_MAX).contains(&text.len())).then(|| Name(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The replication slot on the source.
    pub fn slot(&self) -> String {
        format!("pgsluice_{}", self.0)
    }

    /// The publication on the source, or on its primary.
    pub fn publication(&self) -> String {
        self.slot()
    }

    /// The table in [`OWN_SCHEMA`], on the primary and on the target, whose rows `pgsluice bench` follows.
    pub fn bench_table(&self) -> String {
        format!("bench_{}", self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One server and how to connect to it: a DSN with its password from wherever it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub role: Role,
    pub host: Host,
    pub port: u16,
    pub dbname: String,
    pub user: String,
    pub password: Option<Secret>,
    pub tls: TlsMode,
    /// From the first packet to the server's readiness. libpq's "0 waits for ever" is refused.
    pub connect_timeout: Duration,
    /// What the other end does not acknowledge for this long is lost, and so is the connection. It holds for both ends.
    pub tcp_user_timeout: Duration,
    pub application_name: String,
}

impl Endpoint {
    /// `host:port`, or the socket's path: the words of a message that says which server is meant.
    pub fn address(&self) -> String {
        match &self.host {
            Host::Tcp(host) if host.contains(':') => format!("[{host}]:{}", self.port),
            Host::Tcp(host) => format!("{host}:{}", self.port),
            Host::Unix(directory) => directory.join(format!(".s.PGSQL.{}", self.port)).display().to_string(),
        }
    }

    /// The server and the database: the words of a message that says what would be lost where.
    pub fn place(&self) -> String {
        format!("{}, database \"{}\"", self.address(), self.dbname)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, database {}, user {}", self.role, self.address(), self.dbname, self.user)
    }
}

/// What a server is to the replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Source,
    Primary,
    Target,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Source => "source",
            Role::Primary => "primary",
            Role::Target => "target",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or an address; IPv6 without brackets.
    Tcp(String),
    /// The directory that holds the server's Unix-domain socket.
    Unix(PathBuf),
}

/// How a connection is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    Disable,
}

/// Which tables are replicated: those that a pattern includes and none excludes, as far as they are in the shard, and that of
/// `pgsluice bench` as long as it is published.
#[derive(Clone, Debug)]
pub struct TableSelection {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
    /// In [`OWN_SCHEMA`].
    bench: String,
    /// Of what the patterns select, only what is in this shard.
    shard: Option<Shard>,
}

impl TableSelection {
    pub fn selects(&self, schema: &str, table: &str) -> bool {
        self.is_bench(schema, table)
            || self.covers(schema, table) && self.shard.as_ref().is_none_or(|shard| shard.holds(schema, table))
    }

    /// The same, whichever shard the table is in.
    pub fn covers(&self, schema: &str, table: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(schema, table));
        any(&self.include) && !any(&self.exclude)
    }

    /// It is the table of `pgsluice bench`, which comes and goes without anybody's having selected it.
    pub fn is_bench(&self, schema: &str, table: &str) -> bool {
        schema == OWN_SCHEMA && table == self.bench
    }

    pub fn shard(&self) -> Option<&Shard> {
        self.shard.as_ref()
    }

    /// Never empty.
    pub fn includes(&self) -> &[Pattern] {
        &self.include
    }
}

/// The initial copy.
#[derive(Clone, Debug)]
pub struct SnapshotConfig {
    /// Tables are copied before their changes follow; without it they are taken to be on the target already.
    pub copy_data: bool,
    /// Chunks that are copied at the same time, each with a session on the source and one on the target.
    pub jobs: usize,
    /// Of a table on the source, as its blocks lie on disk.
    pub chunk_bytes: u64,
}

#[derive(Clone, Debug)]
pub struct StreamConfig {
    pub format: ValueFormat,
    /// Longest pause between two status updates to the source.
    pub status_interval: Duration,
    /// Failure that lasts longer than this, without one success between, ends the run.
    pub retry_limit: Duration,
    /// How often a row is written on the primary, to be met again in the stream.
    pub heartbeat: Option<Duration>,
    /// Large transactions come before they have committed, and are kept in the spool meanwhile.
    pub streaming: bool,
}

/// How the source is asked to send column values: pgoutput's option `binary`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueFormat {
    #[default]
    Auto,
    Text,
    Binary,
}

#[derive(Clone, Debug)]
pub struct ApplyConfig {
    /// A batch closes at the end of the transaction in which it reaches this many rows, or `batch_bytes`.
    pub batch_rows: usize,
    pub batch_bytes: usize,
    /// Sessions on the target that apply batches side by side.
    pub workers: usize,
    /// Changes of one key within a batch are made one, and applied set by set.
    pub netting: bool,
    pub synchronous_commit: SynchronousCommit,
    /// So long after the target has flushed something, the source hears of it.
    pub confirm_delay: Duration,
    pub ddl: Ddl,
}

/// Which changes of tables the engine makes on the target by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ddl {
    #[default]
    None,
    /// It adds columns that the stream brings, where the rows that are there have them as NULL or a constant.
    Additive,
}

/// When a commit on the target returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SynchronousCommit {
    /// At once. What a crash of the target could lose is not confirmed to the source until it is flushed.
    #[default]
    Off,
    /// When it is flushed.
    On,
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Whether those parts of PostgreSQL's errors are shown that can hold values of rows.
    pub row_values: bool,
}
