//! What rules do to rows on their way: filters and computed columns.

pub mod expression;

pub use expression::{EvaluationError, Expression, ExpressionError, Value};
