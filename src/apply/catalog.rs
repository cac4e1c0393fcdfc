//! What the target's catalog says of tables.

use std::collections::HashMap;
use std::iter;

use pgsluice_proto::Oid;
use tokio_postgres::{Client, Row};

use crate::config::Role;
use crate::error::{Error, Kind, Stage};
use crate::postgres::{OwnRows, quote_qualified};

/// A table of the target, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetTable {
    pub oid: u32,
    /// Tables that its foreign keys refer to, other than itself.
    pub parents: Vec<u32>,
    /// Quoted, with its schema.
    pub name: String,
    /// COPY may write to it. The client library loses its connection over a COPY that the server refuses to start.
    pub can_copy: bool,
    /// Rows may lie in partitions, and TRUNCATE reaches them.
    pub is_partitioned: bool,
    /// The role owns every sequence that TRUNCATE … RESTART IDENTITY restarts.
    pub may_restart: bool,
    pub columns: Vec<TargetColumn>,
    /// Of each unique index that is checked at once, the names of its columns.
    pub unique_keys: Vec<Vec<String>>,
}

impl TargetTable {
    /// As UPDATE, DELETE and TRUNCATE name it: with its partitions, and without tables that inherit from it, whose
    /// changes come under their own names.
    pub fn alone(&self) -> String {
        OwnRows::of(&self.name, self.is_partitioned).to_string()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetColumn {
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
    /// The type as a cast takes it: quoted, with its schema, without modifier.
    pub type_name: String,
    /// Its values are arrays themselves.
    pub is_array: bool,
    /// Computed by the target, so nobody can write it.
    pub is_generated: bool,
    /// GENERATED ALWAYS AS IDENTITY: an insert can override it, an update cannot.
    pub is_identity_always: bool,
    pub is_primary_key: bool,
    /// The operator that the type's default btree calls equality, where it does not lie in `pg_catalog`.
    pub foreign_equality: Option<String>,
    pub equality: Equality,
    /// An interval, on a server that knows no infinite ones.
    pub is_finite_interval: bool,
}

impl TargetColumn {
    /// Binary values of this type of the source are values of the column.
    pub fn fits_binary(&self, type_oid: Oid) -> bool {
        is_stable_in_binary(type_oid) && self.type_oid == type_oid.0
    }

    /// The same for all values that a source of this major version may have.
    pub fn fits_binary_of(&self, type_oid: Oid, source_major: u32) -> bool {
        // Infinite since 17; before, the same bytes were a very long time.
        self.fits_binary(type_oid) && !(self.is_finite_interval && source_major >= 17)
    }
}

/// What `IS NOT DISTINCT FROM` says of two values of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Equality {
    /// Nothing: json has no equality, boxes of equal area are equal, and composites may hold such.
    None,
    /// They mean the same, though they may show it differently, as the numerics 1.0 and 1.00 do.
    Loose,
    /// They are the same.
    Exact,
}

/// One row a column, with the place of its table in the list; a table without columns is one row of NULLs. Domains are
/// followed to their base type, column by column: a session of ours does not hash, and would look through all of them for
/// each. One query for all tables: planning it takes longer than answering it.
const COLUMNS_SQL: &str = "\
WITH wanted AS MATERIALIZED (
    SELECT w.place, to_regclass(w.name)::oid AS oid FROM unnest($1::text[]) WITH ORDINALITY AS w (name, place)
)
SELECT c.relkind::text, a.attname::text, a.atttypid, tn.nspname::text, t.typname::text,
    a.attgenerated <> '', a.attidentity = 'a',
    COALESCE(a.attnum = ANY (pk.indkey), false),
    (SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname)
     FROM pg_opclass k
     JOIN pg_amop m ON m.amopfamily = k.opcfamily AND m.amopstrategy = 3
                   AND m.amoplefttype = k.opcintype AND m.amoprighttype = k.opcintype
     JOIN pg_am am ON am.oid = k.opcmethod AND am.amname = 'btree'
     JOIN pg_operator o ON o.oid = m.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace
     WHERE k.opcdefault AND k.opcintype = bt.oid AND n.nspname <> 'pg_catalog' LIMIT 1),
    et.typtype IN ('e', 'r', 'm') OR EXISTS (
        SELECT FROM pg_opclass k JOIN pg_am am ON am.oid = k.opcmethod AND am.amname IN ('btree', 'hash')
        WHERE k.opcdefault AND et.typnamespace = 'pg_catalog'::regnamespace AND (k.opcintype = et.oid OR EXISTS (
            SELECT FROM pg_cast f WHERE f.castsource = et.oid AND f.casttarget = k.opcintype
                                    AND f.castmethod = 'b' AND f.castcontext = 'i'))),
    bt.oid = ANY (
        '{bool,bytea,\"char\",name,int2,int4,int8,oid,text,varchar,uuid,date,time,timestamp,timestamptz}'::regtype[]
    ) AND NOT EXISTS (SELECT FROM pg_collation l WHERE l.oid = a.attcollation AND NOT l.collisdeterministic),
    bt.typelem <> 0 AND bt.typlen = -1,
    c.oid, ARRAY(SELECT f.confrelid FROM pg_constraint f
                 WHERE f.conrelid = c.oid AND f.contype = 'f' AND f.confrelid <> c.oid),
    has_table_privilege(c.oid, 'INSERT') AND NOT row_security_active(c.oid), w.place,
    bt.oid IN ('interval'::regtype, 'interval[]'::regtype) AND current_setting('server_version_num')::int < 170000,
    CASE WHEN row_number() OVER (PARTITION BY w.place ORDER BY a.attnum) = 1 THEN ARRAY(
        SELECT (SELECT json_agg(k.attname)::text FROM pg_attribute k
                WHERE k.attrelid = i.indrelid AND k.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]))
        FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
                          AND i.indpred IS NULL AND i.indexprs IS NULL) END,
    CASE WHEN row_number() OVER (PARTITION BY w.place ORDER BY a.attnum) = 1 THEN NOT EXISTS (
        SELECT FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
        AND d.refobjsubid > 0 AND NOT pg_has_role(s.relowner, 'USAGE')
        AND d.refobjid IN (SELECT c.oid UNION ALL SELECT p.relid::oid FROM pg_partition_tree(c.oid) p)) END,
     a.atttypmod
