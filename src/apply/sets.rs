//! Changes applied as sets: netted per key, then the deletes and updates of a table in statements of many rows, and a COPY
//! for its inserts.
//!
//! In: a batch. Out: the same rows on the target as [`in_order`] would leave, or an error, after which the caller rolls
//! back and has them applied in order.
//!
//! Statements leave as soon as they are made, in parts, so that the target works on one while the next is encoded. Only
//! before a COPY all have to have landed: the client library loses its connection over one that the server refuses to
//! start.
//!
//! Within a net, tables do not follow the source's order among each other. Where the target's foreign keys fire, they
//! give the order instead: rows are deleted child first, and inserted parent first. Then short runs are netted too: a
//! cascade of the source comes parent first, and the target's own would be ahead of it.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::{Pin, pin};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use futures_util::SinkExt;
use pgsluice_proto::pgoutput::Cell;
use tokio_postgres::Client;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

use super::divide::{Segment, TableNet, divide};
use super::flight::Flight;
use super::net::NetRow;
use super::plan::{Plans, SetStatement, TablePlan};
use super::sql::Form;
use super::{failed, in_order};
use crate::batch::{Batch, Row};
use crate::config::Role;
use crate::copy_format::write::{self, LeftOut};
use crate::error::{Error, Kind, Stage};

/// Below this many changes, single statements on their way together are as quick as a net.
const NETTED_MIN: usize = 16;
/// Rows of one statement: enough that planning it is nothing, few enough that the target has something to do early.
const STATEMENT_ROWS_MAX: usize = 5_000;
/// Bytes of rows of one statement, one row more than this at most.
const STATEMENT_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of COPY that are handed to the connection at once.
const COPY_CHUNK_BYTES: usize = 64 * 1024;

/// Statements of many rows on their way.
type Sets<'f> = Flight<Pin<Box<dyn Future<Output = Result<usize, Error>> + 'f>>>;

/// Applies the batch in the transaction that is open on `client`. `constraints_fire` where foreign keys are checked.
pub(super) async fn apply(
    client: &Client,
    plans: &mut Plans,
    batch: &Batch,
    constraints_fire: bool,
) -> Result<(), Error> {
    if batch.len() >= NETTED_MIN {
        // What was sent before is written, and worked on, while this is divided.
        tokio::task::yield_now().await;
    }
    learn(client, plans, batch).await?;
    for segment in divide(plans, batch, if constraints_fire { 1 } else { NETTED_MIN }) {
        match segment {
            Segment::InOrder(places) => in_order::apply(client, plans, batch.changes_in(places)).await?,
            Segment::Netted(tables) if constraints_fire => apply_by_foreign_keys(client, plans, tables).await?,
            Segment::Netted(tables) => apply_tables(client, plans, &tables).await?,
        }
    }
    Ok(())
}

/// Makes the plans for all relations of the batch.
async fn learn(client: &Client, plans: &mut Plans, batch: &Batch) -> Result<(), Error> {
    let relations = batch.relations();
    plans.learn(client, relations).await.map_err(|(index, error)| {
        match batch.changes().find(|change| change.relation_index == index) {
            Some(change) => error.at(change.transaction.commit_lsn),
            None => error,
        }
    })
}

