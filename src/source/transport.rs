//! The socket under a replication connection. TLS will be one more variant here, and nothing else will know.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use socket2::SockRef;

use crate::config::{Endpoint, Host, TlsMode};
use crate::postgres;

/// What the bytes pass on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// A socket that has no window.
    Unix,
    /// TCP within this machine.
    Loopback,
    /// Anything with a link in between, however short.
    Link,
}

#[derive(Debug)]
pub(super) enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Transport {
    /// Connects within the endpoint's `connect_timeout`.
    pub fn connect(endpoint: &Endpoint) -> io::Result<Transport> {
        match endpoint.tls {
            TlsMode::Disable => {}
        }
        match &endpoint.host {
            Host::Tcp(host) => connect_tcp(host, endpoint).map(Transport::Tcp),
            Host::Unix(_) => UnixStream::connect(endpoint.address()).map(Transport::Unix),
        }
    }

    /// How long a blocking read may take; `None` is for ever.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Transport::Tcp(stream) => stream.set_read_timeout(timeout),
            Transport::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    pub fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Transport::Tcp(stream) => stream.set_nonblocking(true),
            Transport::Unix(stream) => stream.set_nonblocking(true),
        }
    }

    /// Sets the receive buffer, where the kind of socket has one of its own.
    pub fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        match self {
            Transport::Tcp(stream) => SockRef::from(stream).set_recv_buffer_size(bytes),
            // Bytes wait in the sender's buffer.
            Transport::Unix(_) => Ok(()),
        }
    }

    pub fn path(&self) -> io::Result<Path> {
        match self {
            Transport::Tcp(stream) => {
                let (here, there) = (stream.local_addr()?.ip(), stream.peer_addr()?.ip());
                Ok(if there.is_loopback() || there == here { Path::Loopback } else { Path::Link })
            }
            Transport::Unix(_) => Ok(Path::Unix),
        }
    }
}

fn connect_tcp(host: &str, endpoint: &Endpoint) -> io::Result<TcpStream> {
    let Endpoint { port, connect_timeout, tcp_user_timeout, .. } = *endpoint;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, connect_timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                SockRef::from(&stream).set_tcp_keepalive(&postgres::keepalive(tcp_user_timeout))?;
                // A status update that the other side's kernel does not acknowledge within this ends the connection: TCP alone
                // would go on for a quarter of an hour. A walsender takes updates also while it waits for us, so its window never
                // closes; and a backend that sends a COPY gets nothing to read.
                SockRef::from(&stream).set_tcp_user_timeout(Some(tcp_user_timeout))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Tcp(stream) => stream.read(buffer),
            Transport::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Transport::Tcp(stream) => stream.write(bytes),
            Transport::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Transport::Tcp(stream) => stream.as_fd(),
            Transport::Unix(stream) => stream.as_fd(),
        }
    }
}
