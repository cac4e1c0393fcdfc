//! What statements do to the store, and what they answer.

use std::rc::Rc;

use pgsluice_proto::pgoutput::Cell as WireCell;

use super::history::{FIRST_LSN, Form};
use super::statement::{Operation, ProgressStatement, RowStatement, Statement};
use super::store::{ProgressRow, Replicas, SessionId, Stop, Store};
use super::tables::{Cell, INT4, Row, SCHEMA, TABLES, TEXT, Table};
use super::wire::{self, BOOL, INT4_ARRAY, INT8, OID, OID_ARRAY, PG_LSN, TEXT_ARRAY, TIMESTAMPTZ, Value};
use crate::checkpoint;
use crate::copy_format::read::{Read, TextFields, binary_row};
use crate::postgres::quote_qualified;

const PROGRESS_TYPES: [u32; 8] = [TEXT, INT4, TEXT, PG_LSN, PG_LSN, TIMESTAMPTZ, INT8, INT8];
const CATALOG_TYPES: [u32; 20] = [
    TEXT, TEXT, OID, TEXT, TEXT, BOOL, BOOL, BOOL, TEXT, BOOL, BOOL, BOOL, OID, OID_ARRAY, BOOL, INT8, BOOL,
    TEXT_ARRAY, BOOL, INT4,
];

#[derive(Debug)]
pub struct Answer {
    pub tag: String,
    pub rows: Vec<Vec<Value>>,
}

/// The types of a statement's parameters, and of what it returns, if it returns rows.
pub fn describe(statement: &Statement) -> (Vec<u32>, Option<Vec<u32>>) {
    match statement {
        Statement::Progress(ProgressStatement::Exists) => (Vec::new(), Some(vec![BOOL])),
        Statement::Progress(ProgressStatement::Read) => (vec![TEXT], Some(PROGRESS_TYPES.to_vec())),
        Statement::Progress(ProgressStatement::Fence) => (vec![TEXT, INT4, INT8], Some(PROGRESS_TYPES.to_vec())),
        Statement::Progress(ProgressStatement::Lock) => (vec![TEXT, INT8], Some(PROGRESS_TYPES.to_vec())),
        Statement::Progress(ProgressStatement::Check | ProgressStatement::Hold | ProgressStatement::HoldBeside) => {
            (vec![TEXT, INT8], Some(Vec::new()))
        }
        Statement::Progress(ProgressStatement::Advance) => (vec![TEXT, INT8, PG_LSN, TIMESTAMPTZ, INT8, PG_LSN], None),
        Statement::Catalog => (vec![TEXT_ARRAY], Some(CATALOG_TYPES.to_vec())),
        Statement::Keys => (vec![TEXT_ARRAY, BOOL], Some(vec![INT8, OID, OID, TEXT, TEXT_ARRAY, TEXT_ARRAY, BOOL])),
        Statement::Process => (Vec::new(), Some(vec![INT4])),
        Statement::WaitedFor => (Vec::new(), Some(vec![BOOL])),
        Statement::InTheWay => (vec![INT4_ARRAY], Some(vec![BOOL])),
        Statement::Level => (Vec::new(), Some(vec![TEXT])),
        Statement::Positions => (Vec::new(), Some(vec![PG_LSN, PG_LSN, BOOL])),
        Statement::Missing => (Vec::new(), Some(vec![BOOL; checkpoint::TABLES.len()])),
        Statement::Rows(RowStatement { table, operation, values, key, .. }) => {
            let mut parameters: Vec<_> = values.iter().chain(key).copied().collect();
            parameters.sort_unstable_by_key(|(_, parameter)| *parameter);
            let types = parameters.into_iter().map(|(column, _)| TABLES[*table].columns[column].1).collect();
            (types, (*operation == Operation::Lock).then(Vec::new))
        }
        Statement::Begin { .. }
        | Statement::Commit
        | Statement::Rollback
        | Statement::Savepoint
        | Statement::RollbackToSavepoint
        | Statement::ReleaseSavepoint
        | Statement::Nothing
        | Statement::SetReplicationRole
        | Statement::SetReadOnly
        | Statement::SetSynchronous { .. }
        | Statement::Truncate(_)
        | Statement::Copy { .. } => (Vec::new(), None),
    }
}