/// All deletes before all updates before all inserts, so that a value of a unique key is free before it is taken.
async fn apply_tables(client: &Client, plans: &mut Plans, tables: &[TableNet<'_>]) -> Result<(), Error> {
    let mut sets = Sets::new();
    for table in tables {
        table.delete(client, plans, &mut sets).await?;
        table.update(client, plans, &mut sets).await?;
        table.insert(client, plans, &mut sets).await?;
    }
    sets.land().await
}

/// The same, with children before their parents where rows go, and after them where rows come.
async fn apply_by_foreign_keys(client: &Client, plans: &mut Plans, tables: Vec<TableNet<'_>>) -> Result<(), Error> {
    let tables = parents_first(plans, tables);
    let mut sets = Sets::new();
    for table in tables.iter().rev() {
        table.delete(client, plans, &mut sets).await?;
    }
    for table in &tables {
        table.update(client, plans, &mut sets).await?;
        table.insert(client, plans, &mut sets).await?;
    }
    sets.land().await
}

/// Sorts so that a table comes after those that it refers to. Tables that refer to each other stay as they come: no
/// order is right for them, and the ladder has the source's.
fn parents_first<'a>(plans: &Plans, tables: Vec<TableNet<'a>>) -> Vec<TableNet<'a>> {
    let facts =
        |table: &TableNet<'_>| plans.known(table.relation).map(|plan| (plan.table().oid, &plan.table().parents));
    let mut sorted = Vec::with_capacity(tables.len());
    let mut left = tables;
    while !left.is_empty() {
        let waiting: Vec<u32> = left.iter().filter_map(|table| Some(facts(table)?.0)).collect();
        let is_free = |table: &TableNet<'_>| {
            facts(table).is_none_or(|(_, parents)| !parents.iter().any(|parent| waiting.contains(parent)))
        };
        let (mut free, bound): (Vec<_>, Vec<_>) = left.into_iter().partition(is_free);
        if free.is_empty() {
            sorted.extend(bound);
            break;
        }
        sorted.append(&mut free);
        left = bound;
    }
    sorted
}

