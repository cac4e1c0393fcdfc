//! Which tables of the source the target has rows of, and whether they are still the ones that are published.
//!
//! In: what `pgsluice.table_state` keeps of each table, and what the source's catalogs say. Out: the tables to be copied again,
//! each with the reason; a refusal where that is not ours to decide; and what is to be kept from now on.
//!
//! ```text
//!  kept  ──the same table──────────────────► kept, with what is new in it
//!    └───another, or another membership────► copied again; refused where nothing is to be copied
//!  nothing kept (rows of an earlier version)► what is there now
//! ```
//!
//! The stream is of the past and the catalogs are of now, so that a comparison comes early or late. Copying again is right all
//! the same: a copy is of a snapshot that is later than either, and what committed before it is left out of the stream.

use std::collections::HashMap;

use pgsluice_proto::Lsn;
use tokio_postgres::Client;

use super::partitions::Repartitioned;
use super::state::{self, TableCopy};
use super::{STAGE, target_failed};
use crate::checkpoint;
use crate::error::{Error, Kind};
use crate::postgres::quote_literal;
use crate::source::identity::TableIdentity;
use crate::source::publication::{PublishedTable, TableName};

/// What follows from a comparison.
#[derive(Debug, Default)]
pub struct Judged {
    /// To be copied again, and why.
    pub replaced: Vec<(TableName, String)>,
    /// What is to be kept where it is not what is kept already.
    pub kept: Vec<(TableName, TableIdentity)>,
    /// Of those, the ones of which nothing was kept.
    pub adopted: Vec<TableName>,
    /// What may have happened unseen.
    pub doubts: Vec<String>,
    /// Tables whose partitions are not those that they were.
    repartitioned: Vec<Repartitioned>,
}

/// Compares what is kept of all tables with what is published, when the source is at `position`.
///
/// # Errors
/// A refusal that names a table which is not the one that the target has rows of, where it cannot be copied again.
pub fn judge(
    name: &str,
    states: &[TableCopy],
    published: &[PublishedTable],
    copy_data: bool,
    position: Lsn,
) -> Result<Judged, Error> {
    let (mut judged, mut is_altered) = (Judged::default(), false);
    let by_name: HashMap<_, _> =
        states.iter().filter(|state| !state.is_missing()).map(|state| (&state.table, state)).collect();
    for (table, now) in published.iter().filter_map(|one| Some((&one.table, one.table_identity.as_deref()?))) {
        let Some(state) = by_name.get(table) else { continue };
        let Some(known) = &state.identity else {
            judged.kept.push((table.clone(), now.adopted(position)));
            judged.adopted.push(table.clone());
            continue;
        };
        let left_out = known.left_out_by(now);
        if !left_out.is_empty() {
            return Err(narrowed(table, &left_out));
        }
        let known = match known.replaced_by(now) {
            None => known,
            // Without a copy its changes went on under the other name, and so did the target.
            Some(_) if !copy_data && followed(states, now).is_some() => followed(states, now).unwrap_or(known),
            Some(why) if copy_data && !state.appends => {
                judged.replaced.push((table.clone(), why));
                continue;
            }
            Some(why) => return Err(refused(name, state, &why)),
        };
        let kept = known.followed_by(now, position);
        if let Some(doubt) = known.doubt(now) {
            judged.doubts.push(format!("{table} {doubt}: if so, {} copies it again", resync(table)));
        }
        if known.leaves != now.leaves {
            let [before, leaves] = [known, now].map(|one| one.leaves.clone());
            judged.repartitioned.push(Repartitioned { table: table.clone(), before, now: leaves });
        }
        is_altered |= known.publication_xmin.is_some() && known.publication_xmin != now.publication_xmin;
        if Some(&kept) != state.identity.as_ref() {
            judged.kept.push((table.clone(), kept));
        }
    }
    if is_altered {
        let doubt = "the publication's options or its owner were changed on the source: if it left out operations for a while, those are \
                     not in the stream, and `pgsluice resync` copies the tables that had any";
        judged.doubts.push(doubt.to_owned());
    }
    Ok(judged)
}

/// As [`judge`], and asks the source how the rows of partitions differ that came or went.
pub async fn compare(
    source: &Client,
    name: &str,
    states: &[TableCopy],
    published: &[PublishedTable],
    copy_data: bool,
    position: Lsn,
) -> Result<Judged, Error> {
    let mut judged = judge(name, states, published, copy_data, position)?;
    for repartitioned in std::mem::take(&mut judged.repartitioned) {
        let found = repartitioned.look_into(source).await?;
        judged.doubts.extend(found.doubts);
        let kept = judged.kept.iter_mut().find(|(table, _)| *table == repartitioned.table);
        if let Some((_, identity)) = kept {
            judged.doubts.extend(found.notes.iter().cloned());
            identity.notes.extend(found.notes);
        }
    }
    Ok(judged)
}

/// As if all of these tables had left the publication: it does not bring all that happens to their rows.
pub async fn leave(target: &Client, name: &str, published: &[PublishedTable]) -> Result<(), Error> {
    let mut states = state::read(target, name).await?;
    states.retain(|state| state.is_followed() && published.iter().any(|one| one.table == state.table));
    let left = states.into_iter().filter_map(|state| {
        let identity = state.identity?;
        Some((state.table, TableIdentity { members: Vec::new(), ..identity }))
    });
    let left: Vec<_> = left.collect();
    write(target, name, left.iter().map(|(table, identity)| (table, identity))).await.map(drop)
}

