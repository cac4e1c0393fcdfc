//! Asks before something is lost: what would happen goes out, the word of a person comes in.

use std::io::{self, IsTerminal, Write};

use super::output;
use crate::config::Endpoint;
use crate::error::{Error, Kind, Stage};
use crate::setup::Loss;

/// Prints what would happen, and has a person type `word` to agree to it. Results alone go to stdout, so it asks on stderr.
///
/// # Errors
/// [`Kind::Usage`], which says what would happen, where nobody is there to answer; and where the answer is another.
pub fn confirm(stage: Stage, would: &str, word: &str) -> Result<(), Error> {
    let usage = |what: String| Error::new(stage, Kind::Usage(what));
    if !io::stdin().is_terminal() {
        return Err(usage(format!(
            "{would}\nNobody is there to agree to it, and nothing was done: give --yes to have it done without being asked"
        )));
    }
    let mut screen = io::stderr().lock();
    write!(screen, "{would}\nType {word} to confirm: ").and_then(|()| screen.flush()).map_err(output::failed)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(output::failed)?;
    if answer.trim() == word { Ok(()) } else { Err(usage("not confirmed; nothing was done".to_owned())) }
}

/// What rows would go, and where.
pub fn losses(target: &Endpoint, losses: &[Loss]) -> String {
    let list: String = losses.iter().map(|loss| format!("\n  {loss}")).collect();
    format!("This removes rows from the target, {}:{list}", target.place())
}
