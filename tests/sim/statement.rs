//! The statements that the engine makes, read by their fixed forms. Any other text is a panic that shows it: whoever
//! changes a statement has to say here what it means.

use std::iter::Peekable;
use std::vec::IntoIter;

use super::history::Form;
use super::tables::{SCHEMA, TABLES};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    Begin {
        is_read_write: bool,
    },
    Commit,
    Rollback,
    Savepoint,
    RollbackToSavepoint,
    ReleaseSavepoint,
    /// Of no effect here: what is checked late is no matter, settings but for one.
    Nothing,
    /// Has foreign keys and triggers rest.
    SetReplicationRole,
    /// Has the session write only in blocks that say so.
    SetReadOnly,
    SetSynchronous {
        is_on: bool,
        is_local: bool,
    },
    Progress(ProgressStatement),
    /// What the catalog says of tables, whose names are the parameter.
    Catalog,
    /// What commits of the session wait for.
    Level,
    /// Where WAL ends, how far it is flushed, and whether there are synchronous standbys.
    Positions,
    /// The keys of tables, whose names are the first parameter.
    Keys,
    /// The session's process.
    Process,
    /// Whether one of these processes waits for the session.
    InTheWay,
    /// Whether anybody waits for this session.
    WaitedFor,
    /// Which of the engine's tables are missing: none is.
    Missing,
    Truncate(Vec<usize>),
    Rows(RowStatement),
    Copy {
        table: usize,
        columns: Vec<usize>,
        form: Form,
    },
}

/// About the row of `pgsluice.progress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressStatement {
    Exists,
    Read,
    /// Raises the epoch.
    Fence,
    /// Waits for all who hold the row, under an epoch.
    Lock,
    /// Looks whether an epoch is still the one.
    Check,
    /// Under an epoch.
    Hold,
    /// The same, beside others of the epoch.
    HoldBeside,
    Advance,
}

/// A change of rows. Positions of columns, each with the number of its parameter, from 0 on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowStatement {
    pub table: usize,
    pub operation: Operation,
    /// Parameters are arrays, with a row in each place.
    pub is_set: bool,
    pub values: Vec<(usize, usize)>,
    /// The key that finds the row.
    pub key: Vec<(usize, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Insert,
    Update,
    /// An update that sets nothing: the row has to be there.
    Lock,
    Delete,
}

const PROGRESS: [(&str, ProgressStatement); 8] = [
    ("SELECT to_regclass('pgsluice.progress') IS NOT NULL", ProgressStatement::Exists),
    (
        "SELECT system_identifier, timeline, slot, consistent_point, end_lsn, commit_time, epoch, fallbacks \
         FROM pgsluice.progress WHERE name = $1",
        ProgressStatement::Read,
    ),
    (
        "UPDATE pgsluice.progress SET epoch = GREATEST(epoch, $3) + 1, timeline = $2, updated_at = now() \
         WHERE name = $1 AND epoch <= COALESCE($3, epoch) \
         RETURNING system_identifier, timeline, slot, consistent_point, end_lsn, commit_time, epoch, fallbacks",
        ProgressStatement::Fence,
    ),
    (
        "SELECT system_identifier, timeline, slot, consistent_point, end_lsn, commit_time, epoch, fallbacks \
         FROM pgsluice.progress WHERE name = $1 AND epoch = $2 FOR UPDATE",
        ProgressStatement::Lock,
    ),
    ("SELECT FROM pgsluice.progress WHERE name = $1 AND epoch = $2", ProgressStatement::Check),
    ("SELECT FROM pgsluice.progress WHERE name = $1 AND epoch = $2 FOR NO KEY UPDATE", ProgressStatement::Hold),
    ("SELECT FROM pgsluice.progress WHERE name = $1 AND epoch = $2 FOR KEY SHARE", ProgressStatement::HoldBeside),
    (
        "UPDATE pgsluice.progress SET end_lsn = $3, commit_time = COALESCE($4, commit_time), \
         fallbacks = fallbacks + $5, updated_at = now() WHERE name = $1 AND epoch = $2 AND end_lsn = $6 \
         AND NOT EXISTS (SELECT FROM pgsluice.skips s \
         WHERE s.name = $1 AND s.done_at IS NULL AND s.commit_lsn < $3)",
        ProgressStatement::Advance,
    ),
];

