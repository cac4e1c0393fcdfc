//! A session of the target: PostgreSQL's protocol at one end, the store at the other.
//!
//! In: a client's bytes. Out: answers, kept back until the scheduler lets go of them. It does a message at a time, in
//! their order; one that has to wait for another session stays where it is and is tried again.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::execute::{Answer, copy, describe, execute};
use super::history::Form;
use super::statement::Statement;
use super::store::{Replicas, SessionId, Stop, Store};
use super::wire::{self, Fields, Value};

const IN_FAILED_TRANSACTION: &str = "25P02";
const QUERY_CANCELED: &str = "57014";
const INSUFFICIENT_PRIVILEGE: &str = "42501";
const READ_ONLY_TRANSACTION: &str = "25006";
/// What an error says: one of the model's own, and one that the scheduler has made.
const NATURAL: &str = "as the simulation has it";
pub const INJECTED: &str = "as the scheduler has it";

/// A statement that is to fail.
#[derive(Clone, Debug)]
pub struct Fault {
    pub code: &'static str,
    pub at: At,
    /// So many that could fail pass before.
    pub after: usize,
    /// What a simulation comes to by it.
    pub seen: &'static str,
}

/// Which statements can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Begin,
    /// What reads or writes in a block, and its COMMIT.
    Work,
    /// A commit's wait for a synchronous replica, which is committed all the same.
    StandbyWait,
    Anywhere,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    Nothing,
    /// Another session is in the way.
    Waited,
    Message,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    None,
    Open,
    Failed,
}

pub struct Backend {
    pub id: SessionId,
    /// `None` once the connection is cut.
    stream: Option<DuplexStream>,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    is_started: bool,
    /// After an error, until the next Sync.
    is_skipping: bool,
    block: Block,
    is_synchronous: bool,
    is_local_synchronous: bool,
    statements: HashMap<String, Rc<Statement>>,
    portal: Option<(Rc<Statement>, Vec<Value>)>,
    /// What has come of a COPY that runs.
    copied: Option<Vec<u8>>,
    /// The role may not have foreign keys and triggers rest.
    constraints_fire: bool,
    /// It applies large transactions before they commit.
    pub is_early: bool,
    /// What fails, one after the other.
    pub faults: VecDeque<Fault>,
    /// The session writes only in blocks that say so.
    is_read_only: bool,
    /// The open block says so.
    is_read_write: bool,
    pub has_ended: bool,
}

impl Backend {
    pub fn new(id: SessionId, stream: DuplexStream, constraints_fire: bool) -> Backend {
        Backend {
            id,
            stream: Some(stream),
            inbox: Vec::new(),
            outbox: Vec::new(),
            is_started: false,
            is_skipping: false,
            block: Block::None,
            is_synchronous: true,
            is_local_synchronous: false,
            statements: HashMap::new(),
            portal: None,
            copied: None,
            constraints_fire,
            is_early: false,
            faults: VecDeque::new(),
            is_read_only: false,
            is_read_write: false,
            has_ended: false,
        }
    }

    /// The next message is a COMMIT.
    pub fn is_to_commit(&mut self) -> bool {
        self.read();
        matches!(self.next_message(), Some((b'Q', b"COMMIT\0", _)))
    }

    /// The connection is lost. So many messages that are not done yet have come before, and are still done.
    pub fn cut(&mut self, heard: usize) {
        self.read();
        let mut end = 0;
        for _ in 0..heard {
            let Some((_, _, total)) = self.message_at(end) else { break };
            end += total;
        }
        self.inbox.truncate(end);
        self.stream = None;
        self.outbox.clear();
    }

    /// The session ends where it is.
    pub fn end(&mut self, store: &mut Store) {
        store.roll_back(self.id);
        self.stream = None;
        self.has_ended = true;
    }

    /// Does the next message.
    pub fn step(&mut self, store: &mut Store) -> Did {
        if self.has_ended {
            return Did::Nothing;
        }
        self.read();
        let Some((tag, body, total)) = self.next_message() else {
            if self.stream.is_some() {
                return Did::Nothing;
            }
            self.end(store);
            return Did::Message;
        };
        let body = body.to_vec();
        match self.handle(tag, &body, store) {
            Err(Wait) => Did::Waited,
            Ok(()) => {
                self.inbox.drain(..total);
                Did::Message
            }
        }
    }

