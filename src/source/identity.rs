//! What makes a published table the table that it is: its OID and its membership in the publication; and what makes a
//! column the column that it is: its attnum.
//!
//! In: the catalogs of the server that decodes. Out: a [`TableIdentity`], which the target keeps for the rows that it has,
//! and how one differs from another.
//!
//! **Always holds:** a name proves nothing. Two identities are of the same table only if they share the OID and a row of the
//! publication's catalogs that holds it, and no name of a column has gone over to another attnum.
//!
//! Why not log the DDL instead: a standby sees the catalogs, not the statements, and they may run while no engine looks.

use pgsluice_proto::Lsn;
use serde::{Deserialize, Serialize};

/// A published table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableIdentity {
    pub oid: u32,
    /// OIDs of the catalog rows by which the publication holds the table. A table that leaves and returns gets another.
    /// Empty in what the target keeps of a table that has left.
    pub members: Vec<u32>,
    pub via: Via,
    /// The `xmin` of the publication's row: another once its options or its owner were changed.
    #[serde(default)]
    pub publication_xmin: Option<String>,
    /// The `xmin` of the table's dependency on its schema, which only `SET SCHEMA` changes.
    pub schema_xmin: Option<String>,
    pub file: RelationFile,
    /// By attnum, those that were dropped included.
    pub columns: Vec<IdentityColumn>,
    /// Partitions that hold rows.
    #[serde(default)]
    pub leaves: Vec<Leaf>,
    /// How the rows on the target are known to differ from the source's, until the table is copied again.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What of the publication holds the table; the closest one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    #[default]
    Table,
    Schema,
    All,
}

/// Both change when the table is written anew, the file alone when it is truncated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelationFile {
    pub filenode: u32,
    pub toast: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityColumn {
    pub attnum: i16,
    /// `None` once it is dropped.
    pub name: Option<String>,
    pub type_oid: u32,
    pub typmod: i32,
    /// Rows carry it: no column list leaves it out, and it is not a generated column that is not published.
    pub listed: bool,
    /// The catalog had it so when the source was at this position. 0 for what was there when the table was copied.
    #[serde(default)]
    pub seen: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    pub oid: u32,
    /// Quoted, with its schema.
    pub name: String,
    pub file: RelationFile,
    /// The `xmin` of its row of `pg_inherits`: another once it was detached and attached again.
    pub attached_xmin: Option<String>,
    /// `pg_class.relpersistence`.
    pub persistence: String,
    /// `pg_class.relkind`.
    pub kind: String,
}

/// A [`TableIdentity`] as JSON, in a query that has the table's `pg_class` row as `c`, the names of the columns that are
/// published as `listed`, or NULL for all, and the publication's name as `$1`.
pub(super) fn sql(server_version: i32) -> String {
    // Before 15 there were no schemas in publications.
    let schemas = match server_version {
        150_000.. => {
            "UNION ALL SELECT pn.oid, 1, 'schema' FROM pg_publication_namespace pn \
             JOIN pg_publication pb ON pb.oid = pn.pnpubid WHERE pb.pubname = $1 AND pn.pnnspid = c.relnamespace"
        }
        _ => "",
    };
    format!(
        "(WITH members (oid, place, via) AS (SELECT pr.oid, 0, 'table' FROM pg_publication_rel pr \
            JOIN pg_publication pb ON pb.oid = pr.prpubid WHERE pb.pubname = $1 AND pr.prrelid = c.oid \
            {schemas} \
            UNION ALL SELECT pb.oid, 2, 'all' FROM pg_publication pb WHERE pb.pubname = $1 AND pb.puballtables) \
        SELECT jsonb_build_object( \
            'oid', c.oid::bigint, \
            'members', COALESCE((SELECT jsonb_agg(m.oid::bigint ORDER BY m.oid) FROM members m), '[]'), \
            'via', COALESCE((SELECT m.via FROM members m ORDER BY m.place LIMIT 1), 'table'), \
            'publication_xmin', (SELECT pb.xmin::text FROM pg_publication pb WHERE pb.pubname = $1), \
            'schema_xmin', (SELECT d.xmin::text FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
                AND d.objid = c.oid AND d.objsubid = 0 AND d.refclassid = 'pg_namespace'::regclass LIMIT 1), \
            'file', jsonb_build_object('filenode', c.relfilenode::bigint, 'toast', c.reltoastrelid::bigint), \
            'columns', COALESCE((SELECT jsonb_agg(jsonb_build_object('attnum', i.attnum, \
                'name', CASE WHEN NOT i.attisdropped THEN i.attname::text END, 'type_oid', i.atttypid::bigint, \
                'typmod', i.atttypmod, 'listed', (listed IS NULL OR listed ? i.attname::text) AND (i.attgenerated = '' OR \
                    listed IS NOT NULL AND current_setting('server_version_num')::int >= 180000)) ORDER BY i.attnum) \
                FROM pg_attribute i WHERE i.attrelid = c.oid AND i.attnum > 0), '[]'), \
            'leaves', CASE WHEN c.relkind = 'p' THEN COALESCE((SELECT jsonb_agg(jsonb_build_object('oid', l.oid::bigint, \
                'name', format('%I.%I', ln.nspname, l.relname), \
                'file', jsonb_build_object('filenode', l.relfilenode::bigint, 'toast', l.reltoastrelid::bigint), \
                'attached_xmin', (SELECT h.xmin::text FROM pg_inherits h WHERE h.inhrelid = l.oid LIMIT 1), \
                'persistence', l.relpersistence::text, 'kind', l.relkind::text) ORDER BY l.oid) \
                FROM pg_partition_tree(c.oid) lt JOIN pg_class l ON l.oid = lt.relid \
                JOIN pg_namespace ln ON ln.oid = l.relnamespace WHERE lt.isleaf AND l.oid <> c.oid), '[]') \
                ELSE '[]' END)::text)"
    )
}

