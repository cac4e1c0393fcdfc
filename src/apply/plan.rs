//! How the rows of one relation go to one table: found once per description of the relation.
//!
//! In: a relation of the source and the table of the same name on the target. Out: statements, with where each parameter
//! comes from; those for single rows and for COPY are prepared when first needed.
//!
//! Columns are matched by name. A column of the source that the target lacks is an error that names it; further
//! columns of the target keep their values or defaults.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use pgsluice_proto::Oid;
use pgsluice_proto::pgoutput::{Cell, ReplicaIdentity};
use tokio_postgres::{Client, Statement};

use super::catalog::{self, TargetColumn, TargetTable};
use super::parameter::Parameter;
use super::sql::{self, Form, Match};
use crate::batch::Row;
use crate::config::Role;
use crate::decode::{Keys, Relation};
use crate::error::{Error, Kind, Lacks, Stage};
use crate::postgres::{ColumnType, loss, quote_ident};

/// Different sets of columns that updates leave unchanged, per table. Beyond it the statements are prepared anew.
const STATEMENTS_MAX: usize = 64;

/// A statement with the origin of each parameter.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub statement: Statement,
    slots: Arc<[Slot]>,
}

/// A statement for many rows, with the column of each parameter, which is an array.
///
/// It stays text, to be planned each time that it runs. A plan that is kept is the one for the table as it was: for a table
/// that was as good as empty, that is to look through all of it for every row.
#[derive(Debug)]
pub(super) struct SetStatement {
    pub text: String,
    pub positions: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Slot {
    /// The column with this position, of the new row.
    New(usize),
    /// The column with this position, of the row that is looked for.
    Old(usize),
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Shape {
    Insert,
    /// The columns that are set or guarded: all but unchanged TOAST values.
    Update(Box<[bool]>),
    Delete,
    Copy(Form),
}

#[derive(Debug)]
enum Identity {
    /// Positions of the columns by which a row is found.
    Key(Vec<usize>),
    /// The same, of all that are known of old rows; rows that are alike in them are the same.
    WholeRow(Vec<usize>),
    /// The source sends no old rows; updates and deletes cannot come.
    None,
}

/// The plans of all relations that have come, by the version of their description.
#[derive(Debug)]
pub(super) struct Plans {
    known: HashMap<u64, TablePlan>,
    /// Generated columns of the source are in the stream.
    source_generates: bool,
}

impl Plans {
    pub fn new(source_generates: bool) -> Plans {
        Plans { known: HashMap::new(), source_generates }
    }

    /// The plan for this description of the relation.
    pub async fn get(&mut self, client: &Client, relation: &Arc<Relation>) -> Result<&mut TablePlan, Error> {
        self.learn(client, std::slice::from_ref(relation)).await.map_err(|(_, error)| error)?;
        Ok(self.known.get_mut(&relation.version).expect("what was learnt is known"))
    }

    /// Makes the plans of relations that are not known by their descriptions. Those for older descriptions of the same
    /// relations are dropped with their statements, unless they are listed too.
    ///
    /// # Errors
    /// The position of the relation that the target cannot take, and why.
    pub async fn learn(&mut self, client: &Client, relations: &[Arc<Relation>]) -> Result<(), (usize, Error)> {
        let unknown: Vec<_> = (0..relations.len()).filter(|&index| self.known(&relations[index]).is_none()).collect();
        let Some(&first) = unknown.first() else { return Ok(()) };
        let names = unknown.iter().map(|&index| (relations[index].namespace.as_str(), relations[index].name.as_str()));
        let tables = catalog::load(client, names).await.map_err(|error| (first, error))?;
        let described: HashMap<Oid, u64> =
            unknown.iter().map(|&index| (relations[index].id, relations[index].version)).collect();
        let listed: HashSet<u64> = relations.iter().map(|relation| relation.version).collect();
        let is_older =
            |version: u64, plan: &TablePlan| described.get(&plan.relation).is_some_and(|&newer| version < newer);
        self.known.retain(|version, plan| listed.contains(version) || !is_older(*version, plan));
        for (index, table) in unknown.into_iter().zip(tables) {
            let relation = &relations[index];
            let plan = table.ok_or_else(|| no_table(relation)).and_then(|table| {
                if !self.source_generates {
                    check_generated(relation, &table)?;
                }
                TablePlan::new(relation, table)
            });
            self.known.insert(relation.version, plan.map_err(|error| (index, error))?);
        }
        Ok(())
    }

    /// The plan for this description, if it has been learnt.
    pub fn known(&self, relation: &Relation) -> Option<&TablePlan> {
        self.known.get(&relation.version)
    }
}

#[derive(Debug)]
pub(super) struct TablePlan {
    /// On the source.
    relation: Oid,
    table: TargetTable,
    /// For each column of the relation, its column in `table`.
    columns: Vec<usize>,
    identity: Identity,
    keys: Keys,
    /// Positions of the columns by which a person finds a row.
    shown_key: Arc<[usize]>,
    statements: HashMap<Shape, Prepared>,
}

impl TablePlan {
    /// # Errors
    /// [`Kind::LacksColumns`] if the table does.
    pub fn new(relation: &Relation, table: TargetTable) -> Result<TablePlan, Error> {
        let columns = match_columns(relation, &table)?;
        check_losses(relation, &table, &columns)?;
        let identity = identity(relation, &table, &columns);
        let shown_key = shown_key(&identity, &table, &columns);
        let (relation, keys) = (relation.id, relation.keys);
        Ok(TablePlan { relation, table, columns, identity, keys, shown_key, statements: HashMap::new() })
    }

    pub async fn insert(&mut self, client: &Client, relation: &Relation) -> Result<Prepared, Error> {
        if let Some(prepared) = self.statements.get(&Shape::Insert) {
            return Ok(prepared.clone());
        }
        let written = self.written();
        let text = match &self.identity {
            Identity::Key(key) if self.keys == Keys::KeptDeleted => {
                sql::upsert(&self.table.name, &self.pick(&written), &self.pick(key))
            }
            Identity::Key(_) | Identity::WholeRow(_) | Identity::None => {
                sql::insert(&self.table.name, &self.pick(&written))
            }
        };
        let slots = written.into_iter().map(Slot::New).collect();
        self.prepare(client, relation, Shape::Insert, &text, slots).await
    }

    /// The statement for an update whose new row has these cells known.
    pub async fn update<'a>(
        &mut self,
        client: &Client,
        relation: &Relation,
        new: impl Iterator<Item = Cell<'a>>,
    ) -> Result<Prepared, Error> {
        let known: Box<[bool]> = new.map(|cell| cell != Cell::Unchanged).collect();
        let shape = Shape::Update(known);
        if let Some(prepared) = self.statements.get(&shape) {
            return Ok(prepared.clone());
        }
        let Shape::Update(known) = &shape else { unreachable!("made above") };
        let writable = |&position: &usize| known[position] && !self.column(position).is_generated;
        let (guards, set): (Vec<_>, Vec<_>) =
            (0..self.columns.len()).filter(writable).partition(|&position| self.column(position).is_identity_always);
        let matched = self.matched(relation)?;
        let picked = self.pick(&matched);
        let text = sql::update(&self.table.alone(), &self.pick(&set), self.by(&picked), &self.pick(&guards));
        let slots = set.into_iter().map(Slot::New).chain(matched.into_iter().map(Slot::Old));
        let slots = slots.chain(guards.into_iter().map(Slot::New)).collect();
        self.prepare(client, relation, shape, &text, slots).await
    }

    pub async fn delete(&mut self, client: &Client, relation: &Relation) -> Result<Prepared, Error> {
        if let Some(prepared) = self.statements.get(&Shape::Delete) {
            return Ok(prepared.clone());
        }
        let matched = self.matched(relation)?;
        let text = sql::delete(&self.table.alone(), self.by(&self.pick(&matched)));
        let slots = matched.into_iter().map(Slot::Old).collect();
        self.prepare(client, relation, Shape::Delete, &text, slots).await
    }

    /// Positions of the columns by which a person finds a row; none where all of them are needed.
    pub fn shown_key(&self) -> &Arc<[usize]> {
        &self.shown_key
    }

    /// Positions of the columns by which updates and deletes find their row. `None` where that takes all of them, or
    /// cannot be.
    pub fn key(&self) -> Option<&[usize]> {
        match &self.identity {
            Identity::Key(key) => Some(key),
            Identity::WholeRow(_) | Identity::None => None,
        }
    }

    /// The type of the column on the target, as a cast takes it.
    pub fn type_name(&self, position: usize) -> &str {
        &self.column(position).type_name
    }

    pub fn table(&self) -> &TargetTable {
        &self.table
    }

    /// Positions of the columns by which changes of one row are known to be of one row. `None` where its updates and
    /// deletes have to be applied one by one: without a key of each row's own, or with a column that no update can set; and
    /// where the target may have two rows of a key, since the count of many rows does not tell a row that is there twice
    /// beside one that is missing.
    pub fn netting_key(&self) -> Option<&[usize]> {
        let Identity::Key(key) = &self.identity else { return None };
        let is_in_key = |name: &String| key.iter().any(|&position| self.column(position).name == *name);
        if self.keys != Keys::Apart || !self.table.unique_keys.iter().any(|unique| unique.iter().all(is_in_key)) {
            return None;
        }
        let guarded = |position: usize| self.column(position).is_identity_always && !key.contains(&position);
        let whole = (0..self.columns.len()).all(|position| !guarded(position));
        whole.then_some(key.as_slice())
    }

    /// Whether inserts can be copied. COPY needs a column to name.
    pub fn can_copy(&self) -> bool {
        self.table.can_copy && self.keys != Keys::KeptDeleted && !self.written().is_empty()
    }

    /// Whether arrays of this form can carry all columns: the elements of an array that holds arrays are not rows.
    pub fn can_unnest(&self, form: Form) -> bool {
        form == Form::Text || (0..self.columns.len()).all(|position| !self.column(position).is_array)
    }

    /// Whether binary values of every column are values of the target's column.
    pub fn fits_binary(&self, relation: &Relation) -> bool {
        (0..self.columns.len()).all(|position| self.column_fits_binary(relation, position))
    }

    fn column_fits_binary(&self, relation: &Relation, position: usize) -> bool {
        let type_oid = relation.columns[position].type_oid;
        self.column(position).fits_binary(type_oid)
    }

    /// Copies new rows.
    pub async fn copy(&mut self, client: &Client, relation: &Relation, form: Form) -> Result<Prepared, Error> {
        if let Some(prepared) = self.statements.get(&Shape::Copy(form)) {
            return Ok(prepared.clone());
        }
        let written = self.written();
        let text = sql::copy(&self.table.name, &self.pick(&written), form);
        self.prepare(client, relation, Shape::Copy(form), &text, written.into_iter().map(Slot::New).collect()).await
    }

    /// Updates many rows whose keys stay as they are and of which the same columns are known.
    pub fn update_set(&self, relation: &Relation, known: &[bool], form: Form) -> Result<SetStatement, Error> {
        let key = self.matched(relation)?;
        let mut set = self.written();
        set.retain(|position| known[*position] && !key.contains(position));
        let text = sql::update_set(&self.table.alone(), &self.pick(&set), &self.pick(&key), form);
        Ok(SetStatement { text, positions: [set, key].concat() })
    }

    /// Deletes many rows.
    pub fn delete_set(&self, relation: &Relation, form: Form) -> Result<SetStatement, Error> {
        let key = self.matched(relation)?;
        let text = sql::delete_set(&self.table.alone(), &self.pick(&key), form);
        Ok(SetStatement { text, positions: key })
    }

    /// Binary values fit only a column of the very same type, which must mean the same in every cluster.
    pub fn check_format(&self, relation: &Relation, row: Row<'_>) -> Result<(), Error> {
        for (position, cell) in row.cells().enumerate() {
            if matches!(cell, Cell::Binary(_)) && !self.column_fits_binary(relation, position) {
                let column = relation.columns[position].name.clone();
                return Err(Error::new(Stage::Apply, Kind::FormatOutdated { column }).on(relation.to_string()));
            }
        }
        Ok(())
    }

    /// An update cannot set a column that is GENERATED ALWAYS AS IDENTITY.
    pub fn check_identity_columns(&self, relation: &Relation, new: Row<'_>, old: Row<'_>) -> Result<(), Error> {
        for position in 0..self.columns.len() {
            let column = self.column(position);
            let [new, old] = [new.cell(position), old.cell(position)];
            // Of an old key, the cells outside of the key are NULL; what rules cannot know of an old row is unchanged.
            let is_known = new != Cell::Unchanged && old != Cell::Unchanged && old != Cell::Null;
            if column.is_identity_always && is_known && new != old {
                return Err(Error::new(Stage::Apply, self.identity_changed(position)).on(relation.to_string()));
            }
        }
        Ok(())
    }

    /// The source has another value in a column that no update can set.
    pub fn identity_changed(&self, position: usize) -> Kind {
        let name = quote_ident(&self.column(position).name);
        let what = format!("column {name} is GENERATED ALWAYS AS IDENTITY, and the source has changed a value");
        let mend = format!(
            "on the target: ALTER TABLE {} ALTER COLUMN {name} SET GENERATED BY DEFAULT; then start again: \
             nothing is lost meanwhile",
            self.table.name
        );
        Kind::Mismatch { what, mend }
    }

    /// No update can set the column, so it has to be already what it is to become.
    pub fn is_guard(&self, position: usize) -> bool {
        self.column(position).is_identity_always
    }

    /// The first column that no update can set, outside of the key.
    pub fn guard(&self) -> Option<usize> {
        let key = self.key().unwrap_or_default();
        (0..self.columns.len()).find(|position| self.is_guard(*position) && !key.contains(position))
    }

    /// An INSERT may become the row of its key that is there.
    pub fn is_upserting(&self) -> bool {
        self.keys == Keys::KeptDeleted
    }

    async fn prepare(
        &mut self,
        client: &Client,
        relation: &Relation,
        shape: Shape,
        text: &str,
        slots: Vec<Slot>,
    ) -> Result<Prepared, Error> {
        let failed = |error| Error::from_postgres(Stage::Apply, Role::Target, error).on(relation.to_string());
        let prepared = Prepared { statement: client.prepare(text).await.map_err(failed)?, slots: slots.into() };
        if self.statements.len() >= STATEMENTS_MAX {
            self.statements.clear();
        }
        self.statements.insert(shape, prepared.clone());
        Ok(prepared)
    }

    /// Positions of the columns by which a row is found.
    fn matched(&self, relation: &Relation) -> Result<Vec<usize>, Error> {
        match &self.identity {
            Identity::Key(positions) => Ok(positions.clone()),
            Identity::WholeRow(positions) => Ok(positions.clone()),
            Identity::None => {
                let what = "the source sent an update or delete of a table without replica identity";
                let kind = Kind::Protocol { role: Role::Source, what: what.to_owned() };
                Err(Error::new(Stage::Apply, kind).on(relation.to_string()))
            }
        }
    }

    /// Positions of the columns that an insert writes.
    fn written(&self) -> Vec<usize> {
        (0..self.columns.len()).filter(|&position| !self.column(position).is_generated).collect()
    }

    fn by<'a>(&self, columns: &'a [&'a TargetColumn]) -> Match<'a> {
        match self.identity {
            Identity::Key(_) | Identity::None => Match::Key(columns),
            Identity::WholeRow(_) => Match::WholeRow(columns),
        }
    }

    fn column(&self, position: usize) -> &TargetColumn {
        &self.table.columns[self.columns[position]]
    }

    fn pick(&self, positions: &[usize]) -> Vec<&TargetColumn> {
        positions.iter().map(|&position| self.column(position)).collect()
    }
}

impl Prepared {
    /// The column that each parameter, or each field of a COPY, comes from.
    pub fn positions(&self) -> impl ExactSizeIterator<Item = usize> + Clone {
        self.slots.iter().map(|slot| match *slot {
            Slot::New(position) | Slot::Old(position) => position,
        })
    }

    /// The values for one row: as it is to become, and as it is looked for.
    pub fn parameters<'a>(
        &self,
        new: impl Fn(usize) -> Cell<'a>,
        looked_for: impl Fn(usize) -> Cell<'a>,
    ) -> Vec<Parameter<'a>> {
        let value = |slot: &Slot| match *slot {
            Slot::New(position) => new(position),
            Slot::Old(position) => looked_for(position),
        };
        self.slots.iter().map(|slot| Parameter(value(slot))).collect()
    }
}

