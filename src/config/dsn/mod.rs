//! Connection strings: libpq's text comes in, an [`Endpoint`] goes out that every part of the engine can connect with.
//!
//! The rules are those of "Connection Strings" and "Parameter Key Words" in the libpq chapter of PostgreSQL's
//! documentation, with these differences. Nothing is guessed from the environment (`PGHOST`, the user's name, a service
//! or password file), since an engine that runs unattended must not change its servers with its shell. A keyword that
//! would have no effect is an error. `sslmode` is `verify-full` unless the server is local.
//!
//! What always holds: no error quotes the connection string. A quote that was forgotten makes the rest of a password
//! look like a keyword, a port or a host, so errors name keywords of libpq and positions, and a host only once it looks
//! like one.

mod syntax;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::unknown_key::nearest;
use super::{Endpoint, Host, Role, Secret, TlsMode};

/// What libpq uses where no port is given (`DEF_PGPORT`).
const PORT: u16 = 5432;
const CONNECT_TIMEOUT_S: u64 = 10;
/// An attempt that takes longer is a server that is gone.
const CONNECT_TIMEOUT_S_MAX: u64 = 3_600;
/// Far longer than a network takes to find another way, and short enough for another engine to take over.
const TCP_USER_TIMEOUT_MS: u64 = 30_000;
const TCP_USER_TIMEOUT_MS_MIN: u64 = 1_000;
const TCP_USER_TIMEOUT_MS_MAX: u64 = 3_600_000;
const APPLICATION_NAME: &str = "pgsluice";

const KEYWORDS: [&str; 11] = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "sslmode",
    "sslrootcert",
    "connect_timeout",
    "tcp_user_timeout",
    "application_name",
];

/// The other keywords of libpq 18, which are told from misspelt ones.
#[rustfmt::skip]
const KEYWORDS_WITHOUT_EFFECT: [&str; 39] = [
    "channel_binding", "client_encoding", "fallback_application_name", "gssdelegation", "gssencmode", "gsslib",
    "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "krbsrvname", "load_balance_hosts",
    "max_protocol_version", "min_protocol_version", "oauth_client_id", "oauth_client_secret", "oauth_issuer",
    "oauth_scope", "options", "passfile", "replication", "require_auth", "requirepeer",
    "scram_client_key", "scram_server_key", "service", "ssl_max_protocol_version",
    "ssl_min_protocol_version", "sslcert", "sslcertmode", "sslcompression", "sslcrl", "sslcrldir", "sslkey",
    "sslkeylogfile", "sslnegotiation", "sslpassword", "sslsni", "target_session_attrs",
];

