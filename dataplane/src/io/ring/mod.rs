//! The driver on io_uring: receives that go on by themselves into provided buffers, and one submission a turn.
//!
//! ```text
//!            ┌── arm ──► multishot ── bytes: into the inbox ──┐
//!           off               │  ▲───────────────────────────┘
//!          ▲ │ ▲              │ the inbox is full, or large buffers are wanted
//!          │ │ └─ last one ◄─ cancel
//!          │ └─── in bulk ──► one receive into a large buffer ─┐
//!          └───────────────────────────────────────────────────┘
//! ```
//!
//! A socket that is idle has its receive armed: neither a system call nor a submission is needed for the next request,
//! and a peer that goes away is noticed at once. What comes while nobody asks for it waits in the inbox; when that is
//! full, the receive is ended, and the kernel's window closes as it should.
//!
//! All that it asks of the kernel is in [`kernel`], so that tests can put a simulated one there.
//!
//! Needs Linux 6.1: multishot receives (6.0), provided buffer rings (5.19), `DEFER_TASKRUN` (6.1).

mod end;
mod kernel;
mod limit;
mod provided;
mod send;
mod silence;
mod socket;
mod sockets;

#[cfg(test)]
pub(crate) mod simulated;

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{OwnedFd, RawFd};
use std::task::{Context, Poll};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd};
use io_uring::{IoUring, cqueue, opcode};

use super::buf::{Buf, LARGE_SIZE, SMALL_BYTES, SMALL_SIZE, is_short};
use super::driver::{Driver, Input, Readiness, Received, Sent, Told, Want};
use super::waker::Waiter;
use crate::sys::socket::{Peek, peek};
use kernel::{Completion, Kernel};
use provided::Provided;
use socket::{End, Polling, Receiving, Sending, Socket};
use sockets::Sockets;

#[cfg(test)]
pub(crate) use sockets::FOLDED_BYTES;

/// Submission entries: a turn that prepares more submits in between.
const ENTRIES: u32 = 4096;
/// Completion entries: one turn may complete far more than it submitted, when many streams tick at once.
const COMPLETIONS: u32 = 32768;
/// Buffers that wait to be taken from one socket before its receive is ended. More can come by then: up to
/// [`MULTISHOT_BYTES`] where the kernel knows such a limit, else as much as it receives at one go.
const INBOX_MOST: usize = 4;
/// The same where the worker [is short](is_short) of memory.
const INBOX_SHORT: usize = 2;
/// What one multishot receive brings before it has to be armed anew.
const MULTISHOT_BYTES: usize = INBOX_MOST * SMALL_BYTES;
/// Receives that the kernel does at one go where no other limit is known to it (`MULTISHOT_MAX_RETRY`).
const AT_ONE_GO: usize = 32;

/// Receives into large buffers after one that a small buffer would not have been enough for: a connection that has
/// brought a long body is likely to bring another, and the end of each is short.
const BULK_FOR: u8 = 16;

/// What a completion is of. A key and one of these make the user data of a submission.
const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const READABLE: u64 = 2;
const WRITABLE: u64 = 3;
const HANGUP: u64 = 4;
const OPERATION_BITS: u32 = 3;
/// Lets the kernel complete what it has put off (`IORING_ENTER_GETEVENTS`).
const GETEVENTS: u32 = 1;
/// The user data of what nobody waits for.
const NOBODY: u64 = u64::MAX;

/// A thread's ring with its sockets.
pub(super) struct Ring<K: Kernel = IoUring> {
    kernel: K,
    /// Dropped by `end`, if the kernel is known to be done with them.
    provided: ManuallyDrop<Provided>,
    sockets: Sockets,
    offers: Offers,
    /// Sockets whose receive ended for want of buffers: armed anew when there are some.
    starved: Vec<u32>,
    /// What the kernel had no room for, in order.
    unsubmitted: VecDeque<Entry>,
    /// Sends that tell of failures only, since the kernel was last asked to take everything.
    silent: Vec<u32>,
    /// What one turn brought, kept between turns for its memory.
    completed: Vec<Completion>,
}

/// What a kernel offers beyond what is needed: tried when a ring is set up.
#[derive(Clone, Copy, Debug)]
struct Offers {
    /// It knows a limit for what one multishot receive brings.
    is_limiting: bool,
    /// A send that it tells nothing of has ended well.
    is_silence_success: bool,
}

