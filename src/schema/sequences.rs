//! The sequences' values: read from the source, set on the target, never backwards.
//!
//! A standby shows a sequence where WAL has it, which is up to 32 values ahead of the primary (`SEQ_LOG_VALS`): values are
//! left out, and none comes twice.

use tokio_postgres::Client;

use super::{Item, STAGE, State};
use crate::config::Role;
use crate::error::{Error, Kind};
use crate::postgres::{quote_literal, quote_qualified};

/// Those that the selected tables, or their partitions, own or use in their defaults; quoted.
const NAMES_SQL: &str = "\
WITH tables AS (
    SELECT relid FROM unnest($1::oid[]) w (oid), LATERAL (SELECT w.oid UNION SELECT relid::oid FROM pg_partition_tree(w.oid)) t (relid)
), sequences AS (
    SELECT d.objid AS oid FROM tables t JOIN pg_depend d ON d.refobjid = t.relid AND d.refclassid = 'pg_class'::regclass
    WHERE d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
  UNION
    SELECT d.refobjid FROM tables t JOIN pg_attrdef a ON a.adrelid = t.relid
    JOIN pg_depend d ON d.objid = a.oid AND d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass
)
SELECT n.nspname::text, c.relname::text FROM sequences s JOIN pg_class c USING (oid)
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S' ORDER BY 1, 2";

/// A sequence of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Quoted, with its schema.
    pub name: String,
    pub last_value: i64,
    /// `last_value` has been given out.
    pub is_called: bool,
}

impl Sequence {
    /// Moves the target's sequence on, in the direction in which it counts. No row comes back where it is there already.
    fn set_sql(&self) -> String {
        let (name, value, called) = (&self.name, self.last_value, self.is_called);
        let literal = quote_literal(name);
        format!(
            "SELECT pg_catalog.setval({literal}::pg_catalog.regclass, {value}, {called}) FROM {name} s \
             WHERE CASE WHEN (SELECT seqincrement > 0 FROM pg_catalog.pg_sequence \
             WHERE seqrelid = {literal}::pg_catalog.regclass) \
             THEN ({value}, {called}) > (s.last_value, s.is_called) \
             ELSE {value} < s.last_value OR ({value} = s.last_value AND {called} AND NOT s.is_called) END"
        )
    }
}

/// Reads the sequences of tables of the source.
pub async fn read(source: &Client, tables: &[u32]) -> Result<Vec<Sequence>, Error> {
    let failed = |error| Error::from_postgres(STAGE, Role::Source, error);
    let mut sequences = Vec::new();
    for row in source.query(NAMES_SQL, &[&tables]).await.map_err(failed)? {
        let name = quote_qualified(row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        let sql = format!("SELECT last_value, is_called FROM {name}");
        let row = source.query_one(&sql, &[]).await.map_err(failed)?;
        let (last_value, is_called) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        sequences.push(Sequence { name, last_value, is_called });
    }
    Ok(sequences)
}

/// What [`set`] does, as SQL.
pub fn sql(sequences: &[Sequence]) -> String {
    sequences.iter().map(|sequence| format!("{};\n", sequence.set_sql())).collect()
}

/// Sets the target's sequences.
///
/// # Errors
/// A refusal, before anything is set, if the target lacks one.
pub async fn set(target: &Client, sequences: &[Sequence]) -> Result<Vec<Item>, Error> {
    let failed = |error| Error::from_postgres(STAGE, Role::Target, error);
    let names: Vec<_> = sequences.iter().map(|sequence| sequence.name.as_str()).collect();
    let sql = "SELECT w.name FROM unnest($1::text[]) WITH ORDINALITY AS w (name, place) \
               LEFT JOIN pg_class c ON c.oid = to_regclass(w.name) \
               WHERE c.relkind IS DISTINCT FROM 'S' ORDER BY w.place";
    let rows = target.query(sql, &[&names]).await.map_err(failed)?;
    let missing: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)?;
    if !missing.is_empty() {
        let what = format!("the target has no sequence {}", missing.join(", "));
        return Err(Error::refused(STAGE, what, "`pgsluice schema` makes those of the tables that it makes"));
    }
    let mut items = Vec::new();
    for sequence in sequences {
        let object = format!("sequence {}", sequence.name);
        let row = target.query_opt(&sequence.set_sql(), &[]).await.map_err(|error| {
            let kind = match Kind::from_postgres(Role::Target, error) {
                Kind::Server { error, .. } => Kind::Statement { object: object.clone(), error },
                other => other,
            };
            Error::new(STAGE, kind)
        })?;
        let state = if row.is_some() { State::Set } else { State::Present };
        items.push(Item { object, state, reason: None });
    }
    Ok(items)
}