/// Runs a statement that reads or writes, in the session's transaction.
pub fn execute(
    store: &mut Store,
    session: SessionId,
    statement: &Statement,
    parameters: &[Value],
) -> Result<Answer, Stop> {
    match statement {
        Statement::Progress(progress) => about_progress(store, session, *progress, parameters),
        Statement::Catalog => Ok(catalog(parameters)),
        Statement::Keys => Ok(keys(parameters, store.tells_all_keys)),
        Statement::Process => Ok(answer("SELECT", vec![vec![Some((session as i32).to_be_bytes().to_vec())]])),
        Statement::WaitedFor => {
            let is_waited_for = store.is_waited_for(session);
            if is_waited_for {
                store.saw("a large transaction that somebody waits for");
            }
            Ok(answer("SELECT", vec![vec![Some(vec![u8::from(is_waited_for)])]]))
        }
        Statement::InTheWay => {
            let pid = |pid: Value| i32::from_be_bytes(pid.expect("a process").try_into().expect("four bytes")) as usize;
            let earlier: Vec<_> =
                wire::array(parameters[0].as_deref().expect("processes")).into_iter().map(pid).collect();
            let is_in_the_way = store.is_in_the_way(session, &earlier);
            if is_in_the_way {
                store.saw("a session in the way of an earlier one");
            }
            Ok(answer("SELECT", vec![vec![Some(vec![is_in_the_way.into()])]]))
        }
        Statement::Missing => Ok(answer("SELECT", vec![vec![Some(vec![0]); checkpoint::TABLES.len()]])),
        Statement::Level => Ok(answer("SELECT", vec![vec![Some(b"on".to_vec())]])),
        Statement::Positions => {
            let lsn = |lsn: u64| Some(lsn.to_be_bytes().to_vec());
            let has_standbys = Some(vec![u8::from(store.replicas == Replicas::Synchronous)]);
            Ok(answer("SELECT", vec![vec![lsn(store.insert_lsn), lsn(store.flush_lsn), has_standbys]]))
        }
        Statement::Truncate(tables) => {
            store.saw("a TRUNCATE");
            tables.iter().try_for_each(|table| store.truncate(session, *table))?;
            Ok(Answer { tag: "TRUNCATE TABLE".to_owned(), rows: Vec::new() })
        }
        Statement::Rows(rows) => change_rows(store, session, rows, parameters),
        other => panic!("{other:?} is not for the store"),
    }
}

/// Runs a COPY whose data have come.
pub fn copy(
    store: &mut Store,
    session: SessionId,
    (table, columns): (usize, &[usize]),
    form: Form,
    data: &[u8],
) -> Result<Answer, Stop> {
    let rows = copied_rows(form, columns.len(), data);
    store.saw("a COPY");
    for row in &rows {
        store.insert(session, table, arranged(table, columns, row))?;
    }
    Ok(Answer { tag: format!("COPY {}", rows.len()), rows: Vec::new() })
}

fn answer(command: &str, rows: Vec<Vec<Value>>) -> Answer {
    Answer { tag: format!("{command} {}", rows.len()), rows }
}

fn about_progress(
    store: &mut Store,
    session: SessionId,
    statement: ProgressStatement,
    parameters: &[Value],
) -> Result<Answer, Stop> {
    let number = |place: usize| parameters[place].as_deref().map(int8);
    let before = store.own_progress(session);
    Ok(match statement {
        ProgressStatement::Exists => answer("SELECT", vec![vec![Some(vec![1])]]),
        ProgressStatement::Read => {
            let progress = before.as_ref().unwrap_or(&store.committed.progress);
            answer("SELECT", vec![progress_values(progress)])
        }
        ProgressStatement::Fence => {
            let progress = store.progress(session)?;
            if number(2).is_some_and(|held| held < progress.epoch) {
                store.keep_progress(session, before);
                return Ok(answer("UPDATE", Vec::new()));
            }
            progress.epoch = progress.epoch.max(number(2).unwrap_or(0)) + 1;
            answer("UPDATE", vec![progress_values(progress)])
        }
        ProgressStatement::Lock => {
            store.whole_progress(session)?;
            let progress = store.progress(session)?.clone();
            let is_ours = number(1) == Some(progress.epoch);
            store.keep_progress(session, before);
            if !is_ours {
                store.saw("an engine that is fenced while it fences");
            }
            answer("SELECT", if is_ours { vec![progress_values(&progress)] } else { Vec::new() })
        }
        ProgressStatement::Check => {
            let progress = before.as_ref().unwrap_or(&store.committed.progress);
            let is_ours = number(1) == Some(progress.epoch);
            answer("SELECT", if is_ours { vec![Vec::new()] } else { Vec::new() })
        }
        ProgressStatement::Hold => {
            if number(1) != Some(store.progress(session)?.epoch) {
                store.keep_progress(session, before);
                return Ok(answer("SELECT", Vec::new()));
            }
            answer("SELECT", vec![Vec::new()])
        }
        ProgressStatement::HoldBeside => {
            store.saw("a batch beside others");
            let is_held = number(1) == Some(store.share_progress(session).epoch);
            answer("SELECT", if is_held { vec![Vec::new()] } else { Vec::new() })
        }
        ProgressStatement::Advance => {
            let progress = store.progress(session)?;
            if number(1) != Some(progress.epoch) {
                store.keep_progress(session, before);
                store.saw("a batch under an old epoch");
                return Ok(answer("UPDATE", Vec::new()));
            }
            if number(5).map(|expected| expected as u64) != Some(progress.end_lsn) {
                store.keep_progress(session, before);
                store.saw("progress that is not where it was left");
                return Ok(answer("UPDATE", Vec::new()));
            }
            progress.end_lsn = number(2).unwrap_or(0) as u64;
            progress.commit_time = number(3).or(progress.commit_time);
            progress.fallbacks += number(4).unwrap_or(0);
            if number(4).is_some_and(|fallbacks| fallbacks > 0) {
                store.saw("a batch applied in another way");
            }
            Answer { tag: "UPDATE 1".to_owned(), rows: Vec::new() }
        }
    })
}

