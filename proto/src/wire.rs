//! The envelope around every message of the frontend/backend protocol: a tag, a length, a body.
//!
//! In: a buffer that holds the start of the stream's unread bytes. Out: the first whole message, or how many bytes it
//! needs. See "Message Formats" in PostgreSQL's documentation.

use crate::{DecodeError, DecodeErrorKind, Lsn};

/// Tag and length word.
pub const HEADER_BYTES: usize = 5;

/// No message of a backend is longer: `PQ_LARGE_MESSAGE_LIMIT`, which is `MaxAllocSize` of 1 GiB - 1.
pub const MESSAGE_BYTES_MAX: usize = 0x3fff_ffff;

pub const COPY_DATA: u8 = b'd';
pub const COPY_DONE: u8 = b'c';
pub const COMMAND_COMPLETE: u8 = b'C';
pub const ERROR_RESPONSE: u8 = b'E';
pub const NOTICE_RESPONSE: u8 = b'N';
pub const PARAMETER_STATUS: u8 = b'S';
pub const READY_FOR_QUERY: u8 = b'Z';

/// One whole message of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendMessage<'a> {
    pub tag: u8,
    pub body: &'a [u8],
}

impl BackendMessage<'_> {
    /// Bytes the message takes on the wire.
    pub fn total_bytes(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }
}

/// What stands at the start of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split<'a> {
    Whole(BackendMessage<'a>),
    /// The message is not all there: the buffer has to hold at least this many bytes before it can be.
    NeedsBytes(usize),
}

/// Looks at the first message of `buffer`.
///
/// # Errors
/// [`DecodeErrorKind::InvalidLength`] if the length word is below 4 or above [`MESSAGE_BYTES_MAX`]: the stream has lost
/// its framing and cannot be read further.
#[inline]
pub fn split(buffer: &[u8]) -> Result<Split<'_>, DecodeError> {
    let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else {
        return Ok(Split::NeedsBytes(HEADER_BYTES));
    };
    let length = i32::from_be_bytes([header[1], header[2], header[3], header[4]]);
    let body_bytes = match usize::try_from(length) {
        Ok(length) if (4..=MESSAGE_BYTES_MAX).contains(&length) => length - 4,
        Ok(_) | Err(_) => {
            let kind = DecodeErrorKind::InvalidLength { field: "message", length: length.into() };
            return Err(DecodeError { lsn: Lsn::INVALID, offset: 1, kind });
        }
    };
    Ok(match buffer[HEADER_BYTES..].get(..body_bytes) {
        Some(body) => Split::Whole(BackendMessage { tag: header[0], body }),
        None => Split::NeedsBytes(HEADER_BYTES + body_bytes),
    })
}

/// Appends a CopyData message whose body `write_body` appends.
pub fn put_copy_data(out: &mut Vec<u8>, write_body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[COPY_DATA, 0, 0, 0, 0]);
    write_body(out);
    let length = u32::try_from(out.len() - start - 1).expect("a client's CopyData is a few dozen bytes");
    out[start + 1..start + HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// Appends a CopyDone message, with which a client ends its half of the stream.
pub fn put_copy_done(out: &mut Vec<u8>) {
    out.extend_from_slice(&[COPY_DONE, 0, 0, 0, 4]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_whole_only_with_its_last_byte() {
        let wire = [b'd', 0, 0, 0, 6, 1, 2, b'Z'];
        for cut in 0..5 {
            assert_eq!(split(&wire[..cut]), Ok(Split::NeedsBytes(5)));
        }
        for cut in 5..7 {
            assert_eq!(split(&wire[..cut]), Ok(Split::NeedsBytes(7)));
        }
        let message = BackendMessage { tag: b'd', body: &[1, 2] };
        assert_eq!(split(&wire), Ok(Split::Whole(message)));
        assert_eq!(message.total_bytes(), 7);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [0, 3, -1, i32::MIN, MESSAGE_BYTES_MAX as i32 + 1, i32::MAX] {
            let mut wire = vec![b'd'];
            wire.extend(length.to_be_bytes());
            let kind = DecodeErrorKind::InvalidLength { field: "message", length: length.into() };
            assert_eq!(split(&wire).unwrap_err().kind, kind);
        }
    }

    #[test]
    fn client_messages_carry_their_own_length() {
        let mut out = vec![9];
        put_copy_data(&mut out, |body| body.extend([7, 8]));
        put_copy_done(&mut out);
        assert_eq!(out, [9, b'd', 0, 0, 0, 6, 7, 8, b'c', 0, 0, 0, 4]);
    }
}