    /// Lets go of at most so many bytes of answers. True if there were any.
    pub fn write(&mut self, bytes: usize) -> bool {
        let bytes = bytes.min(self.outbox.len());
        let Some(stream) = self.stream.as_mut().filter(|_| bytes > 0) else { return false };
        match Pin::new(stream).poll_write(&mut context(), &self.outbox[..bytes]) {
            Poll::Ready(Ok(written)) => {
                self.outbox.drain(..written);
                true
            }
            Poll::Ready(Err(_)) => {
                self.outbox.clear();
                true
            }
            Poll::Pending => false,
        }
    }

    fn read(&mut self) {
        let mut bytes = [0; 4096];
        while let Some(stream) = &mut self.stream {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(stream).poll_read(&mut context(), &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.inbox.extend(buffer.filled()),
                Poll::Ready(_) => self.stream = None,
                Poll::Pending => return,
            }
        }
    }

    fn next_message(&self) -> Option<(u8, &[u8], usize)> {
        self.message_at(0)
    }

    /// Tag, body, and the bytes of all of it. The first message of a session has no tag.
    fn message_at(&self, start: usize) -> Option<(u8, &[u8], usize)> {
        let has_tag = self.is_started || start > 0;
        let rest = &self.inbox[start..];
        let header = usize::from(has_tag);
        let length = rest.get(header..header + 4)?;
        let total = header + u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
        let tag = if has_tag { rest[0] } else { 0 };
        rest.get(header + 4..total).map(|body| (tag, body, total))
    }

    fn handle(&mut self, tag: u8, body: &[u8], store: &mut Store) -> Result<(), Wait> {
        let mut fields = Fields(body);
        match tag {
            0 => self.start_up(),
            b'X' => self.end(store),
            b'S' if self.copied.is_none() => {
                self.is_skipping = false;
                self.ready();
            }
            _ if self.is_skipping => {}
            b'Q' => self.query(fields.string(), store)?,
            b'P' => {
                let (name, text) = (fields.string(), fields.string());
                self.statements.insert(name.to_owned(), Rc::new(Statement::read(text)));
                wire::empty(b'1', &mut self.outbox);
            }
            b'B' => self.bind(&mut fields),
            b'D' => {
                let name = str::from_utf8(&body[1..body.len() - 1]).expect("a name");
                let (parameters, columns) = describe(&self.statements[name]);
                wire::parameter_description(&parameters, &mut self.outbox);
                match columns {
                    Some(columns) => wire::row_description(&columns, &mut self.outbox),
                    None => wire::empty(b'n', &mut self.outbox),
                }
            }
            b'C' => wire::empty(b'3', &mut self.outbox),
            b'E' => self.execute_portal(store)?,
            b'd' => self.copied.as_mut().expect("a COPY runs").extend(body),
            b'c' => self.end_copy(store)?,
            b'f' => {
                self.copied = None;
                self.fail(QUERY_CANCELED, NATURAL);
            }
            // A Sync amid a COPY is ignored.
            b'S' => {}
            other => panic!("the target's model does not know message {:?}", char::from(other)),
        }
        Ok(())
    }

    fn start_up(&mut self) {
        self.is_started = true;
        wire::message(b'R', &mut self.outbox, |body| body.extend(0_u32.to_be_bytes()));
        wire::message(b'K', &mut self.outbox, |body| body.extend([0; 8]));
        self.ready();
    }

    fn ready(&mut self) {
        let status = match self.block {
            Block::None => b'I',
            Block::Open => b'T',
            Block::Failed => b'E',
        };
        wire::ready_for_query(status, &mut self.outbox);
    }

    fn bind(&mut self, fields: &mut Fields<'_>) {
        let (_portal, name) = (fields.string(), fields.string());
        let formats = fields.count();
        for _ in 0..formats {
            fields.count();
        }
        let parameters = fields.count();
        let parameters = (0..parameters).map(|_| fields.value()).collect();
        self.portal = Some((self.statements[name].clone(), parameters));
        wire::empty(b'2', &mut self.outbox);
    }

