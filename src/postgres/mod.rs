//! What every conversation with a PostgreSQL server needs, whatever it is about.
//!
//! In: an [`Endpoint`]. Out: an SQL session, with the settings under which text values mean the same on both ends.
//!
//! **Always holds:** a password is sent only through SCRAM-SHA-256. A server that asks for it in clear or as MD5 is
//! refused before anything is answered.

mod auth_guard;
mod ident;
mod liveness;
mod narrowing;
mod pooled;
mod target;
mod warnings;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};

pub use auth_guard::{PASSWORD_EXPOSED, PASSWORD_MISSING};
pub use ident::{OwnRows, quote_ident, quote_literal, quote_qualified};
pub use narrowing::{ColumnType, Loss, loss};
pub use pooled::check_unpooled;
pub use target::{NOTICE_LOST_CLIENT, prepare_target, write_in_blocks_only};
pub use warnings::Warnings;

use self::liveness::{Observed, Traffic};
use crate::config::{Endpoint, Host, Role, TlsMode};
use crate::error::{Error, Kind, Stage};

/// Fixes how values are written as text, so that one server reads what the other wrote, and the meaning of every name.
/// `search_path` is empty because a search path that others can write to decides which operators run. Warnings are heard
/// because a walsender that leaves out rows says so in one. Row security is an error where it would leave out rows.
pub const SESSION_SETTINGS: &str = "SET client_encoding = 'UTF8'; SET DateStyle = 'ISO, YMD'; \
    SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex'; \
    SET lc_monetary = 'C'; SET xmloption = 'content'; SET array_nulls = on; SET search_path = ''; \
    SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off; \
    SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
    SET client_min_messages = 'warning'; SET row_security = off";

/// An index-only scan on a standby can return a row that is gone: its place may be in use again before the visibility map says so.
pub const SOURCE_SETTINGS: &str = "SET enable_indexonlyscan = off";

/// Sessions and transactions last as long as they need. The settings came with 14 and 17, so each is set where it is found. That
/// takes a query, which the isolation that a role begins with may forbid on a standby: it comes after [`SESSION_SETTINGS`].
pub const NO_TIMEOUTS: &str = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN ('idle_session_timeout', 'transaction_timeout')";

/// How many of TCP's probes may go unanswered.
const TCP_KEEPALIVE_PROBES: u32 = 3;

/// Opens an SQL session and applies [`SESSION_SETTINGS`] and [`NO_TIMEOUTS`]. The connection's task runs on the current tokio runtime.
///
/// # Errors
/// [`Kind::Unreachable`] if there is no server, [`Kind::Server`] if it refuses us.
pub async fn connect(endpoint: &Endpoint, stage: Stage) -> Result<Client, Error> {
    connect_hearing(endpoint, stage).await.map(|(client, _)| client)
}

/// The same, where it matters what the server warns of.
///
/// # Errors
/// As [`connect`].
pub async fn connect_hearing(endpoint: &Endpoint, stage: Stage) -> Result<(Client, Warnings), Error> {
    let unreachable = |source: io::Error| {
        Error::new(stage, Kind::Unreachable { role: endpoint.role, address: endpoint.address(), source })
    };
    let connecting = async {
        match &endpoint.host {
            Host::Tcp(host) => {
                let stream = TcpStream::connect((host.as_str(), endpoint.port)).await.map_err(unreachable)?;
                tune(&stream, endpoint.tcp_user_timeout).map_err(unreachable)?;
                let address = stream.peer_addr().map_err(unreachable)?;
                open_session(endpoint, stage, stream, Some(address)).await
            }
            Host::Unix(_) => {
                let stream = UnixStream::connect(endpoint.address()).await.map_err(unreachable)?;
                open_session(endpoint, stage, stream, None).await
            }
        }
    };
    match tokio::time::timeout(endpoint.connect_timeout, connecting).await {
        Ok(result) => result,
        Err(_) => Err(unreachable(io::ErrorKind::TimedOut.into())),
    }
}

/// A runtime that runs on the thread that waits for it.
pub fn new_runtime(stage: Stage) -> Result<Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::new(stage, Kind::Lost { role: Role::Target, source }))
}