FROM wanted w
JOIN pg_class c ON c.oid = w.oid
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_namespace tn ON tn.oid = t.typnamespace
LEFT JOIN LATERAL (
    WITH RECURSIVE base AS (
        SELECT t.oid AS type, t.typtype, t.typbasetype
      UNION ALL
        SELECT p.oid, p.typtype, p.typbasetype FROM base JOIN pg_type p ON p.oid = base.typbasetype WHERE base.typtype = 'd'
    )
    SELECT type FROM base WHERE typtype <> 'd'
) b ON true
LEFT JOIN pg_type bt ON bt.oid = b.type
LEFT JOIN pg_type et ON et.oid = CASE WHEN bt.typelem <> 0 AND bt.typlen = -1 THEN bt.typelem ELSE bt.oid END
LEFT JOIN pg_index pk ON pk.indrelid = c.oid AND pk.indisprimary
ORDER BY w.place, a.attnum";

/// Reads what the catalog says of tables, each a schema and a name; `None` for those that are not there.
pub async fn load<'a>(
    client: &Client,
    tables: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<Option<TargetTable>>, Error> {
    let names: Vec<_> = tables.map(|(schema, name)| quote_qualified(schema, name)).collect();
    // Those of a backlog are the same table again and again, described anew by each TRUNCATE, or by many that share it.
    let mut asked = names.clone();
    asked.sort_unstable();
    asked.dedup();
    let failed = |error| Error::from_postgres(Stage::Apply, Role::Target, error);
    let rows = client.query(COLUMNS_SQL, &[&asked]).await.map_err(failed)?;
    let places: Vec<i64> = rows.iter().map(|row| row.try_get(15)).collect::<Result<_, _>>().map_err(failed)?;
    let table_at = |place, name| {
        let start = places.partition_point(|&other| other < place);
        table(name, &rows[start..start + places[start..].partition_point(|&other| other == place)])
    };
    let place: HashMap<_, _> = iter::zip(asked, 1..).collect();
    names.into_iter().map(|name| table_at(place[&name], name)).collect()
}