impl<'a> TableNet<'a> {
    async fn delete<'f>(&'f self, client: &'f Client, plans: &Plans, sets: &mut Sets<'f>) -> Result<(), Error> {
        let rows = self.net.deletes();
        if rows.is_empty() {
            return Ok(());
        }
        let statement = self.plan(plans).delete_set(self.relation, self.form)?;
        self.send(client, sets, "DELETE", statement, rows).await
    }

    async fn update<'f>(&'f self, client: &'f Client, plans: &Plans, sets: &mut Sets<'f>) -> Result<(), Error> {
        for (known, rows) in self.update_groups() {
            let statement = self.plan(plans).update_set(self.relation, &known, self.form)?;
            self.send(client, sets, "UPDATE", statement, rows).await?;
        }
        Ok(())
    }

    fn plan<'p>(&self, plans: &'p Plans) -> &'p TablePlan {
        plans.known(self.relation).expect("only relations with a plan are netted")
    }

    /// Updates by the columns that are known of them. Nearly always there is one group.
    fn update_groups(&self) -> Vec<(Box<[bool]>, Vec<NetRow<'_, 'a>>)> {
        let columns = self.relation.columns.len();
        let (whole, partial): (Vec<_>, Vec<_>) = self.net.updates().into_iter().partition(NetRow::is_surely_whole);
        // In an order that is the same each time, so that what a batch comes to can be replayed.
        let mut groups: BTreeMap<Box<[bool]>, Vec<NetRow<'_, 'a>>> = BTreeMap::new();
        for row in partial {
            let known = (0..columns).map(|column| row.cell(column) != Cell::Unchanged).collect();
            groups.entry(known).or_default().push(row);
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        if !whole.is_empty() {
            groups.push((vec![true; columns].into(), whole));
        }
        groups
    }

    async fn send<'f, R: Cells + 'f>(
        &'f self,
        client: &'f Client,
        sets: &mut Sets<'f>,
        operation: &'static str,
        statement: SetStatement,
        rows: Vec<R>,
    ) -> Result<(), Error> {
        let statement = Rc::new(statement);
        let mut rows = rows.into_iter();
        while let Some(first) = rows.next() {
            let mut bytes = first.value_bytes();
            let mut part = vec![first];
            while part.len() < STATEMENT_ROWS_MAX && bytes < STATEMENT_BYTES_MAX {
                let Some(row) = rows.next() else { break };
                bytes += row.value_bytes();
                part.push(row);
            }
            let running = self.execute(client, operation, Rc::clone(&statement), part, bytes);
            sets.push(Box::pin(running), bytes).await?;
            sets.depart().await?;
        }
        Ok(())
    }

    /// Runs one statement, and returns `bytes`, which are then no longer on their way.
    async fn execute<R: Cells>(
        &self,
        client: &Client,
        operation: &'static str,
        statement: Rc<SetStatement>,
        rows: Vec<R>,
        bytes: usize,
    ) -> Result<usize, Error> {
        let element_oid = |column: usize| match self.form {
            Form::Text => write::TEXT_OID,
            Form::Binary => self.relation.columns[column].type_oid.0,
        };
        let array = |&column: &usize| ColumnArray { element_oid: element_oid(column), rows: &rows, column };
        let arrays: Vec<_> = statement.positions.iter().map(array).collect();
        // The text says the types.
        let typed = |array| (array as &(dyn ToSql + Sync), Type::UNKNOWN);
        let parameters: Vec<_> = arrays.iter().map(typed).collect();
        let hit = client.execute_typed(&statement.text, &parameters).await.map_err(|error| self.failed(error))?;
        self.check_count(operation, hit, rows.len() as u64)?;
        Ok(bytes)
    }

    async fn insert<'f>(&'f self, client: &Client, plans: &mut Plans, sets: &mut Sets<'f>) -> Result<(), Error> {
        let mut rows = self.net.inserts().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        sets.land().await?;
        let plan = plans.get(client, self.relation).await.map_err(|error| error.at(self.at))?;
        let prepared = plan.copy(client, self.relation, self.form).await.map_err(|error| error.at(self.at))?;
        let positions: Vec<_> = prepared.positions().collect();
        let sink = client.copy_in::<_, Bytes>(&prepared.statement).await.map_err(|error| self.failed(error))?;
        let mut sink = pin!(sink);
        let mut buffer = BytesMut::with_capacity(COPY_CHUNK_BYTES * 2);
        let mut count = 0;
        if self.form == Form::Binary {
            write::start_binary_copy(&mut buffer);
        }
        for row in rows {
            let cells = positions.iter().map(|&position| row.cell(position));
            let written = match self.form {
                Form::Text => write::text_row(cells, &mut buffer),
                Form::Binary => write::binary_row(cells, &mut buffer),
            };
            written.map_err(|error| self.left_out(error))?;
            count += 1;
            // The server's error comes with `finish`.
            if buffer.len() >= COPY_CHUNK_BYTES && sink.feed(buffer.split().freeze()).await.is_err() {
                break;
            }
        }
        if self.form == Form::Binary {
            write::end_binary_copy(&mut buffer);
        }
        let sent = sink.send(buffer.freeze()).await;
        let copied = sink.finish().await.map_err(|error| self.failed(error))?;
        sent.map_err(|error| self.failed(error))?;
        self.check_count("INSERT", copied, count)
    }

    fn check_count(&self, operation: &'static str, hit: u64, asked: u64) -> Result<(), Error> {
        if hit == asked {
            return Ok(());
        }
        let kind = Kind::SetCount { operation, hit, asked };
        Err(Error::new(Stage::Apply, kind).on(self.relation.to_string()).at(self.at))
    }

    fn left_out(&self, error: LeftOut) -> Error {
        let kind = Kind::Protocol { role: Role::Source, what: error.to_string() };
        Error::new(Stage::Apply, kind).on(self.relation.to_string()).at(self.at)
    }

    fn failed(&self, error: tokio_postgres::Error) -> Error {
        failed(error).on(self.relation.to_string()).at(self.at)
    }
}

/// A row whose cells an array can take.
trait Cells: Sync {
    fn cell(&self, column: usize) -> Cell<'_>;

    fn value_bytes(&self) -> usize;
}

impl Cells for Row<'_> {
    fn cell(&self, column: usize) -> Cell<'_> {
        Row::cell(self, column)
    }

    fn value_bytes(&self) -> usize {
        Row::value_bytes(self)
    }
}

impl Cells for NetRow<'_, '_> {
    fn cell(&self, column: usize) -> Cell<'_> {
        NetRow::cell(self, column)
    }

    fn value_bytes(&self) -> usize {
        NetRow::value_bytes(self)
    }
}

/// One column of many rows as an array parameter, written straight from where the rows lie.
struct ColumnArray<'r, R> {
    element_oid: u32,
    rows: &'r [R],
    column: usize,
}

impl<R> fmt::Debug for ColumnArray<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ColumnArray")
            .field("column", &self.column)
            .field("rows", &self.rows.len())
            .finish_non_exhaustive()
    }
}

impl<R: Cells> ToSql for ColumnArray<'_, R> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        write::array(self.element_oid, self.rows.iter().map(|row| row.cell(self.column)), out)?;
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Binary
    }

    to_sql_checked!();
}
