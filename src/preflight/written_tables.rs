//! What is asked about the target's tables before a row goes there, by `setup` and by each session.
//!
//! In: the tables that are replicated, and where their rows go. Out: nothing, or a refusal that names each table and what to do.
//! Each of these would let rows vanish, or come twice, with no error that says so.

use tokio_postgres::Client;

use crate::config::{Config, Role};
use crate::error::{Error, Stage};
use crate::postgres::quote_ident;
use crate::source::publication::PublishedTable;
use crate::transform::Mapping;

const STAGE: Stage = Stage::Apply;

/// A row a table that is there, with what of it is wrong.
const TABLES_SQL: &str = "\
SELECT w.name, row_security_active(c.oid), c.relforcerowsecurity AND pg_has_role(c.relowner, 'USAGE'),
    ARRAY(SELECT l.oid::regclass::text FROM pg_class l WHERE l.oid IN (SELECT own.oid) AND l.relkind = 'f'),
    ARRAY(SELECT l.oid::regclass::text FROM pg_class l WHERE l.oid IN (SELECT own.oid) AND l.relpersistence = 'u' AND l.relkind = 'r')
FROM unnest($1::text[]) AS w (name) JOIN pg_class c ON c.oid = to_regclass(w.name)
ORDER BY 1";

/// # Errors
/// One refusal with all tables of the target whose rows would be filtered, would commit apart from progress, or would not survive a
/// crash.
pub async fn check(
    target: &Client,
    config: &Config,
    tables: &[PublishedTable],
    mapping: &Mapping,
) -> Result<(), Error> {
    let failed = |error| Error::from_postgres(STAGE, Role::Target, error);
    let names: Vec<_> = tables.iter().map(|published| mapping.target(&published.table).to_string()).collect();
    let own = "SELECT c.oid UNION SELECT p.relid::oid FROM pg_partition_tree(c.oid) p";
    let (mut what, mut mend) = (Vec::new(), Vec::new());
    let role = quote_ident(&config.target.user);
    for row in target.query(&TABLES_SQL.replace("SELECT own.oid", own), &[&names]).await.map_err(failed)? {
        let name: String = row.try_get(0).map_err(failed)?;
        if row.try_get(1).map_err(failed)? {
            what.push(format!("row security of {name} on the target applies to role {role}, which would see and write a part of the rows"));
            mend.push(if row.try_get(2).map_err(failed)? {
                format!("ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY")
            } else {
                format!("ALTER ROLE {role} BYPASSRLS")
            });
        }
        for leaf in row.try_get::<_, Vec<String>>(3).map_err(failed)? {
            what.push(format!("{leaf}, of {name} on the target, is a foreign table: what is written there does not commit together with progress"));
            mend.push(format!("ALTER TABLE {name} DETACH PARTITION {leaf}, with a table of the target in its place"));
        }
        for leaf in row.try_get::<_, Vec<String>>(4).map_err(failed)? {
            what.push(format!("{leaf} on the target is UNLOGGED: a crash empties it, and its rows do not come again"));
            mend.push(format!("ALTER TABLE {leaf} SET LOGGED"));
        }
    }
    if what.is_empty() {
        return Ok(());
    }
    mend.dedup();
    let mend = format!("on the target: {}; or exclude the tables in [tables]", mend.join("; "));
    Err(Error::refused(STAGE, what.join("\n"), mend))
}
