//! What to measure, from the command line.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::load::{LOADS, Load};

pub const USAGE: &str = "\
cargo bench --bench end_to_end [-- OPTIONS]
  --load NAME,…   only these loads (see --list)
  --rows N        rows a load; loads of small transactions take half (default 500000)
  --rounds N      (default 5)
  --quick         one round of few rows, to see that everything works
  --json FILE     everything measured
  --svg FILE      the table as a plot
  --list          names of the loads";

const ROWS: u64 = 500_000;
const ROUNDS: usize = 5;
const QUICK_ROWS: u64 = 20_000;

#[derive(Debug)]
pub struct Arguments {
    pub loads: Vec<&'static Load>,
    pub rows: u64,
    pub rounds: usize,
    pub json: Option<PathBuf>,
    pub svg: Option<PathBuf>,
}

/// `None` where the answer is printed already.
pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Arguments>> {
    let mut parsed = Arguments { loads: LOADS.iter().collect(), rows: ROWS, rounds: ROUNDS, json: None, svg: None };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--load" => parsed.loads = value()?.split(',').map(find).collect::<Result<_>>()?,
            "--rows" => parsed.rows = value()?.parse()?,
            "--rounds" => parsed.rounds = value()?.parse()?,
            "--json" => parsed.json = Some(value()?.into()),
            "--svg" => parsed.svg = Some(value()?.into()),
            "--quick" => (parsed.rows, parsed.rounds) = (QUICK_ROWS, 1),
            "--list" => {
                LOADS.iter().for_each(|load| println!("{:16} {}", load.name, load.description));
                return Ok(None);
            }
            "--help" => {
                println!("{USAGE}");
                return Ok(None);
            }
            // Given by cargo.
            "--bench" => {}
            other => bail!("unknown argument {other}\n{USAGE}"),
        }
    }
    Ok(Some(parsed))
}

fn find(name: &str) -> Result<&'static Load> {
    LOADS.iter().find(|load| load.name == name).with_context(|| format!("no load {name}; --list shows them"))
}
