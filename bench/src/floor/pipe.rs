//! The relay as a runtime's tasks: two for each connection, each with one buffer. The same loop runs on monoio and on
//! tokio-uring, so that what differs is the runtime and its ring.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;

use monoio::io::{AsyncReadRent as _, AsyncWriteRentExt as _, Splitable as _};
use monoio::net::tcp::{TcpOwnedReadHalf, TcpOwnedWriteHalf};
use monoio::{IoUringDriver, RuntimeBuilder};
use rustix::net::Shutdown;
use socket2::SockRef;

use super::{CHUNK_SIZE, reset, sys};

/// Entries of the tuned ring: all connections may have something to submit in one turn.
const ENTRIES: u32 = 4096;
/// Completion entries of the tuned ring: one turn may complete more than it submitted.
const COMPLETIONS: u32 = 32768;

/// Relays on monoio for ever, either on the ring that it sets up by itself or on a tuned one.
pub(super) fn monoio(listener: TcpListener, to: SocketAddr, is_tuned: bool) -> io::Result<()> {
    let mut builder = RuntimeBuilder::<IoUringDriver>::new();
    if is_tuned {
        let mut ring = io_uring_of_monoio::IoUring::builder();
        ring.setup_coop_taskrun().setup_single_issuer().setup_cqsize(COMPLETIONS);
        builder = builder.uring_builder(ring).with_entries(ENTRIES);
    }
    builder.build()?.block_on(async {
        let listener = monoio::net::TcpListener::from_std(listener)?;
        loop {
            let (client, _) = listener.accept().await?;
            monoio::spawn(async move {
                let upstream = monoio::net::TcpStream::connect_addr(to).await;
                if let Some((client, upstream)) = both(client, upstream) {
                    let faults = Rc::new(Cell::new(false));
                    let ((from_client, to_client), (from_upstream, to_upstream)) =
                        (split(client), split(upstream));
                    monoio::spawn(pipe(from_client, to_upstream, Rc::clone(&faults)));
                    pipe(from_upstream, to_client, faults).await;
                }
            });
        }
    })
}

/// Relays on tokio-uring for ever.
pub(super) fn tokio_uring(listener: TcpListener, to: SocketAddr) -> io::Result<()> {
    tokio_uring::start(async {
        let listener = tokio_uring::net::TcpListener::from_std(listener);
        loop {
            let (client, _) = listener.accept().await?;
            tokio_uring::spawn(async move {
                let upstream = tokio_uring::net::TcpStream::connect(to).await;
                if let Some((client, upstream)) = both(client, upstream) {
                    let faults = Rc::new(Cell::new(false));
                    let (client, upstream) = (Rc::new(client), Rc::new(upstream));
                    tokio_uring::spawn(pipe(Rc::clone(&client), Rc::clone(&upstream), Rc::clone(&faults)));
                    pipe(upstream, client, faults).await;
                }
            });
        }
    })
}

/// What a way reads from.
trait Source: AsRawFd {
    /// Reads into an empty buffer of which the capacity counts.
    fn receive(&mut self, buffer: Vec<u8>) -> impl Future<Output = (io::Result<usize>, Vec<u8>)>;
}

/// What a way writes to.
trait Target: AsRawFd {
    /// Writes the whole buffer.
    fn send(&mut self, buffer: Vec<u8>) -> impl Future<Output = (io::Result<()>, Vec<u8>)>;
}

/// Half of a monoio stream, with the number of its socket, which monoio's halves do not tell.
struct Half<H> {
    stream: H,
    socket: RawFd,
}

impl<H> AsRawFd for Half<H> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket
    }
}

fn split(stream: monoio::net::TcpStream) -> (Half<TcpOwnedReadHalf>, Half<TcpOwnedWriteHalf>) {
    let socket = stream.as_raw_fd();
    let (read, write) = stream.into_split();
    (Half { stream: read, socket }, Half { stream: write, socket })
}

impl Source for Half<TcpOwnedReadHalf> {
    async fn receive(&mut self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        self.stream.read(buffer).await
    }
}

impl Target for Half<TcpOwnedWriteHalf> {
    async fn send(&mut self, buffer: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let (result, buffer) = self.stream.write_all(buffer).await;
        (result.map(drop), buffer)
    }
}

impl Source for Rc<tokio_uring::net::TcpStream> {
    async fn receive(&mut self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        self.read(buffer).await
    }
}

impl Target for Rc<tokio_uring::net::TcpStream> {
    async fn send(&mut self, buffer: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        self.write_all(buffer).await
    }
}

/// Both connections, without delay; else the client's is closed with a reset.
fn both<S: AsRawFd>(client: S, upstream: io::Result<S>) -> Option<(S, S)> {
    let _ = SockRef::from(&sys::borrow(&client)).set_tcp_nodelay(true);
    match upstream {
        Ok(upstream) => {
            let _ = SockRef::from(&sys::borrow(&upstream)).set_tcp_nodelay(true);
            Some((client, upstream))
        }
        Err(_) => {
            reset(sys::borrow(&client));
            None
        }
    }
}

/// One way of a connection, to its end. `has_failed` is shared with the other way.
async fn pipe(mut source: impl Source, mut target: impl Target, has_failed: Rc<Cell<bool>>) {
    let mut buffer = Vec::with_capacity(CHUNK_SIZE);
    let result = loop {
        buffer.clear();
        let (received, filled) = source.receive(buffer).await;
        buffer = filled;
        match received {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
        let (sent, emptied) = target.send(buffer).await;
        buffer = emptied;
        if let Err(error) = sent {
            break Err(error);
        }
    };
    if has_failed.get() {
        return;
    }
    let (source, target) = (sys::borrow(&source), sys::borrow(&target));
    if result.is_ok() {
        // A peer that is gone needs no end.
        let _ = rustix::net::shutdown(target, Shutdown::Write);
        return;
    }
    has_failed.set(true);
    // The other way is woken by it.
    reset(source);
    reset(target);
}
