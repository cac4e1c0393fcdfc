//! Topologies: options in, running servers out.
//!
//! ```text
//!   Chain   A ──b_slot──► B        C        A: primary, wal_level=logical
//!   Pair    A                      C        B: hot standby of A, decodes; C: shares no history with A
//!           B ──b2_slot──► B2               B2: a standby of the standby, where a test asks for one
//! ```
//!
//! Every server has a database `app`, trusts 127.0.0.1 and its Unix socket, and knows the roles `scram_user`, `md5_user`
//! and `clear_user`, which have to log in. A and B are copies of one stopped data directory, so B needs no base backup.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::directory::{Medium, give_to_server_user};
use crate::postgres::Install;
use crate::server::Server;
use crate::settings::{self, Settings};
use crate::template::{DATABASE, PHYSICAL_SLOT, Template};
use crate::wait::wait_for;

const CATCH_UP_DEADLINE: Duration = Duration::from_secs(60);
/// A port that was free when it was reserved may be taken by a stranger before the server binds it.
const START_TRIES_MAX: usize = 3;

/// How the servers of a [`Chain`] or [`Pair`] differ from the defaults.
#[derive(Clone, Debug)]
pub struct ChainOptions {
    /// Of A and B; `None` is `PGSLUICE_TEST_PG_MAJOR`, else 18.
    pub major_ab: Option<u32>,
    /// Of C, likewise.
    pub major_c: Option<u32>,
    pub a_conf: Vec<(String, String)>,
    pub b_conf: Vec<(String, String)>,
    pub c_conf: Vec<(String, String)>,
    /// B streams from slot `b_slot` of A. Without it, A forgets what B needs while B is away.
    pub physical_slot: bool,
    pub hot_standby_feedback: bool,
    /// Of A and B.
    pub wal_level: String,
    /// Off, unless durability is part of what is measured; with it the data is on disk.
    pub fsync: bool,
    /// Data on disk, where otherwise it is in memory on machines with enough of it: for tests with gigabytes.
    pub on_disk: bool,
    pub autovacuum: bool,
}

impl Default for ChainOptions {
    fn default() -> Self {
        Self {
            major_ab: None,
            major_c: None,
            a_conf: Vec::new(),
            b_conf: Vec::new(),
            c_conf: Vec::new(),
            physical_slot: true,
            hot_standby_feedback: true,
            wal_level: "logical".to_owned(),
            fsync: false,
            on_disk: false,
            autovacuum: true,
        }
    }
}

impl ChainOptions {
    pub fn major_ab(mut self, major: u32) -> Self {
        self.major_ab = Some(major);
        self
    }

    pub fn major_c(mut self, major: u32) -> Self {
        self.major_c = Some(major);
        self
    }

