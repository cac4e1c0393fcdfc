//! IS, IN, BETWEEN, CASE, COALESCE and what is like them.

use std::cmp::Ordering;
use std::ops::Range;

use sqlparser::ast::{CaseWhen, Expr, InTarget};

use super::super::error::ExpressionError;
use super::super::evaluate::Node;
use super::super::operators::TEXT_ORDER;
use super::super::types::{Type, common_type};
use super::super::value::{Value, compare};
use super::operators::Equality;
use super::{Outcome, Resolver, Typed, error};

impl Resolver<'_> {
    pub(super) fn condition(&self, tree: &Expr, place: Range<usize>) -> Outcome {
        match tree {
            Expr::IsNull(operand) => self.is_null(operand, false, place),
            Expr::IsNotNull(operand) => self.is_null(operand, true, place),
            Expr::IsTrue(operand) => self.is_truth(operand, Some(true), false, place),
            Expr::IsNotTrue(operand) => self.is_truth(operand, Some(true), true, place),
            Expr::IsFalse(operand) => self.is_truth(operand, Some(false), false, place),
            Expr::IsNotFalse(operand) => self.is_truth(operand, Some(false), true, place),
            Expr::IsUnknown(operand) => self.is_truth(operand, None, false, place),
            Expr::IsNotUnknown(operand) => self.is_truth(operand, None, true, place),
            Expr::IsDistinctFrom(left, right) => self.is_distinct(left, right, false, place),
            Expr::IsNotDistinctFrom(left, right) => self.is_distinct(left, right, true, place),
            Expr::In { expr, target: InTarget::List(list), negated, .. } => self.is_in(expr, list, *negated, place),
            Expr::In { .. } => error(place, "an expression sees one row, and no query; write the values as a list"),
            Expr::Between { expr, negated, low, high } => self.between(expr, [low, high], *negated, place),
            Expr::Case { operand, conditions, else_result, .. } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref(), place)
            }
            _ => error(place, "this form is not supported in expressions"),
        }
    }

    fn is_null(&self, operand: &Expr, negated: bool, place: Range<usize>) -> Outcome {
        let operand = Box::new(self.expression(operand)?.node);
        self.folded(Node::IsNull { negated, operand }, Type::Bool, place)
    }

    fn is_truth(&self, operand: &Expr, truth: Option<bool>, negated: bool, place: Range<usize>) -> Outcome {
        let operand = Box::new(self.boolean(operand)?.node);
        self.folded(Node::IsTruth { negated, truth, operand }, Type::Bool, place)
    }

    fn is_distinct(&self, left: &Expr, right: &Expr, negated: bool, place: Range<usize>) -> Outcome {
        let Equality { compare, operands, is_stable, .. } =
            self.equality(self.expression(left)?, self.expression(right)?, &place)?;
        let node = Node::IsDistinct { negated, compare, operands: Box::new(operands) };
        self.folded_unless(is_stable, node, Type::Bool, place)
    }

    /// Elements without columns become an array of the type that they have in common with the operand; the others, and
    /// one that is alone, are compared each by itself (`transformAExprIn`).
    fn is_in(&self, operand: &Expr, list: &[Expr], negated: bool, place: Range<usize>) -> Outcome {
        let operand = self.expression(operand)?;
        let subject = subject_of(&operand);
        let mut elements = Vec::with_capacity(list.len());
        for tree in list {
            let before = self.used.borrow().len();
            let element = self.expression(tree)?;
            elements.push((element, self.used.borrow().len() > before));
        }
        let mut tests = Vec::new();
        let constants: Vec<Typed> =
            elements.iter().filter(|(_, reads_columns)| !reads_columns).map(|(element, _)| element.clone()).collect();
        match common_type(std::iter::once(operand.of).chain(constants.iter().map(|element| element.of))) {
            Some(common) if constants.len() > 1 => {
                tests.push(self.in_array(&subject, common, constants, &place)?);
                elements.retain(|(_, reads_columns)| *reads_columns);
            }
            _ => {}
        }
        for (element, _) in elements {
            tests.push(self.equal(subject.clone(), element, &place)?.node);
        }
        let found = self.joined(tests, true, place.clone())?;
        let found = if negated { self.folded(Node::Not(Box::new(found.node)), Type::Bool, place)? } else { found };
        Ok(Typed { node: bound(operand, found.node), ..found })
    }

    fn in_array(
        &self,
        subject: &Typed,
        common: Type,
        elements: Vec<Typed>,
        place: &Range<usize>,
    ) -> Result<Node, ExpressionError> {
        let mut compared = None;
        let mut list = Vec::with_capacity(elements.len());
        for element in elements {
            let element = self.coerce(element, common)?;
            let equality = self.equality(subject.clone(), element, place)?;
            let [left, right] = equality.operands;
            list.push(right);
            compared = Some((equality.compare, left, equality.is_stable));
        }
        match compared {
            Some((compare, left, is_stable)) => {
                let node = Node::In { compare, operand: Box::new(left), list };
                self.folded_unless(is_stable, node, Type::Bool, place.clone()).map(|typed| typed.node)
            }
            None => error(place.clone(), "the list of IN is empty"),
        }
    }

    fn between(&self, operand: &Expr, [low, high]: [&Expr; 2], negated: bool, place: Range<usize>) -> Outcome {
        let operand = self.expression(operand)?;
        let subject = subject_of(&operand);
        let (low, high) = (self.expression(low)?, self.expression(high)?);
        let names = if negated { ["<", ">"] } else { [">=", "<="] };
        let tests = vec![
            self.operator(names[0], vec![subject.clone(), low], place.clone())?.node,
            self.operator(names[1], vec![subject, high], place.clone())?.node,
        ];
        let body = self.joined(tests, negated, place)?;
        Ok(Typed { node: bound(operand, body.node), ..body })
    }

    fn case(
        &self,
        operand: Option<&Expr>,
        whens: &[CaseWhen],
        otherwise: Option<&Expr>,
        place: Range<usize>,
    ) -> Outcome {
        let operand = operand.map(|operand| self.expression(operand)).transpose()?;
        // Alone, a literal is text.
        let operand = match operand {
            Some(typed) if typed.of == Type::Unknown => Some(self.coerce(typed, Type::Text)?),
            other => other,
        };
        let subject = operand.as_ref().map(subject_of);
        let mut conditions = Vec::with_capacity(whens.len());
        let mut results = Vec::with_capacity(whens.len() + 1);
        // The result that is left counts first where their type is sought.
        results.push(match otherwise {
            Some(tree) => self.expression(tree)?,
            None => Typed::null(place.clone()),
        });
        for when in whens {
            let condition = match &subject {
                Some(subject) => {
                    let value = self.expression(&when.condition)?;
                    let around = subject.range.start.min(value.range.start)..value.range.end.max(subject.range.end);
                    self.equal(subject.clone(), value, &around)?
                }
                None => self.boolean(&when.condition)?,
            };
            conditions.push(condition.node);
            results.push(self.expression(&when.result)?);
        }
        let (of, results) = self.to_common_type(results, "the results of CASE", &place)?;
        let mut results = results.into_iter();
        let otherwise = results.next().unwrap_or(Node::Constant(Value::Null));
        let case = without_dead_branches(conditions.into_iter().zip(results), otherwise);
        let node = match operand {
            Some(operand) => bound(operand, case),
            None => case,
        };
        Ok(Typed { node, of, range: place })
    }

    pub(super) fn to_common_type(
        &self,
        operands: Vec<Typed>,
        what: &str,
        place: &Range<usize>,
    ) -> Result<(Type, Vec<Node>), ExpressionError> {
        let Some(common) = common_type(operands.iter().map(|operand| operand.of)) else {
            let types: Vec<&str> = operands.iter().map(|operand| operand.of.name()).collect();
            let message = format!("{what} have no type in common: {}; cast some of them with ::", types.join(", "));
            return error(place.clone(), message);
        };
        let coerce = |operand| self.coerce(operand, common).map(|typed| typed.node);
        Ok((common, operands.into_iter().map(coerce).collect::<Result<_, _>>()?))
    }

    pub(super) fn coalesce(&self, operands: Vec<Typed>, place: Range<usize>) -> Outcome {
        let (of, nodes) = self.to_common_type(operands, "the arguments of COALESCE", &place)?;
        let mut kept = Vec::with_capacity(nodes.len());
        for node in nodes.into_iter().filter(|node| !matches!(node, Node::Constant(Value::Null))) {
            let is_last = matches!(node, Node::Constant(_));
            kept.push(node);
            if is_last {
                break;
            }
        }
        self.folded(Node::Coalesce(kept), of, place)
    }

    pub(super) fn extreme(&self, keeps: Ordering, operands: Vec<Typed>, place: Range<usize>) -> Outcome {
        let (of, operands) = self.to_common_type(operands, "the arguments of GREATEST and LEAST", &place)?;
        if of.is_string() {
            return error(place, TEXT_ORDER);
        }
        if matches!(of, Type::Json | Type::Jsonb) {
            return error(place, format!("values of type {of} have no order here"));
        }
        self.folded(Node::Extreme { keeps, compare, operands }, of, place)
    }

    /// The first, as the operator `=` takes it, or NULL if both are equal.
    pub(super) fn null_if(&self, left: Typed, right: Typed, place: Range<usize>) -> Outcome {
        let Equality { compare, operands: [left, right], of, is_stable } = self.equality(left, right, &place)?;
        let is_null = |node: &Node| matches!(node, Node::Constant(Value::Null));
        if is_null(&left) || is_null(&right) {
            return Ok(Typed { node: left, of, range: place });
        }
        let left = Typed { node: left, of, range: place.clone() };
        let subject = subject_of(&left);
        let same = Node::Compare {
            comparison: super::super::evaluate::Comparison::Equal,
            compare,
            operands: Box::new([subject.node.clone(), right]),
        };
        let same = self.folded_unless(is_stable, same, Type::Bool, place.clone())?;
        let branches = [(same.node, Node::Constant(Value::Null))];
        let node = bound(left, without_dead_branches(branches.into_iter(), subject.node));
        Ok(Typed { node, of, range: place })
    }
}

/// What stands for the operand in each of the tests of it.
fn subject_of(operand: &Typed) -> Typed {
    match operand.node {
        Node::Constant(_) => operand.clone(),
        _ => Typed { node: Node::Subject, ..operand.clone() },
    }
}

/// Evaluates the operand once, if any test is left.
fn bound(operand: Typed, body: Node) -> Node {
    match body.reads_subject() {
        true => Node::Let { subject: Box::new(operand.node), body: Box::new(body) },
        false => body,
    }
}

/// Branches that are never taken go, and what follows one that always is.
fn without_dead_branches(branches: impl Iterator<Item = (Node, Node)>, otherwise: Node) -> Node {
    let mut kept = Vec::new();
    for (condition, result) in branches {
        match condition {
            Node::Constant(Value::Bool(true)) if kept.is_empty() => return result,
            Node::Constant(Value::Bool(true)) => return Node::Case { branches: kept, otherwise: Box::new(result) },
            Node::Constant(_) => {}
            condition => kept.push((condition, result)),
        }
    }
    if kept.is_empty() { otherwise } else { Node::Case { branches: kept, otherwise: Box::new(otherwise) } }
}
