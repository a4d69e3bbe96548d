//! A connected socket on the worker's driver: TCP or Unix, the driver does not mind.

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::UnixStream;
use rustix::net::Shutdown;

use super::buf::Buf;
use crate::sys::event;
use crate::sys::socket::{self, Peek};

/// A connected stream socket.
///
/// One receive and one send may be in flight at the same time; both take `&self`, so that a request can go up while
/// its response comes down. Dropping it closes the socket once no operation is in flight.
pub(crate) struct Stream {
    // monoio asks for `&mut` to start an operation, but keeps nothing of it: the operation holds its own counted
    // handle of the descriptor. The cell lets a receive and a send be started side by side on one thread.
    //
    // Receive, send and poll are the same for every stream socket, whatever its family. Of monoio's types the one for
    // Unix sockets is a bare handle; the one for TCP drags a cache of addresses along wherever it is moved.
    socket: UnsafeCell<UnixStream>,
}

impl Stream {
    /// Takes a connected socket over; its blocking mode must fit the driver (see [`super::sockets_nonblocking`]).
    pub(crate) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let socket = UnixStream::from_std(std::os::unix::net::UnixStream::from(fd))?;
        Ok(Self { socket: UnsafeCell::new(socket) })
    }

    /// Receives once behind the content of `buf`, which comes back with the count; 0 is the peer's end.
    pub(crate) fn recv(&self, buf: Buf) -> impl Future<Output = (io::Result<usize>, Buf)> {
        // SAFETY: the exclusive reference is used only to submit the operation, which ends before this call returns;
        // the socket is never touched from another thread.
        unsafe { &mut *self.socket.get() }.read(buf)
    }

    /// Waits until there is something to receive, holding no buffer.
    pub(crate) fn readable(&self) -> impl Future<Output = io::Result<()>> {
        self.shared().readable(false)
    }

    /// Waits until the socket takes bytes, or its connect is done.
    pub(crate) fn writable(&self) -> impl Future<Output = io::Result<()>> {
        self.shared().writable(false)
    }

    /// Waits until the peer closes its side or resets, whatever it sent before that and is still unread.
    pub(crate) async fn hangup(&self) -> io::Result<()> {
        Self::adopt(event::hangup(self)?)?.readable().await
    }

    /// Sends once; what was taken is consumed from `buf`.
    pub(crate) fn send(&self, buf: Buf) -> impl Future<Output = (io::Result<usize>, Buf)> {
        // SAFETY: as in `recv`.
        Sending(unsafe { &mut *self.socket.get() }.write(buf))
    }

    /// Looks at the receive queue without waiting.
    pub(crate) fn peek(&self) -> Peek {
        socket::peek(self)
    }

    /// Sends the end of our side (FIN).
    pub(crate) fn shutdown_write(&self) {
        socket::shutdown(self, Shutdown::Write);
    }

    /// Makes the close a reset, so that the peer cannot take what it has for the whole.
    pub(crate) fn reset_on_close(&self) {
        socket::reset_on_close(self);
    }

    /// Gives the descriptor back, for another worker or for the pool. No operation may be in flight.
    pub(crate) fn into_fd(self) -> OwnedFd {
        let raw = self.socket.into_inner().into_raw_fd();
        // SAFETY: `into_raw_fd` gives up the only owner of this descriptor.
        unsafe { OwnedFd::from_raw_fd(raw) }
    }

    fn shared(&self) -> &UnixStream {
        // SAFETY: exclusive references exist only within `recv` and `send`, which do not call here.
        unsafe { &*self.socket.get() }
    }
}

/// A send under way: consumes what was taken. By hand, since an `async` block would hold the operation twice.
struct Sending<S>(S);

impl<S: Future<Output = (io::Result<usize>, Buf)>> Future for Sending<S> {
    type Output = (io::Result<usize>, Buf);

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: the operation is pinned with `self` and never moved out of it.
        let send = unsafe { self.map_unchecked_mut(|this| &mut this.0) };
        send.poll(context).map(|(result, mut buf)| {
            if let Ok(count) = result {
                buf.consume(count);
            }
            (result, buf)
        })
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.shared().as_raw_fd()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
    }
}
