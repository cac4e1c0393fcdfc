//! Which tables are to be copied, and how their rows travel.

use tokio_postgres::Client;

use crate::apply::{self, TargetColumn, TargetTable};
use crate::decode::Column;
use crate::error::{Error, Stage};
use crate::postgres::OwnRows;
use crate::snapshot::{self, CopyOptions, Selected, State, Target, Wanted};
use crate::source::publication::PublishedTable;
use crate::transform::Mapping;

/// Compares the tables with those of the target.
///
/// # Errors
/// A refusal that names every table, column or right that the target lacks.
pub(super) async fn wanted(
    target: &Client,
    (name, mapping): (&str, &Mapping),
    (source_major, tables): (u32, Vec<(&PublishedTable, State)>),
    options: &CopyOptions,
    constraints_fire: bool,
) -> Result<Vec<Wanted>, Error> {
    let names: Vec<_> = tables.iter().map(|(published, _)| mapping.target(&published.table)).collect();
    let names = names.iter().map(|table| (table.schema.as_str(), table.name.as_str()));
    let found = apply::load_tables(target, names).await?;
    let (mut wanted, mut lacks) = (Vec::new(), Vec::new());
    for ((published, state), table) in tables.iter().zip(&found) {
        match check(published, mapping, table.as_ref(), source_major) {
            Ok(one) => wanted.push(Wanted { is_begun: *state != State::Init, ..one }),
            Err(lack) => lacks.push(lack),
        }
    }
    if !lacks.is_empty() {
        let mend = "make the tables on the target as they are on the source (`pgsluice schema` makes them), and \
                    give the role the right to INSERT; or exclude them in [tables]";
        return Err(Error::refused(Stage::Snapshot, lacks.join("; "), mend));
    }
    if options.defer_indexes {
        check_names(&wanted)?;
        let selected = Selected { name, tables: wanted.iter().collect(), on_existing: options.on_existing };
        snapshot::check_rights(target, &selected).await?;
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
    // Those between tables that are copied are dropped before anything else is, and what is left of them is found then.
    let is_dropped = |table: &str| options.defer_indexes && found.iter().flatten().any(|one| one.name == table);
    snapshot::check_before(target, &wanted, options.on_existing, constraints_fire, is_dropped).await?;
    Ok(wanted)
}

/// What was dropped is recorded under the table's name, which has to be one.
fn check_names(tables: &[Wanted]) -> Result<(), Error> {
    let renamed: Vec<_> =
        tables.iter().filter(|one| one.target.table != one.table).map(|one| one.table.to_string()).collect();
    if renamed.is_empty() {
        return Ok(());
    }
    let what = format!("--defer-indexes cannot be used with tables that rules rename: {}", renamed.join(", "));
    Err(Error::refused(Stage::Snapshot, what, "run without --defer-indexes"))
}

fn check(
    published: &PublishedTable,
    mapping: &Mapping,
    table: Option<&TargetTable>,
    source_major: u32,
) -> Result<Wanted, String> {
    let (name, to) = (&published.table, mapping.target(&published.table));
    let Some(table) = table else { return Err(format!("the target has no table {to}")) };
    let relation = published.relation();
    let plan = mapping.plan(name);
    let written = plan.map_or(&relation.columns, |plan| &plan.target().columns);
    let mut columns: Vec<_> = written.iter().map(|column| column.name.as_str()).collect();
    let positions = apply::check_columns(&columns, table)?;
    let remade = plan.filter(|plan| !plan.only_picks());
    if remade.is_none() {
        // The target computes them itself.
        let generated = |name: &&str| table.columns.iter().any(|column| column.name == **name && column.is_generated);
        columns.retain(|name| !generated(name));
    }
    if columns.is_empty() {
        return Err(format!("{name} has no column that can be copied"));
    }
    if !table.can_copy {
        return Err(format!("the role on the target may not INSERT into {to}, or row security applies to it"));
    }
    let fits =
        |(column, position): (&Column, &usize)| table.columns[*position].fits_binary_of(column.type_oid, source_major);
    let read: Vec<_> = match (plan, remade) {
        (_, Some(plan)) => plan.needed().into_iter().map(|position| &relation.columns[position]).collect(),
        (Some(plan), None) => {
            let origins = columns.iter().filter_map(|column| plan.origin(column));
            origins.filter_map(|origin| relation.columns.iter().find(|column| column.name == origin)).collect()
        }
        (None, None) => relation.columns.iter().filter(|column| columns.contains(&column.name.as_str())).collect(),
    };
    let is_readable = read.iter().all(|column| apply::is_stable_in_binary(column.type_oid));
    let same = |column: &Column| {
        let on_target = plan.map_or(Some(column.name.as_str()), |plan| plan.unchanged(&column.name));
        on_target.map(|on_target| (column.name.clone(), on_target.to_owned()))
    };
    let equality = |column: &TargetColumn| Some((column.name.clone(), column.foreign_equality.clone()?));
    Ok(Wanted {
        table: name.clone(),
        columns: read.iter().map(|column| column.name.clone()).collect(),
        has_generated: published.has_generated,
        target: Target {
            rows: OwnRows::of(&to, table.is_partitioned),
            table: to,
            own: mapping.own(name),
            place: mapping.place(name),
            same: relation.columns.iter().filter_map(same).collect(),
            equality: table.columns.iter().filter_map(equality).collect(),
            columns: columns.into_iter().map(str::to_owned).collect(),
        },
        binary: is_readable && written.iter().zip(&positions).all(fits),
        plan: remade.cloned(),
        rules: mapping.fingerprint(name),
        is_begun: false,
        identity: published.table_identity.clone(),
    })
}