/// What is wrong with a connection string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DsnError {
    #[error("keyword {position} of the connection string has no \"=\"; a value with spaces stands in single quotes")]
    NoEquals { position: usize },
    #[error(
        "`{keyword}` has no value, and the next keyword would be taken for it; leave it out, or write {keyword}=''"
    )]
    NoValue { keyword: &'static str },
    #[error("the connection string ends within a single quote; inside of one, write \\' for a quote")]
    Unterminated,
    #[error("the connection string holds a zero byte")]
    ZeroByte,
    #[error("the connection URI has an \"@\" or \"/\" too many; within a value write %40 for \"@\" and %2F for \"/\"")]
    AtSign,
    #[error("the connection URI has an IPv6 address whose brackets are not closed before its port, such as [::1]:5432")]
    Bracket,
    #[error(
        "the connection URI has a \"%\" that is not followed by the two hexadecimal digits of a UTF-8 byte; write %25"
    )]
    Percent,
    #[error("the connection URI has white space within a value; write %20")]
    Space,
    #[error("the connection URI's parameter {position} is not of the form keyword=value")]
    Parameter { position: usize },
    #[error("the keyword `{0}` of libpq is not supported; remove it")]
    NotSupported(&'static str),
    #[error("{}", unknown_keyword(*position, keyword.as_deref(), *nearest))]
    UnknownKeyword {
        position: usize,
        /// `None` where it could be a part of a password.
        keyword: Option<String>,
        nearest: Option<&'static str>,
    },
    #[error("no host is given, and none is guessed; add host=… with a name, an address or the directory of a socket")]
    NoHost,
    #[error("no user is given, and none is guessed; add user=…")]
    NoUser,
    #[error("several hosts are given; name the one server that is meant")]
    SeveralHosts,
    #[error("the host is a socket in the abstract namespace, which is not supported; give the socket's directory")]
    AbstractSocket,
    #[error("the host is neither a name, an address nor an absolute directory; a port is given as port=…")]
    Host,
    #[error("`hostaddr` is not an IP address; give names as host=…")]
    HostAddr,
    #[error("the port is not a number from 1 to 65535")]
    Port,
    #[error("`connect_timeout` is not a number of seconds from 1 to {CONNECT_TIMEOUT_S_MAX}")]
    ConnectTimeout,
    #[error(
        "`tcp_user_timeout` is not a number of milliseconds from {TCP_USER_TIMEOUT_MS_MIN} to {TCP_USER_TIMEOUT_MS_MAX}"
    )]
    TcpUserTimeout,
    #[error("`sslmode` is none of disable, allow, prefer, require, verify-ca, verify-full")]
    SslMode,
    #[error(
        "TLS is not available in this version; a connection to {host} would be sslmode={mode}. Set sslmode=disable \
         only on a network you trust"
    )]
    TlsUnavailable { host: String, mode: SslMode },
    #[error("TLS is not available in this version, so `sslrootcert` has no effect; remove it")]
    SslRootCert,
}

fn unknown_keyword(position: usize, keyword: Option<&str>, nearest: Option<&'static str>) -> String {
    let subject = match keyword {
        Some(keyword) => format!("`{keyword}` is not a keyword of libpq"),
        None => format!("parameter {position} of the connection string has no keyword of libpq"),
    };
    match nearest {
        Some(nearest) => format!("{subject}; did you mean `{nearest}`?"),
        None => format!(
            "{subject}; supported are {}. A value with spaces stands in single quotes, and a URI begins with \
             postgresql://",
            KEYWORDS.join(", ")
        ),
    }
}

/// libpq's `sslmode`, from the weakest promise to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    const ALL: [SslMode; 6] =
        [SslMode::Disable, SslMode::Allow, SslMode::Prefer, SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull];
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        })
    }
}

pub(super) fn parse(role: Role, text: &str) -> Result<Endpoint, DsnError> {
    let mut settings = syntax::read(text)?;
    let host = host(&mut settings)?;
    let port = match settings.take("port") {
        None => PORT,
        Some(port) if port.contains(',') => return Err(DsnError::SeveralHosts),
        Some(port) => number(&port).filter(|port| *port != 0).ok_or(DsnError::Port)?,
    };
    let connect_timeout_s = match settings.take("connect_timeout") {
        None => CONNECT_TIMEOUT_S,
        Some(seconds) => number(&seconds)
            .filter(|seconds| (1..=CONNECT_TIMEOUT_S_MAX).contains(seconds))
            .ok_or(DsnError::ConnectTimeout)?,
    };
    let tcp_user_timeout_ms = match settings.take("tcp_user_timeout") {
        None => TCP_USER_TIMEOUT_MS,
        Some(milliseconds) => number(&milliseconds)
            .filter(|milliseconds| (TCP_USER_TIMEOUT_MS_MIN..=TCP_USER_TIMEOUT_MS_MAX).contains(milliseconds))
            .ok_or(DsnError::TcpUserTimeout)?,
    };
    let user = settings.take("user").ok_or(DsnError::NoUser)?;
    let tls = tls_mode(&host, settings.take("sslmode"))?;
    if settings.take("sslrootcert").is_some() {
        return Err(DsnError::SslRootCert);
    }
    Ok(Endpoint {
        role,
        host,
        port,
        dbname: settings.take("dbname").unwrap_or_else(|| user.clone()),
        user,
        password: settings.take("password").map(Secret::new),
        tls,
        connect_timeout: Duration::from_secs(connect_timeout_s),
        tcp_user_timeout: Duration::from_millis(tcp_user_timeout_ms),
        application_name: settings.take("application_name").unwrap_or_else(|| APPLICATION_NAME.to_owned()),
    })
}