    /// Adds a setting of A. Those that a standby has to share go to B too.
    pub fn a_conf(mut self, name: &str, value: &str) -> Self {
        self.a_conf.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn b_conf(mut self, name: &str, value: &str) -> Self {
        self.b_conf.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn c_conf(mut self, name: &str, value: &str) -> Self {
        self.c_conf.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn physical_slot(mut self, on: bool) -> Self {
        self.physical_slot = on;
        self
    }

    pub fn hot_standby_feedback(mut self, on: bool) -> Self {
        self.hot_standby_feedback = on;
        self
    }

    pub fn wal_level(mut self, level: &str) -> Self {
        self.wal_level = level.to_owned();
        self
    }

    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    pub fn on_disk(mut self, on: bool) -> Self {
        self.on_disk = on;
        self
    }

    pub fn autovacuum(mut self, on: bool) -> Self {
        self.autovacuum = on;
        self
    }

    fn base(&self) -> Settings {
        settings::base(self.fsync, self.autovacuum)
    }

    fn of_a(&self) -> Settings {
        [self.base(), settings::settings(&[("wal_level", &self.wal_level)]), self.a_conf.clone()].concat()
    }

    /// What a standby of `upstream` has, which streams from this slot of it.
    fn of_standby(&self, upstream: &Server, slot: &str, application_name: &str) -> Settings {
        // Over TCP, as between two machines.
        let port = upstream.port();
        let conninfo = format!("host=127.0.0.1 port={port} user=postgres application_name={application_name}");
        let standby = settings::settings(&[
            ("wal_level", &self.wal_level),
            ("primary_conninfo", &conninfo),
            ("primary_slot_name", slot),
            ("hot_standby", "on"),
            ("hot_standby_feedback", if self.hot_standby_feedback { "on" } else { "off" }),
            ("wal_receiver_status_interval", "1s"),
            // B is often up before A, and A is often restarted: the default of 5 s would be most of a test's time.
            ("wal_retrieve_retry_interval", "100ms"),
        ]);
        [self.base(), standby, settings::shared_with_standby(&self.a_conf), self.b_conf.clone()].concat()
    }

    fn of_c(&self) -> Settings {
        [self.base(), self.c_conf.clone()].concat()
    }

    fn medium(&self) -> Medium {
        if self.fsync || self.on_disk { Medium::Disk } else { Medium::Memory }
    }

    fn make_a(&self) -> Result<Server> {
        let install = Install::find(self.major_ab)?;
        let a = Server::new("A", &install, self.medium(), &Template::Source.data_dir(&install)?, &self.of_a())?;
        if !self.physical_slot {
            remove_slot(&a)?;
        }
        Ok(a)
    }

    fn make_b(&self, a: &Server) -> Result<Server> {
        let slot = if self.physical_slot { PHYSICAL_SLOT } else { "" };
        self.make_standby("B", a, &self.of_standby(a, slot, "b"))
    }

    fn make_standby(&self, name: &str, upstream: &Server, settings: &[(String, String)]) -> Result<Server> {
        let install = upstream.install();
        let standby = Server::new(name, install, self.medium(), &Template::Source.data_dir(install)?, settings)?;
        // A's own; here it would hold back WAL for nobody.
        remove_slot(&standby)?;
        let signal = standby.data_dir().join("standby.signal");
        fs::write(&signal, "")?;
        give_to_server_user(&signal)?;
        Ok(standby)
    }

    fn make_c(&self) -> Result<Server> {
        let install = Install::find(self.major_c)?;
        Server::new("C", &install, self.medium(), &Template::Target.data_dir(&install)?, &self.of_c())
    }
}

/// A, its standby B, and C; stopped and removed when dropped.
#[derive(Debug)]
pub struct Chain {
    pub a: Server,
    pub b: Server,
    pub c: Server,
}

impl Chain {
    /// Three running servers, B streaming from A.
    pub async fn start(options: ChainOptions) -> Result<Self> {
        retry_taken_port(|| async {
            let options = options.clone();
            // Copying is most of the time, so two at once.
            let make = move || {
                thread::scope(|scope| {
                    let c = scope.spawn(|| options.make_c());
                    let a = options.make_a()?;
                    let b = options.make_b(&a)?;
                    let c = c.join().expect("making a server does not panic")?;
                    Ok(Self { a, b, c })
                })
            };
            let chain: Self = blocking(make).await?;
            tokio::try_join!(chain.a.start(), chain.b.start(), chain.c.start())?;
            chain.wait_b_streaming().await?;
            Ok(chain)
        })
        .await
    }

    /// A running standby of B, of the options that the chain was started with. It begins where A and B began, so that their
    /// first WAL must be there still.
    pub async fn start_cascaded(&self, options: &ChainOptions) -> Result<Server> {
        const SLOT: &str = "b2_slot";
        self.b.sql("postgres", &format!("SELECT pg_create_physical_replication_slot('{SLOT}', true)")).await?;
        let b2 = options.make_standby("B2", &self.b, &options.of_standby(&self.b, SLOT, "b2"))?;
        b2.start().await?;
        let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = 'b2'";
        let streaming = || async { Ok((self.b.scalar("postgres", streams).await? == "1").then_some(())) };
        wait_for("B2 to stream from B", CATCH_UP_DEADLINE, streaming).await?;
        Ok(b2)
    }

    /// Waits until B streams from A.
    pub async fn wait_b_streaming(&self) -> Result<()> {
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = 'b'";
        let streaming = || async { Ok((self.a.scalar("postgres", sql).await? == "1").then_some(())) };
        wait_for("B to stream from A", CATCH_UP_DEADLINE, streaming).await
    }

    /// Waits until B shows everything that A has written up to now.
    pub async fn wait_b_caught_up(&self) -> Result<()> {
        let lsn = self.a.scalar("postgres", "SELECT pg_current_wal_lsn()").await?;
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        // A new connection each time, so that B may be restarted meanwhile.
        let caught_up = || async { Ok((self.b.scalar("postgres", &sql).await? == "t").then_some(())) };
        wait_for(&format!("B to replay up to {lsn}"), CATCH_UP_DEADLINE, caught_up)
            .await
            .with_context(|| format!("log of B:\n{}", self.b.log()))
    }

    /// Makes A write the running-xacts record that the making of a slot on B waits for.
    pub async fn log_standby_snapshot(&self) -> Result<()> {
        self.a.sql(DATABASE, "SELECT pg_log_standby_snapshot()").await
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        // All at once; each server's own drop then waits for it.
        [&self.a, &self.b, &self.c].into_iter().for_each(Server::signal_quit);
    }
}

/// A primary as the source, and C.
#[derive(Debug)]
pub struct Pair {
    pub a: Server,
    pub c: Server,
}

impl Pair {
    pub async fn start(options: ChainOptions) -> Result<Self> {
        // Nobody reads from the slot.
        let options = options.physical_slot(false);
        retry_taken_port(|| async {
            let options = options.clone();
            let make = move || Ok(Self { a: options.make_a()?, c: options.make_c()? });
            let pair: Self = blocking(make).await?;
            tokio::try_join!(pair.a.start(), pair.c.start())?;
            Ok(pair)
        })
        .await
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        [&self.a, &self.c].into_iter().for_each(Server::signal_quit);
    }
}

fn remove_slot(server: &Server) -> Result<()> {
    fs::remove_dir_all(server.data_dir().join("pg_replslot").join(PHYSICAL_SLOT)).context("the template has the slot")
}

async fn blocking<T: Send + 'static>(make: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(make).await?
}

async fn retry_taken_port<T, F: Future<Output = Result<T>>>(mut start: impl FnMut() -> F) -> Result<T> {
    let mut tries = 0;
    loop {
        tries += 1;
        match start().await {
            Err(error) if tries < START_TRIES_MAX && format!("{error:#}").contains("Address already in use") => {}
            result => return result,
        }
    }
}
