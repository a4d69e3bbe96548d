//! What the ring knows of one socket: what has come, what is under way, who waits.

use std::collections::VecDeque;
use std::io;
use std::task::Poll;

use super::super::buf::{Buf, Lent};
use super::super::driver::Received;
use super::super::waker::Waiter;

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
    Once(Lent),
}

/// The send that is under way.
#[derive(Debug)]
pub(super) enum Sending {
    /// None.
    Off,
    /// The kernel has the buffer, and will tell how it ended.
    Submitted(Buf),
    /// The kernel has the buffer, and will tell of a failure only. It becomes another variant with the first completion,
    /// or in the first turn that knows all: so none that is still silent then can have failed.
    Silent(Buf),
    /// As `Submitted`, but nobody waits for it any more.
    Forgotten { _lent: Buf },
    /// As `Silent`, but nobody waits for it any more.
    SilentForgotten { _lent: Buf },
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
    others: VecDeque<Buf>,
}

/// One socket, but for its descriptor.
#[derive(Debug)]
pub(super) struct Socket {
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
    pub(super) reader: Waiter,
    pub(super) writer: Waiter,
    pub(super) mourner: Waiter,
}

/// A socket with nothing under way.
impl Default for Socket {
    fn default() -> Self {
        Self {
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
            reader: Waiter::NOBODY,
            writer: Waiter::NOBODY,
            mourner: Waiter::NOBODY,
        }
    }
}

impl Socket {
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

    /// Whether it only waits for what its peer says next, or not even that.
    pub(super) fn is_silent(&self) -> bool {
        let is_receive_alone = match self.receiving {
            Receiving::Off => self.under_way == 0,
            Receiving::Multishot => self.under_way == 1 && !self.is_stopping,
            Receiving::Once(_) => false,
        };
        is_receive_alone
            && matches!(self.sending, Sending::Off)
            && self.inbox.is_empty()
            && self.ended.is_none()
            && !self.is_closing
            && [self.readable, self.writable, self.hangup] == [Polling::Off; 3]
            && [self.writer, self.mourner] == [Waiter::NOBODY; 2]
    }
}

impl Inbox {
    /// Puts what was received behind the rest. Behind `loose` buffers it goes into the last one if it fits there: who is
    /// so far behind gains nothing from small pieces, which would hold a buffer each.
    pub(super) fn push(&mut self, buf: Buf, loose: usize) {
        if self.first.is_none() {
            self.first = Some(buf);
        } else if self.len() > loose
            && let Some(last) = self.others.back_mut()
            && last.spare() >= buf.len()
        {
            last.append(buf.bytes());
        } else {
            self.others.push_back(buf);
        }
    }

    pub(super) fn push_front(&mut self, buf: Buf) {
        if let Some(second) = self.first.replace(buf) {
            self.others.push_front(second);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Buf> {
        let first = self.first.take();
        self.first = self.others.pop_front();
        first
    }

    /// Gives the memory of an empty list back.
    pub(super) fn shrink(&mut self) {
        if self.others.capacity() > 0 {
            self.others = VecDeque::new();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(content: &[u8]) -> Buf {
        let mut buf = Buf::small();
        buf.append(content);
        buf
    }

    #[test]
    fn what_comes_is_taken_in_order_and_small_pieces_behind_share_a_buffer() {
        let mut inbox = Inbox::default();
        let bytes: Vec<u8> = (0..100).collect();
        bytes.iter().for_each(|byte| inbox.push(piece(&[*byte]), 4));
        assert_eq!(inbox.len(), 5, "four pieces, and a buffer with the rest");
        inbox.push(piece(&[100; 7100]), 4);
        assert_eq!(inbox.len(), 6);
        inbox.push_front(piece(b"first"));
        let mut all = Vec::new();
        while let Some(buf) = inbox.pop() {
            all.extend_from_slice(buf.bytes());
        }
        assert_eq!(all, [&b"first"[..], &bytes, &[100; 7100]].concat());
        assert!(inbox.is_empty());
    }
}
