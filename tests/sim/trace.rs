//! What happened, line by line, if anybody wants to know.

use std::cell::RefCell;
use std::rc::Rc;

#[derive(Clone)]
pub struct Trace(Option<Rc<RefCell<Vec<String>>>>);

impl Trace {
    pub fn none() -> Trace {
        Trace(None)
    }

    pub fn kept() -> Trace {
        Trace(Some(Rc::default()))
    }

    pub fn tail(&self, lines: usize) -> Vec<String> {
        let Some(kept) = &self.0 else { return Vec::new() };
        let kept = kept.borrow();
        kept[kept.len().saturating_sub(lines)..].to_vec()
    }

    pub fn note(&self, line: impl FnOnce() -> String) {
        if let Some(kept) = &self.0 {
            kept.borrow_mut().push(line());
        }
    }
}