fn no_table(relation: &Relation) -> Error {
    let what = format!("the target has no table {relation}");
    let mend = "make it there as it is on the source, then start again: nothing is lost meanwhile".to_owned();
    Error::new(Stage::Apply, Kind::Mismatch { what, mend })
}

/// The position in `table` of each column of the relation.
fn match_columns(relation: &Relation, table: &TargetTable) -> Result<Vec<usize>, Error> {
    let position = |name: &str| table.columns.iter().position(|column| column.name == name);
    let lacks = relation.columns.iter().filter(|column| position(&column.name).is_none());
    let columns: Vec<_> = lacks.map(|column| (column.name.clone(), column.type_oid)).collect();
    if columns.is_empty() {
        return Ok(relation.columns.iter().filter_map(|column| position(&column.name)).collect());
    }
    let names: Vec<_> = columns.iter().map(|(name, _)| quote_ident(name)).collect();
    let lacks = Lacks {
        schema: relation.namespace.clone(),
        table: relation.name.clone(),
        columns,
        described: relation.columns.iter().map(|column| column.name.clone()).collect(),
        what: format!("the target's table {relation} has no column {}", names.join(", ")),
        mend: "ALTER TABLE … ADD COLUMN on the target: nothing is lost meanwhile".to_owned(),
    };
    Err(Error::new(Stage::Apply, Kind::LacksColumns(lacks)).on(relation.to_string()))
}

