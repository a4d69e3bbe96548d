//! Accepting: in bursts when the listening socket is readable, within the node's limit, and evenly over the workers.
//!
//! Readiness and `accept4` rather than an accept on the ring: an accept that is cancelled could lose the connection it
//! had just taken, and stopping a listener must lose none.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use tracing::warn;

use crate::io::{self as driver, Stream};
use crate::protocol::{Connection, Context, Ingress, serve};
use crate::sys::socket;

/// Connections taken in one turn, before the others of the worker get theirs.
const BURST: usize = 64;
/// Pause after the process ran out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// A worker keeps a new connection unless it has this many streams more than the idlest one.
const IMBALANCE_STREAMS: u64 = 16;

/// A connection that one worker has accepted and another is to serve.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The connected socket.
    pub(crate) socket: OwnedFd,
    /// The peer; none on a Unix socket.
    pub(crate) peer: Option<SocketAddr>,
    /// The listener's name.
    pub(crate) listener: String,
}

/// Ends an accept loop from outside of its task.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    stopped: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Stop {
    /// No further connection is taken; what waits in the queue already is.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn wait(&self) {
        std::future::poll_fn(|context| {
            if self.stopped.get() {
                return Poll::Ready(());
            }
            self.waker.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// Accepts on `socket` until stopped. Errors: the socket cannot be watched.
pub(crate) async fn accept(
    socket: OwnedFd,
    ingress: Rc<Ingress>,
    context: Rc<Context>,
    hand_over: impl Fn(usize, Accepted),
    stop: Rc<Stop>,
) -> io::Result<()> {
    let socket = Stream::adopt(socket)?;
    loop {
        let stopped = first(stop.wait(), socket.readable()).await;
        match accept_burst(&socket, &ingress, &context, &hand_over) {
            // Closing a socket resets what waits in its queue: take that first, however many bursts it needs.
            Ok(is_empty) if stopped && is_empty => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                ingress.stats().accept_failures.increment();
                warn!(listener = ingress.name(), %error, "cannot accept; waiting for connections to close");
                context.give_up_some_idle();
                driver::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

/// Takes what waits in the queue, up to a burst; true when nothing is left there. Errors: the process or the host has run
/// out of descriptors or memory.
fn accept_burst(
    socket: &Stream,
    ingress: &Rc<Ingress>,
    context: &Rc<Context>,
    hand_over: &impl Fn(usize, Accepted),
) -> io::Result<bool> {
    for _ in 0..BURST {
        let (socket, peer) = match socket::accept(socket) {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if socket::is_exhausted(&error) => return Err(error),
            // The peer gave up while it waited in the queue.
            Err(_) => continue,
        };
        match context.idler_worker(IMBALANCE_STREAMS) {
            Some(other) => {
                context.stats().handovers_out.increment();
                hand_over(other, Accepted { socket, peer, listener: ingress.name().to_owned() });
            }
            None => begin(socket, peer, ingress, context),
        }
    }
    Ok(false)
}

/// Serves a connection on this worker.
pub(crate) fn begin(socket: OwnedFd, peer: Option<SocketAddr>, ingress: &Rc<Ingress>, context: &Rc<Context>) {
    if let Some(connection) = Connection::open(socket, peer, ingress, context) {
        driver::spawn(serve(connection));
    }
}

/// True when `stop` was first (or both are ready), false when `ready` was.
async fn first(stop: impl Future<Output = ()>, ready: impl Future<Output = io::Result<()>>) -> bool {
    let mut stop = std::pin::pin!(stop);
    let mut ready = std::pin::pin!(ready);
    std::future::poll_fn(|context| {
        if stop.as_mut().poll(context).is_ready() {
            return Poll::Ready(true);
        }
        ready.as_mut().poll(context).map(|_| false)
    })
    .await
}