fn progress_values(progress: &ProgressRow) -> Vec<Value> {
    vec![
        Some(b"7000000000000000001".to_vec()),
        Some(progress.timeline.to_be_bytes().to_vec()),
        Some(b"pgsluice_sim".to_vec()),
        Some(FIRST_LSN.to_be_bytes().to_vec()),
        Some(progress.end_lsn.to_be_bytes().to_vec()),
        progress.commit_time.map(|time| time.to_be_bytes().to_vec()),
        Some(progress.epoch.to_be_bytes().to_vec()),
        Some(progress.fallbacks.to_be_bytes().to_vec()),
    ]
}

fn int8(value: &[u8]) -> i64 {
    i64::from_be_bytes(value.try_into().expect("eight bytes"))
}

/// A row a column, as `COLUMNS_SQL` in `apply/catalog.rs` has it.
fn catalog(parameters: &[Value]) -> Answer {
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let oid = |oid: u32| Some(oid.to_be_bytes().to_vec());
    let flag = |flag: bool| Some(vec![flag.into()]);
    let no_parents = [0, 0, OID].map(u32::to_be_bytes).concat();
    let mut rows = Vec::new();
    for (place, name) in wire::array(parameters[0].as_deref().expect("names")).into_iter().enumerate() {
        let table = table_named(name);
        for (position, (column, type_oid)) in table.columns.iter().enumerate() {
            rows.push(vec![
                text("r"),
                text(column),
                oid(*type_oid),
                text("pg_catalog"),
                text(if *type_oid == INT4 { "int4" } else { "text" }),
                flag(false),
                flag(false),
                flag(table.key.contains(&position) && !table.is_keyless),
                None,
                flag(true),
                flag(true),
                flag(false),
                oid(table.oid),
                Some(no_parents.clone()),
                flag(true),
                Some((place as i64 + 1).to_be_bytes().to_vec()),
                flag(false),
                (position == 0).then(|| wire::text_array(&unique_keys(table))),
                (position == 0).then(|| vec![1]),
                // No modifier.
                Some((-1_i32).to_be_bytes().to_vec()),
            ]);
        }
    }
    answer("SELECT", rows)
}

/// A row a unique key, as `KEYS_SQL` in `apply/claims.rs` has it.
fn keys(parameters: &[Value], tells_all: bool) -> Answer {
    let oid = |oid: u32| Some(oid.to_be_bytes().to_vec());
    let mut rows = Vec::new();
    for (place, name) in wire::array(parameters[0].as_deref().expect("names")).into_iter().enumerate() {
        let table = table_named(name);
        let primary = (!table.is_keyless).then(|| table.key.to_vec());
        let other = table.unique.filter(|_| tells_all).map(|position| vec![position]);
        for key in primary.into_iter().chain(other) {
            let mut columns: Vec<_> = key.iter().map(|&position| table.columns[position].0.to_owned()).collect();
            columns.sort_unstable();
            let columns = Some(wire::text_array(&columns));
            let place = Some((place as i64 + 1).to_be_bytes().to_vec());
            let kind = Some(b"unique".to_vec());
            rows.push(vec![place, oid(table.oid), oid(table.oid), kind, columns.clone(), columns, Some(vec![0])]);
        }
    }
    answer("SELECT", rows)
}