impl Statement {
    pub fn read(text: &str) -> Statement {
        if let Some((_, progress)) = PROGRESS.iter().find(|(known, _)| *known == text) {
            return Statement::Progress(*progress);
        }
        match text {
            "BEGIN" => return Statement::Begin { is_read_write: false },
            "BEGIN READ WRITE" | "BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE" => {
                return Statement::Begin { is_read_write: true };
            }
            "COMMIT" => return Statement::Commit,
            "ROLLBACK" => return Statement::Rollback,
            "SAVEPOINT attempt" => return Statement::Savepoint,
            "ROLLBACK TO SAVEPOINT attempt" => return Statement::RollbackToSavepoint,
            "RELEASE SAVEPOINT attempt" => return Statement::ReleaseSavepoint,
            "SET default_transaction_read_only = on" => return Statement::SetReadOnly,
            "SET synchronous_commit = off" => return Statement::SetSynchronous { is_on: false, is_local: false },
            "SELECT current_setting('synchronous_commit')" => return Statement::Level,
            "SET LOCAL synchronous_commit = 'on'" => {
                return Statement::SetSynchronous { is_on: true, is_local: true };
            }
            "SET session_replication_role = 'replica'" => return Statement::SetReplicationRole,
            "SELECT pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn(), \
             COALESCE(current_setting('synchronous_standby_names', true), '') <> ''" => return Statement::Positions,
            "SELECT pg_backend_pid()" => return Statement::Process,
            "SELECT bool_or(pg_backend_pid() = ANY (pg_blocking_pids(pid))) FROM unnest($1::integer[]) pid" => {
                return Statement::InTheWay;
            }
            "SELECT EXISTS (SELECT FROM pg_locks l WHERE NOT l.granted AND pg_backend_pid() = ANY (pg_blocking_pids(l.pid)))" =>
            {
                return Statement::WaitedFor;
            }
            _ => {}
        }
        if text.starts_with("WITH wanted AS MATERIALIZED") {
            return Statement::Catalog;
        }
        if text.starts_with("WITH keyed AS MATERIALIZED") {
            return Statement::Keys;
        }
        if text.starts_with("SELECT to_regclass('pgsluice.progress') IS NULL, ") {
            return Statement::Missing;
        }
        if text.starts_with("SELECT set_config(") || text.starts_with("SET ") {
            return Statement::Nothing;
        }
        Reader::new(text).statement()
    }

    /// It is about transactions and settings.
    pub fn is_control(&self) -> bool {
        matches!(
            self,
            Statement::Begin { .. }
                | Statement::Commit
                | Statement::Rollback
                | Statement::Savepoint
                | Statement::RollbackToSavepoint
                | Statement::ReleaseSavepoint
                | Statement::Nothing
                | Statement::SetReplicationRole
                | Statement::SetReadOnly
                | Statement::SetSynchronous { .. }
        )
    }

