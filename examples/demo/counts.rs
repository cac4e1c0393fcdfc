//! What the writers have done: each adds a transaction after its commit, anybody reads at any time.

use std::sync::Mutex;

/// Of one transaction, or of all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub transactions: u64,
    pub inserts: u64,
    /// With `key_updates`, and with those that a cascade made.
    pub updates: u64,
    pub key_updates: u64,
    pub deletes: u64,
    /// Savepoints rolled back; their rows are not counted.
    pub rollbacks: u64,
}

impl Done {
    pub fn rows(&self) -> u64 {
        self.inserts + self.updates + self.deletes
    }
}

#[derive(Debug, Default)]
pub struct Counts(Mutex<Done>);

impl Counts {
    /// Adds one committed transaction.
    pub fn add(&self, done: &Done) {
        let mut sum = self.0.lock().expect("no panic happens under this lock");
        sum.transactions += 1;
        sum.inserts += done.inserts;
        sum.updates += done.updates;
        sum.key_updates += done.key_updates;
        sum.deletes += done.deletes;
        sum.rollbacks += done.rollbacks;
    }

    pub fn read(&self) -> Done {
        *self.0.lock().expect("no panic happens under this lock")
    }

    pub fn rows(&self) -> u64 {
        self.read().rows()
    }
}
