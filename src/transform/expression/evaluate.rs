//! The compiled tree, and its value over a row.
//!
//! Operands are evaluated from left to right, and AND, OR, CASE and COALESCE stop at what decides them, as PostgreSQL's
//! executor does. A cell is read where its value is needed, so a value that the source has not sent matters only there.
//! Comparing a column with a constant allocates nothing, but for `numeric`.

use std::borrow::Cow;
use std::cmp::Ordering;

use pgsluice_proto::pgoutput::Cell;

use super::cast::{Modifier, cast};
use super::error::{EvaluationError, Fault};
use super::input;
use super::types::Type;
use super::value::Value;

/// What a function or operator is given; those that it does not take are NULL.
pub(super) type Arguments<'v> = [Value<'v>; 3];
/// Called only if no argument is NULL.
pub(super) type Function = for<'v> fn(Arguments<'v>) -> Result<Value<'v>, Fault>;
/// The order of two values of the types that an operator takes.
pub(super) type Compare = for<'v> fn(&Value<'v>, &Value<'v>) -> Option<Ordering>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Comparison::Equal => ordering.is_eq(),
            Comparison::NotEqual => ordering.is_ne(),
            Comparison::Less => ordering.is_lt(),
            Comparison::LessOrEqual => ordering.is_le(),
            Comparison::Greater => ordering.is_gt(),
            Comparison::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

/// A part of an expression. Its type is known where it was made, and its operands have the types that it takes.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Constant(Value<'static>),
    Column {
        index: usize,
        of: Type,
    },
    /// The value of the innermost [`Node::Let`] around it.
    Subject,
    /// Evaluates `subject` once for all of `body`.
    Let {
        subject: Box<Node>,
        body: Box<Node>,
    },
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    Compare {
        comparison: Comparison,
        compare: Compare,
        operands: Box<[Node; 2]>,
    },
    IsDistinct {
        negated: bool,
        compare: Compare,
        operands: Box<[Node; 2]>,
    },
    IsNull {
        negated: bool,
        operand: Box<Node>,
    },
    /// `IS [NOT] TRUE | FALSE | UNKNOWN`.
    IsTruth {
        negated: bool,
        truth: Option<bool>,
        operand: Box<Node>,
    },
    In {
        compare: Compare,
        operand: Box<Node>,
        list: Vec<Node>,
    },
    Case {
        branches: Vec<(Node, Node)>,
        otherwise: Box<Node>,
    },
    Coalesce(Vec<Node>),
    /// GREATEST keeps what is `Greater` than the others, LEAST what is `Less`.
    Extreme {
        keeps: Ordering,
        compare: Compare,
        operands: Vec<Node>,
    },
    Concat(Vec<Node>),
    Cast {
        from: Type,
        to: Type,
        modifier: Option<Modifier>,
        operand: Box<Node>,
    },
    Call {
        function: Function,
        arguments: Vec<Node>,
    },
}

/// A row, as far as it is looked at.
pub(super) struct Row<'f, 'v> {
    pub cell: &'f dyn Fn(usize) -> Cell<'v>,
    pub subject: Option<&'f Value<'v>>,
}

type Outcome<T> = Result<T, EvaluationError>;

/// No operator is resolved for types that it has no order for.
fn ordered(compare: Compare, left: &Value<'_>, right: &Value<'_>) -> Ordering {
    let ordering = compare(left, right);
    debug_assert!(ordering.is_some(), "operators are resolved by the types of their operands");
    ordering.unwrap_or(Ordering::Equal)
}

fn from_truth<'v>(truth: Option<bool>) -> Value<'v> {
    truth.map_or(Value::Null, Value::Bool)
}

impl Node {
    pub(super) fn value<'v>(&'v self, row: &Row<'_, 'v>) -> Outcome<Value<'v>> {
        match self {
            Node::Constant(value) => Ok(borrowed(value)),
            Node::Column { index, of } => input::read((row.cell)(*index), *of, *index),
            Node::Subject => Ok(row.subject.cloned().unwrap_or(Value::Null)),
            Node::Let { subject, body } => {
                let subject = subject.value(row)?;
                body.value(&Row { cell: row.cell, subject: Some(&subject) })
            }
            Node::Case { branches, otherwise } => {
                for (condition, result) in branches {
                    if condition.truth(row)? == Some(true) {
                        return result.value(row);
                    }
                }
                otherwise.value(row)
            }
            Node::Coalesce(operands) => first_known(operands, row),
            Node::Extreme { keeps, compare, operands } => extreme(*keeps, *compare, operands, row),
            Node::Concat(operands) => concat(operands, row),
            Node::Cast { from, to, modifier, operand } => match operand.value(row)? {
                Value::Null => Ok(Value::Null),
                value => Ok(cast(value, *from, *to, *modifier)?),
            },
            Node::Call { function, arguments } => call(*function, arguments, row),
            _ => Ok(from_truth(self.truth(row)?)),
        }
    }

    /// The value of a boolean; `None` is NULL.
    pub(super) fn truth<'v>(&'v self, row: &Row<'_, 'v>) -> Outcome<Option<bool>> {
        match self {
            Node::And(operands) => junction(operands, false, row),
            Node::Or(operands) => junction(operands, true, row),
            Node::Not(operand) => Ok(operand.truth(row)?.map(|truth| !truth)),
            Node::Compare { comparison, compare, operands } => {
                let [left, right] = &**operands;
                let (left, right) = (left.value(row)?, right.value(row)?);
                if left.is_null() || right.is_null() {
                    return Ok(None);
                }
                Ok(Some(comparison.holds(ordered(*compare, &left, &right))))
            }
            Node::IsDistinct { negated, compare, operands } => {
                let [left, right] = &**operands;
                let (left, right) = (left.value(row)?, right.value(row)?);
                let distinct = match (left.is_null(), right.is_null()) {
                    (false, false) => ordered(*compare, &left, &right).is_ne(),
                    (left, right) => left != right,
                };
                Ok(Some(distinct != *negated))
            }
            Node::IsNull { negated, operand } => Ok(Some(operand.is_null(row)? != *negated)),
            Node::IsTruth { negated, truth, operand } => Ok(Some((operand.truth(row)? == *truth) != *negated)),
            Node::In { compare, operand, list } => is_in(operand, list, *compare, row),
            Node::Let { subject, body } => {
                let subject = subject.value(row)?;
                body.truth(&Row { cell: row.cell, subject: Some(&subject) })
            }
            _ => match self.value(row)? {
                Value::Bool(value) => Ok(Some(value)),
                _ => Ok(None),
            },
        }
    }

    /// A column is not NULL if it was not sent: only a value can be left out.
    fn is_null<'v>(&'v self, row: &Row<'_, 'v>) -> Outcome<bool> {
        match self {
            Node::Column { index, .. } => Ok(matches!((row.cell)(*index), Cell::Null)),
            _ => Ok(self.value(row)?.is_null()),
        }
    }
}