    /// A transaction that may only read does not take it (`ExecCheckXactReadOnly`, `PreventCommandIfReadOnly`).
    pub fn writes(&self) -> bool {
        match self {
            Statement::Progress(progress) => match progress {
                ProgressStatement::Exists | ProgressStatement::Read | ProgressStatement::Check => false,
                ProgressStatement::Fence
                | ProgressStatement::Lock
                | ProgressStatement::Hold
                | ProgressStatement::HoldBeside
                | ProgressStatement::Advance => true,
            },
            Statement::Catalog
            | Statement::Level
            | Statement::Positions
            | Statement::Keys
            | Statement::Process
            | Statement::InTheWay
            | Statement::WaitedFor
            | Statement::Missing => false,
            statement => !statement.is_control(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Name(String),
    /// `$n` or `source.pn`, from 0 on.
    Parameter(usize),
    Sign(char),
}

/// Reads the tokens of one statement.
struct Reader<'a> {
    text: &'a str,
    tokens: Peekable<IntoIter<Token>>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Reader<'a> {
        Reader { text, tokens: tokens(text).into_iter().peekable() }
    }

    fn statement(mut self) -> Statement {
        let statement = match self.word().as_str() {
            "INSERT" => self.insert(),
            "UPDATE" => self.update(),
            "SELECT" => self.lock(),
            "DELETE" => self.delete(),
            "COPY" => self.copy(),
            "TRUNCATE" => self.truncate(),
            "WITH" => self.whole_row(),
            _ => self.unknown(),
        };
        if self.tokens.next().is_some() {
            self.unknown();
        }
        statement
    }

    fn insert(&mut self) -> Statement {
        self.words("INTO");
        let table = self.table();
        let columns = self.columns(table);
        self.words("OVERRIDING SYSTEM VALUE VALUES");
        self.sign('(');
        let values = self.list(|reader| reader.parameter());
        self.sign(')');
        let values = columns.into_iter().zip(values).collect();
        Statement::Rows(RowStatement { table, operation: Operation::Insert, is_set: false, values, key: Vec::new() })
    }

    fn update(&mut self) -> Statement {
        let table = self.table();
        self.words("AS target SET");
        let values = self.assignments(table);
        let is_set = self.took("FROM");
        if is_set {
            self.arrays();
        }
        let key = self.condition(table, |reader| reader.sign('='));
        Statement::Rows(RowStatement { table, operation: Operation::Update, is_set, values, key })
    }

    fn lock(&mut self) -> Statement {
        self.words("FROM");
        let table = self.table();
        self.words("AS target");
        let is_set = self.tokens.next_if_eq(&Token::Sign(',')).is_some();
        if is_set {
            self.arrays();
        }
        let key = self.condition(table, |reader| reader.sign('='));
        self.words("FOR UPDATE OF target");
        Statement::Rows(RowStatement { table, operation: Operation::Lock, is_set, values: Vec::new(), key })
    }

    fn delete(&mut self) -> Statement {
        self.words("FROM");
        let table = self.table();
        self.words("AS target");
        let is_set = self.took("USING");
        if is_set {
            self.arrays();
        }
        let key = self.condition(table, |reader| reader.sign('='));
        Statement::Rows(RowStatement { table, operation: Operation::Delete, is_set, values: Vec::new(), key })
    }

    fn copy(&mut self) -> Statement {
        let table = self.table();
        let columns = self.columns(table);
        self.words("FROM STDIN");
        self.sign('(');
        self.words("FORMAT");
        let form = match self.word().as_str() {
            "text" => Form::Text,
            "binary" => Form::Binary,
            _ => self.unknown(),
        };
        self.sign(')');
        Statement::Copy { table, columns, form }
    }

    fn truncate(&mut self) -> Statement {
        self.words("TABLE");
        let tables = self.list(|reader| reader.table());
        self.words("CONTINUE IDENTITY RESTRICT");
        Statement::Truncate(tables)
    }

    /// `WITH found AS (…)`, which finds a row by all of its columns, and the UPDATE or DELETE of that row.
    fn whole_row(&mut self) -> Statement {
        self.words("found AS MATERIALIZED");
        self.sign('(');
        self.words("SELECT");
        self.of_target("tableoid");
        self.sign(',');
        self.of_target("ctid");
        self.words("FROM");
        let table = self.table();
        self.words("AS target");
        let key = self.condition(table, |reader| reader.words("IS NOT DISTINCT FROM"));
        self.words("LIMIT 1 FOR UPDATE");
        self.sign(')');
        let (operation, values) = match self.word().as_str() {
            "UPDATE" if self.table() == table => {
                self.words("AS target SET");
                let values = self.assignments(table);
                self.words("FROM found");
                (Operation::Update, values)
            }
            "DELETE" => {
                self.words("FROM");
                if self.table() != table {
                    self.unknown();
                }
                self.words("AS target USING found");
                (Operation::Delete, Vec::new())
            }
            _ => self.unknown(),
        };
        for (before, column) in [("WHERE", "tableoid"), ("AND", "ctid")] {
            self.words(before);
            self.of_target(column);
            self.sign('=');
            self.words("found");
            self.sign('.');
            self.words(column);
        }
        Statement::Rows(RowStatement { table, operation, is_set: false, values, key })
    }

    fn of_target(&mut self, column: &str) {
        self.words("target");
        self.sign('.');
        self.words(column);
    }

    fn assignments(&mut self, table: usize) -> Vec<(usize, usize)> {
        self.list(|reader| {
            let column = reader.column(table);
            reader.sign('=');
            (column, reader.parameter())
        })
    }

    /// `(SELECT unnest($1) AS p1, …) AS source`, the casts left out.
    fn arrays(&mut self) {
        self.sign('(');
        self.words("SELECT");
        self.list(|reader| {
            reader.words("unnest");
            reader.sign('(');
            let parameter = reader.parameter();
            reader.sign(')');
            reader.words("AS");
            if reader.word() != format!("p{}", parameter + 1) {
                reader.unknown();
            }
        });
        self.sign(')');
        self.words("AS source");
    }

    /// `WHERE target.column = parameter AND …`
    fn condition(&mut self, table: usize, equals: impl Fn(&mut Self)) -> Vec<(usize, usize)> {
        self.words("WHERE");
        let mut key = Vec::new();
        loop {
            self.words("target");
            self.sign('.');
            let column = self.column(table);
            equals(self);
            key.push((column, self.parameter()));
            if !self.took("AND") {
                break;
            }
        }
        let mut columns: Vec<_> = key.iter().map(|(column, _)| *column).collect();
        columns.sort_unstable();
        if columns != TABLES[table].key {
            self.unknown();
        }
        key
    }

    fn table(&mut self) -> usize {
        self.took("ONLY");
        let schema = self.name();
        self.sign('.');
        let name = self.name();
        match TABLES.iter().position(|table| schema == SCHEMA && table.name == name) {
            Some(table) => table,
            None => self.unknown(),
        }
    }

    fn columns(&mut self, table: usize) -> Vec<usize> {
        self.sign('(');
        let columns = self.list(|reader| reader.column(table));
        self.sign(')');
        columns
    }

    fn column(&mut self, table: usize) -> usize {
        let name = self.name();
        TABLES[table].position(&name)
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let mut items = vec![item(self)];
        while self.tokens.next_if_eq(&Token::Sign(',')).is_some() {
            items.push(item(self));
        }
        items
    }

    fn words(&mut self, words: &str) {
        for word in words.split(' ') {
            if self.word() != word {
                self.unknown();
            }
        }
    }

    fn took(&mut self, word: &str) -> bool {
        self.tokens.next_if_eq(&Token::Word(word.to_owned())).is_some()
    }

    fn word(&mut self) -> String {
        match self.tokens.next() {
            Some(Token::Word(word)) => word,
            _ => self.unknown(),
        }
    }

    fn name(&mut self) -> String {
        match self.tokens.next() {
            Some(Token::Name(name)) => name,
            _ => self.unknown(),
        }
    }

    fn parameter(&mut self) -> usize {
        match self.tokens.next() {
            Some(Token::Parameter(parameter)) => parameter,
            _ => self.unknown(),
        }
    }

    fn sign(&mut self, sign: char) {
        if self.tokens.next() != Some(Token::Sign(sign)) {
            self.unknown();
        }
    }

    fn unknown(&self) -> ! {
        panic!("the target's model does not know this statement: {}", self.text)
    }
}

/// The tokens without casts: values are bytes here, whatever their type.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end_of = |is_part: fn(char) -> bool, from: usize| {
            rest[from..].find(|char| !is_part(char)).map_or(rest.len(), |end| from + end)
        };
        let is_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
        let length = match first {
            ' ' => 1,
            '"' => 2 + rest[1..].find('"').expect("a name ends"),
            '$' => end_of(|char| char.is_ascii_digit(), 1),
            ':' => cast(rest),
            _ if is_word(first) => end_of(|char| char.is_ascii_alphanumeric() || char == '_', 0),
            _ => 1,
        };
        let token = &rest[..length];
        match first {
            ' ' | ':' => {}
            '"' => tokens.push(Token::Name(token[1..length - 1].to_owned())),
            '$' => tokens.push(Token::Parameter(number(&token[1..]) - 1)),
            _ if is_word(first) => tokens.push(Token::Word(token.to_owned())),
            _ => tokens.push(Token::Sign(first)),
        }
        rest = &rest[length..];
        join_parameter(&mut tokens);
    }
    tokens
}

/// `source.p1` is the element of the first array.
fn join_parameter(tokens: &mut Vec<Token>) {
    if let [.., Token::Word(source), Token::Sign('.'), Token::Word(column)] = tokens.as_slice()
        && source == "source"
    {
        let parameter = Token::Parameter(number(&column[1..]) - 1);
        tokens.truncate(tokens.len() - 3);
        tokens.push(parameter);
    }
}

/// The length of a cast at the beginning of `text`: `::text[]` or `::"schema"."type"`.
fn cast(text: &str) -> usize {
    let is_type = |char: char| char.is_ascii_alphanumeric() || "_\".[]:".contains(char);
    text.find(|char| !is_type(char)).unwrap_or(text.len())
}

fn number(text: &str) -> usize {
    text.parse().expect("the number of a parameter")
}
