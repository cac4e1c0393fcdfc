//! The only code that touches raw bytes: reads that are bounded by the input, each naming the field it reads.

use crate::{DecodeError, DecodeErrorKind, Lsn, Oid, PgTimestamp, Xid};

#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    lsn: Lsn,
    input: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(lsn: Lsn, input: &'a [u8]) -> Cursor<'a> {
        Cursor { lsn, input, offset: 0 }
    }

    pub fn offset(&self) -> usize {
        self.offset
    }

    pub fn remaining(&self) -> usize {
        self.input.len() - self.offset
    }

    /// The input from here on.
    #[inline]
    pub fn unread(&self) -> &'a [u8] {
        &self.input[self.offset..]
    }

    /// The input from `start`, an offset this cursor has been at, up to where it is now.
    pub fn since(&self, start: usize) -> &'a [u8] {
        &self.input[start..self.offset]
    }

    #[inline]
    pub fn bytes(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], DecodeError> {
        match self.input[self.offset..].get(..length) {
            Some(bytes) => {
                self.offset += length;
                Ok(bytes)
            }
            None => {
                let remaining = self.remaining();
                Err(self.error(DecodeErrorKind::ShortInput { field, needed: length, remaining }))
            }
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        match self.input[self.offset..].first_chunk::<N>() {
            Some(bytes) => {
                self.offset += N;
                Ok(*bytes)
            }
            None => {
                let remaining = self.remaining();
                Err(self.error(DecodeErrorKind::ShortInput { field, needed: N, remaining }))
            }
        }
    }

    #[inline]
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array(field).map(u8::from_be_bytes)
    }

    #[inline]
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    #[inline]
    pub fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.array(field).map(i32::from_be_bytes)
    }

    #[inline]
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    #[inline]
    pub fn oid(&mut self, field: &'static str) -> Result<Oid, DecodeError> {
        self.u32(field).map(Oid)
    }

    pub fn xid(&mut self, field: &'static str) -> Result<Xid, DecodeError> {
        self.u32(field).map(Xid)
    }

    pub fn lsn(&mut self, field: &'static str) -> Result<Lsn, DecodeError> {
        self.array(field).map(u64::from_be_bytes).map(Lsn::new)
    }

    pub fn timestamp(&mut self, field: &'static str) -> Result<PgTimestamp, DecodeError> {
        self.array(field).map(i64::from_be_bytes).map(PgTimestamp::from_micros)
    }

    /// A byte that must be one of 0 and 1.
    pub fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(self.error_back(1, DecodeErrorKind::InvalidValue { field, value: value.into() })),
        }
    }

    /// A flags byte for which the protocol defines no bit yet.
    pub fn unused_flags(&mut self, field: &'static str) -> Result<(), DecodeError> {
        match self.u8(field)? {
            0 => Ok(()),
            value => Err(self.error_back(1, DecodeErrorKind::InvalidValue { field, value: value.into() })),
        }
    }

    /// A length of four bytes that must not be negative.
    #[inline]
    pub fn length(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let length = self.i32(field)?;
        usize::try_from(length)
            .map_err(|_| self.error_back(4, DecodeErrorKind::InvalidLength { field, length: length.into() }))
    }

    /// A string that ends with a zero byte, without it.
    pub fn string(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let rest = &self.input[self.offset..];
        let Some(length) = rest.iter().position(|&byte| byte == 0) else {
            return Err(self.error(DecodeErrorKind::Unterminated { field }));
        };
        let text = str::from_utf8(&rest[..length]).map_err(|_| self.error(DecodeErrorKind::InvalidUtf8 { field }))?;
        self.offset += length + 1;
        Ok(text)
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = &self.input[self.offset..];
        self.offset = self.input.len();
        rest
    }

    pub fn finish(&self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            remaining => Err(self.error(DecodeErrorKind::TrailingBytes { remaining })),
        }
    }

    #[cold]
    pub fn error(&self, kind: DecodeErrorKind) -> DecodeError {
        DecodeError { lsn: self.lsn, offset: self.offset, kind }
    }

    /// An error about the field of `length` bytes that was just read.
    #[cold]
    pub fn error_back(&self, length: usize, kind: DecodeErrorKind) -> DecodeError {
        DecodeError { lsn: self.lsn, offset: self.offset - length, kind }
    }
}
