//! An allocator that counts, so that "no allocation per row" is a measurement.
//!
//! The counts are kept per thread and without locked instructions: counting must not slow down the contenders that do
//! allocate.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Sub;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static COUNTS: Cell<Allocations> = const { Cell::new(Allocations { count: 0, bytes: 0 }) };
}

/// Made by one thread: how often memory was asked for, growth in place included, and how much.
#[derive(Clone, Copy, Debug)]
pub struct Allocations {
    pub count: u64,
    pub bytes: u64,
}

impl Allocations {
    /// By this thread, since it started.
    pub fn now() -> Allocations {
        COUNTS.get()
    }
}

impl Sub for Allocations {
    type Output = Allocations;

    fn sub(self, earlier: Allocations) -> Allocations {
        Allocations { count: self.count - earlier.count, bytes: self.bytes - earlier.bytes }
    }
}

struct Counting;

fn count(bytes: usize) {
    // There is nothing to drop in the cell, so it can be read for as long as the thread lives.
    let Allocations { count, bytes: so_far } = COUNTS.get();
    COUNTS.set(Allocations { count: count + 1, bytes: so_far + bytes as u64 });
}

// SAFETY: every call goes to `System` as it came; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's contract is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's contract is that of `System`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size.saturating_sub(layout.size()));
        // SAFETY: the caller's contract is that of `System`.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is that of `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}