/// The value of a constant, without copying its text.
fn borrowed<'v>(value: &'v Value<'static>) -> Value<'v> {
    match value {
        Value::Text(text) => Value::Text(Cow::Borrowed(text)),
        Value::Jsonb(text) => Value::Jsonb(Cow::Borrowed(text)),
        other => other.clone(),
    }
}

/// AND is decided by false, OR by true.
fn junction<'v>(operands: &'v [Node], decisive: bool, row: &Row<'_, 'v>) -> Outcome<Option<bool>> {
    let mut result = Some(!decisive);
    for operand in operands {
        match operand.truth(row)? {
            Some(truth) if truth == decisive => return Ok(Some(decisive)),
            Some(_) => {}
            None => result = None,
        }
    }
    Ok(result)
}

fn is_in<'v>(operand: &'v Node, list: &'v [Node], compare: Compare, row: &Row<'_, 'v>) -> Outcome<Option<bool>> {
    let operand = operand.value(row)?;
    // Every element is evaluated, since one that fails counts behind one that is equal too; but constants never fail.
    let mut found = Some(false);
    for (at, element) in list.iter().enumerate() {
        if found == Some(true) && list[at..].iter().all(|element| matches!(element, Node::Constant(_))) {
            break;
        }
        let element = element.value(row)?;
        if operand.is_null() || element.is_null() {
            found = if found == Some(true) { found } else { None };
        } else if ordered(compare, &operand, &element).is_eq() {
            found = Some(true);
        }
    }
    Ok(found)
}

fn first_known<'v>(operands: &'v [Node], row: &Row<'_, 'v>) -> Outcome<Value<'v>> {
    for operand in operands {
        let value = operand.value(row)?;
        if !value.is_null() {
            return Ok(value);
        }
    }
    Ok(Value::Null)
}

fn extreme<'v>(keeps: Ordering, compare: Compare, operands: &'v [Node], row: &Row<'_, 'v>) -> Outcome<Value<'v>> {
    let mut kept = Value::Null;
    for operand in operands {
        let value = operand.value(row)?;
        if !value.is_null() && (kept.is_null() || ordered(compare, &value, &kept) == keeps) {
            kept = value;
        }
    }
    Ok(kept)
}

fn concat<'v>(operands: &'v [Node], row: &Row<'_, 'v>) -> Outcome<Value<'v>> {
    let mut text = String::new();
    for operand in operands {
        operand.value(row)?.to_text(&mut text);
    }
    Ok(Value::Text(Cow::Owned(text)))
}

fn call<'v>(function: Function, arguments: &'v [Node], row: &Row<'_, 'v>) -> Outcome<Value<'v>> {
    let mut values = [Value::Null, Value::Null, Value::Null];
    let mut any_null = false;
    for (value, argument) in values.iter_mut().zip(arguments) {
        *value = argument.value(row)?;
        any_null |= value.is_null();
    }
    if any_null { Ok(Value::Null) } else { Ok(function(values)?) }
}

impl Node {
    /// The subject that is meant is that of a [`Node::Let`] around all of this.
    pub(super) fn reads_subject(&self) -> bool {
        match self {
            Node::Subject => true,
            Node::Constant(_) | Node::Column { .. } => false,
            Node::Let { subject, .. } => subject.reads_subject(),
            _ => self.operands().into_iter().any(Node::reads_subject),
        }
    }

    /// The operands that decide whether it is constant.
    pub(super) fn operands(&self) -> Vec<&Node> {
        match self {
            Node::Constant(_) | Node::Column { .. } | Node::Subject => vec![self],
            Node::Let { subject, body } => vec![subject, body],
            Node::And(operands) | Node::Or(operands) | Node::Coalesce(operands) | Node::Concat(operands) => {
                operands.iter().collect()
            }
            Node::Extreme { operands, .. } => operands.iter().collect(),
            Node::Call { arguments, .. } => arguments.iter().collect(),
            Node::Compare { operands, .. } | Node::IsDistinct { operands, .. } => operands.iter().collect(),
            Node::Not(operand)
            | Node::IsNull { operand, .. }
            | Node::IsTruth { operand, .. }
            | Node::Cast { operand, .. } => vec![operand],
            Node::In { operand, list, .. } => std::iter::once(&**operand).chain(list).collect(),
            Node::Case { branches, otherwise } => {
                let branches = branches.iter().flat_map(|(condition, result)| [condition, result]);
                branches.chain(std::iter::once(&**otherwise)).collect()
            }
        }
    }
}
