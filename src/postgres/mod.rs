//! What every conversation with a PostgreSQL server needs, whatever it is about.
//!
//! In: an [`Endpoint`]. Out: an SQL session, with the settings under which text values mean the same on both ends.
//!
//! **Always holds:** a password is sent only through SCRAM-SHA-256. A server that asks for it in clear or as MD5 is
//! refused before anything is answered.

mod auth_guard;
mod ident;
mod target;

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};

pub use auth_guard::{PASSWORD_EXPOSED, PASSWORD_MISSING};
pub use ident::{quote_ident, quote_literal, quote_qualified};
pub use target::{NOTICE_LOST_CLIENT, prepare_target};

use crate::config::{Endpoint, Host, Role, TlsMode};
use crate::error::{Error, Kind, Stage};

/// Fixes how values are written as text, so that one server reads what the other wrote, and the meaning of every name.
/// `search_path` is empty because a search path that others can write to decides which operators run. Warnings are heard
/// because a walsender that leaves out rows says so in one.
pub const SESSION_SETTINGS: &str = "SET client_encoding = 'UTF8'; SET DateStyle = 'ISO, YMD'; \
    SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex'; \
    SET lc_monetary = 'C'; SET xmloption = 'content'; SET array_nulls = on; SET search_path = ''; \
    SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off; \
    SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
    SET client_min_messages = 'warning'";

/// Sessions and transactions last as long as they need. The settings came with 14 and 17, so each is set where it is found. That
/// takes a query, which the isolation that a role begins with may forbid on a standby: it comes after [`SESSION_SETTINGS`].
pub const NO_TIMEOUTS: &str = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN ('idle_session_timeout', 'transaction_timeout')";

/// A dead peer is noticed after about this long without an answer to a TCP probe.
const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// Opens an SQL session and applies [`SESSION_SETTINGS`] and [`NO_TIMEOUTS`]. The connection's task runs on the current tokio runtime.
///
/// # Errors
/// [`Kind::Unreachable`] if there is no server, [`Kind::Server`] if it refuses us.
pub async fn connect(endpoint: &Endpoint, stage: Stage) -> Result<Client, Error> {
    let unreachable = |source: io::Error| {
        Error::new(stage, Kind::Unreachable { role: endpoint.role, address: endpoint.address(), source })
    };
    let connecting = async {
        match &endpoint.host {
            Host::Tcp(host) => {
                let stream = TcpStream::connect((host.as_str(), endpoint.port)).await.map_err(unreachable)?;
                tune(&stream).map_err(unreachable)?;
                open_session(endpoint, stage, stream).await
            }
            Host::Unix(_) => {
                let stream = UnixStream::connect(endpoint.address()).await.map_err(unreachable)?;
                open_session(endpoint, stage, stream).await
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

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive())
}

/// The probes that find a peer that went away without a word.
pub fn keepalive() -> socket2::TcpKeepalive {
    socket2::TcpKeepalive::new().with_time(TCP_KEEPALIVE_IDLE).with_interval(Duration::from_secs(10)).with_retries(3)
}

async fn open_session<S>(endpoint: &Endpoint, stage: Stage, stream: S) -> Result<Client, Error>
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
    let guarded = auth_guard::AuthGuard::new(stream, endpoint.password.is_some());
    let (client, connection) =
        config.connect_raw(guarded, NoTls).await.map_err(|error| Error::from_postgres(stage, endpoint.role, error))?;
    let role = endpoint.role;
    tokio::spawn(async move {
        // Whoever uses the client sees the same failure and reports it; this line only helps to date it.
        if let Err(error) = connection.await {
            tracing::debug!(%role, %error, "connection ended");
        }
    });
    for settings in [SESSION_SETTINGS, NO_TIMEOUTS] {
        client.batch_execute(settings).await.map_err(|error| Error::from_postgres(stage, endpoint.role, error))?;
    }
    Ok(client)
}
