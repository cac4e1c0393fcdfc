//! Changes applied as sets: netted per key, then one statement for all deletes, one for the updates of each set of known
//! columns, and a COPY for the inserts of a table.
//!
//! In: a batch. Out: the same rows on the target as [`in_order`] would leave, or an error, after which the caller rolls
//! back and has them applied in order.
//!
//! ```text
//!  changes ──classify──► segments:  Netted │ InOrder │ Netted │ …
//!                          Netted:  per table  deletes ► updates ► COPY
//! ```
//!
//! What cannot be netted stands in the way of what can: a TRUNCATE, a change of key, an update or delete of a table without
//! key. Those are applied in order, between the nets of what comes before and after. Short runs are not worth a net.
//!
//! Within a net, tables do not follow the source's order among each other. Where the target's foreign keys fire, they
//! give the order instead: rows are deleted child first, and inserted parent first. Then short runs are netted too: a
//! cascade of the source comes parent first, and the target's own would be ahead of it.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::SinkExt;
use pgsluice_proto::pgoutput::Cell;
use pgsluice_proto::{Lsn, Oid};
use tokio_postgres::Client;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

use super::net::{Irregular, Net, NetRow};
use super::plan::{Plans, Prepared};
use super::sql::Form;
use super::{encode, failed, in_order};
use crate::batch::{Batch, BatchedChange, BatchedOperation, Row};
use crate::decode::Relation;
use crate::error::{Error, Kind, Stage};

/// Below this many changes, single statements on their way together are as quick as a net.
const NETTED_MIN: usize = 16;
/// Bytes of COPY that are handed to the connection at once.
const COPY_CHUNK_BYTES: usize = 64 * 1024;

/// Applies the batch in the transaction that is open on `client`. `constraints_fire` where foreign keys are checked.
pub(super) async fn apply(
    client: &Client,
    plans: &mut Plans,
    batch: &Batch,
    constraints_fire: bool,
) -> Result<(), Error> {
    let netted_min = if constraints_fire { 1 } else { NETTED_MIN };
    for segment in segments(client, plans, batch, netted_min).await? {
        match segment {
            Segment::InOrder(places) => in_order::apply(client, plans, batch.changes_in(places)).await?,
            Segment::Netted(places) => match net(plans, batch, places.clone()) {
                Some(tables) if constraints_fire => apply_by_foreign_keys(client, plans, tables).await?,
                Some(tables) => apply_tables(client, plans, &tables).await?,
                None => in_order::apply(client, plans, batch.changes_in(places)).await?,
            },
        }
    }
    Ok(())
}

/// Places of changes that follow each other in the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Netted(Range<usize>),
    InOrder(Range<usize>),
}

/// Splits the batch where a change cannot be netted, and joins what is too short to be worth it.
async fn segments(client: &Client, plans: &mut Plans, batch: &Batch, netted_min: usize) -> Result<Vec<Segment>, Error> {
    let mut keys: Vec<Option<TableKey>> = Vec::new();
    let mut descriptions: HashMap<Oid, u64> = HashMap::new();
    let mut segments = Segments { netted_min, ..Segments::default() };
    for (place, change) in batch.changes().enumerate() {
        let relation = match change.operation {
            BatchedOperation::Insert { relation, .. }
            | BatchedOperation::Update { relation, .. }
            | BatchedOperation::Delete { relation, .. } => relation,
            BatchedOperation::Truncate(_) => {
                segments.push(place, false);
                continue;
            }
        };
        if keys.len() <= change.relation_index {
            keys.resize_with(change.relation_index + 1, || None);
        }
        let key = match &mut keys[change.relation_index] {
            Some(key) => key,
            unknown => {
                let plan =
                    plans.get(client, relation).await.map_err(|error| error.at(change.transaction.commit_lsn))?;
                let changed = descriptions.insert(relation.id, relation.version).is_some();
                if changed {
                    // The rows before were sent under another description.
                    segments.close();
                }
                let columns = plan.netting_key().map(<[usize]>::to_vec);
                unknown.insert(TableKey { columns, can_copy: plan.can_copy() })
            }
        };
        segments.push(place, key.can_net(&change.operation));
    }
    Ok(segments.finish())
}

/// What decides whether a change of a table can be netted.
#[derive(Debug)]
struct TableKey {
    columns: Option<Vec<usize>>,
    can_copy: bool,
}

impl TableKey {
    #[inline]
    fn can_net(&self, operation: &BatchedOperation<'_>) -> bool {
        match (operation, &self.columns) {
            (BatchedOperation::Insert { .. }, _) => self.can_copy,
            (BatchedOperation::Delete { .. }, Some(_)) => true,
            (BatchedOperation::Update { old, new, .. }, Some(key)) => key.iter().all(|&column| {
                let cell = new.cell(column);
                cell != Cell::Unchanged && old.is_none_or(|old| old.row().cell(column) == cell)
            }),
            (BatchedOperation::Update { .. } | BatchedOperation::Delete { .. }, None)
            | (BatchedOperation::Truncate(_), _) => false,
        }
    }
}