impl TableIdentity {
    /// What may have happened to its rows unseen; a reason to say so, not to copy.
    pub fn doubt(&self, now: &TableIdentity) -> Option<&'static str> {
        // A table that is published by its own name cannot be unlogged meanwhile, and its TRUNCATE is in the stream. Without a TOAST
        // table the two cannot be told apart.
        let is_rewritten = self.file.filenode != now.file.filenode
            && (self.file.toast != now.file.toast || now.file.toast == 0)
            && now.leaves.is_empty();
        (now.via != Via::Table && is_rewritten).then_some(
            "was written anew on the source (VACUUM FULL, CLUSTER, ALTER TABLE or TRUNCATE): if it was SET UNLOGGED, what was \
             written to it until SET LOGGED is not in the stream",
        )
    }

    /// Why what is published under the name now is not what the target has rows of; `None` where it is.
    pub fn replaced_by(&self, now: &TableIdentity) -> Option<String> {
        if self.oid != now.oid {
            let why =
                "another table has that name on the source: it was dropped and made again, or tables were renamed";
            return Some(format!("{why} (OID {}, before {})", now.oid, self.oid));
        }
        if !self.members.iter().any(|member| now.members.contains(member)) {
            return Some("it had left the publication, or other columns or rows of it were published".to_owned());
        }
        if (self.via, now.via) == (Via::Schema, Via::Schema) && self.schema_xmin != now.schema_xmin {
            return Some("it was moved out of its schema, and so out of the publication, and back".to_owned());
        }
        now.columns.iter().find_map(|column| {
            let name = column.name.as_ref()?;
            let known = self.attnum_of(name)?;
            if known.attnum != column.attnum {
                let why = "columns were dropped, added or renamed, and";
                return Some(format!("{why} {} is another column than the one with that name before", quoted(name)));
            }
            let joined = column.listed && !known.listed;
            joined.then(|| format!("column {} was not published before", quoted(name)))
        })
    }

    /// Columns whose values the target has and that a column list leaves out now.
    pub fn left_out_by(&self, now: &TableIdentity) -> Vec<String> {
        let is_left_out = |column: &&IdentityColumn| {
            let known = column.name.as_ref().and_then(|name| self.attnum_of(name));
            !column.listed && known.is_some_and(|known| known.listed && known.attnum == column.attnum)
        };
        now.columns.iter().filter(is_left_out).filter_map(|column| column.name.clone()).collect()
    }

    /// It has the same columns under the same numbers and names, and is the same table.
    pub fn is_like(&self, other: &TableIdentity) -> bool {
        let shape = |one: &TableIdentity| {
            let live = one.columns.iter().filter(|column| column.name.is_some());
            live.map(|column| (column.attnum, column.name.clone(), column.type_oid, column.typmod, column.listed))
                .collect::<Vec<_>>()
        };
        self.replaced_by(other).is_none() && shape(self) == shape(other)
    }

    /// What is to be kept of both, where `now` does not replace this: every name under which values of a column have come. What
    /// is new in it was so when the source was at `position`.
    pub fn followed_by(&self, now: &TableIdentity, position: Lsn) -> TableIdentity {
        let mut columns = self.columns.clone();
        for column in &now.columns {
            match columns.iter_mut().find(|one| (one.attnum, &one.name) == (column.attnum, &column.name)) {
                Some(known) => {
                    *known = IdentityColumn { seen: known.seen, ..column.clone() };
                }
                None => columns.push(IdentityColumn { seen: position.as_u64(), ..column.clone() }),
            }
        }
        columns.sort_by_key(|column| (column.attnum, column.seen));
        TableIdentity { columns, notes: self.notes.clone(), ..now.clone() }
    }

    /// As it is, for rows that were on the target before anybody looked, when the source was at `position`.
    pub fn adopted(&self, position: Lsn) -> TableIdentity {
        let seen = |column: &IdentityColumn| match column.name {
            Some(_) => column.clone(),
            None => IdentityColumn { seen: position.as_u64(), ..column.clone() },
        };
        TableIdentity { columns: self.columns.iter().map(seen).collect(), ..self.clone() }
    }

    /// The column that has had this name.
    pub fn attnum_of(&self, name: &str) -> Option<&IdentityColumn> {
        self.columns.iter().find(|column| column.name.as_deref() == Some(name))
    }

    /// The attnum was dropped before anything that commits from `commit_lsn` on.
    pub fn had_dropped(&self, attnum: i16, commit_lsn: Lsn) -> bool {
        let is = |column: &IdentityColumn| column.attnum == attnum && column.name.is_none();
        self.columns.iter().any(|column| is(column) && column.seen <= commit_lsn.as_u64())
    }

    /// A column of a description, by the names that it has in order of the attnums, that cannot be the one that the target has
    /// under its name.
    pub fn misnamed<'a>(&self, names: impl Iterator<Item = &'a str>, commit_lsn: Lsn) -> Option<&'a str> {
        let (mut before, mut unknown) = (0, 0);
        for name in names {
            let Some(IdentityColumn { attnum, .. }) = self.attnum_of(name) else {
                unknown += 1;
                continue;
            };
            let room = (before + 1..*attnum).filter(|attnum| !self.had_dropped(*attnum, commit_lsn)).count();
            if *attnum <= before || room < unknown {
                return Some(name);
            }
            (before, unknown) = (*attnum, 0);
        }
        None
    }
}

