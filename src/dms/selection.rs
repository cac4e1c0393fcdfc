//! Selection rules to `include` and `exclude`, and their filters to conditions.

use toml::Value;

use super::Translator;
use super::claims::{Aspect, Place};
use super::document::{Comparison, Condition, Filter, Rule, Selection, SelectionAction, TableType};
use super::expression::sql::{self, Operator, Sql};
use super::name::{Name, NoPattern};
use super::report::Verdict;

impl Translator<'_> {
    pub(super) fn selection(&mut self, rule: &Rule, selection: &Selection) -> Verdict {
        if selection.table_type == TableType::View {
            return Verdict::not_possible("logical decoding has no changes of views; replicate the tables below it");
        }
        let Ok(pattern) = pattern(&selection.schema, &selection.table) else {
            return no_pattern();
        };
        let mut verdict = Verdict::carried();
        if selection.table_type == TableType::All {
            verdict.changed("tables only: logical decoding has no changes of views");
        }
        if let Some(order) = &selection.load_order {
            verdict.changed(format!("load-order {order} is left out: tables are copied at the same time, in no order"));
        }
        let list = match selection.action {
            SelectionAction::Include | SelectionAction::Explicit => {
                if let Some(refusal) = self.filter(rule, selection, &pattern, &mut verdict) {
                    return refusal;
                }
                &mut self.written.include
            }
            SelectionAction::Exclude => {
                if !selection.filters.is_empty() {
                    verdict.note("its filters are left out, as DMS looks at those of include only");
                }
                &mut self.written.exclude
            }
        };
        if !list.contains(&pattern) {
            list.push(pattern);
        }
        verdict
    }

    /// A rule with the condition of the filters; or why there can be none.
    fn filter(&mut self, rule: &Rule, selection: &Selection, pattern: &str, verdict: &mut Verdict) -> Option<Verdict> {
        if selection.filters.is_empty() {
            return None;
        }
        let condition = condition(&selection.filters).write();
        if let Err(error) = sql::check(&condition) {
            return Some(Verdict::not_possible(format!("the condition {condition} cannot be read: {error}")));
        }
        if selection.schema.single().is_none() || selection.table.single().is_none() {
            verdict.changed("DMS has filters for single tables only; here they hold for every table that matches");
        }
        match self.claim(rule.id, Aspect::Rows, (&selection.schema, &selection.table), None) {
            Place::Free => {}
            Place::Shared(earlier) | Place::Taken(earlier) | Place::Beside(earlier) => {
                return Some(Verdict::not_possible(format!(
                    "rule {earlier} filters rows of the same tables: write one condition for both into its `where`"
                )));
            }
        }
        if selection.filters.iter().flat_map(|filter| &filter.conditions).any(Condition::differs_for_null) {
            verdict.changed(
                "noteq and notbetween leave out rows whose column is NULL, as SQL has it: to keep them, add OR … IS NULL to `where`",
            );
        }
        self.write(rule, pattern, vec![("where", Value::from(condition))], false);
        None
    }
}

/// `schema.table`.
pub(super) fn pattern(schema: &Name, table: &Name) -> Result<String, NoPattern> {
    Ok(format!("{}.{}", schema.as_part()?, table.as_part()?))
}

pub(super) fn no_pattern() -> Verdict {
    Verdict::not_possible(
        "a name that holds a dot, a blank or a quote can have no wildcards here: name its tables one by one",
    )
}

impl Condition {
    fn differs_for_null(&self) -> bool {
        match self {
            Condition::Compare(comparison, _) => *comparison == Comparison::NotEqual,
            Condition::Between { negated, .. } => *negated,
            Condition::Null { .. } => false,
        }
    }

    /// Values are quoted: such a literal takes the type of the column.
    fn to_sql(&self, column: &Sql) -> Sql {
        let operand = || Box::new(column.clone());
        let literal = |text: &str| Box::new(Sql::text(text));
        match self {
            Condition::Compare(comparison, value) => {
                let operator = match comparison {
                    Comparison::AtMost => Operator::LessOrEqual,
                    Comparison::AtLeast => Operator::GreaterOrEqual,
                    Comparison::Equal => Operator::Equal,
                    Comparison::NotEqual => Operator::NotEqual,
                };
                Sql::Binary(operator, operand(), literal(value))
            }
            Condition::Between { negated, start, end } => {
                Sql::Between { negated: *negated, operand: operand(), low: literal(start), high: literal(end) }
            }
            Condition::Null { negated } => Sql::IsNull { negated: *negated, operand: operand() },
        }
    }
}

/// All filters hold, each by one of its conditions.
fn condition(filters: &[Filter]) -> Sql {
    let join = |operator| move |left, right| Sql::Binary(operator, Box::new(left), Box::new(right));
    let one = |filter: &Filter| {
        let column = Sql::Column(filter.column.clone());
        let conditions = filter.conditions.iter().map(|condition| condition.to_sql(&column));
        conditions.reduce(join(Operator::Or)).unwrap_or(Sql::True)
    };
    filters.iter().map(one).reduce(join(Operator::And)).unwrap_or(Sql::True)
}