/// The values of a connection string by keyword of libpq. Not `Debug`: one of them is the password.
#[derive(Default)]
struct Settings(BTreeMap<&'static str, String>);

impl Settings {
    /// As in libpq, the last of several values of a keyword counts.
    fn set(&mut self, position: usize, keyword: &str, value: String) -> Result<(), DsnError> {
        if value.contains('\0') {
            return Err(DsnError::ZeroByte);
        }
        if let Some(known) = KEYWORDS.into_iter().find(|known| *known == keyword) {
            self.0.insert(known, value);
            return Ok(());
        }
        if let Some(other) = KEYWORDS_WITHOUT_EFFECT.into_iter().find(|other| *other == keyword) {
            return Err(DsnError::NotSupported(other));
        }
        // Behind an unquoted password that holds a space, the rest of it stands where a keyword would.
        let harmless =
            !self.0.contains_key("password") && keyword.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_');
        Err(DsnError::UnknownKeyword {
            position,
            keyword: harmless.then(|| keyword.to_owned()),
            nearest: nearest(keyword, KEYWORDS),
        })
    }

    /// As in libpq, an empty value is none.
    fn take(&mut self, keyword: &'static str) -> Option<String> {
        assert!(KEYWORDS.contains(&keyword), "{keyword} is never set");
        self.0.remove(keyword).filter(|value| !value.is_empty())
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.trim().parse().ok()
}

/// `hostaddr` says where to connect, `host` what the server is called; one of them is enough.
fn host(settings: &mut Settings) -> Result<Host, DsnError> {
    let (name, address) = (settings.take("host"), settings.take("hostaddr"));
    if [&name, &address].into_iter().flatten().any(|host| host.contains(',')) {
        return Err(DsnError::SeveralHosts);
    }
    if let Some(address) = address {
        return address.parse().map(|address: IpAddr| Host::Tcp(address.to_string())).map_err(|_| DsnError::HostAddr);
    }
    let plausible = |name: &str| match name.contains(':') {
        true => name.split('%').next().is_some_and(|address| address.parse::<IpAddr>().is_ok()),
        false => name.chars().all(|c| c.is_alphanumeric() || ".-_".contains(c)),
    };
    match name {
        None => Err(DsnError::NoHost),
        Some(directory) if directory.starts_with('/') => Ok(Host::Unix(PathBuf::from(directory))),
        Some(socket) if socket.starts_with('@') => Err(DsnError::AbstractSocket),
        Some(name) if plausible(&name) => Ok(Host::Tcp(name)),
        Some(_) => Err(DsnError::Host),
    }
}

/// libpq's meaning of every mode, as far as it goes without TLS: `allow` and `prefer` are content with a plain
/// connection, and on a Unix-domain socket every mode is ignored ("SSL Support", "Protection Provided in Different
/// Modes").
fn tls_mode(host: &Host, asked: Option<String>) -> Result<TlsMode, DsnError> {
    let mode = match asked {
        Some(asked) => SslMode::ALL.into_iter().find(|mode| mode.to_string() == asked).ok_or(DsnError::SslMode)?,
        None if is_local(host) => SslMode::Disable,
        None => SslMode::VerifyFull,
    };
    match (host, mode) {
        (Host::Unix(_), _) | (Host::Tcp(_), SslMode::Disable | SslMode::Allow | SslMode::Prefer) => {
            Ok(TlsMode::Disable)
        }
        (Host::Tcp(host), SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => {
            Err(DsnError::TlsUnavailable { host: host.clone(), mode })
        }
    }
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => match name.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => name.eq_ignore_ascii_case("localhost"),
        },
    }
}

#[cfg(test)]
mod tests;
