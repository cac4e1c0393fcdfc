//! More about an error of the target than it says by itself, from the servers: for a person who has to mend it.

use tokio_postgres::Client;

use super::asked;
use crate::apply::find_cause;
use crate::config::{Config, Role};
use crate::error::{Disposition, Error, Stage};
use crate::postgres::{self, quote_ident};

const STAGE: Stage = Stage::Status;

/// The same error with what the servers add to it. One that cannot be asked adds nothing: it is the error that counts.
pub(super) fn explain(config: &Config, mut error: Error) -> Error {
    let waits_for_somebody = matches!(error.disposition(), Disposition::Halt | Disposition::Wait);
    if error.of_target().is_none() || !waits_for_somebody {
        return error;
    }
    match postgres::new_runtime(STAGE) {
        Ok(runtime) => runtime.block_on(ask(config, error)),
        Err(_) => error,
    }
}

async fn ask(config: &Config, error: Error) -> Error {
    let Ok(target) = postgres::connect(&config.target, STAGE).await else { return error };
    let error = find_cause(&target, error).await;
    match widening(config, &target, &error).await {
        Ok(Some(hint)) => error.hint(hint),
        Ok(None) => error,
        Err(why) => {
            tracing::debug!(%why, "how the column is on the source is not known");
            error
        }
    }
}

/// The statement that has the column of the target take the values of the source's, where they differ in their types.
async fn widening(config: &Config, target: &Client, error: &Error) -> Result<Option<String>, Error> {
    let Some(of_target) = error.server().filter(|of_target| of_target.class() == "22") else { return Ok(None) };
    let (Some(table), Some(column)) = (error.relation(), of_target.shown_column()) else { return Ok(None) };
    let source = postgres::connect(&config.source, STAGE).await?;
    let publication = asked::of_ours(config, asked::read_publication(config, &source).await?)?;
    let mapping = asked::mapping(config, &source, &publication).await?;
    let Some(on_target) = column_type(target, Role::Target, table, column).await? else { return Ok(None) };
    let place = mapping.tables().map(|source| mapping.target(source)).find(|place| place.to_string() == table);
    let origins = place.map_or_else(Vec::new, |place| mapping.origins(&place, column));
    for (of, name) in origins {
        let on_source = column_type(&source, Role::Source, &of.to_string(), &name).await?;
        if let Some(on_source) = on_source.filter(|on_source| *on_source != on_target) {
            return Ok(Some(format!(
                "on the target: ALTER TABLE {table} ALTER COLUMN {} TYPE {on_source}; it is {on_target} there",
                quote_ident(column)
            )));
        }
    }
    Ok(None)
}

/// With its modifier.
async fn column_type(client: &Client, role: Role, table: &str, column: &str) -> Result<Option<String>, Error> {
    let sql = "SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute a \
               WHERE a.attrelid = to_regclass($1) AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped";
    let failed = |error| Error::from_postgres(STAGE, role, error);
    let row = client.query_opt(sql, &[&table, &column]).await.map_err(failed)?;
    row.map(|row| row.try_get(0).map_err(failed)).transpose()
}