fn tune(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive(timeout))
}

/// The probes that find a peer that went away without a word, after about this long.
pub fn keepalive(timeout: Duration) -> socket2::TcpKeepalive {
    let (idle, interval) = probes(timeout);
    socket2::TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(TCP_KEEPALIVE_PROBES)
}

/// How long a connection is at rest before it is probed, and the time between two probes, in whole seconds.
fn probes(timeout: Duration) -> (Duration, Duration) {
    let seconds = timeout.as_secs();
    let interval = Duration::from_secs((seconds / 6).max(1));
    (Duration::from_secs((seconds / 2).max(1)), interval)
}

/// Has the server notice that we are gone. A walsender, and a backend that sends a COPY, may find our window closed for as long as the
/// target takes, which `tcp_user_timeout` would count as gone: they go without it. A walsender has `wal_sender_timeout` instead.
/// `idle_in_transaction_session_timeout` is no help here: a session that waits for its turn to commit is idle in a transaction, and
/// nothing is wrong with it. The settings are set where they are found, and do nothing on a Unix socket.
pub fn notice_lost_client(timeout: Duration, sends_much: bool) -> String {
    let (idle, interval) = probes(timeout);
    let mut settings = vec![
        ("tcp_keepalives_idle", u128::from(idle.as_secs())),
        ("tcp_keepalives_interval", interval.as_secs().into()),
        ("tcp_keepalives_count", TCP_KEEPALIVE_PROBES.into()),
    ];
    if !sends_much {
        settings.push(("tcp_user_timeout", timeout.as_millis()));
    }
    let values: Vec<_> = settings.iter().map(|(name, value)| format!("('{name}', '{value}')")).collect();
    format!(
        "SELECT set_config(name, value, false) FROM (VALUES {}) wanted (name, value) JOIN pg_settings USING (name)",
        values.join(", ")
    )
}

async fn open_session<S>(
    endpoint: &Endpoint,
    stage: Stage,
    stream: S,
    address: Option<SocketAddr>,
) -> Result<(Client, Warnings), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut config = tokio_postgres::Config::new();
    config.user(&endpoint.user).dbname(&endpoint.dbname).application_name(&endpoint.application_name);
    if let Some(password) = &endpoint.password {
        config.password(password.expose());
    }
    match endpoint.tls {
        TlsMode::Disable => config.ssl_mode(tokio_postgres::config::SslMode::Disable),
    };
    let traffic = Arc::new(Traffic::default());
    let observed = Observed::new(stream, traffic.clone());
    let guarded = auth_guard::AuthGuard::new(observed, endpoint.password.is_some());
    let (client, connection) =
        config.connect_raw(guarded, NoTls).await.map_err(|error| Error::from_postgres(stage, endpoint.role, error))?;
    let (role, silence) = (endpoint.role, endpoint.tcp_user_timeout);
    let warnings = Warnings::default();
    let driven = warnings.clone().drive(connection);
    tokio::spawn(async move {
        tokio::select! {
            // Whoever uses the client sees the same failure and reports it; this line only helps to date it.
            ended = driven => if let Err(error) = ended {
                tracing::debug!(%role, %error, "connection ended");
            },
            // With the connection, all that waits for it ends.
            () = liveness::until_gone(&traffic, address, silence) => {
                let silence = humantime::format_duration(silence);
                tracing::warn!("the {role} has answered nothing for {silence}, and its host cannot be reached: the connection is given up");
            }
        }
    });
    let of_role = match endpoint.role {
        Role::Source => SOURCE_SETTINGS,
        Role::Primary | Role::Target => "",
    };
    let lost_client = notice_lost_client(endpoint.tcp_user_timeout, false);
    for settings in [SESSION_SETTINGS, of_role, NO_TIMEOUTS, &lost_client].into_iter().filter(|sql| !sql.is_empty()) {
        client.batch_execute(settings).await.map_err(|error| Error::from_postgres(stage, endpoint.role, error))?;
    }
    Ok((client, warnings))
}
