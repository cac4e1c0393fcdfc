//! The definitions that the selected tables need, read from the source.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::catalog::{self, Address, Identity};
use super::dump::Archive;
use super::needs::{self, Anchor, Facts, Needs};
use super::programs::Programs;
use super::toc::{DumpId, Entry, EntryKind, ObjectId, PG_CLASS};
use super::{STAGE, blocking};
use crate::config::Endpoint;
use crate::error::Error;
use crate::source::publication::TableName;

#[derive(Clone, Debug, Default)]
pub struct Definitions {
    entries: Vec<Entry>,
    places: HashMap<DumpId, usize>,
    relations: HashMap<u32, usize>,
    facts: Facts,
    needs: Needs,
    identities: HashMap<ObjectId, Identity>,
    /// Of the needed entries.
    sql: HashMap<DumpId, String>,
}

impl Definitions {
    /// Reads them for tables, which `source` is a session to the database of.
    ///
    /// # Errors
    /// Whatever `pg_dump` says; a refusal if the role may not read a table, or one is gone meanwhile.
    pub async fn read(
        source: &Client,
        endpoint: &Endpoint,
        programs: Programs,
        tables: &[TableName],
    ) -> Result<Definitions, Error> {
        let oids = catalog::table_oids(source, tables).await?;
        let hidden = catalog::unreadable(source, &oids).await?;
        let endpoint = endpoint.clone();
        let taking = blocking(move || {
            let archive = Archive::take(programs, &endpoint, &hidden)?;
            let entries = archive.entries()?;
            Ok((archive, entries))
        });
        let (archive, entries) = taking.await?;
        let facts = catalog::facts(source, &oids).await?;
        let needs = needs::choose(&entries, &facts);
        let mut definitions = Definitions::of(entries, facts, needs);
        let gone = tables.iter().zip(&oids).find(|(_, oid)| !definitions.relations.contains_key(*oid));
        if let Some((table, _)) = gone {
            return Err(Error::refused(STAGE, format!("pg_dump has not found table {table}"), "run it again"));
        }
        definitions.identities = catalog::identities(source, &definitions.objects()).await?;
        let (definitions, sql) = blocking(move || {
            let needed: Vec<_> = definitions.needed().collect();
            let sql = needed.iter().map(|entry| entry.id).zip(archive.sql(&needed)?).collect();
            Ok((definitions, sql))
        })
        .await?;
        Ok(Definitions { sql, ..definitions })
    }

    fn of(entries: Vec<Entry>, facts: Facts, needs: Needs) -> Definitions {
        let places = entries.iter().enumerate().map(|(place, entry)| (entry.id, place)).collect();
        let relations = entries.iter().enumerate().filter(|(_, entry)| entry.object.class == PG_CLASS);
        let relations = relations.map(|(place, entry)| (entry.object.oid, place)).collect();
        Definitions { entries, places, relations, facts, needs, ..Definitions::default() }
    }

    /// All that are to be made, in an order in which they can be.
    pub fn needed(&self) -> impl Iterator<Item = &Entry> {
        self.needs.needed.iter().map(|&place| &self.entries[place])
    }

    /// What belongs to the tables and is not made, with the reason.
    pub fn left_out(&self) -> impl Iterator<Item = (&Entry, &str)> {
        self.needs.left_out.iter().map(|(place, reason)| (&self.entries[*place], reason.as_str()))
    }

    /// Empty for an entry that is not needed.
    pub fn sql(&self, entry: &Entry) -> &str {
        self.sql.get(&entry.id).map_or("", String::as_str)
    }

    /// For people.
    pub fn text(&self, entry: &Entry) -> String {
        match (self.identities.get(&entry.object), entry.kind) {
            (Some(identity), _) => identity.text.clone(),
            (None, EntryKind::RowSecurity) => match self.identities.get(&self.secured(entry)) {
                Some(identity) => format!("row security of {}", identity.text),
                None => entry.label.clone(),
            },
            (None, _) => entry.label.clone(),
        }
    }

    /// `None` for what is no object of its own.
    pub fn address(&self, entry: &Entry) -> Option<&Address> {
        self.identities.get(&entry.object).map(|identity| &identity.address)
    }

    /// The table to which an entry's object belongs.
    pub fn anchor(&self, entry: &Entry) -> Option<&Anchor> {
        self.facts.anchors.get(&entry.object)
    }

    pub fn address_of(&self, object: ObjectId) -> Option<&Address> {
        self.identities.get(&object).map(|identity| &identity.address)
    }

    pub fn entry(&self, id: DumpId) -> Option<&Entry> {
        self.places.get(&id).map(|&place| &self.entries[place])
    }

    pub fn relation(&self, oid: u32) -> Option<&Entry> {
        self.relations.get(&oid).map(|&place| &self.entries[place])
    }

    /// What an entry depends on, of one kind.
    pub fn depended(&self, entry: &Entry, kind: EntryKind) -> impl Iterator<Item = &Entry> {
        entry.depends_on.iter().filter_map(|id| self.entry(*id)).filter(move |one| one.kind == kind)
    }

    /// Row security carries the OID of its table, and no catalog.
    fn secured(&self, entry: &Entry) -> ObjectId {
        ObjectId { class: PG_CLASS, oid: entry.object.oid }
    }

    fn objects(&self) -> Vec<ObjectId> {
        let left_out = self.left_out().map(|(entry, _)| entry.object);
        self.needed().map(|entry| entry.object).chain(left_out).filter(|object| object.class != 0).collect()
    }
}
