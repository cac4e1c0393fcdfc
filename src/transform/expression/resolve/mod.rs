//! The parser's tree to ours: names to columns, operators and functions to those that their types mean, casts where
//! PostgreSQL makes them by itself, and constants to their values.
//!
//! What PostgreSQL's planner folds is folded here, since it decides which errors a row can meet: a part without columns is
//! evaluated at once, a strict function of NULL is NULL, and a condition that is constant decides an AND, an OR or a CASE.

mod calls;
mod casts;
mod conditions;
mod operators;

use std::cell::{Cell, RefCell};
use std::ops::Range;

use pgsluice_proto::Oid;
use pgsluice_proto::pgoutput;
use sqlparser::ast::{BinaryOperator, Expr, Ident, UnaryOperator, Value as Literal};

use super::error::{EvaluationError, ExpressionError};
use super::evaluate::{Node, Row};
use super::functions::nearest;
use super::parse::{range, range_of};
use super::types::Type;
use super::value::Value;

/// Bounds the stack that resolving and evaluating take. Chains of AND and OR count as one level.
const DEPTH_MAX: usize = 100;

type Outcome = Result<Typed, ExpressionError>;

/// A part of the expression, with its type and its place.
#[derive(Clone, Debug)]
pub(super) struct Typed {
    pub node: Node,
    pub of: Type,
    pub range: Range<usize>,
}

impl Typed {
    fn null(range: Range<usize>) -> Typed {
        Typed { node: Node::Constant(Value::Null), of: Type::Unknown, range }
    }
}

pub(super) struct Resolver<'r> {
    text: &'r str,
    columns: &'r [(String, Oid)],
    used: RefCell<Vec<usize>>,
    depth: Cell<usize>,
}

/// The typed tree, whose type is known, and the columns that it reads, in their order.
pub(super) fn resolve(
    text: &str,
    tree: &Expr,
    columns: &[(String, Oid)],
) -> Result<(Typed, Vec<usize>), ExpressionError> {
    let resolver = Resolver { text, columns, used: RefCell::default(), depth: Cell::new(0) };
    let typed = resolver.expression(tree)?;
    // A literal alone is text.
    let typed = if typed.of == Type::Unknown { resolver.coerce(typed, Type::Text)? } else { typed };
    let mut used = resolver.used.into_inner();
    used.sort_unstable();
    used.dedup();
    Ok((typed, used))
}

fn error<T>(range: Range<usize>, message: impl Into<String>) -> Result<T, ExpressionError> {
    Err(ExpressionError::new(range, message))
}

