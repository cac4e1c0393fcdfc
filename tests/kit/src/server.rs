//! One PostgreSQL server as a child process.
//!
//! In: a data directory to copy and settings. Out: a server that answers on 127.0.0.1 and on a Unix socket, can be
//! stopped in every way a server ends, and started again on the same port and data. The postmaster is our direct child,
//! so its exit is seen at once and it is told when this process dies.
//!
//! ```text
//!   new ──► Stopped ──start──► Running ──stop_fast | stop_immediate | kill──► Stopped
//! ```

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::directory::{Medium, Port, ServerDir, give_to_server_user};
use crate::postgres::Install;
use crate::process::{Process, Signal, kill_pid, runs};
use crate::settings::render;
use crate::template;
use crate::wait::wait_for;

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(60);
const DROP_DEADLINE: Duration = Duration::from_secs(5);
const READY_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// As much of a log as an error message carries.
const LOG_TAIL_LINES: usize = 40;

/// A PostgreSQL server of its own data directory, stopped and removed when dropped.
#[derive(Debug)]
pub struct Server {
    name: String,
    install: Install,
    dir: ServerDir,
    port: Port,
    postmaster: Mutex<Option<Arc<Process>>>,
    medium: Medium,
}

impl Server {
    /// Copies the data directory of a stopped server, and writes `settings` as its whole `postgresql.conf`. The server
    /// is not started.
    pub(crate) fn new(
        name: &str,
        install: &Install,
        medium: Medium,
        data: &Path,
        settings: &[(String, String)],
    ) -> Result<Self> {
        let dir = ServerDir::create(medium)?;
        template::copy(data, &dir.path().join("data"))?;
        let server = Self {
            name: name.to_owned(),
            install: install.clone(),
            port: Port::reserve()?,
            dir,
            postmaster: Mutex::new(None),
            medium,
        };
        let conf = server.data_dir().join("postgresql.conf");
        let port = server.port().to_string();
        let places = [("port", port.as_str()), ("unix_socket_directories", &server.socket_dir().to_string_lossy())];
        fs::write(&conf, render(&places) + &render(settings))?;
        give_to_server_user(&conf)?;
        Ok(server)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn install(&self) -> &Install {
        &self.install
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Everything the server has logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// A libpq keyword DSN over TCP, as superuser `postgres`, without TLS.
    pub fn dsn(&self, db: &str) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={db} sslmode=disable", self.port())
    }

    /// The same over the Unix socket.
    pub fn dsn_unix(&self, db: &str) -> String {
        format!("host={} port={} user=postgres dbname={db}", self.socket_dir().display(), self.port())
    }

    /// The same over TCP as another user: `scram_user`, `md5_user` and `clear_user` have to log in with passwords
    /// `scram-pw`, `md5-pw` and `clear-pw`.
    pub fn dsn_as(&self, db: &str, user: &str, password: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user={user} password={password} dbname={db} sslmode=disable application_name={user}",
            self.port()
        )
    }