/// Tries whether this process may set up a ring as the workers will. Errors: what the kernel said.
pub(crate) fn probe() -> io::Result<()> {
    Ring::new().map(drop)
}

impl Ring {
    /// A ring for this thread. Errors: what the kernel said.
    pub(super) fn new() -> io::Result<Self> {
        // Completions run when the worker asks for them, not in the middle of its work (DEFER_TASKRUN), and one thread
        // alone submits (SINGLE_ISSUER), so that the kernel skips locks: together a quarter of a relayed request.
        let mut ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(COMPLETIONS)
            .build(ENTRIES)?;
        let mut provided = Provided::register(&mut ring)?;
        // Where these fail, the kernel might still fill a buffer: they are not freed then.
        let is_limiting = limit::is_known(&mut ring, &mut provided)?;
        let is_silence_success = silence::means_success(&mut ring)?;
        tracing::debug!(is_limiting, is_silence_success, "what the kernel offers for a ring was tried");
        Ok(Self::on(ring, provided, Offers { is_limiting, is_silence_success }))
    }
}

impl<K: Kernel> Ring<K> {
    /// A ring without sockets on a kernel that was set up for it.
    fn on(kernel: K, provided: ManuallyDrop<Provided>, offers: Offers) -> Self {
        Self {
            kernel,
            provided,
            sockets: Sockets::new(),
            offers,
            starved: Vec::new(),
            unsubmitted: VecDeque::new(),
            silent: Vec::new(),
            completed: Vec::new(),
        }
    }

    /// As on a kernel where silence does not mean success.
    #[cfg(test)]
    pub(super) fn without_silence(mut self) -> Self {
        self.offers.is_silence_success = false;
        self
    }

    /// Prepares an operation on the socket `key`.
    fn submit(&mut self, key: u32, operation: u64, entry: Entry) {
        self.sockets.at(key).under_way += 1;
        self.push(entry.user_data(user_data(key, operation)));
    }

    fn push(&mut self, entry: Entry) {
        if self.unsubmitted.is_empty() && self.try_push(&entry) {
            return;
        }
        self.unsubmitted.push_back(entry);
        self.push_unsubmitted();
    }

    /// Puts what is left over into the queue, which the kernel empties for that. Where it does not, since its completions
    /// have to be taken first, the next turn goes on.
    fn push_unsubmitted(&mut self) {
        while let Some(entry) = self.unsubmitted.pop_front() {
            let is_pushed = self.try_push(&entry) || (self.kernel.submit().is_ok() && self.try_push(&entry));
            if !is_pushed {
                self.unsubmitted.push_front(entry);
                return;
            }
        }
    }

    /// False when the queue is full.
    fn try_push(&mut self, entry: &Entry) -> bool {
        // SAFETY: what an entry points to is kept in its socket until the completion comes.
        unsafe { self.kernel.push(entry) }
    }

    fn fd(&self, key: u32) -> Fd {
        Fd(self.sockets.fd(key))
    }

    /// Begins to receive.
    fn arm(&mut self, key: u32, want: Want) {
        let fd = self.fd(key);
        let (receiving, entry) = match want {
            Want::Any => {
                let entry = opcode::RecvMulti::new(fd, provided::GROUP).build();
                let most = if self.offers.is_limiting { MULTISHOT_BYTES as u32 } else { 0 };
                (Receiving::Multishot, limit::limited(entry, most))
            }
            Want::Bulk => {
                let (lent, at, bytes) = Buf::large().lend();
                (Receiving::Once(lent), opcode::Recv::new(fd, at, bytes as u32).build())
            }
        };
        self.sockets.at(key).receiving = receiving;
        self.submit(key, RECEIVE, entry);
    }

    /// Ends the receive under way; its last completion tells when.
    fn stop_receiving(&mut self, key: u32) {
        let socket = self.sockets.at(key);
        socket.bulk = BULK_FOR;
        if !socket.is_stopping {
            socket.is_stopping = true;
            self.cancel(key, RECEIVE);
        }
    }

    /// Ends an operation that is under way. Nobody waits for the cancel itself: the operation completes.
    fn cancel(&mut self, key: u32, operation: u64) {
        let which = CancelBuilder::user_data(user_data(key, operation));
        let cancel = opcode::AsyncCancel2::new(which).build();
        self.push(cancel.user_data(NOBODY).flags(Flags::SKIP_SUCCESS));
    }

