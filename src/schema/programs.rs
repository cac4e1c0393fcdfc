//! Finds `pg_dump` and `pg_restore` of a major version that can read the source.
//!
//! A `pg_dump` refuses servers that are newer than itself, and writes SQL of its own version; so the oldest that is not
//! older than the source is the one whose output the target most likely understands.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::STAGE;
use crate::error::Error;

/// Names the directory that holds the programs.
const BIN_VARIABLE: &str = "PGSLUICE_PG_BIN";
/// Where the packages of Debian and of Red Hat put each major version: a folder, and what comes after the version.
const PACKAGED: [(&str, &str, &str); 2] = [("/usr/lib/postgresql", "", "bin"), ("/usr", "pgsql-", "bin")];

/// Whatever belongs to one server rather than to a definition.
const LEFT_OUT: [&str; 6] = [
    "--no-owner",
    "--no-privileges",
    "--no-tablespaces",
    "--no-publications",
    "--no-subscriptions",
    "--no-security-labels",
];
/// The first with `--no-table-access-method`.
const ACCESS_METHOD_MAJOR: u32 = 15;

/// A directory with both programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    pub directory: PathBuf,
    pub major: u32,
}

impl Programs {
    /// The programs in `named`, else in the directory that [`BIN_VARIABLE`] names, else the best of those in PATH and
    /// where packages put them. A directory that is named is the user's word: no other is taken in its place.
    ///
    /// # Errors
    /// A refusal that says which are too old, where there are any.
    pub fn find(named: Option<&Path>, source_major: u32) -> Result<Programs, Error> {
        let named = named
            .map(Path::to_owned)
            .or_else(|| env::var_os(BIN_VARIABLE).filter(|one| !one.is_empty()).map(PathBuf::from));
        let directories = named.clone().map_or_else(usual_directories, |directory| vec![directory]);
        let found: Vec<_> = directories.into_iter().filter_map(look_into).collect();
        if let Some(best) = choose(&found, source_major) {
            return Ok(best.clone());
        }
        let place = named.map_or("in PATH and /usr/lib/postgresql".to_owned(), |one| format!("in {}", one.display()));
        let old: Vec<_> =
            found.iter().map(|one| format!("version {} in {}", one.major, one.directory.display())).collect();
        let what = if old.is_empty() {
            format!("there is no pg_dump with a pg_restore {place}")
        } else {
            format!("pg_dump is older than the source, which is PostgreSQL {source_major}: {}", old.join(", "))
        };
        let mend = format!(
            "install postgresql-client-{source_major} or later, or name the directory of its programs with --pg-bin or \
             {BIN_VARIABLE}"
        );
        Err(Error::refused(STAGE, what, mend))
    }

    pub fn pg_dump(&self) -> PathBuf {
        self.directory.join("pg_dump")
    }

    pub fn pg_restore(&self) -> PathBuf {
        self.directory.join("pg_restore")
    }

    /// Options that both take, for what is not copied.
    pub fn options(&self) -> impl Iterator<Item = &'static str> {
        let access_method = (self.major >= ACCESS_METHOD_MAJOR).then_some("--no-table-access-method");
        LEFT_OUT.into_iter().chain(access_method)
    }
}

/// The lowest major version that is not below the source's; of equal ones the first.
fn choose(found: &[Programs], source_major: u32) -> Option<&Programs> {
    found.iter().filter(|one| one.major >= source_major).min_by_key(|one| one.major)
}

fn usual_directories() -> Vec<PathBuf> {
    let mut directories: Vec<_> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    for (folder, prefix, last) in PACKAGED {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let versions = entries.filter(|entry| {
            let name = entry.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix(prefix));
            version.is_some_and(|version| version.parse::<u32>().is_ok())
        });
        directories.extend(versions.map(|entry| entry.path().join(last)));
    }
    directories
}

fn look_into(directory: PathBuf) -> Option<Programs> {
    if !directory.join("pg_restore").is_file() {
        return None;
    }
    let output = Command::new(directory.join("pg_dump")).arg("--version").output().ok()?;
    let major = major_of(&String::from_utf8_lossy(&output.stdout))?;
    Some(Programs { directory, major })
}

/// Of `pg_dump (PostgreSQL) 18.4 (Debian 18.4-1)` or `pg_dump (PostgreSQL) 19beta1`.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL) ")?.1;
    let digits = number.find(|c: char| !c.is_ascii_digit()).map_or(number, |end| &number[..end]);
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(major_of("pg_dump (PostgreSQL) 18.4 (Debian 18.4-1)\n"), Some(18));
        assert_eq!(major_of("pg_dump (PostgreSQL) 19beta1"), Some(19));
        assert_eq!(major_of("pg_dump of something else"), None);
    }

    #[test]
    fn the_oldest_that_is_not_older_than_the_source_is_chosen() {
        let of = |major, directory: &str| Programs { directory: directory.into(), major };
        let found = [of(18, "/a"), of(15, "/b"), of(16, "/c"), of(16, "/d"), of(17, "/e")];
        assert_eq!(choose(&found, 16), Some(&found[2]));
        assert_eq!(choose(&found, 18), Some(&found[0]));
        assert_eq!(choose(&found, 19), None);
    }
}
