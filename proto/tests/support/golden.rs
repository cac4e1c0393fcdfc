//! Reads the captures in `tests/golden`.

use std::fs;
use std::path::{Path, PathBuf};

use pgsluice_proto::Lsn;

/// The messages of one stream, as a server sent them.
#[derive(Debug)]
pub struct Capture {
    pub path: PathBuf,
    /// Each with the LSN it came at.
    pub messages: Vec<(Lsn, Vec<u8>)>,
}

impl Capture {
    /// Such as `pg16-stream-on`.
    pub fn name(&self) -> &str {
        self.path.file_stem().and_then(|name| name.to_str()).expect("captures have plain names")
    }

    fn read(path: PathBuf) -> Capture {
        let text = fs::read_to_string(&path).expect("a capture can be read");
        let messages = text.lines().map(|line| {
            let (lsn, payload) = line.split_once(' ').expect("a line is \"lsn hex\"");
            (lsn.parse().expect("a line starts with an LSN"), from_hex(payload))
        });
        Capture { messages: messages.collect(), path }
    }
}

/// All of them, in the order of their names.
pub fn captures() -> Vec<Capture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("tests/golden is there")
        .map(|entry| entry.expect("tests/golden can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    assert!(!paths.is_empty(), "no captures in {}", folder.display());
    paths.sort();
    paths.into_iter().map(Capture::read).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty(), "half a byte at the end of {text:?}");
    let digit = |digit: u8| (digit as char).to_digit(16).expect("a hexadecimal digit") as u8;
    pairs.iter().map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}
