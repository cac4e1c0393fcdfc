//! How histories ended, so that a run shows that it came to all of it.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, ensure};

#[derive(Debug, Default)]
pub struct Outcomes {
    histories: u64,
    /// Of the last runs: equal at once, or stopped and equal after the remedy.
    ends: BTreeMap<&'static str, u64>,
    steps: BTreeMap<&'static str, u64>,
    refused_by_a: u64,
    stops: Vec<String>,
}

impl Outcomes {
    pub fn add_end(&mut self, end: &'static str) {
        self.histories += 1;
        *self.ends.entry(end).or_default() += 1;
    }

    pub fn add_step(&mut self, label: &'static str, is_taken: bool) {
        if is_taken {
            *self.steps.entry(label).or_default() += 1;
        } else {
            self.refused_by_a += 1;
        }
    }

    pub fn add_stop(&mut self, said: String) {
        self.stops.push(said);
    }

    /// # Errors
    /// Where no history came to be equal: then nothing was tried.
    pub fn check(&self) -> Result<()> {
        ensure!(self.ends.get("equal").is_some_and(|&count| count > 0), "no history came to its end: {self}");
        Ok(())
    }
}

impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} histories: {:?}", self.histories, self.ends)?;
        writeln!(f, "steps: {:?}; {} that A refused", self.steps, self.refused_by_a)?;
        for stop in &self.stops {
            writeln!(f, "stopped: {stop}")?;
        }
        Ok(())
    }
}
