//! What the file says, before anything is made of it: TOML text comes in, a [`RawConfig`] goes out in which every key
//! is known and every value has its type. Each value keeps its place in the text, so that what is found wrong with it
//! later still has a line. Nothing here is `Debug`, since a DSN can hold a password.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Ddl, LetterCase, OnDuplicate, OnError, OnMissingRow, SynchronousCommit, ValueFormat};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub name: Option<Spanned<Text>>,
    pub shards: Option<Spanned<Count>>,
    #[serde(default)]
    pub source: RawEndpoint,
    pub primary: Option<RawEndpoint>,
    #[serde(default)]
    pub target: RawEndpoint,
    #[serde(default)]
    pub tables: RawTables,
    #[serde(default)]
    pub snapshot: RawSnapshot,
    #[serde(default)]
    pub stream: RawStream,
    #[serde(default)]
    pub spool: RawSpool,
    pub trail: Option<RawTrail>,
    #[serde(default)]
    pub apply: RawApply,
    #[serde(default)]
    pub log: RawLog,
    #[serde(default)]
    pub masks: RawMasks,
    #[serde(default)]
    pub rule: Vec<Spanned<RawRule>>,
    #[serde(default)]
    pub conflict: Vec<Spanned<RawConflict>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEndpoint {
    pub dsn: Option<Spanned<Text>>,
    pub password_file: Option<Spanned<Text>>,
    pub password_env: Option<Spanned<Text>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTables {
    pub include: Option<Spanned<TextList>>,
    pub exclude: Option<Spanned<TextList>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSnapshot {
    pub copy_data: Option<bool>,
    pub jobs: Option<Spanned<Count>>,
    pub chunk_bytes: Option<Spanned<Size>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStream {
    pub format: Option<ValueFormat>,
    pub status_interval: Option<Spanned<Text>>,
    pub retry_limit: Option<Spanned<Text>>,
    pub heartbeat: Option<Spanned<Text>>,
    pub streaming: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSpool {
    pub dir: Option<Spanned<Text>>,
    pub memory_bytes: Option<Spanned<Size>>,
    pub key_file: Option<Spanned<Text>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTrail {
    pub dir: Option<Spanned<Text>>,
    pub of: Option<Spanned<Text>>,
    pub max_bytes: Option<Spanned<Size>>,
    pub segment_bytes: Option<Spanned<Size>>,
    pub key_file: Option<Spanned<Text>>,
    pub old_key_files: Option<Spanned<TextList>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawApply {
    pub batch_rows: Option<Spanned<Count>>,
    pub batch_bytes: Option<Spanned<Size>>,
    pub workers: Option<Spanned<Count>>,
    pub netting: Option<bool>,
    pub synchronous_commit: Option<SynchronousCommit>,
    pub confirm_delay: Option<Spanned<Text>>,
    pub ddl: Option<Ddl>,
    pub on_duplicate: Option<OnDuplicate>,
    pub on_missing_row: Option<OnMissingRow>,
    pub on_error: Option<OnError>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub row_values: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMasks {
    pub secret_file: Option<Spanned<Text>>,
    pub secret_env: Option<Spanned<Text>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRule {
    pub table: Option<Spanned<OneOrMore>>,
    pub except: Option<Spanned<OneOrMore>>,
    #[serde(rename = "where")]
    pub filter: Option<Spanned<Text>>,
    pub rename_to: Option<Spanned<Text>>,
    pub rename_schema: Option<Spanned<RawRenaming>>,
    pub rename_table: Option<Spanned<RawRenaming>>,
    pub rename_columns: Option<Spanned<BTreeMap<String, RawRenaming>>>,
    pub drop_columns: Option<Spanned<OneOrMore>>,
    pub keep_columns: Option<Spanned<OneOrMore>>,
    pub mask: Option<Spanned<BTreeMap<String, RawMask>>>,
    pub set: Option<Spanned<BTreeMap<String, Text>>>,
    pub cast: Option<Spanned<BTreeMap<String, Text>>>,
    pub key: Option<Spanned<OneOrMore>>,
    pub soft_delete: Option<bool>,
    pub yields: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConflict {
    pub table: Option<Spanned<OneOrMore>>,
    pub except: Option<Spanned<OneOrMore>>,
    pub on_duplicate: Option<OnDuplicate>,
    pub on_missing_row: Option<OnMissingRow>,
    pub on_error: Option<OnError>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a new name in quotes, or some of { case, remove_prefix, remove_suffix, replace_prefix, \
                 replace_suffix, replace, add_prefix, add_suffix }"
)]
pub(super) enum RawRenaming {
    To(String),
    Steps(Box<RawSteps>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSteps {
    pub replace: Option<[String; 2]>,
    pub replace_prefix: Option<[String; 2]>,
    pub replace_suffix: Option<[String; 2]>,
    pub remove_prefix: Option<String>,
    pub remove_suffix: Option<String>,
    pub case: Option<LetterCase>,
    pub add_prefix: Option<String>,
    pub add_suffix: Option<String>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected the name of a mask in quotes, or a table such as { type = \"partial\", last = 4 }; masks are \
                 null, fixed, sha256, hmac_sha256, digits, digits_random, partial and email"
)]
pub(super) enum RawMask {
    Name(String),
    Table(RawMaskTable),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMaskTable {
    #[serde(rename = "type")]
    pub of: String,
    pub value: Option<String>,
    pub length: Option<i64>,
    pub first: Option<i64>,
    pub last: Option<i64>,
    pub with: Option<String>,
    pub domain: Option<String>,
}

// `untagged` with `expecting` states what is expected in the words of the documentation and, unlike serde's own
// message, never repeats what was found.

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string in quotes")]
pub(super) enum Text {
    Text(String),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of strings, such as [\"public.*\"]")]
pub(super) enum TextList {
    List(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string in quotes, or a list of strings")]
pub(super) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a whole number, such as 10000")]
pub(super) enum Count {
    Number(i64),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a size, such as \"16MiB\", or a whole number of bytes")]
pub(super) enum Size {
    Number(i64),
    Text(String),
}

/// The tables of the file; the empty name is the top.
pub(super) const TABLES: [&str; 14] = [
    "", "source", "primary", "target", "tables", "snapshot", "stream", "spool", "trail", "apply", "log", "masks", RULE,
    CONFLICT,
];
/// Those that may come more than once.
pub(super) const RULE: &str = "rule";
pub(super) const CONFLICT: &str = "conflict";

/// The keys of one of [`TABLES`]: the fields of its raw struct.
pub(super) fn keys_of(table: &str) -> Option<&'static [&'static str]> {
    Some(match table {
        "" => &[
            "name", "shards", "source", "primary", "target", "tables", "snapshot", "stream", "spool", "trail", "apply",
            "log", "masks", RULE, CONFLICT,
        ],
        "source" | "primary" | "target" => &["dsn", "password_file", "password_env"],
        "tables" => &["include", "exclude"],
        "snapshot" => &["copy_data", "jobs", "chunk_bytes"],
        "stream" => &["format", "status_interval", "retry_limit", "heartbeat", "streaming"],
        "spool" => &["dir", "memory_bytes", "key_file"],
        "trail" => &["dir", "of", "max_bytes", "segment_bytes", "key_file", "old_key_files"],
        "apply" => &[
            "batch_rows",
            "batch_bytes",
            "workers",
            "netting",
            "synchronous_commit",
            "confirm_delay",
            "ddl",
            "on_duplicate",
            "on_missing_row",
            "on_error",
        ],
        "log" => &["row_values"],
        "masks" => &["secret_file", "secret_env"],
        RULE => &[
            "table",
            "except",
            "where",
            "rename_to",
            "rename_schema",
            "rename_table",
            "rename_columns",
            "drop_columns",
            "keep_columns",
            "mask",
            "set",
            "cast",
            "key",
            "soft_delete",
            "yields",
        ],
        CONFLICT => &["table", "except", "on_duplicate", "on_missing_row", "on_error"],
        _ => return None,
    })
}

/// The line, counted from 1, on which a span of the text begins.
pub(super) fn line_of(text: &str, span: &Range<usize>) -> usize {
    1 + text.bytes().take(span.start).filter(|b| *b == b'\n').count()
}

/// The tables of a document by their names; those that come more than once, each time.
pub(super) fn tables_of<'a, 'i>(document: &'a DeTable<'i>) -> impl Iterator<Item = (&'a str, &'a DeTable<'i>)> {
    document.iter().flat_map(|(key, value)| {
        let tables: Vec<_> = match value.get_ref() {
            DeValue::Array(tables) => tables.iter().filter_map(|table| table.get_ref().as_table()).collect(),
            value => value.as_table().into_iter().collect(),
        };
        tables.into_iter().map(|table| (key.get_ref().as_ref(), table))
    })
}
