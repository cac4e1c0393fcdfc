//! The tokens of an expression of SQLite's to a tree of PostgreSQL's. Operators bind as in SQLite ("SQL Language Expressions",
//! Operators): `||` most tightly, then `* / %`, `+ -`, order, equality, NOT, AND, OR.

use super::functions;
use super::lexer::Token;
use super::sql::{Operator, Sql};
use super::{Context, headers};

/// Bounds the stack.
const DEPTH_MAX: usize = 50;

/// How tightly an operator binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Or,
    And,
    Equality,
    Order,
    Sum,
    Product,
    Concatenation,
}

impl Level {
    fn tighter(self) -> Option<Level> {
        match self {
            Level::Or => Some(Level::And),
            Level::And => Some(Level::Equality),
            Level::Equality => Some(Level::Order),
            Level::Order => Some(Level::Sum),
            Level::Sum => Some(Level::Product),
            Level::Product => Some(Level::Concatenation),
            Level::Concatenation => None,
        }
    }
}

pub(super) struct Parser<'t> {
    tokens: &'t [Token],
    at: usize,
    depth: usize,
    context: &'t mut Context,
}

type Outcome = Result<Sql, String>;

pub(super) fn parse(tokens: &[Token], context: &mut Context) -> Outcome {
    let mut parser = Parser { tokens, at: 0, depth: 0, context };
    let tree = parser.expression()?;
    match parser.peek() {
        None => Ok(tree),
        Some(token) => Err(format!("the expression goes on with {} where it should end", shown(token))),
    }
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn takes_sign(&mut self, sign: &str) -> bool {
        let is_next = matches!(self.peek(), Some(Token::Sign(next)) if *next == sign);
        self.at += usize::from(is_next);
        is_next
    }

    fn is_word(&self, ahead: usize, word: &str) -> bool {
        matches!(self.tokens.get(self.at + ahead), Some(Token::Word(next)) if next.eq_ignore_ascii_case(word))
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let is_next = self.is_word(0, word);
        self.at += usize::from(is_next);
        is_next
    }

    fn expect_sign(&mut self, sign: &str) -> Result<(), String> {
        if self.takes_sign(sign) { Ok(()) } else { Err(format!("{sign} is expected before {}", self.next_shown())) }
    }

    fn expect_word(&mut self, word: &str) -> Result<(), String> {
        if self.takes_word(word) { Ok(()) } else { Err(format!("{word} is expected before {}", self.next_shown())) }
    }

    fn next_shown(&self) -> String {
        self.peek().map_or("the end".to_owned(), shown)
    }

    fn expression(&mut self) -> Outcome {
        if self.depth == DEPTH_MAX {
            return Err("the expression is nested too deeply".to_owned());
        }
        self.depth += 1;
        let tree = self.operation(Level::Or);
        self.depth -= 1;
        tree
    }

    /// Operators of this level, from the left, over what binds more tightly.
    fn operation(&mut self, level: Level) -> Outcome {
        let mut tree = self.operand(level)?;
        loop {
            if level == Level::Equality
                && let Some(condition) = self.condition(&tree)?
            {
                tree = condition;
                continue;
            }
            let Some(operator) = self.takes_operator(level) else { return Ok(tree) };
            let right = self.operand(level)?;
            tree = Sql::Binary(operator, Box::new(tree), Box::new(right));
        }
    }

    fn operand(&mut self, level: Level) -> Outcome {
        if level == Level::And && self.takes_word("NOT") {
            // A chain of them is as deep as it is long.
            self.depth += 1;
            if self.depth >= DEPTH_MAX {
                return Err("the expression is nested too deeply".to_owned());
            }
            let operand = self.operand(Level::And);
            self.depth -= 1;
            return Ok(Sql::Not(Box::new(operand?)));
        }
        match level.tighter() {
            Some(tighter) => self.operation(tighter),
            None => self.primary(),
        }
    }

    fn takes_operator(&mut self, level: Level) -> Option<Operator> {
        let words: &[(&str, Operator)] = match level {
            Level::Or => &[("OR", Operator::Or)],
            Level::And => &[("AND", Operator::And)],
            Level::Equality | Level::Order | Level::Sum | Level::Product | Level::Concatenation => &[],
        };
        let signs: &[(&str, Operator)] = match level {
            Level::Or | Level::And => &[],
            Level::Equality => &[
                ("=", Operator::Equal),
                ("==", Operator::Equal),
                ("<>", Operator::NotEqual),
                ("!=", Operator::NotEqual),
            ],
            Level::Order => &[
                ("<", Operator::Less),
                ("<=", Operator::LessOrEqual),
                (">", Operator::Greater),
                (">=", Operator::GreaterOrEqual),
            ],
            Level::Sum => &[("+", Operator::Add), ("-", Operator::Subtract)],
            Level::Product => &[("*", Operator::Multiply), ("/", Operator::Divide), ("%", Operator::Remainder)],
            Level::Concatenation => &[("||", Operator::Concatenate)],
        };
        let word = words.iter().find(|(word, _)| self.takes_word(word));
        word.or_else(|| signs.iter().find(|(sign, _)| self.takes_sign(sign))).map(|(_, operator)| *operator)
    }

    /// IS, IN, BETWEEN and the like behind their operand.
    fn condition(&mut self, operand: &Sql) -> Result<Option<Sql>, String> {
        let operand = Box::new(operand.clone());
        if self.takes_word("IS") {
            let negated = self.takes_word("NOT");
            let right = self.operation(Level::Order)?;
            return Ok(Some(match (right, negated) {
                (Sql::Null, _) => Sql::IsNull { negated, operand },
                (right, false) => Sql::Binary(Operator::Is, operand, Box::new(right)),
                (right, true) => Sql::Binary(Operator::IsNot, operand, Box::new(right)),
            }));
        }
        if self.takes_word("ISNULL") {
            return Ok(Some(Sql::IsNull { negated: false, operand }));
        }
        if self.takes_word("NOTNULL") {
            return Ok(Some(Sql::IsNull { negated: true, operand }));
        }
        if self.is_word(0, "NOT") && self.is_word(1, "NULL") {
            self.at += 2;
            return Ok(Some(Sql::IsNull { negated: true, operand }));
        }
        let negated = self.takes_word("NOT");
        if self.takes_word("IN") {
            self.expect_sign("(")?;
            let list = self.list_to_parenthesis()?;
            return if list.is_empty() {
                Err("IN has an empty list".to_owned())
            } else {
                Ok(Some(Sql::In { negated, operand, list }))
            };
        }
        if self.takes_word("BETWEEN") {
            let low = Box::new(self.operation(Level::Order)?);
            self.expect_word("AND")?;
            let high = Box::new(self.operation(Level::Order)?);
            return Ok(Some(Sql::Between { negated, operand, low, high }));
        }
        if self.takes_word("LIKE") {
            return self.like(negated, operand).map(Some);
        }
        match ["GLOB", "REGEXP", "MATCH", "COLLATE"].into_iter().find(|word| self.is_word(0, word)) {
            Some(word) => Err(format!("{word} has no equal here")),
            None if negated => {
                Err(format!("NOT stands before {}, where IN, BETWEEN or LIKE is expected", self.next_shown()))
            }
            None => Ok(None),
        }
    }

    fn like(&mut self, negated: bool, operand: Box<Sql>) -> Outcome {
        let pattern = Box::new(self.operation(Level::Order)?);
        if !self.takes_word("ESCAPE") {
            // In SQLite a backslash is a character like others.
            let may_have_backslash = !matches!(&*pattern, Sql::Text(text) if !text.contains('\\'));
            let escape = may_have_backslash.then(String::new);
            return Ok(Sql::Like { negated, operand, pattern, escape });
        }
        match self.primary()? {
            Sql::Text(escape) if escape.chars().count() == 1 => {
                Ok(Sql::Like { negated, operand, pattern, escape: Some(escape) })
            }
            _ => Err("ESCAPE takes one character".to_owned()),
        }
    }

    fn primary(&mut self) -> Outcome {
        let Some(token) = self.peek().cloned() else {
            return Err("the expression ends where a value is expected".to_owned());
        };
        self.at += 1;
        match token {
            Token::Text(text) => Ok(Sql::Text(text)),
            Token::Number(number) => Ok(Sql::Number(number)),
            Token::Dollar(name) => headers::value(&name, self.context),
            Token::Sign("(") => {
                let inner = self.expression()?;
                self.expect_sign(")")?;
                Ok(inner)
            }
            Token::Sign(sign @ ("-" | "+")) => {
                self.depth += 1;
                if self.depth >= DEPTH_MAX {
                    return Err("the expression is nested too deeply".to_owned());
                }
                let operand = self.primary();
                self.depth -= 1;
                Ok(Sql::Sign(sign, Box::new(operand?)))
            }
            Token::Sign(sign) => Err(format!("{sign} stands where a value is expected")),
            Token::Word(word) => self.word(&word),
        }
    }

    fn word(&mut self, word: &str) -> Outcome {
        let word = word.to_ascii_lowercase();
        match word.as_str() {
            "null" => return Ok(Sql::Null),
            "true" => return Ok(Sql::True),
            "false" => return Ok(Sql::False),
            "case" => return self.case(),
            _ => {}
        }
        if !self.takes_sign("(") {
            return Err(match word.as_str() {
                "current_timestamp" | "current_date" | "current_time" => {
                    format!("{word} depends on the clock, and a row must come out the same whenever it is evaluated")
                }
                _ => format!("{word} is no function; a column is written ${word}"),
            });
        }
        if word == "cast" {
            return self.cast();
        }
        let arguments = self.list_to_parenthesis()?;
        functions::call(&word, arguments, self.context)
    }

    fn list_to_parenthesis(&mut self) -> Result<Vec<Sql>, String> {
        let mut list = Vec::new();
        if self.takes_sign(")") {
            return Ok(list);
        }
        loop {
            list.push(self.expression()?);
            if self.takes_sign(")") {
                return Ok(list);
            }
            self.expect_sign(",")?;
        }
    }

    fn case(&mut self) -> Outcome {
        let operand = if self.is_word(0, "WHEN") { None } else { Some(Box::new(self.expression()?)) };
        let mut branches = Vec::new();
        while self.takes_word("WHEN") {
            let when = self.expression()?;
            self.expect_word("THEN")?;
            branches.push((when, self.expression()?));
        }
        if branches.is_empty() {
            return Err("CASE has no WHEN".to_owned());
        }
        let otherwise = if self.takes_word("ELSE") { Some(Box::new(self.expression()?)) } else { None };
        self.expect_word("END")?;
        Ok(Sql::Case { operand, branches, otherwise })
    }

    fn cast(&mut self) -> Outcome {
        let operand = self.expression()?;
        self.expect_word("AS")?;
        let Some(Token::Word(name)) = self.peek().cloned() else {
            return Err(format!("CAST takes the name of a type before {}", self.next_shown()));
        };
        self.at += 1;
        if self.takes_sign("(") {
            self.list_to_parenthesis()?;
        }
        self.expect_sign(")")?;
        functions::cast(operand, &name, self.context)
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Dollar(name) => format!("${name}"),
        Token::Word(word) => word.clone(),
        Token::Text(text) => format!("'{text}'"),
        Token::Number(number) => number.clone(),
        Token::Sign(sign) => (*sign).to_owned(),
    }
}
