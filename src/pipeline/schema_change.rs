//! The stream brings columns that the target lacks: what is to be run there is found on the source, and run if that is allowed.
//!
//! The stream stands meanwhile before the first transaction with such a row; all that came before it is on the target.

use pgsluice_proto::Lsn;
use tokio_postgres::Client;

use super::asked;
use crate::checkpoint;
use crate::config::{Config, Ddl, Role};
use crate::error::{Error, Kind, Lacks, Stage};
use crate::postgres;
use crate::schema::missing::{self, Addition};
use crate::schema::past::Past;
use crate::snapshot::{self, TableCopy};
use crate::source::publication::{Publication, TableName};
use crate::source::server::Server;
use crate::transform::Mapping;

/// What is left of the error, with all that can be said about it; `None` where the target has been given what it lacked.
pub(super) fn meet(config: &Config, epoch: Option<i64>, error: Error) -> Option<Error> {
    let Kind::LacksColumns(lacks) = error.kind() else { return Some(error) };
    let at = error.lsn().unwrap_or(Lsn::INVALID);
    let mended =
        postgres::new_runtime(Stage::Schema).and_then(|runtime| runtime.block_on(mend(config, epoch, (lacks, at))));
    match mended {
        Ok(None) => None,
        Ok(Some(mend)) => {
            let lacks = Lacks { mend, ..lacks.clone() };
            Some(error.with_kind(Kind::LacksColumns(lacks)))
        }
        // The next session meets the same columns again.
        Err(why) => {
            tracing::warn!(error = %why.shown(&config.log), "what the target lacks could not be looked up");
            Some(error)
        }
    }
}

/// What somebody has to do on the target; `None` where it is done.
async fn mend(config: &Config, epoch: Option<i64>, (lacks, at): (&Lacks, Lsn)) -> Result<Option<String>, Error> {
    let source = postgres::connect(&config.source, Stage::Schema).await?;
    let target = postgres::connect(&config.target, Stage::Schema).await?;
    let publication = asked::of_ours(config, asked::read_publication(config, &source).await?)?;
    let mapping = asked::mapping(config, &source, &publication).await?;
    let states = snapshot::read(&target, config.name.as_str()).await?;
    let place = TableName { schema: lacks.schema.clone(), name: lacks.table.clone() };
    let past = past(&publication, &states, &mapping, &place, (&lacks.described, at));
    let position = Server::inspect(&source, Role::Source, Stage::Schema).await?.position;
    let additions = missing::additions(&source, &target, &mapping, lacks, past, position).await?;
    let mend = said(&additions);
    let (Ddl::Additive, Some(epoch)) = (config.apply.ddl, epoch) else { return Ok(Some(mend)) };
    if !additions.iter().all(|addition| addition.keeps_rows) {
        return Ok(Some(mend));
    }
    match make(config, epoch, &target, &additions).await {
        Ok(()) => Ok(None),
        Err(why) => {
            let why = why.shown(&config.log);
            Ok(Some(format!("{mend}\n  it was tried, since ddl is \"additive\": {why}")))
        }
    }
}

/// What is known of the table that brings the rows, where it is one.
fn past<'a>(
    publication: &'a Publication,
    states: &'a [TableCopy],
    mapping: &Mapping,
    place: &TableName,
    (described, commit_lsn): (&'a [String], Lsn),
) -> Option<Past<'a>> {
    let mut sources = mapping.sources(place);
    let (table, None) = (sources.next().unwrap_or(place), sources.next()) else { return None };
    let published = publication.tables.iter().find(|one| one.table == *table)?;
    let kept = states.iter().find(|state| state.table == *table).and_then(|state| state.identity.as_ref());
    Some(Past { kept, now: published.table_identity.as_deref()?, described, commit_lsn })
}

/// All of it or nothing, and only as long as no other engine has taken over.
async fn make(config: &Config, epoch: i64, target: &Client, additions: &[Addition]) -> Result<(), Error> {
    let failed = |error| Error::from_postgres(Stage::Schema, config.target.role, error);
    // Whoever reads the table there must not wait long behind us.
    target.batch_execute("BEGIN; SET LOCAL lock_timeout = '10s'").await.map_err(failed)?;
    checkpoint::check_epoch(target, config.name.as_str(), epoch).await?;
    let statements = || additions.iter().flat_map(|addition| &addition.statements);
    for statement in statements() {
        target.batch_execute(statement).await.map_err(failed)?;
    }
    target.batch_execute("COMMIT").await.map_err(failed)?;
    for statement in statements() {
        tracing::info!(statement, "made on the target, since ddl is \"additive\"");
    }
    Ok(())
}

fn said(additions: &[Addition]) -> String {
    let statements: Vec<_> =
        additions.iter().flat_map(|addition| &addition.statements).map(|statement| format!("{statement};")).collect();
    let mut notes: Vec<_> = additions.iter().filter_map(|addition| addition.note.as_deref()).collect();
    notes.dedup();
    let notes: Vec<_> = notes.into_iter().map(|note| format!("\n  {note}")).collect();
    format!("on the target: {}{}", statements.join(" "), notes.concat())
}
