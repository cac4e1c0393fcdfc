//! Which rule decides what: rules come in by their numbers, the lowest first, and each is told whether an earlier one has taken
//! what it asks for.
//!
//! DMS applies one action to an object, that of the lowest rule-id, and masks beside it. Our rules decide aspects of an object,
//! and two that decide the same are a mistake unless one of them yields. So a rule all of whose objects are taken is left out,
//! as DMS leaves it out, and one that meets an earlier rule in some of them yields there.

use super::document::RuleId;
use super::name::Name;

/// What a rule decides of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aspect {
    SchemaName,
    TableName,
    /// Which rows.
    Rows,
    Key,
    SoftDelete,
    ColumnName,
    /// Whether the column is there.
    Presence,
    Type,
    /// What a column of the target gets.
    Value,
    Mask,
}

#[derive(Clone, Debug)]
pub struct Claim {
    pub of: RuleId,
    pub aspect: Aspect,
    pub schema: Name,
    pub table: Name,
    /// All, where the aspect is none of columns.
    pub column: Name,
}

/// What is left for a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Free,
    /// Some of it is taken by the rule.
    Shared(RuleId),
    /// All of it is.
    Taken(RuleId),
    /// The rule does something else to some of the columns, and DMS would do but one of the two.
    Beside(RuleId),
}

#[derive(Debug, Default)]
pub struct Claims(Vec<Claim>);

impl Claims {
    /// Remembers the claim, unless all of it is taken.
    pub fn place(&mut self, claim: Claim) -> Place {
        let same = |earlier: &&Claim| earlier.aspect == claim.aspect;
        let other = |earlier: &&Claim| earlier.is_other_action_on_columns(&claim);
        let taken = self.0.iter().filter(same).find(|earlier| earlier.covers(&claim));
        let taken = taken.or_else(|| self.0.iter().filter(other).find(|earlier| earlier.is_same_column(&claim)));
        if let Some(earlier) = taken {
            return Place::Taken(earlier.of);
        }
        let shared = self.0.iter().filter(same).find(|earlier| earlier.meets(&claim));
        let beside = self.0.iter().filter(other).find(|earlier| earlier.meets(&claim));
        let place = match (shared, beside) {
            (Some(earlier), _) => Place::Shared(earlier.of),
            (None, Some(earlier)) => Place::Beside(earlier.of),
            (None, None) => Place::Free,
        };
        self.0.push(claim);
        place
    }
}

/// Columns differ most, so they are compared first.
impl Claim {
    fn covers(&self, other: &Claim) -> bool {
        self.column.covers(&other.column) && self.table.covers(&other.table) && self.schema.covers(&other.schema)
    }

    fn meets(&self, other: &Claim) -> bool {
        self.column.meets(&other.column) && self.table.meets(&other.table) && self.schema.meets(&other.schema)
    }

    fn is_other_action_on_columns(&self, other: &Claim) -> bool {
        self.aspect != other.aspect && self.aspect.is_of_a_column_action() && other.aspect.is_of_a_column_action()
    }

    /// Both name one column, and where this one does, the other does not go further.
    fn is_same_column(&self, other: &Claim) -> bool {
        let column = self.column.single();
        column.is_some() && column == other.column.single() && self.covers(other)
    }
}

impl Aspect {
    /// Of these DMS applies one to a column.
    fn is_of_a_column_action(self) -> bool {
        match self {
            Aspect::ColumnName | Aspect::Presence | Aspect::Type => true,
            Aspect::SchemaName
            | Aspect::TableName
            | Aspect::Rows
            | Aspect::Key
            | Aspect::SoftDelete
            | Aspect::Value
            | Aspect::Mask => false,
        }
    }
}
