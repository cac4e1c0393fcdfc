//! A dump of the source's definitions: an [`Endpoint`] in, entries and their SQL out, through `pg_dump` and `pg_restore`.
//!
//! The dump is a file without a name, which is gone with the process. The connection's parameters are in the environment
//! of `pg_dump`, where other users of the machine do not see them.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use super::programs::Programs;
use super::toc::{self, Entry};
use super::{STAGE, script};
use crate::config::{Endpoint, Host, TlsMode};
use crate::error::{Error, Kind};

/// libpq makes a wait of one second two.
const CONNECT_SECONDS_MIN: u64 = 2;
/// As much of what a program says as an error carries.
const SAID_CHARS_MAX: usize = 2_000;

#[derive(Debug)]
pub struct Archive {
    programs: Programs,
    file: File,
}

impl Archive {
    /// Dumps the definitions of the database, without the tables `hidden`, which are quoted and qualified.
    ///
    /// # Errors
    /// [`Kind::Program`] with what `pg_dump` says.
    pub fn take(programs: Programs, endpoint: &Endpoint, hidden: &[String]) -> Result<Archive, Error> {
        let file = tempfile::tempfile().map_err(|error| failed("pg_dump", error.to_string()))?;
        let mut command = command(programs.pg_dump());
        command.args(["--schema-only", "--format=custom", "--no-password", "--encoding=UTF8"]);
        command.args(programs.options());
        command.args(hidden.iter().map(|table| format!("--exclude-table={table}")));
        command.envs(connection(endpoint)).stdin(Stdio::null()).stdout(clone(&file)?);
        run(command, "pg_dump")?;
        Ok(Archive { programs, file })
    }

    /// All entries, in an order in which they can be made.
    pub fn entries(&self) -> Result<Vec<Entry>, Error> {
        let mut command = command(self.programs.pg_restore());
        command.args(["--list", "--verbose"]);
        toc::parse(&self.restore(command)?)
    }

    /// The SQL of each of the entries.
    pub fn sql(&self, entries: &[&Entry]) -> Result<Vec<String>, Error> {
        if let Some(parts) = script::split(&self.script(entries)?, entries) {
            return Ok(parts);
        }
        // A definition holds something that looks like the beginning of another one.
        let alone = |entry: &&Entry| {
            let text = self.script(&[entry])?;
            let what = || failed("pg_restore", format!("there is no SQL of {}", entry.label));
            script::only(&text).map(str::to_owned).ok_or_else(what)
        };
        entries.iter().map(alone).collect()
    }

    fn script(&self, entries: &[&Entry]) -> Result<String, Error> {
        let io_failed = |error: io::Error| failed("pg_restore", error.to_string());
        let mut list = tempfile::NamedTempFile::new().map_err(io_failed)?;
        list.write_all(entries.iter().map(|entry| entry.line()).collect::<String>().as_bytes()).map_err(io_failed)?;
        list.flush().map_err(io_failed)?;
        let mut command = command(self.programs.pg_restore());
        command.args(self.programs.options()).arg("--use-list").arg(list.path()).arg("--file=-");
        self.restore(command)
    }

    fn restore(&self, mut command: Command) -> Result<String, Error> {
        let mut file = &self.file;
        file.rewind().map_err(|error| failed("pg_restore", error.to_string()))?;
        command.stdin(clone(file)?).stdout(Stdio::piped());
        let output = run(command, "pg_restore")?;
        String::from_utf8(output.stdout).map_err(|_| failed("pg_restore", "its output is not UTF-8".to_owned()))
    }
}

/// A program, without the user's own settings of libpq, which would have their say in the connection.
fn command(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    let foreign = std::env::vars_os().map(|(variable, _)| variable);
    foreign.filter(|variable| variable.as_encoded_bytes().starts_with(b"PG")).for_each(|variable| {
        command.env_remove(variable);
    });
    command.env("LC_ALL", "C");
    command
}

fn run(mut command: Command, name: &str) -> Result<Output, Error> {
    let output = command.stderr(Stdio::piped()).spawn().and_then(|child| child.wait_with_output());
    let output = output.map_err(|error| failed(name, error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let said: String = said.trim().chars().take(SAID_CHARS_MAX).collect();
        return Err(failed(name, format!("{}: {said}", output.status)));
    }
    tracing::debug!(program = name, said = %said.trim(), "done");
    Ok(output)
}

/// The parameters of the connection as libpq reads them ("Environment Variables").
fn connection(endpoint: &Endpoint) -> Vec<(&'static str, OsString)> {
    let (host, port) = (&endpoint.host, endpoint.port.to_string());
    let host = match host {
        Host::Tcp(host) => host.into(),
        Host::Unix(directory) => directory.into(),
    };
    let tls = match endpoint.tls {
        TlsMode::Disable => "disable",
    };
    let seconds = endpoint.connect_timeout.as_secs().max(CONNECT_SECONDS_MIN).to_string();
    let mut variables: Vec<(_, OsString)> = vec![
        ("PGHOST", host),
        ("PGPORT", port.into()),
        ("PGDATABASE", endpoint.dbname.clone().into()),
        ("PGUSER", endpoint.user.clone().into()),
        ("PGAPPNAME", endpoint.application_name.clone().into()),
        ("PGSSLMODE", tls.into()),
        ("PGGSSENCMODE", "disable".into()),
        ("PGCONNECT_TIMEOUT", seconds.into()),
        // As with our own sessions: no password in clear or as MD5. Known to libpq from 16 on.
        ("PGREQUIREAUTH", "scram-sha-256,none".into()),
    ];
    if let Some(password) = &endpoint.password {
        variables.push(("PGPASSWORD", password.expose().into()));
    }
    variables
}

fn clone(file: &File) -> Result<File, Error> {
    file.try_clone().map_err(|error| failed("pg_dump", error.to_string()))
}

fn failed(program: &str, what: String) -> Error {
    Error::new(STAGE, Kind::Program { program: program.to_owned(), what })
}
