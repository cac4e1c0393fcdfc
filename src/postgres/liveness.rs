//! Notices a server that has gone without a word: its host has lost power, or the network in between is cut.
//!
//! In: the stream under an SQL session. Out: the same stream, and a future that ends when its server is gone.
//!
//! TCP by itself retransmits for a quarter of an hour. `TCP_USER_TIMEOUT` shortens that, but Linux applies it to a closed window as
//! well, however alive the other end is: a backend that waits for a lock reads nothing, the window closes while a batch is being sent
//! to it, and the connection would be reset in the midst of a wait that is none of its faults. So a session that has sent something
//! and has read nothing for a while tries whether the host still answers, by opening a connection to the same address. Only a host
//! that cannot be reached is gone. Sessions at rest are left to TCP's keepalive probes.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What has passed through a stream.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    reads: AtomicU64,
    /// Something was to be written since the last read.
    is_awaited: AtomicBool,
}

impl Traffic {
    fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    fn is_awaited(&self) -> bool {
        self.is_awaited.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(super) struct Observed<S> {
    stream: S,
    traffic: Arc<Traffic>,
}

impl<S> Observed<S> {
    pub fn new(stream: S, traffic: Arc<Traffic>) -> Observed<S> {
        Observed { stream, traffic }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.traffic.reads.fetch_add(1, Ordering::Relaxed);
            self.traffic.is_awaited.store(false, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.traffic.is_awaited.store(true, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Ends once nothing has been read for `silence` though something was sent, and the host cannot be reached. Without an address, which
/// is on a Unix socket, there is no host that could be gone.
pub(super) async fn until_gone(traffic: &Traffic, address: Option<SocketAddr>, silence: Duration) {
    let Some(address) = address else { return pending().await };
    let mut before = traffic.reads();
    loop {
        tokio::time::sleep(silence / 2).await;
        if traffic.is_awaited() && traffic.reads() == before {
            // Somebody may have answered while this was tried.
            if !is_there(address, silence / 2).await && traffic.reads() == before {
                return;
            }
        }
        before = traffic.reads();
    }
}

/// Whether anything at this address answers, if only to refuse. What fails on this side says nothing of the other.
async fn is_there(address: SocketAddr, limit: Duration) -> bool {
    match tokio::time::timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => !matches!(
            error.kind(),
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
        ),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const SILENCE: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_host_that_answers_is_there_however_long_its_server_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let traffic = Arc::new(Traffic::default());
        let mut stream = Observed::new(TcpStream::connect(address).await.unwrap(), traffic.clone());
        stream.write_all(b"a question").await.unwrap();
        assert!(traffic.is_awaited());
        let gone = tokio::time::timeout(SILENCE * 10, until_gone(&traffic, Some(address), SILENCE)).await;
        assert!(gone.is_err(), "a silent server is no lost one");
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"an answer").await.unwrap();
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 9);
        assert!(!traffic.is_awaited());
        // A host without a server there says so, which is an answer as well.
        drop(listener);
        assert!(is_there(address, Duration::from_secs(10)).await);
    }
}
