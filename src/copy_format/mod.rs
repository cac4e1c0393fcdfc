//! Rows as COPY has them, in text and in binary, out of bytes and into them ("File Formats" of COPY).

pub mod read;
pub mod write;
