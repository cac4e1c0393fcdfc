//! The names of types, as the source has them.

use std::collections::BTreeMap;

use pgsluice_proto::Oid;
use tokio_postgres::Client;

use crate::config::Role;
use crate::error::{Error, Stage};

pub struct TypeNames(BTreeMap<u32, String>);

impl TypeNames {
    pub async fn read(client: &Client, oids: impl Iterator<Item = Oid>) -> Result<TypeNames, Error> {
        let failed = |error| Error::from_postgres(Stage::Source, Role::Source, error);
        let mut oids: Vec<u32> = oids.map(|oid| oid.0).collect();
        oids.sort_unstable();
        oids.dedup();
        let sql = "SELECT oid, format_type(oid, NULL) FROM pg_type WHERE oid = ANY ($1)";
        let mut names = BTreeMap::new();
        for row in client.query(sql, &[&oids]).await.map_err(failed)? {
            names.insert(row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        }
        Ok(TypeNames(names))
    }

    /// The number of a type that was dropped meanwhile.
    pub fn name(&self, oid: Oid) -> String {
        self.0.get(&oid.0).cloned().unwrap_or_else(|| oid.0.to_string())
    }
}
