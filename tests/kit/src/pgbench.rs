//! pgbench as a source of load: a server and its arguments in, a child process out.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::engine::Engine;
use crate::server::Server;

const INIT_DEADLINE: Duration = Duration::from_secs(600);

/// A running or finished pgbench; killed when dropped.
#[derive(Debug)]
pub struct Pgbench {
    process: Engine,
}

impl Pgbench {
    /// Makes and fills pgbench's own tables. `extra` are further arguments, as in `["--partitions=4"]`.
    pub async fn init(server: &Server, db: &str, scale: u32, extra: &[&str]) -> Result<()> {
        let scale = scale.to_string();
        let args = ["-i", "-q", "-s", scale.as_str()];
        Self::spawn(server, db, &[&args, extra].concat())?.wait(INIT_DEADLINE).await.map(drop)
    }

    /// Runs `clients` sessions for `seconds`.
    pub fn start(server: &Server, db: &str, clients: u32, seconds: u32, extra: &[&str]) -> Result<Self> {
        Self::start_until(server, db, clients, "-T", seconds, extra)
    }

    /// Runs `clients` sessions of `transactions` each.
    pub fn start_transactions(
        server: &Server,
        db: &str,
        clients: u32,
        transactions: u32,
        extra: &[&str],
    ) -> Result<Self> {
        Self::start_until(server, db, clients, "-t", transactions, extra)
    }

    /// Waits for the end and returns what pgbench has printed; not ending well is an error.
    pub async fn wait(&self, deadline: Duration) -> Result<String> {
        let status = self.process.wait(deadline).await?;
        if !status.success() {
            bail!("pgbench ended with {status}: {}", self.process.stderr());
        }
        Ok(self.process.stdout())
    }

    pub async fn kill(&self) -> Result<()> {
        self.process.sigkill().await.map(drop)
    }

    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    fn start_until(server: &Server, db: &str, clients: u32, limit: &str, amount: u32, extra: &[&str]) -> Result<Self> {
        let (clients, amount) = (clients.to_string(), amount.to_string());
        let args = ["-n", "-c", clients.as_str(), limit, amount.as_str()];
        Self::spawn(server, db, &[&args, extra].concat())
    }

    fn spawn(server: &Server, db: &str, args: &[&str]) -> Result<Self> {
        let mut command = server.install().command("pgbench");
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &server.port().to_string()]).args(args).arg(db);
        Ok(Self { process: Engine::spawn_command(command)? })
    }
}
