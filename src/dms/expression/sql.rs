//! The tree of an expression as PostgreSQL has it, and its text.

use sqlparser::ast::{BinaryOperator, Expr};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Token;

use crate::postgres::{quote_ident, quote_literal};

#[derive(Clone, Debug, PartialEq)]
pub enum Sql {
    Column(String),
    /// What is known of the change and its table: `$op`.
    Placeholder(&'static str),
    Text(String),
    Number(String),
    Null,
    True,
    False,
    Sign(&'static str, Box<Sql>),
    Binary(Operator, Box<Sql>, Box<Sql>),
    Not(Box<Sql>),
    IsNull {
        negated: bool,
        operand: Box<Sql>,
    },
    In {
        negated: bool,
        operand: Box<Sql>,
        list: Vec<Sql>,
    },
    Between {
        negated: bool,
        operand: Box<Sql>,
        low: Box<Sql>,
        high: Box<Sql>,
    },
    /// Without regard to the case of letters, as SQLite's LIKE.
    Like {
        negated: bool,
        operand: Box<Sql>,
        pattern: Box<Sql>,
        escape: Option<String>,
    },
    Case {
        operand: Option<Box<Sql>>,
        branches: Vec<(Sql, Sql)>,
        otherwise: Option<Box<Sql>>,
    },
    Call(&'static str, Vec<Sql>),
    Cast(Box<Sql>, &'static str),
    /// `extract(unit FROM operand)`.
    Extract(&'static str, Box<Sql>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Equality in which NULL is a value.
    Is,
    IsNot,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Concatenate,
}

impl Sql {
    pub fn text(text: &str) -> Sql {
        Sql::Text(text.to_owned())
    }

    pub fn cast(self, to: &'static str) -> Sql {
        Sql::Cast(Box::new(self), to)
    }

    /// Its value is true or false, which SQLite has as 1 and 0.
    pub fn is_condition(&self) -> bool {
        match self {
            Sql::Binary(operator, _, _) => operator.compares() || operator.joins(),
            Sql::True | Sql::False | Sql::Not(_) => true,
            Sql::IsNull { .. } | Sql::In { .. } | Sql::Between { .. } | Sql::Like { .. } => true,
            Sql::Column(_)
            | Sql::Placeholder(_)
            | Sql::Text(_)
            | Sql::Number(_)
            | Sql::Null
            | Sql::Sign(..)
            | Sql::Case { .. }
            | Sql::Call(..)
            | Sql::Cast(..)
            | Sql::Extract(..) => false,
        }
    }

    /// It stands in no need of parentheses anywhere.
    fn is_atom(&self) -> bool {
        match self {
            Sql::Column(_) | Sql::Placeholder(_) | Sql::Text(_) | Sql::Number(_) => true,
            Sql::Null | Sql::True | Sql::False => true,
            Sql::Case { .. } | Sql::Call(..) | Sql::Cast(..) | Sql::Extract(..) => true,
            Sql::Sign(..) | Sql::Binary(..) | Sql::Not(_) => false,
            Sql::IsNull { .. } | Sql::In { .. } | Sql::Between { .. } | Sql::Like { .. } => false,
        }
    }

    pub fn write(&self) -> String {
        let not = |negated: bool| if negated { "NOT " } else { "" };
        match self {
            Sql::Column(name) => column(name),
            Sql::Placeholder(name) => (*name).to_owned(),
            Sql::Text(text) => quote_literal(text),
            Sql::Number(number) => number.clone(),
            Sql::Null => "NULL".to_owned(),
            Sql::True => "TRUE".to_owned(),
            Sql::False => "FALSE".to_owned(),
            Sql::Sign(sign, operand) => format!("{sign}{}", operand.within()),
            Sql::Binary(operator, left, right) => binary(*operator, left, right),
            Sql::Not(operand) => format!("NOT {}", operand.within()),
            Sql::IsNull { negated, operand } => format!("{} IS {}NULL", operand.within(), not(*negated)),
            Sql::In { negated, operand, list } => {
                format!("{} {}IN ({})", operand.within(), not(*negated), comma_separated(list))
            }
            Sql::Between { negated, operand, low, high } => {
                let (low, high) = (low.within(), high.within());
                format!("{} {}BETWEEN {low} AND {high}", operand.within(), not(*negated))
            }
            Sql::Like { negated, operand, pattern, escape } => {
                let escape = escape.as_deref().map(|escape| format!(" ESCAPE {}", quote_literal(escape)));
                let (operand, pattern) = (operand.within(), pattern.within());
                format!("{operand} {}ILIKE {pattern}{}", not(*negated), escape.unwrap_or_default())
            }
            Sql::Case { operand, branches, otherwise } => case(operand.as_deref(), branches, otherwise.as_deref()),
            Sql::Call(function, arguments) => format!("{function}({})", comma_separated(arguments)),
            Sql::Cast(operand, to) => format!("CAST({} AS {to})", operand.write()),
            Sql::Extract(unit, operand) => format!("extract({unit} FROM {})", operand.write()),
        }
    }

    /// As an operand.
    fn within(&self) -> String {
        if self.is_atom() { self.write() } else { format!("({})", self.write()) }
    }
}

impl Operator {
    fn sign(self) -> &'static str {
        match self {
            Operator::Or => "OR",
            Operator::And => "AND",
            Operator::Equal => "=",
            Operator::NotEqual => "<>",
            Operator::Less => "<",
            Operator::LessOrEqual => "<=",
            Operator::Greater => ">",
            Operator::GreaterOrEqual => ">=",
            Operator::Is => "IS NOT DISTINCT FROM",
            Operator::IsNot => "IS DISTINCT FROM",
            Operator::Add => "+",
            Operator::Subtract => "-",
            Operator::Multiply => "*",
            Operator::Divide => "/",
            Operator::Remainder => "%",
            Operator::Concatenate => "||",
        }
    }

    fn joins(self) -> bool {
        matches!(self, Operator::And | Operator::Or)
    }

    fn compares(self) -> bool {
        match self {
            Operator::Equal | Operator::NotEqual | Operator::Is | Operator::IsNot => true,
            Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual => true,
            Operator::Or | Operator::And | Operator::Concatenate => false,
            Operator::Add | Operator::Subtract | Operator::Multiply | Operator::Divide | Operator::Remainder => false,
        }
    }
}

/// The precedence of `||` is another in PostgreSQL, so parentheses stand wherever they could be missed.
fn binary(operator: Operator, left: &Sql, right: &Sql) -> String {
    let side = |side: &Sql, is_left: bool| match side {
        Sql::Binary(inner, _, _) if is_left && *inner == operator && !operator.compares() => side.write(),
        Sql::Binary(inner, _, _) if inner.joins() => side.within(),
        _ if operator.joins() => side.write(),
        _ => side.within(),
    };
    format!("{} {} {}", side(left, true), operator.sign(), side(right, false))
}

fn case(operand: Option<&Sql>, branches: &[(Sql, Sql)], otherwise: Option<&Sql>) -> String {
    let operand = operand.map(|operand| format!(" {}", operand.write())).unwrap_or_default();
    let branch = |(when, then): &(Sql, Sql)| format!(" WHEN {} THEN {}", when.write(), then.write());
    let otherwise = otherwise.map(|otherwise| format!(" ELSE {}", otherwise.write())).unwrap_or_default();
    format!("CASE{operand}{}{otherwise} END", branches.iter().map(branch).collect::<String>())
}

fn comma_separated(list: &[Sql]) -> String {
    list.iter().map(Sql::write).collect::<Vec<_>>().join(", ")
}

/// What PostgreSQL takes for no column without quotes ("SQL Key Words": reserved, with those that can be functions or types).
#[rustfmt::skip]
const RESERVED: [&str; 101] = [
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "authorization", "binary", "both", "case",
    "cast", "check", "collate", "collation", "column", "concurrently", "constraint", "create", "cross", "current_catalog",
    "current_date", "current_role", "current_schema", "current_time", "current_timestamp", "current_user", "default",
    "deferrable", "desc", "distinct", "do", "else", "end", "except", "false", "fetch", "for", "foreign", "freeze", "from",
    "full", "grant", "group", "having", "ilike", "in", "initially", "inner", "intersect", "into", "is", "isnull", "join",
    "lateral", "leading", "left", "like", "limit", "localtime", "localtimestamp", "natural", "not", "notnull", "null",
    "offset", "on", "only", "or", "order", "outer", "overlaps", "placing", "primary", "references", "returning", "right",
    "select", "session_user", "similar", "some", "symmetric", "system_user", "table", "tablesample", "then", "to",
    "trailing", "true", "union", "unique", "user", "using", "variadic", "verbose", "when", "where",
    "window", "with",
];

/// In quotes unless it is plain and no word of SQL.
fn column(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if is_plain && !RESERVED.contains(&name) && is_read_as_column(name) { name.to_owned() } else { quote_ident(name) }
}

/// Our parser has words of its own.
fn is_read_as_column(name: &str) -> bool {
    let is_column = |tree: &Expr| matches!(tree, Expr::Identifier(ident) if ident.value == name);
    match parse(&format!("{name} = {name}")) {
        Ok(Expr::BinaryOp { left, op: BinaryOperator::Eq, right }) => is_column(&left) && is_column(&right),
        Ok(_) | Err(_) => false,
    }
}

/// Whether what has been written can be read.
pub fn check(text: &str) -> Result<(), String> {
    parse(text).map(drop)
}

fn parse(text: &str) -> Result<Expr, String> {
    let parse = || {
        let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(text)?;
        let tree = parser.parse_expr()?;
        Ok::<_, ParserError>((tree, parser.peek_token().token))
    };
    match parse() {
        Ok((tree, Token::EOF)) => Ok(tree),
        Ok((_, next)) => Err(format!("it ends before {next}")),
        Err(error) => Err(error.to_string()),
    }
}
