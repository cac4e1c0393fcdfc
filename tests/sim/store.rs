//! The target's data: what is committed, what of it is on disk, and what transactions that are open would change.
//!
//! In: changes of rows, each by a session. Out: whether they were made, or who is in the way, or the error.
//!
//! READ COMMITTED with locks of rows: who wants a row that another open transaction has written waits for its end, then
//! looks again. Whoever waits in a circle gets PostgreSQL's error of a deadlock. A crash leaves what was flushed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::history::FIRST_LSN;
use super::tables::{Key, Row, State, TABLES};

pub type SessionId = usize;

/// How often something was seen that a simulation should come to.
pub type Seen = BTreeMap<&'static str, u64>;

pub const UNIQUE_VIOLATION: &str = "23505";
pub const DEADLOCK: &str = "40P01";

/// How the target is replicated, which its WAL is only once it is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    None,
    /// Commits wait for it.
    Synchronous,
    /// It is [`LAG`] behind at most.
    Asynchronous,
}

/// By how much an asynchronous replica is behind at most.
pub const LAG: Duration = Duration::from_secs(2);

/// The row of `pgsluice.progress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgressRow {
    pub timeline: i32,
    pub end_lsn: u64,
    pub commit_time: Option<i64>,
    pub epoch: i64,
    pub fallbacks: i64,
}

#[derive(Clone, Debug)]
pub struct Committed {
    pub tables: State,
    pub progress: ProgressRow,
}

/// What a transaction would change. Its rows are locked, also those that it only looks at to keep them.
#[derive(Clone, Debug, Default)]
struct Changes {
    rows: BTreeMap<(usize, Key), Option<Row>>,
    truncated: BTreeSet<usize>,
    progress: Option<ProgressRow>,
    /// The row of progress is held beside others.
    shares_progress: bool,
}

#[derive(Debug, Default)]
struct Open {
    changes: Changes,
    savepoints: Vec<Changes>,
}

