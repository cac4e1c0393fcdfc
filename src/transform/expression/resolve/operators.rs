//! Operators of two operands, LIKE among them.

use std::ops::Range;

use sqlparser::ast::{BinaryOperator, Expr};

use super::super::error::ExpressionError;
use super::super::evaluate::{Compare, Node};
use super::super::operators::OPERATORS;
use super::super::signature::{Action, NotChosen, Signature, choose};
use super::super::types::Type;
use super::super::value::Value;
use super::{Outcome, Resolver, Typed, error};

/// Two operands as the operator `=` takes them.
pub(super) struct Equality {
    pub compare: Compare,
    pub operands: [Node; 2],
    /// The type of the left one.
    pub of: Type,
    pub is_stable: bool,
}

impl Resolver<'_> {
    pub(super) fn binary(&self, operator: &BinaryOperator, left: &Expr, right: &Expr, place: Range<usize>) -> Outcome {
        let name = match operator {
            BinaryOperator::Plus => "+",
            BinaryOperator::Minus => "-",
            BinaryOperator::Multiply => "*",
            BinaryOperator::Divide => "/",
            BinaryOperator::Modulo => "%",
            BinaryOperator::StringConcat => "||",
            BinaryOperator::Eq => "=",
            BinaryOperator::NotEq => "<>",
            BinaryOperator::Lt => "<",
            BinaryOperator::LtEq => "<=",
            BinaryOperator::Gt => ">",
            BinaryOperator::GtEq => ">=",
            BinaryOperator::Arrow => "->",
            BinaryOperator::LongArrow => "->>",
            _ => return error(place, format!("the operator {operator} is not supported")),
        };
        let operands = vec![self.expression(left)?, self.expression(right)?];
        self.operator(name, operands, place)
    }

    /// The operator that the types of its operands mean.
    pub(super) fn operator(&self, name: &'static str, operands: Vec<Typed>, place: Range<usize>) -> Outcome {
        let signature = self.choose_operator(name, &operands, &place)?;
        match signature.action {
            Action::Compare(comparison, compare) => {
                let operands = self.pair(signature, operands)?;
                let node = Node::Compare { comparison, compare, operands: Box::new(operands) };
                self.strict(signature, node, place)
            }
            _ if name == "||" => {
                // Here what is not text is made text, as by a cast that was asked for.
                let cast = |operand: Typed| match operand.of {
                    Type::Unknown | Type::Text => self.coerce(operand, Type::Text).map(|typed| typed.node),
                    from => {
                        let node = Node::Cast { from, to: Type::Text, modifier: None, operand: Box::new(operand.node) };
                        self.folded(node, Type::Text, operand.range).map(|typed| typed.node)
                    }
                };
                let arguments = operands.into_iter().map(cast).collect::<Result<_, _>>()?;
                self.call(signature, arguments, place)
            }
            _ => {
                let arguments = self.coerce_all(signature, operands)?;
                self.call(signature, arguments, place)
            }
        }
    }

    pub(super) fn choose_operator(
        &self,
        name: &str,
        operands: &[Typed],
        place: &Range<usize>,
    ) -> Result<&'static Signature, ExpressionError> {
        let types: Vec<Type> = operands.iter().map(|operand| operand.of).collect();
        let named = OPERATORS.iter().filter(|signature| signature.name == name);
        match choose(named, &types, true) {
            Ok(Signature { action: Action::Refused(reason), .. }) => error(place.clone(), *reason),
            Ok(signature) => Ok(signature),
            Err(reason) => error(place.clone(), no_operator(name, &types, reason)),
        }
    }

    /// How two operands are compared for equality.
    pub(super) fn equality(
        &self,
        left: Typed,
        right: Typed,
        place: &Range<usize>,
    ) -> Result<Equality, ExpressionError> {
        let operands = vec![left, right];
        let signature = self.choose_operator("=", &operands, place)?;
        match signature.action {
            Action::Compare(_, compare) => {
                let operands = self.pair(signature, operands)?;
                Ok(Equality { compare, operands, of: signature.arguments[0], is_stable: signature.is_stable() })
            }
            _ => error(place.clone(), "these are not compared"),
        }
    }

    pub(super) fn equal(&self, left: Typed, right: Typed, place: &Range<usize>) -> Outcome {
        self.operator("=", vec![left, right], place.clone())
    }

    /// As [`Self::folded`], but for what PostgreSQL does not evaluate beforehand, unless it is NULL.
    pub(super) fn folded_unless(&self, is_stable: bool, node: Node, of: Type, place: Range<usize>) -> Outcome {
        match is_stable && !has_null(&node) {
            true => Ok(Typed { node, of, range: place }),
            false => self.folded(node, of, place),
        }
    }

    pub(super) fn pair(&self, signature: &Signature, operands: Vec<Typed>) -> Result<[Node; 2], ExpressionError> {
        let nodes = self.coerce_all(signature, operands)?;
        nodes.try_into().map_err(|_| ExpressionError::new(0..self.text.len(), "an operator has two operands"))
    }

    pub(super) fn coerce_all(&self, signature: &Signature, operands: Vec<Typed>) -> Result<Vec<Node>, ExpressionError> {
        let coerce = |(operand, to): (Typed, &Type)| self.coerce(operand, *to).map(|typed| typed.node);
        operands.into_iter().zip(&signature.arguments).map(coerce).collect()
    }

    pub(super) fn call(&self, signature: &Signature, arguments: Vec<Node>, place: Range<usize>) -> Outcome {
        match signature.action {
            Action::Call(function) => self.strict(signature, Node::Call { function, arguments }, place),
            Action::Refused(reason) => error(place, reason),
            Action::Compare(..) => error(place, "these are not compared"),
        }
    }

    /// Folded, and NULL if any operand is.
    fn strict(&self, signature: &Signature, node: Node, place: Range<usize>) -> Outcome {
        if has_null(&node) {
            return Ok(Typed { node: Node::Constant(Value::Null), of: signature.result, range: place });
        }
        self.folded_unless(signature.is_stable(), node, signature.result, place)
    }

    pub(super) fn like(
        &self,
        name: &'static str,
        negated: bool,
        [text, pattern]: [&Expr; 2],
        escape: Option<&Expr>,
        place: Range<usize>,
    ) -> Outcome {
        let mut operands = vec![self.expression(text)?, self.expression(pattern)?];
        let signature = self.choose_operator(name, &operands, &place)?;
        operands.truncate(signature.arguments.len());
        let mut arguments = self.coerce_all(signature, operands)?;
        if let Some(escape) = escape {
            let typed = self.expression(escape)?;
            arguments.push(self.coerce(typed, Type::Text)?.node);
        }
        let matched = self.call(signature, arguments, place.clone())?;
        match negated {
            true => self.folded(Node::Not(Box::new(matched.node)), Type::Bool, place),
            false => Ok(matched),
        }
    }
}

fn has_null(node: &Node) -> bool {
    node.operands().iter().any(|operand| matches!(operand, Node::Constant(Value::Null)))
}

fn no_operator(name: &str, types: &[Type], reason: NotChosen) -> String {
    let written = match (name, types) {
        ("~~", [left, right]) => format!("{left} LIKE {right}"),
        ("~~*", [left, right]) => format!("{left} ILIKE {right}"),
        (_, [left, right]) => format!("{left} {name} {right}"),
        (_, [operand]) => format!("{} {operand}", name.trim_end_matches('x')),
        _ => name.to_owned(),
    };
    match (reason, types) {
        (NotChosen::Ambiguous, _) => {
            format!("{written} can mean more than one operator; give a literal its type, as in '1'::integer")
        }
        (NotChosen::None, [Type::Json, _] | [_, Type::Json]) => {
            format!("there is no operator {written}; take a value out of json with ->>")
        }
        (NotChosen::None, _) => format!("there is no operator {written}; cast one side with ::"),
    }
}