    /// Ends whatever is under way on a socket. Each by its name: by the descriptor, the kernel would look through the
    /// operations of all sockets.
    fn cancel_all(&mut self, key: u32) {
        for operation in self.sockets.at(key).operations() {
            self.cancel(key, operation);
        }
    }

    /// Makes sure that what comes, and the end, is noticed.
    fn watch(&mut self, key: u32) {
        let socket = self.sockets.at(key);
        let is_off = matches!(socket.receiving, Receiving::Off);
        if is_off && socket.ended.is_none() && socket.inbox.is_empty() {
            self.arm(key, Want::Any);
        }
    }

    fn complete(&mut self, user_data: u64, result: i32, flags: u32) {
        if user_data == NOBODY {
            return;
        }
        let (key, operation) = parts(user_data);
        let is_last = !cqueue::more(flags);
        let Some(socket) = self.sockets.find(key) else { return };
        socket.under_way -= u8::from(is_last);
        match operation {
            RECEIVE => self.received(key, result, flags),
            SEND => self.sent(key, result),
            READABLE => {
                socket.readable = Polling::Done(result);
                socket.reader.wake();
            }
            WRITABLE => {
                socket.writable = Polling::Done(result);
                socket.writer.wake();
            }
            _ => {
                socket.hangup = Polling::Done(result);
                socket.mourner.wake();
            }
        }
        self.remove_if_over(key);
    }

    fn remove_if_over(&mut self, key: u32) {
        let socket = self.sockets.at(key);
        if socket.is_closing && socket.under_way == 0 {
            self.sockets.remove(key);
        }
    }

    fn received(&mut self, key: u32, result: i32, flags: u32) {
        let socket = self.sockets.at(key);
        let mut buf =
            cqueue::buffer_select(flags).and_then(|id| self.provided.take(id, result.max(0) as usize));
        if !cqueue::more(flags) {
            socket.is_stopping = false;
            if let Receiving::Once(lent) = std::mem::replace(&mut socket.receiving, Receiving::Off)
                && result > 0
            {
                let once = lent.back(result as usize);
                socket.bulk = if once.fills_small() { BULK_FOR } else { socket.bulk.saturating_sub(1) };
                buf = Some(once);
            }
        }
        match (-result, buf) {
            (0, _) => socket.end(End::Closed),
            (libc::ECANCELED, _) => {}
            (libc::ENOBUFS, _) => self.starved.push(key),
            (number @ 1.., _) => socket.end(End::Failed(number)),
            (_, Some(buf)) if !socket.is_closing => socket.inbox.push(buf, INBOX_MOST),
            (_, _) => {}
        }
        socket.reader.wake();
        if matches!(socket.receiving, Receiving::Off) {
            // Who waits for the hangup alone has to be told of it in another way from now on.
            socket.mourner.wake();
        }
        let most = if is_short() { INBOX_SHORT } else { INBOX_MOST };
        if socket.inbox.len() >= most && matches!(socket.receiving, Receiving::Multishot) {
            self.stop_receiving(key);
        }
    }

    /// Goes on with the receives that found no buffer.
    fn feed_starved(&mut self) {
        if self.starved.is_empty() {
            return;
        }
        self.provided.grow();
        for key in std::mem::take(&mut self.starved) {
            if self.sockets.find(key).is_some_and(|socket| !socket.is_closing) {
                self.watch(key);
            }
        }
    }
}

impl<K: Kernel> Driver for Ring<K> {
    fn adopt(&mut self, fd: OwnedFd) -> io::Result<u32> {
        Ok(self.sockets.insert(fd))
    }

    fn raw_fd(&self, key: u32) -> RawFd {
        self.sockets.fd(key)
    }

    fn close(&mut self, key: u32) {
        let socket = self.sockets.at(key);
        if socket.under_way == 0 {
            self.sockets.remove(key);
            return;
        }
        // A send that tells of failures only has ended by then, so that its cancel fails, which is told at once.
        socket.abandon();
        self.cancel_all(key);
    }