fn quoted(name: &str) -> String {
    crate::postgres::quote_ident(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(attnum: i16, name: Option<&str>) -> IdentityColumn {
        let name = name.map(str::to_owned);
        IdentityColumn { attnum, name, type_oid: 23, typmod: -1, listed: true, seen: 0 }
    }

    fn table(columns: &[(i16, Option<&str>)]) -> TableIdentity {
        let columns = columns.iter().map(|(attnum, name)| column(*attnum, *name)).collect();
        TableIdentity { oid: 7, members: vec![1], columns, ..TableIdentity::default() }
    }

    #[test]
    fn a_name_that_goes_over_to_another_attnum_is_another_column_however_long_ago() {
        let known = table(&[(1, Some("id")), (2, Some("v"))]);
        let renamed = table(&[(1, Some("id")), (2, Some("w"))]);
        assert_eq!(known.replaced_by(&renamed), None);
        let followed = known.followed_by(&renamed, Lsn::new(9));
        assert_eq!(followed.attnum_of("v").map(|column| column.seen), Some(0));
        assert_eq!(followed.attnum_of("w").map(|column| (column.attnum, column.seen)), Some((2, 9)));
        assert_eq!(followed.replaced_by(&known), None);
        let again = table(&[(1, Some("id")), (2, Some("w")), (3, Some("v"))]);
        assert!(followed.replaced_by(&again).is_some_and(|why| why.contains("\"v\"")));
    }

    #[test]
    fn a_table_is_its_oid_and_one_of_its_memberships() {
        let known = table(&[(1, Some("id"))]);
        let other = |oid, members: &[u32]| TableIdentity { oid, members: members.to_vec(), ..known.clone() };
        assert_eq!(known.replaced_by(&other(7, &[1, 2])), None);
        assert!(known.replaced_by(&other(8, &[1])).is_some());
        assert!(known.replaced_by(&other(7, &[2])).is_some());
        assert!(other(7, &[]).replaced_by(&known).is_some());
        let by_schema =
            |xmin: &str| TableIdentity { via: Via::Schema, schema_xmin: Some(xmin.into()), ..known.clone() };
        assert_eq!(by_schema("1").replaced_by(&by_schema("1")), None);
        assert!(by_schema("1").replaced_by(&by_schema("2")).is_some());
    }

    #[test]
    fn a_description_has_the_names_in_order_of_the_attnums() {
        let known = table(&[(1, Some("id")), (2, None), (3, Some("v")), (4, Some("w"))]);
        let misnamed = |names: &[&'static str]| known.misnamed(names.iter().copied(), Lsn::new(5));
        assert_eq!(misnamed(&["id", "v", "w"]), None);
        assert_eq!(misnamed(&["id", "v", "w", "new"]), None);
        assert_eq!(misnamed(&["id", "x", "w"]), None);
        // Swapped; and two columns where one is.
        assert_eq!(misnamed(&["id", "w", "v"]), Some("v"));
        assert_eq!(misnamed(&["id", "x", "v"]), Some("v"));
    }

    #[test]
    fn what_a_column_list_leaves_out_and_takes_in() {
        let known = table(&[(1, Some("id")), (2, Some("v"))]);
        let mut narrower = known.clone();
        narrower.columns[1].listed = false;
        assert_eq!(known.left_out_by(&narrower), ["v"]);
        assert_eq!(known.left_out_by(&known), Vec::<String>::new());
        assert!(narrower.replaced_by(&known).is_some());
    }
}
