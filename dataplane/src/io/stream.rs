//! A connected socket of this worker, and any other descriptor whose readiness it waits for.

use std::future::poll_fn;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::Shutdown;

use super::driver::{self, Input, Readiness, Received, Sent, Told, Want};
use super::{Buf, home};
use crate::sys::socket;

/// One socket. Dropping it closes it. One task at a time may receive, one send, one wait for the hangup.
#[derive(Debug)]
pub(crate) struct Stream {
    key: u32,
    fd: RawFd,
    /// It belongs to the driver of its thread.
    _here: PhantomData<*const ()>,
}

impl Stream {
    /// Takes a descriptor over, which is non-blocking.
    pub(crate) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let raw = fd.as_raw_fd();
        let key = driver::with(|driver| driver.adopt(fd))?;
        Ok(Self { key, fd: raw, _here: PhantomData })
    }

    /// Receives what is there, or what comes next; none is the peer's end. No buffer is held while nothing comes.
    pub(crate) fn recv(&self) -> impl Future<Output = Received> {
        self.recv_as(Want::Any)
    }

    /// As [`Stream::recv`], where much is expected: into a large buffer.
    pub(crate) fn recv_bulk(&self) -> impl Future<Output = Received> {
        self.recv_as(Want::Bulk)
    }

    fn recv_as(&self, want: Want) -> impl Future<Output = Received> {
        poll_fn(move |context| driver::with(|driver| driver.poll_recv(self.key, want, context)))
    }

    /// As [`Stream::recv`], behind the content of `buf`; false at the end. What `buf` has no room for is received by the
    /// next call.
    pub(crate) async fn recv_behind(&self, buf: &mut Buf) -> io::Result<bool> {
        let Some(mut received) = self.recv().await? else { return Ok(false) };
        let count = received.len().min(buf.spare());
        buf.append(&received.bytes()[..count]);
        received.consume(count);
        if !received.is_empty() {
            driver::with(|driver| driver.put_back(self.key, received));
        }
        Ok(true)
    }

    /// Waits until there is something to receive, or the end, and takes nothing.
    pub(crate) fn poll_input(&self, context: &Context<'_>) -> Poll<Input> {
        driver::with(|driver| driver.poll_input(self.key, context))
    }

    /// As [`Stream::poll_input`].
    #[cfg(test)]
    pub(crate) fn input(&self) -> impl Future<Output = Input> {
        poll_fn(|context| self.poll_input(context))
    }

    /// Waits until the peer closes its side or resets, whatever it sent before that and is still unread.
    pub(crate) fn poll_hangup(&self, context: &Context<'_>) -> Poll<()> {
        driver::with(|driver| driver.poll_hangup(self.key, context))
    }

    /// Waits until a descriptor that is no stream socket is readable.
    pub(crate) fn readable(&self) -> impl Future<Output = io::Result<()>> {
        self.ready(Readiness::Readable)
    }

    /// Waits until the connect of this socket is done.
    pub(crate) fn writable(&self) -> impl Future<Output = io::Result<()>> {
        self.ready(Readiness::Writable)
    }

    fn ready(&self, of: Readiness) -> impl Future<Output = io::Result<()>> {
        poll_fn(move |context| driver::with(|driver| driver.poll_ready(self.key, of, context)))
    }

    /// Sends once; what was taken is consumed from `buf`.
    pub(crate) fn send(&self, buf: Buf, told: Told) -> impl Future<Output = Sent> {
        Send { stream: self, buf: Some(buf), told, is_over: false }
    }

    /// Whether it is open and nothing has come.
    pub(crate) fn is_quiet(&self) -> bool {
        driver::with(|driver| driver.is_quiet(self.key))
    }

    /// Lets the kernel receive before anybody waits for it.
    pub(crate) fn listen(&self) {
        driver::with(|driver| driver.listen(self.key));
    }

    /// Whether nothing has come, and whatever comes next will make the worker turn: who waits for that may as well be told
    /// of an earlier send then.
    pub(crate) fn is_listening(&self) -> bool {
        driver::with(|driver| driver.is_listening(self.key))
    }

    /// Sends the end of our side (FIN).
    pub(crate) fn shutdown_write(&self) {
        socket::shutdown(self, Shutdown::Write);
    }

    /// Makes the close a reset, so that the peer cannot take what it has for the whole.
    pub(crate) fn reset_on_close(&self) {
        socket::reset_on_close(self);
    }

    /// Puts the connection aside: whoever has the lease can go on with it, on this worker or on another. None if it is
    /// closed, or bytes have come on it that nobody asked for.
    pub(crate) fn lease(self) -> Option<home::Lease> {
        self.is_quiet().then(|| home::Lease::new(self.into_key()))
    }

    /// Gives the descriptor up, for another worker; none where [`Stream::lease`] would give none.
    pub(super) async fn release(self) -> Option<OwnedFd> {
        let key = self.into_key();
        poll_fn(|context| driver::with(|driver| driver.poll_release(key, context))).await
    }

    /// The socket with this key, if it is still quiet; else it is closed.
    pub(super) fn from_lease(key: u32) -> Option<Self> {
        let fd = driver::with(|driver| driver.is_quiet(key).then(|| driver.raw_fd(key)));
        let stream = fd.map(|fd| Self { key, fd, _here: PhantomData });
        if stream.is_none() {
            driver::close(key);
        }
        stream
    }

    fn into_key(self) -> u32 {
        let key = self.key;
        std::mem::forget(self);
        key
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        driver::close(self.key);
    }
}

/// A send under way.
struct Send<'s> {
    stream: &'s Stream,
    /// Until the kernel has it.
    buf: Option<Buf>,
    told: Told,
    is_over: bool,
}

impl Future for Send<'_> {
    type Output = Sent;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Sent> {
        let this = &mut *self;
        let sent =
            driver::with(|driver| driver.poll_send(this.stream.key, &mut this.buf, this.told, context));
        this.is_over = sent.is_ready();
        sent
    }
}

impl Drop for Send<'_> {
    fn drop(&mut self) {
        if !self.is_over && self.buf.is_none() {
            driver::with(|driver| driver.forget_send(self.stream.key));
        }
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the driver keeps the descriptor open until this stream is dropped.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}