fn resync(table: &TableName) -> String {
    format!("`pgsluice resync \"{}.{}\"`", table.schema, table.name)
}

/// The same table, as it is kept under whatever name.
fn followed<'s>(states: &'s [TableCopy], now: &TableIdentity) -> Option<&'s TableIdentity> {
    let mut known = states.iter().filter(|state| !state.is_missing()).filter_map(|state| state.identity.as_ref());
    known.find(|known| known.replaced_by(now).is_none())
}

fn narrowed(table: &TableName, columns: &[String]) -> Error {
    let list: Vec<_> = columns.iter().map(|column| crate::postgres::quote_ident(column)).collect();
    Error::refused(
        STAGE,
        format!(
            "column {} of {table} is not published any more, and the target has values of it that no longer follow",
            list.join(", ")
        ),
        format!(
            "on the primary, publish all columns again: ALTER PUBLICATION … DROP TABLE ONLY {table}, and ADD TABLE ONLY {table}; \
             or, to go on without: `pgsluice resync \"{}.{}\"`, which empties {table} on the target and copies what is published",
            table.schema, table.name
        ),
    )
}

fn refused(name: &str, state: &TableCopy, why: &str) -> Error {
    let table = &state.table;
    let what = format!("{table} on the source is not the table that the target has rows of: {why}");
    let resync = resync(table);
    let adopt = format!(
        "UPDATE pgsluice.table_state SET identity = NULL WHERE name = {} AND schema_name = {} AND table_name = {}",
        quote_literal(name),
        quote_literal(&table.schema),
        quote_literal(&table.name)
    );
    let because = match state.appends {
        true => "the target's table has rows of others too, which a copy would remove",
        false => "copy_data is false, so nothing is copied unasked",
    };
    Error::refused(
        STAGE,
        what,
        format!(
            "{because}; {resync} empties {table} on the target and copies it; or, if its rows there are those of the source's \
             table as it is now, on the target: {adopt}"
        ),
    )
}

/// As [`judge`] has it, on the target, under the epoch that is held.
pub async fn settle(target: &Client, (name, epoch): (&str, i64), judged: &Judged) -> Result<(), Error> {
    if judged.replaced.is_empty() && judged.kept.is_empty() {
        return Ok(());
    }
    target.batch_execute("BEGIN").await.map_err(target_failed)?;
    checkpoint::check_epoch(target, name, epoch).await?;
    let replaced: Vec<_> = judged.replaced.iter().map(|(table, _)| table.clone()).collect();
    state::mark(target, name, &replaced).await?;
    let is_kept = write(target, name, judged.kept.iter().map(|(table, identity)| (table, identity))).await?;
    target.batch_execute("COMMIT").await.map_err(target_failed)?;
    for doubt in &judged.doubts {
        tracing::warn!("{doubt}");
    }
    for (table, why) in &judged.replaced {
        tracing::warn!("{table} is emptied on the target and copied again: {why}");
    }
    if is_kept && !judged.adopted.is_empty() {
        let list: Vec<_> = judged.adopted.iter().map(ToString::to_string).collect();
        tracing::info!(
            tables = list.join(", "),
            "which tables of the source these are was not kept before, and is from now on"
        );
    }
    Ok(())
}

/// Has tables copied again that another session found not to be those that the target has rows of.
///
/// # Errors
/// A refusal as of [`judge`].
pub async fn replace(
    target: &Client,
    (name, epoch): (&str, i64),
    tables: &[TableName],
    why: &str,
    copy_data: bool,
) -> Result<(), Error> {
    let states = state::read(target, name).await?;
    let mut judged = Judged::default();
    for state in states.iter().filter(|state| tables.contains(&state.table) && !state.is_missing()) {
        if !copy_data || state.appends {
            return Err(refused(name, state, why));
        }
        judged.replaced.push((state.table.clone(), why.to_owned()));
    }
    settle(target, (name, epoch), &judged).await
}

/// Keeps these identities. False where the target has no room for them: an earlier version has made its tables.
pub(super) async fn write(
    target: &Client,
    name: &str,
    identities: impl Iterator<Item = (&TableName, &TableIdentity)>,
) -> Result<bool, Error> {
    let has_room = "SELECT count(*) = 1 FROM pg_attribute WHERE attrelid = 'pgsluice.table_state'::regclass \
                    AND attname = 'identity' AND NOT attisdropped";
    if !target.query_one(has_room, &[]).await.map_err(target_failed)?.try_get(0).map_err(target_failed)? {
        return Ok(false);
    }
    let (mut schemas, mut names, mut documents) = (Vec::new(), Vec::new(), Vec::new());
    for (table, identity) in identities {
        schemas.push(table.schema.as_str());
        names.push(table.name.as_str());
        documents.push(serde_json::to_string(identity).map_err(|_| Error::new(STAGE, Kind::Panicked))?);
    }
    let sql = "UPDATE pgsluice.table_state t SET identity = w.identity::jsonb \
               FROM unnest($2::text[], $3::text[], $4::text[]) AS w (schema_name, table_name, identity) \
               WHERE t.name = $1 AND (t.schema_name, t.table_name) = (w.schema_name, w.table_name)";
    target.execute(sql, &[&name, &schemas, &names, &documents]).await.map_err(target_failed)?;
    Ok(true)
}

pub(super) fn parse(json: &str) -> Result<TableIdentity, Error> {
    serde_json::from_str(json).map_err(|error| {
        let what = format!("pgsluice.table_state on the target has an identity that cannot be read: {error}");
        Error::refused(STAGE, what, "it was written by another version; use that one")
    })
}
