//! What people see: steps as they are done, one live line, and aligned columns. On a terminal the live line refreshes in
//! place and good and bad have colours; elsewhere it comes every two seconds, and nothing is coloured.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two live lines that stay: two seconds, less what a line may come early.
const PLAIN_INTERVAL: Duration = Duration::from_millis(1_900);
/// As much of a log as helps.
const LOG_LINES_MAX: usize = 30;

#[derive(Debug)]
pub struct Screen {
    is_terminal: bool,
    has_colours: bool,
    /// When the live line was last drawn; `None` while it is not the last thing on the screen.
    live_at: Cell<Option<Instant>>,
}

#[derive(Clone, Copy, Debug)]
enum Style {
    Bold,
    Dim,
    Green,
    Red,
}

impl Screen {
    pub fn new() -> Screen {
        let is_terminal = io::stdout().is_terminal();
        let has_colours = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Screen { is_terminal, has_colours, live_at: Cell::new(None) }
    }

    pub fn line(&self, text: &str) {
        if self.live_at.take().is_some() && self.is_terminal {
            print("\n");
        }
        print(&format!("{text}\n"));
    }

    pub fn heading(&self, text: &str) {
        self.line(&format!("\n{}", self.styled(Style::Bold, text)));
    }

    pub fn columns(&self, header: &str) {
        self.line(&self.styled(Style::Dim, header));
    }

    /// Something that is done and has gone well.
    pub fn done(&self, what: &str, took: Duration) {
        let tick = self.styled(Style::Green, "✓");
        let took = self.styled(Style::Dim, &format!("{:>5.1} s", took.as_secs_f64()));
        self.line(&format!("  {tick} {}{took}", padded(what, 64)));
    }

    pub fn failed(&self, what: &str) {
        self.line(&format!("\n  {} {what}", self.styled(Style::Red, "✗")));
    }

    pub fn verdict(&self, is_equal: bool) -> String {
        if is_equal { self.styled(Style::Green, "EQUAL") } else { self.styled(Style::Red, "DIFFERENT") }
    }

    /// Ends the live line with what it came to.
    pub fn settle(&self, text: &str) {
        if self.is_terminal {
            print(&format!("\r\x1b[2K{text}\n"));
        } else {
            print(&format!("{text}\n"));
        }
        self.live_at.set(None);
    }

    /// Draws the live line anew.
    pub fn live(&self, text: &str) {
        if self.is_terminal {
            print(&format!("\r\x1b[2K{text}"));
        } else if self.live_at.get().is_none_or(|at| at.elapsed() >= PLAIN_INTERVAL) {
            print(&format!("{text}\n"));
        } else {
            return;
        }
        self.live_at.set(Some(Instant::now()));
    }

    pub fn log(&self, what: &str, log: &str) {
        let lines: Vec<_> = log.lines().collect();
        self.line(&format!("\n{what} ends with:"));
        lines[lines.len().saturating_sub(LOG_LINES_MAX)..].iter().for_each(|line| self.line(&format!("  {line}")));
    }

    fn styled(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Bold => 1,
            Style::Dim => 2,
            Style::Red => 31,
            Style::Green => 32,
        };
        if self.has_colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn print(text: &str) {
    let mut out = io::stdout();
    // Where nobody reads any more, the exit code still tells.
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
}

/// Filled with spaces to `width` characters.
pub fn padded(text: &str, width: usize) -> String {
    format!("{text:width$}")
}

/// With a comma after every three digits.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub fn bytes(amount: u64) -> String {
    match amount {
        0..1_024 => format!("{amount} B"),
        1_024..1_048_576 => format!("{:.0} KiB", amount as f64 / 1_024.0),
        _ => format!("{:.1} MiB", amount as f64 / 1_048_576.0),
    }
}