impl Resolver<'_> {
    fn expression(&self, tree: &Expr) -> Outcome {
        if self.depth.get() == DEPTH_MAX {
            return error(self.range_of(tree), "the expression is nested too deeply");
        }
        self.depth.set(self.depth.get() + 1);
        let typed = self.any(tree);
        self.depth.set(self.depth.get() - 1);
        typed
    }

    fn any(&self, tree: &Expr) -> Outcome {
        let place = self.range_of(tree);
        match tree {
            Expr::Nested(inner) => self.expression(inner),
            Expr::Identifier(name) => self.column(name),
            Expr::CompoundIdentifier(_) => error(place, "name the column alone, without its table"),
            Expr::Value(value) => self.literal(&value.value, place),
            Expr::TypedString(typed) => self.typed_literal(&typed.data_type, &typed.value.value, place),
            Expr::Interval(interval) => self.interval_literal(interval, place),
            Expr::UnaryOp { op, expr } => self.unary(*op, expr, place),
            Expr::BinaryOp { left, op: op @ (BinaryOperator::And | BinaryOperator::Or), right } => {
                self.junction(op, left, right, place)
            }
            Expr::BinaryOp { left, op, right } => self.binary(op, left, right, place),
            Expr::Cast { expr, data_type, .. } => self.explicit_cast(expr, data_type, place),
            Expr::Function(function) => self.function(function, place),
            Expr::Subquery(_) | Expr::Exists { .. } => error(place, "an expression sees one row, and no query"),
            Expr::Case { .. }
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::IsTrue(_)
            | Expr::IsNotTrue(_)
            | Expr::IsFalse(_)
            | Expr::IsNotFalse(_)
            | Expr::IsUnknown(_)
            | Expr::IsNotUnknown(_)
            | Expr::IsDistinctFrom(..)
            | Expr::IsNotDistinctFrom(..)
            | Expr::In { .. }
            | Expr::Between { .. } => self.condition(tree, place),
            Expr::Like { negated, any: false, expr, pattern, escape_char } => {
                self.like("~~", *negated, [expr, pattern], escape_char.as_deref(), place)
            }
            Expr::ILike { negated, any: false, expr, pattern, escape_char } => {
                self.like("~~*", *negated, [expr, pattern], escape_char.as_deref(), place)
            }
            Expr::Extract { .. }
            | Expr::Ceil { .. }
            | Expr::Floor { .. }
            | Expr::Position { .. }
            | Expr::Substring { .. }
            | Expr::Trim { .. } => self.special_call(tree, place),
            _ => error(place, "this form is not supported in expressions"),
        }
    }

    fn range_of(&self, tree: &Expr) -> Range<usize> {
        range_of(self.text, tree)
    }

    /// Names fold to lower case unless they are quoted.
    fn column(&self, name: &Ident) -> Outcome {
        let place = range(self.text, name.span);
        let wanted = if name.quote_style.is_some() { name.value.clone() } else { name.value.to_ascii_lowercase() };
        let Some(index) = self.columns.iter().position(|(name, _)| *name == wanted) else {
            let meant = nearest(&wanted, self.columns.iter().map(|(name, _)| name.as_str()));
            let hint = meant.map_or(String::new(), |meant| format!("; did you mean \"{meant}\"?"));
            return error(place, format!("there is no column \"{wanted}\"{hint}"));
        };
        self.column_at(index, place)
    }

    /// What stands behind the columns by a name that begins with `$`.
    fn parameter(&self, name: &str, place: Range<usize>) -> Outcome {
        match self.columns.iter().rposition(|(known, _)| known == name) {
            Some(index) => self.column_at(index, place),
            None => {
                let known: Vec<_> = self
                    .columns
                    .iter()
                    .filter(|(name, _)| name.starts_with('$'))
                    .map(|(name, _)| name.as_str())
                    .collect();
                let hint = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                error(place, format!("there is no {name} here; known: {hint}"))
            }
        }
    }

    fn column_at(&self, index: usize, place: Range<usize>) -> Outcome {
        let (wanted, oid) = &self.columns[index];
        let Some(of) = Type::from_oid(*oid) else {
            let message = format!("column \"{wanted}\" has the type with OID {}, which expressions do not know", oid.0);
            return error(place, message);
        };
        self.used.borrow_mut().push(index);
        Ok(Typed { node: Node::Column { index, of }, of, range: place })
    }

    fn literal(&self, literal: &Literal, place: Range<usize>) -> Outcome {
        let constant = |value, of| Ok(Typed { node: Node::Constant(value), of, range: place.clone() });
        match literal {
            Literal::Null => Ok(Typed::null(place)),
            Literal::Boolean(value) => constant(Value::Bool(*value), Type::Bool),
            Literal::Number(number, false) => self.number(number, place),
            Literal::SingleQuotedString(text)
            | Literal::EscapedStringLiteral(text)
            | Literal::UnicodeStringLiteral(text) => constant(Value::Text(text.clone().into()), Type::Unknown),
            Literal::DollarQuotedString(text) => constant(Value::Text(text.value.clone().into()), Type::Unknown),
            Literal::Placeholder(name) => self.parameter(name, place),
            _ => error(place, "this kind of literal is not supported; write text in single quotes"),
        }
    }

    /// An integer is of the first type that it fits: int4, int8, numeric.
    fn number(&self, number: &str, place: Range<usize>) -> Outcome {
        let constant = |value, of| Ok(Typed { node: Node::Constant(value), of, range: place.clone() });
        if let Ok(value) = number.parse::<i32>() {
            return constant(Value::Int4(value), Type::Int4);
        }
        if let Ok(value) = number.parse::<i64>() {
            return constant(Value::Int8(value), Type::Int8);
        }
        match super::numeric::Numeric::parse(number) {
            Ok(value) => constant(Value::Numeric(value), Type::Numeric),
            Err(_) => error(place, "this is no number in decimal notation"),
        }
    }

    fn unary(&self, operator: UnaryOperator, operand: &Expr, place: Range<usize>) -> Outcome {
        match operator {
            UnaryOperator::Not => {
                let operand = self.boolean(operand)?;
                self.folded(Node::Not(Box::new(operand.node)), Type::Bool, place)
            }
            UnaryOperator::Minus => {
                // A sign is part of the number, so that the least of the integers is one.
                if let Expr::Value(value) = without_parentheses(operand)
                    && let Literal::Number(number, false) = &value.value
                {
                    return self.number(&format!("-{number}"), place);
                }
                let operand = self.expression(operand)?;
                if operand.of == Type::Unknown {
                    return error(operand.range, "a quoted literal has no sign; write the number without quotes");
                }
                self.operator("-x", vec![operand], place)
            }
            UnaryOperator::Plus => {
                let operand = self.expression(operand)?;
                match operand.of.category() {
                    super::types::Category::Number => Ok(operand),
                    _ => error(place, format!("there is no operator + {}", operand.of)),
                }
            }
            _ => error(place, format!("the operator {operator} is not supported")),
        }
    }

    /// A chain of one operator is one node, however long it is.
    fn junction(&self, operator: &BinaryOperator, left: &Expr, right: &Expr, place: Range<usize>) -> Outcome {
        let mut trees = vec![right];
        let mut rest = left;
        while let Expr::BinaryOp { left, op, right } = rest
            && op == operator
        {
            trees.push(right);
            rest = left;
        }
        trees.push(rest);
        let mut operands = Vec::with_capacity(trees.len());
        for tree in trees.into_iter().rev() {
            operands.push(self.boolean(tree)?.node);
        }
        self.joined(operands, *operator == BinaryOperator::Or, place)
    }

    /// With OR or AND, without what cannot decide it.
    fn joined(&self, mut operands: Vec<Node>, is_or: bool, place: Range<usize>) -> Outcome {
        let is = |operand: &Node, truth: bool| matches!(operand, Node::Constant(Value::Bool(value)) if *value == truth);
        if operands.iter().any(|operand| is(operand, is_or)) {
            return Ok(Typed { node: Node::Constant(Value::Bool(is_or)), of: Type::Bool, range: place });
        }
        operands.retain(|operand| !is(operand, !is_or));
        let node = if is_or { Node::Or(operands) } else { Node::And(operands) };
        self.folded(node, Type::Bool, place)
    }

    fn boolean(&self, tree: &Expr) -> Outcome {
        let typed = self.expression(tree)?;
        match typed.of {
            Type::Bool | Type::Unknown => self.coerce(typed, Type::Bool),
            other => {
                error(typed.range, format!("a condition is boolean, and this is {other}; compare it with something"))
            }
        }
    }

    /// The node, or its value if it is the same for every row.
    fn folded(&self, node: Node, of: Type, range: Range<usize>) -> Outcome {
        if let Node::Cast { operand, .. } = &node
            && let Node::Constant(Value::Null) = **operand
        {
            return Ok(Typed { node: Node::Constant(Value::Null), of, range });
        }
        if is_stable(&node) || !node.operands().iter().all(|operand| matches!(operand, Node::Constant(_))) {
            return Ok(Typed { node, of, range });
        }
        let row = Row { cell: &|_| pgoutput::Cell::Null, subject: None };
        match node.value(&row).map(Value::into_owned) {
            Ok(value) => Ok(Typed { node: Node::Constant(value), of, range }),
            Err(EvaluationError::Fault(fault)) => error(range, format!("this fails for every row: {fault}")),
            // A constant reads no cell.
            Err(_) => Ok(Typed { node, of, range }),
        }
    }
}

/// What depends on a time zone or a date style in PostgreSQL is evaluated there for every row.
fn is_stable(node: &Node) -> bool {
    match node {
        Node::Concat(_) => true,
        Node::Cast { from, to, .. } => {
            let moments = [Type::Date, Type::Timestamp, Type::Timestamptz];
            *to == Type::Timestamptz || *from == Type::Timestamptz || to.is_string() && moments.contains(from)
        }
        _ => false,
    }
}

fn without_parentheses(mut tree: &Expr) -> &Expr {
    while let Expr::Nested(inner) = tree {
        tree = inner;
    }
    tree
}