    fn poll_recv(&mut self, key: u32, want: Want, context: &Context<'_>) -> Poll<Received> {
        let socket = self.sockets.at(key);
        if let Some(input) = socket.take_input() {
            return Poll::Ready(input);
        }
        socket.reader.wait(context);
        let want = if is_short() { Want::Any } else { want };
        match (&socket.receiving, want) {
            (Receiving::Off, Want::Any) if socket.bulk == 0 || is_short() => self.arm(key, Want::Any),
            (Receiving::Off, _) => self.arm(key, Want::Bulk),
            (Receiving::Multishot, Want::Bulk) => self.stop_receiving(key),
            (Receiving::Multishot | Receiving::Once(_), _) => {}
        }
        Poll::Pending
    }

    fn put_back(&mut self, key: u32, unread: Buf) {
        self.sockets.at(key).inbox.push_front(unread);
    }

    fn poll_input(&mut self, key: u32, context: &Context<'_>) -> Poll<Input> {
        let socket = self.sockets.at(key);
        if !socket.inbox.is_empty() {
            return Poll::Ready(Input::Bytes);
        }
        if socket.ended.is_some() {
            return Poll::Ready(Input::Ended);
        }
        socket.reader.wait(context);
        self.watch(key);
        // As long as the peer is silent, this is all there is to know.
        self.sockets.fold(key);
        Poll::Pending
    }

    fn poll_hangup(&mut self, key: u32, context: &Context<'_>) -> Poll<()> {
        let socket = self.sockets.at(key);
        if socket.ended.is_some() || matches!(socket.hangup, Polling::Done(_)) {
            return Poll::Ready(());
        }
        socket.mourner.wait(context);
        if socket.hangup == Polling::Off && !matches!(socket.receiving, Receiving::Multishot) {
            socket.hangup = Polling::Submitted;
            let events = libc::POLLRDHUP as u32;
            let poll = opcode::PollAdd::new(self.fd(key), events).build();
            self.submit(key, HANGUP, poll);
        }
        Poll::Pending
    }

    fn poll_send(
        &mut self,
        key: u32,
        buf: &mut Option<Buf>,
        told: Told,
        context: &Context<'_>,
    ) -> Poll<Sent> {
        let socket = self.sockets.at(key);
        match std::mem::replace(&mut socket.sending, Sending::Off) {
            Sending::Off => {}
            Sending::Done(result, mut sent) => {
                let result = count(result);
                sent.consume(*result.as_ref().unwrap_or(&0));
                return Poll::Ready((result, sent));
            }
            under_way @ (Sending::Submitted(_)
            | Sending::Silent(_)
            | Sending::Forgotten { .. }
            | Sending::SilentForgotten { .. }) => {
                socket.sending = under_way;
                socket.writer.wait(context);
                return Poll::Pending;
            }
        }
        socket.writer.wait(context);
        if let Some(buf) = buf.take() {
            self.send(key, buf, told);
        }
        Poll::Pending
    }

    fn listen(&mut self, key: u32) {
        self.watch(key);
    }

    fn is_listening(&mut self, key: u32) -> bool {
        if self.sockets.waits(key) {
            return true;
        }
        let socket = self.sockets.at(key);
        let is_armed = matches!(socket.receiving, Receiving::Multishot) && !socket.is_stopping;
        is_armed && socket.inbox.is_empty() && socket.ended.is_none()
    }

    fn forget_send(&mut self, key: u32) {
        let socket = self.sockets.at(key);
        socket.sending = match std::mem::replace(&mut socket.sending, Sending::Off) {
            Sending::Submitted(lent) => Sending::Forgotten { _lent: lent },
            Sending::Silent(lent) => Sending::SilentForgotten { _lent: lent },
            Sending::Done(..) => Sending::Off,
            other @ (Sending::Off | Sending::Forgotten { .. } | Sending::SilentForgotten { .. }) => other,
        };
    }

    fn poll_ready(&mut self, key: u32, of: Readiness, context: &Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.sockets.at(key);
        let (polling, waiter, operation, events) = match of {
            Readiness::Readable => (&mut socket.readable, &mut socket.reader, READABLE, libc::POLLIN),
            Readiness::Writable => (&mut socket.writable, &mut socket.writer, WRITABLE, libc::POLLOUT),
        };
        if let Poll::Ready(result) = polling.take() {
            return Poll::Ready(result);
        }
        waiter.wait(context);
        if std::mem::replace(polling, Polling::Submitted) == Polling::Off {
            let poll = opcode::PollAdd::new(self.fd(key), events as u32).build();
            self.submit(key, operation, poll);
        }
        Poll::Pending
    }

