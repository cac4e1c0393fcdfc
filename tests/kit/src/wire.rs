//! As much of the frontend/backend protocol as a proxy needs: where messages begin and end, and which ReadyForQuery
//! answers which message.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// PostgreSQL's own limit of a message (`PQ_LARGE_MESSAGE_LIMIT`).
const MESSAGE_BYTES_MAX: usize = 0x3fff_ffff;
const LENGTH_BYTES: usize = 4;
const HEADER_BYTES: usize = 1 + LENGTH_BYTES;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// Reads the first message, which has no tag: a startup message or a cancel request. Requests for encryption before it
/// are declined.
pub(crate) async fn read_startup(
    client: &mut (impl AsyncRead + Unpin),
    answer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<Vec<u8>> {
    loop {
        let mut message = Vec::new();
        read_rest(client, &mut message).await?;
        let code = message.get(LENGTH_BYTES..2 * LENGTH_BYTES).and_then(|code| code.try_into().ok());
        match code.map(u32::from_be_bytes) {
            Some(SSL_REQUEST | GSSENC_REQUEST) => answer.write_all(b"N").await?,
            _ => return Ok(message),
        }
    }
}

/// Reads one message whole: tag, length, body.
pub(crate) async fn read_message(client: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut message = vec![client.read_u8().await?];
    read_rest(client, &mut message).await?;
    Ok(message)
}

/// A message of the simple query protocol.
pub(crate) fn query(sql: &str) -> Vec<u8> {
    let length = (LENGTH_BYTES + sql.len() + 1) as u32;
    [b"Q".as_slice(), &length.to_be_bytes(), sql.as_bytes(), b"\0"].concat()
}

/// Appends a length, which counts itself, and the body behind it.
async fn read_rest(client: &mut (impl AsyncRead + Unpin), message: &mut Vec<u8>) -> io::Result<()> {
    let length = client.read_u32().await?;
    message.extend(length.to_be_bytes());
    let body = (length as usize).checked_sub(LENGTH_BYTES).filter(|&body| body <= MESSAGE_BYTES_MAX);
    let body = body.ok_or_else(|| io::Error::other(format!("message length {length}")))?;
    let start = message.len();
    message.resize(start + body, 0);
    client.read_exact(&mut message[start..]).await.map(drop)
}

/// Whether the server may sit on a message of this tag until a Sync or Flush: Parse, Bind, Execute, Describe, Close.
pub(crate) fn waits_for_sync(tag: u8) -> bool {
    matches!(tag, b'P' | b'B' | b'E' | b'D' | b'C')
}

/// How many ReadyForQuery the client's messages call for, and how many have come.
#[derive(Debug)]
pub(crate) struct ReadyLedger {
    pub(crate) expected: u64,
    pub(crate) seen: u64,
    synced_since_execute: bool,
}

impl Default for ReadyLedger {
    fn default() -> Self {
        // The startup message is answered by one.
        Self { expected: 1, seen: 0, synced_since_execute: false }
    }
}

impl ReadyLedger {
    /// A client message of this tag is about to be passed on.
    pub(crate) fn sent(&mut self, tag: u8) {
        match tag {
            // Query, FunctionCall
            b'Q' | b'F' => {
                self.expected += 1;
                self.synced_since_execute = false;
            }
            // Sync
            b'S' => {
                self.expected += 1;
                self.synced_since_execute = true;
            }
            // Execute
            b'E' => self.synced_since_execute = false,
            _ => {}
        }
    }

    /// A server message of this tag has come.
    pub(crate) fn received(&mut self, tag: u8) {
        match tag {
            b'Z' => self.seen += 1,
            // CopyInResponse: the Sync which the client has sent along with its Execute falls into the copy, where the
            // server ignores it. The one that counts comes after CopyDone.
            b'G' if self.synced_since_execute => {
                self.expected -= 1;
                self.synced_since_execute = false;
            }
            _ => {}
        }
    }
}

/// Finds the tags in a server's bytes, however they are cut into chunks.
#[derive(Debug, Default)]
pub(crate) struct BackendScanner {
    header: Vec<u8>,
    body_left: usize,
}

impl BackendScanner {
    /// Calls `on_tag` for every message whose header ends in these bytes.
    pub(crate) fn scan(&mut self, mut bytes: &[u8], mut on_tag: impl FnMut(u8)) {
        while !bytes.is_empty() {
            let skipped = self.body_left.min(bytes.len());
            self.body_left -= skipped;
            bytes = &bytes[skipped..];
            let wanted = if self.body_left == 0 { HEADER_BYTES - self.header.len() } else { 0 };
            let (header, rest) = bytes.split_at(wanted.min(bytes.len()));
            self.header.extend(header);
            bytes = rest;
            if let &[tag, a, b, c, d] = self.header.as_slice() {
                self.body_left = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(LENGTH_BYTES);
                self.header.clear();
                on_tag(tag);
            }
        }
    }
}