/// Why a statement did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Until this session's transaction has ended.
    Wait(SessionId),
    Error(&'static str),
    /// The same, where the scheduler has it fail.
    Fault(&'static str),
}

#[derive(Debug)]
pub struct Store {
    pub committed: Committed,
    /// What a crash would leave.
    pub flushed: Committed,
    unflushed: VecDeque<(u64, Changes)>,
    pub replicas: Replicas,
    /// What a failover would leave.
    pub replicated: Committed,
    /// Flushed, and when.
    unreplicated: VecDeque<(Instant, Changes)>,
    pub now: Instant,
    pub insert_lsn: u64,
    pub flush_lsn: u64,
    open: BTreeMap<SessionId, Open>,
    waiting: BTreeMap<SessionId, SessionId>,
    pub commits: usize,
    /// Of unique keys besides the primary ones as well.
    pub tells_all_keys: bool,
    pub seen: Seen,
}

impl Store {
    pub fn new(now: Instant, replicas: Replicas) -> Store {
        let progress = ProgressRow { timeline: 1, end_lsn: FIRST_LSN, commit_time: None, epoch: 0, fallbacks: 0 };
        let committed = Committed { tables: State::default(), progress };
        Store {
            flushed: committed.clone(),
            replicated: committed.clone(),
            committed,
            unflushed: VecDeque::new(),
            replicas,
            unreplicated: VecDeque::new(),
            now,
            insert_lsn: 0x8000,
            flush_lsn: 0x8000,
            open: BTreeMap::new(),
            waiting: BTreeMap::new(),
            commits: 0,
            tells_all_keys: true,
            seen: Seen::new(),
        }
    }

    pub fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// All sessions end, and what was not flushed is gone.
    pub fn crash(&mut self) {
        if self.flushed.progress.end_lsn < self.committed.progress.end_lsn {
            self.saw("commits that a crash has lost");
        }
        self.open.clear();
        self.waiting.clear();
        self.unflushed.clear();
        self.committed = self.flushed.clone();
        self.insert_lsn = self.flush_lsn + 0x100;
        self.flush_lsn = self.insert_lsn;
    }

    /// Flushes WAL up to this position.
    pub fn flush(&mut self, up_to: u64) {
        while self.unflushed.front().is_some_and(|(lsn, _)| *lsn <= up_to) {
            let (_, changes) = self.unflushed.pop_front().expect("there is one");
            self.flushed.apply(changes.clone());
            self.unreplicated.push_back((self.now, changes));
        }
        self.flush_lsn = self.flush_lsn.max(up_to.min(self.insert_lsn));
    }

    /// The replica gets so many of the commits that are flushed.
    pub fn replicate(&mut self, commits: usize) {
        for (_, changes) in self.unreplicated.drain(..commits.min(self.unreplicated.len())) {
            self.replicated.apply(changes);
        }
    }

    /// How many of them it does not have.
    pub fn unreplicated(&self) -> usize {
        self.unreplicated.len()
    }

    /// Time passes. No replica falls back by more than [`LAG`].
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        let late = self.unreplicated.iter().take_while(|(flushed_at, _)| *flushed_at + LAG <= self.now).count();
        self.replicate(late);
    }

    /// What is not lost, whatever happens to the target.
    pub fn survives(&self) -> &Committed {
        match self.replicas {
            Replicas::None => &self.flushed,
            Replicas::Synchronous | Replicas::Asynchronous => &self.replicated,
        }
    }

    /// All sessions end, and a replica takes the target's place, with what it has.
    pub fn fail_over(&mut self) {
        if self.replicated.progress.end_lsn < self.committed.progress.end_lsn {
            self.saw("a failover that has lost commits");
        }
        if self.replicated.progress.end_lsn < self.flushed.progress.end_lsn {
            self.saw("a failover that has lost what was flushed");
        }
        self.flushed = self.replicated.clone();
        self.unreplicated.clear();
        self.crash();
    }

    pub fn begin(&mut self, session: SessionId) {
        self.open.entry(session).or_default();
    }

    pub fn savepoint(&mut self, session: SessionId) {
        self.saw("a transaction in parts");
        let open = self.open.entry(session).or_default();
        open.savepoints.push(open.changes.clone());
    }

    pub fn release_savepoint(&mut self, session: SessionId) {
        let released = self.open.get_mut(&session).and_then(|open| open.savepoints.pop());
        assert!(released.is_some(), "RELEASE without SAVEPOINT");
    }

    pub fn rollback_to_savepoint(&mut self, session: SessionId) {
        self.saw("a part that is applied again");
        let open = self.open.get_mut(&session).expect("a transaction");
        open.changes = open.savepoints.last().expect("ROLLBACK TO without SAVEPOINT").clone();
    }

    pub fn roll_back(&mut self, session: SessionId) {
        self.open.remove(&session);
        self.waiting.remove(&session);
    }

    pub fn commit(&mut self, session: SessionId, is_synchronous: bool) {
        let Some(Open { changes, .. }) = self.open.remove(&session) else { return };
        self.waiting.remove(&session);
        if changes.is_empty() {
            return;
        }
        self.insert_lsn += 40;
        self.unflushed.push_back((self.insert_lsn, changes.clone()));
        self.committed.apply(changes);
        self.commits += 1;
        if is_synchronous {
            self.flush(self.insert_lsn);
        }
    }

    /// A commit has waited for a synchronous replica.
    pub fn wait_for_replica(&mut self) {
        if self.replicas == Replicas::Synchronous {
            self.replicate(usize::MAX);
        }
    }

    /// Runs a statement wholly or not at all. Outside of a transaction it is one.
    pub fn run<T>(
        &mut self,
        session: SessionId,
        statement: impl FnOnce(&mut Store) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        let before = self.open.get(&session).map(|open| open.changes.clone());
        self.open.entry(session).or_default();
        self.waiting.remove(&session);
        let result = statement(self);
        let stop = match &result {
            Ok(_) => return result,
            Err(stop) => *stop,
        };
        match before {
            Some(before) => self.changes(session).clone_from(&before),
            None => drop(self.open.remove(&session)),
        }
        match stop {
            Stop::Wait(other) => {
                self.waiting.insert(session, other);
                self.saw("a wait for a lock");
                if self.waits_for_itself(session) {
                    self.saw("a deadlock");
                    return Err(Stop::Error(DEADLOCK));
                }
                result
            }
            Stop::Error(_) | Stop::Fault(_) => result,
        }
    }

    pub fn row(&self, session: SessionId, table: usize, key: &Key) -> Option<Row> {
        let changes = &self.open[&session].changes;
        match changes.rows.get(&(table, key.clone())) {
            Some(row) => row.clone(),
            None if changes.truncated.contains(&table) => None,
            None => self.committed.tables[table].get(key).cloned(),
        }
    }

    pub fn insert(&mut self, session: SessionId, table: usize, row: Row) -> Result<(), Stop> {
        let key = TABLES[table].key_of(&row);
        self.wait_for_table(session, table)?;
        self.wait_for_row(session, table, &key)?;
        if self.row(session, table, &key).is_some() {
            return Err(Stop::Error(UNIQUE_VIOLATION));
        }
        self.check_unique(session, table, &key, &row)?;
        self.changes(session).rows.insert((table, key), Some(row));
        Ok(())
    }

    /// False where there is no such row.
    pub fn update(&mut self, session: SessionId, table: usize, key: &Key, new: Row) -> Result<bool, Stop> {
        self.wait_for_table(session, table)?;
        if self.row(session, table, key).is_none() {
            return Ok(false);
        }
        self.wait_for_row(session, table, key)?;
        let new_key = TABLES[table].key_of(&new);
        if new_key != *key {
            self.wait_for_row(session, table, &new_key)?;
            if self.row(session, table, &new_key).is_some() {
                return Err(Stop::Error(UNIQUE_VIOLATION));
            }
        }
        self.check_unique(session, table, key, &new)?;
        let rows = &mut self.changes(session).rows;
        rows.insert((table, key.clone()), None);
        rows.insert((table, new_key), Some(new));
        Ok(true)
    }

    /// False where there is no such row.
    pub fn delete(&mut self, session: SessionId, table: usize, key: &Key) -> Result<bool, Stop> {
        self.wait_for_table(session, table)?;
        if self.row(session, table, key).is_none() {
            return Ok(false);
        }
        self.wait_for_row(session, table, key)?;
        self.changes(session).rows.insert((table, key.clone()), None);
        Ok(true)
    }

    pub fn truncate(&mut self, session: SessionId, table: usize) -> Result<(), Stop> {
        let is_at_it = |open: &Open| {
            open.changes.truncated.contains(&table) || open.changes.rows.keys().any(|(other, _)| *other == table)
        };
        self.wait_for(session, is_at_it)?;
        let changes = self.changes(session);
        changes.rows.retain(|(other, _), _| *other != table);
        changes.truncated.insert(table);
        Ok(())
    }

    /// The row of progress, locked.
    pub fn progress(&mut self, session: SessionId) -> Result<&mut ProgressRow, Stop> {
        self.wait_for(session, |open| open.changes.progress.is_some())?;
        let committed = self.committed.progress.clone();
        Ok(self.changes(session).progress.get_or_insert(committed))
    }

    /// The same, for a lock that goes together with no other.
    pub fn whole_progress(&mut self, session: SessionId) -> Result<(), Stop> {
        self.wait_for(session, |open| open.changes.shares_progress)?;
        self.progress(session).map(drop)
    }

    /// Holds the row beside others who do, and beside one who moves it, and returns it as it is committed.
    pub fn share_progress(&mut self, session: SessionId) -> ProgressRow {
        self.changes(session).shares_progress = true;
        self.own_progress(session).unwrap_or_else(|| self.committed.progress.clone())
    }

    /// The session's transaction holds the row beside others.
    pub fn is_beside(&self, session: SessionId) -> bool {
        self.open.get(&session).is_some_and(|open| open.changes.shares_progress)
    }

    /// Whether one of these sessions waits for this one.
    pub fn is_in_the_way(&self, session: SessionId, of: &[SessionId]) -> bool {
        of.iter().any(|other| self.waiting.get(other) == Some(&session))
    }

    /// Whether anybody waits for this session.
    pub fn is_waited_for(&self, session: SessionId) -> bool {
        self.waiting.values().any(|other| *other == session)
    }

    /// Lets go of the row again, for a statement that has looked at it and not taken it.
    pub fn keep_progress(&mut self, session: SessionId, before: Option<ProgressRow>) {
        self.changes(session).progress = before;
    }

    /// The row as the session's own transaction has it.
    pub fn own_progress(&self, session: SessionId) -> Option<ProgressRow> {
        self.open.get(&session).and_then(|open| open.changes.progress.clone())
    }

    fn changes(&mut self, session: SessionId) -> &mut Changes {
        &mut self.open.get_mut(&session).expect("a statement runs in a transaction").changes
    }

    fn wait_for_table(&self, session: SessionId, table: usize) -> Result<(), Stop> {
        self.wait_for(session, |open| open.changes.truncated.contains(&table))
    }

    fn wait_for_row(&self, session: SessionId, table: usize, key: &Key) -> Result<(), Stop> {
        self.wait_for(session, |open| open.changes.rows.contains_key(&(table, key.clone())))
    }

    fn wait_for(&self, session: SessionId, is_in_the_way: impl Fn(&Open) -> bool) -> Result<(), Stop> {
        let mut others = self.open.iter().filter(|(other, _)| **other != session);
        match others.find(|(_, open)| is_in_the_way(open)) {
            Some((other, _)) => Err(Stop::Wait(*other)),
            None => Ok(()),
        }
    }

    fn check_unique(&self, session: SessionId, table: usize, key: &Key, row: &Row) -> Result<(), Stop> {
        let Some(position) = TABLES[table].unique.filter(|position| row[*position].is_some()) else { return Ok(()) };
        let has_it = |other: &Row| other[position] == row[position];
        let writes_it = |open: &Open| {
            open.changes.rows.iter().any(|((other, _), row)| *other == table && row.as_ref().is_some_and(has_it))
        };
        self.wait_for(session, writes_it)?;
        let changes = &self.open[&session].changes;
        let keys = self.committed.tables[table].keys();
        let own = changes.rows.keys().filter(|(other, _)| *other == table).map(|(_, key)| key);
        for other in keys.chain(own).filter(|other| *other != key) {
            if self.row(session, table, other).as_ref().is_some_and(has_it) {
                return Err(Stop::Error(UNIQUE_VIOLATION));
            }
        }
        Ok(())
    }

    fn waits_for_itself(&mut self, session: SessionId) -> bool {
        let mut next = self.waiting.get(&session);
        for _ in 0..self.waiting.len() {
            match next {
                Some(other) if *other == session => {
                    self.waiting.remove(&session);
                    return true;
                }
                Some(other) => next = self.waiting.get(other),
                None => return false,
            }
        }
        false
    }
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.truncated.is_empty() && self.progress.is_none()
    }
}

impl Committed {
    fn apply(&mut self, changes: Changes) {
        for table in changes.truncated {
            self.tables[table].clear();
        }
        for ((table, key), row) in changes.rows {
            match row {
                Some(row) => drop(self.tables[table].insert(key, row)),
                None => drop(self.tables[table].remove(&key)),
            }
        }
        if let Some(progress) = changes.progress {
            self.progress = progress;
        }
    }
}
