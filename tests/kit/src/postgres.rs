//! Where a PostgreSQL comes from: a major version in, the directory of its programs out, by way of `scripts/postgres`.
//! Also the user its servers run as, since PostgreSQL refuses to run as root.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use anyhow::{Context, Result, bail};

/// The major version tests run on unless `PGSLUICE_TEST_PG_MAJOR` names another.
const MAJOR_DEFAULT: u32 = 18;

/// An installed PostgreSQL with all the programs the kit calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    pub bin_dir: PathBuf,
    pub major: u32,
    /// As `postgres --version` prints it.
    pub version: String,
}

impl Install {
    /// The installation of that major version, else of `PGSLUICE_TEST_PG_MAJOR`, else of 18. The first call may fetch it.
    pub fn find(major: Option<u32>) -> Result<Self> {
        static FOUND: Mutex<Option<HashMap<u32, Install>>> = Mutex::new(None);
        let major = match major {
            Some(major) => major,
            None => default_major()?,
        };
        let mut found = FOUND.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let found = found.get_or_insert_default();
        if let Some(install) = found.get(&major) {
            return Ok(install.clone());
        }
        let install = Self::ask_script(major)?;
        found.insert(major, install.clone());
        Ok(install)
    }

    /// `None` where that major version is neither on this machine nor embedded: for tests that then have nothing to do.
    pub fn try_find(major: u32) -> Option<Self> {
        Self::find(Some(major)).ok()
    }

    /// The path of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// A program of this installation, as the current user, untouched by `PG*` variables of the environment.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.program(name));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        // A working directory which every user can be in.
        command.env("LC_ALL", "C").current_dir("/");
        command
    }

    /// A program of this installation as the user the servers run as.
    pub(crate) fn server_command(&self, name: &str) -> Result<Command> {
        let mut command = self.command(name);
        if let Some((uid, gid)) = server_user()? {
            command.uid(uid).gid(gid);
        }
        Ok(command)
    }

    fn ask_script(major: u32) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/postgres");
        let output = Command::new(&script).arg(major.to_string()).output();
        let output = output.with_context(|| format!("cannot run {}", script.display()))?;
        if !output.status.success() {
            bail!("no PostgreSQL {major}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let bin_dir = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        let version = Command::new(bin_dir.join("postgres")).arg("--version").output()?.stdout;
        Ok(Self { bin_dir, major, version: String::from_utf8(version)?.trim().to_owned() })
    }
}

fn default_major() -> Result<u32> {
    match std::env::var("PGSLUICE_TEST_PG_MAJOR") {
        Ok(text) => text.parse().with_context(|| format!("PGSLUICE_TEST_PG_MAJOR={text} is not a number")),
        Err(_) => Ok(MAJOR_DEFAULT),
    }
}

/// User and group id of the servers when we are root, `None` when they run as ourselves. The same choice as in
/// `scripts/postgres`, which has tried that this user can execute the programs.
pub(crate) fn server_user() -> Result<Option<(u32, u32)>> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    if USER.get().is_none() {
        let ids = ["postgres", "nobody"].into_iter().find_map(|user| Some((id("-u", user)?, id("-g", user)?)));
        USER.get_or_init(|| ids);
    }
    USER.get().copied().flatten().map(Some).context("neither user postgres nor user nobody exists")
}

fn id(flag: &str, user: &str) -> Option<u32> {
    let output = Command::new("id").args([flag, user]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}