/// Grows segments change by change.
#[derive(Debug, Default)]
struct Segments {
    done: Vec<Segment>,
    /// The run that grows, and whether it is to be netted.
    run: Range<usize>,
    netted: bool,
    netted_min: usize,
}

impl Segments {
    fn push(&mut self, place: usize, netted: bool) {
        if netted != self.netted {
            self.close();
            self.netted = netted;
        }
        if self.run.is_empty() {
            self.run = place..place;
        }
        self.run.end = place + 1;
    }

    fn close(&mut self) {
        let run = std::mem::take(&mut self.run);
        if run.is_empty() {
            return;
        }
        if self.netted && run.len() >= self.netted_min {
            self.done.push(Segment::Netted(run));
        } else if let Some(Segment::InOrder(before)) = self.done.last_mut() {
            before.end = run.end;
        } else {
            self.done.push(Segment::InOrder(run));
        }
    }

    fn finish(mut self) -> Vec<Segment> {
        self.close();
        self.done
    }
}

/// What one table comes to in a segment.
struct TableNet<'a> {
    relation: &'a Arc<Relation>,
    net: Net<'a>,
    form: Form,
    /// Of the first transaction that changes it, for errors that concern many rows.
    at: Lsn,
}

/// Nets a segment; `None` where a history or a form of values has to be applied in order.
fn net<'a>(plans: &Plans, batch: &'a Batch, places: Range<usize>) -> Option<Vec<TableNet<'a>>> {
    let mut order: Vec<usize> = Vec::new();
    let mut tables: Vec<Option<TableNet<'a>>> = Vec::new();
    let changes = places.len();
    for change in batch.changes_in(places) {
        if tables.len() <= change.relation_index {
            tables.resize_with(change.relation_index + 1, || None);
        }
        let table = match &mut tables[change.relation_index] {
            Some(table) => table,
            new => {
                order.push(change.relation_index);
                // Nearly always a few tables have nearly all changes.
                new.insert(start_net(plans, &change, changes >> (order.len() - 1).min(20))?)
            }
        };
        let taken = match change.operation {
            BatchedOperation::Insert { new, .. } => table.net.insert(new),
            BatchedOperation::Update { old, new, .. } => table.net.update(old, new),
            BatchedOperation::Delete { old, .. } => table.net.delete(old),
            BatchedOperation::Truncate(_) => Err(Irregular),
        };
        taken.ok()?;
    }
    let nets = order.into_iter().filter_map(|index| tables[index].take());
    nets.map(|table| choose_form(plans, table)).collect()
}

fn start_net<'a>(plans: &Plans, change: &BatchedChange<'a>, changes: usize) -> Option<TableNet<'a>> {
    let (BatchedOperation::Insert { relation, .. }
    | BatchedOperation::Update { relation, .. }
    | BatchedOperation::Delete { relation, .. }) = change.operation
    else {
        return None;
    };
    let key = plans.known(relation)?.netting_key().unwrap_or_default().to_vec();
    Some(TableNet { relation, net: Net::new(key, changes), form: Form::Text, at: change.transaction.commit_lsn })
}

/// All values of a table come as text or all in binary, or the table is applied in order.
fn choose_form<'a>(plans: &Plans, table: TableNet<'a>) -> Option<TableNet<'a>> {
    let plan = plans.known(table.relation)?;
    let kinds = table.net.kinds();
    let form = match (kinds.has_text(), kinds.has_binary()) {
        (true, true) => return None,
        (_, false) => Form::Text,
        (false, true) if plan.fits_binary(table.relation) => Form::Binary,
        (false, true) => return None,
    };
    let only_inserts = table.net.deletes().next().is_none() && table.net.updates().next().is_none();
    (only_inserts || plan.can_unnest(form)).then_some(TableNet { form, ..table })
}

