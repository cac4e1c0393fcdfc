//! Which tables are to be copied, and how their rows travel.

use pgsluice_proto::Oid;
use tokio_postgres::Client;

use crate::apply::{self, TargetTable};
use crate::error::{Error, Stage};
use crate::snapshot::{self, CopyOptions, Selected, Wanted};
use crate::source::publication::PublishedTable;

/// Compares the tables with those of the target.
///
/// # Errors
/// A refusal that names every table, column or right that the target lacks.
pub(super) async fn wanted(
    target: &Client,
    name: &str,
    tables: Vec<&PublishedTable>,
    options: &CopyOptions,
    constraints_fire: bool,
) -> Result<Vec<Wanted>, Error> {
    let names = tables.iter().map(|published| (published.table.schema.as_str(), published.table.name.as_str()));
    let found = apply::load_tables(target, names).await?;
    let (mut wanted, mut lacks) = (Vec::new(), Vec::new());
    for (published, table) in tables.iter().zip(&found) {
        match check(published, table.as_ref()) {
            Ok(one) => wanted.push(one),
            Err(lack) => lacks.push(lack),
        }
    }
    if !lacks.is_empty() {
        let mend = "make the tables on the target as they are on the source (`pgsluice schema` makes them), and \
                    give the role the right to INSERT; or exclude them in [tables]";
        return Err(Error::refused(Stage::Snapshot, lacks.join("; "), mend));
    }
    if options.defer_indexes {
        let tables = tables.iter().map(|published| &published.table).collect();
        snapshot::check_rights(target, &Selected { name, tables, on_existing: options.on_existing }).await?;
    }
    let oids: Vec<_> = found.iter().flatten().map(|table| table.oid).collect();
    let fires = |parent: &u32| !(options.defer_indexes && oids.contains(parent));
    let refers = |table: &TargetTable| table.parents.iter().any(fires);
    if constraints_fire && found.iter().flatten().any(refers) {
        let list: Vec<_> =
            found.iter().flatten().filter(|table| refers(table)).map(|table| table.name.as_str()).collect();
        return Err(Error::refused(
            Stage::Snapshot,
            format!("foreign keys of {} would be checked row by row, before all rows are there", list.join(", ")),
            "on the target: GRANT SET ON PARAMETER session_replication_role TO the role (PostgreSQL 15 and later); or \
             run with --defer-indexes, which drops foreign keys between tables that are copied and adds them afterwards",
        ));
    }
    Ok(wanted)
}

fn check(published: &PublishedTable, table: Option<&TargetTable>) -> Result<Wanted, String> {
    let name = &published.table;
    let Some(table) = table else { return Err(format!("the target has no table {name}")) };
    let columns: Vec<_> = published.columns.iter().map(|(column, _)| column.as_str()).collect();
    let positions = apply::check_columns(&columns, table)?;
    if columns.is_empty() {
        return Err(format!("{name} has no column that can be copied"));
    }
    if !table.can_copy {
        return Err(format!("the role on the target may not INSERT into {name}, or row security applies to it"));
    }
    let fits =
        |((_, type_oid), position): (&(String, u32), &usize)| table.columns[*position].fits_binary(Oid(*type_oid));
    Ok(Wanted {
        table: name.clone(),
        columns: columns.into_iter().map(str::to_owned).collect(),
        binary: published.columns.iter().zip(&positions).all(fits),
    })
}
