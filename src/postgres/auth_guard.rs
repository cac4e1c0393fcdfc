//! Refuses servers that ask for a password in clear or as MD5.
//!
//! The SQL client library would answer them. So the guard sits between it and the socket, and reads the first message
//! of the server, which is the authentication request ("Start-up" in "Message Flow").

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Tag, length and kind of an authentication request.
const REQUEST_BYTES: usize = 9;
const CLEARTEXT: u32 = 3;
const MD5: u32 = 5;
const SASL: u32 = 10;

/// A server wants a password that we have not got.
pub const PASSWORD_MISSING: &str =
    "the server asks for a password and none is configured; set password_file or password_env";

/// A server wants a password in a form that gives it away.
pub const PASSWORD_EXPOSED: &str = "the server asks for the password in clear or as MD5, which is refused; \
    give the role a SCRAM-SHA-256 password (password_encryption = 'scram-sha-256', then ALTER ROLE … PASSWORD …) \
    and use the method scram-sha-256 in pg_hba.conf";

/// Why a server's first message must not be answered, if so.
fn objection(first_message: &[u8], has_password: bool) -> Option<&'static str> {
    let [b'R', _, _, _, _, kind @ ..] = first_message else { return None };
    match u32::from_be_bytes(*kind.first_chunk()?) {
        CLEARTEXT | MD5 => Some(PASSWORD_EXPOSED),
        SASL if !has_password => Some(PASSWORD_MISSING),
        _ => None,
    }
}

#[derive(Debug)]
pub(super) struct AuthGuard<S> {
    stream: S,
    has_password: bool,
    /// The start of the server's first message, until it has been judged.
    seen: Vec<u8>,
}

impl<S> AuthGuard<S> {
    pub fn new(stream: S, has_password: bool) -> AuthGuard<S> {
        AuthGuard { stream, has_password, seen: Vec::with_capacity(REQUEST_BYTES) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AuthGuard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let missing = REQUEST_BYTES - self.seen.len();
        if missing > 0 {
            let new = &buf.filled()[before..];
            self.seen.extend_from_slice(&new[..new.len().min(missing)]);
            if let Some(why) = objection(&self.seen, self.has_password) {
                // A read that fails has read nothing.
                buf.set_filled(before);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::PermissionDenied, why)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AuthGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn request(kind: u32) -> Vec<u8> {
        let mut message = vec![b'R', 0, 0, 0, 8];
        message.extend(kind.to_be_bytes());
        message
    }

    async fn read_through_guard(message: Vec<u8>, chunk: usize, has_password: bool) -> io::Result<Vec<u8>> {
        let (mut server, client) = tokio::io::duplex(chunk);
        let sender = tokio::spawn(async move { server.write_all(&message).await });
        let mut received = Vec::new();
        let result = AuthGuard::new(client, has_password).read_to_end(&mut received).await;
        sender.abort();
        result.map(|_| received)
    }

    #[tokio::test]
    async fn passwords_in_clear_and_md5_are_refused_in_any_chunking() {
        for kind in [CLEARTEXT, MD5] {
            for chunk in 1..=REQUEST_BYTES {
                let error = read_through_guard(request(kind), chunk, true).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            }
        }
    }

    #[tokio::test]
    async fn trust_scram_and_errors_pass() {
        let mut error_response = vec![b'E', 0, 0, 0, 8];
        error_response.extend(CLEARTEXT.to_be_bytes());
        for message in [request(0), request(SASL), error_response] {
            assert_eq!(read_through_guard(message.clone(), 3, true).await.unwrap(), message);
        }
    }

    #[tokio::test]
    async fn a_password_that_is_missing_is_said() {
        assert!(read_through_guard(request(0), 9, false).await.is_ok());
        assert_eq!(read_through_guard(request(SASL), 9, false).await.unwrap_err().to_string(), PASSWORD_MISSING);
    }
}
