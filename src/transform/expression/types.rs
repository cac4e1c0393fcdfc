//! The types that expressions know, and which of them PostgreSQL turns into which by itself.
//!
//! The categories, the preferred types and the implicit casts are those of `pg_type.dat` and `pg_cast.dat`.

use std::fmt;

use pgsluice_proto::Oid;

/// A built-in type of PostgreSQL, or the type of a literal that has not got one yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Bool,
    Int2,
    Int4,
    Int8,
    Numeric,
    Float4,
    Float8,
    Text,
    Varchar,
    /// `character(n)`, padded with blanks that mean nothing.
    Bpchar,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Uuid,
    Json,
    Jsonb,
    /// A quoted literal or NULL before its surroundings give it a type.
    Unknown,
}

/// What of `typcategory` overload resolution asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Category {
    Boolean,
    Number,
    String,
    DateTime,
    Timespan,
    User,
    Unknown,
}

const ALL: [(Type, u32, &str); 18] = [
    (Type::Bool, 16, "boolean"),
    (Type::Int2, 21, "smallint"),
    (Type::Int4, 23, "integer"),
    (Type::Int8, 20, "bigint"),
    (Type::Numeric, 1700, "numeric"),
    (Type::Float4, 700, "real"),
    (Type::Float8, 701, "double precision"),
    (Type::Text, 25, "text"),
    (Type::Varchar, 1043, "character varying"),
    (Type::Bpchar, 1042, "character"),
    (Type::Date, 1082, "date"),
    (Type::Time, 1083, "time without time zone"),
    (Type::Timestamp, 1114, "timestamp without time zone"),
    (Type::Timestamptz, 1184, "timestamp with time zone"),
    (Type::Interval, 1186, "interval"),
    (Type::Uuid, 2950, "uuid"),
    (Type::Json, 114, "json"),
    (Type::Jsonb, 3802, "jsonb"),
];
const UNKNOWN_OID: Oid = Oid(705);

impl Type {
    /// The type with this OID, if expressions know it.
    pub fn from_oid(oid: Oid) -> Option<Type> {
        ALL.iter().find(|(_, number, _)| *number == oid.0).map(|(known, _, _)| *known)
    }

    /// The OID in `pg_type`, the same on every cluster.
    pub fn oid(self) -> Oid {
        ALL.iter().find(|(known, _, _)| *known == self).map_or(UNKNOWN_OID, |(_, oid, _)| Oid(*oid))
    }

    /// PostgreSQL's name of it.
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(known, _, _)| *known == self).map_or("unknown", |(_, _, name)| name)
    }

    pub(super) fn category(self) -> Category {
        match self {
            Type::Bool => Category::Boolean,
            Type::Int2 | Type::Int4 | Type::Int8 | Type::Numeric | Type::Float4 | Type::Float8 => Category::Number,
            Type::Text | Type::Varchar | Type::Bpchar => Category::String,
            Type::Date | Type::Time | Type::Timestamp | Type::Timestamptz => Category::DateTime,
            Type::Interval => Category::Timespan,
            Type::Uuid | Type::Json | Type::Jsonb => Category::User,
            Type::Unknown => Category::Unknown,
        }
    }

    /// The type that its category leans to.
    pub(super) fn is_preferred(self) -> bool {
        matches!(self, Type::Bool | Type::Float8 | Type::Text | Type::Timestamptz | Type::Interval)
    }

    pub(in crate::transform) fn is_string(self) -> bool {
        self.category() == Category::String
    }

    /// Whether PostgreSQL makes one of the other without being asked.
    pub(super) fn casts_implicitly_to(self, to: Type) -> bool {
        use Type::*;
        if self == to || self == Unknown {
            return true;
        }
        match self {
            Int2 => matches!(to, Int4 | Int8 | Numeric | Float4 | Float8),
            Int4 => matches!(to, Int8 | Numeric | Float4 | Float8),
            Int8 => matches!(to, Numeric | Float4 | Float8),
            Numeric => matches!(to, Float4 | Float8),
            Float4 => to == Float8,
            Text | Varchar | Bpchar => matches!(to, Text | Varchar | Bpchar),
            Date => matches!(to, Timestamp | Timestamptz),
            Time => to == Interval,
            Timestamp => to == Timestamptz,
            _ => false,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The type that all of these become in a CASE, COALESCE, IN list and the like (`select_common_type`), or `None` if
/// there is none.
pub(super) fn common_type(types: impl IntoIterator<Item = Type>) -> Option<Type> {
    let mut common = Type::Unknown;
    let mut all = Vec::new();
    for next in types {
        all.push(next);
        if next == Type::Unknown || next == common {
            continue;
        }
        if common == Type::Unknown {
            common = next;
        } else if next.category() != common.category() {
            return None;
        } else if !common.is_preferred() && common.casts_implicitly_to(next) && !next.casts_implicitly_to(common) {
            common = next;
        }
    }
    // Nothing known at all is text.
    let common = if common == Type::Unknown { Type::Text } else { common };
    all.into_iter().all(|each| each.casts_implicitly_to(common)).then_some(common)
}