    fn is_quiet(&mut self, key: u32) -> bool {
        if self.sockets.waits(key) {
            return true;
        }
        let socket = self.sockets.at(key);
        if socket.ended.is_some() || !socket.inbox.is_empty() {
            return false;
        }
        // Armed, it would have been noticed; else the kernel is asked, and told to notice from now on: unless the next that
        // comes is likely to be long.
        let mut is_quiet = true;
        if !matches!(socket.receiving, Receiving::Multishot) {
            let is_bulk = socket.bulk > 0;
            is_quiet = peek(self.sockets.borrow_fd(key)) == Peek::Quiet;
            if !is_bulk {
                self.watch(key);
            }
        }
        self.sockets.fold(key);
        is_quiet
    }

    fn poll_release(&mut self, key: u32, context: &Context<'_>) -> Poll<Option<OwnedFd>> {
        let socket = self.sockets.at(key);
        if socket.ended.is_some() || !socket.inbox.is_empty() {
            self.close(key);
            return Poll::Ready(None);
        }
        if socket.under_way == 0 {
            return Poll::Ready(Some(self.sockets.remove(key)));
        }
        socket.reader.wait(context);
        if !std::mem::replace(&mut socket.is_stopping, true) {
            self.cancel_all(key);
        }
        Poll::Pending
    }

    fn inbox_bytes_most(&self) -> usize {
        // Those that were there when the receive was told to end, and what it still brought: in full buffers, or where they
        // are not full, no two next to each other that one would have held. One more was put back.
        let behind = if self.offers.is_limiting { 2 * MULTISHOT_BYTES / SMALL_BYTES } else { AT_ONE_GO };
        LARGE_SIZE + (INBOX_MOST + behind) * SMALL_SIZE
    }

    fn lent_bytes_most(&self) -> usize {
        usize::from(provided::PLACES) * SMALL_SIZE
    }

    fn turn(&mut self, wait: bool) -> io::Result<()> {
        self.feed_starved();
        self.push_unsubmitted();
        self.provided.publish();
        // What is left over may be the very thing to wait for: the clock's next tick.
        let may_wait = wait && self.unsubmitted.is_empty();
        let submitted = if may_wait { self.kernel.submit_and_wait() } else { self.kernel.collect() };
        match submitted {
            Ok(_) => {}
            // Interrupted; or completions have to be taken before the kernel takes more.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(error) => return Err(error),
        }
        self.completed.clear();
        self.kernel.take_completions(&mut self.completed);
        // Asked before anything new is prepared.
        let knows_all = self.knows_all();
        for index in 0..self.completed.len() {
            let (user_data, result, flags) = self.completed[index];
            self.complete(user_data, result, flags);
        }
        if knows_all {
            self.end_silent();
        }
        Ok(())
    }
}

impl Socket {
    fn end(&mut self, end: End) {
        self.ended.get_or_insert(end);
    }

    /// What is under way.
    fn operations(&self) -> impl Iterator<Item = u64> + use<> {
        [
            (RECEIVE, !matches!(self.receiving, Receiving::Off)),
            (SEND, !matches!(self.sending, Sending::Off | Sending::Done(..))),
            (READABLE, self.readable == Polling::Submitted),
            (WRITABLE, self.writable == Polling::Submitted),
            (HANGUP, self.hangup == Polling::Submitted),
        ]
        .into_iter()
        .filter_map(|(operation, is_under_way)| is_under_way.then_some(operation))
    }

    /// Nobody will use it again.
    fn abandon(&mut self) {
        self.is_closing = true;
        (self.reader, self.writer, self.mourner) = (Waiter::NOBODY, Waiter::NOBODY, Waiter::NOBODY);
        while self.inbox.pop().is_some() {}
    }
}

/// Key and operation.
fn parts(user_data: u64) -> (u32, u64) {
    ((user_data >> OPERATION_BITS) as u32, user_data & ((1 << OPERATION_BITS) - 1))
}

fn user_data(key: u32, operation: u64) -> u64 {
    u64::from(key) << OPERATION_BITS | operation
}

/// The result of an operation that counts bytes.
fn count(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
