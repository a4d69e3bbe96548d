//! The driver on epoll, where a kernel or a sandbox forbids rings: readiness, then a system call.
//!
//! Edge-triggered: a descriptor is registered once. Its readiness is remembered here until a call says that it is over.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::task::{Context, Poll};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::buf::{Buf, LARGE_SIZE, is_short};
use super::driver::{Driver, Input, Readiness, Received, Sent, Told, Want};
use super::table::Table;
use super::waker::Waiter;
use crate::sys::socket::{self as sockets, Peek};

/// Events taken in one turn.
const EVENTS_MOST: usize = 1024;

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A thread's epoll with its sockets.
pub(super) struct Epoll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    sockets: Table<Socket>,
}

/// What is known of one descriptor.
#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    /// Received, but given back.
    unread: Option<Buf>,
    is_readable: bool,
    is_writable: bool,
    /// The peer has closed its side, or the connection has failed.
    is_hung_up: bool,
    reader: Waiter,
    writer: Waiter,
    mourner: Waiter,
}

impl Epoll {
    /// An epoll for this thread. Errors: what the kernel said.
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, events: Vec::with_capacity(EVENTS_MOST), sockets: Table::new() })
    }

    fn socket(&mut self, key: u32) -> &mut Socket {
        &mut self.sockets[key]
    }
}

impl Driver for Epoll {
    fn adopt(&mut self, fd: OwnedFd) -> io::Result<u32> {
        let all = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let key = self.sockets.insert(Socket::new(fd));
        let added = epoll::add(&self.epoll, &self.sockets[key].fd, EventData::new_u64(key.into()), all);
        if let Err(error) = added {
            self.sockets.remove(key);
            return Err(error.into());
        }
        Ok(key)
    }

    fn raw_fd(&self, key: u32) -> RawFd {
        self.sockets[key].fd.as_raw_fd()
    }

    fn close(&mut self, key: u32) {
        drop(self.release(key));
    }

    fn poll_recv(&mut self, key: u32, want: Want, context: &Context<'_>) -> Poll<Received> {
        let socket = self.socket(key);
        if let Some(unread) = socket.unread.take() {
            return Poll::Ready(Ok(Some(unread)));
        }
        if socket.is_readable
            && let Some(received) = socket.receive(want)
        {
            return Poll::Ready(received);
        }
        socket.reader.wait(context);
        Poll::Pending
    }

    fn put_back(&mut self, key: u32, unread: Buf) {
        self.socket(key).unread = Some(unread);
    }

    fn poll_input(&mut self, key: u32, context: &Context<'_>) -> Poll<Input> {
        let socket = self.socket(key);
        match socket.peek() {
            Peek::Data => Poll::Ready(Input::Bytes),
            Peek::Closed => Poll::Ready(Input::Ended),
            Peek::Quiet => {
                socket.reader.wait(context);
                Poll::Pending
            }
        }
    }

    fn poll_hangup(&mut self, key: u32, context: &Context<'_>) -> Poll<()> {
        let socket = self.socket(key);
        if socket.is_hung_up {
            return Poll::Ready(());
        }
        socket.mourner.wait(context);
        Poll::Pending
    }

