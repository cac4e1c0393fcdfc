//! Types by name, literals of a type, and casts.

use std::ops::Range;

use sqlparser::ast::{CharacterLength, DataType, ExactNumberInfo, Expr, Interval, TimezoneInfo, Value as Literal};

use super::super::cast::{Modifier, cast, is_castable};
use super::super::error::ExpressionError;
use super::super::evaluate::Node;
use super::super::input::read_text;
use super::super::types::{Category, Type};
use super::super::value::Value;
use super::{Outcome, Resolver, Typed, error};

impl Resolver<'_> {
    /// The same as another type, by a cast that PostgreSQL makes by itself.
    pub(super) fn coerce(&self, typed: Typed, to: Type) -> Outcome {
        if typed.of == to {
            return Ok(typed);
        }
        if !typed.of.casts_implicitly_to(to) {
            let message = format!("this is {}, and {to} is needed; cast it with ::", typed.of);
            return error(typed.range, message);
        }
        self.converted(typed, to, None)
    }

    pub(super) fn explicit_cast(&self, tree: &Expr, name: &DataType, place: Range<usize>) -> Outcome {
        let typed = self.expression(tree)?;
        let (to, modifier) = self.type_named(name, &place)?;
        if !is_castable(typed.of, to) {
            let moment = typed.of.is_string() && matches!(to.category(), Category::DateTime | Category::Timespan);
            let reason = match moment {
                true => "; what a text means as a moment depends on the settings of a session",
                false => "",
            };
            return error(place, format!("there is no cast here from {} to {to}{reason}", typed.of));
        }
        self.converted(typed, to, modifier)
    }

    fn converted(&self, typed: Typed, to: Type, modifier: Option<Modifier>) -> Outcome {
        let Typed { node, of: from, range } = typed;
        if let (Type::Unknown, Node::Constant(value)) = (from, &node) {
            let value = self.literal_of(value, to, modifier, &range)?;
            return Ok(Typed { node: Node::Constant(value), of: to, range });
        }
        if from == to && modifier.is_none() {
            return Ok(Typed { node, of: to, range });
        }
        self.folded(Node::Cast { from, to, modifier, operand: Box::new(node) }, to, range)
    }

    /// What a quoted literal is, once its type is known.
    fn literal_of(
        &self,
        value: &Value<'static>,
        to: Type,
        modifier: Option<Modifier>,
        range: &Range<usize>,
    ) -> Result<Value<'static>, ExpressionError> {
        let Value::Text(text) = value else { return Ok(Value::Null) };
        if matches!(to, Type::Json | Type::Jsonb) {
            return error(range.clone(), format!("literals of type {to} are not supported"));
        }
        let read = read_text(text, to).map(Value::into_owned).and_then(|value| cast(value, to, to, modifier));
        read.map_err(|_| ExpressionError::new(range.clone(), format!("this is no value of type {to}{}", example(to))))
    }

    /// `DATE '2024-02-29'` and the like.
    pub(super) fn typed_literal(&self, name: &DataType, literal: &Literal, place: Range<usize>) -> Outcome {
        let typed = self.literal(literal, place.clone())?;
        let (to, modifier) = self.type_named(name, &place)?;
        self.converted(typed, to, modifier)
    }

    pub(super) fn interval_literal(&self, interval: &Interval, place: Range<usize>) -> Outcome {
        if interval.leading_field.is_some() || interval.last_field.is_some() {
            return error(place, "write the unit inside of the quotes, as in INTERVAL '1 day'");
        }
        match &*interval.value {
            Expr::Value(value) => {
                let typed = self.literal(&value.value, place)?;
                self.converted(typed, Type::Interval, None)
            }
            _ => error(place, "write the interval in quotes, as in INTERVAL '1 day'"),
        }
    }

    fn type_named(&self, name: &DataType, place: &Range<usize>) -> Result<(Type, Option<Modifier>), ExpressionError> {
        let plain = match name {
            DataType::Bool | DataType::Boolean => Type::Bool,
            DataType::SmallInt(None) | DataType::Int2(None) => Type::Int2,
            DataType::Int(None) | DataType::Integer(None) | DataType::Int4(None) => Type::Int4,
            DataType::BigInt(None) | DataType::Int8(None) => Type::Int8,
            DataType::Numeric(info) | DataType::Decimal(info) | DataType::Dec(info) => return numeric(info, place),
            DataType::Real | DataType::Float4 => Type::Float4,
            DataType::DoublePrecision | DataType::Float8 | DataType::Float(ExactNumberInfo::None) => Type::Float8,
            DataType::Text => Type::Text,
            DataType::Varchar(length) | DataType::CharacterVarying(length) | DataType::CharVarying(length) => {
                return string(Type::Varchar, *length, place);
            }
            DataType::Char(length) | DataType::Character(length) => {
                let one = CharacterLength::IntegerLength { length: 1, unit: None };
                return string(Type::Bpchar, Some(length.unwrap_or(one)), place);
            }
            DataType::Date => Type::Date,
            DataType::Time(None, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => Type::Time,
            DataType::Timestamp(None, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => Type::Timestamp,
            DataType::Timestamp(None, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => Type::Timestamptz,
            DataType::Interval { fields: None, precision: None } => Type::Interval,
            DataType::Uuid => Type::Uuid,
            DataType::JSON => Type::Json,
            DataType::JSONB => Type::Jsonb,
            DataType::Custom(name, modifiers) if modifiers.is_empty() => match name.to_string().as_str() {
                "bpchar" => Type::Bpchar,
                _ => return error(place.clone(), format!("the type {name} is not supported in expressions")),
            },
            _ => return error(place.clone(), format!("the type {name} is not supported in expressions")),
        };
        Ok((plain, None))
    }
}

fn numeric(info: &ExactNumberInfo, place: &Range<usize>) -> Result<(Type, Option<Modifier>), ExpressionError> {
    let (precision, scale) = match info {
        ExactNumberInfo::None => return Ok((Type::Numeric, None)),
        ExactNumberInfo::Precision(precision) => (*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (*precision, *scale),
    };
    match (i32::try_from(precision), i32::try_from(scale)) {
        (Ok(precision @ 1..=1_000), Ok(scale @ -1_000..=1_000)) => {
            Ok((Type::Numeric, Some(Modifier::Numeric { precision, scale })))
        }
        _ => error(place.clone(), "the precision of numeric is 1 to 1000, and its scale -1000 to 1000"),
    }
}

fn string(
    of: Type,
    length: Option<CharacterLength>,
    place: &Range<usize>,
) -> Result<(Type, Option<Modifier>), ExpressionError> {
    /// `MaxAttrSize`.
    const LENGTH_MAX: u64 = 10_485_760;
    match length {
        None => Ok((of, None)),
        Some(CharacterLength::IntegerLength { length: length @ 1..=LENGTH_MAX, .. }) => {
            Ok((of, Some(Modifier::Length(length as usize))))
        }
        _ => error(place.clone(), format!("the length of {of} is 1 to {LENGTH_MAX}")),
    }
}

/// How a literal of this type is written, where there is more than one way in PostgreSQL.
fn example(of: Type) -> &'static str {
    match of {
        Type::Date => "; write it as '2024-02-29'",
        Type::Time => "; write it as '04:05:06'",
        Type::Timestamp => "; write it as '2024-02-29 04:05:06'",
        Type::Timestamptz => "; write it as '2024-02-29 04:05:06+00'",
        Type::Interval => "; write it as '1 year 2 mons 3 days 04:05:06'",
        _ => "",
    }
}
