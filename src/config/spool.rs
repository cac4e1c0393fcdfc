//! What the file says of the spool: `[spool]` comes in, with the file that holds its key; a [`SpoolConfig`] goes out.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::file::{File, KIB, MIB, text_of};
use super::raw::RawSpool;
use super::{ConfigError, DiskKey, disk_key};

const MEMORY_BYTES: usize = 64 * MIB as usize;
/// Below, the disk is written to for every other transaction; above, the memory is better left to the system's own cache.
const MEMORY_BYTES_RANGE: RangeInclusive<u64> = 256 * KIB..=4096 * MIB;

/// Where transactions in progress are kept until they commit.
#[derive(Clone, Debug)]
pub struct SpoolConfig {
    /// Of the files for what does not fit into memory.
    pub dir: PathBuf,
    /// Of all transactions in progress together.
    pub memory_bytes: usize,
    /// What goes to disk is encrypted under it.
    pub key: Option<DiskKey>,
}

pub(super) fn resolve(file: &File<'_>, raw: RawSpool) -> Result<SpoolConfig, ConfigError> {
    const TABLE: &str = "spool";
    let memory_bytes = file
        .size(TABLE, "memory_bytes", raw.memory_bytes, MEMORY_BYTES_RANGE)?
        // The range's upper end fits every usize of 64 bits.
        .map_or(MEMORY_BYTES, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let dir = raw.dir.map_or_else(std::env::temp_dir, |dir| file.beside(&text_of(dir).0));
    let key = raw.key_file.map(|key| disk_key::read(file, TABLE, "key_file", text_of(key))).transpose()?;
    Ok(SpoolConfig { dir, memory_bytes, key })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    const LEAST: &str = "name = \"shop\"\nsource.dsn = \"host=/s user=u\"\ntarget.dsn = \"host=::1 user=u\"\ntables.include = [\"a.*\"]\n";

    fn with(folder: &Path, text: &str) -> Result<Config, ConfigError> {
        Config::parse(&format!("{LEAST}{text}"), &folder.join("p.toml"), &|_| None)
    }

    #[test]
    fn without_a_word_it_is_in_the_systems_temporary_directory() {
        let config = with(Path::new("/etc"), "").unwrap();
        assert!(config.stream.streaming);
        assert_eq!((config.spool.dir, config.spool.memory_bytes), (std::env::temp_dir(), 64 << 20));
        assert!(config.spool.key.is_none());
        let config =
            with(Path::new("/etc"), "[stream]\nstreaming = false\n[spool]\nmemory_bytes = \"1MiB\"\ndir = \"s\"");
        let config = config.unwrap();
        assert!(!config.stream.streaming);
        assert_eq!((config.spool.dir, config.spool.memory_bytes), ("/etc/s".into(), 1 << 20));
    }

    #[test]
    fn a_key_is_hexadecimal_or_raw_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let keys = [
            ("0F".repeat(32).into_bytes(), true),
            (format!("{}\n", "0f".repeat(32)).into_bytes(), true),
            (vec![0xff; 32], true),
            ("0f".repeat(31).into_bytes(), false),
            ("xy".repeat(32).into_bytes(), false),
            (vec![0xff; 33], false),
            (Vec::new(), false),
        ];
        for (bytes, is_right) in keys {
            std::fs::write(folder.path().join("key"), &bytes).unwrap();
            match with(folder.path(), "[spool]\nkey_file = \"key\"") {
                Ok(config) => {
                    assert!(is_right, "{bytes:?}");
                    assert!(format!("{config:?}").contains("DiskKey(…)"));
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        !is_right && error.contains("`key_file` in [spool], line 6") && error.contains("holds no key"),
                        "{error}"
                    );
                }
            }
        }
        let error = with(folder.path(), "[spool]\nkey_file = \"none\"").unwrap_err().to_string();
        assert!(error.contains("cannot read the file"), "{error}");
    }
}
