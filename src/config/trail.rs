//! What the file says of the trail: `[trail]` comes in, with the files that hold its keys; a [`TrailConfig`] goes out.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::file::{File, MIB, list_of, text_of};
use super::raw::RawTrail;
use super::{ConfigError, DiskKey, Name, Problem, ValueFormat, disk_key};

const MAX_BYTES: u64 = 16 * 1024 * MIB;
/// Below, it is full before the target has drawn breath.
const MAX_BYTES_RANGE: RangeInclusive<u64> = MIB..=1024 * 1024 * 1024 * MIB;

const SEGMENT_BYTES: u64 = 64 * MIB;
/// Below, there are too many files; above, too much is kept that every reader has passed.
const SEGMENT_BYTES_RANGE: RangeInclusive<u64> = MIB / 4..=16 * 1024 * MIB;
/// So many segments at least are in `max_bytes`: only whole ones can be removed, and never the one that is written.
const SEGMENTS_MIN: u64 = 4;

/// Where changes lie between source and target.
#[derive(Clone, Debug)]
pub struct TrailConfig {
    pub dir: PathBuf,
    /// The replication that writes it, where that is another.
    pub of: Option<Name>,
    /// Of all segments together. More is not read from the source.
    pub max_bytes: u64,
    /// A segment ends with the transaction that reaches this.
    pub segment_bytes: u64,
    /// What is written is encrypted under it.
    pub key: Option<DiskKey>,
    /// Those of segments that are there from before.
    pub old_keys: Vec<DiskKey>,
}

/// What the rest of the file says.
pub(super) struct Around<'a> {
    pub name: &'a Name,
    pub shards: usize,
    pub has_heartbeat: bool,
    pub format: Option<ValueFormat>,
}

pub(super) fn resolve(file: &File<'_>, raw: RawTrail, around: Around<'_>) -> Result<TrailConfig, ConfigError> {
    const TABLE: &str = "trail";
    let (dir, at) = text_of(file.required(raw.dir, TABLE, "dir", "dir = \"/var/lib/pgsluice/shop\" under [trail]")?);
    let refuse = |key: &str, at, why: &str| Err(file.value(TABLE, key, at, Problem::Type(why.to_owned())));
    if around.shards > 1 {
        return refuse(
            "dir",
            &at,
            "a trail has the changes of one slot, and shards have several; leave out `shards` or [trail]",
        );
    }
    if around.format == Some(ValueFormat::Binary) {
        let why = "a trail keeps values as text, which every target takes; leave out `format` in [stream], or [trail]";
        return refuse("dir", &at, why);
    }
    let mut of = None;
    if let Some((text, at)) = raw.of.map(text_of) {
        let bytes_max = Name::BYTES_MAX;
        let name = Name::new(&text).ok_or_else(|| file.value(TABLE, "of", &at, Problem::Name { bytes_max }))?;
        if name == *around.name {
            return refuse(
                "of",
                &at,
                "it names the replication that writes the trail, which this one is itself; leave it out",
            );
        }
        if around.has_heartbeat {
            return refuse("of", &at, "heartbeats are those of whoever captures; leave out `heartbeat` in [stream]");
        }
        of = Some(name);
    }
    let max_bytes = file.size(TABLE, "max_bytes", raw.max_bytes, MAX_BYTES_RANGE)?.unwrap_or(MAX_BYTES);
    let segment_bytes = file.size(TABLE, "segment_bytes", raw.segment_bytes, SEGMENT_BYTES_RANGE)?;
    let mut old_keys = Vec::new();
    if let Some((paths, at)) = raw.old_key_files.map(list_of) {
        for path in paths {
            old_keys.push(disk_key::read(file, TABLE, "old_key_files", (path, at.clone()))?);
        }
    }
    Ok(TrailConfig {
        dir: file.beside(&dir),
        of,
        max_bytes,
        segment_bytes: segment_bytes.unwrap_or(SEGMENT_BYTES).min(max_bytes / SEGMENTS_MIN),
        key: raw.key_file.map(|key| disk_key::read(file, TABLE, "key_file", text_of(key))).transpose()?,
        old_keys,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    const LEAST: &str = "name = \"shop\"\nsource.dsn = \"host=/s user=u\"\ntarget.dsn = \"host=::1 user=u\"\ntables.include = [\"a.*\"]\n";

    fn with(folder: &Path, text: &str) -> Result<Config, String> {
        let config = Config::parse(&format!("{LEAST}{text}"), &folder.join("p.toml"), &|_| None);
        config.map_err(|error| error.to_string())
    }

    #[test]
    fn it_is_there_if_it_is_named_and_has_bounds() {
        assert!(with(Path::new("/etc"), "").unwrap().trail.is_none());
        let config = with(Path::new("/etc"), "[trail]\ndir = \"t\"").unwrap();
        let trail = config.trail.as_ref().unwrap();
        assert_eq!(
            (trail.dir.as_path(), trail.max_bytes, trail.segment_bytes),
            (Path::new("/etc/t"), 16 << 30, 64 << 20)
        );
        assert!(!config.only_applies() && config.slot() == "pgsluice_shop");
        let config = with(Path::new("/etc"), "[trail]\ndir = \"/t\"\nof = \"other\"\nmax_bytes = \"4MiB\"").unwrap();
        assert!(config.only_applies() && config.slot() == "pgsluice_other" && config.name.slot() == "pgsluice_shop");
        assert_eq!(config.trail.unwrap().segment_bytes, 1 << 20);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (text, said) in [
            ("[trail]", "`dir` in [trail] is missing"),
            ("[trail]\ndir = \"t\"\nof = \"shop\"", "leave it out"),
            ("[trail]\ndir = \"t\"\nof = \"A\"", "a name is 1 to 50"),
            ("[stream]\nheartbeat = \"1s\"\n[trail]\ndir = \"t\"\nof = \"b\"", "leave out `heartbeat`"),
            ("[stream]\nformat = \"binary\"\n[trail]\ndir = \"t\"", "a trail keeps values as text"),
            ("shards = 2\n[trail]\ndir = \"t\"", "shards have several"),
            ("[trail]\ndir = \"t\"\nmax_bytes = \"1kB\"", "outside of 1MiB"),
            ("[trail]\ndir = \"t\"\nkey_file = \"none\"", "cannot read the file"),
        ] {
            let error = if text.starts_with("shards") {
                let (top, rest) = text.split_once('\n').unwrap();
                Config::parse(&format!("{top}\n{LEAST}{rest}"), "/etc/p.toml".as_ref(), &|_| None)
                    .unwrap_err()
                    .to_string()
            } else {
                with(Path::new("/etc"), text).unwrap_err()
            };
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn keys_are_read_the_old_ones_too() {
        let folder = tempfile::tempdir().unwrap();
        for (name, digit) in [("one", "1"), ("two", "2"), ("three", "3")] {
            std::fs::write(folder.path().join(name), digit.repeat(64)).unwrap();
        }
        let text = "[trail]\ndir = \"t\"\nkey_file = \"one\"\nold_key_files = [\"two\", \"three\"]";
        let trail = with(folder.path(), text).unwrap().trail.unwrap();
        assert_eq!(trail.key, Some(DiskKey::new([0x11; 32])));
        assert_eq!(trail.old_keys, [DiskKey::new([0x22; 32]), DiskKey::new([0x33; 32])]);
    }
}