    /// The simple protocol: statements of a text, up to one that fails.
    fn query(&mut self, text: &str, store: &mut Store) -> Result<(), Wait> {
        let mut answers = Vec::new();
        for statement in text.split("; ") {
            match self.run(&Statement::read(statement.trim()), &[], store) {
                Ok(answer) => wire::command_complete(&answer.tag, &mut answers),
                Err(Stop::Wait(_)) => return Err(Wait),
                Err(Stop::Error(code)) => {
                    wire::error(code, NATURAL, &mut answers);
                    break;
                }
                Err(Stop::Fault(code)) => {
                    wire::error(code, INJECTED, &mut answers);
                    break;
                }
            }
        }
        self.outbox.extend(answers);
        self.ready();
        Ok(())
    }

    fn execute_portal(&mut self, store: &mut Store) -> Result<(), Wait> {
        let (statement, parameters) = self.portal.clone().expect("a portal");
        if let Statement::Copy { columns, form, .. } = &*statement
            && self.block != Block::Failed
            && self.may_write()
        {
            self.copied = Some(Vec::new());
            wire::copy_in_response(*form == Form::Binary, columns.len(), &mut self.outbox);
            return Ok(());
        }
        let result = self.run(&statement, &parameters, store);
        self.answer(result)
    }

    fn end_copy(&mut self, store: &mut Store) -> Result<(), Wait> {
        let data = self.copied.as_deref().expect("a COPY runs");
        let Some((statement, _)) = self.portal.clone() else { panic!("a COPY has a portal") };
        let Statement::Copy { table, columns, form } = &*statement else { panic!("a COPY is one") };
        let data = data.to_vec();
        let result = match self.fault(At::Work, store) {
            Some(code) => Err(Stop::Fault(code)),
            None => store.run(self.id, |store| copy(store, self.id, (*table, columns), *form, &data)),
        };
        self.end_statement(result.as_ref().err(), store);
        self.answer(result)?;
        self.copied = None;
        Ok(())
    }

    fn answer(&mut self, result: Result<Answer, Stop>) -> Result<(), Wait> {
        match result {
            Ok(answer) => {
                answer.rows.iter().for_each(|row| wire::data_row(row, &mut self.outbox));
                wire::command_complete(&answer.tag, &mut self.outbox);
            }
            Err(Stop::Wait(_)) => return Err(Wait),
            Err(Stop::Error(code)) => self.fail(code, NATURAL),
            Err(Stop::Fault(code)) => self.fail(code, INJECTED),
        }
        Ok(())
    }

