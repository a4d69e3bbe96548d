//! What the ring knows of one socket: what has come, what is under way, who waits.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Poll, Waker};

use super::super::buf::Buf;
use super::super::driver::Received;

/// How a socket's receiving side ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The peer closed its side.
    Closed,
    /// The connection failed with this error number.
    Failed(i32),
}

/// The receive that is under way.
#[derive(Debug)]
pub(super) enum Receiving {
    /// None.
    Off,
    /// One that goes on by itself, into provided buffers.
    Multishot,
    /// One into this buffer.
    Once(Buf),
}

/// The send that is under way.
#[derive(Debug)]
pub(super) enum Sending {
    /// None.
    Off,
    /// The kernel has the buffer.
    Submitted(Buf),
    /// The kernel has the buffer, but nobody waits for it any more.
    Forgotten { _lent: Buf },
    /// Done, and not yet asked for.
    Done(i32, Buf),
}

/// A wait for readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Polling {
    Off,
    Submitted,
    /// Done with this result, and not yet asked for.
    Done(i32),
}

/// What was received and not yet taken. Nearly always at most one buffer: then there is no list.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    first: Option<Buf>,
    #[allow(
        clippy::box_collection,
        reason = "every idle connection has the place for it: one word, not four"
    )]
    others: Option<Box<VecDeque<Buf>>>,
}

/// One socket.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) fd: OwnedFd,
    pub(super) inbox: Inbox,
    pub(super) ended: Option<End>,
    pub(super) receiving: Receiving,
    /// Receives for which large buffers will still be used.
    pub(super) bulk: u8,
    /// The receive under way was asked to end.
    pub(super) is_stopping: bool,
    /// Nobody uses the socket any more: it goes when the kernel has let go of it.
    pub(super) is_closing: bool,
    /// Operations that the kernel has not ended yet.
    pub(super) under_way: u8,
    pub(super) readable: Polling,
    pub(super) writable: Polling,
    pub(super) hangup: Polling,
    pub(super) sending: Sending,
    /// The send under way tells of a failure only.
    pub(super) is_unhurried: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    pub(super) mourner: Option<Waker>,
}

impl Socket {
    /// A socket with nothing under way.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            inbox: Inbox::default(),
            ended: None,
            receiving: Receiving::Off,
            bulk: 0,
            is_stopping: false,
            is_closing: false,
            under_way: 0,
            readable: Polling::Off,
            writable: Polling::Off,
            hangup: Polling::Off,
            sending: Sending::Off,
            is_unhurried: false,
            reader: None,
            writer: None,
            mourner: None,
        }
    }

    /// What can be told at once of the receiving side: the next bytes, or the end.
    pub(super) fn take_input(&mut self) -> Option<Received> {
        if let Some(buf) = self.inbox.pop() {
            return Some(Ok(Some(buf)));
        }
        self.ended.map(|end| match end {
            End::Closed => Ok(None),
            End::Failed(number) => Err(io::Error::from_raw_os_error(number)),
        })
    }
}

impl Inbox {
    pub(super) fn push(&mut self, buf: Buf) {
        if self.first.is_none() {
            self.first = Some(buf);
        } else {
            self.others.get_or_insert_default().push_back(buf);
        }
    }

    pub(super) fn push_front(&mut self, buf: Buf) {
        if let Some(second) = self.first.replace(buf) {
            self.others.get_or_insert_default().push_front(second);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Buf> {
        let first = self.first.take();
        if let Some(others) = &mut self.others {
            self.first = others.pop_front();
            if self.first.is_none() {
                self.others = None;
            }
        }
        first
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.as_ref().map_or(0, |others| others.len())
    }
}

impl Polling {
    /// The result of a wait that is over; else whether one is to be begun.
    pub(super) fn take(&mut self) -> Poll<io::Result<()>> {
        let Self::Done(result) = *self else { return Poll::Pending };
        *self = Self::Off;
        Poll::Ready(if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) })
    }
}