/// # Errors
/// [`Kind::Mismatch`] if the table computes a column whose values come.
fn check_generated(relation: &Relation, table: &TargetTable) -> Result<(), Error> {
    let is_generated = |name: &str| table.columns.iter().any(|column| column.name == name && column.is_generated);
    let found: Vec<_> = relation
        .columns
        .iter()
        .map(|column| &column.name)
        .filter(|name| is_generated(name))
        .map(|name| quote_ident(name))
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    let what = format!(
        "column {} is generated on the target and not on the source, whose values would be left out without an error",
        found.join(", ")
    );
    let drops: Vec<_> = found.iter().map(|name| format!("ALTER COLUMN {name} DROP EXPRESSION")).collect();
    let mend = format!(
        "on the target: ALTER TABLE {} {}; nothing is lost meanwhile; or, where it is meant, leave the column out by a rule: \
         `drop_columns`",
        table.name,
        drops.join(", ")
    );
    Err(Error::new(Stage::Apply, Kind::Mismatch { what, mend }).on(relation.to_string()))
}

/// # Errors
/// [`Kind::Mismatch`] if a column of the table keeps less of the values that come than there is, and PostgreSQL would not say so.
fn check_losses(relation: &Relation, table: &TargetTable, columns: &[usize]) -> Result<(), Error> {
    let mut found = Vec::new();
    for (column, position) in relation.columns.iter().zip(columns) {
        let target = &table.columns[*position];
        // Of what rules make, they have decided.
        let Some(modifier) = column.type_modifier.filter(|_| !target.is_generated) else { continue };
        let source = ColumnType { oid: column.type_oid, modifier };
        let target = ColumnType { oid: Oid(target.type_oid), modifier: target.type_modifier };
        if let Some(loss) = loss(source, target) {
            let name = quote_ident(&column.name);
            let what = format!(
                "column {name} is {source} on the source and {target} on the target, where values would be {} without an error",
                loss.as_str()
            );
            found.push((what, format!("ALTER TABLE {} ALTER COLUMN {name} TYPE {source};", table.name)));
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    let (what, statements): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let mend = format!(
        "on the target: {} nothing is lost meanwhile; or, where it is meant, say so in a rule: `cast` or `set` for the column",
        statements.join(" ")
    );
    Err(Error::new(Stage::Apply, Kind::Mismatch { what: what.join("; "), mend }).on(relation.to_string()))
}

/// The position in `table` of each name, or which ones it lacks.
pub fn check_columns(names: &[&str], table: &TargetTable) -> Result<Vec<usize>, String> {
    let position = |name: &&str| table.columns.iter().position(|column| column.name == **name);
    let missing: Vec<_> =
        names.iter().filter(|name| position(name).is_none()).map(|name| format!("\"{name}\"")).collect();
    if missing.is_empty() {
        return Ok(names.iter().filter_map(position).collect());
    }
    Err(format!("the target's table {} has no column {}", table.name, missing.join(", ")))
}

/// The names of the columns by which updates and deletes find their row on the target, if not by the whole of it.
pub fn row_key_columns(relation: &Relation, table: &TargetTable) -> Option<Vec<String>> {
    let columns = match_columns(relation, table).ok()?;
    match identity(relation, table, &columns) {
        Identity::Key(key) => Some(key.into_iter().map(|position| relation.columns[position].name.clone()).collect()),
        Identity::WholeRow(_) | Identity::None => None,
    }
}

fn shown_key(identity: &Identity, table: &TargetTable, columns: &[usize]) -> Arc<[usize]> {
    match identity {
        Identity::Key(key) => key.as_slice().into(),
        Identity::WholeRow(_) | Identity::None => {
            (0..columns.len()).filter(|&position| table.columns[columns[position]].is_primary_key).collect()
        }
    }
}

fn identity(relation: &Relation, table: &TargetTable, columns: &[usize]) -> Identity {
    let flagged = || {
        let positions: Vec<_> = (0..columns.len()).filter(|&position| relation.columns[position].is_identity).collect();
        if positions.is_empty() { Identity::None } else { Identity::Key(positions) }
    };
    match relation.replica_identity {
        ReplicaIdentity::Default | ReplicaIdentity::Index => flagged(),
        ReplicaIdentity::Nothing => Identity::None,
        // The whole old row is known. If the target has a primary key among its columns, that finds it by an index.
        ReplicaIdentity::Full => {
            let known = (0..columns.len()).filter(|&position| relation.columns[position].is_identity);
            let key: Vec<_> =
                known.clone().filter(|&position| table.columns[columns[position]].is_primary_key).collect();
            let of_target = table.columns.iter().filter(|column| column.is_primary_key).count();
            if !key.is_empty() && key.len() == of_target {
                return Identity::Key(key);
            }
            // What the target computes for itself may differ, and says nothing that the other columns do not.
            Identity::WholeRow(known.filter(|&position| !table.columns[columns[position]].is_generated).collect())
        }
    }
}
