//! Whether what the stream describes is what the target has rows of.
//!
//! In: a description of a relation, which has the OID and the names of its time. Out: the tables of the target that it is not the
//! same as, though it has the name or the OID of one.
//!
//! A description that comes before the table was copied is of the past: its changes are in the copy. One that comes
//! later means that the target's rows are not the source's any more, or are about to be taken for another table's.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use pgsluice_proto::Lsn;

use crate::checkpoint;
use crate::config::Config;
use crate::decode::Relation;
use crate::error::{Disposition, Error, Kind, Stage};
use crate::postgres;
use crate::snapshot::{self, TableCopy};
use crate::source::identity::TableIdentity;
use crate::source::publication::{PublishedTable, TableName};

/// The tables whose changes may come.
#[derive(Debug, Default)]
pub(super) struct Identities {
    by_name: HashMap<String, HashMap<String, (TableName, Arc<TableIdentity>)>>,
    by_oid: HashMap<u32, Vec<TableName>>,
    /// Nothing is copied: a table that gets another name goes on under it.
    follows_renames: bool,
}

/// A table that a description is not of.
#[derive(Clone, Debug)]
pub(super) struct Differs {
    pub table: TableName,
    pub why: String,
}

impl Identities {
    /// Of published tables, and of those that the target has rows of.
    pub fn new(states: &[TableCopy], published: &[PublishedTable], copy_data: bool) -> Identities {
        let mut identities = Identities { follows_renames: !copy_data, ..Identities::default() };
        let present: HashMap<_, _> =
            states.iter().filter(|state| !state.is_missing()).map(|state| (&state.table, state)).collect();
        for one in published {
            let kept = present.get(&one.table).and_then(|state| state.identity.clone()).map(Arc::new);
            if let Some(identity) = kept.or_else(|| one.table_identity.clone()) {
                identities.add(&one.table, identity);
            }
        }
        if copy_data {
            return identities;
        }
        // Those that have left under a new name: what is still to come under the old one is theirs.
        let published: HashSet<_> = published.iter().map(|one| &one.table).collect();
        for (table, state) in present.into_iter().filter(|(table, _)| !published.contains(table)) {
            if let Some(identity) = state.identity.clone() {
                identities.add(table, Arc::new(identity));
            }
        }
        identities
    }

    fn add(&mut self, table: &TableName, identity: Arc<TableIdentity>) {
        self.by_oid.entry(identity.oid).or_default().push(table.clone());
        let names = self.by_name.entry(table.schema.clone()).or_default();
        names.insert(table.name.clone(), (table.clone(), identity));
    }

    /// The tables that are meant by its name or its OID, and are not what it describes.
    pub fn differing(&self, relation: &Relation, commit_lsn: Lsn) -> Vec<Differs> {
        let (schema, name) = (relation.namespace.as_str(), relation.name.as_str());
        let mut differing = Vec::new();
        let known = self.by_name.get(schema).and_then(|names| names.get(name));
        if let Some((table, identity)) = known {
            let names = relation.columns.iter().map(|column| column.name.as_str());
            if identity.oid != relation.id.0 {
                let why = format!(
                    "the stream brings changes of another table of that name (OID {}; the target has rows of OID {})",
                    relation.id.0, identity.oid
                );
                differing.push(Differs { table: table.clone(), why });
            } else if let Some(column) = identity.misnamed(names, commit_lsn) {
                let column = postgres::quote_ident(column);
                let why =
                    format!("the stream brings another column as {column} than the one the target has under that name");
                differing.push(Differs { table: table.clone(), why });
            }
        }
        if self.follows_renames {
            return differing;
        }
        for table in self.by_oid.get(&relation.id.0).into_iter().flatten() {
            if (table.schema.as_str(), table.name.as_str()) != (schema, name) {
                let why = format!("the stream brings its changes under another name, {relation}");
                differing.push(Differs { table: table.clone(), why });
            }
        }
        differing
    }
}

/// What is left of an error that a session has ended with. Where the tables of the target are not those of the source any more, they
/// are marked to be copied again, and the next session does that.
pub(super) fn meet(config: &Config, epoch: Option<i64>, error: Error) -> Error {
    let Some(epoch) = epoch else { return error };
    let met = match error.kind() {
        Kind::TablesReplaced { tables, why } => Some((tables.clone(), why.clone())),
        // What the target does not take may be of a table that is not the one it was.
        _ if error.stage() == Stage::Apply && error.is_of_the_data() && error.disposition() == Disposition::Halt => {
            None
        }
        _ => return error,
    };
    let settled = postgres::new_runtime(Stage::Source).and_then(|runtime| runtime.block_on(settle(config, epoch, met)));
    match settled {
        Ok(tables) if tables.is_empty() => error,
        Ok(tables) => match error.kind() {
            Kind::TablesReplaced { .. } => error,
            _ => {
                tracing::warn!(error = %error.shown(&config.log), "the target does not take a change, and tables are to be copied again first");
                Error::new(Stage::Source, Kind::TablesToCopy(tables))
            }
        },
        Err(refused) if matches!(refused.kind(), Kind::Refused { .. }) => {
            tracing::warn!(error = %error.shown(&config.log), "a change was not applied");
            refused
        }
        // The next session meets the same.
        Err(why) => {
            tracing::warn!(error = %why.shown(&config.log), "whether tables are still those of the source could not be looked up");
            error
        }
    }
}

/// Marks these tables, or those that differ from the source's, and returns them.
async fn settle(config: &Config, epoch: i64, met: Option<(Vec<TableName>, String)>) -> Result<Vec<String>, Error> {
    let target = postgres::connect(&config.target, Stage::Source).await?;
    let (name, copy_data) = (config.name.as_str(), config.snapshot.copy_data);
    if let Some((tables, why)) = met {
        snapshot::replace(&target, (name, epoch), &tables, &why, copy_data).await?;
        return Ok(tables.iter().map(ToString::to_string).collect());
    }
    let source = postgres::connect(&config.source, Stage::Source).await?;
    let Some(progress) = checkpoint::read(&target, name).await? else { return Ok(Vec::new()) };
    let publication = super::asked::of_ours(config, super::asked::read_publication(config, &source).await?)?;
    let states = snapshot::read(&target, name).await?;
    let judged = snapshot::judge(name, &states, &publication.tables, copy_data, progress.end_lsn)?;
    let mut replaced = snapshot::Judged::default();
    replaced.replaced = judged.replaced;
    snapshot::settle(&target, (name, epoch), &replaced).await?;
    Ok(replaced.replaced.iter().map(|(table, _)| table.to_string()).collect())
}
