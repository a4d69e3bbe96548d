//! What a worker's driver does, whether it is a ring or epoll: it owns the sockets of its thread and moves their bytes.

use std::cell::RefCell;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::task::{Context, Poll};

use super::Buf;
use super::buf::KEPT_BYTES_MOST;

thread_local! {
    static DRIVER: RefCell<Option<Box<dyn Driver>>> = const { RefCell::new(None) };
}

/// How much the next receive is expected to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// A head, an event, the beginning of something.
    Any,
    /// The middle of a long body: large buffers pay.
    Bulk,
}

/// When who sends is told that the kernel has taken the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// At once.
    AtOnce,
    /// With whatever happens next on this worker, at the latest with the next tick. That saves a turn and a completion
    /// for who then waits for something else anyhow. A failure is told at once all the same.
    WithNext,
}

/// What is known of a socket's receiving side before anything is taken from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Bytes wait to be received.
    Bytes,
    /// The peer closed its side, or the connection failed.
    Ended,
}

/// What a descriptor is waited for that nothing is received from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Readable,
    Writable,
}

/// What a receive brought: bytes, or none at the peer's end.
pub(crate) type Received = io::Result<Option<Buf>>;

/// What became of a send: the count that was taken, and the buffer.
pub(crate) type Sent = (io::Result<usize>, Buf);

/// The sockets of one thread, each named by a key. One task at a time waits for each kind of thing on a socket.
pub(super) trait Driver {
    /// Takes a descriptor over.
    fn adopt(&mut self, fd: OwnedFd) -> io::Result<u32>;

    /// Its descriptor.
    fn raw_fd(&self, key: u32) -> RawFd;

    /// Closes it as soon as the kernel has let go of what was lent for it.
    fn close(&mut self, key: u32);

    /// The next bytes; none at the peer's end.
    fn poll_recv(&mut self, key: u32, want: Want, context: &Context<'_>) -> Poll<Received>;

    /// Puts bytes back in front of what is still to be received.
    fn put_back(&mut self, key: u32, unread: Buf);

    /// Waits until there is something to receive, or the end, and takes nothing.
    fn poll_input(&mut self, key: u32, context: &Context<'_>) -> Poll<Input>;

    /// Waits until the peer closes its side or resets, whatever it sent before that and is still unread.
    fn poll_hangup(&mut self, key: u32, context: &Context<'_>) -> Poll<()>;

    /// Sends `buf` if it is there, else waits for the end of the send under way.
    fn poll_send(&mut self, key: u32, buf: &mut Option<Buf>, told: Told, context: &Context<'_>)
    -> Poll<Sent>;

    /// Makes sure that whatever comes next on a socket is noticed, before anybody waits for it.
    fn listen(&mut self, key: u32);

    /// Whether nothing has come on a socket, and whatever comes next will make the worker turn.
    fn is_listening(&mut self, key: u32) -> bool;

    /// Nobody waits any more for the send under way.
    fn forget_send(&mut self, key: u32);

    /// Waits for readiness.
    fn poll_ready(&mut self, key: u32, of: Readiness, context: &Context<'_>) -> Poll<io::Result<()>>;

    /// Whether a socket is open and nothing has come on it.
    fn is_quiet(&mut self, key: u32) -> bool;

    /// Ends what is under way on a socket, which is given up by this, and hands its descriptor out if it is quiet.
    fn poll_release(&mut self, key: u32, context: &Context<'_>) -> Poll<Option<OwnedFd>>;

    /// The most bytes of buffers that wait in one socket for being taken.
    fn inbox_bytes_most(&self) -> usize;

    /// The most bytes of buffers that are lent to the kernel for whatever socket gets something next.
    fn lent_bytes_most(&self) -> usize;

    /// One turn: hands over what was prepared, and takes what has come; waits for the first of it if told so.
    fn turn(&mut self, wait: bool) -> io::Result<()>;
}

/// Puts the driver of this thread in place.
pub(super) fn install(driver: impl Driver + 'static) {
    DRIVER.with_borrow_mut(|slot| *slot = Some(Box::new(driver)));
}

/// Takes it away; its sockets are closed.
pub(super) fn uninstall() {
    let driver = DRIVER.with_borrow_mut(Option::take);
    drop(driver);
}

/// Uses this thread's driver.
///
/// # Panics
/// The thread runs no runtime: a bug of the caller.
pub(super) fn with<T>(use_it: impl FnOnce(&mut dyn Driver) -> T) -> T {
    DRIVER.with_borrow_mut(|driver| {
        use_it(driver.as_deref_mut().expect("sockets are used where a runtime runs"))
    })
}

/// The most bytes of buffers that wait in one socket of this thread for being taken.
pub(crate) fn inbox_bytes_most() -> usize {
    with(|driver| driver.inbox_bytes_most())
}

/// The most bytes of buffers that this thread has without using them: lent to the kernel, or free.
pub(crate) fn reserve_bytes_most() -> usize {
    with(|driver| driver.lent_bytes_most()) + KEPT_BYTES_MOST
}

/// Gives a socket up. Without a driver it is closed already.
pub(super) fn close(key: u32) {
    let _ = DRIVER.try_with(|driver| {
        if let Some(driver) = driver.borrow_mut().as_deref_mut() {
            driver.close(key);
        }
    });
}
