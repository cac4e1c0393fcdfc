//! Stderr, which the log and the bars of a copy share: a line of the log never lands inside of a bar.

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
        match self.0.bars() {
            Some(bars) => bars.suspend(|| io::stderr().write_all(bytes))?,
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
