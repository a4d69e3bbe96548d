//! What the ring asks of the kernel: so little that tests can put a simulated one in its place.
//!
//! It knows nothing of sockets, buffers or tasks. With the real kernel every call is the one of the `io-uring` crate.

use std::io;

use io_uring::IoUring;
use io_uring::squeue::Entry;

use super::{GETEVENTS, provided};

/// User data, result and flags of one completion.
pub(in crate::io) type Completion = (u64, i32, u32);

/// The two queues, and the way into the kernel.
pub(in crate::io) trait Kernel {
    /// Buffers that it is lent at first.
    const LENT_AT_FIRST: u16 = provided::LENT_AT_FIRST;

    /// Registers the ring of provided buffers at this address.
    ///
    /// # Safety
    /// The address is of so many entries, which live for as long as the kernel may pick from them.
    unsafe fn register_buffers(&mut self, at: u64, places: u16, group: u16) -> io::Result<()>;

    /// Puts an entry into the submission queue; false when that is full.
    ///
    /// # Safety
    /// What the entry points to stays as it is until the operation completes.
    unsafe fn push(&mut self, entry: &Entry) -> bool;

    /// Hands over what is in the queue.
    fn submit(&mut self) -> io::Result<usize>;

    /// As [`Kernel::submit`], and lets the kernel complete what it has put off.
    fn collect(&mut self) -> io::Result<usize>;

    /// As [`Kernel::collect`], and waits until there is a completion.
    fn submit_and_wait(&mut self) -> io::Result<usize>;

    /// Takes all completions that are there.
    fn take_completions(&mut self, completed: &mut Vec<Completion>);

    /// Whether it has taken every entry of the queue, and holds no completion back.
    fn has_told_all(&mut self) -> bool;
}

impl Kernel for IoUring {
    unsafe fn register_buffers(&mut self, at: u64, places: u16, group: u16) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.submitter().register_buf_ring_with_flags(at, places, group, 0) }
    }

    unsafe fn push(&mut self, entry: &Entry) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.submission().push(entry) }.is_ok()
    }

    fn submit(&mut self) -> io::Result<usize> {
        Self::submit(self)
    }

    fn collect(&mut self) -> io::Result<usize> {
        let prepared = self.submission().len() as u32;
        // SAFETY: no argument is passed, and the count is the queue's own.
        unsafe { self.submitter().enter::<()>(prepared, 0, GETEVENTS, None) }
    }

    fn submit_and_wait(&mut self) -> io::Result<usize> {
        Self::submit_and_wait(self, 1)
    }

    fn take_completions(&mut self, completed: &mut Vec<Completion>) {
        completed.extend(self.completion().map(|entry| (entry.user_data(), entry.result(), entry.flags())));
    }

    fn has_told_all(&mut self) -> bool {
        let submissions = self.submission();
        submissions.is_empty() && !submissions.cq_overflow()
    }
}
