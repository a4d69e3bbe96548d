//! Who waits: a place for one task of this thread.
//!
//! A task's waker is nothing but numbers, so the task's is all that is kept: four bytes where a `Waker` has sixteen. That
//! is why sockets are waited for by tasks alone, and not through combinators with wakers of their own
//! (`FuturesUnordered`, `join_all`): a future of a task polls them with its own context.

use std::fmt;
use std::task::Context;

use super::task;

/// Nobody; no task has this number.
const NOBODY: u32 = u32::MAX;

/// A place for one who waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiter(u32);

impl Waiter {
    /// Nobody waits.
    pub(super) const NOBODY: Self = Self(NOBODY);

    /// Notes who waits.
    ///
    /// # Panics
    /// The waker is not a task's: a bug of the caller, which ends the task that polls, and is counted as any panic.
    pub(super) fn wait(&mut self, context: &Context<'_>) {
        self.0 =
            task::number(context.waker()).expect("sockets are waited for by tasks, with their own wakers");
    }

    /// Wakes who waits.
    pub(super) fn wake(&mut self) {
        if self.0 != NOBODY {
            task::wake(std::mem::replace(&mut self.0, NOBODY));
        }
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            NOBODY => f.write_str("nobody"),
            number => write!(f, "task {number}"),
        }
    }
}