fn table_named(name: Value) -> &'static Table {
    let is_named = |table: &&Table| name.as_deref() == Some(quote_qualified(SCHEMA, table.name).as_bytes());
    TABLES.iter().find(is_named).expect("a table that there is")
}

/// The columns of each unique index, in JSON.
fn unique_keys(table: &Table) -> Vec<String> {
    let primary = table.key.iter().map(|&position| table.columns[position].0).collect();
    let other = table.unique.map(|position| vec![table.columns[position].0]);
    let keys = (!table.is_keyless).then_some(primary).into_iter().chain(other);
    keys.map(|names: Vec<_>| format!("{names:?}")).collect()
}

fn change_rows(
    store: &mut Store,
    session: SessionId,
    statement: &RowStatement,
    parameters: &[Value],
) -> Result<Answer, Stop> {
    let mut hit = 0;
    store.saw(if statement.is_set { "a set of rows" } else { "a row by itself" });
    if statement.is_set {
        let arrays: Vec<_> = parameters.iter().map(|array| wire::array(array.as_deref().expect("an array"))).collect();
        for place in 0..arrays[0].len() {
            let row: Vec<_> = arrays.iter().map(|array| array[place].clone()).collect();
            hit += u64::from(change_row(store, session, statement, &row)?);
        }
    } else {
        hit += u64::from(change_row(store, session, statement, parameters)?);
    }
    let command = match statement.operation {
        Operation::Insert => "INSERT 0",
        Operation::Update => "UPDATE",
        Operation::Lock => "SELECT",
        Operation::Delete => "DELETE",
    };
    Ok(Answer { tag: format!("{command} {hit}"), rows: Vec::new() })
}

/// False where there is no such row.
fn change_row(
    store: &mut Store,
    session: SessionId,
    statement: &RowStatement,
    parameters: &[Value],
) -> Result<bool, Stop> {
    let RowStatement { table, operation, values, key, .. } = statement;
    let cell = |parameter: usize| parameters[parameter].as_deref().map(Rc::from);
    let value_of = |column: usize| values.iter().find(|(other, _)| *other == column).map(|(_, place)| cell(*place));
    if *operation == Operation::Insert {
        let row = (0..TABLES[*table].columns.len()).map(|column| value_of(column).flatten()).collect();
        return store.insert(session, *table, row).map(|()| true);
    }
    let place_of = |column: &usize| key.iter().find(|(other, _)| other == column).expect("all of the key").1;
    let key = TABLES[*table].key.iter().map(|column| cell(place_of(column))).collect();
    let Some(old) = store.row(session, *table, &key) else { return Ok(false) };
    match operation {
        Operation::Delete => store.delete(session, *table, &key),
        Operation::Insert | Operation::Update | Operation::Lock => {
            let new = old.iter().enumerate().map(|(column, cell)| value_of(column).unwrap_or_else(|| cell.clone()));
            store.update(session, *table, &key, new.collect())
        }
    }
}

/// The fields of the rows in a COPY's data, which are whole.
fn copied_rows(form: Form, columns: usize, data: &[u8]) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    let mut rest = data;
    let mut fields = TextFields::default();
    while !rest.is_empty() {
        let mut cells = Vec::new();
        let is_first = rest.len() == data.len();
        let read = match form {
            Form::Text => fields.read(rest, columns),
            Form::Binary => binary_row(rest, is_first, columns, &mut cells),
        };
        match read.expect("a COPY of rows") {
            Read::Row(length) => {
                rest = &rest[length..];
                rows.push(match form {
                    Form::Text => fields.cells().map(owned).collect(),
                    Form::Binary => cells.into_iter().map(owned).collect(),
                });
            }
            Read::Other(length) => rest = &rest[length..],
            Read::NeedsMore => panic!("a COPY ends amid a row"),
        }
    }
    rows
}

fn owned(cell: WireCell<'_>) -> Cell {
    match cell {
        WireCell::Null | WireCell::Unchanged => None,
        WireCell::Text(value) | WireCell::Binary(value) => Some(value.into()),
    }
}

/// The row of the table from fields in the order of `columns`.
fn arranged(table: usize, columns: &[usize], fields: &[Cell]) -> Row {
    let mut row = vec![None; TABLES[table].columns.len()];
    for (column, field) in columns.iter().zip(fields) {
        row[*column] = field.clone();
    }
    row.into()
}
