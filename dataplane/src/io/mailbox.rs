//! How other threads speak to a worker: a lock-free queue and an event that wakes its ring.

use std::io;
use std::os::fd::OwnedFd;

use crossbeam_queue::SegQueue;

use super::Stream;
use crate::sys::event;

/// A queue with one reading worker and any number of writers.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    queue: SegQueue<T>,
    event: OwnedFd,
}

impl<T> Mailbox<T> {
    /// An empty mailbox.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { queue: SegQueue::new(), event: event::event()? })
    }

    /// Leaves a message and wakes the worker.
    pub(crate) fn post(&self, message: T) {
        self.queue.push(message);
        event::signal(&self.event);
    }

    /// Hands every message to `take`, in order, for as long as `take` returns true.
    pub(crate) async fn read(&self, mut take: impl FnMut(T) -> bool) -> io::Result<()> {
        let wake = Stream::adopt(self.event.try_clone()?)?;
        loop {
            event::take(&wake);
            while let Some(message) = self.queue.pop() {
                if !take(message) {
                    return Ok(());
                }
            }
            wake.readable().await?;
        }
    }
}
