//! What breaks: connections, servers, processes, statements; and other engines that come.

use super::World;
use crate::pipeline::sim::backend::{At, Fault};
use crate::pipeline::sim::store::{DEADLOCK, Replicas, UNIQUE_VIOLATION};

/// One that others fence, and one that fences.
const ENGINES_MAX: usize = 2;
const SERIALIZATION_FAILURE: &str = "40001";
const OUT_OF_MEMORY: &str = "53200";
const QUERY_CANCELED: &str = "57014";
/// By how many steps of the ladder have failed before.
const DEADLOCKS: [&str; 4] = [
    "a deadlock at the first step of the ladder",
    "a deadlock at the second step of the ladder",
    "a deadlock at the third step of the ladder",
    "a deadlock at the fourth step of the ladder",
];

impl World {
    /// The answer is lost, or the server, or the engine, or another engine comes.
    pub(super) fn fault_at_commit(&mut self, place: usize) {
        match self.random.below(10) {
            0..4 => {
                let heard = self.random.pick(&[0, 1, usize::MAX]);
                self.backends[place].cut(heard);
            }
            4 => {
                let (code, at) = (SERIALIZATION_FAILURE, At::Work);
                self.backends[place].faults = [Fault { code, at, after: 0, seen: "a COMMIT that fails" }].into();
            }
            5 if self.store.replicas != Replicas::None && self.random.happens(600) => self.fail_over(),
            5 => self.crash_target(),
            6..8 => self.crash_engine(),
            _ => self.take_over(),
        }
    }

    /// Something breaks somewhere.
    pub(super) fn fault(&mut self) {
        match self.random.below(20) {
            0..3 => self.crash_engine(),
            3..6 => {
                self.trace.note(|| "the stream is cut".to_owned());
                self.around.source.borrow_mut().cut();
            }
            6..10 if !self.backends.is_empty() => {
                let place = self.random.below(self.backends.len());
                let heard = self.random.pick(&[0, 1, 3, 10, usize::MAX]);
                self.trace.note(|| format!("session {} is cut", self.backends[place].id));
                self.backends[place].cut(heard);
            }
            10 if self.store.replicas != Replicas::None && self.random.happens(600) => self.fail_over(),
            10 => self.crash_target(),
            11 => {
                self.trace.note(|| "the source crashes".to_owned());
                if self.around.source.borrow_mut().crash() {
                    self.store.saw("a slot that goes back");
                }
            }
            12..15 if !self.backends.is_empty() => self.fail_statement(),
            15 if !self.places.is_empty() => {
                let place = self.random.below(self.places.len());
                self.trace.note(|| format!("engine {} is to stop", self.places[place].engine.number));
                self.places[place].engine.stop();
            }
            16 if !self.places.is_empty() => {
                let place = self.random.below(self.places.len());
                self.trace.note(|| format!("engine {} is to stop at once", self.places[place].engine.number));
                self.places[place].engine.stop();
                self.places[place].engine.abort();
            }
            17..20 => self.take_over(),
            _ => {}
        }
    }

    /// The process is killed, and its connections with it.
    fn crash_engine(&mut self) {
        if self.places.is_empty() {
            return;
        }
        let place = self.random.below(self.places.len());
        self.trace.note(|| format!("engine {} is killed", self.places[place].engine.number));
        self.places.remove(place);
    }

    fn crash_target(&mut self) {
        self.trace.note(|| format!("the target crashes, flushed up to {:X}", self.store.flushed.progress.end_lsn));
        self.backends.clear();
        self.store.crash();
        self.commits_checked = usize::MAX;
    }

    fn fail_over(&mut self) {
        self.trace.note(|| format!("the target fails over, to {:X}", self.store.replicated.progress.end_lsn));
        self.backends.clear();
        self.store.fail_over();
        self.commits_checked = usize::MAX;
    }

    /// Statements of a session fail. What the data are to blame for may need a person, who finds nothing.
    fn fail_statement(&mut self) {
        let faults = self.statement_faults();
        let place = self.random.below(self.backends.len());
        let backend = &mut self.backends[place];
        self.trace.note(|| format!("session {} is to fail: {faults:?}", backend.id));
        let may_need_a_person = faults.iter().any(|fault| fault.code == UNIQUE_VIOLATION);
        backend.faults = faults.into();
        let victim = self.places.iter_mut().find(|place| place.backends.contains(&backend.id));
        if let Some(victim) = victim.filter(|_| may_need_a_person) {
            victim.is_excused = true;
        }
    }

    fn statement_faults(&mut self) -> Vec<Fault> {
        let fault = |code, at, after, seen| Fault { code, at, after, seen };
        match self.random.below(12) {
            10.. => vec![fault(QUERY_CANCELED, At::StandbyWait, 0, "a wait for a standby that is cancelled"); 2],
            0..2 => {
                let code = self.random.pick(&[QUERY_CANCELED, OUT_OF_MEMORY]);
                vec![fault(code, At::Begin, 0, "a BEGIN that fails")]
            }
            2..4 => {
                let after = self.random.below(12);
                vec![fault(QUERY_CANCELED, At::Anywhere, after, "a statement that is cancelled")]
            }
            // One step of the ladder after the other fails, and at the last the target chooses us to end a deadlock.
            4..8 => {
                let steps = self.random.below(DEADLOCKS.len());
                let after = self.random.below(8);
                let mut faults = vec![fault(UNIQUE_VIOLATION, At::Work, 1, "a step of the ladder that fails"); steps];
                faults.push(fault(DEADLOCK, At::Work, after, DEADLOCKS[steps]));
                faults
            }
            _ => {
                let code = self.random.pick(&[SERIALIZATION_FAILURE, UNIQUE_VIOLATION]);
                vec![fault(code, At::Work, 0, "a statement that fails")]
            }
        }
    }

    /// Another engine starts beside the one that is at work.
    fn take_over(&mut self) {
        if self.places.len() < ENGINES_MAX {
            self.add_engine();
        }
    }
}
