//! What is done about conflicts, table by table, and how it is recorded.

use std::sync::Arc;

use crate::batch::Batch;
use crate::config::{Config, Conflicts, LogConfig, Policy};
use crate::decode::Relation;

/// Those of one replication.
#[derive(Clone, Debug)]
pub struct Policies {
    pub(super) name: String,
    conflicts: Conflicts,
    pub(super) log: LogConfig,
}

impl Policies {
    pub fn of(config: &Config) -> Policies {
        let name = config.name.as_str().to_owned();
        Policies { name, conflicts: config.conflicts.clone(), log: config.log.clone() }
    }

    /// Of the table of the source that the relation stands for.
    pub(super) fn policy(&self, relation: &Relation) -> Policy {
        let (schema, table) = relation.on_source();
        self.conflicts.policy(schema, table)
    }

    /// There is a table in the batch whose conflicts need not end the stream.
    pub(super) fn concern(&self, batch: &Batch) -> bool {
        let others = |relation: &Arc<Relation>| !self.policy(relation).only_stops();
        !self.conflicts.only_stop() && batch.relations().iter().any(others)
    }
}
