//! A history: what a seed comes to, as transactions.

use std::fmt;

use anyhow::{Result, bail};
use tokio_postgres::Client;

use super::statements::Statements;
use crate::load::Random;

/// Of the first part and of the second.
const TRANSACTIONS_MAX: u64 = 20;
const STATEMENTS_MAX: u64 = 10;

/// How the statements of a transaction come to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// All in one transaction; where one fails, nothing has happened.
    Whole,
    /// Each under a savepoint of its own, so that those that fail leave the others alone.
    UnderSavepoints,
    /// Each a transaction of its own.
    Single,
    /// Some have happened, and are rolled back to a savepoint before the others.
    AfterRollback,
    /// None has happened in the end.
    RolledBack,
}

#[derive(Debug)]
pub struct Transaction {
    manner: Manner,
    statements: Vec<String>,
}

#[derive(Debug)]
pub struct History {
    batch_rows: u64,
    format: &'static str,
    netting: bool,
    workers: usize,
    streaming: bool,
    /// It is applied by a role that cannot turn foreign keys off.
    pub unprivileged: bool,
    pub transactions: Vec<Transaction>,
    /// What comes before lies on C when the rest is replicated.
    pub stops_at: Option<usize>,
}

/// What became of the statements, to see that histories are worth their time.
#[derive(Debug, Default)]
pub struct Outcomes {
    pub histories: u64,
    statements: u64,
    failed: u64,
    runs: u64,
    fallbacks: usize,
}

impl History {
    pub fn new(seed: u64) -> History {
        // Seeds that follow each other must not give what follows in one sequence.
        let mut random = Random::seeded(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        // The least are too few for a net, and those of 20 have nets in the midst of a transaction.
        let batch_rows = random.pick(&[7, 20, 20, 50, 10_000, 10_000, 10_000]);
        let format = random.pick(&["text", "auto"]);
        let stops = random.below(3) > 0;
        let workers = random.pick(&[1, 2, 4]);
        // Few without: they tell whether a failure is one of netting.
        let (netting, unprivileged) = (random.below(10) > 0, random.below(4) == 0);
        let streaming = random.below(2) > 0;
        let mut statements = Statements::new(random);
        let mut transactions: Vec<_> = (0..2).map(|_| statements.insert_everywhere()).map(Transaction::whole).collect();
        let first = statements.random.below(TRANSACTIONS_MAX);
        transactions.extend((0..first).map(|_| Transaction::new(&mut statements)));
        let stops_at = stops.then_some(transactions.len());
        let second = 1 + statements.random.below(TRANSACTIONS_MAX);
        transactions.extend((0..second).map(|_| Transaction::new(&mut statements)));
        History { batch_rows, format, netting, workers, streaming, unprivileged, transactions, stops_at }
    }

    pub fn configuration(&self) -> String {
        let History { batch_rows, format, netting, workers, streaming, .. } = self;
        format!(
            "[stream]\nformat = \"{format}\"\nstreaming = {streaming}\n\
             [apply]\nbatch_rows = {batch_rows}\nnetting = {netting}\nworkers = {workers}\n"
        )
    }

    /// All of it, for whoever has to find what went wrong.
    pub fn text(&self) -> String {
        let mut text = self.configuration() + if self.unprivileged { "-- as a role without rights\n" } else { "" };
        for (index, transaction) in self.transactions.iter().enumerate() {
            if self.stops_at == Some(index) {
                text += "-- the engine runs\n";
            }
            text += &format!("-- {:?}\n{};\n", transaction.manner, transaction.statements.join(";\n"));
        }
        text
    }
}

impl Transaction {
    fn whole(statements: Vec<String>) -> Transaction {
        Transaction { manner: Manner::UnderSavepoints, statements }
    }

    fn new(statements: &mut Statements) -> Transaction {
        let manner = statements.random.pick(&[
            Manner::Whole,
            Manner::UnderSavepoints,
            Manner::UnderSavepoints,
            Manner::UnderSavepoints,
            Manner::Single,
            Manner::Single,
            Manner::AfterRollback,
            Manner::RolledBack,
        ]);
        // None at all is an empty transaction.
        let count = statements.random.below(STATEMENTS_MAX);
        Transaction { manner, statements: (0..count).flat_map(|_| statements.next()).collect() }
    }

    pub async fn run(&self, client: &Client, outcomes: &mut Outcomes) -> Result<()> {
        outcomes.statements += self.statements.len() as u64;
        let all = self.statements.join("; ");
        let half = self.statements[..self.statements.len() / 2].join("; ");
        match self.manner {
            Manner::Whole => attempt(client, &format!("BEGIN; {all}; COMMIT"), "ROLLBACK", outcomes).await,
            Manner::AfterRollback => {
                let sql = format!("BEGIN; SAVEPOINT undone; {half}; ROLLBACK TO undone; {all}; COMMIT");
                attempt(client, &sql, "ROLLBACK", outcomes).await
            }
            Manner::RolledBack => {
                let sql =
                    format!("BEGIN; {all}; ROLLBACK; BEGIN; SAVEPOINT undone; {half}; ROLLBACK TO undone; COMMIT");
                attempt(client, &sql, "ROLLBACK", outcomes).await
            }
            Manner::Single => {
                for statement in &self.statements {
                    attempt(client, statement, "ROLLBACK", outcomes).await?;
                }
                Ok(())
            }
            Manner::UnderSavepoints => {
                client.batch_execute("BEGIN").await?;
                for statement in &self.statements {
                    let sql = format!("SAVEPOINT each; {statement}; RELEASE each");
                    attempt(client, &sql, "ROLLBACK TO each", outcomes).await?;
                }
                // What is checked late may fail here.
                attempt(client, "COMMIT", "ROLLBACK", outcomes).await
            }
        }
    }
}

/// Runs what A may refuse because of a constraint, or of a column that is not there.
async fn attempt(client: &Client, sql: &str, undo: &str, outcomes: &mut Outcomes) -> Result<()> {
    /// Undefined column, and a table with deferred checks to come.
    const REFUSALS: [&str; 2] = ["42703", "55006"];
    let Err(error) = client.batch_execute(sql).await else { return Ok(()) };
    let code = error.code().map_or("", |code| code.code());
    if !code.starts_with("23") && !REFUSALS.contains(&code) {
        bail!("{error:?} from {sql}");
    }
    outcomes.failed += 1;
    Ok(client.batch_execute(undo).await?)
}

impl Outcomes {
    pub fn add_run(&mut self, log: &str) {
        self.runs += 1;
        self.fallbacks += log.matches("does not pass as sets").count();
    }
}

impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcomes { histories, statements, failed, runs, fallbacks } = self;
        write!(f, "{histories} histories, {statements} statements, of which A refused {failed}; ")?;
        write!(f, "{fallbacks} batches of {runs} runs were applied in order")
    }
}