fn table(name: String, rows: &[Row]) -> Result<Option<TargetTable>, Error> {
    let failed = |error| Error::from_postgres(Stage::Apply, Role::Target, error);
    let Some(first) = rows.first() else { return Ok(None) };
    let kind: String = first.try_get(0).map_err(failed)?;
    if !matches!(kind.as_str(), "r" | "p") {
        let what = format!("{name} on the target is not a table (relkind {kind})");
        return Err(Error::refused(Stage::Apply, what, "make it a table, or exclude it in [tables]"));
    }
    Ok(Some(TargetTable {
        oid: first.try_get(12).map_err(failed)?,
        parents: first.try_get(13).map_err(failed)?,
        can_copy: first.try_get(14).map_err(failed)?,
        is_partitioned: kind == "p",
        unique_keys: unique_keys(first)?,
        may_restart: first.try_get(18).map_err(failed)?,
        columns: rows.iter().filter_map(|row| column(row).transpose()).collect::<Result<_, _>>().map_err(failed)?,
        name,
    }))
}

/// They come as a JSON array each.
fn unique_keys(row: &Row) -> Result<Vec<Vec<String>>, Error> {
    let keys: Vec<String> = row.try_get(17).map_err(|error| Error::from_postgres(Stage::Apply, Role::Target, error))?;
    let names = |key: &String| {
        serde_json::from_str(key).map_err(|error| {
            let what = format!("the columns of an index are no list of names: {error}");
            Error::new(Stage::Apply, Kind::Protocol { role: Role::Target, what })
        })
    };
    keys.iter().map(names).collect()
}

fn column(row: &Row) -> Result<Option<TargetColumn>, tokio_postgres::Error> {
    let Some(name) = row.try_get::<_, Option<String>>(1)? else { return Ok(None) };
    Ok(Some(TargetColumn {
        name,
        type_oid: row.try_get(2)?,
        type_modifier: row.try_get(19)?,
        type_name: quote_qualified(row.try_get(3)?, row.try_get(4)?),
        is_array: row.try_get(11)?,
        is_generated: row.try_get(5)?,
        is_identity_always: row.try_get(6)?,
        is_primary_key: row.try_get(7)?,
        foreign_equality: row.try_get(8)?,
        equality: match (row.try_get(9)?, row.try_get(10)?) {
            (false, _) => Equality::None,
            (true, false) => Equality::Loose,
            (true, true) => Equality::Exact,
        },
        is_finite_interval: row.try_get::<_, Option<bool>>(16)?.unwrap_or(false),
    }))
}

/// Whether values of this type travel in binary: built in, so that its bytes mean the same in every cluster, and not one
/// of the exceptions.
pub fn is_stable_in_binary(type_oid: Oid) -> bool {
    /// Names of objects travel as OIDs: `regproc`, `regprocedure`, `regoper`, `regoperator`, `regclass`, `regtype`,
    /// `regconfig`, `regdictionary`, `regnamespace`, `regrole`, `regcollation` and their arrays (`pg_type.dat`).
    const OBJECT_NAMES: [u32; 22] = [
        24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191, 1008, 2207, 2208, 2209, 2210, 2211, 3735, 3770,
        4090, 4097, 4192,
    ];
    /// The source fails to write an array of a type without binary output: `aclitem[]`, `gtsvector[]`.
    const UNWRITABLE: [u32; 2] = [1034, 3644];
    /// The target fails to read an empty one (`tsqueryrecv`, `oidvectorrecv`, `int2vectorrecv`): `tsquery`, `oidvector`,
    /// `int2vector` and their arrays.
    const UNREADABLE: [u32; 6] = [3615, 3645, 30, 1013, 22, 1006];
    let exceptions = [OBJECT_NAMES.as_slice(), &UNWRITABLE, &UNREADABLE];
    type_oid < Oid::FIRST_UNPINNED && !exceptions.iter().any(|oids| oids.contains(&type_oid.0))
}
