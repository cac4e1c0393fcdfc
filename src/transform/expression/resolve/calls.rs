//! Functions, and the forms of the grammar that are functions.

use std::cmp::Ordering;
use std::ops::Range;

use sqlparser::ast::{
    CeilFloorKind, DateTimeField, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, TrimWhereField,
};

use super::super::error::ExpressionError;
use super::super::evaluate::Node;
use super::super::functions::{FUNCTIONS, SPECIAL, refusal};
use super::super::signature::{NotChosen, choose};
use super::super::temporal::{TRUNCATION_UNITS, units_of};
use super::super::types::Type;
use super::super::value::Value;
use super::{Outcome, Resolver, Typed, error};

impl Resolver<'_> {
    pub(super) fn function(&self, function: &Function, place: Range<usize>) -> Outcome {
        let name = function.name.to_string().to_lowercase();
        let name = name.strip_prefix("pg_catalog.").unwrap_or(&name);
        let is_known = SPECIAL.contains(&name) || FUNCTIONS.iter().any(|signature| signature.name == name);
        if !is_known {
            return error(place, refusal(name));
        }
        let trees = self.arguments_of(function, &place)?;
        let arguments = trees.iter().map(|tree| self.expression(tree)).collect::<Result<Vec<_>, _>>()?;
        match (name, arguments.len()) {
            ("coalesce", 1..) => self.coalesce(arguments, place),
            ("greatest", 1..) => self.extreme(Ordering::Greater, arguments, place),
            ("least", 1..) => self.extreme(Ordering::Less, arguments, place),
            ("concat", 1..) => self.concat(arguments, place),
            ("nullif", 2) => {
                let mut arguments = arguments.into_iter();
                match (arguments.next(), arguments.next()) {
                    (Some(left), Some(right)) => self.null_if(left, right, place),
                    _ => error(place, "NULLIF has two arguments"),
                }
            }
            ("date_trunc", 2) => self.with_unit(name, &TRUNCATION_UNITS, arguments, place),
            ("date_part", 2) => self.with_unit(name, units_of(arguments[1].of), arguments, place),
            ("extract", _) => error(place, "write it as EXTRACT(year FROM …)"),
            _ => self.named(name, arguments, place),
        }
    }

    fn arguments_of<'t>(&self, function: &'t Function, place: &Range<usize>) -> Result<Vec<&'t Expr>, ExpressionError> {
        let plain = function.filter.is_none()
            && function.over.is_none()
            && function.within_group.is_empty()
            && function.null_treatment.is_none()
            && matches!(function.parameters, FunctionArguments::None);
        let FunctionArguments::List(list) = &function.args else {
            return error(place.clone(), "a function is called with its arguments in parentheses");
        };
        if !plain || list.duplicate_treatment.is_some() || !list.clauses.is_empty() {
            return error(
                place.clone(),
                "aggregates and window functions are not supported: an expression sees one row",
            );
        }
        let argument = |argument: &'t FunctionArg| match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(tree)) => Ok(tree),
            _ => error(place.clone(), "arguments are given by their order, without names"),
        };
        list.args.iter().map(argument).collect()
    }

    /// The function of this name that the types of its arguments mean.
    fn named(&self, name: &str, arguments: Vec<Typed>, place: Range<usize>) -> Outcome {
        let types: Vec<Type> = arguments.iter().map(|argument| argument.of).collect();
        let named = || FUNCTIONS.iter().filter(|signature| signature.name == name);
        match choose(named(), &types, false) {
            Ok(signature) => {
                let arguments = self.coerce_all(signature, arguments)?;
                self.call(signature, arguments, place)
            }
            Err(reason) => {
                let list = |types: &[Type]| types.iter().map(|each| each.name()).collect::<Vec<_>>().join(", ");
                let forms: Vec<String> = named().map(|each| format!("{name}({})", list(&each.arguments))).collect();
                let what = if reason == NotChosen::None { "there is no" } else { "more than one function fits" };
                error(place, format!("{what} {name}({}); there is {}", list(&types), forms.join(", ")))
            }
        }
    }

    /// The text of every argument that is not NULL, by its type's output function.
    fn concat(&self, arguments: Vec<Typed>, place: Range<usize>) -> Outcome {
        let text = |argument: Typed| match argument.of {
            Type::Unknown => self.coerce(argument, Type::Text).map(|typed| typed.node),
            _ => Ok(argument.node),
        };
        let nodes = arguments.into_iter().map(text).collect::<Result<_, _>>()?;
        self.folded(Node::Concat(nodes), Type::Text, place)
    }

    /// A function whose first argument is one of these units, in letters of any case.
    fn with_unit(&self, name: &str, units: &[&str], mut arguments: Vec<Typed>, place: Range<usize>) -> Outcome {
        let Node::Constant(Value::Text(unit)) = &arguments[0].node else {
            return error(arguments[0].range.clone(), format!("write the unit of {name} as a literal"));
        };
        let unit = unit.to_lowercase();
        if !units.contains(&unit.as_str()) {
            let message = format!("{name} has no unit {unit} here; there is {}", units.join(", "));
            return error(arguments[0].range.clone(), message);
        }
        arguments[0].node = Node::Constant(Value::Text(unit.into()));
        self.named(name, arguments, place)
    }

    pub(super) fn special_call(&self, tree: &Expr, place: Range<usize>) -> Outcome {
        match tree {
            Expr::Extract { field, expr, .. } => self.extract(field, expr, place),
            Expr::Ceil { expr, field: CeilFloorKind::DateTimeField(DateTimeField::NoDateTime) } => {
                self.call_of("ceil", &[expr], place)
            }
            Expr::Floor { expr, field: CeilFloorKind::DateTimeField(DateTimeField::NoDateTime) } => {
                self.call_of("floor", &[expr], place)
            }
            Expr::Position { expr, r#in } => self.call_of("strpos", &[r#in, expr], place),
            Expr::Substring { expr, substring_from, substring_for, .. } => {
                match (substring_from.as_deref(), substring_for.as_deref()) {
                    (Some(from), None) => self.call_of("substring", &[expr, from], place),
                    (Some(from), Some(length)) => self.call_of("substring", &[expr, from, length], place),
                    _ => error(place, "write it as SUBSTRING(text FROM position FOR length)"),
                }
            }
            Expr::Trim { expr, trim_where, trim_what, trim_characters: None } => {
                let name = match trim_where {
                    None | Some(TrimWhereField::Both) => "btrim",
                    Some(TrimWhereField::Leading) => "ltrim",
                    Some(TrimWhereField::Trailing) => "rtrim",
                };
                match trim_what.as_deref() {
                    None => self.call_of(name, &[expr], place),
                    Some(what) => self.call_of(name, &[expr, what], place),
                }
            }
            _ => error(place, "this form is not supported in expressions"),
        }
    }

    fn call_of(&self, name: &str, trees: &[&Expr], place: Range<usize>) -> Outcome {
        let arguments = trees.iter().map(|tree| self.expression(tree)).collect::<Result<Vec<_>, _>>()?;
        self.named(name, arguments, place)
    }

    fn extract(&self, field: &DateTimeField, tree: &Expr, place: Range<usize>) -> Outcome {
        let value = self.expression(tree)?;
        let unit = field.to_string().to_lowercase();
        if value.of == Type::Unknown {
            return error(value.range, "give the literal its type, as in DATE '2024-02-29'");
        }
        let units = units_of(value.of);
        if !units.contains(&unit.as_str()) {
            let message = format!("EXTRACT has no {unit} of {} here; there is {}", value.of, units.join(", "));
            return error(place, message);
        }
        let unit = Typed { node: Node::Constant(Value::Text(unit.into())), of: Type::Text, range: place.clone() };
        self.named("extract", vec![unit, value], place)
    }
}