    /// The code with which the next statement of this kind fails.
    fn fault(&mut self, at: At, store: &mut Store) -> Option<&'static str> {
        let first = self.faults.front_mut().filter(|first| first.at == at || first.at == At::Anywhere)?;
        if first.after > 0 {
            first.after -= 1;
            return None;
        }
        store.saw(first.seen);
        self.faults.pop_front().map(|first| first.code)
    }

    /// It is in a transaction that may write.
    fn may_write(&self) -> bool {
        !self.is_read_only || self.block == Block::Open && self.is_read_write
    }

    fn fail(&mut self, code: &str, text: &str) {
        wire::error(code, text, &mut self.outbox);
        self.is_skipping = true;
        if self.block == Block::Open {
            self.block = Block::Failed;
        }
    }

    fn run(&mut self, statement: &Statement, parameters: &[Value], store: &mut Store) -> Result<Answer, Stop> {
        let ends_block = matches!(statement, Statement::Commit | Statement::Rollback | Statement::RollbackToSavepoint);
        if self.block == Block::Failed && !ends_block {
            return Err(Stop::Error(IN_FAILED_TRANSACTION));
        }
        let done = |tag: &str| Ok(Answer { tag: tag.to_owned(), rows: Vec::new() });
        match statement {
            Statement::Begin { is_read_write } => {
                assert_eq!(self.block, Block::None, "BEGIN inside of a transaction");
                if let Some(code) = self.fault(At::Begin, store) {
                    store.saw("a BEGIN that fails");
                    return Err(Stop::Fault(code));
                }
                self.block = Block::Open;
                self.is_read_write = *is_read_write;
                store.begin(self.id);
                return done("BEGIN");
            }
            Statement::Commit => return self.commit(store),
            statement if !statement.is_control() => return self.change(statement, parameters, store),
            _ => {}
        }
        if let Some(code) = self.fault(At::Anywhere, store) {
            let fault = Stop::Fault(code);
            self.end_statement(Some(&fault), store);
            return Err(fault);
        }
        match statement {
            Statement::Rollback => {
                if self.is_early {
                    store.saw("a large transaction that is given up");
                } else if store.is_beside(self.id) {
                    store.saw("a batch that is done again in its turn");
                }
                self.leave(store);
                done("ROLLBACK")
            }
            Statement::Savepoint => {
                store.savepoint(self.id);
                done("SAVEPOINT")
            }
            Statement::RollbackToSavepoint => {
                store.rollback_to_savepoint(self.id);
                self.block = Block::Open;
                done("ROLLBACK")
            }
            Statement::ReleaseSavepoint => {
                store.release_savepoint(self.id);
                done("RELEASE")
            }
            Statement::SetReplicationRole if self.constraints_fire => Err(Stop::Error(INSUFFICIENT_PRIVILEGE)),
            Statement::SetReadOnly => {
                self.is_read_only = true;
                done("SET")
            }
            Statement::SetSynchronous { is_on, is_local } => {
                if *is_local {
                    self.is_local_synchronous = *is_on;
                } else {
                    self.is_synchronous = *is_on;
                }
                done("SET")
            }
            _ => done("SET"),
        }
    }

    /// What reads or writes. Outside of a block it is a transaction of its own.
    fn change(&mut self, statement: &Statement, parameters: &[Value], store: &mut Store) -> Result<Answer, Stop> {
        let at = if self.block == Block::Open { At::Work } else { At::Anywhere };
        let result = match self.fault(at, store) {
            Some(code) => Err(Stop::Fault(code)),
            None if statement.writes() && !self.may_write() => {
                store.saw("a write outside of a block that is refused");
                Err(Stop::Error(READ_ONLY_TRANSACTION))
            }
            None => store.run(self.id, |store| execute(store, self.id, statement, parameters)),
        };
        self.end_statement(result.as_ref().err(), store);
        result
    }

    /// Outside of a block its transaction ends with it, and a block does not outlive an error.
    fn end_statement(&mut self, stop: Option<&Stop>, store: &mut Store) {
        match (stop, self.block) {
            (None, Block::None) => self.end_transaction(self.is_synchronous, store),
            (Some(Stop::Error(_) | Stop::Fault(_)), Block::Open) => self.block = Block::Failed,
            (_, _) => {}
        }
    }

    fn commit(&mut self, store: &mut Store) -> Result<Answer, Stop> {
        assert_ne!(self.block, Block::None, "COMMIT outside of a transaction");
        // It would be answered by ROLLBACK, and whoever takes that for a commit has lost what he sent.
        assert_ne!(self.block, Block::Failed, "COMMIT of a transaction that has failed");
        if let Some(code) = self.fault(At::Work, store) {
            self.leave(store);
            return Err(Stop::Fault(code));
        }
        if self.stream.is_none() {
            store.saw("a COMMIT whose answer nobody hears");
        }
        if self.is_early {
            store.saw("a large transaction that was applied early");
        }
        self.end_transaction(self.is_synchronous || self.is_local_synchronous, store);
        self.leave(store);
        Ok(Answer { tag: "COMMIT".to_owned(), rows: Vec::new() })
    }

    fn end_transaction(&mut self, is_synchronous: bool, store: &mut Store) {
        let commits = store.commits;
        store.commit(self.id, is_synchronous);
        if !is_synchronous || store.commits == commits {
            return;
        }
        let is_cancelled = self.faults.front().is_some_and(|first| first.at == At::StandbyWait);
        if store.replicas == Replicas::Synchronous && is_cancelled {
            self.faults.pop_front();
            store.saw("a wait for a standby that is cancelled");
            wire::warning(&mut self.outbox);
            return;
        }
        store.wait_for_replica();
    }

    fn leave(&mut self, store: &mut Store) {
        store.roll_back(self.id);
        self.block = Block::None;
        self.is_local_synchronous = false;
    }
}

/// Another session is in the way.
struct Wait;

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
