//! What the target can say of an error when it is asked: which of its names are names, which column a value did not fit, and
//! which rights are missing.
//!
//! In: an error, and a session outside of the transaction that has failed. Out: the same error with more to show. Whoever cannot
//! be asked leaves it as it is.

use pgsluice_proto::pgoutput::Cell;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::failed;
use super::parameter::Parameter;
use crate::error::{Error, NameKind, Named, WrittenValue};
use crate::postgres::quote_ident;

/// Names by what they are given for. Types come with their modifiers, and relations with or without their schema.
const NAMES_SQL: &str = "\
SELECT u.kind, u.name FROM unnest($1::text[], $2::text[]) AS u (kind, name) WHERE CASE u.kind
    WHEN 'relation' THEN EXISTS (
        SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE u.name IN (c.relname, n.nspname || '.' || c.relname))
    WHEN 'column' THEN EXISTS (
        SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE a.attname = u.name AND NOT a.attisdropped AND c.relkind IN ('r', 'p') AND c.relnamespace NOT IN (
            SELECT n.oid FROM pg_namespace n WHERE n.nspname IN ('pg_catalog', 'information_schema')))
    WHEN 'constraint' THEN EXISTS (SELECT FROM pg_constraint o WHERE o.conname = u.name)
        OR EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relname = u.name)
    WHEN 'type' THEN EXISTS (
        SELECT FROM pg_type t WHERE regexp_replace(u.name, '\\(\\d+(,-?\\d+)?\\)', '') IN (t.typname, format_type(t.oid, NULL)))
    WHEN 'schema' THEN EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = u.name)
    WHEN 'function' THEN EXISTS (SELECT FROM pg_proc p WHERE p.proname = u.name)
    ELSE false END";

/// Who we are, and which of the rights that the documentation asks for we lack. Tables are told by their quoted names, since
/// to look one up takes rights on its schema.
const RIGHTS_SQL: &str = "\
SELECT current_user::text, n.nspname::text, has_schema_privilege(n.oid, 'USAGE'),
    ARRAY(SELECT p FROM unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE}'::text[]) p WHERE NOT has_table_privilege(c.oid, p))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE format('\"%s\".\"%s\"', replace(n.nspname, '\"', '\"\"'), replace(c.relname, '\"', '\"\"')) = $1";

/// Whether the session has a transaction open, which is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Session {
    Idle,
    InTransaction,
}

/// Asks over a session without a transaction.
pub async fn find_cause(client: &Client, mut error: Error) -> Error {
    match find(client, &mut error, Session::Idle).await {
        Ok(None) => error,
        Ok(Some(hint)) => error.hint(hint),
        Err(why) => {
            let why = why.code().map_or("no answer", |code| code.code());
            tracing::debug!(why, "the target says no more of an error");
            error
        }
    }
}

/// The same in a transaction, after what failed has been rolled back.
///
/// # Errors
/// Whatever the target says; the transaction is over then.
pub(super) async fn find_cause_within(client: &Client, mut error: Error) -> Result<Error, Error> {
    let hint = find(client, &mut error, Session::InTransaction).await.map_err(failed)?;
    Ok(match hint {
        Some(hint) => error.hint(hint),
        None => error,
    })
}

async fn find(client: &Client, error: &mut Error, session: Session) -> Result<Option<String>, tokio_postgres::Error> {
    let relation = error.relation().map(str::to_owned);
    let written = error.take_written();
    let Some(of_target) = error.of_target() else { return Ok(None) };
    of_target.confirm(known(client, of_target.names()).await?);
    if let (Some(written), Some(relation)) = (written, &relation) {
        of_target.of_column = refused_column(client, relation, written.values, (&of_target.code, session)).await?;
    }
    match (of_target.code.as_str(), &relation) {
        ("42501", Some(relation)) if !of_target.is_in_function() => lacking_rights(client, relation).await,
        _ => Ok(None),
    }
}

/// Those that are there.
async fn known(client: &Client, names: Vec<Named>) -> Result<Vec<Named>, tokio_postgres::Error> {
    if names.is_empty() {
        return Ok(names);
    }
    let (kinds, texts): (Vec<_>, Vec<_>) = names.iter().map(|(kind, name)| (kind.as_str(), name.as_str())).unzip();
    let rows = client.query(NAMES_SQL, &[&kinds, &texts]).await?;
    let known = |row: &Row| Ok((row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?));
    let known: Vec<(String, String)> = rows.iter().map(known).collect::<Result<_, tokio_postgres::Error>>()?;
    let is_known =
        |(kind, name): &(NameKind, String)| known.iter().any(|(of, known)| of == kind.as_str() && known == name);
    Ok(names.into_iter().filter(is_known).collect())
}

/// The column whose value fails as the whole statement did. Nothing is written: to plan an assignment of a value is to fit it to
/// its column.
async fn refused_column(
    client: &Client,
    relation: &str,
    values: Vec<WrittenValue>,
    (code, session): (&str, Session),
) -> Result<Option<String>, tokio_postgres::Error> {
    for WrittenValue { column, bytes, is_binary } in values {
        let sql = format!("EXPLAIN UPDATE {relation} SET {} = $1 WHERE false", quote_ident(&column));
        let value = Parameter(if is_binary { Cell::Binary(&bytes) } else { Cell::Text(&bytes) });
        let (begin, end) = match session {
            Session::Idle => ("BEGIN", "ROLLBACK"),
            Session::InTransaction => ("SAVEPOINT cause", "ROLLBACK TO SAVEPOINT cause; RELEASE SAVEPOINT cause"),
        };
        // A value is fitted by a plan that is made for it.
        client.batch_execute(&format!("{begin}; SET LOCAL plan_cache_mode = force_custom_plan")).await?;
        let tried = client.query_typed(&sql, &[(&value, Type::UNKNOWN)]).await;
        client.batch_execute(end).await?;
        if tried.is_err_and(|error| error.code().is_some_and(|of| of.code() == code)) {
            return Ok(Some(column));
        }
    }
    Ok(None)
}

async fn lacking_rights(client: &Client, relation: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let Some(row) = client.query_opt(RIGHTS_SQL, &[&relation]).await? else { return Ok(None) };
    let (role, schema): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let (role, may_use, lacking) = (quote_ident(&role), row.try_get::<_, bool>(2)?, row.try_get::<_, Vec<String>>(3)?);
    let mut grants = Vec::new();
    if !may_use {
        grants.push(format!("GRANT USAGE ON SCHEMA {} TO {role};", quote_ident(&schema)));
    }
    if !lacking.is_empty() {
        grants.push(format!("GRANT {} ON TABLE {relation} TO {role};", lacking.join(", ")));
    }
    if grants.is_empty() {
        return Ok(Some(format!(
            "role {role} has the rights on the table itself: see to its policies, triggers and sequences on the target"
        )));
    }
    Ok(Some(format!("on the target: {} nothing is lost meanwhile", grants.join(" "))))
}
