//! Stderr, which the log and the bars of a copy share: a line of the log never lands inside of a bar.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::fmt::MakeWriter;

/// Where the log goes, and bars where a person sees them. All clones are the same screen.
#[derive(Clone, Debug, Default)]
pub struct Screen {
    bars: Option<MultiProgress>,
}

impl Screen {
    /// Stderr; with bars if they are wanted and it is a terminal.
    pub fn stderr(wants_bars: bool) -> Screen {
        let bars = (wants_bars && io::stderr().is_terminal()).then(MultiProgress::new);
        Screen { bars }
    }

    /// Where to put bars; `None` where lines in the log have to do.
    pub fn bars(&self) -> Option<&MultiProgress> {
        self.bars.as_ref()
    }

    /// Takes all bars away, also those that somebody would still draw.
    pub fn close(&self) -> io::Result<()> {
        let Some(bars) = &self.bars else { return Ok(()) };
        bars.clear()?;
        bars.set_draw_target(ProgressDrawTarget::hidden());
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Screen {
    type Writer = LogWriter;

    fn make_writer(&'a self) -> LogWriter {
        LogWriter(self.clone())
    }
}

/// Writes whole lines to stderr, above the bars.
#[derive(Debug)]
pub struct LogWriter(Screen);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = indented(bytes);
        match self.0.bars() {
            Some(bars) => bars.suspend(|| io::stderr().write_all(&line))?,
            None => io::stderr().write_all(&line)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// An event that comes whole, with whatever follows its first line moved in: names of tables and messages of servers may hold ends of lines, and
/// none of them begins a line of the log. What a terminal obeys the log itself has made harmless, but for a return to the line's beginning.
fn indented(event: &[u8]) -> Cow<'_, [u8]> {
    const INDENT: &[u8] = b"  ";
    let body = event.strip_suffix(b"\n").unwrap_or(event);
    if !body.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return Cow::Borrowed(event);
    }
    let mut out = Vec::with_capacity(event.len() + 64);
    for (at, byte) in body.iter().enumerate() {
        match byte {
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\n' => {
                out.push(b'\n');
                if !body[at + 1..].starts_with(INDENT) {
                    out.extend_from_slice(INDENT);
                }
            }
            _ => out.push(*byte),
        }
    }
    out.extend_from_slice(&event[body.len()..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_within_an_event_begins_a_line() {
        for (event, shown) in [
            ("one line\n", "one line\n"),
            ("what\n  to mend it: that\n", "what\n  to mend it: that\n"),
            ("table \"a\n2026-01-01 ERROR forged\" is gone\n", "table \"a\n  2026-01-01 ERROR forged\" is gone\n"),
            ("a\n\nb\rc", "a\n  \n  b\\rc"),
        ] {
            assert_eq!(indented(event.as_bytes()), shown.as_bytes());
        }
    }
}