    /// The postmaster's pid while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.running().ok().map(|postmaster| postmaster.pid())
    }

    /// A new connection; its task ends with the client or the server.
    pub async fn connect(&self, db: &str) -> Result<Client> {
        let (client, connection) =
            tokio_postgres::connect(&self.dsn(db), NoTls).await.with_context(|| format!("connect to {}", self.name))?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs statements on a connection of its own.
    pub async fn sql(&self, db: &str, sql: &str) -> Result<()> {
        let client = self.connect(db).await?;
        client.batch_execute(sql).await.with_context(|| format!("on {}: {}", self.name, abridged(sql)))
    }

    /// The rows of a query as text, NULL as `None`.
    pub async fn query_text(&self, db: &str, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let client = self.connect(db).await?;
        let messages =
            client.simple_query(sql).await.with_context(|| format!("on {}: {}", self.name, abridged(sql)))?;
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    /// The first value of the first row; an error when there is none or it is NULL.
    pub async fn scalar(&self, db: &str, sql: &str) -> Result<String> {
        let first = self.query_text(db, sql).await?.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
        first.with_context(|| format!("no value on {} from: {}", self.name, abridged(sql)))
    }

    /// Starts the server and waits until it takes connections; as a standby, until it is consistent.
    pub async fn start(&self) -> Result<()> {
        if self.running().is_ok() {
            bail!("{} is running already", self.name);
        }
        let log_start = self.log().len();
        let postmaster = Arc::new(self.spawn()?);
        *self.postmaster() = Some(Arc::clone(&postmaster));
        self.wait_ready(&postmaster).await.map_err(|error| {
            let log = self.log();
            let lines: Vec<_> = log.get(log_start..).unwrap_or(&log).lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
            error.context(format!("{} does not start; its log ends with:\n{tail}", self.name))
        })
    }

    /// A standby of this server, made of a base backup; started, and streaming from `upstream`, which leads here. It has the settings of this
    /// server, and names itself by its name. `tablespaces` are those of this server, and where they lie on the standby.
    pub async fn make_standby(&self, name: &str, upstream: u16, tablespaces: &[(&Path, &Path)]) -> Result<Server> {
        let standby = Server {
            name: name.to_owned(),
            install: self.install.clone(),
            port: Port::reserve()?,
            dir: ServerDir::create(self.medium)?,
            postmaster: Mutex::new(None),
            medium: self.medium,
        };
        let mut backup = self.install.server_command("pg_basebackup")?;
        backup.args([
            "--host=127.0.0.1",
            "--username=postgres",
            "--checkpoint=fast",
            "--wal-method=stream",
            "--no-sync",
        ]);
        backup.arg(format!("--port={}", self.port())).arg("--pgdata").arg(standby.data_dir());
        for (here, there) in tablespaces {
            backup.arg(format!("--tablespace-mapping={}={}", here.display(), there.display()));
        }
        let output = tokio::task::spawn_blocking(move || backup.output()).await??;
        if !output.status.success() {
            bail!("pg_basebackup of {}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        let conninfo = format!("host=127.0.0.1 port={upstream} user=postgres application_name={name}");
        standby.configure(&[
            ("port", &standby.port().to_string()),
            ("unix_socket_directories", &standby.socket_dir().to_string_lossy()),
            ("primary_conninfo", &conninfo),
            ("wal_retrieve_retry_interval", "100ms"),
            ("hot_standby", "on"),
        ])?;
        let signal = standby.data_dir().join("standby.signal");
        fs::write(&signal, "")?;
        give_to_server_user(&signal)?;
        standby.start().await?;
        let streams = format!(
            "SELECT count(*) > 0 FROM pg_stat_replication WHERE state = 'streaming' AND application_name = '{name}'"
        );
        let streams = || async { Ok((self.scalar("postgres", &streams).await? == "t").then_some(())) };
        wait_for(&format!("{name} to stream"), START_DEADLINE, streams).await?;
        Ok(standby)
    }

    /// Makes a primary of a standby.
    pub async fn promote(&self) -> Result<()> {
        let promoted = self.scalar("postgres", "SELECT pg_promote()").await?;
        if promoted != "t" {
            bail!("{} is not promoted", self.name);
        }
        Ok(())
    }

    /// Ends all sessions and waits until WAL is with every connected standby (SIGINT).
    pub async fn stop_fast(&self) -> Result<()> {
        self.stop(Signal::INT).await
    }

    /// Ends without a checkpoint, so that the next start recovers (SIGQUIT).
    pub async fn stop_immediate(&self) -> Result<()> {
        self.stop(Signal::QUIT).await
    }

    /// Ends the postmaster and all its children with SIGKILL, and waits until none is left.
    pub async fn kill(&self) -> Result<()> {
        let postmaster = self.running()?;
        // A stopped postmaster starts no further children while they are counted.
        postmaster.signal(Signal::STOP)?;
        let children = postmaster.children();
        postmaster.signal(Signal::KILL)?;
        children.iter().copied().for_each(kill_pid);
        postmaster.wait(STOP_DEADLINE).await?;
        self.postmaster().take();
        let gone = || async { Ok((!children.iter().any(|&pid| runs(pid))).then_some(())) };
        wait_for("killed backends to be gone", STOP_DEADLINE, gone).await
    }

    pub async fn restart(&self) -> Result<()> {
        self.stop_fast().await?;
        self.start().await
    }

    /// Appends to `postgresql.conf`; holds from the next reload or start.
    pub fn configure(&self, settings: &[(&str, &str)]) -> Result<()> {
        let conf = self.data_dir().join("postgresql.conf");
        let old = fs::read_to_string(&conf)?;
        // In place: the file keeps its owner.
        Ok(fs::write(&conf, old + &render(settings))?)
    }

    /// Changes settings of the running server, and waits until new sessions have them.
    pub async fn reload(&self, settings: &[(&str, &str)]) -> Result<()> {
        let loaded = "SELECT pg_conf_load_time()";
        let before = self.scalar("postgres", loaded).await?;
        self.configure(settings)?;
        self.running()?.signal(Signal::HUP)?;
        let changed = || async { Ok((self.scalar("postgres", loaded).await? != before).then_some(())) };
        wait_for("the configuration to be reloaded", START_DEADLINE, changed).await
    }

    pub(crate) fn signal_quit(&self) {
        if let Ok(postmaster) = self.running() {
            // It may have ended by itself.
            postmaster.signal(Signal::QUIT).ok();
        }
    }

    async fn stop(&self, signal: Signal) -> Result<()> {
        let postmaster = self.running()?;
        postmaster.signal(signal)?;
        postmaster.wait(STOP_DEADLINE).await?;
        self.postmaster().take();
        Ok(())
    }

    fn spawn(&self) -> Result<Process> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = self.install.server_command("postgres")?;
        command.arg("-D").arg(self.data_dir());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Process::spawn(&format!("server {}", self.name), command, Signal::QUIT)
    }

    async fn wait_ready(&self, postmaster: &Process) -> Result<()> {
        let start = Instant::now();
        while !self.says_ready(postmaster) {
            if let Some(status) = postmaster.try_wait()? {
                bail!("it ended with {status}");
            }
            if start.elapsed() > START_DEADLINE {
                bail!("it is not ready after {START_DEADLINE:?}");
            }
            tokio::time::sleep(READY_POLL_INTERVAL).await;
        }
        self.connect("postgres").await.map(drop)
    }

    /// Reads `postmaster.pid`: pid in the first line, status in the eighth. Connection attempts would fill the log.
    fn says_ready(&self, postmaster: &Process) -> bool {
        let file = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        let mut lines = file.lines().map(str::trim);
        lines.next() == Some(&postmaster.pid().to_string()) && lines.nth(6) == Some("ready")
    }

    fn running(&self) -> Result<Arc<Process>> {
        match self.postmaster().as_ref() {
            Some(postmaster) if postmaster.try_wait()?.is_none() => Ok(Arc::clone(postmaster)),
            _ => bail!("{} is not running", self.name),
        }
    }

    fn postmaster(&self) -> MutexGuard<'_, Option<Arc<Process>>> {
        self.postmaster.lock().expect("no panic happens under this lock")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal_quit();
        if let Some(postmaster) = self.postmaster().take() {
            let children = postmaster.children();
            if postmaster.wait_blocking(DROP_DEADLINE).is_none() {
                children.into_iter().for_each(kill_pid);
            }
        }
        remove_shared_memory(&self.data_dir());
    }
}

/// A server that was killed leaves a System V segment behind, named in the seventh line of `postmaster.pid`.
fn remove_shared_memory(data_dir: &Path) {
    let file = fs::read_to_string(data_dir.join("postmaster.pid")).unwrap_or_default();
    if let Some(id) = file.lines().nth(6).and_then(|line| line.split_ascii_whitespace().nth(1)) {
        // Not there when a later start has cleaned up.
        std::process::Command::new("ipcrm").args(["-m", id]).stderr(Stdio::null()).status().ok();
    }
}

fn abridged(sql: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 200;
    sql.chars().take(SHOWN_CHARS_MAX).collect()
}
