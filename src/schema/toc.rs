//! The table of contents of a dump: what `pg_restore --list --verbose` prints comes in, [`Entry`]s go out.
//!
//! ```text
//!  229; 1259 16789 TABLE shop item owner       dump id; catalog, object: type, schema, name, owner
//!  ;       depends on: 223 242 7               dump ids
//! ```
//!
//! Types, schemas and names are separated by spaces and may hold spaces, so only what no name can feign is read of a
//! line: the numbers, and the type as the beginning of the rest. Everything else about an object is asked of the catalog,
//! by its OID.

use crate::error::{Error, Kind, Stage};

/// What `pg_dump` calls an object within one archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DumpId(pub u32);

/// The catalog and the OID by which the source knows an object, as in `pg_depend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    pub class: u32,
    pub oid: u32,
}

/// `pg_class`, whose OID is the same in every cluster.
pub const PG_CLASS: u32 = 1259;

/// What kind of thing an entry makes, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    Table,
    TableAttach,
    Default,
    Sequence,
    SequenceOwnedBy,
    View,
    Index,
    IndexAttach,
    /// A primary key, a unique or an exclusion constraint.
    Constraint,
    CheckConstraint,
    ForeignKey,
    Statistics,
    Trigger,
    Rule,
    Policy,
    RowSecurity,
    Comment,
    Schema,
    Extension,
    /// The name of a base type, for the functions that the type itself is then made of.
    ShellType,
    /// Made where something that is copied depends on it: types, functions, collations, operators and so on.
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: DumpId,
    pub object: ObjectId,
    pub kind: EntryKind,
    /// Type, schema, name and owner, as listed.
    pub label: String,
    pub depends_on: Vec<DumpId>,
}

impl Entry {
    /// This is the type whose shell the other is: nothing else of an archive has its name.
    pub fn is_type_of(&self, shell: &Entry) -> bool {
        let name = shell.label.strip_prefix(SHELL_TYPE);
        shell.kind == EntryKind::ShellType && name.is_some() && self.label.strip_prefix("TYPE ") == name
    }

    /// The line that has `pg_restore --use-list` take this entry.
    pub fn line(&self) -> String {
        format!("{}; {} {} {}\n", self.id.0, self.object.class, self.object.oid, self.label)
    }
}

/// # Errors
/// If the list is not laid out as `pg_restore` lays it out.
pub fn parse(list: &str) -> Result<Vec<Entry>, Error> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in list.lines().filter(|line| !line.is_empty()) {
        let strange = || {
            let what = format!("its list has a line that is not understood: {line}");
            Error::new(Stage::Schema, Kind::Program { program: "pg_restore".to_owned(), what })
        };
        match line.strip_prefix(';') {
            Some(comment) => {
                let (Some(ids), Some(entry)) = (comment.trim_start().strip_prefix("depends on:"), entries.last_mut())
                else {
                    continue;
                };
                let ids = ids.split_ascii_whitespace().map(|id| id.parse().map(DumpId));
                entry.depends_on = ids.collect::<Result<_, _>>().map_err(|_| strange())?;
            }
            None => entries.push(parse_entry(line).ok_or_else(strange)?),
        }
    }
    Ok(entries)
}

fn parse_entry(line: &str) -> Option<Entry> {
    let (id, rest) = line.split_once("; ")?;
    let (class, rest) = rest.split_once(' ')?;
    let (oid, label) = rest.split_once(' ')?;
    let class = class.parse().ok()?;
    Some(Entry {
        id: DumpId(id.parse().ok()?),
        object: ObjectId { class, oid: oid.parse().ok()? },
        kind: kind(class, label),
        label: label.to_owned(),
        depends_on: Vec::new(),
    })
}

/// Before the label of a type, that of its shell.
const SHELL_TYPE: &str = "SHELL TYPE ";

fn kind(class: u32, label: &str) -> EntryKind {
    // What is no object of its own has no catalog, which tells a TABLE of a schema "ATTACH" from a TABLE ATTACH.
    const PARTS: [(&str, EntryKind); 6] = [
        (SHELL_TYPE, EntryKind::ShellType),
        ("TABLE ATTACH ", EntryKind::TableAttach),
        ("SEQUENCE OWNED BY ", EntryKind::SequenceOwnedBy),
        ("INDEX ATTACH ", EntryKind::IndexAttach),
        ("COMMENT ", EntryKind::Comment),
        ("ROW SECURITY ", EntryKind::RowSecurity),
    ];
    const OBJECTS: [(&str, EntryKind); 16] = [
        ("TABLE ", EntryKind::Table),
        ("FOREIGN TABLE ", EntryKind::Table),
        ("SEQUENCE ", EntryKind::Sequence),
        ("VIEW ", EntryKind::View),
        ("MATERIALIZED VIEW ", EntryKind::View),
        ("DEFAULT ", EntryKind::Default),
        ("INDEX ", EntryKind::Index),
        ("CONSTRAINT ", EntryKind::Constraint),
        ("CHECK CONSTRAINT ", EntryKind::CheckConstraint),
        ("FK CONSTRAINT ", EntryKind::ForeignKey),
        ("STATISTICS ", EntryKind::Statistics),
        ("TRIGGER ", EntryKind::Trigger),
        ("RULE ", EntryKind::Rule),
        ("POLICY ", EntryKind::Policy),
        ("SCHEMA ", EntryKind::Schema),
        ("EXTENSION ", EntryKind::Extension),
    ];
    let words = if class == 0 { PARTS.as_slice() } else { OBJECTS.as_slice() };
    words.iter().find(|(word, _)| label.starts_with(word)).map_or(EntryKind::Other, |(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
;
; Archive created at 2026-01-01 00:00:00 UTC
;     dbname: app
;
7; 2615 16410 SCHEMA - shop postgres
229; 1259 16789 TABLE ATTACH item postgres
;\tdepends on: 223 7
2738; 0 0 TABLE ATTACH shop depends on: 1 postgres
;\tdepends on: 231 230
2; 3079 16435 EXTENSION - vector 
2943; 0 16854 ROW SECURITY shop base postgres
865; 0 0 SHELL TYPE shop fixed postgres
864; 1247 16386 TYPE shop fixed postgres
";

    #[test]
    fn entries_have_what_they_depend_on() {
        let entries = parse(LIST).unwrap();
        let seen: Vec<_> =
            entries.iter().map(|one| (one.id.0, one.object.oid, one.kind, one.depends_on.len())).collect();
        let expected = [
            (7, 16410, EntryKind::Schema, 0),
            // A table of a schema with an awkward name.
            (229, 16789, EntryKind::Table, 2),
            (2738, 0, EntryKind::TableAttach, 2),
            (2, 16435, EntryKind::Extension, 0),
            (2943, 16854, EntryKind::RowSecurity, 0),
            (865, 0, EntryKind::ShellType, 0),
            (864, 16386, EntryKind::Other, 0),
        ];
        assert_eq!(seen, expected);
        assert!(entries[6].is_type_of(&entries[5]) && !entries[5].is_type_of(&entries[6]));
        assert_eq!(entries[2].depends_on, [DumpId(231), DumpId(230)]);
        assert_eq!(entries[3].line(), "2; 3079 16435 EXTENSION - vector \n");
    }

    #[test]
    fn what_is_not_a_list_is_refused() {
        assert!(parse("pg_restore: something else").is_err());
        assert!(parse("1; 2 3 TABLE a b c\n;\tdepends on: x").is_err());
    }
}