    fn poll_send(
        &mut self,
        key: u32,
        buf: &mut Option<Buf>,
        _told: Told,
        context: &Context<'_>,
    ) -> Poll<Sent> {
        let socket = self.socket(key);
        if socket.is_writable
            && let Some(mut sending) = buf.take()
        {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&socket.fd, sending.bytes(), flags) {
                Ok(count) => {
                    sending.consume(count);
                    return Poll::Ready((Ok(count), sending));
                }
                Err(Errno::WOULDBLOCK) => {
                    socket.is_writable = false;
                    *buf = Some(sending);
                }
                Err(error) => return Poll::Ready((Err(error.into()), sending)),
            }
        }
        socket.writer.wait(context);
        Poll::Pending
    }

    fn listen(&mut self, _key: u32) {
        // The set of descriptors notices it already.
    }

    fn is_listening(&mut self, _key: u32) -> bool {
        // Sends are over at once: there is nothing to put off.
        false
    }

    fn forget_send(&mut self, _key: u32) {
        // A send that waits is held by the one who waits.
    }

    fn poll_ready(&mut self, key: u32, of: Readiness, context: &Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.socket(key);
        let (is_ready, waker, events) = match of {
            Readiness::Readable => (&mut socket.is_readable, &mut socket.reader, PollFlags::IN),
            Readiness::Writable => (&mut socket.is_writable, &mut socket.writer, PollFlags::OUT),
        };
        // What is waited for here is used behind our back: the kernel knows whether it is ready still.
        if *is_ready {
            *is_ready = is_ready_now(&socket.fd, events)?;
            if *is_ready {
                return Poll::Ready(Ok(()));
            }
        }
        waker.wait(context);
        Poll::Pending
    }

    fn is_quiet(&mut self, key: u32) -> bool {
        self.socket(key).peek() == Peek::Quiet
    }

    fn poll_release(&mut self, key: u32, _context: &Context<'_>) -> Poll<Option<OwnedFd>> {
        let is_quiet = self.is_quiet(key);
        let fd = self.release(key);
        Poll::Ready(is_quiet.then_some(fd))
    }

    fn inbox_bytes_most(&self) -> usize {
        // What was received but given back.
        LARGE_SIZE
    }

    fn lent_bytes_most(&self) -> usize {
        0
    }

    fn turn(&mut self, wait: bool) -> io::Result<()> {
        let timeout = if wait { None } else { Some(&AT_ONCE) };
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &self.events {
            if let Some(socket) = self.sockets.get_mut(event.data.u64() as u32) {
                socket.happened(event.flags);
            }
        }
        Ok(())
    }
}

impl Epoll {
    /// Forgets a descriptor, which may live on elsewhere.
    fn release(&mut self, key: u32) -> OwnedFd {
        let socket = self.sockets.remove(key).expect("a socket is given up once");
        // The only failure is that it is not registered any more.
        let _ = epoll::delete(&self.epoll, &socket.fd);
        socket.fd
    }
}

impl Socket {
    fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            unread: None,
            // Until a call says otherwise: often the first bytes are there already.
            is_readable: true,
            is_writable: true,
            is_hung_up: false,
            reader: Waiter::NOBODY,
            writer: Waiter::NOBODY,
            mourner: Waiter::NOBODY,
        }
    }

    fn happened(&mut self, flags: EventFlags) {
        let is_over = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        if is_over || flags.contains(EventFlags::IN) {
            self.is_readable = true;
            self.reader.wake();
        }
        if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
            self.is_writable = true;
            self.writer.wake();
        }
        if is_over {
            self.is_hung_up = true;
            self.mourner.wake();
        }
    }

    /// Receives once; none when there is nothing to receive after all.
    fn receive(&mut self, want: Want) -> Option<Received> {
        let mut buf = match want {
            Want::Bulk if !is_short() => Buf::large(),
            Want::Any | Want::Bulk => Buf::small(),
        };
        let room = buf.spare();
        let flags = RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.fd, &mut buf.tail_mut()[..room], flags) {
            Ok((0, _)) => Some(Ok(None)),
            Ok((count, _)) => {
                // Less than there was room for is all there is: the next byte is told of anew, an end that is known is not.
                self.is_readable = count == room || self.is_hung_up;
                buf.advance(count);
                Some(Ok(Some(buf)))
            }
            Err(Errno::WOULDBLOCK) => {
                self.is_readable = false;
                None
            }
            Err(error) => Some(Err(error.into())),
        }
    }

    /// Looks without taking.
    fn peek(&mut self) -> Peek {
        if self.unread.is_some() {
            return Peek::Data;
        }
        if !self.is_readable {
            return Peek::Quiet;
        }
        let peek = sockets::peek(&self.fd);
        if peek == Peek::Quiet {
            self.is_readable = false;
        }
        peek
    }
}

fn is_ready_now(fd: &OwnedFd, events: PollFlags) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(fd, events)], Some(&AT_ONCE))? > 0)
}
