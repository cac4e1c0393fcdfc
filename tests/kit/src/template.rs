//! Data directories to copy from: an installation in, two cleanly stopped data directories with different system
//! identifiers out.
//!
//! initdb takes seconds and a copy takes a tenth of one, so templates are made once per installation and version of
//! this file and kept between runs. The first process makes them under a lock, the others wait; a directory bears its
//! final name only when it is complete.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;

use crate::directory::{ServerDir, give_to_server_user, lock_file, shared_dir};
use crate::postgres::Install;
use crate::settings::PG_HBA;

/// The physical slot of a chain's primary, which is in the template already.
pub(crate) const PHYSICAL_SLOT: &str = "b_slot";

/// The database of every template.
pub(crate) const DATABASE: &str = "app";

/// One statement a line, as single-user mode wants it.
const SETUP: &str = "\
SET password_encryption = 'scram-sha-256'
CREATE ROLE scram_user LOGIN SUPERUSER REPLICATION PASSWORD 'scram-pw'
CREATE ROLE clear_user LOGIN SUPERUSER REPLICATION PASSWORD 'clear-pw'
SET password_encryption = 'md5'
CREATE ROLE md5_user LOGIN SUPERUSER REPLICATION PASSWORD 'md5-pw'
CREATE DATABASE app
";
const SETUP_SLOT: &str = "SELECT pg_create_physical_replication_slot('b_slot', true)\n";

/// With these the template's control file agrees with what a chain's primary is started with.
const SETUP_SETTINGS: [&str; 6] = [
    "wal_level=logical",
    "max_replication_slots=20",
    "max_wal_senders=20",
    "max_prepared_transactions=20",
    "fsync=off",
    "exit_on_error=on",
];

/// `C.UTF-8` orders and folds like most servers made today; where the machine has it not, `C` does.
const LOCALES: [&str; 2] = ["C.UTF-8", "C"];

/// Which of the two templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Template {
    /// For a primary and its standby.
    Source,
    /// For a server that shares no history with them.
    Target,
}

impl Template {
    /// The template's data directory, made if it is not there yet.
    pub(crate) fn data_dir(self, install: &Install) -> Result<PathBuf> {
        let name = match self {
            Self::Source => "a",
            Self::Target => "c",
        };
        let mut hasher = DefaultHasher::new();
        (&install.version, SETUP, SETUP_SLOT, SETUP_SETTINGS, LOCALES, PG_HBA).hash(&mut hasher);
        let path = shared_dir()?.join(format!("{}-{name}-{:016x}", install.major, hasher.finish()));
        if !path.exists() {
            let _lock = lock_file(&path.with_extension("lock"), FlockOperation::LockExclusive)?;
            if !path.exists() {
                self.make(install, &path).with_context(|| format!("cannot make template {}", path.display()))?;
            }
        }
        Ok(path)
    }

    fn make(self, install: &Install, path: &Path) -> Result<()> {
        // Beside the final place, for the sake of the rename.
        let scratch = ServerDir::create_in(&shared_dir()?)?;
        let data = scratch.path().join("data");
        init(install, &data)?;
        fs::write(data.join("pg_hba.conf"), PG_HBA)?;
        let script = match self {
            Self::Source => format!("{SETUP}{SETUP_SLOT}"),
            Self::Target => SETUP.to_owned(),
        };
        run_single_user(install, &data, &script)?;
        fs::rename(&data, path)?;
        Ok(())
    }
}

/// Copies a stopped server's data directory and gives it to the servers' user.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    // cp knows how to share blocks where the file system can.
    run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to), "")?;
    give_to_server_user(to)
}

fn init(install: &Install, data: &Path) -> Result<()> {
    let initdb = |locale: &str| {
        let mut command = install.server_command("initdb")?;
        command.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--wal-segsize=16"]);
        command.arg(format!("--locale={locale}")).arg("-D").arg(data);
        run(&mut command, "")
    };
    let [preferred, fallback] = LOCALES;
    initdb(preferred).or_else(|_| initdb(fallback))
}

fn run_single_user(install: &Install, data: &Path, script: &str) -> Result<()> {
    let mut command = install.server_command("postgres")?;
    command.arg("--single").arg("-D").arg(data);
    command.args(SETUP_SETTINGS.iter().flat_map(|setting| ["-c", setting])).arg("postgres");
    run(&mut command, script)
}

fn run(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    // A program that fails early closes its end; its output says why.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{:?} failed, {}: {}", command.get_program(), output.status, String::from_utf8_lossy(&said));
    }
    Ok(())
}