/// All deletes before all updates before all inserts, so that a value of a unique key is free before it is taken.
async fn apply_tables(client: &Client, plans: &mut Plans, tables: &[TableNet<'_>]) -> Result<(), Error> {
    for table in tables {
        table.delete(client, plans).await.map_err(|error| error.at(table.at))?;
        table.update(client, plans).await.map_err(|error| error.at(table.at))?;
        table.insert(client, plans).await.map_err(|error| error.at(table.at))?;
    }
    Ok(())
}

/// The same, with children before their parents where rows go, and after them where rows come.
async fn apply_by_foreign_keys(client: &Client, plans: &mut Plans, tables: Vec<TableNet<'_>>) -> Result<(), Error> {
    let tables = parents_first(plans, tables);
    for table in tables.iter().rev() {
        table.delete(client, plans).await.map_err(|error| error.at(table.at))?;
    }
    for table in &tables {
        table.update(client, plans).await.map_err(|error| error.at(table.at))?;
        table.insert(client, plans).await.map_err(|error| error.at(table.at))?;
    }
    Ok(())
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
    async fn delete(&self, client: &Client, plans: &mut Plans) -> Result<(), Error> {
        let rows: Vec<Row<'a>> = self.net.deletes().collect();
        if rows.is_empty() {
            return Ok(());
        }
        let prepared = plans.get(client, self.relation).await?.delete_set(client, self.relation, self.form).await?;
        self.execute(client, &prepared, "DELETE", rows.len(), |row, column| rows[row].cell(column)).await
    }

    async fn update(&self, client: &Client, plans: &mut Plans) -> Result<(), Error> {
        for (known, rows) in self.update_groups() {
            let plan = plans.get(client, self.relation).await?;
            let prepared = plan.update_set(client, self.relation, known, self.form).await?;
            self.execute(client, &prepared, "UPDATE", rows.len(), |row, column| rows[row].cell(column)).await?;
        }
        Ok(())
    }

    /// Updates by the columns that are known of them. Nearly always there is one group.
    fn update_groups(&self) -> Vec<(Box<[bool]>, Vec<NetRow<'_, 'a>>)> {
        let columns = self.relation.columns.len();
        let mut whole = Vec::new();
        let mut partial: HashMap<Box<[bool]>, Vec<NetRow<'_, 'a>>> = HashMap::new();
        for row in self.net.updates() {
            if row.is_surely_whole() {
                whole.push(row);
            } else {
                let known = (0..columns).map(|column| row.cell(column) != Cell::Unchanged).collect();
                partial.entry(known).or_default().push(row);
            }
        }
        let mut groups: Vec<_> = partial.into_iter().collect();
        if !whole.is_empty() {
            groups.push((vec![true; columns].into(), whole));
        }
        groups
    }

    async fn insert(&self, client: &Client, plans: &mut Plans) -> Result<(), Error> {
        let mut rows = self.net.inserts().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let prepared = plans.get(client, self.relation).await?.copy(client, self.relation, self.form).await?;
        let positions: Vec<_> = prepared.positions().collect();
        let wrong = |error| failed(error).on(self.relation.to_string());
        let sink = client.copy_in::<_, Bytes>(&prepared.statement).await.map_err(wrong)?;
        let mut sink = pin!(sink);
        let mut buffer = BytesMut::with_capacity(COPY_CHUNK_BYTES * 2);
        let mut count = 0;
        if self.form == Form::Binary {
            encode::start_binary_copy(&mut buffer);
        }
        for row in rows {
            let cells = positions.iter().map(|&position| row.cell(position));
            match self.form {
                Form::Text => encode::text_row(cells, &mut buffer),
                Form::Binary => encode::binary_row(cells, &mut buffer),
            }
            count += 1;
            // The server's error comes with `finish`.
            if buffer.len() >= COPY_CHUNK_BYTES && sink.feed(buffer.split().freeze()).await.is_err() {
                break;
            }
        }
        if self.form == Form::Binary {
            encode::end_binary_copy(&mut buffer);
        }
        let sent = sink.send(buffer.freeze()).await;
        let copied = sink.finish().await.map_err(wrong)?;
        sent.map_err(wrong)?;
        self.check_count("INSERT", copied, count)
    }

    async fn execute<'r>(
        &self,
        client: &Client,
        prepared: &Prepared,
        operation: &'static str,
        rows: usize,
        cell: impl Fn(usize, usize) -> Cell<'r> + Sync,
    ) -> Result<(), Error> {
        let arrays: Vec<_> = prepared
            .positions()
            .map(|column| ColumnArray {
                element_oid: match self.form {
                    Form::Text => encode::TEXT_OID,
                    Form::Binary => self.relation.columns[column].type_oid.0,
                },
                rows,
                column,
                cell: &cell,
            })
            .collect();
        let hit = client.execute_raw(&prepared.statement, &arrays).await;
        let hit = hit.map_err(|error| failed(error).on(self.relation.to_string()))?;
        self.check_count(operation, hit, rows as u64)
    }

    fn check_count(&self, operation: &'static str, hit: u64, asked: u64) -> Result<(), Error> {
        if hit == asked {
            return Ok(());
        }
        Err(Error::new(Stage::Apply, Kind::SetCount { operation, hit, asked }).on(self.relation.to_string()))
    }
}

/// One column of many rows as an array parameter, written straight from where the rows lie.
struct ColumnArray<'c, F> {
    element_oid: u32,
    rows: usize,
    column: usize,
    cell: &'c F,
}

impl<F> fmt::Debug for ColumnArray<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ColumnArray").field("column", &self.column).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl<'r, F: Fn(usize, usize) -> Cell<'r> + Sync> ToSql for ColumnArray<'_, F> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        encode::array(self.element_oid, (0..self.rows).map(|row| (self.cell)(row, self.column)), out);
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
